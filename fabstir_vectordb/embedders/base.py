"""What an embedder is, and running one over many texts: in batches, checked, off the event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol

import anyio.to_thread
import numpy as np
import numpy.typing as npt

from fabstir_vectordb.errors import InvalidInputError, VectorDBError
from fabstir_vectordb.metadata.values import shown

__all__ = ["Embedder", "EmbeddingError", "Vectors", "aembed", "embed"]

Vectors = npt.NDArray[np.float32]
#: Called with the number of texts that are embedded, and of all texts.
EmbedProgress = Callable[[int, int], None]

#: Texts of one call of an embedder, where it does not say: enough for a model's own batches.
_BATCH_SIZE: Final = 256


class Embedder(Protocol):
    """A callable that turns texts into vectors. Any function with these two attributes is one.

    Attributes:
        name: the name of the model: vectors of two embedders with the same name are comparable.
        dimension: numbers of a vector.
    """

    @property
    def name(self) -> str:
        """The name of the model."""

    @property
    def dimension(self) -> int:
        """Numbers of a vector."""

    def __call__(self, texts: Sequence[str], /) -> Any:
        """The vectors of texts, (n, dimension) numbers. It may take long, and is called from any thread."""


class EmbeddingError(VectorDBError, RuntimeError):
    """An embedder failed, or gave something else than one finite vector for each text.

    ``details`` has ``embedder``, and ``status`` where an endpoint answered with one.
    """

    code = "EMBEDDING_ERROR"


def embed(
    embedder: Embedder, texts: Sequence[str], *, batch_size: int | None = None, progress: EmbedProgress | None = None
) -> Vectors:
    """The vectors of texts.

    Args:
        embedder: the embedder.
        texts: the texts.
        batch_size: most texts of one call; None for the embedder's own ``batch_size``, or 256.
        progress: called after every call, with the numbers of texts that are done and of all texts.

    Returns:
        (n, dimension) float32, in the order of the texts.

    Raises:
        InvalidInputError: `texts` is no list of strings, or `batch_size` is out of range.
        EmbeddingError: the embedder failed, or gave other vectors than asked for.
    """
    run = _Run(embedder, texts, batch_size, progress)
    for batch in run.batches():
        run.take(batch, _call(embedder, batch))
    return run.vectors


async def aembed(
    embedder: Embedder, texts: Sequence[str], *, batch_size: int | None = None, progress: EmbedProgress | None = None
) -> Vectors:
    """As `embed`, awaited, on asyncio or trio: calls run in a worker thread.

    A cancellation is raised at once. The call that is running then ends in its thread, and its result is dropped.
    """
    run = _Run(embedder, texts, batch_size, progress)
    for batch in run.batches():
        call = partial(_call, embedder, batch)
        run.take(batch, await anyio.to_thread.run_sync(call, abandon_on_cancel=True))
    return run.vectors


class _Run:
    """One run over many texts, and the vectors so far."""

    def __init__(
        self, embedder: Embedder, texts: Sequence[str], batch_size: int | None, progress: EmbedProgress | None
    ) -> None:
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(one, str) for one in texts):
            raise InvalidInputError("texts must be a list of strings")
        size = getattr(embedder, "batch_size", _BATCH_SIZE) if batch_size is None else batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InvalidInputError(f"batch_size must be None or an integer above zero, got {shown(size)}")
        self._texts, self._size, self._progress, self._done = texts, size, progress, 0
        self.vectors = np.empty((len(texts), embedder.dimension if texts else 0), dtype=np.float32)

    def batches(self) -> Iterator[list[str]]:
        """The texts, batch after batch."""
        for start in range(0, len(self._texts), self._size):
            yield list(self._texts[start : start + self._size])

    def take(self, batch: list[str], vectors: Vectors) -> None:
        """Takes the vectors of the next batch."""
        self.vectors[self._done : self._done + len(batch)] = vectors
        self._done += len(batch)
        if self._progress is not None:
            self._progress(self._done, len(self._texts))


def _call(embedder: Embedder, texts: list[str]) -> Vectors:
    """The vectors of one call, checked."""
    shape = (len(texts), embedder.dimension)
    try:
        vectors = np.asarray(embedder(texts), dtype=np.float32)
    except VectorDBError:
        raise
    except Exception as error:
        raise _failed(embedder, f"raised {type(error).__name__}: {error}") from error
    if vectors.shape != shape:
        raise _failed(embedder, f"gave an array of shape {vectors.shape} where {shape} was expected")
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise _failed(embedder, f"gave a number that is not finite, for text {row} of its call")
    return vectors


def _failed(embedder: Embedder, reason: str) -> EmbeddingError:
    return EmbeddingError(f"the embedder {embedder.name!r} {reason}", details={"embedder": embedder.name})
