"""What an embedder is, and what an index stores about the embedder of its rows.

Vectors of two models cannot be compared. An index therefore stores the name and the dimension of the embedder of its
texts, and a session refuses another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from fabstir_vectordb._native.handle import DIM_MAX
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.display import Record
from fabstir_vectordb.errors import EmbeddingError, InvalidConfigError, VectorDBError
from fabstir_vectordb.metadata.values import shown

__all__ = ["Embedder", "EmbedderInfo", "check_embedder", "check_same", "info_of", "is_dimension", "is_name"]

#: Most characters of an embedder's name.
_NAME_LENGTH_MAX: Final = 256


class Embedder(Protocol):
    """A callable that turns texts into vectors. Any function with these two attributes is one.

    An attribute ``batch_size`` is optional: most texts of one call.

    Attributes:
        name: the name of the model, 1 to 256 printable characters: vectors of two embedders with the same name are
            comparable.
        dimension: numbers of a vector. It may take long to read, as an endpoint may have to be asked.
    """

    @property
    def name(self) -> str:
        """The name of the model."""

    @property
    def dimension(self) -> int:
        """Numbers of a vector."""

    def __call__(self, texts: Sequence[str], /) -> Any:
        """The vectors of texts, (n, dimension) numbers, or an awaitable of them.

        A plain function may take long, and is called from any thread. A coroutine function is awaited on the event
        loop.
        """


@dataclass(frozen=True, slots=True)
class EmbedderInfo(Record):
    """The embedder of an index's texts.

    Attributes:
        name: the name of the model.
        dimension: numbers of a vector.
    """

    name: str
    dimension: int


def check_embedder(embedder: Any, error: type[VectorDBError]) -> None:
    """Checks that an object is an embedder, without asking it for its dimension.

    Raises:
        error: it is not callable, or has no name.
    """
    if not callable(embedder):
        raise error(
            f"an embedder must be callable, with name and dimension, got {shown(embedder)}",
            details={"field": "embedder"},
        )
    name = getattr(embedder, "name", None)
    if not is_name(name):
        raise error(
            f"an embedder must have a name of 1 to {_NAME_LENGTH_MAX} printable characters, got {shown(name)}",
            details={"field": "embedder"},
        )


def info_of(embedder: Embedder) -> EmbedderInfo:
    """Name and dimension of an embedder. It may ask a server.

    Raises:
        EmbeddingError: the dimension cannot be read, or is no integer from 1 to DIM_MAX.
    """
    name = embedder.name
    try:
        dimension: Any = embedder.dimension
    except VectorDBError:
        raise
    except Exception as error:
        raise EmbeddingError(
            f"the embedder {name!r} does not say its dimension: {type(error).__name__}: {error}",
            details={"embedder": name},
        ) from error
    if not is_dimension(dimension):
        raise EmbeddingError(
            f"the embedder {name!r} must have a dimension from 1 to {DIM_MAX}, got {shown(dimension)}",
            details={"embedder": name, "limit": DIM_MAX},
        )
    return EmbedderInfo(name, dimension)


def check_same(stored: EmbedderInfo | None, name: str, dimension: int | None = None) -> None:
    """Checks that texts may be embedded for an index.

    Args:
        stored: the embedder of the index's texts; None where there is none yet.
        name: the name of the session's embedder.
        dimension: its dimension; None where it is not known yet.

    Raises:
        InvalidConfigError: it is another one.
    """
    if stored is None or (stored.name == name and dimension in (None, stored.dimension)):
        return
    given = f"{name!r}" if stored.name != name else f"{name!r} with {dimension} dimensions"
    raise InvalidConfigError(
        f"the texts of this index were embedded by {stored.name!r} with {stored.dimension} dimensions, and the "
        f"embedder of this session is {given}: their vectors cannot be compared. Use the first, a session without an "
        "embedder to search by vectors, or another index_name for a new index",
        details={"field": "embedder", "value": name, "stored": stored.name, "stored_dimension": stored.dimension},
    )


def is_name(value: object) -> bool:
    """Whether a value can be the name of an embedder."""
    return isinstance(value, str) and 0 < len(value) <= _NAME_LENGTH_MAX and value.isprintable()


def is_dimension(value: object) -> bool:
    """Whether a value can be the dimension of an embedder."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= DIM_MAX
