"""Searches by words, and by vector and words: against BM25 and fusion written down plainly, over random histories."""

from __future__ import annotations

import math
import uuid
from collections import Counter
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from saving import PHRASE

from fabstir_vectordb import ConflictError, SearchResults
from fabstir_vectordb._native.words import words
from fabstir_vectordb.persist import load as load_module
from fabstir_vectordb.sync import VectorDBSession

DIM = 3
K1, B = 1.2, 0.75
IDS = st.sampled_from([f"id-{number}" for number in range(16)])
VECTORS = st.lists(st.integers(-3, 3).map(float), min_size=DIM, max_size=DIM)
TEXTS = st.lists(st.sampled_from("red green apple pear tree Äpfel".split()), max_size=6).map(" ".join)
METADATA = st.one_of(
    st.none(),
    st.fixed_dictionaries({"text": TEXTS, "n": st.integers(0, 3)}),
    st.fixed_dictionaries({"text": st.lists(TEXTS | st.none(), max_size=3)}),
    st.fixed_dictionaries({"n": st.integers(0, 3)}),
)
SECONDS = st.integers(0, 40).map(float)
ITEM = st.tuples(IDS, VECTORS | VECTORS | st.none(), METADATA, st.none() | st.none() | SECONDS)


class Held(NamedTuple):
    vector: list[float] | None
    metadata: Any
    expires: float | None

    @property
    def texts(self) -> list[str]:
        found = (self.metadata or {}).get("text", [])
        return [text for text in ([found] if isinstance(found, str) else found) if text is not None]

    @property
    def terms(self) -> list[str]:
        return [word.term for text in self.texts for word in words(text)]


def bm25(rows: dict[str, Held], query: str) -> dict[str, float]:
    """The scores of all rows that have a word of the query, as Lucene's BM25 says."""
    terms = {id: Counter(held.terms) for id, held in rows.items() if held.texts}
    n, total = len(terms), sum(count.total() for count in terms.values())  # a text without words is a text
    scores: dict[str, float] = {}
    for word in words(query):
        df = sum(word.term in count for count in terms.values())
        for id, count in terms.items():
            if tf := count[word.term]:
                length = K1 * (1 - B + B * count.total() / (total / n))
                scores[id] = scores.get(id, 0.0) + math.log(1 + (n - df + 0.5) / (df + 0.5)) * tf / (tf + length)
    return scores


def same_hits(found: SearchResults, scores: dict[str, float], k: int) -> None:
    """The k highest scores, in their order; scores that differ by rounding may change places."""
    assert len(found) == min(k, len(scores))
    best = sorted(scores.values(), reverse=True)
    for place, hit in enumerate(found):
        assert hit.score == pytest.approx(best[place], rel=1e-5, abs=1e-7)
        assert scores[hit.id] == pytest.approx(best[place], rel=1e-5, abs=1e-7)
    for one, other in zip(found, list(found)[1:], strict=False):
        assert (-one.score, one.id.encode()) < (-other.score, other.id.encode())


class WordsAgainstDict(RuleBasedStateMachine):
    """Both are told the same, and asked the same."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 10.0
        self.uri = f"memory:{uuid.uuid4()}"
        self.session = self.opened(text_fields="text")
        self.rows: dict[str, Held] = {}
        self.saved: dict[str, Held] | None = None

    def opened(self, **fields: Any) -> VectorDBSession:
        fields = {"user_seed_phrase": PHRASE, "session_id": "test", "metric": "l2", "clock": lambda: self.now, **fields}
        return VectorDBSession.create(s5_portal=self.uri, threads=1, chunk_size=64, **fields)

    def teardown(self) -> None:
        self.session.destroy()

    def alive(self) -> dict[str, Held]:
        return {id: held for id, held in self.rows.items() if held.expires is None or held.expires > self.now}

    def change(self) -> None:
        self.rows = self.alive()

    @rule(items=st.lists(ITEM, max_size=8), on_conflict=st.sampled_from(["error", "replace", "skip"]))
    def add(self, items: list[Any], on_conflict: str) -> None:
        keys = ("id", "vector", "metadata", "expires_at")
        given = [dict(zip(keys, item, strict=True)) for item in items]
        alive = self.alive()
        ids = [item[0] for item in items]
        if on_conflict == "error" and (len(set(ids)) < len(ids) or alive.keys() & set(ids)):
            with pytest.raises(ConflictError):
                self.session.add_vectors(given)
            # The refused add came with the tombstones of expired rows.
            self.change()
            return
        self.session.add_vectors(given, on_conflict=on_conflict)
        if items:
            self.change()
        before = dict(self.rows)
        for id, vector, metadata, expires in items:
            if on_conflict == "replace" or (id not in before and (on_conflict == "error" or id not in self.rows)):
                self.rows[id] = Held(vector, metadata, expires)

    @precondition(lambda self: self.alive())
    @rule(data=st.data(), metadata=METADATA)
    def update_metadata(self, data: Any, metadata: Any) -> None:
        id = data.draw(st.sampled_from(sorted(self.alive())))
        self.session.update_metadata(id, metadata)
        self.change()
        self.rows[id] = self.rows[id]._replace(metadata=metadata)

    @precondition(lambda self: self.alive())
    @rule(data=st.data(), vector=VECTORS)
    def update_vector(self, data: Any, vector: list[float]) -> None:
        id = data.draw(st.sampled_from(sorted(self.alive())))
        self.session.update_vector(id, vector)
        self.change()
        self.rows[id] = self.rows[id]._replace(vector=vector)

    @precondition(lambda self: self.alive())
    @rule(data=st.data())
    def delete(self, data: Any) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.alive())), min_size=1, max_size=4, unique=True))
        self.session.delete(ids)
        self.change()
        for id in ids:
            del self.rows[id]

    @rule()
    def vacuum(self) -> None:
        self.session.vacuum()
        self.change()

    @rule()
    def clear(self) -> None:
        self.session.clear()
        self.rows.clear()

    @rule()
    def save(self) -> None:
        self.session.save_to_s5()
        self.saved = dict(self.rows)

    @precondition(lambda self: self.saved is not None)
    @rule(lazy=st.booleans())
    def load(self, lazy: bool) -> None:
        assert self.saved is not None
        self.session.destroy()
        self.session = self.opened()
        # Some histories leave rows on whose data no lazy load is worth it.
        with patch.object(load_module, "_LAZY_BYTES_MIN", 0):
            self.session.load_user_vectors(lazy_load=lazy, become_whole=False)
        self.rows = dict(self.saved)

    @rule(seconds=st.integers(1, 10))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def words_are_found(self) -> None:
        # Rows that have expired count in the frequencies until the next change.
        for text, k in (("apple", 3), ("red GREEN tree", 20), ("äpfel pear pear", 5), ("plum", 5)):
            alive, scores = self.alive(), bm25(self.rows, text)
            scores = {id: score / (1 + score) for id, score in scores.items() if id in alive}
            found = self.session.search(text=text, k=k)
            same_hits(found, scores, k)
            assert found.plan == "words"
            for hit in found:
                assert hit.text_score == pytest.approx(hit.score / (1 - hit.score), rel=1e-9)
                assert (hit.vector_score, hit.distance, hit.vector_rank) == (None, None, None)
                assert hit.metadata == self.rows[hit.id].metadata

    @invariant()
    def both_sides_are_found(self) -> None:
        alive, text = self.alive(), "red apple"
        said = {id: score for id, score in bm25(self.rows, text).items() if id in alive}
        with_vector = {id for id, held in alive.items() if held.vector is not None}
        for k in (1, 4, 40):
            found = self.session.search([1.0, 0.0, 0.5], k, text=text)
            assert len(found) == min(k, len(said.keys() | with_vector))
            ranked = [(-hit.score, hit.id) for hit in found]
            assert ranked == sorted(ranked)
            for hit in found:
                vector = alive[hit.id].vector
                expected = None if vector is None else math.dist(vector, [1.0, 0.0, 0.5])
                assert hit.distance is None or hit.distance == pytest.approx(expected)
                assert (hit.text_score or 0.0) == pytest.approx(said.get(hit.id, 0.0), rel=1e-5, abs=1e-9)

    @invariant()
    def filters_and_signs_hold(self) -> None:
        alive = self.alive()
        terms = {id: set(held.terms) for id, held in alive.items()}
        takes = {id for id, held in alive.items() if (held.metadata or {}).get("n") in (1, 2)}
        found = self.session.search(text="apple red", k=40, filter={"n": {"$in": [1, 2]}})
        assert set(found.ids) == {id for id in takes if terms[id] & {"apple", "red"}}
        found = self.session.search(text="+apple -red tree", k=40)
        assert set(found.ids) == {id for id in alive if "apple" in terms[id] and "red" not in terms[id]}
        with_vector = {id for id, held in alive.items() if held.vector is not None}
        found = self.session.search([0.0, 0.0, 1.0], 40, text="tree -red")
        assert set(found.ids) == {
            id for id in alive if "red" not in terms[id] and (id in with_vector or "tree" in terms[id])
        }


TestWordsAgainstDict = WordsAgainstDict.TestCase
TestWordsAgainstDict.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
