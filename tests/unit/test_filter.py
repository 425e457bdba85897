"""The filter engine: what is understood, and the columns against a second, naive evaluator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fabstir_vectordb import InvalidInputError
from fabstir_vectordb.metadata.arena import MetadataArena
from fabstir_vectordb.metadata.columns import Columns
from fabstir_vectordb.metadata.filter_eval import bitmap, evaluate, slots_of
from fabstir_vectordb.metadata.filter_parse import (
    FILTER_CLAUSES_MAX,
    FILTER_DEPTH_MAX,
    check_field,
    parse_filter,
)
from fabstir_vectordb.metadata.values import encode_metadata

# ---- a second evaluator, row by row, as the documentation reads


def reached(value: Any, steps: list[str]) -> Iterator[Any]:
    if not steps:
        yield value
    elif isinstance(value, dict) and steps[0] in value:
        yield from reached(value[steps[0]], steps[1:])
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from reached(item, steps)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def same(a: Any, b: Any) -> bool:
    if is_number(a) or is_number(b):
        return is_number(a) and is_number(b) and a == b
    return type(a) is type(b) and a == b


def ordered(a: Any, b: Any) -> bool:
    return (is_number(a) and is_number(b)) or (isinstance(a, str) and isinstance(b, str))


def holds(found: list[Any], op: str, value: Any) -> bool:
    flat = [item for one in found for item in (one if isinstance(one, list) else [one])]
    match op:
        case "$exists":
            return bool(found) == value
        case "$eq":
            return any(same(item, value) for item in flat)
        case "$ne":
            return not holds(found, "$eq", value)
        case "$in":
            return any(same(item, one) for item in flat for one in value)
        case "$nin":
            return not holds(found, "$in", value)
        case "$gt":
            return any(ordered(item, value) and item > value for item in flat)
        case "$gte":
            return any(ordered(item, value) and item >= value for item in flat)
        case "$lt":
            return any(ordered(item, value) and item < value for item in flat)
        case "$lte":
            return any(ordered(item, value) and item <= value for item in flat)
        case "$not":
            return not all(holds(found, *entry) for entry in value.items())
        case "$contains":
            if len(found) == 1 and isinstance(found[0], str):
                return isinstance(value, str) and value in found[0]
            return (
                bool(found)
                and (len(found) > 1 or isinstance(found[0], list))
                and any(same(item, value) for item in flat)
            )
    raise AssertionError(op)


def takes(filter: Any, metadata: Any) -> bool:
    def one(key: str, value: Any) -> bool:
        if key == "$and":
            return all(takes(part, metadata) for part in value)
        if key == "$or":
            return any(takes(part, metadata) for part in value)
        if key == "$not":
            return not takes(value, metadata)
        found = list(reached(metadata, key.split(".")))
        if isinstance(value, dict):
            return all(holds(found, op, operand) for op, operand in value.items())
        return holds(found, "$eq", value)

    return all(one(key, value) for key, value in filter.items())


# ---- both of them


def arena_of(rows: list[Any]) -> MetadataArena:
    arena = MetadataArena()
    encoded = [encode_metadata(row) for row in rows]
    staged = arena.stage(encoded, len(rows))
    arena.commit(staged, np.arange(len(rows), dtype=np.uint32), np.arange(len(rows)))
    return arena


def taken(columns: Columns, arena: MetadataArena, rows: int, filter: Any) -> list[int]:
    where = parse_filter(filter)
    mask = evaluate(where.node, columns.get(where.paths, arena, rows), rows)
    slots = slots_of(bitmap(mask), rows).tolist()
    assert slots == np.flatnonzero(mask).tolist()
    return slots


HUGE = [2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0, 1e300, -1e300, float(2**53), float(2**63), 5e-324]),
    st.sampled_from(HUGE),
)
TEXTS = st.sampled_from(["", "a", "ab", "b", "B", "é", "2024-01-31", "2024-02-01", "\U0001f600", "a\0b", "1"])
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
KEYS = st.sampled_from(["x", "y", "z"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
ROWS = st.lists(st.one_of(st.none(), st.dictionaries(KEYS, VALUES, max_size=3), VALUES), max_size=12)
PATHS = st.sampled_from(["x", "y", "x.y", "x.x", "y.z.x", "q"])
LIMITS = st.one_of(NUMBERS, TEXTS, st.sampled_from([10**400, -(10**400), 2**64, np.float32(0.5), np.int64(2)]))
CONDITIONS = st.recursive(
    st.one_of(
        st.fixed_dictionaries({"$eq": SCALARS}),
        st.fixed_dictionaries({"$ne": SCALARS}),
        st.fixed_dictionaries({"$in": st.lists(SCALARS, max_size=4)}),
        st.fixed_dictionaries({"$nin": st.lists(SCALARS, max_size=4)}),
        *(st.fixed_dictionaries({op: LIMITS}) for op in ("$gt", "$gte", "$lt", "$lte")),
        st.fixed_dictionaries({"$gte": LIMITS, "$lt": LIMITS}),
        st.fixed_dictionaries({"$exists": st.booleans()}),
        st.fixed_dictionaries({"$contains": SCALARS}),
    ),
    lambda inner: st.fixed_dictionaries({"$not": inner}),
    max_leaves=2,
)
FILTERS = st.recursive(
    st.dictionaries(PATHS, SCALARS | CONDITIONS, max_size=3),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$not": inner}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=2), "x": CONDITIONS}),
    ),
    max_leaves=4,
)


@settings(max_examples=600, deadline=None)
@given(ROWS, st.lists(FILTERS, min_size=1, max_size=3))
def test_columns_agree_with_a_row_by_row_evaluator(rows: list[Any], filters: list[Any]) -> None:
    arena, columns = arena_of(rows), Columns()
    for filter in filters:
        assert taken(columns, arena, len(rows), filter) == [
            slot for slot, metadata in enumerate(rows) if takes(filter, metadata)
        ]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_columns_follow_what_happens_to_the_rows(data: st.DataObject) -> None:
    rows = data.draw(ROWS)
    filters = data.draw(st.lists(FILTERS, min_size=1, max_size=2))
    arena, columns = arena_of(rows), Columns()
    for _ in range(data.draw(st.integers(1, 4))):
        for filter in filters:
            taken(columns, arena, len(rows), filter)
        what = data.draw(st.sampled_from(["add", "update", "vacuum"]))
        if what == "add":
            more = data.draw(ROWS)
            slots = np.arange(len(rows), len(rows) + len(more), dtype=np.uint32)
            rows = rows + more
            arena.commit(arena.stage([encode_metadata(row) for row in more], len(rows)), slots, np.arange(len(more)))
        elif what == "update" and rows:
            slot, value = data.draw(st.integers(0, len(rows) - 1)), data.draw(VALUES)
            rows = [*rows[:slot], value, *rows[slot + 1 :]]
            staged = arena.stage([encode_metadata(value)], slot + 1)
            arena.commit(staged, np.array([slot], dtype=np.uint32), np.zeros(1, dtype=np.intp))
            columns.touch(slot)
        elif what == "vacuum":
            kept = [slot for slot in range(len(rows)) if data.draw(st.booleans())]
            columns.renumber(np.array(kept, dtype=np.uint32))
            arena, rows = arena.compacted(np.array(kept, dtype=np.uint32)), [rows[slot] for slot in kept]
        for filter in filters:
            assert taken(columns, arena, len(rows), filter) == [
                slot for slot, metadata in enumerate(rows) if takes(filter, metadata)
            ]


# ---- what is understood


@pytest.mark.parametrize(
    ("filter", "message", "path", "operator"),
    [
        ([], "must be a dict of fields, got list", "", None),
        ("x", "must be a dict of fields, got str", "", None),
        ({1: 2}, "key of type int", "", None),
        ({"$where": "1"}, r"'\$where' where only \$and, \$or, \$not may stand", "", "$where"),
        ({"$gt": 1}, "belongs to a field", "", "$gt"),
        ({"$and": {}}, r"needs a list of at least one filter after \$and", "", "$and"),
        ({"$or": []}, r"needs a list of at least one filter after \$or", "", "$or"),
        ({"$and": [{"$or": [3]}]}, "must be a dict", "$and[0].$or[0]", None),
        ({"$not": [1]}, "must be a dict", "$not", None),
        ({"": 1}, "a step of the path is empty", "''", None),
        ({"a..b": 1}, "a step of the path is empty", "a..b", None),
        ({"a": {}}, "has no operator", "a", None),
        ({"a": {"$near": 1}}, r"operator '\$near'", "a", "$near"),
        ({"a": {"b": 1}}, "compare its fields, as in a.b", "a", None),
        ({"a": {"$eq": 1, "b": 1}}, "compare its fields", "a", None),
        ({"a": [1]}, r"type list after \$eq", "a", "$eq"),
        ({"a": {"$ne": {"b": 1}}}, r"type dict after \$ne", "a", "$ne"),
        ({"a": float("nan")}, "no metadata holds", "a", "$eq"),
        ({"a": {"$in": "ab"}}, r"list of values after \$in", "a", "$in"),
        ({"a": {"$nin": 3}}, r"list of values after \$nin", "a", "$nin"),
        ({"a": {"$in": [[1]]}}, r"type list after \$in", "a", "$in"),
        ({"a": {"$exists": 1}}, "True or False", "a", "$exists"),
        ({"a": {"$gt": None}}, "only numbers and strings are ordered", "a", "$gt"),
        ({"a": {"$lte": True}}, "only numbers and strings are ordered", "a", "$lte"),
        ({"a": {"$not": 1}}, "dict of operators after", "a", "$not"),
        ({"\ud800": [1]}, "type list", "\\ud800", "$eq"),
    ],
)
def test_what_is_not_understood_is_refused(filter: Any, message: str, path: str, operator: str | None) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        parse_filter(filter)
    assert (caught.value.details["path"], caught.value.details["operator"]) == (path, operator)
    str(caught.value).encode()


def test_filters_have_limits() -> None:
    deep: Any = {"a": 1}
    for _ in range(FILTER_DEPTH_MAX + 1):
        deep = {"$not": deep}
    with pytest.raises(InvalidInputError, match="nested more than"):
        parse_filter(deep)
    inner: Any = {"$eq": 1}
    for _ in range(FILTER_DEPTH_MAX + 1):
        inner = {"$not": inner}
    with pytest.raises(InvalidInputError, match="nested more than"):
        parse_filter({"a": inner})
    with pytest.raises(InvalidInputError, match="comparisons"):
        parse_filter({"$or": [{"a": 1}] * (FILTER_CLAUSES_MAX + 1)})
    assert parse_filter({"a": {"$in": list(range(50_000))}}).paths == ("a",)


def test_true_is_not_one() -> None:
    rows = [{"a": True}, {"a": 1}, {"a": [1.0]}, {"a": [True]}]
    arena, columns = arena_of(rows), Columns()
    assert taken(columns, arena, 4, {"a": True}) == [0, 3]
    assert taken(columns, arena, 4, {"a": 1}) == [1, 2]
    assert parse_filter({"a": True}).key != parse_filter({"a": 1}).key
    assert parse_filter({"a": {"$in": [1, "b", 1]}}).key == parse_filter({"a": {"$in": ["b", 1]}}).key


def test_a_column_knows_its_size() -> None:
    rows = [{"a": f"text {row}", "b": row} for row in range(1_000)]
    arena, columns = arena_of(rows), Columns()
    assert columns.nbytes == 0
    assert columns.missing_bytes(["a", "b"], 1_000) == 26_000
    columns.get(["a", "b"], arena, 1_000)
    assert 26_000 + 1_000 * 150 <= columns.nbytes <= 26_000 + 1_000 * 250
    assert columns.missing_bytes(["a", "c"], 1_010) == 130 + 13_130
    columns.clear()
    assert columns.nbytes == 0


def test_values_are_counted_once_a_row() -> None:
    rows = [{"a": ["x", "x", 1]}, {"a": "x"}, {"a": 1.0}, {"a": 2**64 - 1}, {"a": [2**64 - 1] * 2}, {"a": None}, {}]
    arena, columns = arena_of(rows), Columns()
    column = columns.get(["a"], arena, len(rows))["a"]
    counted = dict(column.values(np.arange(len(rows))))
    assert counted == {"x": 2, 1: 2, 2**64 - 1: 2, None: 1}
    assert dict(column.values(np.array([0, 6]))) == {"x": 1, 1: 1}


@pytest.mark.parametrize("path", ["", ".", "a.", 3, None])
def test_a_field_is_a_path(path: Any) -> None:
    with pytest.raises(InvalidInputError):
        check_field(path)
    assert check_field("a.b") == "a.b"
