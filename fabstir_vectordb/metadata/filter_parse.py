"""A filter as people write it, checked and as a tree.

A filter is a dict in the manner of MongoDB: fields beside each other are ANDed, a field's value is either a scalar
that it must equal or a dict of operators. A dot steps into a dict, and into every dict of a list. What is not
understood is refused, naming the operator and the path: a filter that means something else than its author thinks
returns wrong rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np

from fabstir_vectordb.errors import InvalidInputError

__all__ = [
    "EVERYTHING",
    "FILTER_CLAUSES_MAX",
    "FILTER_DEPTH_MAX",
    "AllOf",
    "AnyOf",
    "Compare",
    "Filter",
    "Node",
    "Not",
    "Scalar",
    "check_field",
    "parse_filter",
]

Scalar = None | bool | int | float | str

#: Filters within each other.
FILTER_DEPTH_MAX: Final = 32
#: Comparisons of one filter; a list of values for `$in` is one.
FILTER_CLAUSES_MAX: Final = 1_000

_ORDERED: Final = ("$gt", "$gte", "$lt", "$lte")
_ONE_OF: Final = ("$in", "$nin")
_OF_A_FIELD: Final = ("$eq", "$ne", *_ONE_OF, *_ORDERED, "$exists", "$contains", "$not")
_OF_FILTERS: Final = ("$and", "$or", "$not")


@dataclass(frozen=True, slots=True)
class Compare:
    """One comparison of a field.

    Attributes:
        path: the field, its steps joined by dots.
        op: ``$eq``, ``$in``, ``$gt``, ``$gte``, ``$lt``, ``$lte``, ``$exists`` or ``$contains``.
        value: a tuple of scalars for ``$in``, a bool for ``$exists``, else a scalar.
    """

    path: str
    op: str
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class AllOf:
    """True where all parts are; without parts everywhere."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """True where a part is."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """True where its part is not."""

    part: Node


Node = Compare | AllOf | AnyOf | Not


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter that was understood.

    Attributes:
        node: its tree.
        key: equal for filters that say the same in the same words; True and 1 are other words.
        paths: the fields that it compares.
    """

    node: Node
    key: str
    paths: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether it compares nothing, and so takes every row or none."""
        return not self.paths


def check_field(path: object) -> str:
    """A path of a metadata field.

    Raises:
        InvalidInputError: it is no string, or a step of it is empty.
    """
    if not isinstance(path, str):
        raise InvalidInputError(f"a field must be a string, got {type(path).__name__}")
    if not all(path.split(".")):
        raise InvalidInputError(f"{path!r} is no field: a step of the path is empty", details={"path": path})
    return path


def parse_filter(filter: object) -> Filter:
    """A filter, checked.

    Args:
        filter: a dict of fields and of ``$and``, ``$or``, ``$not``.

    Raises:
        InvalidInputError: something is not understood; details has ``path`` and ``operator``.
    """
    parser = _Parser()
    node = parser.filter(filter, "", 0)
    return Filter(node, repr(node), tuple(sorted(parser.paths)))


#: The filter that takes every row.
EVERYTHING: Final = Filter(AllOf(()), repr(AllOf(())), ())


class _Parser:
    def __init__(self) -> None:
        self.paths: set[str] = set()
        self._clauses = 0

    def filter(self, given: object, where: str, depth: int) -> Node:
        if not isinstance(given, Mapping):
            _refuse(f"must be a dict of fields, got {type(given).__name__}", where)
        if depth > FILTER_DEPTH_MAX:
            _refuse(f"is nested more than {FILTER_DEPTH_MAX} deep", where, limit=FILTER_DEPTH_MAX)
        return _all_of([self._entry(key, value, where, depth) for key, value in given.items()])

    def _entry(self, key: object, value: object, where: str, depth: int) -> Node:
        if not isinstance(key, str):
            _refuse(f"has a key of type {type(key).__name__}, fields are strings", where)
        if not key.startswith("$"):
            return self._field(key, value, depth)
        if key == "$not":
            return Not(self.filter(value, _at(where, key), depth + 1))
        if key not in _OF_FILTERS:
            known = ", ".join(_OF_FILTERS)
            hint = ", it belongs to a field" if key in _OF_A_FIELD else ""
            _refuse(f"has the operator {key!r} where only {known} may stand{hint}", where, key)
        if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence) or not value:
            _refuse(f"needs a list of at least one filter after {key}", where, key)
        parts = tuple(self.filter(part, f"{_at(where, key)}[{i}]", depth + 1) for i, part in enumerate(value))
        return AllOf(parts) if key == "$and" else AnyOf(parts)

    def _field(self, path: str, condition: object, depth: int) -> Node:
        if not all(path.split(".")):
            _refuse("is no field: a step of the path is empty", path or "''")
        if not isinstance(condition, Mapping):
            return self._compare(path, "$eq", condition)
        return self._conditions(path, condition, depth + 1)

    def _conditions(self, path: str, condition: Mapping[Any, Any], depth: int) -> Node:
        if not condition:
            _refuse("has no operator: an empty dict compares with nothing", path)
        if depth > FILTER_DEPTH_MAX:
            _refuse(f"is nested more than {FILTER_DEPTH_MAX} deep", path, limit=FILTER_DEPTH_MAX)
        parts: list[Node] = []
        for op, value in condition.items():
            if op not in _OF_A_FIELD:
                if isinstance(op, str) and op.startswith("$"):
                    _refuse(f"has the operator {op!r}, there are {', '.join(_OF_A_FIELD)}", path, op)
                _refuse(f"is compared with a dict; compare its fields, as in {path}.{op}", path)
            if op == "$not":
                if not isinstance(value, Mapping):
                    _refuse("needs a dict of operators after $not", path, op)
                parts.append(Not(self._conditions(path, value, depth + 1)))
            elif op in ("$ne", "$nin"):
                parts.append(Not(self._compare(path, "$eq" if op == "$ne" else "$in", value, op)))
            else:
                parts.append(self._compare(path, op, value))
        return _all_of(parts)

    def _compare(self, path: str, op: str, value: object, said: str | None = None) -> Compare:
        said = said or op
        self.paths.add(path)
        self._clauses += 1
        if self._clauses > FILTER_CLAUSES_MAX:
            _refuse(f"makes more than {FILTER_CLAUSES_MAX} comparisons", path, said, limit=FILTER_CLAUSES_MAX)
        if op == "$in":
            if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, set, frozenset, np.ndarray)):
                _refuse(f"needs a list of values after {said}", path, said)
            items = {repr(item): item for item in (_scalar(path, said, one) for one in value)}
            return Compare(path, op, tuple(items[key] for key in sorted(items)))
        if op == "$exists":
            if not isinstance(value, (bool, np.bool_)):
                _refuse(f"needs True or False after $exists, got {value!r}", path, said)
            return Compare(path, op, bool(value))
        scalar = _scalar(path, said, value)
        if op in _ORDERED and (scalar is None or isinstance(scalar, bool)):
            _refuse(f"has {scalar!r} after {op}: only numbers and strings are ordered", path, said)
        return Compare(path, op, scalar)


def _all_of(parts: Sequence[Node]) -> Node:
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def _scalar(path: str, op: str, value: object) -> Scalar:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        _refuse(f"has {value} after {op}, which no metadata holds", path, op)
    hint = " (for lists: $in, $contains)" if isinstance(value, (list, tuple)) else ""
    _refuse(f"has a value of type {type(value).__name__} after {op}: None, bool, number or str{hint}", path, op)


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _refuse(reason: str, path: str, operator: str | None = None, **details: Any) -> NoReturn:
    # A key may hold a lone surrogate or a line end, which no log should get.
    shown = (path if path.isprintable() else ascii(path)[1:-1])[:200]
    raise InvalidInputError(
        f"filter: {shown or 'its top'} {reason}", details={"path": shown, "operator": operator, **details}
    )
