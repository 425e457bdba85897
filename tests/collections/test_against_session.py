"""A collection against a session with the same rows, over random changes and questions (hypothesis, stateful).

Shards of so few rows are always in memory; `test_lazy_shards.py` has those that are opened lazily.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gathering import PHRASE, bits, group, settings as fields_of, told
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from fabstir_vectordb import SearchResults, VectorInput
from fabstir_vectordb.collections import Engine, over
from fabstir_vectordb.collections.sync import Collection, build
from fabstir_vectordb.sync import VectorDBSession

DIM = 4
ID_LIST = [f"id-{number}" for number in range(30)]
IDS = st.sampled_from(ID_LIST)
#: Few different components: many distances are equal, between shards, too.
VECTOR = st.lists(st.integers(-3, 3).map(float), min_size=DIM, max_size=DIM).filter(any)
WORDS = st.lists(st.sampled_from("red green apple apples pear tree trees".split()), max_size=6).map(" ".join)
FIELDS: dict[str, Any] = {
    "kind": st.sampled_from("abc"),
    "n": st.integers(0, 5) | st.sampled_from([2.0, 2.5, None, True]),
    "tags": st.lists(st.sampled_from(["x", "y", 3]), max_size=3),
}


def item(text: dict[str, Any], expires: list[float | None]) -> Any:
    """Rows of which several have the same time, so ids decide, and few have no vector."""
    return st.builds(
        VectorInput,
        id=IDS,
        vector=st.one_of(*[VECTOR] * 7, st.none()),
        metadata=st.none() | st.fixed_dictionaries({}, optional={**FIELDS, **text}),
        timestamp=st.integers(1, 4).map(float),
        expires_at=st.sampled_from(expires),
    )


LIVE = item({"text": WORDS | st.lists(WORDS, max_size=2)}, [None, None, 4e9])
#: Words of an expired row count until a change, which comes to its shard later than to the session: it has none.
ITEM = st.one_of(*[LIVE] * 7, item({}, [5.0]))
ITEMS = st.lists(ITEM, max_size=8, unique_by=lambda item: item.id)
FILTER = st.sampled_from(
    [
        None,
        None,
        {"kind": "a"},
        {"kind": {"$ne": "a"}},
        {"n": {"$gte": 2}, "tags": {"$in": ["x", 3]}},
        {"$or": [{"tags": {"$exists": False}}, {"n": 2}, {"n": None}]},
        {"$not": {"text": {"$contains": "red"}}},
    ]
)
FIELD = st.sampled_from(["kind", "n", "tags", "none"])
K = st.sampled_from([1, 3, 7, 60])
TEXT = st.sampled_from(["red apple", "app*", "+green -pear", '"apple tree" red', "-red", "nothing", ""])
CHOSEN: list[dict[str, Any]] = [
    {},
    {"include_vectors": True},
    {"threshold": 0.2},
    {"group_by": "kind", "group_size": 2},
    {"group_by": "tags", "group_size": 3},
    {"group_by": "n"},
    {"mmr": 0.6},
]
SAID: list[dict[str, Any]] = [
    {},
    {"highlight": True, "include_vectors": True},
    {"threshold": 0.3},
    {"fusion": "rrf"},
    {"fusion": "weighted", "alpha": 0.3},
    {"group_by": "tags", "group_size": 2},
]


def all_of(found: SearchResults) -> Any:
    return told(found), list(map(group, found.groups))


class CollectionAgainstSession(RuleBasedStateMachine):
    """Both are told the same, and asked the same: they answer the same, bit for bit.

    Args:
        engine: of the collection; None for threads.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        super().__init__()
        self.engine = engine
        self.folder = Path(tempfile.mkdtemp(prefix="against"))

    def teardown(self) -> None:
        if hasattr(self, "many"):
            self.many.close()
            self.one.destroy()
        shutil.rmtree(self.folder)

    @initialize(
        items=st.lists(ITEM, min_size=1, max_size=30, unique_by=lambda item: item.id),
        shards=st.integers(1, 4),
        route=st.sampled_from(["nearest", "hash", "range"]),
        metric=st.sampled_from(["cosine", "l2", "dot"]),
    )
    def begin(self, items: list[VectorInput], shards: int, route: Any, metric: Any) -> None:
        items = [VectorInput("first", [1.0] * DIM, {"text": "red"}, 1.0), *items]
        self.fields = {"text_fields": "text", "metric": metric}
        build(fields_of(self.folder), [items], shards=shards, route=route, engine=self.engine, **self.fields)
        self.many = Collection.open(fields_of(self.folder), engine=self.engine)
        self.one = VectorDBSession.create(
            s5_portal="memory:", user_seed_phrase=PHRASE, session_id="one", threads=1, **self.fields
        )
        self.one.add_vectors(items)

    # ---- what is done

    @rule(items=ITEMS, gone=st.lists(IDS, max_size=6, unique=True))
    def change(self, items: list[VectorInput], gone: list[str]) -> None:
        added = {item.id for item in items}
        gone = [id for id in gone if id not in added]
        self.many.change(items, gone, missing_ok=True)
        self.one.delete(gone, missing_ok=True)
        self.one.add_vectors(items, on_conflict="replace")

    @rule()
    def vacuum(self) -> None:
        self.many.vacuum()
        self.one.vacuum()

    @rule(rows_max=st.sampled_from([10, 20]))
    def rebalance(self, rows_max: int) -> None:
        self.many.rebalance(rows_max=rows_max, rows_min=3)

    @rule()
    def open_again(self) -> None:
        self.many.close()
        self.many = Collection.open(fields_of(self.folder), engine=self.engine)

    # ---- what is asked

    @rule(queries=st.lists(VECTOR, min_size=1, max_size=3), k=K, where=FILTER, chosen=st.sampled_from(CHOSEN))
    def by_vector(self, queries: list[list[float]], k: int, where: Any, chosen: dict[str, Any]) -> None:
        options = {"filter": where, "exact": True, "threshold": None, **chosen}
        expected = self.one.search_batch(queries, k, **options)
        assert list(map(all_of, self.many.search_batch(queries, k, **options))) == list(map(all_of, expected))
        assert all_of(self.many.search(queries[0], k, **options)) == all_of(expected[0])
        del options["exact"]  # so few rows are scored exactly in any case
        assert all_of(self.many.search(queries[0], k, **options)) == all_of(self.one.search(queries[0], k, **options))

    @rule(text=TEXT, query=st.none() | VECTOR, k=K, where=FILTER, said=st.sampled_from(SAID))
    def by_words(self, text: str, query: list[float] | None, k: int, where: Any, said: dict[str, Any]) -> None:
        options = {"text": text, "filter": where, **said}
        if query is None and "fusion" in said:
            del options["fusion"]
            options.pop("alpha", None)
        assert all_of(self.many.search(query, k, **options)) == all_of(self.one.search(query, k, **options))

    @rule(query=VECTOR, text=st.none() | TEXT, where=FILTER, least=st.sampled_from([None, 0.25]), alone=st.booleans())
    def stream(self, query: list[float], text: str | None, where: Any, least: float | None, alone: bool) -> None:
        given = None if alone and text is not None else query
        options = {"text": text, "filter": where, "threshold": least, "include_vectors": True}
        of_many, of_one = (list(db.search_stream(given, **options)) for db in (self.many, self.one))
        assert told(SearchResults(of_many, 0, "flat")) == told(SearchResults(of_one, 0, "flat"))

    @rule(where=FILTER, field=FIELD, order=st.sampled_from(["-count", "value"]))
    def counts(self, where: Any, field: str, order: Any) -> None:
        assert self.many.count(where) == self.one.count(where)
        assert self.many.facets(field, where, order=order) == self.one.facets(field, where, order=order)
        some: dict[str, Any] = {"limit": 2, "offset": 1}
        assert self.many.facets(field, where, **some) == self.one.facets(field, where, **some)
        assert self.many.fields(where) == self.one.fields(where)

    @rule(where=FILTER, limit=st.integers(1, 12))
    def pages(self, where: Any, limit: int) -> None:
        assert list(map(bits, self.many.scan(where))) == list(map(bits, self.one.scan(where)))
        cursor = None
        while True:
            of_many, of_one = (db.scan_page(where, limit=limit, cursor=cursor) for db in (self.many, self.one))
            assert list(map(bits, of_many.rows)) == list(map(bits, of_one.rows))
            assert (of_many.cursor, of_many.has_more) == (of_one.cursor, of_one.has_more)
            if not of_many.has_more:
                break
            cursor = of_many.cursor

    @invariant()
    def the_same_rows(self) -> None:
        if not hasattr(self, "many"):
            return
        asked = [*ID_LIST, "nothing", "id-3"]
        assert list(map(bits, self.many.get(asked))) == list(map(bits, self.one.get(asked)))
        assert self.many.get_timestamps() == self.one.get_timestamps()
        assert self.many.count() == self.one.count()


SHORT = settings(max_examples=6, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(SHORT, max_examples=150, stateful_step_count=40)


def test_a_collection_is_as_one_session() -> None:
    run_state_machine_as_test(CollectionAgainstSession, settings=SHORT)


@pytest.mark.long
def test_a_collection_is_as_one_session_for_long() -> None:
    run_state_machine_as_test(CollectionAgainstSession, settings=LONG)


@pytest.mark.long
def test_a_collection_in_a_pool_of_processes_is_as_one_session() -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        run_state_machine_as_test(
            lambda: CollectionAgainstSession(over(pool)), settings=settings(SHORT, max_examples=20)
        )
