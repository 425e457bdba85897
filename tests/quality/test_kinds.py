"""Recall on every kind of data, by default: clusters, dominating or vanishing dimensions, heavy tails, wide norms, few
dimensions. A default that serves sentence embeddings alone would find next to nothing on some of these.

The quick suite has a few kinds of a few thousand rows. `-m long` has all kinds, metrics, memory settings and sides,
after a load, after deletes, and opened lazily.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from fabstir_vectordb.sync import VectorDBSession

Floats = npt.NDArray[np.float32]
NOW, DAY = 1_700_000_000.0, 86_400.0
QUERIES: Final = 100
SEED: Final = 20_261_126
PHRASE = "amid romance hotel blue most myself guess host lobby rubber hook victim about odds child"


def nested(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    coarse = rng.integers(0, 20, n)
    fine = coarse * 50 + rng.integers(0, 50, n)
    noise = 0.02 * rng.standard_normal((n, 64))
    return (30 * rng.standard_normal((20, 64)))[coarse] + rng.standard_normal((1_000, 64))[fine] + noise


KINDS: Final[dict[str, Callable[[np.random.Generator, int], Any]]] = {
    "one dominating dimension": lambda rng, n: np.c_[100 * rng.standard_normal((n, 1)), rng.standard_normal((n, 63))],
    "zeros and ones": lambda rng, n: (rng.random((n, 128)) < 0.15) + 1e-6 * rng.random((n, 128)),
    "heavy tails": lambda rng, n: np.clip(rng.standard_cauchy((n, 128)), -1e3, 1e3),
    "tight clusters": lambda rng, n: (
        (10 * rng.standard_normal((50, 96)))[rng.integers(0, 50, n)] + 0.05 * rng.standard_normal((n, 96))
    ),
    "nested clusters": nested,
    "eight dimensions": lambda rng, n: rng.standard_normal((n, 8)),
    "two dimensions": lambda rng, n: rng.standard_normal((n, 2)),
    "wide norms": lambda rng, n: rng.standard_normal((n, 128)) * 10 ** rng.uniform(-1.5, 1.5, (n, 1)),
    "far from the origin": lambda rng, n: 100 + rng.standard_normal((n, 96)),
    "falling variances": lambda rng, n: rng.standard_normal((n, 128)) * np.arange(1, 129) ** -1.5,
    "a plane in many dimensions": lambda rng, n: (
        rng.standard_normal((n, 6)) @ rng.standard_normal((6, 256)) + 0.01 * rng.standard_normal((n, 256))
    ),
    "sparse": lambda rng, n: (
        np.where(rng.random((n, 256)) < 0.03, rng.exponential(1, (n, 256)), 0) + 1e-4 * rng.random((n, 256))
    ),
    "no structure": lambda rng, n: rng.standard_normal((n, 192)),
}
METRICS: Final = ("cosine", "l2", "dot")


def rows_of(kind: str, n: int) -> tuple[Floats, Floats]:
    """n rows of a kind, and queries like them."""
    x = np.asarray(KINDS[kind](np.random.default_rng(SEED), n + QUERIES), dtype=np.float32)
    return x[QUERIES:], x[:QUERIES]


def distances(base: Floats, queries: Floats, metric: str) -> npt.NDArray[np.float64]:
    """What orders rows, in float64, of each query to each row."""
    b, q = base.astype(np.float64), queries.astype(np.float64)
    if metric == "l2":
        return np.stack([((b - x) ** 2).sum(axis=1) for x in q])
    if metric == "cosine":
        b /= np.linalg.norm(b, axis=1, keepdims=True)
        q /= np.linalg.norm(q, axis=1, keepdims=True)
    return -(q @ b.T)


def recall(session: VectorDBSession, queries: Floats, far: npt.NDArray[np.float64], **fields: Any) -> float:
    """The share of the ten nearest that searches find; of rows that are equally far any will do."""
    tenth = np.sort(far, axis=1)[:, 9]
    slack = 1e-9 * np.abs(tenth)
    found = [[int(hit.id) for hit in session.search(query, 10, threshold=None, **fields)] for query in queries]
    return float(np.mean([(far[i, ids] <= tenth[i] + slack[i]).sum() / 10 for i, ids in enumerate(found)]))


def check(session: VectorDBSession, queries: Floats, far: npt.NDArray[np.float64], what: str) -> None:
    default = recall(session, queries, far)
    widest = recall(session, queries, far, ef_search=2_000)
    print(f"{what}: {default:.3f} by default ({session.get_stats().default_search}), {widest:.4f} at ef_search=2000")
    assert default >= 0.95, what
    assert widest >= 0.999, what


@contextmanager
def holding(kind: str, metric: str, n: int) -> Iterator[tuple[VectorDBSession, Floats, npt.NDArray[np.float64]]]:
    """A session with n rows of a kind, queries, and what orders the rows for each."""
    base, queries = rows_of(kind, n)
    with VectorDBSession.create(
        s5_portal="memory:", user_seed_phrase=PHRASE, session_id="kinds", metric=metric
    ) as session:
        session.add_batch([str(i) for i in range(n)], base)
        yield session, queries, distances(base, queries, metric)


def journey(kind: str, metric: str, memory: str, n: int, old: float) -> None:
    """Rows on both sides: added, searched, saved, loaded, opened lazily, most of them deleted."""
    base, queries = rows_of(kind, n)
    far = distances(base, queries, metric)
    times = np.where(np.random.default_rng(3).random(n) < old, NOW - 30 * DAY, NOW - DAY)
    fields: dict[str, Any] = {
        "s5_portal": f"memory:{uuid.uuid4().hex}",
        "user_seed_phrase": PHRASE,
        "session_id": "kinds",
        "metric": metric,
        "memory": memory,
        "memory_budget_mb": 2_000,
        "clock": lambda: NOW,
    }
    what = f"{kind}, {metric}, {memory}, {old:.0%} historical"
    with VectorDBSession.create(**fields) as session:
        session.add_batch([str(i) for i in range(n)], base, timestamps=times)
        if old:
            session.optimize()
        check(session, queries, far, what)
        cid = session.save_to_s5()
    with VectorDBSession.create(**fields) as session:
        session.load_user_vectors(cid, lazy_load=False)
        check(session, queries, far, f"{what}, loaded")
        kept = np.sort(np.random.default_rng(4).permutation(n)[: n // 4])
        session.delete([str(i) for i in np.setdiff1d(np.arange(n), kept).tolist()])
        left = np.full_like(far, np.inf)
        left[:, kept] = far[:, kept]
        assert recall(session, queries, left) >= 0.95, f"{what}, deleted"
        session.vacuum()
        assert recall(session, queries, left) >= 0.95, f"{what}, vacuumed"
    with VectorDBSession.create(**fields) as session:
        session.load_user_vectors(cid, become_whole=False)
        assert recall(session, queries[:20], far[:20]) >= 0.95, f"{what}, lazily"


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("tight clusters", "cosine"),
        ("one dominating dimension", "cosine"),
        ("heavy tails", "dot"),
        ("wide norms", "l2"),
        ("two dimensions", "cosine"),
        ("far from the origin", "l2"),
    ],
)
def test_the_default_finds_the_nearest_on_other_data_than_sentences(kind: str, metric: str) -> None:
    with holding(kind, metric, 3_000) as (session, queries, far):
        check(session, queries, far, f"{kind}, {metric}")
        report = session.recall(100)
        assert report.default.recall >= 0.95
        # What the default takes here is told, not only done.
        told = session.get_stats().default_search
        assert report.default.exact is (told == "exact")


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("tight clusters", "dot"),
        ("one dominating dimension", "dot"),
        *(
            pytest.param(kind, metric, marks=pytest.mark.long)
            for kind, metric in [
                ("heavy tails", "cosine"),
                ("heavy tails", "dot"),
                ("tight clusters", "cosine"),
                ("tight clusters", "l2"),
                ("one dominating dimension", "l2"),
                ("eight dimensions", "cosine"),
                ("eight dimensions", "l2"),
                ("eight dimensions", "dot"),
                ("wide norms", "dot"),
            ]
        ),
    ],
)
def test_the_default_walks_where_a_graph_finds_the_nearest(kind: str, metric: str) -> None:
    """No scan: rows that hide each other keep links to them, one of a row's links leads anywhere, and ten neighbours
    are judged apart from a hundred."""
    with holding(kind, metric, 12_000) as (session, queries, far):
        assert session.get_stats().default_search == "usual"
        assert session.search(queries[0], 10).plan == "graph"
        check(session, queries, far, f"{kind}, {metric}")


@pytest.mark.long
def test_the_default_walks_with_more_candidates_where_these_find_the_nearest() -> None:
    with holding("heavy tails", "l2", 12_000) as (session, queries, far):
        assert session.get_stats().default_search == "wider"
        assert session.search(queries[0], 10).plan == "graph"
        check(session, queries, far, "heavy tails, l2")


@pytest.mark.parametrize("memory", ["fast", "default", "compact"])
@pytest.mark.parametrize("old", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.long
def test_recall_on_every_kind_of_data(kind: str, metric: str, old: float, memory: str) -> None:
    journey(kind, metric, memory, 12_000, old)
