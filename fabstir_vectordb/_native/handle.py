"""The native index as one class, with one method for each C function. Each group of methods has its own module.

Arguments and results are numpy arrays; statuses become errors of this package. The GIL is released while C runs.
Several threads may use an index. It must not be closed during a call; index/gate.py ensures this. C decides which calls
an index in its current state accepts; a refused call raises and changes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fabstir_vectordb._native.aging import Aging
from fabstir_vectordb._native.call import (
    Allowed,
    Control,
    Float64Array,
    NativeBusy,
    NativeCancelled,
    NativeTooFew,
    NativeUntrained,
    call,
    expect,
    pack_ids,
    pointer,
    text_of,
)
from fabstir_vectordb._native.constants import (
    DIM_MAX,
    EF_DEFAULT_MIN,
    EF_MAX,
    ID_BYTES_MAX,
    K_MAX,
    LISTS_MAX,
    LISTS_ROWS_MIN,
    M_MAX,
    M_MIN,
    NO_SLOT,
    PART_BIT_CODES,
    PART_GRAPH,
    PART_GRAPH_HEAD,
    PART_IDS,
    PART_LISTS,
    PART_LISTS_HEAD,
    PART_SECOND_LISTS,
    PART_TIMESTAMPS,
    PART_TOMBSTONES,
    PART_VECTORLESS,
    PART_VECTORS,
    PLAN_FLAT,
    PLAN_GRAPH,
    PLAN_HYBRID,
    PLAN_LISTS,
    ROWS_MAX,
    STEPS_MAX,
    THREADS_MAX,
    WORK_ADD,
    WORK_REORDER,
    WORK_TRAIN,
    WORK_VACUUM,
)
from fabstir_vectordb._native.lazy import Lazy
from fabstir_vectordb._native.library import ffi, lib
from fabstir_vectordb._native.parts import PartInfo, Parts
from fabstir_vectordb._native.rows import NativeStats
from fabstir_vectordb._native.search import Asked, OneAnswer, Search, SearchHits, floats_of

__all__ = [
    "DIM_MAX",
    "EF_DEFAULT_MIN",
    "EF_MAX",
    "ID_BYTES_MAX",
    "K_MAX",
    "LISTS_MAX",
    "LISTS_ROWS_MIN",
    "MEMORY_NUMBERS",
    "M_MAX",
    "M_MIN",
    "NO_SLOT",
    "PART_BIT_CODES",
    "PART_GRAPH",
    "PART_GRAPH_HEAD",
    "PART_IDS",
    "PART_LISTS",
    "PART_LISTS_HEAD",
    "PART_SECOND_LISTS",
    "PART_TIMESTAMPS",
    "PART_TOMBSTONES",
    "PART_VECTORLESS",
    "PART_VECTORS",
    "PLAN_FLAT",
    "PLAN_GRAPH",
    "PLAN_HYBRID",
    "PLAN_LISTS",
    "ROWS_MAX",
    "STEPS_MAX",
    "THREADS_MAX",
    "WORK_ADD",
    "WORK_REORDER",
    "WORK_TRAIN",
    "WORK_VACUUM",
    "Allowed",
    "Asked",
    "Control",
    "NativeBusy",
    "NativeCancelled",
    "NativeIndex",
    "NativeStats",
    "NativeTooFew",
    "NativeUntrained",
    "OneAnswer",
    "PartInfo",
    "SearchHits",
    "estimate_bytes",
    "estimate_work",
    "floats_of",
    "kernels",
    "pack_ids",
    "scores_of",
    "trim",
    "trim_thread",
]

_METRICS = {"cosine": lib.FVDB_METRIC_COSINE, "l2": lib.FVDB_METRIC_L2, "dot": lib.FVDB_METRIC_DOT}
#: Numbers of memory settings, as `NativeStats` has them.
MEMORY_NUMBERS = {
    "fast": lib.FVDB_MEMORY_FAST,
    "default": lib.FVDB_MEMORY_DEFAULT,
    "compact": lib.FVDB_MEMORY_COMPACT,
}


def scores_of(metric: str, distances: Float64Array) -> Float64Array:
    """The scores of distances.

    Args:
        metric: ``cosine``, ``l2`` or ``dot``.
        distances: n float64, C-contiguous.
    """
    n, scores = len(distances), np.empty_like(distances)
    expect("distances", distances, np.float64, (n,))
    call(lib.fvdb_scores, _METRICS[metric], pointer("double[]", distances), n, pointer("double[]", scores))
    return scores


def _config(dim: int, metric: str, memory: str, M: int, ef_construction: int, threads: int, hash_seed: int = 0) -> Any:
    return ffi.new(
        "fvdb_config *",
        {
            "dim": dim,
            "metric": _METRICS[metric],
            "memory": MEMORY_NUMBERS[memory],
            "M": M,
            "ef_construction": ef_construction,
            "threads": threads,
            "hash_seed": hash_seed,
        },
    )


def kernels() -> str:
    """Name of the SIMD kernels in use: scalar, avx2, avx512 or neon."""
    return text_of(lib.fvdb_kernels())


def trim() -> None:
    """Returns freed memory that the allocator keeps to the system, on systems that support it."""
    lib.fvdb_trim()


def trim_thread() -> None:
    """Like `trim`, for freed memory that only the calling thread can return."""
    lib.fvdb_trim_thread()


def estimate_bytes(
    dim: int,
    *,
    metric: str,
    memory: str,
    M: int,
    ef_construction: int,
    rows: int,
    id_bytes: int,
    graph_rows: int | None = None,
    historical: int = 0,
    threads: int = 1,
) -> int:
    """Resident bytes that an index with these settings needs.

    Args:
        dim, metric, memory, M, ef_construction, threads: as for `NativeIndex`.
        rows: number of rows.
        id_bytes: UTF-8 bytes of all ids.
        graph_rows: number of rows in the graph; None for all rows.
        historical: number of rows on lists.
    """
    config = _config(dim, metric, memory, M, ef_construction, threads)
    return int(lib.fvdb_estimate_bytes(config, rows, rows if graph_rows is None else graph_rows, historical, id_bytes))


def estimate_work(
    dim: int,
    kind: int,
    *,
    metric: str,
    memory: str,
    M: int,
    ef_construction: int,
    threads: int,
    rows: int,
    graph_rows: int,
    historical: int = 0,
    added: int = 0,
    id_bytes: int = 0,
) -> int:
    """Most bytes of memory that a call takes while it runs, without the index and the call's arguments.

    Args:
        dim, metric, memory, M, ef_construction, threads: as for `NativeIndex`.
        kind: WORK_ADD, WORK_VACUUM, WORK_TRAIN, or WORK_REORDER for `locality_order` and `renumber`.
        rows: number of rows of the index, including rows to be added.
        graph_rows: number of rows in the graph after the call.
        historical: number of rows on lists.
        added: number of rows to be added.
        id_bytes: UTF-8 bytes of the ids: of the added rows for WORK_ADD, else of all rows.
    """
    config = _config(dim, metric, memory, M, ef_construction, threads)
    return int(lib.fvdb_estimate_work(config, kind, rows, graph_rows, historical, added, id_bytes))


class NativeIndex(Aging, Search, Parts, Lazy):
    """An index in native memory.

    Args:
        dim: components of a vector, 1 to DIM_MAX.
        metric: ``cosine``, ``l2`` or ``dot``.
        memory: ``fast``, ``default`` or ``compact``.
        M: links of a row on upper levels, M_MIN to M_MAX.
        ef_construction: candidates while linking, 1 to EF_MAX.
        threads: most threads that a call may use.
        hash_seed: seed of the id table; it does not affect results or saved bytes.

    Raises:
        InvalidInputError: a setting is out of range, or FVDB_KERNELS names kernels that this CPU cannot run.
        IndexStateError: there was not enough memory, or no lock could be created.
    """

    __slots__ = ()

    def __init__(
        self, dim: int, metric: str, memory: str, M: int, ef_construction: int, threads: int, hash_seed: int = 0
    ) -> None:
        out = ffi.new("fvdb_index **")
        config = _config(dim, metric, memory, M, ef_construction, threads, hash_seed)
        call(lib.fvdb_create, config, out)
        self._own(out[0], dim)

    @classmethod
    def load_begin(
        cls,
        dim: int,
        *,
        metric: str,
        memory: str,
        M: int,
        ef_construction: int,
        threads: int,
        rows: int,
        graph_rows: int,
        rows_per_part: int,
        rows_per_group: int,
        stored_rows: int | None = None,
        lists: int = 0,
        has_codes: bool,
        has_vectorless: bool = False,
        has_seconds: bool = False,
        hash_seed: int = 0,
    ) -> NativeIndex:
        """An index to be loaded: it accepts `load_part` for each part, then `load_end` or `load_lazy`, and no other.

        Args:
            dim, metric, memory, M, ef_construction, threads, hash_seed: as for a new index.
            rows: number of rows, tombstones included.
            graph_rows: number of rows in the graph.
            rows_per_part: rows in a part with vectors.
            rows_per_group: rows in a part of another kind.
            stored_rows: number of rows whose links are in the parts, counted from slot 0; None for all.
            lists: number of lists.
            has_codes: whether there are parts of codes and a head of the graph.
            has_vectorless: whether there are rows without a vector.
            has_seconds: whether there is a part of second lists.

        Raises:
            InvalidInputError: a setting is out of range.
            IndexStateError: there was not enough memory.
        """
        out = ffi.new("fvdb_index **")
        config = _config(dim, metric, memory, M, ef_construction, threads, hash_seed)
        load = ffi.new(
            "fvdb_load *",
            {
                "rows": rows,
                "graph_rows": graph_rows,
                "stored_rows": rows if stored_rows is None else stored_rows,
                "lists": lists,
                "rows_per_part": rows_per_part,
                "rows_per_group": rows_per_group,
                "has_codes": has_codes,
                "has_vectorless": has_vectorless,
                "has_seconds": has_seconds,
            },
        )
        call(lib.fvdb_load_begin, config, load, out)
        return cls._owning(out[0], dim)

    @classmethod
    def _owning(cls, index: Any, dim: int) -> NativeIndex:
        self = cls.__new__(cls)
        self._own(index, dim)
        return self

    def set_memory(self, memory: str) -> None:
        """Gives an index with ``fast`` the setting ``default``, or the other way, in place.

        Raises:
            InvalidInputError: one of the two is ``compact``.
            IndexStateError: there was not enough memory; nothing changed.
        """
        call(lib.fvdb_set_memory, self._index, MEMORY_NUMBERS[memory])

    def with_dim(self, dim: int) -> NativeIndex:
        """A copy of the index for vectors of another dimension, with the same rows in the same slots.

        Raises:
            InvalidInputError: `dim` is out of range, or a row has a vector.
            IndexStateError: there was not enough memory.
        """
        out = ffi.new("fvdb_index **")
        call(lib.fvdb_with_dim, self._index, dim, out)
        return self._owning(out[0], dim)
