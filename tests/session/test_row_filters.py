"""Filters by the id and the timestamp of a row, alone and beside metadata."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from saving import rows, session_on

from fabstir_vectordb import F, InvalidInputError, sync

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

COUNT = 300
START_S = 1_700_000_000.25


def id_of(row: int) -> str:
    return f"{'Doc' if row % 3 else 'note'}-{row:03d}" if row % 7 else f"é{row}"


def time_of(row: int) -> float:
    return START_S + (row * 37 % COUNT) / 8


FILTERS: list[tuple[Any, Any]] = [
    ({"$id": id_of(5)}, lambda row: row == 5),
    ({"$id": {"$ne": id_of(5)}}, lambda row: row != 5),
    ({"$id": {"$in": [id_of(2), id_of(4), "", "unknown", "x" * 5_000]}}, lambda row: row in (2, 4)),
    ({"$id": {"$nin": [id_of(2)]}}, lambda row: row != 2),
    ({"$id": {"$startsWith": "note"}}, lambda row: id_of(row).startswith("note")),
    ({"$id": {"$contains": "-1"}}, lambda row: "-1" in id_of(row)),
    ({"$id": {"$icontains": "OC-1"}}, lambda row: "oc-1" in id_of(row).lower()),
    ({"$id": {"$gte": "Doc-100", "$lt": "note-200"}}, lambda row: "Doc-100" <= id_of(row) < "note-200"),
    ({"$id": {"$not": {"$gt": "Doc"}}}, lambda row: not id_of(row) > "Doc"),
    ({"$id": {"$exists": False}}, lambda row: False),
    (F.timestamp == time_of(9), lambda row: time_of(row) == time_of(9)),
    (F.timestamp != time_of(9), lambda row: time_of(row) != time_of(9)),
    (F.timestamp >= time_of(50), lambda row: time_of(row) >= time_of(50)),
    (
        F.timestamp.between(datetime.fromtimestamp(START_S + 3, UTC), START_S + 9),
        lambda row: START_S + 3 <= time_of(row) <= START_S + 9,
    ),
    (F.timestamp.is_in([time_of(1), datetime.fromtimestamp(time_of(2), UTC), 0]), lambda row: row in (1, 2)),
    (F.timestamp.exists(), lambda row: True),
    ((F("n") < 100) & F.id.starts_with("Doc") & (F.timestamp < START_S + 20), None),
    (F("n").is_in([3, 4]) | (F.id == id_of(5)) | (F.timestamp == time_of(6)), lambda row: row in (3, 4, 5, 6)),
]


def takes(at: int, row: int) -> bool:
    if FILTERS[at][1] is None:
        return row < 100 and id_of(row).startswith("Doc") and time_of(row) < START_S + 20
    return bool(FILTERS[at][1](row))


async def test_rows_are_taken_by_id_and_time() -> None:
    uri = f"memory:{uuid.uuid4()}"
    live = set(range(COUNT))
    async with await session_on(uri, clock=lambda: START_S) as session:
        await session.add_batch(
            [id_of(row) for row in range(COUNT)],
            rows(COUNT),
            [{"n": row} for row in range(COUNT)],
            np.array([time_of(row) for row in range(COUNT)]),
            expires_at=[START_S - 1 if row % 11 == 0 else None for row in range(COUNT)],
        )
        live -= {row for row in live if row % 11 == 0}

        async def check() -> None:
            for at, (filter, _) in enumerate(FILTERS):
                expected = {id_of(row) for row in live if takes(at, row)}
                assert {row.id async for row in session.scan(filter)} == expected, filter
                assert await session.count(filter) == len(expected)
                hits = await session.search(rows(1)[0], 500, threshold=None, filter=filter)
                assert set(hits.ids) == expected

        await check()
        gone = [row for row in live if row % 5 == 0]
        await session.delete([id_of(row) for row in gone])
        live -= set(gone)
        await check()
        await session.vacuum()
        await check()
        await session.save_to_s5()
        await session.load_user_vectors()
        await check()
        newest = [row.timestamp async for row in session.scan(order="-$timestamp")]
        assert newest == sorted((time_of(row) for row in live), reverse=True)
        assert [row.id async for row in session.scan(order="$id")] == sorted(map(id_of, live))


def test_a_delete_by_every_id_or_time_is_refused_as_an_empty_filter() -> None:
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase="x", session_id="x") as session:
        session.add_batch(["a"], [[1.0]])
        first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
        for every in (
            F.id.exists(),
            F.timestamp.exists(),
            F.id.starts_with(""),
            ~F.id.exists(False),
            F.id >= "",
            F.id > "",
            F.id != "",
            ~(F.id < ""),
            ~(F.id <= ""),
            F.timestamp >= first,
            F.timestamp <= last,
            ~(F.timestamp < first),
            ~(F.timestamp > last),
            F.timestamp.between(first, last),
            (F("a") == 1) | (F.timestamp >= first),
        ):
            assert session.count(every) == 1
            with pytest.raises(InvalidInputError, match="empty filter"):
                session.delete_by_metadata(every)
            with pytest.raises(InvalidInputError, match="empty filter"):
                session.update_by_metadata(every, {"n": 1}, merge=False)
        assert session.delete_by_metadata(F.timestamp < first).deleted_count == 0
        with pytest.raises(InvalidInputError, match="milliseconds"):
            session.delete_by_metadata(F.timestamp < 1_700_000_000_000)
        assert session.count() == 1
        session.clear()
