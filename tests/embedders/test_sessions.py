"""Sessions with an embedder: texts in, questions as strings, and the embedder that an index was made by."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from fabstir_vectordb import (
    AddTextsResult,
    ConflictError,
    EmbedderInfo,
    EmbeddingError,
    InvalidConfigError,
    InvalidInputError,
    MemoryBudgetExceededError,
    SessionError,
    VectorDBSession,
    new_seed_phrase,
    sync,
)
from fabstir_vectordb.persist import load as load_module

PHRASE = new_seed_phrase()
TEXTS = ["roses are red", "violets are blue", "the sea is green"]


class Letters:
    """Embeds a text as the numbers of its letters."""

    batch_size = 2

    def __init__(self, name: str = "letters", dimension: int = 26) -> None:
        self.name, self.dimension = name, dimension
        self.calls: list[list[str]] = []
        self.threads: set[int] = set()

    def __call__(self, texts: Sequence[str], /) -> Any:
        self.calls.append(list(texts))
        self.threads.add(threading.get_ident())
        return [[0.1 + text.count(chr(97 + n)) for n in range(self.dimension)] for text in texts]


class Awaited(Letters):
    """The same as a coroutine function."""

    async def __call__(self, texts: Sequence[str], /) -> Any:
        await anyio.lowlevel.checkpoint()
        return super().__call__(texts)


def settings(**others: Any) -> Any:
    return {"s5_portal": "memory:", "user_seed_phrase": PHRASE, "session_id": "tests", **others}


@pytest.fixture
async def session() -> AsyncIterator[VectorDBSession]:
    async with VectorDBSession.create(**settings(embedder=Letters(), default_threshold=None)) as made:
        yield made


@pytest.mark.anyio
@pytest.mark.parametrize("embedder", [Letters(), Awaited()], ids=["plain", "awaited"])
async def test_texts_are_added_and_found_by_strings(embedder: Letters) -> None:
    told = []
    async with VectorDBSession.create(**settings(embedder=embedder, text_fields="text")) as session:
        added = await session.add_texts(
            TEXTS, ["a", "b", "c"], [{"n": 1}, None, {"text": TEXTS[2]}], progress=lambda *done: told.append(done)
        )
        assert added == AddTextsResult(3, 0, 0, ["a", "b", "c"]) and told == [(2, 3), (3, 3)]
        assert [row.metadata for row in await session.get(["a", "b", "c"]) if row] == [
            {"n": 1, "text": TEXTS[0]},
            {"text": TEXTS[1]},
            {"text": TEXTS[2]},
        ]
        by_vector = await session.search(embedder_row("red roses"), k=2, threshold=None)
        assert await session.search("red roses", k=2, threshold=None) == by_vector and by_vector[0].id == "a"
        hybrid = await session.search("blue violets", k=2, text=True)
        assert hybrid == await session.search(embedder_row("blue violets"), k=2, text="blue violets")
        assert hybrid[0].id == "b" and (hybrid[0].text_score or 0) > 0
        questions = ["red roses", "the green sea"]
        rows = np.array([embedder_row(text) for text in questions])
        assert await session.search_batch(questions, k=1) == await session.search_batch(rows, k=1)
        assert await session.search_batch(questions, 1, {"text": True}) == await session.search_batch(
            rows, k=1, text=questions
        )
        assert [hit.id async for hit in session.search_stream("red roses", text=True)][:1] == ["a"]
        assert (await session.get_stats()).embedder == EmbedderInfo("letters", 26)
    assert (threading.get_ident() in embedder.threads) is isinstance(embedder, Awaited)


def embedder_row(text: str) -> Any:
    return np.array(Letters()([text])[0], dtype=np.float32)


@pytest.mark.parametrize("embedder", [Letters(), Awaited()], ids=["plain", "awaited"])
def test_the_same_without_await(embedder: Letters) -> None:
    with sync.VectorDBSession.create(**settings(embedder=embedder)) as session:
        ids = session.add_texts(TEXTS, timestamps=[1, 2, 3]).ids
        assert len(set(ids)) == 3 and list(session.get_timestamps().values()) == [1.0, 2.0, 3.0]
        assert session.search("red roses", k=1).ids == [ids[0]]
        assert [hits.ids for hits in session.search_batch(TEXTS, k=1)] == [[id] for id in ids]
        assert next(iter(session.search_stream("red roses"))).id == ids[0]
    assert (threading.get_ident() in embedder.threads) is not isinstance(embedder, Awaited)


@pytest.mark.anyio
async def test_a_text_goes_where_its_words_are_found(session: VectorDBSession) -> None:
    await session.set_text_fields(['page."a.b"', "text"])
    await session.add_texts(["roses"], ["a"], [{"page": {"n": 1}, "text": "violets"}])
    (row,) = await session.get(["a"])
    assert row is not None and row.metadata == {"page": {"n": 1, "a.b": "roses"}, "text": "violets"}
    assert (await session.search(text="roses")).ids == (await session.search(text="violets")).ids == ["a"]
    for wrong in ({"page": 5}, {"page": {"a.b": "other"}}, [1], "x"):
        with pytest.raises(InvalidInputError, match="metadata of text 0") as raised:
            await session.add_texts(["roses"], ["b"], [wrong])  # type: ignore[list-item]
        assert raised.value.details["row"] == 0


@pytest.mark.anyio
@pytest.mark.one_loop
async def test_what_is_refused_is_refused_before_a_text_is_embedded() -> None:
    embedder = Letters()
    async with VectorDBSession.create(**settings(embedder=embedder, memory_budget_mb=2)) as session:
        await session.set_schema({"n": "Number"})
        await session.add_texts(["x"], ["x"])
        before = list(embedder.calls)
        wrong: list[tuple[type[Exception], dict[str, Any]]] = [
            (InvalidInputError, {"texts": "one text"}),
            (InvalidInputError, {"texts": [1]}),
            (InvalidInputError, {"texts": ["\ud800"]}),
            (InvalidInputError, {"ids": ["a"]}),
            (InvalidInputError, {"ids": "ab"}),
            (InvalidInputError, {"ids": ["a", 5]}),
            (InvalidInputError, {"ids": ["a", ""]}),
            (InvalidInputError, {"ids": ["a", "x" * 1_025]}),
            (InvalidInputError, {"ids": ["a", "\ud800"]}),
            (InvalidInputError, {"metadata": [{}]}),
            (InvalidInputError, {"metadata": {"a": 1}}),
            (InvalidInputError, {"metadata": [{"n": "text"}, None]}),
            (InvalidInputError, {"metadata": [{"n": object()}, None]}),
            (InvalidInputError, {"timestamps": [1]}),
            (InvalidInputError, {"expires_at": [1, "soon"]}),
            (InvalidInputError, {"on_conflict": "maybe"}),
            (InvalidInputError, {"batch_size": 0}),
            (InvalidInputError, {"progress": 5}),
            (ConflictError, {"ids": ["a", "x"]}),
            (ConflictError, {"ids": ["a", "a"]}),
            (MemoryBudgetExceededError, {"texts": ["x"] * 20_000}),
        ]
        for error, arguments in wrong:
            with pytest.raises(error):
                await session.add_texts(**{"texts": ["a", "b"], **arguments})
            assert embedder.calls == before and await session.count() == 1
        with pytest.raises(ConflictError, match="duplicate id 'x': it already exists") as raised:
            await session.add_texts(["a", "b"], ["a", "x"])
        assert raised.value.details == {"row": 1, "id": "x"}
        assert await session.add_texts([]) == AddTextsResult(0, 0, 0, [])


@pytest.mark.anyio
@pytest.mark.one_loop
async def test_a_row_that_is_left_out_is_not_embedded() -> None:
    embedder = Letters()
    async with VectorDBSession.create(**settings(embedder=embedder)) as session:
        await session.add_texts(["x"], ["x"])
        texts, ids = ["x2", "a", "a2", "b"], ["x", "a", "a", "b"]
        skipped = await session.add_texts(texts, ids, timestamps=[1, 2, 3, 4], on_conflict="skip")
        assert (skipped.added, skipped.replaced, skipped.skipped) == (2, 0, 2) and skipped.ids == ids
        assert [text for call in embedder.calls for text in call] == ["x", "a", "b"]
        assert await session.get_timestamps(["a", "b"]) == {"a": 2.0, "b": 4.0}
        assert await session.add_texts(texts, ids, on_conflict="skip") == AddTextsResult(0, 0, 4, ids)
        replaced = await session.add_texts(texts, ids, on_conflict="replace")
        assert (replaced.added, replaced.replaced, replaced.skipped) == (0, 3, 1)
        assert [text for call in embedder.calls[2:] for text in call] == ["x2", "a2", "b"]
        assert [row.metadata["text"] for row in await session.get(["x", "a", "b"]) if row] == ["x2", "a2", "b"]


@pytest.mark.anyio
async def test_nothing_is_added_where_a_later_call_fails(session: VectorDBSession) -> None:
    class Tires(Letters):
        def __call__(self, texts: Sequence[str], /) -> Any:
            given = super().__call__(texts)
            return given if len(self.calls) == 1 else np.array(given) * np.nan

    async with VectorDBSession.create(**settings(embedder=Tires())) as tired:
        with pytest.raises(EmbeddingError, match="not finite"):
            await tired.add_texts(TEXTS)
        stats = await tired.get_stats()
        assert (stats.vector_count, stats.dirty, stats.embedder) == (0, False, None)
        with pytest.raises(EmbeddingError):
            await tired.search("red")


@pytest.mark.anyio
async def test_a_cancellation_does_not_wait_for_the_model_and_adds_nothing() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Letters):
        def __call__(self, texts: Sequence[str], /) -> Any:
            begun.set()
            go_on.wait(60)
            return super().__call__(texts)

    async with VectorDBSession.create(**settings(embedder=Slow())) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(session.add_texts, TEXTS)
            await anyio.to_thread.run_sync(begun.wait)
            await session.add_batch(["a"], [[1.0] * 26])  # other changes go on meanwhile
            group.cancel_scope.cancel()
        go_on.set()
        assert await session.count() == 1


@pytest.mark.anyio
@pytest.mark.one_loop
async def test_an_index_of_another_model_is_refused(tmp_path: Path) -> None:
    stored = settings(s5_portal=tmp_path)
    async with VectorDBSession.create(**stored, embedder=Letters()) as session:
        await session.add_texts(TEXTS, ["a", "b", "c"])
        cid = await session.save_to_s5()
        share = await session.share(cid)

    async with VectorDBSession.create(**stored, embedder=Letters("others")) as session:
        with pytest.raises(InvalidConfigError, match="embedded by 'letters' with 26 dimensions") as raised:
            await session.load_user_vectors()
        assert raised.value.details["stored"] == "letters" and await session.count() == 0
        with pytest.raises(InvalidConfigError):
            await session.load_user_vectors(share)

    async with VectorDBSession.create(**stored) as session:  # without an embedder: by vectors, or by words
        await session.load_user_vectors(share)
        assert (await session.search(embedder_row("red roses"), k=1)).ids == ["a"]
        assert (await session.get_stats()).embedder == EmbedderInfo("letters", 26)
        for call in (session.search("red"), session.search_batch(["red"]), session.add_texts(["x"])):
            with pytest.raises(InvalidInputError, match="no embedder"):
                await call
        with pytest.raises(InvalidConfigError):
            await session.load_user_vectors(share, embedder=Letters("others"))
        await session.load_user_vectors(share, embedder=Letters())
        assert (await session.search("red roses", k=1)).ids == ["a"]
        await session.load_user_vectors()  # the embedder stays
        assert (await session.search("red roses", k=1)).ids == ["a"]

    narrow = Letters(dimension=5)  # the name is the same, and the model is not
    async with VectorDBSession.create(**stored, embedder=narrow) as session:
        await session.load_user_vectors()
        for call in (session.search("red"), session.add_texts(["x"])):
            with pytest.raises(InvalidConfigError, match="'letters' with 5 dimensions"):
                await call
        assert await session.clear() == 3  # an empty index is any model's
        await session.add_texts(["x"], ["x"])
        assert (await session.get_stats()).embedder == EmbedderInfo("letters", 5)
        await session.save_to_s5()

    async with VectorDBSession.create(**stored, embedder=narrow) as session:
        await session.load_user_vectors()
        assert (await session.search("x", k=1)).ids == ["x"]


@pytest.mark.anyio
async def test_a_load_during_an_embedding_is_noticed(tmp_path: Path) -> None:
    stored = settings(s5_portal=tmp_path)
    async with VectorDBSession.create(**stored, embedder=Letters("first")) as session:
        await session.add_texts(TEXTS)
        cid = await session.save_to_s5()
    loads: list[VectorDBSession] = []

    class Second(Awaited):
        async def __call__(self, texts: Sequence[str], /) -> Any:
            if loads:
                await loads[0].load_user_vectors(cid, embedder=Letters("first"), discard_unsaved=True)
            return await super().__call__(texts)

    for call in (lambda one: one.search("red"), lambda one: one.add_texts(["x"])):
        async with VectorDBSession.create(**stored, embedder=Second("second")) as session:
            loads[:] = [session]
            with pytest.raises(InvalidConfigError, match="embedded by 'first'"):
                await call(session)
            assert await session.count() == 3
            loads.clear()


@pytest.mark.anyio
@pytest.mark.one_loop
async def test_versions_without_texts_keep_their_cid(session: VectorDBSession) -> None:
    async with VectorDBSession.create(**settings(clock=lambda: 1.7e9)) as plain:
        await plain.add_batch(["a"], [[1.0, 2.0]])
        expected = await plain.save_to_s5()
    async with VectorDBSession.create(**settings(clock=lambda: 1.7e9, embedder=Letters())) as other:
        await other.add_batch(["a"], [[1.0, 2.0]])
        assert await other.save_to_s5() == expected
        with pytest.raises(InvalidInputError, match="dimension mismatch"):
            await other.add_texts(["x"])
        with pytest.raises(InvalidInputError, match="dimension mismatch"):
            await other.search("x")


@pytest.mark.anyio
@pytest.mark.one_loop
async def test_arguments_are_checked(session: VectorDBSession) -> None:
    nameless: Any = lambda texts: texts  # noqa: E731
    for wrong in (nameless, "letters", 5, Letters("a\nb"), Letters("")):
        with pytest.raises(InvalidConfigError, match="embedder must"):
            await VectorDBSession.create(**settings(embedder=wrong))
        with pytest.raises(InvalidInputError, match="embedder must"):
            await session.load_user_vectors(missing_ok=True, embedder=wrong)
    await session.add_texts(TEXTS)
    with pytest.raises(InvalidInputError, match="text=True"):
        await session.search([1.0] * 26, text=True)
    embedder: Any = session._workspace.embedder
    calls = len(embedder.calls)
    with pytest.raises(InvalidInputError, match="no text fields"):
        await session.search("red", text=True)
    assert len(embedder.calls) == calls  # nothing was embedded for it
    for queries in (["red", 5], ["red", [1.0] * 26]):
        with pytest.raises(InvalidInputError, match="text 1 must be a string"):
            await session.search_batch(queries)
    await session.destroy()
    with pytest.raises(SessionError):
        await session.add_texts(["x"])
    with pytest.raises(SessionError):
        await session.search("x")


class Clusters(Letters):
    """Embeds the decimal number that a text is, in clusters, so that codes of one bit tell rows apart."""

    def __call__(self, texts: Sequence[str], /) -> Any:
        middles = np.random.default_rng(0).standard_normal((60, 32)) * 1.5
        return [middles[int(text) % 60] + np.random.default_rng(int(text)).standard_normal(32) for text in texts]


@pytest.mark.anyio
@pytest.mark.one_loop
async def test_a_lazily_loaded_index_knows_its_embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "_LAZY_BYTES_MIN", 0)
    info = EmbedderInfo("clusters", 32)
    stored = settings(s5_portal=tmp_path, embedder=Clusters("clusters", 32), threads=1, chunk_size=128)
    texts = [str(n) for n in range(2_000)]
    async with VectorDBSession.create(**stored) as session:
        await session.add_texts(texts, texts, batch_size=5_000)
        first = await session.save_to_s5()
    async with VectorDBSession.create(**stored) as session:
        await session.load_user_vectors()
        found = await session.search("7", k=1)
        assert (found.ids, found.plan) == (["7"], "lazy")
        assert (await session.get_stats()).embedder == info
        assert await session.save_to_s5() == first  # what did not change stays as it is
        await session.add_texts(["2001"], ["2001"])  # the change fetches the rest
        assert (await session.search("2001", k=1)).ids == ["2001"]
        second = await session.save_to_s5()
    async with VectorDBSession.create(**stored) as session:
        await session.load_user_vectors(second, lazy_load=False)
        assert (await session.get_stats()).embedder == info
