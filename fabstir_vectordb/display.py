"""Forms of results for JSON, notebooks and single lines.

Values may come from rows of untrusted users: HTML is escaped, and long texts are cut.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence, Set as AbstractSet
from dataclasses import fields
from datetime import date
from typing import Any, Final, TypeVar
from uuid import UUID

import numpy as np

__all__ = ["Record", "RecordList", "html_record", "html_table", "json_ready", "json_text", "short"]

_R = TypeVar("_R", bound="Record")

#: Rows that a table in a notebook shows.
_ROWS_SHOWN_MAX: Final = 50
_CELL_CHARS_MAX: Final = 300
_SHORT_CHARS_MAX: Final = 200


def json_ready(value: Any) -> Any:
    """A value in a form for `json.dumps`.

    Dates and datetimes become ISO 8601 strings, UUIDs their text, arrays lists, results dicts; a number that is not
    finite becomes None, as JSON has none.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.generic):
        return json_ready(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value
    if isinstance(value, date):  # datetimes are dates
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype.kind in "biu" else json_ready(value.tolist())
    if callable(to_dict := getattr(value, "to_dict", None)):
        return to_dict()
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (Sequence, AbstractSet)) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [json_ready(item) for item in value]
    return str(value)


def json_text(value: Any) -> str:
    """A value's JSON, for people to read."""
    return json.dumps(json_ready(value), ensure_ascii=False)


def short(value: object) -> str:
    """The `repr` of a value, cut to 200 characters."""
    text = repr(value)
    return text if len(text) <= _SHORT_CHARS_MAX else text[: _SHORT_CHARS_MAX - 1] + "…"


class Record:
    """Base of results that are dataclasses."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON: arrays as lists, dates as ISO strings, UUIDs as text."""
        return {field.name: json_ready(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]

    def _repr_html_(self) -> str:
        return html_record(type(self).__name__, self.to_dict())


class RecordList(list[_R]):
    """A list of results of one kind, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        if not self:
            return "<p>none</p>"
        columns = [field.name for field in fields(self[0])]  # type: ignore[arg-type]
        rows = ([json_ready(getattr(record, column)) for column in columns] for record in self)
        return html_table(f"{len(self)} × {type(self[0]).__name__}", columns, rows, len(self))


def html_record(title: str, values: Mapping[str, Any]) -> str:
    """A table with a line for each field; a list of dicts is a table of its own."""
    lines = "".join(
        f"<tr><th style='text-align:left'>{_escaped(name)}</th><td>{_cell(value)}</td></tr>"
        for name, value in values.items()
    )
    return f"<table><caption>{_escaped(title)}</caption>{lines}</table>"


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], total: int) -> str:
    """A table of the first rows, saying how many more there are."""
    head = "".join(f"<th style='text-align:left'>{_escaped(column)}</th>" for column in columns)
    lines = []
    for row, _ in zip(rows, range(_ROWS_SHOWN_MAX), strict=False):
        lines.append("<tr>" + "".join(f"<td style='text-align:left'>{_cell(value)}</td>" for value in row) + "</tr>")
    more = f"<p>… and {total - _ROWS_SHOWN_MAX} more</p>" if total > _ROWS_SHOWN_MAX else ""
    return f"<table><caption>{_escaped(caption)}</caption><tr>{head}</tr>{''.join(lines)}</table>{more}"


def _cell(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        columns = list(value[0])
        return html_table("", columns, ([item.get(column) for column in columns] for item in value), len(value))
    if isinstance(value, list) and len(value) > 8 and all(isinstance(item, (int, float)) for item in value):
        return _escaped(f"{len(value)} numbers")
    if isinstance(value, float):
        return f"{value:.6g}"
    return _escaped(value if isinstance(value, str) else "" if value is None else json_text(value))


def _escaped(text: str) -> str:
    return html.escape(text if len(text) <= _CELL_CHARS_MAX else text[: _CELL_CHARS_MAX - 1] + "…")
