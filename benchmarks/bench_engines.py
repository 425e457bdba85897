"""What an engine of processes adds to threads: one search, a batch, and tasks that do nothing, over 8 shards in memory.

Engines have two workers each, and shards one thread. They take turns, search by search, so that all of them have the
same machine; ratios are those of medians of turns. Engines that are not installed are skipped by name. The collection
is built once, in the scratch folder, and used again by later rounds and runs.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from harness import curves, datasets, environment, ours, rounds
from harness.contract import K
from harness.grown_collection import WORKERS, engine_of

from fabstir_vectordb.collections import Collection, Engine, build, over
from fabstir_vectordb.collections.fanout import Job, run_all

ENGINES = ("threads", "processes", "ray")
SHARDS = 8
SINGLE = 100
BATCHES = 10
#: Options of the searches: all shards, and as many as a recall of 0.95 needs.
KINDS: dict[str, dict[str, Any]] = {
    "all": {"shards": SHARDS, "recall_target": 0.95, "threshold": None},
    "by_curve": {"recall_target": 0.95, "threshold": None},
}


@contextmanager
def opened(name: str) -> Iterator[Engine]:
    """An engine by name."""
    if name != "processes":
        with engine_of(name) as engine:
            yield engine
        return
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield over(pool)


async def medians(calls: dict[str, Callable[[int], Awaitable[Any]]], turns: int) -> dict[str, float]:
    """The median seconds of the calls of each engine, which take turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            await call(turn)
            if turn:  # the first ones open what is not open
                taken[name].append(time.perf_counter() - started)
    return {name: float(np.median(seconds)) for name, seconds in taken.items()}


async def one_search(many: Collection, data: datasets.Dataset, options: dict[str, Any], turn: int) -> None:
    """A search of one query."""
    await many.search(data.queries[turn], K, **options)


async def batch(many: Collection, data: datasets.Dataset, options: dict[str, Any], turn: int) -> None:
    """A search of all queries."""
    await many.search_batch(data.queries, K, **options)


def nothing() -> None:
    """A task that does nothing."""


def built(folder: Path, data: datasets.Dataset) -> dict[str, Any]:
    """The settings of the collection, built where it is not there."""
    fields = ours.fields(folder.as_uri(), threads=1)
    if not folder.exists():
        fresh = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        rows = {"ids": data.ids, "vectors": data.base}
        anyio.run(partial(build, {**fields, "s5_portal": fresh.as_uri()}, [rows], shards=SHARDS))
        fresh.rename(folder)
    return fields


async def measured(fields: dict[str, Any], data: datasets.Dataset, names: list[str], tiny: bool) -> dict[str, Any]:
    """Microseconds of each engine."""
    single, batches = (3, 1) if tiny else (SINGLE, BATCHES)
    async with AsyncExitStack() as many_stack:
        stack = many_stack.enter_context(ExitStack())
        engines = {name: stack.enter_context(opened(name)) for name in names}
        many = {
            name: await many_stack.enter_async_context(await Collection.open(fields, engine=engine))
            for name, engine in engines.items()
        }
        for one in many.values():
            await one.warm()
        jobs = [Job(number, f"shard-{number}", nothing, tuple) for number in range(SHARDS)]
        no_op = await medians({name: lambda _, e=engine: run_all(e, jobs) for name, engine in engines.items()}, single)
        results: dict[str, Any] = {name: {"no_op_us": 1e6 * seconds} for name, seconds in no_op.items()}
        for kind, options in KINDS.items():
            of_one = await medians(
                {name: partial(one_search, one, data, options) for name, one in many.items()},
                min(single, len(data.queries) - 1),
            )
            of_many = await medians({name: partial(batch, one, data, options) for name, one in many.items()}, batches)
            for name in names:
                found = results[name][kind] = {"one_us": 1e6 * of_one[name]}
                found["batch_us_a_query"] = 1e6 * of_many[name] / len(data.queries)
                found["one_over_bound"] = of_one[name] / (no_op[name] + 2 * of_one["threads"])
                found["batch_over_threads"] = of_many[name] / of_many["threads"]
    return {"engines": results}


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__, rounds=3)
    rounds.add_engines_argument(parser, ENGINES)
    options = parser.parse_args()
    skipped = {} if importlib.util.find_spec("ray") else {"ray": "not installed: pip install ray"}
    # All ratios are to threads.
    names = ["threads", *(name for name in options.engines or ENGINES if name not in {"threads", *skipped})]
    source = datasets.prepare(options)
    data = datasets.open_set(source)
    parameters = {"rows": len(data.base), "dim": data.base.shape[1], "shards": SHARDS, "workers": WORKERS}
    results = rounds.ResultFile(options, "bench_engines", parameters, skipped)
    kept = Path(options.work.resolve(), "indexes", f"engines-{source.name}-{environment.library_print()}")
    fields = built(kept, data)
    for number in range(options.rounds):
        results.do(
            {"round": number, "engine": "fabstir"}, lambda: anyio.run(measured, fields, data, names, options.tiny)
        )
    runs = [{name: value for name, value in run.items() if name not in rounds.KEY} for run in results.runs]
    results.finish(curves.over_rounds(runs))


if __name__ == "__main__":
    main()
