"""Fields of the rows themselves that filters compare like fields of metadata: ``$id`` and ``$timestamp``.

Nothing is kept: ids and times are in memory anyway, and the matches of a filter are remembered.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.metadata.columns import Mask
from fabstir_vectordb.metadata.filter_parse import Values

__all__ = ["IdField", "TimeField"]

Slots = npt.NDArray[np.uint32]

#: Rows whose ids are made into strings at a time.
_CHUNK_ROWS: Final = 16_384
_TEXTS: Final[dict[str, Callable[[str, str], bool]]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
    "$contains": operator.contains,
    "$icontains": lambda id, text: text in id.casefold(),
    "$startsWith": str.startswith,
}
_TIMES: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "$eq": operator.eq,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


class IdField:
    """The ids of rows.

    Args:
        rows: number of slots.
        live: slots that have an id.
        get_ids: the ids of slots.
        find: the slots of ids; `rows` or more for an id that is not live.
    """

    def __init__(
        self, rows: int, live: Slots, get_ids: Callable[[Slots], list[str]], find: Callable[[Sequence[str]], Slots]
    ) -> None:
        self._rows = rows
        self._live = live
        self._get_ids = get_ids
        self._find = find

    def matches(self, op: str, value: Any) -> Mask:
        """The mask of rows for which a comparison holds; `op` and `value` as in `filter_parse.Compare`."""
        mask = np.zeros(self._rows, dtype=np.bool_)
        if op == "$exists":
            return ~mask if value else mask
        if op in ("$eq", "$in"):
            slots = self._find([*map(str, value.keys)] if isinstance(value, Values) else [value])
            mask[slots[slots < self._rows]] = True
            return mask
        holds = _TEXTS[op]
        for start in range(0, len(self._live), _CHUNK_ROWS):
            some = self._live[start : start + _CHUNK_ROWS]
            mask[some] = [holds(id, value) for id in self._get_ids(some)]
        return mask

    def sort_keys(self, slots: Slots) -> list[tuple[int, Any] | None]:
        """The sort key of each slot, as `Column.sort_keys`."""
        return [(0, id) for id in self._get_ids(slots)]


class TimeField:
    """The timestamps of rows.

    Args:
        rows: number of slots.
        live: slots that have a timestamp.
        get_times: the times of slots, microseconds since 1970.
    """

    def __init__(self, rows: int, live: Slots, get_times: Callable[[Slots], npt.NDArray[np.int64]]) -> None:
        self._rows = rows
        self._live = live
        self._get_times = get_times

    def matches(self, op: str, value: Any) -> Mask:
        """The mask of rows for which a comparison holds; `op` and `value` as in `filter_parse.Compare`."""
        mask = np.zeros(self._rows, dtype=np.bool_)
        if op == "$exists":
            return ~mask if value else mask
        times = self._get_times(self._live)
        if isinstance(value, Values):
            # Moments are integers, and those that float64 cannot represent exactly stand apart.
            wanted = np.append(value.numbers.astype(np.int64), np.array(list(value.wide), dtype=np.int64))
            mask[self._live] = np.isin(times, wanted)
        else:
            mask[self._live] = _TIMES[op](times, value)
        return mask

    def sort_keys(self, slots: Slots) -> list[tuple[int, Any] | None]:
        """The sort key of each slot, as `Column.sort_keys`."""
        return [(0, time) for time in self._get_times(slots).tolist()]
