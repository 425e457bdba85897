"""A session by share CID alone: it reads one version without a phrase, and writes nothing."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from saving import PHRASE, add_rows, content, identity, rows, session_on

from fabstir_vectordb import InvalidConfigError, InvalidInputError, NotFoundError, SessionError, VectorDBSession, sync
from fabstir_vectordb.index import Index, prepare_batch
from fabstir_vectordb.params import IndexParams, RunParams
from fabstir_vectordb.persist.unnamed import store_unnamed
from fabstir_vectordb.persist.version import Lineage, PersistSettings
from fabstir_vectordb.s5.keys import Identity, shard_key
from fabstir_vectordb.storage import open_store

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


async def test_it_reads_what_its_owner_has_and_writes_nothing(tmp_path: Path) -> None:
    uri = tmp_path.as_uri()
    async with await session_on(uri) as owner:
        await add_rows(owner, 30)
        cid = await owner.save_to_s5()
        share = await owner.share(cid)
        expected, hits = await content(owner), await owner.search(rows(1)[0], 5, threshold=None)
    stored = names(tmp_path)
    async with VectorDBSession.open_share(share, uri, threads=1) as reader:
        assert await content(reader) == expected
        assert await reader.search(rows(1)[0], 5, threshold=None) == hits
        assert (await reader.verify(share)).rows == 30
        assert (await reader.get_stats()).dirty is False
        for verb in (
            lambda: reader.add_batch(["new"], rows(1)),
            lambda: reader.delete_vector("row-000001"),
            reader.vacuum,
            reader.optimize,
            reader.save_to_s5,
            reader.history,
            reader.is_newest,
            reader.list_indexes,
            lambda: reader.share(cid),
            lambda: reader.prune_history(1),
            reader.load_user_vectors,
            lambda: reader.load_user_vectors(cid),
            reader.verify,
        ):
            with pytest.raises(SessionError, match="share CID"):
                await verb()
        await reader.load_user_vectors(share)
        assert await content(reader) == expected
    assert names(tmp_path) == stored


async def test_what_opens_no_share_is_refused(tmp_path: Path) -> None:
    uri = tmp_path.as_uri()
    async with await session_on(uri) as owner:
        await add_rows(owner, 3)
        cid = await owner.save_to_s5()
        share = await owner.share(cid)
    for wrong in (cid, "nothing", 7, share[:-2]):
        with pytest.raises(InvalidInputError):
            await VectorDBSession.open_share(wrong, uri)
    with pytest.raises(InvalidConfigError, match="by share CID"):
        await VectorDBSession.open_share(share, uri, user_seed_phrase=PHRASE)  # type: ignore[call-arg]
    with pytest.raises(InvalidConfigError, match="memory_budget_mb"):
        await VectorDBSession.open_share(share, uri, memory_budget_mb=0)
    with pytest.raises(NotFoundError):
        await VectorDBSession.open_share(share, (tmp_path / "other").as_uri())


def test_its_twin_takes_the_same_arguments(tmp_path: Path) -> None:
    uri = tmp_path.as_uri()
    with sync.VectorDBSession.create(s5_portal=uri, user_seed_phrase=PHRASE, session_id="t", threads=1) as owner:
        owner.add_batch(["a", "b"], rows(2))
        share = owner.share(owner.save_to_s5())
    with sync.VectorDBSession.open_share(share, uri, lazy_load=False) as reader:
        assert reader.count() == 2
        with pytest.raises(SessionError, match="share CID"):
            reader.clear()


# ---- keys of shards, and versions without a name


def test_the_keys_of_shards_differ_and_are_never_shown() -> None:
    root = identity().path_keys("fabstir-vectordb/index/big").encryption_key
    keys = {shard_key(root, name, shard) for name in ("big", "small") for shard in range(3)}
    assert len(keys) == 6
    # As docs/format.md has it, by the other way to call BLAKE3.
    from blake3 import blake3

    context = "fabstir-vectordb 2026-11-26 key of a shard of a collection"
    hasher = blake3(derive_key_context=context).update(root).update((2).to_bytes(8, "little")).update(b"big")
    key = shard_key(root, "big", 2)
    assert hasher.digest() == key
    derived = Identity.from_key(key)
    assert derived.identity_seed == key
    assert key.hex()[:8] not in repr(derived)
    with pytest.raises(TypeError):
        pickle.dumps(derived)
    with pytest.raises(InvalidInputError):
        Identity.from_key(key[:16])


async def test_a_version_without_a_name_leaves_no_pointer_and_opens_by_its_share(tmp_path: Path) -> None:
    uri = tmp_path.as_uri()
    index = Index(IndexParams(), RunParams(budget_bytes=None))
    index.add(prepare_batch([f"r{n}" for n in range(20)], rows(20), None, [float(n) for n in range(20)], int, None))
    settings, keys = PersistSettings(index_name="shard"), Identity.from_key(bytes(range(32)))
    store = open_store(uri)
    first = await store_unnamed(store, keys, index, Lineage(), settings)
    again = await store_unnamed(store, keys, index, Lineage(), settings)
    assert (again.version.cid, again.share) == (first.version.cid, first.share)
    assert first.share.reveal() not in repr(first)
    index.close()
    await store.aclose()
    assert not (tmp_path / "pointers").exists() or not list((tmp_path / "pointers").iterdir())
    async with VectorDBSession.open_share(first.share.reveal(), uri) as reader:
        assert await reader.count() == 20
