"""Filters that are built as expressions: the same trees as dicts, and no way to lose a part of one."""

from __future__ import annotations

import operator
import pickle
from datetime import UTC, datetime
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fabstir_vectordb import F, InvalidInputError, Where, sync
from fabstir_vectordb.metadata.filter_parse import FILTER_CLAUSES_MAX, is_large, parse_filter


def as_any(value: Any) -> Any:
    """Past the types, which refuse these mistakes, too."""
    return value


PAIRS: list[tuple[Where, dict[str, Any]]] = [
    (F("year") == 2020, {"year": 2020}),
    (F("year") != 2020, {"year": {"$ne": 2020}}),
    (F("year") > 2020, {"year": {"$gt": 2020}}),
    (F("year") >= np.int64(2020), {"year": {"$gte": 2020}}),
    (F("year") < 2020.5, {"year": {"$lt": 2020.5}}),
    (F("year") <= 2020, {"year": {"$lte": 2020}}),
    (2020 < F("year"), {"year": {"$gt": 2020}}),  # noqa: SIM300
    (F("year").between(2020, 2024), {"year": {"$gte": 2020, "$lte": 2024}}),
    (F("kind").is_in(("a", "b")), {"kind": {"$in": ["a", "b"]}}),
    (F("kind").is_in(letter for letter in "ab"), {"kind": {"$in": ["a", "b"]}}),
    (F("kind").not_in({"a"}), {"kind": {"$nin": ["a"]}}),
    (F("tags").contains("a"), {"tags": {"$contains": "a"}}),
    (F("tags").icontains("A"), {"tags": {"$icontains": "a"}}),
    (F("tags").starts_with("a"), {"tags": {"$startsWith": "a"}}),
    (F("tags").has_all(["a", "b"]), {"tags": {"$all": ["a", "b"]}}),
    (F("tags").size(2), {"tags": {"$size": 2}}),
    (F("tags") == ["a", "b"], {"tags": ["a", "b"]}),
    (F("tags") == [], {"tags": []}),
    (F("tags").exists(), {"tags": {"$exists": True}}),
    (F("tags").exists(False), {"tags": {"$exists": False}}),
    (F("at") >= datetime(2024, 1, 1, tzinfo=UTC), {"at": {"$gte": datetime(2024, 1, 1, tzinfo=UTC)}}),
    (F("none") == None, {"none": None}),  # noqa: E711
    (F("versions")["1.0"] == 1, {'versions."1.0"': 1}),
    (F('"v1.0"')["a"] == 1, {'"v1.0".a': 1}),
    (F.id == "a", {"$id": "a"}),
    (F("$id").starts_with("a"), {"$id": {"$startsWith": "a"}}),
    (F.timestamp >= 5, {"$timestamp": {"$gte": 5}}),
    ((F("a") == 1) & (F("b") == 2), {"$and": [{"a": 1}, {"b": 2}]}),
    ((F("a") == 1) | (F("b") == 2), {"$or": [{"a": 1}, {"b": 2}]}),
    (~(F("a") == 1), {"$not": {"a": 1}}),
    ((F("a") == 1) & {"b": 2, "c": 3}, {"$and": [{"a": 1}, {"b": 2, "c": 3}]}),
    ({"b": 2} | (F("a") == 1), {"$or": [{"b": 2}, {"a": 1}]}),
    ({"$or": [{"b": 2}]} | (F("a") == 1), {"$or": [{"$or": [{"b": 2}]}, {"a": 1}]}),
]


@pytest.mark.parametrize(("built", "written"), PAIRS)
def test_an_expression_makes_the_tree_of_its_dict(built: Where, written: dict[str, Any]) -> None:
    assert parse_filter(built) == parse_filter(written)
    assert parse_filter(pickle.loads(pickle.dumps(built))) == parse_filter(written)


@settings(max_examples=60)
@given(st.data())
def test_combinations_nest_as_their_dicts_do(data: st.DataObject) -> None:
    both = st.recursive(
        st.sampled_from(PAIRS),
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda p: (p[0][0] & p[1][0], {"$and": [p[0][1], p[1][1]]})),
            st.tuples(inner, inner).map(lambda p: (p[0][0] | p[1][0], {"$or": [p[0][1], p[1][1]]})),
            inner.map(lambda one: (~one[0], {"$not": one[1]})),
        ),
        max_leaves=6,
    )
    built, written = data.draw(both)
    rows = [{"a": a, "b": b, "year": year} for a in (1, 2) for b in (2, None) for year in (2019, 2020, 2022)]
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase="x", session_id="x") as session:
        session.add_batch([str(n) for n in range(len(rows))], None, rows)
        assert [row.id for row in session.scan(built)] == [row.id for row in session.scan(written)]
        session.clear()


def test_a_long_sum_is_not_nested() -> None:
    ored = reduce(operator.or_, [F("a") == n for n in range(FILTER_CLAUSES_MAX)])
    assert parse_filter(ored) == parse_filter({"$or": [{"a": n} for n in range(FILTER_CLAUSES_MAX)]})
    assert is_large((F("a") == 1) & F("b").is_in(range(20_000)))
    with pytest.raises(InvalidInputError, match="comparisons"):
        parse_filter(ored | (F("a") == -1))


def test_an_expression_is_a_mapping_and_cannot_be_changed() -> None:
    built = F("year") >= 2020
    assert dict(built) == {"year": {"$gte": 2020}} == built
    assert repr(built) == "Where({'year': {'$gte': 2020}})"
    with pytest.raises(TypeError):
        built["year"] = 1  # type: ignore[index]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: F("a") == 1 and F("b") == 2, "combine filters with & | ~"),
        (lambda: (F("a") == 1) or {}, "combine filters with & | ~"),
        (lambda: not F("a") == 1, "combine filters with & | ~"),  # noqa: SIM201
        (lambda: 1 < F("a") < 3, "combine filters with & | ~"),
        (lambda: as_any(F("a") == 1) & True, "combined with bool; a comparison needs brackets"),
        (lambda: as_any(F("a") == 1) & F("b"), "combined with F"),
        (lambda: F("a") == as_any(F("b")), "with a value, not with the field"),
        (lambda: bool(F("a")), "a field is no filter yet"),
        (lambda: F(""), "a step of the path is empty"),
        (lambda: F("a..b"), "a step of the path is empty"),
        (lambda: F(3), "a field must be a string"),
        (lambda: F("$price"), "quote it, as in"),
        (lambda: as_any(F("a"))[0], "a key must be a string"),
        (lambda: F.id["a"], r"\$id has no keys"),
    ],
)
def test_mistakes_are_refused_where_they_are_made(wrong: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        wrong()


@pytest.mark.parametrize(
    "wrong",
    [F("a").is_in("ab"), F("a").size(-1), F("a") > None, F("a") == object(), F("a") == {"b": 1}, F("a").exists(1)],
)
def test_wrong_values_are_refused_as_in_a_dict(wrong: Where) -> None:
    with pytest.raises(InvalidInputError, match="filter: a"):
        parse_filter(wrong)


def test_every_verb_with_a_filter_takes_an_expression() -> None:
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase="x", session_id="x") as session:
        session.add_batch(["a", "b", "c"], np.eye(3), [{"n": n} for n in range(3)])
        some = F("n") >= 1
        assert session.search([1, 1, 1], filter=some, threshold=None).ids == ["b", "c"]
        assert session.search_batch([[1, 1, 1]], filter=some, threshold=None)[0].ids == ["b", "c"]
        assert session.search([1, 1, 1], options={"filter": some, "threshold": None}).ids == ["b", "c"]
        assert [hit.id for hit in session.search_stream([1, 1, 1], filter=some, threshold=None)] == ["b", "c"]
        assert session.count(some) == 2
        assert len(session.facets("n", some)) == 2
        assert [row.id for row in session.scan(some)] == ["b", "c"]
        assert session.delete_by_metadata(some).deleted_ids == ["b", "c"]
        session.clear()
