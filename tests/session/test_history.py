"""History and catalogue: what they list, and that neither their loss nor their damage costs a version."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from typing import Any

import pytest
from saving import Objects, add_rows, content, identity, session_on

from fabstir_vectordb import VectorInput
from fabstir_vectordb.errors import ConflictError, IntegrityError, NotFoundError, StorageError, VectorDBError
from fabstir_vectordb.persist import records
from fabstir_vectordb.persist.records import HISTORY_ENTRIES_MAX, read_history, record_version
from fabstir_vectordb.persist.version import HistoryEntry, Lineage, PersistSettings
from fabstir_vectordb.s5 import cbor
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.cipher import encrypt_mutable
from fabstir_vectordb.s5.keys import root_nonce
from fabstir_vectordb.s5.registry import RegistryEntry, pointer_data
from fabstir_vectordb.storage import LocalDirStore, MemoryStore, open_store

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


@pytest.fixture(params=["file", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return tmp_path.as_uri() if request.param == "file" else f"memory:{uuid.uuid4()}"


async def test_versions_are_listed_newest_first(uri: str) -> None:
    async with await session_on(uri) as session:
        assert await session.history() == []
        cids = []
        for number in range(4):
            await add_rows(session, 2, first=2 * number)
            cids.append(await session.save_to_s5())
        await session.delete_vector("row-000000")
        cids.append(await session.save_to_s5())
        listed = await session.history()
        assert [entry.cid for entry in listed] == cids[::-1]
        assert [entry.revision for entry in listed] == [5, 4, 3, 2, 1]
        assert [entry.vector_count for entry in listed] == [7, 8, 6, 4, 2]
        assert not any(entry.refused for entry in listed)
    async with await session_on(uri) as other:
        assert [entry.cid for entry in await other.history()] == cids[::-1]
        for position, cid in enumerate(cids[:4]):
            await other.load_user_vectors(cid)
            assert len(await content(other)) == 2 * position + 2


async def test_whether_a_newer_version_exists_is_learnt_from_the_pointer_alone(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await session_on(uri) as one, await session_on(uri) as other:
        assert await one.is_newest() and await other.is_newest()  # there is no version yet
        await add_rows(one, 2)
        await one.save_to_s5()
        assert await one.is_newest() and not await other.is_newest()
        with monkeypatch.context() as patch:
            patch.setattr(other._workspace.store, "get", None)  # no object is read
            assert not await other.is_newest()
        await other.load_user_vectors()
        await add_rows(other, 1, first=2)
        assert await other.is_newest()  # what is not saved does not count
        cid = await other.save_to_s5()
        assert await other.is_newest() and not await one.is_newest()
        await one.load_user_vectors(cid)
        assert await one.is_newest()
        await other.load_user_vectors((await other.history())[1].cid)
        assert not await other.is_newest()


async def test_index_names_are_listed_sorted(uri: str) -> None:
    async with await session_on(uri) as session:
        assert await session.list_indexes() == []
    for name in ("zebra", "notes", "a.b-c_d"):
        async with await session_on(uri, index_name=name) as session:
            await session.save_to_s5()
            await session.save_to_s5()
    async with await session_on(uri) as session:
        assert await session.list_indexes() == ["a.b-c_d", "notes", "zebra"]


async def test_another_phrase_sees_neither(uri: str) -> None:
    from fabstir_vectordb import new_seed_phrase

    async with await session_on(uri) as session:
        await session.save_to_s5()
    async with await session_on(uri, user_seed_phrase=new_seed_phrase()) as other:
        assert await other.history() == []
        assert await other.list_indexes() == []


def spoil(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("where", ["blob", "pointer"])
@pytest.mark.parametrize("how", ["flipped", "missing"])
async def test_a_damaged_history_is_reported_and_repaired_by_the_next_save(
    tmp_path: Path, where: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    objects = Objects(tmp_path)
    async with await session_on(tmp_path.as_uri()) as session:
        await add_rows(session, 2)
        first = await session.save_to_s5()
        await add_rows(session, 1, first=2)
        second = await session.save_to_s5()
        assert len(await session.history()) == 2

        path = objects.record(objects.history) if where == "blob" else objects.pointer(objects.history)
        spoil(path) if how == "flipped" else path.unlink()
        expected: type[VectorDBError] = NotFoundError if (where, how) == ("blob", "missing") else IntegrityError
        with pytest.raises(expected, match="the history of index 'default'") as caught:
            await session.history()
        assert caught.value.details["record"] == "history"
        assert caught.value.details["index_name"] == "default"

        # Loading reports it too, to the log, and neither fails nor overwrites what might still be rescued.
        with caplog.at_level(logging.WARNING):
            await session.load_user_vectors()
        assert "history" in caplog.text

        await add_rows(session, 1, first=3)
        third = await session.save_to_s5()
        assert [entry.cid for entry in await session.history()] == [third, second, first]
    async with await session_on(tmp_path.as_uri()) as other:
        assert [entry.cid for entry in await other.history()] == [third, second, first]


@pytest.mark.parametrize("where", ["blob", "pointer"])
async def test_a_damaged_catalogue_is_reported_and_repaired(tmp_path: Path, where: str) -> None:
    objects = Objects(tmp_path)
    async with await session_on(tmp_path.as_uri()) as session:
        await session.save_to_s5()
        spoil(objects.record(objects.catalogue) if where == "blob" else objects.pointer(objects.catalogue))
        with pytest.raises(IntegrityError, match="the catalogue of indexes") as caught:
            await session.list_indexes()
        assert caught.value.details["record"] == "catalogue"
        await session.save_to_s5()
        assert await session.list_indexes() == ["default"]


async def test_a_fresh_session_repairs_what_it_can(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    async with await session_on(tmp_path.as_uri()) as session:
        await add_rows(session, 2)
        await session.save_to_s5()
        await add_rows(session, 1, first=2)
        head = await session.save_to_s5()
    spoil(objects.record(objects.history))
    async with await session_on(tmp_path.as_uri()) as session:
        await session.load_user_vectors()
        await add_rows(session, 1, first=3)
        newest = await session.save_to_s5()
        # The version it was loaded from and its own are known; older ones are still there, by CID.
        assert [entry.cid for entry in await session.history()] == [newest, head]


async def test_a_record_that_cannot_be_written_does_not_fail_the_save(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = records._update

    async def refuse(*args: Any, **kwargs: Any) -> None:
        raise records.StorageError("read-only portal")

    async with await session_on(uri) as session:
        await add_rows(session, 2)
        monkeypatch.setattr(records, "_update", refuse)
        with caplog.at_level(logging.WARNING):
            first = await session.save_to_s5()
        assert "read-only portal" in caplog.text
        assert not (await session.get_stats()).dirty
        monkeypatch.setattr(records, "_update", real)
        await add_rows(session, 1, first=2)
        second = await session.save_to_s5()
        assert [entry.cid for entry in await session.history()] == [second, first]


async def test_a_load_enters_what_an_interrupted_save_left_out(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    import fabstir_vectordb.workspace as workspace_module

    async with await session_on(uri) as session:
        await add_rows(session, 2)
        with monkeypatch.context() as patch:
            patch.setattr(workspace_module, "record_version", nothing)
            cid = await session.save_to_s5()
    async with await session_on(uri) as other:
        assert await other.history() == []
        await other.load_user_vectors()
        assert [(entry.cid, entry.revision, entry.vector_count) for entry in await other.history()] == [(cid, 1, 2)]
        assert await other.list_indexes() == ["default"]


def entry(number: int, **changes: Any) -> HistoryEntry:
    fields: dict[str, Any] = {
        "cid": BlobId.of(number.to_bytes(4, "little")),
        "saved_us": number,
        "revision": number,
        "vector_count": number,
        "deleted_count": 0,
    }
    return HistoryEntry(**{**fields, **changes})


async def test_the_newest_thousand_versions_stay() -> None:
    store, settings = open_store(f"memory:{uuid.uuid4()}"), PersistSettings(index_name="default")
    lineage = Lineage()
    everything = [entry(number) for number in range(1, HISTORY_ENTRIES_MAX + 51)]
    await record_version(store, identity(), settings, lineage, everything, repair_damage=True)
    stored = await read_history(store, identity(), "default", Lineage())
    assert [item.revision for item in stored] == list(range(HISTORY_ENTRIES_MAX + 50, 50, -1))
    assert not lineage.unrecorded


async def test_writers_merge_instead_of_overwriting_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"memory:{uuid.uuid4()}"
    settings = PersistSettings(index_name="default")
    slow, fast = open_store(uri), open_store(uri)
    real = slow.put

    async def overtaken(data: Any) -> BlobId:
        monkeypatch.setattr(slow, "put", real)
        await record_version(fast, identity(), settings, Lineage(), [entry(2)], repair_damage=True)
        return await real(data)

    monkeypatch.setattr(slow, "put", overtaken)
    await record_version(slow, identity(), settings, Lineage(), [entry(1)], repair_damage=True)
    stored = await read_history(fast, identity(), "default", Lineage())
    assert [item.revision for item in stored] == [2, 1]


async def test_a_guess_never_replaces_what_the_saver_knew() -> None:
    store, settings = open_store(f"memory:{uuid.uuid4()}"), PersistSettings(index_name="default")
    for candidate in (
        entry(1, saved_us=50),
        entry(1, saved_us=10),
        entry(1, saved_us=90, vector_count=None, deleted_count=None),
    ):
        await record_version(store, identity(), settings, Lineage(), [candidate], repair_damage=True)
    assert await read_history(store, identity(), "default", Lineage()) == [entry(1, saved_us=50)]


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"version": 0},
        {"version": "0", "entries": []},
        {"version": 0, "entries": {}},
        {"version": 0, "entries": [1]},
        {"version": 0, "entries": [{"cid": b"", "refused": False}]},
        {"version": 0, "entries": [{"cid": "u", "refused": False}]},
        {"version": 0, "entries": [{"cid": BlobId.of(b"").to_bytes(), "refused": 1}]},
        {"version": 0, "entries": [{"cid": BlobId.of(b"").to_bytes(), "refused": True, "saved": "now"}]},
        {"version": 0, "entries": [], "cut": -1},
        {"version": 0, "entries": [], "cut": "1"},
        {"version": 0, "entries": [{}] * (HISTORY_ENTRIES_MAX + 1)},
    ],
)
async def test_a_hostile_history_is_refused(value: Any) -> None:
    store = open_store(f"memory:{uuid.uuid4()}")
    keys = identity().path_keys("fabstir-vectordb/history/default")
    plain = cbor.encode(value)
    blob = await store.put(encrypt_mutable(keys.encryption_key, root_nonce(keys.encryption_key, plain), plain))
    await store.set_pointer(RegistryEntry.sign(keys.write_seed, 1, pointer_data(blob.hash)))
    with pytest.raises(IntegrityError, match="the history of index 'default' is damaged"):
        await read_history(store, identity(), "default", Lineage())


async def test_a_newer_record_is_neither_read_nor_replaced() -> None:
    store, settings = open_store(f"memory:{uuid.uuid4()}"), PersistSettings(index_name="default")
    keys = identity().path_keys("fabstir-vectordb/history/default")
    plain = cbor.encode({"version": 9, "layers": []})
    blob = await store.put(encrypt_mutable(keys.encryption_key, root_nonce(keys.encryption_key, plain), plain))
    await store.set_pointer(RegistryEntry.sign(keys.write_seed, 1, pointer_data(blob.hash)))
    with pytest.raises(VectorDBError, match="newer release"):
        await read_history(store, identity(), "default", Lineage())
    lineage = Lineage()
    await record_version(store, identity(), settings, lineage, [entry(1)], repair_damage=True)
    head = await store.get_pointer(keys.public_key)
    assert head is not None
    assert head.revision == 1
    assert lineage.unrecorded == [entry(1)]


async def test_the_newest_version_is_marked_and_refused_ones_stand_below_what_they_lost_against(uri: str) -> None:
    async with await session_on(uri) as first, await session_on(uri) as second:
        await add_rows(first, 2)
        oldest = await first.save_to_s5()
        await add_rows(first, 1, first=2)
        head = await first.save_to_s5()
        await add_rows(second, 9)
        for _ in range(2):
            with pytest.raises(ConflictError) as caught:
                await second.save_to_s5()
        refused = caught.value.details["cid"]
        listed = await first.history()
        assert [(version.cid, version.head, version.refused) for version in listed] == [
            (head, True, False),
            (refused, False, True),
            (oldest, False, False),
        ]
        # Once it supersedes the head it is listed as that, and once only.
        assert await second.save_to_s5(on_conflict="overwrite") == refused
        listed = await second.history()
        assert [(version.cid, version.head, version.refused) for version in listed] == [
            (refused, True, False),
            (head, False, False),
            (oldest, False, False),
        ]
        # A version that becomes the newest again moves up.
        await first.load_user_vectors(oldest)
        await first.save_to_s5(on_conflict="overwrite")
        assert [version.cid for version in await first.history()] == [oldest, refused, head]


async def test_a_damaged_pointer_does_not_hide_the_history(tmp_path: Path) -> None:
    async with await session_on(tmp_path.as_uri()) as session:
        await add_rows(session, 2)
        cid = await session.save_to_s5()
        Objects(tmp_path).pointer().write_bytes(b"damaged")
        assert [(version.cid, version.head) for version in await session.history()] == [(cid, False)]


async def test_a_superseded_record_is_deleted(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    async with await session_on(tmp_path.as_uri()) as session:
        records: set[Path] = set()
        for number in range(4):
            await add_rows(session, 1, first=number)
            await session.save_to_s5()
            records.add(objects.record(objects.history))
        assert len(records) == 4
        assert [path for path in records if path.exists()] == [objects.record(objects.history)]
        assert objects.record(objects.catalogue).exists()
        assert len(await session.history()) == 4


async def test_a_record_that_is_superseded_while_it_is_read_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await session_on(tmp_path.as_uri()) as writer, await session_on(tmp_path.as_uri()) as reader:
        await add_rows(writer, 1)
        cids = [await writer.save_to_s5()]
        await reader.history()
        ask, raced = LocalDirStore.get_pointer, []

        async def slow(store: LocalDirStore, public_key: bytes) -> Any:
            entry = await ask(store, public_key)
            if store is reader._workspace.store and public_key == Objects(tmp_path).history.public_key and not raced:
                raced.append(True)
                await add_rows(writer, 1, first=1)
                cids.append(await writer.save_to_s5())
            return entry

        monkeypatch.setattr(LocalDirStore, "get_pointer", slow)
        assert [version.cid for version in await reader.history()] == cids[::-1]
        assert raced


async def test_a_store_that_deletes_nothing_keeps_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(store: LocalDirStore, hash: bytes) -> bool:
        raise StorageError("read only")

    monkeypatch.setattr(LocalDirStore, "delete", refuse)
    async with await session_on(tmp_path.as_uri()) as session:
        for number in range(2):
            await add_rows(session, 1, first=number)
            await session.save_to_s5()
        assert len(await session.history()) == 2


async def test_many_small_saves_grow_a_store_by_what_they_store() -> None:
    """Records together would grow with the square of the number of saves."""
    uri = f"memory:{uuid.uuid4()}"

    def held() -> int:
        return sum(map(len, MemoryStore(uri.removeprefix("memory:"))._space.blobs.values()))

    sizes = []
    async with await session_on(uri) as session:
        for number in range(90):
            await session.add_vectors([VectorInput("a", [1.0, float(number)])], on_conflict="replace")
            await session.vacuum()
            await session.save_to_s5()
            sizes.append(held())
    assert sizes[89] - sizes[59] < 1.2 * (sizes[59] - sizes[29])
