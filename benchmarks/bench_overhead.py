"""Microseconds of one search by stage: the native call, and what Python adds, synchronous and asynchronous.

The set has few rows and the search few candidates, so that the graph walk is short and the overhead shows. Stages take
turns. The fastest of many repetitions counts, as slower ones include noise of the machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from harness import curves, datasets, ours, rounds

from fabstir_vectordb import SearchResults, VectorDBSession
from fabstir_vectordb._native.library import ffi, lib
from fabstir_vectordb._native.search import _Answer
from fabstir_vectordb.metadata.values import decode_metadata, encode_metadata
from fabstir_vectordb.sync import VectorDBSession as SyncSession

ROWS = 2_000
K = 10
EF = 10
REPETITIONS = 30

Stage = Callable[[int], Awaitable[None]]


def metadata_of(row: int) -> dict[str, str]:
    """Metadata like that of the WordNet set."""
    return {"text": f"a made up definition of a word, number {row}", "lexname": "noun.artifact", "pos": "n"}


def ids(hits: SearchResults) -> list[str]:
    """Reads the id of every hit."""
    return [hit.id for hit in hits]


def ids_and_metadata(hits: SearchResults) -> list[Any]:
    """Reads id and metadata of every hit."""
    return [(hit.id, hit.metadata) for hit in hits]


def plain(call: Callable[[], object]) -> Stage:
    """A stage that calls a function."""

    async def stage(count: int) -> None:
        for _ in range(count):
            call()

    return stage


def native_call(session: VectorDBSession, query: Any) -> Callable[[], object]:
    """A call of the C function with prepared arguments."""
    native = session._runtime.index.native
    assert native is not None
    search, answer = lib.fvdb_search_one, _Answer(K)
    answer.ask((K, EF, False, False, 0, -math.inf))
    pointer = ffi.from_buffer("float[]", query)
    return lambda: search(native._index, pointer, answer.params, answer.c)


def stages(sync: SyncSession, session: VectorDBSession, described: VectorDBSession, query: Any) -> dict[str, Stage]:
    """The measured stages; rows of `described` have metadata."""
    options: dict[str, Any] = {"threshold": None, "ef_search": EF}
    stored = [encode_metadata(metadata_of(row)) or b"" for row in range(K)]

    def asynchronous(session: VectorDBSession, read: Callable[[SearchResults], object]) -> Stage:
        async def stage(count: int) -> None:
            for _ in range(count):
                read(await session.search(query, K, **options))

        return stage

    return {
        "native": plain(native_call(session, query)),
        "sync": plain(lambda: sync.search(query, K, **options)),
        "sync_ids": plain(lambda: ids(sync.search(query, K, **options))),
        "async": asynchronous(session, lambda hits: None),
        "async_ids": asynchronous(session, ids),
        "with_metadata_async_ids": asynchronous(described, ids),
        "with_metadata_async_ids_metadata": asynchronous(described, ids_and_metadata),
        "decode": plain(lambda: [decode_metadata(raw) for raw in stored]),
    }


async def one_round(data: datasets.Dataset, count: int, sync: SyncSession) -> dict[str, float]:
    """Least microseconds of each stage."""
    async with (
        await VectorDBSession.create(**ours.fields("memory:")) as session,
        await VectorDBSession.create(**ours.fields("memory:")) as described,
    ):
        await session.add_batch(data.ids, data.base)
        await described.add_batch(data.ids, data.base, [metadata_of(row) for row in range(len(data.base))])
        least: dict[str, float] = {}
        measured = stages(sync, session, described, data.queries[0])
        for _ in range(REPETITIONS):
            for name, stage in measured.items():
                before = time.perf_counter_ns()
                await stage(count)
                micros = (time.perf_counter_ns() - before) / 1e3 / count
                least[name] = min(micros, least.get(name, micros))
        return least


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__)
    parser.add_argument("--count", type=int, default=1_000, help="searches per repetition, default 1000")
    options = parser.parse_args()
    options.rows = options.rows or ROWS
    data = datasets.load(options)
    parameters = {"rows": len(data.base), "dim": data.base.shape[1], "k": K, "ef_search": EF, "count": options.count}
    results = rounds.ResultFile(options, "bench_overhead", parameters, {})
    with SyncSession.create(**ours.fields("memory:")) as sync, rounds.Pinned(1):
        sync.add_batch(data.ids, data.base)
        for number in range(options.rounds):
            results.do({"round": number, "engine": "fabstir"}, lambda: anyio.run(one_round, data, options.count, sync))
    runs = [{name: value for name, value in run.items() if name not in rounds.KEY} for run in results.runs]
    results.finish(curves.over_rounds(runs))


if __name__ == "__main__":
    main()
