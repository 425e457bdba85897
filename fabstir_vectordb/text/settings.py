"""What a text index is made of: fields, language, and the parameters of BM25. A version stores it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

import numpy as np

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidConfigError, VectorDBError
from fabstir_vectordb.metadata.path import check_metadata_field
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.text.analyzer import STOP_WORDS_MAX, Analyzer

__all__ = ["FIELDS_MAX", "TextSettings", "text_settings"]

#: Most fields of a text index.
FIELDS_MAX: Final = 16
#: As in Lucene, and as most measurements of BM25 are made.
_K1: Final = 1.2
_B: Final = 0.75
#: The 33 that Lucene leaves out of English texts. With them a hybrid search finds more (docs/decisions/0026-fusion.md),
#: with the long lists of libraries less.
_USUAL_STOP_WORDS: Final = {
    "english": (
        *(
            "a",
            "an",
            "and",
            "are",
            "as",
            "at",
            "be",
            "but",
            "by",
            "for",
            "if",
            "in",
            "into",
            "is",
            "it",
            "no",
            "not",
            "of",
        ),
        *(
            "on",
            "or",
            "such",
            "that",
            "the",
            "their",
            "then",
            "there",
            "these",
            "they",
            "this",
            "to",
            "was",
            "will",
            "with",
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """The settings of a text index.

    Attributes:
        fields: paths of metadata fields; their texts count as one text of a row.
        language: the language of stems, or None for words as they stand.
        stop_words: whether the language's stop words are left out; or the words that are.
        k1: how soon more of the same word stop counting, 0 to 1000 (Robertson & Zaragoza 2009).
        b: how much long texts are marked down, 0 to 1.
    """

    fields: tuple[str, ...]
    language: str | None = None
    stop_words: bool | tuple[str, ...] = False
    k1: float = _K1
    b: float = _B


def text_settings(
    fields: object, language: object, stop_words: object, k1: object, b: object, error: type[VectorDBError]
) -> TextSettings | None:
    """The settings that a caller gave; None for no text index.

    Args:
        fields: a path, or several; None or no path for no text index.
        language: name of a language, or None.
        stop_words: a bool, words, or None for the usual ones.
        k1, b: numbers, or None for the usual ones.
        error: the error to raise.

    Raises:
        error: a setting is of another type, or out of range, or there is no such language; details has ``field``.
        InvalidConfigError: the extra ``text`` is not installed.
    """
    paths = _paths(fields, error)
    if not paths:
        others = {"text_language": language, "text_stop_words": stop_words, "text_k1": k1, "text_b": b}
        for name, value in others.items():
            if value is not None:
                raise error(f"{name} has no meaning without text_fields", details={"field": name})
        return None
    if language is not None and not isinstance(language, str):
        raise error(
            f"text_language must be the name of a language or None, got {shown(language)}",
            details={"field": "text_language"},
        )
    settings = TextSettings(
        fields=paths,
        language=language,
        stop_words=_stop_words(stop_words, language, error),
        k1=_number("text_k1", k1, _K1, 1000, error),
        b=_number("text_b", b, _B, 1, error),
    )
    if settings.language is not None or settings.stop_words:
        _check_analyzer(settings, error)
    return settings


def _check_analyzer(settings: TextSettings, error: type[VectorDBError]) -> None:
    """Raises as the analyzer does; what is wrong with an argument is the caller's error, a missing extra is not."""
    try:
        Analyzer(settings.language, settings.stop_words)
    except InvalidConfigError as refused:
        if "extra" in refused.details:
            raise
        field = "text_language" if "language" in refused.details else "text_stop_words"
        raise error(refused.message, details={**refused.details, "field": field}) from None


def _stop_words(given: object, language: str | None, error: type[VectorDBError]) -> bool | tuple[str, ...]:
    if given is None:
        return _USUAL_STOP_WORDS.get(language or "", False)
    if isinstance(given, bool):
        return given
    if isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
        listed = tuple(islice(given, STOP_WORDS_MAX + 1))
        if len(listed) <= STOP_WORDS_MAX and all(isinstance(word, str) for word in listed):
            return listed or False
    raise error(
        f"text_stop_words must be None, True, False or at most {STOP_WORDS_MAX} strings, got {shown(given)}",
        details={"field": "text_stop_words"},
    )


def _paths(fields: object, error: type[VectorDBError]) -> tuple[str, ...]:
    if fields is None:
        return ()
    given = [fields] if isinstance(fields, str) else fields
    if not isinstance(given, Iterable):
        raise error(f"text_fields must be paths of fields, got {shown(fields)}", details={"field": "text_fields"})
    paths: list[str] = []
    for path in given:
        if len(paths) == FIELDS_MAX:
            raise error(f"text_fields has more than {FIELDS_MAX} paths", details={"field": "text_fields"})
        try:
            paths.append(check_metadata_field(path, "a text index"))
        except VectorDBError as refused:
            raise error(f"text_fields: {refused.message}", details={"field": "text_fields"}) from None
    if len(set(paths)) < len(paths):
        raise error("text_fields names a field twice", details={"field": "text_fields"})
    return tuple(paths)


def _number(name: str, value: object, usual: float, most: float, error: type[VectorDBError]) -> float:
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value <= most:
        raise error(f"{name} must be None or a number from 0 to {most}, got {shown(value)}", details={"field": name})
    return float(value)
