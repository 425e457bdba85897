"""Integers of five thousand digits, which CPython refuses to write, and filters that take long to read."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from saving import PHRASE, rows

import fabstir_vectordb.session as session_module
from fabstir_vectordb import (
    InvalidConfigError,
    InvalidInputError,
    LoadOptions,
    SearchOptions,
    VectorDBConfig,
    VectorDBSession,
)

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]
GOOD: dict[str, Any] = {"s5_portal": "memory:", "user_seed_phrase": PHRASE, "session_id": "s"}
HUGE = 10**5000
BASE = rows(8, 4)


@pytest.fixture
async def session() -> AsyncIterator[VectorDBSession]:
    async with VectorDBSession.create(GOOD) as session:
        await session.add_batch([f"r{row}" for row in range(8)], BASE, [{"n": row} for row in range(8)])
        yield session


CALLS: dict[str, Callable[[VectorDBSession, int], Any]] = {
    "k": lambda s, huge: s.search(BASE[0], huge),
    "k of a batch": lambda s, huge: s.search_batch(BASE, huge),
    "timestamps": lambda s, huge: s.add_batch(["x"], BASE[:1], timestamps=[huge]),
    "expires_at": lambda s, huge: s.add_batch(["x"], BASE[:1], expires_at=[huge]),
    "on_conflict": lambda s, huge: s.add_batch(["x"], BASE[:1], on_conflict=huge),  # type: ignore[arg-type]
    "on_conflict of a save": lambda s, huge: s.save_to_s5(on_conflict=huge),  # type: ignore[arg-type]
    "sample": lambda s, huge: s.recall(huge),
    "keep": lambda s, huge: s.prune_history(huge),
    "memory_budget_mb": lambda s, huge: s.load_user_vectors(memory_budget_mb=huge, discard_unsaved=True),
    "metadata_merge": lambda s, huge: s.update_metadata("r1", {}, merge=huge),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("huge", [HUGE, -HUGE], ids=["large", "small"])
@pytest.mark.parametrize("call", CALLS)
async def test_an_integer_too_long_to_write_is_refused_as_any_other(
    session: VectorDBSession, call: str, huge: int
) -> None:
    with pytest.raises(InvalidInputError, match="got an integer of 16610 bits"):
        await CALLS[call](session, huge)
    assert await session.count() == 8


@pytest.mark.parametrize("huge", [HUGE, -HUGE], ids=["large", "small"])
@pytest.mark.parametrize(
    "option", ["threshold", "include_vectors", "ef_search", "exact", "nprobe", "recall_target", "mmr"]
)
async def test_no_option_of_a_search_is_so_long(session: VectorDBSession, option: str, huge: int) -> None:
    for ask in (session.search, session.search_batch):
        with pytest.raises(InvalidInputError, match=rf"{option} .* an integer of 16610 bits"):
            await ask(BASE[:1], 1, **{option: huge})  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=rf"{option} .* an integer of 16610 bits"):
        SearchOptions(**{option: huge})


def test_no_option_of_a_load_is_so_long() -> None:
    for option in ("lazy_load", "become_whole", "missing_ok", "discard_unsaved", "memory_budget_mb"):
        with pytest.raises(InvalidInputError, match=rf"{option} .* an integer of 16610 bits"):
            LoadOptions(**{option: HUGE})


@pytest.mark.parametrize("huge", [HUGE, -HUGE], ids=["large", "small"])
@pytest.mark.parametrize(
    "setting",
    [
        "memory_budget_mb", "cache_size_mb", "disk_cache_mb", "M", "ef_construction", "threads", "chunk_size",
        "timeout_s", "max_retries", "recall_target", "default_threshold", "metric", "memory", "disk_cache_dir",
    ],
)  # fmt: skip
def test_no_setting_is_so_long(setting: str, huge: int) -> None:
    with pytest.raises(InvalidConfigError, match=rf"{setting} .* an integer of 16610 bits"):
        VectorDBConfig(**GOOD, **{setting: huge})


async def test_a_window_longer_than_time_moves_no_row() -> None:
    for window in (HUGE, 1e308):
        async with VectorDBSession.create(GOOD, recent_window_s=window) as session:
            await session.add_batch([str(row) for row in range(100)], rows(100, 4), timestamps=np.zeros(100))
            assert (await session.optimize()).migrated == 0


async def test_a_filter_with_many_values_is_read_in_another_thread(
    session: VectorDBSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, large, threads = threading.get_ident(), {"n": {"$in": list(range(1, 20_000))}}, []
    real = session_module.is_large

    def read(filter: Any) -> Any:
        threads.append(threading.get_ident())
        return parse(filter)

    parse = session_module.parse_filter
    monkeypatch.setattr(session_module, "parse_filter", read)
    monkeypatch.setattr("fabstir_vectordb.index.incoming.parse_filter", read)
    assert real(large)
    for filter, elsewhere in ((large, True), ({"n": {"$in": [1, 2, 3, 4, 5, 6, 7]}}, False)):
        threads.clear()
        hits = await session.search(BASE[0], 8, filter=filter, threshold=None)
        assert len(hits) == 7
        assert len(await session.search(BASE[0], 8, SearchOptions(filter=filter, threshold=None))) == 7
        assert len(await session.search(BASE[0], 8, {"filter": filter, "threshold": None})) == 7
        assert len((await session.search_batch(BASE, 8, filter=filter, threshold=None))[0]) == 7
        assert len([hit async for hit in session.search_stream(BASE[0], filter=filter, threshold=None)]) == 7
        assert len([row async for row in session.scan(filter)]) == 7
        assert await session.count(filter) == 7
        assert len(await session.facets("n", filter)) == 7
        assert len(threads) == 8
        assert all((thread != here) is elsewhere for thread in threads)
    threads.clear()
    assert (await session.delete_by_metadata(large)).deleted_count == 7
    assert [thread != here for thread in threads] == [True]
