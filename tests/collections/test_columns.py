"""Hits of a shard as another process gets them: the same, and merged in the same order."""

from __future__ import annotations

import pickle
import random

import numpy as np

from fabstir_vectordb import SearchResults
from fabstir_vectordb.collections.columns import Found, ShardHits
from fabstir_vectordb.collections.merging import merged_hits, place_of
from fabstir_vectordb.types import Receipt, SearchGroup, SearchResult


def answer(chance: random.Random, number: int) -> SearchResults:
    """Hits of a shard, in order; distances of several shards are equal."""
    near = sorted((chance.randrange(6) / 4, f"row-{number}-{place}") for place in range(chance.randrange(5)))
    hits = (
        SearchResult(id, 1 - distance, distance, bytearray(b"\x01"), np.full(2, distance, np.float32))
        for distance, id in near
    )
    found = SearchResults(hits, 0, chance.choice(["graph", "flat"]))
    if chance.random() < 0.5:
        found.receipt = Receipt(requests=number, bytes=7, cache_hits=1)
    return found


def seen(results: SearchResults | ShardHits) -> object:
    hits = [(hit.id, hit.score, hit.distance, hit.metadata, hit.vector.tolist()) for hit in results]  # type: ignore[union-attr]
    return hits, results.below_threshold, results.plan, results.receipt, results.groups


def test_hits_are_the_same_in_another_process_and_merge_in_the_same_order() -> None:
    chance = random.Random(7)
    for _ in range(50):
        own = {number: Found(answer(chance, number) for _ in range(3)) for number in range(4)}
        far = {number: pickle.loads(pickle.dumps(found)) for number, found in own.items()}
        for number, found in own.items():
            assert [seen(one) for one in far[number]] == [seen(one) for one in found]
            assert [len(one) for one in far[number]] == [len(one) for one in found]
        for place in range(3):
            of_own = {number: found[place] for number, found in own.items()}
            of_far = {number: found[place] for number, found in far.items()}
            merged = merged_hits(of_own, 5, 0.0, [])
            nearest = sorted((hit for one in of_own.values() for hit in one), key=place_of)[:5]
            assert merged.ids == [hit.id for hit in nearest if hit.score >= 0]
            assert seen(merged_hits(of_far, 5, 0.0, [])) == seen(merged)


def test_answers_with_groups_are_pickled_as_they_are() -> None:
    found = answer(random.Random(1), 0)
    found.groups = (SearchGroup("a", tuple(found)),)
    (far,) = pickle.loads(pickle.dumps(Found([found])))
    assert isinstance(far, SearchResults)
    assert far == found
    assert far.groups == found.groups
