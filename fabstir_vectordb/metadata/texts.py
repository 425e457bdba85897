"""The texts of rows: the strings that their metadata has at some paths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fabstir_vectordb.metadata.arena import MetadataArena
from fabstir_vectordb.metadata.path import packed, parse_path

__all__ = ["texts_of"]


def texts_of(paths: Sequence[str], values: Sequence[bytes | bytearray | None]) -> list[tuple[int, str]]:
    """The texts of rows, by row; those of one row in the order of paths and lists. Equal rows have equal texts.

    Args:
        paths: paths of fields. A string is a text, a list of strings several ones; other values are none.
        values: CBOR of each row's metadata; None or empty for none.

    Returns:
        Pairs of a position in `values` and a text.
    """
    if not paths or not any(values):
        return []
    arena, slots = MetadataArena(), np.arange(len(values), dtype=np.int64)
    held = [bytes(value) if value else None for value in values]
    arena.commit(arena.stage(held, len(held)), slots.astype(np.uint32), slots)
    found: list[tuple[int, str]] = []
    is_sorted = len(paths) == 1
    for path in paths:
        text, steps = packed(parse_path(path))
        cells, table = arena.read_field(slots, text, steps, 0)
        alone = np.flatnonzero(cells.codes >= 0)
        rows, codes = alone.tolist(), cells.codes[alone].tolist()
        if len(cells.list_rows):
            of_lists = cells.list_codes >= 0
            rows += cells.list_rows[of_lists].tolist()
            codes += cells.list_codes[of_lists].tolist()
            is_sorted = False
        # Texts are strings in the table; other values are keys.
        found += [(row, table[code]) for row, code in zip(rows, codes, strict=True) if type(table[code]) is str]
    if not is_sorted:
        found.sort(key=lambda pair: pair[0])  # stable
    return found
