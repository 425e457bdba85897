"""The DSPy retriever."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dspy", reason="dspy is not installed")

import dspy

from fabstir_vectordb import EmbedderInfo, InvalidConfigError, InvalidInputError, new_seed_phrase
from fabstir_vectordb.embedders import EmbeddingError
from fabstir_vectordb.integrations.dspy import FabstirRetriever

PHRASE = new_seed_phrase()
PASSAGES = {"rose": "roses are red", "violet": "violets are blue", "leaf": "leaves are green"}


class Letters:
    """Embeds a text as how often it has each letter."""

    name, dimension = "letters", 26

    def __call__(self, texts: Sequence[str], /) -> Any:
        return [[0.1 + text.count(chr(97 + number)) for number in range(26)] for text in texts]


@pytest.fixture
def retriever(tmp_path: Path) -> Iterator[FabstirRetriever]:
    options: Any = {"s5_portal": tmp_path.as_uri(), "user_seed_phrase": PHRASE, "session_id": "tests"}
    with FabstirRetriever(Letters(), options, k=2) as retriever:
        retriever.add_passages(PASSAGES)
        yield retriever


def test_passages_are_retrieved(retriever: FabstirRetriever) -> None:
    found = retriever("red roses")
    assert isinstance(found, dspy.Prediction)
    assert found.ids[0] == "rose" and found.passages[0] == "roses are red" and len(found.passages) == 2
    assert found.scores == sorted(found.scores, reverse=True) and all(0 <= score <= 1 for score in found.scores)
    assert retriever("red roses", k=1).metadata == [{"text": "roses are red"}]
    assert retriever("red roses", filter={"text": {"$contains": "blue"}}).ids == ["violet"]
    assert asyncio.run(retriever.acall("red roses", k=3)).ids == retriever("red roses", k=3).ids


def test_a_filter_of_a_query_holds_beside_the_retrievers_own() -> None:
    options: Any = {"s5_portal": "memory:", "user_seed_phrase": PHRASE, "session_id": "tests"}
    with FabstirRetriever(Letters(), options, k=3, filter={"$id": {"$in": ["rose", "leaf"]}}) as retriever:
        retriever.add_passages(PASSAGES)
        assert sorted(retriever("red roses").ids) == ["leaf", "rose"]
        assert retriever("red roses", filter={"text": {"$contains": "green"}}).ids == ["leaf"]
        assert retriever("red roses", filter={"text": {"$contains": "blue"}}).ids == []
        assert retriever("red roses", text="+green").ids == ["leaf"]


def test_it_is_a_part_of_a_program(retriever: FabstirRetriever) -> None:
    class Program(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.retrieve = retriever

        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(context=self.retrieve(question).passages)

    assert Program()(question="blue violets").context[0] == "violets are blue"


def test_passages_of_another_embedder_are_refused(retriever: FabstirRetriever, tmp_path: Path) -> None:
    class Others(Letters):
        name = "others"

    cid = retriever.save()
    assert retriever.run(lambda session: session.get_stats()).embedder == EmbedderInfo("letters", 26)
    options: Any = {"s5_portal": tmp_path.as_uri(), "user_seed_phrase": PHRASE, "session_id": "tests"}
    with FabstirRetriever(Others(), options) as other, pytest.raises(InvalidConfigError, match="letters"):
        other.load(cid)
    with FabstirRetriever(Letters(), options, text_fields="words") as same:
        same.add_passages(PASSAGES)
        assert same("red roses", k=1).passages == ["roses are red"]


def test_versions_and_refusals(retriever: FabstirRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    cid = retriever.save()
    retriever.add_passages({"rose": "changed"})
    retriever.load(cid, discard_unsaved=True)
    assert retriever("red roses", k=1).passages == ["roses are red"]
    with pytest.raises(ValueError, match="must be a text"):
        retriever(["red", "roses"])
    with pytest.raises(InvalidInputError):
        retriever("red roses", k=0)
    monkeypatch.setattr(Letters, "__call__", lambda self, texts: [[1.0]])
    with pytest.raises(EmbeddingError):
        retriever.add_passages({"new": "text"})
    assert retriever.run(lambda session: session.count()) == 3
