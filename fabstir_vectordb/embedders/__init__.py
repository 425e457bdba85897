"""Embedders: a text becomes a vector. The session does not need one; adapters and examples do.

`Embedder` is all that an embedder must be; `embed` and `aembed` run one over many texts. The ready ones are modules of
their own: ``sentence_transformers`` and ``fastembed``, each behind its extra, and ``openai_compatible``.
"""

from fabstir_vectordb.embedders.base import Embedder, EmbeddingError, aembed, embed

__all__ = ["Embedder", "EmbeddingError", "aembed", "embed"]
