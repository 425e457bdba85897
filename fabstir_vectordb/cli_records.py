"""Rows as lines of text: JSONL, an object a line, and CSV with a header. `cli_import` reads and writes them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from fabstir_vectordb.arrow import TableBatch, TableColumns
from fabstir_vectordb.cli_support import array_of, file_name, json_line, reading, row_record
from fabstir_vectordb.display import json_ready
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.types import Row

__all__ = ["BATCH_ROWS", "csv_lines", "json_lines", "record_batches"]

#: Rows of one add.
BATCH_ROWS: Final = 4_096
#: Most characters of a cell of CSV: the largest metadata as JSON, with each character escaped.
_CELL_CHARS_MAX: Final = 16 << 20
_CSV_COLUMNS: Final = ("id", "vector", "timestamp", "expires_at", "metadata")
#: Stands for a missing key "vector"; null means that the row has no vector.
_MISSING: Final = object()


class _Record(NamedTuple):
    id: str
    vector: Any
    metadata: Any
    timestamp: Any
    expires_at: Any


# ---- in


def record_batches(rows: Path, format: str, vectors: Path | None, columns: TableColumns) -> Iterator[TableBatch]:
    """The rows of a JSONL or CSV file in batches; only one batch is in memory at a time.

    Args:
        rows: the file.
        format: ``jsonl`` or ``csv``.
        vectors: a .npy file with the vectors in the order of the rows; None if each row has its own.
        columns: which field or column is what.

    Raises:
        InvalidInputError: a line is not a row (the message has its number), the numbers of rows and vectors differ, or
            a row has no vector.
    """
    records = (_csv_records if format == "csv" else _json_records)(rows, columns)
    array = None if vectors is None else array_of(vectors)
    if array is not None and array.ndim != 2:
        raise InvalidInputError(f"{vectors} must hold an array of shape (n, dim), got {array.shape}")
    count = 0
    while chosen := list(islice(records, BATCH_ROWS)):
        first, count = count, count + len(chosen)
        if array is not None:
            if len(array) < count:
                raise InvalidInputError(f"there are {len(array)} vectors and more than {len(array)} rows")
            yield _arguments(chosen, array[first:count])
            continue
        missing = next((record.id for record in chosen if record.vector is _MISSING), None)
        if missing is not None:
            name = columns.vector or "vector"
            raise InvalidInputError(f'row {missing!r} has no "{name}": add it, or give a file with --vectors')
        yield _arguments(chosen, [record.vector for record in chosen])
    if array is not None and len(array) != count:
        raise InvalidInputError(f"there are {len(array)} vectors and {count} rows")


def _arguments(records: list[_Record], vectors: Any) -> TableBatch:
    times = [record.timestamp for record in records]
    expiries = [record.expires_at for record in records]
    return TableBatch(
        [record.id for record in records],
        vectors,
        [record.metadata for record in records],
        times if any(time is not None for time in times) else None,
        expiries if any(time is not None for time in expiries) else None,
    )


def _json_records(path: Path, columns: TableColumns) -> Iterator[_Record]:
    with reading(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidInputError(f"{file_name(path)} line {number} is not JSON: {error}") from None
            yield _record(f"{file_name(path)} line {number}", record, columns)


def _csv_records(path: Path, columns: TableColumns) -> Iterator[_Record]:
    limit = csv.field_size_limit(_CELL_CHARS_MAX)  # of the whole process
    try:
        with reading(path) as raw:
            lines = csv.DictReader(io.TextIOWrapper(raw, "utf-8-sig", newline=""), restkey="", restval="")
            for name in (columns.vector, *(columns.metadata or ()), *_named_times(columns)):
                if name is not None and name not in (lines.fieldnames or ()):
                    raise InvalidInputError(f"{file_name(path)} has no column {name!r}")
            for record in lines:
                yield _csv_record(f"{file_name(path)} line {lines.line_num}", record, columns)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file_name(path)} line {lines.line_num + 1} is not CSV: {error}") from None
    finally:
        csv.field_size_limit(limit)


def _named_times(columns: TableColumns) -> list[str | None]:
    """The columns of times that were named; those of the default names need not be there."""
    default = TableColumns()
    return [
        *([columns.timestamp] if columns.timestamp != default.timestamp else []),
        *([columns.expires_at] if columns.expires_at != default.expires_at else []),
    ]


def _csv_record(where: str, record: dict[str, Any], columns: TableColumns) -> _Record:
    if "" in record or columns.id not in record:
        raise InvalidInputError(f"{where}: it must have the columns of the header, {columns.id} among them")
    cells: dict[str, Any] = {name: text for name, text in record.items() if text or name == columns.id}
    vector = columns.vector or "vector"
    try:
        if vector in record:
            cells[vector] = json.loads(record[vector]) if record[vector] else None
        for name in (columns.timestamp, columns.expires_at):
            if name is not None and name in cells:
                cells[name] = _number(cells[name])
        # `export` writes metadata as JSON in one column. In other files each column is a text field.
        fields = record.keys() - {columns.id, vector, columns.timestamp, columns.expires_at}
        if fields == {"metadata"} and "metadata" in cells:
            cells["metadata"] = json.loads(cells["metadata"])
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where}: {error}") from None
    return _record(where, cells, columns)


def _number(text: str) -> float | str:
    """The number that a text is; the text if it is none."""
    try:
        return float(text)
    except ValueError:
        return text


def _record(where: str, record: Any, columns: TableColumns) -> _Record:
    """The row of an object with the fields of a line."""
    if not isinstance(record, dict) or not isinstance(record.get(columns.id), str):
        raise InvalidInputError(f'{where}: must be an object with a string "{columns.id}"')
    name = columns.vector or "vector"
    vector = record.pop(name, _MISSING)
    if vector is not _MISSING and vector is not None and not _is_vector(vector):
        raise InvalidInputError(f'{where}: "{name}" must be a list of numbers, or null for no vector')
    id = record.pop(columns.id)
    times = [
        None if name is None else _moment(where, name, record.pop(name, None))
        for name in (columns.timestamp, columns.expires_at)
    ]
    if columns.metadata is not None:
        metadata: Any = {name: record[name] for name in columns.metadata if name in record} or None
    else:
        # `export` writes metadata under the key "metadata". In other files its fields stand beside the id.
        metadata = record["metadata"] if record.keys() == {"metadata"} else record or None
    return _Record(id, vector, metadata, *times)


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) in (int, float) for item in value)


def _moment(where: str, name: str, value: Any) -> Any:
    """A time: seconds since 1970, or what an ISO 8601 text says, in UTC where it names no zone."""
    if not isinstance(value, str):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise InvalidInputError(
            f'{where}: "{name}" must be seconds since 1970 or a time in ISO 8601, got {value[:80]!r}'
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


# ---- out


def json_lines(rows: Iterator[Row]) -> Iterator[str]:
    """A line for each row."""
    for row in rows:
        yield json_line(row_record(row)) + "\n"


def csv_lines(rows: Iterator[Row]) -> Iterator[str]:
    """A header and a line for each row."""
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_CSV_COLUMNS)
    yield text.getvalue()
    for row in rows:
        text.seek(0)
        text.truncate()
        vector = "" if row.vector is None else json.dumps(row.vector.tolist())
        metadata = "" if row.metadata is None else json.dumps(json_ready(row.metadata), ensure_ascii=False)
        ends = "" if row.expires_at is None else repr(row.expires_at)
        lines.writerow([row.id, vector, repr(row.timestamp), ends, metadata])
        yield text.getvalue()
