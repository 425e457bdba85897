"""Runs many tasks on an engine, from an event loop of asyncio or trio: some at a time, and all or nothing.

The first failure cancels the tasks that have not begun, and is raised: no caller gets a part of an answer, unless it
asks for one by `missing_ok`. Errors keep their type, code and details on the way from another process, and name the
shard. What the engine itself raises, such as the loss of a process, becomes a retryable SessionError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from typing import Any, Final

import anyio
import anyio.lowlevel

from fabstir_vectordb.collections.engines import Engine
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import (
    DecryptionError,
    IntegrityError,
    MemoryBudgetExceededError,
    NotFoundError,
    OperationTimeoutError,
    S5Error,
    SessionError,
    StorageError,
    VectorDBError,
)

__all__ = ["IN_FLIGHT", "Answers", "Job", "of_shard", "run_all"]

#: Tasks that are with the engine at a time. Their arguments and results are in memory meanwhile.
IN_FLIGHT: Final = 32

#: Failures of one shard, as opposed to those of the question: `missing_ok` leaves the shard out.
_OF_A_SHARD: Final = (
    DecryptionError,
    IntegrityError,
    MemoryBudgetExceededError,
    NotFoundError,
    OperationTimeoutError,
    S5Error,
    SessionError,
    StorageError,
)


@dataclass(frozen=True, slots=True)
class Job:
    """A task of one shard.

    Attributes:
        shard: number of the shard.
        key: where the engine should run it.
        task: the function.
        args: makes its arguments, when it is its turn: they may be large.
    """

    shard: int
    key: str
    task: Callable[..., Any]
    args: Callable[[], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Answers:
    """The results of jobs.

    Attributes:
        results: in the order of the jobs, without those of missing shards.
        shards: the shards that answered, in the order of `results`.
        missing: the shards that did not.
    """

    results: list[Any]
    shards: tuple[int, ...]
    missing: tuple[int, ...]


async def run_all(
    engine: Engine,
    jobs: Iterable[Job],
    *,
    in_flight: int = IN_FLIGHT,
    missing_ok: bool = False,
    done: Callable[[], None] | None = None,
) -> Answers:
    """Runs jobs on an engine.

    A cancellation cancels the tasks that have not begun, and does not wait for the others: they change nothing that
    somebody could see.

    Args:
        engine: where they run.
        jobs: the jobs.
        in_flight: most tasks at a time.
        missing_ok: leave out shards whose task failed by their store, their bytes or the engine.
        done: called on the event loop's thread after each job.

    Returns:
        The results.

    Raises:
        VectorDBError: a task failed; details has ``shard``. Of several failures it is that of the first job.
        SessionError: the engine failed.
    """
    waiting: Iterator[tuple[int, Job]] = enumerate(jobs)
    running: dict[Future[Any], tuple[int, Job]] = {}
    outcomes: dict[int, tuple[Job, Any]] = {}
    failures: dict[int, VectorDBError] = {}
    missing: list[int] = []
    is_broken = False
    arrivals = _Arrivals()
    try:
        while True:
            while len(running) < in_flight and (started := next(waiting, None)) is not None:
                future = _submitted(engine, started[1])
                running[future] = started
                arrivals.expect(future)
            if not running:
                break
            for future in await arrivals.some():
                place, job = running.pop(future)
                try:
                    outcomes[place] = job, future.result()
                except Exception as error:
                    is_broken = is_broken or isinstance(error, BrokenExecutor)
                    failure = of_shard(error, job.shard)
                    if missing_ok and isinstance(failure, _OF_A_SHARD):
                        missing.append(job.shard)
                    else:
                        failures[place] = failure
                if done is not None:
                    done()
            if failures:
                raise failures[min(failures)]
    finally:
        # A broken executor ends all of its futures itself, and the thread of CPython 3.11's dies of a cancelled one.
        for future in () if is_broken else running:
            future.cancel()
        failures.clear()  # an error in a frame of its own traceback would keep the arguments alive
    answered = [outcomes[place] for place in sorted(outcomes)]
    return Answers([result for _, result in answered], tuple(job.shard for job, _ in answered), tuple(sorted(missing)))


def _submitted(engine: Engine, job: Job) -> Future[Any]:
    try:
        return engine.submit(job.key, job.task, *job.args())
    except VectorDBError:
        raise
    except Exception as error:
        raise of_shard(error, job.shard) from error


def of_shard(error: BaseException, shard: int) -> VectorDBError:
    """The error of a task, with the number of its shard."""
    if isinstance(error, VectorDBError):
        details = {"shard": shard, **error.details}
        named = type(error)(f"shard {shard}: {error.message}", details=details, retryable=error.retryable)
    else:
        named = SessionError(
            f"shard {shard}: the engine failed: {type(error).__name__}: {error}",
            details={"shard": shard},
            retryable=True,
        )
    named.__cause__ = error
    return named


class _Arrivals:
    """Futures that are done, as they come from other threads."""

    def __init__(self) -> None:
        token: Any = anyio.lowlevel.current_token()
        loop = getattr(token, "native_token", token)  # the loop itself before anyio 4.11
        self._wake: Callable[..., Any] = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
        self._come: list[Future[Any]] = []
        self._event = anyio.Event()

    def expect(self, future: Future[Any]) -> None:
        def tell(done: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._wake(self._take, done)

        future.add_done_callback(tell)

    def _take(self, future: Future[Any]) -> None:
        self._come.append(future)
        self._event.set()

    async def some(self) -> list[Future[Any]]:
        """The futures that came since the last call, at least one."""
        await self._event.wait()
        come, self._come, self._event = self._come, [], anyio.Event()
        return come
