"""``memory="fast"``: other memory and other walks than ``default``, the same versions and answers as good."""

from __future__ import annotations

import uuid

import pytest
from saving import SEED, add_rows, content, rows, session_on

from fabstir_vectordb import VectorDBSession

pytestmark = pytest.mark.anyio

ROWS, DIM, K = 3_000, 40, 10
FEW = 1_200  # enough for a graph


def memory_uri() -> str:
    return f"memory:{uuid.uuid4()}"


async def recall(session: VectorDBSession, **options: object) -> float:
    """Share of the exact nearest that a short walk finds."""
    found = wanted = 0
    for query in rows(15, DIM, seed=SEED + 1):
        exact = await session.search(query, K, threshold=None, exact=True, **options)
        walked = await session.search(query, K, threshold=None, ef_search=80, **options)
        assert len(walked) == len(exact)
        assert [hit.distance for hit in walked] == sorted(hit.distance for hit in walked)
        distances = {hit.id: hit.distance for hit in exact}
        for hit in walked:
            assert hit.distance == distances.get(hit.id, hit.distance)
        found += len(distances.keys() & {hit.id for hit in walked})
        wanted += len(exact)
    return found / wanted


async def life(session: VectorDBSession) -> list[tuple[str, float]]:
    """A life with all that changes links or slots; the CID and the recall after each step."""
    seen = []

    async def note() -> None:
        recalls = min(await recall(session), await recall(session, filter={"n": {"$gte": 600}}))
        seen.append((await session.save_to_s5(), recalls))

    await add_rows(session, ROWS - 300, dim=DIM)
    await note()
    for first in range(ROWS - 300, ROWS, 100):
        await add_rows(session, 100, first=first, dim=DIM)
    await note()
    await session.delete([f"row-{number:06d}" for number in range(0, ROWS, 9)])
    await note()
    await session.vacuum()
    await session.update_vector("row-000001", rows(1, DIM, seed=5)[0])
    await note()
    await session.delete([f"row-{number:06d}" for number in range(1, ROWS, 2)], missing_ok=True)
    await session.vacuum()
    await note()
    await session.optimize()  # all rows are years old, but for the one that got another vector
    await note()
    await add_rows(session, 1_500, first=ROWS, dim=DIM)
    await note()
    return seen


@pytest.mark.long
@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
async def test_a_life_has_the_versions_of_default_and_answers_as_good(metric: str) -> None:
    lives = {}
    for memory in ("default", "fast"):
        async with await session_on(memory_uri(), metric=metric, memory=memory, threads=2) as session:
            lives[memory] = await life(session)
    assert [cid for cid, _ in lives["fast"]] == [cid for cid, _ in lives["default"]]
    for (_, fast), (_, default) in zip(lives["fast"], lives["default"], strict=True):
        assert fast >= default - 0.03


@pytest.mark.one_loop
@pytest.mark.parametrize(("saved_by", "lazy"), [("fast", True), ("default", False), ("compact", False)])
async def test_a_version_of_any_setting_opens(saved_by: str, lazy: bool) -> None:
    uri = memory_uri()
    async with await session_on(uri, memory=saved_by) as first:
        await add_rows(first, FEW, dim=DIM)
        await first.add_batch(["bare-0", "bare-1"], None)
        cid = await first.save_to_s5()
        before = await content(first)
    async with await session_on(uri, memory="fast") as second:
        await second.load_user_vectors(cid, lazy_load=lazy)
        assert await content(second) == before
        assert await second.save_to_s5() == cid
        assert await recall(second) >= 0.9
        await add_rows(second, 10, first=FEW, dim=DIM)
        assert await recall(second) >= 0.9


@pytest.mark.one_loop
async def test_what_blocks_take_is_counted() -> None:
    taken = {}
    for memory in ("default", "fast"):
        async with await session_on(memory_uri(), memory=memory) as session:
            await add_rows(session, FEW, dim=DIM)
            taken[memory] = (await session.get_stats()).memory_bytes
    # Links again, bits of 32 neighbours and two factors each of them, of each row and of the entries.
    block, entries = 128 + 32 * (64 / 8 + 4), 512 * (64 / 8 + 4 + 4)
    more = taken["fast"]["graph"] - taken["default"]["graph"]
    assert FEW * (block + 1) + entries <= more <= FEW * (block + 1) + entries + 5 * 4_096
    assert taken["fast"]["vectors"] == taken["default"]["vectors"]


@pytest.mark.one_loop
async def test_estimates_that_overflow_lead_to_rows_alone() -> None:
    """A query near the end of the float32 range has no estimates: then lanes without a link are near, too."""
    async with await session_on(memory_uri(), metric="l2", memory="fast", M=5, ef_construction=40) as session:
        await add_rows(session, FEW, dim=DIM)
        for size in (1e19, 1e25, 1e37):
            for query in rows(3, DIM, seed=7):
                hits = await session.search(query * size, K, threshold=None, ef_search=40)
                assert len({hit.id for hit in hits}) == K
