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

from typing import TYPE_CHECKING, Final

import anyio

if TYPE_CHECKING:
    from fabstir_vectordb.session import VectorDBSession

__all__ = ["Maintainer", "cutoff_us"]

_INT64_MIN: Final = -(2**63)


def cutoff_us(now_us: int, window_s: float) -> int:
    """Rows before this moment are old: microseconds since 1970."""
    return max(_INT64_MIN, now_us - round(window_s * 1e6))


class Maintainer:
    """Keeps a session's index in shape, in the background.

    Args:
        session: whose index.
        interval_s: seconds between two looks.
    """

    def __init__(self, session: VectorDBSession, *, interval_s: float = 60.0) -> None:
        self._session = session
        self._interval_s = interval_s
        self._resumed: anyio.Event | None = None

    async def run(self) -> None:
        """Works until it is cancelled.

        Raises:
            VectorDBError: something failed, or the session was destroyed; the index is whole.
        """
        while True:
            await self._look()
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

    async def _turn(self) -> None:
        if self._resumed is not None:
            await self._resumed.wait()

    async def _look(self) -> None:
        session = self._session
        for step in session.background_steps():
            await self._turn()
            await session.run_step(step)
