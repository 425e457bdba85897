"""A collection finds by words what one index of all rows does, with the same scores, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from gathering import (
    PHRASE,
    QUERIES,
    ROWS,
    SEED,
    START_S,
    TEXT,
    WORDS,
    batch,
    group,
    settings,
    told,
    vectors,
    worded,
)

from fabstir_vectordb import InvalidConfigError, InvalidInputError, NotFoundError, VectorDBSession, VectorInput
from fabstir_vectordb.collections import Collection, build
from fabstir_vectordb.collections.open_shards import open_count
from fabstir_vectordb.persist import load as load_module
from fabstir_vectordb.s5.cid import multibase_encode, parse_cid
from fabstir_vectordb.types import SearchResults

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    anyio.run(partial(build, settings(folder), [worded()], shards=3, **TEXT))
    return folder


@pytest.fixture(scope="module")
def one() -> Iterator[VectorDBSession]:
    """A session of one index with the same rows."""

    async def make() -> VectorDBSession:
        session = await VectorDBSession.create(
            s5_portal="memory:", user_seed_phrase=PHRASE, session_id="one", threads=1, **TEXT
        )
        rows = worded()
        await session.add_batch(rows["ids"], rows["vectors"], rows["metadata"], rows["timestamps"])
        return session

    session = anyio.run(make)
    yield session
    anyio.run(session.destroy)


FIELDS: tuple[dict[str, Any], ...] = (
    {},
    {"highlight": True, "include_vectors": True},
    {"filter": {"kind": "a"}, "threshold": 0.3},
    {"fusion": "rrf"},
    {"fusion": "weighted", "alpha": 0.3, "filter": {"n": {"$lt": 50}}},
)


async def test_words_and_vectors_find_what_one_index_does(stored: Path, one: VectorDBSession) -> None:
    queries = vectors(len(QUERIES), seed=9)
    async with await Collection.open(settings(stored)) as many:
        for k in (4, ROWS + 5):
            for number, fields in enumerate(FIELDS):
                for given in (queries, None):
                    if given is None and "fusion" in fields:
                        continue
                    asked = {"text": QUERIES, "exact": True, **fields}
                    for text, expected, found in zip(
                        QUERIES,
                        await one.search_batch(given, k, **asked),
                        await many.search_batch(given, k, **asked),
                        strict=True,
                    ):
                        assert told(found) == told(expected), (k, number, text, given is None)
                        assert found.shards == (0, 1, 2)
        for text in QUERIES[:3]:
            for query in (queries[0], None):
                assert told(await many.search(query, 5, text=text)) == told(await one.search(query, 5, text=text))


async def test_streams_with_text_are_those_of_one_index(stored: Path, one: VectorDBSession) -> None:
    query = vectors(1, seed=9)[0]
    async with await Collection.open(settings(stored)) as many:
        for text, fields in (
            ("har* river", {"highlight": True}),
            ("+river -night", {"include_vectors": True, "filter": {"kind": "a"}}),
            ("river", {"threshold": 0.2}),
        ):
            for given in (query, None):
                found = [hit async for hit in many.search_stream(given, text=text, **fields)]
                expected = [hit async for hit in one.search_stream(given, text=text, **fields)]
                assert told(SearchResults(found, 0, "words")) == told(SearchResults(expected, 0, "words"))


async def test_hits_are_chosen_as_one_index_chooses_them(stored: Path, one: VectorDBSession) -> None:
    """By `mmr`, a caller's scores, or groups; also by vector alone."""

    def longest(query: Any, hits: Any) -> list[float]:
        return [float(len(hit.metadata.get("text", ""))) for hit in hits]

    async def latest(query: Any, hits: Any) -> list[int]:
        return [hit.metadata["n"] for hit in hits]

    queries = vectors(3, seed=9)
    said = {"text": "har* river", "threshold": 0.1}
    near = {"threshold": None, "exact": True}
    of_groups: list[dict[str, Any]] = [
        {"group_by": field, "group_size": size, "filter": where, **near}
        for field, size, where in (("kind", 1, None), ("tags", 4, {"n": {"$gt": 9}}), ("n", 2, None), ("none", 3, None))
    ]
    async with await Collection.open(settings(stored)) as many:
        for fields in (
            *({**chosen, **side} for chosen in ({"mmr": 0.4}, {"rerank": longest}) for side in (said, near)),
            {"rerank": latest, "rerank_k": 9, "group_by": "tags", "group_size": 2, **near},
            *of_groups,
            *({**chosen, "text": "har* river -runner", "exact": True} for chosen in of_groups),
            {**of_groups[1], "text": "river", "fusion": "rrf", "highlight": True, "threshold": 0.45},
            {**of_groups[0], "text": ["night", "har*", "nothing"], "rerank": latest, "rerank_k": 3},
        ):
            expected, found = (
                await one.search_batch(queries, 2, **fields),
                await many.search_batch(queries, 2, **fields),
            )
            assert list(map(told, found)) == list(map(told, expected)), fields
            for of_one, of_many in zip(expected, found, strict=True):
                assert list(map(group, of_many.groups)) == list(map(group, of_one.groups)), fields
        for k, fields in ((2, of_groups[1]), (40, of_groups[2]), (3, {**of_groups[0], "threshold": 0.5})):
            alone = await many.search(None, k, text="har* night", **fields)
            of_one = await one.search(None, k, text="har* night", **fields)
            assert told(alone) == told(of_one)
            assert (list(map(group, alone.groups)), alone.plan) == (list(map(group, of_one.groups)), of_one.plan)


async def test_scores_count_by_the_rows_of_all_shards_after_changes(tmp_path: Path) -> None:
    """Rows that leave a shard, or come to it, change the scores of all."""
    rows, english = worded(), {**TEXT, "text_language": "english"}
    await build(settings(tmp_path), [rows], shards=3, **english)
    queries, text = vectors(2, seed=9), 'har* runs "field night"'
    async with (
        await VectorDBSession.create(s5_portal="memory:", user_seed_phrase=PHRASE, session_id="2", **english) as single,
        await Collection.open(settings(tmp_path), **english) as many,
    ):
        await single.add_batch(rows["ids"], rows["vectors"], rows["metadata"], rows["timestamps"])
        added = [
            VectorInput(f"row-{number:04d}", vectors()[number % 90], {"text": "field night runner"}, START_S + number)
            for number in (3, 70, 500)
        ]
        gone = [f"row-{number:04d}" for number in range(20, 40)]
        await many.change(added, gone)
        await single.add_vectors(added, on_conflict="replace")
        await single.delete(gone)
        for change in (None, many.vacuum, partial(many.rebalance, rows_max=30, rows_min=1)):
            if change is not None:
                await change()
            for query in (queries, None):
                fields = {"text": text, "exact": True, "highlight": True}
                expected = await single.search_batch(query, 50, **fields)
                assert list(map(told, await many.search_batch(query, 50, **fields))) == list(map(told, expected))


async def test_wrong_questions_about_words(stored: Path, tmp_path: Path) -> None:
    async with await Collection.open(settings(stored)) as many:
        wrong: tuple[dict[str, Any], ...] = (
            {"query": None},
            {"query": None, "text": ["a", "b"]},
            {"text": "river", "shards": 1},
            {"text": 7},
            {"fusion": "rrf"},
        )
        for fields in wrong:
            with pytest.raises(InvalidInputError):
                await many.search(**{"query": vectors(1)[0], **fields})
        with pytest.raises(InvalidInputError):
            await many.search_batch(None, 3)
        assert open_count() == 0
    with pytest.raises(InvalidConfigError, match="texts"):
        await Collection.open(settings(stored), text_fields="other")
    with pytest.raises(InvalidConfigError, match="language"):
        await build(settings(tmp_path), [batch()], text_fields="text", text_language="klingon")
    await build(settings(tmp_path), [batch(20)], shards=1)
    async with await Collection.open(settings(tmp_path)) as many:
        with pytest.raises(InvalidInputError, match="text"):
            await many.search(None, 3, text="river")


async def test_a_lost_shard_leaves_the_words_of_the_others(stored: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(stored, store)
    async with await Collection.open(settings(store)) as many:
        lost = parse_cid(many._snapshot.shards[1].share)
        name = multibase_encode(lost.hash)[1:]
        (store / "blobs" / name[:2] / name).unlink()
        with pytest.raises(NotFoundError, match="shard 1"):
            await many.search(None, 3, text="river")
        found = await many.search(vectors(1)[0], 200, text="r*", missing_ok=True)
        assert (found.missing, found.shards) == ((1,), (0, 2))
        assert all(hit.metadata["n"] >= 0 for hit in found)


@pytest.mark.long
async def test_lazily_loaded_shards_find_the_same_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "_LAZY_BYTES_MIN", 0)
    rng = np.random.default_rng(SEED)
    middles = rng.standard_normal((60, 32)) * 1.5  # sketches tell such rows apart, so a lazy load is worth it
    near = middles[rng.integers(0, 60, 6_000)] + rng.standard_normal((6_000, 32))
    rows: dict[str, Any] = {
        "ids": [f"row-{number:05d}" for number in range(6_000)],
        "vectors": near.astype(np.float32),
        "metadata": [{"text": " ".join(rng.choice(WORDS, 4).tolist())} for _ in range(6_000)],
        "timestamps": [START_S + number for number in range(6_000)],
    }
    fields = {"text_fields": "text", "chunk_size": 128}
    await build(settings(tmp_path), [rows], shards=2, **fields)
    async with (
        await VectorDBSession.create(s5_portal="memory:", user_seed_phrase=PHRASE, session_id="3", **fields) as single,
        await Collection.open(settings(tmp_path), become_whole=False) as many,
    ):
        await single.add_batch(rows["ids"], rows["vectors"], rows["metadata"], rows["timestamps"])
        for text in ("har* night", "+river -stone", '"night field"', "日本"):
            asked = {"text": text, "highlight": True, "include_vectors": True}
            found, expected = await many.search(None, 9, **asked), await single.search(None, 9, **asked)
            assert (found.plan, told(found)) == ("words", told(expected))
            assert found.receipt.requests > 0 or text == "日本"
            both = await many.search(rows["vectors"][5], 9, text=text)
            assert both.plan == "lazy + words"
            assert {hit.text_score for hit in both if hit.text_rank} <= {
                hit.text_score for hit in await single.search(None, 200, text=text)
            }
