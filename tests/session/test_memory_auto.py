"""``memory="auto"``: the setting follows the share of the budget that the rows take, and no version shows it."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from saving import PHRASE, rows

from fabstir_vectordb import MemoryBudgetExceededError
from fabstir_vectordb.persist import load as load_module
from fabstir_vectordb.sync import VectorDBSession
from fabstir_vectordb.tiers import tier_of

DIM, M = 64, 4
#: Of which 1,200 rows take less than 0.4 under `fast`, and 2,000 more than half.
BUDGET_MB = 3


def opened(memory: str, uri: str = "memory:", **fields: Any) -> VectorDBSession:
    fields = {
        "memory_budget_mb": BUDGET_MB,
        "M": M,
        "ef_construction": 20,
        "metric": "l2",
        "threads": 1,
        "chunk_size": 256,
        **fields,
    }
    fields["clock"] = lambda: 1_700_000_000.0
    return VectorDBSession.create(s5_portal=uri, user_seed_phrase=PHRASE, session_id="s", memory=memory, **fields)


def add(session: VectorDBSession, first: int, end: int) -> None:
    session.add_batch([str(row) for row in range(first, end)], rows(end, DIM)[first:])


def test_shares_of_the_budget() -> None:
    assert [tier_of("auto", size, 1_000) for size in (500, 501)] == ["fast", "default"]
    assert [tier_of("auto", size, 1_000, "default") for size in (400, 401)] == ["fast", "default"]
    assert tier_of("auto", 10**12, None) == "fast"
    assert [tier_of(setting, 501, 1_000) for setting in ("fast", "default", "compact")] == [
        "fast",
        "default",
        "compact",
    ]


def test_a_life_in_a_small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    uri, lives, seen = f"memory:{uuid.uuid4()}", {}, []
    for memory in ("default", "auto"):
        with opened(memory, f"memory:{uuid.uuid4()}" if memory == "default" else uri) as session:
            cids = lives[memory] = []

            def note(session: VectorDBSession = session, cids: list[str] = cids) -> None:
                cids.append(session.save_to_s5())
                seen.append(session.get_stats().memory)
                assert session.search(rows(5, DIM)[4], 1, threshold=None)[0].id == "4"

            for first, end in [(0, 1_200), (1_200, 1_300), (1_300, 2_000)]:
                add(session, first, end)
                note()
            session.delete([str(row) for row in range(900, 2_000)])
            session.vacuum()
            note()
            add(session, 2_000, 2_001)
            note()
    assert lives["auto"] == lives["default"]
    assert seen == ["default"] * 5 + ["fast", "fast", "default", "default", "fast"]
    # A load takes what its own budget allows.
    monkeypatch.setattr(load_module, "_LAZY_BYTES_MIN", 0)
    for cid, budget, lazy, found in [
        (2, BUDGET_MB, False, "default"),
        (2, 64, True, "fast"),
        (0, BUDGET_MB, True, "fast"),
    ]:
        with opened("auto", uri, memory_budget_mb=budget) as session:
            session.load_user_vectors(lives["auto"][cid], lazy_load=lazy)
            session.delete(["7"])  # makes it whole
            assert session.get_stats().memory == found
            assert session.search(rows(5, DIM)[4], 1, threshold=None)[0].id == "4"


def test_a_recall_target_is_measured_again_at_a_switch() -> None:
    with opened("auto") as session:
        efforts = session._verbs._runtime.index.efforts
        add(session, 0, 1_300)
        session.search(rows(1, DIM)[0], 10, recall_target=0.9)
        measured = efforts.calibration
        add(session, 1_300, 1_301)
        assert efforts.calibration is measured is not None
        add(session, 1_301, 1_940)  # not half as many rows more, at which it would be due anyway
        assert session.get_stats().memory == "default"
        session.search(rows(1, DIM)[0], 10, recall_target=0.9)
        assert efforts.calibration not in (None, measured)


def test_what_default_takes_is_taken_and_what_it_refuses_changes_nothing() -> None:
    with opened("auto") as session:
        add(session, 0, 1_100)
        with pytest.raises(MemoryBudgetExceededError):
            add(session, 1_100, 20_000)
        assert session.get_stats().memory == "fast"
