"""The query language of a search of words: words, ``"phrases"``, ``+required``, ``-excluded`` and ``pre*``.

Every text is a query. What does not fit the language is words: a quotation mark without its pair, a sign before
nothing, a star within a word. So a user's sentence can be passed on as it is.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError

__all__ = ["QUERY_CHARS_MAX", "Clause", "Kind", "Need", "ParsedQuery", "parse_query"]

#: Most characters of a query: some ten thousand words, more than any model embeds.
QUERY_CHARS_MAX: Final = 65_536

Kind = Literal["words", "phrase", "prefix"]
Need = Literal["may", "must", "not"]

# A sign belongs to a clause at the beginning of the text, or after white space or a phrase. A phrase ends at the next
# mark of its pair; where there is none, the mark is a part of a word.
_CLAUSE: Final = re.compile(r'(?P<sign>[+-](?=\S))?(?:"(?P<plain>[^"]*)"|“(?P<curved>[^“”]*)”|(?P<bare>\S+))')
_NEEDS: Final[dict[str | None, Need]] = {"+": "must", "-": "not", None: "may"}
_SIGN: Final = re.compile(r"(?<!\S)[+-](?=\S)")


@dataclass(frozen=True, slots=True)
class Clause:
    """One clause of a query.

    Attributes:
        text: the text between its marks, not yet divided into words.
        kind: ``words``: each word counts. ``phrase``: its words next to each other and in their order. ``prefix``:
            every word that begins with the text.
        need: ``may``: rows that have it score. ``must``: only rows that have it are hits. ``not``: none of them is.
    """

    text: str
    kind: Kind
    need: Need


@dataclass(frozen=True, slots=True)
class ParsedQuery:
    """A query as it was read.

    Attributes:
        clauses: its clauses in their order; neighbouring words without a sign are one clause.
    """

    clauses: tuple[Clause, ...]

    @property
    def is_plain(self) -> bool:
        """Whether it is words alone, without phrases, prefixes and signs."""
        return all(clause.kind == "words" and clause.need == "may" for clause in self.clauses)

    @property
    def wanted(self) -> tuple[Clause, ...]:
        """The clauses that a row can have: those that are not excluded."""
        return tuple(clause for clause in self.clauses if clause.need != "not")


def parse_query(text: str) -> ParsedQuery:
    """Reads a query; no text is malformed.

    Args:
        text: at most QUERY_CHARS_MAX characters.

    Returns:
        Its clauses. A text without a word gives clauses without a word, which no row has.

    Raises:
        InvalidInputError: the text is no string, or longer.
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"text must be a string, got {type(text).__name__}")
    if len(text) > QUERY_CHARS_MAX:
        raise InvalidInputError(
            f"text must have at most {QUERY_CHARS_MAX} characters, got {len(text)}",
            details={"limit": QUERY_CHARS_MAX, "actual": len(text)},
        )
    if _is_plain(text):
        body = text.strip()
        return ParsedQuery((Clause(body, "words", "may"),) if body else ())
    clauses: list[Clause] = []
    words: list[str] = []  # neighbouring words without a sign

    def flush() -> None:
        if words:
            clauses.append(Clause(" ".join(words), "words", "may"))
            words.clear()

    for match in _CLAUSE.finditer(text):
        need = _NEEDS[match["sign"]]
        quoted = match["plain"] if match["plain"] is not None else match["curved"]
        kind: Kind = "phrase"
        if quoted is None:
            kind, body = _kind_of(match["bare"])
        else:
            body = quoted.strip()
        if kind == "words" and need == "may":
            words.append(body)
        elif body:
            flush()
            clauses.append(Clause(body, kind, need))
    flush()
    return ParsedQuery(tuple(clauses))


def _is_plain(text: str) -> bool:
    """Whether a text has no mark of the language, as most have: then it need not be taken apart."""
    if '"' in text or "“" in text or "*" in text:
        return False
    return not (("-" in text or "+" in text) and _SIGN.search(text))


def _kind_of(bare: str) -> tuple[Kind, str]:
    """The kind of a clause without quotation marks, and its text."""
    stem = bare.rstrip("*")
    return ("prefix", stem) if stem and stem != bare and "*" not in stem else ("words", bare)
