"""What metadata holds: the distinct values of a field in pages, and all fields with their types and ranges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, datetime
from operator import itemgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.metadata.columns import sort_key
from fabstir_vectordb.metadata.filter_parse import Filter
from fabstir_vectordb.metadata.path import check_metadata_field
from fabstir_vectordb.metadata.values import Scalar, shown, step

__all__ = ["FACETS_MAX", "FIELDS_MAX", "Census", "FacetQuery", "Found", "make_facet_query"]

#: Most values of one page of facets.
FACETS_MAX: Final = 1_000_000
#: Most fields that `Census` counts. More are keys that are data, such as ids of users.
FIELDS_MAX: Final = 10_000

_ORDERS: Final = ("-count", "count", "value", "-value")


# ---- The values of one field -------------------------------------------------------------------------------


class FacetQuery(NamedTuple):
    """One page of the distinct values of a field.

    Attributes:
        path: the field.
        where: the rows that count.
        order: ``-count``, ``count``, ``value`` or ``-value``.
        limit: most values; None for all.
        offset: values to leave out first.
        search: case-folded text that a value contains; None for all values.
    """

    path: str
    where: Filter
    order: str = "-count"
    limit: int | None = None
    offset: int = 0
    search: str | None = None

    def page(self, counted: Iterable[tuple[Scalar, int]]) -> list[tuple[Scalar, int]]:
        """The page of all values, each given once with its count."""
        found = list(counted)
        if self.search is not None:
            search = self.search
            found = [one for one in found if isinstance(one[0], str) and search in one[0].casefold()]
        # By value first, so that equal counts are in this order. Sorts are stable, also in reverse.
        found.sort(key=lambda one: sort_key(one[0]), reverse=self.order == "-value")
        if self.order.endswith("count"):
            found.sort(key=itemgetter(1), reverse=self.order == "-count")
        return found[self.offset : None if self.limit is None else self.offset + self.limit]


def make_facet_query(
    field: object, where: Filter, order: object, limit: object, offset: object, search: object
) -> FacetQuery:
    """A page of facets from the arguments of a verb.

    Raises:
        InvalidInputError: an argument is refused.
    """
    path = check_metadata_field(field, "facets")
    if not isinstance(order, str) or order not in _ORDERS:
        raise InvalidInputError(f"order must be one of {', '.join(_ORDERS)}, got {shown(order)}")
    if limit is not None:
        limit = _count("limit", limit, 1)
    offset = _count("offset", offset, 0)
    if search is not None and not isinstance(search, str):
        raise InvalidInputError(f"search must be a string or None, got {shown(search)}")
    return FacetQuery(path, where, str(order), limit, offset, None if search is None else search.casefold())


def _count(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= FACETS_MAX:
        raise InvalidInputError(
            f"{name} must be an integer from {least} to {FACETS_MAX:,}, got {shown(value)}",
            details={"limit": FACETS_MAX},
        )
    return value


# ---- All fields --------------------------------------------------------------------------------------------

_NAMES: Final[dict[type, str]] = {
    type(None): "null",
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    date: "date",
    datetime: "datetime",
    UUID: "uuid",
    list: "array",
    dict: "object",
}
#: The types whose values have an order.
_ORDERED: Final = frozenset(["number", "string", "date", "datetime"])


@dataclass(slots=True)
class _Type:
    rows: int = 0
    least: Any = None
    most: Any = None
    last_row: int = -1

    def add(self, row: int, value: Any, is_ordered: bool) -> None:
        if self.last_row != row:
            self.last_row = row
            self.rows += 1
        if is_ordered:
            if self.least is None or value < self.least:
                self.least = value
            if self.most is None or value > self.most:
                self.most = value


class Found(NamedTuple):
    """A field: its path, the rows that have it, and of each of its types the rows, the least and the largest value."""

    path: str
    rows: int
    types: list[tuple[str, int, Any, Any]]


class Census:
    """Counts the fields of rows."""

    def __init__(self) -> None:
        self._rows = 0
        self._fields: dict[str, dict[str, _Type]] = {}
        self._counts: dict[str, tuple[int, int]] = {}

    def add(self, metadata: Any) -> None:
        """Counts the fields of one row's metadata.

        Raises:
            InvalidInputError: there are more than FIELDS_MAX fields.
        """
        for path, value in _fields_of(metadata, ""):
            rows, last = self._counts.get(path, (0, -1))
            if last != self._rows:
                self._counts[path] = rows + 1, self._rows
            types = self._fields.get(path)
            if types is None:
                if len(self._fields) == FIELDS_MAX:
                    raise InvalidInputError(
                        f"there are more than {FIELDS_MAX:,} fields: their keys seem to be data; put it in values",
                        details={"limit": FIELDS_MAX, "path": path[:200]},
                    )
                types = self._fields[path] = {}
            for one in (value, *value) if type(value) is list else (value,):
                name = _NAMES[type(one)]
                kind = types.get(name)
                if kind is None:
                    kind = types[name] = _Type()
                kind.add(self._rows, one, name in _ORDERED)
        self._rows += 1

    def found(self) -> list[Found]:
        """The fields in the order of their paths; of each the types, the most frequent first."""
        return [
            Found(
                path,
                self._counts[path][0],
                [
                    (name, kind.rows, kind.least, kind.most)
                    for name, kind in sorted(types.items(), key=lambda item: (-item[1].rows, item[0]))
                ],
            )
            for path, types in sorted(self._fields.items())
        ]


def _fields_of(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The paths and values of all fields of a value, as filters reach them: dicts in a list are each looked into."""
    if isinstance(value, dict):
        for key, item in value.items():
            inner = f"{path}.{step(key)}" if path else step(key)
            yield inner, item
            yield from _fields_of(item, inner)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from _fields_of(item, path)
