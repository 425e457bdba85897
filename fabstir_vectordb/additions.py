"""Rows that a session adds: arguments to a batch, the timestamps of new rows, and the add."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from fabstir_vectordb._native.handle import Control
from fabstir_vectordb.index import Index, prepare_batch
from fabstir_vectordb.index.incoming import Batch
from fabstir_vectordb.types import AddResult, VectorInput

__all__ = ["Additions"]

_STAMPS_AHEAD_US: Final = 60_000_000


class Additions:
    """Adds rows to an index.

    Args:
        now_us: the session's clock, microseconds since 1970.
    """

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us

    def add(
        self,
        ids: Sequence[str],
        vectors: Any,
        metadata: Sequence[Any] | None,
        timestamps: Any,
        expires_at: Any,
        on_conflict: str,
        index: Index,
        control: Control,
        for_lists: bool = False,
    ) -> AddResult:
        """Adds the rows of an array; see `VectorDBSession.add_batch`."""
        index.check_room(vectors)
        batch = self.prepared(ids, vectors, metadata, timestamps, expires_at, index)
        return index.add(batch, on_conflict, control, for_lists)

    def add_inputs(
        self, rows: list[VectorInput], on_conflict: str, index: Index, control: Control, for_lists: bool = False
    ) -> AddResult:
        """Adds rows with an object each."""
        return self.add(
            [row.id for row in rows],
            [row.vector for row in rows],
            _none_or([row.metadata for row in rows]),
            _none_or([row.timestamp for row in rows]),
            _none_or([row.expires_at for row in rows]),
            on_conflict,
            index,
            control,
            for_lists,
        )

    def prepared(
        self,
        ids: Sequence[str],
        vectors: Any,
        metadata: Sequence[Any] | None,
        timestamps: Any,
        expires_at: Any,
        index: Index,
    ) -> Batch:
        """The rows of an add, checked by Python."""
        now_us = partial(_stamp_us, self._now_us, index.last_change_us)
        room = index.metadata_room_bytes
        return prepare_batch(ids, vectors, metadata, timestamps, now_us, index.vector_dim, expires_at, room)


def _stamp_us(clock_us: Callable[[], int], last_us: int) -> int:
    """The timestamp of the next row: now, or right after the latest one where the clock has not come so far.

    A clock may count whole seconds. One that is further behind the rows is believed: rows may be dated in the future.
    """
    now_us = clock_us()
    return last_us + 1 if last_us and 0 <= last_us - now_us < _STAMPS_AHEAD_US else now_us


def _none_or(values: list[Any]) -> list[Any] | None:
    """The list of values, or None where every value is None."""
    return values if any(value is not None for value in values) else None
