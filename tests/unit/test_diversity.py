"""Maximal marginal relevance against its definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fabstir_vectordb import InvalidInputError, SearchResult, SearchResults
from fabstir_vectordb.diversity import candidates_for, most_diverse
from fabstir_vectordb.index import SCORES
from fabstir_vectordb.params import MMR_K_MAX, check_mmr


def distance(metric: str, a: Any, b: Any) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    if metric == "l2":
        return float(math.dist(a, b))
    product = float(a @ b)
    return 1 - product / math.sqrt(float(a @ a) * float(b @ b)) if metric == "cosine" else -product


def hits_of(metric: str, rows: Any, query: Any) -> SearchResults:
    distances = [distance(metric, row, query) for row in rows]
    order = np.argsort(distances, kind="stable").tolist()
    scores = SCORES[metric]([distances[row] for row in order])
    hits = [
        SearchResult(str(row), score, distances[row], None, rows[row]) for row, score in zip(order, scores, strict=True)
    ]
    return SearchResults(hits, 0, "flat")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["cosine", "l2", "dot"]), st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(1, 12),
    st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
)  # fmt: skip
def test_each_hit_has_the_largest_marginal_relevance(metric: Any, seed: int, n: int, k: int, mmr: float) -> None:
    random = np.random.default_rng(seed)
    rows, query = random.standard_normal((n, 3)).astype(np.float32), random.standard_normal(3).astype(np.float32)
    candidates = list(hits_of(metric, rows, query))
    chosen = list(most_diverse(hits_of(metric, rows, query), k, mmr, metric, True))
    assert len(chosen) == min(k, n)
    for place, hit in enumerate(chosen):

        def gain(candidate: SearchResult, before: list[SearchResult] = chosen[:place]) -> float:
            like = [SCORES[metric]([distance(metric, candidate.vector, one.vector)])[0] for one in before]
            return mmr * candidate.score - (1 - mmr) * max(like, default=0.0)

        left = [candidate for candidate in candidates if candidate not in chosen[:place]]
        assert gain(hit) == pytest.approx(max(map(gain, left)), abs=1e-9)
    if chosen and mmr:
        assert chosen[0] == candidates[0]
    if mmr == 1.0:
        assert chosen == candidates[:k]


def test_the_nearest_comes_first_even_where_only_difference_counts() -> None:
    rows = np.array([[1, 0], [0.9, 0.1], [0, 1], [-1, 0]], dtype=np.float32)
    chosen = most_diverse(hits_of("cosine", rows, rows[0]), 3, 0.0, "cosine", False)
    assert [hit.id for hit in chosen] == ["0", "3", "2"]
    assert all(hit.vector is None for hit in chosen)


def test_large_products_do_not_overflow() -> None:
    rows = np.array([[1e18, 0], [0, 1e18], [-1e18, 0]], dtype=np.float32)
    with np.errstate(over="raise", invalid="raise"):
        chosen = most_diverse(hits_of("dot", rows, rows[0]), 3, 0.5, "dot", False)
    assert [hit.id for hit in chosen] == ["0", "1", "2"]


def test_what_the_threshold_removed_is_counted_as_for_k_hits() -> None:
    rows = np.eye(4, dtype=np.float32)
    hits = hits_of("cosine", rows, rows[0])
    assert most_diverse(SearchResults(list(hits), 6, "graph"), 4, 0.5, "cosine", True).below_threshold == 0
    cut = most_diverse(SearchResults(list(hits), 6, "graph"), 8, 0.5, "cosine", False)
    assert (len(cut), cut.below_threshold, cut.plan) == (4, 4, "graph")


def test_candidates_are_four_times_k_and_never_few() -> None:
    assert [candidates_for(k) for k in (1, 10, 11, 100, 1_000)] == [33, 42, 44, 400, 4_000]


@pytest.mark.parametrize("mmr", [-0.1, 1.1, True, "0.5", float("nan"), [0.5]])
def test_a_bad_lambda_is_refused(mmr: Any) -> None:
    with pytest.raises(InvalidInputError, match="mmr must be None or a number between 0 and 1"):
        check_mmr(mmr, 10)
    assert check_mmr(np.float32(0.5), 10) == 0.5
    with pytest.raises(InvalidInputError, match="k must be at most 1000"):
        check_mmr(0.5, MMR_K_MAX + 1)
