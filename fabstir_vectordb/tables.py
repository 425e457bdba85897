"""Tables in and out of a session: Arrow objects, Parquet and Arrow files, and folders of them (extra `arrow`).

The functions take either kind of session. For one without ``await`` they return the result, for an asynchronous one an
awaitable of it. The names are those that users of peers know: `add_table` adds as LanceDB's ``Table.add`` does,
`to_arrow` and `to_pandas` read everything, and `write_table` writes a file.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from io import RawIOBase
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, overload

import anyio.to_thread

from fabstir_vectordb.arrow import (
    TableBatch,
    TableColumns,
    TableWriter,
    batches_of,
    data_frame,
    load_pyarrow,
    stream_of,
)
from fabstir_vectordb.errors import InvalidInputError, VectorDBError
from fabstir_vectordb.output_file import writing
from fabstir_vectordb.session import VectorDBSession
from fabstir_vectordb.sync import VectorDBSession as BlockingSession
from fabstir_vectordb.types import AddResult, Row

__all__ = [
    "TABLE_SUFFIXES",
    "TableColumns",
    "add_table",
    "open_table",
    "read_batches",
    "to_arrow",
    "to_pandas",
    "write_rows",
    "write_table",
]

#: Suffixes of the files that `open_table` reads and `write_table` writes.
TABLE_SUFFIXES: Final = (".parquet", ".arrow", ".feather")
#: Most rows of one add from a table in memory, where the vectors take no further memory.
_MEMORY_ROWS: Final = 131_072
#: Most rows of one add from a file: 16 MB of vectors with 256 dimensions. They are held beside the index.
_FILE_ROWS: Final = 16_384
#: Rows that a pass over the index has in memory.
_WRITE_ROWS: Final = 4_096


# ---- in


def open_table(source: str | Path | IO[bytes], *, format: str | None = None) -> Any:
    """Opens a file or folder of tables as a stream of record batches; only some rows at a time are in memory.

    Args:
        source: a Parquet or Arrow file, a folder of Parquet files, or an open binary file.
        format: ``parquet``, ``arrow`` (files and streams of Arrow, also called Feather); None decides by the suffix.

    Returns:
        A pyarrow RecordBatchReader.

    Raises:
        InvalidConfigError: pyarrow is not installed.
        InvalidInputError: the file is damaged, or of no known format.
        OSError: it cannot be read.
    """
    arrow = load_pyarrow()
    path = Path(source) if isinstance(source, (str, Path)) else None
    if format is None:
        suffix = "" if path is None else path.suffix.lower()
        is_folder = path is not None and path.is_dir()
        format = "parquet" if suffix == ".parquet" or is_folder else "arrow" if suffix in TABLE_SUFFIXES else None
    if format not in ("parquet", "arrow"):
        raise InvalidInputError(f"a table must end in {', '.join(TABLE_SUFFIXES)}, or its format be named: {source}")
    if path is not None and not path.is_dir():
        path.open("rb").close()  # the operating system's own error for a missing or unreadable file
    try:
        return _parquet(arrow, source, path) if format == "parquet" else _ipc(arrow, source, path)
    except VectorDBError:
        raise
    except Exception as error:  # pyarrow has several kinds for damaged files
        raise InvalidInputError(f"{path or 'the stream'} is no readable {format} file: {error}") from error


def _parquet(arrow: Any, source: Any, path: Path | None) -> Any:
    if path is not None and path.is_dir():
        from pyarrow import dataset

        # Without readahead of fragments: it would hold several files' row groups at once.
        scanner = dataset.dataset(path, format="parquet", partitioning="hive").scanner(
            batch_size=_FILE_ROWS, batch_readahead=1, fragment_readahead=1, use_threads=False
        )
        return _checked(arrow, scanner.projected_schema, scanner.to_batches())
    from pyarrow import parquet

    # A buffer reads pages one after the other; without it a whole row group, often the whole file, is read at once.
    file = parquet.ParquetFile(source if path is None else str(path), buffer_size=1 << 20, pre_buffer=False)
    batches = file.iter_batches(batch_size=_FILE_ROWS, use_threads=False)
    return _checked(arrow, file.schema_arrow, batches)


def _ipc(arrow: Any, source: Any, path: Path | None) -> Any:
    opened = source if path is None else arrow.memory_map(str(path))
    if path is not None:
        try:
            file = arrow.ipc.open_file(opened)
        except arrow.ArrowInvalid:  # a stream, which has no magic at its start
            opened.seek(0)
        else:
            numbers = range(file.num_record_batches)
            return _checked(arrow, file.schema, (file.get_batch(number) for number in numbers))
    else:
        opened = _Counted(source)
    stream = arrow.ipc.open_stream(opened)
    return _checked(arrow, stream.schema, _whole(stream, opened))


class _Counted(RawIOBase):
    """An open file that may be a pipe, whose position is the number of bytes that were read."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self._at = source, 0

    def readable(self) -> bool:
        """True."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes of the file."""
        raw = self._source.read(size)
        self._at += len(raw)
        return raw

    def tell(self) -> int:
        """How many bytes were read."""
        return self._at


def _whole(stream: Any, opened: Any) -> Iterator[Any]:
    """The batches of a stream of Arrow, which must end in its marker; pyarrow takes the end of a file for one."""
    while True:
        before = opened.tell()
        batch = next(stream, None)
        if batch is None:
            if opened.tell() == before:
                raise InvalidInputError("the stream of Arrow has no end marker: it was cut off")
            return
        yield batch


def _checked(arrow: Any, schema: Any, batches: Iterable[Any]) -> Any:
    """A reader over batches of an untrusted file, whose offsets and texts pyarrow would otherwise believe."""

    def whole() -> Iterator[Any]:
        for batch in batches:
            batch.validate(full=True)
            yield batch

    return arrow.RecordBatchReader.from_batches(schema, whole())


def read_batches(table: Any, columns: TableColumns | None = None) -> Iterator[TableBatch]:
    """The arguments of `add_batch` for each piece of a table.

    Args:
        table: what `add_table` takes.
        columns: which column is what.

    Yields:
        ids, vectors, metadata, timestamps and expires_at of at most 131,072 rows.

    Raises:
        InvalidConfigError, InvalidInputError, OSError: as `add_table`.
    """
    is_file = isinstance(table, (str, Path))
    reader = open_table(table) if is_file else stream_of(table)
    return batches_of(reader, columns or TableColumns(), _FILE_ROWS if is_file else _MEMORY_ROWS)


@overload
def add_table(
    session: BlockingSession, table: Any, columns: TableColumns | None = None, *, on_conflict: str = "error"
) -> AddResult: ...
@overload
def add_table(
    session: VectorDBSession, table: Any, columns: TableColumns | None = None, *, on_conflict: str = "error"
) -> Awaitable[AddResult]: ...
def add_table(
    session: BlockingSession | VectorDBSession,
    table: Any,
    columns: TableColumns | None = None,
    *,
    on_conflict: str = "error",
) -> AddResult | Awaitable[AddResult]:
    """Adds the rows of a table. Vectors are read where Arrow has them, without an object for each row.

    Rows are added in pieces of at most 131,072, from files of 16,384. Each piece is added whole or not at all; an error
    leaves the pieces before it in the session.

    Args:
        session: where the rows go.
        table: an object with the Arrow PyCapsule interface, or the path of a Parquet file, an Arrow file, or a folder
            of Parquet files. An object is read on the caller's thread, a file of an asynchronous session in a worker
            thread.
        columns: which column is what; by default ``id``, ``vector`` or ``embedding``, and ``timestamp`` and
            ``expires_at`` where the table has them. All other columns are metadata; a null leaves the field out.
        on_conflict: for ids that are live already: ``error``, ``replace`` or ``skip``.

    Returns:
        How many rows were added, replaced and skipped.

    Raises:
        InvalidConfigError: pyarrow is not installed.
        InvalidInputError: the table lacks a column, or a row is refused.
        OSError: the file cannot be read.
        ConflictError, MemoryBudgetExceededError, SessionError: as `add_batch`.
    """
    if isinstance(session, BlockingSession):
        total = AddResult(0, 0, 0)
        for batch in read_batches(table, columns):
            total = _sum(total, session.add_batch(*batch[:4], expires_at=batch.expires_at, on_conflict=on_conflict))
        return total
    return _add_table(session, table, columns, on_conflict)


async def _add_table(session: VectorDBSession, table: Any, columns: TableColumns | None, on_conflict: str) -> AddResult:
    """`add_table` for an asynchronous session."""
    is_file = isinstance(table, (str, Path))

    async def call(function: Callable[[], Any]) -> Any:
        return await anyio.to_thread.run_sync(function) if is_file else function()

    batches = await call(partial(read_batches, table, columns))
    total = AddResult(0, 0, 0)
    while (batch := await call(partial(next, batches, None))) is not None:
        done = await session.add_batch(*batch[:4], expires_at=batch.expires_at, on_conflict=on_conflict)
        total = _sum(total, done)
    return total


def _sum(one: AddResult, other: AddResult) -> AddResult:
    return AddResult(one.added + other.added, one.replaced + other.replaced, one.skipped + other.skipped)


# ---- out


@overload
def to_arrow(session: BlockingSession, filter: Mapping[str, Any] | None = None) -> Any: ...
@overload
def to_arrow(session: VectorDBSession, filter: Mapping[str, Any] | None = None) -> Awaitable[Any]: ...
def to_arrow(session: BlockingSession | VectorDBSession, filter: Mapping[str, Any] | None = None) -> Any:
    """All rows, or those that match a filter, as a pyarrow Table.

    Args:
        session: whose rows.
        filter: as in SearchOptions; None for all rows.

    Returns:
        A table with the columns id, vector, timestamp, expires_at if a row expires, and one for each field of the
        metadata.

    Raises:
        InvalidConfigError: pyarrow is not installed.
        InvalidInputError, MemoryBudgetExceededError, SessionError: as `scan`.
    """
    load_pyarrow()
    if isinstance(session, BlockingSession):
        return _table_of(list(session.scan(filter)))
    return _to_arrow(session, filter)


async def _to_arrow(session: VectorDBSession, filter: Mapping[str, Any] | None) -> Any:
    return _table_of([row async for row in session.scan(filter)])


def _table_of(rows: Sequence[Row]) -> Any:
    writer = TableWriter()
    for row in rows:
        writer.see(row)
    return load_pyarrow().Table.from_batches([writer.batch(rows)])


@overload
def to_pandas(session: BlockingSession, filter: Mapping[str, Any] | None = None) -> Any: ...
@overload
def to_pandas(session: VectorDBSession, filter: Mapping[str, Any] | None = None) -> Awaitable[Any]: ...
def to_pandas(session: BlockingSession | VectorDBSession, filter: Mapping[str, Any] | None = None) -> Any:
    """All rows, or those that match a filter, as a pandas DataFrame with the columns of `to_arrow`.

    Args:
        session, filter: as `to_arrow`.

    Returns:
        The DataFrame.

    Raises:
        InvalidConfigError: pyarrow or pandas is not installed.
        InvalidInputError, MemoryBudgetExceededError, SessionError: as `scan`.
    """
    if isinstance(session, BlockingSession):
        return data_frame(to_arrow(session, filter))
    return _to_pandas(session, filter)


async def _to_pandas(session: VectorDBSession, filter: Mapping[str, Any] | None) -> Any:
    return data_frame(await to_arrow(session, filter))


def write_table(session: BlockingSession, target: str | Path, *, filter: Mapping[str, Any] | None = None) -> int:
    """Writes all rows, or those that match a filter, to a Parquet or Arrow file.

    The rows are read twice, first for the types of the columns; a few thousand are in memory at a time. They go to a
    file beside the target, which replaces it at the end; after an error the target is as it was.

    Args:
        session: whose rows; a session of `fabstir_vectordb.sync`.
        target: the file; its suffix ``.parquet``, ``.arrow`` or ``.feather`` sets the format.
        filter: as in SearchOptions; None for all rows.

    Returns:
        The number of rows.

    Raises:
        InvalidConfigError: pyarrow is not installed.
        InvalidInputError: the session is an asynchronous one, the suffix is another one, or the filter is not
            understood.
        ConflictError: the rows changed meanwhile.
        OSError: the file cannot be written.
        MemoryBudgetExceededError, SessionError: as `scan`.
    """
    if isinstance(session, VectorDBSession):
        raise InvalidInputError("write_table takes a session of fabstir_vectordb.sync, got an asynchronous one")
    path = Path(target)
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise InvalidInputError(f"a table must end in {', '.join(TABLE_SUFFIXES)}, got {path.name!r}")
    load_pyarrow()
    with writing(path) as fresh, fresh.open("wb") as out:
        return write_rows(
            lambda: session.scan(filter), out, "parquet" if path.suffix.lower() == ".parquet" else "arrow"
        )


def write_rows(scan: Callable[[], Iterator[Row]], out: IO[bytes] | RawIOBase, format: str) -> int:
    """Writes the rows of a scan to an open file, as `write_table` does.

    Args:
        scan: starts a scan; called twice.
        out: a binary file open for writing. Arrow is written as a stream, which needs no seeking.
        format: ``parquet`` or ``arrow``.

    Returns:
        The number of rows.

    Raises:
        InvalidConfigError, ConflictError, OSError, SessionError: as `write_table`.
    """
    arrow = load_pyarrow()
    writer = TableWriter()
    for row in scan():
        writer.see(row)
    schema = writer.schema
    if format == "parquet":
        from pyarrow import parquet

        # Vectors have no equal values: a dictionary of them would only cost time and memory.
        names = [field.name for field in schema if field.name not in ("id", "vector")]
        file = parquet.ParquetWriter(out, schema, compression="zstd", use_dictionary=names)
    else:
        file = arrow.ipc.new_stream(out, schema)
    count, rows = 0, scan()
    with file:
        while page := list(islice(rows, _WRITE_ROWS)):
            file.write_batch(writer.batch(page))
            count += len(page)
    return count
