"""Columns of metadata, on which filters are evaluated.

A column holds one field of all rows. Single values are in arrays by slot: numbers as float64, all other values
(strings, bools, null, dates, datetimes, UUIDs) as a code of the column's dictionary. Values of lists, and of rows in
which a dotted path has several readings, are in separate arrays, with their slots. A column is made from the arena for
the first filter on its field, and updated for later ones: new rows are appended, changed rows are read again. It is a
cache, and can be dropped at any time.

Columns are used only under the lock of changes. A returned mask is never written to again.
"""

from __future__ import annotations

import math
import operator
import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.metadata.arena import MetadataArena
from fabstir_vectordb.metadata.filter_parse import Values
from fabstir_vectordb.metadata.path import parse_path, readings
from fabstir_vectordb.metadata.values import Key, Scalar, decode_metadata, key_of

__all__ = ["Column", "Columns", "Mask"]

Mask = npt.NDArray[np.bool_]

_NONE: Final = -1
_NAN: Final = float("nan")
#: Every integer below it in magnitude is exact as a float64.
_EXACT: Final = 2**53
#: Bytes of a dictionary entry without its key: two places of a dict's table, one of the list of keys (64-bit CPython).
_ENTRY_BYTES: Final = 120
#: Rows decoded at a time.
_DECODED_ROWS: Final = 4_096
#: Types in the order of a scan: null, bools, numbers, strings, dates, datetimes, UUIDs.
_RANK: Final[dict[type, int]] = {type(None): 0, bool: 1, float: 2, str: 3, date: 4, datetime: 5, UUID: 6}
_ORDER: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


class _Wide(NamedTuple):
    """An integer that float64 cannot represent exactly."""

    slot: int
    value: int
    where: int


#: Position of a value in its row: the only value, one of several readings of the path, or an item of a list.
_ALONE, _READING, _LISTED = 0, 1, 2


class Column:
    """One field of all rows, up to date for the first `n` slots."""

    def __init__(self, path: str) -> None:
        self._path = parse_path(path)
        self._present = np.empty(0, dtype=np.bool_)
        self._numbers = np.empty(0, dtype=np.float64)
        self._codes = np.empty(0, dtype=np.int32)
        # Values of lists and of several readings.
        self._list_slots = np.empty(0, dtype=np.int64)
        self._list_numbers = np.empty(0, dtype=np.float64)
        self._list_codes = np.empty(0, dtype=np.int32)
        self._in_list = np.empty(0, dtype=np.bool_)
        # Numbers of 2^53 and more that a row holds as an int. `values` returns them as integers.
        self._large: set[float] = set()
        self._wide: list[_Wide] = []
        self._code_of: dict[Key, int] = {}
        self._keys: list[Key] = []
        self._key_bytes = 0
        self._ranks: dict[type, tuple[list[Any], npt.NDArray[np.int32]]] = {}

    @property
    def n(self) -> int:
        """Number of slots that the column covers."""
        return len(self._present)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        by_slot = (self._present, self._numbers, self._codes)
        of_lists = (self._list_slots, self._list_numbers, self._list_codes, self._in_list)
        ranks = sum(8 * len(keys) + codes.nbytes for keys, codes in self._ranks.values())
        aside = 100 * len(self._wide) + 80 * len(self._large)
        return sum(array.nbytes for array in (*by_slot, *of_lists)) + self._key_bytes + ranks + aside

    # ---- keeping up to date

    def put(self, slots: npt.NDArray[np.int64], values: Sequence[Any]) -> None:
        """Reads the metadata of slots into the column: either slots that it covers, or the next slots.

        Args:
            slots: distinct slots, ascending.
            values: the decoded metadata of each slot, None for no metadata.
        """
        m = len(slots)
        present = np.zeros(m, dtype=np.bool_)
        numbers, codes = np.full(m, np.nan), np.full(m, _NONE, dtype=np.int32)
        listed: list[tuple[int, float, int, bool]] = []
        self._forget(slots)
        for row, (slot, value) in enumerate(zip(slots.tolist(), values, strict=True)):
            found = readings(value, self._path)
            if not found:
                continue
            present[row] = True
            if len(found) == 1 and len(found[0]) == 1 and not isinstance(found[0][0], list):
                numbers[row], codes[row] = self._cell(slot, found[0][0], _ALONE)
                continue
            for reading in found:
                where = _READING if len(reading) == 1 and not isinstance(reading[0], list) else _LISTED
                for item in _flat(reading):
                    number, code = self._cell(slot, item, where)
                    if code != _NONE or not math.isnan(number):
                        listed.append((slot, number, code, where == _LISTED))
        self._place(slots, present, numbers, codes)
        if listed:
            of_slots, of_numbers, of_codes, in_list = zip(*listed, strict=True)
            self._list_slots = np.append(self._list_slots, np.array(of_slots, dtype=np.int64))
            self._list_numbers = np.append(self._list_numbers, np.array(of_numbers))
            self._list_codes = np.append(self._list_codes, np.array(of_codes, dtype=np.int32))
            self._in_list = np.append(self._in_list, np.array(in_list, dtype=np.bool_))

    def _cell(self, slot: int, value: Any, where: int) -> tuple[float, int]:
        """The number and the code of a value. A value with neither, such as a dict, matches no comparison."""
        kind = type(value)
        if kind is str or value is None or kind is bool:
            return _NAN, self._code(value)
        if kind is float:
            return value, _NONE
        if kind is int:
            number = float(value)
            if number != value:
                self._wide.append(_Wide(slot, value, where))
                return _NAN, _NONE
            if abs(number) >= _EXACT:
                self._large.add(number)
            return number, _NONE
        return (_NAN, self._code(key_of(value))) if kind in _RANK else (_NAN, _NONE)

    def _place(self, slots: npt.NDArray[np.int64], present: Mask, numbers: Any, codes: Any) -> None:
        if len(slots) and slots[0] >= self.n:
            self._present = np.append(self._present, present)
            self._numbers = np.append(self._numbers, numbers)
            self._codes = np.append(self._codes, codes)
        else:
            self._present[slots], self._numbers[slots], self._codes[slots] = present, numbers, codes

    def _forget(self, slots: npt.NDArray[np.int64]) -> None:
        if not len(slots) or slots[0] >= self.n:
            return
        stays = ~np.isin(self._list_slots, slots)
        self._keep_listed(stays)
        gone = set(slots.tolist())
        self._wide = [wide for wide in self._wide if wide.slot not in gone]

    def _keep_listed(self, stays: Any) -> None:
        self._list_slots = self._list_slots[stays]
        self._list_numbers = self._list_numbers[stays]
        self._list_codes = self._list_codes[stays]
        self._in_list = self._in_list[stays]

    def _code(self, key: Key) -> int:
        code = self._code_of.get(key)
        if code is None:
            code = self._code_of[key] = len(self._keys)
            self._keys.append(key)
            self._key_bytes += sys.getsizeof(key) + _ENTRY_BYTES
            self._ranks.pop(type(key), None)
        return code

    def renumber(self, kept: npt.NDArray[np.integer[Any]]) -> None:
        """Renumbers the slots after a vacuum.

        Args:
            kept: the old slot of each new slot, in any order.
        """
        to = np.full(self.n, -1, dtype=np.int64)
        to[kept] = np.arange(len(kept))
        self._present, self._numbers, self._codes = self._present[kept], self._numbers[kept], self._codes[kept]
        self._list_slots = to[self._list_slots]
        self._keep_listed(self._list_slots >= 0)
        self._wide = [wide._replace(slot=int(to[wide.slot])) for wide in self._wide if to[wide.slot] >= 0]
        self._forget_unused_keys()

    def _forget_unused_keys(self) -> None:
        # Values of deleted rows must not stay in memory.
        used = np.unique(np.append(self._codes, self._list_codes))
        used = used[used != _NONE]
        if len(used) == len(self._keys):
            return
        codes = np.full(len(self._keys) + 1, _NONE, dtype=np.int32)  # the last entry is for _NONE
        codes[used] = np.arange(len(used), dtype=np.int32)
        self._codes, self._list_codes = codes[self._codes], codes[self._list_codes]
        self._keys = [self._keys[code] for code in used.tolist()]
        self._code_of = {key: code for code, key in enumerate(self._keys)}
        self._key_bytes = sum(sys.getsizeof(key) + _ENTRY_BYTES for key in self._keys)
        self._ranks = {}

    # ---- comparisons: each gives a new mask of n slots

    def matches(self, op: str, value: Any) -> Mask:
        """The mask of rows for which a comparison holds; `op` and `value` as in `filter_parse.Compare`."""
        if op == "$exists":
            return self._present if value else ~self._present
        if op == "$contains":
            return self._contains(value)
        if op == "$in":
            return self._in(value)
        if type(value) in (int, float):
            return self._numeric(op, value)
        if op in _ORDER:
            return self._coded(self._ordered(op, key_of(value)))
        return self._equal(self._code_of.get(key_of(value), _NONE))

    def _equal(self, code: int) -> Mask:
        if code == _NONE:
            return np.zeros(self.n, dtype=np.bool_)
        return self._with_lists(self._codes == code, self._list_codes == code)

    def _in(self, values: Values) -> Mask:
        """The mask of rows whose value is one of many. Time grows with rows plus values, not with their product."""
        if len(values.keys) < len(self._keys):
            codes = [code for key in values.keys if (code := self._code_of.get(key)) is not None]
        else:
            codes = [code for key, code in self._code_of.items() if key in values.keys]
        if len(codes) == 1:
            mask = self._equal(codes[0])
        else:
            mask = self._coded(np.array(codes, dtype=np.int64)) if codes else np.zeros(self.n, dtype=np.bool_)
        if len(values.numbers):
            mask |= _is_one_of(self._numbers, values.numbers)
            self._with_lists(mask, _is_one_of(self._list_numbers, values.numbers))
        if values.wide:
            mask[[wide.slot for wide in self._wide if wide.value in values.wide]] = True
        return mask

    def values(self, slots: npt.NDArray[np.integer[Any]]) -> Iterator[tuple[Scalar, int]]:
        """The distinct values of some slots, each with the number of slots that have it."""
        mask = np.zeros(self.n, dtype=np.bool_)
        mask[slots] = True
        in_lists = mask[self._list_slots]
        slots = np.append(np.flatnonzero(mask), self._list_slots[in_lists])
        codes = np.append(self._codes[mask], self._list_codes[in_lists])
        numbers = np.append(self._numbers[mask], self._list_numbers[in_lists])
        coded, numeric = codes != _NONE, ~np.isnan(numbers)
        for code, count in _counted(slots[coded], codes[coded]):
            yield self._keys[code], count
        for number, count in _counted(slots[numeric], numbers[numeric]):
            exact = number in self._large if abs(number) >= _EXACT else number == int(number)
            yield int(number) if exact else number, count
        wide = {(wide.slot, wide.value) for wide in self._wide if mask[wide.slot]}
        yield from sorted(Counter(value for _, value in wide).items())

    def sort_keys(self, slots: npt.NDArray[np.integer[Any]]) -> list[tuple[int, Any] | None]:
        """The sort key of each slot: the type's position in the order of types, and the value.

        None for a row that does not have exactly one value: it has no value, a list, or several readings of the path.
        """
        wide = {wide.slot: wide.value for wide in self._wide if wide.where == _ALONE}
        keys: list[tuple[int, Any] | None] = []
        for slot, code, number in zip(
            slots.tolist(), self._codes[slots].tolist(), self._numbers[slots].tolist(), strict=True
        ):
            if code != _NONE:
                key = self._keys[code]
                keys.append((_RANK[type(key)], 0 if key is None else key))
            elif slot in wide:
                keys.append((_RANK[float], wide[slot]))
            else:
                keys.append(None if math.isnan(number) else (_RANK[float], number))
        return keys

    def _with_lists(self, mask: Mask, listed: Mask) -> Mask:
        mask[self._list_slots[listed]] = True
        return mask

    def _coded(self, codes: npt.NDArray[np.integer[Any]]) -> Mask:
        table = np.zeros(len(self._keys) + 1, dtype=np.bool_)  # the last entry is for _NONE
        table[codes] = True
        return self._with_lists(table[self._codes], table[self._list_codes])

    def _numeric(self, op: str, value: float) -> Mask:
        compare, bound = _as_float(op, value)
        mask = self._with_lists(compare(self._numbers, bound), compare(self._list_numbers, bound))
        exactly = _comparison(op)
        for wide in self._wide:
            mask[wide.slot] |= exactly(wide.value, value)
        return mask

    def _ordered(self, op: str, value: Key) -> npt.NDArray[np.int32]:
        """The codes of all keys that have the value's type and satisfy the comparison with it."""
        kind = type(value)
        if kind not in self._ranks:
            ranked: list[Any] = sorted(key for key in self._keys if type(key) is kind)
            self._ranks[kind] = ranked, np.array([self._code_of[key] for key in ranked], dtype=np.int32)
        keys, codes = self._ranks[kind]
        at = bisect_right(keys, value) if op in ("$gt", "$lte") else bisect_left(keys, value)
        return codes[at:] if op in ("$gt", "$gte") else codes[:at]

    def _contains(self, value: Scalar) -> Mask:
        """The mask of lists that hold a value, and of strings that contain a string."""
        mask = np.zeros(self.n, dtype=np.bool_)
        if type(value) in (int, float):
            compare, bound = _as_float("$eq", value)  # type: ignore[arg-type]
            mask[self._list_slots[self._in_list & compare(self._list_numbers, bound)]] = True
            mask[[wide.slot for wide in self._wide if wide.where == _LISTED and wide.value == value]] = True
            return mask
        code = self._code_of.get(key_of(value), _NONE)
        if code != _NONE:
            mask[self._list_slots[self._in_list & (self._list_codes == code)]] = True
        if isinstance(value, str):
            table = np.zeros(len(self._keys) + 1, dtype=np.bool_)  # the last entry is for _NONE
            table[[code for code, key in enumerate(self._keys) if isinstance(key, str) and value in key]] = True
            mask |= table[self._codes]
            mask[self._list_slots[~self._in_list & table[self._list_codes]]] = True
        return mask


class Columns:
    """The columns of the fields that filters have used."""

    def __init__(self) -> None:
        self._columns: dict[str, Column] = {}
        self._touched: dict[str, set[int]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(column.nbytes for column in self._columns.values())

    def clear(self) -> None:
        """Drops all columns."""
        self._columns.clear()
        self._touched.clear()

    def touch(self, slot: int) -> None:
        """Notes that the metadata of a row has changed."""
        for path in self._columns:
            self._touched.setdefault(path, set()).add(slot)

    def renumber(self, kept: npt.NDArray[np.integer[Any]]) -> None:
        """Renumbers the slots after a vacuum; `kept` has the old slot of each new slot.

        Columns that are not up to date are dropped.
        """
        end = int(kept.max()) + 1 if len(kept) else 0
        for path, column in list(self._columns.items()):
            if column.n < end or path in self._touched:
                del self._columns[path]
                self._touched.pop(path, None)
            else:
                column.renumber(kept)

    def missing_bytes(self, paths: Sequence[str], rows: int) -> int:
        """Lower bound of the bytes that `get` of paths would add."""
        return sum(13 * (rows - (self._columns[path].n if path in self._columns else 0)) for path in paths)

    def get(self, paths: Sequence[str], arena: MetadataArena, rows: int) -> dict[str, Column]:
        """The columns of paths, brought up to date for `rows` slots."""
        behind: dict[int, list[Column]] = {}
        for path in paths:
            column = self._columns.setdefault(path, Column(path))
            touched = sorted(slot for slot in self._touched.pop(path, ()) if slot < column.n)
            if touched:
                column.put(np.array(touched, dtype=np.int64), _decoded(arena, touched))
            if column.n < rows:
                behind.setdefault(column.n, []).append(column)
        for start, columns in behind.items():
            for first in range(start, rows, _DECODED_ROWS):
                slots = range(first, min(first + _DECODED_ROWS, rows))
                values = _decoded(arena, slots)
                for column in columns:
                    column.put(np.arange(slots.start, slots.stop), values)
        return {path: self._columns[path] for path in paths}


def _flat(found: Sequence[Any]) -> Iterator[Any]:
    for value in found:
        if isinstance(value, list):
            yield from value
        else:
            yield value


def _decoded(arena: MetadataArena, slots: Sequence[int]) -> list[Any]:
    return [decode_metadata(raw) if raw else None for raw in arena.get_many(slots)]


def _is_one_of(numbers: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> Mask:
    """The mask of numbers that occur in an ascending array; False for NaN."""
    at = np.searchsorted(wanted, numbers)
    found: Mask = wanted[np.minimum(at, len(wanted) - 1)] == numbers
    return found


def _comparison(op: str) -> Callable[[Any, Any], Any]:
    return _ORDER.get(op, operator.eq)


def _as_float(op: str, value: float) -> tuple[Callable[[Any, Any], Any], float]:
    """A comparison operator and a float64 bound that have the same result for float64 numbers as `op` and `value`.

    `value` may be an integer between two float64 numbers.
    """
    try:
        bound = float(value)
    except OverflowError:
        bound = float("inf") if value > 0 else float("-inf")
    if bound == value:
        return _comparison(op), bound
    if op == "$eq":
        return operator.eq, _NAN
    # x > value equals x >= bound if bound > value, and x > bound if bound < value; likewise for the other operators.
    up = op in ("$gt", "$gte")
    if bound > value:
        return (operator.ge if up else operator.lt), bound
    return (operator.gt if up else operator.le), bound


def _counted(slots: Any, values: Any) -> Iterator[tuple[Any, int]]:
    """The distinct values, each with its number of distinct slots."""
    order = np.lexsort((slots, values))
    slots, values = slots[order], values[order]
    first = np.ones(len(values), dtype=np.bool_)
    first[1:] = (values[1:] != values[:-1]) | (slots[1:] != slots[:-1])
    found, counts = np.unique(values[first], return_counts=True)
    yield from zip(found.tolist(), counts.tolist(), strict=True)
