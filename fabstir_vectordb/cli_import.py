"""The commands of the command line that bring rows in and out: `import` and `export`.

Both take JSONL, CSV, Parquet and Arrow; the suffix of the file says which, or --format.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import click

from fabstir_vectordb.arrow import TableBatch, TableColumns, batches_of, load_pyarrow
from fabstir_vectordb.cli_support import (
    STANDARD,
    Bar,
    OutputError,
    Settings,
    array_of,
    changes,
    file_name,
    load,
    note,
    open_session,
    reading,
    rows_bar,
    say,
)
from fabstir_vectordb.display import json_ready
from fabstir_vectordb.errors import InvalidInputError, VectorDBError
from fabstir_vectordb.output_file import writing
from fabstir_vectordb.sync import VectorDBSession
from fabstir_vectordb.tables import open_table, write_rows
from fabstir_vectordb.types import Row

__all__ = ["export", "import_"]

_BATCH_ROWS: Final = 4_096
_FORMATS: Final = ("jsonl", "csv", "parquet", "arrow")
_SUFFIXES: Final = {".csv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}
_CSV_COLUMNS: Final = ("id", "vector", "timestamp", "expires_at", "metadata")


class _Record(NamedTuple):
    id: str
    vector: list[float] | None
    metadata: Any
    timestamp: float | None
    expires_at: float | None


def _records(path: Path) -> Iterator[_Record]:
    """The rows of a jsonl file, one after the other.

    Raises:
        InvalidInputError: a line is not a row; the message has its number.
    """
    with reading(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidInputError(f"{file_name(path)} line {number} is not JSON: {error}") from None
            if not isinstance(record, dict) or not isinstance(record.get("id"), str):
                raise InvalidInputError(f'{file_name(path)} line {number}: must be an object with a string "id"')
            vector = record.pop("vector", _MISSING)
            if vector is not _MISSING and vector is not None and not _is_vector(vector):
                raise InvalidInputError(
                    f'{file_name(path)} line {number}: "vector" must be a list of numbers, or null for no vector'
                )
            id, times = record.pop("id"), (record.pop("timestamp", None), record.pop("expires_at", None))
            # `export` writes metadata under the key "metadata". In other files its fields stand beside the id.
            metadata = record["metadata"] if record.keys() == {"metadata"} else record or None
            yield _Record(id, vector, metadata, *times)


#: Stands for a missing key "vector"; null means that the row has no vector.
_MISSING: Final = object()


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) in (int, float) for item in value)


def _csv_records(path: Path) -> Iterator[_Record]:
    """The rows of a CSV file with a header; a vector is a JSON array in its cell.

    Raises:
        InvalidInputError: a line is not a row; the message has its number.
    """
    with reading(path) as raw:
        lines = csv.DictReader(io.TextIOWrapper(raw, "utf-8-sig", newline=""), restkey="", restval="")
        try:
            for record in lines:
                yield _csv_record(path, lines.line_num, record)
        except (csv.Error, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{file_name(path)} line {lines.line_num + 1} is not CSV: {error}") from None


def _csv_record(path: Path, number: int, record: dict[str, Any]) -> _Record:
    where = f"{file_name(path)} line {number}"
    if "" in record or "id" not in record:
        raise InvalidInputError(f"{where}: it must have the columns of the header, id among them")
    try:
        text = record.pop("vector", None)
        vector: Any = _MISSING if text is None else json.loads(text) if text else None
        times = [float(record.pop(name, "") or "nan") for name in ("timestamp", "expires_at")]
        # `export` writes metadata as JSON in one column. In other files each column is a text field.
        whole = record.pop("metadata") if record.keys() == {"id", "metadata"} else None
        metadata = json.loads(whole) if whole else {name: value for name, value in record.items() if value} or None
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where}: {error}") from None
    if vector is not _MISSING and vector is not None and not _is_vector(vector):
        raise InvalidInputError(f'{where}: "vector" must be a JSON array of numbers, or empty for no vector')
    id = record["id"]
    if metadata is not None and isinstance(metadata, dict) and not whole:
        metadata.pop("id", None)
    return _Record(id, vector, metadata or None, *(None if time != time else time for time in times))  # noqa: PLR0124


def _batches(rows: Path, vectors: Path | None, records: Iterator[_Record]) -> Iterator[TableBatch]:
    """Rows with their vectors, in batches; only one batch is in memory at a time.

    Raises:
        InvalidInputError: the numbers of rows and vectors differ, or a row has no vector.
    """
    array = None if vectors is None else array_of(vectors)
    if array is not None and array.ndim != 2:
        raise InvalidInputError(f"{vectors} must hold an array of shape (n, dim), got {array.shape}")
    count = 0
    while chosen := list(islice(records, _BATCH_ROWS)):
        first, count = count, count + len(chosen)
        if array is not None:
            if len(array) < count:
                raise InvalidInputError(f"there are {len(array)} vectors and more than {len(array)} rows")
            yield _arguments(chosen, array[first:count])
            continue
        missing = next((record.id for record in chosen if record.vector is _MISSING), None)
        if missing is not None:
            raise InvalidInputError(f'row {missing!r} has no "vector": add it, or give a file with --vectors')
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


def _table(rows: Path, format: str, columns: TableColumns) -> Iterator[TableBatch]:
    """The rows of a Parquet or Arrow file, a folder of Parquet files, or stdin."""
    load_pyarrow()
    if rows != STANDARD:
        yield from batches_of(open_table(rows, format=format), columns, _BATCH_ROWS)
    elif format == "arrow":
        yield from batches_of(open_table(sys.stdin.buffer, format=format), columns, _BATCH_ROWS)
    else:
        # What a Parquet file has where stands at its end.
        with tempfile.TemporaryFile() as whole:
            shutil.copyfileobj(sys.stdin.buffer, whole)
            whole.seek(0)
            yield from batches_of(open_table(whole, format=format), columns, _BATCH_ROWS)


def _format(path: Path, chosen: str | None) -> str:
    if chosen is not None:
        return chosen
    return "parquet" if path.is_dir() else _SUFFIXES.get(path.suffix.lower(), "jsonl")


_FORMAT_OPTION: Final = click.option(
    "--format",
    "format",
    type=click.Choice(_FORMATS),
    help="Format of the file; by default its suffix says it, or jsonl.",
)


@click.command("import")
@click.argument("rows", type=click.Path(exists=True, allow_dash=True, path_type=Path))
@click.option(
    "--vectors",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='.npy file of (n, dim) numbers in the order of ROWS. Without it each row needs a "vector".',
)
@_FORMAT_OPTION
@click.option("--id-column", default="id", show_default=True, help="Column of the ids in a Parquet or Arrow file.")
@click.option(
    "--vector-column", help="Column of the vectors in a Parquet or Arrow file; by default vector or embedding."
)
@click.option(
    "--metadata-column", multiple=True, help="Column that becomes metadata; may be repeated. By default all others."
)
@click.option(
    "--on-conflict",
    type=click.Choice(["error", "replace", "skip"]),
    default="error",
    show_default=True,
    help="What to do with an id that is in the index already.",
)
@click.option("--text-field", multiple=True, help="Metadata field whose words `search --text` finds; may be repeated.")
@click.option("--text-language", help="Language of these fields, such as english, to find other forms of a word.")
@click.option(
    "--metric",
    type=click.Choice(["cosine", "l2", "dot"]),
    help="Metric of a new index, by default cosine. For a stored index it must be the stored metric.",
)
@click.pass_obj
def import_(
    settings: Settings,
    rows: Path,
    vectors: Path | None,
    format: str | None,
    id_column: str,
    vector_column: str | None,
    metadata_column: tuple[str, ...],
    on_conflict: str,
    text_field: tuple[str, ...],
    text_language: str | None,
    metric: str | None,
) -> None:
    """Add ROWS to the index and save it. A missing index is created.

    ROWS is a file, a folder of Parquet files, or - for stdin. In jsonl each line is an object with an "id" and
    optionally a "vector"; other fields are metadata. csv has a header with id, and vectors as JSON arrays. If a row is
    refused, nothing is saved.
    """
    if rows == STANDARD == settings.phrase_file:
        raise click.UsageError("stdin cannot hold both the rows and the phrase")
    kind = _format(rows, format)
    if kind in ("parquet", "arrow"):
        if vectors is not None:
            raise click.UsageError("--vectors goes with jsonl and csv: a table has a column of vectors")
        columns = TableColumns(id=id_column, vector=vector_column, metadata=metadata_column or None)
        batches = _table(rows, kind, columns)
    else:
        if rows != STANDARD and rows.is_dir():
            raise click.UsageError(f"{rows} is a folder, and {kind} a format of files")
        batches = _batches(rows, vectors, (_csv_records if kind == "csv" else _records)(rows))
    totals = [0, 0, 0]
    with open_session(settings, **({} if metric is None else {"metric": metric})) as session, changes(session):
        load(session, missing_ok=True)
        if text_field or text_language is not None:
            session.set_text_fields(text_field, language=text_language)
        with rows_bar("add") as added:
            for batch in batches:
                done = session.add_batch(*batch[:4], expires_at=batch.expires_at, on_conflict=on_conflict)
                counts = (done.added, done.replaced, done.skipped)
                totals = [total + more for total, more in zip(totals, counts, strict=True)]
                added.update(len(batch.ids))
        with Bar("save") as bar:
            cid = session.save_to_s5(progress=bar)
    say("added {}, replaced {}, skipped {}".format(*totals))
    say(cid)


@click.command()
@click.argument("target", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--cid", help="CID of the version; by default the newest.")
@_FORMAT_OPTION
@click.pass_obj
def export(settings: Settings, target: Path, cid: str | None, format: str | None) -> None:
    """Write all rows with vectors and metadata to TARGET; - is stdout.

    `import` reads the file. In jsonl and csv, dates, datetimes and UUIDs in metadata become strings. In parquet and
    arrow each field of the metadata is a column.
    """
    kind = _format(target, format)
    if kind in ("parquet", "arrow"):
        load_pyarrow()
    with open_session(settings) as session:
        if target == STANDARD:
            load(session, cid)
            try:
                count = _export(session, sys.stdout.buffer, kind)
                sys.stdout.buffer.flush()
            except OSError as error:
                if isinstance(error, VectorDBError):
                    raise
                raise OutputError(error) from None
            note(f"exported {count} rows")
            return
        with writing(target) as fresh:
            load(session, cid)
            with fresh.open("wb") as out:
                count = _export(session, out, kind)
    say(f"exported {count} rows to {target}")


def _export(session: VectorDBSession, out: IO[bytes], kind: str) -> int:
    """Writes all rows; returns their number."""
    with rows_bar("export", session.count()) as bar:

        def rows() -> Iterator[Row]:
            for row in session.scan():
                yield row
                bar.update()

        if kind in ("parquet", "arrow"):

            def again() -> Iterator[Row]:
                bar.reset()
                return rows()

            return write_rows(again, _Forward(out), kind)
        count = 0
        lines = _csv_lines(rows()) if kind == "csv" else map(_json_line, rows())
        for line in lines:
            out.write(line.encode())
            count += 1
        return count - (kind == "csv")


def _json_line(row: Row) -> str:
    record = {"id": row.id, "vector": _numbers(row), "timestamp": row.timestamp, "metadata": json_ready(row.metadata)}
    if row.expires_at is not None:
        record["expires_at"] = row.expires_at
    return json.dumps(record, ensure_ascii=False) + "\n"


def _numbers(row: Row) -> list[float] | None:
    return None if row.vector is None else [float(value) for value in row.vector]


def _csv_lines(rows: Iterator[Row]) -> Iterator[str]:
    """A header and a line for each row."""
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_CSV_COLUMNS)
    yield text.getvalue()
    for row in rows:
        text.seek(0)
        text.truncate()
        vector = "" if row.vector is None else json.dumps(_numbers(row))
        metadata = "" if row.metadata is None else json.dumps(json_ready(row.metadata), ensure_ascii=False)
        ends = "" if row.expires_at is None else repr(row.expires_at)
        lines.writerow([row.id, vector, repr(row.timestamp), ends, metadata])
        yield text.getvalue()


class _Forward(io.RawIOBase):
    """A file that is only written forward: pyarrow asks for its position, which a pipe does not know."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._at = 0

    def writable(self) -> bool:
        """It can be written."""
        return True

    def write(self, data: Any) -> int:
        """Writes to the file below."""
        self._out.write(data)
        self._at += memoryview(data).nbytes
        return memoryview(data).nbytes

    def tell(self) -> int:
        """Bytes written so far."""
        return self._at
