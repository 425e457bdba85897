"""The memory of a process whose session has a budget."""

from __future__ import annotations

import gc
import json
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

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is looked at in /proc")


def _campaign(budget_mb: int, operations: int, seed: int) -> dict[str, Any]:
    call = [sys.executable, str(_CAMPAIGN), f"--budget-mb={budget_mb}", f"--operations={operations}", f"--seed={seed}"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=3_000, check=False)
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
