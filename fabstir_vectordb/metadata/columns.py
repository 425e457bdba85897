"""Columns of metadata, on which filters are evaluated.

A column holds one field of all rows. Single values are in arrays by slot: numbers as float64, all other values
(strings, bools, null, dates, datetimes, UUIDs) as a code of the column's dictionary. Values of lists, and of rows in
which a dotted path has several readings, are in separate arrays, with their slots. A column is made from the arena for
the first filter on its field, and updated for later ones: new rows are appended, changed rows are read again. C reads
the rows, and gives each distinct value once (native/src/metadata). Sizes of lists, and whole lists as hashes, are kept
from the first filter on that asks for them. A column is a cache, and can be dropped at any time.

Columns are used only under the lock of changes. A returned mask is never written to again.
"""

from __future__ import annotations

import math
import operator
import os
import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import date, datetime
from hashlib import blake2b
from itertools import islice
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.fields import VALUE_LARGE
from fabstir_vectordb.metadata.arena import MetadataArena
from fabstir_vectordb.metadata.filter_parse import Items, Values
from fabstir_vectordb.metadata.path import Path, packed, parse_path, reached
from fabstir_vectordb.metadata.values import Key, Scalar, decode_metadata, key_of, list_key

__all__ = ["NONE", "Column", "Columns", "Mask", "sort_key"]

Mask = npt.NDArray[np.bool_]

#: The place of a row without one value in a table of values.
NONE: Final = -1
_NAN: Final = float("nan")
#: Every integer below it in magnitude is exact as a float64.
_EXACT: Final = 2**53
#: Bytes of a dictionary entry without its key: two places of a dict's table, one of the list of keys (64-bit CPython).
_ENTRY_BYTES: Final = 120
#: Rows read at a time. What is read of them takes 1 to 2 MB beside the column, more where lists are long.
_READ_ROWS: Final = 16_384
#: A size that no list has.
_SIZE_END: Final = 2**62
#: Values of lists that a row is expected to have at most, on average.
_LIST_ROOM: Final = 4
#: If none of so many keys is known, all seem to be new; such keys take two thirds of the time of others.
_ASKED: Final = 64
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


class _Listed(NamedTuple):
    """Values of lists, and of rows with several readings: arrays with one entry for each value."""

    slots: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.float64]
    codes: npt.NDArray[np.int32]
    in_list: Mask

    def kept(self, stays: Mask) -> _Listed:
        """The entries of a mask."""
        return _Listed._make(array[stays] for array in self)


class _Lists(NamedTuple):
    """Whole lists: arrays with one entry for each list of a row.

    Attributes:
        slots: the slot.
        sizes: items of the list; -1 for a list that is an item of another, which has no size of its own.
        hashes: (n, 2), a hash of 128 bits of the list's key; zeros for a list that holds lists or dicts.
    """

    slots: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]

    def kept(self, stays: Mask) -> _Lists:
        """The entries of a mask."""
        return _Lists._make(array[stays] for array in self)


#: Two lists with one hash would be taken for equal, so that nobody may be able to find such lists.
_HASH_KEY: Final = os.urandom(16)


def _hash_of(key: bytes) -> bytes:
    return blake2b(key, digest_size=16, key=_HASH_KEY).digest()


def _joined(parts: Sequence[_Listed]) -> _Listed:
    return _Listed._make(map(np.concatenate, zip(*parts, strict=True)))


class Column:
    """One field of all rows, up to date for the first `n` slots."""

    def __init__(self, path: str) -> None:
        self._steps = parse_path(path)
        self._path = packed(self._steps)
        self._present = np.empty(0, dtype=np.bool_)
        self._numbers = np.empty(0, dtype=np.float64)
        self._codes = np.empty(0, dtype=np.int32)
        self._listed = _Listed(
            np.empty(0, dtype=np.int64), np.empty(0), np.empty(0, dtype=np.int32), np.empty(0, dtype=np.bool_)
        )
        self._list_room = 0
        self._lists: _Lists | None = None  # before a filter asks for them
        # Numbers of 2^53 and more that a row holds as an int. `values` returns them as integers.
        self._large: set[float] = set()
        self._wide: list[_Wide] = []
        self._code_of: dict[Key, int] = {}
        self._keys: list[Key] = []
        self._key_bytes = 0
        self._ranks: dict[type, tuple[list[Any], npt.NDArray[np.int32]]] = {}
        self._folded: list[str | None] = []
        self._folded_bytes = 0

    @property
    def n(self) -> int:
        """Number of slots that the column covers."""
        return len(self._present)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        by_slot = (self._present, self._numbers, self._codes)
        ranks = sum(8 * len(keys) + codes.nbytes for keys, codes in self._ranks.values())
        aside = 100 * len(self._wide) + 80 * len(self._large)
        arrays: tuple[npt.NDArray[Any], ...] = (*by_slot, *self._listed, *(self._lists or ()))
        folded = 8 * len(self._folded) + self._folded_bytes
        return sum(array.nbytes for array in arrays) + self._key_bytes + ranks + folded + aside

    # ---- keeping up to date

    def extend(self, arena: MetadataArena, rows: int) -> None:
        """Reads the next slots, until the column covers `rows` slots."""
        before = self.n
        present, numbers, codes = (_grown(array, rows) for array in (self._present, self._numbers, self._codes))
        listed = [self._listed]
        for start in range(self.n, rows, _READ_ROWS):
            end = min(start + _READ_ROWS, rows)
            present[start:end], numbers[start:end], codes[start:end], found = self._read(arena, np.arange(start, end))
            listed.append(found)
        self._present, self._numbers, self._codes = present, numbers, codes
        self._listed = _joined(listed)
        if self._lists is not None:
            self._lists = self._with_whole_lists(arena, self._lists, np.arange(before, rows))

    def update(self, arena: MetadataArena, slots: npt.NDArray[np.int64]) -> None:
        """Reads distinct slots again that the column covers."""
        kept = self._listed.kept(~np.isin(self._listed.slots, slots))
        gone = set(slots.tolist())
        self._wide = [wide for wide in self._wide if wide.slot not in gone]
        self._present[slots], self._numbers[slots], self._codes[slots], found = self._read(arena, slots)
        self._listed = _joined([kept, found])
        if self._lists is not None:
            self._lists = self._with_whole_lists(
                arena, self._lists.kept(~np.isin(self._lists.slots, slots)), np.sort(slots)
            )

    def keep_lists(self, arena: MetadataArena) -> None:
        """Reads whole lists, too, from now on."""
        if self._lists is None:
            none = np.empty(0, dtype=np.int64)
            nothing = _Lists(none, none, np.empty((0, 2), dtype=np.uint64))
            self._lists = self._with_whole_lists(arena, nothing, np.arange(self.n))

    def _with_whole_lists(self, arena: MetadataArena, lists: _Lists, slots: npt.NDArray[np.int64]) -> _Lists:
        """The lists with those of slots that the column has read."""
        # A row with one scalar has no list; the others are decoded.
        slots = slots[self._present[slots] & (self._codes[slots] == NONE) & np.isnan(self._numbers[slots])]
        parts = [lists]
        for start in range(0, len(slots), _READ_ROWS):
            some = slots[start : start + _READ_ROWS].tolist()
            found: list[tuple[int, int]] = []
            hashes = bytearray()
            for slot, raw in zip(some, arena.get_many(some), strict=True):
                for size, items in _whole_lists(decode_metadata(raw), self._steps):
                    found.append((slot, size))
                    key = list_key(items)
                    hashes += bytes(16) if key is None else _hash_of(key)
            both = np.array(found, dtype=np.int64).reshape(-1, 2)
            parts.append(_Lists(both[:, 0], both[:, 1], np.frombuffer(bytes(hashes), dtype=np.uint64).reshape(-1, 2)))
        return _Lists._make(map(np.concatenate, zip(*parts, strict=True)))

    def _read(self, arena: MetadataArena, slots: npt.NDArray[np.int64]) -> tuple[Mask, Any, Any, _Listed]:
        """The values of slots, by row and of lists; the dictionary and the wide integers are those of the column."""
        # Room that is not written to costs nothing, but lists that are longer cost a second pass.
        room = max(_LIST_ROOM * len(slots), self._list_room)
        cells, values = arena.read_field(slots, *self._path, room)
        # The next rows have about as many values of lists.
        self._list_room = len(cells.list_rows) * 5 // 4
        is_key = cells.value_kinds != VALUE_LARGE
        codes = np.full(len(values) + 1, NONE, dtype=np.int32)  # the last entry is for NONE
        if is_key.all():
            codes[:-1] = self._codes_of(values)
        else:
            codes[:-1][is_key] = self._codes_of([values[place] for place in np.flatnonzero(is_key).tolist()])
        listed = _Listed(
            slots[cells.list_rows], cells.list_numbers, codes[cells.list_codes], cells.in_list.view(np.bool_)
        )
        if not is_key.all():
            where = np.where(listed.in_list, _LISTED, _READING)
            self._take_large(values, is_key, cells.codes, cells.numbers, slots, np.full(len(slots), _ALONE))
            self._take_large(values, is_key, cells.list_codes, listed.numbers, listed.slots, where)
            listed = listed.kept((listed.codes != NONE) | ~np.isnan(listed.numbers))
        return cells.present.view(np.bool_), cells.numbers, codes[cells.codes], listed

    def _codes_of(self, keys: list[Any]) -> list[int]:
        """The codes of keys; new keys enter the dictionary."""
        code_of, before = self._code_of, len(self._keys)
        seem_new = not any(map(code_of.__contains__, keys[:_ASKED]))
        if seem_new:
            codes = list(map(code_of.setdefault, keys, range(before, before + len(keys))))
        else:
            codes = [code_of.setdefault(key, len(code_of)) for key in keys]
        new = list(islice(reversed(code_of), len(code_of) - before))[::-1]
        if seem_new and len(new) < len(keys):
            code_of.update(zip(new, range(before, len(code_of)), strict=True))
            codes = list(map(code_of.__getitem__, keys))
        self._keys += new
        kinds = set(map(type, new))
        # `str.__sizeof__` takes a sixth of the time of `getsizeof`, which adds nothing for a string.
        self._key_bytes += sum(map(str.__sizeof__ if kinds == {str} else sys.getsizeof, new)) + _ENTRY_BYTES * len(new)
        for kind in kinds:
            self._ranks.pop(kind, None)
        return codes

    def _take_large(
        self, values: list[Any], is_key: Mask, places: Any, numbers: npt.NDArray[np.float64], slots: Any, where: Any
    ) -> None:
        """Takes integers of 2^53 and more: as numbers if float64 represents them exactly.

        Args:
            values: the table of values.
            is_key: which of them are no integers.
            places: the place of each entry in the table, or NONE.
            numbers, slots, where: number, slot and position of each entry; numbers are written.
        """
        for at in np.flatnonzero(~np.append(is_key, True)[places]).tolist():
            value = values[places[at]]
            number = float(value)
            if number == value:
                numbers[at] = number
                self._large.add(number)
            else:
                self._wide.append(_Wide(int(slots[at]), value, int(where[at])))

    def renumber(self, kept: npt.NDArray[np.integer[Any]]) -> None:
        """Renumbers the slots after a vacuum.

        Args:
            kept: the old slot of each new slot, in any order.
        """
        to = np.full(self.n, -1, dtype=np.int64)
        to[kept] = np.arange(len(kept))
        self._present, self._numbers, self._codes = self._present[kept], self._numbers[kept], self._codes[kept]
        self._listed = self._listed._replace(slots=to[self._listed.slots])
        self._listed = self._listed.kept(self._listed.slots >= 0)
        if self._lists is not None:
            self._lists = self._lists._replace(slots=to[self._lists.slots])
            self._lists = self._lists.kept(self._lists.slots >= 0)
        self._wide = [wide._replace(slot=int(to[wide.slot])) for wide in self._wide if to[wide.slot] >= 0]
        self._forget_unused_keys()

    def _forget_unused_keys(self) -> None:
        # Values of deleted rows must not stay in memory.
        used = np.unique(np.append(self._codes, self._listed.codes))
        used = used[used != NONE]
        if len(used) == len(self._keys):
            return
        codes = np.full(len(self._keys) + 1, NONE, dtype=np.int32)  # the last entry is for NONE
        codes[used] = np.arange(len(used), dtype=np.int32)
        self._codes, self._listed = codes[self._codes], self._listed._replace(codes=codes[self._listed.codes])
        self._keys = [self._keys[code] for code in used.tolist()]
        self._code_of = {key: code for code, key in enumerate(self._keys)}
        self._key_bytes = sum(sys.getsizeof(key) + _ENTRY_BYTES for key in self._keys)
        self._ranks = {}
        self._folded, self._folded_bytes = [], 0

    # ---- comparisons: each gives a new mask of n slots

    def matches(self, op: str, value: Any) -> Mask:
        """The mask of rows for which a comparison holds; `op` and `value` as in `filter_parse.Compare`."""
        if op == "$exists":
            return self._present if value else ~self._present
        if op == "$contains":
            return self._contains(value)
        if op in ("$size", "$icontains", "$startsWith"):
            return self._sized(value) if op == "$size" else self._textual(op, value)
        if isinstance(value, Items):
            return self._equals_list(value)
        if op == "$in":
            return self._in(value)
        if type(value) in (int, float):
            return self._numeric(op, value)
        if op in _ORDER:
            return self._coded(self._ordered(op, key_of(value)))
        return self._equal(self._code_of.get(key_of(value), NONE))

    def _equal(self, code: int) -> Mask:
        if code == NONE:
            return np.zeros(self.n, dtype=np.bool_)
        return self._with_lists(self._codes == code, self._listed.codes == code)

    def _sized(self, size: int) -> Mask:
        """The mask of rows with a list of so many items."""
        assert self._lists is not None
        mask = np.zeros(self.n, dtype=np.bool_)
        mask[self._lists.slots[self._lists.sizes == min(size, _SIZE_END)]] = True
        return mask

    def _equals_list(self, items: Items) -> Mask:
        """The mask of rows with a list that equals another, item for item."""
        assert self._lists is not None
        mask = np.zeros(self.n, dtype=np.bool_)
        wanted = np.frombuffer(_hash_of(items.key), dtype=np.uint64)
        mask[self._lists.slots[(self._lists.hashes == wanted).all(axis=1)]] = True
        return mask

    def _textual(self, op: str, value: str) -> Mask:
        """The mask of strings that begin with a string, or contain it in any case; of lists, some string does."""
        if op == "$icontains":
            wanted = [code for code, text in enumerate(self._folded_keys()) if text is not None and value in text]
            return self._coded(np.array(wanted, dtype=np.int64))
        ranked, codes = self._ranked(str)
        start = bisect_left(ranked, value)
        return self._coded(codes[start : bisect_right(ranked, value, lo=start, key=lambda text: text[: len(value)])])

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
            self._with_lists(mask, _is_one_of(self._listed.numbers, values.numbers))
        if values.wide:
            mask[[wide.slot for wide in self._wide if wide.value in values.wide]] = True
        return mask

    def values(self, slots: npt.NDArray[np.integer[Any]]) -> Iterator[tuple[Scalar, int]]:
        """The distinct values of some slots, each with the number of slots that have it."""
        mask = np.zeros(self.n, dtype=np.bool_)
        mask[slots] = True
        in_lists = mask[self._listed.slots]
        slots = np.append(np.flatnonzero(mask), self._listed.slots[in_lists])
        codes = np.append(self._codes[mask], self._listed.codes[in_lists])
        numbers = np.append(self._numbers[mask], self._listed.numbers[in_lists])
        coded, numeric = codes != NONE, ~np.isnan(numbers)
        for code, count in _counted(slots[coded], codes[coded]):
            yield self._keys[code], count
        for number, count in _counted(slots[numeric], numbers[numeric]):
            yield int(number) if self._is_integer(number) else number, count
        wide = {(wide.slot, wide.value) for wide in self._wide if mask[wide.slot]}
        yield from sorted(Counter(value for _, value in wide).items())

    def codes(
        self,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int32], list[Scalar]]:
        """Every value as a number: its place in a list of the distinct values, which comes last.

        Returns:
            The number of each slot's only value, else -1; slots and numbers of the values of lists, and of rows with
            several readings; the values.
        """
        values: list[Scalar] = list(self._keys)
        alone, listed = self._codes.copy(), self._listed.codes.copy()
        numbers = np.append(self._numbers, self._listed.numbers)
        held = ~np.isnan(numbers)
        distinct, places = np.unique(numbers[held], return_inverse=True)
        of_numbers = np.append(alone, listed)
        of_numbers[held] = len(values) + places
        alone, listed = of_numbers[: self.n], of_numbers[self.n :]
        values += [int(number) if self._is_integer(number) else number for number in distinct.tolist()]
        listed_slots = self._listed.slots
        wide_of: dict[int, int] = {}
        for wide in self._wide:
            number = wide_of.setdefault(wide.value, len(values))
            if number == len(values):
                values.append(wide.value)
            if wide.where == _ALONE:
                alone[wide.slot] = number
            else:
                listed_slots, listed = np.append(listed_slots, wide.slot), np.append(listed, np.int32(number))
        return alone, listed_slots, listed, values

    def _is_integer(self, number: float) -> bool:
        """Whether a number is given as an integer."""
        return number in self._large if abs(number) >= _EXACT else number == int(number)

    def sort_keys(self, slots: npt.NDArray[np.integer[Any]]) -> list[tuple[int, Any] | None]:
        """The sort key of each slot: the type's position in the order of types, and the value.

        None for a row that does not have exactly one value: it has no value, a list, or several readings of the path.
        """
        wide = {wide.slot: wide.value for wide in self._wide if wide.where == _ALONE}
        keys: list[tuple[int, Any] | None] = []
        for slot, code, number in zip(
            slots.tolist(), self._codes[slots].tolist(), self._numbers[slots].tolist(), strict=True
        ):
            if code != NONE:
                key = self._keys[code]
                keys.append((_RANK[type(key)], 0 if key is None else key))
            elif slot in wide:
                keys.append((_RANK[float], wide[slot]))
            else:
                keys.append(None if math.isnan(number) else (_RANK[float], number))
        return keys

    def _with_lists(self, mask: Mask, listed: Mask) -> Mask:
        mask[self._listed.slots[listed]] = True
        return mask

    def _coded(self, codes: npt.NDArray[np.integer[Any]]) -> Mask:
        table = np.zeros(len(self._keys) + 1, dtype=np.bool_)  # the last entry is for NONE
        table[codes] = True
        return self._with_lists(table[self._codes], table[self._listed.codes])

    def _numeric(self, op: str, value: float) -> Mask:
        compare, bound = _as_float(op, value)
        mask = self._with_lists(compare(self._numbers, bound), compare(self._listed.numbers, bound))
        exactly = _comparison(op)
        for wide in self._wide:
            mask[wide.slot] |= exactly(wide.value, value)
        return mask

    def _ordered(self, op: str, value: Key) -> npt.NDArray[np.int32]:
        """The codes of all keys that have the value's type and satisfy the comparison with it."""
        keys, codes = self._ranked(type(value))
        at = bisect_right(keys, value) if op in ("$gt", "$lte") else bisect_left(keys, value)
        return codes[at:] if op in ("$gt", "$gte") else codes[:at]

    def _ranked(self, kind: type) -> tuple[list[Any], npt.NDArray[np.int32]]:
        """The keys of a type, ascending, and their codes."""
        if kind not in self._ranks:
            ranked: list[Any] = sorted(key for key in self._keys if type(key) is kind)
            self._ranks[kind] = ranked, np.array([self._code_of[key] for key in ranked], dtype=np.int32)
        return self._ranks[kind]

    def _folded_keys(self) -> list[str | None]:
        """The keys without case, by code; None for those that are no strings. Each is folded once."""
        for key in self._keys[len(self._folded) :]:
            if not isinstance(key, str):
                self._folded.append(None)
                continue
            text = key.casefold()
            if text != key:
                self._folded_bytes += sys.getsizeof(text)
            self._folded.append(key if text == key else text)  # equal ones are no second copy
        return self._folded

    def _contains(self, value: Scalar) -> Mask:
        """The mask of lists that hold a value, and of strings that contain a string."""
        mask = np.zeros(self.n, dtype=np.bool_)
        if type(value) in (int, float):
            compare, bound = _as_float("$eq", value)  # type: ignore[arg-type]
            mask[self._listed.slots[self._listed.in_list & compare(self._listed.numbers, bound)]] = True
            mask[[wide.slot for wide in self._wide if wide.where == _LISTED and wide.value == value]] = True
            return mask
        code = self._code_of.get(key_of(value), NONE)
        if code != NONE:
            mask[self._listed.slots[self._listed.in_list & (self._listed.codes == code)]] = True
        if isinstance(value, str):
            table = np.zeros(len(self._keys) + 1, dtype=np.bool_)  # the last entry is for NONE
            table[[code for code, key in enumerate(self._keys) if isinstance(key, str) and value in key]] = True
            mask |= table[self._codes]
            mask[self._listed.slots[~self._listed.in_list & table[self._listed.codes]]] = True
        return mask


def sort_key(value: Scalar) -> tuple[int, Any]:
    """The place of a value in the order of a scan: by type, then by value."""
    kind = type(value)
    return _RANK[float if kind is int else kind], 0 if value is None else key_of(value)


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

    def get(
        self, paths: Sequence[str], arena: MetadataArena, rows: int, list_paths: Collection[str] = ()
    ) -> dict[str, Column]:
        """The columns of paths, brought up to date for `rows` slots; those of `list_paths` with whole lists."""
        found = {}
        for path in paths:
            # A column that a failure leaves half read must not stay.
            column = self._columns.pop(path, None) or Column(path)
            touched = sorted(slot for slot in self._touched.pop(path, ()) if slot < column.n)
            if touched:
                column.update(arena, np.array(touched, dtype=np.int64))
            if column.n < rows:
                column.extend(arena, rows)
            if path in list_paths:
                column.keep_lists(arena)
            found[path] = self._columns[path] = column
        return found


def _whole_lists(metadata: Any, steps: Path) -> Iterator[tuple[int, list[Any]]]:
    """The lists to which a path leads, each with its size, and those that are items of them, each with -1."""
    for value in reached(metadata, steps):
        if isinstance(value, list):
            yield len(value), value
            for item in value:
                if isinstance(item, list):
                    yield -1, item


def _grown(array: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """A copy with room at the end."""
    grown = np.empty(size, dtype=array.dtype)
    grown[: len(array)] = array
    return grown


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
