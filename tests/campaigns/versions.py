"""An index whose every version is known: version n is n batches, of which one row each was deleted and one changed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "session"))

from saving import add_rows, content, rows, session_on

from fabstir_vectordb import VectorDBSession

BATCH = 6
DIM = 16


async def open_session(uri: str, **settings: Any) -> VectorDBSession:
    """A session of small parts, so that a save stores some twenty objects."""
    return await session_on(uri, chunk_size=16, **settings)


async def change(session: VectorDBSession, to: int) -> None:
    """Takes a session from version `to` - 1 to the next."""
    first = (to - 1) * BATCH
    await add_rows(session, BATCH, first=first, dim=DIM)
    if to > 1:
        await session.delete_vector(_id(first - 3))
        await session.update_metadata(_id(first - 1), {"text": f"changed by version {to}", "n": -to})


def version(number: int) -> list[tuple[str, bytes, Any]]:
    """The rows of a version, as `content` gives them."""
    found = []
    for row, vector in enumerate(rows(number * BATCH, DIM)):
        metadata: dict[str, Any] = {"text": f"sentence number {row}", "n": row}
        later = row // BATCH + 2
        if later <= number and row % BATCH == BATCH - 3:
            continue
        if later <= number and row % BATCH == BATCH - 1:
            metadata = {"text": f"changed by version {later}", "n": -later}
        found.append((_id(row), vector.tobytes(), metadata))
    return found


async def version_in(session: VectorDBSession) -> int:
    """Loads the newest version, whole; returns its number.

    Raises:
        AssertionError: it is no version entirely.
    """
    await session.load_user_vectors(missing_ok=True)
    found = await content(session)
    if not found:
        return 0
    number = int(found[-1][0].removeprefix("row-")) // BATCH + 1
    assert found == version(number), f"rows of no version, near {number}: {[row[0] for row in found]}"
    hits = await session.search(rows(1, DIM)[0], 3, threshold=None)
    assert hits[0].id == _id(0)
    await session.verify()
    return number


async def version_at(uri: str, **settings: Any) -> int:
    """The number of the version that a new session finds."""
    async with await open_session(uri, **settings) as session:
        return await version_in(session)


def _id(row: int) -> str:
    return f"row-{row:06d}"
