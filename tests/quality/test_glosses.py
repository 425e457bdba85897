"""Words on real texts: the ten rows that bm25s finds, after every kind of change; how often the right row is found.

Every run has some of the demo's glosses, against BM25 summed in float64. The long one has the 100,000 glosses of
FVDB_DATASET and the labelled queries of FVDB_EXAMPLES, a folder with docs_words.f16.npy, docs.f16.npy, queries.f32.npy,
texts.jsonl.gz and queries.jsonl.gz, against bm25s.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "session"))
from saving import PHRASE, Objects, rows_on_topics

from fabstir_vectordb._native.words import words
from fabstir_vectordb.demo import load_demo_rows
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.persist import load as load_module
from fabstir_vectordb.sync import VectorDBSession
from fabstir_vectordb.text.analyzer import Analyzer
from fabstir_vectordb.text.settings import TextSettings, text_settings

DATASET, EXAMPLES = os.environ.get("FVDB_DATASET"), os.environ.get("FVDB_EXAMPLES")
K1, B, K = 1.2, 0.75, 10
LANGUAGES: Final = [None, "english"]

Scores = npt.NDArray[np.float64]
Scorer = Callable[[Sequence[str]], Scores]
Terms = Callable[[str], list[str]]


def opened(store: str, **fields: Any) -> VectorDBSession:
    given: dict[str, Any] = {"user_seed_phrase": PHRASE, "session_id": "quality", "memory_budget_mb": 4096}
    return VectorDBSession.create(s5_portal=store, **given, **fields)


def terms_in(language: str | None) -> tuple[Terms, Terms]:
    """What an index has of a text, and a query of it: words; with a language stems, too, which count twice as much."""
    settings = text_settings("text", language, None, None, None, InvalidInputError)
    assert isinstance(settings, TextSettings)
    analyzer = Analyzer(language, settings.stop_words)

    def both(text: str, times: int) -> list[str]:
        found = [word.term for word in words(text)]
        if language is None:
            return found
        stems = analyzer.stem_all(found)
        kept = [word for word, stem in zip(found, stems, strict=True) if stem]
        return kept + ["stem " + stem for stem in stems if stem] * times

    return lambda text: both(text, 1), lambda text: both(text, 2)


def scorer(documents: list[list[str]]) -> Scorer:
    """BM25 as Lucene scores it (Robertson & Zaragoza 2009), summed in float64."""
    n, average = len(documents), sum(map(len, documents)) / len(documents)
    postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row, terms in enumerate(documents):
        for term, count in Counter(terms).items():
            postings[term].append((row, count))

    def scores(terms: Sequence[str]) -> Scores:
        found = np.zeros(n)
        for term in terms:
            idf = math.log(1 + (n - len(postings[term]) + 0.5) / (len(postings[term]) + 0.5))
            for row, count in postings[term]:
                found[row] += idf * count / (count + K1 * (1 - B + B * len(documents[row]) / average))
        return found

    return scores


def bm25s_scorer(documents: list[list[str]]) -> Scorer:
    """The same by bm25s, whose sums are float32."""
    bm25s: Any = pytest.importorskip("bm25s")
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index(documents, show_progress=False)

    def scores(terms: Sequence[str]) -> Scores:
        known = [term for term in terms if term in index.vocab_dict]
        return np.asarray(index.get_scores(known) if known else np.zeros(len(documents)), dtype=np.float64)

    return scores


class Glosses:
    """Rows by id with their texts, which are in a session as well, and queries of them."""

    def __init__(self, texts: list[str], queries: list[str], language: str | None, make: Callable[..., Scorer]) -> None:
        self.texts = {f"row-{row:06d}": text for row, text in enumerate(texts)}
        self.queries, self.make = queries, make
        self.terms, self.asked = terms_in(language)
        self.times = 1.0 if language is None else 2.0

    def truth(self) -> tuple[list[str], Scorer]:
        return list(self.texts), self.make([self.terms(text) for text in self.texts.values()])

    def check(self, session: VectorDBSession, truth: tuple[list[str], Scorer], step: str) -> None:
        """Ours are the ten rows with the best scores; rows with equal ones in any order."""
        ids, scorer = truth
        at = {id: row for row, id in enumerate(ids)}
        for start in range(0, len(self.queries), 100):
            asked = self.queries[start : start + 100]
            for text, hits in zip(asked, session.search_batch(text=asked, k=K), strict=True):
                scores = scorer(self.asked(text)) / self.times
                best = np.sort(np.partition(scores, len(scores) - min(K, len(scores)))[-K:])[::-1]
                best = best[best > 0]
                assert len(hits) == len(best), (step, text)
                got = [hit.text_score for hit in hits]
                assert np.allclose(got, best, rtol=1e-5, atol=0), (step, text)
                assert np.allclose(got, scores[[at[hit.id] for hit in hits]], rtol=1e-5, atol=0), (step, text)


def text_bytes(root: Path, cid: str) -> dict[bytes, tuple[str, int, int]]:
    """Name, bytes in the store and bytes in memory of each text part of a version, by its hash."""
    objects, files = Objects(root), Objects(root).files(cid)
    parts = [part for part in objects.manifest(cid).parts if part.name.startswith("text.")]
    return {part.hash: (part.name, files[part.name].size, part.size) for part in parts}


def journey(glosses: Glosses, vectors: npt.NDArray[np.float32], root: Path, language: str | None) -> tuple[int, int]:
    """The same hits as the scorer's: built, changed, vacuumed, loaded whole and lazily.

    Returns:
        The bytes of text parts that a save stores after 1 % of the rows changed, and those of these rows' postings.
    """
    n = len(glosses.texts)
    ids = list(glosses.texts)
    chosen = np.random.default_rng(13).permutation(n)[: n // 50].tolist()
    half = len(chosen) // 2
    fields = {"M": 4, "ef_construction": 8, "text_fields": "text", "text_language": language}
    with opened(root.as_uri(), **fields) as session:
        session.add_batch(ids, vectors, [{"text": text} for text in glosses.texts.values()])
        glosses.check(session, glosses.truth(), "built")
        before = text_bytes(root, session.save_to_s5())
        replaced = [ids[row] for row in chosen[:half]]
        others = [glosses.texts[ids[row]] for row in chosen[half : 2 * half]]
        session.add_batch(replaced, vectors[:half], [{"text": text} for text in others], on_conflict="replace")
        after = text_bytes(root, session.save_to_s5())
        glosses.texts |= zip(replaced, others, strict=True)
        gone = [ids[row] for row in chosen[half:]]
        session.delete(gone)
        for id in gone:
            del glosses.texts[id]
        for id in replaced[:20]:
            glosses.texts[id] = f"{glosses.texts[id]}, and a xylophone"
            session.update_metadata(id, {"text": glosses.texts[id]})
        truth = glosses.truth()
        glosses.check(session, truth, "changed")
        session.vacuum()
        glosses.check(session, truth, "vacuumed")
        session.save_to_s5()
    for lazily in (False, True):
        with opened(root.as_uri()) as session, patch.object(load_module, "_LAZY_BYTES_MIN", 0):
            session.load_user_vectors(lazy_load=lazily, become_whole=False)
            assert (session.search(text="xylophone", k=1).receipt.requests > 0) == lazily
            glosses.check(session, truth, "loaded lazily" if lazily else "loaded")
    stored = [part for hash, part in after.items() if hash not in before]
    postings = sum(size for name, _, size in stored if name.startswith(("text.postings", "text.positions")))
    return sum(size for _, size, _ in stored), postings


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_ten_best_of_the_demos_glosses(language: str | None, tmp_path: Path) -> None:
    if language is not None:
        pytest.importorskip("Stemmer")
    texts = [row["text"] for row in load_demo_rows().metadata]
    queries = [" ".join(text.split()[:7]) for text in texts[:5]] + [" ".join(text.split()[-2:]) for text in texts[:5]]
    journey(Glosses(texts, queries, language, scorer), rows_on_topics(len(texts), 32), tmp_path, language)


@pytest.mark.long
@pytest.mark.skipif(DATASET is None or EXAMPLES is None, reason="FVDB_DATASET and FVDB_EXAMPLES name no folders")
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_ten_best_of_100k_glosses_are_those_of_bm25s(language: str | None, tmp_path: Path) -> None:
    texts = [record["text"] for record in records(DATASET, "texts") if record["split"] == "base"]
    queries = [record["text"] for record in records(EXAMPLES, "queries")]
    # A lazy load is worth it with these vectors.
    vectors = np.load(Path(DATASET or "") / "base.f16.npy").astype(np.float32)
    stored, postings = journey(Glosses(texts, queries, language, bm25s_scorer), vectors, tmp_path, language)
    print(f"{language}: for 1 % of the rows a save stores {stored} bytes, {stored / postings:.2f} of their postings")
    assert stored <= 2 * postings


# ---- the one right row


def records(folder: str | None, name: str) -> list[dict[str, Any]]:
    with gzip.open(Path(folder or "") / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


class Labelled:
    """Queries that have one right row each."""

    def __init__(self, relevant: Sequence[int], kinds: Sequence[str]) -> None:
        self.relevant, self.kinds = relevant, np.array(kinds)

    def mrr(self, found: Sequence[Sequence[int]]) -> dict[str, float]:
        """The mean of 1 / rank of the right row, 0 where it is not among the ten, for each kind of query."""
        ranks = [
            1 / (list(rows[:K]).index(row) + 1) if row in rows[:K] else 0.0
            for rows, row in zip(found, self.relevant, strict=True)
        ]
        return {str(kind): float(np.mean(np.array(ranks)[self.kinds == kind])) for kind in np.unique(self.kinds)}

    def of_session(self, session: VectorDBSession, **asked: Any) -> dict[str, float]:
        found = session.search_batch(k=K, threshold=None, exact="queries" in asked, **asked)
        return self.mrr([[int(hit.id) for hit in hits] for hits in found])


def with_texts(texts: Sequence[str], vectors: Any, **fields: Any) -> VectorDBSession:
    session = opened("memory:", text_fields="text", **fields)
    session.add_batch([f"{row:05d}" for row in range(len(texts))], vectors, [{"text": text} for text in texts])
    return session


def test_vector_and_words_find_what_either_finds() -> None:
    """Rows of which a word is left, and a vector that is near: both sides say which one it is."""
    demo = load_demo_rows()
    rng, rows = np.random.default_rng(14), range(0, 600, 3)
    texts = [record["text"] for record in demo.metadata[:600]]
    labelled = Labelled(list(rows), ["example"] * len(rows))
    queries = demo.vectors[list(rows)] + 0.15 * rng.standard_normal((len(rows), demo.vectors.shape[1]))
    asked = [" ".join(rng.permutation(texts[row].split())[:2].tolist()) for row in rows]
    with with_texts(texts, demo.vectors[:600]) as session:
        alone = (
            labelled.of_session(session, text=asked)["example"],
            labelled.of_session(session, queries=queries)["example"],
        )
        assert labelled.of_session(session, queries=queries, text=asked)["example"] > max(alone)


@pytest.mark.long
@pytest.mark.skipif(EXAMPLES is None, reason="FVDB_EXAMPLES names no folder with the labelled queries")
@pytest.mark.parametrize(
    ("language", "least"),
    [(None, {"example": 0.406, "keyword": 0.668}), ("english", {"example": 0.436, "keyword": 0.668})],
)
def test_labelled_rows_are_found(language: str | None, least: dict[str, float]) -> None:
    """Words alone as often as by bm25s, the fusion above both sides; by ranks more is lost where one side is weak."""
    bm25s: Any = pytest.importorskip("bm25s")
    stemmer: Any = pytest.importorskip("Stemmer")
    asked, documents = records(EXAMPLES, "queries"), records(EXAMPLES, "texts")
    texts = ["; ".join(record["words"]) + "; " + record["text"] for record in documents]
    labelled = Labelled([record["relevant"] for record in asked], [record["kind"] for record in asked])
    text, queries = [record["text"] for record in asked], np.load(Path(EXAMPLES or "") / "queries.f32.npy")
    how = {"stopwords": "en" if language else [], "stemmer": stemmer.Stemmer(language) if language else None}
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index(bm25s.tokenize(texts, show_progress=False, **how), show_progress=False)
    peer, _ = index.retrieve(bm25s.tokenize(text, show_progress=False, **how), k=K, show_progress=False)
    found = {"bm25s": labelled.mrr(peer.tolist())}
    for name, file in (("", "docs_words.f16.npy"), ("weak ", "docs.f16.npy")):
        vectors = np.load(Path(EXAMPLES or "") / file).astype(np.float32)
        with with_texts(texts, vectors, text_language=language) as session:
            found[f"{name}words"] = labelled.of_session(session, text=text)
            found[f"{name}vector"] = labelled.of_session(session, queries=queries)
            for fusion in ("excess", "rrf", "weighted"):
                found[name + fusion] = labelled.of_session(session, queries=queries, text=text, fusion=fusion)
    for name, by_kind in found.items():
        print(f"{language}: {name:14}", " ".join(f"{kind} {value:.4f}" for kind, value in by_kind.items()))
    for kind, bar in least.items():
        assert found["words"][kind] >= found["bm25s"][kind] - 0.01
        assert found["excess"][kind] >= max(bar, found["words"][kind], found["vector"][kind])
        assert found["weak excess"][kind] > found["weak rrf"][kind]
