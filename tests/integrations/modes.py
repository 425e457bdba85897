"""The three ways in which each suite runs: in memory, after save and load, and lazily.

In the second and third way, a store is saved and opened again before every call. A lazy load of a small index fetches
it whole. So the third way begins with an index that is large enough, whose rows have the metadata ``filler``: the
tests' stores leave them out by a filter, as if they were another user's.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from fabstir_vectordb import VectorDBSession, new_seed_phrase, sync
from fabstir_vectordb.index import LazyIndex
from fabstir_vectordb.integrations.shared import TEXT, Operation, SharedSession, Store

_T = TypeVar("_T")

MODES = ("memory", "saved", "lazy")
#: The modes as parameters of a test that is quick in memory.
LONG_MODES = [pytest.param(mode, marks=() if mode == "memory" else pytest.mark.long) for mode in MODES]
#: Other secrets than a phrase would cost a key derivation a store.
PHRASE = new_seed_phrase()
#: What makes a load lazy: bytes enough, rows enough for codes, and rows in clusters, which codes of one bit tell apart.
FILLER_BYTES = 7_500_000
FILLER_ROWS = 1_200
NO_FILLER = {"filler": {"$exists": False}}


@pytest.fixture
def anyio_backend() -> str:
    """Frameworks run on asyncio alone."""
    return "asyncio"


class Reopened:
    """A `SharedSession` that is saved and loaded again before every call."""

    def __init__(self, inner: SharedSession, lazily: bool) -> None:
        self._inner = inner
        self._lazily = lazily
        self.calls = 0
        self.lazy_calls = 0

    def _reopening(self, operation: Operation[_T]) -> Operation[_T]:
        async def reopened(session: VectorDBSession) -> _T:
            stats = await session.get_stats()
            if stats.dirty or stats.last_cid is None:
                await session.save_to_s5()
            await session.load_user_vectors(lazy_load=self._lazily, become_whole=False)
            self.calls += 1
            self.lazy_calls += isinstance(session._runtime.index, LazyIndex)
            return await operation(session)

        return reopened

    def run(self, operation: Operation[_T]) -> _T:
        return self._inner.run(self._reopening(operation))

    async def arun(self, operation: Operation[_T]) -> _T:
        return await self._inner.arun(self._reopening(operation))

    def close(self) -> None:
        self._inner.close()

    async def aclose(self) -> None:
        await self._inner.aclose()


class Hidden:
    """Base of the tests' stores: the filler is in no answer."""

    def _where(self, *given: Any) -> Mapping[str, Any] | None:
        where = super()._where(*given)  # type: ignore[misc]  # the adapter is the next base
        return NO_FILLER if where is None else {"$and": [where, NO_FILLER]}


def check_mode(store: Store, mode: str) -> None:
    """Checks that the calls of a store found its index as the mode says."""
    shared = store._shared
    if isinstance(shared, Reopened) and shared.calls:
        assert (shared.lazy_calls > 0) is (mode == "lazy")
    else:
        assert mode == "memory" or isinstance(shared, Reopened)


def settings(mode: str, folder: Path, dim: int, **others: Any) -> dict[str, Any]:
    """The settings of a store for a mode; `reopen` is called with the store made of them."""
    if mode == "lazy":
        shutil.copytree(_filler(folder.parent, dim), folder / "store")
    portal = "memory:" if mode == "memory" else (folder / "store").as_uri()
    return {"s5_portal": portal, "user_seed_phrase": PHRASE, "session_id": "tests", **others}


def reopen(store: Store, mode: str) -> None:
    """Makes a new store open its index again before every call."""
    if mode == "lazy":
        store.load()
    if mode != "memory":
        store._shared = Reopened(store._shared, mode == "lazy")  # type: ignore[assignment]


@cache
def _filler(folder: Path, dim: int) -> Path:
    """A folder with a saved index of filler of one dimension."""
    path = folder / f"filler-{dim}"
    choice, seeded = random.Random(dim), np.random.default_rng(dim)
    middles = seeded.standard_normal((60, dim)) * 1.5
    vectors = (middles[seeded.integers(0, 60, FILLER_ROWS)] + seeded.standard_normal((FILLER_ROWS, dim))).astype("f4")
    size = max(0, FILLER_BYTES - vectors.nbytes) // FILLER_ROWS
    metadata = [{"filler": choice.randbytes(size).hex()} for _ in range(FILLER_ROWS)]
    with sync.VectorDBSession.create(
        s5_portal=path.as_uri(), user_seed_phrase=PHRASE, session_id="filler", text_fields=TEXT, memory_budget_mb=2_048
    ) as session:
        session.add_batch([f"filler-{row}" for row in range(FILLER_ROWS)], vectors, metadata)
        session.save_to_s5()
    return path
