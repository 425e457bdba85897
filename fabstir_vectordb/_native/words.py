"""The words of a text, as an index of texts has them."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.call import call, raise_status, text_of
from fabstir_vectordb._native.library import ffi, lib

__all__ = ["TEXT_BYTES_MAX", "UNICODE_VERSION", "WORD_BYTES_MAX", "Word", "segments", "terms", "words"]

#: Most bytes of a term in UTF-8; of a longer word the term is its beginning.
WORD_BYTES_MAX = int(lib.FVDB_WORD_BYTES_MAX)
#: Most bytes of a text in UTF-8.
TEXT_BYTES_MAX = int(lib.FVDB_TEXT_BYTES_MAX)
#: The version of Unicode by which texts are taken apart.
UNICODE_VERSION = text_of(lib.fvdb_unicode_version())


class Word(NamedTuple):
    """One word of a text.

    Attributes:
        term: the word folded: what an index has, and what equal words of other texts have.
        start, end: ``text[start:end]`` is the word as it is written.
    """

    term: str
    start: int
    end: int


def words(text: str) -> list[Word]:
    """The words of a text in its order, by Unicode's rules for word boundaries (UAX #29).

    Neighbouring characters of writing systems without spaces, such as Han, Kana and Thai, are a word each two.

    Args:
        text: any string; lone surrogates separate words.

    Returns:
        The words; where the writing system has no spaces, each overlaps the next.

    Raises:
        InvalidInputError: the text has more than TEXT_BYTES_MAX bytes of UTF-8.

    Example:
        >>> words("Don't PANIC")
        [Word(term="don't", start=0, end=5), Word(term='panic', start=6, end=11)]
    """
    data = text.encode("utf-8", "surrogatepass")
    room, n = _split(data)
    starts, ends = (_characters(data, len(text), places, n) for places in (room.starts, room.ends))
    return list(map(Word, _folded(room, n), starts, ends))


def terms(text: str) -> list[str]:
    """The words of a text, folded, without their places: what queries need, in half the time.

    Args:
        text: as for `words`.

    Returns:
        The `Word.term` of each of `words`.

    Raises:
        InvalidInputError: as `words`.

    Example:
        >>> terms("Don't PANIC")
        ["don't", 'panic']
    """
    return _folded(*_split(text.encode("utf-8", "surrogatepass")))


def _split(data: bytes) -> tuple[_Room, int]:
    """The room that has the words of a text, until the next call of this thread, and their number."""
    room = _KEPT.room
    if len(data) > _Room.TEXT_BYTES:
        # Most texts fit at once: a word has four bytes and a space, and folded about as many.
        room = _Room(len(data) // 4 + 16, len(data) + 64)
    while status := lib.fvdb_text_words(data, len(data), *room.arguments):
        if status != lib.FVDB_ERR_BUFFER:
            raise_status(status, room.diag)
        room = _Room(max(room.words, room.count[0]), max(room.bytes, room.term_bytes[0]))
    return room, room.count[0]


def _folded(room: _Room, n: int) -> list[str]:
    folded = ffi.buffer(room.terms, room.term_bytes[0])[:]
    bounds = [0, *ffi.unpack(room.term_ends, n)] if n else [0]
    if folded.isascii():
        line = folded.decode()
        return [line[start:end] for start, end in pairwise(bounds)]
    return [folded[start:end].decode() for start, end in pairwise(bounds)]


class _Room:
    """Where C leaves the words of a text, and the arguments of the call that say so."""

    #: Texts up to this size use the room that each thread keeps: making one takes longer than finding a query's words.
    TEXT_BYTES = 1024

    def __init__(self, words: int, term_bytes: int) -> None:
        self.words, self.bytes = words, term_bytes
        self.terms, self.term_ends = ffi.new("uint8_t[]", term_bytes), ffi.new("uint64_t[]", words)
        self.starts, self.ends = ffi.new("uint32_t[]", words), ffi.new("uint32_t[]", words)
        self.count, self.term_bytes = ffi.new("uint32_t *"), ffi.new("uint64_t *")
        self.diag = ffi.new("fvdb_diag *")
        arrays = (self.terms, self.term_ends, self.starts, self.ends)
        self.arguments: tuple[Any, ...] = (words, term_bytes, *arrays, self.count, self.term_bytes, self.diag)


class _Kept(threading.local):
    def __init__(self) -> None:
        self.room = _Room(_Room.TEXT_BYTES, 2 * _Room.TEXT_BYTES)


_KEPT = _Kept()


def segments(text: str) -> list[int]:
    """Where the word boundaries of UAX #29 are in a text: around words, spaces and punctuation.

    Args:
        text: any string without lone surrogates.

    Returns:
        The ends of all segments, rising; the last one is the length of the text.

    Raises:
        InvalidInputError: the text has more than TEXT_BYTES_MAX bytes of UTF-8.
    """
    data = text.encode("utf-8", "surrogatepass")
    ends, count = ffi.new("uint32_t[]", len(data) or 1), ffi.new("uint32_t *")
    call(lib.fvdb_text_segments, data, len(data), len(data), ends, count)
    return _characters(data, len(text), ends, count[0])


def _characters(data: bytes, length: int, places: Any, n: int) -> list[int]:
    """Numbers of characters before n rising places in bytes, which are between two characters."""
    if not n:
        return []
    found: list[int] = ffi.unpack(places, n)
    if len(data) == length:
        return found
    if n <= _FEW:
        count, before = 0, 0
        for at, place in enumerate(found):
            count += len(data[before:place].decode("utf-8", "surrogatepass"))
            found[at], before = count, place
        return found
    begins = (np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80
    counts: npt.NDArray[np.int64] = np.concatenate(([0], np.cumsum(begins)))
    found = counts[np.asarray(found)].tolist()
    return found


#: Up to so many places, decoding what is between two of them takes less time than an array of all bytes.
_FEW = 64
