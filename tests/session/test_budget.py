"""The memory of a process whose session has a budget."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabstir_vectordb import MemoryBudgetExceededError, VectorDBError, sync

_CAMPAIGN = Path(__file__).with_name("budget_campaign.py")
PHRASE = "amid romance hotel blue most myself guess host lobby rubber hook victim about odds child"
GOOD: dict[str, Any] = {"s5_portal": "memory:", "user_seed_phrase": PHRASE, "session_id": "s"}
#: Most of what a process takes beside the interpreter, as a share of the budget.
_MOST = 1.1
_HANGS_S = 6 * 3_600

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is looked at in /proc")


def _campaign(budget_mb: int, operations: int, seed: int) -> dict[str, Any]:
    call = [sys.executable, str(_CAMPAIGN), f"--budget-mb={budget_mb}", f"--operations={operations}", f"--seed={seed}"]
    # 3,400 operations on 512 MB take most of an hour of a core: only a process that hangs is ended.
    done = subprocess.run(call, capture_output=True, text=True, timeout=_HANGS_S, check=False)
    assert done.returncode == 0, done.stderr[-4_000:]
    told = json.loads(done.stdout)
    assert max(told["peaks_mb"].values()) <= _MOST * budget_mb, (told, done.stderr[-4_000:])
    return told


def test_a_process_stays_within_the_budget() -> None:
    told = _campaign(40, 45, seed=3)
    assert sum(told["done"].values()) >= 30
    assert told["done"]["words"]


@pytest.mark.long
@pytest.mark.parametrize("budget_mb", [64, 256, 512])
def test_a_process_stays_within_the_budget_for_ten_thousand_operations(budget_mb: int) -> None:
    told = _campaign(budget_mb, 3_400, seed=budget_mb)
    assert sum(told["done"].values()) >= 3_400
    assert told["refused"]["add"] > 0
    assert told["done"]["words"]


#: Deletes most rows of a text index, and says what that took at most, and what stayed.
_DELETES_MOST = """
from budget_campaign import PHRASE, Rows, forget_peak, memory
from fabstir_vectordb import sync

settings = {"user_seed_phrase": PHRASE, "session_id": "s", "M": 4, "ef_construction": 8, "text_fields": "text"}
with sync.VectorDBSession.create(settings, s5_portal="memory:", memory_budget_mb=64) as session:
    for number in range(8):
        rows = Rows(number, 4_000, 8, with_metadata=True)
        session.add_batch(rows.ids(), rows.vectors(), rows.metadata())
    session.count({"kind": 1})
    before = memory("VmRSS")
    forget_peak()
    done = session.delete_by_metadata({"kind": {"$in": list(range(18))}})
    print(done.deleted_count, memory("VmHWM") - before, memory("VmRSS") - before)
    assert len(session.search(text="w0 w1", k=10)) == 10
"""


def test_deleting_most_rows_takes_little_memory_and_keeps_less() -> None:
    # As strings of their own the texts of these rows would take 17 MB, of which 12 stayed.
    call = [sys.executable, "-c", _DELETES_MOST]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_CAMPAIGN.parent), *sys.path])}
    done = subprocess.run(call, capture_output=True, text=True, timeout=600, check=False, env=env)
    assert done.returncode == 0, done.stderr[-4_000:]
    deleted, most, stayed = map(int, done.stdout.split())
    assert deleted == 28_800
    assert most < 9_000_000 and stayed < 4_000_000, (most, stayed)


class _Array(np.ndarray[Any, Any]):
    """What a weak reference can be made to."""


@pytest.mark.parametrize(
    ("rows", "metadata", "ids"),
    [(100_000, None, None), (20, [{"a": object()}] * 20, None), (20, None, ["same"] * 20)],
    ids=["too large", "bad metadata", "conflict"],
)
def test_a_refused_add_keeps_nothing_of_its_arguments(rows: int, metadata: Any, ids: list[str] | None) -> None:
    with sync.VectorDBSession.create(**GOOD, memory_budget_mb=16) as session:
        vectors = np.zeros((rows, 64), dtype=np.float32).view(_Array)
        vectors[:, 0] = 1
        seen = weakref.ref(vectors)
        gc.disable()  # a circle of references would wait for it
        try:
            with pytest.raises(VectorDBError):
                session.add_batch(ids or [str(row) for row in range(rows)], vectors, metadata)
            del vectors
            assert seen() is None
        finally:
            gc.enable()


@pytest.mark.parametrize("verb", ["vacuum", "optimize"])
def test_what_would_not_fit_while_it_runs_changes_nothing(verb: str) -> None:
    # What these need is memory of rows: a graph of few links takes less time.
    with sync.VectorDBSession.create(**GOOD, memory_budget_mb=64, M=4, ef_construction=8) as session:
        made = np.random.default_rng(4).standard_normal((8_000, 96), dtype=np.float32)
        session.add_batch([str(row) for row in range(8_000)], made, timestamps=[1.0] * 8_000)
        session.delete_by_metadata({"none": 1})
        for row in range(50):
            session.delete_vector(str(row))
        before = session.get_stats()
        session._verbs._runtime.index.budget_bytes = int(before.memory_usage_mb * 1_150_000)
        with pytest.raises(MemoryBudgetExceededError) as refused:
            getattr(session, verb)()
        details = refused.value.details
        assert details["needed_bytes"] > details["budget_bytes"]
        after = session.get_stats()
        assert (after.vector_count, after.deleted_count, after.ivf_vector_count) == (7_950, 50, 0)
        assert session.search(made[100], 1, threshold=None)[0].id == "100"


def test_a_deletion_that_would_not_fit_changes_nothing_and_fewer_rows_fit() -> None:
    clock = [1_000.0]
    with sync.VectorDBSession.create(
        **GOOD, memory_budget_mb=64, M=4, ef_construction=8, text_fields="text", clock=lambda: clock[0]
    ) as session:
        made = np.random.default_rng(4).standard_normal((3_000, 8), dtype=np.float32)
        metadata = [{"even": row % 2 == 0, "text": " ".join(f"w{row * n}" for n in range(60))} for row in range(3_000)]
        ids = [str(row) for row in range(3_000)]
        session.add_batch(ids, made, metadata, expires_at=[2_000.0 if row < 1_000 else None for row in range(3_000)])
        before = session.get_stats()
        index = session._verbs._runtime.index
        index.budget_bytes = int(2.8 * before.memory_usage_mb * 1_000_000)
        with pytest.raises(MemoryBudgetExceededError, match="delete fewer rows at a time") as refused:
            session.delete(ids[1_000:1_700])
        assert refused.value.details["needed_bytes"] > refused.value.details["budget_bytes"]
        after = session.get_stats()
        assert (after.vector_count, after.deleted_count, after.dirty) == (3_000, 0, True)
        assert session.search(text="w1699", k=1)[0].id == "1699"
        # Expired rows go in any case, as each change begins with that.
        clock[0] = 2_000.0
        assert session.delete(["2999"]).deleted_count == 1
        assert session.get_stats().deleted_count == 1_001
        assert session.count() == 1_999


def test_columns_that_give_way_go_back_to_the_system() -> None:
    with sync.VectorDBSession.create(**GOOD, memory_budget_mb=64, M=4, ef_construction=8) as session:
        made = np.random.default_rng(4).standard_normal((4_000, 8), dtype=np.float32)
        session.add_batch([str(row) for row in range(4_000)], made, [{"name": f"name {row}"} for row in range(4_000)])
        session.count({"name": "name 7"})
        index = session._verbs._runtime.index
        columns, before = index.column_bytes, index.untrimmed_bytes
        assert columns > 400_000
        assert index.forget_caches()
        assert index.column_bytes == 0
        assert index.untrimmed_bytes - before == columns


@pytest.mark.parametrize("verb", ["delete", "update_metadata", "replace"])
def test_rows_with_much_other_metadata_leave_a_full_budget(verb: str) -> None:
    """Their bytes could be as many words, of which a change would take far more than there is room."""
    with sync.VectorDBSession.create(
        **GOOD, memory_budget_mb=64, M=4, ef_construction=8, text_fields="text", text_language="english"
    ) as session:
        made = np.random.default_rng(4).standard_normal((4_000, 8), dtype=np.float32)
        texts = [{"text": " ".join(f"w{8 * row + n}" for n in range(8))} for row in range(4_000)]
        session.add_batch([str(row) for row in range(4_000)], made, texts)
        large = [{"text": "hello", "blob": "x" * 200_000} for _ in range(20)]
        session.add_batch([f"large {row}" for row in range(20)], made[:20], large)
        index = session._verbs._runtime.index
        index.budget_bytes = int(session.get_stats().memory_usage_mb * 1_000_000) + 9_000_000
        for row in range(20):
            if verb == "delete":
                assert session.delete([f"large {row}"]).deleted_count == 1
            elif verb == "update_metadata":
                session.update_metadata(f"large {row}", {"text": "small"})
            else:
                session.add_batch([f"large {row}"], made[:1], [{"text": "small"}], on_conflict="replace")
        assert session.search(text="w77", k=1)[0].id == "9"
        assert not session.search(text="hello", k=1)
