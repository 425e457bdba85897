"""The memory budget. The memory that a change will take is computed before it begins, and refused where it is too much.

Two amounts count: the content that stays, which is rows and metadata, and the scratch memory while the change runs.
Caches can be made again, and are freed first.
"""

from __future__ import annotations

from typing import Final, Protocol

from fabstir_vectordb._native.handle import (
    WORK_ADD,
    WORK_REORDER,
    WORK_TRAIN,
    WORK_VACUUM,
    NativeStats,
    estimate_bytes,
    estimate_work,
)
from fabstir_vectordb.config import Tier
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import MemoryBudgetExceededError
from fabstir_vectordb.params import IndexParams, RunParams

__all__ = ["Budget", "Cache", "Forecast", "kept_bytes", "reserve_bytes"]

#: Shares of a budget (one part in so many), and their upper bounds in bytes.
_RESERVE_SHARE, _RESERVE_BYTES_MAX = 6, 16_000_000
_KEPT_SHARE, _KEPT_BYTES_MAX = 8, 12_000_000


def reserve_bytes(budget_bytes: int) -> int:
    """Bytes of a budget that are reserved for saves, loads and searches; rows and metadata may not take them."""
    return min(budget_bytes // _RESERVE_SHARE, _RESERVE_BYTES_MAX)


def kept_bytes(budget_bytes: int) -> int:
    """Bytes of a budget that are reserved for freed memory, which the allocators of C and Python keep."""
    return min(budget_bytes // _KEPT_SHARE, _KEPT_BYTES_MAX)


class Cache(Protocol):
    """Memory whose content can be made again."""

    @property
    def nbytes(self) -> int: ...
    def clear(self) -> None: ...


class Budget:
    """The memory budget of an index.

    Attributes:
        limit_bytes: most bytes; None for no limit.
        untrimmed_bytes: upper bound of the bytes that changes have freed since the allocator last returned memory.

    Args:
        limit_bytes: most bytes; None for no limit.
        cache: is cleared where its memory is needed.
    """

    def __init__(self, limit_bytes: int | None, cache: Cache) -> None:
        self.limit_bytes = limit_bytes
        self.untrimmed_bytes = 0
        self._cache = cache

    @property
    def reserve(self) -> int:
        """Bytes that rows and metadata may not take."""
        return 0 if self.limit_bytes is None else reserve_bytes(self.limit_bytes)

    def is_over(self, needed: int) -> bool:
        """Whether so many bytes, without caches, would exceed the budget."""
        limit = self.limit_bytes
        return limit is not None and needed > limit - kept_bytes(limit)

    def left(self, held: int) -> int | None:
        """Bytes that content may still take; None for no limit."""
        limit = self.limit_bytes
        return None if limit is None else max(0, limit - kept_bytes(limit) - self.reserve - held)

    def clear_cache(self) -> None:
        """Frees the cache, whose memory is to go back to the system."""
        self.untrimmed_bytes += self._cache.nbytes
        self._cache.clear()

    def require(self, what: str, needed: int, way_out: str = "raise memory_budget_mb") -> None:
        """Refuses an operation that would exceed the budget.

        Args:
            what: name of the operation, for the error.
            needed: bytes in all, without caches.
            way_out: advice for the user, for the error.

        Raises:
            MemoryBudgetExceededError: the bytes exceed the budget.
        """
        if self.is_over(needed + self._cache.nbytes):
            self.clear_cache()
        if self.is_over(needed):
            assert self.limit_bytes is not None
            needed += kept_bytes(self.limit_bytes)
            raise MemoryBudgetExceededError(
                f"{what} needs {needed / 1e6:.1f} MB in all, the budget is {self.limit_bytes / 1e6:.1f} MB: {way_out}",
                details={"needed_bytes": needed, "budget_bytes": self.limit_bytes},
            )

    def require_for_good(self, what: str, content: int, scratch: int, way_out: str) -> None:
        """Refuses a change that would leave no memory for saves and searches.

        Args:
            what, way_out: as `require`.
            content: bytes that stay.
            scratch: additional bytes while the change runs.

        Raises:
            MemoryBudgetExceededError: the bytes exceed the budget.
        """
        self.untrimmed_bytes += scratch  # a refused change has taken some, too
        self.require(what, content + max(scratch, self.reserve), way_out)

    def require_work(
        self, what: str, held: int, scratch: int, way_out: str = "save, and load with a larger memory_budget_mb"
    ) -> None:
        """Refuses a change whose scratch memory would exceed the budget.

        Args:
            what, way_out: as `require`.
            held: bytes of the content.
            scratch: additional bytes while the change runs.

        Raises:
            MemoryBudgetExceededError: the bytes exceed the budget.
        """
        self.require(what, held + scratch, way_out)
        self.untrimmed_bytes += scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Estimates of the native core's memory, after and during a change.

    Attributes:
        dim, params, run: dimension and parameters of the index.
        memory: its memory setting.
        counts: its present counts.
    """

    dim: int
    params: IndexParams
    run: RunParams
    memory: Tier
    counts: NativeStats

    @property
    def _on_lists(self) -> int:
        return self.counts.historical + self.counts.historical_deleted

    @property
    def _settled(self) -> int:
        """Rows on lists that are no longer in the graph."""
        return self._on_lists - self.counts.moved

    @property
    def _recent(self) -> int:
        return self.counts.live - self.counts.historical

    def after_add(self, n: int, id_bytes: int) -> int:
        """Bytes of the index with n more rows."""
        counts = self.counts
        return estimate_bytes(
            self.dim,
            metric=self.params.metric,
            memory=self.memory,
            M=self.params.M,
            ef_construction=self.params.ef_construction,
            threads=self.run.threads,
            rows=counts.rows + n,
            graph_rows=counts.rows + n - self._settled,
            historical=self._on_lists,
            id_bytes=counts.id_bytes + id_bytes,
        )

    def _work(self, kind: int, rows: int, graph_rows: int, id_bytes: int, added: int = 0) -> int:
        return estimate_work(
            self.dim,
            kind,
            metric=self.params.metric,
            memory=self.memory,
            M=self.params.M,
            ef_construction=self.params.ef_construction,
            threads=self.run.threads,
            rows=rows,
            graph_rows=graph_rows,
            historical=self._on_lists,
            added=added,
            id_bytes=id_bytes,
        )

    def add(self, n: int, id_bytes: int) -> int:
        """Scratch bytes while n rows are added."""
        rows = self.counts.rows + n
        return self._work(WORK_ADD, rows, rows - self._settled, id_bytes, n)

    def vacuum(self) -> int:
        """Scratch bytes of a vacuum."""
        return self._work(WORK_VACUUM, self.counts.rows, self._recent, self.counts.id_bytes)

    def train(self) -> int:
        """Scratch bytes while lists are trained, the lists included."""
        return self._work(WORK_TRAIN, self.counts.rows, self.counts.graph_rows, self.counts.id_bytes)

    def migrate(self, n: int) -> int:
        """Scratch bytes while n rows move to lists, which grow by an eighth at a time."""
        return _MOVED_BYTES * n + self._on_lists * 5 // 4 + self.counts.rows // 8

    def arrange(self) -> int:
        """Scratch bytes while rows get a new order."""
        return self._work(WORK_REORDER, self.counts.rows, self.counts.graph_rows, self.counts.id_bytes)


#: Bytes of a row that moves: its slot, lists and error, and its places on both lists.
_MOVED_BYTES: Final = 28
