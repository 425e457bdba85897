"""The commands of the command line that bring rows in and out: `import` and `export`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import click

from fabstir_vectordb.cli_support import (
    INPUT,
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
    writing,
)
from fabstir_vectordb.display import json_ready
from fabstir_vectordb.errors import InvalidInputError, VectorDBError
from fabstir_vectordb.sync import VectorDBSession

__all__ = ["export", "import_"]

_BATCH_ROWS: Final = 4_096


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


class _Batch(NamedTuple):
    rows: list[_Record]
    vectors: Any


def _batches(rows: Path, vectors: Path | None) -> Iterator[_Batch]:
    """Rows with their vectors, in batches; only one batch is in memory at a time.

    Raises:
        InvalidInputError: the numbers of rows and vectors differ, or a row has no vector.
    """
    array = None if vectors is None else array_of(vectors)
    if array is not None and array.ndim != 2:
        raise InvalidInputError(f"{vectors} must hold an array of shape (n, dim), got {array.shape}")
    records = _records(rows)
    count = 0
    while chosen := list(islice(records, _BATCH_ROWS)):
        first, count = count, count + len(chosen)
        if array is not None:
            if len(array) < count:
                raise InvalidInputError(f"there are {len(array)} vectors and more than {len(array)} rows")
            yield _Batch(chosen, array[first:count])
            continue
        missing = next((record.id for record in chosen if record.vector is _MISSING), None)
        if missing is not None:
            raise InvalidInputError(f'row {missing!r} has no "vector": add it, or give a file with --vectors')
        yield _Batch(chosen, [record.vector for record in chosen])
    if array is not None and len(array) != count:
        raise InvalidInputError(f"there are {len(array)} vectors and {count} rows")


@click.command("import")
@click.argument("rows", type=INPUT)
@click.option(
    "--vectors",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='.npy file of (n, dim) numbers in the order of ROWS. Without it each row needs a "vector".',
)
@click.option(
    "--on-conflict",
    type=click.Choice(["error", "replace", "skip"]),
    default="error",
    show_default=True,
    help="What to do with an id that is in the index already.",
)
@click.option(
    "--metric",
    type=click.Choice(["cosine", "l2", "dot"]),
    help="Metric of a new index, by default cosine. For a stored index it must be the stored metric.",
)
@click.pass_obj
def import_(settings: Settings, rows: Path, vectors: Path | None, on_conflict: str, metric: str | None) -> None:
    """Add ROWS to the index and save it. A missing index is created.

    ROWS is a jsonl file, or - for stdin. Each line is an object with an "id" and optionally a "vector"; other fields
    are metadata. If a row is refused, nothing is saved.
    """
    if rows == STANDARD == settings.phrase_file:
        raise click.UsageError("stdin cannot hold both the rows and the phrase")
    totals = [0, 0, 0]
    with open_session(settings, **({} if metric is None else {"metric": metric})) as session, changes(session):
        load(session, missing_ok=True)
        with rows_bar("add") as added:
            for batch in _batches(rows, vectors):
                times = [record.timestamp for record in batch.rows]
                expiries = [record.expires_at for record in batch.rows]
                done = session.add_batch(
                    [record.id for record in batch.rows],
                    batch.vectors,
                    [record.metadata for record in batch.rows],
                    times if any(time is not None for time in times) else None,
                    expires_at=expiries if any(time is not None for time in expiries) else None,
                    on_conflict=on_conflict,
                )
                counts = (done.added, done.replaced, done.skipped)
                totals = [total + more for total, more in zip(totals, counts, strict=True)]
                added.update(len(batch.rows))
        with Bar("save") as bar:
            cid = session.save_to_s5(progress=bar)
    say("added {}, replaced {}, skipped {}".format(*totals))
    say(cid)


@click.command()
@click.argument("target", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--cid", help="CID of the version; by default the newest.")
@click.pass_obj
def export(settings: Settings, target: Path, cid: str | None) -> None:
    """Write all rows with vectors and metadata to TARGET as jsonl; - is stdout.

    `import` reads the file. Dates, datetimes and UUIDs in metadata become strings.
    """
    with open_session(settings) as session:
        if target == STANDARD:
            load(session, cid)
            try:
                count = _export(session, sys.stdout.buffer)
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
                count = _export(session, out)
    say(f"exported {count} rows to {target}")


def _export(session: VectorDBSession, out: IO[bytes]) -> int:
    """Writes all rows; returns their number."""
    count = 0
    with rows_bar("export", session.count()) as bar:
        for row in session.scan():
            record = {
                "id": row.id,
                "vector": None if row.vector is None else [float(value) for value in row.vector],
                "timestamp": row.timestamp,
                "metadata": json_ready(row.metadata),
            }
            if row.expires_at is not None:
                record["expires_at"] = row.expires_at
            out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            bar.update()
            count += 1
    return count
