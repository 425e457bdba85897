"""The searches of a session: their requests, on which thread they run, and the warning about the default threshold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import Control
from fabstir_vectordb.config import Unset
from fabstir_vectordb.diversity import search_batch_diverse, search_diverse, widened
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.index import Index, IndexClosed, LazyIndex, Repeat, make_request, prepare_query
from fabstir_vectordb.index.incoming import check_query_dim, seeming_shape
from fabstir_vectordb.index.protocol import BatchNeed, Gathered, Need
from fabstir_vectordb.metadata.filter_content import Content, content_of
from fabstir_vectordb.metadata.filter_parse import Filter, is_large
from fabstir_vectordb.params import SearchOptions, SearchRequest
from fabstir_vectordb.rerank import check_blocking, reranked, widened as widened_for_rerank
from fabstir_vectordb.runtime import Runtime
from fabstir_vectordb.types import SearchResult, SearchResults

__all__ = ["STREAM_PAGE_ROWS", "Searches", "has_large_filter"]

logger = logging.getLogger(__name__)

_NO_QUERY: Final = np.empty(0, dtype=np.float32)
#: Rows that a stream scores again at a time.
STREAM_PAGE_ROWS: Final = 512
#: Filters whose last search is kept.
_KEPT_MAX: Final = 64


class _Asked(NamedTuple):
    """What a search asks beside its query.

    Attributes:
        k, fields: as given.
        content: of the filter; None without one.
        resolved: what `Searches.check` made of it: a request but its query.
    """

    k: Any
    fields: Mapping[str, Any]
    content: Content | None
    resolved: tuple[Any, ...]


class Searches:
    """Makes the search requests of a session, and runs them.

    Most searches have the k and the options of the last one. Then only the query is checked.

    Args:
        runtime: has the index that is asked.
        session_id: names the session in the log.
        default_threshold, default_target: the session's values, for a search without its own.
    """

    def __init__(
        self,
        runtime: Runtime,
        session_id: str,
        default_threshold: float | Unset | None,
        default_target: float | None,
    ) -> None:
        self._runtime = runtime
        self._session_id = session_id
        self._default_threshold, self._default_target = default_threshold, default_target
        # The last search; one attribute, as any thread may search.
        self._last = _Asked(None, {}, None, ())
        # The last search of each filter that can be repeated, by the filter's content; never changed, but replaced.
        self._again: Mapping[Content | None, tuple[_Asked, Repeat]] = {}
        self._told_of_default = False

    # ---- requests

    def make(
        self,
        query: Any,
        k: int,
        options: SearchOptions | Mapping[str, Any] | None,
        fields: Mapping[str, Any],
    ) -> SearchRequest:
        """The request of a search for one query."""
        if query is None:
            return self._by_words(k, options, fields)
        vector = prepare_query(query, self._runtime.index.vector_dim)
        last = self._last
        # A filter can be changed in place, other values cannot.
        filter = fields.get("filter")
        is_plain = options is None and filter is None and last.content is None
        if is_plain and k is last.k and _are_same(fields, last.fields):
            return tuple.__new__(SearchRequest, (vector, *last.resolved))
        content = None if filter is None else content_of(filter)
        request = self.check(vector, k, options, fields)
        check_texts(request, 1)
        # Another thread may have changed the filter while it was parsed.
        if options is None and (filter is None or (content is not None and content == content_of(filter))):
            self._last = _Asked(k, fields, content, request[1:])
        return request

    def _by_words(
        self, k: int, options: SearchOptions | Mapping[str, Any] | None, fields: Mapping[str, Any]
    ) -> SearchRequest:
        """The request of a search by words alone."""
        request = self.check(_NO_QUERY, k, options, fields)
        if request.text is None:
            raise InvalidInputError("a search needs a query, a text or both: pass a vector, or text='…'")
        check_texts(request, 1)
        return request

    def check(
        self,
        vector: npt.NDArray[np.float32],
        k: int,
        options: SearchOptions | Mapping[str, Any] | None,
        fields: Mapping[str, Any],
    ) -> SearchRequest:
        """A request for a query that was checked."""
        request = make_request(
            vector,
            k,
            options,
            fields,
            default_threshold=self._default_threshold,
            default_target=self._default_target,
        )
        if request.rerank is not None and self._runtime.is_blocking:
            check_blocking(request.rerank)
        return request

    def batch_request(
        self, queries: Any, k: int, options: SearchOptions | Mapping[str, Any] | None, fields: Mapping[str, Any]
    ) -> SearchRequest:
        """A search request for many queries; the queries themselves are not in it."""
        dim, (_, actual) = self._runtime.index.vector_dim, seeming_shape(queries)
        if actual and dim is not None:
            check_query_dim(actual, dim)
        return self.check(_NO_QUERY, k, options, fields)

    # ---- runs

    def again(
        self, query: Any, k: int, options: SearchOptions | Mapping[str, Any] | None, fields: Mapping[str, Any]
    ) -> SearchResults | None:
        """The answer of a search that asks as the last one did; None where it does not, or would take long.

        The session is alive. This takes half of the time that `make` and `at_once` add to a search.
        """
        if options is not None:
            return None
        filter = fields.get("filter")
        content = None if filter is None else content_of(filter)
        again = self._again.get(content)
        if again is None or (content is None and filter is not None):
            return None
        last, repeat = again
        if k is not last.k or not _are_same(fields, last.fields):
            return None
        results = repeat.search(query)
        if results is None:
            self._again = {one: kept for one, kept in self._again.items() if one != content}
        elif results.below_threshold:
            self.tell_of_default(results.below_threshold, last.resolved[1])
        return results

    def at_once(self, request: SearchRequest) -> SearchResults | None:
        """A search on this thread, or None where it would take long. It is no coroutine, which would take 1 us more."""
        if request.mmr is not None or request.rerank is not None:
            return None
        runtime = self._runtime
        index = runtime.index
        if not runtime.is_blocking:
            results = index.search_at_once(request)
        elif isinstance(index, LazyIndex):
            return None
        else:
            try:
                results = index.search(request)
            except IndexClosed:  # `aside` asks the next index, or raises where there is none
                return None
        if results is None:
            return None
        if results.below_threshold:
            self.tell_of_default(results.below_threshold, request.threshold)
        last = self._last
        if request[1:] == last.resolved:
            self._keep(last, index.repeat(request, not runtime.is_blocking))
        return results

    def _keep(self, asked: _Asked, repeat: Repeat | None) -> None:
        """Keeps a search for the next one like it, with those of other filters that still hold."""
        if repeat is None:
            return
        # Those before the last change hold no more, and would keep the index alive that they are of.
        kept = {content: one for content, one in self._again.items() if one[1].holds}
        self._again = {**(kept if len(kept) < _KEPT_MAX else {}), asked.content: (asked, repeat)}

    async def aside(self, request: SearchRequest) -> SearchResults:
        """A long search. It can be cancelled, as it may first have to measure which candidates its recall takes."""
        wide = request if request.rerank is None else widened_for_rerank(request)
        results = await self._runtime.cancellable(*search_of(wide))
        self.tell_of_default(results.below_threshold, request.threshold)
        if wide is request:
            return results
        query = request.query if request.text is None else request.text.text(0)
        return await reranked(self._runtime, query, results, request)

    async def batch(self, queries: npt.NDArray[np.float32], request: SearchRequest) -> list[SearchResults]:
        """A search of many queries; the request's own query is not used."""
        check_texts(request, len(queries))
        wide = request if request.rerank is None else widened_for_rerank(request)
        results = await self._runtime.cancellable(*search_batch_of(queries, wide))
        self.tell_of_default(sum(each.below_threshold for each in results), request.threshold)
        if wide is not request:
            for place, vector in enumerate(queries):
                query = vector if request.text is None else request.text.text(place)
                results[place] = await reranked(self._runtime, query, results[place], request)
        return results

    def tell_of_default(self, dropped: int, threshold: float | Unset | None) -> None:
        """Logs a warning, once a session, when the default threshold dropped hits."""
        if dropped and not self._told_of_default and isinstance(threshold, Unset):
            self._told_of_default = True
            logger.warning(
                "session %s: the default threshold of metric %r dropped %d of the nearest rows: pass threshold=None to "
                "keep them, or create the session with default_threshold=None (this is said once)",
                self._session_id,
                self._runtime.index.metric,
                dropped,
            )

    def start_of_stream(
        self, request: SearchRequest, where: Filter, index: Index, gathered: Gathered, control: Control | None
    ) -> tuple[Index, Callable[[], list[SearchResult]]]:
        """The index of a stream, and a function that returns its next hits, none at the end."""
        if request.text is not None:
            words = index.text_stream(request, where, control)
            return index, lambda: index.text_page(words, request, STREAM_PAGE_ROWS)
        cursor = index.stream(request.query, where, control)

        def next_hits() -> list[SearchResult]:
            first, shows = cursor.next, (request.threshold, request.include_vectors)
            hits = index.stream_page(cursor, request.query, STREAM_PAGE_ROWS, *shows)
            if first < cursor.end == cursor.next:
                self.tell_of_default(cursor.end - first - len(hits), request.threshold)
            return hits

        return index, next_hits


def _are_same(fields: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    """Whether fields are those of the last search, but for the filter, by identity: True equals 1, but is no count."""
    if len(fields) == len(last):
        for name, value in fields.items():
            if name not in last or (value is not last[name] and name != "filter"):
                break
        else:
            return True
    return False


def search_of(request: SearchRequest) -> tuple[Need, Callable[..., SearchResults]]:
    """The data that a search needs, and the function that runs it."""
    if request.mmr is None:
        return request, lambda index, gathered, control=None: index.search(request, gathered, control)
    return widened(request), lambda index, gathered, control=None: search_diverse(index, request, gathered, control)


def search_batch_of(
    queries: npt.NDArray[np.float32], request: SearchRequest
) -> tuple[Need, Callable[..., list[SearchResults]]]:
    """The data that a search of many queries needs, and the function that runs it."""
    if request.mmr is None:
        need = BatchNeed(queries, request)
        return need, lambda index, gathered, control=None: index.search_batch(queries, request, gathered, control)
    return BatchNeed(queries, widened(request)), lambda index, gathered, control=None: search_batch_diverse(
        index, queries, request, gathered, control
    )


def check_texts(request: SearchRequest, n: int) -> None:
    """Raises InvalidInputError unless a request has no text, one text, or one for each of n queries."""
    if request.text is not None and len(request.text.queries) not in (1, n):
        raise InvalidInputError(
            f"text must be one text or {n} of them, got {len(request.text.queries)}",
            details={"expected": n, "actual": len(request.text.queries)},
        )


def has_large_filter(options: SearchOptions | Mapping[str, Any] | None, fields: Mapping[str, Any]) -> bool:
    """Whether a search has a filter that takes long to parse."""
    if "filter" in fields or options is None:
        filter = fields.get("filter")
    elif isinstance(options, Mapping):
        filter = options.get("filter")
    else:
        filter = getattr(options, "filter", None)
    return filter is not None and is_large(filter)
