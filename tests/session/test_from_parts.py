"""A session made of the rows of both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from saving import PHRASE, session_on

from fabstir_vectordb import ConflictError, InvalidConfigError, InvalidInputError, VectorDBSession, VectorInput, sync

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

NOW, WEEK = 1_700_000_000.0, 604_800.0
FIELDS: dict[str, Any] = {
    "s5_portal": "memory:", "user_seed_phrase": PHRASE, "session_id": "test", "clock": lambda: NOW,
}  # fmt: skip


def vectors(count: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, 12)).astype(np.float32)


async def content(session: VectorDBSession) -> dict[str, Any]:
    return {
        row.id: (None if row.vector is None else row.vector.tobytes(), row.metadata, row.timestamp, row.expires_at)
        async for row in session.scan()
    }


async def test_the_parts_of_a_session_make_another_like_it() -> None:
    async with await session_on("memory:", clock=lambda: NOW) as session:
        times = [NOW - (2 * WEEK if row < 900 else row) for row in range(3_000)]
        some = [None if row == 2_999 else vector for row, vector in enumerate(vectors(3_000))]
        expires = [NOW + 5 if row == 7 else None for row in range(3_000)]
        await session.add_batch([f"r{row}" for row in range(3_000)], some, [{"n": n} for n in range(3_000)], times,
                                expires_at=expires)  # fmt: skip
        await session.optimize()
        recent, historical = await session.get_recent_index(), await session.get_historical_index()
        parts = {
            "recent": [row for row in await session.get(recent.ids) if row],
            "historical": [row for row in await session.get(historical.ids) if row],
            "timestamps": await session.get_timestamps(),
        }
        expected, query = await content(session), vectors(1)[0]
        exact = [hit.id for hit in await session.search(query, 20, exact=True, threshold=None)]
    async with await VectorDBSession.from_parts(FIELDS, **parts) as made:
        assert await content(made) == expected
        assert set((await made.get_recent_index()).ids) == set(recent.ids)
        assert set((await made.get_historical_index()).ids) == set(historical.ids)
        assert [hit.id for hit in await made.search(query, 20, exact=True, threshold=None)] == exact
        assert (await made.search(query, 20, threshold=None)).plan == "hybrid"
        assert (await made.get_stats()).dirty
        # Sides by age again: nothing is older than the window but what is historical.
        assert (await made.optimize()).migrated == 0


async def test_sides_are_as_said_whatever_the_age() -> None:
    rows = [VectorInput(f"r{row}", vector) for row, vector in enumerate(vectors(400))]
    times = {f"r{row}": NOW - row for row in range(400)}
    parts = {"recent": rows[:100], "historical": rows[100:], "timestamps": times}
    async with await VectorDBSession.from_parts(**parts, **FIELDS) as made:
        assert set((await made.get_historical_index()).ids) == {f"r{row}" for row in range(100, 400)}
        assert await made.get_timestamps() == times
    async with await VectorDBSession.from_parts(historical=rows[:20], **FIELDS) as made:
        assert (await made.get_historical_index()).vector_count == 0
        assert await made.count() == 20
    async with await VectorDBSession.from_parts(**FIELDS) as made:
        assert await made.count() == 0


async def test_what_does_not_fit_together_makes_no_session() -> None:
    row = {"id": "a", "vector": [1.0, 2.0]}
    with pytest.raises(ConflictError):
        await VectorDBSession.from_parts(recent=[row], historical=[row], **FIELDS)
    for wrong in ({"recent": row}, {"recent": "abc"}, {"recent": 5}, {"recent": [5]}, {"timestamps": [1.0]}):
        with pytest.raises(InvalidInputError):
            await VectorDBSession.from_parts(**wrong, **FIELDS)
    with pytest.raises(InvalidConfigError):
        await VectorDBSession.from_parts(recent=[row])


def test_the_synchronous_twin() -> None:
    with sync.VectorDBSession.from_parts(FIELDS, recent=[{"id": "a", "vector": [1.0, 2.0]}]) as session:
        assert session.count() == 1
    with pytest.raises(InvalidInputError):
        sync.VectorDBSession.from_parts(FIELDS, recent=[1])
