"""One answer of the answers of many shards."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np

from fabstir_vectordb._native.text import TextTotals
from fabstir_vectordb.collections.columns import Hits, ShardHits
from fabstir_vectordb.collections.types import ShardedResults
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.index.grouping import Groups, first_of_groups
from fabstir_vectordb.index.hybrid import Ranking, Sides, by_words, depth_of, depth_of_groups, fused_hits, passes
from fabstir_vectordb.index.rows import Slots
from fabstir_vectordb.index.searcher import Scorer
from fabstir_vectordb.index.shard_reads import Likely
from fabstir_vectordb.metadata.census import FIELDS_MAX, FacetQuery
from fabstir_vectordb.metadata.columns import NONE, sort_key
from fabstir_vectordb.metadata.values import Scalar
from fabstir_vectordb.params import SearchRequest
from fabstir_vectordb.text.fusion import DEPTH_MIN, Side, fuse, fuse_all, ordered
from fabstir_vectordb.types import (
    NOTHING_FETCHED,
    FacetCount,
    FieldInfo,
    FieldType,
    FusedResult,
    Plan,
    Receipt,
    SearchGroup,
    SearchResult,
    SearchResults,
)

__all__ = [
    "Streamed",
    "Worded",
    "grouped_by_words",
    "grouped_hits",
    "lacking_groups",
    "lacking_likely",
    "least_score",
    "likeliest",
    "likeliest_of_groups",
    "likely_groups",
    "merged_facets",
    "merged_fields",
    "merged_hits",
    "merged_totals",
    "place_of",
    "sharded",
    "streamed",
    "summed",
    "with_groups",
    "with_likely",
    "worded_hits",
]

#: What hits are in the order of. Strings and their UTF-8 bytes have the same order.
place_of = attrgetter("distance", "id")


def sharded(results: SearchResults, shards: Iterable[int], missing: Iterable[int], receipt: Receipt) -> ShardedResults:
    """Results that say which shards answered, and which did not."""
    found = ShardedResults(results, results.below_threshold, results.plan)
    found.groups, found.receipt = results.groups, receipt
    found.shards, found.missing = tuple(shards), tuple(missing)
    return found


def summed(receipts: Iterable[Receipt]) -> Receipt:
    """What all shards fetched."""
    receipts = [one for one in receipts if one is not NOTHING_FETCHED]
    if not receipts:
        return NOTHING_FETCHED
    return Receipt(
        requests=sum(one.requests for one in receipts),
        bytes=sum(one.bytes for one in receipts),
        cache_hits=sum(one.cache_hits for one in receipts),
    )


def _commonest(plans: Iterable[Plan], otherwise: Plan) -> Plan:
    given = list(plans)
    return max(dict.fromkeys(given), key=given.count, default=otherwise)  # of equals the first


def _of_shards(results: SearchResults, answers: Mapping[int, Hits], missing: Iterable[int]) -> ShardedResults:
    return sharded(results, answers, missing, summed(answer.receipt for answer in answers.values()))


# ---- by vector


def likeliest(answers: Mapping[int, SearchResults | Likely], most: int) -> dict[int, Slots]:
    """The likeliest rows of all shards, as far as they are of lazily opened ones, by shard.

    Args:
        answers: the nearest hits of each shard, or its likeliest rows.
        most: how many candidates there are in all; the hits of the other shards count.
    """
    if not any(isinstance(one, Likely) for one in answers.values()):
        return {}
    found = [
        (one.slots, one.distances)
        if isinstance(one, Likely)
        else (np.zeros(len(one), dtype=np.uint32), np.array([hit.distance for hit in one], dtype=np.float64))
        for one in answers.values()
    ]
    shards = np.repeat(np.fromiter(answers, dtype=np.intp), [len(slots) for slots, _ in found])
    slots, distances = (np.concatenate(column) for column in zip(*found, strict=True))
    best = np.lexsort((slots, shards, distances))[:most]
    return {
        number: slots[best[shards[best] == number]]
        for number in np.unique(shards[best]).tolist()
        if isinstance(answers[number], Likely)
    }


def likely_groups(answers: Mapping[int, SearchResults | Likely], most: int) -> list[Scalar]:
    """The values of the groups with the likeliest rows of all shards, likeliest first.

    Args:
        answers: the groups with the nearest hits of each shard, or the likeliest rows of its likeliest groups.
        most: how many groups there are in all.
    """
    values: dict[Any, Scalar] = {}
    for _, _, _, value in sorted(_rows_of_groups(answers), key=itemgetter(0)):
        if len(values) == most:
            break
        values.setdefault(sort_key(value), value)
    return list(values.values())


def lacking_likely(answers: Mapping[int, SearchResults | Likely], groups: Sequence[Scalar]) -> dict[int, list[Scalar]]:
    """Those of some groups that lazily opened shards gave no rows of, by shard."""
    lacking = {}
    for number, one in answers.items():
        if isinstance(one, Likely):
            own = {sort_key(value) for values in one.groups for value in values}
            if others := [value for value in groups if sort_key(value) not in own]:
                lacking[number] = others
    return lacking


def with_likely(one: Likely, more: Likely) -> Likely:
    """The likeliest rows of a shard with those of other groups; a row may be in both."""
    return Likely(
        np.concatenate([one.slots, more.slots]),
        np.concatenate([one.distances, more.distances]),
        summed([one.receipt, more.receipt]),
        [*one.groups, *more.groups],
    )


def likeliest_of_groups(
    answers: Mapping[int, SearchResults | Likely], groups: Sequence[Scalar], size: int
) -> dict[int, Slots]:
    """The likeliest rows of each of some groups, of all shards; see `likeliest`.

    Args:
        answers: as of `likely_groups`.
        groups: the values of the groups.
        size: most rows of a group; the hits of shards in memory count.
    """
    left = {sort_key(value): size for value in groups}
    chosen: dict[int, dict[int, None]] = {}
    for _, number, slot, value in sorted(_rows_of_groups(answers), key=itemgetter(0)):
        key = sort_key(value)
        if left.get(key, 0):
            left[key] -= 1
            if slot is not None:
                chosen.setdefault(number, {})[slot] = None
    return {number: np.array(list(slots), dtype=np.uint32) for number, slots in chosen.items()}


def _rows_of_groups(
    answers: Mapping[int, SearchResults | Likely],
) -> Iterator[tuple[float, int, int | None, Scalar]]:
    """Distance, shard, slot and group of the rows of all shards; None for the slot of a hit in memory."""
    for number, one in answers.items():
        if isinstance(one, Likely):
            for distance, slot, values in zip(one.distances.tolist(), one.slots.tolist(), one.groups, strict=True):
                yield from ((distance, number, slot, value) for value in values)
        else:
            for group in one.groups:
                yield from ((hit.distance, number, None, group.value) for hit in group.hits)


def merged_hits(answers: Mapping[int, Hits], k: int, least: float, missing: Iterable[int]) -> ShardedResults:
    """The k nearest hits of all shards, in the order of a single index: by distance, equal ones by id.

    Args:
        answers: the k nearest rows of each shard, whatever their score.
        k: hits that were asked for.
        least: least score of a hit.
        missing: the shards that did not answer.
    """
    hits = _nearest(list(answers.values()), k)
    kept = [hit for hit in hits if hit.score >= least]
    plan = _commonest((answer.plan for answer in answers.values()), "flat")
    return _of_shards(SearchResults(kept, len(hits) - len(kept), plan), answers, missing)


def _nearest(answers: Sequence[Hits], k: int) -> list[SearchResult]:
    """The k nearest hits: of another process these are the only ones that are made."""
    keys: list[tuple[float, str]] = []
    starts: list[int] = []
    for one in answers:
        starts.append(len(keys))
        keys += zip(one.distances, one.ids, strict=True) if isinstance(one, ShardHits) else map(place_of, one)
    hits = []
    for at in sorted(range(len(keys)), key=keys.__getitem__)[:k]:
        of = bisect_right(starts, at) - 1  # empty answers start where the next one does
        hits.append(answers[of][at - starts[of]])
    return hits


def _best_groups(answers: Mapping[int, SearchResults], k: int) -> list[tuple[Any, list[SearchResult]]]:
    """The k groups with the nearest rows: their values, and all of their hits, nearest first."""
    found: dict[Any, tuple[Any, list[SearchResult]]] = {}
    for answer in answers.values():
        for group in answer.groups:
            found.setdefault(sort_key(group.value), (group.value, []))[1].extend(group.hits)
    for _, hits in found.values():
        hits.sort(key=place_of)
    # Groups of one row, whose value is a list, are in the order of their values.
    best = sorted(found, key=lambda key: (place_of(found[key][1][0]), key))[:k]
    return [found[key] for key in best]


def lacking_groups(answers: Mapping[int, SearchResults], k: int) -> dict[int, list[Any]]:
    """The values of the k best groups that a shard may have rows of, though its answer has none of them.

    Of a lazily opened shard, the answer has those that it has among the candidates.
    """
    best = {sort_key(value): value for value, _ in _best_groups(answers, k)}
    lacking = {}
    for number, answer in answers.items():
        if answer.plan == "lazy":
            continue
        own = {sort_key(group.value) for group in answer.groups}
        others = [value for key, value in best.items() if key not in own]
        if others and len(own) >= k:  # with fewer groups it gave all that it has
            lacking[number] = others
    return lacking


def with_groups(answer: SearchResults, groups: Sequence[SearchGroup]) -> SearchResults:
    """The answer of a shard with the rows of more groups."""
    more = SearchResults(answer, answer.below_threshold, "grouped")
    more.groups, more.receipt = (*answer.groups, *(one for one in groups if one.hits)), answer.receipt
    return more


def grouped_hits(
    answers: Mapping[int, SearchResults], k: int, size: int, least: float, missing: Iterable[int]
) -> ShardedResults:
    """The k best groups of all shards, and the best rows of each.

    Args:
        answers: of each shard the rows of its k best groups, and of those that are among the k best of all.
        k: groups that were asked for.
        size: most hits of a group.
        least: least score of a hit.
        missing: the shards that did not answer.
    """
    groups = [(value, hits[:size]) for value, hits in _best_groups(answers, k)]
    kept = [(value, [hit for hit in hits if hit.score >= least]) for value, hits in groups]
    flat = [hit for _, hits in kept for hit in hits]
    plan = _commonest((answer.plan for answer in answers.values()), "flat")
    results = SearchResults(flat, sum(len(hits) for _, hits in groups) - len(flat), plan)
    results.groups = tuple(SearchGroup(value, tuple(hits)) for value, hits in kept if hits)
    return _of_shards(results, answers, missing)


# ---- with text


def merged_totals(of_shards: Iterable[TextTotals]) -> TextTotals:
    """The numbers of all rows by which scores of words count."""
    rows = words = 0
    counts: Counter[str] = Counter()
    for one in of_shards:
        rows, words = rows + one.rows, words + one.words
        counts.update(one.counts)
    return TextTotals(rows, words, dict(counts))


@dataclass(slots=True)
class Worded:
    """The hits of a search with text, without metadata.

    Attributes:
        hits: the hits, best first.
        shard_of: the shard of each candidate.
        below_threshold: how many hits the threshold removed.
        plan: how the search went in most of the shards.
        groups: the same hits, by group.
    """

    hits: list[FusedResult]
    shard_of: Mapping[str, int]
    below_threshold: int
    plan: Plan
    groups: tuple[SearchGroup, ...] = ()


def worded_hits(sides: Mapping[int, Sides], request: SearchRequest, by_vector: bool) -> Worded:
    """The k best hits of all shards, as one index of all rows would choose them.

    Args:
        sides: the candidates of each shard.
        request: the search.
        by_vector: whether there is a vector beside the words.
    """
    k, text = request.k, request.text
    assert text is not None
    shard_of = {id: number for number, one in sides.items() for id in (*one.near, *one.said)}
    said = sorted((-score, id) for one in sides.values() for id, score in zip(one.said, one.said_scores, strict=True))[
        : depth_of(k) if by_vector else k
    ]
    of_words, raw = [id for _, id in said], np.array([-score for score, _ in said], dtype=np.float64)
    if by_vector:
        near = sorted(
            row
            for one in sides.values()
            for row in zip(one.distances, one.near, one.near_scores, one.near_text, strict=True)
        )[: depth_of(k)]
        texts = {**{id: score for _, id, _, score in near}, **dict(zip(of_words, raw.tolist(), strict=True))}
        names = list(texts)
        number = {id: place for place, id in enumerate(names)}
        fused = fuse(
            text.fusion,
            text.alpha,
            _side([number[id] for _, id, _, _ in near], -np.array([row[0] for row in near], dtype=np.float64)),
            _side([number[id] for id in of_words], raw),
        )
        order = ordered(fused.scores, k, lambda places: [names[fused.slots[place]] for place in places])
        ids = [names[fused.slots[place]] for place in order]
        hits = fused_hits(
            fused, order, ids, [texts[id] for id in ids], [row[0] for row in near], [row[2] for row in near]
        )
    else:
        hits = by_words(of_words, raw)
    # Scores fall, so those that pass are the first ones.
    n = sum(passes(hit, request) for hit in hits)
    return Worded(hits[:n], shard_of, len(hits) - n, _commonest((one.plan for one in sides.values()), "words"))


@dataclass(slots=True)
class Streamed:
    """All rows that match either side of a search with text, in order, from which hits are made page by page.

    Attributes:
        ids: of all rows, ascending; the other attributes know them by their places here.
        shard_of: the shard of each row.
        ranking: the rows in order.
        groups: of the rows, where these are wanted.
    """

    ids: Sequence[str]
    shard_of: Mapping[str, int]
    ranking: Ranking
    groups: Groups | None = None

    def page(self, first: int, rows: int, request: SearchRequest, scorer: Scorer) -> Worded:
        """The hits from a place on, without metadata."""
        places = np.arange(first, min(first + rows, len(self.ranking.slots)))
        hits = self.ranking.hits(places, [self.ids[slot] for slot in self.ranking.slots[places].tolist()], scorer)
        n = sum(passes(hit, request) for hit in hits)
        return Worded(hits[:n], self.shard_of, len(hits) - n, "words")


def streamed(
    sides: Mapping[int, Sides],
    request: SearchRequest,
    by_vector: bool,
    groups_of: Callable[[Sequence[str]], Groups] | None = None,
) -> Streamed:
    """All rows of all shards that match either side, in the order of one index.

    Args:
        sides: the rows of each shard.
        request: the search.
        by_vector: whether there is a vector beside the words.
        groups_of: makes the groups of rows by their places, where groups are wanted: each side then has as many
            candidates as for these.
    """
    text = request.text
    assert text is not None
    shard_of = {id: number for number, one in sides.items() for id in (*one.near, *one.said)}
    ids = sorted(shard_of)
    groups = None if groups_of is None else groups_of(ids)
    place = {id: at for at, id in enumerate(ids)}
    near = sorted(row for one in sides.values() for row in zip(one.distances, one.near, strict=True))
    said = sorted((-score, id) for one in sides.values() for id, score in zip(one.said, one.said_scores, strict=True))
    words = _side([place[id] for _, id in said], np.array([-score for score, _ in said], dtype=np.float64))
    if not by_vector:
        ranks = np.arange(1, len(said) + 1)
        scores = words.values / (1.0 + words.values)
        return Streamed(ids, shard_of, Ranking(words.slots, scores, words.values, ranks, None, None), groups)
    given = np.array([distance for distance, _ in near], dtype=np.float64)
    vector = _side([place[id] for _, id in near], -given)
    depths = (DEPTH_MIN, DEPTH_MIN)
    if groups is not None:
        depths = depth_of_groups(groups, vector, request), depth_of_groups(groups, words, request)
    fused, after = fuse_all(text.fusion, text.alpha, vector, words, depths)
    # Places are in the order of ids, which so decide between equal rows.
    order = np.lexsort((fused.slots, -after, -fused.scores))
    found = fused.slots[order]
    text_scores, distances = np.zeros(len(ids)), np.full(len(ids), np.nan)
    text_scores[words.slots], distances[vector.slots] = words.values, given
    ranking = Ranking(
        found,
        fused.scores[order],
        text_scores[found],
        fused.words_ranks[order],
        distances[found],
        fused.vector_ranks[order],
    )
    return Streamed(ids, shard_of, ranking, groups)


def grouped_by_words(
    answers: Mapping[int, tuple[Sides, Mapping[str, Sequence[Scalar]]]], request: SearchRequest, scorer: Scorer
) -> Worded:
    """The k best groups of all shards, and the best rows of each, as one index of all rows would choose them.

    Args:
        answers: of each shard all rows that match either side, and the values of the groups of each row.
        request: the search.
        scorer: of the metric.
    """
    values_of = {id: values for _, of in answers.values() for id, values in of.items()}

    def groups_of(ids: Sequence[str]) -> Groups:
        numbers: dict[Any, int] = {}
        values: list[Scalar] = []
        pairs: list[tuple[int, int]] = []
        for place, id in enumerate(ids):
            for value in values_of.get(id, ()):
                key = sort_key(value)
                if key not in numbers:
                    numbers[key] = len(values)
                    values.append(value)
                pairs.append((place, numbers[key]))
        slots, groups = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return Groups(np.full(len(ids), NONE, dtype=np.int32), slots, groups.astype(np.int32), values)

    by_vector = any(one.near for one, _ in answers.values())
    rows = streamed({number: one for number, (one, _) in answers.items()}, request, by_vector, groups_of)
    assert rows.groups is not None
    members: list[SearchGroup] = []
    chosen: list[FusedResult] = []
    dropped = 0
    for group, places in first_of_groups(rows.groups, rows.ranking.slots, request.k, request.group_size):
        at = np.array(places, dtype=np.intp)
        hits = rows.ranking.hits(at, [rows.ids[slot] for slot in rows.ranking.slots[at].tolist()], scorer)
        kept = [hit for hit in hits if passes(hit, request)]
        dropped += len(hits) - len(kept)
        chosen += kept
        if kept:
            members.append(SearchGroup(rows.groups.values[group], tuple(kept)))
    plan: Plan = "words"
    if by_vector:
        plan = "flat + words" if request.where is None else "filtered exact + words"
    return Worded(chosen, rows.shard_of, dropped, plan, tuple(members))


def _side(numbers: Sequence[int], values: Any) -> Side:
    return Side(np.array(numbers, dtype=np.uint32), values)


# ---- numbers


def least_score(metric: str, threshold: Any) -> float:
    """The least score of a hit."""
    return Scorer(metric).least(threshold)


def merged_fields(answers: Iterable[Sequence[FieldInfo]]) -> list[FieldInfo]:
    """The metadata fields of all rows, in the order of their paths; of each the types, the most frequent first."""
    rows: Counter[str] = Counter()
    types: dict[str, dict[str, FieldType]] = {}
    for field in (field for answer in answers for field in answer):
        rows[field.path] += field.count
        of_field = types.setdefault(field.path, {})
        for one in field.types:
            other = of_field.get(one.type, one)
            if other is not one:
                least, most = (one.minimum, other.minimum), (one.maximum, other.maximum)
                has_order = one.minimum is not None
                one = FieldType(
                    one.type,
                    one.count + other.count,
                    min(least) if has_order else None,
                    max(most) if has_order else None,
                )
            of_field[one.type] = one
    if len(types) > FIELDS_MAX:
        raise InvalidInputError(
            f"there are more than {FIELDS_MAX:,} fields: their keys seem to be data; put it in values",
            details={"limit": FIELDS_MAX},
        )
    return [
        FieldInfo(path, rows[path], tuple(sorted(of_field.values(), key=lambda one: (-one.count, one.type))))
        for path, of_field in sorted(types.items())
    ]


def merged_facets(answers: Sequence[Sequence[FacetCount]], query: FacetQuery) -> list[FacetCount]:
    """A page of the distinct values of all shards."""
    counts: dict[tuple[int, Any], tuple[Scalar, int]] = {}
    for answer in answers:
        for one in answer:
            key = sort_key(one.value)
            value, before = counts.get(key, (one.value, 0))
            counts[key] = value, before + one.count
    return [FacetCount(value, count) for value, count in query.page(counts.values())]
