"""Policy and clock: when rows move to lists, when lists are trained, when a vacuum is worth its time.

A session does nothing of this on its own. `VectorDBSession.optimize` does all of it now; a `Maintainer` does it again
and again in the background, for programs that leave a session open for long:

    >>> maintainer = Maintainer(session)
    >>> async with anyio.create_task_group() as group:
    ...     group.start_soon(maintainer.run)
    ...     ...
    ...     group.cancel_scope.cancel()

It works in steps of some milliseconds, beside searches; only a vacuum holds them up, and only comes when a good part of
the rows is to go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Literal, Protocol, TypeAlias

import anyio

from fabstir_vectordb._native.handle import NativeStats
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.index import Index
from fabstir_vectordb.runtime import Runtime
from fabstir_vectordb.types import OptimizeResult, VacuumStats

__all__ = ["STEP_ROWS", "Aging", "Maintainer", "vacuum_is_due"]

Stage: TypeAlias = Literal["train", "migrate", "vacuum"]

#: Rows that move in one step: some milliseconds beside searches, 0.1 ms in their way.
STEP_ROWS: Final = 1_000
_INT64_MIN: Final = -(2**63)
# A vacuum in the background comes when so many rows, and such a part of all, are tombstones or still in the graph
# though they moved: they make walks longer by about that part.
_VACUUM_ROWS: Final = 1_000
_VACUUM_SHARE: Final = 5


def vacuum_is_due(counts: NativeStats, expired_count: int) -> bool:
    """Whether a vacuum pays for what it holds up."""
    idle = counts.rows - counts.live + expired_count + counts.moved
    return idle >= _VACUUM_ROWS and idle * _VACUUM_SHARE >= counts.rows


def _is_worth_it(index: Index) -> bool:
    return vacuum_is_due(index.counts, index.hidden_count)


async def _go_on(stage: Stage, rows_done: int) -> None:
    """Waits for nothing."""


class Aging:
    """The steps that bring rows to the side of their age: train lists, move rows, train again, vacuum.

    Args:
        runtime: runs the steps, on the index it has.
        now_us: the session's clock, microseconds since 1970.
        window_s: age in seconds from which a row is old.
    """

    def __init__(self, runtime: Runtime, now_us: Callable[[], int], window_s: float) -> None:
        self.runtime = runtime
        self._now_us = now_us
        self._window_us = round(window_s * 1e6)

    async def run(
        self,
        before: Callable[[Stage, int], Awaitable[None]] = _go_on,
        *,
        vacuum_where: Callable[[Index], bool] = lambda _: True,
        of_any_age: bool = False,
    ) -> OptimizeResult:
        """Does all steps; a cancellation between two of them leaves what is done.

        Args:
            before: awaited before each step, with the rows that the stage has looked at.
            vacuum_where: whether the index gets a vacuum in the end.
            of_any_age: take every row for an old one.
        """
        await before("train", 0)
        trained, migrated = await self._train(of_any_age), 0
        first: int | None = 0
        while first is not None:
            await before("migrate", first)
            moved, first = await self._migrate(first, of_any_age)
            migrated += moved
        trained = await self._train(of_any_age) or trained
        removed = VacuumStats(0, 0, 0)
        if vacuum_where(self.runtime.index):
            await before("vacuum", 0)
            removed = await self.runtime.change(Index.vacuum)
        return OptimizeResult(trained, migrated, removed)

    async def _train(self, of_any_age: bool) -> bool:
        cutoff = self._cutoff_us(of_any_age)
        return await self.runtime.concurrent(lambda index, control: index.train(cutoff, control))

    async def _migrate(self, first: int, of_any_age: bool) -> tuple[int, int | None]:
        cutoff = self._cutoff_us(of_any_age)
        return await self.runtime.concurrent(lambda index, _: index.migrate(cutoff, STEP_ROWS, first))

    def _cutoff_us(self, of_any_age: bool) -> int:
        """Rows before this moment are old: microseconds since 1970."""
        return 2**63 - 1 if of_any_age else max(_INT64_MIN, self._now_us() - self._window_us)


class _Session(Protocol):
    _aging: Aging


class Maintainer:
    """Keeps a session's index in shape, in the background.

    Args:
        session: the `VectorDBSession` whose index it is; one of `fabstir_vectordb.sync` has no event loop to work on.
        interval_s: seconds between two looks.

    Raises:
        InvalidInputError: `session` is none.
    """

    def __init__(self, session: _Session, *, interval_s: float = 60.0) -> None:
        if not isinstance(getattr(session, "_aging", None), Aging):
            raise InvalidInputError(f"a Maintainer needs a VectorDBSession, got {type(session).__name__}")
        self._aging = session._aging
        self._interval_s = interval_s
        self._resumed: anyio.Event | None = None

    async def run(self) -> None:
        """Works until it is cancelled.

        Raises:
            VectorDBError: something failed, or the session was destroyed; the index is whole.
        """
        while True:
            await self._aging.run(self._turn, vacuum_where=_is_worth_it)
            await anyio.sleep(self._interval_s)

    def pause(self) -> None:
        """Stops before the next step."""
        if self._resumed is None:
            self._resumed = anyio.Event()

    def resume(self) -> None:
        """Goes on."""
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    async def _turn(self, stage: Stage, rows_done: int) -> None:
        if self._resumed is not None:
            await self._resumed.wait()
