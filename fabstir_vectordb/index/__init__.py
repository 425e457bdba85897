"""The index in memory: rows, metadata and filters on top of native slots; synchronous, thread-safe."""

from fabstir_vectordb.index.gate import IndexClosed
from fabstir_vectordb.index.index import (
    SCORES,
    Batch,
    Cursor,
    Index,
    IndexSettings,
    Matches,
    check_ef,
    check_exact,
    check_k,
    check_nprobe,
    prepare_batch,
    prepare_queries,
    prepare_query,
)

__all__ = [
    "SCORES",
    "Batch",
    "Cursor",
    "Index",
    "IndexClosed",
    "IndexSettings",
    "Matches",
    "check_ef",
    "check_exact",
    "check_k",
    "check_nprobe",
    "prepare_batch",
    "prepare_queries",
    "prepare_query",
]
