"""Limits and constants of the native library, as its header defines them."""

from __future__ import annotations

from fabstir_vectordb._native.library import lib

__all__ = [
    "DIM_MAX",
    "EF_DEFAULT_MIN",
    "EF_MAX",
    "ID_BYTES_MAX",
    "K_MAX",
    "LISTS_MAX",
    "LISTS_ROWS_MIN",
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
    "PATH_STEPS_MAX",
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
]

DIM_MAX = int(lib.FVDB_DIM_MAX)
EF_DEFAULT_MIN = int(lib.FVDB_EF_DEFAULT_MIN)
EF_MAX = int(lib.FVDB_EF_MAX)
ID_BYTES_MAX = int(lib.FVDB_ID_BYTES_MAX)
K_MAX = int(lib.FVDB_K_MAX)
LISTS_MAX = int(lib.FVDB_LISTS_MAX)
#: Least rows with a vector for which lists are trained.
LISTS_ROWS_MIN = int(lib.FVDB_LISTS_ROWS_MIN)
M_MIN = int(lib.FVDB_M_MIN)
M_MAX = int(lib.FVDB_M_MAX)
#: Most steps of a path to a field.
PATH_STEPS_MAX = int(lib.FVDB_PATH_STEPS_MAX)
ROWS_MAX = int(lib.FVDB_ROWS_MAX)
STEPS_MAX = int(lib.FVDB_STEPS_MAX)
THREADS_MAX = int(lib.FVDB_THREADS_MAX)
NO_SLOT = int(lib.FVDB_NO_SLOT)
PLAN_FLAT = int(lib.FVDB_PLAN_FLAT)
PLAN_GRAPH = int(lib.FVDB_PLAN_GRAPH)
PLAN_LISTS = int(lib.FVDB_PLAN_LISTS)
PLAN_HYBRID = int(lib.FVDB_PLAN_HYBRID)
WORK_ADD = int(lib.FVDB_WORK_ADD)
WORK_VACUUM = int(lib.FVDB_WORK_VACUUM)
WORK_TRAIN = int(lib.FVDB_WORK_TRAIN)
WORK_REORDER = int(lib.FVDB_WORK_REORDER)
# Kinds of parts.
PART_VECTORS = int(lib.FVDB_PART_VECTORS)
PART_BIT_CODES = int(lib.FVDB_PART_BIT_CODES)
PART_IDS = int(lib.FVDB_PART_IDS)
PART_TIMESTAMPS = int(lib.FVDB_PART_TIMESTAMPS)
PART_TOMBSTONES = int(lib.FVDB_PART_TOMBSTONES)
PART_GRAPH = int(lib.FVDB_PART_GRAPH)
PART_GRAPH_HEAD = int(lib.FVDB_PART_GRAPH_HEAD)
PART_LISTS = int(lib.FVDB_PART_LISTS)
PART_LISTS_HEAD = int(lib.FVDB_PART_LISTS_HEAD)
PART_VECTORLESS = int(lib.FVDB_PART_VECTORLESS)
PART_SECOND_LISTS = int(lib.FVDB_PART_SECOND_LISTS)
