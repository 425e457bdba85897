"""Engines run the tasks of a collection: threads of this process, anything with the standard executor protocol, or Ray.

A task is a function of a module with picklable arguments. It reads its arguments and a store, and returns a value: an
engine may run it anywhere, twice, or again after a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import anyio
import anyio.to_thread

from fabstir_vectordb.cpus import usable_cpus
from fabstir_vectordb.errors import InvalidConfigError
from fabstir_vectordb.metadata.values import shown

__all__ = ["Engine", "OwnedEngine", "checked_engine", "checked_workers", "over", "threads"]

_WORKERS_MAX = 1_024


@runtime_checkable
class Engine(Protocol):
    """Runs tasks."""

    def submit(self, key: str, task: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Starts a task.

        Args:
            key: tasks of one key read the same shard: an engine may run them where that shard is in memory already.
            task: a function that can be pickled.
            *args: its arguments, which can be pickled, too.

        Returns:
            Its future result. `Future.cancel` need not stop a task that runs.
        """
        ...


class _Threads:
    """Threads of this process."""

    def __init__(self, workers: int) -> None:
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="fabstir_vectordb-shards")
        self._workers = workers

    def __repr__(self) -> str:
        return f"threads({self._workers})"

    def submit(self, key: str, task: Callable[..., Any], /, *args: Any) -> Future[Any]:
        return self._executor.submit(task, *args)

    def close(self) -> None:
        """Waits for the running tasks, and ends the threads."""
        self._executor.shutdown(cancel_futures=True)


class _Over:
    """An executor of the caller's, who ends it."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def __repr__(self) -> str:
        return f"over({self._executor!r})"

    def submit(self, key: str, task: Callable[..., Any], /, *args: Any) -> Future[Any]:
        return self._executor.submit(task, *args)


def threads(workers: int | None = None) -> _Threads:
    """An engine of threads in this process, the default of a collection.

    Args:
        workers: number of threads, 1 to 1,024; None for the number of CPUs that the process may use.

    Returns:
        The engine; `close` ends its threads.

    Raises:
        InvalidConfigError: `workers` is out of range.
    """
    return _Threads(usable_cpus() if workers is None else checked_workers("workers", workers))


def over(executor: Executor) -> Engine:
    """An engine over an executor: a `concurrent.futures.ProcessPoolExecutor`, or Dask's ``client.get_executor()``.

    A pool of processes must start them by ``spawn`` or ``forkserver``: a forked process has the locks of its parent's
    threads, but not the threads. The stores of ``memory:`` are those of one process. The caller ends the executor.

    Args:
        executor: has ``submit(function, *args)``, which returns a future of `concurrent.futures`.

    Returns:
        The engine.

    Raises:
        InvalidConfigError: `executor` has no such method.
    """
    if not callable(getattr(executor, "submit", None)):
        raise InvalidConfigError(
            f"an executor has a method submit, got {type(executor).__name__}", details={"field": "engine"}
        )
    return _Over(executor)


def checked_workers(name: str, count: int) -> int:
    """Refuses what is no number of workers.

    Raises:
        InvalidConfigError: it is no integer from 1 to 1,024.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _WORKERS_MAX:
        raise InvalidConfigError(
            f"{name} must be an integer from 1 to {_WORKERS_MAX}, got {shown(count)}", details={"field": name}
        )
    return count


class OwnedEngine:
    """The engine of a caller, or threads that are ended with it.

    Args:
        engine: the caller's, or None.

    Attributes:
        engine: where tasks run.
    """

    def __init__(self, engine: Engine | None) -> None:
        self._own = threads() if engine is None else None
        self.engine: Engine = self._own or checked_engine(engine)

    async def __aenter__(self) -> Engine:
        return self.engine

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends threads that are not the caller's, and waits for their tasks."""
        if self._own is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._own.close)


def checked_engine(engine: Engine | None) -> Engine:
    """Refuses what is no engine.

    Raises:
        InvalidConfigError: it has no method `submit`, or is an executor.
    """
    if isinstance(engine, Executor) or not isinstance(engine, Engine):
        raise InvalidConfigError(
            f"an engine is threads(), over(executor) or RayEngine(), got {type(engine).__name__}",
            details={"field": "engine"},
        )
    return engine
