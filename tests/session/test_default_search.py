"""What the default search takes, by what a sample of the rows says: fewer candidates, the usual ones, or a scan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from saving import PHRASE

import fabstir_vectordb.index.efforts
from fabstir_vectordb import F
from fabstir_vectordb.index import Repeat
from fabstir_vectordb.params import SearchRequest
from fabstir_vectordb.sync import VectorDBSession

ROWS, DIM = 2_100, 8
BASE = np.random.default_rng(20_261_127).standard_normal((ROWS, DIM)).astype(np.float32)


class Asked:
    """Stands in place of `calibration.Asked`: a walk misses what `miss` says of it.

    Attributes:
        n: rows that are asked for.
        miss: from the rows that are asked for and the candidates, 0 for the default, to the share that is missed.
    """

    def __init__(self, n: int, miss: Any) -> None:
        self.n, self.miss = n, miss

    def missed(self, k: int, ef: int, nprobe: int = 0) -> float:
        """A bound of the share of the k nearest that is missed, which is never 0."""
        return max(float(self.miss(self.n, ef)), 0.001)

    def finds_all(self, k: int, ef: int) -> bool:
        """Whether none is."""
        return bool(self.miss(self.n, ef) == 0)


def added(monkeypatch: pytest.MonkeyPatch, miss: Any) -> tuple[VectorDBSession, list[int]]:
    """A session with ROWS rows, and how many were asked for each time."""
    asked: list[int] = []

    def ask(native: Any, metric: str, slots: Any, n: int, allow: Any = None, control: Any = None) -> Asked:
        asked.append(n)
        return Asked(n, miss)

    monkeypatch.setattr(fabstir_vectordb.index.efforts, "ask", ask)
    session = VectorDBSession.create(s5_portal="memory:", user_seed_phrase=PHRASE, session_id="s", metric="l2")
    session.add_batch([str(row) for row in range(ROWS)], BASE)
    return session, asked


def taken(session: VectorDBSession, k: int = 10, **fields: Any) -> int:
    """The candidates of a search that names none, 0 for the usual ones."""
    request = SearchRequest(BASE[0], k, **fields)
    return session._verbs._runtime.index.efforts.find_request(request).ef_search


@pytest.mark.parametrize(("misses_below", "fewer"), [(0, 16), (11, 24), (13, 32), (17, 48), (25, 0), (64, 0)])
def test_it_takes_twice_the_candidates_that_miss_nothing(
    monkeypatch: pytest.MonkeyPatch, misses_below: int, fewer: int
) -> None:
    session, asked = added(monkeypatch, lambda n, ef: 0.01 * (0 < ef < misses_below))
    with session:
        assert taken(session) == fewer
        assert session.get_stats().default_search == "usual"
        assert len(asked) == 1


def test_it_takes_fewer_only_for_up_to_ten_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = added(monkeypatch, lambda n, ef: 0.0)
    with session:
        assert [taken(session, k) for k in (1, 10, 11, 100)] == [16, 16, 0, 0]
        assert (
            taken(session, where=session._verbs._searches.check(BASE[0], 5, None, {"filter": F.id == "3"}).where) == 0
        )
        assert taken(session, ef_search=50) == 50
        session.delete(["7"])
        assert taken(session) == 0
        session.vacuum()
        assert taken(session) == 0
        session.add_batch(["7", "more"], BASE[7:9])
        assert taken(session) == 16
        assert len(session.search(BASE[0], threshold=None)) == 10


def test_it_takes_the_usual_candidates_where_rows_can_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = added(monkeypatch, lambda n, ef: 0.0)
    with session:
        assert taken(session) == 16
        session.add_batch(["short-lived"], BASE[:1], expires_at=[4_000_000_000.0])
        assert taken(session) == 0


def test_a_row_that_nothing_finds_is_no_reason_to_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    session, asked = added(monkeypatch, lambda n, ef: 0.04 if n < 200 else 0.02)
    with session:
        assert session.get_stats().default_search == "usual"
        assert len(asked) == 2 and asked[1] > 200 > asked[0]
        assert session.search(BASE[0], threshold=None).plan == "graph"


@pytest.mark.parametrize(("missed", "times"), [(0.04, 2), (0.2, 1)])
def test_what_many_rows_confirm_is_scanned(monkeypatch: pytest.MonkeyPatch, missed: float, times: int) -> None:
    session, asked = added(monkeypatch, lambda n, ef: missed)
    with session:
        assert session.get_stats().default_search == "exact"
        assert len(asked) == times
        assert session.search(BASE[0], threshold=None).plan == "flat"


@pytest.mark.parametrize("miss", [lambda n, ef: 0.0, lambda n, ef: 0.05 if ef < 100 else 0.0, lambda n, ef: 0.2])
def test_it_is_asked_again_by_the_short_way(monkeypatch: pytest.MonkeyPatch, miss: Any) -> None:
    session, _ = added(monkeypatch, miss)
    answers: list[bool] = []
    real = Repeat.search

    def search(repeat: Repeat, query: Any) -> Any:
        found = real(repeat, query)
        answers.append(found is not None)
        return found

    monkeypatch.setattr(Repeat, "search", search)
    with session:
        for options in ({"threshold": None}, {"threshold": None, "recall_target": 0.9}):
            for query in BASE[:3]:
                found = session.search(query, 10, **options)
                assert found == session.search(query, 10, dict(options))
        assert answers == [True] * 4
        # A change asks for all of it anew.
        session.delete([str(row) for row in range(10, 20)])
        assert session.search(BASE[0], 10, threshold=None)[0].id == "0"
