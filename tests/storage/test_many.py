"""Many sessions at one portal: users who know nothing of each other, and one user twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from serving import serving

from fabstir_vectordb import ConflictError, DecryptionError, NotFoundError, VectorDBSession
from fabstir_vectordb.s5.phrase import encode_phrase

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

USERS = 5
ROUNDS = 3


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[str]:
    with serving(tmp_path, accounts=True) as address:
        yield address


def phrase_of(user: int) -> str:
    return encode_phrase(random.Random(user).randbytes(16))


async def session_of(user: int, portal: str, **fields: Any) -> VectorDBSession:
    return await VectorDBSession.create(
        s5_portal=portal, user_seed_phrase=phrase_of(user), session_id=f"user {user}", threads=1, **fields
    )


def rows_of(user: int, round: int) -> tuple[list[str], list[list[float]], list[Any]]:
    ids = [f"{user}-{round}-{row}" for row in range(4)]
    return ids, [[float(user), float(round), float(row), 1.0] for row in range(4)], [{"user": user}] * 4


async def test_users_meet_nothing_of_each_other(portal: str) -> None:
    done = dict.fromkeys(range(USERS), 0)
    cids: dict[int, str] = {}
    behind: list[int] = []

    async def use(user: int) -> None:
        async with await session_of(user, portal) as session:
            for round in range(ROUNDS):
                await session.load_user_vectors(missing_ok=True)
                await session.add_batch(*rows_of(user, round))
                cids[user] = await session.save_to_s5()
                for hit in await session.search([float(user), float(round), 0.0, 1.0], k=100, threshold=None):
                    assert hit.metadata == {"user": user}
                done[user] += 1
                behind.append(max(done.values()) - min(done.values()))
            assert len(await session.history()) == ROUNDS

    async with anyio.create_task_group() as group:
        for user in range(USERS):
            group.start_soon(use, user)
    # Fair: nobody had all of it behind them before everybody had begun.
    assert max(behind) < ROUNDS
    assert len(set(cids.values())) == USERS
    for user in range(0, USERS, 4):
        async with await session_of(user, portal) as session:
            await session.load_user_vectors()
            assert {row.id async for row in session.scan()} == {
                id for round in range(ROUNDS) for id in rows_of(user, round)[0]
            }
            with pytest.raises(DecryptionError):
                await session.load_user_vectors(cids[(user + 1) % USERS])


async def test_nothing_but_the_phrase_is_needed(portal: str) -> None:
    for name in ("default", "notes"):
        async with await session_of(1, portal, index_name=name) as session:
            await session.add_batch(*rows_of(1, 0))
            cid = await session.save_to_s5()
    async with await session_of(1, portal) as session:
        await session.load_user_vectors()
        assert await session.count() == 4
        assert await session.list_indexes() == ["default", "notes"]
        assert len(await session.history()) == 1
        share = await session.share(cid)
    async with await session_of(2, portal) as stranger:
        await stranger.load_user_vectors(share)
        assert await stranger.count() == 4
        with pytest.raises(NotFoundError):
            await stranger.load_user_vectors()


async def _save(session: VectorDBSession, name: str, outcomes: dict[str, ConflictError | None]) -> None:
    outcomes[name] = None
    try:
        await session.save_to_s5()
    except ConflictError as error:
        outcomes[name] = error


async def _race(portal: str, rounds: int) -> None:
    """Two sessions of one user load, add and save at the same moment, again and again."""
    kept: set[str] = set()
    refused: set[str] = set()
    async with await session_of(1, portal) as one, await session_of(1, portal) as two:
        names = {"one": one, "two": two}
        for round in range(rounds):
            outcomes: dict[str, ConflictError | None] = {}
            for name, session in names.items():
                await session.load_user_vectors(missing_ok=True, discard_unsaved=True)
                assert {row.id async for row in session.scan()} == kept
                await session.add_batch([f"{name}-{round}"], [[float(round), 1.0 if name == "one" else 2.0]])
            async with anyio.create_task_group() as group:
                for name, session in names.items():
                    group.start_soon(_save, session, name, outcomes)

            (winner,) = (name for name, error in outcomes.items() if error is None)
            (loser,) = (name for name, error in outcomes.items() if error is not None)
            error = outcomes[loser]
            assert error is not None
            assert error.details["head_cid"] == (await names[winner].get_stats()).last_cid
            # Nothing is lost in memory, nor in the store.
            assert {row.id async for row in names[loser].scan()} == kept | {f"{loser}-{round}"}
            refused.add(error.details["cid"])
            kept.add(f"{winner}-{round}")
    async with await session_of(1, portal) as last:
        listed = await last.history()
        assert {entry.cid for entry in listed if entry.refused} == refused
        assert len([entry for entry in listed if not entry.refused]) == rounds
        for entry in listed[:: max(1, len(listed) // 10)]:
            await last.verify(entry.cid)
        await last.load_user_vectors()
        assert {row.id async for row in last.scan()} == kept


async def test_of_two_sessions_that_race_one_is_told(portal: str) -> None:
    await _race(portal, 4)


@pytest.mark.long
async def test_of_two_sessions_that_race_a_hundred_times_one_is_told_each_time(portal: str) -> None:
    await _race(portal, 100)
