"""An engine of Ray's actors, each of which keeps the shards of its keys open from one task to the next.

The cluster is the caller's, who calls ``ray.init``. An actor that is lost starts again, and its tasks run again: they
read arguments and stored objects only, so a loss costs the opening of its shards. Shards are opened by tasks, not by
the constructor of an actor: so what cannot be opened is an error of the task, with its code and details.
"""

from __future__ import annotations

import pickle
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final

import numpy as np

from fabstir_vectordb.collections.engines import checked_workers
from fabstir_vectordb.errors import InvalidConfigError, SessionError
from fabstir_vectordb.extras import install_command

__all__ = ["RayEngine"]

#: Options of the actors, where the caller does not say otherwise. A whole CPU an actor would be taken from the tasks of
#: others for as long as the engine lives, and they would wait without an error. Retries end: a task that needs more
#: memory than its machine has would end every actor that it runs in.
_OPTIONS: Final = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 3}

#: Arrays from this size on, in bytes, go through Ray's object store, from which workers read them without a copy. Ray
#: itself puts arguments there from 100 KiB on.
_LARGE_BYTES: Final = 100 * 1024


class RayEngine:
    """An engine of actors on a cluster of Ray, made by the caller's ``ray.init``. Needs the extra `ray`.

    Actors start when they are needed first, and take tasks of one key each time, in the order of submission. A task
    whose actor is lost runs again, three times at most; then it fails as tasks of a lost process do. Keys of shards and
    share CIDs are arguments of tasks, and Ray may write those to its object store and its spill files.

    Args:
        concurrency: number of actors, 1 to 1,024; None for the number of CPUs of the cluster.
        ray_remote_args: options of the actors, as ``ray.remote`` takes them: ``num_cpus`` (0 by default; a fraction
            where actors are to be counted), ``memory``, ``resources``, ``max_concurrency``, ``runtime_env``.

    Raises:
        InvalidConfigError: Ray is not installed, or an argument is refused.
        SessionError: ``ray.init`` was not called.
    """

    def __init__(self, concurrency: int | None = None, *, ray_remote_args: Mapping[str, Any] | None = None) -> None:
        try:
            import ray
        except ImportError:
            raise InvalidConfigError(
                f"RayEngine needs the extra 'ray': {install_command('ray')}", details={"field": "engine"}
            ) from None
        self._ray = ray
        self._check()
        if ray_remote_args is not None and not isinstance(ray_remote_args, Mapping):
            raise InvalidConfigError(
                f"ray_remote_args must be a mapping, got {type(ray_remote_args).__name__}",
                details={"field": "ray_remote_args"},
            )
        if concurrency is None:
            concurrency = max(1, int(ray.cluster_resources().get("CPU", 1)))
        count = checked_workers("concurrency", concurrency)
        try:
            self._actor = ray.remote(**{**_OPTIONS, **(ray_remote_args or {})})(_Worker)
        except (TypeError, ValueError) as error:
            raise InvalidConfigError(
                f"ray_remote_args are refused: {error}", details={"field": "ray_remote_args"}
            ) from error
        self._lock = threading.Lock()
        self._actors: list[Any] = [None] * count
        self._places: dict[str, int] = {}
        self._is_open = True
        #: The large array that was put into the object store last, if it cannot change, and where it is.
        self._put: tuple[weakref.ref[Any], Any] | None = None

    def __repr__(self) -> str:
        return f"RayEngine({len(self._actors)})"

    def submit(self, key: str, task: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Starts a task in the actor of its key.

        Args:
            key: keys go to actors in turn, in the order in which they come first.
            task: a function of a module that Ray's workers can import.
            *args: its arguments, which can be pickled.

        Returns:
            Its future result. `cancel` takes a task back that has not begun.

        Raises:
            SessionError: the engine is closed, or Ray was shut down.
        """
        self._check()
        with self._lock:
            if not self._is_open:
                raise SessionError("the engine is closed")
            place = self._places.setdefault(key, len(self._places) % len(self._actors))
            if self._actors[place] is None:
                self._actors[place] = self._actor.remote()
            actor = self._actors[place]
            # Ray pickles each argument for itself, which takes four times as long as all of them at once.
            large: list[Any] = []
            call = self._ray.cloudpickle.dumps((task, args), 5, buffer_callback=lambda one: self._is_small(one, large))
            future = _RayFuture(self._ray, actor.run.remote(call, *large))
        future.add_done_callback(lambda done: self._forget_lost(place, actor, done))
        return future

    def _is_small(self, buffer: pickle.PickleBuffer, large: list[Any]) -> bool:
        """Whether the bytes of an array go with the call; if not, they are added to the large ones."""
        raw = buffer.raw()
        if raw.nbytes < _LARGE_BYTES:
            return True
        array = np.frombuffer(raw, dtype=np.uint8)
        owner = raw.obj
        if not raw.readonly or not isinstance(owner, np.ndarray):
            large.append(array)
            return False
        # Queries are the same for all shards, and stored once.
        put = self._put  # read once: another thread may drop the owner meanwhile
        if put is None or put[0]() is not owner:
            put = self._put = weakref.ref(owner, self._forget_put), self._ray.put(array)
        large.append(put[1])
        return False

    def _forget_put(self, owner: weakref.ref[Any]) -> None:
        """Frees what was put into the object store."""
        if (put := self._put) is not None and put[0] is owner:
            self._put = None

    def close(self) -> None:
        """Ends the actors, and the tasks that run. Idempotent."""
        with self._lock:
            self._is_open = False
            actors = [actor for actor in self._actors if actor is not None]
            self._actors = [None] * len(self._actors)
            self._put = None
        if self._ray.is_initialized():
            for actor in actors:
                self._ray.kill(actor)

    def _check(self) -> None:
        # Ray would call its init itself, for a cluster of this machine alone.
        if not self._ray.is_initialized():
            raise SessionError("Ray is not initialised: call ray.init() first")

    def _forget_lost(self, place: int, actor: Any, done: Future[Any]) -> None:
        """The next task of the place gets a new actor, where somebody has ended this one for good."""
        if done.cancelled() or not isinstance(done.exception(), self._ray.exceptions.ActorDiedError):
            return
        with self._lock:
            if self._actors[place] is actor:
                self._actors[place] = None


class _Worker:
    """An actor. What it keeps from task to task is in `open_shards`."""

    def run(self, call: bytes, *large: Any) -> bytes:
        """The pickled result of a task.

        Args:
            call: the pickled task and its arguments.
            *large: the bytes of large arrays among these.
        """
        task, args = pickle.loads(call, buffers=large)
        return pickle.dumps(task(*args), pickle.HIGHEST_PROTOCOL)


class _RayFuture(Future[Any]):
    """The future of one of Ray's tasks, which raises what the task raised."""

    def __init__(self, ray: Any, ref: Any) -> None:
        super().__init__()
        self._ray = ray
        self._ref = ref
        ref.future().add_done_callback(self._take)

    def cancel(self) -> bool:
        """Takes the task back, where it has not begun; its result is not wanted any more in any case."""
        if not super().cancel():
            return False
        if self._ray.is_initialized():
            self._ray.cancel(self._ref)
        return True

    def _take(self, inner: Future[Any]) -> None:
        if not self.set_running_or_notify_cancel():
            return
        error = inner.exception()
        if error is None:
            try:
                result = pickle.loads(inner.result())
            except Exception as failure:  # Ray calls this, and would drop the error
                self.set_exception(failure)
            else:
                self.set_result(result)
            return
        # Ray wraps the error of a task in a class made for it, whose constructor is another one.
        cause = error.cause if isinstance(error, self._ray.exceptions.RayTaskError) else error
        self.set_exception(cause if isinstance(cause, BaseException) else error)
