"""Tables of sqlite-vec (``vec0``), read by their shadow tables, without the extension.

The columns come from the table's own ``CREATE VIRTUAL TABLE``. Vectors, validity and metadata lie in chunks of 1,024
rows; ids and their chunk in ``NAME_rowids``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.errors import IntegrityError, InvalidInputError
from fabstir_vectordb.importers.base import ForeignRow, Metric, Source, check_dim, one_name, storable
from fabstir_vectordb.importers.sqlite_file import SqliteFile

__all__ = ["SqliteVecTable"]

_CREATE: Final = re.compile(r"\s*CREATE\s+VIRTUAL\s+TABLE\s", re.IGNORECASE)
_USING: Final = re.compile(r"\busing\s+vec0\s*\(", re.IGNORECASE)
_VECTOR: Final = re.compile(
    r"(\S+)\s+(float|f32|int8|i8|bit)\s*\[\s*([0-9]{1,6})\s*\]\s*(.*)", re.IGNORECASE | re.DOTALL
)
_PRIMARY: Final = re.compile(r"(\S+)\s+(text|integer|int)\s+primary\s+key", re.IGNORECASE)
_PARTITION: Final = re.compile(r"(\S+)\s+(text|integer|int)\s+partition\s+key", re.IGNORECASE)
_COLUMN: Final = re.compile(r"(\+?)\s*(\S+)\s+(\w+)\s*(.*)", re.IGNORECASE | re.DOTALL)
_METRIC: Final = re.compile(r"distance_metric\s*=\s*(\w+)", re.IGNORECASE)
_METRICS: Final[dict[str, Metric]] = {"l2": "l2", "cosine": "cosine"}
#: Most characters of a table's declaration.
_SQL_MAX: Final = 1 << 16
_CHUNK_ROWS_MAX: Final = 1 << 16
#: Characters of a text that metadata chunks hold themselves; longer ones are in a table.
_SHORT_TEXT: Final = 12


class _Vector(NamedTuple):
    name: str
    type: str
    dim: int
    metric: str


class _Columns(NamedTuple):
    vectors: list[_Vector]
    metadata: list[tuple[str, str]]
    auxiliary: list[str]
    partitions: list[str]


class SqliteVecTable(Source):
    """A table of sqlite-vec.

    Args:
        path: the SQLite database.
        table: the table; needed where the database has several.
        vector: the column of the vectors; needed where the table has several.

    Raises:
        NotFoundError: there is no such file, table or column.
        IntegrityError: the file is no SQLite database, or breaks the format.
        InvalidInputError: a choice is needed, or the vectors are bits.
    """

    format = "sqlite-vec"

    def __init__(self, path: str | Path, *, table: str | None = None, vector: str | None = None) -> None:
        super().__init__()
        self._file = SqliteFile(Path(path))
        try:
            declared = ((name, _declared(sql)) for name, sql in self._file.tables.items())
            tables = {name: columns for name, columns in declared if columns is not None}
            self._table = one_name("table of sqlite-vec", list(tables), table)
            self._columns = _columns_of(tables[self._table])
            chosen = one_name("column of vectors", [one.name for one in self._columns.vectors], vector)
            self._number = [one.name for one in self._columns.vectors].index(chosen)
            self._vector = self._columns.vectors[self._number]
        except BaseException:
            self._file.close()
            raise
        if self._vector.type == "bit":
            self._file.close()
            raise InvalidInputError(f"column {self._vector.name!r} holds bits, not numbers: they cannot come")
        if self._vector.type in ("int8", "i8"):
            self.notes.say("vectors of int8 came as the numbers that they are")
        if len(self._columns.vectors) > 1:
            others = [one.name for one in self._columns.vectors if one is not self._vector]
            self.notes.say(f"the other vectors did not come: {', '.join(map(repr, others))}")
        self.metric = _METRICS.get(self._vector.metric)
        if self.metric is None:
            self.notes.say(f"the table has the metric {self._vector.metric}, for which there is none here")

    def rows(self) -> Iterator[ForeignRow]:
        """The live rows, chunk by chunk."""
        name, file = self._table, self._file
        chunks = file.quoted(f"{name}_chunks")
        vectors = file.quoted(f"{name}_vector_chunks{self._number:02d}")
        has_ids = file.has(f"{name}_rowids")
        partitions = "".join(f", partition{number:02d}" for number in range(len(self._columns.partitions)))
        query = f"SELECT chunk_id, size, validity, rowids{partitions} FROM {chunks} ORDER BY chunk_id"
        for chunk, size, validity, rowids, *keys in file.rows(query):
            if not isinstance(size, int) or not 0 < size <= _CHUNK_ROWS_MAX:
                raise IntegrityError(f"{name}: a chunk of {size!r} rows")
            valid = np.unpackbits(_array(validity, np.uint8, size // 8), bitorder="little")
            numbers = _array(rowids, "<i8", size)
            matrix = self._matrix(file.one(f"SELECT vectors FROM {vectors} WHERE rowid = ?", chunk), size)
            fields = [self._field(number, kind, chunk, size) for number, (_, kind) in enumerate(self._columns.metadata)]
            for at in np.flatnonzero(valid).tolist():
                rowid = int(numbers[at])
                id = self._id(rowid) if has_ids else str(rowid)
                yield ForeignRow(id, matrix[at], storable(self._metadata(rowid, at, fields, keys), self.notes))

    def _matrix(self, row: tuple[Any, ...] | None, size: int) -> npt.NDArray[np.float32]:
        if row is None:
            raise IntegrityError(f"{self._table}: the vectors of a chunk are missing")
        type = "<i1" if self._vector.type in ("int8", "i8") else "<f4"
        return _array(row[0], type, size * self._vector.dim).astype(np.float32).reshape(size, self._vector.dim)

    def _id(self, rowid: int) -> str:
        table = self._file.quoted(f"{self._table}_rowids")
        found = self._file.one(f"SELECT id FROM {table} WHERE rowid = ?", rowid)
        return str(rowid) if found is None or found[0] is None else str(found[0])

    def _field(self, number: int, kind: str, chunk: int, size: int) -> Any:
        """The values of a metadata column in a chunk."""
        table = self._file.quoted(f"{self._table}_metadatachunks{number:02d}")
        row = self._file.one(f"SELECT data FROM {table} WHERE rowid = ?", chunk)
        if row is None:
            raise IntegrityError(f"{self._table}: the metadata of a chunk is missing")
        if kind == "boolean":
            return np.unpackbits(_array(row[0], np.uint8, size // 8), bitorder="little").astype(bool).tolist()
        if kind == "text":
            return [self._text(number, view) for view in _array(row[0], "V16", size).tolist()]
        return _array(row[0], "<f8" if kind == "float" else "<i8", size).tolist()

    def _text(self, number: int, view: bytes) -> tuple[int, bytes]:
        """The length of a text, and its first bytes."""
        (length,) = struct.unpack_from("<i", view)
        if length < 0:
            raise IntegrityError(f"{self._table}: a text of {length} bytes in column {number}")
        return length, view[4:]

    def _metadata(self, rowid: int, at: int, fields: list[Any], keys: list[Any]) -> dict[str, Any] | None:
        found: dict[str, Any] = dict(zip(self._columns.partitions, keys, strict=True))
        for number, (name, kind) in enumerate(self._columns.metadata):
            value = fields[number][at]
            if kind == "text":
                length, start = value
                value = start[:length].decode(errors="replace")
                if length > _SHORT_TEXT:
                    table = self._file.quoted(f"{self._table}_metadatatext{number:02d}")
                    row = self._file.one(f"SELECT data FROM {table} WHERE rowid = ?", rowid)
                    if row is None or not isinstance(row[0], str):
                        raise IntegrityError(f"{self._table}: the text {name!r} of row {rowid} is missing")
                    value = row[0]
            found[name] = value
        if self._columns.auxiliary:
            table = self._file.quoted(f"{self._table}_auxiliary")
            names = ", ".join(f"value{number:02d}" for number in range(len(self._columns.auxiliary)))
            row = self._file.one(f"SELECT {names} FROM {table} WHERE rowid = ?", rowid)
            for name, value in zip(self._columns.auxiliary, row or [None] * len(self._columns.auxiliary), strict=True):
                if value is not None:
                    found[name] = value
        return found or None

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _array(raw: Any, type: Any, count: int) -> npt.NDArray[Any]:
    """A blob as an array of `count` items."""
    if not isinstance(raw, bytes) or len(raw) != count * np.dtype(type).itemsize:
        raise IntegrityError("a chunk of sqlite-vec has another size than its table says")
    return np.frombuffer(raw, type, count)


def _declared(sql: str) -> str | None:
    """What a vec0 table's declaration has in brackets, None for another table; in time linear in its length."""
    head = _CREATE.match(sql) if len(sql) <= _SQL_MAX else None
    using = None if head is None else _USING.search(sql, head.end())
    end = sql.rstrip().removesuffix(";").rstrip()
    if using is None or not end.endswith(")") or len(end) <= using.end():
        return None
    return end[using.end() : -1]


def _columns_of(declared: str) -> _Columns:
    """The columns of a vec0 table, from what its declaration has in brackets."""
    found = _Columns([], [], [], [])
    for part in declared.split(","):
        text = part.strip()
        is_option = "=" in text.split(None, 1)[0] if text else True
        if is_option or _PRIMARY.fullmatch(text):
            continue
        if (partition := _PARTITION.fullmatch(text)) is not None:
            found.partitions.append(_name(partition[1]))
        elif (vector := _VECTOR.fullmatch(text)) is not None:
            metric = _METRIC.search(vector[4])
            dim = check_dim(int(vector[3]), "sqlite-vec")
            found.vectors.append(
                _Vector(_name(vector[1]), vector[2].lower(), dim, "l2" if metric is None else metric[1].lower())
            )
        elif (column := _COLUMN.fullmatch(text)) is not None:
            if column[1]:
                found.auxiliary.append(_name(column[2]))
            else:
                kind = _KINDS.get(column[3].lower())
                if kind is None:
                    raise IntegrityError(f"sqlite-vec: a column of the type {column[3][:40]!r}")
                found.metadata.append((_name(column[2]), kind))
        else:
            raise IntegrityError(f"sqlite-vec: a declaration that is none: {text[:80]!r}")
    return found


_KINDS: Final = {
    "text": "text",
    "integer": "integer",
    "int": "integer",
    "float": "float",
    "double": "float",
    "boolean": "boolean",
    "bool": "boolean",
}


def _name(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] in "\"'`[" else text
