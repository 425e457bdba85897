"""Saves and loads over a link of 50 ms a request and 20 MB/s, and on a local directory: bytes, requests, seconds.

Rows have metadata; they are all recent or all historical, and either as given or normalised in float32. For lazy loads,
it measures the bytes until the first answer, the recall of that answer, and the memory after a thousand searches.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from harness import curves, datasets, ours, rounds
from harness.contract import K
from harness.link import BYTES_PER_S, LATENCY_S, PARALLEL, Link, LinkStore

from fabstir_vectordb import VectorDBSession

SEED = 20_261_124
DELTAS = 30
COLD_QUERIES = 10
#: New sessions whose first answers are compared with the exact answers.
FIRST_QUERIES = 100
SEARCHES = 1_000
CACHE_MB = 64
OLD_S = 1.0
CLOCK_S = 1_700_000_000.0


def settings(store: str) -> dict[str, Any]:
    """The settings of a measured session. Its clock stands still, so that all runs store the same bytes."""
    return {**ours.fields(store), "clock": lambda: CLOCK_S}


async def session_over(store: Path, link: Link | None, **fields: Any) -> VectorDBSession:
    """A session on a directory, behind a link if one is given.

    The keys are derived before counting starts, as Argon2id is not part of the transfer.
    """
    session = await VectorDBSession.create(**{**settings(store.as_uri()), **fields})
    await session.list_indexes()
    if link is not None:
        session._workspace.store = LinkStore(session._workspace.store, link)
        link.start_counting()
    return session


async def costs(link: Link, work: Callable[[], Awaitable[Any]]) -> dict[str, float]:
    """Seconds, bytes and requests of some work over a link."""
    link.start_counting()
    started = time.perf_counter()
    await work()
    traffic = link.traffic
    return {
        "seconds": time.perf_counter() - started,
        "mb": traffic.bytes / 1e6,
        "requests": traffic.requests,
        "uploads": traffic.uploads,
        "round_trips": traffic.round_trips,
    }


def near(base: Any, rows: Any, random: np.random.Generator) -> Any:
    """New rows near given rows of the set, like rows that a user adds."""
    noise = random.standard_normal((len(rows), base.shape[1])) * 0.02
    fresh = (base[rows] + noise).astype(np.float32)
    # If the set came as float16 and was widened, the new rows must be widened float16 too.
    return fresh.astype(np.float16).astype(np.float32) if _is_widened(base) else fresh


def _is_widened(base: Any) -> bool:
    return bool(np.array_equal(base[:100].astype(np.float16).astype(np.float32), base[:100]))


async def saves(
    link: Link, store: Path, base: Any, metadata: list[Any], historical: bool, deltas: int
) -> dict[str, Any]:
    """The first save of an index, then saves after small changes."""
    random = np.random.default_rng(SEED)
    results: dict[str, Any] = {}
    some = max(len(base) // 100, 1)
    async with await session_over(store, link) as session:
        ids = [str(row) for row in range(len(base))]
        await session.add_batch(ids, base, metadata, [OLD_S] * len(base) if historical else None)
        if historical:
            await session.optimize()
        results["save"] = await costs(link, session.save_to_s5)
        results["save_unchanged"] = await costs(link, session.save_to_s5)
        shutil.copytree(store, store.with_suffix(".full"))
        shares = []
        for number in range(deltas):
            rows = random.integers(0, len(base), some)
            fresh = [f"new {number} {row}" for row in range(some)]
            await session.add_batch(fresh, near(base, rows, random), [metadata[row] for row in rows])
            cost = await costs(link, session.save_to_s5)
            results.setdefault("save_after_adding", cost)
            shares.append(cost["mb"] / results["save"]["mb"])
        results["added_mb_over_full_mean"], results["added_mb_over_full_max"] = float(np.mean(shares)), max(shares)
        gone = random.choice(len(base), some, replace=False)
        for row in gone:
            await session.delete_vector(str(row))
        results["save_after_deleting"] = await costs(link, session.save_to_s5)
        left = np.setdiff1d(np.arange(len(base)), gone)
        for row in random.choice(left, some, replace=False):
            await session.update_metadata(str(row), {"changed": True}, merge=True)
        results["save_after_changing"] = await costs(link, session.save_to_s5)
    for name in ("adding", "deleting", "changing"):
        results[f"{name}_mb_over_full"] = results[f"save_after_{name}"]["mb"] / results["save"]["mb"]
    return results


async def loads(link: Link, store: Path, queries: Any, nearest: Any, first: int) -> dict[str, Any]:
    """First answers of new sessions, further answers of one session, and a full load."""
    results: dict[str, Any] = {}
    answers, found = [], 0
    for query, true in zip(queries[:first], nearest[:first], strict=True):
        async with await session_over(store, link) as session:
            hits: list[Any] = []

            async def answer(session: VectorDBSession = session, query: Any = query, hits: list[Any] = hits) -> None:
                await session.load_user_vectors()
                hits.extend(await session.search(query, K, threshold=None))
                _ = [hit.metadata for hit in hits]

            answers.append(await costs(link, answer))
            found += len({hit.id for hit in hits} & {str(row) for row in true[:K]})
    results["first_answer"] = {name: float(np.mean([one[name] for one in answers])) for name in answers[0]}
    results["first_answer_round_trips_max"] = max(one["round_trips"] for one in answers)
    results["first_answer_recall"] = found / (K * first)
    async with await session_over(store, link) as session:
        await session.load_user_vectors()
        await session.search(queries[0], K)

        async def more() -> None:
            for query in queries[1 : 1 + COLD_QUERIES]:
                await session.search(query, K)

        results["cold_queries"] = await costs(link, more)
    async with await session_over(store, link) as session:
        results["full_load"] = await costs(link, lambda: session.load_user_vectors(lazy_load=False))
    for name in ("mb", "seconds"):
        results[f"first_answer_{name}_over_full"] = results["first_answer"][name] / results["full_load"][name]
    return results


async def on_disk(store: Path, queries: Any, raw_bytes: int, searches: int) -> dict[str, float]:
    """Loads and a save on a local directory, compared with copying it; and the memory of a lazily loaded index."""
    results: dict[str, float] = {}
    copy = store.with_suffix(".copy")
    started = time.perf_counter()
    shutil.copytree(store, copy)
    results["copy_s"] = time.perf_counter() - started
    shutil.rmtree(copy)
    for name, lazy in (("lazy_load_s", True), ("full_load_s", False)):
        async with await session_over(store, None) as session:
            started = time.perf_counter()
            await session.load_user_vectors(lazy_load=lazy)
            results[name] = time.perf_counter() - started
            if not lazy:
                again = store.with_suffix(".again")
                session._workspace.store = (await session_over(again, None))._workspace.store
                session._workspace._lineage.base = None
                started = time.perf_counter()
                await session.save_to_s5(on_conflict="overwrite")
                results["save_s"] = time.perf_counter() - started
                shutil.rmtree(again)
    async with await session_over(store, None, cache_size_mb=CACHE_MB) as session:
        await session.load_user_vectors()
        for number in range(searches):
            await session.search(queries[number % len(queries)], K)
        stats = await session.get_stats()
        results["lazy_memory_over_raw"] = stats.memory_usage_mb * 1e6 / raw_bytes
    for name in ("lazy_load", "full_load", "save"):
        results[f"{name}_over_copy"] = results[f"{name}_s"] / max(results["copy_s"], 1e-3)
    return results


async def one_round(data: datasets.Dataset, metadata: list[Any], historical: bool, tiny: bool) -> dict[str, Any]:
    """One round: saves, loads over the link, and loads from a directory."""
    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory, "store")
        link = Link(latency_s=0.001) if tiny else Link()
        found = {"saves": await saves(link, store, data.base, metadata, historical, 3 if tiny else DELTAS)}
        full = store.with_suffix(".full")
        found["loads"] = await loads(link, full, data.queries, data.neighbours, 3 if tiny else FIRST_QUERIES)
        found["disk"] = await on_disk(full, data.queries, data.base.nbytes, 20 if tiny else SEARCHES)
        return found


def main() -> None:
    """Command line entry point."""
    options = datasets.parser(__doc__, rounds=1).parse_args()
    folder = datasets.prepare(options)
    # Rows of length 1 in float32, like the output of models without rounding.
    normalised = datasets.open_set(folder)
    given = normalised._replace(base=datasets.open_stored(folder))
    metadata = datasets.texts(folder) or [{"text": f"row {row}"} for row in range(len(given.base))]
    parameters = {
        "rows": len(given.base), "dim": given.base.shape[1], "latency_s": LATENCY_S, "bytes_per_s": BYTES_PER_S,
        "parallel": PARALLEL,
    }  # fmt: skip
    results = rounds.ResultFile(options, "bench_link", parameters, {})
    runs: dict[str, list[Any]] = {}
    for number in range(options.rounds):
        for mode in ("recent", "historical", "recent normalised", "historical normalised"):
            data = normalised if "normalised" in mode else given
            results.do(
                {"round": number, "engine": "fabstir", "mode": mode},
                lambda data=data, mode=mode: anyio.run(
                    one_round, data, metadata[: len(data.base)], "historical" in mode, options.tiny
                ),
            )
    for run in results.runs:
        runs.setdefault(run["mode"], []).append({name: run[name] for name in run if name not in rounds.KEY})
    results.finish({mode: curves.over_rounds(of_mode) for mode, of_mode in runs.items()})


if __name__ == "__main__":
    main()
