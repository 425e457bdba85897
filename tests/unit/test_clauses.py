"""Queries in terms of an index, and the texts of rows."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from fabstir_vectordb._native.text import (
    EXCLUDED,
    PHRASE,
    PREFIX,
    QUERY_TERMS_MAX,
    REQUIRED,
    TERM_BYTES_MAX,
    TextClause,
    TextTerm,
)
from fabstir_vectordb.metadata.texts import RowTexts, texts_of
from fabstir_vectordb.metadata.values import encode_metadata
from fabstir_vectordb.text.analyzer import Analyzer
from fabstir_vectordb.text.clauses import _bounded, _clauses_of, _in_queries, _size, _within_limit, compile_query
from fabstir_vectordb.text.query import parse_query


def clauses(text: str, analyzer: Analyzer | None = None) -> list[tuple[int, list[tuple[str, float, int]]]]:
    found = [one for part in parse_query(text).clauses for one in _clauses_of(part, analyzer or Analyzer())]
    return [(flags, [tuple(term) for term in terms]) for terms, flags in found]  # type: ignore[misc]


def test_words_are_one_clause_that_counts_each_as_often_as_it_comes() -> None:
    assert clauses("Red red APPLE") == [(0, [("red", 2.0, 0), ("apple", 1.0, 0)])]


def test_a_divided_word_with_a_sign_is_a_phrase() -> None:
    assert clauses("+e-mail") == [(REQUIRED | PHRASE, [("e", 1.0, 0), ("mail", 1.0, 1)])]
    assert clauses("-mail") == [(EXCLUDED, [("mail", 1.0, 0)])]
    assert clauses("e-mail") == [(0, [("e", 1.0, 0), ("mail", 1.0, 0)])]


def test_a_prefix_is_one_word() -> None:
    assert clauses("+Appl*") == [(REQUIRED | PREFIX, [("appl", 1.0, 0)])]
    assert clauses("e-mai*") == [(PREFIX, [("mai", 1.0, 0)]), (0, [("e", 1.0, 0)])]
    assert clauses("+a-b-c*") == [
        (REQUIRED | PREFIX, [("c", 1.0, 0)]),
        (REQUIRED | PHRASE, [("a", 1.0, 0), ("b", 1.0, 1)]),
    ]


def test_stop_words_leave_their_places_in_a_phrase() -> None:
    analyzer = Analyzer(stop_words=("of", "the"))
    assert clauses('"king of the hill"', analyzer) == [(PHRASE, [("king", 1.0, 0), ("hill", 1.0, 3)])]
    assert clauses('"the hill" of +the', analyzer) == [(0, [("hill", 1.0, 0)])]


def test_stems_stand_beside_their_words() -> None:
    pytest.importorskip("Stemmer")
    analyzer = Analyzer("english")
    assert clauses("skies", analyzer) == [(0, [("skies", 0.5, 0), ("\x01sky", 1.0, 0)])]
    assert clauses("skies Skies", analyzer) == [(0, [("skies", 1.0, 0), ("\x01sky", 2.0, 0)])]
    assert clauses("+skies", analyzer) == [(REQUIRED, [("skies", 0.5, 0), ("\x01sky", 1.0, 0)])]
    assert clauses('"skies"', analyzer) == [(0, [("skies", 1.0, 0)])]
    assert clauses('"blue skies"', analyzer) == [(PHRASE, [("blue", 1.0, 0), ("skies", 1.0, 1)])]


@pytest.mark.parametrize("language", [None, "english"])
def test_words_alone_are_compiled_as_a_part_of_a_query_is(language: str | None) -> None:
    if language:
        pytest.importorskip("Stemmer")
    analyzer = Analyzer(language, ("of", "the"))
    short = compile_query(parse_query("Kings of the red red hills"), analyzer)
    # An excluded word keeps a query from being words alone.
    long = compile_query(parse_query("Kings of the red red hills -x"), analyzer)
    assert (short.words, short.stems, short.prefixes) == (long.words, long.stems, long.prefixes)
    assert short.words == {"kings", "red", "hills"}
    assert short.scored is not None and long.scored is not None
    assert short.scored.pointer.n_terms == (8 if language else 4)
    assert long.scored.pointer.n_terms == (6 if language else 3)
    # A term that stands there twice has its weight twice.
    sums = [
        sum(query.pointer.terms[at].weight for at in range(query.pointer.n_terms))
        for query in (short.scored, long.scored)
    ]
    assert sums == [6.0, 6.0] if language else [4.0, 4.0]
    assert compile_query(parse_query("of the"), analyzer).scored is None
    many = compile_query(parse_query("red " * (QUERY_TERMS_MAX + 1)), analyzer)
    assert many.scored is not None and many.scored.pointer.n_terms == (2 if language else 1)


def test_a_query_of_signs_alone_scores_nothing() -> None:
    found = compile_query(parse_query("-red -green"), Analyzer())
    assert (found.scored, len(found.signed), found.refused) == (None, 1, ())
    found = compile_query(parse_query("?! ()"), Analyzer())
    assert (found.scored, found.has_signs) == (None, False)
    found = compile_query(parse_query("-e-mai*"), Analyzer())
    assert (found.scored, found.signed, len(found.refused)) == (None, (), 1)


def test_signed_clauses_stay_however_many_terms_there_are() -> None:
    words = " ".join(f"w{n}" for n in range(QUERY_TERMS_MAX))
    found = compile_query(parse_query(f"{words} a* b* -red +late"), Analyzer())
    assert found.scored is not None
    assert (found.scored.pointer.n_terms, len(found.signed)) == (QUERY_TERMS_MAX, 1)
    assert found.signed[0].pointer.n_terms == 2
    many = compile_query(parse_query(" ".join(f"+p{n}* -n{n}" for n in range(20))), Analyzer())
    assert sum(query.pointer.n_clauses for query in many.signed) == 40
    long = compile_query(parse_query(f'+"{words} more"'), Analyzer())
    assert [query.pointer.n_terms for query in long.signed] == [QUERY_TERMS_MAX]


@given(
    st.lists(st.tuples(st.integers(1, 700), st.sampled_from([0, PREFIX, PHRASE, REQUIRED])), max_size=8),
)
def test_a_query_has_no_more_terms_than_the_core_takes(sizes: list[tuple[int, int]]) -> None:
    given_clauses = [TextClause([TextTerm(f"w{n}") for n in range(size)], flags) for size, flags in sizes]
    kept = _within_limit(iter(given_clauses))
    assert sum(map(_size, kept)) <= QUERY_TERMS_MAX
    parts = list(_in_queries(given_clauses))
    assert [one for part in parts for one in part] == given_clauses
    assert all(sum(map(_size, part)) <= QUERY_TERMS_MAX for part in parts if len(part) > 1)
    for one in kept:
        whole = next(
            other for other in given_clauses if other.flags == one.flags and len(other.terms) >= len(one.terms)
        )
        assert not one.flags & PHRASE or len(one.terms) in {len(other.terms) for other in given_clauses}
        assert list(one.terms) == list(whole.terms)[: len(one.terms)]


def test_a_term_that_no_index_holds_is_left_out() -> None:
    assert _bounded(TextClause([TextTerm("a" * TERM_BYTES_MAX), TextTerm("b")])).terms == [TextTerm("b")]


def test_the_texts_of_rows_are_their_strings_in_order() -> None:
    rows = [
        {"text": "one", "n": 1},
        None,
        {"text": ["two", 3, None, "four", "two"], "a": {"b": "five"}},
        {"text": 7},
        {"a.b": "six", "text": {"x": "no"}},
        {"text": "one"},
    ]
    values = [None if row is None else encode_metadata(row) for row in rows]
    found = texts_of(["text", "a.b"], values)
    assert found.rows == sorted(found.rows)
    by_row = {row: [text for other, text in zip(*found, strict=True) if other == row] for row in found.rows}
    assert by_row == {0: ["one"], 2: by_row[2], 4: ["six"], 5: ["one"]}
    assert sorted(by_row[2]) == ["five", "four", "two", "two"]
    assert by_row[2][-1] == "five"
    # Rows say the same alone as among others.
    for row, value in enumerate(values):
        assert texts_of(["text", "a.b"], [value]).texts == by_row.get(row, [])
    assert texts_of([], values) == texts_of(["text"], []) == texts_of(["text"], [None]) == RowTexts([], [])
