"""A collection of few real shards, and one of 1,000 whose shards are aliases of those: recall, routes, fan-out, root.

The store is a directory that counts requests and bytes, and lets each request wait for a latency and for its bytes. An
alias is a shard of the root that names the share CID of a real shard, with the real centroids moved a little. So root,
routes, fan-out and merging are those of 1,000 shards, while the rows that are searched are those of the real ones.

Cold searches are those of lazily opened shards without a cached part, beside one lazily loaded index of the same rows.
What opening takes is counted with the first of them.

    python benchmarks/bench_collection.py --data DIR --grown 1000000 --engine ray

measures something else: so many rows, grown from the set by harness/grow.py, in 8 shards on two workers through the
portal, opened by share; beside one index of the same rows, and beside the plan that a tenth of them gives.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from harness import curves, datasets, environment, grow, grown_collection, ours, rounds
from harness.contract import K
from harness.link import BYTES_PER_S, LATENCY_S

from fabstir_vectordb import VectorDBSession
from fabstir_vectordb.collections import Collection, build, measure, open_shards, plan
from fabstir_vectordb.collections.placement import place, sampler_of, scale_of
from fabstir_vectordb.collections.root import Snapshot, read_root, write_root
from fabstir_vectordb.collections.routing import Centroids
from fabstir_vectordb.collections.rows import take_batches
from fabstir_vectordb.collections.sampling import digests_of
from fabstir_vectordb.storage.base import AtMost
from fabstir_vectordb.storage.local_dir import LocalDirStore

SEED = 20_261_127
SHARDS = 8
ALIASES = 1_000
#: Divisions of the rows whose routes are measured, without a shard that is built.
ROUTED = (8, 32, 256)
#: Of the 1,000 shards.
ASKED = (1, 16, 64, 256, 1_000)
SEARCHES = 20
COLD_SEARCHES = 200


class Delays:
    """Counts the reads of all directories of this process, and lets them wait."""

    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s
        self.requests = 0
        self.bytes = 0
        self._lock = threading.Lock()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While it is open, reads are counted and wait."""
        real, delays = LocalDirStore.get, self

        async def get(self: LocalDirStore, hash: bytes, size: int | AtMost) -> bytes:
            raw = await real(self, hash, size)
            await delays.carried(len(raw))
            return raw

        LocalDirStore.get = get  # type: ignore[method-assign]
        try:
            yield
        finally:
            LocalDirStore.get = real  # type: ignore[method-assign]

    async def carried(self, size: int) -> None:
        """Counts a request, and waits as long as it takes."""
        with self._lock:
            self.requests += 1
            self.bytes += size
        await anyio.sleep(self.latency_s + size / BYTES_PER_S)

    def taken(self) -> tuple[int, int]:
        """Requests and bytes since the last call."""
        with self._lock:
            found = self.requests, self.bytes
            self.requests = self.bytes = 0
        return found


def recall(found: Sequence[Any], neighbours: Any) -> float:
    """The share of the nearest rows among the hits."""
    pairs = zip(found, neighbours[: len(found)], strict=True)
    sets = [({hit.id for hit in hits}, {str(row) for row in near[:K]}) for hits, near in pairs]
    return sum(len(one & other) for one, other in sets) / (K * len(sets))


def batch_of(data: datasets.Dataset) -> dict[str, Any]:
    """The rows of a set as arguments of add_batch, with short texts as metadata."""
    rows = len(data.base)
    return {
        "ids": data.ids,
        "vectors": data.base,
        "metadata": [{"text": f"row number {row}"} for row in range(rows)],
        "timestamps": [0.0] * rows,
    }


async def real_shards(fields: dict[str, Any], data: datasets.Dataset, delays: Delays) -> dict[str, Any]:
    """A collection of the set: build, recall by shards asked, what a cold and a warm search take."""
    started = time.perf_counter()
    await build(fields, [batch_of(data)], shards=SHARDS)
    results: dict[str, Any] = {"build_s": time.perf_counter() - started, "recall": {}}
    queries = data.queries[: 10 * SEARCHES]
    async with await Collection.open(fields) as many:
        delays.taken()
        started = time.perf_counter()
        await many.search(queries[0], K, recall_target=0.95, threshold=None)
        results["cold_s"] = time.perf_counter() - started
        results["cold_requests"], results["cold_bytes"] = delays.taken()
        await many.warm()
        for count in range(1, SHARDS + 1):
            found = await many.search_batch(queries, K, shards=count, recall_target=0.95, threshold=None)
            results["recall"][str(count)] = recall(found, data.neighbours)
        results["asked"] = len((await many.search(queries[0], K, recall_target=0.95)).shards)
        results["search_s"] = await seconds_of_searches(many, queries, None)
        results["sizes"] = [shard.rows for shard in (await many.stats()).shards]
    return results


async def seconds_of_searches(many: Collection, queries: Any, asked: int | None) -> float:
    """The median of some searches at a recall of 0.95."""
    taken = []
    for query in queries[:SEARCHES]:
        started = time.perf_counter()
        await many.search(query, K, shards=asked, recall_target=0.95, threshold=None)
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def open_indexes(many: Collection | VectorDBSession) -> list[Any]:
    """The indexes that this process has open for a collection, or the one of a session."""
    if isinstance(many, VectorDBSession):
        return [many._runtime.index]
    entries = open_shards._shards._entries.values()
    return [entry.session._verbs._runtime.index for entry in entries if entry.session is not None]


async def cold_searches(
    many: Collection | VectorDBSession, data: datasets.Dataset, delays: Delays, count: int
) -> dict[str, Any]:
    """What searches take whose parts are all in the store, once the first one has opened what it needs."""
    started = time.perf_counter()
    await many.search(data.queries[0], K, threshold=None)
    results: dict[str, Any] = {"first_s": time.perf_counter() - started}
    results["first_requests"], size = delays.taken()
    results["first_mb"] = size / 1e6
    found, taken = [], []
    for query in data.queries[:count]:
        for index in open_indexes(many):
            index.forget_caches()
        started = time.perf_counter()
        hits = await many.search(query, K, threshold=None)
        _ = [hit.metadata for hit in hits]
        taken.append(time.perf_counter() - started)
        found.append(hits)
    requests, size = delays.taken()
    for index in open_indexes(many):
        index.forget_caches()
    results["resident_bytes_a_row"] = sum(index.held_bytes for index in open_indexes(many)) / len(data.base)
    return results | {
        "requests": requests / len(found),
        "mb": size / 1e6 / len(found),
        "search_s": float(np.median(taken)),
        "recall": recall(found, data.neighbours),
    }


async def lazily(fields: dict[str, Any], data: datasets.Dataset, delays: Delays, count: int) -> dict[str, Any]:
    """Cold searches of one index and of collections with the same rows, by route."""
    one = {**fields, "index_name": "one"}
    async with await VectorDBSession.create(**one) as session:
        await session.add_batch(**batch_of(data))
        await session.save_to_s5()
    delays.taken()
    async with await VectorDBSession.create(**one) as session:
        await session.load_user_vectors(become_whole=False)
        results = {"one": await cold_searches(session, data, delays, count)}
    hashed = {**fields, "index_name": "hashed"}
    await build(hashed, [batch_of(data)], shards=SHARDS, route="hash")
    for name, settings in (("nearest", fields), ("hash", hashed)):
        delays.taken()
        async with await Collection.open(settings, become_whole=False) as many:
            results[name] = await cold_searches(many, data, delays, count)
    for name in ("nearest", "hash"):
        for what in ("requests", "mb"):
            results[name][f"{what}_over_one"] = results[name][what] / max(results["one"][what], 1e-9)
    return results


def aliased(real: Snapshot, count: int) -> Snapshot:
    """A snapshot of so many shards, all of which are real ones."""
    assert real.centroids is not None
    random = np.random.default_rng(SEED)
    numbers = sorted(real.shards)
    shards, vectors, owners = {}, [], []
    for number in range(count):
        source = numbers[number % len(numbers)]
        shards[number] = replace(real.shards[source], number=number)
        own = real.centroids.vectors[real.centroids.shards == source]
        vectors.append(own + random.normal(0.0, 0.01, own.shape).astype(np.float32))
        owners.append(np.full(len(own), number, dtype=np.intp))
    centroids = Centroids(np.concatenate(vectors), np.concatenate(owners), real.centroids.metric, real.centroids.scale)
    return Snapshot(replace(real.settings, next_shard=count, curve=()), shards, centroids)


async def many_shards(fields: dict[str, Any], data: datasets.Dataset, delays: Delays, count: int) -> dict[str, Any]:
    """The same collection with a root of many shards: its size, opening it, and searches by shards asked."""
    other = {**fields, "index_name": "aliased"}
    async with await VectorDBSession.create(**fields) as session:
        await session.load_user_vectors(lazy_load=False)
        snapshot = aliased(await read_root(session), count)
    async with await VectorDBSession.create(**other) as session:
        started = time.perf_counter()
        await write_root(session, None, snapshot)
        await session.save_to_s5()
        results: dict[str, Any] = {"root_write_s": time.perf_counter() - started}
        results["root_mb"] = (await session.verify()).bytes / 1e6
    delays.taken()
    started = time.perf_counter()
    async with await Collection.open(other) as many:
        results["root_open_s"] = time.perf_counter() - started
        requests, size = delays.taken()
        results |= {"root_open_requests": requests, "root_open_mb": size / 1e6}
        await many.warm()
        started = time.perf_counter()
        snapshot.centroids.ranked(data.queries[:1])  # type: ignore[union-attr]
        results["route_s"] = time.perf_counter() - started
        results["search_s"] = {
            str(asked): await seconds_of_searches(many, data.queries, asked)
            for asked in sorted({min(asked, count) for asked in ASKED})
        }
    return results


def routes(data: datasets.Dataset, shards: int) -> dict[str, Any]:
    """The share of the nearest rows that the most promising of so many shards have, and the sizes of these."""
    rows = take_batches([{**batch_of(data), "metadata": None}], 0)
    sampler = sampler_of("nearest", shards)
    sampler.add(rows, digests_of(rows.ids))
    sample, numbers = sampler.sample(), range(shards)
    started = time.perf_counter()
    division = place("nearest", [rows], sample, numbers, "cosine", scale_of(sample), list)
    assert division.centroids is not None
    results: dict[str, Any] = {"divide_s": time.perf_counter() - started, "share": {}}
    (homes,) = division.homes
    ranked = division.centroids.ranked(data.queries)
    places = (ranked[:, np.newaxis, :] == homes[data.neighbours[:, :K]][:, :, np.newaxis]).argmax(axis=2)
    for asked in (1, 2, 3, 4, 6, 8, 16, 32):
        if asked <= len(division.numbers):
            results["share"][str(asked)] = float((places < asked).mean())
    sizes = np.bincount(homes)
    return results | {"rows_min": int(sizes.min()), "rows_max": int(sizes.max())}


async def planned(fields: dict[str, Any], rows: int) -> dict[str, Any]:
    """What a plan from the collection's own figures says of the collection, and of a billion rows."""
    measured = await measure(fields)
    same = plan(measured, rows=rows, qps=1, shard_rows=measured.shard_rows)
    large = plan(measured, rows=1e9, qps=500)
    without = ("modelled",)
    return {
        "measured": measured.to_dict(),
        "same": {name: value for name, value in same.to_dict().items() if name not in without},
        "large": {name: value for name, value in large.to_dict().items() if name not in without},
    }


async def one_round(data: datasets.Dataset, tiny: bool) -> dict[str, Any]:
    """All of it, on a fresh directory."""
    delays = Delays(0.001 if tiny else LATENCY_S)
    with tempfile.TemporaryDirectory() as directory, delays.applied():
        fields = ours.fields(Path(directory).as_uri()) | {"index_name": "real"}
        return {
            "real": await real_shards(fields, data, delays),
            "aliased": await many_shards(fields, data, delays, 40 if tiny else ALIASES),
            "routes": {str(count): routes(data, count) for count in ((4,) if tiny else ROUTED)},
            "lazy": await lazily(fields, data, delays, 3 if tiny else COLD_SEARCHES),
            "plan": await planned(fields, len(data.base)),
        }


def grown(options: argparse.Namespace) -> None:
    """A collection of many rows through the portal; see harness/grown_collection.py."""
    source = datasets.prepare(options)
    seed_rows, dim = datasets.shape(source)
    folder = grow.folder_of(options.work, source, seed_rows, options.grown)
    grow.write_sets({options.grown: folder}, source, seed_rows)
    parameters = {
        "rows": options.grown, "seed_rows": seed_rows, "dim": dim, "shards": grown_collection.SHARDS,
        "workers": grown_collection.WORKERS, "recall_target": grown_collection.TARGET, "engine": options.engine,
    }  # fmt: skip
    results = rounds.ResultFile(options, "bench_collection_grown", parameters, {})
    root = Path(
        options.work.resolve(), "indexes", f"portal-{folder.name}-{options.engine}-{environment.library_print()}"
    )
    if not results.runs:
        shutil.rmtree(root, ignore_errors=True)
    summary = {}
    with grown_collection.portal(root) as store:
        for mode in ("build_collection", "search_collection", "one_index", "plan_and_truth"):
            share = str(root.with_suffix(".share"))
            job = rounds.job(options, mode, folder, options.engine, grown_collection.WORKERS, store=store, share=share)
            done = results.run({"round": 0, "engine": options.engine, "mode": mode}, job)
            summary[mode] = {name: value for name, value in done.items() if name not in rounds.KEY}
    results.finish(summary)


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__, rounds=1)
    parser.add_argument("--grown", type=int, metavar="ROWS", help="instead: so many grown rows through the portal")
    parser.add_argument("--engine", choices=("threads", "ray"), default="threads", help="of --grown")
    options = parser.parse_args()
    if options.grown:
        grown(options)
        return
    data = datasets.load(options)
    parameters = {
        "rows": len(data.base), "dim": data.base.shape[1], "shards": SHARDS, "aliases": ALIASES,
        "latency_s": LATENCY_S, "bytes_per_s": BYTES_PER_S,
    }  # fmt: skip
    results = rounds.ResultFile(options, "bench_collection", parameters, {})
    for number in range(options.rounds):
        results.do({"round": number, "engine": "fabstir"}, lambda: anyio.run(one_round, data, options.tiny))
    runs = [{name: value for name, value in run.items() if name not in rounds.KEY} for run in results.runs]
    results.finish(curves.over_rounds(runs))


if __name__ == "__main__":
    main()
