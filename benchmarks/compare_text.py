"""Search by words, compared with bm25s (numba) and tantivy: build, sentences and keywords at k = 10, Python to Python.

One thread; CPU time counts, as others may use the cores. Taking queries apart is part of a search. bm25s gets the
tokens of this library, so that its answers can be compared: `agree` is the share of queries whose ten scores are the
same within 1e-5. tantivy has its own words, and lengths rounded to a byte. With --language, words stand beside their
stems, and a query goes the way of a session's: through the query language. A word counts half of its stem then, so for
`agree`, and not for the time, bm25s is asked for each stem twice.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import curves, datasets, rounds
from harness.contract import K

from fabstir_vectordb._native.text import STEM_MARK, NativeText
from fabstir_vectordb._native.words import words
from fabstir_vectordb.index.text import Texts
from fabstir_vectordb.metadata.values import encode_metadata
from fabstir_vectordb.text.analyzer import Analyzer
from fabstir_vectordb.text.query import parse_query
from fabstir_vectordb.text.settings import TextSettings

K1, B = 1.2, 0.75
OURS = "fabstir"
#: Queries of each kind.
QUERIES = 500
SEED = 20_261_126

Search = Callable[[str], Sequence[float]]


def build_ours(texts: list[str], language: str | None) -> tuple[Search, dict[str, float]]:
    """Our index, and the bytes that it takes for a row."""
    if language is not None:
        return build_stemmed(texts, language)
    index = NativeText(k1=K1, b=B)
    change = index.stage(np.arange(len(texts), dtype=np.uint32), texts)
    change.prepare()
    change.commit()
    change.close()

    def search(query: str) -> Sequence[float]:
        found: list[float] = index.search_words(query, K).scores.tolist()
        return found

    return search, {"bytes_per_row": index.stats().bytes_total / len(texts)}


def build_stemmed(texts: list[str], language: str) -> tuple[Search, dict[str, float]]:
    """The same with stems."""
    index = Texts(TextSettings(fields=("text",), language=language, k1=K1, b=B))
    values = [encode_metadata({"text": text}) for text in texts]
    with index.staged(np.arange(len(texts), dtype=np.uint32), values) as change:
        change.commit()

    def search(query: str) -> Sequence[float]:
        terms = index.compile(parse_query(query)).scored
        found: list[float] = [] if terms is None else index.search(terms, K, None).scores.tolist()
        return found

    return search, {"bytes_per_row": index.stats.bytes_total / len(texts)}


def terms_of(text: str, analyzer: Analyzer) -> list[str]:
    """The terms that our index has of a text."""
    found = [word.term for word in words(text)]
    if analyzer.language is None:
        return found
    stems = [STEM_MARK + stem for stem in analyzer.stem_all(found)]
    return [term for pair in zip(found, stems, strict=True) for term in pair]


class Bm25s:
    """bm25s over our tokens."""

    def __init__(self, texts: list[str], language: str | None) -> None:
        bm25s: Any = importlib.import_module("bm25s")
        self.analyzer = Analyzer(language)
        self.k = min(K, len(texts))
        self.index = bm25s.BM25(method="lucene", k1=K1, b=B, backend="numba")
        self.index.index([terms_of(text, self.analyzer) for text in texts], show_progress=False)
        self("compiled now")

    def __call__(self, query: str) -> Sequence[float]:
        return self.scores(terms_of(query, self.analyzer))

    def scores(self, terms: list[str]) -> Sequence[float]:
        """The best scores above 0."""
        scores = self.index.retrieve([terms], k=self.k, show_progress=False, n_threads=0).scores[0]
        return [float(score) for score in scores if score > 0]

    def scores_as_ours(self, query: str) -> Sequence[float]:
        """The scores of our search: a word counts half of its stem."""
        terms = terms_of(query, self.analyzer)
        twice = [term for term in terms if term.startswith(STEM_MARK)]
        return [score / 2 for score in self.scores(terms + twice)] if twice else self.scores(terms)


def build_bm25s(texts: list[str], language: str | None) -> tuple[Search, dict[str, float]]:
    """bm25s over our tokens."""
    return Bm25s(texts, language), {}


def build_tantivy(texts: list[str], language: str | None) -> tuple[Search, dict[str, float]]:
    """tantivy with its default tokens, in one segment in memory."""
    tantivy: Any = importlib.import_module("tantivy")

    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", stored=False, tokenizer_name="default" if language is None else "en_stem")
    index = tantivy.Index(builder.build())
    writer = index.writer(heap_size=200_000_000, num_threads=1)
    for text in texts:
        writer.add_document(tantivy.Document(text=text))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    searcher = index.searcher()

    def search(query: str) -> Sequence[float]:
        terms = " ".join(word.term for word in words(query) if word.term.isalnum())
        return [score for score, _ in searcher.search(index.parse_query(terms, ["text"]), K).hits]

    return search, {}


BUILDERS = {OURS: build_ours, "bm25s": build_bm25s, "tantivy": build_tantivy}
NEEDS = {"bm25s": ("bm25s", "numba"), "tantivy": ("tantivy",)}


def make_queries(texts: list[str], path: Path | None) -> dict[str, list[str]]:
    """Sentences and keywords: those of a file with `text` and `kind`, or words that stand in some of the texts."""
    if path is not None:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        kinds = sorted({record["kind"] for record in records})
        return {kind: [record["text"] for record in records if record["kind"] == kind] for kind in kinds}
    rng = random.Random(SEED)
    found: dict[str, list[str]] = {"example": [], "keyword": []}
    for kind, count in (("example", 7), ("keyword", 2)):
        for text in rng.choices(texts, k=QUERIES):
            parts = text.split()
            start = rng.randrange(max(len(parts) - count, 1))
            found[kind].append(" ".join(parts[start : start + count]))
    return found


def timed_us(search: Search, queries: list[str]) -> float:
    """CPU microseconds a query."""
    before = time.process_time_ns()
    for query in queries:
        search(query)
    return (time.process_time_ns() - before) / 1e3 / len(queries)


def summarise(results: rounds.ResultFile, engines: list[str], kinds: list[str]) -> dict[str, Any]:
    """Medians over rounds, and how many times as long another engine takes."""
    summary: dict[str, Any] = {}
    of = {engine: {run["round"]: run for run in results.of(engine)} for engine in engines}
    for engine in engines:
        names = [name for name in next(iter(of[engine].values())) if name not in rounds.KEY]
        summary[engine] = {name: curves.stat([run[name] for run in of[engine].values()]) for name in names}
        for name in ["build_s", *(f"{kind}_us" for kind in kinds)]:
            if engine != OURS and OURS in engines:
                theirs, ours = ({number: run[name] for number, run in of[one].items()} for one in (engine, OURS))
                summary[engine][f"{name}_over_ours"] = curves.ratio(theirs, ours)
    return summary


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__, rounds=5)
    parser.add_argument("--language", choices=["english"], help="stems beside the words")
    parser.add_argument("--queries", type=Path, help="a file as queries.jsonl.gz of wordnet-examples")
    rounds.add_engines_argument(parser, BUILDERS)
    options = parser.parse_args()
    folder = datasets.prepare(options)
    records = datasets.texts(folder)
    if records is None:
        raise SystemExit(f"{folder} has no texts.jsonl.gz, which has the texts")
    texts = [record["text"] for record in records]
    queries = make_queries(texts, options.queries)
    wanted = options.engines or list(BUILDERS)
    lacking = {name: [one for one in NEEDS.get(name, ()) if importlib.util.find_spec(one) is None] for name in wanted}
    skipped = {name: f"{', '.join(modules)} not installed" for name, modules in lacking.items() if modules}
    engines = [name for name in wanted if name not in skipped]
    counts = {kind: len(of) for kind, of in queries.items()}
    parameters = {"set": folder.name, "rows": len(texts), "k": K, "language": options.language, "queries": counts}
    results = rounds.ResultFile(options, "compare_text", parameters, skipped)
    built: dict[str, Search] = {}
    with rounds.Pinned(1):
        for number, engine in rounds.in_turns(engines, options.rounds):

            def measure(engine: str = engine) -> dict[str, Any]:
                before = time.process_time_ns()
                built[engine], found = BUILDERS[engine](texts, options.language)
                found["build_s"] = (time.process_time_ns() - before) / 1e9
                found |= {f"{kind}_us": timed_us(built[engine], of) for kind, of in queries.items()}
                theirs = built[engine]
                if isinstance(theirs, Bm25s) and OURS in built:
                    found |= {f"{kind}_agree": agreement(built[OURS], theirs, of) for kind, of in queries.items()}
                return found

            results.do({"round": number, "engine": engine}, measure)
    results.finish(summarise(results, engines, list(queries)))


def agreement(ours_of: Search, bm25s: Bm25s, queries: list[str]) -> float:
    """The share of queries to which both give the same scores."""
    same = 0
    for query in queries:
        ours, theirs = ours_of(query), bm25s.scores_as_ours(query)
        same += len(ours) == len(theirs) and bool(np.allclose(ours, theirs, rtol=1e-5))
    return same / len(queries)


if __name__ == "__main__":
    main()
