"""The values of named fields, one column a field, in a form for JavaScript."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from typing import Any, Final, Literal

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.display import json_ready, json_text
from fabstir_vectordb.metadata.path import ID, TIMESTAMP, parse_path, reached
from fabstir_vectordb.types import Row

__all__ = ["Column", "column_of"]

#: Characters of a value that a page holds.
_TEXT_CHARS_MAX: Final = 300
#: JavaScript's Number.MAX_SAFE_INTEGER. Larger integers would change there, and are texts here.
_SAFE_INTEGER_MAX: Final = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Column:
    """The values of one field.

    Attributes:
        name: the field's path.
        kind: ``number``; ``time``, seconds since 1970; or ``text``.
        values: one for each row; None where the row has none.
    """

    name: str
    kind: Literal["number", "time", "text"]
    values: list[float | str | None]


def column_of(path: str, rows: Sequence[Row]) -> Column:
    """The column of a field: of numbers or moments if all of its values are such, else of texts.

    Args:
        path: a checked path; ``$id`` and ``$timestamp`` are the row's own.
        rows: the rows.
    """
    if path == TIMESTAMP:
        return Column(path, "time", [row.timestamp for row in rows])
    if path == ID:
        return Column(path, "text", [_text(row.id) for row in rows])
    steps = parse_path(path)
    values = [_single(list(reached(row.metadata, steps))) for row in rows]
    given = [value for value in values if value is not None]
    if given and all(_is_number(value) for value in given):
        return Column(path, "number", values)
    if given and all(isinstance(value, date) for value in given):
        return Column(path, "time", [None if value is None else _seconds(value) for value in values])
    return Column(path, "text", [None if value is None else _text(value) for value in values])


def _single(values: list[Any]) -> Any:
    """The value of a row: of several, for which a path may have several readings, a list."""
    return values if len(values) > 1 else values[0] if values else None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= _SAFE_INTEGER_MAX if isinstance(value, int) else math.isfinite(value)


def _seconds(value: date) -> float:
    if not isinstance(value, datetime):
        value = datetime.combine(value, time(), UTC)
    return value.timestamp()


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ", ".join(value)
    ready = json_ready(value)
    text = ready if isinstance(ready, str) else json_text(ready)
    return text if len(text) <= _TEXT_CHARS_MAX else text[: _TEXT_CHARS_MAX - 1] + "…"
