"""Stems, stop words, and what a version says of them; then where a text has the words of a query."""

from __future__ import annotations

import pickle
import sys
from importlib import metadata
from typing import Any

import pytest

from fabstir_vectordb import IntegrityError, InvalidConfigError, StorageError
from fabstir_vectordb._native.words import UNICODE_VERSION, WORD_BYTES_MAX, words
from fabstir_vectordb.extras import install_command
from fabstir_vectordb.text.analyzer import WORD_RULES, Analyzer, languages
from fabstir_vectordb.text.highlight import highlight


def terms(analyzer: Analyzer, text: str) -> list[str]:
    return analyzer.stem_all(word.term for word in words(text))


PLAIN = {"unicode": UNICODE_VERSION, "rules": WORD_RULES, "language": None, "stemmer": None, "stop_words": None}


# ---- without a language


def test_words_stay_as_they_are_by_default() -> None:
    assert terms(Analyzer(), "The Running DOGS") == ["the", "running", "dogs"]
    assert Analyzer().stem_all([]) == []
    assert Analyzer().to_dict() == PLAIN
    assert Analyzer.from_dict(PLAIN) == Analyzer()


def test_own_stop_words_are_folded_and_stored_themselves() -> None:
    analyzer = Analyzer(stop_words=("The", "STRASSE", "Don’t", "of course", "..."))
    assert terms(analyzer, "the straße of course don't") == ["", "", "of", "course", ""]
    stored = analyzer.to_dict()
    assert stored == {**PLAIN, "stop_words": ["The", "STRASSE", "Don’t", "of course", "..."]}
    assert Analyzer.from_dict(stored) == analyzer
    assert Analyzer(stop_words=()).to_dict() == PLAIN


def test_an_analyzer_survives_a_copy_and_is_a_key() -> None:
    analyzer = Analyzer(stop_words=("a",))
    copied = pickle.loads(pickle.dumps(analyzer))
    assert copied == analyzer and hash(copied) == hash(analyzer)
    assert copied.stem_all(["a", "b"]) == ["", "b"]
    assert repr(analyzer) == "Analyzer(language=None, stop_words=('a',))"


@pytest.mark.parametrize("stop_words", [["a"], (1,), "a", None, {"a"}])
def test_stop_words_of_another_type_are_refused(stop_words: Any) -> None:
    with pytest.raises(InvalidConfigError, match="a bool or a tuple of strings"):
        Analyzer(stop_words=stop_words)


def test_too_many_stop_words_are_refused() -> None:
    with pytest.raises(InvalidConfigError, match="there are 10001 stop words, the most are 10000"):
        Analyzer(stop_words=("a",) * 10_001)


def test_a_list_of_the_library_needs_a_language() -> None:
    with pytest.raises(InvalidConfigError, match="needs a language"):
        Analyzer(stop_words=True)


@pytest.mark.parametrize(
    "change",
    [
        {"unicode": None},
        {"rules": "1"},
        {"rules": True},
        {"language": 1},
        {"language": "english"},
        {"stemmer": {"name": "PyStemmer", "version": "3"}},
        {"language": "english", "stemmer": {"name": "another", "version": "3"}},
        {"language": "english", "stemmer": "PyStemmer"},
        {"stop_words": []},
        {"stop_words": [1]},
        {"stop_words": "a"},
        {"stop_words": ["a"] * 10_001},
        {"stop_words": {"name": "stop-words"}},
        {"more": 1},
    ],
)
def test_a_damaged_description_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="the description of the text analysis is damaged"):
        Analyzer.from_dict({**PLAIN, **change})


def test_a_description_that_is_no_map_is_refused() -> None:
    for stored in (None, [], {}, {key: PLAIN[key] for key in list(PLAIN)[1:]}):
        with pytest.raises(IntegrityError):
            Analyzer.from_dict(stored)


def test_another_version_of_unicode_or_of_the_rules_is_refused_by_name() -> None:
    with pytest.raises(
        StorageError, match=rf"indexed with Unicode 9\.0\.0, and Unicode {UNICODE_VERSION} is in use"
    ) as raised:
        Analyzer.from_dict({**PLAIN, "unicode": "9.0.0"})
    assert raised.value.details == {"analysis": "Unicode", "stored": "9.0.0", "here": UNICODE_VERSION}
    with pytest.raises(StorageError, match="indexed with rules for words 2, and rules for words 1"):
        Analyzer.from_dict({**PLAIN, "rules": 2})


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setitem(sys.modules, "Stemmer", None)
    monkeypatch.setitem(sys.modules, "stop_words", None)
    with pytest.raises(InvalidConfigError) as raised:
        Analyzer("english")
    assert raised.value.message == f"stems and lists of stop words need PyStemmer: {install_command('text')}"
    monkeypatch.setattr(metadata, "version", missing)
    stored = {**PLAIN, "language": "english", "stemmer": {"name": "PyStemmer", "version": "3.1.0"}}
    with pytest.raises(InvalidConfigError, match="need PyStemmer"):
        Analyzer.from_dict(stored)
    with pytest.raises(InvalidConfigError, match="need stop-words"):
        Analyzer.from_dict({**PLAIN, "stop_words": {"name": "stop-words", "version": "1"}})


# ---- with a language


@pytest.fixture
def english() -> Analyzer:
    pytest.importorskip("Stemmer")
    return Analyzer("english")


def test_words_of_a_language_have_stems(english: Analyzer) -> None:
    assert terms(english, "The running dogs' dog's 3.14 日本") == ["the", "run", "dog", "dog", "3.14", "日本"]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("german", "Häuser Straßen", "haus strass"),
        ("french", "l’été d'accord chevaux", "été accord cheval"),
        ("italian", "dell'acqua", "acqua"),
        ("greek", "ΘΆΛΑΣΣΑΣ θάλασσα", "θαλασσ θαλασσ"),
        ("russian", "Москвы Москва", "москв москв"),
    ],
)
def test_folding_is_what_stemmers_expect(language: str, text: str, expected: str) -> None:
    pytest.importorskip("Stemmer")
    assert terms(Analyzer(language), text) == expected.split()


def test_every_language_keeps_every_word_and_its_bound() -> None:
    pytest.importorskip("Stemmer")
    assert len(languages()) >= 30
    surface = ["s", "h", "'", "ـ", "छ", "kitap", "a" * WORD_BYTES_MAX, "kitab" * 51, "ё" * 127]
    for language in languages():
        for term in Analyzer(language).stem_all(surface):
            assert 1 <= len(term.encode()) <= WORD_BYTES_MAX


def test_the_description_names_the_stemmer_and_its_version(english: Analyzer) -> None:
    stored = english.to_dict()
    assert stored == {
        **PLAIN,
        "language": "english",
        "stemmer": {"name": "PyStemmer", "version": metadata.version("PyStemmer")},
    }
    assert Analyzer.from_dict(stored) == english
    stored["stemmer"]["version"] = "2.2.0"
    with pytest.raises(StorageError, match=r"indexed with PyStemmer 2\.2\.0, and PyStemmer \d"):
        Analyzer.from_dict(stored)


def test_an_unknown_language_is_refused() -> None:
    pytest.importorskip("Stemmer")
    for language in ("klingon", "en", ""):
        with pytest.raises(InvalidConfigError, match=r"no stemmer for the language .*: use one of arabic"):
            Analyzer(language)
    with pytest.raises(InvalidConfigError):
        Analyzer(5)
    with pytest.raises(InvalidConfigError):
        Analyzer.from_dict({**Analyzer("english").to_dict(), "language": "klingon"})


def test_stop_words_of_the_library_are_left_out() -> None:
    pytest.importorskip("Stemmer")
    pytest.importorskip("stop_words")
    analyzer = Analyzer("english", stop_words=True)
    assert terms(analyzer, "The dogs aren't here") == ["", "dog", "", ""]
    stored = analyzer.to_dict()
    assert stored["stop_words"] == {"name": "stop-words", "version": metadata.version("stop-words")}
    assert Analyzer.from_dict(stored) == analyzer
    stored["stop_words"]["version"] = "2018.7.23"
    with pytest.raises(StorageError, match=r"stop-words 2018\.7\.23"):
        Analyzer.from_dict(stored)
    with pytest.raises(InvalidConfigError, match="stop-words has no list for the language 'tamil'"):
        Analyzer("tamil", stop_words=True)


# ---- highlights


def shown(text: str, places: list[tuple[int, int]]) -> list[str]:
    return [text[start:end] for start, end in places]


def test_highlights_are_the_words_as_they_are_written() -> None:
    text = "Straße, STRASSE; strasse? Strassen"
    assert shown(text, highlight(text, ["strasse"])) == ["Straße", "STRASSE", "strasse"]
    assert shown(text, highlight(text, [], prefixes=["strass"])) == ["Straße", "STRASSE", "strasse", "Strassen"]
    assert highlight(text, []) == highlight("", ["a"]) == []


def test_pairs_of_a_phrase_are_one_place() -> None:
    text = "これは日本語です。日本"
    asked = [word.term for word in words("日本語")]
    assert shown(text, highlight(text, asked)) == ["日本語", "日本"]


def test_words_are_found_by_their_stems(english: Analyzer) -> None:
    text = "She runs; he was running. A runner."
    assert shown(text, highlight(text, [], stems=["run"], analyzer=english)) == ["runs", "running"]
    quiet = Analyzer("english", stop_words=("runs",))
    assert shown(text, highlight(text, [], stems=["run"], analyzer=quiet)) == ["running"]
