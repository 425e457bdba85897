"""Hits that differ, through the session: the same ones by every way."""

from __future__ import annotations

import numpy as np
import pytest
from saving import PHRASE, rows, session_on

from fabstir_vectordb import InvalidInputError, SearchOptions, sync

pytestmark = pytest.mark.anyio

COUNT = 400


def copies() -> np.ndarray:
    """Forty rows, and nine near copies of each."""
    near = np.random.default_rng(8).normal(0, 0.001, (COUNT, 8))
    return (np.tile(rows(COUNT // 10, 8), (10, 1)) + near).astype(np.float32)


def kinds(hits: object) -> list[int]:
    return [int(hit.id) % (COUNT // 10) for hit in hits]  # type: ignore[attr-defined]


async def test_hits_differ_by_every_way() -> None:
    vectors = copies()
    async with await session_on("memory:") as session:
        metadata = [{"even": row % 2 == 0} for row in range(COUNT)]
        await session.add_batch([str(row) for row in range(COUNT)], vectors, metadata)
        plain = await session.search(vectors[0], 4, threshold=None)
        assert len(set(kinds(plain))) == 1
        hits = await session.search(vectors[0], 4, threshold=None, mmr=0.5)
        assert hits[0] == plain[0]
        assert len(set(kinds(hits))) > 2
        assert all(hit.vector is None for hit in hits)
        assert list(await session.search(vectors[0], 4, threshold=None, mmr=1.0)) == list(plain)
        options = SearchOptions(threshold=None, mmr=0.5)
        assert list(await session.search(vectors[0], 4, options)) == list(hits)
        assert list(await session.search(vectors[0], 4, options, mmr=None)) == list(plain)
        (many,) = await session.search_batch(vectors[:1], 4, threshold=None, mmr=0.5)
        assert list(many) == list(hits)

        even = await session.search(vectors[0], 4, threshold=None, mmr=0.5, filter={"even": True}, include_vectors=True)
        assert all(hit.metadata == {"even": True} for hit in even)
        assert all(np.array_equal(hit.vector, vectors[int(hit.id)]) for hit in even)
        near = await session.search(vectors[0], 4, threshold=plain[0].score - 1e-4, mmr=0.5)
        assert len(set(kinds(near))) == 1
        for wrong in (2.0, "x"):
            with pytest.raises(InvalidInputError, match="mmr"):
                await session.search(vectors[0], 4, mmr=wrong)
            with pytest.raises(InvalidInputError, match="mmr"):
                await session.search_batch(vectors[:1], 4, mmr=wrong)


def test_hits_differ_without_a_loop() -> None:
    vectors = copies()
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase=PHRASE, session_id="s") as session:
        session.add_batch([str(row) for row in range(COUNT)], vectors)
        hits = session.search(vectors[0], 4, threshold=None, mmr=0.5)
        assert len(set(kinds(hits))) > 2
        assert list(session.search_batch(vectors[:1], 4, threshold=None, mmr=0.5)[0]) == list(hits)
