"""The texts of rows: the strings that their metadata has at some paths."""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import compress
from typing import NamedTuple

import numpy as np

from fabstir_vectordb.metadata.arena import MetadataArena
from fabstir_vectordb.metadata.path import packed, parse_path

__all__ = ["RowTexts", "texts_of"]


class RowTexts(NamedTuple):
    """Texts by row. Two lists: 100,000 tuples of a row and a text take as long to make as their words to be found.

    Attributes:
        rows: the row of each text, ascending.
        texts: the texts; those of one row in the order of paths and lists.
    """

    rows: list[int]
    texts: list[str]

    def without(self, rows: Set[int]) -> RowTexts:
        """The texts of the other rows."""
        kept = [row not in rows for row in self.rows]
        return RowTexts(list(compress(self.rows, kept)), list(compress(self.texts, kept)))


def texts_of(paths: Sequence[str], values: Sequence[bytes | bytearray | None]) -> RowTexts:
    """The texts of rows, by their positions in `values`. Equal rows have equal texts.

    Args:
        paths: paths of fields. A string is a text, a list of strings several ones; other values are none.
        values: CBOR of each row's metadata; None or empty for none.
    """
    rows: list[int] = []
    texts: list[str] = []
    if not paths or not any(values):
        return RowTexts(rows, texts)
    arena, slots = MetadataArena(), np.arange(len(values), dtype=np.int64)
    held = [bytes(value) if value else None for value in values]
    arena.commit(arena.stage(held, len(held)), slots.astype(np.uint32), slots)
    is_sorted = len(paths) == 1
    for path in paths:
        text, steps = packed(parse_path(path))
        cells, table = arena.read_field(slots, text, steps, 0)
        alone = np.flatnonzero(cells.codes >= 0)
        at, codes = alone.tolist(), cells.codes[alone].tolist()
        if len(cells.list_rows):
            of_lists = cells.list_codes >= 0
            at += cells.list_rows[of_lists].tolist()
            codes += cells.list_codes[of_lists].tolist()
            is_sorted = False
        if not set(map(type, table)) <= {str}:
            # Texts are strings in the table; other values are keys.
            kept = [type(table[code]) is str for code in codes]
            at, codes = list(compress(at, kept)), list(compress(codes, kept))
        rows += at
        texts += [table[code] for code in codes]
    if not is_sorted:
        order = sorted(range(len(rows)), key=rows.__getitem__)  # stable
        rows, texts = [rows[i] for i in order], [texts[i] for i in order]
    return RowTexts(rows, texts)
