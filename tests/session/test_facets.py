"""Facets in pages, ordered and searched, and the fields that rows have."""

from __future__ import annotations

import re
import uuid
from collections import Counter
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings, strategies as st
from readings import reached
from saving import rows, session_on

from fabstir_vectordb import F, FacetCount, FieldInfo, FieldType, InvalidInputError, sync
from fabstir_vectordb.metadata import census

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


def blocking(**fields: Any) -> sync.VectorDBSession:
    settings = {"s5_portal": "memory:", "user_seed_phrase": "x", "session_id": "x", **fields}
    return sync.VectorDBSession.create(**settings)


# ---- facets

ORDER = [type(None), bool, float, str, date]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([0.5, 2.0, 2**60, 2**60 + 1]),
    st.sampled_from(["", "a", "A", "ab", "straße", "STRASSE"]), st.dates(date(2024, 1, 1), date(2024, 1, 3)),
)  # fmt: skip


def kind_of(value: Any) -> type:
    return float if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value)


def place(value: Any) -> tuple[int, Any]:
    return ORDER.index(kind_of(value)), 0 if value is None else value


@settings(max_examples=60)
@given(
    st.lists(SCALARS | st.lists(SCALARS, max_size=3), max_size=12),
    st.sampled_from(["count", "-count", "value", "-value"]),
    st.sampled_from([None, "a", "SS", "", "zz"]),
    st.integers(1, 4),
)
def test_pages_of_facets_are_those_of_a_counter(values: list[Any], order: str, search: str | None, limit: int) -> None:
    counts: Counter[tuple[type, Any]] = Counter()
    for value in values:
        distinct = {(kind_of(one), one) for one in (value if isinstance(value, list) else [value])}
        counts.update(distinct)
    expected = [(value, count) for (_, value), count in counts.items()]
    if search is not None:
        expected = [one for one in expected if isinstance(one[0], str) and search.casefold() in one[0].casefold()]
    expected.sort(key=lambda one: place(one[0]), reverse=order == "-value")
    if order == "count":
        expected.sort(key=lambda one: one[1])
    elif order == "-count":
        expected.sort(key=lambda one: -one[1])
    with blocking() as session:
        session.add_batch([str(n) for n in range(len(values))], None, [{"x": value} for value in values])
        found = session.facets("x", order=order, search=search)
        assert [(facet.value, facet.count) for facet in found] == expected
        assert [kind_of(facet.value) for facet in found] == [kind_of(value) for value, _ in expected]
        paged: list[FacetCount] = []
        while page := session.facets("x", order=order, search=search, limit=limit, offset=len(paged)):
            assert len(page) <= limit
            paged += page
        assert paged == found
        session.clear()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"order": "counts"}, "order must be one of -count, count, value, -value"),
        ({"order": None}, "order must be one of"),
        ({"limit": 0}, "limit must be an integer from 1"),
        ({"limit": True}, "limit must be an integer from 1"),
        ({"limit": 10**9}, "limit must be an integer from 1"),
        ({"offset": -1}, "offset must be an integer from 0"),
        ({"offset": 1.5}, "offset must be an integer from 0"),
        ({"search": 3}, "search must be a string or None"),
    ],
)
def test_wrong_arguments_of_facets_are_refused(wrong: dict[str, Any], message: str) -> None:
    with blocking() as session, pytest.raises(InvalidInputError, match=message):
        session.facets("x", **wrong)


@pytest.mark.parametrize("field", ["$id", "$timestamp"])
def test_a_rows_own_fields_have_no_facets_and_quoted_keys_have(field: str) -> None:
    with blocking() as session:
        session.add_batch(["a"], None, [{field: "x"}])
        with pytest.raises(InvalidInputError, match=re.escape(f"facets takes fields of metadata, and {field} is one")):
            session.facets(field)
        assert [(one.value, one.count) for one in session.facets(f'"{field}"')] == [("x", 1)]
        session.clear()


# ---- fields

KEYS = st.sampled_from(["a", "b", "a.b", "$c", ""])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


def every_path(value: Any) -> set[tuple[str, ...]]:
    if isinstance(value, dict):
        inner = {(key, *path) for key, item in value.items() for path in every_path(item)}
        return inner | {(key,) for key in value}
    if isinstance(value, list):
        return {path for item in value if isinstance(item, dict) for path in every_path(item)}
    return set()


@settings(max_examples=50)
@given(st.lists(st.none() | VALUES, max_size=8))
def test_fields_are_those_that_rows_have(table: list[Any]) -> None:
    names = {bool: "boolean", float: "number", str: "string", date: "date", list: "array", dict: "object"}
    expected = {}
    for path in {path for value in table for path in every_path(value)}:
        found = [list(reached(value, list(path))) for value in table]
        types: dict[str, list[Any]] = {}
        for values in found:
            flat = [one for value in values for one in ([value, *value] if isinstance(value, list) else [value])]
            for name in {names.get(kind_of(one), "null") for one in flat}:
                of_type = [one for one in flat if names.get(kind_of(one), "null") == name]
                entry = types.setdefault(name, [0, None, None])
                entry[0] += 1
                if name in ("number", "string", "date"):
                    entry[1] = min([*of_type, *([] if entry[1] is None else [entry[1]])])
                    entry[2] = max([*of_type, *([] if entry[2] is None else [entry[2]])])
        named = ".".join(key if key in ("a", "b") else f'"{key}"' for key in path)
        expected[named] = (sum(bool(values) for values in found), {name: tuple(entry) for name, entry in types.items()})
    with blocking() as session:
        session.add_batch([str(n) for n in range(len(table))], None, table)
        fields = session.fields()
        assert [field.path for field in fields] == sorted(expected)
        for field in fields:
            rows, found_types = expected[field.path]
            assert field.count == rows
            assert {one.type: (one.count, one.minimum, one.maximum) for one in field.types} == found_types
            # A path as it is given finds the rows, as far as its steps have no other readings.
            assert session.count(F(field.path).exists()) >= field.count
        session.clear()


async def test_fields_of_some_rows_also_of_a_loaded_version() -> None:
    uri = f"memory:{uuid.uuid4()}"
    noon = datetime(2024, 1, 31, 12, tzinfo=UTC)
    async with await session_on(uri) as session:
        assert await session.fields() == []
        metadata = [{"n": n, "tags": ["a", 1], "at": noon, "id": UUID(int=n), "v": [{"x": n / 2}]} for n in range(5)]
        await session.add_batch([str(n) for n in range(6)], rows(6), [*metadata, None])
        await session.delete_vector("0")
        await session.save_to_s5()
    async with await session_on(uri) as session:
        await session.load_user_vectors()
        assert await session.fields(F("n") > 2) == [
            FieldInfo("at", 2, (FieldType("datetime", 2, noon, noon),)),
            FieldInfo("id", 2, (FieldType("uuid", 2, None, None),)),
            FieldInfo("n", 2, (FieldType("number", 2, 3, 4),)),
            FieldInfo(
                "tags",
                2,
                (FieldType("array", 2, None, None), FieldType("number", 2, 1, 1), FieldType("string", 2, "a", "a")),
            ),
            FieldInfo("v", 2, (FieldType("array", 2, None, None), FieldType("object", 2, None, None))),
            FieldInfo("v.x", 2, (FieldType("number", 2, 1.5, 2.0),)),
        ]
        assert {field.path: field.count for field in await session.fields()}["n"] == 4
        with pytest.raises(InvalidInputError, match="must be a dict of fields"):
            await session.fields([])  # type: ignore[arg-type]


def test_keys_that_are_data_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "FIELDS_MAX", 100)
    with blocking() as session:
        session.add_batch(["a", "b"], None, [{f"user-{n}": n for n in range(60)}, {f"other-{n}": n for n in range(60)}])
        with pytest.raises(InvalidInputError, match="more than 100 fields"):
            session.fields()
        assert len(session.fields({"$id": "a"})) == 60
        session.clear()
