"""Engines and fan-outs: all or nothing, some at a time, errors as they were raised."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from typing import Any

import pytest

from fabstir_vectordb.collections import Engine, RayEngine, over, threads
from fabstir_vectordb.collections.fanout import Job, run_all
from fabstir_vectordb.errors import IntegrityError, InvalidConfigError, InvalidInputError, SessionError

pytestmark = pytest.mark.anyio


class Late:
    """An engine whose tasks run when the test says so."""

    def __init__(self) -> None:
        self.begun: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.most = 0
        self.two = threading.Event()

    def submit(self, key: str, task: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.begun.append((future, lambda: task(*args)))
        if len(self.begun) == 2:
            self.two.set()
        self.most = max(self.most, sum(not one.done() for one, _ in self.begun))
        return future

    def run(self, place: int) -> None:
        future, task = self.begun[place]
        try:
            future.set_result(task())
        except Exception as error:
            future.set_exception(error)


def job(shard: int, task: Callable[..., Any], *args: Any) -> Job:
    return Job(shard, str(shard), task, lambda: args)


def fail(error: Exception) -> None:
    raise error


async def test_results_come_in_the_order_of_the_jobs_and_few_at_a_time() -> None:
    engine = Late()
    assert isinstance(engine, Engine)

    def finish() -> None:
        done = 0
        while done < 6:  # the last begun one first
            for place in range(len(engine.begun) - 1, -1, -1):
                if not engine.begun[place][0].done():
                    engine.run(place)
                    done += 1

    helper = threading.Thread(target=finish)
    helper.start()
    told: list[int] = []
    answers = await run_all(engine, [job(n, int, n) for n in range(6)], in_flight=2, done=lambda: told.append(1))
    helper.join()
    assert answers.results == list(range(6))
    assert answers.shards == tuple(range(6))
    assert engine.most <= 2
    assert len(told) == 6


async def test_one_failure_cancels_the_rest_and_keeps_its_code_and_details() -> None:
    engine = Late()
    jobs = [job(7, fail, IntegrityError("part ids.0000: damaged", details={"part": "ids.0000"})), job(8, int, 1)]
    helper = threading.Thread(target=wait_and_run, args=[engine])
    helper.start()
    with pytest.raises(IntegrityError, match=r"shard 7: part ids\.0000") as caught:
        await run_all(engine, jobs)
    helper.join()
    assert caught.value.details == {"shard": 7, "part": "ids.0000"}
    assert engine.begun[1][0].cancelled()


async def test_a_broken_executor_ends_its_futures_itself() -> None:
    engine = Late()
    helper = threading.Thread(target=wait_and_run, args=[engine])
    helper.start()
    with pytest.raises(SessionError, match="the engine failed: BrokenExecutor"):
        await run_all(engine, [job(7, fail, BrokenExecutor("a process ended")), job(8, int, 1)])
    helper.join()
    assert not engine.begun[1][0].cancelled()


def wait_and_run(engine: Late) -> None:
    engine.two.wait(60)
    engine.run(0)


async def test_a_missing_shard_is_named_and_a_wrong_question_is_not_a_missing_shard() -> None:
    with_lost = [job(1, int, 1), job(2, fail, OSError("a process was lost")), job(3, int, 3)]
    engine = threads(2)
    answers = await run_all(engine, with_lost, missing_ok=True)
    assert (answers.results, answers.shards, answers.missing) == ([1, 3], (1, 3), (2,))
    with pytest.raises(SessionError, match="shard 2: the engine failed: OSError: a process was lost") as lost:
        await run_all(engine, with_lost)
    assert lost.value.retryable
    with pytest.raises(InvalidInputError):
        await run_all(engine, [job(1, fail, InvalidInputError("k"))], missing_ok=True)
    engine.close()
    with pytest.raises(SessionError, match="the engine failed"):
        await run_all(engine, with_lost)


def test_what_is_no_engine_is_refused() -> None:
    for workers in (0, True, 1.5, 100_000):
        with pytest.raises(InvalidConfigError, match="workers"):
            threads(workers)
    with pytest.raises(InvalidConfigError, match="submit"):
        over(object())


def test_without_ray_its_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidConfigError, match=r"extra 'ray': .*pip install 'ray\[data\]>="):
        RayEngine(1)
