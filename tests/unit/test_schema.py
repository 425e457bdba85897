"""Schemas: both notations, what they refuse, and what they refuse to be."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from fabstir_vectordb import InvalidInputError
from fabstir_vectordb.metadata.schema import SCHEMA_DEPTH_MAX, SCHEMA_FIELDS_MAX, parse_schema

BOOK = {
    "title": {"type": "string", "required": True},
    "year": "Number",
    "read": "boolean",
    "tags": "Array<String>",
    "grid": "array<Array<number>>",
    "author": {"type": "object", "fields": {"name": {"type": "string", "required": True}, "born": "Number"}},
    "anything": {"type": "array"},
}


@pytest.mark.parametrize(
    "metadata",
    [
        {"title": "a"},
        {"title": "a", "year": None, "tags": None, "author": None},
        {"title": "", "year": 1.5, "read": False, "tags": [], "grid": [[1], []], "anything": [1, "a", None]},
        {"title": "a", "author": {"name": "b", "other": [1]}, "unnamed": {"x": 1}},
        {"title": "a", "tags": ("b", None)},
    ],
)
def test_metadata_that_follows_is_taken(metadata: Any) -> None:
    parse_schema(BOOK).check(metadata)


@pytest.mark.parametrize(
    ("metadata", "path", "message"),
    [
        (None, "title", "needs a string at title"),
        ({}, "title", "needs a string at title"),
        ({"title": None}, "title", "needs a string"),
        ([1], "", "must be a dict"),
        ({"title": 3}, "title", "an int at title, the schema requires a string"),
        ({"title": "a", "year": True}, "year", "requires a number"),
        ({"title": "a", "year": "1999"}, "year", "requires a number"),
        ({"title": "a", "read": 0}, "read", "requires a boolean"),
        ({"title": "a", "tags": "b"}, "tags", "requires an array"),
        ({"title": "a", "tags": ["b", 3]}, "tags[1]", "requires a string"),
        ({"title": "a", "grid": [[1], [2, "c"]]}, "grid[1][1]", "requires a number"),
        ({"title": "a", "author": {}}, "author.name", "needs a string"),
        ({"title": "a", "author": {"name": "b", "born": []}}, "author.born", "requires a number"),
        ({"title": "a", "author": "b"}, "author", "requires an object"),
    ],
)
def test_metadata_that_does_not_is_refused(metadata: Any, path: str, message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_schema(BOOK).check(metadata)
    assert message in caught.value.message
    assert caught.value.details["path"] == path


def test_notations_mean_the_same_and_a_schema_is_read_again() -> None:
    one = parse_schema({"b": "STRING", "a": "Array<Number>"})
    other = parse_schema(
        {"a": {"type": "Array", "items": {"type": "number"}}, "b": {"type": "string", "required": False}}
    )
    assert one == other
    assert list(one.document()) == ["a", "b"]
    assert parse_schema(one.document()) == one
    assert parse_schema(parse_schema(BOOK).document()) == parse_schema(BOOK)


def test_fields_beside_the_names_of_required_ones() -> None:
    upstream = {"fields": {"title": "String", "tags": {"Array": "String"}}, "required": ["title"]}
    schema = parse_schema(upstream)
    assert schema == parse_schema({"title": {"type": "string", "required": True}, "tags": "Array<String>"})
    schema.check({"title": "a", "tags": ["b"]})
    for metadata, path, message in (
        ({"tags": ["b"]}, "title", "Missing required field: metadata needs a string at title"),
        (None, "title", "Missing required field"),
        ({"title": "a", "tags": ["b", 1]}, "tags[1]", "requires a string"),
    ):
        with pytest.raises(InvalidInputError, match=message) as caught:
            schema.check(metadata)
        assert caught.value.details["path"] == path
    assert parse_schema({"fields": {"a": {"Object": {"b": {"Array": {"Array": "Number"}}}}}}) == parse_schema(
        {"a": {"type": "object", "fields": {"b": "Array<Array<Number>>"}}}
    )
    assert parse_schema({"fields": {}}).fields == {}


def test_fields_named_fields_and_required_are_fields() -> None:
    for schema in (
        {"fields": "String"},
        {"fields": {"type": "array", "items": "String"}},
        {"fields": {"type": "string"}, "required": "Boolean"},
        {"fields": {"type": "string"}, "required": {"type": "boolean"}},
        {"fields": "String", "other": "Number"},
    ):
        parsed = parse_schema(schema)
        assert set(parsed.fields) == set(schema)
        assert parse_schema(parsed.document()) == parsed
    # Beside a list of names it is the other notation, and `type` a field.
    assert set(parse_schema({"fields": {"type": "String"}, "required": ["type"]}).fields) == {"type"}


def test_dates_and_uuids_are_types_and_python_types_name_them() -> None:
    named = parse_schema({"a": "Date", "b": "DateTime", "c": "UUID", "d": "Array<uuid>", "e": "Number", "f": "object"})
    typed = parse_schema({"a": date, "b": datetime, "c": UUID, "d": {"Array": UUID}, "e": float, "f": dict})
    assert named == typed
    assert parse_schema({"a": int, "b": str, "c": bool, "d": list}) == parse_schema(
        {"a": "number", "b": "string", "c": "boolean", "d": "array"}
    )
    noon = datetime(2024, 1, 31, 12, tzinfo=UTC)
    named.check({"a": noon.date(), "b": noon, "c": UUID(int=1), "d": [UUID(int=2), None], "e": np.int64(3)})
    for wrong in ({"a": noon}, {"a": "2024-01-31"}, {"b": noon.date()}, {"c": str(UUID(int=1))}, {"d": ["x"]}):
        with pytest.raises(InvalidInputError, match="the schema requires"):
            named.check(wrong)
    with pytest.raises(InvalidInputError, match="no time zone"):
        named.check({"b": np.datetime64("2024-01-31")})


def test_names_of_fields_are_keys_as_they_stand() -> None:
    schema = parse_schema({"v1.0": {"type": "string", "required": True}, '"q"': "Number"})
    schema.check({"v1.0": "a", '"q"': 1})
    with pytest.raises(InvalidInputError, match=r'needs a string at "v1\.0"') as caught:
        schema.check({"v1": {"0": "a"}})
    assert caught.value.details["path"] == '"v1.0"'
    with pytest.raises(InvalidInputError, match="requires a number"):
        schema.check({"v1.0": "a", '"q"': "b"})


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ([], ""),
        ("String", ""),
        ({1: "String"}, ""),
        ({"": "String"}, ""),
        ({"x" * 201: "String"}, ""),
        ({"\ud800": "String"}, ""),
        ({"a": "Time"}, "a"),
        ({"a": "Array<Time>"}, "a[]"),
        ({"a": {"Array": "Time"}}, "a[]"),
        ({"a": {"Set": "String"}}, "a"),
        ({"a": {"Object": "String"}}, "a"),
        ({"a": bytes}, "a"),
        ({"a.b": 3}, '"a.b"'),
        ({"fields": {"a": "String"}, "required": "a"}, "required"),
        ({"fields": {"a": "String"}, "required": [3]}, "required"),
        ({"fields": {"a": "String"}, "required": ["b"]}, "required"),
        ({"fields": {"a": "Time"}, "required": []}, "a"),
        ({"fields": ["a"], "required": ["a"]}, "fields"),
        ({"a": {}}, "a"),
        ({"a": {"type": 3}}, "a"),
        ({"a": ["String"]}, "a"),
        ({"a": {"type": "string", "required": "yes"}}, "a"),
        ({"a": {"type": "string", "items": "String"}}, "a"),
        ({"a": {"type": "object", "fields": []}}, "a"),
        ({"a": {"type": "object", "fields": {"b": "Time"}}}, "a.b"),
    ],
)
def test_what_is_no_schema_is_refused(schema: Any, path: str) -> None:
    with pytest.raises(InvalidInputError, match="schema: ") as caught:
        parse_schema(schema)
    assert caught.value.details["path"] == path
    str(caught.value).encode(errors="backslashreplace")


def test_schemas_have_limits() -> None:
    with pytest.raises(InvalidInputError, match="nested"):
        parse_schema({"a": "Array<" * (SCHEMA_DEPTH_MAX + 1) + "String" + ">" * (SCHEMA_DEPTH_MAX + 1)})
    with pytest.raises(InvalidInputError, match="fields"):
        parse_schema({f"f{i}": "String" for i in range(SCHEMA_FIELDS_MAX + 1)})
