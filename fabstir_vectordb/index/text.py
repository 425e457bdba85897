"""The words of rows: the native index of words over the texts of metadata fields, and its settings.

`Rows` is the only caller that changes it, as a part of its own changes. `stage` and `stage_map` do everything that can
fail; `Staged.commit` follows after the rows themselves have changed, and cannot fail.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import NO_SLOT, Control
from fabstir_vectordb._native.text import (
    TERMS_BOTH,
    TERMS_STEMS,
    TERMS_WORDS,
    NativeText,
    TextChange,
    TextHits,
    TextPart,
    TextQuery,
    TextStats,
    TextTotals,
)
from fabstir_vectordb.errors import IntegrityError, InvalidInputError
from fabstir_vectordb.index.contents import TEXT_HEAD, PartKey, TextContents, TextShape
from fabstir_vectordb.metadata.texts import RowTexts, texts_of
from fabstir_vectordb.text.analyzer import Analyzer
from fabstir_vectordb.text.clauses import TermsQuery, compile_query
from fabstir_vectordb.text.highlight import highlight
from fabstir_vectordb.text.query import ParsedQuery
from fabstir_vectordb.text.settings import TextSettings
from fabstir_vectordb.types import Highlight

__all__ = ["StagedText", "Texts", "forms_of", "highlights_of", "settings_of"]

Slots = npt.NDArray[np.uint32]
_SlotTexts = tuple[Slots, list[str]]

_NO_STATS: Final = TextStats(*[0] * len(TextStats._fields))
#: Chunks of a stored text index: a search of a lazily loaded index fetches a few of them. They double in size where
#: there would be more parts, as each upload takes 1-2 s.
_TEXT_CHUNK_BYTES: Final = 256 * 1024
_TEXT_PARTS_MAX: Final = 256
#: Least bytes of text for a word, and for a distinct one of many: "a ", and "word ".
_WORD_BYTES_MIN: Final = 2
_DISTINCT_BYTES_MIN: Final = 5
#: Bytes whose words are counted at a time: their distinct words take at most some 10 MB.
_SLICE_BYTES: Final = 1 << 18
#: Copies of the texts of a change beside their metadata: strings, their bytes, and these joined.
_COPIES: Final = 3
_NO_SLOTS: Final[Slots] = np.empty(0, dtype=np.uint32)


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
        values: Sequence[bytes | bytearray | None],
        left_slots: Slots = _NO_SLOTS,
        left_values: Sequence[bytes | bytearray | None] = (),
        control: Control | None = None,
    ) -> Iterator[StagedText]:
        """A prepared change, freed at the end: rows that come, and rows that leave.

        Args:
            slots: rows that come, or whose metadata is replaced.
            values: their metadata.
            left_slots: rows that leave, or whose metadata is replaced.
            left_values: their present metadata.
            control: stops it.

        Raises:
            IndexStateError: there was not enough memory.
            NativeCancelled: `control` asked for it.
        """
        change = self._prepared(slots, values, left_slots, left_values, control)
        staged = StagedText(self, change)
        try:
            yield staged
        finally:
            staged.close()

    def _prepared(
        self,
        slots: Slots,
        values: Sequence[bytes | bytearray | None],
        left_slots: Slots,
        left_values: Sequence[bytes | bytearray | None],
        control: Control | None,
    ) -> TextChange | None:
        if self._native is None:
            return None
        come, left = self._differing(slots, self.texts_of(values), left_slots, self.texts_of(left_values))
        if not come[1] and not left[1]:
            return None
        change = self._native.stage(*come, *left, control)
        try:
            if self._forms != TERMS_WORDS:
                change.set_terms(self.analyzer.stem_all(change.words()))
            change.prepare(control)
        except BaseException:
            change.close()
            raise
        return change

    @staticmethod
    def _differing(slots: Slots, come: RowTexts, left_slots: Slots, left: RowTexts) -> tuple[_SlotTexts, _SlotTexts]:
        """The texts that come and those that leave, by slot, without those of rows whose texts stay as they are."""
        if not left.rows:
            return (slots[come.rows], come.texts), (_NO_SLOTS, [])
        by_slot, left_by_slot = _by_slot(slots, come), _by_slot(left_slots, left)
        for slot in by_slot.keys() & left_by_slot.keys():
            if by_slot[slot] == left_by_slot[slot]:  # other metadata of the row was replaced
                del by_slot[slot], left_by_slot[slot]
        return _arrays(by_slot), _arrays(left_by_slot)

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
        staged = StagedText(self, None if self._native is None else self._mapped(self._native, kept, rows, control))
        try:
            yield staged
        finally:
            staged.close()

    @staticmethod
    def _mapped(native: NativeText, kept: Slots, rows: int, control: Control | None) -> TextChange:
        slot_map = np.full(rows, NO_SLOT, dtype=np.uint32)
        slot_map[kept] = np.arange(len(kept), dtype=np.uint32)
        return native.stage_map(slot_map, control)

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

    def added_bytes(self, values: Sequence[bytes | bytearray | None]) -> int:
        """Bytes that the texts of new rows will take for good."""
        return 0 if self.settings is None else NativeText.estimate_bytes(len(values), _size_of(values))

    def work_bytes(self, values: Sequence[bytes | bytearray | None]) -> int:
        """Bytes that a change with such metadata takes while it runs, at most, from the size of the metadata alone."""
        if self.settings is None:
            return 0
        size = _size_of(values)
        return self._change_bytes(len(values), size // _WORD_BYTES_MIN, size // _DISTINCT_BYTES_MIN, size)

    def counted_work_bytes(self, values: Sequence[bytes | bytearray | None]) -> int:
        """As `work_bytes`, but nearer: the words are counted, which takes about as long as half of the change.

        A word of two slices counts as two distinct ones, so that the count itself takes little memory.
        """
        if self._native is None:
            return 0
        words = distinct = size = 0
        for texts in self._slices(values):
            change = self._native.stage(np.zeros(len(texts), dtype=np.uint32), texts)
            try:
                of_slice = change.counts()
            finally:
                change.close()
            words, distinct = words + of_slice[0], distinct + of_slice[1]
            size += sum(map(sys.getsizeof, texts))
        return self._change_bytes(len(values), words, distinct, size)

    def _change_bytes(self, rows: int, words: int, distinct: int, size: int) -> int:
        return NativeText.estimate_change(self._forms, self.nbytes, rows, words, distinct) + _COPIES * size

    def _slices(self, values: Sequence[bytes | bytearray | None]) -> Iterator[list[str]]:
        """The texts of rows, about `_SLICE_BYTES` at a time; a longer text is cut."""
        first = size = 0
        for row, value in enumerate(values):
            size += 0 if value is None else len(value)
            if size < _SLICE_BYTES and row + 1 < len(values):
                continue
            texts = self.texts_of(values[first : row + 1]).texts
            if size <= 2 * _SLICE_BYTES:
                yield texts
            else:
                for text in texts:
                    for at in range(0, len(text), _SLICE_BYTES):
                        yield [text[at : at + _SLICE_BYTES]]
            first, size = row + 1, 0

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


def _size_of(values: Sequence[bytes | bytearray | None]) -> int:
    return sum(len(value) for value in values if value is not None)


def _by_slot(slots: Slots, texts: RowTexts) -> dict[int, list[str]]:
    at: list[int] = slots.tolist()
    found: dict[int, list[str]] = {}
    for row, text in zip(texts.rows, texts.texts, strict=True):
        found.setdefault(at[row], []).append(text)
    return found


def _arrays(texts: Mapping[int, Sequence[str]]) -> _SlotTexts:
    """Slots, each as often as it has texts, and these."""
    slots = [slot for slot, of_slot in texts.items() for _ in of_slot]
    return np.array(slots, dtype=np.uint32), [text for of_slot in texts.values() for text in of_slot]
