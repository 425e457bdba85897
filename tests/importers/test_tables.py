"""Tables in and out: what every library hands over, what a column becomes, and that every row comes back."""

from __future__ import annotations

import asyncio
import io
import math
import sys
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from fabstir_vectordb import (
    AddResult,
    ConflictError,
    InvalidConfigError,
    InvalidInputError,
    SearchResult,
    VectorDBSession,
    arrow as arrow_module,
    sync,
)
from fabstir_vectordb.tables import TableColumns, open_table, write_table
from fabstir_vectordb.types import results_of

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

DIM = 4
MOMENT = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


@pytest.fixture
def session() -> Iterator[sync.VectorDBSession]:
    with new_session() as made:
        yield made


def new_session() -> sync.VectorDBSession:
    return sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase="tables", session_id="t", metric="l2")


def vectors_of(n: int, dim: int = DIM, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def listed(vectors: np.ndarray) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def rows_of(session: sync.VectorDBSession) -> dict[str, tuple[Any, Any]]:
    return {row.id: (None if row.vector is None else row.vector.tolist(), row.metadata) for row in session.scan()}


def refused(session: sync.VectorDBSession, table: Any, message: str, columns: TableColumns | None = None) -> Any:
    with pytest.raises(InvalidInputError, match=message) as caught:
        session.add_table(table, columns)
    assert session.count() == 0
    return caught.value.details


# ---- in


def test_every_row_of_a_table_comes_in(session: sync.VectorDBSession) -> None:
    vectors = vectors_of(3)
    table = pa.table(
        {
            "id": ["a", "b", "c"],
            "vector": listed(vectors),
            "n": pa.array([1, None, 3]),
            "ratio": pa.array([0.5, math.nan, None]),
            "day": pa.array([date(2024, 1, 2), None, None]),
            "at": pa.array([MOMENT, None, None], pa.timestamp("ns", "UTC")),
            "local": pa.array([MOMENT.replace(tzinfo=None), None, None], pa.timestamp("s")),
            "price": pa.array([Decimal("1.25"), None, None]),
            "tags": pa.array([["x", "y"], [], None]),
            "nested": pa.array([{"p": {"q": 1}}, None, None]),
            "kind": pa.array(["k", None, None]).dictionary_encode(),
            "timestamp": pa.array([MOMENT, MOMENT - timedelta(days=1), MOMENT]),
            "expires_at": pa.array([None, datetime(2200, 1, 1, tzinfo=UTC), None]),
        }
    )
    assert session.add_table(table) == AddResult(3, 0, 0)
    assert rows_of(session) == {
        "a": (
            vectors[0].tolist(),
            {
                "n": 1,
                "ratio": 0.5,
                "day": date(2024, 1, 2),
                "at": MOMENT,
                "local": MOMENT.replace(microsecond=0),
                "price": 1.25,
                "tags": ["x", "y"],
                "nested": {"p": {"q": 1}},
                "kind": "k",
            },
        ),
        "b": (vectors[1].tolist(), {"tags": []}),
        "c": (vectors[2].tolist(), {"n": 3}),
    }
    a, b, _ = session.get(["a", "b", "c"])
    assert (a.timestamp, a.expires_at) == (MOMENT.timestamp(), None)
    assert b.expires_at == datetime(2200, 1, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "type",
    ["fixed", "list", "large", "half", "double", "ints", "tensor"],
)
def test_vectors_of_every_list_type_come_in(session: sync.VectorDBSession, type: str) -> None:
    vectors = np.rint(vectors_of(5) * 8)
    types = {
        "fixed": pa.list_(pa.float32(), DIM),
        "list": pa.list_(pa.float32()),
        "large": pa.large_list(pa.float32()),
        "half": pa.list_(pa.float16(), DIM),
        "double": pa.list_(pa.float64()),
        "ints": pa.list_(pa.int16(), DIM),
    }
    if type == "tensor":
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(vectors)
        columns = TableColumns(vector="vector")
    else:
        number = np.float16 if type == "half" else int if type == "ints" else float
        column = pa.array([[number(v) for v in row] for row in vectors], types[type])
        columns = None
    table = pa.table({"id": pa.array(range(5)), "vector": column}).slice(1, 3)
    session.add_table(table, columns)
    assert rows_of(session) == {str(n): (vectors[n].tolist(), None) for n in (1, 2, 3)}


def test_the_column_of_vectors_is_found_or_named(session: sync.VectorDBSession) -> None:
    vectors = listed(vectors_of(1))
    session.add_table(pa.table({"id": ["a"], "numbers": vectors}))
    session.add_table(pa.table({"id": ["b"], "other": vectors, "embedding": vectors}), TableColumns(metadata=[]))
    session.add_table(pa.table({"key": ["c"], "x": vectors, "y": vectors}), TableColumns(id="key", vector="y"))
    assert set(rows_of(session)) == {"a", "b", "c"}
    assert session.get(["b"])[0].metadata is None
    assert list(session.get(["c"])[0].metadata) == ["x"]


def test_rows_without_a_vector_come_in(session: sync.VectorDBSession) -> None:
    for n, type in enumerate([pa.list_(pa.float32(), 2), pa.list_(pa.float32())]):
        column = pa.array([[1.0, 2.0], None, [3.0, 4.0]], type)
        session.add_table(pa.table({"id": [f"{n}{i}" for i in range(3)], "vector": column}))
    assert rows_of(session)["01"] == rows_of(session)["11"] == (None, None)
    assert rows_of(session)["12"] == ([3.0, 4.0], None)


def test_what_cannot_be_a_row_is_refused_by_name(session: sync.VectorDBSession) -> None:
    vectors = listed(vectors_of(2))
    two = {"id": ["a", "b"], "vector": vectors}
    refused(session, [1, 2], "must have the Arrow C stream interface")
    refused(
        session, pa.table({"key": ["a", "b"], "vector": vectors}), "no column 'id' for the id; it has 'key', 'vector'"
    )
    refused(session, pa.table({"id": ["a"]}), "of columns with lists of numbers there is none")
    refused(session, pa.table({"id": ["a", "b"], "x": vectors, "y": vectors}), "there are 2: 'x', 'y'")
    refused(session, pa.table(two), "no column 'v'", TableColumns(vector="v"))
    refused(session, pa.table(two), "'id' must have a list of numbers", TableColumns(vector="id"))
    refused(session, pa.table(two), "not one name", TableColumns(metadata="id"))
    refused(session, pa.Table.from_arrays([pa.array(["a"])] * 2, names=["id", "id"]), "two columns of the name 'id'")
    assert refused(session, pa.table({**two, "id": ["a", None]}), "row 1 of the table has no id") == {"row": 1}
    refused(session, pa.table({**two, "id": [0.5, 1.5]}), "ids must be text or integers")
    refused(session, pa.table({**two, "raw": [b"1", b"2"]}), "column 'raw' has bytes")
    refused(session, pa.table({**two, "t": pa.array([1, 2], pa.duration("s"))}), "column 't' has type duration")
    refused(session, pa.table({**two, "timestamp": ["x", "y"]}), "must have timestamps or seconds")
    refused(session, pa.table({**two, "timestamp": [1.7e12, 1.7e12]}), "milliseconds are divided first")
    ragged = pa.array([[1.0, 2.0], [1.0]])
    assert refused(session, pa.table({**two, "vector": ragged}), "row 1 has 1 numbers")["row"] == 1
    hole = pa.array([[1.0, 2.0], [1.0, None]], pa.list_(pa.float32(), 2))
    assert refused(session, pa.table({**two, "vector": hole}), "row 1 has a null")["row"] == 1
    refused(session, pa.table({**two, "vector": pa.array([[1.0, math.nan]] * 2)}), "holds NaN")


@pytest.mark.parametrize("column", ["timestamp", "expires_at", "seen"])
@pytest.mark.parametrize("unit", ["s", "ms"])
@pytest.mark.parametrize("zone", [None, "Europe/Paris"])
def test_a_time_that_runs_over_names_its_row(
    session: sync.VectorDBSession, column: str, unit: str, zone: str | None
) -> None:
    most = (2**63 - 1) // {"s": 10**6, "ms": 10**3}[unit]
    for wrong in (most + 1, -most - 1, -(2**63)):
        for second in (5, None):
            times = pa.array([1, second, wrong], pa.timestamp(unit, zone))
            table = pa.table({"id": ["a", "b", "c"], "vector": listed(vectors_of(3)), column: times})
            assert refused(session, table, f"column '{column}': row 2 has a time") == {"row": 2}


def test_a_stream_that_fails_is_a_typed_error(session: sync.VectorDBSession) -> None:
    batch = pa.record_batch({"id": ["a"], "vector": listed(vectors_of(1))})

    def batches() -> Iterator[Any]:
        yield batch
        raise OSError("the source is gone")

    with pytest.raises(InvalidInputError, match=r"after 1 rows: .*the source is gone"):
        session.add_table(pa.RecordBatchReader.from_batches(batch.schema, batches()))


def test_tables_of_other_libraries_come_in(session: sync.VectorDBSession) -> None:
    vectors = vectors_of(3)
    added = 0
    try:
        import polars as pl
    except ImportError:
        pass
    else:
        frame = pl.DataFrame({"id": ["p0", "p1", "p2"], "n": [1, 2, 3], "vector": vectors})
        added += session.add_table(frame).added
        lists = pl.DataFrame({"id": ["q0"], "vector": [[1.0, 2.0, 3.0, 4.0]]})
        added += session.add_table(lists).added
    try:
        import pandas as pd
    except ImportError:
        pass
    else:
        frame = pd.DataFrame({"id": ["d0", "d1", "d2"], "n": [1, None, 3], "vector": list(vectors)})
        added += session.add_table(frame).added
        assert session.get(["d1"])[0].metadata is None
    try:
        import duckdb
    except ImportError:
        pass
    else:
        query = "select 'k' || i as id, i as n, [i, 0, 0, 0]::float[4] as vector from range(3) t(i)"
        added += session.add_table(duckdb.sql(query)).added
        assert rows_of(session)["k2"] == ([2, 0, 0, 0], {"n": 2})
    added += session.add_table(pa.record_batch({"id": ["r"], "vector": listed(vectors[:1])})).added
    assert session.count() == added


def test_vectors_are_not_copied_and_no_row_has_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    n, dim = 20_000, 64
    vectors = vectors_of(n, dim)
    table = pa.table({"id": [str(i) for i in range(n)], "vector": listed(vectors)})
    buffer = table["vector"].chunk(0).values.buffers()[1]
    tracemalloc.start()
    batches = list(arrow_module.batches_of(arrow_module.stream_of(table), TableColumns(), n))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(batches) == 1
    assert batches[0].vectors.ctypes.data == buffer.address
    assert peak < 100 * n  # the ids; an array object a row would take 112 bytes more


def test_an_asynchronous_session_takes_tables_and_files(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "vector": listed(vectors_of(2)), "n": [1, 2]})
    path = tmp_path / "rows.parquet"
    parquet.write_table(table, path)

    async def run() -> tuple[AddResult, AddResult, Any]:
        async with VectorDBSession.create(s5_portal="memory:", user_seed_phrase="tables", session_id="t") as session:
            first = await session.add_table(table)
            second = await session.add_table(path, on_conflict="skip")
            return first, second, (await session.to_arrow({"n": 2}), await session.to_arrow())

    first, second, (one, both) = asyncio.run(run())
    assert (first, second) == (AddResult(2, 0, 0), AddResult(0, 0, 2))
    assert (one.num_rows, both.num_rows) == (1, 2)


# ---- files


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_every_row_comes_back_from_a_file(session: sync.VectorDBSession, tmp_path: Path, suffix: str) -> None:
    metadata = [
        {"n": 1, "s": "é", "f": 0.5, "b": True, "mixed": 1, "many": [1, 2], "o": {"d": [1, None, {"e": "x"}]}},
        {"n": 2, "f": 1, "mixed": "one", "many": [], "big": 2**64 - 1, "d": date(2020, 2, 29), "t": MOMENT},
        {"u": UUID(int=7), "long": 2**60, "id": "inner", "vector": [1], "expires_at": "no", "metadata.id": 3},
        ["a", {"list": 1}],
        "text",
        {},
        None,
    ]
    vectors = vectors_of(len(metadata))
    ids = [f"row-{n}" for n in range(len(metadata))]
    given: list[Any] = [None if n == 2 else vector for n, vector in enumerate(vectors)]
    ends = [None, datetime(2300, 1, 1, tzinfo=UTC), *[None] * 5]
    session.add_batch(ids, given, metadata, [1.5 * n for n in range(len(ids))], expires_at=ends)
    path = tmp_path / f"rows{suffix}"
    assert write_table(session, path) == len(ids)
    with new_session() as other:
        assert other.add_table(str(path)) == AddResult(len(ids), 0, 0)
        for id in ids:
            (one,), (copy,) = session.get([id]), other.get([id])
            assert copy == one


def test_a_folder_of_parquet_files_comes_in(session: sync.VectorDBSession, tmp_path: Path) -> None:
    for year in (2023, 2024):
        folder = tmp_path / "data" / f"year={year}"
        folder.mkdir(parents=True)
        table = pa.table({"id": [f"{year}-{n}" for n in range(3)], "vector": listed(vectors_of(3))})
        parquet.write_table(table, folder / "part-0.parquet")
    assert session.add_table(tmp_path / "data") == AddResult(6, 0, 0)
    assert session.get(["2024-1"])[0].metadata == {"year": 2024}


def test_a_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one row group of 38 MB, less than half is in memory at a time."""
    n, dim = 150_000, 64
    path = tmp_path / "one.parquet"
    table = pa.table({"id": [str(i) for i in range(n)], "vector": listed(vectors_of(n, dim))})
    parquet.write_table(table, path, row_group_size=n, use_dictionary=["id"])
    del table
    before, most, read = pa.total_allocated_bytes(), 0, 0
    for batch in arrow_module.batches_of(open_table(path), TableColumns(), 10_000):
        read += len(batch.ids)
        most = max(most, pa.total_allocated_bytes() - before)
        del batch
    assert read == n
    assert most < n * dim * 4 * 0.6, most


def test_damaged_files_are_typed_errors(session: sync.VectorDBSession, tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    stream = tmp_path / "whole.arrow"
    session.add_batch(["a", "b"], vectors_of(2), [{"n": 1}, {"n": 2}])
    write_table(session, whole)
    write_table(session, stream)
    rng = np.random.default_rng(3)
    with new_session() as other:
        for path in (whole, stream):
            raw = path.read_bytes()
            damaged = [raw[:size] for size in range(0, len(raw), max(1, len(raw) // 40))]
            for _ in range(60):
                bytes_ = bytearray(raw)
                bytes_[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
                damaged.append(bytes(bytes_))
            for content in damaged:
                bad = tmp_path / f"bad{path.suffix}"
                bad.write_bytes(content)
                try:
                    other.add_table(bad, on_conflict="replace")
                except (InvalidInputError, OSError):
                    continue
                assert other.count() >= 0
    with pytest.raises(InvalidInputError, match="must end in"):
        open_table(tmp_path / "rows.xlsx")
    with pytest.raises(InvalidInputError, match="must end in"):
        write_table(session, tmp_path / "rows.csv")
    with pytest.raises(FileNotFoundError):
        open_table(tmp_path / "none.parquet")


@pytest.mark.parametrize("is_open", [False, True])
def test_a_stream_that_was_cut_between_batches_is_refused(
    session: sync.VectorDBSession, tmp_path: Path, is_open: bool
) -> None:
    """Also where the bytes before the cut look like the marker, and where no batch is left."""
    numbers = pa.array([-1, 0], pa.int32())
    batch = pa.record_batch({"id": ["a", "b"], "vector": listed(vectors_of(2)), "n": numbers})
    for batches, dictionary in ((2, False), (1, True), (0, False), (0, True)):
        first = batch
        if dictionary:
            first = batch.append_column("word", pa.array(["x", "y"]).dictionary_encode())
        out = io.BytesIO()
        with pa.ipc.new_stream(out, first.schema) as writer:
            for _ in range(batches):
                writer.write_batch(first)
        raw = out.getvalue()
        assert raw.endswith(b"\xff\xff\xff\xff\0\0\0\0")

        def read(content: bytes) -> int:
            path = tmp_path / "t.arrow"
            path.write_bytes(content)
            if is_open:
                with path.open("rb") as source:
                    return sum(part.num_rows for part in open_table(source, format="arrow"))
            return sum(part.num_rows for part in open_table(path))

        assert read(raw) == read(raw + b"more") == 2 * batches
        with pytest.raises((InvalidInputError, pa.ArrowInvalid), match="no end marker"):
            read(raw[:-8])
    (tmp_path / "t.arrow").write_bytes(raw[:-8])
    with pytest.raises(InvalidInputError, match="no end marker"):
        session.add_table(tmp_path / "t.arrow")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_table_is_written_whole_or_the_file_stays(
    session: sync.VectorDBSession, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.add_batch(["a", "b"], vectors_of(2), [{"n": 1}, {"n": 2}])
    target = tmp_path / f"rows{suffix}"
    target.write_bytes(b"of the user")
    target.chmod(0o640)

    def fails(*_: Any) -> Any:
        assert target.read_bytes() == b"of the user"
        raise MemoryError

    with pytest.raises(InvalidInputError):
        write_table(session, target, filter={"n": {"$no": 1}})
    for verb in ("see", "batch"):
        with monkeypatch.context() as patch:
            patch.setattr(arrow_module.TableWriter, verb, fails)
            with pytest.raises(MemoryError):
                write_table(session, target)

    async def refuse() -> None:
        async with await VectorDBSession.create(s5_portal="memory:", user_seed_phrase="x", session_id="t") as other:
            with pytest.raises(InvalidInputError, match="asynchronous"):
                write_table(other, target)  # type: ignore[arg-type]

    asyncio.run(refuse())
    assert target.read_bytes() == b"of the user"
    assert [entry.name for entry in tmp_path.iterdir()] == [target.name]
    assert write_table(session, target) == 2
    assert session.to_arrow().num_rows == open_table(target).read_all().num_rows == 2
    assert target.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == [target.name]


def test_rows_that_change_while_they_are_written_are_a_conflict(session: sync.VectorDBSession, tmp_path: Path) -> None:
    session.add_batch(["a"], vectors_of(1), [{"n": 1}])
    for changed in ({"m": 1}, {"n": "text"}, [1]):
        writer = arrow_module.TableWriter()
        for row in session.scan():
            writer.see(row)
        assert writer.schema.names == ["id", "vector", "timestamp", "n"]
        session.update_metadata("a", changed)
        with pytest.raises(ConflictError, match="changed"):
            writer.batch(list(session.scan()))
        session.update_metadata("a", {"n": 1})


def test_rows_with_more_keys_than_columns_have_one_column(session: sync.VectorDBSession, tmp_path: Path) -> None:
    n = 1_200
    session.add_batch([str(i) for i in range(n)], vectors_of(n), [{f"key{i}": i} for i in range(n)])
    path = tmp_path / "wide.parquet"
    write_table(session, path)
    assert open_table(path).schema.names == ["id", "vector", "timestamp", "metadata"]
    with new_session() as other:
        other.add_table(path)
        assert rows_of(other) == rows_of(session)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_no_rows_and_no_vectors_are_tables_too(session: sync.VectorDBSession, tmp_path: Path, suffix: str) -> None:
    assert session.to_arrow().num_rows == 0
    path = tmp_path / f"rows{suffix}"
    assert write_table(session, path) == 0
    assert session.add_table(path) == AddResult(0, 0, 0)
    session.add_batch(["a", "b"], None, [{"n": 1}, None])
    assert write_table(session, path) == 2
    with new_session() as other:
        other.add_table(path)
        assert rows_of(other) == {"a": (None, {"n": 1}), "b": (None, None)}


# ---- hits


def test_hits_become_tables_and_frames(session: sync.VectorDBSession) -> None:
    session.add_batch(["a", "b"], [[0.0, 1.0], [5.0, 5.0]], [{"id": "inner", "n": 1, "tags": ["x"]}, {"n": 2.5}])
    hits = session.search([0.0, 1.0], k=2, include_vectors=True, threshold=None)
    table = hits.to_arrow()
    assert table.schema.names == ["id", "score", "distance", "vector", "metadata.id", "n", "tags"]
    assert table.column("n").to_pylist() == [1, 2.5]
    assert table.column("vector").to_pylist() == [[0.0, 1.0], [5.0, 5.0]]
    assert session.search([0.0, 1.0], k=1).to_arrow().num_columns == 6
    empty = results_of([], 0, "flat").to_arrow()
    assert (empty.num_rows, empty.schema.names) == (0, ["id", "score", "distance"])
    odd = results_of([SearchResult("a", 1.0, 0.0, "text"), SearchResult("b", 1.0, 0.0, {"k": 1})], 0, "flat")
    assert odd.to_arrow().to_pydict()["metadata"] == ['"text"', None]
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = hits.to_pandas()
    assert list(frame["id"]) == ["a", "b"]
    assert isinstance(frame, pandas.DataFrame)
    assert len(session.to_pandas()) == 2


def test_without_pyarrow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidConfigError, match=r"tables need pyarrow: .* install 'pyarrow"):
        results_of([], 0, "flat").to_arrow()
    with new_session() as session, pytest.raises(InvalidConfigError, match="pyarrow"):
        session.add_table(object())


def test_numbers_of_a_mark_that_is_damaged_are_refused(session: sync.VectorDBSession) -> None:
    good = pa.array(['{"a": 1}'])
    base = {"id": pa.array(["a"]), "vector": listed(vectors_of(1))}

    def table(mark: bytes, column: Any) -> Any:
        fields = [pa.field(name, array.type) for name, array in base.items()]
        field = pa.field("m", column.type, metadata={b"fabstir_vectordb": mark})
        return pa.Table.from_arrays([*base.values(), column], schema=pa.schema([*fields, field]))

    refused(session, table(b"{", good), "mark of this package that is damaged")
    refused(session, table(b"[]", good), "mark of this package that is damaged")
    refused(session, table(b'{"kind": "json"}', pa.array(["{"])), "row 0 is no json")
    refused(session, table(b'{"kind": "json"}', pa.array(["[" * 100_000])), "row 0 is no json")
    refused(session, table(b'{"kind": "uuid"}', good), "row 0 is no uuid")
    session.add_table(table(b'{"kind": "row"}', good))
    assert rows_of(session)["a"][1] == {"a": 1}
