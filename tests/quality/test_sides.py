"""Recall on real rows wherever they are, and the same bytes for any kernels, threads and memory setting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from test_recall import DATASET, FIELDS, MEMORIES, exact, recall

from fabstir_vectordb.demo import load_demo_queries, load_demo_rows
from fabstir_vectordb.sync import VectorDBSession

NOW, DAY = 1_700_000_000.0, 86_400.0
OLD, NEW = NOW - 30 * DAY, NOW - DAY


def floors(session: VectorDBSession, queries: npt.NDArray[np.float32], truth: Any) -> None:
    assert recall(session, queries, truth) >= 0.95
    assert recall(session, queries, truth, ef_search=300, nprobe=10_000) >= 0.99
    assert recall(session, queries, truth, recall_target=0.99) >= 0.985


def journey(
    base: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], truth: Any, memory: str, old: float
) -> None:
    """A part of the rows is old: moved, vacuumed, saved and loaded, nine in ten deleted."""
    n = len(base)
    times = np.where(np.random.default_rng(3).random(n) < old, OLD, NEW)
    fields = {**FIELDS, "s5_portal": f"memory:sides-{memory}-{old}-{n}", "clock": lambda: NOW, "memory": memory}
    with VectorDBSession.create(**fields) as session:
        session.add_batch([str(i) for i in range(n)], base, timestamps=times)
        assert session.optimize().migrated == (times == OLD).sum()
        assert session.get_stats().ivf_vector_count == (times == OLD).sum()
        floors(session, queries, truth)
        cid = session.save_to_s5()
    with VectorDBSession.create(**fields) as session:
        session.load_user_vectors(cid)
        floors(session, queries, truth)
        kept = np.sort(np.random.default_rng(4).permutation(n)[: n // 10])
        session.delete([str(row) for row in np.setdiff1d(np.arange(n), kept).tolist()])
        left = kept[exact(base[kept], queries, 10)]
        assert recall(session, queries, left) >= 0.95
        session.vacuum()
        floors(session, queries, left)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("old", [0.5, 1.0])
def test_recall_on_demo_rows(memory: str, old: float) -> None:
    base, queries = load_demo_rows().vectors, load_demo_queries().vectors
    journey(base, queries, exact(base, queries, 10), memory, old)


@pytest.mark.skipif(DATASET is None, reason="FVDB_DATASET names the folder of the 100 K set")
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("old", [0.5, 1.0])
@pytest.mark.long
def test_recall_on_a_hundred_thousand_rows(memory: str, old: float) -> None:
    assert DATASET is not None
    base = np.load(Path(DATASET) / "base.f16.npy").astype(np.float32)
    queries = np.load(Path(DATASET) / "queries.f32.npy")
    truth = np.load(Path(DATASET) / "neighbors.i32.npy")[:, :10]
    journey(base, queries, truth, memory, old)


PROGRAM = """
import hashlib, sys
import numpy as np
from fabstir_vectordb._native.handle import NO_SLOT, NativeIndex, pack_ids

for metric in sys.argv[2].split():
    for memory in ("default", "compact"):
        rng = np.random.default_rng(5)
        # Rows on three of forty topics, of which second lists find more.
        topics, shares = rng.standard_normal((40, 70)), rng.random((3000, 3, 1)) + 0.3
        rows = (topics[rng.integers(40, size=(3000, 3))] * shares).sum(1) + 0.5 * rng.standard_normal((3000, 70))
        index = NativeIndex(70, metric, memory, 8, 60, int(sys.argv[1]))
        vectors = rows.astype(np.float32)
        index.add(vectors, *pack_ids([str(i) for i in range(3000)]), np.arange(3000, dtype=np.int64))
        index.train(1900)
        at = 0
        while at != NO_SLOT:
            _, at = index.migrate(1900, 700, at)
        whole, lists = hashlib.blake2b(), hashlib.blake2b()
        for _ in range(2):
            assert 11 in [part.kind for part in index.parts(500, 1000)]
            for part in index.parts(500, 1000):
                raw = index.write_part(500, 1000, part.kind, part.number, part.size)
                whole.update(raw)
                if part.kind in (8, 9, 11):
                    lists.update(raw)
            hits = index.search(vectors[:50], 10)
            whole.update(hits.slots.tobytes() + hits.distances.tobytes())
            index.vacuum()
        print(metric, memory, whole.hexdigest(), lists.hexdigest())
"""


def run(kernels: str, threads: int, metrics: str) -> str:
    environment = {**os.environ, "FVDB_KERNELS": kernels}
    command = [sys.executable, "-c", PROGRAM, str(threads), metrics]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    if "FVDB_KERNELS" in done.stderr:
        pytest.skip(f"this CPU cannot run {kernels}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("metrics", ["cosine dot", pytest.param("l2", marks=pytest.mark.long)])
def test_sides_are_the_same_for_any_kernels_threads_and_memory(metrics: str) -> None:
    scalar = run("scalar", 1, metrics)
    assert run("", 3, metrics) == scalar
    lines = [line.split() for line in scalar.splitlines()]
    for metric in metrics.split():
        assert len({lists for line_metric, _, _, lists in lines if line_metric == metric}) == 1


@pytest.mark.parametrize("kernels", ["avx2", "avx512", "neon"])
@pytest.mark.long
def test_sides_are_the_same_for_all_kernels(kernels: str) -> None:
    assert run(kernels, 2, "cosine l2 dot") == run("scalar", 1, "cosine l2 dot")
