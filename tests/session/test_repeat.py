"""A search with the k and the options of the last one takes a shorter way, and answers as any other does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from saving import PHRASE

from fabstir_vectordb import F, InvalidInputError, SessionError
from fabstir_vectordb.index import Repeat
from fabstir_vectordb.sync import VectorDBSession

DIM, ROWS, K = 8, 40, 5
BASE = np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32)
OPTIONS: dict[str, Any] = {"threshold": None, "ef_search": 20}


@pytest.fixture
def session() -> Iterator[VectorDBSession]:
    fields: dict[str, Any] = {"s5_portal": "memory:", "user_seed_phrase": PHRASE, "session_id": "s", "metric": "l2"}
    with VectorDBSession.create(**fields, threads=1, clock=lambda: 100.0) as made:
        made.add_batch([str(row) for row in range(ROWS)], BASE, [{"n": row} for row in range(ROWS)])
        for _ in range(2):
            made.search(BASE[0], K, **OPTIONS)
        yield made


@pytest.fixture
def repeats(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each search that was tried the short way, whether it was answered."""
    seen: list[bool] = []
    real = Repeat.search

    def search(repeat: Repeat, query: Any) -> Any:
        found = None
        try:
            found = real(repeat, query)
        finally:
            seen.append(found is not None)
        return found

    monkeypatch.setattr(Repeat, "search", search)
    return seen


def test_it_is_taken_and_answers_as_the_long_way(session: VectorDBSession, repeats: list[bool]) -> None:
    before = session.get_stats().plans["flat"]
    for row in (3, 4):
        found = session.search(BASE[row], K, **OPTIONS)
        assert found == session.search(BASE[row], K, OPTIONS)
        assert [found[0].id, found[0].distance, found[0].metadata] == [str(row), 0.0, {"n": row}]
    assert repeats == [True, True]
    assert session.get_stats().plans["flat"] == before + 4


def test_other_options_and_queries_take_the_long_way(session: VectorDBSession, repeats: list[bool]) -> None:
    wanted = session.search(BASE[3], K, **OPTIONS)
    padded = np.zeros(2 * DIM, np.float32)
    padded[::2] = BASE[3]
    for query in (BASE[3].tolist(), BASE[3].astype(np.float64), BASE[3][None], padded[::2]):
        assert session.search(query, K, **OPTIONS) == wanted
    assert len(session.search(BASE[3], K - 1, **OPTIONS)) == K - 1
    assert session.search(BASE[3], K, threshold=None, ef_search=20, include_vectors=True)[0].vector is not None
    with pytest.raises(InvalidInputError, match="ef_search"):
        session.search(BASE[3], K, threshold=None, ef_search=True)
    assert repeats[0] and not any(repeats[1:])


def test_what_is_refused_is_refused_on_it(session: VectorDBSession) -> None:
    for bad, message in [(np.full(DIM, np.nan, np.float32), "NaN"), (BASE[0][1:], "dimension")]:
        for options in ({}, {"exact": False}):
            with pytest.raises(InvalidInputError, match=message):
                session.search(bad, K, **OPTIONS, **options)
    session.destroy()
    with pytest.raises(SessionError):
        session.search(BASE[0], K, **OPTIONS)


def test_it_does_not_outlive_a_change(session: VectorDBSession, repeats: list[bool]) -> None:
    def first() -> tuple[str, Any]:
        assert session.search(BASE[7], K, **OPTIONS) == session.search(BASE[7], K, OPTIONS)
        hit = session.search(BASE[7], K, **OPTIONS)[0]
        return hit.id, hit.metadata

    assert first() == ("7", {"n": 7})
    session.update_metadata("7", {"n": 70})
    assert first() == ("7", {"n": 70})
    session.delete(["7"])
    assert first()[0] != "7"
    session.add_batch(["new"], BASE[7:8])
    assert first() == ("new", None)
    session.vacuum()
    assert first() == ("new", None)
    cid = session.save_to_s5()
    session.clear()
    assert len(session.search(BASE[7], K, **OPTIONS)) == 0
    session.load_user_vectors(cid, discard_unsaved=True)
    assert first() == ("new", None)
    assert repeats.count(True) >= 6


def found(session: VectorDBSession, filter: Any) -> list[str]:
    """The ids that a filter gives, which both ways give alike."""
    by_long_way = session.search(BASE[7], ROWS, {**OPTIONS, "filter": filter})
    for _ in range(3):
        assert session.search(BASE[7], ROWS, filter=filter, **OPTIONS) == by_long_way
    return sorted((hit.id for hit in by_long_way), key=int)


def test_a_filter_is_known_by_what_it_holds(session: VectorDBSession, repeats: list[bool]) -> None:
    asked: dict[str, Any] = {"n": {"$in": [1, 2]}}
    assert found(session, asked) == ["1", "2"]
    asked["n"]["$in"].append(3)
    assert found(session, asked) == ["1", "2", "3"]
    asked["n"] = {"$gte": 38}
    assert found(session, asked) == ["38", "39"]
    values = [4]
    built = F("n").is_in(values) | {"n": 9}
    assert found(session, built) == ["4", "9"]
    values[0] = 5
    assert found(session, built) == ["5", "9"]
    assert repeats.count(True) >= 10

    for number in range(200):
        assert found(session, {"n": number % 80}) == [str(number)] * (number < ROWS) or number >= 80
    session.add_batch(["100", "101", "102"], BASE[:3], [{"is": True}, {"is": 1}, {"is": 1.0}])
    every = [found(session, {"is": value}) for value in (True, 1, 1.0, np.float64(1), np.bool_(True))]
    assert every == [["100"], ["101", "102"], ["101", "102"], ["101", "102"], ["100"]]


def test_a_known_filter_follows_every_change(session: VectorDBSession, repeats: list[bool]) -> None:
    small = {"n": {"$lt": 3}}
    assert found(session, small) == ["0", "1", "2"]
    session.add_batch(["50"], BASE[:1], [{"n": 2}], expires_at=[500.0])
    assert found(session, small) == ["0", "1", "2", "50"]
    session.update_metadata("1", {"n": 30})
    assert found(session, small) == ["0", "2", "50"]
    session.delete(["0"])
    assert found(session, small) == ["2", "50"]
    session.vacuum()
    assert found(session, small) == ["2", "50"]
    cid = session.save_to_s5()
    session.clear()
    assert found(session, small) == []
    session.load_user_vectors(cid, discard_unsaved=True, lazy_load=False)
    assert found(session, small) == ["2", "50"]
    assert repeats.count(True) >= 12


def test_a_known_filter_leaves_out_what_has_expired() -> None:
    now = [100.0]
    fields: dict[str, Any] = {"s5_portal": "memory:", "user_seed_phrase": PHRASE, "session_id": "s", "metric": "l2"}
    with VectorDBSession.create(**fields, threads=1, clock=lambda: now[0]) as session:
        expires = [200.0 + row if row % 2 else None for row in range(ROWS)]
        session.add_batch(
            [str(row) for row in range(ROWS)], BASE, [{"n": row} for row in range(ROWS)], expires_at=expires
        )
        for at, left in ((100.0, 4), (201.0, 3), (202.5, 3), (203.0, 2)):
            now[0] = at
            assert len(found(session, {"n": {"$lt": 4}})) == left
