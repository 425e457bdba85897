"""The rows of an index: native slots, and by the same slots metadata and expiries. The only writer of all three.

A change allocates all memory before it calls the native core; nothing after that call can fail. `remove` is the one
place that deletes rows. An add, in which the native core replaces rows, ends in the same `_forget`. Methods that change
rows run inside `Gate.changing`. The text index is changed beside the rows: staged before, committed after them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import MEMORY_NUMBERS, NO_SLOT, Control, NativeIndex, NativeStats, pack_ids
from fabstir_vectordb.config import Metric
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError
from fabstir_vectordb.index.budget import Budget
from fabstir_vectordb.index.contents import IndexContents
from fabstir_vectordb.index.fitting import require_with_words, take_memory, take_room_to_remove
from fabstir_vectordb.index.incoming import Batch, named, of_row, rows_kept, shown
from fabstir_vectordb.index.text import StagedText, Texts, slices
from fabstir_vectordb.metadata.arena import MetadataArena, Staged
from fabstir_vectordb.metadata.changes import StoredPages, encode_changes, parse_changes
from fabstir_vectordb.metadata.expiry import NEVER_US, NOTHING, Expiries, Hidden, Times, parse_expiry_page
from fabstir_vectordb.metadata.schema import Schema
from fabstir_vectordb.metadata.values import decode_metadata
from fabstir_vectordb.params import IndexParams, RunParams
from fabstir_vectordb.text.settings import TextSettings
from fabstir_vectordb.tiers import TIERS, tier_of
from fabstir_vectordb.types import AddResult, Row

__all__ = ["NO_STATS", "NoRows", "Rows", "Slots", "Tally"]

Slots = npt.NDArray[np.uint32]

NO_STATS: Final = NativeStats(*[0] * len(NativeStats._fields))
_NO_SLOTS: Final[Slots] = np.empty(0, dtype=np.uint32)
#: Bytes of metadata of expired rows that are removed at a time.
_BURIED_BYTES: Final = 1 << 21


class NoRows:
    """Replaces the native index while there are no rows."""

    dim = 0

    def stats(self) -> NativeStats:
        """All zero."""
        return NO_STATS

    def find(self, id_bytes: bytes, id_offsets: npt.NDArray[np.uint64]) -> Slots:
        """No id is live."""
        return np.full(len(id_offsets) - 1, NO_SLOT, dtype=np.uint32)

    def live_slots(self, first: int, capacity: int) -> Slots:
        """None."""
        return _NO_SLOTS

    def get_ids(self, slots: Slots) -> list[str]:
        """None: there are no slots."""
        return []

    def get_vectors(self, slots: Slots) -> npt.NDArray[np.float32]:
        """None."""
        return np.empty((0, 0), dtype=np.float32)

    def get_timestamps(self, slots: Slots) -> npt.NDArray[np.int64]:
        """None."""
        return np.empty(0, dtype=np.int64)

    def are_vectorless(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """None."""
        return np.zeros(0, dtype=np.bool_)

    def historical(self) -> npt.NDArray[np.uint64]:
        """None."""
        return np.empty(0, dtype=np.uint64)

    def graph_stored(self) -> None:
        """There is no graph."""

    def close(self) -> None:
        """There is no memory to free."""


_EMPTY: Final = NoRows()


@dataclass(frozen=True, slots=True)
class Tally:
    """What there is to count, all of one moment: a reader takes it at once, without a lock.

    Attributes:
        counts: native counts and memory; expired rows count as live.
        expiries: when rows expire.
        vectorless_expiries: the same of rows without a vector, in no known order.
    """

    counts: NativeStats = NO_STATS
    expiries: Expiries = field(default_factory=Expiries)
    vectorless_expiries: Expiries = field(default_factory=Expiries)

    def at(self, now_us: int) -> tuple[NativeStats, int]:
        """The counts, without expired rows in `vectorless`, and the number of expired rows."""
        vectorless = len(self.vectorless_expiries.hidden(now_us).slots)
        return self.counts._replace(vectorless=self.counts.vectorless - vectorless), len(
            self.expiries.hidden(now_us).slots
        )


class Rows:
    """Rows by slot.

    Attributes:
        core: the native rows.
        arena: metadata by slot.
        expiries: when rows expire, by slot.
        texts: the words of the rows' texts, where fields are indexed.
        counts: native counts and memory after the last change. An event loop's thread reads these, as the native lock
            could make it wait for a whole change.
        tally: the counts and expiries after the last change.
        memory: the memory setting that the native rows have, or get when the first comes.
        vector_dim: components that a vector must have; None while no row has one.
        schema: the schema of metadata, or None.
        changes: number of changes; a session is dirty while it differs from the number at the last save or load.
        last_change_us: the latest timestamp of a row that was added.

    Args:
        params, run: settings.
        budget: the memory budget.
    """

    def __init__(self, params: IndexParams, run: RunParams, budget: Budget) -> None:
        self.params = params
        self.run = run
        self.budget = budget
        self.core: NativeIndex | NoRows = _EMPTY
        self.arena = MetadataArena()
        self.expiries = Expiries()
        self.texts = Texts(params.text)
        self.memory = tier_of(run.memory, 0, budget.limit_bytes)
        self.counts = NO_STATS._replace(memory=MEMORY_NUMBERS[self.memory])
        self.tally = Tally(self.counts)
        self.vector_dim: int | None = None
        self.schema: Schema | None = None
        self.changes = 0
        self.last_change_us = 0
        self._stored_pages = StoredPages()

    # ---- properties

    @property
    def native(self) -> NativeIndex | None:
        """The native index, None before the first row."""
        core = self.core  # once: `free` may run beside this
        return None if isinstance(core, NoRows) else core

    @property
    def metric(self) -> Metric:
        """The metric."""
        return self.params.metric

    @property
    def dim(self) -> int | None:
        """Components of a row in memory and in parts; None before the first add."""
        return self.core.dim or None

    @property
    def metadata_bytes(self) -> int:
        """Bytes of metadata and of expiry times."""
        return self.arena.nbytes + self.expiries.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of rows, metadata and words."""
        return self.counts.bytes_total + self.metadata_bytes + self.texts.nbytes

    # ---- which rows

    def counted(self) -> tuple[NativeStats, int]:
        """Counts after the last change, without expired rows in `vectorless`, and the number of expired rows."""
        tally = self.tally
        return tally.at(0 if tally.expiries.is_empty else self.run.now_us())

    def hidden(self) -> Hidden:
        """The rows that have expired by now. The clock is only read where some row can expire."""
        expiries = self.expiries
        return NOTHING if expiries.is_empty else expiries.hidden(self.run.now_us())

    def visible(self, slots: Slots) -> Slots:
        """Live slots without those that have expired."""
        hidden = self.hidden().slots
        return slots[~np.isin(slots, hidden)] if len(hidden) else slots

    def are_vectorless(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Which slots have no vector."""
        return self.core.are_vectorless(slots) if self.counts.vectorless else np.zeros(len(slots), dtype=np.bool_)

    def order(self, slots: Slots, *keys: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
        """The places of slots by ascending keys, the first one first; equal ones by id."""
        places = np.lexsort(keys[::-1])
        equal = np.logical_and.reduce([key[places[1:]] == key[places[:-1]] for key in keys])
        firsts = np.flatnonzero(equal)
        if len(firsts):
            tied, groups = np.union1d(firsts, firsts + 1), np.cumsum(np.append(True, ~equal))
            # Of str and UTF-8 the order is the same.
            by_id = zip(groups[tied].tolist(), self.core.get_ids(slots[places[tied]]), range(len(tied)), strict=True)
            places[tied] = places[tied[[at for _, _, at in sorted(by_id)]]]
        return places

    def slots_with_vector(self) -> Slots:
        """The live rows that have a vector, expired ones included."""
        slots = self.core.live_slots(0, self.counts.live)
        return slots[~self.are_vectorless(slots)] if self.counts.vectorless else slots

    def live(self, slots: Slots) -> Slots:
        """Slots without tombstones."""
        if self.counts.live == self.counts.rows:
            return slots
        return slots[np.isin(slots, self.core.live_slots(0, self.counts.live))]

    def find(self, ids: Sequence[str]) -> Slots:
        """The slots of ids, NO_SLOT for ids that are not live."""
        return self.core.find(*pack_ids(ids))

    def require(self, ids: Sequence[str]) -> Slots:
        """The slots of different ids, all live.

        Raises:
            NotFoundError: an id is not live.
            InvalidInputError: an id occurs twice.
        """
        slots = self.find(ids)
        missing = np.flatnonzero(slots == NO_SLOT)
        if len(missing):
            raise not_found(ids[int(missing[0])])
        if len(np.unique(slots)) < len(slots):
            twice = next(id for row, id in enumerate(ids) if id in ids[:row])
            raise InvalidInputError(f"the id {shown(twice)} occurs twice in this call", details={"id": twice})
        return slots

    # ---- rows as results

    def get(self, ids: Sequence[str]) -> list[Row | None]:
        """Rows by id, in the order asked for; None for an id that is not live."""
        slots = self.find(ids)
        live = (slots != NO_SLOT) & ~np.isin(slots, self.hidden().slots)
        found = [id for id, is_live in zip(ids, live, strict=True) if is_live]
        rows = iter(self.of(slots[live], found))
        return [next(rows) if is_live else None for is_live in live]

    def of(self, slots: Slots, ids: Sequence[str]) -> list[Row]:
        """Rows by slot and id."""
        metadata = [self.arena.get(slot) for slot in slots.tolist()]
        return self.made(slots, ids, self.core.get_vectors(slots), metadata)

    def made(
        self, slots: Slots, ids: Sequence[str], vectors: npt.NDArray[np.float32], metadata: Sequence[bytes | None]
    ) -> list[Row]:
        """Rows of slots from their vectors and metadata."""
        times, expires = self.core.get_timestamps(slots).tolist(), self.expiries.of(slots)
        vectorless = self.are_vectorless(slots).tolist()
        rows = []
        for position, (id, raw) in enumerate(zip(ids, metadata, strict=True)):
            value = None if raw is None else decode_metadata(raw)
            vector = None if vectorless[position] else vectors[position]
            rows.append(Row(id, vector, value, times[position] / 1e6, expires[position]))
        return rows

    # ---- from a version

    def restore(self, contents: IndexContents) -> None:
        """Sets the rows from a version, without their metadata.

        Raises:
            IntegrityError: a page of expiries breaks a rule.
        """
        rows = contents.rows
        core: NativeIndex | NoRows = contents.native or _EMPTY
        if contents.expiry_pages:
            draft = self.expiries.draft(rows)
            for number, page in contents.expiry_pages:
                slots, times = parse_expiry_page(number, contents.document_rows, page, rows)
                draft[slots] = times
            live = core.live_slots(0, rows)
            if np.count_nonzero(draft[live] != NEVER_US) != np.count_nonzero(draft != NEVER_US):
                raise IntegrityError("a row that was deleted is said to expire")
            self.expiries = Expiries(draft)
        self.core = core
        self.texts = Texts.restored(contents.text)
        self.last_change_us, self.schema = contents.last_change_us, contents.schema
        self.refresh()

    def restore_metadata(
        self, pages: Iterable[tuple[int, bytes]], rows_per_page: int, changes: Mapping[int, bytes | None]
    ) -> None:
        """Sets the metadata from a version.

        Raises:
            IntegrityError: a page breaks a rule.
        """
        rows = self.counts.rows
        for number, page in pages:
            self.arena.restore_page(number, rows_per_page, page, rows)
        if changes:
            slots = np.fromiter(changes, dtype=np.uint32, count=len(changes))
            staged = self.arena.stage(list(changes.values()), int(slots[-1]) + 1)
            self.arena.commit(staged, slots, np.arange(len(changes)))
        if self.counts.live < rows:
            # Pages may be older than the tombstones, and still hold metadata of deleted rows.
            everything = np.arange(rows, dtype=np.uint32)
            self.arena.drop(everything[~np.isin(everything, self.core.live_slots(0, rows))])
        self._stored_pages = StoredPages(rows_per_page, rows, changes)

    @staticmethod
    def parse_changes(contents: IndexContents) -> Mapping[int, bytes | None]:
        """The metadata of a version that differs from its pages.

        Raises:
            IntegrityError: the part breaks a rule of the format.
        """
        return parse_changes(contents.changes, contents.rows)

    # ---- reads of a save

    def page_sizes(self, rows_per_page: int) -> dict[int, int]:
        """Bytes of the metadata pages, by number."""
        return self.arena.page_sizes(self.counts.rows, rows_per_page)

    def page(self, number: int, rows_per_page: int) -> bytes:
        """One metadata page."""
        return self.arena.page(number, self.counts.rows, rows_per_page)

    def pages_kept(
        self, rows_per_page: int, page_sizes: Mapping[int, int], stored: Collection[int]
    ) -> tuple[set[int], list[int]]:
        """The pages of the base that a save keeps, and the live rows in them whose metadata differs."""
        kept, changed = self._stored_pages.kept(rows_per_page, self.counts.rows, page_sizes, stored, self.arena.size)
        return kept, self.live(np.array(changed, dtype=np.uint32)).tolist()

    def changes_of(self, slots: Sequence[int]) -> bytes:
        """The part with the metadata of rows that differ from the stored pages."""
        return encode_changes([(slot, self.arena.get(slot)) for slot in slots])

    def pages_stored(self, rows_per_page: int, changed: Sequence[int]) -> None:
        """Notes that the stored pages hold the metadata of all rows, except of those that differ."""
        self._stored_pages = StoredPages(rows_per_page, self.counts.rows, changed)

    # ---- changes

    def refresh(self) -> None:
        """Reads the counts again, after a change."""
        core = self.core
        counts = core.stats()
        if isinstance(core, NoRows):
            counts = counts._replace(memory=MEMORY_NUMBERS[self.memory])
        self.counts, self.memory = counts, TIERS[counts.memory]
        self.vector_dim = core.dim if counts.with_vector else None
        vectorless = (
            self.expiries.among(core.are_vectorless) if counts.vectorless and not self.expiries.is_empty else Expiries()
        )
        self.tally = Tally(counts, self.expiries, vectorless)

    def remove(self, slots: Slots, ids: Sequence[str] | None = None) -> None:
        """Makes tombstones of live rows, each given once: all or nothing.

        Args:
            slots: the rows.
            ids: their ids, in any order; None to look them up.

        Raises:
            MemoryBudgetExceededError: the work would not fit.
        """
        if len(slots):
            take_room_to_remove(self, self.arena.values(slots))
            self._remove(slots, self.core.get_ids(slots) if ids is None else ids)

    def _remove(self, slots: Slots, ids: Sequence[str]) -> None:
        rows = self.counts.rows
        draft = self._draft(rows)
        assert not isinstance(self.core, NoRows)
        with self.texts.without(slots, self.arena.values(slots), rows, self.arena.used_bytes) as words:
            self.core.delete(*pack_ids(ids), False)
            words.commit()
        self._forget(slots, draft)
        self.changes += 1

    def _forget(self, slots: Slots, draft: Times | None) -> None:
        """Removes metadata and expiry times of deleted rows; `draft` has the times of the others, where rows expire."""
        self._stored_pages.note_gone(slots, self.arena.size)
        self.arena.drop(slots)
        if draft is not None:
            draft[slots] = NEVER_US
            self.expiries = Expiries(draft)

    def _draft(self, rows: int, some_will_expire: bool = False) -> Times | None:
        """Expiry times for so many rows, which a change fills in; None where no row expires."""
        return None if self.expiries.is_empty and not some_will_expire else self.expiries.draft(rows)

    def bury_expired(self) -> None:
        """Makes tombstones of expired rows. Each change begins with this, so that it meets no hidden row."""
        slots = self.hidden().slots
        if not len(slots):
            return
        # No caller could delete fewer of them at a time, so it is done here, and never refused.
        for part in slices(self.arena.sizes(slots), _BURIED_BYTES):
            work = self.texts.removal_bytes(self.arena.values(slots[part]), self.arena.used_bytes)
            self._remove(slots[part], self.core.get_ids(slots[part]))
            self.budget.untrimmed_bytes += _BURIED_BYTES + work
        self.refresh()

    def delete(self, ids: Sequence[str], missing_ok: bool) -> list[str]:
        """Makes tombstones of rows by id; returns their ids, each once, in the order of `ids`.

        Raises:
            NotFoundError: an id is not live, unless `missing_ok`.
        """
        slots = self.find(ids)
        missing = np.flatnonzero(slots == NO_SLOT)
        if len(missing) and not missing_ok:
            raise not_found(ids[int(missing[0])])
        deleted = list(dict.fromkeys(id for id, slot in zip(ids, slots.tolist(), strict=True) if slot != NO_SLOT))
        self.remove(np.unique(slots[slots != NO_SLOT]), deleted)
        return deleted

    def add(self, batch: Batch, on_conflict: str, control: Control | None, for_lists: bool) -> AddResult:
        """Adds rows: all or nothing. See `Index.add`."""
        n, dim, expected = len(batch.ids), batch.vectors.shape[1], self.vector_dim
        if expected not in (None, dim) and batch.vectorless is not None and batch.vectorless.all():
            # Since the batch was prepared, another add gave the index its first vector.
            batch, dim = replace(batch, vectors=np.zeros((n, expected), dtype=np.float32)), expected
        if expected is not None and dim != expected:
            raise InvalidInputError(
                f"Vector dimension mismatch: expected {expected}, got {dim}",
                details={"expected": expected, "actual": dim},
            )
        check_schema(self.schema, batch.metadata or [None] * n, batch.ids)
        taken, left = self._text_rows(batch, on_conflict)
        take_memory(self, dim, batch, self.arena.values(left))
        staged = None if batch.metadata is None else self.arena.stage(batch.metadata, self.counts.rows + n)
        draft = self._draft(self.counts.rows + n, batch.expires is not None)
        core: NativeIndex | None = self.native
        try:
            # Only an add that succeeds fixes the dimension. The old index is not closed: a reader may still use it, and
            # its memory is freed with its last reference.
            if core is None:
                core = self._new_core(dim)
            elif core.dim != dim:
                core = core.with_dim(dim)
            with self._staged_words(batch, taken, left, control) as words:
                slots, replaced = core.add(
                    batch.vectors,
                    batch.id_bytes,
                    batch.id_offsets,
                    batch.timestamps,
                    on_conflict,
                    control,
                    batch.vectorless,
                    for_lists,
                )
                words.commit()
        except BaseException as error:
            if staged is not None:
                self.arena.abandon(staged)
            if core is not None and core is not self.core:
                core.close()
            if isinstance(error, (InvalidInputError, ConflictError)):
                raise named(error, batch) from None
            raise
        self.core = core
        return self._added(batch, staged, draft, slots, replaced)

    def _text_rows(self, batch: Batch, on_conflict: str) -> tuple[list[int], Slots]:
        """The rows of an add that come to the text index, by their place, and those that they replace."""
        if self.texts.settings is None:
            return [], _NO_SLOTS
        live = self.core.find(batch.id_bytes, batch.id_offsets)
        taken = rows_kept(batch.ids, lambda row: bool(live[row] != NO_SLOT), on_conflict)
        left = np.unique(live[taken])
        return taken, left[left != NO_SLOT]

    def _staged_words(
        self, batch: Batch, taken: Sequence[int], left: Slots, control: Control | None
    ) -> AbstractContextManager[StagedText]:
        """The change of the text index by an add. The native core gives new rows the next slots, in their order."""
        if self.texts.settings is None:
            return nullcontext(StagedText(self.texts, None))
        new = np.arange(self.counts.rows, self.counts.rows + len(taken), dtype=np.uint32)
        values = [] if batch.metadata is None else [batch.metadata[row] for row in taken]
        return self.texts.staged(new, values, left, self.arena.values(left), control)

    def _new_core(self, dim: int) -> NativeIndex:
        params, run = self.params, self.run
        return NativeIndex(
            dim,
            params.metric,
            self.memory,
            params.M,
            params.ef_construction,
            run.threads,
            hash_seed=int.from_bytes(os.urandom(8), "little"),
        )

    def _added(
        self, batch: Batch, staged: Staged | None, draft: Times | None, slots: Slots, replaced: Slots
    ) -> AddResult:
        kept = slots != NO_SLOT
        added, gone = int(kept.sum()), replaced[replaced != NO_SLOT]
        if draft is not None and batch.expires is not None:
            draft[slots[kept]] = batch.expires[kept]
        self._forget(gone, draft)
        if staged is not None:
            self.arena.commit(staged, slots[kept], np.flatnonzero(kept))
        if added:
            self.changes += 1
            self.last_change_us = max(self.last_change_us, int(batch.timestamps[kept].max()))
        return AddResult(added - len(gone), len(gone), len(batch.ids) - added)

    def with_vectors(self, batch: Batch) -> Batch:
        """The batch with the metadata, timestamps and expiries that its rows have now.

        Raises:
            NotFoundError: an id is not live.
            InvalidInputError: an id occurs twice.
        """
        slots = self.require(batch.ids)
        metadata = [self.arena.get(slot) for slot in slots.tolist()]
        return replace(
            batch,
            timestamps=self.core.get_timestamps(slots),
            expires=None if self.expiries.is_empty else self.expiries.draft(self.counts.rows)[slots],
            metadata=metadata if any(raw is not None for raw in metadata) else None,
        )

    def update_metadata(self, slots: Slots, ids: Sequence[str], encoded: Sequence[bytes | None]) -> None:
        """Replaces the metadata of live rows: all or nothing.

        Args:
            slots, ids: the rows, each once.
            encoded: the new metadata.

        Raises:
            InvalidInputError: a value breaks the schema.
            MemoryBudgetExceededError: the metadata would not fit.
        """
        if not len(slots):
            return
        check_schema(self.schema, encoded, ids)
        size, end = sum(len(raw) for raw in encoded if raw is not None), int(slots.max()) + 1
        what = f"metadata of {shown(ids[0])}" if len(ids) == 1 else f"metadata of {len(ids)} rows"
        scratch, stored = size + self.arena.staging_bytes(end), self.arena.values(slots)
        require_with_words(self, self.texts, encoded, what, self.counts.bytes_total + size, scratch, stored)
        staged = self.arena.stage(encoded, end)
        try:
            with self.texts.replaced(slots, encoded, stored) as words:
                words.commit()
        except BaseException:
            self.arena.abandon(staged)
            raise
        for slot in slots.tolist():
            self._stored_pages.note_replaced(slot, self.arena.size(slot))
        self.arena.commit(staged, slots, np.arange(len(slots)))
        self._stored_pages.note(slots.tolist())
        self.changes += 1

    def set_schema(self, schema: Schema | None) -> None:
        """Sets the schema of metadata, which every live row must fulfil already.

        Raises:
            InvalidInputError: a live row breaks it; details has ``id`` and ``path``.
        """
        if schema == self.schema:
            return
        if schema is not None:
            for slot in self.core.live_slots(0, self.counts.live).tolist():
                raw = self.arena.get(slot)
                try:
                    schema.check(None if raw is None else decode_metadata(raw))
                except InvalidInputError as error:
                    (id,) = self.core.get_ids(np.array([slot], dtype=np.uint32))
                    raise InvalidInputError(
                        f"the row {shown(id)} breaks the schema: {error.message}", details={**error.details, "id": id}
                    ) from None
        self.schema = schema
        self.changes += 1

    def set_text(self, settings: TextSettings | None, control: Control | None = None) -> None:
        """Makes the text index anew, from the metadata of all live rows; None for no text index.

        Raises:
            InvalidInputError: the language is unknown.
            MemoryBudgetExceededError: it would not fit.
            IndexStateError: there was not enough memory.
            NativeCancelled: `control` asked for it.
        """
        if settings == self.texts.settings:
            return
        texts = Texts(settings)
        slots = self.core.live_slots(0, self.counts.live)
        values = self.arena.values(slots)
        try:
            content = self.counts.bytes_total + texts.added_bytes(values)
            require_with_words(self, texts, values, "a text index", content, 0)
            with texts.staged(slots, values, control=control) as words:
                words.commit()
        except BaseException:
            texts.close()
            raise
        # The old one is not closed: a reader may still use it, and it is freed with its last reference.
        self.texts = texts
        self.changes += 1

    def renumber(self, kept: Slots, renumber: Callable[[], Slots]) -> Slots:
        """Renumbers the slots: all or nothing.

        Args:
            kept: the old slots in the new order.
            renumber: renumbers the native rows, and returns the new slots by old slots.
        """
        arena, expiries = self.arena.compacted(kept), self.expiries.renumbered(kept)
        with self.texts.renumbered(kept, self.counts.rows) as words:
            slot_map = renumber()
            words.commit()
        self.arena, self.expiries = arena, expiries
        self._stored_pages = self._stored_pages.renumbered(len(kept))
        self.changes += 1
        return slot_map

    @property
    def has_superseded(self) -> bool:
        """Whether replaced metadata is in memory, or in pages that a save would keep."""
        return self.arena.has_superseded or self._stored_pages.has_superseded or self.texts.has_superseded

    def forget_superseded(self) -> None:
        """Removes replaced metadata from memory, and from the pages that a save keeps."""
        if self.arena.has_superseded:
            self.arena = self.arena.compacted(np.arange(self.counts.rows))
        if self.texts.has_superseded:
            with self.texts.renumbered(np.arange(self.counts.rows, dtype=np.uint32), self.counts.rows) as words:
                words.commit()
            self.changes += 1
        if self._stored_pages.has_superseded:
            self._stored_pages = self._stored_pages.renumbered(self.counts.rows)
            self.changes += 1

    def superseded_since_save(self, row_bytes: int) -> int:
        """Bytes of the last stored version whose rows were deleted, replaced or have expired since.

        Args:
            row_bytes: mean bytes of a stored row without its metadata.
        """
        pages = self._stored_pages
        return pages.bytes_gone + row_bytes * (pages.rows_gone + len(self.hidden().slots))

    def clear(self) -> None:
        """Removes all rows, at once and for good; the next vector may have any dimension."""
        self._stored_pages.note_gone(self.core.live_slots(0, self.counts.live), self.arena.size)
        # The native index is not closed: a reader may still use it, and it is freed with its last reference.
        texts = self.texts.cleared()
        self.core, self.arena, self.expiries, self.texts = _EMPTY, MetadataArena(), Expiries(), texts
        self._stored_pages = self._stored_pages.renumbered(0)
        self.changes += 1

    def free(self) -> None:
        """Frees all memory; no call may be under way."""
        core, self.core = self.core, _EMPTY
        core.close()
        self.texts.close()
        self.arena, self.expiries = MetadataArena(), Expiries()
        self.refresh()


def check_schema(schema: Schema | None, encoded: Sequence[bytes | None], ids: Sequence[str]) -> None:
    """Checks the metadata of new rows.

    Raises:
        InvalidInputError: a value breaks the schema.
    """
    if schema is None:
        return
    for row, raw in enumerate(encoded):
        try:
            schema.check(None if raw is None else decode_metadata(raw))
        except InvalidInputError as error:
            raise of_row(error, row, ids[row]) from None


def not_found(id: str) -> NotFoundError:
    """The error for an id that is not live."""
    return NotFoundError(f"Vector not found: there is no row with id {shown(id)}", details={"id": id})
