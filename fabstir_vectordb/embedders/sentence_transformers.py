"""An embedder over sentence-transformers: models that run in this process, with PyTorch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from fabstir_vectordb.embedders.base import Vectors, loading
from fabstir_vectordb.embedding import check_embedder
from fabstir_vectordb.errors import InvalidConfigError
from fabstir_vectordb.extras import install_command

__all__ = ["SentenceTransformerEmbedder"]


class SentenceTransformerEmbedder:
    """Embeds texts by a model of sentence-transformers. Any thread may call it; calls run one after the other.

    Args:
        model: a name, a folder, or a SentenceTransformer.
        name: the name of the model for an index; None for `model`, where that is a name or a folder.
        batch_size: texts that the model takes at once.
        prompt_name: the model's prompt for these texts, as ``query`` or ``document``; None for its default.
        normalize: scale each vector to length one.
        **options: further arguments of SentenceTransformer, as ``device``.

    Raises:
        InvalidConfigError: the extra is not installed, `name` is refused, or a model without a name has none here
            either.
        EmbeddingError: the model could not be loaded.
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str | None = None,
        batch_size: int = 32,
        prompt_name: str | None = None,
        normalize: bool = False,
        **options: Any,
    ) -> None:
        given = str(model) if isinstance(model, str) or hasattr(model, "__fspath__") else None
        if name is None and given is None:
            raise InvalidConfigError("give name=: a model that is loaded already does not say its own")
        self.name = str(given) if name is None else name
        check_embedder(self, InvalidConfigError)
        if given is not None:
            try:
                from sentence_transformers import SentenceTransformer
            except ImportError as error:
                install = install_command("sentence-transformers")
                raise InvalidConfigError(f"{error}: this embedder needs sentence-transformers: {install}") from error
            with loading(self.name):
                model = SentenceTransformer(given, **options)
        self._model, self._lock = model, threading.Lock()
        self._options = {"batch_size": batch_size, "prompt_name": prompt_name, "normalize_embeddings": normalize}
        with loading(self.name):
            # Newer versions have another name for it. Some models do not know, and say None.
            ask = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
            self.dimension = int(ask() or self([self.name]).shape[1])

    def __repr__(self) -> str:
        return f"<SentenceTransformerEmbedder {self.name!r}>"

    def __call__(self, texts: Sequence[str], /) -> Vectors:
        """The vectors of texts."""
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        with self._lock:
            vectors = self._model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False, **self._options)
        return np.asarray(vectors, dtype=np.float32)
