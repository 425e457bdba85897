"""Embedders: batches, checks, and what a bad model does."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from fabstir_vectordb import InvalidConfigError, InvalidInputError, VectorDBError, VectorDBSession, new_seed_phrase
from fabstir_vectordb.embedders import Embedder, EmbeddingError, aembed, embed
from fabstir_vectordb.embedders.fastembed import FastEmbedEmbedder
from fabstir_vectordb.embedders.sentence_transformers import SentenceTransformerEmbedder


class Lengths:
    """Embeds a text as its length and a one."""

    name = "lengths"
    dimension = 2

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.threads: set[int] = set()

    def __call__(self, texts: Sequence[str], /) -> Any:
        self.calls.append(list(texts))
        self.threads.add(threading.get_ident())
        return [[len(text), 1.0] for text in texts]


TEXTS = ["a", "bb", "", "dddd", "eeeee"]
EXPECTED = [[1, 1], [2, 1], [0, 1], [4, 1], [5, 1]]


def test_texts_are_embedded_in_batches_with_progress() -> None:
    embedder, told = Lengths(), []
    vectors = embed(embedder, TEXTS, batch_size=2, progress=lambda *done: told.append(done))
    assert vectors.dtype == np.float32 and vectors.tolist() == EXPECTED
    assert embedder.calls == [["a", "bb"], ["", "dddd"], ["eeeee"]] and told == [(2, 5), (4, 5), (5, 5)]
    assert embed(embedder, []).shape == (0, 0) and len(embedder.calls) == 3


@pytest.mark.anyio
async def test_an_awaited_run_is_off_the_event_loop() -> None:
    embedder = Lengths()
    assert (await aembed(embedder, TEXTS, batch_size=3)).tolist() == EXPECTED
    assert threading.get_ident() not in embedder.threads


@pytest.mark.anyio
async def test_a_cancellation_does_not_wait_for_a_slow_model() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Lengths):
        def __call__(self, texts: Sequence[str], /) -> Any:
            begun.set()
            go_on.wait(60)
            return super().__call__(texts)

    embedder = Slow()
    with anyio.move_on_after(0.05) as scope:
        await aembed(embedder, TEXTS, batch_size=1)
    assert scope.cancelled_caught and begun.is_set() and not embedder.calls
    go_on.set()


@pytest.mark.anyio
async def test_a_dimension_that_takes_long_is_asked_off_the_event_loop() -> None:
    class Asks(Lengths):
        @property
        def dimension(self) -> int:  # type: ignore[override]
            self.threads.add(threading.get_ident())
            return 2

    embedder = Asks()
    assert (await aembed(embedder, TEXTS)).tolist() == EXPECTED
    assert threading.get_ident() not in embedder.threads and embedder.threads


class Awaited(Lengths):
    """A coroutine function, as over an asynchronous client."""

    async def __call__(self, texts: Sequence[str], /) -> Any:
        await anyio.lowlevel.checkpoint()
        return super().__call__(texts)


@pytest.mark.anyio
async def test_an_embedder_may_be_a_coroutine_function() -> None:
    embedder = Awaited()
    assert (await aembed(embedder, TEXTS, batch_size=2)).tolist() == EXPECTED
    assert embedder.threads == {threading.get_ident()} and len(embedder.calls) == 3
    with pytest.raises(InvalidInputError, match="aembed"):
        embed(embedder, TEXTS)


@pytest.mark.parametrize("dimension", [0, -1, 5_000, 2.0, True, None, "2", RuntimeError("no answer")])
def test_a_dimension_is_checked(dimension: Any) -> None:
    class Odd(Lengths):
        @property
        def dimension(self) -> int:  # type: ignore[override]
            if isinstance(dimension, Exception):
                raise dimension
            return dimension  # type: ignore[no-any-return]

    with pytest.raises(EmbeddingError, match="dimension") as raised:
        embed(Odd(), ["a"])
    assert raised.value.details["embedder"] == "lengths"


@pytest.mark.parametrize("name", ["", None, "a\nb", "x" * 257, 5])
def test_a_name_is_checked(name: Any) -> None:
    class Odd(Lengths):
        pass

    Odd.name = name
    with pytest.raises(InvalidInputError, match="name"):
        embed(Odd(), ["a"])


def answering(answer: Any) -> Embedder:
    class Bad(Lengths):
        def __call__(self, texts: Sequence[str], /) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    return Bad()


@pytest.mark.parametrize(
    "answer",
    [
        [[1.0, 2.0]],
        [[1.0, 2.0, 3.0]] * 2,
        [[1.0, 2.0], [1.0, float("nan")]],
        [[1.0, 2.0], [float("inf"), 1.0]],
        [[1.0, 2.0], [1.0]],
        "vectors",
        None,
        [1.0, 2.0],
        RuntimeError("out of memory"),
        [["a", "b"], ["c", "d"]],
        np.array([[1e300, 1.0], [1.0, 1.0]]),
        [[10**400, 1], [1, 1]],
        StopIteration(),
        RecursionError("deep"),
    ],
)
def test_a_model_that_fails_or_gives_something_else_is_a_typed_error(answer: Any) -> None:
    with pytest.raises(EmbeddingError, match="the embedder 'lengths'") as raised:
        embed(answering(answer), ["a", "b"])
    assert isinstance(raised.value, VectorDBError) and raised.value.details == {"embedder": "lengths"}
    assert str(raised.value).startswith("[EMBEDDING_ERROR]")


@pytest.mark.parametrize(
    ("texts", "batch_size"),
    [("text", None), ([1], None), (None, None), (["a"], 0), (["a"], True), (["a"], "2"), (["\ud800"], None)],
)
def test_arguments_are_checked(texts: Any, batch_size: Any) -> None:
    with pytest.raises(InvalidInputError):
        embed(Lengths(), texts, batch_size=batch_size)


@pytest.mark.anyio
async def test_nothing_is_added_where_a_later_batch_fails() -> None:
    class Tires(Lengths):
        def __call__(self, texts: Sequence[str], /) -> Any:
            return super().__call__(texts) if not self.calls else [[float("nan"), 1.0]]

    settings: Any = {"s5_portal": "memory:", "user_seed_phrase": new_seed_phrase(), "session_id": "tests"}
    async with await VectorDBSession.create(**settings) as session:
        with pytest.raises(EmbeddingError):
            await session.add_batch(["a", "b"], await aembed(Tires(), ["a", "b"], batch_size=1))
        assert await session.count() == 0


# ---- models in this process


class FakeModel:
    """What both libraries are asked for."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self.options, self.asked = name, options, {}

    def get_sentence_embedding_dimension(self) -> int:
        return 2

    def encode(self, texts: list[str], **asked: Any) -> Any:
        self.asked = asked
        return np.array([[len(text), 1] for text in texts])

    def embed(self, texts: list[str], batch_size: int) -> Any:
        yield from (np.array([len(text), 1.0]) for text in texts)


def test_a_model_of_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.SimpleNamespace(SentenceTransformer=FakeModel)
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)  # type: ignore[arg-type]
    embedder = SentenceTransformerEmbedder("all-MiniLM-L6-v2", device="cpu", prompt_name="query", normalize=True)
    assert (embedder.name, embedder.dimension, embedder._model.options) == ("all-MiniLM-L6-v2", 2, {"device": "cpu"})
    assert embed(embedder, TEXTS).tolist() == EXPECTED
    assert embedder._model.asked["prompt_name"] == "query" and embedder._model.asked["normalize_embeddings"] is True
    assert embedder([]).shape == (0, 2)
    assert SentenceTransformerEmbedder(FakeModel("x"), name="mine").name == "mine"
    with pytest.raises(InvalidConfigError, match="name="):
        SentenceTransformerEmbedder(FakeModel("x"))


def test_a_model_of_fastembed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastembed", types.SimpleNamespace(TextEmbedding=FakeModel))  # type: ignore[arg-type]
    embedder = FastEmbedEmbedder("BAAI/bge-small-en-v1.5", cache_dir="x", name="bge")
    assert (embedder.name, embedder.dimension, embedder._model.options) == ("bge", 2, {"cache_dir": "x"})
    assert embed(embedder, TEXTS).tolist() == EXPECTED
    assert embedder([]).shape == (0, 2)


def test_a_model_that_cannot_be_loaded_or_does_not_know_its_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unknown(FakeModel):
        def get_sentence_embedding_dimension(self) -> int:
            return None  # type: ignore[return-value]

    def offline(name: str, **options: Any) -> Any:
        raise OSError("no network")

    assert SentenceTransformerEmbedder(Unknown("x"), name="mine").dimension == 2
    for library, name, make in (
        ("sentence_transformers", "SentenceTransformer", SentenceTransformerEmbedder),
        ("fastembed", "TextEmbedding", FastEmbedEmbedder),
    ):
        monkeypatch.setitem(sys.modules, library, types.SimpleNamespace(**{name: offline}))  # type: ignore[arg-type]
        with pytest.raises(EmbeddingError, match="'x' could not be loaded: OSError: no network"):
            make("x")
        with pytest.raises(InvalidConfigError, match="name"):
            make("x", name="")


@pytest.mark.parametrize(
    ("library", "make"),
    [
        ("sentence_transformers", lambda: SentenceTransformerEmbedder("x")),
        ("fastembed", lambda: FastEmbedEmbedder("x")),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    library: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # type: ignore[arg-type]
    with pytest.raises(InvalidConfigError, match="pip install"):
        make()
