"""Index files of hnswlib, and the folders in which Chroma keeps the same bytes in several files.

A header of sizes, then for every element its links of level 0, its vector and its label. The space is not stored. Field
names are those of hnswlib's ``saveIndex``.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.errors import IntegrityError, InvalidInputError
from fabstir_vectordb.importers.base import ForeignRow, Metric, Source, check_dim, map_file, storable
from fabstir_vectordb.importers.sidecars import Sidecars

__all__ = ["HEADER_BYTES", "HnswlibFile", "is_deleted", "read_elements"]

# offsetLevel0, max_elements, cur_element_count, size_data_per_element, label_offset, offsetData, maxlevel,
# enterpoint_node, maxM, maxM0, M, mult, ef_construction
_HEADER: Final = struct.Struct("<6QiI3QdQ")
HEADER_BYTES: Final = _HEADER.size
_LABEL_BYTES: Final = 8
_LINKS_HEAD_BYTES: Final = 4
#: The byte of the links' head, and its bit, that mark a deleted element.
_DELETED_AT: Final = 2
_DELETED_BIT: Final = 1


class _Layout:
    """Where the fields of elements are, from a checked header."""

    def __init__(self, raw: bytes | mmap.mmap, what: str, data_bytes: int) -> None:
        if len(raw) < HEADER_BYTES:
            raise IntegrityError(f"{what} is too short for an index of hnswlib")
        fields = _HEADER.unpack_from(raw)
        start, _, count, size, label_at, data_at = fields[:6]
        bottom_links = fields[9]
        self.count, self.size, self.data_at, self.label_at = count, size, data_at, label_at
        dim_bytes = label_at - data_at
        consistent = (
            start == 0
            and data_at == _LINKS_HEAD_BYTES * (1 + bottom_links)
            and dim_bytes > 0
            and dim_bytes % 4 == 0
            and size == label_at + _LABEL_BYTES
        )
        if not consistent:
            raise IntegrityError(f"{what} is no index of hnswlib with float32 vectors: its sizes contradict each other")
        self.dim = check_dim(dim_bytes // 4, what)
        if count > data_bytes // size:
            raise IntegrityError(
                f"{what} says that it has {count} elements of {size} bytes, and there are {data_bytes} bytes"
            )


def read_elements(header: bytes | mmap.mmap, data: bytes | mmap.mmap, data_start: int, what: str) -> npt.NDArray[Any]:
    """The elements of an index, as an array over the bytes: nothing is copied.

    Args:
        header: bytes that begin with the header.
        data: bytes with the elements.
        data_start: where the elements begin in `data`.
        what: name in errors.

    Returns:
        An array with the fields ``head``, ``vector`` and ``label``; `is_deleted` looks at the first.

    Raises:
        IntegrityError: the sizes contradict each other or the bytes that there are.
    """
    layout = _Layout(header, what, len(data) - data_start)
    element = np.dtype(
        {
            "names": ["head", "vector", "label"],
            "formats": [("u1", _LINKS_HEAD_BYTES), ("<f4", layout.dim), "<u8"],
            "offsets": [0, layout.data_at, layout.label_at],
            "itemsize": layout.size,
        }
    )
    if layout.count == 0:
        return np.empty(0, element)
    return np.frombuffer(data, element, layout.count, data_start)


def is_deleted(element: Any) -> bool:
    """Whether an element is marked as deleted."""
    return bool(element["head"][_DELETED_AT] & _DELETED_BIT)


class HnswlibFile(Source):
    """An index file of hnswlib.

    Args:
        path: the file.
        ids: text file with the id of label n in line n, counted from 0; without it labels become ids.
        metadata: JSONL file with the metadata of label n in line n.
        metric: the space of the index, which the file does not say.

    Raises:
        NotFoundError: there is no such file.
        IntegrityError: the file breaks the format.
        InvalidInputError: a side file is damaged.
    """

    format = "hnswlib"

    def __init__(
        self,
        path: str | Path,
        *,
        ids: str | Path | None = None,
        metadata: str | Path | None = None,
        metric: Metric | None = None,
    ) -> None:
        super().__init__()
        if metric not in (None, "cosine", "l2", "dot"):
            raise InvalidInputError(f"metric must be cosine, l2 or dot, got {metric!r}")
        self.metric = metric
        raw = map_file(Path(path))
        self._sidecars = Sidecars(ids, metadata)
        self._elements = read_elements(raw, raw, HEADER_BYTES, Path(path).name)
        if metric is None:
            self.notes.say("hnswlib stores no metric: choose that of the space with which the index was made")
        if metric == "cosine":
            self.notes.say("hnswlib stores vectors of the cosine space at length 1; their own lengths are lost")

    def rows(self) -> Iterator[ForeignRow]:
        """The elements that are not deleted."""
        for element in self._elements:
            if is_deleted(element):
                self.notes.deleted += 1
                continue
            label = int(element["label"])
            id, metadata = self._sidecars.id(label, self.notes), self._sidecars.metadata(label)
            yield ForeignRow(id, element["vector"].astype(np.float32), storable(metadata, self.notes))
