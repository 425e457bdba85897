"""Qdrant's local mode: a folder with a list of collections and a SQLite file for each, whose points are pickles.

Pickles are read by `pickles.read_pickle`, which makes no objects: of a point only its fields are taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.errors import IntegrityError, InvalidInputError
from fabstir_vectordb.importers.base import (
    ForeignRow,
    Metric,
    Source,
    check_dim,
    one_name,
    parse_json,
    read_file,
    storable,
)
from fabstir_vectordb.importers.pickles import Inert, read_pickle
from fabstir_vectordb.importers.sqlite_file import SqliteFile

__all__ = ["QdrantLocal"]

_POINT_BYTES_MAX: Final = 16 << 20
_MODELS: Final = "qdrant_client.http.models.models"
_POINT: Final = f"{_MODELS}.PointStruct"
_CLASSES: Final = (
    _POINT,
    f"{_MODELS}.SparseVector",
    "uuid.UUID",
    "datetime.datetime",
    "datetime.date",
    "datetime.timezone",
    "datetime.timedelta",
)
_METRICS: Final[dict[str, Metric]] = {"cosine": "cosine", "euclid": "l2", "dot": "dot"}


class QdrantLocal(Source):
    """A collection of Qdrant's local mode.

    Args:
        path: the folder that ``QdrantClient(path=…)`` was given.
        collection: the collection; needed where there are several.
        vector: the name of the vectors; needed where points have several.

    Raises:
        NotFoundError: there is no such folder, collection or vector.
        IntegrityError: a file breaks the format.
        InvalidInputError: a choice is needed.
    """

    format = "qdrant"

    def __init__(self, path: str | Path, *, collection: str | None = None, vector: str | None = None) -> None:
        super().__init__()
        root = Path(path)
        collections = parse_json(read_file(root / "meta.json"), "meta.json").get("collections")
        if not isinstance(collections, dict):
            raise IntegrityError(f"{root / 'meta.json'} lists no collections")
        name = one_name("collection", list(collections), collection)
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise IntegrityError(f"meta.json has a collection of the name {name[:80]!r}")
        self._name = self._choose(collections[name], vector)
        self._file = SqliteFile(root / "collection" / name / "storage.sqlite")

    def _choose(self, config: Any, wanted: str | None) -> str | None:
        """The name of the vectors, None where they have none; notes their metric."""
        vectors = config.get("vectors") if isinstance(config, dict) else None
        if not isinstance(vectors, dict):
            raise IntegrityError("meta.json does not say what vectors the collection has")
        name = None
        if not isinstance(vectors.get("size"), int):
            name = one_name("vector", [str(key) for key in vectors], wanted)
            if len(vectors) > 1:
                others = [repr(key) for key in vectors if key != name]
                self.notes.say(f"the other vectors did not come: {', '.join(others)}")
            vectors = vectors[name]
        elif wanted is not None:
            raise InvalidInputError(f"the vectors of this collection have no names, got {wanted!r}")
        distance = vectors.get("distance") if isinstance(vectors, dict) else None
        self.metric = _METRICS.get(str(distance).lower())
        if self.metric is None:
            self.notes.say(f"the collection has the distance {distance}, for which there is none here")
        if isinstance(config, dict) and config.get("sparse_vectors"):
            self.notes.say("sparse vectors did not come")
        return name

    def rows(self) -> Iterator[ForeignRow]:
        """The points, in the order in which they are stored."""
        self._file.need("points")
        for (raw,) in self._file.rows("SELECT point FROM points ORDER BY rowid"):
            if not isinstance(raw, bytes) or len(raw) > _POINT_BYTES_MAX:
                raise IntegrityError(f"a point is no pickle of at most {_POINT_BYTES_MAX} bytes")
            fields = _fields(read_pickle(raw, "a point", _CLASSES))
            payload = storable(fields.get("payload"), self.notes) or None
            yield ForeignRow(_id(fields.get("id")), self._vector(fields.get("vector")), payload)

    def _vector(self, value: Any) -> npt.NDArray[np.float32] | None:
        if self._name is not None:
            value = value.get(self._name) if isinstance(value, dict) else None
        elif isinstance(value, dict):
            value = value.get("")
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or any(type(number) not in (int, float) for number in value):
            raise IntegrityError(
                "a point has a vector that is no list of numbers; points of several vectors cannot come"
            )
        check_dim(len(value), "a point")
        try:
            with np.errstate(over="ignore"):
                return np.array(value, dtype=np.float64).astype(np.float32)
        except OverflowError:
            raise IntegrityError("a point has a vector with a number that is no float64") from None

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _fields(point: Any) -> Mapping[str, Any]:
    """The fields of a point, from the state that pydantic pickles."""
    if isinstance(point, Inert) and point.name == _POINT and isinstance(point.state, dict):
        fields = point.state.get("__dict__")
        if isinstance(fields, dict):
            return fields
    raise IntegrityError("a point is pickled in another form than Qdrant's")


def _id(value: Any) -> str:
    try:
        plain = value.plain() if isinstance(value, Inert) else value
    except ValueError:
        plain = None
    if isinstance(plain, bool) or not isinstance(plain, (int, str, UUID)):
        raise IntegrityError("a point has an id that is neither a number nor a UUID")
    return str(plain)
