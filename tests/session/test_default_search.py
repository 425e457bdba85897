"""What the default search takes, by what a sample of the rows says, is taken by the short way, too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from saving import PHRASE

import fabstir_vectordb.index.efforts
from fabstir_vectordb.index import Repeat
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
