"""Results of searches: values that outlive the rows they came from, equal however they were asked for."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from saving import rows, session_on

from fabstir_vectordb import FusedResult, SearchResult, sync
from fabstir_vectordb.collections import ShardedResults

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

COUNT = 1_500
METADATA: list[Any] = [None if i % 3 == 0 else {"n": i, "text": "ß" * (i % 50)} for i in range(COUNT)]


def as_values(hits: Any) -> list[tuple[Any, ...]]:
    return [(hit.id, hit.score, hit.distance, hit.metadata, hit.vector is None) for hit in hits]


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("k", [1, 128, 129, 1_600])
async def test_one_search_gives_what_a_batch_gives(metric: str, k: int) -> None:
    async with await session_on("memory:", metric=metric) as session:
        await session.add_batch([f"{i} 漢" for i in range(COUNT)], rows(COUNT, 8), METADATA)
        for query in rows(3, 8, seed=5):
            for options in ({"threshold": None}, {"threshold": 0.6}, {"threshold": 1.0}, {"include_vectors": True}):
                fields: dict[str, Any] = {"ef_search": 200, **options}
                one = await session.search(query, k, **fields)
                many = (await session.search_batch([query], k, **fields))[0]
                assert as_values(one) == as_values(many)
                assert (one.plan, one.below_threshold) == (many.plan, many.below_threshold)
                assert len(one) + one.below_threshold == min(k, COUNT)
                assert [hit.metadata for hit in one] == [METADATA[int(hit.id.split()[0])] for hit in one]


async def test_results_outlive_changes_and_the_session() -> None:
    base = rows(COUNT, 8)
    async with await session_on("memory:") as session:
        await session.add_batch([str(i) for i in range(COUNT)], base, METADATA)
        looked_at = await session.search(base[7], 20, threshold=None, include_vectors=True)
        untouched = await session.search(base[7], 20, threshold=None, include_vectors=True)
        before = as_values(looked_at)
        for hit in looked_at:
            await session.update_metadata(hit.id, {"changed": "x" * 200})
        for hit in looked_at[:10]:
            await session.delete_vector(hit.id)
        await session.vacuum()
        await session.add_batch(["new"], base[7:8], [{"new": True}])
    assert as_values(untouched) == before
    assert [hit.vector.tobytes() for hit in untouched] == [base[int(hit.id)].tobytes() for hit in looked_at]  # type: ignore[union-attr]


async def test_metadata_is_decoded_once_and_survives_copies() -> None:
    async with await session_on("memory:") as session:
        await session.add_batch(["a", "b"], np.eye(2), [{"list": [1]}, None])
        hits = await session.search([1, 0.5], 2, threshold=None)
    for again in (pickle.loads(pickle.dumps(hits)), copy.copy(hits), copy.deepcopy(hits)):
        assert as_values(again) == as_values(hits)
        assert (again.plan, again.below_threshold, list(again)) == (hits.plan, hits.below_threshold, list(hits))
        assert hash(again[0]) == hash(hits[0])
    assert copy.copy(hits)[0] is hits[0]
    assert hits[0].metadata is hits[0].metadata
    assert hits[0] is hits[0]
    assert hits[1].metadata is None
    assert SearchResult("a", hits[0].score, hits[0].distance, {"list": [1]}) == hits[0]
    assert SearchResult("a", hits[0].score, hits[0].distance, {"other": 1}) != hits[0]
    assert SearchResult("a", 1.0, 0.0, {"given": 1}).metadata == {"given": 1}


async def test_copies_of_an_answer_of_shards_say_which_answered() -> None:
    found = ShardedResults([SearchResult("a", 1.0, 0.0, {"n": 1}), SearchResult("b", 0.5, 1.0)], 3, "graph")
    found.shards, found.missing = (0, 2), (1,)
    joined = ShardedResults([FusedResult("a", 1.0, None, None, 2.0, 1, None)], 0, "words")
    joined.shards = (4,)
    for one in (found, joined, ShardedResults([], 0, "flat")):
        for again in (pickle.loads(pickle.dumps(one)), copy.copy(one), copy.deepcopy(one)):
            assert type(again) is ShardedResults
            assert list(again) == list(one)
            assert again.__dict__ == one.__dict__


async def test_metadata_that_comes_later_is_found() -> None:
    async with await session_on("memory:") as session:
        await session.add_batch(["a", "b", "c"], np.eye(3))
        assert [hit.metadata for hit in await session.search([1, 0.5, 0.1], 3, threshold=None)] == [None] * 3
        await session.update_metadata("b", "late")
        for _ in range(2):
            hits = await session.search([1, 0.5, 0.1], 3, threshold=None)
            assert [(hit.id, hit.metadata) for hit in hits] == [("a", None), ("b", "late"), ("c", None)]
            await session.delete_vector("c")
            await session.vacuum()
            await session.add_batch(["c"], [[0, 0, 1]])


def test_threads_get_the_answers_to_their_own_queries() -> None:
    base, wrong = rows(COUNT, 8), []
    with sync.VectorDBSession.create(
        s5_portal="memory:", user_seed_phrase="a secret", session_id="threads", threads=1
    ) as session:
        session.add_batch([str(i) for i in range(COUNT)], base, METADATA)
        want = [as_values(session.search(base[i], 1 + i % 7, threshold=None)) for i in range(100)]

        def ask(first: int) -> None:
            for at in range(100):
                i = (first + at) % 100
                if as_values(session.search(base[i], 1 + i % 7, threshold=None)) != want[i]:
                    wrong.append(i)

        threads = [threading.Thread(target=ask, args=(25 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
