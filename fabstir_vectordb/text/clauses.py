"""From a query as it was read to terms of the index: words are divided and folded as those of rows are, and stemmed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fabstir_vectordb._native.text import (
    EXCLUDED,
    PHRASE,
    PREFIX,
    PREFIX_TERMS_MAX,
    QUERY_TERMS_MAX,
    REQUIRED,
    STEM_MARK,
    TERM_BYTES_MAX,
    TextClause,
    TextQuery,
    TextTerm,
)
from fabstir_vectordb._native.words import words
from fabstir_vectordb.text.analyzer import Analyzer
from fabstir_vectordb.text.query import Clause, Need, ParsedQuery

__all__ = ["TermsQuery", "compile_query"]

_FLAGS: Final[dict[Need, int]] = {"may": 0, "must": REQUIRED, "not": EXCLUDED}


@dataclass(frozen=True, slots=True)
class TermsQuery:
    """A query in terms of the index.

    Attributes:
        scored: all clauses, for scores; None where no row can score.
        required, excluded: the clauses that every hit, and no hit, matches; None where there are none.
        terms: the words and stems that a hit may hold, for highlights; without prefixes.
        prefixes: the beginnings of such words.
    """

    scored: TextQuery | None
    required: TextQuery | None
    excluded: TextQuery | None
    terms: frozenset[str]
    prefixes: tuple[str, ...]


def compile_query(query: ParsedQuery, analyzer: Analyzer) -> TermsQuery:
    """Divides a query into terms.

    A word with a sign that the rules for words divide, such as ``+e-mail``, is a phrase of its parts. Stop words are
    left out. A query has at most QUERY_TERMS_MAX different terms; later ones are left out.

    Args:
        query: the query.
        analyzer: gives words their stems, as it did for the rows.
    """
    clauses = _within_limit(clause for part in query.clauses for clause in _clauses_of(part, analyzer))
    wanted = [clause for clause in clauses if not clause.flags & EXCLUDED]
    required = [clause for clause in wanted if clause.flags & REQUIRED]
    excluded = [TextClause(clause.terms, clause.flags & ~EXCLUDED) for clause in clauses if clause.flags & EXCLUDED]
    prefixes = tuple(term.term for clause in wanted if clause.flags & PREFIX for term in clause.terms)
    return TermsQuery(
        TextQuery(clauses) if wanted else None,
        TextQuery(required) if required else None,
        TextQuery(excluded) if excluded else None,
        frozenset(term.term for clause in wanted if not clause.flags & PREFIX for term in clause.terms),
        prefixes,
    )


def _clauses_of(clause: Clause, analyzer: Analyzer) -> Iterator[TextClause]:
    flags = _FLAGS[clause.need]
    found = [word.term for word in words(clause.text)]
    if not found:
        return
    if clause.kind == "prefix" and len(found) == 1:
        yield TextClause([TextTerm(found[0])], flags | PREFIX)
        return
    # A word without a stem is a stop word.
    stems = analyzer.stem_all(found)
    kept = [(offset, word) for offset, word in enumerate(found) if stems[offset]]
    if not kept:
        return
    has_stems = analyzer.language is not None
    if clause.kind != "phrase" and clause.need == "may":
        # One clause of any of the words: equal ones count as often as they come.
        counted = Counter(term for offset, word in kept for term in _forms(word, stems[offset], has_stems))
        yield TextClause([TextTerm(term, float(n)) for term, n in counted.items()], flags)
    elif len(kept) == 1:
        offset, word = kept[0]
        forms = _forms(word, stems[offset], has_stems)
        # In quotation marks a word stands for itself alone.
        yield TextClause([TextTerm(term) for term in (forms[:1] if clause.kind == "phrase" else forms)], flags)
    else:
        first = kept[0][0]
        yield TextClause([TextTerm(word, 1.0, offset - first) for offset, word in kept], flags | PHRASE)


def _forms(word: str, stem: str, has_stems: bool) -> list[str]:
    """The terms of a word: itself, and its stem where the index has stems."""
    return [word, STEM_MARK + stem] if has_stems else [word]


def _within_limit(clauses: Iterator[TextClause]) -> list[TextClause]:
    """The first clauses, with at most QUERY_TERMS_MAX terms; a prefix counts as many as it may stand for."""
    kept, left = [], QUERY_TERMS_MAX
    for clause in clauses:
        takes = PREFIX_TERMS_MAX if clause.flags & PREFIX else 1
        terms = [term for term in clause.terms if len(term.term.encode()) < TERM_BYTES_MAX][: left // takes]
        if not terms or (clause.flags & PHRASE and len(terms) < len(clause.terms)):
            continue
        kept.append(TextClause(terms, clause.flags))
        left -= takes * len(terms)
    return kept
