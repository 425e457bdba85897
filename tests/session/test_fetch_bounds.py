"""What is fetched and stored has the bound that its kind can have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from saving import Objects, add_rows, session_on

from fabstir_vectordb.errors import ConflictError, IntegrityError, InvalidInputError, StorageError
from fabstir_vectordb.persist import save as save_module
from fabstir_vectordb.s5.cid import BlobId, blake3_hash
from fabstir_vectordb.s5.cipher import MUTABLE_BLOB_BYTES_MAX
from fabstir_vectordb.s5.registry import RegistryEntry, pointer_data
from fabstir_vectordb.storage import LocalDirStore
from fabstir_vectordb.storage.base import AtMost

sys.path.insert(0, str(Path(__file__).parent.parent / "storage"))
from serving import serving

pytestmark = pytest.mark.anyio


def stored_in(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file() and path.stat().st_size > 1_000}


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The sizes that local stores are asked for."""
    asked: list[Any] = []
    get = LocalDirStore.get

    async def noted(store: LocalDirStore, hash: bytes, size: int | AtMost) -> bytes:
        asked.append(size)
        return await get(store, hash, size)

    monkeypatch.setattr(LocalDirStore, "get", noted)
    return asked


async def test_every_fetch_says_how_much_it_takes(tmp_path: Path, sizes: list[Any]) -> None:
    async with await session_on(tmp_path.as_uri()) as session, await session_on(tmp_path.as_uri()) as other:
        await add_rows(session, 1_100)
        cid = await session.save_to_s5()
        share = await session.share(cid)
        for asked in (None, cid, share):
            await session.load_user_vectors(asked)
            await session.verify(asked)
        await add_rows(other, 2)
        with pytest.raises(ConflictError):
            await other.save_to_s5()
        await session.history()
        await session.list_indexes()
        await session.prune_history(1)
    assert len(sizes) > 60
    for size in sizes:
        if isinstance(size, AtMost):
            assert size.size == MUTABLE_BLOB_BYTES_MAX < 1.2 * 2**20
        else:
            assert 0 <= size < 2**22


async def test_a_root_that_is_too_large_is_not_read(tmp_path: Path, sizes: list[Any]) -> None:
    blob = bytes(MUTABLE_BLOB_BYTES_MAX + 1)
    async with await session_on(tmp_path.as_uri()) as session:
        stored = await session._workspace.store.put(blob)
        for call in (session.load_user_vectors, session.verify, session.share):
            with pytest.raises(InvalidInputError, match="a root has at most"):
                await call(str(stored))
            with pytest.raises(IntegrityError):
                await call(str(BlobId(stored.hash, 0)))
        keys = Objects(tmp_path).keys
        entry = RegistryEntry.sign(keys.write_seed, 1, pointer_data(blake3_hash(blob)))
        await session._workspace.store.set_pointer(entry)
        with pytest.raises(IntegrityError):
            await session.load_user_vectors()
    assert all(isinstance(size, AtMost) for size in sizes)


@pytest.mark.parametrize("kind", ["portal", "gateway"])
@pytest.mark.one_loop
async def test_a_chunk_size_whose_parts_no_portal_takes_is_refused_before_any_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(save_module, "UPLOAD_BYTES_MAX", 20_000)
    with serving(tmp_path) as address:
        async with await session_on(f"{kind}+{address}", chunk_size=400) as session:
            await add_rows(session, 400)
            with pytest.raises(StorageError, match="lower chunk_size, now 400 rows") as caught:
                await session.save_to_s5()
            assert caught.value.details["chunk_size"] == 400
            assert caught.value.details["limit"] == 20_000
            assert stored_in(tmp_path) == set()
        async with await session_on(f"{kind}+{address}", chunk_size=200) as session:
            await add_rows(session, 400)
            await session.save_to_s5()
    # A directory takes it.
    async with await session_on((tmp_path / "local").as_uri(), chunk_size=400) as session:
        await add_rows(session, 400)
        await session.save_to_s5()


async def test_groups_of_long_ids_cover_fewer_rows_in_every_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save_module, "UPLOAD_BYTES_MAX", 80_000)
    ids = [f"{number:06d}" + "x" * 900 for number in range(300)]
    cids = set()
    with serving(tmp_path / "served") as address:
        for uri in (address, (tmp_path / "local").as_uri()):
            async with await session_on(uri) as session:
                await session.add_batch(ids, [[1.0, float(number)] for number in range(300)], timestamps=[1.0] * 300)
                cids.add(await session.save_to_s5())
                await session.load_user_vectors()
                assert await session.count() == 300
    (cid,) = cids
    assert {name for name in Objects(tmp_path / "local").files(cid) if name.startswith("ids.")} > {"ids.0003"}
