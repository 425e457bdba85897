"""A session against a dict and brute force, over thousands of random operations (hypothesis, stateful)."""

from __future__ import annotations

import itertools
import uuid
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from saving import PHRASE

from fabstir_vectordb import ConflictError, NotFoundError, Row
from fabstir_vectordb.persist import load as load_module
from fabstir_vectordb.sync import VectorDBSession

DIM = 4
IDS = st.sampled_from([f"id-{number}" for number in range(24)])
#: Few different components: distances are exact in every summation order, and many are equal.
VECTORS = st.lists(st.integers(-3, 3).map(float), min_size=DIM, max_size=DIM)
METADATA = st.one_of(
    st.none(),
    st.fixed_dictionaries({"kind": st.sampled_from("abc"), "n": st.integers(0, 5)}),
    st.fixed_dictionaries({"n": st.integers(0, 5), "tags": st.lists(st.sampled_from("xyz"), max_size=2)}),
)
SECONDS = st.integers(0, 40).map(float)
#: One row in five or so has no vector.
ITEM = st.tuples(IDS, st.one_of(VECTORS, VECTORS, VECTORS, VECTORS, st.none()), METADATA, st.none() | SECONDS)
#: Filters, and what they mean.
FILTERS: list[tuple[Any, Any]] = [
    ({"kind": "a"}, lambda m: m.get("kind") == "a"),
    ({"kind": {"$ne": "a"}}, lambda m: m.get("kind") != "a"),
    ({"n": {"$gte": 3}}, lambda m: m.get("n", -1) >= 3),
    ({"n": {"$in": [0, 5]}, "tags": "x"}, lambda m: m.get("n") in (0, 5) and "x" in m.get("tags", [])),
    ({"$or": [{"tags": {"$exists": False}}, {"n": 2}]}, lambda m: "tags" not in m or m.get("n") == 2),
]
FILTER = st.sampled_from(FILTERS)


class Held(NamedTuple):
    vector: list[float] | None
    metadata: Any
    expires: float | None


def held_by(row: Row) -> Held:
    return Held(None if row.vector is None else row.vector.tolist(), row.metadata, row.expires_at)


class SessionAgainstDict(RuleBasedStateMachine):
    """Both are told the same, and asked the same."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 10.0
        self.uri = f"memory:{uuid.uuid4()}"
        self.memories = itertools.cycle(["fast", "default", "compact"])
        self.session = self.opened()
        self.rows: dict[str, Held] = {}
        self.saved: tuple[str, dict[str, Held]] | None = None

    def opened(self) -> VectorDBSession:
        fields = {"user_seed_phrase": PHRASE, "session_id": "test", "metric": "l2", "clock": lambda: self.now}
        # Rows are old after some seconds, and parts are so small that lazy loads have some to fetch.
        # A session after a load has another memory setting than the one that saved.
        fields |= {"memory": next(self.memories), "threads": 1}
        return VectorDBSession.create(s5_portal=self.uri, recent_window_s=4.0, chunk_size=128, **fields)

    def teardown(self) -> None:
        self.session.destroy()

    def alive(self, takes: Any = None) -> dict[str, Held]:
        return {
            id: held
            for id, held in self.rows.items()
            if (held.expires is None or held.expires > self.now) and (takes is None or takes(held.metadata or {}))
        }

    def change(self) -> None:
        """Changes delete what has expired for good, whatever the clock says later."""
        self.rows = self.alive()

    # ---- what is done

    @initialize(many=st.booleans(), vectorless_every=st.sampled_from([0, 1, 2, 9]))
    def begin(self, many: bool, vectorless_every: int) -> None:
        """Sometimes with so many rows that there is a graph; each nth of them, or all, without a vector."""
        if many:
            array = np.random.default_rng(5).integers(-3, 4, (1_200, DIM)).astype(np.float32)
            vectors = [
                None if vectorless_every and row % vectorless_every == 0 else array[row].tolist()
                for row in range(1_200)
            ]
            ids, metadata = [f"row-{row}" for row in range(1_200)], [{"n": row % 6} for row in range(1_200)]
            self.session.add_batch(ids, vectors if vectorless_every else array, metadata)
            self.rows = {
                id: Held(vector, value, None) for id, vector, value in zip(ids, vectors, metadata, strict=True)
            }

    @rule(
        items=st.lists(ITEM, max_size=6, unique_by=lambda item: item[0]),
        on_conflict=st.sampled_from(["error", "replace", "skip"]),
    )
    def add(self, items: list[tuple[str, list[float], Any, float | None]], on_conflict: str) -> None:
        there = {id for id, *_ in items} & self.alive().keys()
        if items:
            self.change()
        given = [{"id": i, "vector": v, "metadata": m, "expires_at": e} for i, v, m, e in items]
        if there and on_conflict == "error":
            with pytest.raises(ConflictError):
                self.session.add_vectors(given)
            return
        result = self.session.add_vectors(given, on_conflict=on_conflict)
        skipped = there if on_conflict == "skip" else set()
        self.rows |= {id: Held(*held) for id, *held in items if id not in skipped}
        assert result.skipped == len(skipped)
        assert result.replaced == len(there) - len(skipped)
        assert result.added == len(items) - len(there)

    @rule(id=IDS, metadata=METADATA, merge=st.booleans())
    def update(self, id: str, metadata: Any, merge: bool) -> None:
        self.change()
        if id not in self.rows:
            with pytest.raises(NotFoundError):
                self.session.update_metadata(id, metadata or {}, merge=merge)
            return
        held = self.rows[id]
        value = {**(held.metadata or {}), **(metadata or {})} if merge else metadata
        self.session.update_metadata(id, (metadata or {}) if merge else metadata, merge=merge)
        self.rows[id] = held._replace(metadata=value)

    @rule(id=IDS)
    def delete(self, id: str) -> None:
        self.change()
        assert self.session.delete_vector(id, missing_ok=True).deleted_count == (id in self.rows)
        self.rows.pop(id, None)

    @rule(filter=FILTER)
    def delete_by_metadata(self, filter: tuple[Any, Any]) -> None:
        self.change()
        gone = self.alive(filter[1])
        assert set(self.session.delete_by_metadata(filter[0]).deleted_ids) == gone.keys()
        self.rows = {id: held for id, held in self.rows.items() if id not in gone}

    @rule()
    def vacuum(self) -> None:
        self.change()
        self.session.vacuum()
        assert self.session.get_stats().deleted_count == 0

    @rule()
    def optimize(self) -> None:
        self.change()
        self.session.optimize()
        assert self.session.get_stats().deleted_count == 0

    @rule(now=SECONDS)
    def set_the_clock(self, now: float) -> None:
        self.now = now

    @rule()
    def save(self) -> None:
        self.saved = self.session.save_to_s5(), dict(self.rows)

    @precondition(lambda self: self.saved is not None)
    @rule(elsewhere=st.booleans(), lazy=st.booleans())
    def load(self, elsewhere: bool, lazy: bool) -> None:
        assert self.saved is not None
        if elsewhere:
            self.session.destroy()
            self.session = self.opened()
        with patch.object(load_module, "_LAZY_BYTES_MIN", 0):
            self.session.load_user_vectors(self.saved[0], discard_unsaved=True, lazy_load=lazy)
        self.rows = dict(self.saved[1])

    # ---- what is asked

    @rule(query=VECTORS, k=st.integers(1, 30), filter=st.none() | FILTER)
    def search(self, query: list[float], k: int, filter: tuple[Any, Any] | None) -> None:
        wanted = {id: held for id, held in self.alive(filter and filter[1]).items() if held.vector is not None}
        distances = {id: float(np.linalg.norm(np.subtract(held.vector, query))) for id, held in wanted.items()}
        options = {"threshold": None, "filter": filter and filter[0]}
        # First those that an index which was loaded lazily answers from parts.
        for hits in (self.session.search(query, k, **options), self.session.search_batch([query], k, **options)[0]):
            assert len(hits) == min(k, len(wanted))
            assert {hit.id for hit in hits} <= wanted.keys()
        order = sorted(wanted, key=lambda id: (distances[id], id))
        exact = self.session.search(query, k, exact=True, include_vectors=True, **options)
        assert [hit.id for hit in exact] == order[:k]
        for hit in exact:
            assert hit.distance == pytest.approx(distances[hit.id], abs=1e-12)
            assert (hit.metadata, hit.vector.tolist()) == (wanted[hit.id].metadata, wanted[hit.id].vector)
        assert [hit.id for hit in self.session.search_stream(query, **options)] == order

    @rule(filter=FILTER)
    def select(self, filter: tuple[Any, Any]) -> None:
        wanted = self.alive(filter[1])
        assert self.session.count(filter[0]) == len(wanted)
        assert {row.id: held_by(row) for row in self.session.scan(filter[0])} == wanted
        counted = {facet.value: facet.count for facet in self.session.facets("n", filter[0])}
        numbers = [held.metadata["n"] for held in wanted.values() if held.metadata is not None and "n" in held.metadata]
        assert counted == {number: numbers.count(number) for number in numbers}

    @invariant()
    def the_same_rows(self) -> None:
        alive = self.alive()
        stats = self.session.get_stats()
        assert self.session.count() == stats.vector_count == len(alive)
        assert stats.without_vector_count == sum(held.vector is None for held in alive.values())
        some = [*list(alive)[:5], "id-0", "id-9"]
        for id, row in zip(some, self.session.get(some), strict=True):
            assert (row and held_by(row)) == alive.get(id)


TestSessionAgainstDict = SessionAgainstDict.TestCase
TestSessionAgainstDict.settings = settings(
    max_examples=10, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.long
class TestSessionAgainstDictForLong(SessionAgainstDict.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(TestSessionAgainstDict.settings, max_examples=400, stateful_step_count=80)
