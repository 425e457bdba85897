"""Index files of FAISS that hold vectors as float32: flat, IVF with flat lists, HNSW over flat storage, with id maps.

Four characters name the kind of an index, then come its fields; indexes nest. Fields and their order are those of
FAISS's ``index_write.cpp``. Quantized and transformed indexes hold no vectors as they were added: they are refused.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.errors import IntegrityError, InvalidInputError
from fabstir_vectordb.importers.base import ForeignRow, Metric, Source, check_dim, map_file, storable
from fabstir_vectordb.importers.sidecars import Sidecars

__all__ = ["FaissFile"]

_FLAT: Final = (b"IxFl", b"IxF2", b"IxFI")
_IVF_FLAT: Final = (b"IwFl",)
_HNSW_FLAT: Final = (b"IHNf",)
_ID_MAPS: Final = (b"IxMp", b"IxM2")
_METRICS: Final[dict[int, Metric]] = {0: "dot", 1: "l2"}
_NESTED_MAX: Final = 8
_LISTS_MAX: Final = 1 << 24
_HASHTABLE: Final = 2
#: Rows that are read at a time.
_PAGE_ROWS: Final = 1_024


class _Block(NamedTuple):
    """Vectors that lie one after the other."""

    vectors_at: int
    rows: int
    first: int
    """Number of the first row, where the rows have no ids of their own."""
    ids_at: int | None
    """Where their ids are, as int64."""


class _Parsed(NamedTuple):
    dim: int
    metric: int
    blocks: list[_Block]
    id_maps: tuple[int, ...] = ()
    """Where the arrays of ids are that row numbers lead to, the innermost first."""
    total: int = 0


class FaissFile(Source):
    """An index file of FAISS.

    Args:
        path: the file that ``faiss.write_index`` wrote.
        ids: text file with the id of row n in line n, counted from 0; without it numbers become ids.
        metadata: JSONL file with the metadata of row n in line n.

    Raises:
        NotFoundError: there is no such file.
        IntegrityError: the file breaks the format.
        InvalidInputError: the index holds no plain vectors, or a side file is damaged.
    """

    format = "faiss"

    def __init__(self, path: str | Path, *, ids: str | Path | None = None, metadata: str | Path | None = None) -> None:
        super().__init__()
        self._raw = map_file(Path(path))
        reader = _Reader(self._raw, Path(path).name)
        self._parsed = reader.index(0)
        if reader.at != len(self._raw):
            raise reader.fail(f"{len(self._raw) - reader.at} bytes follow its end")
        self._sidecars = Sidecars(ids, metadata)
        self.metric = _METRICS.get(self._parsed.metric)
        if self.metric is None:
            self.notes.say(f"the index has FAISS's metric {self._parsed.metric}, for which there is none here")
        if self.metric == "dot":
            self.notes.say("the metric is the inner product; for vectors of length 1 that is the order of cosine, too")

    def rows(self) -> Iterator[ForeignRow]:
        """The rows: those of lists in the order of the lists."""
        parsed = self._parsed
        maps = [np.frombuffer(self._raw, "<i8", parsed.total, at) for at in parsed.id_maps]
        for label, vector in self._labelled():
            number = label
            for ids in maps:
                if not 0 <= number < len(ids):
                    raise IntegrityError(f"the index has a row {number}, and ids for {len(ids)}")
                number = int(ids[number])
            id = self._sidecars.id(number, self.notes)
            yield ForeignRow(id, vector, storable(self._sidecars.metadata(number), self.notes))

    def _labelled(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        dim = self._parsed.dim
        for block in self._parsed.blocks:
            for start in range(0, block.rows, _PAGE_ROWS):
                n = min(_PAGE_ROWS, block.rows - start)
                at = block.vectors_at + start * dim * 4
                vectors = np.frombuffer(self._raw, "<f4", n * dim, at).astype(np.float32).reshape(n, dim)
                if block.ids_at is None:
                    labels = range(block.first + start, block.first + start + n)
                else:
                    labels = np.frombuffer(self._raw, "<i8", n, block.ids_at + start * 8).tolist()
                yield from zip(labels, vectors, strict=True)


class _Reader:
    """Reads the fields of an index; every count is checked against the bytes that are left."""

    def __init__(self, raw: bytes | mmap.mmap, what: str) -> None:
        self._raw, self._what = raw, what
        self.at = 0

    def fail(self, reason: str) -> IntegrityError:
        return IntegrityError(f"{self._what} is no index of FAISS, or damaged at byte {self.at}: {reason}")

    def _skip(self, count: int, size: int = 1) -> int:
        """Passes over `count` items; returns where they begin."""
        if count < 0 or count > (len(self._raw) - self.at) // size:
            raise self.fail(
                f"{count} items of {size} bytes were announced, and {len(self._raw) - self.at} bytes are left"
            )
        at = self.at
        self.at += count * size
        return at

    def _int(self, size: int, *, signed: bool = False) -> int:
        at = self._skip(size)
        return int.from_bytes(self._raw[at : at + size], "little", signed=signed)

    def _vector(self, size: int) -> tuple[int, int]:
        """A std::vector: its number of items, and where they begin."""
        count = self._int(8)
        return count, self._skip(count, size)

    def index(self, depth: int) -> _Parsed:
        """An index with all that it holds."""
        if depth > _NESTED_MAX:
            raise self.fail(f"indexes are nested more than {_NESTED_MAX} levels deep")
        at = self._skip(4)
        kind = bytes(self._raw[at : at + 4])
        known = (*_FLAT, *_IVF_FLAT, *_HNSW_FLAT, *_ID_MAPS)
        if kind not in known:
            if depth == 0 and not kind.isalnum():
                raise self.fail("it begins with no kind of index")
            raise InvalidInputError(
                f"{self._what} has an index of the kind {kind!r}, which holds no vectors as they were added: only flat "
                "indexes, IVF with flat lists, HNSW over them and id maps can come"
            )
        dim, total, metric = self._header()
        if kind in _FLAT:
            return self._flat(dim, total, metric)
        if kind in _IVF_FLAT:
            return self._ivf(dim, total, metric, depth)
        if kind in _HNSW_FLAT:
            return self._hnsw(dim, total, metric, depth)
        inner = self.index(depth + 1)
        count, ids_at = self._vector(8)
        if inner.dim != dim or inner.total != total or count != total:
            raise self.fail("an id map does not fit its index")
        return inner._replace(id_maps=(*inner.id_maps, ids_at))

    def _header(self) -> tuple[int, int, int]:
        """Dimension, number of rows and metric."""
        dim = check_dim(self._int(4, signed=True), self._what)
        total = self._int(8, signed=True)
        self._skip(8 + 8 + 1)  # two fields that are not used, and whether the index is trained
        metric = self._int(4, signed=True)
        if metric > 1:
            self._skip(4)
        if total < 0:
            raise self.fail(f"a number of {total} rows")
        return dim, total, metric

    def _flat(self, dim: int, total: int, metric: int) -> _Parsed:
        count, at = self._vector(4)
        if count != total * dim:
            raise self.fail(f"{total} rows of {dim} dimensions have {count} numbers")
        return _Parsed(dim, metric, [_Block(at, total, 0, None)], total=total)

    def _hnsw(self, dim: int, total: int, metric: int, depth: int) -> _Parsed:
        # assign_probas, cum_nneighbor_per_level, levels, offsets, neighbors
        for size in (8, 4, 4, 8, 4):
            self._vector(size)
        self._skip(5 * 4)  # entry_point, max_level, efConstruction, efSearch, and a field that is not used any more
        storage = self.index(depth + 1)
        if storage.dim != dim or storage.total != total or storage.id_maps:
            raise self.fail("the storage does not fit its graph")
        return storage._replace(metric=metric)

    def _ivf(self, dim: int, total: int, metric: int, depth: int) -> _Parsed:
        lists = self._int(8)
        self._skip(8)  # nprobe
        self.index(depth + 1)  # the quantizer: its centroids are no rows
        direct_map = self._int(1)
        self._vector(8)
        if direct_map == _HASHTABLE:
            self._vector(16)
        sizes = self._list_sizes(lists, dim * 4)
        blocks = []
        for size in sizes:
            if size:
                vectors_at = self._skip(size, dim * 4)
                blocks.append(_Block(vectors_at, size, 0, self._skip(size, 8)))
        if sum(block.rows for block in blocks) != total:
            raise self.fail(f"the lists do not have the {total} rows that were announced")
        return _Parsed(dim, metric, blocks, total=total)

    def _list_sizes(self, lists: int, code_size: int) -> list[int]:
        at = self._skip(4)
        kind = bytes(self._raw[at : at + 4])
        if kind != b"ilar":
            raise InvalidInputError(
                f"{self._what} keeps its lists elsewhere (kind {kind!r}): merge them into the file first"
            )
        count, size = self._int(8), self._int(8)
        if count != lists or size != code_size or not 0 < lists <= _LISTS_MAX:
            raise self.fail(f"{count} lists of {size} bytes a row, and {lists} of {code_size} were announced")
        at = self._skip(4)
        form = bytes(self._raw[at : at + 4])
        length, at = self._vector(8)
        numbers = np.frombuffer(self._raw, "<u8", length, at)
        if form == b"full" and length == lists:
            return [int(number) for number in numbers]
        if form == b"sprs" and length % 2 == 0 and length // 2 <= lists:
            pairs = numbers.reshape(-1, 2)
            if len(pairs) and (int(pairs[:, 0].max()) >= lists or (np.diff(pairs[:, 0].astype(np.int64)) <= 0).any()):
                raise self.fail("lists are not in their order")
            return [int(number) for number in pairs[:, 1]]
        raise self.fail("sizes of lists in no known form")
