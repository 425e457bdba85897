"""Tables in and out of a session: Arrow objects, Parquet and Arrow files, and folders of them (extra `arrow`).

A session has the verbs of LanceDB's users: `add_table`, `to_arrow` and `to_pandas`. `write_table` writes a file.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from io import RawIOBase
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, Protocol

from fabstir_vectordb.arrow import (
    TableBatch,
    TableColumns,
    TableWriter,
    batches_of,
    load_pyarrow,
    stream_of,
)
from fabstir_vectordb.errors import InvalidInputError, VectorDBError
from fabstir_vectordb.output_file import writing
from fabstir_vectordb.types import AddResult, Row

__all__ = [
    "TABLE_SUFFIXES",
    "TableColumns",
    "add_batches",
    "open_table",
    "read_batches",
    "rows_table",
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


async def add_batches(
    add_batch: Callable[..., Awaitable[AddResult]],
    compute: Callable[..., Awaitable[Any]],
    table: Any,
    columns: TableColumns | None,
    on_conflict: str,
) -> AddResult:
    """Adds the rows of a table piece by piece: the body of `VectorDBSession.add_table`.

    Args:
        add_batch: the session's.
        compute: runs a function where it keeps no event loop waiting; files are read with it.
        table, columns, on_conflict: as `add_table`.

    Returns:
        How many rows were added, replaced and skipped.

    Raises:
        InvalidConfigError, InvalidInputError, OSError, ConflictError, MemoryBudgetExceededError, SessionError: as
            `add_table`.
    """
    is_file = isinstance(table, (str, Path))

    async def call(function: Callable[..., Any], *arguments: Any) -> Any:
        return await compute(function, *arguments) if is_file else function(*arguments)

    batches = await call(read_batches, table, columns)
    total = AddResult(0, 0, 0)
    while (batch := await call(next, batches, None)) is not None:
        done = await add_batch(*batch[:4], expires_at=batch.expires_at, on_conflict=on_conflict)
        total = _sum(total, done)
    return total


def _sum(one: AddResult, other: AddResult) -> AddResult:
    return AddResult(one.added + other.added, one.replaced + other.replaced, one.skipped + other.skipped)


# ---- out


def rows_table(rows: Sequence[Row]) -> Any:
    """Rows as a pyarrow Table.

    Args:
        rows: the rows.

    Returns:
        A table with the columns id, vector, timestamp, expires_at if a row expires, and one for each field of the
        metadata.

    Raises:
        InvalidConfigError: pyarrow is not installed.
    """
    writer = TableWriter()
    for row in rows:
        writer.see(row)
    return load_pyarrow().Table.from_batches([writer.batch(rows)])


class _Scanned(Protocol):
    """A session of `fabstir_vectordb.sync`."""

    def scan(self, filter: Mapping[str, Any] | None = None) -> Iterator[Row]: ...


def write_table(session: _Scanned, target: str | Path, *, filter: Mapping[str, Any] | None = None) -> int:
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
    if not isinstance(session.scan(filter), Iterator):
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
