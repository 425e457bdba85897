"""The synchronous index: arguments, what an empty one says, and closing beside calls that are inside."""

from __future__ import annotations

import ast
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fabstir_vectordb.index
from fabstir_vectordb import ConflictError, InvalidInputError, NotFoundError
from fabstir_vectordb._native.handle import NativeIndex
from fabstir_vectordb.index import Index, IndexClosed, prepare_batch, prepare_queries
from fabstir_vectordb.params import IndexParams, RunParams, SearchRequest, check_ef, check_k

BASE = np.random.default_rng(20_261_123).standard_normal((30, 4)).astype(np.float32)
IDS = [f"r{i}" for i in range(30)]


def filled() -> Index:
    index = Index(IndexParams(), RunParams())
    index.add(prepare_batch(IDS, BASE, None, None, lambda: 7, None))
    return index


def test_numbers_of_numpy_are_numbers() -> None:
    assert check_k(np.int64(3)) == 3
    assert check_ef(np.uint8(3)) == 3
    assert check_ef(None) == 0
    for bad in (np.float32(3), np.int64(0), np.bool_(True), "3", 3.0):
        with pytest.raises(InvalidInputError):
            check_k(bad)
        with pytest.raises(InvalidInputError):
            check_ef(bad)
    times: list[Any] = [np.float64(1.5), np.int32(2), None]
    batch = prepare_batch(["a", "b", "c"], BASE[:3], None, times, lambda: 9, None)
    assert batch.timestamps.tolist() == [1_500_000, 2_000_000, 9 + 2]
    batch = prepare_batch(["a", "b"], BASE[:2], None, np.array([3, -4]), lambda: 9, None)
    assert batch.timestamps.tolist() == [3_000_000, -4_000_000]
    for times in ([np.datetime64("NaT")], [np.float64("inf")], [2**80]):
        with pytest.raises(InvalidInputError, match="timestamp of row 0"):
            prepare_batch(["a"], BASE[:1], None, times, lambda: 9, None)


def test_the_clock_is_read_at_most_once_and_only_for_rows() -> None:
    readings = iter([5])
    batch = prepare_batch(["a", "b", "c"], BASE[:3], None, [None, 1, None], lambda: next(readings), None)
    assert batch.timestamps.tolist() == [5, 1_000_000, 7]  # a microsecond more each, in the order of the call
    for times in (None, []):
        assert len(prepare_batch([], [], None, times, lambda: next(readings), None).timestamps) == 0


def test_rows_without_a_vector_take_the_dimension_that_came_meanwhile() -> None:
    index = Index(IndexParams(), RunParams())
    batch = prepare_batch(["bare"], None, None, None, lambda: 7, None)
    index.add(prepare_batch(IDS, BASE, None, None, lambda: 7, None))
    index.add(batch)
    assert index.live_count == 31
    assert index.counts.vectorless == 1


def test_no_queries_have_any_shape() -> None:
    for nothing in ([], np.empty((0, 4)), np.empty((0, 9)), [[]][:0]):
        assert len(prepare_queries(nothing, 4)) == 0
    for bad in (np.empty((2, 0)), np.empty((2, 3)), np.float32(1)):
        with pytest.raises(InvalidInputError):
            prepare_queries(bad, 4)


def test_vectors_without_components_are_refused() -> None:
    for vectors, message in [
        (np.empty((2, 0)), "1 to 4096 dimensions, got 0"),
        (np.ones((2, 4097)), "1 to 4096 dimensions, got 4097"),
        (np.ones((2, 2, 2)), "shape"),
        ([[1.0] * 4, [1.0, 2.0]], "expected 4, got 2"),
        (np.ones((2, 3)), "expected 4, got 3"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            prepare_batch(["a", "b"], vectors, None, None, lambda: 0, 4)


def test_an_empty_index_has_nothing_to_delete() -> None:
    index = Index(IndexParams(), RunParams())
    with pytest.raises(NotFoundError, match="'a'"):
        index.delete(["a"])
    assert index.delete(["a", "b"], missing_ok=True).deleted_count == 0
    assert index.delete([]).deleted_ids == []
    with pytest.raises(NotFoundError):
        index.update_metadata("a", 1)
    assert index.vacuum().total_removed == 0
    assert index.changes == 0
    assert index.scan(index.cursor(), 10) == []
    index.close()


def test_a_batch_of_another_dimension_is_refused_by_the_index_itself() -> None:
    # Two first adds may be prepared before either fixes the dimension.
    first = prepare_batch(["a"], BASE[:1], None, None, lambda: 0, None)
    second = prepare_batch(["b"], BASE[:1, :3], [{"n": 1}], None, lambda: 0, None)
    index = Index(IndexParams(), RunParams())
    index.add(first)
    with pytest.raises(InvalidInputError, match="expected 4, got 3"):
        index.add(second)
    with pytest.raises(InvalidInputError, match="on_conflict"):
        index.add(first, "maybe")
    with pytest.raises(ConflictError):
        index.add(first)
    assert index.counts.live == 1
    index.close()


def test_close_waits_for_the_calls_that_are_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled()
    entered, go = threading.Event(), threading.Event()
    real = NativeIndex.search_in_steps
    order: list[str] = []

    def held(native: NativeIndex, *args: Any, **kwargs: Any) -> Any:
        entered.set()
        assert go.wait(60)
        yield from real(native, *args, **kwargs)
        order.append("searched")

    monkeypatch.setattr(NativeIndex, "search_in_steps", held)
    found: list[Any] = []
    searching = threading.Thread(
        target=lambda: found.extend(index.search_batch(BASE[:1], SearchRequest(BASE[0], 1, None)))
    )
    searching.start()
    assert entered.wait(60)

    def close() -> None:
        index.close()
        order.append("closed")

    closing = threading.Thread(target=close)
    closing.start()
    while index.gate.is_open:
        threading.Event().wait(0.001)
    with pytest.raises(IndexClosed):
        index.get(["r1"])
    go.set()
    searching.join(60)
    closing.join(60)
    assert order == ["searched", "closed"]
    assert [hit.id for hit in found[0]] == ["r0"]
    for call in (
        lambda: index.search(SearchRequest(BASE[0], 1, None)),
        lambda: index.add(prepare_batch(["x"], BASE[:1], None, None, lambda: 0, 4)),
        lambda: index.delete(["r1"]),
        index.vacuum,
        index.stats,
        index.cursor,
    ):
        with pytest.raises(IndexClosed):
            call()
    index.close()
    assert (index.dim, index.counts.live, index.metadata_bytes) == (None, 0, 0)


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 5e18, 1e20, 1e30, 1e37])
@pytest.mark.parametrize("offset", [0.0, 3.0, -3.0])
def test_exact_searches_of_large_values_miss_nothing(metric: str, scale: float, offset: float) -> None:
    """Codes are scored in float32, where distances of such rows overflow; then they must rule nothing out."""
    rng = np.random.default_rng(5)
    vectors = ((rng.standard_normal((2_000, 8)) + offset) * scale).astype(np.float32)
    queries = ((rng.standard_normal((10, 8)) + 3) * scale).astype(np.float32)
    index = Index(IndexParams(metric=metric, M=4, ef_construction=16), RunParams())
    index.add(prepare_batch([f"{row:04d}" for row in range(2_000)], vectors, None, None, lambda: 0, None))
    wide, asked = vectors.astype(np.float64), queries.astype(np.float64)
    true = np.sqrt(((wide[None] - asked[:, None]) ** 2).sum(axis=2)) if metric == "l2" else -(asked @ wide.T)
    for query, distances in zip(queries, np.sort(true, axis=1), strict=True):
        hits = index.search(SearchRequest(query, 10, None, exact=True))
        assert hits.plan == "flat"
        np.testing.assert_allclose([hit.distance for hit in hits], distances[:10], rtol=1e-9, atol=1e-9 * scale**2)
    index.close()


def test_the_index_knows_no_store_and_no_event_loop() -> None:
    package = Path(fabstir_vectordb.index.__file__).parent
    above = ("fabstir_vectordb.persist", "fabstir_vectordb.storage", "fabstir_vectordb.session", "anyio", "asyncio")
    for path in package.glob("*.py"):
        imported = [
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
        ]
        assert not [name for name in imported if name.startswith(above)], path.name
