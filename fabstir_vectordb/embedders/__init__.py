"""Embedders: a text becomes a vector. `VectorDBSession` takes one as ``embedder=``; `embed` and `aembed` run one alone.

The ready ones are modules of their own: ``sentence_transformers`` and ``fastembed``, each behind its extra, and
``openai_compatible``.
"""

from fabstir_vectordb.embedders.base import aembed, embed
from fabstir_vectordb.embedding import Embedder
from fabstir_vectordb.errors import EmbeddingError

__all__ = ["Embedder", "EmbeddingError", "aembed", "embed"]
