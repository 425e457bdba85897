"""A share CID: one version for somebody without the phrase, and nothing else."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from typing import Any

import pytest
from saving import PHRASE, Objects, add_rows, content, session_on

from fabstir_vectordb import DecryptionError, InvalidInputError, NotFoundError
from fabstir_vectordb.s5.cid import BlobId, ShareCid, blake3_hash, multibase_decode, multibase_encode
from fabstir_vectordb.s5.cipher import decrypt_mutable
from fabstir_vectordb.s5.dirv1 import decode_directory
from fabstir_vectordb.storage import open_store

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

STRANGER = "cause volume could code victim murder reflect often opinion well enough tired advice client father"


@pytest.fixture(params=["file", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return tmp_path.as_uri() if request.param == "file" else f"memory:{uuid.uuid4()}"


async def test_a_share_opens_one_version_under_any_phrase(uri: str) -> None:
    async with await session_on(uri) as owner:
        await add_rows(owner, 20)
        first = await owner.save_to_s5()
        expected = await content(owner)
        share = await owner.share(first)
        assert share.startswith("uXV6m")
        assert await owner.share(first) == share
        await add_rows(owner, 5, first=20)
        second = await owner.save_to_s5()
        assert await owner.share(second) != share
    async with await session_on(uri, user_seed_phrase=STRANGER) as stranger:
        await stranger.load_user_vectors(share)
        assert await content(stranger) == expected
        await stranger.verify(share)
        # Neither the owner's other version, nor this one without its key, nor a newest one.
        for cid in (first, second):
            with pytest.raises(DecryptionError):
                await stranger.load_user_vectors(cid)
        with pytest.raises(NotFoundError):
            await stranger.load_user_vectors()
        assert await stranger.history() == []


async def test_a_share_saved_goes_to_the_readers_own_index_under_the_readers_keys(tmp_path: Path) -> None:
    async with await session_on(tmp_path.as_uri()) as owner:
        await add_rows(owner, 20)
        cid = await owner.save_to_s5()
        share = await owner.share(cid)
    theirs = {entry.hash for entry in Objects(tmp_path).files(cid).values()}
    async with await session_on(tmp_path.as_uri(), user_seed_phrase=STRANGER) as stranger:
        await stranger.load_user_vectors(share)
        before = await content(stranger)
        copy = await stranger.save_to_s5()
        assert copy != cid
        identity = await stranger._workspace._keys()
        keys = identity.path_keys("fabstir-vectordb/index/default")
        blob = BlobId.parse(copy)
        root = decrypt_mutable(keys.encryption_key, await open_store(tmp_path.as_uri()).get(blob.hash, blob.size))
        assert theirs.isdisjoint(entry.hash for entry in decode_directory(root).files.values())
    async with await session_on(tmp_path.as_uri(), user_seed_phrase=STRANGER) as again:
        await again.load_user_vectors()
        assert await content(again) == before
    async with await session_on(tmp_path.as_uri()) as owner:
        assert [entry.cid for entry in await owner.history()] == [cid]


async def test_a_share_stores_the_root_alone_and_does_not_hold_the_indexs_key(tmp_path: Path) -> None:
    async with await session_on(tmp_path.as_uri()) as owner:
        await add_rows(owner, 20)
        cid = await owner.save_to_s5()
        blobs = set((tmp_path / "blobs").rglob("*"))
        share = await owner.share(cid)
    fresh = [path for path in set((tmp_path / "blobs").rglob("*")) - blobs if path.is_file()]
    read = ShareCid.from_bytes(multibase_decode(share))
    assert fresh == [Objects(tmp_path).blob(read.hash)]
    assert read.key != Objects(tmp_path).keys.encryption_key
    assert decode_directory(decrypt_mutable(read.key, fresh[0].read_bytes())).files == Objects(tmp_path).files(cid)


async def test_a_version_of_another_index_can_be_shared(uri: str) -> None:
    async with await session_on(uri, index_name="notes") as notes:
        await add_rows(notes, 3)
        cid = await notes.save_to_s5()
        share = await notes.share(cid)
    async with await session_on(uri) as session:
        assert await session.share(cid) == share


async def test_a_share_in_another_base_and_a_wrong_key_in_it(uri: str) -> None:
    async with await session_on(uri) as owner:
        await add_rows(owner, 3)
        share = ShareCid.from_bytes(multibase_decode(await owner.share(await owner.save_to_s5())))
    async with await session_on(uri, user_seed_phrase=STRANGER) as stranger:
        await stranger.load_user_vectors(multibase_encode(share.to_bytes(), "base58btc"))
        assert len(await content(stranger)) == 3
        with pytest.raises(DecryptionError, match="share CID"):
            await stranger.load_user_vectors(ShareCid(bytes(32), share.hash).reveal())
        with pytest.raises(NotFoundError):
            await stranger.load_user_vectors(ShareCid(share.key, blake3_hash(b"absent")).reveal())


@pytest.mark.parametrize("blob", [b"", b"text", b"\x8d\x01short"])
async def test_a_share_of_what_is_no_version_is_invalid_input(uri: str, blob: bytes) -> None:
    store = open_store(uri)
    stored = await store.put(blob)
    async with await session_on(uri) as session:
        with pytest.raises(InvalidInputError):
            await session.load_user_vectors(ShareCid(bytes(32), stored.hash).reveal())
        with pytest.raises(InvalidInputError):
            await session.share(str(stored))


async def test_what_cannot_be_shared(uri: str) -> None:
    async with await session_on(uri, encrypt_at_rest=False) as clear:
        await add_rows(clear, 3)
        with pytest.raises(InvalidInputError, match="in clear"):
            await clear.share(await clear.save_to_s5())
    async with await session_on(uri, index_name="other") as session:
        await add_rows(session, 3)
        share = await session.share(await session.save_to_s5())
        wrong: tuple[Any, ...] = (share, "nonsense", "", None)
        for cid in wrong:
            with pytest.raises(InvalidInputError):
                await session.share(cid)
        with pytest.raises(NotFoundError):
            await session.share(str(BlobId.of(b"absent")))
    async with await session_on(uri, user_seed_phrase=STRANGER) as stranger:
        with pytest.raises(InvalidInputError):
            await stranger.share(share)


async def test_a_share_is_in_no_log_error_or_repr(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "fabstir_vectordb")
    async with await session_on(uri, debug=True) as owner:
        await add_rows(owner, 3)
        share = await owner.share(await owner.save_to_s5())
        await owner.load_user_vectors(share)
        assert (await owner.get_stats()).last_cid != share
        with pytest.raises(InvalidInputError) as caught:
            await owner.load_user_vectors(share[:-3])
    read = ShareCid.from_bytes(multibase_decode(share))
    for secret in (share, share[8:40], read.key.hex(), PHRASE):
        assert secret not in caplog.text + str(caught.value) + repr(caught.value.details) + repr(read)
