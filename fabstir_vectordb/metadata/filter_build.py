"""Filters written as expressions: ``(F("year") >= 2020) & ~F("tags").contains("draft")``.

An expression is a mapping, the dict that it stands for. So it is accepted wherever a filter is, and `filter_parse`
makes the same tree of it. Values are checked there, when the filter is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from typing import Any, Final, NoReturn, TypeAlias
from uuid import UUID

import numpy as np

from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.metadata.filter_parse import ID, TIMESTAMP
from fabstir_vectordb.metadata.path import check_field
from fabstir_vectordb.metadata.values import step

__all__ = ["F", "FilterValue", "Where", "plain"]

#: A single value that a filter compares with.
FilterValue: TypeAlias = bool | int | float | str | date | datetime | UUID | np.generic | None


class Where(Mapping[str, Any]):
    """A filter that was built with `F`; combine filters with ``&``, ``|`` and ``~``.

    It is the mapping that it stands for: ``dict(F("year") >= 2020)`` is ``{"year": {"$gte": 2020}}``. ``and``, ``or``,
    ``not`` and chained comparisons would lose a part of it, and raise InvalidInputError.

    Args:
        entries: the filter as a dict.
    """

    __slots__ = ("_entries", "_plain")

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = dict(entries)
        self._plain: Final = {key: plain(value) for key, value in self._entries.items()}

    def __getitem__(self, key: str) -> Any:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __and__(self, other: Mapping[str, Any]) -> Where:
        return _combined("$and", self, other)

    def __rand__(self, other: Mapping[str, Any]) -> Where:
        return _combined("$and", other, self)

    def __or__(self, other: Mapping[str, Any]) -> Where:
        return _combined("$or", self, other)

    def __ror__(self, other: Mapping[str, Any]) -> Where:
        return _combined("$or", other, self)

    def __invert__(self) -> Where:
        return Where({"$not": self})

    def __bool__(self) -> NoReturn:
        raise InvalidInputError(
            "a filter is neither true nor false before it meets a row: combine filters with & | ~ and brackets, not "
            "with and, or, not or chained comparisons"
        )

    def __repr__(self) -> str:
        return f"Where({self._entries!r})"


def plain(filter: Any) -> Any:
    """A filter without the Where that are in it; a caller's own lists and dicts stay, and are not looked into."""
    if isinstance(filter, Where):
        return filter._plain
    # `_combined` makes tuples.
    return tuple(map(plain, filter)) if type(filter) is tuple else filter


def _combined(operator: str, one: object, other: object) -> Where:
    """Both filters under one operator; a filter that has this operator already gives its parts."""
    parts: list[Any] = []
    for part in (one, other):
        if not isinstance(part, Mapping):
            hint = "; a comparison needs brackets beside & and |" if isinstance(part, (bool, int, str)) else ""
            raise InvalidInputError(f"a filter cannot be combined with {type(part).__name__}{hint}")
        # Else a sum of many filters would be nested as deep as it is long.
        parts.extend(part[operator] if isinstance(part, Where) and list(part) == [operator] else [part])
    return Where({operator: tuple(parts)})


class F:
    """A field of metadata in a filter: ``F("year") >= 2020``, ``F("tags").contains("draft")``.

    Comparisons give a `Where`, which every verb takes in place of a dict. ``F("versions")["1.0"]`` steps into
    a dict, and quotes a key that needs quotes.

    Attributes:
        id, timestamp: the id and the timestamp of the row itself.

    Args:
        path: a path, its steps joined by dots, as in a dict; ``$id`` or ``$timestamp``.

    Raises:
        InvalidInputError: `path` is no path.

    Example:
        >>> (F("year") >= 2020) & ~F("tags").contains("draft")
        Where({'$and': (Where({'year': {'$gte': 2020}}), Where({'$not': Where({'tags': {'$contains': 'draft'}})}))})
    """

    __slots__ = ("_path",)

    id: F
    timestamp: F

    def __init__(self, path: str) -> None:
        if isinstance(path, str) and path.startswith("$") and path not in (ID, TIMESTAMP):
            raise InvalidInputError(
                f"a field is no operator: to name a key, quote it, as in F({step(path[:200])!r})",
                details={"path": path[:200]},
            )
        self._path: Final = check_field(path)

    def __getitem__(self, key: str) -> F:
        if not isinstance(key, str):
            raise InvalidInputError(f"a key must be a string, got {type(key).__name__}: lists have no places here")
        if self._path in (ID, TIMESTAMP):
            raise InvalidInputError(f"{self._path} has no keys")
        return F(f"{self._path}.{step(key)}")

    # Without this Python would iterate by calling `__getitem__` with 0, 1, ….
    __iter__ = None

    def __eq__(self, value: FilterValue | list[Any] | tuple[Any, ...]) -> Where:  # type: ignore[override]
        return self._is("$eq", value)

    def __ne__(self, value: FilterValue | list[Any] | tuple[Any, ...]) -> Where:  # type: ignore[override]
        return self._is("$ne", value)

    # Two fields are never equal, but give a filter, so that a field must not be a key of a dict.
    __hash__ = None  # type: ignore[assignment]

    def __lt__(self, value: FilterValue) -> Where:
        return self._is("$lt", value)

    def __le__(self, value: FilterValue) -> Where:
        return self._is("$lte", value)

    def __gt__(self, value: FilterValue) -> Where:
        return self._is("$gt", value)

    def __ge__(self, value: FilterValue) -> Where:
        return self._is("$gte", value)

    def __bool__(self) -> NoReturn:
        raise InvalidInputError(f"a field is no filter yet: compare it, as in {self!r}.exists()")

    def __repr__(self) -> str:
        return f"F({self._path!r})"

    def is_in(self, values: Iterable[FilterValue]) -> Where:
        """Matches where the field, or a value of its list, is one of some values.

        Args:
            values: the values, at most 1,000,000.

        Returns:
            The filter.
        """
        return self._is("$in", _listed(values))

    def not_in(self, values: Iterable[FilterValue]) -> Where:
        """Matches where the field, and each value of its list, is none of some values, and where there is no field.

        Args:
            values: the values, at most 1,000,000.

        Returns:
            The filter.
        """
        return self._is("$nin", _listed(values))

    def has_all(self, values: Iterable[FilterValue]) -> Where:
        """Matches where the field's list has each of some values; nothing matches without values.

        Args:
            values: the values, at most 1,000.

        Returns:
            The filter.
        """
        return self._is("$all", _listed(values))

    def contains(self, value: FilterValue) -> Where:
        """Matches where the field's list has a value, or its string contains it.

        Args:
            value: the value.

        Returns:
            The filter.
        """
        return self._is("$contains", value)

    def icontains(self, text: str) -> Where:
        """Matches where the field's string, or a string of its list, contains a text in upper or lower case.

        Args:
            text: the text.

        Returns:
            The filter.
        """
        return self._is("$icontains", text)

    def starts_with(self, text: str) -> Where:
        """Matches where the field's string, or a string of its list, begins with a text.

        Args:
            text: the text.

        Returns:
            The filter.
        """
        return self._is("$startsWith", text)

    def size(self, items: int) -> Where:
        """Matches where the field is a list of so many items.

        Args:
            items: 0 or more.

        Returns:
            The filter.
        """
        return self._is("$size", items)

    def between(self, first: FilterValue, last: FilterValue) -> Where:
        """Matches where the field lies between two values; in a list, two values of it may do so.

        Args:
            first, last: the bounds; both match.

        Returns:
            The filter.
        """
        return Where({self._path: {"$gte": first, "$lte": last}})

    def exists(self, there: bool = True) -> Where:
        """Matches where there is the field, null included.

        Args:
            there: False matches where there is no field.

        Returns:
            The filter.
        """
        return self._is("$exists", there)

    def _is(self, operator: str, value: Any) -> Where:
        if isinstance(value, F):
            raise InvalidInputError(f"{self!r} can be compared with a value, not with the field {value!r}")
        return Where({self._path: {operator: value}})


F.id = F(ID)
F.timestamp = F(TIMESTAMP)


def _listed(values: Iterable[FilterValue]) -> Any:
    """Values that can be read again and again; strings and other types stay, and are refused where a list is."""
    return list(values) if isinstance(values, Iterator) else values
