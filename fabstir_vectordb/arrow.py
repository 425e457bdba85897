"""Arrow in and out: record batches to the arguments of `add_batch`, hits and rows to tables (extra `arrow`).

Anything with the Arrow PyCapsule interface is taken: tables of pyarrow, polars and pandas, relations of DuckDB. Vectors
stay where they are: numpy looks at the buffers of a list column. Ids and metadata become Python objects.

Columns of metadata have the type that their values share. What no Arrow type holds (objects, values of several types)
is JSON text, which the field's own metadata says, so that reading gives the value back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

import numpy as np

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.display import json_ready
from fabstir_vectordb.errors import ConflictError, InvalidConfigError, InvalidInputError, VectorDBError
from fabstir_vectordb.extras import install_command, pip_command

__all__ = [
    "TableBatch",
    "TableColumns",
    "TableWriter",
    "batches_of",
    "data_frame",
    "load_pyarrow",
    "results_table",
    "stream_of",
]

#: The name under which a field's Arrow metadata says what its values stand for.
_MARK: Final = b"fabstir_vectordb"
#: Most columns of metadata; rows with more different keys have one column of JSON.
_COLUMNS_MAX: Final = 1_000
#: Names that a table of vectors often has, looked for where the caller names none.
_VECTOR_NAMES: Final = ("vector", "embedding", "embeddings", "vectors")
#: Integers up to here are exact as float64.
_EXACT_MAX: Final = 2**53
_INT64_MAX: Final = 2**63 - 1


def load_pyarrow() -> Any:
    """The module pyarrow.

    Raises:
        InvalidConfigError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise InvalidConfigError(
            f"tables need pyarrow: {install_command('arrow')}", details={"extra": "arrow"}
        ) from None
    return pyarrow


def data_frame(table: Any) -> Any:
    """A pyarrow Table as a pandas DataFrame.

    Raises:
        InvalidConfigError: pandas is not installed.
    """
    try:
        import pandas  # noqa: F401  # pyarrow's own error does not say how to install it
    except ImportError:
        raise InvalidConfigError(
            f"data frames need pandas: {pip_command(['pandas'])}", details={"extra": "arrow"}
        ) from None
    return table.to_pandas()


# ---- A table to rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumns:
    """Which column of a table is what.

    Attributes:
        id: column of the ids: text, or integers, which become text.
        vector: column of the vectors: a list of numbers in each row, best FixedSizeList<float>. None looks for
            ``vector`` and ``embedding``, then for the only column of such lists.
        metadata: columns that become metadata; None for all others.
        timestamp: column of the rows' times: timestamps (without a zone they are UTC) or seconds since 1970; None for
            none. A column that the table lacks is ignored where its name is the default.
        expires_at: column of the times when rows expire, in the same forms; a null means never.
    """

    id: str = "id"
    vector: str | None = None
    metadata: Sequence[str] | None = None
    timestamp: str | None = "timestamp"
    expires_at: str | None = "expires_at"


class TableBatch(NamedTuple):
    """Arguments of `add_batch`."""

    ids: list[str]
    vectors: Any
    metadata: list[Any] | None
    timestamps: Any
    expires_at: Any


def stream_of(table: Any) -> Any:
    """A pyarrow RecordBatchReader over a table of any library.

    Args:
        table: an object with ``__arrow_c_stream__`` or ``__arrow_c_array__``, such as a table of pyarrow, polars or
            pandas, or a relation of DuckDB.

    Raises:
        InvalidConfigError: pyarrow is not installed.
        InvalidInputError: the object is no such table.
    """
    arrow = load_pyarrow()
    try:
        if hasattr(table, "__arrow_c_stream__"):
            return arrow.RecordBatchReader.from_stream(table)
        if hasattr(table, "__arrow_c_array__"):
            batch = arrow.record_batch(table)
            return arrow.RecordBatchReader.from_batches(batch.schema, [batch])
    except Exception as error:  # any exception of a foreign library
        raise InvalidInputError(f"the table could not be read: {type(error).__name__}: {error}") from error
    raise InvalidInputError(
        f"a table must have the Arrow C stream interface (pyarrow, polars, pandas, DuckDB), got {type(table).__name__}"
    )


def batches_of(reader: Any, columns: TableColumns, rows_max: int) -> Iterator[TableBatch]:
    """The arguments of `add_batch`, batch by batch.

    Args:
        reader: a RecordBatchReader.
        columns: which column is what.
        rows_max: most rows of a batch.

    Raises:
        InvalidInputError: a column is missing, of a type that rows cannot hold, or a value is; details has ``row``.
    """
    plan = _plan_of(reader.schema, columns)
    first = 0
    while True:
        try:
            batch = next(reader, None)
        except VectorDBError:
            raise
        except Exception as error:  # of a foreign library, or of what feeds the stream
            raise InvalidInputError(
                f"the table could not be read after {first} rows: {type(error).__name__}: {error}"
            ) from error
        if batch is None:
            return
        for start in range(0, batch.num_rows, rows_max):
            part = batch.slice(start, rows_max)
            yield _rows_of(part, plan, first)
            first += part.num_rows


class _Field(NamedTuple):
    column: str
    key: str
    kind: str
    """``plain``, ``json``, ``uuid``, or ``row`` for JSON of the whole metadata of a row."""


class _Plan(NamedTuple):
    id: str
    vector: str
    timestamp: str | None
    expires_at: str | None
    fields: list[_Field]


def _plan_of(schema: Any, columns: TableColumns) -> _Plan:
    names = schema.names
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"the table has two columns of the name {twice!r}")

    def known(name: str, what: str) -> str:
        if name not in names:
            raise InvalidInputError(
                f"the table has no column {name!r} for the {what}; it has {', '.join(map(repr, names))}"
            )
        return name

    def time(name: str | None, default: str) -> str | None:
        return None if name is None or (name == default and name not in names) else known(name, default)

    id = known(columns.id, "id")
    vector = _vector_column(schema) if columns.vector is None else known(columns.vector, "vector")
    timestamp, expires_at = time(columns.timestamp, "timestamp"), time(columns.expires_at, "expires_at")
    taken = {id, vector, timestamp, expires_at}
    if columns.metadata is None:
        chosen = [name for name in names if name not in taken]
    elif isinstance(columns.metadata, str):
        raise InvalidInputError("metadata must be a list of columns, not one name")
    else:
        chosen = [known(name, "metadata") for name in columns.metadata]
    return _Plan(id, vector, timestamp, expires_at, [_field_of(schema.field(name)) for name in chosen])


def _field_of(field: Any) -> _Field:
    from pyarrow import types

    if types.is_binary(field.type) or types.is_large_binary(field.type) or types.is_fixed_size_binary(field.type):
        raise InvalidInputError(
            f"column {field.name!r} has bytes, which metadata cannot hold: name the columns that shall become metadata"
        )
    if types.is_time(field.type) or types.is_duration(field.type) or types.is_interval(field.type):
        raise InvalidInputError(
            f"column {field.name!r} has type {field.type}, which metadata cannot hold: convert it, or name the columns "
            "that shall become metadata"
        )
    mark = (field.metadata or {}).get(_MARK)
    try:
        said = {} if mark is None else json.loads(mark)
        return _Field(field.name, str(said.get("key", field.name)), str(said.get("kind", "plain")))
    except (ValueError, AttributeError):
        raise InvalidInputError(f"column {field.name!r} has a mark of this package that is damaged") from None


def _vector_column(schema: Any) -> str:
    lists = [field.name for field in schema if _is_numbers(field.type)]
    named = [name for name in _VECTOR_NAMES if name in lists]
    if named:
        return named[0]
    if len(lists) == 1:
        return str(lists[0])
    found = f"there are {len(lists)}: {', '.join(map(repr, lists))}" if lists else "there is none"
    raise InvalidInputError(f"name the column of the vectors: of columns with lists of numbers {found}")


def _is_numbers(type: Any) -> bool:
    from pyarrow import types

    type = getattr(type, "storage_type", type)
    if not (types.is_fixed_size_list(type) or types.is_list(type) or types.is_large_list(type)):
        return False
    return bool(types.is_floating(type.value_type) or types.is_integer(type.value_type))


def _rows_of(batch: Any, plan: _Plan, first: int) -> TableBatch:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    return TableBatch(
        _ids(columns[plan.id], first),
        _vectors(columns[plan.vector], plan.vector, first),
        _metadata([(field, columns[field.column]) for field in plan.fields], batch.num_rows, first),
        None if plan.timestamp is None else _times(columns[plan.timestamp], plan.timestamp, first),
        None if plan.expires_at is None else _times(columns[plan.expires_at], plan.expires_at, first),
    )


def _ids(column: Any, first: int) -> list[str]:
    from pyarrow import types

    if column.null_count:
        row = first + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InvalidInputError(f"row {row} of the table has no id", details={"row": row})
    values = _python(column, "the ids")
    if types.is_integer(column.type):
        return [str(value) for value in values]
    for row, value in enumerate(values):
        if not isinstance(value, (str, UUID)):
            raise InvalidInputError(
                f"ids must be text or integers, the table has {column.type}", details={"row": first + row}
            )
    return [value if isinstance(value, str) else str(value) for value in values]


def _vectors(column: Any, name: str, first: int) -> Any:
    """The vectors as one array over Arrow's own buffers, or as a list with None where rows have none."""
    column = getattr(column, "storage", column)
    if not _is_numbers(column.type):
        raise InvalidInputError(f"column {name!r} must have a list of numbers in each row, it has {column.type}")
    if column.null_count == 0:
        return _matrix(column, name, first)
    present = column.is_valid().to_numpy(zero_copy_only=False)
    vectors: list[Any] = [None] * len(column)
    matrix = _matrix(column.drop_null(), name, first)
    for at, vector in zip(np.flatnonzero(present), matrix, strict=True):
        vectors[at] = vector
    return vectors


def _matrix(column: Any, name: str, first: int) -> Any:
    """The rows of a list column without nulls as an array of shape (n, dim)."""
    from pyarrow import types

    if types.is_fixed_size_list(column.type):
        dim = column.type.list_size
    else:
        sizes = np.diff(column.offsets.to_numpy())
        dim = int(sizes[0]) if len(sizes) else 0
        if (sizes != dim).any():
            row = int(np.flatnonzero(sizes != dim)[0])
            raise InvalidInputError(
                f"column {name!r}: row {first + row} has {sizes[row]} numbers, the rows before it have {dim}",
                details={"row": first + row, "expected": dim, "actual": int(sizes[row])},
            )
    numbers = column.flatten()
    if numbers.null_count:
        at = int(np.flatnonzero(numbers.is_null().to_numpy(zero_copy_only=False))[0])
        row = first + at // max(dim, 1)
        raise InvalidInputError(f"column {name!r}: the vector of row {row} has a null in it", details={"row": row})
    return numbers.to_numpy(zero_copy_only=False).reshape(len(column), dim)


def _microseconds(column: Any, name: str, first: int) -> Any:
    """Timestamps in microseconds: finer ones are cut off. Arrow would let coarser ones run over into another time."""
    import pyarrow
    from pyarrow import compute

    factor = {"s": 1_000_000, "ms": 1_000}.get(column.type.unit)
    if factor is not None:
        most, counts = _INT64_MAX // factor, column.cast(pyarrow.int64())
        over = compute.or_(compute.greater(counts, most), compute.less(counts, -most))
        rows = np.flatnonzero(over.fill_null(False).to_numpy(zero_copy_only=False))
        if len(rows):
            row = first + int(rows[0])
            raise InvalidInputError(
                f"column {name!r}: row {row} has a time that microseconds since 1970 cannot hold", details={"row": row}
            )
    return column.cast(pyarrow.timestamp("us", column.type.tz), safe=False)


def _times(column: Any, name: str, first: int) -> Any:
    import pyarrow

    if pyarrow.types.is_timestamp(column.type):
        column = _microseconds(column, name, first)
        if column.null_count == 0:
            return column.cast(pyarrow.timestamp("us")).to_numpy(zero_copy_only=False)
        return [_utc(value) for value in _python(column, f"column {name!r}")]
    if not (pyarrow.types.is_floating(column.type) or pyarrow.types.is_integer(column.type)):
        raise InvalidInputError(
            f"column {name!r} must have timestamps or seconds since 1970, it has {column.type}: choose another column, "
            "or none, as the time of the rows"
        )
    if column.null_count == 0:
        return column.to_numpy(zero_copy_only=False).astype(np.float64)
    return _python(column, f"column {name!r}")


def _utc(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


def _python(column: Any, what: str) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
        return values
    except Exception as error:  # a date outside Python's years, a text that is no UTF-8
        raise InvalidInputError(f"{what} could not be read: {type(error).__name__}: {error}") from error


def _metadata(columns: list[tuple[_Field, Any]], n: int, first: int) -> list[Any] | None:
    if not columns:
        return None
    whole: list[Any] = [None] * n
    names, values = [], []
    for field, column in columns:
        listed = _values(field, column, first)
        if field.kind == "row" or (field.key == "metadata" and len(columns) == 1 and _is_mapping(listed)):
            whole = listed
        else:
            names.append(field.key)
            values.append(listed)
    if not names:
        return whole
    rows = zip(*values, strict=True)
    fields = ({name: value for name, value in zip(names, row, strict=True) if value is not None} for row in rows)
    return [(made or None) if value is None else value for value, made in zip(whole, fields, strict=True)]


def _is_mapping(values: list[Any]) -> bool:
    return all(value is None or isinstance(value, dict) for value in values)


def _values(field: _Field, column: Any, first: int) -> list[Any]:
    import pyarrow

    types = pyarrow.types
    if types.is_timestamp(column.type):
        column = _microseconds(column, field.column, first)
        return [_utc(value) for value in _python(column, f"column {field.column!r}")]
    if types.is_decimal(column.type):
        column = column.cast(pyarrow.float64(), safe=False)
    values = _python(column, f"column {field.column!r}")
    if types.is_floating(column.type):
        # pandas and polars have NaN where a number is missing; metadata knows no NaN.
        return [None if value is None or value != value else value for value in values]  # noqa: PLR0124
    if field.kind in ("json", "row", "uuid"):
        make = UUID if field.kind == "uuid" else json.loads
        row = 0
        try:
            made = []
            for row, value in enumerate(values):  # noqa: B007  # the row is told after an error
                made.append(None if value is None else make(value))
            return made
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise InvalidInputError(
                f"column {field.column!r}: row {first + row} is no {field.kind}", details={"row": first + row}
            ) from None
    return values


# ---- Rows and hits to a table ------------------------------------------------------------------------------


class _Hit(Protocol):
    """The fields of a `types.SearchResult` that a table has."""

    @property
    def id(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def distance(self) -> float: ...
    @property
    def metadata(self) -> Any: ...
    @property
    def vector(self) -> Any: ...


class _Row(Protocol):
    """The fields of a `types.Row`."""

    @property
    def id(self) -> str: ...
    @property
    def vector(self) -> Any: ...
    @property
    def metadata(self) -> Any: ...
    @property
    def timestamp(self) -> float: ...
    @property
    def expires_at(self) -> float | None: ...


def results_table(hits: Sequence[_Hit]) -> Any:
    """Hits as a pyarrow Table: id, score, distance, vector if there are vectors, and a column for each metadata field.

    Raises:
        InvalidConfigError: pyarrow is not installed.
    """
    arrow = load_pyarrow()
    columns = [
        ("id", arrow.array([hit.id for hit in hits], arrow.string())),
        ("score", arrow.array([hit.score for hit in hits], arrow.float64())),
        ("distance", arrow.array([hit.distance for hit in hits], arrow.float64())),
    ]
    vectors = [hit.vector for hit in hits]
    dim = next((len(vector) for vector in vectors if vector is not None), 0)
    if dim:
        columns.append(("vector", _vector_array(arrow, vectors, dim)))
    found = _Kinds()
    for hit in hits:
        found.see(hit.metadata)
    fields = found.fields(arrow, {name for name, _ in columns})
    arrays = [array for _, array in columns] + found.arrays(arrow, fields, [hit.metadata for hit in hits])
    schema = arrow.schema([arrow.field(name, array.type) for name, array in columns] + [f.arrow for f in fields])
    return arrow.Table.from_arrays(arrays, schema=schema)


class TableWriter:
    """Makes record batches of rows, in two passes: `see` each row for the types of columns, then `batch` them.

    The columns are id, vector (FixedSizeList<float>), timestamp, expires_at if a row expires, and one for each field
    of the metadata.

    Args:
        dim: components of a vector, where no row that is seen may have one.
    """

    def __init__(self, dim: int = 0) -> None:
        self._arrow = load_pyarrow()
        self._kinds = _Kinds()
        self._dim = dim
        self._expires = False
        self._fields: list[_Column] | None = None

    def see(self, row: _Row) -> None:
        """Notes the types of a row's values."""
        self._kinds.see(row.metadata)
        self._expires = self._expires or row.expires_at is not None
        if row.vector is not None:
            self._dim = len(row.vector)

    @property
    def schema(self) -> Any:
        """The schema of all batches; no row is seen after it was asked for."""
        arrow = self._arrow
        time = arrow.timestamp("us", "UTC")
        vectors = arrow.list_(arrow.float32(), self._dim or 1)
        columns = [("id", arrow.string()), ("vector", vectors), ("timestamp", time)]
        columns += [("expires_at", time)] if self._expires else []
        if self._fields is None:
            self._fields = self._kinds.fields(arrow, {*(name for name, _ in columns), "expires_at"})
        return arrow.schema([*columns, *(field.arrow for field in self._fields)])

    def batch(self, rows: Sequence[_Row]) -> Any:
        """A record batch of rows.

        Raises:
            ConflictError: a row has a value that no seen row had: the rows changed meanwhile.
        """
        arrow, schema = self._arrow, self.schema
        time = arrow.timestamp("us", "UTC")
        arrays = [
            arrow.array([row.id for row in rows], arrow.string()),
            _vector_array(arrow, [row.vector for row in rows], self._dim or 1),
            arrow.array([round(row.timestamp * 1e6) for row in rows], arrow.int64()).cast(time),
        ]
        if self._expires:
            ends = [None if row.expires_at is None else round(row.expires_at * 1e6) for row in rows]
            arrays.append(arrow.array(ends, arrow.int64()).cast(time))
        assert self._fields is not None
        arrays += self._kinds.arrays(arrow, self._fields, [row.metadata for row in rows])
        return arrow.RecordBatch.from_arrays(arrays, schema=schema)


def _vector_array(arrow: Any, vectors: Sequence[Any], dim: int) -> Any:
    missing = np.array([vector is None for vector in vectors], dtype=bool)
    matrix = np.zeros((len(vectors), dim), dtype=np.float32)
    if not missing.all():
        matrix[~missing] = [vector for vector in vectors if vector is not None]
    mask = arrow.array(missing) if missing.any() else None
    type = arrow.list_(arrow.float32(), dim)
    return arrow.FixedSizeListArray.from_arrays(arrow.array(matrix.reshape(-1)), type=type, mask=mask)


class _Column(NamedTuple):
    key: str
    kind: str
    arrow: Any


class _Kinds:
    """The kinds of values that the fields of metadata have."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}
        self._whole = False
        """Whether a row has metadata that is no dict with keys: one column holds it as JSON."""

    def see(self, metadata: Any) -> None:
        if metadata is None:
            return
        if not isinstance(metadata, dict) or not metadata:
            self._whole = True
            return
        kinds = self._kinds
        for key, value in metadata.items():
            if value is not None and len(kinds) <= _COLUMNS_MAX:
                kind = _kind_of(value)
                known = kinds.get(key)
                if known != kind:
                    kinds[key] = kind if known is None else _common(known, kind)

    def fields(self, arrow: Any, taken: Iterable[str]) -> list[_Column]:
        """A column for each field, with names that are not taken; at most a thousand, or one for the whole metadata."""
        names = set(taken)
        columns = []
        kinds = {} if self._is_wide else self._kinds
        for key, kind in kinds.items():
            columns.append(_column(arrow, _free(key, names), key, kind))
        if self._whole or self._is_wide:
            columns.append(_column(arrow, _free("metadata", names), "metadata", "row"))
        return columns

    @property
    def _is_wide(self) -> bool:
        return len(self._kinds) > _COLUMNS_MAX

    def arrays(self, arrow: Any, fields: Sequence[_Column], values: Sequence[Any]) -> list[Any]:
        """The columns of some rows' metadata."""
        whole = any(field.kind == "row" for field in fields)
        only_whole = whole and len(fields) == 1
        known = {field.key for field in fields if field.kind != "row"}
        for value in values:
            plain = isinstance(value, dict) and value and not only_whole
            lacks = (
                value is not None and not whole
                if not plain
                else any(value[key] is not None for key in value.keys() - known)
            )
            if lacks:
                raise _changed()
        arrays = []
        for field in fields:
            if field.kind == "row":
                listed = [
                    None if value is None or (isinstance(value, dict) and value and not only_whole) else _json(value)
                    for value in values
                ]
            else:
                listed = [_cell(value, field) for value in values]
            try:
                arrays.append(arrow.array(listed, field.arrow.type))
            except (ValueError, TypeError, OverflowError):
                raise _changed() from None
        return arrays


def _changed() -> ConflictError:
    return ConflictError("the rows changed while a table was made of them: try again while no other task writes")


def _cell(metadata: Any, field: _Column) -> Any:
    if not isinstance(metadata, Mapping):
        return None
    value = metadata.get(field.key)
    if value is None:
        return None
    if field.kind == "json":
        return _json(value)
    return str(value) if field.kind == "uuid" else float(value) if field.kind == "float" else value


def _json(value: Any) -> str:
    return json.dumps(json_ready(value), ensure_ascii=False)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name = f"metadata.{name}"
    taken.add(name)
    return name


def _column(arrow: Any, name: str, key: str, kind: str) -> _Column:
    types = {
        "bool": arrow.bool_(),
        "int": arrow.int64(),
        "bigint": arrow.int64(),
        "float": arrow.float64(),
        "str": arrow.string(),
        "date": arrow.date32(),
        "datetime": arrow.timestamp("us", "UTC"),
    }
    said = {} if name == key else {"key": key}
    if kind in ("json", "uuid", "row"):
        type, said = arrow.string(), {**said, "kind": kind}
    elif kind.startswith("list:"):
        type = arrow.list_(types.get(kind.removeprefix("list:"), arrow.string()))
    else:
        type = types[kind]
    return _Column(key, kind, arrow.field(name, type, metadata={_MARK: json.dumps(said)} if said else None))


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        size = abs(value)
        return "int" if size <= _EXACT_MAX else "bigint" if size <= _INT64_MAX else "json"
    for type, kind in ((float, "float"), (str, "str"), (datetime, "datetime"), (date, "date"), (UUID, "uuid")):
        if isinstance(value, type):
            return kind
    if isinstance(value, list):
        kinds = {_kind_of(item) for item in value}
        if not kinds:
            return "list:"
        kind = kinds.pop()
        return f"list:{kind}" if not kinds and kind in ("bool", "int", "bigint", "float", "str") else "json"
    return "json"


def _common(one: str, other: str) -> str:
    """The kind of a column that has values of both kinds."""
    pair = {one, other}
    if pair == {"int", "float"}:
        return "float"
    if pair == {"int", "bigint"}:
        return "bigint"
    if "list:" in pair and all(kind.startswith("list:") for kind in pair):
        return max(pair)
    return "json"
