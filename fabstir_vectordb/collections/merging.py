"""One answer of the answers of many shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from fabstir_vectordb.collections.types import ShardedResults
from fabstir_vectordb.index.searcher import Scorer
from fabstir_vectordb.metadata.census import FacetQuery
from fabstir_vectordb.metadata.columns import sort_key
from fabstir_vectordb.metadata.values import Scalar
from fabstir_vectordb.types import FacetCount, Receipt, SearchResult, SearchResults

__all__ = ["least_score", "merged_facets", "merged_hits"]


def merged_hits(
    answers: Sequence[SearchResults], k: int, least: float, shards: tuple[int, ...], missing: tuple[int, ...]
) -> ShardedResults:
    """The k nearest hits of all shards, in the order of a single index: by distance, equal ones by id.

    Args:
        answers: the k nearest rows of each shard, whatever their score.
        k: hits that were asked for.
        least: least score of a hit.
        shards: the shards that answered.
        missing: those that did not.
    """
    hits: list[SearchResult] = sorted((hit for answer in answers for hit in answer), key=_place)[:k]
    kept = [hit for hit in hits if hit.score >= least]
    plans = Counter(answer.plan for answer in answers).most_common(1)
    results = ShardedResults(kept, len(hits) - len(kept), plans[0][0] if plans else "flat")
    results.shards, results.missing = shards, missing
    results.receipt = Receipt(
        requests=sum(answer.receipt.requests for answer in answers),
        bytes=sum(answer.receipt.bytes for answer in answers),
        cache_hits=sum(answer.receipt.cache_hits for answer in answers),
    )
    return results


#: Strings and their UTF-8 bytes have the same order.
_place = attrgetter("distance", "id")


def least_score(metric: str, threshold: Any) -> float:
    """The least score of a hit."""
    return Scorer(metric).least(threshold)


def merged_facets(answers: Sequence[Sequence[FacetCount]], query: FacetQuery) -> list[FacetCount]:
    """A page of the distinct values of all shards."""
    counts: dict[tuple[int, Any], tuple[Scalar, int]] = {}
    for answer in answers:
        for one in answer:
            key = sort_key(one.value)
            value, before = counts.get(key, (one.value, 0))
            counts[key] = value, before + one.count
    return [FacetCount(value, count) for value, count in query.page(counts.values())]
