"""Hits that differ from each other: maximal marginal relevance (Carbonell & Goldstein 1998).

Of the candidates that are left, each step takes the one with the largest λ·s(q, d) − (1 − λ)·max s(d, d′), d′ over the
hits taken so far. s is the metric's score, in [0, 1], between query and row as between two rows; with text, the score
of the hit. A row without a vector resembles no other: s is 0.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import K_MAX, Control
from fabstir_vectordb.config import Metric
from fabstir_vectordb.index.protocol import Gathered, ReadableIndex
from fabstir_vectordb.params import SearchRequest
from fabstir_vectordb.types import SearchResults

__all__ = ["candidates_for", "most_diverse", "search_batch_diverse", "search_diverse", "widened"]

#: Candidates of k hits: 4 k, and at least k + 32.
_TIMES: Final = 4
_MORE: Final = 32

Float64Array = npt.NDArray[np.float64]


def candidates_for(k: int) -> int:
    """The number of candidates from which k hits are chosen."""
    return min(max(_TIMES * k, k + _MORE), K_MAX)


def widened(request: SearchRequest) -> SearchRequest:
    """The search for the candidates of a search with `mmr`."""
    return request._replace(k=candidates_for(request.k), include_vectors=True, mmr=None)


def search_diverse(
    index: ReadableIndex, request: SearchRequest, gathered: Gathered, control: Control | None = None
) -> SearchResults:
    """The hits of a search with `mmr`; for a lazily loaded index, `gathered` is complete for `widened`."""
    candidates = index.search(widened(request), gathered, control)
    return _chosen(candidates, request, index)


def search_batch_diverse(
    index: ReadableIndex,
    queries: npt.NDArray[np.float32],
    request: SearchRequest,
    gathered: Gathered,
    control: Control | None = None,
) -> list[SearchResults]:
    """`search_diverse` for each of many queries."""
    each = index.search_batch(queries, widened(request), gathered, control)
    return [_chosen(candidates, request, index) for candidates in each]


def _chosen(candidates: SearchResults, request: SearchRequest, index: ReadableIndex) -> SearchResults:
    assert request.mmr is not None
    return most_diverse(candidates, request.k, request.mmr, index.metric, request.include_vectors)


def most_diverse(candidates: SearchResults, k: int, mmr: float, metric: Metric, include_vectors: bool) -> SearchResults:
    """k hits of the candidates, in the order in which they are chosen.

    Args:
        candidates: hits with their vectors, nearest first.
        k: how many to choose.
        mmr: λ, 0 to 1.
        metric: the index's metric.
        include_vectors: whether hits keep their vectors.
    """
    chosen = [candidates[position] for position in _positions(candidates, k, mmr, metric)]
    missing = min(k, len(candidates) + candidates.below_threshold) - len(chosen)
    if not include_vectors:
        for hit in chosen:
            hit.vector = None
    results = SearchResults(chosen, missing, candidates.plan)
    results.receipt = candidates.receipt
    return results


def _positions(candidates: SearchResults, k: int, mmr: float, metric: Metric) -> list[int]:
    if not len(candidates):
        return []
    # In float64: in float32 the choice could depend on the machine's order of additions.
    vectors = [hit.vector for hit in candidates]
    known = np.array([vector is not None for vector in vectors])
    dim = max((len(vector) for vector in vectors if vector is not None), default=0)
    rows = np.array([np.zeros(dim) if vector is None else vector for vector in vectors], dtype=np.float64)
    if metric == "cosine":
        rows[known] /= np.linalg.norm(rows[known], axis=1, keepdims=True)
    relevance = mmr * np.array([hit.score for hit in candidates])
    # The nearest row comes first for any λ, as there is no hit yet that it could resemble.
    taken = [0]
    closest = np.where(known & known[0], _scores(rows, rows[0], metric), 0.0)
    left = np.arange(len(rows)) > 0
    while len(taken) < min(k, len(rows)):
        gain = np.where(left, relevance - (1.0 - mmr) * closest, -np.inf)
        best = int(np.argmax(gain))  # the nearest of equals
        taken.append(best)
        left[best] = False
        np.maximum(closest, np.where(known & known[best], _scores(rows, rows[best], metric), 0.0), out=closest)
    return taken


def _scores(rows: Float64Array, row: Float64Array, metric: Metric) -> Float64Array:
    """The scores between rows and one of them, with the formulas of index_scores.c."""
    found: Any
    if metric == "l2":
        found = 1.0 / (1.0 + np.linalg.norm(rows - row, axis=1))
    elif metric == "cosine":
        found = (1.0 + rows @ row) / 2.0
    else:
        # The logistic function, in a form that does not overflow.
        found = 0.5 + 0.5 * np.tanh(0.5 * (rows @ row))
    return np.asarray(found)
