"""The native index as the rest of the package sees it: one method per C function, in one class made of the areas.

numpy arrays go in and come out; statuses become this package's errors. The GIL is released while C runs. An index may
be used from several threads; closing it during a call is the caller's mistake, which index/gate.py prevents.
Which calls an index answers, and when, is decided in C: the others raise and change nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fabstir_vectordb._native.aging import Aging
from fabstir_vectordb._native.call import (
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
    EF_MAX,
    ID_BYTES_MAX,
    K_MAX,
    LISTS_MAX,
    LISTS_ROWS_MIN,
    M_MAX,
    M_MIN,
    NO_SLOT,
    PART_BARE,
    PART_BIT_CODES,
    PART_GRAPH,
    PART_GRAPH_HEAD,
    PART_IDS,
    PART_LISTS,
    PART_LISTS_HEAD,
    PART_TIMESTAMPS,
    PART_TOMBSTONES,
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
from fabstir_vectordb._native.search import Search, SearchHits

__all__ = [
    "DIM_MAX",
    "EF_MAX",
    "ID_BYTES_MAX",
    "K_MAX",
    "LISTS_MAX",
    "LISTS_ROWS_MIN",
    "M_MAX",
    "M_MIN",
    "NO_SLOT",
    "PART_BARE",
    "PART_BIT_CODES",
    "PART_GRAPH",
    "PART_GRAPH_HEAD",
    "PART_IDS",
    "PART_LISTS",
    "PART_LISTS_HEAD",
    "PART_TIMESTAMPS",
    "PART_TOMBSTONES",
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
    "Control",
    "NativeBusy",
    "NativeCancelled",
    "NativeIndex",
    "NativeStats",
    "NativeTooFew",
    "NativeUntrained",
    "PartInfo",
    "SearchHits",
    "estimate_bytes",
    "estimate_work",
    "kernels",
    "pack_ids",
    "scores_of",
    "trim",
    "trim_thread",
]

_METRICS = {"cosine": lib.FVDB_METRIC_COSINE, "l2": lib.FVDB_METRIC_L2, "dot": lib.FVDB_METRIC_DOT}
_MEMORY = {"default": lib.FVDB_MEMORY_DEFAULT, "compact": lib.FVDB_MEMORY_COMPACT}


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
            "memory": _MEMORY[memory],
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
    """Gives memory that was freed but kept by the allocator back to the system, where it knows how."""
    lib.fvdb_trim()


def trim_thread() -> None:
    """The same of what only this thread can give back."""
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
    """Resident bytes an index of these settings will need.

    Args:
        dim, metric, memory, M, ef_construction, threads: as `NativeIndex`.
        rows: rows, whose ids take `id_bytes` bytes.
        id_bytes: UTF-8 bytes.
        graph_rows: rows in the graph; None for all of them.
        historical: rows on lists.
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
    """Most bytes that a call takes beside the index while it runs, its arguments not counted.

    Args:
        dim, metric, memory, M, ef_construction, threads: as `NativeIndex`.
        kind: WORK_ADD, WORK_VACUUM, WORK_TRAIN, or WORK_REORDER for `locality_order` and `renumber`.
        rows: rows of the index, those that are added included.
        graph_rows: rows in the graph when the call is over.
        historical: rows on lists.
        added: rows that an add adds.
        id_bytes: UTF-8 bytes of the ids: of an add's rows, else of all.
    """
    config = _config(dim, metric, memory, M, ef_construction, threads)
    return int(lib.fvdb_estimate_work(config, kind, rows, graph_rows, historical, added, id_bytes))


class NativeIndex(Aging, Search, Parts, Lazy):
    """An index in native memory.

    Args:
        dim: components of a vector, 1 to DIM_MAX.
        metric: ``cosine``, ``l2`` or ``dot``.
        memory: ``default`` or ``compact``.
        M: links of a row on upper levels, M_MIN to M_MAX.
        ef_construction: candidates while linking, 1 to EF_MAX.
        threads: most threads a call may use.
        hash_seed: seed of the id table; changes no answer and no saved byte.

    Raises:
        InvalidInputError: a setting is out of range, or FVDB_KERNELS names kernels this CPU cannot run.
        IndexStateError: memory or a lock could not be had.
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
        has_bare: bool = False,
        hash_seed: int = 0,
    ) -> NativeIndex:
        """An index that takes `load_part` for each of its parts, then `load_end` or `load_lazy`, and nothing before.

        Args:
            dim, metric, memory, M, ef_construction, threads, hash_seed: as of a new one.
            rows: rows, tombstones included.
            graph_rows: rows in the graph.
            rows_per_part: rows of a part with vectors.
            rows_per_group: rows of a part of another kind.
            stored_rows: rows before the first whose links are in no part; None for all.
            lists: number of lists.
            has_codes: there are parts of codes and a head of the graph.
            has_bare: there are rows without a vector.

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
                "has_bare": has_bare,
            },
        )
        call(lib.fvdb_load_begin, config, load, out)
        return cls._owning(out[0], dim)

    @classmethod
    def _owning(cls, index: Any, dim: int) -> NativeIndex:
        self = cls.__new__(cls)
        self._own(index, dim)
        return self

    def with_dim(self, dim: int) -> NativeIndex:
        """A copy for vectors of another dimension, the same rows in the same slots.

        Raises:
            InvalidInputError: dim is out of range, or a row has a vector.
            IndexStateError: there was not enough memory.
        """
        out = ffi.new("fvdb_index **")
        call(lib.fvdb_with_dim, self._index, dim, out)
        return self._owning(out[0], dim)
