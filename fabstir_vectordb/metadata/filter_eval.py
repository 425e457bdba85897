"""Evaluation of a filter's tree over columns: the matching rows as a mask, and as a bitmap for the native core."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.metadata.columns import Mask
from fabstir_vectordb.metadata.filter_parse import AllOf, AnyOf, Compare, Node, Not

__all__ = ["Comparable", "are_in", "bitmap", "bitmap_of", "evaluate", "slots_of"]


class Comparable(Protocol):
    """One field of all rows: a column of metadata, or a field of the rows themselves."""

    def matches(self, op: str, value: Any) -> Mask:
        """The mask of rows for which a comparison holds; `op` and `value` as in `filter_parse.Compare`."""


def evaluate(node: Node, columns: Mapping[str, Comparable], rows: int) -> Mask:
    """The mask of the rows that match a filter.

    Args:
        node: the filter.
        columns: its fields by path, each of `rows` slots.
        rows: number of slots.
    """
    if isinstance(node, Compare):
        return columns[node.path].matches(node.op, node.value)
    if isinstance(node, Not):
        return ~evaluate(node.part, columns, rows)
    parts = (evaluate(part, columns, rows) for part in node.parts)
    if isinstance(node, AllOf):
        return reduce(np.logical_and, parts, np.ones(rows, dtype=np.bool_))
    assert isinstance(node, AnyOf)
    return reduce(np.logical_or, parts)


def bitmap(mask: Mask) -> npt.NDArray[np.uint64]:
    """Bit s % 64 of word s // 64 for slot s."""
    packed = np.zeros((len(mask) + 63) // 64 * 8, dtype=np.uint8)
    bits = np.packbits(mask, bitorder="little")
    packed[: len(bits)] = bits
    return packed.view("<u8").astype(np.uint64, copy=False)


def bitmap_of(slots: npt.NDArray[np.uint32], rows: int) -> npt.NDArray[np.uint64]:
    """The bitmap of given slots, out of `rows` slots."""
    mask = np.zeros(rows, dtype=np.bool_)
    mask[slots] = True
    return bitmap(mask)


def are_in(allow: npt.NDArray[np.uint64], slots: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Which slots a bitmap has; it covers all of them."""
    found: Mask = (allow[slots // 64] >> (slots % 64).astype(np.uint64)) & np.uint64(1) != 0
    return found


def slots_of(allow: npt.NDArray[np.uint64], rows: int) -> npt.NDArray[np.uint32]:
    """The slots of a bitmap, ascending."""
    mask = np.unpackbits(allow.astype("<u8", copy=False).view(np.uint8), count=rows, bitorder="little")
    return np.flatnonzero(mask).astype(np.uint32)
