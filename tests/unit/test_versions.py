"""What save and load share, and the branches of both that no ordinary session takes."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from fabstir_vectordb._native.handle import NativeIndex, pack_ids
from fabstir_vectordb.errors import (
    ConflictError,
    DecryptionError,
    IntegrityError,
    NotFoundError,
    StorageError,
)
from fabstir_vectordb.params import wall_clock_us
from fabstir_vectordb.persist import load as load_module, records, save as save_module
from fabstir_vectordb.persist.load import load_version
from fabstir_vectordb.persist.parts import Layout
from fabstir_vectordb.persist.pointer import checked_pointer
from fabstir_vectordb.persist.records import read_catalogue, read_history, record_version
from fabstir_vectordb.persist.save import save_version
from fabstir_vectordb.persist.transfer import PARALLEL_TRANSFERS, run_bounded, transfers_for
from fabstir_vectordb.persist.verify import verify_version
from fabstir_vectordb.persist.version import CATALOGUE_PATH, HistoryEntry, Lineage, PersistSettings, index_path
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.dirv1 import DirectoryEntry, encode_directory
from fabstir_vectordb.s5.keys import Identity
from fabstir_vectordb.s5.registry import RegistryEntry, pointer_data
from fabstir_vectordb.storage import Store, open_store

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

IDENTITY = Identity(bytes(range(16)))
SETTINGS = PersistSettings(index_name="default")
KEYS = IDENTITY.path_keys(index_path("default"))


@dataclass
class Texts:
    """An index of metadata pages alone: 64 rows of one size."""

    row_bytes: int = 10
    chunk_size: int | None = None
    rows: int = 64
    dim: int | None = None
    metric: str = "cosine"
    M: int = 16
    ef_construction: int = 200
    native: NativeIndex | None = None
    last_change_us: int = 7
    schema: None = None
    text_superseded_bytes: int = 0
    params: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(embedder=None))
    asked: list[int] = field(default_factory=list)

    def expiry_parts(self, rows_per_page: int) -> Sequence[tuple[int, bytes]]:
        return []

    def text_parts(self) -> None:
        return None

    def page_sizes(self, rows_per_page: int) -> Mapping[int, int]:
        self.asked.append(rows_per_page)
        firsts = range(0, self.rows, rows_per_page)
        return {number: self.row_bytes * min(rows_per_page, self.rows - first) for number, first in enumerate(firsts)}

    def page(self, number: int, rows_per_page: int) -> bytes:
        return bytes([number % 251]) * self.page_sizes(rows_per_page)[number]

    def pages_kept(self, *_: object) -> tuple[set[int], list[int]]:
        return set(), []

    def changes_of(self, slots: Sequence[int]) -> bytes:
        raise AssertionError("nothing was kept")

    def metadata_size(self, slot: int) -> int:
        raise AssertionError("nothing was kept")


def rows_of_ones() -> NativeIndex:
    native = NativeIndex(3, "l2", "default", 16, 200, 1)
    ids = pack_ids([str(number) for number in range(64)])
    native.add(np.ones((64, 3), np.float32), *ids, np.zeros(64, np.int64))
    return native


@pytest.fixture
def store() -> Store:
    return open_store(f"memory:{uuid.uuid4()}")


async def test_large_pages_cover_fewer_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save_module, "_PAGE_TARGET_BYTES", 100)
    native = rows_of_ones()
    saved = await save_version(
        store, IDENTITY, Texts(chunk_size=64, dim=3, metric="l2", native=native), Lineage(), SETTINGS
    )
    loaded = await load_version(store, IDENTITY, Lineage(), SETTINGS)
    assert loaded is not None
    assert loaded.version.cid == saved.version.cid
    assert (loaded.document_rows, len(loaded.pages)) == (7, 10)
    assert (loaded.dim, loaded.chunk_size, loaded.last_change_us) == (3, 64, 7)
    report = await verify_version(store, IDENTITY, Lineage(), SETTINGS)
    assert (report.parts, report.rows) == (14, 64)


async def test_an_index_without_rows_has_no_parts(store: Store) -> None:
    await save_version(store, IDENTITY, Texts(rows=0), Lineage(), SETTINGS)
    loaded = await load_version(store, IDENTITY, Lineage(), SETTINGS)
    assert loaded is not None
    assert (loaded.native, loaded.dim, loaded.pages) == (None, None, [])
    assert (await verify_version(store, IDENTITY, Lineage(), SETTINGS)).parts == 0


async def test_pages_of_rows_that_are_not_there_are_refused(store: Store) -> None:
    await save_version(store, IDENTITY, Texts(), Lineage(), SETTINGS)
    with pytest.raises(IntegrityError, match=r"documents\.0000 is more than"):
        await load_version(store, IDENTITY, Lineage(), SETTINGS)


async def test_parts_grow_where_there_would_be_too_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save_module, "PARTS_MAX", 5)
    monkeypatch.setattr(save_module, "layout_for", lambda dim, chunk_size: Layout(4, 4, 4))
    native = rows_of_ones()
    await save_version(store, IDENTITY, Texts(dim=3, metric="l2", native=native), Lineage(), SETTINGS)
    loaded = await load_version(store, IDENTITY, Lineage(), SETTINGS)
    assert loaded is not None
    # Four native parts and one page are left when one part covers all 64 rows.
    assert loaded.document_rows == 64
    assert len(loaded.version.parts) == 5
    assert loaded.native is not None
    assert loaded.native.stats().live == 64


async def test_a_version_that_cannot_fit_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save_module, "PARTS_MAX", 4)
    monkeypatch.setattr(save_module, "layout_for", lambda dim, chunk_size: Layout(4, 4, 4))
    index = Texts()
    # Without native rows there is nothing to grow for: the limit is final.
    with pytest.raises(StorageError, match="16 parts; the layout allows 4"):
        await save_version(store, IDENTITY, index, Lineage(), SETTINGS)
    assert await store.get_pointer(KEYS.public_key) is None


async def test_a_part_over_the_limit_is_refused_before_anything_is_stored(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save_module, "PART_BYTES_MAX", 639)
    monkeypatch.setattr(store, "put", None)
    with pytest.raises(StorageError, match=r"documents.0000 would have 640 bytes.*lower chunk_size") as caught:
        await save_version(store, IDENTITY, Texts(chunk_size=64), Lineage(), SETTINGS)
    assert caught.value.details == {"part": "documents.0000", "size": 640, "limit": 639}


async def test_a_pointer_that_never_rests_is_a_retryable_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = store.set_pointer

    async def overtaken(entry: RegistryEntry) -> None:
        # Somebody stores the same version with the next revision before us, then something else.
        await real(RegistryEntry.sign(KEYS.write_seed, entry.revision, pointer_data(bytes(32))))
        await real(entry)

    monkeypatch.setattr(store, "set_pointer", overtaken)
    with pytest.raises(StorageError, match="moved 5 times") as caught:
        await save_version(store, IDENTITY, Texts(), Lineage(), SETTINGS, on_conflict="overwrite")
    assert caught.value.retryable


async def test_an_unreadable_head_is_named_by_its_hash_alone(store: Store) -> None:
    await store.set_pointer(RegistryEntry.sign(KEYS.write_seed, 1, pointer_data(bytes(32))))
    with pytest.raises(ConflictError) as caught:
        await save_version(store, IDENTITY, Texts(), Lineage(), SETTINGS)
    assert caught.value.details["head_cid"] == str(BlobId(bytes(32), 0))
    # The lost head can be superseded, and stays in the history.
    lineage = Lineage()
    saved = await save_version(store, IDENTITY, Texts(), lineage, SETTINGS, on_conflict="overwrite")
    await record_version(store, IDENTITY, SETTINGS, lineage, saved.entries, repair_damage=True)
    listed = await read_history(store, IDENTITY, "default", lineage)
    assert [(entry.revision, entry.refused, entry.vector_count) for entry in listed] == [
        (2, False, 0),
        (1, False, None),
        (1, True, 0),
    ]


async def test_a_head_without_a_version_is_not_found_by_verify(store: Store) -> None:
    with pytest.raises(NotFoundError, match="no version of index 'default'"):
        await verify_version(store, IDENTITY, Lineage(), SETTINGS)


async def test_a_damaged_catalogue_does_not_change_the_answer_to_a_foreign_cid(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    saved = await save_version(store, Identity(bytes(16)), Texts(), Lineage(), SETTINGS)
    catalogue = IDENTITY.path_keys(CATALOGUE_PATH)
    blob = await store.put(b"no record")
    await store.set_pointer(RegistryEntry.sign(catalogue.write_seed, 1, pointer_data(blob.hash)))
    with caplog.at_level(logging.WARNING), pytest.raises(DecryptionError):
        await load_version(store, IDENTITY, Lineage(), SETTINGS, str(saved.version.cid))
    assert "other indexes" in caplog.text


async def test_a_root_with_directories_is_no_version(store: Store) -> None:
    raw = encode_directory({}, {"home": DirectoryEntry(link=b"\x1e" + bytes(32))})
    blob = await store.put(raw)
    plain = PersistSettings(index_name="default", encrypt_at_rest=False)
    with pytest.raises(IntegrityError, match="sub-directories"):
        await load_version(store, IDENTITY, Lineage(), plain, str(blob))


async def test_a_load_cancelled_while_it_repairs_records_frees_what_it_made(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = NativeIndex(3, "l2", "default", 16, 200, 1)
    await save_version(store, IDENTITY, Texts(rows=0, dim=3, metric="l2", native=native), Lineage(), SETTINGS)

    async def hang(*args: Any, **kwargs: Any) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(load_module, "record_version", hang)
    with anyio.move_on_after(0.05) as scope:
        await load_version(store, IDENTITY, Lineage(), SETTINGS)
    assert scope.cancelled_caught


# ---- Records ----------------------------------------------------------------------------------------------


def entry(number: int) -> HistoryEntry:
    return HistoryEntry(
        cid=BlobId.of(bytes([number])), saved_us=number, revision=number, vector_count=1, deleted_count=0
    )


async def test_a_record_over_the_limit_is_logged(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(records, "RECORD_BYTES_MAX", 10)
    lineage = Lineage()
    with caplog.at_level(logging.WARNING):
        await record_version(store, IDENTITY, SETTINGS, lineage, [entry(1)], repair_damage=True)
    assert "more than S5's 10" in caplog.text
    assert lineage.unrecorded == [entry(1)]


async def test_a_record_that_never_rests_is_given_up(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(entry: RegistryEntry) -> None:
        raise ConflictError("too low", details={"stored_revision": entry.revision})

    monkeypatch.setattr(store, "set_pointer", refuse)
    with caplog.at_level(logging.WARNING):
        await record_version(store, IDENTITY, SETTINGS, Lineage(), [entry(1)], repair_damage=True)
    assert "changed 5 times" in caplog.text


@pytest.mark.parametrize("names", [[1], [""], ["x" * 65], "default", None])
async def test_a_hostile_catalogue_is_refused(store: Store, names: Any) -> None:
    keys = IDENTITY.path_keys(CATALOGUE_PATH)
    record = records._catalogue_record(IDENTITY)
    plain = records.cbor.encode({"version": 0, "names": names})
    sealed = records.encrypt_mutable(keys.encryption_key, bytes(24), plain)
    blob = await store.put(sealed)
    await store.set_pointer(RegistryEntry.sign(keys.write_seed, 1, pointer_data(blob.hash)))
    with pytest.raises(IntegrityError, match=record.what):
        await read_catalogue(store, IDENTITY, Lineage())


# ---- Shared tools -----------------------------------------------------------------------------------------


async def test_a_pointer_may_stay_or_rise_but_not_fall(store: Store) -> None:
    lineage = Lineage()
    assert await checked_pointer(store, KEYS.public_key, lineage, "it") is None
    await store.set_pointer(RegistryEntry.sign(KEYS.write_seed, 5, pointer_data(bytes(32))))
    for _ in range(2):
        found = await checked_pointer(store, KEYS.public_key, lineage, "it")
        assert found is not None
        assert found.revision == 5
    lineage.seen[KEYS.public_key] = 6
    with pytest.raises(IntegrityError, match="revision 5 now, 6 before"):
        await checked_pointer(store, KEYS.public_key, lineage, "it")


async def test_an_answer_overtaken_by_our_own_save_is_no_rollback(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lineage = Lineage()
    await store.set_pointer(RegistryEntry.sign(KEYS.write_seed, 1, pointer_data(bytes(32))))
    real = store.get_pointer

    async def slow(public_key: bytes) -> RegistryEntry | None:
        answer = await real(public_key)
        lineage.seen[public_key] = 2
        return answer

    monkeypatch.setattr(store, "get_pointer", slow)
    found = await checked_pointer(store, KEYS.public_key, lineage, "it")
    assert found is not None
    assert (found.revision, lineage.seen[KEYS.public_key]) == (1, 2)


async def test_jobs_run_side_by_side_up_to_the_limit() -> None:
    running = most = 0

    async def job() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.001)
        running -= 1

    await run_bounded([job] * 20, 4)
    assert (running, most) == (0, 4)
    await run_bounded([], 4)


async def test_the_first_failure_stops_the_rest_and_comes_out_bare() -> None:
    started: list[int] = []

    def job(number: int) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            started.append(number)
            await anyio.lowlevel.checkpoint()
            if number >= 2:
                raise ValueError(number)
            await anyio.sleep_forever()

        return run

    with pytest.raises(ValueError, match=r"2|3"):
        await run_bounded([job(number) for number in range(100)], 4)
    assert len(started) <= 4


@pytest.mark.parametrize(
    ("largest", "budget", "expected"),
    [
        (0, 1, PARALLEL_TRANSFERS),
        (8 << 20, None, PARALLEL_TRANSFERS),
        (8 << 20, 2 << 30, PARALLEL_TRANSFERS),
        (8 << 20, 192 << 20, 4),
        (8 << 20, 64 << 20, 1),
        (8 << 20, 1 << 20, 1),
        (8 << 20, -1, 1),
    ],
)
def test_a_small_budget_means_few_transfers(largest: int, budget: int | None, expected: int) -> None:
    assert transfers_for(largest, budget) == expected


def test_the_clock_is_in_microseconds() -> None:
    assert 1_700_000_000_000_000 < wall_clock_us() < 4_000_000_000_000_000


def test_a_lineage_shows_its_base_only() -> None:
    assert repr(Lineage()) == "Lineage(base=None)"
