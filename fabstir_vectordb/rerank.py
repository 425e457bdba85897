"""Hits in the order of a caller's own scores, as a cross-encoder gives them to pairs of a question and a text."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import Any

import numpy as np

from fabstir_vectordb._native.handle import K_MAX
from fabstir_vectordb.diversity import candidates_for
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.params import GROUPED_HITS_MAX, Rerank, SearchRequest
from fabstir_vectordb.runtime import Runtime
from fabstir_vectordb.types import RerankedResult, SearchGroup, SearchResults
from fabstir_vectordb.worker_threads import is_async

__all__ = ["check_blocking", "reranked", "widened"]


def widened(request: SearchRequest) -> SearchRequest:
    """The search for the candidates of a search with `rerank`."""
    k = request.rerank_k or candidates_for(request.k)
    most = K_MAX if request.group_by is None else max(GROUPED_HITS_MAX // request.group_size, request.k)
    return request._replace(k=min(k, K_MAX, most), rerank=None, rerank_k=0)


def check_blocking(rerank: Rerank) -> None:
    """Checks that a session without an event loop can call a function.

    Raises:
        InvalidInputError: it is a coroutine function.
    """
    if is_async(rerank):
        raise _needs_a_loop()


async def reranked(runtime: Runtime, query: Any, candidates: SearchResults, request: SearchRequest) -> SearchResults:
    """The k hits with the largest scores.

    The function runs in a worker thread, unless the session has no event loop; a coroutine function is awaited.

    Args:
        runtime: the session's.
        query: the query that the function gets: the vector, or the text of a search with text.
        candidates: hits of the widened search.
        request: the search.

    Raises:
        InvalidInputError: the scores are not one number for each hit, or the function raises StopIteration.
        Exception: what else the function raises.
    """
    rerank = request.rerank
    assert rerank is not None
    if not candidates:
        return candidates
    given = rerank(query, candidates) if is_async(rerank) else await runtime.compute(_call, rerank, query, candidates)
    if inspect.isawaitable(given):
        try:
            given = await _awaited(given, runtime)
        except RuntimeError as error:
            if isinstance(error.__cause__, StopIteration):
                raise _stopped() from error.__cause__
            raise
    return _in_order(candidates, _scores(given, len(candidates)), request)


def _call(rerank: Rerank, query: Any, candidates: SearchResults) -> Any:
    try:
        return rerank(query, candidates)
    except StopIteration as error:
        raise _stopped() from error


def _stopped() -> InvalidInputError:
    # It ends a coroutine, so Python lets it through none, and no caller that awaits can get it.
    return InvalidInputError("rerank raised StopIteration, as next() does on an iterator that has ended")


async def _awaited(given: Awaitable[Any], runtime: Runtime) -> Any:
    if runtime.is_blocking:
        if inspect.iscoroutine(given):
            given.close()
        raise _needs_a_loop()
    return await given


def _needs_a_loop() -> InvalidInputError:
    return InvalidInputError("rerank must be a plain function in a session without async: nothing could await it")


def _scores(given: Any, n: int) -> list[float]:
    try:
        array = np.asarray(given)
        # As float64, complex numbers would lose a part, and texts and times would be read as numbers.
        kinds = {np.asarray(one).dtype.kind for one in array.ravel()} if array.dtype.kind == "O" else {array.dtype.kind}
        if kinds & set("cSUmM"):
            raise TypeError("real numbers are needed, not complex numbers, texts or times")
        array = array.astype(np.float64)
    except Exception as error:
        raise InvalidInputError(f"the scores of rerank are no numbers: {type(error).__name__}: {error}") from error
    if array.size != n or array.shape not in ((n,), (n, 1)):
        raise InvalidInputError(
            f"rerank must return one number for each of the {n} hits, got an array of shape {array.shape}",
            details={"expected": n, "shape": array.shape},
        )
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array.ravel()))[0])
        raise InvalidInputError(f"rerank must return finite numbers, got {array.ravel()[row]}", details={"row": row})
    scores: list[float] = array.ravel().tolist()
    return scores


def _in_order(candidates: SearchResults, scores: list[float], request: SearchRequest) -> SearchResults:
    """The best hits, equal scores in the order of the candidates."""
    hits = [RerankedResult(hit, score) for hit, score in zip(candidates, scores, strict=True)]
    if request.group_by is None:
        hits.sort(key=_falling)
        kept = hits[: request.k]
        missing = min(request.k, len(hits) + candidates.below_threshold) - len(kept)
        results = SearchResults(kept, missing, candidates.plan)
    else:
        left = iter(hits)
        groups = [(group.value, sorted((next(left) for _ in group.hits), key=_falling)) for group in candidates.groups]
        groups.sort(key=lambda group: _falling(group[1][0]))
        groups = groups[: request.k]
        results = SearchResults(
            (hit for _, of_group in groups for hit in of_group), candidates.below_threshold, candidates.plan
        )
        results.groups = tuple(SearchGroup(value, tuple(of_group)) for value, of_group in groups)
    results.receipt = candidates.receipt
    return results


def _falling(hit: RerankedResult) -> float:
    return -hit.rerank_score
