"""What a filter holds, as a key: a filter that is given again is known by it without being parsed.

A caller can change a dict in place, so its identity says nothing. Taking what a small one holds costs a microsecond or
two, parsing it six and more, and what else stands before a search fifteen.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Any, Final
from uuid import UUID

from fabstir_vectordb.metadata.filter_build import plain

__all__ = ["CONTENT_ITEMS_MAX", "Content", "content_of"]

#: Types, keys and values of a filter; those of a dict or a list in it as a tuple in its place.
Content = tuple[Any, ...]

#: Larger filters are parsed each time. So a dict that is used in many places is not read more often than this, either.
CONTENT_ITEMS_MAX: Final = 4_000
#: A dict or a list takes as much time as so many values.
_ITEMS_OF_CONTAINER: Final = 16

#: Types that nobody can change or derive from unseen.
_SCALARS: Final = frozenset([type(None), bool, int, float, str, date, UUID])


class _NoContentError(Exception):
    pass


def content_of(filter: object) -> Content | None:
    """What a filter holds now; filters with equal content mean the same.

    Args:
        filter: as a caller gives it.

    Returns:
        The content; None for a large filter, and where there are values of other types than JSON's, dates and UUIDs.
    """
    given = plain(filter)
    if type(given) is not dict:  # a list is no filter
        return None
    try:
        return _content(given, [CONTENT_ITEMS_MAX])
    except (_NoContentError, RecursionError):
        return None


def _content(value: Any, room: list[int]) -> Content:
    """What a dict or a list holds.

    Args:
        value: the dict or list.
        room: items that there is room for, a list of one number.
    """
    keys: Iterable[Any] = ()
    values: Iterable[Any] = value
    if type(value) is dict:
        keys, values = value, value.values()
    elif type(value) is not list and type(value) is not tuple:
        raise _NoContentError
    room[0] -= _ITEMS_OF_CONTAINER + len(value)
    if room[0] < 0:
        raise _NoContentError
    kinds = list(map(type, values))
    if not _SCALARS.issuperset(kinds):
        values = [one if type(one) in _SCALARS else _content(one, room) for one in values]
    # Types come first: values that differ in type are not asked whether they are equal, as True, 1 and 1.0 are.
    return (*map(type, keys), None, *kinds, *keys, *values)
