"""From a foreign store into a session: batches, what is left out, and the report."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Final, NamedTuple, overload

import anyio.to_thread
import numpy as np

from fabstir_vectordb._native.handle import ID_BYTES_MAX
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.importers.base import MIGRATE_ROWS, ForeignRow, MigrationReport, Source, Unstorable
from fabstir_vectordb.metadata.values import encode_metadata
from fabstir_vectordb.session import VectorDBSession
from fabstir_vectordb.sync import VectorDBSession as BlockingSession

__all__ = ["FORMATS", "migrate", "open_source"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: Formats of stores, and the module and class that read each.
_SOURCES: Final = {
    "chroma": ("chroma_folder", "ChromaFolder"),
    "faiss": ("faiss_file", "FaissFile"),
    "fabstir-node": ("node_store", "NodeStore"),
    "fabstir-sdk": ("sdk_store", "SdkStore"),
    "hnswlib": ("hnswlib_file", "HnswlibFile"),
    "lancedb": ("lance_table", "LanceTable"),
    "qdrant": ("qdrant_local", "QdrantLocal"),
    "sqlite-vec": ("sqlite_vec_file", "SqliteVecTable"),
}
#: The names of the formats.
FORMATS: Final = tuple(_SOURCES)


def open_source(format: str, path: str | Path, **options: Any) -> Source:
    """Opens a foreign store.

    Args:
        format: one of `FORMATS`.
        path: its file or folder.
        **options: as the class of the format takes them; docs/importing.md lists them.

    Returns:
        The source; a context manager.

    Raises:
        InvalidInputError: the format or an option is unknown, or an option is needed.
        InvalidConfigError: a library that the format needs is not installed.
        NotFoundError: there is no such store.
        IntegrityError: the store breaks its format.
        OSError: it cannot be read.
    """
    if format not in _SOURCES:
        raise InvalidInputError(f"the format must be one of {', '.join(FORMATS)}, got {format!r}")
    module, name = _SOURCES[format]
    cls: type[Source] = getattr(import_module(f"fabstir_vectordb.importers.{module}"), name)
    known = list(signature(cls).parameters)[1:]
    for option in options:
        if option not in known:
            raise InvalidInputError(f"{format} takes the options {', '.join(known) or 'none'}, got {option}")
    return cls(path, **options)  # type: ignore[call-arg]


class _Batch(NamedTuple):
    ids: list[str]
    vectors: list[Any]
    metadata: list[Any]
    timestamps: list[Any] | None


@overload
def migrate(
    session: BlockingSession | None,
    source: Source,
    *,
    on_conflict: str = "error",
    dry_run: bool = False,
    schema: bool = False,
    progress: Callable[[int], None] | None = None,
) -> MigrationReport: ...
@overload
def migrate(
    session: VectorDBSession,
    source: Source,
    *,
    on_conflict: str = "error",
    dry_run: bool = False,
    schema: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Awaitable[MigrationReport]: ...
def migrate(
    session: BlockingSession | VectorDBSession | None,
    source: Source,
    *,
    on_conflict: str = "error",
    dry_run: bool = False,
    schema: bool = False,
    progress: Callable[[int], None] | None = None,
) -> MigrationReport | Awaitable[MigrationReport]:
    """Brings the rows of a foreign store into a session. It saves nothing: `save_to_s5` does.

    Rows come in batches of 4,096, each whole or not at all; an error leaves the batches before it in the session. Rows
    that an index cannot hold are left out and counted: an empty or too long id, the id of a row before, a vector of
    another dimension than the first, NaN or infinity in a vector, more than 1 MiB of metadata. A row whose time is
    before the year 1 or after 9999 gets the time of the import.

    Args:
        session: where the rows go, a session of either kind: the asynchronous one gets an awaitable. Make it with the
            metric of the source. None for a dry run without a session.
        source: from `open_source`.
        on_conflict: for ids that are live already: ``error``, ``replace`` or ``skip``.
        dry_run: only read the store and report what would come; `on_conflict` and the session's rows play no part.
        schema: set the store's schema as the session's after the last row. Where a row breaks it, which other stores
            allow, it is not set, and the report says so.
        progress: called with the number of rows after each batch.

    Returns:
        What came, and what did not.

    Raises:
        IntegrityError: the store breaks its format.
        InvalidInputError: there is neither a session nor a dry run.
        ConflictError: with ``error``, an id is live already.
        MemoryBudgetExceededError, SessionError: as `add_batch`.
        OSError: a file cannot be read.
    """
    if session is None and not dry_run:
        raise InvalidInputError("migrate needs a session, or dry_run=True")
    work = _Work(source)
    if session is None or dry_run:
        if isinstance(session, VectorDBSession):
            return _dry_aside(work, progress)
        return _dry(work, progress)
    if isinstance(session, BlockingSession):
        for batch in work.batches():
            work.count(session.add_batch(*batch, on_conflict=on_conflict), progress)
        if schema and source.schema is not None:
            try:
                session.set_schema(dict(source.schema))
            except InvalidInputError as error:
                work.lacks_schema(error)
        return work.report(dry_run=False)
    return _migrate(session, work, on_conflict, schema, progress)


def _dry(work: _Work, progress: Callable[[int], None] | None) -> MigrationReport:
    for _ in work.batches():
        work.count(None, progress)
    return work.report(dry_run=True)


async def _dry_aside(work: _Work, progress: Callable[[int], None] | None) -> MigrationReport:
    return await anyio.to_thread.run_sync(_dry, work, progress)


async def _migrate(
    session: VectorDBSession,
    work: _Work,
    on_conflict: str,
    schema: bool,
    progress: Callable[[int], None] | None,
) -> MigrationReport:
    """`migrate` for an asynchronous session: files are read in a worker thread."""
    batches = work.batches()
    while (batch := await anyio.to_thread.run_sync(partial(next, batches, None))) is not None:
        work.count(await session.add_batch(*batch, on_conflict=on_conflict), progress)
    if schema and work.source.schema is not None:
        try:
            await session.set_schema(dict(work.source.schema))
        except InvalidInputError as error:
            work.lacks_schema(error)
    return work.report(dry_run=False)


class _Work:
    """One import: the rows that can come, and the counts."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._dim: int | None = None
        self._rows = 0
        self._ids: set[str] = set()
        self._counts = [0, 0, 0]

    def count(self, done: Any, progress: Callable[[int], None] | None) -> None:
        """Counts what a batch did; None for a dry run."""
        if done is not None:
            for at, more in enumerate((done.added, done.replaced, done.skipped)):
                self._counts[at] += more
        if progress is not None:
            progress(self._rows)

    def lacks_schema(self, error: InvalidInputError) -> None:
        """Notes that the session could not take the schema."""
        self.source.notes.say(f"the schema was not set, since a row breaks it: {error.message}")

    def batches(self) -> Iterator[_Batch]:
        """The rows that can come, in arguments of `add_batch`."""
        rows: list[ForeignRow] = []
        for row in self.source.rows():
            if (reason := self._hinders(row)) is not None:
                self.source.notes.left_out[reason] += 1
                continue
            self._ids.add(row.id)
            rows.append(self._with_time(row))
            if len(rows) == MIGRATE_ROWS:
                yield self._batch(rows)
                rows = []
        if rows:
            yield self._batch(rows)

    def _hinders(self, row: ForeignRow) -> str | None:
        """Why an index cannot hold a row; None if it can."""
        try:
            size = len(row.id.encode())
        except UnicodeEncodeError:
            return "with an id that is no text in Unicode"
        if not 0 < size <= ID_BYTES_MAX:
            return f"with an id that is empty or longer than {ID_BYTES_MAX} bytes"
        if row.vector is not None:
            self._dim = len(row.vector) if self._dim is None else self._dim
            if len(row.vector) != self._dim:
                return f"with a vector of another dimension than the first row's {self._dim}"
            if not np.isfinite(row.vector).all():
                return "with NaN or infinity in the vector"
        if isinstance(row.metadata, Unstorable):
            return f"with metadata that an index cannot hold: {row.metadata.reason}"
        try:
            encode_metadata(row.metadata)
        except InvalidInputError as error:
            return f"with metadata that an index cannot hold: {error.message[:100]}"
        if row.id in self._ids:
            self.source.notes.collide(row.id)
            return "with an id that a row before has"
        return None

    def _with_time(self, row: ForeignRow) -> ForeignRow:
        """A row, without its time where an index cannot hold that."""
        try:
            if row.timestamp is not None and not isinstance(row.timestamp, datetime):
                _EPOCH + timedelta(seconds=row.timestamp)
        except (OverflowError, ValueError):
            self.source.notes.say("rows whose time is no moment of the years 1 to 9999 got the time of the import")
            return row._replace(timestamp=None)
        return row

    def _batch(self, rows: list[ForeignRow]) -> _Batch:
        self._rows += len(rows)
        times = [row.timestamp for row in rows]
        return _Batch(
            [row.id for row in rows],
            [row.vector for row in rows],
            [row.metadata for row in rows],
            times if any(time is not None for time in times) else None,
        )

    def report(self, *, dry_run: bool) -> MigrationReport:
        """The report, once all rows were read."""
        source, notes = self.source, self.source.notes
        added, replaced, skipped = self._counts
        return MigrationReport(
            format=source.format,
            metric=source.metric,
            schema=source.schema,
            dim=self._dim,
            rows=self._rows,
            added=added,
            replaced=replaced,
            skipped=skipped,
            deleted=notes.deleted,
            left_out=dict(notes.left_out),
            collisions=tuple(notes.collisions),
            notes=tuple(notes.texts),
            dry_run=dry_run,
        )
