"""The query language of words."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from fabstir_vectordb import InvalidInputError
from fabstir_vectordb._native.words import terms as words_of
from fabstir_vectordb.text.query import QUERY_CHARS_MAX, Clause, parse_query


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("", []),
        (" \t\n", []),
        ("red green", [("red green", "words", "may")]),
        ('"red apple"', [("red apple", "phrase", "may")]),
        ("“red apple”", [("red apple", "phrase", "may")]),
        ("+red -green blue", [("red", "words", "must"), ("green", "words", "not"), ("blue", "words", "may")]),
        ('+"red apple" -"green pear"', [("red apple", "phrase", "must"), ("green pear", "phrase", "not")]),
        ("wor*", [("wor", "prefix", "may")]),
        ("+wor* -gre**", [("wor", "prefix", "must"), ("gre", "prefix", "not")]),
        ('a "b c" d e', [("a", "words", "may"), ("b c", "phrase", "may"), ("d e", "words", "may")]),
        ('"b c"d', [("b c", "phrase", "may"), ("d", "words", "may")]),
        ("state-of-the-art", [("state-of-the-art", "words", "may")]),
        ("+state-of-the-art", [("state-of-the-art", "words", "must")]),
    ],
)
def test_a_query_has_these_clauses(text: str, clauses: list[tuple[str, str, str]]) -> None:
    assert [(one.text, one.kind, one.need) for one in parse_query(text).clauses] == clauses


@pytest.mark.parametrize(
    "text", ['say "hello', 'a"b', "- a", "+ a", "a - b", "*", "**", "a*b", 'x"', "a+b", "a-b", "“ab"]
)
def test_what_does_not_fit_the_language_is_words(text: str) -> None:
    query = parse_query(text)
    assert query.is_plain
    assert [one.text for one in query.clauses] == [" ".join(text.split())]


def test_an_empty_phrase_is_left_out() -> None:
    assert parse_query('a "" b').clauses == (Clause("a b", "words", "may"),)
    assert parse_query('+" "').clauses == ()


@given(st.text(st.sampled_from('ab é東 \t\n"“”+-*\x00'), max_size=40) | st.text(max_size=40))
def test_every_text_is_a_query_that_keeps_its_words(text: str) -> None:
    query = parse_query(text)
    words = re.compile(r"\w+")
    assert words.findall(" ".join(one.text for one in query.clauses)) == words.findall(text)
    for one in query.clauses:
        assert one.text.strip()
        assert one.kind != "prefix" or "*" not in one.text
    assert query.wanted == tuple(one for one in query.clauses if one.need != "not")


@given(st.lists(st.from_regex(r"[a-z]{1,5}", fullmatch=True), min_size=1, max_size=6))
def test_words_are_one_clause(words: list[str]) -> None:
    assert parse_query(" ".join(words)).clauses == (Clause(" ".join(words), "words", "may"),)


def test_a_number_with_narrow_spaces_is_the_word_that_rows_have() -> None:
    assert parse_query("  100\u202f000 \n").clauses == (Clause("100\u202f000", "words", "may"),)
    assert words_of("100\u202f000") == ["100 000"]


def test_a_query_is_bounded() -> None:
    assert parse_query("a " * (QUERY_CHARS_MAX // 2)).is_plain
    with pytest.raises(InvalidInputError, match="at most") as caught:
        parse_query("a" * (QUERY_CHARS_MAX + 1))
    assert caught.value.details == {"limit": QUERY_CHARS_MAX, "actual": QUERY_CHARS_MAX + 1}
    with pytest.raises(InvalidInputError, match="must be a string"):
        parse_query(b"a")  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", ['"', '+"', "“", "”", "* ", "+", '-" ', 'a"'])
def test_hostile_queries_take_no_longer_than_others(unit: str) -> None:
    text = (unit * QUERY_CHARS_MAX)[:QUERY_CHARS_MAX]
    assert len(parse_query(text).clauses) <= QUERY_CHARS_MAX
