"""The room that a change takes in the memory budget, and the memory setting that makes it fit (``memory="auto"``).

The setting is changed inside a change, before its own work, so that no search meets it half way.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, Protocol

from fabstir_vectordb._native.handle import DIM_MAX, NativeIndex, NativeStats
from fabstir_vectordb.config import Tier
from fabstir_vectordb.errors import IndexStateError, MemoryBudgetExceededError
from fabstir_vectordb.index.budget import Budget, Forecast
from fabstir_vectordb.index.incoming import Batch, seeming_shape
from fabstir_vectordb.index.text import RowValues, Texts
from fabstir_vectordb.metadata.arena import TABLE_BYTES_PER_ROW, MetadataArena, StoredValues
from fabstir_vectordb.metadata.expiry import Expiries
from fabstir_vectordb.params import IndexParams, RunParams
from fabstir_vectordb.tiers import TIERS, tier_of

__all__ = [
    "FittedRows",
    "after_give_way",
    "check_room",
    "forecast_of",
    "give_way",
    "require_with_words",
    "take_memory",
    "take_room_to_remove",
]

#: Overhead of a bytes object, and its entry in a list.
_BYTES_OBJECT: Final = 48
#: The expiry time of a row, in a draft.
_EXPIRY_BYTES_PER_ROW: Final = 8
#: The id of a row that goes, as a string and packed, and its slots.
_DELETED_ROW_BYTES: Final = 120


class FittedRows(Protocol):
    """The rows that have to fit."""

    params: IndexParams
    run: RunParams
    budget: Budget
    counts: NativeStats
    memory: Tier
    arena: MetadataArena
    expiries: Expiries
    texts: Texts

    @property
    def native(self) -> NativeIndex | None: ...
    @property
    def metadata_bytes(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def refresh(self) -> None: ...


def forecast_of(rows: FittedRows) -> Forecast:
    """The memory that changes of the present rows would take."""
    return _forecast(rows, 1 if rows.native is None else rows.native.dim, rows.memory)


def _forecast(rows: FittedRows, dim: int, memory: Tier) -> Forecast:
    return Forecast(dim=dim, params=rows.params, run=rows.run, memory=memory, counts=rows.counts)


def _least(rows: FittedRows) -> Tier:
    """The setting with the least memory that the rows may have."""
    return "default" if rows.run.memory == "auto" else rows.memory


# ---- Adds --------------------------------------------------------------------------------------------------


def check_room(rows: FittedRows, vectors: Any) -> None:
    """Refuses vectors that cannot fit in the budget, before an array is made from a caller's list of them.

    Raises:
        MemoryBudgetExceededError: with the shortest ids and no metadata they would not fit.
    """
    n, dim = seeming_shape(vectors)
    if 4 * n * dim > rows.budget.reserve > 0:
        content = _forecast(rows, min(dim, DIM_MAX), _least(rows)).after_add(n, n)
        require_for_good(rows, f"adding {n} rows", content, 0)


def take_memory(rows: FittedRows, dim: int, batch: Batch, left: RowValues) -> None:
    """Gives rows the setting that suits them after an add; refuses the add where even the least memory is too much.

    Args:
        rows: the rows.
        dim: components of a vector.
        batch: the rows that come.
        left: the metadata of the rows whose text leaves the text index.

    Raises:
        MemoryBudgetExceededError: the rows, or the work of the add, would not fit; nothing changed.
    """
    fast = _forecast(rows, dim, "fast").after_add(len(batch.ids), len(batch.id_bytes))
    others = rows.metadata_bytes + rows.texts.nbytes + batch.metadata_bytes
    memory = tier_of(rows.run.memory, fast + others, rows.budget.limit_bytes, rows.memory)
    try:
        _check_add(rows, dim, batch, memory, left)
    except MemoryBudgetExceededError:
        if memory == _least(rows):
            raise
        memory = _least(rows)
        _check_add(rows, dim, batch, memory, left)
    _set_memory(rows, memory)


def _check_add(rows: FittedRows, dim: int, batch: Batch, memory: Tier, left: RowValues) -> None:
    n, count, forecast = len(batch.ids), rows.counts.rows + len(batch.ids), _forecast(rows, dim, memory)
    content = forecast.after_add(n, len(batch.id_bytes))
    scratch = forecast.add(n, len(batch.id_bytes)) + batch.nbytes
    metadata_bytes = batch.metadata_bytes
    if metadata_bytes:
        content += metadata_bytes + metadata_bytes // 8 + TABLE_BYTES_PER_ROW * count
        scratch += metadata_bytes + _BYTES_OBJECT * n + rows.arena.staging_bytes(count)
        content += rows.texts.added_bytes(batch.metadata or ())
    if batch.expires is not None or not rows.expiries.is_empty:
        content += _EXPIRY_BYTES_PER_ROW * count
    if rows.native is not None and rows.native.dim != dim:
        scratch += rows.counts.bytes_total + 4 * dim * rows.counts.live
    require_with_words(rows, rows.texts, batch.metadata or (), f"adding {n} rows", content, scratch, left)


def require_for_good(rows: FittedRows, what: str, content: int, scratch: int) -> None:
    """Refuses a change that does not fit; `content` excludes the present metadata and words.

    Raises:
        MemoryBudgetExceededError: the content, or the work on top, would not fit.
    """
    way_out = "raise memory_budget_mb, or use memory='compact'"
    deleted = rows.counts.rows - rows.counts.live
    if deleted:
        way_out = f"call vacuum(), which frees {deleted} deleted rows, {way_out}"
    rows.budget.require_for_good(what, rows.metadata_bytes + rows.texts.nbytes + content, scratch, way_out)


def require_with_words(
    rows: FittedRows,
    texts: Texts,
    metadata: RowValues,
    what: str,
    content: int,
    scratch: int,
    left: RowValues = (),
) -> None:
    """As `require_for_good`, for a change that brings metadata; `scratch` excludes the work of the text index.

    The words are counted only where that decides: where the quick bound of that work, which holds for any text, is what
    would not fit. `left` is the metadata of the rows that leave, or whose metadata is replaced.

    Raises:
        MemoryBudgetExceededError: as `require_for_good`.
    """
    work, needed = texts.work_bytes(metadata, left), rows.metadata_bytes + rows.texts.nbytes + content + scratch
    if rows.budget.is_over(needed + work) and not rows.budget.is_over(needed):
        work = min(work, texts.counted_work_bytes(metadata, left))
    require_for_good(rows, what, content, scratch + work)


# ---- Other changes -----------------------------------------------------------------------------------------


def take_room_to_remove(rows: FittedRows, stored: StoredValues) -> None:
    """Refuses a deletion of rows whose work would not fit.

    Args:
        rows: the rows.
        stored: the metadata of those that go.

    Raises:
        MemoryBudgetExceededError: the work would not fit.
    """
    count, id_bytes = len(stored), rows.counts.id_bytes // max(rows.counts.rows, 1)
    of_ids = count * (_DELETED_ROW_BYTES + 2 * id_bytes)
    work = rows.texts.removal_bytes(stored, rows.arena.used_bytes)
    give_way(rows, of_ids + work)
    if rows.budget.is_over(rows.nbytes + of_ids + work):
        work = min(work, rows.texts.removal_bytes(stored, rows.arena.used_bytes, counted=True))
    way_out = "delete fewer rows at a time, or save, and load with a larger memory_budget_mb"
    rows.budget.require_work(f"deleting {count} rows", rows.nbytes, of_ids + work, way_out)


def give_way(rows: FittedRows, scratch: int) -> None:
    """Frees what `auto` keeps while it may, where the scratch bytes of a change would not fit beside it."""
    if rows.budget.is_over(rows.nbytes + scratch):
        _set_memory(rows, _least(rows))


def after_give_way(rows: FittedRows) -> tuple[int, Forecast]:
    """Bytes of the rows, and a forecast, as they would be after `give_way`."""
    now = forecast_of(rows)
    then = _forecast(rows, now.dim, _least(rows))
    return rows.nbytes - now.after_add(0, 0) + then.after_add(0, 0), then


def _set_memory(rows: FittedRows, memory: Tier) -> None:
    native, rows.memory = rows.native, memory
    if native is not None and memory != TIERS[rows.counts.memory]:
        # Where there is no memory for `fast` the rows stay what they are.
        with suppress(IndexStateError):
            native.set_memory(memory)
        rows.refresh()
