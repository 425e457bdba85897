"""A Haystack document store (haystack-ai 3.x) over an encrypted index on S5, and its retrievers.

``store`` has the store, ``retrievers`` the components of pipelines, ``documents`` the layout of a row, ``filters``
Haystack's filters.
"""

from __future__ import annotations

from fabstir_vectordb.integrations.haystack.retrievers import (
    FabstirBM25Retriever,
    FabstirEmbeddingRetriever,
    FabstirHybridRetriever,
)
from fabstir_vectordb.integrations.haystack.store import FabstirDocumentStore

__all__ = ["FabstirBM25Retriever", "FabstirDocumentStore", "FabstirEmbeddingRetriever", "FabstirHybridRetriever"]
