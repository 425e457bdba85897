"""Random operations of sessions with a budget, in a process of their own whose memory is looked at.

    python tests/session/budget_campaign.py --budget-mb 64 --operations 300 --seed 1

The rows are known from seeds, so that the program itself holds next to nothing. What a caller holds for a call, as the
array of an add, is taken off; the kernel keeps the highest mark, so that no peak is missed. Prints what was seen.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np

from fabstir_vectordb import MemoryBudgetExceededError, sync

# A phrase of S5: other secrets take 64 MiB for a moment when keys are first made of them (docs/tuning.md).
PHRASE = "amid romance hotel blue most myself guess host lobby rubber hook victim about odds child"
NOW, DAY = 1_700_000_000.0, 86_400.0
KINDS, WORDS, ROWS_MOST = 20, 20_000, 4_000
_STATUS = Path("/proc/self/status")


def memory(mark: str) -> int:
    """VmRSS, or VmHWM: the most it was since `forget_peak`."""
    return next(int(line.split()[1]) * 1024 for line in _STATUS.read_text().splitlines() if line.startswith(mark))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


class Rows:
    """Rows that were added in one call: which of them are live, and all else from a seed."""

    def __init__(self, number: int, n: int, dim: int, with_metadata: bool) -> None:
        self.number, self.dim, self.with_metadata = number, dim, with_metadata
        self.live = np.ones(n, dtype=np.bool_)
        self.changed: set[int] = set()

    def ids(self) -> list[str]:
        return [f"b{self.number}-{row}" for row in range(len(self.live))]

    def vectors(self) -> Any:
        # A mapping, which goes back at once, where the allocator would keep it for the program.
        shape = len(self.live), self.dim
        vectors = np.frombuffer(mmap(-1, 4 * self.dim * len(self.live)), dtype=np.float32).reshape(shape)
        np.random.default_rng(self.number).standard_normal(out=vectors, dtype=np.float32)
        return vectors

    def metadata(self) -> list[Any] | None:
        if not self.with_metadata:
            return None
        first = 7 * self.number
        texts = (
            " ".join(f"w{(first + row * word) % WORDS}" for word in range(row % 40)) for row in range(len(self.live))
        )
        return [{"kind": row % KINDS, "text": text} for row, text in enumerate(texts)]

    def of_kind(self, kind: int) -> Any:
        kinds = np.arange(len(self.live)) % KINDS == kind
        kinds[list(self.changed)] = False
        return kinds & self.live if self.with_metadata else np.zeros_like(self.live)


class Campaign:
    """One life after the other of a session, each with another dimension and other settings."""

    def __init__(self, budget_mb: int, seed: int, directory: Path, trace: bool) -> None:
        self.budget = budget_mb * 1_000_000
        self.trace = trace
        self.directory = directory
        self.rng = np.random.default_rng(seed)
        self.clock = NOW
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.peaks: dict[str, int] = {}
        self.lives = self.number = 0
        self.saved: dict[int, tuple[Any, set[int]]] | None = None
        self.warm_up()
        gc.collect()
        self.baseline = memory("VmRSS")

    def opened(self, where: str, budget_mb: int, **more: Any) -> sync.VectorDBSession:
        config = {"user_seed_phrase": PHRASE, "session_id": "c", "clock": lambda: self.clock, "threads": 2, **more}
        return sync.VectorDBSession.create(config, s5_portal=where, memory_budget_mb=budget_mb)

    def warm_up(self) -> None:
        """What the interpreter takes: code, threads, and room for the objects of this program's largest calls."""
        rows = Rows(0, ROWS_MOST, 2, with_metadata=True)
        with self.opened("memory:warm", 16) as session:
            session.add_batch(rows.ids(), rows.vectors(), rows.metadata())
            session.save_to_s5()
            session.load_user_vectors()
            session.count({"kind": 1})

    # ---- running

    def measured(self, name: str, call: Callable[[], Any], callers_bytes: int = 0) -> Any:
        """The result of a call, None where it was refused, which must have changed nothing."""
        before, details = self.told(), None
        forget_peak()
        try:
            result = call()
            self.done[name] += 1
        except MemoryBudgetExceededError as refused:
            result, details = None, refused.details
            self.refused[name] += 1
        if details is not None:
            if "room_bytes" in details:  # metadata that is refused before all of it is encoded
                assert details["room_bytes"] < self.budget, details
            else:
                assert details["needed_bytes"] > details["budget_bytes"] == self.budget, details
            assert self.told() == before, (name, before, self.told())
        growth = memory("VmHWM") - self.baseline - callers_bytes
        self.peaks[name] = max(self.peaks.get(name, 0), growth)
        if self.trace or growth > 1.1 * self.budget:
            held, now = self.session.get_stats().memory_usage_mb, (memory("VmRSS") - self.baseline) / 1e6
            print(
                f"{sum(self.done.values()):6} {name:20} dim {self.dim:5}: {growth / 1e6:6.1f} MB, then {now:6.1f}, "
                f"of which {held:6.1f} are told{'' if result is not None else ' (refused)'}",
                file=sys.stderr,
            )
        return result

    def told(self) -> Any:
        stats = self.session.get_stats()
        return stats.vector_count, stats.deleted_count, stats.dirty, stats.last_cid, stats.ivf_vector_count

    def live(self) -> None:
        """One life: some 250 operations."""
        self.lives += 1
        rng = self.rng
        self.dim = int(rng.choice([96, 256, 384, 768] if self.budget < 100_000_000 else [384, 768, 1536]))
        # Half the sessions have a text index.
        self.has_text = bool(rng.random() < 0.5)
        more = {"text_fields": "text"} if self.has_text else {}
        metric, how = str(rng.choice(["cosine", "l2", "dot"])), str(rng.choice(["auto", "fast", "default", "compact"]))
        where = self.directory / str(self.lives)
        self.batches: dict[int, Rows] = {}
        self.saved = None
        self.session = self.opened(f"file://{where}", self.budget // 1_000_000, metric=metric, memory=how, **more)

    def end_life(self) -> None:
        self.session.destroy()
        gc.collect()
        shutil.rmtree(self.directory / str(self.lives), ignore_errors=True)

    def run(self, operations: int, a_life: int) -> None:
        names = ["add", "search", "batch", "filter", "delete", "delete_some", "update", "upsert"]
        names += ["optimize", "vacuum", "save", "load", "warm", "scan", "stream", "words", "check"]
        weights = np.array([14, 20, 6, 12, 8, 3, 8, 5, 3, 3, 5, 4, 1, 1, 1, 6, 6], dtype=float)
        for operation in range(operations):
            if operation % a_life == 0:
                if operation:
                    self.end_life()
                self.live()
            getattr(self, str(self.rng.choice(names, p=weights / weights.sum())))()
        self.check()
        self.end_life()

    # ---- operations

    def query(self) -> Any:
        return self.rng.standard_normal(self.dim, dtype=np.float32)

    def add(self) -> None:
        # Up to a third of the budget at once, mostly much less.
        share = self.budget * 0.33 * self.rng.random() ** 3
        n = max(1, min(int(share / (5 * self.dim)), ROWS_MOST))
        self.number += 1
        rows = Rows(self.number, n, self.dim, bool(self.rng.random() < 0.7))
        vectors, times = rows.vectors(), np.full(n, self.clock - self.rng.choice([0, 3, 30]) * DAY)
        add = lambda: self.session.add_batch(rows.ids(), vectors, rows.metadata(), times)  # noqa: E731
        if self.measured("add", add, vectors.nbytes) is not None:
            self.batches[rows.number] = rows

    def some_rows(self) -> Rows | None:
        numbers = [number for number, rows in self.batches.items() if rows.live.any()]
        return self.batches[int(self.rng.choice(numbers))] if numbers else None

    def upsert(self) -> None:
        rows = self.some_rows()
        if rows is not None:
            vectors, n = rows.vectors(), len(rows.live)
            call = lambda: self.session.add_batch(rows.ids(), vectors, rows.metadata(), on_conflict="replace")  # noqa: E731
            if self.measured("upsert", call, vectors.nbytes) is not None:
                rows.live = np.ones(n, dtype=np.bool_)
                rows.changed.clear()

    def search(self) -> None:
        options: dict[str, Any] = {"exact": True} if self.rng.random() < 0.2 else {}
        k = int(self.rng.choice([1, 10, 100]))
        hits = self.measured("search", lambda: self.session.search(self.query(), k, threshold=None, **options))
        assert hits is None or len(hits) == min(k, self.count())

    def batch(self) -> None:
        queries = self.rng.standard_normal((50, self.dim), dtype=np.float32)
        found = self.measured("batch", lambda: self.session.search_batch(queries, 10, threshold=None))
        assert found is None or {len(hits) for hits in found} == {min(10, self.count())}

    def filter(self) -> None:
        kind = int(self.rng.integers(KINDS))
        wanted = sum(int(rows.of_kind(kind).sum()) for rows in self.batches.values())
        counted = self.measured("count", lambda: self.session.count({"kind": kind}))
        assert counted in (None, wanted), (counted, wanted)
        where = {"kind": kind}
        hits = self.measured("filter", lambda: self.session.search(self.query(), 10, threshold=None, filter=where))
        assert hits is None or len(hits) == min(10, wanted)

    def words(self) -> None:
        if not self.has_text:
            return
        text = f"w{self.rng.integers(WORDS)} w1* -w{self.rng.integers(WORDS)}"
        self.measured("words", lambda: self.session.search(text=text, k=10))
        k = min(10, self.count())
        hits = self.measured("words and vector", lambda: self.session.search(self.query(), 10, text=f"w0 {text[:5]}"))
        assert hits is None or len(hits) == k

    def delete(self) -> None:
        rows = self.some_rows()
        if rows is not None:
            row = int(self.rng.choice(np.flatnonzero(rows.live)))
            if self.measured("delete", lambda: self.session.delete_vector(f"b{rows.number}-{row}")) is not None:
                rows.live[row] = False

    def delete_some(self) -> None:
        kinds = self.rng.choice(KINDS, int(self.rng.choice([1, 3, 18])), replace=False).tolist()
        gone = self.measured("delete_by_metadata", lambda: self.session.delete_by_metadata({"kind": {"$in": kinds}}))
        if gone is not None:
            for rows in self.batches.values():
                for kind in kinds:
                    rows.live &= ~rows.of_kind(kind)

    def update(self) -> None:
        rows = self.some_rows()
        if rows is not None:
            row = int(self.rng.choice(np.flatnonzero(rows.live)))
            value = {"other": "x" * int(self.rng.integers(2_000))}
            update = lambda: self.session.update_metadata(f"b{rows.number}-{row}", value) or True  # noqa: E731
            if self.measured("update", update):
                rows.changed.add(row)

    def optimize(self) -> None:
        self.clock += DAY * int(self.rng.choice([0, 2, 5]))
        self.measured("optimize", self.session.optimize)

    def vacuum(self) -> None:
        if self.measured("vacuum", self.session.vacuum) is not None:
            assert self.session.get_stats().deleted_count == 0

    def save(self) -> None:
        self.measured("save", self.session.save_to_s5)
        self.saved = {number: (rows.live.copy(), set(rows.changed)) for number, rows in self.batches.items()}

    def load(self) -> None:
        if self.saved is None:
            return
        lazily = bool(self.rng.random() < 0.5)
        load = lambda: self.session.load_user_vectors(lazy_load=lazily, discard_unsaved=True) or True  # noqa: E731
        if self.measured("load lazily" if lazily else "load", load):
            # Rows that were added since then are gone with those that were not deleted.
            self.batches = {number: self.batches.get(number) or self.again(number) for number in self.saved}
            for number, (live, changed) in self.saved.items():
                self.batches[number].live, self.batches[number].changed = live.copy(), set(changed)

    def again(self, number: int) -> Rows:
        raise AssertionError(f"batch {number} was never forgotten")

    def warm(self) -> None:
        self.measured("warm", self.session.warm)

    def scan(self) -> None:
        self.measured("scan", lambda: sum(1 for _ in self.session.scan({"kind": 3})))

    def stream(self) -> None:
        self.measured("stream", lambda: sum(1 for _, hit in zip(range(600), self.session.search_stream(self.query()))))  # noqa: B905

    def count(self) -> int:
        return sum(int(rows.live.sum()) for rows in self.batches.values())

    def check(self) -> None:
        """Everything is still there: how many rows there are, and some of them bit for bit."""
        assert self.session.count() == self.count()
        rows = self.some_rows()
        if rows is not None:
            row = int(self.rng.choice(np.flatnonzero(rows.live)))
            found = self.measured("get", lambda: self.session.get([f"b{rows.number}-{row}"]))
            if found is not None:
                assert found[0].vector.tobytes() == rows.vectors()[row].tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget-mb", type=int, required=True)
    parser.add_argument("--operations", type=int, required=True)
    parser.add_argument("--a-life", type=int, default=250)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trace", action="store_true", help="tell of every operation")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="fvdb-budget-"))
    try:
        campaign = Campaign(options.budget_mb, options.seed, directory, options.trace)
        campaign.run(options.operations, options.a_life)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    peaks = {name: round(peak / 1e6, 1) for name, peak in sorted(campaign.peaks.items())}
    print(json.dumps({"peaks_mb": peaks, "done": campaign.done, "refused": campaign.refused}))


if __name__ == "__main__":
    main()
