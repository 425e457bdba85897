"""The index in memory: rows, metadata and filters on top of native slots; synchronous, thread-safe."""

from fabstir_vectordb.index.aging import AgingSteps
from fabstir_vectordb.index.cursor import Cursor
from fabstir_vectordb.index.filters import Matches
from fabstir_vectordb.index.gate import IndexClosed
from fabstir_vectordb.index.incoming import (
    Batch,
    make_request,
    prepare_batch,
    prepare_queries,
    prepare_query,
    take_ids,
    take_items,
)
from fabstir_vectordb.index.index import Index
from fabstir_vectordb.index.lazy import LazyIndex
from fabstir_vectordb.index.repeat import Repeat
from fabstir_vectordb.index.searcher import SCORES

__all__ = [
    "SCORES",
    "AgingSteps",
    "Batch",
    "Cursor",
    "Index",
    "IndexClosed",
    "LazyIndex",
    "Matches",
    "Repeat",
    "make_request",
    "prepare_batch",
    "prepare_queries",
    "prepare_query",
    "take_ids",
    "take_items",
]
