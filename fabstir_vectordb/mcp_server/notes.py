"""Notes, pages of them, and their limits. Every argument of a memory is checked here, before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from blake3 import blake3

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.types import Row, SearchResult

__all__ = [
    "CURSOR_CHARS_MAX",
    "IDS_MAX",
    "ID_CHARS_MAX",
    "LIMIT_MAX",
    "NOTE_CHARS_MAX",
    "PAGE_CHARS",
    "QUERY_CHARS_MAX",
    "TAGS_MAX",
    "TAG_CHARS_MAX",
    "Note",
    "Page",
    "as_iso",
    "check_cursor",
    "check_ids",
    "check_limit",
    "check_tags",
    "check_text",
    "fitting",
    "id_of",
    "note_of",
]

#: Characters of a note: some pages, and more than an embedder looks at.
NOTE_CHARS_MAX: Final = 8_000
QUERY_CHARS_MAX: Final = 1_000
TAGS_MAX: Final = 16
TAG_CHARS_MAX: Final = 64
#: Notes of one `forget`, and characters of an id.
IDS_MAX: Final = 100
ID_CHARS_MAX: Final = 256
#: Notes or versions of a page.
LIMIT_MAX: Final = 50
#: A page ends early with the note that brings it to so many characters, so that an answer fits into a model's context.
PAGE_CHARS: Final = 16_000
CURSOR_CHARS_MAX: Final = 2_048


@dataclass(frozen=True, slots=True)
class Note:
    """A note.

    Attributes:
        id: made of the text, so that the same text is the same note.
        text: what was remembered.
        tags: its tags, in the order in which they came.
        saved_at: seconds since 1970.
        score: how well it fits the query, 0 to 1; None where nothing was searched for.
    """

    id: str
    text: str
    tags: tuple[str, ...]
    saved_at: float
    score: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The note as JSON has it; the time as ISO 8601 in UTC."""
        found = {"id": self.id, "text": self.text, "tags": list(self.tags), "saved_at": as_iso(self.saved_at)}
        return found if self.score is None else {**found, "score": round(self.score, 4)}


@dataclass(frozen=True, slots=True)
class Page:
    """A page of notes.

    Attributes:
        notes: the notes.
        cursor: the place after them, for the next page; None where no more notes follow.
        is_stale: whether the store could not be asked for newer notes, so that these are as of the last load.
    """

    notes: tuple[Note, ...]
    cursor: str | None
    is_stale: bool


def as_iso(seconds: float) -> str:
    """A time since 1970 as ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def id_of(text: str) -> str:
    """The id of the note that has a text: 32 hex digits of its BLAKE3 hash."""
    return blake3(text.encode()).hexdigest(length=16)


def note_of(found: Row | SearchResult, saved_at: float) -> Note:
    """The note in a row or hit. A row that something else wrote has what of a note it has.

    Args:
        found: the row or hit.
        saved_at: the row's timestamp, seconds since 1970, which a hit does not have.
    """
    kept = found.metadata if isinstance(found.metadata, Mapping) else {}
    text, tags = kept.get("text"), kept.get("tags")
    return Note(
        id=found.id,
        text=text if isinstance(text, str) else "",
        tags=tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, Sequence) else (),
        saved_at=saved_at,
        score=found.score if isinstance(found, SearchResult) else None,
    )


def fitting(notes: Sequence[Note]) -> int:
    """How many of the first notes make a page: at least one, where there is one."""
    chars = 0
    for count, note in enumerate(notes):
        chars += len(note.text) + sum(map(len, note.tags))
        if chars >= PAGE_CHARS:
            return count + 1
    return len(notes)


# ---- arguments


def check_text(name: str, value: object, chars_max: int) -> str:
    """A text without white space around it.

    Raises:
        InvalidInputError: it is no string, blank, too long, or no Unicode text.
    """
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} must be a string, got {type(value).__name__}")
    if len(value) > chars_max:
        raise InvalidInputError(
            f"{name} has {len(value)} characters, and may have {chars_max}", details={"limit": chars_max}
        )
    text = value.strip()
    if not text:
        raise InvalidInputError(f"{name} must not be empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(f"{name} is no Unicode text: it has half of a surrogate pair") from None
    return text


def check_tags(tags: object) -> tuple[str, ...]:
    """Tags, each once.

    Raises:
        InvalidInputError: `tags` is no list of short strings, or has too many.
    """
    return _texts("tags", "tag", tags, TAGS_MAX, TAG_CHARS_MAX)


def check_ids(ids: object) -> tuple[str, ...]:
    """Ids of notes, each once.

    Raises:
        InvalidInputError: `ids` is no list of strings, is empty or has too many.
    """
    wanted = _texts("ids", "id", ids, IDS_MAX, ID_CHARS_MAX)
    if not wanted:
        raise InvalidInputError("ids must name at least one note")
    return wanted


def _texts(name: str, one: str, values: object, count_max: int, chars_max: int) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)):
        raise InvalidInputError(f"{name} must be a list of strings, got {type(values).__name__}")
    if len(values) > count_max:
        raise InvalidInputError(
            f"{name} has {len(values)} entries, and may have {count_max}", details={"limit": count_max}
        )
    return tuple(dict.fromkeys(check_text(one, value, chars_max) for value in values))


def check_limit(limit: object) -> int:
    """A number of notes or versions of a page.

    Raises:
        InvalidInputError: it is no integer from 1 to `LIMIT_MAX`.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= LIMIT_MAX:
        raise InvalidInputError(
            f"limit must be an integer from 1 to {LIMIT_MAX}, got {shown(limit)}", details={"limit": LIMIT_MAX}
        )
    return limit


def check_cursor(cursor: object) -> str | None:
    """The cursor of a page, or None.

    Raises:
        InvalidInputError: it is neither None nor a short string.
    """
    return None if cursor is None else check_text("cursor", cursor, CURSOR_CHARS_MAX)
