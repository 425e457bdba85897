"""Two writers: nobody's version is lost, and nobody is told a lie about which one is the newest."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import anyio
import pytest
from saving import Objects, add_rows, content, identity, session_on

from fabstir_vectordb import storage
from fabstir_vectordb.errors import ConflictError, S5Error, StorageError
from fabstir_vectordb.persist.version import index_path
from fabstir_vectordb.s5.registry import REVISION_MAX, RegistryEntry, pointer_data
from fabstir_vectordb.storage import Store, open_store

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["file", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return tmp_path.as_uri() if request.param == "file" else f"memory:{uuid.uuid4()}"


async def test_the_second_of_two_writers_is_refused_and_loses_nothing(uri: str) -> None:
    async with await session_on(uri) as first, await session_on(uri) as second:
        await add_rows(first, 10)
        base = await first.save_to_s5()
        await second.load_user_vectors()
        await add_rows(first, 1, first=10)
        head = await first.save_to_s5()
        await add_rows(second, 1, first=11)
        with pytest.raises(ConflictError, match="on_conflict='overwrite'") as caught:
            await second.save_to_s5()
        details = caught.value.details
        assert (details["head_cid"], details["base_cid"], details["index_name"]) == (head, base, "default")

        # Still dirty on its old base, so it is refused again, with the same CID.
        stats = await second.get_stats()
        assert stats.dirty
        with pytest.raises(ConflictError) as again:
            await second.save_to_s5()
        assert again.value.details["cid"] == details["cid"]

        # The refused version is stored, listed and loadable.
        listed = await second.history()
        assert [(entry.cid, entry.refused) for entry in listed] == [
            (head, False),
            (details["cid"], True),
            (base, False),
        ]
        async with await session_on(uri) as third:
            await third.load_user_vectors(details["cid"])
            assert "row-000011" in [row_id for row_id, _, _ in await content(third)]
            await third.load_user_vectors()
            assert "row-000011" not in [row_id for row_id, _, _ in await content(third)]

        # The way out: replace the head, which stays in the history.
        assert await second.save_to_s5(on_conflict="overwrite") == details["cid"]
        assert not (await second.get_stats()).dirty
        listed = await second.history()
        assert [(entry.cid, entry.revision) for entry in listed if not entry.refused] == [
            (details["cid"], 3),
            (head, 2),
            (base, 1),
        ]


async def test_the_other_way_out_is_to_load_and_repeat(uri: str) -> None:
    async with await session_on(uri) as first, await session_on(uri) as second:
        await add_rows(first, 2)
        await first.save_to_s5()
        await add_rows(second, 1, first=5)
        with pytest.raises(ConflictError):
            await second.save_to_s5()
        await second.load_user_vectors(discard_unsaved=True)
        await add_rows(second, 1, first=5)
        await second.save_to_s5()
    async with await session_on(uri) as third:
        await third.load_user_vectors()
        assert len(await content(third)) == 3


async def test_never_loaded_while_a_head_exists_is_a_conflict(uri: str) -> None:
    async with await session_on(uri) as first, await session_on(uri) as second:
        await add_rows(first, 3)
        head = await first.save_to_s5()
        await add_rows(second, 4)
        with pytest.raises(ConflictError) as caught:
            await second.save_to_s5()
        assert caught.value.details["base_cid"] is None
        assert caught.value.details["head_cid"] == head


async def test_equal_content_is_success_without_a_base(uri: str) -> None:
    async with await session_on(uri) as first, await session_on(uri) as second:
        await add_rows(first, 3)
        await add_rows(second, 3)
        assert await first.save_to_s5() == await second.save_to_s5()
        await add_rows(second, 1, first=3)
        await second.save_to_s5()


async def test_an_old_version_cannot_replace_the_newest_silently(uri: str) -> None:
    async with await session_on(uri) as session:
        await add_rows(session, 3)
        old = await session.save_to_s5()
        await add_rows(session, 1, first=3)
        head = await session.save_to_s5()
        await session.load_user_vectors(old)
        await add_rows(session, 1, first=4)
        with pytest.raises(ConflictError) as caught:
            await session.save_to_s5()
        assert caught.value.details["base_cid"] == old
        assert caught.value.details["head_cid"] == head
        # Going back on purpose.
        await session.load_user_vectors(old, discard_unsaved=True)
        assert await session.save_to_s5(on_conflict="overwrite") == old
        assert [entry.revision for entry in await session.history()] == [3, 2, 2]


async def test_of_many_writers_at_once_exactly_one_wins_each_round(uri: str) -> None:
    async with await session_on(uri) as first:
        await add_rows(first, 5)
        await first.save_to_s5()
    outcomes: list[str] = []

    async def write(number: int) -> None:
        async with await session_on(uri) as session:
            await session.load_user_vectors()
            ready[number].set()
            await start.wait()
            await add_rows(session, 1, first=100 + number)
            try:
                await session.save_to_s5()
                outcomes.append("saved")
            except ConflictError:
                outcomes.append("refused")

    start, ready = anyio.Event(), [anyio.Event() for _ in range(5)]
    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(write, number)
        for event in ready:
            await event.wait()
        start.set()
    assert sorted(outcomes) == ["refused"] * 4 + ["saved"]
    async with await session_on(uri) as last:
        await last.load_user_vectors()
        assert len(await content(last)) == 6
        listed = await last.history()
        assert sum(entry.refused for entry in listed) == 4


# ---- A store that fails at the worst moment ----------------------------------------------------------------


class Faulty:
    """A store that fails on demand; everything else goes to the store below."""

    def __init__(self, below: Store) -> None:
        self._below = below
        self.before_pointer: list[Exception] = []
        self.after_pointer: list[Exception] = []
        self.on_put: list[Exception] = []
        self.stored: list[bytes] = []
        self.deaf = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)

    async def put(self, data: Any) -> Any:
        if self.on_put:
            raise self.on_put.pop()
        blob = await self._below.put(data)
        self.stored.append(blob.hash)
        return blob

    async def get_pointer(self, public_key: bytes) -> RegistryEntry | None:
        if self.deaf:
            raise S5Error("no answer")
        return await self._below.get_pointer(public_key)

    async def set_pointer(self, entry: RegistryEntry) -> None:
        mine = entry.public_key == identity().path_keys(index_path("default")).public_key
        if mine and self.before_pointer:
            raise self.before_pointer.pop()
        await self._below.set_pointer(entry)
        if mine and self.after_pointer:
            error = self.after_pointer.pop()
            self.deaf = "deaf" in str(error)
            raise error


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, uri: str) -> Faulty:
    store = Faulty(open_store(uri))
    monkeypatch.setattr(storage, "open_store", lambda _, **__: store)
    import fabstir_vectordb.workspace as workspace_module

    monkeypatch.setattr(workspace_module, "open_store", lambda _, **__: store)
    return store


async def test_a_failed_part_leaves_the_previous_version_and_a_dirty_session(uri: str, faulty: Faulty) -> None:
    async with await session_on(uri) as session:
        await add_rows(session, 3)
        old = await session.save_to_s5()
        await add_rows(session, 1, first=3)
        faulty.on_put = [StorageError("disk full")]
        with pytest.raises(StorageError, match="disk full"):
            await session.save_to_s5()
        assert (await session.get_stats()).dirty
        async with await session_on(uri) as other:
            await other.load_user_vectors()
            assert await other.save_to_s5() == old
        await session.save_to_s5()
        assert not (await session.get_stats()).dirty


async def test_a_save_that_failed_half_way_stores_only_what_is_missing(
    uri: str, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await session_on(uri, chunk_size=8) as session:
        await add_rows(session, 200)
        put, left = faulty.put, 11

        async def put_until_full(data: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise StorageError("disk full")
            return await put(data)

        monkeypatch.setattr(faulty, "put", put_until_full)
        with pytest.raises(StorageError):
            await session.save_to_s5()
        assert len(faulty.stored) == 11
        left = 1_000
        cid = await session.save_to_s5()
        assert len(faulty.stored) == len(set(faulty.stored)) > 30
    async with await session_on(uri) as other:
        await other.load_user_vectors(cid)
        assert len(await content(other)) == 200


async def test_a_refused_version_is_not_stored_again_to_replace_the_head(uri: str, faulty: Faulty) -> None:
    async with await session_on(uri) as first, await session_on(uri) as second:
        await add_rows(first, 3)
        await first.save_to_s5()
        await add_rows(second, 5)
        with pytest.raises(ConflictError) as caught:
            await second.save_to_s5()
        before = len(faulty.stored)
        assert await second.save_to_s5(on_conflict="overwrite") == caught.value.details["cid"]
        # Manifest, root, history and, at most, catalogue.
        assert len(faulty.stored) - before <= 4


async def test_a_pointer_that_failed_stays_and_the_next_save_moves_it(uri: str, faulty: Faulty) -> None:
    async with await session_on(uri) as session:
        await add_rows(session, 3)
        faulty.before_pointer = [S5Error("gone away")]
        with pytest.raises(S5Error):
            await session.save_to_s5()
        assert (await session.get_stats()).dirty
        await session.save_to_s5()


async def test_an_answer_lost_on_the_way_back_is_still_success(uri: str, faulty: Faulty) -> None:
    async with await session_on(uri) as session:
        await add_rows(session, 3)
        faulty.after_pointer = [S5Error("connection reset")]
        await session.save_to_s5()
        assert not (await session.get_stats()).dirty
        await add_rows(session, 1, first=3)
        await session.save_to_s5()


async def test_our_own_entry_is_no_conflict_when_its_fate_was_unknown(uri: str, faulty: Faulty) -> None:
    async with await session_on(uri) as session:
        await add_rows(session, 3)
        faulty.after_pointer = [S5Error("deaf")]
        with pytest.raises(S5Error):
            await session.save_to_s5()
        faulty.deaf = False
        await add_rows(session, 1, first=3)
        await session.save_to_s5()
        assert len(await session.history()) >= 1


async def test_a_cancelled_save_leaves_the_session_usable(uri: str) -> None:
    async with await session_on(uri, chunk_size=8) as session:
        await add_rows(session, 400)
        with anyio.CancelScope() as scope:
            await session.save_to_s5(progress=lambda event: scope.cancel())
        assert scope.cancelled_caught
        assert (await session.get_stats()).dirty
        await add_rows(session, 1, first=400)
        await session.save_to_s5()
    async with await session_on(uri) as other:
        await other.load_user_vectors()
        assert len(await content(other)) == 401


async def test_a_cancelled_load_leaves_the_session_as_it_was(uri: str) -> None:
    async with await session_on(uri, chunk_size=8) as first:
        await add_rows(first, 400)
        await first.save_to_s5()
    async with await session_on(uri) as session:
        with anyio.CancelScope() as scope:
            await session.load_user_vectors(progress=lambda event: scope.cancel())
        assert scope.cancelled_caught
        assert await content(session) == []
        await session.load_user_vectors()
        assert len(await content(session)) == 400


async def test_a_pointer_at_the_last_revision_is_an_error_before_it_is_a_defect(tmp_path: Path) -> None:
    async with await session_on(tmp_path.as_uri()) as session:
        await add_rows(session, 3)
        cid = await session.save_to_s5()
        keys = Objects(tmp_path).keys
        digest = Objects(tmp_path).entry().data[1:]
        store = open_store(tmp_path.as_uri())
        await store.set_pointer(RegistryEntry.sign(keys.write_seed, REVISION_MAX, pointer_data(digest)))
        assert await session.save_to_s5() == cid
        await add_rows(session, 1, first=3)
        with pytest.raises(StorageError, match="another index_name"):
            await session.save_to_s5()
