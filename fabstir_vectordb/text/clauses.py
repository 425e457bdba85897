"""From a query as it was read to terms of the index: words are divided and folded as those of rows are, and stemmed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

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
    TextTotals,
)
from fabstir_vectordb._native.words import terms as words_of
from fabstir_vectordb.text.analyzer import Analyzer
from fabstir_vectordb.text.query import Clause, Need, ParsedQuery

__all__ = ["FORM_WEIGHT", "TermsQuery", "compile_query"]

#: What a word itself counts beside its stem. If both count alike, a row with the same form scores as if it had two
#: words, and sentences find less than by stems alone. With a half they find as much, and keywords keep what words add
#: (docs/decisions/0026-fusion.md). A half is exact, so one list of postings can count for both where they are equal.
FORM_WEIGHT: Final = 0.5

_FLAGS: Final[dict[Need, int]] = {"may": 0, "must": REQUIRED, "not": EXCLUDED}


class TermsQuery(NamedTuple):
    """A query in terms of the index: a tuple, as a frozen dataclass takes five times as long to make.

    Attributes:
        scored: the clauses that give scores, without signs; None where no row can score.
        signed: queries of required and excluded clauses: every hit matches all of the former, and none of the latter.
        refused: queries of required clauses: no hit matches all of one of them.
        terms: the terms that a hit may hold, for highlights; without prefixes.
        prefixes: the beginnings of such words.
    """

    scored: TextQuery | None
    signed: tuple[TextQuery, ...]
    refused: tuple[TextQuery, ...]
    terms: Sequence[str]
    prefixes: tuple[str, ...]

    @property
    def words(self) -> frozenset[str]:
        """Those of the terms that are words as they stand."""
        return frozenset(term for term in self.terms if not term.startswith(STEM_MARK))

    @property
    def stems(self) -> frozenset[str]:
        """Those of the terms that are stems, without their mark."""
        return frozenset(term.removeprefix(STEM_MARK) for term in self.terms if term.startswith(STEM_MARK))

    @property
    def has_signs(self) -> bool:
        """Whether some rows cannot be hits, of either side."""
        return bool(self.signed or self.refused)

    @property
    def queries(self) -> Iterator[TextQuery]:
        """All of its queries."""
        if self.scored is not None:
            yield self.scored
        yield from self.signed
        yield from self.refused


def compile_query(query: ParsedQuery, analyzer: Analyzer, totals: TextTotals | None = None) -> TermsQuery:
    """Divides a query into terms.

    A word with a sign that the rules for words divide, such as ``+e-mail``, is a phrase of its parts. Stop words are
    left out. Signs always hold; scores are of the first QUERY_TERMS_MAX terms, those with a sign before others.

    Args:
        query: the query.
        analyzer: gives words their stems, as it did for the rows.
        totals: the numbers of rows by which scores count, where they are not those of the index alone.
    """
    clauses = query.clauses
    if totals is None and len(clauses) == 1 and clauses[0].kind == "words" and clauses[0].need == "may":
        terms = _terms_of(clauses[0].text, analyzer)
        # Where there are more than the core takes, equal ones are counted first.
        if len(terms) <= QUERY_TERMS_MAX:
            weight = 1.0 if analyzer.language is None else FORM_WEIGHT
            return TermsQuery(TextQuery.of_terms(terms, weight) if terms else None, (), (), terms, ())
    wanted: list[TextClause] = []
    signed: list[TextClause] = []
    refused: list[TextQuery] = []
    for part in clauses:
        found = [one for one in map(_bounded, _clauses_of(part, analyzer)) if one.terms]
        if part.need != "not":
            wanted += found
        if part.need == "may":
            continue
        if len(found) > 1 and part.need == "not":
            # Rows that match all of them are excluded, not those that match one.
            refused.append(TextQuery(TextClause(terms, flags ^ EXCLUDED | REQUIRED) for terms, flags in found))
        else:
            signed += found
    first = sorted(wanted, key=lambda clause: not clause.flags & REQUIRED)
    scored = _within_limit(TextClause(clause.terms, clause.flags & ~REQUIRED) for clause in first)
    if totals is not None:
        scored = [clause for clause in (_spelled_out(clause, totals) for clause in scored) if clause.terms]
    return TermsQuery(
        TextQuery(scored, totals) if scored else None,
        tuple(map(TextQuery, _in_queries(signed))),
        tuple(refused),
        [term.term for clause in wanted if not clause.flags & PREFIX for term in clause.terms],
        tuple(term.term for clause in wanted if clause.flags & PREFIX for term in clause.terms),
    )


def _terms_of(text: str, analyzer: Analyzer) -> list[str]:
    """The terms of words, each as often as it comes."""
    found = words_of(text)
    stems = analyzer.stem_all(found)
    if "" in stems:  # of stop words
        found = [word for word, stem in zip(found, stems, strict=True) if stem]
        stems = [stem for stem in stems if stem]
    if analyzer.language is None:
        return found
    terms = found + stems
    terms[::2], terms[1::2] = found, [STEM_MARK + stem for stem in stems]
    return terms


def _clauses_of(clause: Clause, analyzer: Analyzer) -> Iterator[TextClause]:
    flags = _FLAGS[clause.need]
    found = words_of(clause.text)
    if not found:
        return
    if clause.kind == "prefix":
        *found, last = found
        yield TextClause([TextTerm(last)], flags | PREFIX)
        # What the rules divide before the star is a word or a phrase of its own.
        if not found:
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
        yield TextClause([TextTerm(term, n * weight) for (term, weight), n in counted.items()], flags)
    elif len(kept) == 1:
        offset, word = kept[0]
        # In quotation marks a word stands for itself alone.
        forms = _forms(word, stems[offset], has_stems and clause.kind != "phrase")
        yield TextClause([TextTerm(*form) for form in forms], flags)
    else:
        first = kept[0][0]
        yield TextClause([TextTerm(word, 1.0, offset - first) for offset, word in kept], flags | PHRASE)


def _forms(word: str, stem: str, has_stems: bool) -> list[tuple[str, float]]:
    """The terms of a word and their weights: itself, and its stem where it stands beside it."""
    return [(word, FORM_WEIGHT), (STEM_MARK + stem, 1.0)] if has_stems else [(word, 1.0)]


def _bounded(clause: TextClause) -> TextClause:
    """A clause without terms that no index has, and of a very long phrase the beginning."""
    terms = [term for term in clause.terms if len(term.term.encode()) < TERM_BYTES_MAX]
    if clause.flags & PHRASE:
        terms = terms[:QUERY_TERMS_MAX]
    return TextClause(terms, clause.flags)


def _spelled_out(clause: TextClause, totals: TextTotals) -> TextClause:
    """A clause with the terms that its prefixes stand for, those that an index of all rows would take."""
    if not clause.flags & PREFIX:
        return clause
    terms: list[TextTerm] = []
    for prefix, weight, _ in clause.terms:
        known = [(-count, term) for term, count in totals.counts.items() if count and term.startswith(prefix)]
        terms += [TextTerm(term, weight) for _, term in sorted(known)[:PREFIX_TERMS_MAX]]
    return TextClause(terms, clause.flags & ~PREFIX)


def _size(clause: TextClause) -> int:
    """The terms that a clause may have in the core: a prefix as many as it may stand for."""
    return len(clause.terms) * (PREFIX_TERMS_MAX if clause.flags & PREFIX else 1)


def _within_limit(clauses: Iterable[TextClause]) -> list[TextClause]:
    """The first clauses, with at most QUERY_TERMS_MAX terms; of words as many as there is room for."""
    kept, left = [], QUERY_TERMS_MAX
    for clause in clauses:
        if _size(clause) > left:
            if clause.flags & (PHRASE | PREFIX) or not left:
                continue
            clause = TextClause(clause.terms[:left], clause.flags)
        kept.append(clause)
        left -= _size(clause)
    return kept


def _in_queries(clauses: Iterable[TextClause]) -> Iterator[list[TextClause]]:
    """All clauses, in queries of at most QUERY_TERMS_MAX terms."""
    some: list[TextClause] = []
    for clause in clauses:
        if sum(map(_size, some)) + _size(clause) > QUERY_TERMS_MAX:
            yield some
            some = []
        some.append(clause)
    if some:
        yield some
