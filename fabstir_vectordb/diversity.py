"""Hits that say different things: maximal marginal relevance (Carbonell & Goldstein 1998).

Of the candidates that are left, each step takes the one with the largest λ·s(q, d) − (1 − λ)·max s(d, d′), d′ over the
hits taken so far. s is the metric's score, in [0, 1], between query and row as between two rows.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import K_MAX
from fabstir_vectordb.config import Metric
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.types import SearchResults

__all__ = ["MMR_K_MAX", "candidates_for", "check_mmr", "most_diverse"]

#: Hits at most: every step compares all candidates with the one before.
MMR_K_MAX: Final = 1_000
#: Candidates for k hits: so many times k, and at least so many more than k.
_TIMES: Final = 4
_MORE: Final = 32

Float64Array = npt.NDArray[np.float64]


def check_mmr(mmr: object, k: int) -> float:
    """λ: a number from 0 (hits that differ) to 1 (hits that are near).

    Raises:
        InvalidInputError: it is something else, or `k` is more than MMR_K_MAX.
    """
    if isinstance(mmr, bool) or not isinstance(mmr, (int, float, np.number)) or not 0.0 <= mmr <= 1.0:
        raise InvalidInputError(f"mmr must be None or a number between 0 and 1, got {mmr!r}", details={"mmr": mmr})
    if k > MMR_K_MAX:
        raise InvalidInputError(
            f"with mmr, k must be at most {MMR_K_MAX}, got {k}", details={"k": k, "limit": MMR_K_MAX}
        )
    return float(mmr)


def candidates_for(k: int) -> int:
    """How many of the nearest rows k hits are chosen from."""
    return min(max(_TIMES * k, k + _MORE), K_MAX)


def most_diverse(candidates: SearchResults, k: int, mmr: float, metric: Metric, include_vectors: bool) -> SearchResults:
    """k hits of the candidates, in the order in which they are chosen.

    Args:
        candidates: hits with their vectors, nearest first.
        k: how many to choose.
        mmr: λ, 0 to 1.
        metric: the index's.
        include_vectors: whether hits keep their vectors.
    """
    chosen = [candidates[position] for position in _positions(candidates, k, mmr, metric)]
    missing = min(k, len(candidates) + candidates.below_threshold) - len(chosen)
    if not include_vectors:
        for hit in chosen:
            hit.vector = None
    return SearchResults(chosen, missing, candidates.plan)


def _positions(candidates: SearchResults, k: int, mmr: float, metric: Metric) -> list[int]:
    if not len(candidates):
        return []
    # In float64: products of float32 would decide between rows by the way in which the machine adds.
    rows = np.array([hit.vector for hit in candidates], dtype=np.float64)
    if metric == "cosine":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    relevance = mmr * np.array([hit.score for hit in candidates])
    # The nearest comes first for any λ: nothing was taken that it could be like.
    taken = [0]
    closest = _scores(rows, rows[0], metric)
    left = np.arange(len(rows)) > 0
    while len(taken) < min(k, len(rows)):
        gain = np.where(left, relevance - (1.0 - mmr) * closest, -np.inf)
        best = int(np.argmax(gain))  # the nearest of equals
        taken.append(best)
        left[best] = False
        np.maximum(closest, _scores(rows, rows[best], metric), out=closest)
    return taken


def _scores(rows: Float64Array, row: Float64Array, metric: Metric) -> Float64Array:
    """The scores that rows have to one of them, as index.py defines them for hits."""
    found: Any
    if metric == "l2":
        found = 1.0 / (1.0 + np.linalg.norm(rows - row, axis=1))
    elif metric == "cosine":
        found = (1.0 + rows @ row) / 2.0
    else:
        # The logistic function, in a form that does not overflow.
        found = 0.5 + 0.5 * np.tanh(0.5 * (rows @ row))
    return np.asarray(found)
