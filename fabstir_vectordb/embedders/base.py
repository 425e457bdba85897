"""Runs an embedder over many texts: in batches, checked, off the event loop."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

import anyio.to_thread
import numpy as np
import numpy.typing as npt

from fabstir_vectordb.embedding import Embedder, EmbedderInfo, check_embedder, info_of
from fabstir_vectordb.errors import EmbeddingError, InvalidInputError, VectorDBError
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.worker_threads import is_async

__all__ = ["EmbedProgress", "Vectors", "aembed", "ask_info", "check_texts", "embed", "loading"]

_T = TypeVar("_T")

Vectors = npt.NDArray[np.float32]
#: Called with the number of texts that are embedded, and of all texts.
EmbedProgress = Callable[[int, int], None]

#: Texts of one call of an embedder, where it does not say: enough for a model's own batches.
_BATCH_SIZE: Final = 256


def embed(
    embedder: Embedder, texts: Sequence[str], *, batch_size: int | None = None, progress: EmbedProgress | None = None
) -> Vectors:
    """The vectors of texts.

    Args:
        embedder: the embedder, a plain function.
        texts: the texts.
        batch_size: most texts of one call; None for the embedder's own ``batch_size``, or 256.
        progress: called after every call, with the numbers of texts that are done and of all texts.

    Returns:
        (n, dimension) float32, in the order of the texts.

    Raises:
        InvalidInputError: `texts` is no list of strings that UTF-8 can hold, `batch_size` or `progress` is refused, or
            the embedder has no name or must be awaited.
        EmbeddingError: the embedder failed, or gave other vectors than asked for.
    """
    run = _Run(embedder, texts, batch_size, progress)
    run.begin(info_of(embedder) if texts else None)
    for batch in run.batches():
        given = run.call(batch)
        if inspect.isawaitable(given):
            if inspect.iscoroutine(given):
                given.close()
            raise InvalidInputError("this embedder is asynchronous: await aembed, or give it to a session")
        run.take(given)
    return run.vectors


async def aembed(
    embedder: Embedder, texts: Sequence[str], *, batch_size: int | None = None, progress: EmbedProgress | None = None
) -> Vectors:
    """As `embed`, awaited, on asyncio or trio: a plain function runs in a worker thread, a coroutine function here.

    A cancellation is raised at once. A call that is running in a thread then ends there, and its result is dropped.

    Args:
        embedder: the embedder, a plain function or a coroutine function.
        texts: the texts.
        batch_size: most texts of one call; None for the embedder's own ``batch_size``, or 256.
        progress: called after every call, with the numbers of texts that are done and of all texts.

    Returns:
        (n, dimension) float32, in the order of the texts.

    Raises:
        InvalidInputError: as `embed`, but an embedder may be awaited.
        EmbeddingError: the embedder failed, or gave other vectors than asked for.
    """
    run = _Run(embedder, texts, batch_size, progress)
    run.begin(await ask_info(embedder) if texts else None)
    for batch in run.batches():
        given = run.call(batch) if is_async(embedder) else await _in_thread(partial(run.call, batch))
        if inspect.isawaitable(given):
            given = await run.awaited(given)
            given = await _in_thread(partial(run.checked, given, len(batch)))
        run.take(given)
    return run.vectors


async def ask_info(embedder: Embedder) -> EmbedderInfo:
    """`info_of`, awaited: an endpoint may have to be asked. A cancellation does not wait for it."""
    return await _in_thread(partial(info_of, embedder))


async def _in_thread(function: Callable[[], _T]) -> _T:
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=True)


def check_texts(texts: Any) -> None:
    """Checks that an argument is a list of texts.

    Raises:
        InvalidInputError: it is none, or a text is no string that UTF-8 can hold; details then has ``row``.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        raise InvalidInputError(f"texts must be a list of strings, got {type(texts).__name__}")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInputError(f"text {row} must be a string, got {type(text).__name__}", details={"row": row})
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InvalidInputError(
                    f"text {row} has a lone surrogate at {error.start}, which UTF-8 cannot hold", details={"row": row}
                ) from None


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Makes an EmbeddingError of what goes wrong while a model is loaded."""
    try:
        yield
    except Exception as error:
        raise EmbeddingError(
            f"the model {name!r} could not be loaded: {type(error).__name__}: {error}", details={"embedder": name}
        ) from error


class _Run:
    """One run over many texts, and the vectors so far."""

    def __init__(
        self, embedder: Embedder, texts: Sequence[str], batch_size: int | None, progress: EmbedProgress | None
    ) -> None:
        check_embedder(embedder, InvalidInputError)
        check_texts(texts)
        size = getattr(embedder, "batch_size", _BATCH_SIZE) if batch_size is None else batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InvalidInputError(f"batch_size must be None or an integer above zero, got {shown(size)}")
        if progress is not None and not callable(progress):
            raise InvalidInputError(f"progress must be a function or None, got {type(progress).__name__}")
        self._embedder, self._texts, self._size, self._progress, self._done = embedder, texts, size, progress, 0

    def begin(self, info: EmbedderInfo | None) -> None:
        """Makes room for the vectors; None where there is no text."""
        self._info = info or EmbedderInfo(self._embedder.name, 0)
        self.vectors = np.empty((len(self._texts), self._info.dimension), dtype=np.float32)

    def batches(self) -> Iterator[list[str]]:
        """The texts, batch after batch."""
        for start in range(0, len(self._texts), self._size):
            yield list(self._texts[start : start + self._size])

    def call(self, batch: list[str]) -> Any:
        """The vectors of one call, checked; or what must be awaited for them."""
        try:
            given = self._embedder(batch)
        except VectorDBError:
            raise
        except Exception as error:
            raise self._raised(error) from error
        return given if inspect.isawaitable(given) else self.checked(given, len(batch))

    async def awaited(self, given: Awaitable[Any]) -> Any:
        """The vectors of one call that must be awaited, not checked yet."""
        try:
            return await given
        except VectorDBError:
            raise
        except Exception as error:
            raise self._raised(error) from error

    def take(self, vectors: Vectors) -> None:
        """Takes the vectors of the next batch."""
        self.vectors[self._done : self._done + len(vectors)] = vectors
        self._done += len(vectors)
        if self._progress is not None:
            self._progress(self._done, len(self._texts))

    def checked(self, given: Any, n: int) -> Vectors:
        """The vectors of n texts as float32."""
        shape = (n, self._info.dimension)
        try:
            with np.errstate(over="ignore"):  # what is too large for float32 is infinite below
                vectors = np.asarray(given, dtype=np.float32)
        except VectorDBError:
            raise
        except Exception as error:
            raise self._raised(error) from error
        if vectors.shape != shape:
            raise self._failed(f"gave an array of shape {vectors.shape} where {shape} was expected")
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise self._failed(f"gave a number that is not finite, for text {row} of its call")
        return vectors

    def _raised(self, error: Exception) -> EmbeddingError:
        return self._failed(f"raised {type(error).__name__}: {error}")

    def _failed(self, reason: str) -> EmbeddingError:
        name = self._info.name
        return EmbeddingError(f"the embedder {name!r} {reason}", details={"embedder": name})
