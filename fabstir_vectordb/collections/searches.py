"""The searches of a collection: which shards are asked for what, and one answer of theirs.

A search by vector asks each shard for its nearest rows. Lazily opened shards first say which of their rows are
likeliest by their codes; only those are asked again that have some of the likeliest of all, and fetch their parts.

A search with text takes three rounds: how many rows have each of its words, over all shards; the candidates of each
shard, whose scores count by these sums; and, once the hits are chosen from all candidates, their metadata. So each row
has the score that one index of all rows would give it. With the first round, lazily opened shards say which of their
rows are likeliest by vector, and in the second they fetch the parts of those that are among the likeliest of all.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

import anyio.to_thread
import numpy as np
import numpy.typing as npt

from fabstir_vectordb import diversity, rerank
from fabstir_vectordb._native.text import TextTotals
from fabstir_vectordb.collections import tasks
from fabstir_vectordb.collections.fanout import Answers
from fabstir_vectordb.collections.merging import (
    grouped_by_words,
    grouped_hits,
    lacking_groups,
    lacking_likely,
    least_score,
    likeliest,
    likeliest_of_groups,
    likely_groups,
    merged_hits,
    merged_totals,
    place_of,
    sharded,
    streamed,
    summed,
    with_groups,
    with_likely,
    worded_hits,
)
from fabstir_vectordb.collections.paging import Page, merged_pages
from fabstir_vectordb.collections.records import Route, Shard
from fabstir_vectordb.collections.root import Snapshot
from fabstir_vectordb.collections.routing import shards_for, target_in
from fabstir_vectordb.collections.types import ShardedResults
from fabstir_vectordb.config import Unset, VectorDBConfig
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.index.hybrid import Sides, no_text_index
from fabstir_vectordb.index.incoming import make_request
from fabstir_vectordb.index.lazy_near import candidates_for, group_depth
from fabstir_vectordb.index.rows import Slots
from fabstir_vectordb.index.searcher import Scorer
from fabstir_vectordb.index.shard_reads import Likely
from fabstir_vectordb.index.text import highlights_of
from fabstir_vectordb.metadata.values import Scalar, shown
from fabstir_vectordb.params import SearchFields, SearchOptions, SearchRequest, check_bool, make_options
from fabstir_vectordb.runtime import Runtime
from fabstir_vectordb.searches import check_texts
from fabstir_vectordb.text.analyzer import Analyzer
from fabstir_vectordb.text.clauses import compile_query
from fabstir_vectordb.types import Receipt, SearchResult, SearchResults

__all__ = ["Ask", "Searches"]

logger = logging.getLogger(__name__)

#: Rows that a shard gives to a stream at a time: few for the first hits, then more and more.
_STREAM_ROWS_MIN: Final = 64
_STREAM_ROWS_MAX: Final = 4_096
#: Candidates of lazily opened shards, as a multiple of those of one lazily loaded index. The parts of several shards
#: hold fewer of a query's nearest rows, and fewest where near rows are in different shards (docs/decisions/0036).
_CANDIDATES: Final[Mapping[Route, float]] = {"nearest": 7 / 6, "hash": 3 / 2, "range": 3 / 2}
#: From one in so many on, shards get all queries of a search and the places of their own: an engine that stores large
#: arguments stores one array for all of them.
_SHARED_PART: Final = 4
_NO_QUERY: Final = np.empty(0, dtype=np.float32)
_NO_SLOTS: Final[Slots] = np.empty(0, dtype=np.uint32)

Matrix = npt.NDArray[np.float32]
#: Places of queries, the candidates that a shard has of each, and the groups whose rows are wanted.
_Chosen: TypeAlias = tuple[list[int], list[Slots], list[list[Scalar]]]


class Ask(Protocol):
    """Asks some shards, or all, to run a task of readers."""

    async def __call__(
        self,
        at: Snapshot,
        task: Callable[..., Any],
        args: Callable[[Shard], Sequence[Any]],
        *,
        shards: Any = None,
        missing_ok: bool = False,
    ) -> Answers: ...


@dataclass(slots=True)
class _Asked:
    """A search that was checked.

    Attributes:
        at: the shards.
        queries: (n, dim), or (n, 0) for a search by words alone.
        request: what candidates are wanted.
        passed: the options that a shard gets.
        missing_ok: answer without the shards that cannot be read.
        shards: the shards that are asked, for which of the queries.
        each: how many shards each query asks.
    """

    at: Snapshot
    queries: Matrix
    request: SearchRequest
    passed: SearchFields
    missing_ok: bool
    shards: Mapping[int, npt.NDArray[np.intp]]
    each: int = 0

    @property
    def least(self) -> float:
        """The least score of a hit of a search by vector."""
        return least_score(self.at.settings.params.metric, self.request.threshold)

    @property
    def candidates(self) -> int:
        """How many rows of lazily opened shards are the likeliest of all, or groups: as many groups as hits of them."""
        hits = self.request.k * self.request.group_size
        most = candidates_for(hits, self.request.ef_search, self.passed["recall_target"])
        return most if self.request.ef_search else math.ceil(most * _CANDIDATES[self.at.settings.route])


@dataclass(slots=True)
class _OfQuery:
    """What shards answered to one query, by their numbers, and the shards that did not answer."""

    answers: dict[int, Any] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)


class Searches:
    """Runs the searches of a collection.

    Args:
        ask: asks shards.
        runtime: runs the functions `rerank` of callers.
        defaults: the threshold and the recall target of searches without their own.
    """

    def __init__(self, ask: Ask, runtime: Runtime, defaults: VectorDBConfig) -> None:
        self._ask = ask
        self._runtime = runtime
        self._defaults = defaults
        self._told_of_default = False

    async def run(
        self,
        at: Snapshot,
        queries: Matrix | None,
        k: int,
        options: SearchOptions | Mapping[str, Any] | None,
        shards: int | None,
        missing_ok: bool,
        fields: SearchFields,
    ) -> list[ShardedResults]:
        """The results of each query; see `Collection.search_batch`.

        Args:
            at: the shards.
            queries: (n, dim), from `prepare_queries`; (n, 0) or None for searches by words alone.
            k, options, shards, missing_ok, fields: of the search.
        """
        missing_ok = check_bool("missing_ok", missing_ok)
        request = self.request(k, options, fields)
        matrix = queries
        if matrix is None:
            matrix = np.empty((0 if request.text is None else len(request.text.queries), 0), dtype=np.float32)
        if request.text is None and (queries is None or (len(matrix) and not matrix.shape[1])):
            raise no_query()
        check_texts(request, len(matrix))
        wide = request
        if request.rerank is not None:
            wide = rerank.widened(request)
        elif request.mmr is not None:
            wide = diversity.widened(request)
        asked = await self._asked(at, matrix, wide, make_options(SearchOptions, options, fields), shards, missing_ok)
        if not len(matrix):
            return []
        if request.text is not None:
            by_words = self._by_words if request.group_by is None else self._groups_by_words
            found = await by_words(asked)
        elif request.group_by is not None:
            found = await self._by_groups(asked)
        else:
            found = await self._nearest(asked)
        self._tell_of_default(sum(one.below_threshold for one in found), request)
        if wide is request:
            return found
        return [await self._chosen(request, matrix, place, one, at) for place, one in enumerate(found)]

    def request(
        self, k: int, options: SearchOptions | Mapping[str, Any] | None, fields: Mapping[str, Any]
    ) -> SearchRequest:
        """The request of a search, without its query.

        Raises:
            InvalidInputError: `k` or an option is refused.
        """
        return make_request(
            _NO_QUERY,
            k,
            options,
            fields,
            default_threshold=self._defaults.default_threshold,
            default_target=self._defaults.recall_target,
        )

    async def _asked(
        self,
        at: Snapshot,
        queries: Matrix,
        request: SearchRequest,
        chosen: SearchOptions,
        shards: int | None,
        missing_ok: bool,
    ) -> _Asked:
        """A search with the shards that it asks."""
        target = request.recall_target
        asked = len(at.shards)
        if request.text is None:
            asked, target = _how_many(at, shards, target)
        else:
            check_has_text(at)
            if shards is not None:
                raise InvalidInputError("a search with text asks all shards: leave shards out")
        passed: SearchFields = {
            "threshold": None,
            "include_vectors": request.include_vectors,
            "ef_search": chosen.ef_search,
            "exact": request.exact,
            "nprobe": chosen.nprobe,
            "filter": None if chosen.filter is None else dict(chosen.filter),
            "recall_target": target,
        }
        if at.centroids is not None and asked < len(at.shards):
            if at.centroids.ranks_at_once(len(queries)):
                places = at.centroids.promising(queries, asked)
            else:
                places = await anyio.to_thread.run_sync(at.centroids.promising, queries, asked)
        else:
            places = dict.fromkeys(at.shards, np.arange(len(queries)))
        queries = queries.view()
        queries.flags.writeable = False  # so an engine may store it once for all shards
        return _Asked(at, queries, request, passed, missing_ok, places, asked)

    async def _of_queries(
        self, asked: _Asked, task: Callable[..., Any], k: int, passed: SearchFields
    ) -> list[_OfQuery]:
        """What the shards answer to a search by vector, by query."""
        queries, places = asked.queries, asked.shards
        answers = await self._ask(
            asked.at,
            task,
            lambda shard: (_some(queries, places[shard.number]), k, passed),
            shards=places,
            missing_ok=asked.missing_ok,
        )
        found = [_OfQuery() for _ in queries]
        for number, results in zip(answers.shards, answers.results, strict=True):
            for place, one in zip(places[number].tolist(), results, strict=True):
                found[place].answers[number] = one
        for number in answers.missing:
            for place in places[number].tolist():
                found[place].missing.append(number)
        return found

    # ---- by vector

    async def _nearest(self, asked: _Asked) -> list[ShardedResults]:
        found = await self._of_shards(asked)
        return [merged_hits(one.answers, asked.request.k, asked.least, sorted(one.missing)) for one in found]

    async def _of_shards(self, asked: _Asked) -> list[_OfQuery]:
        """The hits of each shard, or its groups; those of lazily opened shards among the likeliest rows of all."""
        # One shard chooses its own candidates, and an exact search has none.
        two_rounds = asked.each > 1 and not asked.request.exact
        task = tasks.nearest if two_rounds else tasks.search
        found = await self._of_queries(asked, task, asked.request.k, asked.passed)
        if two_rounds:
            await self._fetch_likeliest(asked, found)
        return found

    async def _fetch_likeliest(self, asked: _Asked, found: list[_OfQuery]) -> None:
        """Puts hits in the place of candidates: those of the parts of the likeliest rows of all shards.

        A shard that is lost meanwhile leaves its place among the candidates to the others.
        """
        if not any(isinstance(answer, Likely) for one in found for answer in one.answers.values()):
            return
        most, size = asked.candidates, asked.request.group_size
        hits: dict[tuple[int, int], SearchResults] = {}
        while True:
            groups: list[list[Scalar]] = [[] for _ in found]
            if asked.request.group_by is None:
                chosen = [likeliest(one.answers, most) for one in found]
            else:
                groups = [likely_groups(one.answers, most) for one in found]
                # The nearest row of a group is in a shard where that group is among the likeliest ones; others may not.
                if size > 1 and await self._lacking_likely(asked, found, groups):
                    continue
                chosen = [
                    likeliest_of_groups(one.answers, of, group_depth(most, len(of), size))
                    for one, of in zip(found, groups, strict=True)
                ]
            # Of groups of one row, the best ones of its parts are all that a shard can have.
            wanted = _wanted(chosen, groups if size > 1 else [[] for _ in found])
            answers = await self._ask_chosen(asked, wanted)
            if not _left_out(found, answers.missing):
                for number, results in zip(answers.shards, answers.results, strict=True):
                    hits |= {(place, number): one for place, one in zip(wanted[number][0], results, strict=True)}
                break
        for place, of_query in enumerate(found):
            for number, answer in of_query.answers.items():
                if isinstance(answer, Likely):
                    of_shard = hits.get((place, number), SearchResults([], 0, "lazy"))
                    of_shard.receipt = summed([answer.receipt, of_shard.receipt])
                    of_query.answers[number] = of_shard

    async def _lacking_likely(self, asked: _Asked, found: list[_OfQuery], groups: Sequence[Sequence[Scalar]]) -> bool:
        """Adds the likeliest rows of groups that lazily opened shards left out; whether a shard was lost meanwhile."""
        wanted: dict[int, tuple[list[int], list[list[Scalar]]]] = {}
        for place, (one, of) in enumerate(zip(found, groups, strict=True)):
            for number, values in lacking_likely(one.answers, of).items():
                places, of_shard = wanted.setdefault(number, ([], []))
                places.append(place)
                of_shard.append(values)
        if not wanted:
            return False

        def args(shard: Shard) -> Sequence[Any]:
            places, values = wanted[shard.number]
            return asked.queries[places], values, asked.request.k, asked.passed

        answers = await self._ask(
            asked.at, tasks.likely_of_groups, args, shards=sorted(wanted), missing_ok=asked.missing_ok
        )
        for number, results in zip(answers.shards, answers.results, strict=True):
            for place, more in zip(wanted[number][0], results, strict=True):
                answers_of = found[place].answers
                # A shard that came into memory meanwhile answers as it would have at first.
                answers_of[number] = with_likely(answers_of[number], more) if isinstance(more, Likely) else more
        return _left_out(found, answers.missing)

    async def _ask_chosen(self, asked: _Asked, wanted: Mapping[int, _Chosen]) -> Answers:
        def args(shard: Shard) -> Sequence[Any]:
            places, slots, groups = wanted[shard.number]
            return asked.queries[places], slots, groups, asked.request.k, asked.passed

        return await self._ask(asked.at, tasks.chosen, args, shards=sorted(wanted), missing_ok=asked.missing_ok)

    async def _by_groups(self, asked: _Asked) -> list[ShardedResults]:
        """The best groups of all shards.

        A group among the k best of all is among the k best of the shard that has its nearest row. The other shards
        that left it out, as they have k better ones, are asked for its rows in a second round.
        """
        request = asked.request
        assert request.group_by is not None
        fields: SearchFields = {**asked.passed, "group_by": request.group_by, "group_size": request.group_size}
        found = await self._of_shards(replace(asked, passed=fields))
        if request.group_size > 1:
            lacking = [lacking_groups(one.answers, request.k) for one in found]
            wanted = {
                number: [(place, of[number]) for place, of in enumerate(lacking) if number in of]
                for number in {number for of in lacking for number in of}
            }
            more = await self._ask(
                asked.at,
                tasks.of_groups,
                lambda shard: (asked.queries, wanted[shard.number], request.group_by, request.group_size, asked.passed),
                shards=sorted(wanted),
                missing_ok=asked.missing_ok,
            )
            for number, results in zip(more.shards, more.results, strict=True):
                for (place, _), one in zip(wanted[number], results, strict=True):
                    found[place].answers[number] = with_groups(found[place].answers[number], one)
            for number in more.missing:
                for place, _ in wanted[number]:
                    del found[place].answers[number]
                    found[place].missing.append(number)
        return [grouped_hits(one.answers, request.k, request.group_size, asked.least, one.missing) for one in found]

    # ---- with text

    async def _by_words(self, asked: _Asked) -> list[ShardedResults]:
        at, request = asked.at, asked.request
        text = request.text
        assert text is not None
        by_vector = asked.queries.shape[1] > 0
        # An exact search has no candidates.
        said, counted, totals = await self._counted(asked, likely=by_vector and not request.exact)
        likely = {number: one.value.likely for number, one in zip(counted.shards, counted.results, strict=True)}
        missing, receipts = set(counted.missing), [one.receipt for one in counted.results]
        while True:
            chosen = _chosen_of_all(asked, likely)
            answers = await self._ask(
                at,
                tasks.sides,
                lambda shard: (asked.queries, request.k, said, totals, chosen.get(shard.number)),  # noqa: B023
                shards=sorted(likely),
                missing_ok=asked.missing_ok,
            )
            missing |= set(answers.missing)
            receipts += [one.receipt for one in answers.results]
            sides: dict[int, list[Sides]] = {
                number: one.value for number, one in zip(answers.shards, answers.results, strict=True)
            }
            # A shard that is lost meanwhile leaves its place among the candidates to the others.
            if not any(chosen.get(number) for number in answers.missing):
                found = [
                    worded_hits({number: of[place] for number, of in sides.items()}, request, by_vector)
                    for place in range(len(asked.queries))
                ]
                lost = await self._describe(asked, found, receipts)
                if not lost:
                    break
                missing |= lost
            likely = {number: of for number, of in likely.items() if number not in missing}
        receipt = summed(receipts)
        return [
            sharded(SearchResults(one.hits, one.below_threshold, one.plan), sides, sorted(missing), receipt)
            for one in found
        ]

    async def _groups_by_words(self, asked: _Asked) -> list[ShardedResults]:
        """The best groups by words: ids, scores and groups of all rows that match either side come to this process."""
        at, request, scorer = asked.at, asked.request, Scorer(asked.at.settings.params.metric)
        text, field = request.text, request.group_by
        assert text is not None
        said, counted, totals = await self._counted(asked)
        missing, receipts = set(counted.missing), [one.receipt for one in counted.results]
        sides: list[dict[int, Any]] = []
        for place, query in enumerate(asked.queries):
            fields: SearchFields = {**said, "text": text.text(place)}
            args = (query, fields, totals, field)
            answers = await self._ask(
                at,
                tasks.all_sides_of_groups,
                partial(_given, args),
                shards=counted.shards,
                missing_ok=asked.missing_ok,
            )
            missing |= set(answers.missing)
            sides.append(dict(zip(answers.shards, answers.results, strict=True)))
        while True:
            found = [
                grouped_by_words({number: one for number, one in of.items() if number not in missing}, request, scorer)
                for of in sides
            ]
            lost = await self._describe(asked, found, receipts)
            if not lost:
                break
            missing |= lost
        results = [SearchResults(one.hits, one.below_threshold, one.plan) for one in found]
        for result, one in zip(results, found, strict=True):
            result.groups = one.groups
        answered = [number for number in counted.shards if number not in missing]
        return [sharded(one, answered, sorted(missing), summed(receipts)) for one in results]

    async def _counted(self, asked: _Asked, likely: bool = False) -> tuple[SearchFields, Answers, TextTotals]:
        """The options of a search with text for shards, the shards that counted its words, and the sums.

        Args:
            asked: the search.
            likely: ask lazily opened shards for their likeliest rows, too.
        """
        text = asked.request.text
        assert text is not None
        said: SearchFields = {**asked.passed, "text": text.texts}
        args = (text.texts, asked.queries if likely else None, asked.request.k, said)
        counted = await self._ask(asked.at, tasks.count_words, partial(_given, args), missing_ok=asked.missing_ok)
        return said, counted, merged_totals(one.value.totals for one in counted.results)

    async def _describe(self, asked: _Asked, found: Sequence[Any], receipts: list[Receipt]) -> set[int]:
        """Reads what the hits hold; gives the shards that were lost meanwhile."""
        request, settings = asked.request, asked.at.settings.params.text
        text = request.text
        assert text is not None and settings is not None
        wanted: dict[int, dict[str, None]] = {}
        for one in found:
            for hit in one.hits:
                wanted.setdefault(one.shard_of[hit.id], {})[hit.id] = None
        answers = await self._ask(
            asked.at,
            tasks.contents,
            lambda shard: (list(wanted[shard.number]), request.include_vectors),
            shards=sorted(wanted),
            missing_ok=asked.missing_ok,
        )
        if answers.missing:
            return set(answers.missing)
        contents = {
            id: content
            for number, one in zip(answers.shards, answers.results, strict=True)
            for id, content in zip(wanted[number], one.value, strict=True)
        }
        analyzer = Analyzer(settings.language, settings.stop_words)
        for place, one in enumerate(found):
            terms = compile_query(text.query(place), analyzer) if text.highlight else None
            for hit in one.hits:
                metadata, hit.vector = contents[hit.id]
                highlights = None if terms is None else highlights_of(settings, analyzer, metadata, terms)
                hit.describe(metadata, highlights)
        receipts += [one.receipt for one in answers.results]
        return set()

    # ---- streams

    async def stream(
        self, at: Snapshot, query: npt.NDArray[np.float32], fields: SearchFields
    ) -> AsyncGenerator[SearchResult, None]:
        """Yields all hits; see `Collection.search_stream`.

        Args:
            at: the shards.
            query: dim numbers; none for a stream by words alone.
            fields: options of the stream.
        """
        request = self.request(1, None, fields)
        if request.text is None and not len(query):
            raise no_query()
        check_texts(request, 1)
        passed: SearchFields = {"filter": None if fields["filter"] is None else dict(fields["filter"])}
        asked = _Asked(at, query[np.newaxis], request, passed, False, {})
        async for hit in self._near_stream(asked) if request.text is None else self._text_stream(asked):
            yield hit

    async def _near_stream(self, asked: _Asked) -> AsyncGenerator[SearchResult, None]:
        query, request, where = asked.queries[0], asked.request, asked.passed["filter"]
        after: dict[int, tuple[float, str] | None] = dict.fromkeys(asked.at.shards)
        rows = _STREAM_ROWS_MIN

        async def next_pages(shards: list[int]) -> list[Page]:
            # Each page scores all rows of its shard, so pages grow.
            nonlocal rows
            answers = await self._ask(
                asked.at,
                tasks.near_page,
                lambda shard: (query, where, after[shard.number], rows, request.include_vectors),
                shards=shards,
            )
            rows = min(2 * rows, _STREAM_ROWS_MAX)
            pages = [Page(number, *one) for number, one in zip(answers.shards, answers.results, strict=True)]
            after.update({number: place_of(hits[-1]) for number, hits, _ in pages if hits})
            return pages

        async for hit in merged_pages(asked.at.shards, next_pages, place_of):
            if hit.score < asked.least:  # scores fall, so no other hit passes
                self._tell_of_default(1, request)
                return
            yield hit

    async def _text_stream(self, asked: _Asked) -> AsyncGenerator[SearchResult, None]:
        at, request, scorer = asked.at, asked.request, Scorer(asked.at.settings.params.metric)
        check_has_text(at)
        said, counted, totals = await self._counted(asked)
        answers = await self._ask(
            at, tasks.all_sides, lambda _: (asked.queries[0], said, totals), shards=counted.shards
        )
        sides = dict(zip(answers.shards, answers.results, strict=True))
        rows = streamed(sides, request, bool(asked.queries.shape[1]))
        for first in range(0, len(rows.ranking.slots), _STREAM_ROWS_MAX):
            page = rows.page(first, _STREAM_ROWS_MAX, request, scorer)
            await self._describe(asked, [page], [])
            for hit in page.hits:
                yield hit
            if page.below_threshold:
                return

    # ---- what is chosen from candidates

    async def _chosen(
        self, request: SearchRequest, queries: Matrix, place: int, found: ShardedResults, at: Snapshot
    ) -> ShardedResults:
        if request.mmr is not None:
            metric = at.settings.params.metric
            chosen = diversity.most_diverse(found, request.k, request.mmr, metric, request.include_vectors)
        else:
            query = queries[place] if request.text is None else request.text.text(place)
            chosen = await rerank.reranked(self._runtime, query, found, request)
        return sharded(chosen, found.shards, found.missing, found.receipt)

    def _tell_of_default(self, dropped: int, request: SearchRequest) -> None:
        if dropped and isinstance(request.threshold, Unset) and not self._told_of_default:
            self._told_of_default = True
            logger.warning(
                "collection %r: the default threshold dropped %d of the nearest rows: pass threshold=None to keep "
                "them, or open it with default_threshold=None (this is said once)",
                self._defaults.index_name,
                dropped,
            )


def _some(queries: Matrix, places: npt.NDArray[np.intp]) -> tasks.Some:
    """The queries at ascending places."""
    if len(places) == len(queries):
        return tasks.Some(queries)
    if len(places) * _SHARED_PART < len(queries):
        return tasks.Some(queries[places])
    return tasks.Some(queries, places)


def _wanted(chosen: Sequence[Mapping[int, Slots]], groups: Sequence[list[Scalar]]) -> dict[int, _Chosen]:
    """The candidates of each query by shard, and its groups, as those of each shard by query."""
    wanted: dict[int, _Chosen] = {}
    for place, (of_query, values) in enumerate(zip(chosen, groups, strict=True)):
        for number, slots in of_query.items():
            places, of_shard, groups_of_shard = wanted.setdefault(number, ([], [], []))
            places.append(place)
            of_shard.append(slots)
            groups_of_shard.append(values)
    return wanted


def _left_out(found: Sequence[_OfQuery], lost: Iterable[int]) -> bool:
    """Notes shards that were lost after their first answer; whether there are any."""
    numbers = list(lost)
    for number in numbers:
        for of_query in found:
            if of_query.answers.pop(number, None) is not None:
                of_query.missing.append(number)
    return bool(numbers)


def _chosen_of_all(asked: _Asked, likely: Mapping[int, list[Likely] | None]) -> dict[int, list[Slots]]:
    """The candidates of each query of a search with text, by lazily opened shard: the likeliest rows of all of them.

    Args:
        asked: the search.
        likely: the likeliest rows of each shard for each query; None for a shard in memory.
    """
    lazily = {number: of for number, of in likely.items() if of is not None}
    chosen: dict[int, list[Slots]] = {number: [] for number in lazily}
    for place in range(len(asked.queries)):
        best = likeliest({number: of[place] for number, of in lazily.items()}, asked.candidates)
        for number, slots in chosen.items():
            slots.append(best.get(number, _NO_SLOTS))
    return chosen


def _given(args: Sequence[Any], shard: Shard) -> Sequence[Any]:
    """The same arguments for each shard."""
    return args


def no_query() -> InvalidInputError:
    """The error for a search for nothing."""
    return InvalidInputError("a search needs a query, a text or both: pass a vector, or text='…'")


def check_has_text(at: Snapshot) -> None:
    """Checks that there is a text index.

    Raises:
        InvalidInputError: there is none.
    """
    if at.settings.params.text is None:
        raise no_text_index()


def _how_many(at: Snapshot, shards: int | None, target: float | None) -> tuple[int, float | None]:
    """How many shards a search asks, and the recall target in each of them."""
    most = len(at.shards)
    if shards is not None:
        if isinstance(shards, bool) or not isinstance(shards, int) or shards < 1:
            raise InvalidInputError(f"shards must be None or a positive integer, got {shown(shards)}")
        if at.centroids is None:
            raise InvalidInputError(
                f"a collection with route={at.settings.route!r} cannot know which shards have the nearest rows: leave "
                "shards out"
            )
        asked = min(shards, most)
        return asked, None if target is None else target_in(asked, target)
    curve = at.settings.curve if at.centroids is not None and len(at.settings.curve) == most else ()
    if target is None:
        return most, None
    return shards_for(curve, target) or (most, target_in(most, target))
