"""Schemas: both notations, what they refuse, and what they refuse to be."""

from __future__ import annotations

from typing import Any

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
        ({"title": 3}, "title", "a int at title, its schema wants a string"),
        ({"title": "a", "year": True}, "year", "wants a number"),
        ({"title": "a", "year": "1999"}, "year", "wants a number"),
        ({"title": "a", "read": 0}, "read", "wants a boolean"),
        ({"title": "a", "tags": "b"}, "tags", "wants a array"),
        ({"title": "a", "tags": ["b", 3]}, "tags[1]", "wants a string"),
        ({"title": "a", "grid": [[1], [2, "c"]]}, "grid[1][1]", "wants a number"),
        ({"title": "a", "author": {}}, "author.name", "needs a string"),
        ({"title": "a", "author": {"name": "b", "born": []}}, "author.born", "wants a number"),
        ({"title": "a", "author": "b"}, "author", "wants a object"),
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


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ([], ""),
        ("String", ""),
        ({1: "String"}, ""),
        ({"": "String"}, ""),
        ({"x" * 201: "String"}, ""),
        ({"\ud800": "String"}, ""),
        ({"a": "Date"}, "a"),
        ({"a": "Array<Date>"}, "a[]"),
        ({"a": {}}, "a"),
        ({"a": {"type": 3}}, "a"),
        ({"a": ["String"]}, "a"),
        ({"a": {"type": "string", "required": "yes"}}, "a"),
        ({"a": {"type": "string", "items": "String"}}, "a"),
        ({"a": {"type": "object", "fields": []}}, "a"),
        ({"a": {"type": "object", "fields": {"b": "Date"}}}, "a.b"),
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
