"""What a change takes of memory, known before it begins: for good, and beside that while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fabstir_vectordb._native.handle import (
    WORK_ADD,
    WORK_ARRANGE,
    WORK_TRAIN,
    WORK_VACUUM,
    NativeStats,
    estimate_bytes,
    estimate_work,
)

__all__ = ["Forecast", "kept_bytes", "reserve_bytes"]

#: Shares of a budget, and the most they come to.
_RESERVE_SHARE, _RESERVE_BYTES_MAX = 6, 16_000_000
_KEPT_SHARE, _KEPT_BYTES_MAX = 8, 12_000_000


def reserve_bytes(budget_bytes: int) -> int:
    """Bytes of a budget that rows and metadata may not take: saves, loads and searches need them now and then."""
    return min(budget_bytes // _RESERVE_SHARE, _RESERVE_BYTES_MAX)


def kept_bytes(budget_bytes: int) -> int:
    """Bytes of a budget that nothing may take, as the allocators of C and Python keep some that were freed."""
    return min(budget_bytes // _KEPT_SHARE, _KEPT_BYTES_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Bytes of the native core, before and while it changes.

    Attributes:
        dim, metric, memory, M, ef_construction, threads: of the index.
        counts: what it holds now.
    """

    dim: int
    metric: str
    memory: str
    M: int
    ef_construction: int
    threads: int
    counts: NativeStats

    @property
    def _on_lists(self) -> int:
        return self.counts.historical + self.counts.historical_deleted

    @property
    def _settled(self) -> int:
        """Rows on lists that the graph, if there is one, does not have any more."""
        return self._on_lists - self.counts.moved

    @property
    def _recent(self) -> int:
        return self.counts.live - self.counts.historical

    def after_add(self, n: int, id_bytes: int) -> int:
        """The index with n more rows."""
        counts = self.counts
        return estimate_bytes(
            self.dim,
            metric=self.metric,
            memory=self.memory,
            M=self.M,
            ef_construction=self.ef_construction,
            threads=self.threads,
            rows=counts.rows + n,
            graph_rows=counts.rows + n - self._settled,
            historical=self._on_lists,
            id_bytes=counts.id_bytes + id_bytes,
        )

    def _work(self, kind: int, rows: int, graph_rows: int, id_bytes: int, added: int = 0) -> int:
        return estimate_work(
            self.dim,
            kind,
            metric=self.metric,
            memory=self.memory,
            M=self.M,
            ef_construction=self.ef_construction,
            threads=self.threads,
            rows=rows,
            graph_rows=graph_rows,
            historical=self._on_lists,
            added=added,
            id_bytes=id_bytes,
        )

    def add(self, n: int, id_bytes: int) -> int:
        """Beside the index while n rows are added."""
        rows = self.counts.rows + n
        return self._work(WORK_ADD, rows, rows - self._settled, id_bytes, n)

    def vacuum(self) -> int:
        """Beside the index while it is vacuumed."""
        return self._work(WORK_VACUUM, self.counts.rows, self._recent, self.counts.id_bytes)

    def train(self) -> int:
        """Beside the index while lists are trained, the lists included."""
        return self._work(WORK_TRAIN, self.counts.rows, self.counts.graph_rows, self.counts.id_bytes)

    def migrate(self, n: int) -> int:
        """Beside the index while n rows move to lists, which grow by an eighth at a time."""
        return _MOVED_BYTES * n + self._on_lists // 2 + self.counts.rows // 8

    def arrange(self) -> int:
        """Beside the index while its rows are put in another order."""
        return self._work(WORK_ARRANGE, self.counts.rows, self.counts.graph_rows, self.counts.id_bytes)


#: A row that moves: its slot, list and error, and its place on the list.
_MOVED_BYTES: Final = 20
