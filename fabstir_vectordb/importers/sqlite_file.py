"""SQLite files of other programs, opened so that neither their schema nor their values can do anything.

The file is opened read-only with ``trusted_schema=OFF``, and an authorizer allows reads alone. Values have a largest
size. Virtual tables, views and triggers are never touched: only plain tables are read, whose columns are all stored.

A rollback journal is never played: it may name a super-journal by an absolute path, and SQLite deletes that file.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fabstir_vectordb.errors import IntegrityError
from fabstir_vectordb.importers.base import regular_size

__all__ = ["SqliteFile"]

#: Most bytes of one value or row.
_VALUE_BYTES_MAX: Final = 64 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9_.\- ]{1,200}")
#: Bytes at the start of a journal that SQLite clears when a change has ended (``zeroJournalHdr``).
_JOURNAL_HEAD_BYTES: Final = 28
_MAGIC: Final = b"SQLite format 3\x00"
#: SQLite keeps every declaration in this form. A comment between the words could hide ``VIRTUAL``.
_PLAIN: Final = re.compile(r"\s*CREATE\s+TABLE\b", re.IGNORECASE)
_SCHEMA: Final = frozenset({"sqlite_master", "sqlite_schema"})


class SqliteFile:
    """A SQLite database of another program; a context manager.

    A database that its program left with a write-ahead log is copied first, as reading it makes a file beside it. The
    log holds pages alone, and no names of files.

    Raises:
        NotFoundError: there is no such file.
        IntegrityError: it is no SQLite database, or was left in the middle of a change, with a journal.
    """

    def __init__(self, path: Path) -> None:
        regular_size(path)
        self._path = path
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._readable: frozenset[str] = _SCHEMA
        try:
            with path.open("rb") as stream:
                if stream.read(len(_MAGIC)) != _MAGIC:
                    raise IntegrityError(f"{path} is no SQLite database", details={"path": str(path)})
            if self._is_hot(path.with_name(path.name + "-journal")):
                raise IntegrityError(
                    f"{path} was left in the middle of a change, with a journal: open it once with its own program, "
                    "then import it",
                    details={"path": str(path)},
                )
            log = path.with_name(path.name + "-wal")
            if log.exists() and regular_size(log) > 0:
                self._folder = tempfile.TemporaryDirectory(prefix="fabstir-vectordb-")
                target = Path(self._folder.name) / "copy.sqlite"
                shutil.copyfile(path, target)
                shutil.copyfile(log, target.with_name(target.name + "-wal"))
                uri = f"{target.as_uri()}?mode=ro"
            else:
                # Without locks and without files beside it. Another program must not write meanwhile.
                uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
            # An asynchronous import reads in several worker threads, one after the other.
            self._connection = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
        except BaseException:
            self.close()
            raise
        try:
            self._connection.text_factory = lambda raw: raw.decode(errors="replace")
            self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_BYTES_MAX)
            self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0", "query_only=ON"):
                self._connection.execute(f"PRAGMA {pragma}")
            self.tables = self._tables()
            self._readable = _SCHEMA | self._stored()
            self._connection.set_authorizer(self._authorize)
        except sqlite3.Error as error:
            self.close()
            raise self._fail(error) from None
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _is_hot(journal: Path) -> bool:
        """Whether a journal belongs to a change that did not end; PERSIST clears the journal's head at the end."""
        if not journal.exists() or regular_size(journal) == 0:
            return False
        with journal.open("rb") as stream:
            return any(stream.read(_JOURNAL_HEAD_BYTES))

    def _tables(self) -> dict[str, str]:
        """The SQL of each table by its name; views are no tables."""
        rows = self._connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
        return {name: sql or "" for name, sql in rows if isinstance(name, str)}

    def _stored(self) -> frozenset[str]:
        """The plain tables without generated or hidden columns, which would run functions when they are read."""
        query = "SELECT count(*) FROM pragma_table_xinfo(?) WHERE hidden <> 0"
        plain = [table for table in self.tables if self.has(table)]
        return frozenset(table for table in plain if self._connection.execute(query, (table,)).fetchone() == (0,))

    def _authorize(self, action: int, table: str | None, *_: object) -> int:
        """Allows a query to read from tables with stored columns. SQLite asks before a query begins."""
        is_read = action == sqlite3.SQLITE_READ and table in self._readable
        return sqlite3.SQLITE_OK if is_read or action == sqlite3.SQLITE_SELECT else sqlite3.SQLITE_DENY

    def _fail(self, error: sqlite3.Error) -> IntegrityError:
        return IntegrityError(f"{self._path} could not be read: {error}", details={"path": str(self._path)})

    def has(self, table: str) -> bool:
        """Whether there is a plain table of a name; a virtual table is none."""
        return table in self.tables and _PLAIN.match(self.tables[table]) is not None

    def need(self, *tables: str) -> None:
        """Checks that there are tables.

        Raises:
            IntegrityError: one is missing, is no plain table, or has a column that is computed.
        """
        for table in tables:
            if not self.has(table):
                raise IntegrityError(f"{self._path} has no table {table!r}", details={"path": str(self._path)})
            if table not in self._readable:
                raise IntegrityError(
                    f"{self._path}: table {table!r} has a generated or hidden column, which no store of its kind has",
                    details={"path": str(self._path)},
                )

    def quoted(self, table: str) -> str:
        """The name of a plain table in a query.

        Raises:
            IntegrityError: there is no such table.
        """
        self.need(table)
        if not _NAME.fullmatch(table):
            raise IntegrityError(f"{self._path} has a table of the name {table[:80]!r}")
        return f'"{table}"'

    def rows(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, one after the other.

        Raises:
            IntegrityError: the database is damaged, or lacks what the query names.
        """
        try:
            yield from self._connection.execute(query, values)
        except sqlite3.Error as error:
            raise self._fail(error) from None
        except (OverflowError, MemoryError) as error:
            raise IntegrityError(f"{self._path} could not be read: {error}") from None

    def one(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        """The first row of a query, or None.

        Raises:
            IntegrityError: as `rows`.
        """
        return next(self.rows(query, *values), None)

    def close(self) -> None:
        """Closes the file."""
        if hasattr(self, "_connection"):
            self._connection.close()
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> SqliteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
