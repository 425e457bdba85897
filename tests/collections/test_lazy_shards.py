"""Lazily opened shards: which of them fetch parts for a search, and that the answers are those of any engine."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from gathering import SEED, START_S, WORDS, seen, settings

import fabstir_vectordb.persist.load as load_module
from fabstir_vectordb import NotFoundError, VectorDBSession
from fabstir_vectordb.collections import Collection, Engine, build, over
from fabstir_vectordb.collections.open_shards import _shards, close_shards, opened
from fabstir_vectordb.index.contents import VECTORS
from fabstir_vectordb.s5.cid import multibase_encode

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

LAZY_ROWS, LAZY_DIM = 4_000, 32
K = 10


def load_small_versions_lazily() -> None:
    load_module._LAZY_BYTES_MIN = 0  # type: ignore[attr-defined]


@pytest.fixture(scope="module", autouse=True)
def small_versions_are_lazy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_module, "_LAZY_BYTES_MIN", 0)
        yield


def near_rows(count: int, seed: int) -> Any:
    middles = np.random.default_rng(SEED).standard_normal((60, LAZY_DIM)) * 1.5  # codes tell such rows apart
    rng = np.random.default_rng(seed)
    return (middles[rng.integers(0, 60, count)] + rng.standard_normal((count, LAZY_DIM))).astype(np.float32)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a collection of two shards, and with one index of the same rows."""
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(SEED)
    rows = {
        "ids": [f"row-{number:04d}" for number in range(LAZY_ROWS)],
        "vectors": near_rows(LAZY_ROWS, 1),
        "metadata": [
            {
                "n": number,
                "of": number % 500,
                "both": [number % 499, -(number % 7)],
                "text": " ".join(rng.choice(WORDS, 3)),
            }
            for number in range(LAZY_ROWS)
        ],
        "timestamps": [START_S] * LAZY_ROWS,
    }
    shape = {"chunk_size": 64, "M": 6, "ef_construction": 20, "text_fields": "text"}

    async def make() -> None:
        await build(settings(folder, **shape), [rows], shards=2)
        async with await VectorDBSession.create(settings(folder, **shape, index_name="one")) as session:
            await session.add_batch(**rows)
            await session.save_to_s5()

    anyio.run(make)
    return folder


def indexes() -> list[Any]:
    """The indexes of the shards that this process has open, in the order of their use."""
    return [entry.session._verbs._runtime.index for entry in _shards._entries.values() if entry.session is not None]


class Pickling:
    """An engine whose tasks and results pass through bytes, as those of other processes do."""

    def __init__(self) -> None:
        self.tasks: list[str] = []

    def submit(self, key: str, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        self.tasks.append(function.__name__)
        done: Future[Any] = Future()
        again, arguments = pickle.loads(pickle.dumps((function, args)))
        try:
            done.set_result(pickle.loads(pickle.dumps(again(*arguments))))
        except Exception as error:
            done.set_exception(error)
        return done


@asynccontextmanager
async def opened_beside(
    stored: Path, engine: Engine | None = None
) -> AsyncIterator[tuple[Collection, VectorDBSession, VectorDBSession]]:
    """The collection with lazily opened shards, and the one index, lazily loaded and whole."""
    async with (
        await Collection.open(settings(stored), become_whole=False, engine=engine) as many,
        await VectorDBSession.create(settings(stored, index_name="one")) as one,
        await VectorDBSession.create(settings(stored, index_name="one")) as whole,
    ):
        await one.load_user_vectors(become_whole=False)
        await whole.load_user_vectors(lazy_load=False)
        yield many, one, whole


async def test_a_search_fetches_the_parts_of_the_likeliest_rows_of_all_shards(stored: Path) -> None:
    queries = near_rows(30, 2)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, near_rows(LAZY_ROWS, 1))]
    nearest = np.argsort(-unit[0] @ unit[1].T, axis=1)[:, :K]
    requests, found = [0, 0], [0, 0]
    async with (
        await Collection.open(settings(stored), become_whole=False) as many,
        await VectorDBSession.create(settings(stored, index_name="one")) as one,
    ):
        await one.load_user_vectors(become_whole=False)
        for query, expected in zip(queries, nearest, strict=True):
            both: tuple[Any, Any] = many, one
            for place, db in enumerate(both):
                for index in (*indexes(), one._runtime.index):
                    index.forget_caches()
                hits = await db.search(query, K, threshold=None)
                assert hits.plan == "lazy"
                requests[place] += hits.receipt.requests
                found[place] += len({hit.id for hit in hits} & {f"row-{row:04d}" for row in expected})
        assert len(indexes()) == 2
        assert not any(index.is_whole for index in indexes())
    assert found[0] >= 0.95 * found[1]
    assert requests[0] <= 1.5 * requests[1]


async def test_of_few_groups_more_rows_are_candidates(stored: Path) -> None:
    few: dict[str, Any] = {"group_by": "of", "group_size": 3, "threshold": None, "filter": {"of": {"$in": [7, 8, 9]}}}
    async with opened_beside(stored) as (many, one, whole):
        for query in near_rows(8, 9):
            best = await whole.search(query, 3, exact=True, **few)
            assert [len(group.hits) for group in best.groups] == [3, 3, 3]
            of_many = await many.search(query, 3, ef_search=200, **few)
            of_one = await one.search(query, 3, ef_search=200, **few)
            assert of_many.ids == of_one.ids == best.ids
            assert of_many.plan == of_one.plan == "lazy"


async def test_a_shard_that_comes_into_memory_between_the_rounds_keeps_its_rows(stored: Path) -> None:
    class Warming(Pickling):
        def submit(self, key: str, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
            if function.__name__ == "likely_of_groups":
                with opened(args[0], args[1]) as session:
                    session.warm()
            return super().submit(key, function, *args)

    whole_group: dict[str, Any] = {"group_by": "of", "group_size": 8, "threshold": None}
    warming = Warming()
    async with await Collection.open(settings(stored), become_whole=False, engine=warming) as many:
        for query in near_rows(8, 2):
            close_shards()
            (group,) = (await many.search(query, 1, **whole_group)).groups
            assert len(group.hits) == 8
        assert "likely_of_groups" in warming.tasks


@pytest.mark.parametrize(("field", "size"), [("of", 1), ("of", 3), ("both", 2)])
async def test_groups_are_chosen_from_the_likeliest_rows_of_all_shards(stored: Path, field: str, size: int) -> None:
    grouped: dict[str, Any] = {"group_by": field, "group_size": size, "threshold": None}
    queries = near_rows(12, 7)
    requests, found, wanted = [0, 0], [0, 0], 0
    pickling = Pickling()
    async with opened_beside(stored, pickling) as (many, one, whole):
        both: tuple[Any, Any] = many, one
        for query in queries:
            best = (await whole.search(query, 5, exact=True, **grouped)).groups
            rows_of_best = {(group.value, hit.id) for group in best for hit in group.hits}
            wanted += len(rows_of_best)
            for place, db in enumerate(both):
                for index in (*indexes(), one._runtime.index):
                    index.forget_caches()
                hits = await db.search(query, 5, **grouped)
                assert [hit.id for hit in hits] == [hit.id for group in hits.groups for hit in group.hits]
                requests[place] += hits.receipt.requests
                rows = {(group.value, hit.id) for group in hits.groups for hit in group.hits}
                found[place] += len(rows & rows_of_best)
        alone = [seen(await many.search(query, 5, **grouped)) for query in queries]
        assert [seen(hits) for hits in await many.search_batch(queries, 5, **grouped)] == alone
        assert not any(index.is_whole for index in indexes())
        assert set(pickling.tasks) - {"likely_of_groups"} == {"nearest", "chosen"}
        assert ("likely_of_groups" in pickling.tasks) == (size > 1)
    print(f"requests {requests}, rows {found} of {wanted}")
    assert found[0] >= 0.95 * found[1]
    assert requests[0] <= 1.5 * requests[1]


@pytest.mark.parametrize("text", ["harbour stone", "+river stone -night"])
async def test_a_search_with_words_fetches_the_parts_of_the_likeliest_rows_of_all_shards(
    stored: Path, text: str
) -> None:
    queries = near_rows(12, 8)
    requests, found = [0, 0], [0, 0]
    pickling = Pickling()
    async with opened_beside(stored, pickling) as (many, one, whole):
        both: tuple[Any, Any] = many, one
        for query in queries:
            best = {hit.id for hit in await whole.search(query, K, text=text, exact=True)}
            for place, db in enumerate(both):
                for index in (*indexes(), one._runtime.index):
                    index.forget_caches()
                hits = await db.search(query, K, text=text)
                assert hits.plan == "lazy + words"
                requests[place] += hits.receipt.requests
                found[place] += len(best & {hit.id for hit in hits})
        alone = [seen(await many.search(query, K, text=text)) for query in queries]
        assert [seen(hits) for hits in await many.search_batch(queries, K, text=text)] == alone
        assert not any(index.is_whole for index in indexes())
        assert set(pickling.tasks) == {"count_words", "sides", "contents"}
    print(f"requests {requests}, rows {found} of {12 * K}")
    assert found[0] >= 0.95 * found[1]
    assert requests[0] <= 1.5 * requests[1]


async def test_answers_are_those_of_any_engine(stored: Path) -> None:
    queries = near_rows(4, 3)
    answers = []
    pickling = Pickling()
    for engine in (None, pickling):
        async with await Collection.open(settings(stored), become_whole=False, engine=engine) as many:
            where = {"n": {"$lt": 3_000}}
            alone = [seen(await many.search(query, K, threshold=None)) for query in queries]
            assert [seen(hits) for hits in await many.search_batch(queries, K, threshold=None)] == alone
            # One shard is asked in one round.
            near = await many.search(queries[0], K, shards=1, threshold=None)
            more = await many.search(queries[1], K, ef_search=200, filter=where, include_vectors=True, threshold=None)
            assert all(hit.metadata["n"] < 3_000 and hit.vector is not None for hit in more)
            exact = await many.search(queries[1], K, exact=True, filter=where, threshold=None)
            assert len({hit.id for hit in more} & {hit.id for hit in exact}) >= K - 1
            assert not await many.search(queries[0], K, filter={"n": -1})
            answers.append((alone, seen(near), seen(more)))
    assert answers[0] == answers[1]
    assert {"nearest", "chosen", "search"} == set(pickling.tasks)


POOLED: list[dict[str, Any]] = [{}, {"text": "+river stone"}, {"group_by": "of", "group_size": 2}]


@pytest.mark.long
async def test_a_pool_of_processes_gives_the_same_answers(stored: Path) -> None:
    queries = near_rows(20, 4)
    answers = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=load_small_versions_lazily) as pool:
        for engine in (None, over(pool)):
            async with await Collection.open(settings(stored), become_whole=False, engine=engine) as many:
                answers.append(
                    [
                        seen(await many.search(query, K, threshold=None, **options))
                        for query in queries
                        for options in POOLED
                    ]
                )
    assert answers[0] == answers[1]


async def test_a_shard_in_memory_answers_at_once_and_counts_as_a_candidate(stored: Path) -> None:
    queries = near_rows(10, 5)
    pickling = Pickling()
    async with await Collection.open(settings(stored), become_whole=False, engine=pickling) as many:
        exact = await many.search_batch(queries, K, exact=True, threshold=None)
        assert all(index.is_whole for index in indexes())
        pickling.tasks.clear()
        for query, expected in zip(queries, exact, strict=True):
            hits = await many.search(query, K, threshold=None, ef_search=200)
            assert seen(hits) == seen(expected)
        assert set(pickling.tasks) == {"nearest"}
    async with await Collection.open(settings(stored), become_whole=False) as many:
        await many.search(queries[0], K, threshold=None)
        whole = next(entry.session for entry in _shards._entries.values() if entry.session is not None)
        whole.warm()
        assert sorted(index.is_whole for index in indexes()) == [False, True]
        for query, expected in zip(queries, exact, strict=True):
            hits = await many.search(query, K, threshold=None, ef_search=200)
            assert len({hit.id for hit in hits} & {hit.id for hit in expected}) >= K - 1
        grouped: dict[str, Any] = {"group_by": "of", "group_size": 3, "threshold": None}
        best = await many.search_batch(queries, 4, ef_search=200, **grouped)
        said: dict[str, Any] = {"text": "harbour stone"}
        both = await many.search_batch(queries, K, ef_search=200, **said)
        assert sorted(index.is_whole for index in indexes()) == [False, True]
        for groups, expected in zip(best, await many.search_batch(queries, 4, exact=True, **grouped), strict=True):
            assert len({hit.id for hit in groups} & {hit.id for hit in expected}) >= 11
        for hits, expected in zip(both, await many.search_batch(queries, K, exact=True, **said), strict=True):
            assert len({hit.id for hit in hits} & {hit.id for hit in expected}) >= K - 1


async def test_a_shard_that_is_lost_between_the_rounds_leaves_its_place_to_the_others(
    stored: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(stored, store)
    query = near_rows(1, 6)[0]
    words: dict[str, Any] = {"text": "harbour stone"}
    async with await Collection.open(settings(store), become_whole=False) as many:
        whole = await many.search(query, K, threshold=None)
        await many.search(query, K, **words)
        share_of = {number: shard.share for number, shard in many._snapshot.shards.items()}
        best = next(number for number in (0, 1) if many._snapshot.centroids.ranked(query[np.newaxis])[0][0] == number)
        for key, entry in _shards._entries.items():
            assert entry.session is not None
            index: Any = entry.session._verbs._runtime.index
            index.forget_caches()
            if key.share != share_of[best]:
                continue
            for part_key, part in index.parts.stored.items():
                if part_key.kind == VECTORS:
                    name = multibase_encode(part.entry.hash)[1:]
                    (store / "blobs" / name[:2] / name).unlink()
        with pytest.raises(NotFoundError, match=f"shard {best}"):
            await many.search(query, K, threshold=None)
        left = await many.search(query, K, threshold=None, missing_ok=True)
        assert (left.missing, left.shards) == ((best,), (1 - best,))
        assert len(left) == K
        assert not {hit.id for hit in left} & {hit.id for hit in whole[:1]}
        with pytest.raises(NotFoundError, match=f"shard {best}"):
            await many.search(query, K, **words)
        grouped: dict[str, Any] = {"group_by": "of", "group_size": 2, "threshold": None}
        with pytest.raises(NotFoundError, match=f"shard {best}"):
            await many.search(query, 3, **grouped)
        of_groups = await many.search(query, 3, missing_ok=True, **grouped)
        assert (of_groups.missing, of_groups.shards) == ((best,), (1 - best,))
        assert [len(group.hits) for group in of_groups.groups] == [2, 2, 2]
        said = await many.search(query, K, missing_ok=True, **words)
        assert (said.missing, said.shards) == ((best,), (1 - best,))
        # The hits by vector are the nearest of the rows that are left.
        assert {hit.id for hit in said if hit.vector_rank == 1} <= {left[0].id}
        assert len(said) == K
