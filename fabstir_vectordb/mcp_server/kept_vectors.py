"""The vectors of the last texts: what a memory asks for again is not embedded again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from fabstir_vectordb.embedders import Embedder, aembed
from fabstir_vectordb.embedders.base import Vectors

__all__ = ["KeptVectors"]

#: Texts whose vectors are kept: those of changes that are under way, and of a query whose pages are asked for.
_TEXTS_KEPT: Final = 64


class KeptVectors:
    """An embedder that gives the vectors of another one, and keeps some.

    A change is applied again after each refused save, and must not ask the model each time. Its text is embedded before
    the memory's turn, so that a slow model keeps no other call waiting; the session then finds the vector here.

    Args:
        embedder: asked for what is not kept.

    Attributes:
        name: that of the embedder.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._kept: dict[str, Vectors] = {}
        self.name = embedder.name

    @property
    def dimension(self) -> int:
        """That of the embedder, which may have to ask a server."""
        return self._embedder.dimension

    async def __call__(self, texts: Sequence[str], /) -> Vectors:
        """The vectors of texts, (n, dimension) float32.

        Raises:
            EmbeddingError: the embedder failed, or gave something else than vectors.
        """
        found = {text: self._kept[text] for text in texts if text in self._kept}
        if lacking := [text for text in dict.fromkeys(texts) if text not in found]:
            found.update(zip(lacking, await aembed(self._embedder, lacking), strict=True))
        self._kept |= found
        while len(self._kept) > _TEXTS_KEPT:
            del self._kept[next(iter(self._kept))]
        return np.stack([found[text] for text in texts])
