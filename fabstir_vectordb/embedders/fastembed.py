"""An embedder over fastembed: models that run in this process, with ONNX and without PyTorch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from fabstir_vectordb.embedders.base import Vectors, loading
from fabstir_vectordb.embedding import check_embedder
from fabstir_vectordb.errors import InvalidConfigError
from fabstir_vectordb.extras import install_command

__all__ = ["FastEmbedEmbedder"]


class FastEmbedEmbedder:
    """Embeds texts by a model of fastembed. Any thread may call it; calls run one after the other.

    Args:
        model: a model's name, as ``BAAI/bge-small-en-v1.5``.
        name: the name of the model for an index; None for `model`.
        batch_size: texts that the model takes at once.
        **options: further arguments of TextEmbedding, as ``cache_dir`` or ``threads``.

    Raises:
        InvalidConfigError: the extra is not installed, or `name` is refused.
        EmbeddingError: the model could not be loaded.
    """

    def __init__(self, model: str, *, name: str | None = None, batch_size: int = 64, **options: Any) -> None:
        try:
            from fastembed import TextEmbedding
        except ImportError as error:
            install = install_command("fastembed")
            raise InvalidConfigError(f"{error}: this embedder needs fastembed: {install}") from error
        self.name = model if name is None else name
        check_embedder(self, InvalidConfigError)
        self._lock, self._batch_size = threading.Lock(), batch_size
        with loading(self.name):
            self._model = TextEmbedding(model, **options)
            self.dimension = int(self([self.name]).shape[1])  # fastembed's list of models does not have a user's own

    def __repr__(self) -> str:
        return f"<FastEmbedEmbedder {self.name!r}>"

    def __call__(self, texts: Sequence[str], /) -> Vectors:
        """The vectors of texts."""
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        with self._lock:
            return np.asarray(list(self._model.embed(list(texts), batch_size=self._batch_size)), dtype=np.float32)
