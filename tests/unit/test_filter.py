"""The filter engine: what is understood, and the columns against a second, naive evaluator."""

from __future__ import annotations

import copy
import enum
import itertools
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from readings import reached

from fabstir_vectordb import F, InvalidInputError
from fabstir_vectordb.metadata.arena import MetadataArena
from fabstir_vectordb.metadata.columns import Columns
from fabstir_vectordb.metadata.filter_content import CONTENT_ITEMS_MAX, content_of
from fabstir_vectordb.metadata.filter_eval import bitmap, evaluate, slots_of
from fabstir_vectordb.metadata.filter_parse import (
    FILTER_CLAUSES_MAX,
    FILTER_DEPTH_MAX,
    FILTER_DICTS_MAX,
    FILTER_VALUES_MAX,
    check_field,
    is_large,
    parse_filter,
)
from fabstir_vectordb.metadata.path import PATH_LENGTH_MAX
from fabstir_vectordb.metadata.values import METADATA_DEPTH_MAX, encode_metadata

# ---- a second evaluator, row by row, as the documentation reads


def cut(path: str) -> list[tuple[str, bool]]:
    """The steps of a path, each with whether it is quoted."""
    steps = []
    for quoted, plain in re.findall(r'"((?:[^"\\]|\\.)*)"(?:\.|$)|([^".][^.]*)(?:\.|$)', path):
        steps.append((plain, False) if plain else (re.sub(r"\\(.)", r"\1", quoted), True))
    return steps


def key_sequences(steps: list[tuple[str, bool]]) -> Iterator[list[str]]:
    """Every way to read steps as keys: neighbours that are not quoted may be one key with dots."""
    if not steps:
        yield []
    for n in range(1, len(steps) + 1):
        if n > 1 and any(quoted for _, quoted in steps[:n]):
            break
        for rest in key_sequences(steps[n:]):
            yield [".".join(text for text, _ in steps[:n]), *rest]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def kind_of(value: Any) -> type:
    return float if is_number(value) else type(value)


def same(a: Any, b: Any) -> bool:
    return kind_of(a) is kind_of(b) and bool(a == b)


def same_list(a: Any, b: list[Any]) -> bool:
    return isinstance(a, list) and len(a) == len(b) and all(map(same, a, map(plain, b)))


def ordered(a: Any, b: Any) -> bool:
    return kind_of(a) is kind_of(b) and kind_of(a) in (float, str, date, datetime)


def holds(found: list[list[Any]], op: str, value: Any) -> bool:
    """Whether a comparison holds for a row that has these readings of a path, each with these values."""
    whole = [one for reading in found for one in reading]
    flat = [item for one in whole for item in (one if isinstance(one, list) else [one])]
    match op:
        case "$exists":
            return bool(found) == value
        case "$eq" if isinstance(value, list):
            return any(same_list(item, value) for item in [*whole, *flat])
        case "$eq":
            return any(same(item, value) for item in flat)
        case "$all":
            return bool(value) and all(holds(found, "$eq", one) for one in value)
        case "$size":
            return any(isinstance(one, list) and len(one) == value for one in whole)
        case "$startsWith":
            return any(isinstance(item, str) and item.startswith(value) for item in flat)
        case "$icontains":
            return any(isinstance(item, str) and value.casefold() in item.casefold() for item in flat)
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
            return any(contains(reading, value) for reading in found)
    raise AssertionError(op)


def contains(reading: list[Any], value: Any) -> bool:
    if len(reading) == 1 and not isinstance(reading[0], list):
        return isinstance(reading[0], str) and isinstance(value, str) and value in reading[0]
    flat = [item for one in reading for item in (one if isinstance(one, list) else [one])]
    return any(same(item, value) for item in flat)


def plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def read(metadata: Any, path: str) -> list[list[Any]]:
    return [values for keys in key_sequences(cut(path)) if (values := list(reached(metadata, keys)))]


def takes(filter: Any, metadata: Any) -> bool:
    def one(key: str, value: Any) -> bool:
        if key == "$and":
            return all(takes(part, metadata) for part in value)
        if key == "$or":
            return any(takes(part, metadata) for part in value)
        if key == "$not":
            return not takes(value, metadata)
        found = read(metadata, key)
        if isinstance(value, dict):
            return all(holds(found, op, plain(operand)) for op, operand in value.items())
        return holds(found, "$eq", plain(value))

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
    mask = evaluate(where.node, columns.get(where.paths, arena, rows, where.list_paths), rows)
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
EAST = timezone(timedelta(hours=5, minutes=30))
DAYS = st.sampled_from([date(2024, 1, 31), date(2024, 2, 1), date(1, 1, 1), date(9999, 12, 31)])
MOMENTS = st.sampled_from(
    [
        datetime(2024, 1, 31, tzinfo=UTC),
        datetime(2024, 1, 31, 5, 30, tzinfo=EAST),  # the same moment
        datetime(2024, 1, 31, tzinfo=EAST),
        datetime(2024, 1, 31, 0, 0, 0, 1, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ]
)
UUIDS = st.sampled_from([uuid.UUID(int=0), uuid.UUID(int=1), uuid.UUID(int=2**128 - 1)])
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, DAYS, MOMENTS, UUIDS)
KEYS = st.sampled_from(["x", "y", "z", "x.y", "y.z", "x.x", "", "$x", '"x"', "x.y.x"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
ROWS = st.lists(st.one_of(st.none(), st.dictionaries(KEYS, VALUES, max_size=3), VALUES), max_size=12)
PATHS = st.sampled_from(
    [
        *("x", "y", "x.y", "x.x", "y.z.x", "x.y.x", "x.y.x.y", "q", "x.$x"),
        *('"x.y"', '"x"."y"', '"x.y".x', 'x."y.z"', '""', '"$x"', r'"\"x\""', 'y."z".x'),
    ]
)
ODD = [10**400, -(10**400), 2**64, np.float32(0.5), np.int64(2), np.str_("a")]
# Deferred: as a part of FILTERS it would make an overly long repr.
LISTS = st.deferred(lambda: st.lists(SCALARS | st.sampled_from(ODD), max_size=3))
LIST_CONDITIONS = st.fixed_dictionaries({"$eq": LISTS}) | st.fixed_dictionaries({"$ne": LISTS})
LIMITS = st.one_of(NUMBERS, TEXTS, DAYS, MOMENTS, st.sampled_from(ODD))
CONDITIONS = st.recursive(
    st.one_of(
        st.fixed_dictionaries({"$eq": SCALARS}),
        st.fixed_dictionaries({"$ne": SCALARS}),
        st.fixed_dictionaries({"$in": st.lists(SCALARS | st.just(10**400), max_size=4)}),
        st.fixed_dictionaries({"$nin": st.lists(SCALARS, max_size=4)}),
        *(st.fixed_dictionaries({op: LIMITS}) for op in ("$gt", "$gte", "$lt", "$lte")),
        st.fixed_dictionaries({"$gte": LIMITS, "$lt": LIMITS}),
        st.fixed_dictionaries({"$exists": st.booleans()}),
        st.fixed_dictionaries({"$contains": SCALARS}),
        st.fixed_dictionaries({"$size": st.sampled_from([0, 1, 2, 3, 2**70])}),
        LIST_CONDITIONS,
        st.fixed_dictionaries({"$all": st.lists(SCALARS | LISTS, max_size=3)}),
        *(st.fixed_dictionaries({op: TEXTS | st.sampled_from(["A", "2024"])}) for op in ("$startsWith", "$icontains")),
    ),
    lambda inner: st.fixed_dictionaries({"$not": inner}),
    max_leaves=2,
)
FILTERS = st.recursive(
    st.dictionaries(PATHS, SCALARS | LISTS | CONDITIONS, max_size=3),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$not": inner}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=2), "x": CONDITIONS}),
    ),
    max_leaves=4,
)


@settings(max_examples=120, deadline=None)
@given(ROWS, st.lists(FILTERS, min_size=1, max_size=3))
def test_columns_agree_with_a_row_by_row_evaluator(rows: list[Any], filters: list[Any]) -> None:
    arena, columns = arena_of(rows), Columns()
    for filter in filters:
        assert taken(columns, arena, len(rows), filter) == [
            slot for slot, metadata in enumerate(rows) if takes(filter, metadata)
        ]


@settings(max_examples=50, deadline=None)
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
        ({"$where": "1"}, r"'\$where' where only \$and, \$or, \$not, \$id, \$timestamp are allowed", "", "$where"),
        ({"$gt": 1}, "belongs to a field", "", "$gt"),
        ({"$and": {}}, r"needs a list of at least one filter after \$and", "", "$and"),
        ({"$or": []}, r"needs a list of at least one filter after \$or", "", "$or"),
        ({"$and": [{"$or": [3]}]}, "must be a dict", "$and[0].$or[0]", None),
        ({"$not": [1]}, "must be a dict", "$not", None),
        ({"": 1}, r"a step of the path is empty; a key is quoted, as in '\"\"'", "''", None),
        ({"a..b": 1}, r"a step of the path is empty; a key is quoted, as in '\"a..b\"'", "a..b", None),
        ({"a.": 1}, "a step of the path is empty", "a.", None),
        ({'"a': 1}, "a quoted step is not closed", '"a', None),
        ({'"a"b': 1}, "a dot must follow a quoted step", '"a"b', None),
        ({'a."b".': 1}, "a step of the path is empty", 'a."b".', None),
        ({r'"\n"': 1}, "before", r'"\n"', None),
        ({".".join("a" * 101): 1}, "more than 100 steps", ".".join("a" * 101)[:200], None),
        ({"$price": 1}, r"to name a field, quote it, as in '\"\$price\"'", "", "$price"),
        ({"a": {"b.c": 1}}, r'as in a\."b\.c"', "a", None),
        ({"a": {"$gt": uuid.UUID(int=1)}}, "only numbers, strings, dates and datetimes", "a", "$gt"),
        ({"a": datetime(2024, 1, 31)}, "naive datetime", "a", "$eq"),
        ({"a": {"$in": [np.datetime64("2024-01-31")]}}, "no time zone", "a", "$in"),
        ({"a": {"$in": np.array(["2024-01-31"], dtype="M8[s]")}}, "no time zone", "a", "$in"),
        ({"a": {"$in": np.zeros((2, 2))}}, "2 dimensions", "a", "$in"),
        ({"a": {"$in": np.ma.array([1, 2], mask=[0, 1])}}, "masked", "a", "$in"),
        ({"a": {"$in": [1.0, float("inf")]}}, "inf", "a", "$in"),
        ({"a": {"$in": ["b", "\ud800"]}}, "lone surrogate", "a", "$in"),
        ({"a": "\ud800"}, "lone surrogate", "a", "$eq"),
        ({"a": {"$in": bytearray(b"ab")}}, r"list of values after \$in", "a", "$in"),
        ({"a": {"$near\ud800": 1}}, "operator", "a", "$near\\ud800"),
        ({"a": b"b"}, r"type bytes after \$eq", "a", "$eq"),
        ({"a": {}}, "has an empty dict", "a", None),
        ({"a": {"$near": 1}}, r"operator '\$near'", "a", "$near"),
        ({"a": {"b": 1}}, "compare its fields, as in a.b", "a", None),
        ({"a": {"$eq": 1, "b": 1}}, "compare its fields", "a", None),
        ({"a": [{"b": 1}]}, r"type dict after \$eq", "a", "$eq"),
        ({"a": [[1]]}, r"type list after \$eq", "a", "$eq"),
        ({"a": {"$ne": [b"b"]}}, r"type bytes after \$ne", "a", "$ne"),
        ({"a": {"$all": "ab"}}, r"list of values after \$all", "a", "$all"),
        ({"a": {"$all": [{}]}}, r"type dict after \$all", "a", "$all"),
        ({"a": {"$all": [[[1]]]}}, r"type list after \$all", "a", "$all"),
        ({"a": {"$size": -1}}, r"number of items after \$size, got -1", "a", "$size"),
        ({"a": {"$size": True}}, r"number of items after \$size", "a", "$size"),
        ({"a": {"$size": 1.0}}, r"number of items after \$size", "a", "$size"),
        ({"a": {"$size": {"$gt": 1}}}, r"number of items after \$size", "a", "$size"),
        ({"a": {"$icontains": 1}}, r"1 after \$icontains: it takes a string", "a", "$icontains"),
        ({"a": {"$startsWith": None}}, r"None after \$startsWith: it takes a string", "a", "$startsWith"),
        ({"a": {"$startswith": "b"}}, r"unknown operator '\$startswith'", "a", "$startswith"),
        ({"$id": 1}, r"compared with 1 after \$eq: an id is a string", "$id", "$eq"),
        ({"$id": {"$nin": ["a", None]}}, r"compared with None after \$nin", "$id", "$nin"),
        ({"$id": ["a"]}, r"type list after \$eq", "$id", "$eq"),
        ({"$id": {"$size": 1}}, r"has the operator \$size: use one of \$eq", "$id", "$size"),
        ({"$id.x": 1}, r"operator '\$id\.x' where only", "", "$id.x"),
        ({"$timestamp": "2024"}, "seconds since 1970 or a datetime", "$timestamp", "$eq"),
        ({"$timestamp": {"$gt": True}}, "seconds since 1970 or a datetime", "$timestamp", "$gt"),
        ({"$timestamp": {"$gt": 1.7e12}}, "milliseconds are divided first", "$timestamp", "$gt"),
        ({"$timestamp": {"$in": [1, 10**400]}}, "milliseconds are divided first", "$timestamp", "$in"),
        ({"$timestamp": {"$lt": datetime(2024, 1, 31)}}, "naive datetime", "$timestamp", "$lt"),
        ({"$timestamp": {"$startsWith": "2"}}, r"has the operator \$startsWith", "$timestamp", "$startsWith"),
        ({"a": {"$ne": {"b": 1}}}, r"type dict after \$ne", "a", "$ne"),
        ({"a": float("nan")}, "JSON does not know", "a", "$eq"),
        ({"a": {"$in": "ab"}}, r"list of values after \$in", "a", "$in"),
        ({"a": {"$nin": 3}}, r"list of values after \$nin", "a", "$nin"),
        ({"a": {"$in": [[1]]}}, r"type list after \$in", "a", "$in"),
        ({"a": {"$exists": 1}}, "True or False", "a", "$exists"),
        ({"a": {"$gt": None}}, "only numbers, strings, dates and datetimes have an order", "a", "$gt"),
        ({"a": {"$lte": True}}, "only numbers, strings, dates and datetimes have an order", "a", "$lte"),
        ({"a": {"$not": 1}}, "dict of operators after", "a", "$not"),
        ({"\ud800": [[1]]}, "type list", "\\ud800", "$eq"),
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
    with pytest.raises(InvalidInputError, match="comparisons"):
        parse_filter({"a": {"$all": list(range(FILTER_CLAUSES_MAX + 1))}})
    parse_filter({"$and": [{}] * (FILTER_DICTS_MAX - 1)})
    with pytest.raises(InvalidInputError, match="FILTER_DICTS_MAX") as caught:
        parse_filter({"$and": [{}] * FILTER_DICTS_MAX})
    assert caught.value.details["limit"] == FILTER_DICTS_MAX


def in_itself() -> Any:
    filter: Any = {}
    filter["$not"] = filter
    return filter


def doubled(filter: Any, levels: int) -> Any:
    for level in range(levels):
        filter = {"$and" if level % 2 else "$or": [filter, filter]}
    return filter


@pytest.mark.parametrize(
    "filter",
    [
        in_itself(),
        {"$or": [{"a": 1}, in_itself()]},
        {"a": in_itself()},
        doubled({}, 30),
        doubled({"a": {"$in": []}}, 30),
        {"$and": [{}] * 1_000_000},
        {str(field): 1 for field in range(100_000)},
    ],
    ids=["in itself", "a part in itself", "a condition in itself", "shared", "shared values", "wide", "fields"],
)
def test_filters_that_are_read_without_end_are_refused_after_so_many_dicts(filter: Any) -> None:
    class Counted(dict[str, Any]):
        visits = 0

        def items(self) -> Any:
            Counted.visits += 1
            return super().items()

    assert is_large(filter)  # so no event loop's thread parses it
    with pytest.raises(InvalidInputError, match=r"nested more than|FILTER_DICTS_MAX|comparisons"):
        parse_filter(filter)
    with pytest.raises(InvalidInputError, match="FILTER_DICTS_MAX"):
        parse_filter(doubled(Counted(), 30))
    assert Counted.visits <= FILTER_DICTS_MAX


def test_a_path_has_a_greatest_length() -> None:
    longest = "a" * PATH_LENGTH_MAX
    assert parse_filter({longest: 1}).paths == (longest,)
    assert check_field(longest) == longest
    for path in (
        longest + "a",
        "a." * 10_000_000 + "a",
        '"' + "\\\\" * 10_000_000 + '"',
        "\ud800" * PATH_LENGTH_MAX * 2,
    ):
        with pytest.raises(InvalidInputError, match="PATH_LENGTH_MAX") as caught:
            parse_filter({path: 1})
        assert len(str(caught.value)) < 1_000
        assert caught.value.details["limit"] == PATH_LENGTH_MAX
        with pytest.raises(InvalidInputError, match="PATH_LENGTH_MAX"):
            check_field(path)
    for filter in ({"$" + "x" * 20_000_000: 1}, {"a": {"x" * 20_000_000: 1}}, {"a": {"$" + "x" * 20_000_000: 1}}):
        with pytest.raises(InvalidInputError) as caught:
            parse_filter(filter)
        assert len(str(caught.value)) < 1_000
    assert parse_filter({"a": {"$in": list(range(50_000))}}).paths == ("a",)
    parse_filter({"a": {"$in": range(FILTER_VALUES_MAX)}})
    for beyond in (
        {"a": {"$nin": range(FILTER_VALUES_MAX + 1)}},
        {"a": {"$in": range(FILTER_VALUES_MAX)}, "b": {"$in": [1]}},
        {"a": [0] * FILTER_VALUES_MAX, "b": [1]},
    ):
        with pytest.raises(InvalidInputError, match=r"1,000,000 values .*FILTER_VALUES_MAX") as caught:
            parse_filter(beyond)
        assert caught.value.details["limit"] == FILTER_VALUES_MAX


def test_a_filter_with_many_values_says_that_it_is_large() -> None:
    for large in (
        {"a": {"$in": list(range(10_000))}},
        {"$or": [{"x": 1}, {"a": {"$not": {"$nin": np.arange(10_000)}}}]},
        {"$and": [{"a": {"$in": set(range(5_000))}}] * 2},
    ):
        assert is_large(large)
    for small in ({}, {"a": {"$in": list(range(9_000))}}, {"a": "x" * 100_000}, {"$or": [{"a": 1}] * 900}, None, 3):
        assert not is_large(small)


MANY = 24_000  # lists of 10,000 values are large


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        (list(range(MANY)), [0, MANY - 1, MANY, "1", True, None]),
        ([2**62 + n for n in range(MANY)], [2**62, 2**62 + 1, 2**62 - 1, float(2**62)]),
        ([2**64 - 1 - n for n in range(MANY)], [2**64 - 1, 2**64 - MANY, 2**64 - MANY - 1]),
        ([n / 4 for n in range(MANY)], [0.25, 1, 0.3, MANY]),
        ([f"id-{n}" for n in range(MANY)], ["id-7", "id-x", 7]),
        ([np.int32(n) for n in range(MANY)], [5, -1]),
        (np.arange(MANY, dtype=np.float32), [5, 5.5]),
        ([uuid.UUID(int=n) for n in range(MANY)], [uuid.UUID(int=3), uuid.UUID(int=2**70), str(uuid.UUID(int=3))]),
        (
            [1, "a", None, True, date(2024, 1, 31), 2**63 + 1] * (MANY // 6),
            [1, "a", None, True, False, 0, "2024-01-31"],
        ),
    ],
    ids=["small", "wide", "beyond int64", "floats", "texts", "numpy scalars", "array", "uuids", "mixed"],
)
def test_many_values_are_compared_as_few_are(values: Any, rows: list[Any]) -> None:
    metadata = [{"a": value} for value in rows] + [{"a": rows}, {}]
    arena, columns = arena_of(metadata), Columns()
    wanted = {(kind_of(value), value) for value in map(plain, values)}
    some = [slot for slot, value in enumerate(rows) if (kind_of(value), value) in wanted]
    assert some
    assert taken(columns, arena, len(metadata), {"a": {"$in": values}}) == [*some, len(rows)]
    rest = [slot for slot in range(len(metadata)) if slot not in (*some, len(rows))]
    assert taken(columns, arena, len(metadata), {"a": {"$nin": values}}) == rest


# ---- values are told apart by what they are, not by how they show themselves


class Same(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return "S"

    __str__ = __repr__


class SameNumber(int):
    def __repr__(self) -> str:
        return "N"


class SameFloat(float):
    def __repr__(self) -> str:
        return "F"


class Word(enum.StrEnum):
    A = "a"


class Level(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Same("a"), Same("b")),
        (SameNumber(1), SameNumber(2)),
        (SameFloat(0.5), SameFloat(0.25)),
        (1, True),
        (0, False),
        ("1", 1),
        (2**53, 2**53 + 1),
        (date(2024, 1, 31), "2024-01-31"),
        (date(2024, 1, 31), datetime(2024, 1, 31, tzinfo=UTC)),
        (uuid.UUID(int=1), str(uuid.UUID(int=1))),
        (None, "None"),
        ("a" * 1_000, "a" * 1_001),
    ],
    ids=range(12),
)
def test_filters_of_different_values_have_different_keys(one: Any, other: Any) -> None:
    assert parse_filter({"a": one}).key != parse_filter({"a": other}).key
    assert parse_filter({"a": {"$in": [one]}}).key != parse_filter({"a": {"$in": [other]}}).key
    assert parse_filter({"a": one}).key == parse_filter({"a": one}).key


def test_integers_that_cpython_cannot_write_are_compared() -> None:
    huge = 10**5000
    assert parse_filter({"a": huge}).key != parse_filter({"a": huge + 1}).key
    arena = arena_of([{"a": 1}, {"a": 1e308}, {"a": "b"}])
    assert taken(Columns(), arena, 3, {"a": {"$lt": huge}}) == [0, 1]
    assert taken(Columns(), arena, 3, {"a": {"$in": [huge, -huge, 1]}}) == [0]
    assert taken(Columns(), arena, 3, {"a": {"$contains": huge}}) == []
    for refused in ({"a": {"$exists": huge}}, {"a": {huge: 1}}, {huge: 1}, {"a": {"$in": [huge, [huge]]}}):
        with pytest.raises(InvalidInputError):
            parse_filter(refused)


@pytest.mark.parametrize(
    ("odd", "usual"),
    [
        (Same("a"), "a"), (SameNumber(3), 3), (SameFloat(0.5), 0.5), (Word.A, "a"), (Level.ONE, 1),
        (np.bool_(True), True), (np.uint8(3), 3), (np.float16(0.5), 0.5), (np.str_("a"), "a"),
    ],
    ids=range(9),
)  # fmt: skip
def test_a_subclass_says_the_same_as_its_plain_type(odd: Any, usual: Any) -> None:
    assert parse_filter({"a": odd}).key == parse_filter({"a": usual}).key
    assert parse_filter({"a": {"$in": [odd]}}).key == parse_filter({"a": {"$in": [usual]}}).key
    arena = arena_of([{"a": usual}, {"a": "another"}, {"a": odd}])
    assert taken(Columns(), arena, 3, {"a": odd}) == [0, 2]


# ---- keys with dots


DOTTED: list[Any] = [
    {"v1.0": "keep"},
    {"v1": {"0": "keep"}},
    {"v1.0": "drop"},
    {"v1.0": "drop", "v1": {"0": "keep"}},
    {},
]


@pytest.mark.parametrize(
    ("filter", "slots"),
    [
        ({"v1.0": "keep"}, [0, 1, 3]),
        ({"v1.0": {"$ne": "keep"}}, [2, 4]),
        ({"v1.0": {"$nin": ["keep"]}}, [2, 4]),
        ({"v1.0": {"$ne": "drop"}}, [0, 1, 4]),
        ({"v1.0": {"$exists": True}}, [0, 1, 2, 3]),
        ({"v1.0": {"$exists": False}}, [4]),
        ({"v1.0": {"$contains": "ee"}}, [0, 1, 3]),
        ({'"v1.0"': "keep"}, [0]),
        ({'"v1.0"': "drop"}, [2, 3]),
        ({'"v1"."0"': "keep"}, [1, 3]),
        ({'"v1".0': {"$exists": False}}, [0, 2, 4]),
    ],
)
def test_every_reading_of_a_dotted_path_that_a_row_has_counts(filter: Any, slots: list[int]) -> None:
    assert taken(Columns(), arena_of(DOTTED), 5, filter) == slots


def test_each_key_can_be_reached() -> None:
    keys = ["a.b", "", ".", "a..b", "$price", '"', '"a"', "a\\", 'a."b', "\n", "é.ü", "a b", '\\"', "x" * 300]
    rows: list[Any] = [{key: "here"} for key in keys] + [{"in": {key: "here"}} for key in keys]
    arena, columns = arena_of(rows), Columns()
    for at, key in enumerate(keys):
        quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
        assert taken(columns, arena, len(rows), {quoted: "here"}) == [at]
        assert taken(columns, arena, len(rows), {f"in.{quoted}": "here"}) == [len(keys) + at]


def test_a_dotted_path_sorts_and_counts_by_its_readings() -> None:
    arena, columns = arena_of([*DOTTED, {"v1.0": ["keep", "other"]}]), Columns()
    column = columns.get(["v1.0"], arena, 6)["v1.0"]
    assert dict(column.values(np.arange(6))) == {"keep": 4, "drop": 2, "other": 1}
    assert column.sort_keys(np.arange(6)) == [(3, "keep"), (3, "keep"), (3, "drop"), None, None, None]


def test_a_path_reaches_as_deep_as_metadata_goes() -> None:
    value: Any = "here"
    for _ in range(METADATA_DEPTH_MAX // 2):
        value = {"a": {"a.a": value}}
    arena, columns = arena_of([value, {"a": value["a"]["a.a"]}]), Columns()
    path = ".".join(["a"] * (3 * (METADATA_DEPTH_MAX // 2)))
    assert taken(columns, arena, 2, {path: "here"}) == [0]
    assert taken(columns, arena, 2, {".".join(['a."a.a"'] * (METADATA_DEPTH_MAX // 2)): "here"}) == [0]


def test_texts_with_zero_bytes_are_told_apart() -> None:
    rows: list[Any] = ["a\0b", None, "a", "b", "", "\0", "a\0", True, ["a\0b", "b\0", 2**60 + 1]]
    arena, columns = arena_of([{"a": row} for row in rows]), Columns()
    for slot, value in enumerate(rows[:-1]):
        assert taken(columns, arena, len(rows), {"a": value}) == ([0, 8] if slot == 0 else [slot])
    assert taken(columns, arena, len(rows), {"a": {"$contains": "\0"}}) == [0, 5, 6]
    assert taken(columns, arena, len(rows), {"a": 2**60 + 1}) == [8]
    assert taken(Columns(), arena_of([{"a": "a\0b"}, {"a": None}]), 2, {"a": None}) == [1]


def test_many_rows_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabstir_vectordb.metadata.columns._READ_ROWS", 1_024)
    rows: list[Any] = [
        {"a": row % 7, "b": f"text {row % 1_300}", "c": [row, str(row), [row]] * (row % 3), "d": 2**53 + row % 5}
        for row in range(2_600)
    ]
    arena, columns = arena_of(rows), Columns()
    checks: list[Any] = [{"a": 3}, {"b": "text 1299"}, {"b": {"$gte": "text 998"}}, {"c": 2_599}, {"c": "1025"}]
    checks += [{"c": {"$contains": 1_025}}, {"d": 2**53 + 1}, {"d": {"$gt": 2**53 + 2}}, {"c": {"$exists": False}}]
    for filter in checks:
        expected = [slot for slot, metadata in enumerate(rows) if takes(filter, metadata)]
        assert taken(columns, arena, len(rows), filter) == expected
        assert taken(Columns(), arena, len(rows), filter) == expected


def test_a_column_that_could_not_be_read_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Any] = [{"a": [row, f"text {row}", 2**60 + 1]} for row in range(40_000)]
    arena, columns = arena_of(rows), Columns()
    calls, read = [], MetadataArena.read_field

    def failing(self: MetadataArena, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError
        return read(self, *args)

    monkeypatch.setattr(MetadataArena, "read_field", failing)
    with pytest.raises(MemoryError):
        columns.get(["a"], arena, len(rows))
    column = columns.get(["a"], arena, len(rows))["a"]
    assert sum(count for _, count in column.values(np.arange(len(rows)))) == 3 * len(rows)


# ---- dates


def test_moments_compare_whatever_their_offset() -> None:
    noon = datetime(2024, 1, 31, 12, tzinfo=UTC)
    rows: list[Any] = [{"a": noon}, {"a": noon.astimezone(EAST)}, {"a": noon + timedelta(microseconds=1)}]
    rows += [{"a": date(2024, 1, 31)}, {"a": "2024-01-31T12:00:00Z"}, {"a": [date(2024, 2, 1), noon]}]
    arena, columns = arena_of(rows), Columns()
    assert taken(columns, arena, 6, {"a": noon.astimezone(timezone(timedelta(hours=-3)))}) == [0, 1, 5]
    assert taken(columns, arena, 6, {"a": {"$gt": noon}}) == [2]
    assert taken(columns, arena, 6, {"a": {"$lte": noon}}) == [0, 1, 5]
    assert taken(columns, arena, 6, {"a": {"$gte": date(2024, 1, 31)}}) == [3, 5]
    assert taken(columns, arena, 6, {"a": {"$gt": "2024"}}) == [4]
    column = columns.get(["a"], arena, 6)["a"]
    counted = dict(column.values(np.arange(6)))
    assert counted[noon] == 3
    assert all(value.tzinfo is UTC for value in counted if isinstance(value, datetime))
    keys = [key for key in column.sort_keys(np.arange(6)) if key is not None]
    assert sorted(keys)[0] == (3, "2024-01-31T12:00:00Z")
    assert sorted(keys)[1] == (4, date(2024, 1, 31))
    assert sorted(keys)[2:] == [(5, noon), (5, noon), (5, noon + timedelta(microseconds=1))]


def test_integers_are_compared_and_counted_as_they_are() -> None:
    values = [2**53, 2**53 + 1, 2**60, 2**60 + 1, 2**63 - 1, 2**64 - 1, -(2**63), 1e300, 0.5, 3.0]
    arena, columns = arena_of([{"a": value} for value in values]), Columns()
    for at, value in enumerate(values):
        assert taken(columns, arena, len(values), {"a": value}) == [at]
    assert taken(columns, arena, len(values), {"a": {"$gt": 2**53}}) == [1, 2, 3, 4, 5, 7]
    assert taken(columns, arena, len(values), {"a": {"$gt": 2**60 + 0.5}}) == [3, 4, 5, 7]
    assert taken(columns, arena, len(values), {"a": {"$gt": 10**5000}}) == []
    assert taken(columns, arena, len(values), {"a": {"$gt": -(10**5000)}}) == list(range(len(values)))
    counted: list[Any] = [
        value for value, _ in columns.get(["a"], arena, len(values))["a"].values(np.arange(len(values)))
    ]
    assert sorted(counted) == sorted(values)
    assert {value: type(value) for value in counted if value != 3} == {v: type(v) for v in values if v != 3}


FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("filter", "is_empty"),
    [
        ({}, True),
        ({"$and": [{}, {}]}, True),
        ({"$not": {}}, True),
        ({"$or": [{"a": 1}, {}]}, True),
        ({"$not": {"$not": {"$or": [{"a": 1}, {"$and": [{}]}]}}}, True),
        ({"a": {"$nin": []}}, True),
        ({"$or": [{"a": 1}, {"b": {"$not": {"$in": []}}}]}, True),
        ({"a": 1}, False),
        ({"$and": [{}, {"a": 1}]}, False),
        ({"$or": [{"a": 1}, {"$not": {}}]}, False),
        ({"a": {"$in": []}}, False),
        ({"a": {"$in": []}, "b": 1}, False),
        ({"$not": {"$or": [{}, {"a": 1}]}}, False),
        ({"$id": ""}, False),
        ({"$id": {"$gte": "a"}}, False),
        ({"$id": {"$lte": ""}}, False),
        ({"$timestamp": {"$gte": 0}}, False),
        ({"$timestamp": {"$gt": FIRST}}, False),
        ({"$timestamp": {"$lt": LAST}}, False),
        ({"$timestamp": {"$lt": FIRST}}, False),
        ({"$timestamp": {"$gte": FIRST, "$lt": LAST}}, False),
        ({"$timestamp": FIRST}, False),
    ],
)
def test_a_filter_that_takes_every_row_is_found_out(filter: Any, is_empty: bool) -> None:
    where = parse_filter(filter)
    assert where.is_empty is is_empty
    rows = [{"a": 1}, {"b": 2}, {}]
    if is_empty and where.paths:
        assert taken(Columns(), arena_of(rows), 3, filter) == [0, 1, 2]


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


def test_equal_content_means_an_equal_filter() -> None:
    day = date(2024, 1, 2)
    filters: list[Any] = [
        *(
            {"a": value}
            for value in (None, True, 1, 1.0, "1", 2, [1], (1,), [True], [1, 2], [], [[1]], day, uuid.UUID(int=1))
        ),
        *({"a": value} for value in ({"$eq": 1}, {"$in": [1, 2]}, {"$in": ["1", 2]}, {"$gte": 1, "$lt": 2})),
        {"b": 1},
        {"a": 1, "b": 1},
        {"$and": [{"a": 1}, {"b": 1}]},
        {},
        F("a") == 1,
        (F("a") > 1) & (F("b") == 1),
    ]
    contents = [content_of(filter) for filter in filters]
    assert None not in contents
    for one, other in itertools.combinations(range(len(filters)), 2):
        assert contents[one] != contents[other] or dict(filters[one]) == dict(filters[other])
    assert contents == [content_of(copy.deepcopy(filter)) for filter in filters]


def test_what_may_change_unseen_has_no_content() -> None:
    class Text(str):
        pass

    endless: Any = {}
    endless["$not"] = endless
    shared: Any = {"a": 1}
    for _ in range(60):
        shared = {"$or": [shared, shared]}
    odd: list[Any] = [np.int64(1), np.array([1]), Text("a"), {1}, b"a", datetime.now(UTC), object()]
    filters: list[Any] = [
        *({"a": value} for value in odd),
        *({"a": [value]} for value in odd),
        endless,
        shared,
        [],
        None,
    ]
    for filter in (*filters, {"a": {"$in": list(range(CONTENT_ITEMS_MAX))}}):
        assert content_of(filter) is None
    # Keys of other types are refused when they are parsed; they are not taken for those that are not.
    for key, other in ((Text("a"), "a"), (1, True), (1, 1.0)):
        assert content_of({key: 1}) != content_of({other: 1})
