"""Parsing of filters: from a dict to a checked tree.

A filter is a dict as in MongoDB. Several fields are ANDed. A field's condition is a scalar or a list that the field
must equal, or a dict of operators. A field is a path (`path`), or one of the row itself: ``$id``, ``$timestamp``.
Anything else is refused, and the error names the operator and the path: a misunderstood filter would return wrong rows.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence, Set as AbstractSet
from dataclasses import field
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Any, Final, NoReturn
from uuid import UUID

import cbor2
import numpy as np
import numpy.typing as npt

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.metadata.path import ID, PATH_LENGTH_MAX, TIMESTAMP, check_field, parse_path
from fabstir_vectordb.metadata.values import Key, Scalar, ScalarError, key_of, list_key, plain_scalar, shown, step

__all__ = [
    "EVERYTHING",
    "FILTER_CLAUSES_MAX",
    "FILTER_DEPTH_MAX",
    "FILTER_DICTS_MAX",
    "FILTER_VALUES_MAX",
    "ID",
    "TIMESTAMP",
    "AllOf",
    "AnyOf",
    "Compare",
    "Filter",
    "Items",
    "Node",
    "Not",
    "Values",
    "check_field",
    "is_large",
    "parse_filter",
]

#: Most levels of nested filters.
FILTER_DEPTH_MAX: Final = 32
#: Most comparisons of one filter; a list of values for `$in` is one, each value for `$all` is one.
FILTER_CLAUSES_MAX: Final = 1_000
#: Most dicts of one filter, those of a field's operators included. Filters without comparisons count, too: a dict that
#: is used in several places is read as often as it can be reached, which doubles with each level.
FILTER_DICTS_MAX: Final = 10_000
#: Most values in all lists of one filter.
FILTER_VALUES_MAX: Final = 1_000_000
#: A filter with this many values, keys and dicts takes some 5 ms to parse, too long for an event loop's thread.
_LARGE_SIZE: Final = 10_000
#: Longest list of values that is sorted, so that the same values in another order give the same filter.
_SORTED_VALUES_MAX: Final = 1_000

_ORDERED: Final = ("$gt", "$gte", "$lt", "$lte")
_ONE_OF: Final = ("$in", "$nin")
_OF_TEXTS: Final = ("$contains", "$icontains", "$startsWith")
_OF_A_FIELD: Final = ("$eq", "$ne", *_ONE_OF, "$all", *_ORDERED, "$exists", *_OF_TEXTS, "$size", "$not")
_OF_FILTERS: Final = ("$and", "$or", "$not")
#: The operators of a row's own fields, `$ne` and `$nin` as `$eq` and `$in`.
_OF_ROWS: Final = {
    ID: ("$eq", "$in", *_ORDERED, "$exists", *_OF_TEXTS),
    TIMESTAMP: ("$eq", "$in", *_ORDERED, "$exists"),
}
_ORDER: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
#: The first and the last moment of a timestamp, microseconds since 1970.
_FIRST_US: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST_US: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
#: Types whose values are plain scalars already, apart from the checks in `_Group`.
_PLAIN: Final = frozenset([type(None), bool, int, float, str, date, UUID])
#: Most types in a list of values for which `_Group` makes one pass for each type.
_KINDS_MAX: Final = 16
_INT64_END: Final = 2**63
_KEY_BYTES_MAX: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """The values of an `$in`, grouped by their form in columns.

    Attributes:
        numbers: distinct numbers, ascending, including integers that float64 represents exactly.
        wide: integers that float64 cannot represent exactly.
        keys: all other values.
    """

    numbers: npt.NDArray[np.float64]
    wide: frozenset[int]
    keys: dict[Key, None]

    def __len__(self) -> int:
        return len(self.numbers) + len(self.wide) + len(self.keys)

    def __repr__(self) -> str:
        return f"<{len(self)} values>"


@dataclass(frozen=True, slots=True)
class Items:
    """A whole list to which a field is compared; `key` as `values.list_key` gives it."""

    key: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Compare:
    """One comparison of a field.

    Attributes:
        path: the field, as written in the filter.
        op: ``$eq``, ``$in``, ``$gt``, ``$gte``, ``$lt``, ``$lte``, ``$exists``, ``$contains``, ``$icontains`` (its
            value case-folded), ``$startsWith`` or ``$size``.
        value: the values for ``$in``, a bool for ``$exists``, a number of items for ``$size``, else a scalar, or Items
            for ``$eq``. Moments for ``$timestamp`` are integers, microseconds since 1970.
    """

    path: str
    op: str
    value: Scalar | Values | Items


@dataclass(frozen=True, slots=True)
class AllOf:
    """True for rows for which all parts are true; without parts, for every row."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """True for rows for which at least one part is true."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """True for rows for which its part is false."""

    part: Node


Node = Compare | AllOf | AnyOf | Not


@dataclass(frozen=True, slots=True)
class Filter:
    """A checked filter.

    Attributes:
        node: the tree of the filter.
        key: canonical text of the tree. Values of different types have different keys: True, 1 and 1.0.
        paths: the fields of the filter.
        list_paths: those that are compared as whole lists.
    """

    node: Node = field(compare=False, repr=False)
    key: str
    paths: tuple[str, ...]
    list_paths: frozenset[str] = frozenset()

    @property
    def needs_metadata(self) -> bool:
        """Whether the filter reads metadata, not the fields of the rows themselves alone."""
        return any(path not in _OF_ROWS for path in self.paths)

    @property
    def is_empty(self) -> bool:
        """Whether the filter matches every row whatever it holds, as ``{}`` does; docs/filters.md says which do."""
        return not self.paths or _constant(self.node) is True


def parse_filter(filter: object) -> Filter:
    """Parses and checks a filter.

    Args:
        filter: a dict of fields and of ``$and``, ``$or``, ``$not``.

    Raises:
        InvalidInputError: the filter is not understood; details has ``path`` and ``operator``.
    """
    parser = _Parser()
    node = parser.filter(filter, "", 0)
    return Filter(node, _key(node), tuple(sorted(parser.paths)), frozenset(parser.list_paths))


def is_large(filter: object) -> bool:
    """Whether a filter should be parsed in a worker thread: it has 10,000 or more values, keys and dicts.

    Every visit counts, so a filter that holds itself is large after as many.
    """
    pending, size = [filter], 0
    while pending and size < _LARGE_SIZE:
        one = pending.pop()
        if isinstance(one, Mapping):
            size += 1 + len(one)
            pending.extend(islice(one.values(), max(_LARGE_SIZE - size, 0)))
        elif isinstance(one, np.ndarray):
            size += one.size
        elif isinstance(one, (Sequence, AbstractSet)) and not isinstance(one, (str, bytes, bytearray, memoryview)):
            size += len(one)
            pending.extend(item for item in islice(one, max(_LARGE_SIZE - size, 0)) if isinstance(item, Mapping))
    return size >= _LARGE_SIZE


def _constant(node: Node) -> bool | None:
    """The result of a filter if it is the same for every row; None if it depends on the row."""
    if isinstance(node, Compare):
        if node.path in _OF_ROWS and node.op == "$exists":
            return bool(node.value)
        if node.path == ID and node.value == "":
            # Every id begins with the empty text, has it and comes after it, and none is empty.
            return node.op in (*_OF_TEXTS, "$gt", "$gte")
        if node.path == TIMESTAMP and node.op in _ORDER:
            # An order that the first and the last moment have alike is that of all between.
            first, last = (_ORDER[node.op](moment, node.value) for moment in (_FIRST_US, _LAST_US))
            return first if first == last else None
        return False if isinstance(node.value, Values) and not node.value else None
    if isinstance(node, Not):
        inner = _constant(node.part)
        return None if inner is None else not inner
    decides = isinstance(node, AnyOf)  # one true part decides an OR, one false part an AND
    parts = [_constant(part) for part in node.parts]
    if decides in parts:
        return decides
    return None if None in parts else not decides


def _key(node: Node) -> str:
    """The canonical text of a tree: its CBOR, or a hash of it if it is long, as with many values."""
    raw: bytes = cbor2.dumps(_document(node))
    # The two forms cannot be equal: a CBOR list does not begin with a hexadecimal digit.
    return raw.decode("latin-1") if len(raw) <= _KEY_BYTES_MAX else hashlib.blake2b(raw, digest_size=32).hexdigest()


def _document(node: Node) -> list[Any]:
    if isinstance(node, Compare):
        value: Any = node.value
        if isinstance(value, Values):
            wide: Iterable[int] = value.wide
            wide = sorted(wide) if len(value.wide) <= _SORTED_VALUES_MAX else wide
            value = [value.numbers.tobytes(), list(wide), list(value.keys)]
        elif isinstance(value, Items):
            value = value.key  # bytes, which no scalar is
        # A path may hold a lone surrogate, which CBOR's text cannot.
        return [node.path.encode("utf-8", "surrogatepass"), node.op, value]
    if isinstance(node, Not):
        return ["not", _document(node.part)]
    return ["and" if isinstance(node, AllOf) else "or", *map(_document, node.parts)]


#: The filter that matches every row.
EVERYTHING: Final = Filter(AllOf(()), _key(AllOf(())), ())


class _Parser:
    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.list_paths: set[str] = set()
        self._clauses = 0
        self._values = 0
        self._dicts = 0

    def _enter(self, where: str, depth: int) -> None:
        """Counts one dict."""
        if depth > FILTER_DEPTH_MAX:
            _refuse(f"is nested more than {FILTER_DEPTH_MAX} levels deep", where, limit=FILTER_DEPTH_MAX)
        self._dicts += 1
        if self._dicts > FILTER_DICTS_MAX:
            _refuse(f"makes more than {FILTER_DICTS_MAX:,} dicts (FILTER_DICTS_MAX)", where, limit=FILTER_DICTS_MAX)

    def filter(self, given: object, where: str, depth: int) -> Node:
        if type(given) is not dict and not isinstance(given, Mapping):  # the first check is the faster one
            _refuse(f"must be a dict of fields, got {type(given).__name__}", where)
        self._enter(where, depth)
        return _all_of([self._entry(key, value, where, depth) for key, value in given.items()])

    def _entry(self, key: object, value: object, where: str, depth: int) -> Node:
        if not isinstance(key, str):
            _refuse(f"has a key of type {type(key).__name__}: fields must be strings", where)
        key = str.__str__(key)
        if not key.startswith("$") or key in _OF_ROWS:
            return self._field(key, value, depth)
        if key == "$not":
            return Not(self.filter(value, _at(where, key), depth + 1))
        if key not in _OF_FILTERS:
            known = ", ".join((*_OF_FILTERS, *_OF_ROWS))
            hint = (
                "; it belongs to a field"
                if key in _OF_A_FIELD
                else f"; to name a field, quote it, as in {shown(step(key[:PATH_LENGTH_MAX]))}"
            )
            _refuse(f"has the operator {shown(key[:PATH_LENGTH_MAX])} where only {known} are allowed{hint}", where, key)
        if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence) or not value:
            _refuse(f"needs a list of at least one filter after {key}", where, key)
        parts = tuple(self.filter(part, f"{_at(where, key)}[{i}]", depth + 1) for i, part in enumerate(value))
        return AllOf(parts) if key == "$and" else AnyOf(parts)

    def _field(self, path: str, condition: object, depth: int) -> Node:
        if path not in _OF_ROWS:
            try:
                parse_path(path)
            except InvalidInputError as error:
                details = {**error.details, "operator": None}
                raise InvalidInputError(f"filter: {error.message}", details=details) from None
        if type(condition) in _PLAIN or not isinstance(condition, Mapping):
            return self._compare(path, "$eq", condition)
        return self._conditions(path, condition, depth + 1)

    def _conditions(self, path: str, condition: Mapping[Any, Any], depth: int) -> Node:
        if len(condition) == 0:
            _refuse("has an empty dict as its condition: give a value or an operator", path)
        self._enter(path, depth)
        parts: list[Node] = []
        for op, value in condition.items():
            if not isinstance(op, str) or op not in _OF_A_FIELD:
                if isinstance(op, str) and op.startswith("$"):
                    _refuse(
                        f"has the unknown operator {shown(op[:PATH_LENGTH_MAX])}: use one of {', '.join(_OF_A_FIELD)}",
                        path,
                        op,
                    )
                field = f"{path}.{step(op[:PATH_LENGTH_MAX])}" if isinstance(op, str) else path
                _refuse(f"is compared with a dict: compare its fields, as in {_printable(field)}", path)
            op = str.__str__(op)
            if op == "$not":
                if not isinstance(value, Mapping):
                    _refuse("needs a dict of operators after $not", path, op)
                parts.append(Not(self._conditions(path, value, depth + 1)))
            elif op == "$all":
                parts.append(self._all(path, value))
            elif op in ("$ne", "$nin"):
                parts.append(Not(self._compare(path, "$eq" if op == "$ne" else "$in", value, op)))
            else:
                parts.append(self._compare(path, op, value))
        return _all_of(parts)

    def _all(self, path: str, given: object) -> Node:
        """Every value, as `$eq` takes it; as in MongoDB, no row has all of none."""
        values = self._list(path, "$all", given)
        parts = [self._compare(path, "$eq", value, "$all") for value in values]
        return _all_of(parts) if parts else self._compare(path, "$in", ())

    def _compare(self, path: str, op: str, value: object, said: str | None = None) -> Compare:
        said = said or op
        if path in _OF_ROWS and op not in _OF_ROWS[path]:
            _refuse(f"has the operator {said}: use one of {', '.join(_OF_ROWS[path])}, $ne, $nin or $not", path, said)
        self.paths.add(path)
        self._clauses += 1
        if self._clauses > FILTER_CLAUSES_MAX:
            _refuse(f"makes more than {FILTER_CLAUSES_MAX} comparisons", path, said, limit=FILTER_CLAUSES_MAX)
        if op == "$in":
            return Compare(path, op, self._in(path, said, value))
        if op == "$size":
            return self._size(path, value)
        if op == "$eq" and isinstance(value, (list, tuple)) and path not in _OF_ROWS:
            items = [_scalar(path, said, item) for item in self._list(path, said, value)]
            key = list_key(items)
            assert key is not None
            self.list_paths.add(path)
            return Compare(path, op, Items(key))
        if op == "$exists":
            if not isinstance(value, (bool, np.bool_)):
                _refuse(f"needs True or False after $exists, got {shown(value)}", path, said)
            return Compare(path, op, bool(value))
        scalar = self._scalar(path, said, value)
        if op in ("$icontains", "$startsWith"):
            if not isinstance(scalar, str):
                _refuse(f"has {shown(scalar)} after {op}: it takes a string", path, said)
            return Compare(path, op, scalar.casefold() if op == "$icontains" else scalar)
        if op in _ORDERED and (scalar is None or isinstance(scalar, (bool, UUID))):
            _refuse(
                f"has {shown(scalar)} after {op}: only numbers, strings, dates and datetimes have an order", path, said
            )
        return Compare(path, op, scalar)

    def _size(self, path: str, value: object) -> Compare:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            _refuse(f"needs a number of items after $size, got {shown(value)}", path, "$size")
        self.list_paths.add(path)
        return Compare(path, "$size", int(value))

    def _scalar(self, path: str, said: str, value: object) -> Scalar:
        if path == TIMESTAMP:
            return _microseconds(said, value)
        scalar = _scalar(path, said, value)
        if path == ID and not isinstance(scalar, str):
            _refuse(f"is compared with {shown(scalar)} after {said}: an id is a string", path, said)
        return scalar

    def _in(self, path: str, said: str, given: object) -> Values:
        items = self._list(path, said, given)
        if path in _OF_ROWS:
            items = [self._scalar(path, said, item) for item in items]
        return _Group(path, said).of(items)

    def _list(self, path: str, said: str, given: object) -> list[Any]:
        """The values of a list, as Python values where it is an array."""
        if isinstance(given, np.ndarray):
            if given.ndim != 1:
                _refuse(f"needs a list of values after {said}, got an array of {given.ndim} dimensions", path, said)
            if isinstance(given, np.ma.MaskedArray):  # masked values would become None
                _refuse(f"needs a list of values after {said}, got a masked array: use its compressed()", path, said)
        elif isinstance(given, (str, bytes, bytearray, memoryview)) or not isinstance(given, (Sequence, AbstractSet)):
            _refuse(f"needs a list of values after {said}, got {shown(type(given).__name__)}", path, said)
        self._values += len(given)
        if self._values > FILTER_VALUES_MAX:
            _refuse(
                f"makes the filter exceed {FILTER_VALUES_MAX:,} values in all of its lists (FILTER_VALUES_MAX)",
                path,
                said,
                limit=FILTER_VALUES_MAX,
            )
        # Arrays of bools, numbers, strings and objects: their `tolist` returns Python values.
        is_plain = isinstance(given, np.ndarray) and given.dtype.kind in "biufUO"
        return given.tolist() if is_plain else list(given)  # type: ignore[union-attr]


class _Group:
    """Groups the values of a list by their form in columns, with one pass in C for each type."""

    def __init__(self, path: str, said: str) -> None:
        self._path, self._said = path, said
        self._numbers: list[npt.NDArray[np.float64]] = [np.empty(0)]
        self._wide: set[int] = set()
        self._keys: dict[Key, None] = {}

    def of(self, items: list[Any]) -> Values:
        kinds = set(map(type, items))
        if len(kinds) > _KINDS_MAX:
            items = [self._plain(item) for item in items]
            kinds = set(map(type, items))
        for kind in kinds:
            self._take(kind, items if len(kinds) == 1 else [item for item in items if type(item) is kind])
        keys = self._keys
        if len(keys) <= _SORTED_VALUES_MAX:
            keys = dict.fromkeys(sorted(keys, key=lambda key: (type(key).__name__, str(key))))
        return Values(np.unique(np.concatenate(self._numbers)), frozenset(self._wide), keys)

    def _plain(self, item: object) -> Scalar:
        return _scalar(self._path, self._said, item)

    def _take(self, kind: type, items: list[Any]) -> None:
        if kind is float:
            self._take_floats(items)
        elif kind is int:
            self._take_ints(items)
        elif kind is str:
            if not all(map(str.isascii, items)):
                for item in items:
                    self._plain(item)  # refuses a lone surrogate
            self._keys.update(dict.fromkeys(items))
        elif kind in _PLAIN:
            self._keys.update(dict.fromkeys(items))
        elif issubclass(kind, np.generic) and (convert := _NUMPY.get(np.dtype(kind).char)) is not None:
            self._take(convert, list(map(convert, items)))
        else:
            plain = [self._plain(item) for item in items]
            for of_kind in set(map(type, plain)):
                some = [item for item in plain if type(item) is of_kind]
                if of_kind is datetime:
                    self._keys.update(dict.fromkeys(map(key_of, some)))
                else:
                    self._take(of_kind, some)

    def _take_floats(self, items: list[float]) -> None:
        if not all(map(math.isfinite, items)):
            for item in items:
                self._plain(item)
        self._numbers.append(np.array(items, dtype=np.float64))

    def _take_ints(self, items: list[int]) -> None:
        try:
            integers = np.array(items, dtype=np.int64)
        except OverflowError:
            self._take_ints([item for item in items if -_INT64_END <= item < _INT64_END])
            self._take_large_ints([item for item in items if not -_INT64_END <= item < _INT64_END])
            return
        numbers = integers.astype(np.float64)
        exact = numbers < _INT64_END  # larger numbers cannot be converted back to int64
        exact[exact] = numbers[exact].astype(np.int64) == integers[exact]
        self._numbers.append(numbers[exact])
        self._wide.update(integers[~exact].tolist())

    def _take_large_ints(self, items: list[int]) -> None:
        floats = []
        for item in items:
            try:
                number = float(item)
            except OverflowError:
                continue  # beyond what metadata can hold, so no row matches
            if number == item:
                floats.append(number)
            else:
                self._wide.add(item)
        self._numbers.append(np.array(floats, dtype=np.float64))


#: Plain type of a numpy scalar by its type code. Values of other types (long double) are converted one by one.
_NUMPY: Final[dict[str, type]] = {
    "?": bool,
    **dict.fromkeys("bBhHiIlLqQ", int),
    **dict.fromkeys("efd", float),
}


def _all_of(parts: Sequence[Node]) -> Node:
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def _scalar(path: str, op: str, value: object) -> Scalar:
    try:
        return plain_scalar(value)
    except ScalarError as error:
        hint = " (for lists: $in, $all, $contains)" if isinstance(value, (list, tuple)) else ""
        allowed = "None, bool, number, str, date, datetime or UUID"
        _refuse(f"has {error.reason} after {op}: use {allowed}{hint}", path, op)


def _microseconds(said: str, value: object) -> int:
    """A timestamp as it is stored: microseconds since 1970."""
    scalar = _scalar(TIMESTAMP, said, value)
    if isinstance(scalar, datetime):
        return (scalar - _EPOCH) // _MICROSECOND
    if isinstance(scalar, bool) or not isinstance(scalar, (int, float)):
        _refuse(f"is compared with {shown(scalar)} after {said}: use seconds since 1970 or a datetime", TIMESTAMP, said)
    if not _FIRST_US <= scalar * 1_000_000 <= _LAST_US:
        _refuse(
            f"is compared with {shown(scalar)} after {said}: use seconds since 1970, in the years 1 to 9999 "
            "(milliseconds are divided first)",
            TIMESTAMP,
            said,
        )
    return scalar * 1_000_000 if isinstance(scalar, int) else round(scalar * 1e6)


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _refuse(reason: str, path: str, operator: str | None = None, **details: Any) -> NoReturn:
    path = _printable(path)
    operator = None if operator is None else _printable(operator)
    raise InvalidInputError(
        f"filter: {path or 'the top level'} {reason}", details={"path": path, "operator": operator, **details}
    )


def _printable(path: str) -> str:
    # A key may hold a lone surrogate or a line end, which must not reach a log.
    path = path[:200]
    return (path if path.isprintable() else ascii(path)[1:-1])[:200]
