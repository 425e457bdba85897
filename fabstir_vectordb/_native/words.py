"""The words of a text, as an index of texts has them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.call import call, raise_status, text_of
from fabstir_vectordb._native.library import ffi, lib

__all__ = ["TEXT_BYTES_MAX", "UNICODE_VERSION", "WORD_BYTES_MAX", "Word", "segments", "words"]

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
    # Most texts fit at once: a word has four bytes and a space, and folded about as many.
    room, term_room = len(data) // 4 + 16, len(data) + 64
    count, term_bytes, diag = ffi.new("uint32_t *"), ffi.new("uint64_t *"), ffi.new("fvdb_diag *")
    while True:
        terms, term_ends = ffi.new("uint8_t[]", term_room), ffi.new("uint64_t[]", room)
        starts, ends = ffi.new("uint32_t[]", room), ffi.new("uint32_t[]", room)
        arrays = (terms, term_ends, starts, ends)
        status = lib.fvdb_text_words(data, len(data), room, term_room, *arrays, count, term_bytes, diag)
        if not status:
            break
        if status != lib.FVDB_ERR_BUFFER:
            raise_status(status, diag)
        room, term_room = max(room, count[0]), max(term_room, term_bytes[0])
    n = count[0]
    folded = bytes(ffi.buffer(terms, term_bytes[0]))
    bounds = pairwise([0, *ffi.unpack(term_ends, n)]) if n else ()
    found = [folded[start:end].decode() for start, end in bounds]
    places = _characters(data, len(text), starts, n), _characters(data, len(text), ends, n)
    return list(map(Word, found, *places))


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
    """Numbers of characters for n places of bytes, which are between two characters."""
    if not n:
        return []
    if len(data) == length:
        return list(ffi.unpack(places, n))
    begins = (np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80
    before: npt.NDArray[np.int64] = np.concatenate(([0], np.cumsum(begins)))
    found: list[int] = before[np.frombuffer(ffi.buffer(places, 4 * n), dtype=np.uint32)].tolist()
    return found
