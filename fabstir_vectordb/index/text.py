"""The words of rows: the native index of words over the texts of metadata fields, and its settings.

`Rows` is the only caller that changes it, as a part of its own changes. `stage` and `stage_map` do everything that can
fail; `Staged.commit` follows after the rows themselves have changed, and cannot fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import NO_SLOT, Control
from fabstir_vectordb._native.text import (
    TERMS_BOTH,
    TERMS_STEMS,
    TERMS_WORDS,
    NativeText,
    PackedTexts,
    TextChange,
    TextHits,
    TextPart,
    TextQuery,
    TextStats,
    TextTotals,
)
from fabstir_vectordb.errors import IntegrityError, InvalidInputError
from fabstir_vectordb.index.contents import TEXT_HEAD, PartKey, TextContents, TextShape
from fabstir_vectordb.metadata.arena import StoredValues
from fabstir_vectordb.metadata.texts import RowTexts, texts_of
from fabstir_vectordb.text.analyzer import Analyzer
from fabstir_vectordb.text.clauses import TermsQuery, compile_query
from fabstir_vectordb.text.highlight import highlight
from fabstir_vectordb.text.query import ParsedQuery
from fabstir_vectordb.text.settings import TextSettings
from fabstir_vectordb.types import Highlight

__all__ = ["RowValues", "StagedText", "Texts", "forms_of", "highlights_of", "settings_of", "slices"]

Slots = npt.NDArray[np.uint32]

_NO_STATS: Final = TextStats(*[0] * len(TextStats._fields))
#: Chunks of a stored text index: a search of a lazily loaded index fetches a few of them. They double in size where
#: there would be more parts, as each upload takes 1-2 s.
_TEXT_CHUNK_BYTES: Final = 256 * 1024
_TEXT_PARTS_MAX: Final = 256
#: Least bytes of text for a word, and for a distinct one of many: "a ", and "word ".
_WORD_BYTES_MIN: Final = 2
_DISTINCT_BYTES_MIN: Final = 5
#: Bytes of metadata that are read at a time: as values, strings and words of their own they take ten times as much.
_SLICE_BYTES: Final = 1 << 18
_SLICE_COPIES: Final = 10
#: A value without bytes counts so many in a slice.
_VALUE_BYTES: Final = 64
#: A word of a row that leaves, while it is staged.
_LEFT_WORD_BYTES: Final = 6
#: A row whose slot changes: its place in lists of slots, and in the postings of one term.
_MAPPED_ROW_BYTES: Final = 40
#: Rows with more than one byte in so many of all metadata leave the index by a copy of it without them. Beside it the
#: texts of rows that leave would take more memory than the copy, and its parts are at most twice those of these rows.
_COPIED_SHARE: Final = 3
_NO_SLOTS: Final[Slots] = np.empty(0, dtype=np.uint32)


class RowValues(Protocol):
    """The metadata of rows, read some at a time: a list, or `StoredValues`."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Sequence[bytes | bytearray | None]: ...


class StagedText:
    """A change of the text index that was prepared; without a text index it changes nothing."""

    __slots__ = ("_change", "_texts")

    def __init__(self, texts: Texts, change: TextChange | None) -> None:
        self._texts = texts
        self._change = change

    def commit(self) -> None:
        """Makes the change; it cannot fail."""
        change = self._change
        if change is not None:
            change.commit()
            self._texts.refresh()

    def close(self) -> None:
        """Frees the memory of the change, made or not; idempotent."""
        change, self._change = self._change, None
        if change is not None:
            change.close()


class Texts:
    """The text index of some rows; none until it has settings.

    Attributes:
        settings: fields, language and parameters; None without a text index.
        stats: counts and memory after the last change.

    Args:
        settings: the settings, or None.
        native: a loaded index of words; None makes an empty one.
    """

    def __init__(self, settings: TextSettings | None = None, native: NativeText | None = None) -> None:
        self.settings = settings
        self.stats = _NO_STATS
        self._native: NativeText | None = None
        self.analyzer = Analyzer() if settings is None else Analyzer(settings.language, settings.stop_words)
        if settings is not None:
            self._native = native or self._empty(settings)
            self.refresh()

    def _empty(self, settings: TextSettings) -> NativeText:
        return NativeText(k1=settings.k1, b=settings.b, terms=self._forms)

    @classmethod
    def restored(cls, contents: TextContents | None) -> Texts:
        """The text index of a version.

        Raises:
            StorageError, IntegrityError, InvalidConfigError: as `settings_of`.
        """
        if contents is None:
            return cls()
        return cls(settings_of(contents.shape), contents.native)

    @property
    def _forms(self) -> int:
        settings = self.settings
        return TERMS_WORDS if settings is None else forms_of(settings.language, settings.stop_words)

    @property
    def native(self) -> NativeText | None:
        """The native index of words, or None without settings."""
        return self._native

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.stats.bytes_total

    @property
    def has_superseded(self) -> bool:
        """Whether words of texts that were replaced or removed are still in memory."""
        return self.stats.left_rows > 0

    def refresh(self) -> None:
        """Reads the counts again, after a change."""
        if self._native is not None:
            self.stats = self._native.stats()

    # ---- changes

    def texts_of(self, values: Sequence[bytes | bytearray | None]) -> RowTexts:
        """The texts of rows, by their positions in `values`."""
        return RowTexts([], []) if self.settings is None else texts_of(self.settings.fields, values)

    @contextmanager
    def staged(
        self,
        slots: Slots,
        values: RowValues,
        left_slots: Slots = _NO_SLOTS,
        left_values: RowValues = (),
        control: Control | None = None,
    ) -> Iterator[StagedText]:
        """A prepared change, freed at the end: rows that come, and other rows that leave.

        Args:
            slots: rows that come.
            values: their metadata.
            left_slots: rows that leave.
            left_values: their present metadata.
            control: stops it.

        Raises:
            IndexStateError: there was not enough memory.
            NativeCancelled: `control` asked for it.
        """
        with self._changed(lambda: (self._packed(slots, values), self._packed(left_slots, left_values)), control) as it:
            yield it

    @contextmanager
    def replaced(self, slots: Slots, values: RowValues, stored: RowValues) -> Iterator[StagedText]:
        """A prepared change of rows that get other metadata, freed at the end.

        Args:
            slots: the rows.
            values, stored: their new and their present metadata.

        Raises:
            IndexStateError: there was not enough memory.
        """
        with self._changed(lambda: self._packed_where_they_differ(slots, values, stored), None) as it:
            yield it

    @contextmanager
    def without(self, slots: Slots, stored: StoredValues, rows: int, used_bytes: int) -> Iterator[StagedText]:
        """A prepared change by rows that leave, freed at the end.

        Args:
            slots: rows that leave.
            stored: their metadata.
            rows: number of slots.
            used_bytes: bytes of the metadata of all rows.

        Raises:
            IndexStateError: there was not enough memory.
        """
        if self._native is None or not self._copies(stored.sizes, used_bytes):
            with self.staged(_NO_SLOTS, (), slots, stored) as it:
                yield it
            return
        slot_map = np.arange(rows, dtype=np.uint32)
        slot_map[slots] = NO_SLOT
        with self._mapped(slot_map, None) as it:
            yield it

    def _copies(self, sizes: npt.NDArray[np.int32], used_bytes: int) -> bool:
        """Whether rows with so many bytes of metadata leave by a copy of the index. Only bytes decide, so that the same
        calls give the same index everywhere."""
        return _COPIED_SHARE * _total(sizes) > used_bytes

    @contextmanager
    def _changed(
        self, packed: Callable[[], tuple[PackedTexts, PackedTexts]], control: Control | None
    ) -> Iterator[StagedText]:
        """The change by packed texts of rows that come, and of rows that leave."""
        staged = StagedText(self, None if self._native is None else self._prepared(self._native, *packed(), control))
        try:
            yield staged
        finally:
            staged.close()

    def _prepared(
        self, native: NativeText, come: PackedTexts, left: PackedTexts, control: Control | None
    ) -> TextChange | None:
        if not come and not left:
            return None
        change = native.stage_packed(come, left, control)
        try:
            if self._forms != TERMS_WORDS:
                change.set_terms(self.analyzer.stem_all(change.words()))
            change.prepare(control)
        except BaseException:
            change.close()
            raise
        return change

    def _packed(self, slots: Slots, values: RowValues) -> PackedTexts:
        packed = PackedTexts()
        for rows in slices(_sizes_of(values), _SLICE_BYTES):
            _add(packed, slots[rows], self.texts_of(values[rows]))
        return packed

    def _packed_where_they_differ(
        self, slots: Slots, values: RowValues, stored: RowValues
    ) -> tuple[PackedTexts, PackedTexts]:
        come, left = PackedTexts(), PackedTexts()
        for rows in slices(_sizes_of(values) + _sizes_of(stored), _SLICE_BYTES):
            new, old = self.texts_of(values[rows]), self.texts_of(stored[rows])
            new_of, old_of = _by_row(new), _by_row(old)
            same = {row for row in new_of.keys() & old_of.keys() if new_of[row] == old_of[row]}
            for packed, texts in ((come, new), (left, old)):
                _add(packed, slots[rows], texts.without(same))
        return come, left

    @contextmanager
    def renumbered(self, kept: Slots, rows: int, control: Control | None = None) -> Iterator[StagedText]:
        """A prepared change of slots, freed at the end; without the words of rows that left.

        Args:
            kept: the old slots in the new order.
            rows: number of old slots.
            control: stops it.

        Raises:
            IndexStateError: there was not enough memory.
            NativeCancelled: `control` asked for it.
        """
        slot_map = np.full(rows, NO_SLOT, dtype=np.uint32)
        slot_map[kept] = np.arange(len(kept), dtype=np.uint32)
        with self._mapped(slot_map, control) as it:
            yield it

    @contextmanager
    def _mapped(self, slot_map: Slots, control: Control | None) -> Iterator[StagedText]:
        staged = StagedText(self, None if self._native is None else self._native.stage_map(slot_map, control))
        try:
            yield staged
        finally:
            staged.close()

    def cleared(self) -> Texts:
        """An empty text index with the same settings."""
        return Texts(self.settings)

    def close(self) -> None:
        """Frees native memory; no call may be under way."""
        native, self._native = self._native, None
        self.stats = _NO_STATS
        if native is not None:
            native.close()

    # ---- memory

    def added_bytes(self, values: RowValues) -> int:
        """Bytes that the texts of new rows will take for good."""
        return 0 if self.settings is None else NativeText.estimate_bytes(len(values), _total(_sizes_of(values)))

    def work_bytes(self, values: RowValues, left: RowValues = ()) -> int:
        """Bytes that a change takes while it runs, at most, from the size of the metadata alone.

        Args:
            values: the metadata of rows that come.
            left: the metadata of rows that leave.
        """
        return 0 if self.settings is None else self._change_bytes(values, left, self._most_words)

    def counted_work_bytes(self, values: RowValues, left: RowValues = ()) -> int:
        """As `work_bytes`, but nearer: the words are counted, which takes about as long as half of the change."""
        return 0 if self._native is None else self._change_bytes(values, left, self._counted_words)

    def _most_words(self, values: RowValues) -> tuple[int, int]:
        """How many words, and distinct ones, metadata of this size can have."""
        size = _total(_sizes_of(values))
        return size // _WORD_BYTES_MIN, size // _DISTINCT_BYTES_MIN

    def _counted_words(self, values: RowValues) -> tuple[int, int]:
        """The same, counted. A word of two slices counts as two distinct ones, so that this takes little memory."""
        assert self._native is not None
        words = distinct = 0
        for rows in slices(_sizes_of(values), _SLICE_BYTES):
            for texts in self._pieces(values[rows]):
                change = self._native.stage(np.zeros(len(texts), dtype=np.uint32), texts)
                try:
                    of_slice = change.counts()
                finally:
                    change.close()
                words, distinct = words + of_slice[0], distinct + of_slice[1]
        return words, distinct

    def _change_bytes(
        self, values: RowValues, left: RowValues, words_in: Callable[[RowValues], tuple[int, int]]
    ) -> int:
        words, distinct = words_in(values)
        left_words, left_distinct = words_in(left)
        if self.settings is not None and not self.settings.stop_words:
            left_words = min(left_words, self.stats.words)
        # What leaves is in a dictionary; the words of another row may be, too.
        distinct += min(left_distinct, self.stats.terms)
        needed = NativeText.estimate_change(self._forms, self.nbytes, len(values) + len(left), words, distinct)
        # The texts of a change are there once, as bytes; those of a slice several times.
        read = _total(_sizes_of(values)) + _total(_sizes_of(left))
        return needed + _LEFT_WORD_BYTES * left_words + read + _SLICE_COPIES * min(read, _SLICE_BYTES)

    def removal_bytes(self, stored: StoredValues, used_bytes: int, *, counted: bool = False) -> int:
        """Bytes that `without` takes while it runs, at most.

        Args:
            stored: the metadata of the rows that leave.
            used_bytes: bytes of the metadata of all rows.
            counted: count their words, as `counted_work_bytes` does.
        """
        if self._copies(stored.sizes, used_bytes):
            return self.mapped_bytes
        return self.counted_work_bytes((), stored) if counted else self.work_bytes((), stored)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of a copy of the index with other slots, while it is made, at most."""
        stats = self.stats
        return stats.bytes_total + _MAPPED_ROW_BYTES * (stats.rows + stats.left_rows)

    def _pieces(self, values: Sequence[bytes | bytearray | None]) -> Iterator[list[str]]:
        """The texts of a slice; those of one that is one long row are cut."""
        texts = self.texts_of(values).texts
        if sum(map(len, texts)) <= 2 * _SLICE_BYTES:
            yield texts
        else:
            for text in texts:
                for at in range(0, len(text), _SLICE_BYTES):
                    yield [text[at : at + _SLICE_BYTES]]

    @property
    def superseded_bytes(self) -> int:
        """About the bytes of words that removed rows and replaced texts still have."""
        stats = self.stats
        return stats.left_rows and max(stats.bytes_total // (stats.rows + stats.left_rows), 1) * stats.left_rows

    # ---- saves

    def parts(self) -> tuple[TextShape, Sequence[TextPart]] | None:
        """What a save stores; None without a text index."""
        if self.settings is None or self._native is None:
            return None
        chunk_bytes = _TEXT_CHUNK_BYTES
        while len(parts := self._native.parts(chunk_bytes)) > _TEXT_PARTS_MAX:
            chunk_bytes *= 2
        segments = sum(part.kind == TEXT_HEAD for part in parts)
        settings = self.settings
        shape = TextShape(
            fields=settings.fields,
            k1=settings.k1,
            b=settings.b,
            analyzer=self.analyzer.to_dict(),
            segments=segments,
            chunk_bytes=chunk_bytes,
        )
        return shape, parts

    def write_part(self, part: TextPart, chunk_bytes: int) -> bytearray:
        """The bytes of one of `parts`."""
        assert self._native is not None
        return self._native.write_part(part, chunk_bytes)

    # ---- searches

    def compile(self, query: ParsedQuery, totals: TextTotals | None = None) -> TermsQuery:
        """A query in terms of this index, whose scores count by its own rows, or by given totals."""
        return compile_query(query, self.analyzer, totals)

    def totals(self, queries: Iterable[TermsQuery]) -> TextTotals:
        """The numbers of this index by which scores of some queries count."""
        assert self._native is not None
        counts: dict[str, int] = {}
        for terms in queries:
            if terms.scored is not None:
                counts |= self._native.terms(terms.scored)
        return TextTotals(self.stats.rows, self.stats.words, counts)

    def highlights(self, value: bytes | bytearray, terms: TermsQuery) -> list[Highlight]:
        """The places of a row's texts that have words of a query, by its metadata."""
        assert self.settings is not None
        return highlights_of(self.settings, self.analyzer, value, terms)

    def missing(self, terms: TermsQuery) -> list[PartKey]:
        """The parts that a query still needs while most of the index is in a store; none of a whole index."""
        assert self._native is not None
        found = (part for query in terms.queries for part in self._native.missing(query))
        return list(dict.fromkeys(PartKey(part.kind, part.number) for part in found))

    def take(self, key: PartKey, raw: bytes) -> None:
        """Takes a part that was missing.

        Raises:
            IntegrityError: the bytes are not that part.
        """
        assert self._native is not None
        try:
            self._native.load_part(key.kind, key.number, raw)
        except InvalidInputError as error:
            raise IntegrityError(f"the text index: {error.message}", details=error.details) from error
        self.refresh()

    def search(self, query: TextQuery, k: int, allow: npt.NDArray[np.uint64] | None) -> TextHits:
        """The k rows with the highest scores, ties by slot."""
        assert self._native is not None
        return self._native.search(query, k, allow)

    def mask(self, query: TextQuery, rows: int) -> npt.NDArray[np.uint64]:
        """A bitmap of the rows that match the required clauses, and no excluded one."""
        assert self._native is not None
        return self._native.mask(query, rows)

    def scores(self, query: TextQuery, slots: Slots) -> npt.NDArray[np.float64]:
        """The scores of rows; 0 for a row that does not match."""
        assert self._native is not None
        return self._native.score_slots(query, slots)


def forms_of(language: object, stop_words: object) -> int:
    """Which terms a word has: with a language its stem beside itself; without one itself, unless it is a stop word."""
    return TERMS_BOTH if language is not None else TERMS_STEMS if stop_words else TERMS_WORDS


def settings_of(shape: TextShape, *, any_release: bool = False) -> TextSettings:
    """The settings of a stored text index.

    Args:
        shape: what the version says of it.
        any_release: as in `Analyzer.from_dict`.

    Raises:
        StorageError: another release of an analyzer made its terms; the error names both.
        IntegrityError: the description of the analyzer is damaged.
        InvalidConfigError: the extra ``text`` is not installed.
    """
    analyzer = Analyzer.from_dict(shape.analyzer, any_release=any_release)
    language, stop_words = analyzer.language, analyzer.stop_words
    return TextSettings(fields=shape.fields, language=language, stop_words=stop_words, k1=shape.k1, b=shape.b)


def highlights_of(
    settings: TextSettings, analyzer: Analyzer, value: bytes | bytearray, terms: TermsQuery
) -> list[Highlight]:
    """The places of a row's texts that have words of a query.

    Args:
        settings: of the text index.
        analyzer: its analyzer.
        value: the row's metadata.
        terms: the query.
    """
    return [
        Highlight(path, item, start, end)
        for path in settings.fields
        for item, text in enumerate(texts_of([path], [value]).texts)
        for start, end in highlight(text, terms.words, stems=terms.stems, prefixes=terms.prefixes, analyzer=analyzer)
    ]


def _sizes_of(values: RowValues) -> npt.NDArray[np.int32]:
    """Bytes of each value, 0 for none."""
    if isinstance(values, StoredValues):
        return values.sizes
    return np.fromiter((0 if value is None else len(value) for value in values[:]), dtype=np.int32, count=len(values))


def _total(sizes: npt.NDArray[np.int32]) -> int:
    return int(sizes.sum(dtype=np.int64))


def slices(sizes: npt.NDArray[np.int32], most: int) -> Iterator[slice]:
    """Rows that are read together.

    Args:
        sizes: bytes of the metadata of each row.
        most: bytes of a slice, unless it is one row; a row counts `_VALUE_BYTES` more than its metadata has.
    """
    ends = np.cumsum(sizes.astype(np.int64) + _VALUE_BYTES)
    first = before = 0
    while first < len(sizes):
        end = max(first + 1, int(np.searchsorted(ends, before + most, "right")))
        yield slice(first, end)
        first, before = end, int(ends[end - 1])


def _add(packed: PackedTexts, slots: Slots, texts: RowTexts) -> None:
    """Adds the texts of rows, each with its position in `slots`."""
    if texts.rows:
        packed.add(slots[texts.rows], texts.texts)


def _by_row(texts: RowTexts) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for row, text in zip(*texts, strict=True):
        found.setdefault(row, []).append(text)
    return found
