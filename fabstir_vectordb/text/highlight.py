"""Where a text has the words that a query asked for."""

from __future__ import annotations

from collections.abc import Collection

from fabstir_vectordb._native.words import words
from fabstir_vectordb.text.analyzer import Analyzer

__all__ = ["highlight"]


def highlight(
    text: str,
    terms: Collection[str],
    *,
    stems: Collection[str] = (),
    prefixes: Collection[str] = (),
    analyzer: Analyzer | None = None,
) -> list[tuple[int, int]]:
    """The places of a text that have words of a query.

    Args:
        text: the text of a hit.
        terms: words of the query, folded.
        stems: stems, each of which stands for all words that have it.
        prefixes: folded beginnings of words, each of which stands for all words that begin so.
        analyzer: the analyzer of the index, where there are stems.

    Returns:
        ``(start, end)`` for each place, in order: ``text[start:end]`` is the word as it is written. Words that overlap,
        as neighbouring characters of a text without spaces do, are one place.

    Raises:
        InvalidInputError: the text is too long.
        InvalidConfigError: the analyzer needs a library that is not installed.

    Example:
        >>> highlight("A cat, two cats", ["cat"])
        [(2, 5)]
    """
    wanted, beginnings = frozenset(terms), tuple(prefixes)
    found = words(text)
    distinct = list(dict.fromkeys(word.term for word in found))
    hits = {term for term in distinct if term in wanted or term.startswith(beginnings)}
    if stems and analyzer is not None:
        stem_of = zip(distinct, analyzer.stem_all(distinct), strict=True)
        hits.update(term for term, stem in stem_of if stem in stems)
    places: list[tuple[int, int]] = []
    for word in found:
        if word.term not in hits:
            continue
        if places and word.start < places[-1][1]:
            places[-1] = (places[-1][0], max(places[-1][1], word.end))
        else:
            places.append((word.start, word.end))
    return places
