"""Maintenance of a session's index: when rows move to lists, lists are trained, and a vacuum runs.

A session does none of this by itself. `VectorDBSession.optimize` does all of it once; a `Maintainer` does it repeatedly
in the background, for programs that keep a session open for long:

    >>> maintainer = Maintainer(session)
    >>> async with anyio.create_task_group() as group:
    ...     group.start_soon(maintainer.run)
    ...     ...
    ...     group.cancel_scope.cancel()

It works in steps of some milliseconds, beside searches. Only a vacuum blocks searches, and it runs only when a good
part of the rows are deleted or have moved.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import anyio

from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.index import AgingSteps
from fabstir_vectordb.index.aging import Step
from fabstir_vectordb.runtime import Runtime
from fabstir_vectordb.types import OptimizeResult

__all__ = ["Aging", "Maintainer", "cutoff_us"]

_INT64_MIN: Final = -(2**63)
_WINDOW_S_MAX: Final = 2e13
#: A cutoff after every row.
_ANY_AGE_US: Final = 2**63 - 1


def cutoff_us(now_us: int, window_s: float) -> int:
    """The moment before which rows are old, microseconds since 1970."""
    # The limit covers all of int64's time; a longer window could overflow in microseconds.
    return max(_INT64_MIN, now_us - round(min(window_s, _WINDOW_S_MAX) * 1e6))


async def _go_on(step: Step) -> None:
    """Waits for nothing."""


class Aging:
    """Runs `AgingSteps`, which move rows to the side of their age, on the index of a session.

    Args:
        runtime: runs the steps, on its current index.
        now_us: the session's clock, microseconds since 1970.
        window_s: age in seconds from which a row is old.
    """

    def __init__(self, runtime: Runtime, now_us: Callable[[], int], window_s: float) -> None:
        self.runtime = runtime
        self._now_us = now_us
        self._window_s = window_s

    async def run(self, before: Callable[[Step], Awaitable[None]] = _go_on) -> OptimizeResult:
        """Runs all steps, for `optimize`. A cancellation keeps the steps that are done.

        Args:
            before: awaited before each step.
        """
        return await self._run(AgingSteps(self._cutoff_us()), before)

    async def run_in_background(self, before: Callable[[Step], Awaitable[None]]) -> OptimizeResult:
        """Runs the steps, with a vacuum only where it is worth the reads that it blocks."""
        return await self._run(AgingSteps(self._cutoff_us(), in_background=True), before)

    async def run_for_all(self) -> OptimizeResult:
        """Runs the steps that move every row to lists, whatever its age."""
        return await self._run(AgingSteps(_ANY_AGE_US, arranges=False), _go_on)

    async def _run(self, steps: AgingSteps, before: Callable[[Step], Awaitable[None]]) -> OptimizeResult:
        for step in steps:
            await before(step)
            run = self.runtime.change if step.holds_up_reads else self.runtime.concurrent
            await run(step.run)
        return OptimizeResult(steps.trained, steps.migrated, steps.vacuumed)

    def _cutoff_us(self) -> int:
        return cutoff_us(self._now_us(), self._window_s)


class _Session(Protocol):
    _aging: Aging


class Maintainer:
    """Maintains a session's index in the background: moves old rows to lists, and vacuums where it is worth it.

    Args:
        session: the `VectorDBSession`; not one of `fabstir_vectordb.sync`, which has no event loop.
        interval_s: seconds between the end of a pass and the next one.

    Raises:
        InvalidInputError: `session` is no such session.
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
            VectorDBError: a step failed, or the session was destroyed; the index stays valid.
        """
        while True:
            await self._aging.run_in_background(self._turn)
            await anyio.sleep(self._interval_s)

    def pause(self) -> None:
        """Pauses before the next step, until `resume`."""
        if self._resumed is None:
            self._resumed = anyio.Event()

    def resume(self) -> None:
        """Continues after `pause`."""
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    async def _turn(self, step: Step) -> None:
        if self._resumed is not None:
            await self._resumed.wait()
