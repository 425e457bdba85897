"""The native index of words: BM25 over the texts of rows, known by their slots.

A change has three steps: `NativeText.stage` splits texts into words, `TextChange.prepare` makes the new state beside
the old one and is the last step that can fail, `TextChange.commit` puts it in place. Searches run beside the first two.
Arguments and results are numpy arrays; statuses become errors of this package. The GIL is released while C runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, chain, repeat
from struct import pack
from typing import Any, Final, NamedTuple, Self

import numpy as np

from fabstir_vectordb._native.call import (
    Control,
    Float64Array,
    UInt32Array,
    UInt64Array,
    bitmap_of,
    call,
    expect,
    pointer,
    raise_status,
    unpack_ids,
    word_of,
)
from fabstir_vectordb._native.library import ffi, lib
from fabstir_vectordb.errors import IntegrityError, InternalError

__all__ = [
    "CHUNK_BYTES_MIN",
    "EXCLUDED",
    "FIELD_GAP",
    "PART_TEXT_DICTIONARY",
    "PART_TEXT_HEAD",
    "PART_TEXT_POSITIONS",
    "PART_TEXT_POSTINGS",
    "PART_TEXT_STREAMS",
    "PHRASE",
    "PREFIX",
    "PREFIX_TERMS_MAX",
    "QUERY_TERMS_MAX",
    "REQUIRED",
    "STEM_MARK",
    "TERMS_BOTH",
    "TERMS_STEMS",
    "TERMS_WORDS",
    "TERM_BYTES_MAX",
    "NativeText",
    "PackedTexts",
    "TextChange",
    "TextClause",
    "TextHits",
    "TextPart",
    "TextQuery",
    "TextStats",
    "TextTerm",
    "TextTotals",
]

TERMS_WORDS: Final = int(lib.FVDB_TEXT_WORDS)
"""A term is a word as `words` folds it."""
TERMS_STEMS: Final = int(lib.FVDB_TEXT_STEMS)
"""A term is what the caller gives for a word: its stem."""
TERMS_BOTH: Final = int(lib.FVDB_TEXT_BOTH)
"""A word is two terms: itself, and STEM_MARK followed by its stem."""
STEM_MARK: Final = chr(lib.FVDB_TEXT_STEM_MARK)
"""First character of a stem under TERMS_BOTH; no word has it."""
REQUIRED: Final = int(lib.FVDB_TEXT_REQUIRED)
EXCLUDED: Final = int(lib.FVDB_TEXT_EXCLUDED)
PREFIX: Final = int(lib.FVDB_TEXT_PREFIX)
PHRASE: Final = int(lib.FVDB_TEXT_PHRASE)
TERM_BYTES_MAX: Final = int(lib.FVDB_TEXT_TERM_BYTES_MAX)
QUERY_TERMS_MAX: Final = int(lib.FVDB_TEXT_QUERY_TERMS_MAX)
PREFIX_TERMS_MAX: Final = int(lib.FVDB_TEXT_PREFIX_TERMS_MAX)
FIELD_GAP: Final = int(lib.FVDB_TEXT_FIELD_GAP)
CHUNK_BYTES_MIN: Final = int(lib.FVDB_TEXT_CHUNK_BYTES_MIN)
PART_TEXT_HEAD: Final = int(lib.FVDB_PART_TEXT_HEAD)
PART_TEXT_DICTIONARY: Final = int(lib.FVDB_PART_TEXT_DICTIONARY)
PART_TEXT_POSTINGS: Final = int(lib.FVDB_PART_TEXT_POSTINGS)
PART_TEXT_POSITIONS: Final = int(lib.FVDB_PART_TEXT_POSITIONS)
PART_TEXT_STREAMS: Final = (PART_TEXT_DICTIONARY, PART_TEXT_POSTINGS, PART_TEXT_POSITIONS)
"""Kinds of the parts that follow the heads."""


_SEPARATOR: Final = "\0"


class TextTerm(NamedTuple):
    """One term of a clause.

    Attributes:
        term: the term, or for PREFIX the beginning of terms. A stem under TERMS_BOTH begins with STEM_MARK.
        weight: factor of its score, above 0.
        offset: its place in a phrase, counted in words; without meaning elsewhere.
    """

    term: str
    weight: float = 1.0
    offset: int = 0


class TextClause(NamedTuple):
    """Terms of which a row needs one; all of them, at their offsets, under PHRASE, where no row has one with STEM_MARK.

    Attributes:
        terms: at least one term.
        flags: REQUIRED, EXCLUDED, PREFIX and PHRASE, or-ed; PREFIX and PHRASE exclude each other.
    """

    terms: Sequence[TextTerm]
    flags: int = 0


class TextTotals(NamedTuple):
    """Numbers of the rows of several indexes, to score each of these as one index of all rows would.

    Attributes:
        rows, words: the sums of `TextStats.rows` and `TextStats.words`.
        counts: how many rows have each term, the sums of `NativeText.terms`.
    """

    rows: int
    words: int
    counts: Mapping[str, int]


class TextQuery:
    """Clauses, packed for C; can be used for any number of searches.

    The score of a row is the sum over the clauses that it matches, of their terms that it has. A row is a hit if it
    matches one clause that is not EXCLUDED, all REQUIRED and no EXCLUDED ones.

    Args:
        clauses: the clauses; with totals none is a PREFIX.
        totals: numbers in place of the index's own; None for these.
    """

    __slots__ = ("_packed", "_terms", "joined", "word_weight")
    _terms: Sequence[str]
    #: The C struct and what it points to, set together: threads may share a query.
    _packed: tuple[Any, tuple[Any, ...]] | None

    def __init__(self, clauses: Iterable[TextClause], totals: TextTotals | None = None) -> None:
        #: Terms alone, with a zero byte between each two, which C takes as they are; None for other queries.
        self.joined: bytes | None = None
        self.word_weight = 1.0
        names: list[str] = []
        weights: list[float] = []
        offsets: list[int] = []
        packed: list[int] = []
        for terms, flags in clauses:
            packed += (len(names), len(terms), flags, 0)
            for term, weight, offset in terms:
                names.append(term)
                weights.append(weight)
                offsets.append(offset)
        self._packed = self._pack(names, weights, offsets, packed, totals)

    @classmethod
    def of_terms(cls, terms: Sequence[str], word_weight: float = 1.0) -> Self:
        """A query of terms alone: rows that have any of them; a term that comes twice counts twice.

        Args:
            terms: the terms.
            word_weight: of those without STEM_MARK; the others have 1.

        Returns:
            The query.
        """
        self = cls.__new__(cls)
        self.joined = _SEPARATOR.join(terms).encode("utf-8", "replace")
        self._terms, self._packed, self.word_weight = terms, None, word_weight
        if self.joined.count(0) != len(terms) - 1:  # one has a zero itself, or there is none
            self.joined = None
        return self

    @property
    def pointer(self) -> Any:
        """The C struct; what it points to lives as long as this object."""
        packed = self._packed
        if packed is None:
            weights = (1.0 if term.startswith(STEM_MARK) else self.word_weight for term in self._terms)
            packed = self._packed = self._pack(self._terms, weights, repeat(0), (0, len(self._terms), 0, 0))
        return packed[0]

    @staticmethod
    def _pack(
        names: Sequence[str],
        weights: Iterable[float],
        offsets: Iterable[int],
        clauses: Sequence[int],
        totals: TextTotals | None = None,
    ) -> tuple[Any, tuple[Any, ...]]:
        """The C struct, and what it points to: as bytes, since cffi takes ten times as long to fill in their fields."""
        joined = "".join(names)
        if joined.isascii():  # as most are: encoded at once
            raw, sizes = joined.encode("ascii"), list(map(len, names))
        else:
            encoded = [name.encode("utf-8", "replace") for name in names]
            raw, sizes = b"".join(encoded), list(map(len, encoded))
        fields = chain.from_iterable(zip(accumulate(sizes, initial=0), sizes, offsets, weights, strict=False))
        raw_c = ffi.from_buffer("uint8_t[]", raw)
        terms_c = ffi.from_buffer("fvdb_text_term[]", pack("IIif" * len(sizes), *fields))
        clauses_c = ffi.from_buffer("fvdb_text_clause[]", pack(f"{len(clauses)}I", *clauses))
        totals_c = counts_c = ffi.NULL
        if totals is not None:
            counts_c = ffi.new("uint64_t[]", [totals.counts.get(name, 0) for name in names])
            totals_c = ffi.new("fvdb_text_totals *", (totals.rows, totals.words, counts_c))
        query = ffi.new(
            "fvdb_text_query *", (raw_c, len(raw), terms_c, clauses_c, totals_c, len(terms_c), len(clauses_c))
        )
        return query, (raw_c, terms_c, clauses_c, totals_c, counts_c)


class TextHits(NamedTuple):
    """Hits of a search by words.

    Attributes:
        slots: uint32, at most k, highest score first, ties by slot.
        scores: float64, raw BM25.
        matches: how many rows match in all, where the search was asked to count them.
    """

    slots: UInt32Array
    scores: Float64Array
    matches: int | None


class _Room:
    """Where C leaves the hits of a search, and the arguments of the call that say so."""

    #: Searches for so many hits use the room that each thread keeps: making one takes longer than a search for a word.
    HITS = 128

    def __init__(self, k: int) -> None:
        self.slots, self.scores = np.empty(k, dtype=np.uint32), np.empty(k)
        self.found, self.diag = ffi.new("uint32_t *"), ffi.new("fvdb_diag *")
        self.outputs = pointer("uint32_t[]", self.slots), pointer("double[]", self.scores), self.found


class _Kept(threading.local):
    def __init__(self) -> None:
        self.room = _Room(_Room.HITS)


_KEPT: Final = _Kept()


class TextStats(NamedTuple):
    """Counts and memory of an index of words.

    Attributes:
        rows: rows with text.
        words: the sum of their lengths in indexed words.
        segments: immutable segments.
        terms: entries of dictionaries; a term counts once a segment.
        postings: those of rows that left included.
        left_rows: rows that left and whose postings are still there, until a merge or a vacuum.
        bytes_heads, bytes_dictionary, bytes_postings, bytes_positions: resident bytes by kind.
        bytes_total: all of them.
    """

    rows: int
    words: int
    segments: int
    terms: int
    postings: int
    left_rows: int
    bytes_heads: int
    bytes_dictionary: int
    bytes_postings: int
    bytes_positions: int
    bytes_total: int


class TextPart(NamedTuple):
    """A part of a saved index of words.

    Attributes:
        kind: PART_TEXT_*.
        number: its number within the kind.
        size: its bytes.
    """

    kind: int
    number: int
    size: int


def _pack_texts(texts: Sequence[str]) -> tuple[bytes, UInt64Array]:
    offsets = np.zeros(len(texts) + 1, dtype=np.uint64)
    joined = "".join(texts)
    if joined.isascii():
        np.cumsum(np.fromiter(map(len, texts), dtype=np.uint64, count=len(texts)), out=offsets[1:])
        return joined.encode("ascii"), offsets
    encoded = [text.encode("utf-8", "replace") for text in texts]
    np.cumsum(np.fromiter(map(len, encoded), dtype=np.uint64, count=len(texts)), out=offsets[1:])
    return b"".join(encoded), offsets


class PackedTexts:
    """Texts of rows as C reads them: added some at a time, so that not all of them are strings at once."""

    __slots__ = ("_offsets", "_raw", "_slots")

    def __init__(self) -> None:
        self._raw = bytearray()
        self._slots: list[UInt32Array] = []
        self._offsets: list[UInt64Array] = [np.zeros(1, dtype=np.uint64)]

    def __bool__(self) -> bool:
        """Whether there is any text."""
        return bool(self._slots)

    def add(self, slots: UInt32Array, texts: Sequence[str]) -> None:
        """Adds texts.

        Args:
            slots: n uint32.
            texts: n texts, at least one.
        """
        expect("slots", slots, np.uint32, (len(texts),))
        raw, offsets = _pack_texts(texts)
        self._slots.append(slots)
        self._offsets.append(offsets[1:] + np.uint64(len(self._raw)))
        self._raw += raw

    def rows(self) -> tuple[Any, tuple[Any, ...]]:
        """The C struct of rows, and what must live as long as it."""
        slots = np.concatenate(self._slots or [_NO_SLOTS])
        offsets = np.concatenate(self._offsets)
        text_c, slots_c = ffi.from_buffer(self._raw), pointer("uint32_t[]", slots)
        offsets_c = pointer("uint64_t[]", offsets)
        rows = ffi.new("fvdb_text_rows *", (len(slots), slots_c, ffi.cast("uint8_t *", text_c), offsets_c))
        return rows, (slots, offsets, text_c, slots_c, offsets_c)


def packed(slots: UInt32Array, texts: Sequence[str]) -> PackedTexts:
    """Texts of rows, all at once; arguments as for `PackedTexts.add`, perhaps none."""
    found = PackedTexts()
    if len(texts):
        found.add(slots, texts)
    return found


_NO_SLOTS: Final = np.zeros(0, dtype=np.uint32)


class TextChange:
    """A change of a `NativeText`: staged, prepared, committed or dropped; dropping it changes nothing.

    A change whose terms are not the words themselves needs `set_terms` before `prepare`.
    """

    __slots__ = ("_change", "_text")

    def __init__(self, text: NativeText, change: Any) -> None:
        self._text = text
        self._change = ffi.gc(change, lib.fvdb_text_change_free)

    def words(self) -> list[str]:
        """The distinct words of a staged change, each once, in the order of first use.

        Returns:
            The words; an empty list where terms are words.

        Raises:
            VectorDBError: memory ran out.
        """
        n, size = ffi.new("uint32_t *"), ffi.new("uint64_t *")
        call(lib.fvdb_text_change_size, self._change, n, size)
        out, offsets = ffi.new("uint8_t[]", max(int(size[0]), 1)), np.zeros(int(n[0]) + 1, dtype=np.uint64)
        call(lib.fvdb_text_change_words, self._change, out, size[0], pointer("uint64_t[]", offsets), n[0])
        return unpack_ids(bytes(ffi.buffer(out, int(size[0]))), offsets)

    def counts(self) -> tuple[int, int]:
        """How many words the texts of a staged change have, and how many of them are distinct."""
        words, distinct = ffi.new("uint64_t *"), ffi.new("uint32_t *")
        call(lib.fvdb_text_change_counts, self._change, words, distinct)
        return int(words[0]), int(distinct[0])

    def set_terms(self, terms: Sequence[str]) -> None:
        """Gives the terms of all words.

        Args:
            terms: one for each of `words`, in the same order; an empty one for a word that is not to be indexed.

        Raises:
            InvalidInputError: another number of terms, or a term of TERM_BYTES_MAX bytes or more.
            VectorDBError: memory ran out.
        """
        raw, offsets = _pack_texts(terms)
        text_c = ffi.from_buffer(raw)
        call(
            lib.fvdb_text_set_terms,
            self._change,
            ffi.cast("uint8_t *", text_c),
            pointer("uint64_t[]", offsets),
            len(terms),
        )

    def prepare(self, control: Control | None = None) -> None:
        """Makes the new state beside the old one: the last step that can fail.

        Args:
            control: progress, and a way to cancel.

        Raises:
            NotFoundError: a row that leaves is not in the index; details has its row.
            InvalidInputError: a row that comes is in the index already; or terms are missing.
            NativeCancelled: through the control; nothing changed.
            VectorDBError: memory ran out, or the index would be too large.
        """
        call(lib.fvdb_text_prepare, self._text.pointer, self._change, word_of(control))

    def bytes_after(self) -> int:
        """The `TextStats.bytes_total` of the index after the commit, to compare with a budget before it.

        Returns:
            The bytes.

        Raises:
            InvalidInputError: the change is not prepared.
        """
        out = ffi.new("uint64_t *")
        call(lib.fvdb_text_change_bytes, self._change, out)
        return int(out[0])

    def commit(self) -> None:
        """Puts the prepared state in place.

        Raises:
            InvalidInputError: it was not prepared, or another change was committed since; nothing changed.
        """
        call(lib.fvdb_text_commit, self._text.pointer, self._change)

    def close(self) -> None:
        """Frees the memory of the change, committed or not; calling it again does nothing."""
        change, self._change = self._change, None
        if change is not None:
            ffi.release(change)


class NativeText:
    """One native index of words.

    Several threads may search, beside stage and prepare. One caller at a time may change it, from stage to commit.
    """

    __slots__ = ("pointer",)

    def __init__(self, *, k1: float = 1.2, b: float = 0.75, terms: int = TERMS_WORDS) -> None:
        """Makes an empty index.

        Args:
            k1: 0 to 1000: how soon more of the same word stop counting (Robertson & Zaragoza 2009).
            b: 0 to 1: how much long texts are marked down.
            terms: TERMS_WORDS, TERMS_STEMS or TERMS_BOTH.

        Raises:
            InvalidInputError: a number is out of range.
        """
        out = ffi.new("fvdb_text **")
        call(lib.fvdb_text_create, ffi.new("fvdb_text_config *", (k1, b, terms, 0)), out)
        #: The C object; None after `close`, which cffi refuses.
        self.pointer: Any = ffi.gc(out[0], lib.fvdb_text_free)

    @classmethod
    def load(
        cls,
        segments: int,
        chunk_bytes: int,
        stream_bytes: Sequence[int],
        *,
        k1: float = 1.2,
        b: float = 0.75,
        terms: int = TERMS_WORDS,
    ) -> Self:
        """Begins to load: `load_part` takes the parts, all heads first; then `load_end`, or searches by `missing`.

        Args:
            segments: number of parts of kind PART_TEXT_HEAD in the version.
            chunk_bytes: as at the save.
            stream_bytes: bytes of all parts of each kind in `PART_TEXT_STREAMS`; heads that announce more are refused
                before they get memory.
            k1, b, terms: as at the save.

        Returns:
            An index in the state loading.

        Raises:
            InvalidInputError: a number is out of range.
        """
        self = cls.__new__(cls)
        out = ffi.new("fvdb_text **")
        config = ffi.new("fvdb_text_config *", (k1, b, terms, 0))
        sizes = ffi.new(f"uint64_t[{len(PART_TEXT_STREAMS)}]", list(stream_bytes))
        call(lib.fvdb_text_load, config, segments, chunk_bytes, sizes, out)
        self.pointer = ffi.gc(out[0], lib.fvdb_text_free)
        return self

    def close(self) -> None:
        """Frees all memory at once; calling it again does nothing. No other call may be running."""
        text, self.pointer = self.pointer, None
        if text is not None:
            ffi.release(text)

    def leave_to_parent(self) -> None:
        """Gives up freeing the memory, in a forked child: freeing could wait for a lock of a thread of the parent."""
        if self.pointer is not None:
            ffi.gc(self.pointer, None)

    # ---- Changes ---------------------------------------------------------------------------------------------

    def stage(
        self,
        slots: UInt32Array,
        texts: Sequence[str],
        removed_slots: UInt32Array = _NO_SLOTS,
        removed_texts: Sequence[str] = (),
        control: Control | None = None,
    ) -> TextChange:
        """As `stage_packed`, of texts that are all there.

        Args:
            slots: n uint32, rows that come to the index.
            texts: their n texts.
            removed_slots: m uint32, rows that leave the index.
            removed_texts: their m texts.
            control: a way to cancel.
        """
        return self.stage_packed(packed(slots, texts), packed(removed_slots, removed_texts), control)

    def stage_packed(self, added: PackedTexts, removed: PackedTexts, control: Control | None = None) -> TextChange:
        """Splits the texts of a change into words; changes nothing.

        A slot may come several times in a row: its texts count as one, FIELD_GAP positions apart. A row whose text is
        replaced is in both.

        Args:
            added: rows that come to the index, and their texts.
            removed: rows that leave the index, and the texts that they came with: these count down how many rows have
                a word.
            control: a way to cancel.

        Returns:
            The staged change.

        Raises:
            InvalidInputError: a slot comes twice, but not in a row.
            NativeCancelled: through the control.
            VectorDBError: memory ran out, or the texts are too large.
        """
        come, kept_added = added.rows()
        left, kept_removed = removed.rows()
        out = ffi.new("fvdb_text_change **")
        call(lib.fvdb_text_stage, self.pointer, left, come, word_of(control), out)
        del kept_added, kept_removed
        return TextChange(self, out[0])

    def stage_map(self, slot_map: UInt32Array, control: Control | None = None) -> TextChange:
        """Prepares the index for other slots, as after a vacuum or a new order of rows: commit the change.

        Nothing of a row that goes, or that left before, is in the new state.

        Args:
            slot_map: new slot for each old one, NO_SLOT for a row that goes.
            control: progress, and a way to cancel.

        Returns:
            The prepared change.

        Raises:
            InvalidInputError: two rows get the same slot.
            NativeCancelled: through the control.
            VectorDBError: memory ran out.
        """
        expect("slot_map", slot_map, np.uint32, (len(slot_map),))
        out = ffi.new("fvdb_text_change **")
        slots = pointer("uint32_t[]", slot_map)
        call(lib.fvdb_text_stage_map, self.pointer, slots, len(slot_map), word_of(control), out)
        return TextChange(self, out[0])

    @staticmethod
    def estimate_bytes(rows: int, text_bytes: int) -> int:
        """Bytes that the index takes for so many rows, whose texts have so many bytes of UTF-8 in all.

        Args:
            rows: rows with text.
            text_bytes: bytes of their texts.

        Returns:
            An upper estimate for texts of a language.
        """
        return int(lib.fvdb_text_estimate_bytes(rows, text_bytes))

    @staticmethod
    def estimate_change(terms: int, index_bytes: int, rows: int, words: int, distinct: int) -> int:
        """Most bytes that a change takes beside the index, from stage until it is closed.

        Args:
            terms: TERMS_WORDS, TERMS_STEMS or TERMS_BOTH.
            index_bytes: `TextStats.bytes_total`.
            rows: rows of the change, those that come and those that leave.
            words: words of their texts.
            distinct: how many of them are distinct.

        Returns:
            The bytes.
        """
        return int(lib.fvdb_text_estimate_change(terms, index_bytes, rows, words, distinct))

    def stats(self) -> TextStats:
        """Counts and memory, in constant time.

        Returns:
            The statistics.

        Raises:
            VectorDBError: the index is unusable after a failed load.
        """
        out = ffi.new("fvdb_text_stats *")
        call(lib.fvdb_text_get_stats, self.pointer, out)
        return TextStats(*(int(getattr(out, name)) for name in TextStats._fields))

    def validate(self) -> None:
        """Checks every byte and every invariant.

        Raises:
            IntegrityError: one does not hold.
        """
        call(lib.fvdb_text_validate, self.pointer)

    # ---- Search ----------------------------------------------------------------------------------------------

    def search(self, query: TextQuery, k: int, allow: UInt64Array | None = None, *, count: bool = False) -> TextHits:
        """The k rows with the highest scores.

        Args:
            query: the clauses.
            k: 1 to K_MAX.
            allow: bitmap of slots, 64 a word; None allows all rows of the index.
            count: whether to count all matches, which takes a pass over all postings of the query.

        Returns:
            The hits, highest score first, ties by slot.

        Raises:
            InvalidInputError: the query is malformed; or k is out of range; or parts are missing while loading.
            VectorDBError: memory ran out.
        """
        if query.joined is not None:
            terms = query.joined, len(query.joined), query.word_weight
            return self._found(lib.fvdb_text_search_terms, terms, k, allow, count)
        return self._found(lib.fvdb_text_search, (query.pointer,), k, allow, count)

    def search_words(self, text: str, k: int, allow: UInt64Array | None = None, *, count: bool = False) -> TextHits:
        """The k rows with the highest scores for the words of a text, each as often as it comes.

        The same as `search` for a `TextQuery.of_terms` of these words, in one call.

        Args:
            text: any text; words beyond QUERY_TERMS_MAX are left out.
            k, allow, count: as for `search`.

        Returns:
            The hits, highest score first, ties by slot.

        Raises:
            InvalidInputError: k is out of range; or terms are not words; or parts are missing while loading.
            VectorDBError: memory ran out.
        """
        raw = text.encode("utf-8", "replace")
        return self._found(lib.fvdb_text_search_words, (raw, len(raw)), k, allow, count)

    def _found(
        self, function: Callable[..., int], query: tuple[Any, ...], k: int, allow: UInt64Array | None, count: bool
    ) -> TextHits:
        room = _KEPT.room if k <= _Room.HITS else _Room(k)
        matches = ffi.new("uint64_t *") if count else ffi.NULL
        bitmap, words = (ffi.NULL, 0) if allow is None else (bitmap_of(allow), len(allow))
        status = function(self.pointer, *query, k, bitmap, words, *room.outputs, matches, room.diag)
        if status:
            raise_status(status, room.diag)
        n = room.found[0]
        return TextHits(room.slots[:n].copy(), room.scores[:n].copy(), int(matches[0]) if count else None)

    def score_slots(self, query: TextQuery, slots: UInt32Array) -> Float64Array:
        """The scores of given rows, in any order; 0 for a row that the query does not match.

        Args:
            query: the clauses.
            slots: n uint32.

        Returns:
            n float64, the scores that `search` gives.

        Raises:
            InvalidInputError: the query is malformed; or parts are missing while loading.
            VectorDBError: memory ran out.
        """
        expect("slots", slots, np.uint32, (len(slots),))
        out = np.empty(len(slots))
        call(
            lib.fvdb_text_score_slots,
            self.pointer,
            query.pointer,
            pointer("uint32_t[]", slots),
            len(slots),
            pointer("double[]", out),
        )
        return out

    def mask(self, query: TextQuery, rows: int) -> UInt64Array:
        """The rows that match all REQUIRED and no EXCLUDED clauses of a query; its other clauses have no effect.

        A signed PREFIX stands for all terms that begin so, not only for those that are scored.

        Args:
            query: the clauses.
            rows: number of slots.

        Returns:
            A bitmap of slots, 64 a word; slots without text have no word.

        Raises:
            InvalidInputError: the query is malformed; or parts are missing while loading.
            VectorDBError: memory ran out.
        """
        out = np.empty((rows + 63) // 64, dtype=np.uint64)
        call(lib.fvdb_text_mask, self.pointer, query.pointer, rows, pointer("uint64_t[]", out))
        return out

    def terms(self, query: TextQuery) -> dict[str, int]:
        """How many rows have each term of a query; of a PREFIX, each term of any row that begins with it.

        Args:
            query: the clauses; totals have no effect.

        Returns:
            Numbers of rows by term.

        Raises:
            IntegrityError: a part that came while loading is malformed.
            InvalidInputError: the query is malformed; or parts are missing while loading.
            VectorDBError: memory ran out.
        """
        room, n_bytes = 64, 1024
        n, size, diag = ffi.new("uint32_t *"), ffi.new("uint64_t *"), ffi.new("fvdb_diag *")
        while True:
            out, offsets = ffi.new("uint8_t[]", n_bytes), np.empty(room + 1, dtype=np.uint64)
            counts = np.empty(room, dtype=np.uint64)
            status = lib.fvdb_text_terms(
                self.pointer,
                query.pointer,
                out,
                n_bytes,
                pointer("uint64_t[]", offsets),
                pointer("uint64_t[]", counts),
                room,
                n,
                size,
                diag,
            )
            if not status:
                break
            if status != lib.FVDB_ERR_BUFFER:
                raise_status(status, diag)
            room, n_bytes = int(n[0]), int(size[0])
        try:
            terms = unpack_ids(bytes(ffi.buffer(out, int(size[0]))), offsets[: n[0] + 1])
        except UnicodeDecodeError as error:
            raise IntegrityError("a term of the index of words is no UTF-8") from error
        return dict(zip(terms, counts[: n[0]].tolist(), strict=True))

    # ---- Save and load ---------------------------------------------------------------------------------------

    def parts(self, chunk_bytes: int) -> list[TextPart]:
        """The parts of the index as it is now, in a fixed order: the heads, then chunks of each kind.

        Args:
            chunk_bytes: size of chunks, CHUNK_BYTES_MIN or more; a load needs the same.

        Returns:
            The parts.

        Raises:
            InvalidInputError: chunk_bytes is out of range.
        """
        return _listed(lambda *room: lib.fvdb_text_parts(self.pointer, chunk_bytes, *room))

    def write_part(self, part: TextPart, chunk_bytes: int) -> bytearray:
        """The bytes of one part.

        Args:
            part: one of `parts`.
            chunk_bytes: as there.

        Returns:
            The bytes.

        Raises:
            InvalidInputError: there is no such part.
        """
        out, size = bytearray(part.size), ffi.new("uint64_t *")
        buffer = ffi.from_buffer("uint8_t[]", out)
        call(lib.fvdb_text_part_write, self.pointer, chunk_bytes, part.kind, part.number, buffer, len(out), size)
        if size[0] != part.size:
            raise InternalError("a part has another size than was said", details={"part": part, "size": int(size[0])})
        return out

    def load_part(self, kind: int, number: int, data: bytes | bytearray | memoryview) -> None:
        """Takes a part of a version; all heads come first.

        Args:
            kind, number: which part it is.
            data: its bytes.

        Raises:
            IntegrityError: the bytes are not such a part.
            InvalidInputError: there is no such part, or a head is missing.
            VectorDBError: memory ran out.
        """
        raw = ffi.from_buffer("uint8_t[]", data)
        call(lib.fvdb_text_load_part, self.pointer, kind, number, raw, len(raw))

    def load_end(self) -> None:
        """Checks all parts, when all came; the index is whole then.

        Raises:
            IntegrityError: they are not the parts of an index; this one is unusable now.
            InvalidInputError: a part is missing.
            VectorDBError: memory ran out.
        """
        call(lib.fvdb_text_load_end, self.pointer)

    def missing(self, query: TextQuery) -> list[TextPart]:
        """The parts that a search for a query still needs while loading.

        Args:
            query: the clauses.

        Returns:
            The parts; none if the search can run. Dictionary parts come first; once these are loaded, ask again for
            postings.

        Raises:
            IntegrityError: a part that came is malformed.
            InvalidInputError: the query is malformed, or a head is missing.
            VectorDBError: memory ran out.
        """
        return _listed(lambda *room: lib.fvdb_text_missing(self.pointer, query.pointer, *room))


def _listed(function: Callable[..., int]) -> list[TextPart]:
    """Calls a function that lists parts, with room enough."""
    room, found, diag = 64, ffi.new("uint32_t *"), ffi.new("fvdb_diag *")
    while True:
        out = ffi.new("fvdb_part[]", room)
        status = function(out, room, found, diag)
        if not status:
            return [TextPart(out[i].kind, out[i].number, int(out[i].size)) for i in range(found[0])]
        if status != lib.FVDB_ERR_BUFFER:
            raise_status(status, diag)
        room = int(found[0])
