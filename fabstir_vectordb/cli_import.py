"""The commands of the command line that bring rows in and out: `import` and `export`.

Both take JSONL, CSV, Parquet and Arrow; the suffix of the file says which, or --format.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import click

from fabstir_vectordb.arrow import TableBatch, TableColumns, batches_of, load_pyarrow
from fabstir_vectordb.cli_records import BATCH_ROWS, csv_lines, json_lines, record_batches
from fabstir_vectordb.cli_support import (
    STANDARD,
    OutputError,
    Settings,
    changes,
    cid_option,
    filter_option,
    json_line,
    json_option,
    load,
    loaded,
    note,
    open_session,
    rows_bar,
    save,
    tell,
)
from fabstir_vectordb.errors import VectorDBError
from fabstir_vectordb.output_file import writing
from fabstir_vectordb.sync import VectorDBSession
from fabstir_vectordb.tables import open_table, write_rows
from fabstir_vectordb.types import Row

__all__ = ["export", "import_"]

_FORMATS: Final = ("jsonl", "csv", "parquet", "arrow")
_SUFFIXES: Final = {".csv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}


def _table(rows: Path, format: str, columns: TableColumns) -> Iterator[TableBatch]:
    """The rows of a Parquet or Arrow file, a folder of Parquet files, or stdin."""
    load_pyarrow()
    if rows != STANDARD:
        yield from batches_of(open_table(rows, format=format), columns, BATCH_ROWS)
    elif format == "arrow":
        yield from batches_of(open_table(sys.stdin.buffer, format=format), columns, BATCH_ROWS)
    else:
        # What a Parquet file has where stands at its end.
        with tempfile.TemporaryFile() as whole:
            shutil.copyfileobj(sys.stdin.buffer, whole)
            whole.seek(0)
            yield from batches_of(open_table(whole, format=format), columns, BATCH_ROWS)


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
@click.option("--id-column", default="id", show_default=True, help="Column or field of the ids.")
@click.option(
    "--vector-column", help="That of the vectors; by default vector, in a Parquet or Arrow file also embedding."
)
@click.option(
    "--metadata-column", multiple=True, help="One that becomes metadata; may be repeated. By default all others."
)
@click.option(
    "--timestamp-column", default="timestamp", show_default=True, help="That of the rows' times, if there is one."
)
@click.option("--expires-column", default="expires_at", show_default=True, help="That of the times when rows expire.")
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
@json_option()
@click.pass_obj
def import_(
    settings: Settings,
    rows: Path,
    vectors: Path | None,
    format: str | None,
    id_column: str,
    vector_column: str | None,
    metadata_column: tuple[str, ...],
    timestamp_column: str,
    expires_column: str,
    on_conflict: str,
    text_field: tuple[str, ...],
    text_language: str | None,
    metric: str | None,
    as_json: bool,
) -> None:
    """Add ROWS to the index and save it. A missing index is created.

    ROWS is a file, a folder of Parquet files, or - for stdin. In jsonl each line is an object with an "id" and
    optionally a "vector"; other fields are metadata. csv has a header with id, and vectors as JSON arrays. Times are
    seconds since 1970 or ISO 8601. If a row is refused, nothing is saved.
    """
    if rows == STANDARD == settings.phrase_file:
        raise click.UsageError("stdin cannot hold both the rows and the phrase")
    kind = _format(rows, format)
    columns = TableColumns(
        id=id_column,
        vector=vector_column,
        metadata=metadata_column or None,
        timestamp=timestamp_column,
        expires_at=expires_column,
    )
    if kind in ("parquet", "arrow"):
        if vectors is not None:
            raise click.UsageError("--vectors goes with jsonl and csv: a table has a column of vectors")
        batches = _table(rows, kind, columns)
    else:
        if rows != STANDARD and rows.is_dir():
            raise click.UsageError(f"{rows} is a folder, and {kind} a format of files")
        batches = record_batches(rows, kind, vectors, columns)
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
        cid = save(session)
    record = dict(zip(("added", "replaced", "skipped"), totals, strict=True))
    tell(as_json, {**record, "cid": cid}, "added {}, replaced {}, skipped {}".format(*totals), cid)


@click.command()
@click.argument("target", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@filter_option
@cid_option
@_FORMAT_OPTION
@json_option("one JSON object; on stderr where TARGET is -")
@click.pass_obj
def export(
    settings: Settings,
    target: Path,
    filter: dict[str, Any] | None,
    cid: str | None,
    format: str | None,
    as_json: bool,
) -> None:
    """Write rows with vectors and metadata to TARGET; - is stdout.

    `import` reads the file. In jsonl and csv, dates, datetimes and UUIDs in metadata become strings. In parquet and
    arrow each field of the metadata is a column.
    """
    kind = _format(target, format)
    if kind in ("parquet", "arrow"):
        load_pyarrow()
    if target == STANDARD:
        with loaded(settings, cid) as session:
            try:
                count = _export(session, filter, sys.stdout.buffer, kind)
                sys.stdout.buffer.flush()
            except OSError as error:
                if isinstance(error, VectorDBError):
                    raise
                raise OutputError(error) from None
        note(json_line({"rows": count}) if as_json else f"exported {count} rows")
        return
    with writing(target) as fresh, fresh.open("wb") as out, loaded(settings, cid) as session:
        count = _export(session, filter, out, kind)
    tell(as_json, {"rows": count, "target": str(target)}, f"exported {count} rows to {target}")


def _export(session: VectorDBSession, filter: dict[str, Any] | None, out: IO[bytes], kind: str) -> int:
    """Writes rows; returns their number."""
    # On one terminal the bar would stand between the rows.
    hidden = out is sys.stdout.buffer and sys.stdout.isatty()
    with rows_bar("export", session.count(filter), hidden=hidden) as bar:

        def rows() -> Iterator[Row]:
            for row in session.scan(filter):
                yield row
                bar.update()

        if kind in ("parquet", "arrow"):

            def again() -> Iterator[Row]:
                bar.reset()
                return rows()

            return write_rows(again, _Forward(out), kind)
        count = 0
        lines = (csv_lines if kind == "csv" else json_lines)(rows())
        for line in lines:
            out.write(line.encode())
            count += 1
        return count - (kind == "csv")


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
