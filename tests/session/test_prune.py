"""Pruning the history: what goes, and that what stays is whole."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from saving import Objects, add_rows, content, session_on

from fabstir_vectordb import IntegrityError, InvalidInputError, NotFoundError, StorageError, VectorDBSession
from fabstir_vectordb.storage import LocalDirStore

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


@pytest.fixture(params=["file", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return tmp_path.as_uri() if request.param == "file" else f"memory:{uuid.uuid4()}"


async def saved(session: VectorDBSession, versions: int) -> list[str]:
    """CIDs of that many versions, newest first, each of two rows more."""
    cids = []
    for number in range(versions):
        await add_rows(session, 2, first=2 * number)
        cids.append(await session.save_to_s5())
    return cids[::-1]


def blobs(root: Path) -> set[Path]:
    return {path for path in (root / "blobs").rglob("*") if path.is_file()}


async def test_what_would_go_is_told_and_stays(uri: str) -> None:
    async with await session_on(uri) as session:
        cids = await saved(session, 5)
        report = await session.prune_history(2)
        assert [version.cid for version in report.versions] == cids[2:]
        assert report.blobs > 3
        assert report.bytes > 4096 * 3
        assert report.blobs_deleted == 0
        assert [version.cid for version in await session.history()] == cids
        for cid in cids:
            await session.verify(cid)


async def test_old_versions_go_and_the_kept_ones_stay_whole(tmp_path: Path) -> None:
    async with await session_on(tmp_path.as_uri(), chunk_size=4) as session:
        cids = await saved(session, 6)
        # Parts of full chunks are named by every version after them.
        first, last = (set(Objects(tmp_path).of_version(cid).values()) for cid in (cids[-1], cids[0]))
        assert last & {path for cid in cids[1:] for path in Objects(tmp_path).of_version(cid).values()}
        told = await session.prune_history(2)
        before = blobs(tmp_path)
        report = await session.prune_history(2, dry_run=False)
        assert (report.versions, report.blobs, report.bytes) == (told.versions, told.blobs, told.bytes)
        gone = before - blobs(tmp_path)
        assert report.blobs_deleted == report.blobs
        # The history has been written once more, in place of the one before, which is no version's.
        assert len(gone) == report.blobs + 1
        assert first - last <= gone
        assert [version.cid for version in await session.history()] == cids[:2]
        for cid in cids[:2]:
            await session.verify(cid)
        with pytest.raises(NotFoundError):
            await session.verify(cids[2])
        # The session goes on, and so does whoever has nothing but the phrase.
        await add_rows(session, 1, first=50)
        newest = await session.save_to_s5(verify_stored=True)
    async with await session_on(tmp_path.as_uri()) as other:
        await other.load_user_vectors()
        assert len(await content(other)) == 13
        assert [version.cid for version in await other.history()] == [newest, *cids[:2]]
        await other.verify()


async def test_what_a_writer_remembers_of_pruned_versions_does_not_come_back(uri: str) -> None:
    async with await session_on(uri) as slow, await session_on(uri) as session:
        cids = await saved(session, 4)
        await slow.load_user_vectors(cids[3])
        assert len(await slow.history()) == 4
        await session.prune_history(1, dry_run=False)
        await slow.load_user_vectors()
        await add_rows(slow, 1, first=60)
        newest = await slow.save_to_s5()
        assert [version.cid for version in await slow.history()] == [newest, cids[0]]


async def test_a_part_the_session_would_name_again_stays(uri: str) -> None:
    async with await session_on(uri, chunk_size=4) as session:
        cids = await saved(session, 4)
        await session.load_user_vectors(cids[2])
        before = await content(session)
        await session.prune_history(1, dry_run=False)
        await session.save_to_s5(on_conflict="overwrite")
        await session.verify()
        await session.load_user_vectors()
        assert await content(session) == before


async def test_a_version_that_is_the_newest_again_stays(uri: str) -> None:
    async with await session_on(uri) as session:
        cids = await saved(session, 3)
        await session.load_user_vectors(cids[2])
        await session.save_to_s5(on_conflict="overwrite")
        report = await session.prune_history(1, dry_run=False)
        # The oldest is the newest, too: it stays.
        assert [version.cid for version in report.versions] == cids[:2]
        await session.verify()
        assert [version.cid for version in await session.history()] == [cids[2]]


async def test_refused_versions_go_with_their_time(uri: str) -> None:
    async with await session_on(uri) as first, await session_on(uri) as second:
        await saved(first, 2)
        await add_rows(second, 9)
        with pytest.raises(Exception, match="newer version"):
            await second.save_to_s5()
        assert (await first.prune_history(1)).versions[0].revision == 1
        await add_rows(first, 1, first=50)
        await first.save_to_s5()
        report = await first.prune_history(1, dry_run=False)
        assert [version.refused for version in report.versions] == [False, True, False]
        assert len(await first.history()) == 1


async def test_an_interrupted_prune_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with await session_on(tmp_path.as_uri()) as session:
        cids = await saved(session, 5)
        whole = await session.prune_history(2)
        delete, left = LocalDirStore.delete, whole.blobs - 2

        async def delete_until_it_breaks(store: LocalDirStore, hash: bytes) -> bool:
            nonlocal left
            left -= 1
            if left < 0:
                raise StorageError("disk on fire")
            return await delete(store, hash)

        with monkeypatch.context() as patch:
            patch.setattr(LocalDirStore, "delete", delete_until_it_breaks)
            with pytest.raises(StorageError):
                await session.prune_history(2, dry_run=False)
        assert len(await session.history()) == 5
        report = await session.prune_history(2, dry_run=False)
        assert len(report.versions) == 3
        assert [version.cid for version in await session.history()] == cids[:2]
        for cid in cids[:2]:
            await session.verify(cid)


async def test_nothing_is_deleted_where_a_kept_version_cannot_be_read(tmp_path: Path) -> None:
    async with await session_on(tmp_path.as_uri()) as session:
        cids = await saved(session, 4)
        root = Objects(tmp_path).of_version(cids[1])["root"]
        whole = root.read_bytes()
        before = blobs(tmp_path)
        root.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(IntegrityError):
            await session.prune_history(2, dry_run=False)
        assert blobs(tmp_path) == before
        root.write_bytes(whole)
        assert (await session.prune_history(2, dry_run=False)).blobs_deleted > 0


async def test_versions_in_clear_are_forgotten_and_their_blobs_stay(tmp_path: Path) -> None:
    async with await session_on(tmp_path.as_uri(), encrypt_at_rest=False) as clear:
        await saved(clear, 3)
    async with await session_on(tmp_path.as_uri()) as session:
        await add_rows(session, 3)
        await session.save_to_s5(on_conflict="overwrite")
        before = blobs(tmp_path)
        report = await session.prune_history(1, dry_run=False)
        assert (len(report.versions), report.blobs) == (3, 0)
        assert len(before - blobs(tmp_path)) == 1  # the history before it was cut


async def test_few_versions_and_wrong_numbers(uri: str) -> None:
    async with await session_on(uri) as session:
        assert (await session.prune_history(1, dry_run=False)).versions == []
        cids = await saved(session, 2)
        assert (await session.prune_history(2, dry_run=False)).versions == []
        assert (await session.prune_history(9, dry_run=False)).versions == []
        assert [version.cid for version in await session.history()] == cids
        for keep in (0, -1, 1.5, "1", True):
            with pytest.raises(InvalidInputError, match="keep must be"):
                await session.prune_history(keep, dry_run=False)  # type: ignore[arg-type]
