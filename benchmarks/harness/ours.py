"""fabstir_vectordb through its public interface, as an Engine and as a Database."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import anyio
from anyio.from_thread import start_blocking_portal

import fabstir_vectordb
from fabstir_vectordb import sync
from harness.contract import EF, EF_AFTER_BUILD, PROBES, Database, Engine, K, Setting

BUDGET_MB = 16_384
#: A phrase as S5 makes them: another secret would be stretched for half a second in each session that needs keys.
PHRASE = "certain down through style catch quality land oxygen ego energy grade various code murder pound"


def fields(store: str, threads: int | None = None, memory: str = "default") -> dict[str, Any]:
    """Settings of a measured session."""
    return {
        "s5_portal": store,
        "user_seed_phrase": PHRASE,
        "session_id": "bench",
        "memory_budget_mb": BUDGET_MB,
        "threads": threads,
        "memory": memory,
    }


class Fabstir(Engine):
    """The synchronous session: one search call for each query, with ids read from the hits."""

    memory = "default"

    def build(self, base: Any, threads: int) -> None:
        self._store = self.scratch / "store"
        self._session = sync.VectorDBSession.create(**fields(self._store.absolute().as_uri(), threads, self.memory))
        self._session.add_batch([str(row) for row in range(len(base))], base)

    def save(self, path: Path) -> None:
        self._session.save_to_s5()
        self._session.destroy()
        shutil.move(self._store, path)

    def load(self, path: Path, rows: int, dim: int, threads: int) -> None:
        self._session = sync.VectorDBSession.create(**fields(path.absolute().as_uri(), threads, self.memory))
        self._session.load_user_vectors(lazy_load=False)

    def families(self) -> list[list[Setting]]:
        return [[{"ef_search": ef} for ef in EF]]

    def setting_after_build(self) -> Setting:
        return {"ef_search": EF_AFTER_BUILD}

    def use(self, setting: Setting) -> None:
        self._setting = setting

    def one(self, query: Any) -> list[str]:
        return [hit.id for hit in self._session.search(query, K, threshold=None, **self._setting)]

    def batch(self, queries: Any, threads: int) -> list[list[str]]:
        found = self._session.search_batch(queries, K, threshold=None, **self._setting)
        return [[hit.id for hit in hits] for hits in found]

    def add_one(self, number: int, vector: Any) -> None:
        self._session.add_batch([str(number)], vector[None])


class FabstirFast(Fabstir):
    """The synchronous session with memory="fast"."""

    memory = "fast"


class FabstirCompact(Fabstir):
    """The synchronous session with memory="compact"."""

    memory = "compact"


class FabstirLists(Fabstir):
    """A session whose rows are all historical: lists alone."""

    def build(self, base: Any, threads: int) -> None:
        self._store = self.scratch / "store"
        settings = fields(self._store.absolute().as_uri(), threads) | {"clock": lambda: 1e9}
        rows = (fabstir_vectordb.VectorInput(str(row), vector) for row, vector in enumerate(base))
        self._session = sync.VectorDBSession.from_parts(settings, historical=rows)

    def families(self) -> list[list[Setting]]:
        return [[{"nprobe": nprobe} for nprobe in PROBES]]

    def setting_after_build(self) -> Setting:
        return {}


class FabstirFlat(Fabstir):
    """A session with exact searches."""

    def families(self) -> list[list[Setting]]:
        return [[{"exact": True}]]

    def one(self, query: Any) -> list[str]:
        hits = self._session.search(query, K, threshold=None, **self._setting)
        _check_flat(hits)
        return [hit.id for hit in hits]

    def batch(self, queries: Any, threads: int) -> list[list[str]]:
        found = self._session.search_batch(queries, K, threshold=None, **self._setting)
        _check_flat(found[0])
        return [[hit.id for hit in hits] for hits in found]


def _check_flat(hits: fabstir_vectordb.SearchResults) -> None:
    if hits.plan != "flat":
        raise RuntimeError(f"the search was to scan all rows, but its plan was {hits.plan}")


class FabstirDatabase(Database):
    """The asynchronous session, with ids and metadata read from every hit."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._context = start_blocking_portal()
        self._loop = self._context.__enter__()

    def add(self, base: Any, metadata: list[dict[str, str]]) -> None:
        self._session = self._loop.call(self._open)
        self._loop.call(self._session.add_batch, [str(row) for row in range(len(base))], base, metadata)

    async def _open(self) -> fabstir_vectordb.VectorDBSession:
        return await fabstir_vectordb.VectorDBSession.create(**fields(self.path.absolute().as_uri()))

    def store(self) -> None:
        self._loop.call(self._session.save_to_s5)

    def settings(self) -> list[Setting]:
        return [{}, *({"ef_search": ef} for ef in (48, 100, 160, 240, 400))]

    def answer(self, queries: Any, setting: Setting) -> tuple[list[list[str]], list[float]]:
        return self._loop.call(self._answer, queries, setting)

    async def _answer(self, queries: Any, setting: Setting) -> tuple[list[list[str]], list[float]]:
        found, micros = [], []
        for query in queries:
            before = time.perf_counter_ns()
            hits = [(hit.id, hit.metadata) for hit in await self._session.search(query, K, threshold=None, **setting)]
            micros.append((time.perf_counter_ns() - before) / 1e3)
            found.append([id for id, _ in hits])
        await anyio.lowlevel.checkpoint()
        return found, micros

    def close(self) -> None:
        self._loop.call(self._session.destroy)
        self._context.__exit__(None, None, None)
