"""Recall and speed of searches, measured on the index's own rows.

A sample of rows are the queries, each left out of its own answer; an exact search gives the truth. Queries from outside
the index have about the same recall (docs/decisions/0011-recall-target.md compares them).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from fabstir_vectordb._native.handle import Control, NativeCancelled, NativeStats
from fabstir_vectordb.index.index import Index, Sample
from fabstir_vectordb.types import RecallPoint, RecallReport

__all__ = ["NO_RECALL", "measure_recall"]

_EFS: Final = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
# Most settings of a side: recall has always levelled off before.
_POINTS_MAX: Final = 10
_SEED: Final = 20_261_124


#: The report for an index without rows: recall is 1.
NO_RECALL: Final = RecallReport(
    k=1,
    sample=0,
    rows=0,
    default=RecallPoint(
        ef_search=None, nprobe=None, exact=False, recall=1.0, p50_us=0.0, p99_us=0.0, queries_per_s=0.0
    ),
    points=(),
)


def measure_recall(
    index: Index, sample: int, k: int, recall_target: float | None, control: Control | None = None
) -> RecallReport:
    """Measures settings one after the other, each with every query of the sample.

    Args:
        index: the index; no change comes in between.
        sample: number of queries.
        k: neighbours of each.
        recall_target: recall target of the default search; None for the library's number of candidates.
        control: cancellation.

    Raises:
        NativeCancelled: `control` asked for it.
        IndexStateError: there was not enough memory.
    """
    effort = index.efforts.default(k, recall_target, control)

    def measure(rows: Sample | None) -> RecallReport:
        return NO_RECALL if rows is None else _measure(rows, sample, k, effort, control)

    return index.sampled(measure)


def _measure(rows: Sample, sample: int, k: int, effort: tuple[int, bool, int], control: Control | None) -> RecallReport:
    native, slots, allow = rows.native, rows.slots, rows.allow
    k = min(k, max(len(slots) - 1, 1))
    if len(slots) < 2:
        return replace(NO_RECALL, rows=len(slots))
    chosen = np.random.default_rng(_SEED).choice(len(slots), min(sample, len(slots)), replace=False)
    own = slots[np.sort(chosen)]
    queries = native.get_vectors(own)
    truth = np.empty(len(own))

    def ask(ef: int, nprobe: int, exact: bool) -> RecallPoint:
        shares, micros = np.empty(len(own)), np.empty(len(own))
        for row, query in enumerate(queries):
            if control is not None and control.cancelled:
                raise NativeCancelled
            started = time.perf_counter_ns()
            found, distances, *_ = native.search_one(query, k + 1, ef, exact, False, True, nprobe, allow)
            micros[row] = (time.perf_counter_ns() - started) / 1e3
            others = [distance for slot, distance in zip(found, distances, strict=True) if slot != own[row]][:k]
            if exact:
                truth[row] = others[-1]
            # Compared by distance: of equally far rows, any one counts.
            shares[row] = sum(distance <= truth[row] for distance in others) / k
        return RecallPoint(
            ef_search=ef or None,
            nprobe=nprobe or None,
            exact=exact,
            recall=float(shares.mean()),
            p50_us=float(np.percentile(micros, 50)),
            p99_us=float(np.percentile(micros, 99)),
            queries_per_s=1e6 / float(micros.mean()),
        )

    exact = ask(0, 0, True)
    points = [ask(ef, nprobe, False) for ef, nprobe in _settings(rows.counts, k)]
    ef, is_exact, nprobe = effort
    default = ask(ef, nprobe, is_exact)
    return RecallReport(k=k, sample=len(own), rows=len(slots), default=default, points=(*points, exact))


def _settings(stats: NativeStats, k: int) -> Iterator[tuple[int, int]]:
    """Pairs of ef_search and nprobe, one of them set and the other at its default (0)."""
    if stats.graph_rows:
        efs = [ef for ef in _EFS if ef > k] or [2 * k]
        yield from ((ef, 0) for ef in efs[:_POINTS_MAX])
    if stats.lists and stats.historical:
        probes = [1 << step for step in range(int(stats.lists).bit_length())][:_POINTS_MAX]
        yield from ((0, nprobe) for nprobe in probes)
