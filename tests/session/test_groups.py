"""Searches by group: the best rows of each document, exact at any number of groups."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from saving import rows, session_on

from fabstir_vectordb import F, InvalidInputError, SearchResults, VectorDBSession, sync
from fabstir_vectordb.params import GROUPED_HITS_MAX
from fabstir_vectordb.persist import load as load_module

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


def naive(
    table: dict[str, Any], scores: dict[str, float], k: int, size: int, keep: Any = lambda id: True
) -> list[tuple[Any, list[str]]]:
    """Groups and ids by a plain loop: rows by score, then id."""
    found: dict[Any, list[str]] = {}
    for id in sorted(scores, key=lambda id: (-scores[id], id.encode())):
        values = table[id] if isinstance(table[id], list) else [table[id]]
        kinds = [type(None), bool, float, str]
        places = {(kinds.index(float if type(one) is int else type(one)), 0 if one is None else one) for one in values}
        for value in sorted(places):
            if keep(id) and values != ["missing"]:
                found.setdefault(value, []).append(id)
    return [(None if value[0] == 0 else value[1], ids[:size]) for value, ids in list(found.items())[:k]]


def shape(results: SearchResults) -> list[tuple[Any, list[str]]]:
    assert [hit.id for group in results.groups for hit in group.hits] == results.ids
    return [(group.value, [hit.id for hit in group.hits]) for group in results.groups]


VALUES = st.sampled_from(["a", "b", "c", 1, 1.0, 2.5, 2**60 + 1, True, None, "missing"])


@settings(max_examples=60)
@given(
    st.lists(VALUES | st.lists(VALUES.filter(lambda value: value != "missing"), max_size=3), min_size=1, max_size=25),
    st.integers(1, 6),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_groups_are_those_of_a_plain_loop(values: list[Any], k: int, size: int, random: Any) -> None:
    # Some rows are equally near: ties are in the order of ids.
    angles = [random.randrange(8) / 8 for _ in values]
    table = {f"r{n}": value for n, value in enumerate(values)}
    scores = {f"r{n}": float(np.float32(np.cos(np.float32(angle)))) for n, angle in enumerate(angles)}
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase="x", session_id="x") as session:
        vectors = np.array([[np.cos(angle), np.sin(angle)] for angle in angles], dtype=np.float32)
        session.add_batch(list(table), vectors, [{} if value == "missing" else {"g": value} for value in values])
        session.add_batch(["none"], None, [{"g": "only here"}])
        options = {"group_by": "g", "group_size": size, "threshold": None}
        for exact in (False, True):
            found = session.search([1.0, 0.0], k, exact=exact, **options)
            assert shape(found) == naive(table, scores, k, size)
            assert session.search_batch([[1.0, 0.0]], k, exact=exact, **options) == [found]
        odd = {f"r{n}" for n in range(1, len(values), 2)}
        found = session.search([1.0, 0.0], k, filter=F.id.is_in(odd), **options)
        assert shape(found) == naive(table, scores, k, size, odd.__contains__)
        session.clear()


COUNT = 4_000


def at_angles(session: sync.VectorDBSession, angles: list[float], values: list[Any]) -> dict[str, float]:
    """Adds a row at each angle, named ``r0``, ``r1``, …, with its groups; returns the scores for the query (1, 0)."""
    vectors = np.array([[np.cos(angle), np.sin(angle)] for angle in angles], dtype=np.float32)
    session.add_batch([f"r{n}" for n in range(len(angles))], vectors, [{"g": value} for value in values])
    hits = session.search([1.0, 0.0], k=len(angles), threshold=None, exact=True)
    return {hit.id: hit.score for hit in hits}


def test_a_row_of_a_found_group_and_another_one_does_not_pass_over_nearer_rows() -> None:
    values = ["A"] * 5 + ["B", "B", ["B", "C"]]
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase="x", session_id="x") as session:
        at_angles(session, [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.2, 0.3], values)
        results = session.search([1.0, 0.0], k=3, threshold=None, group_by="g", group_size=2)
    assert shape(results) == [("A", ["r0", "r1"]), ("B", ["r5", "r6"]), ("C", ["r7"])]


@settings(max_examples=60)
@given(
    st.integers(0, 3),
    st.lists(
        st.sampled_from(["A", "B", "C", ["A", "D"], ["B", "C"], ["B", "D"], ["C", "E"], ["D", "E", "F"]]), max_size=15
    ),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_skewed_groups_with_lists_are_those_of_a_plain_loop(short: int, others: list[Any], k: int, size: int) -> None:
    # Nearly all hits of the first search are of one group, so that others follow; lists join found groups and others.
    values = ["A"] * max(k * size - short, 1) + others
    table = {f"r{n}": value for n, value in enumerate(values)}
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase="x", session_id="x") as session:
        scores = at_angles(session, [(n + 1) / 40 for n in range(len(values))], values)
        results = session.search([1.0, 0.0], k=k, threshold=None, group_by="g", group_size=size)
    assert shape(results) == naive(table, scores, k, size)


def document(row: int) -> str:
    """One document has a third of the rows, the others some ten or fewer."""
    return "all" if row % 3 == 0 else f"doc-{row % 400:03d}" if row % 5 else f"rare-{row}"


async def filled(uri: str = "memory:", **fields: Any) -> VectorDBSession:
    session = await session_on(uri, **fields)
    metadata = [{"document_id": document(row), "n": row} for row in range(COUNT)]
    await session.add_batch([f"{row:04d}" for row in range(COUNT)], rows(COUNT, 32), metadata)
    return session


@pytest.mark.parametrize("memory", ["default", "compact"])
async def test_all_groups_come_at_any_k(memory: str) -> None:
    base = rows(COUNT, 32).astype(np.float64)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    table = {f"{row:04d}": document(row) for row in range(COUNT)}
    sizes = Counter(table.values())
    async with await filled(memory=memory) as session:
        shared = wanted = 0
        for query in rows(5, 32, seed=5):
            near = base @ query / np.linalg.norm(query)
            scores = {f"{row:04d}": float(near[row]) for row in range(COUNT)}
            for k, size in [(1, 1), (10, 3), (100, 1), (len(sizes), 2), (len(sizes) + 5, 1)]:
                options: dict[str, Any] = {"group_by": "document_id", "group_size": size, "threshold": None}
                exact = shape(await session.search(query, k, exact=True, **options))
                assert exact == naive(table, scores, k, size)
                found = await session.search(query, k, **options)
                assert len(found.groups) == min(k, len(sizes))
                assert all(len(group.hits) == min(size, sizes[group.value]) for group in found.groups)
                assert [group.hits[0].distance for group in found.groups] == sorted(
                    group.hits[0].distance for group in found.groups
                )
                wanted += sum(len(ids) for _, ids in exact)
                shared += len(set(found.ids) & {id for _, ids in exact for id in ids})
            few = await session.search(query, 10, group_by="document_id", filter=F("n") < 8, threshold=None)
            assert few.ids == [id for _, ids in naive(table, scores, 10, 1, lambda id: int(id) < 8) for id in ids]
        assert shared >= 0.97 * wanted
        assert (await session.get_stats()).plans["grouped"] > 0


async def test_groups_follow_every_change_and_are_loaded() -> None:
    uri = f"memory:{uuid.uuid4()}"
    query = rows(1, 32)[0]
    options: dict[str, Any] = {"group_by": "document_id", "threshold": None, "exact": True}
    async with await filled(uri) as session:
        first = await session.search(query, 3, **options)
        assert first.groups[0].value == document(int(first.ids[0]))
        await session.update_metadata(first.ids[0], {"document_id": "moved"}, merge=True)
        assert (await session.search(query, 3, **options)).groups[0].value == "moved"
        await session.update_metadata(first.ids[0], remove=["document_id"])
        assert first.ids[0] not in (await session.search(query, 3, **options)).ids
        await session.delete_by_metadata({"document_id": first.groups[1].value})
        await session.vacuum()
        after = await session.search(query, 3, **options)
        assert first.groups[1].value not in [group.value for group in after.groups]
        await session.save_to_s5()
    async with await session_on(uri) as session:
        await session.load_user_vectors(lazy_load=False)
        again = await session.search(query, 3, **options)
        assert shape(again) == shape(after)
        assert again.to_dict()["groups"][0] == {"value": after.groups[0].value, "ids": [after.ids[0]]}
        high = await session.search(
            query, 3, group_by="document_id", group_size=2, threshold=0.85, include_vectors=True
        )
        assert all(hit.score >= 0.85 and hit.vector is not None for hit in high)
        assert len(high) + high.below_threshold == sum(
            len(group.hits) for group in (await session.search(query, 3, **{**options, "group_size": 2})).groups
        )


async def test_groups_of_a_lazily_loaded_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "_LAZY_BYTES_MIN", 0)
    uri = f"memory:{uuid.uuid4()}"
    rng = np.random.default_rng(7)
    middles = rng.standard_normal((40, 96)) * 1.5
    vectors = (middles[np.arange(COUNT) % 40] + rng.standard_normal((COUNT, 96))).astype(np.float32)
    async with await session_on(uri, chunk_size=256) as session:
        metadata = [{"document_id": f"doc-{row // 4}", "n": row} for row in range(COUNT)]
        await session.add_batch([f"{row:04d}" for row in range(COUNT)], vectors, metadata)
        await session.save_to_s5()
    queries = (middles[:8] + rng.standard_normal((8, 96))).astype(np.float32)
    options: dict[str, Any] = {"group_by": "document_id", "group_size": 2, "threshold": None}
    async with await session_on(uri) as lazy, await session_on(uri) as whole:
        await lazy.load_user_vectors(become_whole=False)
        await whole.load_user_vectors(lazy_load=False)
        shared = plain = 0
        for query in queries:
            for filter in (None, F("n") >= 2_000):
                found = await lazy.search(query, 10, filter=filter, include_vectors=True, **options)
                truth = await whole.search(query, 10, filter=filter, exact=True, **options)
                assert (found.plan, len(found.groups)) == ("lazy", 10)
                assert all(len(group.hits) <= 2 for group in found.groups)
                assert all(hit.metadata["document_id"] == group.value for group in found.groups for hit in group.hits)
                assert all(np.array_equal(hit.vector, vectors[int(hit.id)]) for hit in found)
                shared += len({group.value for group in found.groups} & {group.value for group in truth.groups})
                alone = await lazy.search(query, 20, filter=filter, threshold=None)
                plain += len(set(alone.ids) & set((await whole.search(query, 20, filter=filter, exact=True)).ids)) // 2
        # Few parts are read, as without groups, and the groups are about as good as single rows are.
        assert shared >= 0.9 * plain > 0
        batch = await lazy.search_batch(queries, 3, **options)
        assert [len(one.groups) for one in batch] == [3] * len(queries)
        assert (await lazy.search(queries[0], 5_000, **options)).groups != ()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"group_by": 3}, "a field must be a string"),
        ({"group_by": "a..b"}, "a step of the path is empty"),
        ({"group_by": "$id"}, r"group_by takes fields of metadata, and \$id is one of the row itself"),
        ({"group_by": "$timestamp"}, r"group_by takes fields of metadata, and \$timestamp"),
        ({"group_by": "a", "group_size": 0}, "group_size must be an integer from 1"),
        ({"group_by": "a", "group_size": True}, "group_size must be an integer from 1"),
        ({"group_by": "a", "group_size": 2.0}, "group_size must be an integer from 1"),
        ({"group_by": "a", "group_size": GROUPED_HITS_MAX // 10 + 1}, "from 1 to 10000 with k = 10"),
        ({"group_size": 2}, "give group_by, too"),
        ({"group_by": "a", "mmr": 0.5}, "give mmr or group_by"),
        ({"group_by": "a", "options": {"mmr": 0.5}}, "give mmr or group_by"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase="x", session_id="x") as session:
        with pytest.raises(InvalidInputError, match=message):
            session.search([1.0], **wrong)
        assert session.search([1.0], group_by="a").groups == ()
