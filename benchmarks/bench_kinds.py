"""Kinds of data on which codes or graphs tell neighbours apart badly: the default search, beside hnswlib and
SymphonyQG at the recall that it reaches.

Rows and queries are seeded and made here; --data is not used. The indexes of a kind are built one after the other in
one process, then searched in turns with one query a call on one core. Truth is a scan in float64.
"""

from __future__ import annotations

import importlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import curves, datasets, measure, ours, registry, rounds
from harness.contract import EF, EF_CONSTRUCTION, K, M

from fabstir_vectordb import sync

ROWS = 20_000
QUERIES = 200
SEED = 1
METRICS = ("cosine", "l2", "dot")
PEERS = ("hnswlib", "symqg")
EF_SWEPT = (*EF, 800, 1_600)
#: Directions of the widest kind, which a model's output resembles in that few of its dimensions are free.
DIRECTIONS = 32

Floats = npt.NDArray[np.float32]
Search = Callable[[Any, int], Any]


def kinds(n: int) -> dict[str, Callable[[], npt.NDArray[Any]]]:
    """How to make n rows of each kind."""
    rng = np.random.default_rng(SEED)
    normal = rng.standard_normal
    return {
        "one dominating dimension, 64": lambda: np.c_[normal((n, 1)) * 100, normal((n, 63))],
        "zeros and ones, 15 % ones, 128": lambda: (rng.random((n, 128)) < 0.15) + 1e-6 * rng.random((n, 128)),
        "heavy tails, 128": lambda: np.clip(rng.standard_cauchy((n, 128)), -1e3, 1e3),
        "50 tight clusters, 96": lambda: normal((50, 96))[rng.integers(0, 50, n)] * 10 + 0.05 * normal((n, 96)),
        "a ball, 8": lambda: normal((n, 8)),
        "norms over three decades, 128": lambda: normal((n, 128)) * 10 ** rng.uniform(-1.5, 1.5, (n, 1)),
        f"{DIRECTIONS} directions and noise, 1,536": lambda: (
            normal((n, DIRECTIONS)) @ normal((DIRECTIONS, 1_536)) + normal((n, 1_536))
        ),
    }


def nearest(base: Floats, queries: Floats, metric: str) -> npt.NDArray[np.int32]:
    """The K nearest rows of each query, ties by row."""
    rows, asked = base.astype(np.float64), queries.astype(np.float64)
    if metric == "cosine":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    distances = (rows * rows).sum(axis=1) - 2 * asked @ rows.T if metric == "l2" else -asked @ rows.T
    return np.argsort(distances, axis=1, kind="stable")[:, :K].astype(np.int32)


def _unit(rows: Floats) -> Floats:
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def hnswlib_of(base: Floats, metric: str) -> Search:
    """A search of hnswlib, by number of candidates."""
    index = importlib.import_module("hnswlib").Index({"dot": "ip"}.get(metric, metric), base.shape[1])
    index.init_index(len(base), M=M, ef_construction=EF_CONSTRUCTION)
    index.add_items(base, num_threads=len(rounds.environment.cores()))

    def search(query: Any, ef: int) -> Any:
        index.set_ef(ef)
        return index.knn_query(query, K, num_threads=1)[0][0]

    return search


def symqg_of(base: Floats, metric: str) -> Search:
    """A search of SymphonyQG by Euclidean distance, which for rows of one length orders as cosine does."""
    if metric == "dot":
        raise ValueError("its inner products are not compared")
    index = importlib.import_module("rabitqlib").SymqgIndex(base.shape[1], 2 * M, "l2", 0)
    index.build(_unit(base) if metric == "cosine" else base, EF_CONSTRUCTION, len(rounds.environment.cores()))
    return lambda query, ef: index.search((_unit(query[None]) if metric == "cosine" else query[None]), K, ef)[0][0]


MAKERS = {"hnswlib": hnswlib_of, "symqg": symqg_of}


def _sweep(search: Search, queries: Floats, truth: npt.NDArray[np.int32], recall: float) -> Iterator[dict[str, Any]]:
    """Points up to a recall."""
    for ef in EF_SWEPT:
        found, micros = measure.latencies(lambda query, ef=ef: search(query, ef), queries)
        point = measure.as_point({"ef": ef}, found, truth, micros)
        yield point
        if point["recall"] >= recall:
            return


def measured(rows: Floats, metric: str, engines: list[str], turns: int) -> dict[str, Any]:
    """Points of all engines in each turn: ours by default and exactly, the others' up to our default's recall."""
    base, queries = rows[QUERIES:], rows[:QUERIES]
    truth = nearest(base, queries, metric)
    found: dict[str, Any] = {"plan": None, "points": {registry.OURS: [], "exact": []}}
    searches = {}
    for engine in engines:
        try:
            searches[engine] = MAKERS[engine](base, metric)
            found["points"][engine] = []
        except (ValueError, RuntimeError) as error:
            found[f"no_{engine}"] = str(error)
    with tempfile.TemporaryDirectory() as folder:
        session = sync.VectorDBSession.create(**ours.fields(Path(folder).as_uri()), metric=metric)
        with session, rounds.Pinned(1):
            session.add_batch([str(row) for row in range(len(base))], base)
            plans = Counter(session.search(query, K, threshold=None).plan for query in queries)
            found["plan"] = plans.most_common(1)[0][0]
            for _ in range(turns):
                for name, options in ((registry.OURS, {}), ("exact", {"exact": True})):
                    ids, micros = measure.latencies(
                        lambda query, options=options: session.search(query, K, threshold=None, **options).ids, queries
                    )
                    found["points"][name].append([measure.as_point({}, ids, truth, micros)])
                recall = found["points"][registry.OURS][0][0]["recall"]
                for engine, search in searches.items():
                    found["points"][engine].append(list(_sweep(search, queries, truth, recall)))
    return found


def summarise(results: rounds.ResultFile) -> dict[str, Any]:
    """For each kind and metric: recall, plan and time of the default, and ratios to the others at that recall."""
    summary: dict[str, Any] = {}
    for run in results.runs:
        turns = {name: [curves.of_median_calls(points) for points in of] for name, of in run["points"].items()}
        own = {number: points[0]["qps"] for number, points in enumerate(turns[registry.OURS])}
        recall = run["points"][registry.OURS][0][0]["recall"]
        entry = {"recall": recall, "plan": run["plan"], "us": curves.stat([1e6 / qps for qps in own.values()])}
        entry["exact_recall"] = run["points"]["exact"][0][0]["recall"]
        entry["exact_us"] = curves.stat([points[0]["p50_us"] for points in run["points"]["exact"]])
        for engine in PEERS:
            if engine in turns:
                speed = {number: curves.qps_at(points, recall) for number, points in enumerate(turns[engine])}
                entry[engine] = curves.ratio(own, speed)
                entry[f"{engine}_recall"] = max(point["recall"] for points in turns[engine] for point in points)
        summary.setdefault(run["engine"], {})[run["mode"]] = entry
    return summary


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__)
    rounds.add_engines_argument(parser, (registry.OURS, *PEERS))
    parser.add_argument("--metrics", type=lambda text: text.split(","), default=list(METRICS), help="some of them")
    options = parser.parse_args()
    count = options.rows or (1_200 if options.tiny else ROWS)
    engines, skipped = registry.present(registry.ENGINES, options.engines or (registry.OURS, *PEERS))
    results = rounds.ResultFile(options, "bench_kinds", {"rows": count, "k": K, "seed": SEED}, skipped)
    for kind, make in kinds(count + QUERIES).items():
        rows = np.ascontiguousarray(make(), dtype=np.float32)
        for metric in options.metrics:
            others = [engine for engine in engines if engine != registry.OURS]
            results.do(
                {"round": 0, "engine": kind, "mode": metric},
                lambda rows=rows, metric=metric, others=others: measured(rows, metric, others, options.rounds),
            )
    results.finish(summarise(results))


if __name__ == "__main__":
    main()
