"""What all importers share: rows of a foreign store, the report of an import, bounded reading of untrusted files.

A source checks all that it reads: every count against the bytes that there are, every name against what a name may be.
What breaks the format raises IntegrityError. A single row that an index cannot hold is left out and counted.
"""

from __future__ import annotations

import base64
import json
import math
import mmap
import os
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self
from uuid import UUID

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import DIM_MAX
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.display import Record, json_ready
from fabstir_vectordb.errors import IntegrityError, InvalidInputError, NotFoundError
from fabstir_vectordb.importers.pickles import Inert

__all__ = [
    "MIGRATE_ROWS",
    "VALUE_DEPTH_MAX",
    "ForeignRow",
    "MigrationReport",
    "Notes",
    "Source",
    "Unstorable",
    "check_dim",
    "map_file",
    "one_name",
    "parse_json",
    "read_file",
    "regular_size",
    "storable",
]

Metric = Literal["cosine", "l2", "dot"]

#: Rows of one add.
MIGRATE_ROWS: Final = 4_096
#: Most bytes of a file that is read as a whole: manifests, lists of names.
SMALL_FILE_BYTES_MAX: Final = 64 << 20
#: Most levels and most values of a metadata value. A pickle may hold one value many times in itself.
VALUE_DEPTH_MAX: Final = 60
_VALUES_MAX: Final = 200_000
#: Most lists and objects of a JSON file: an empty one takes three bytes there and sixty in memory.
_CONTAINERS_MAX: Final = 2_000_000
#: Most collisions and notes that a report names.
_NAMED_MAX: Final = 100


class ForeignRow(NamedTuple):
    """One row of a foreign store.

    Attributes:
        id: the row's id.
        vector: (dimension,) float32, or None where the store has none.
        metadata: what the store has of the row, as Python values.
        timestamp: seconds since 1970 or a datetime; None where the store has none.
    """

    id: str
    vector: npt.NDArray[np.float32] | None
    metadata: Any = None
    timestamp: float | datetime | None = None


@dataclass(slots=True)
class Notes:
    """What an import has to tell.

    Attributes:
        left_out: rows that did not come, by reason.
        deleted: rows that the store holds and marks as deleted.
        collisions: ids of rows that came under another id, or not at all, since the id was taken.
        texts: sentences for the user, each once.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    deleted: int = 0
    collisions: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Notes a sentence, unless it was noted already.

        Args:
            text: the sentence.
        """
        if text not in self.texts and len(self.texts) < _NAMED_MAX:
            self.texts.append(text)

    def collide(self, id: str) -> None:
        """Notes an id that two rows have.

        Args:
            id: the id.
        """
        if len(self.collisions) < _NAMED_MAX:
            self.collisions.append(id)


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationReport(Record):
    """What an import brought and what it did not.

    Attributes:
        format: the format of the store.
        metric: the metric that the store's rows were searched with, None where the store does not say.
        schema: the store's schema in the form of `set_schema`, None where it has none.
        dim: the dimension of the vectors, None without vectors.
        rows: rows that can come.
        added, replaced, skipped: what the index did with them; zeros for a dry run.
        deleted: rows that the store holds and marks as deleted; they did not come.
        left_out: other rows that did not come, by reason.
        collisions: ids that several rows of the store have; at most 100 are named.
        notes: what else to know, sentences.
        dry_run: whether the store was only read.
    """

    format: str
    metric: Metric | None
    schema: Mapping[str, Any] | None
    dim: int | None
    rows: int
    added: int
    replaced: int
    skipped: int
    deleted: int
    left_out: Mapping[str, int]
    collisions: tuple[str, ...]
    notes: tuple[str, ...]
    dry_run: bool


class Source(ABC):
    """A foreign store, open for reading. It is a context manager; nothing is ever written to the store.

    Attributes:
        format: the name of the format.
        metric: the metric of the store's searches, None where it does not say.
        schema: the store's schema, in the form of `set_schema`.
        notes: what an import has to tell, complete once all rows were read.
    """

    format: str
    metric: Metric | None = None
    schema: Mapping[str, Any] | None = None

    def __init__(self) -> None:
        self.notes = Notes()

    @abstractmethod
    def rows(self) -> Iterator[ForeignRow]:
        """The live rows, one after the other.

        Raises:
            IntegrityError: the store breaks its format.
            OSError: a file cannot be read.
        """

    def close(self) -> None:  # noqa: B027  # most sources keep nothing open
        """Closes files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# ---- files


def regular_size(path: Path) -> int:
    """The size of a regular file.

    Raises:
        NotFoundError: there is no such file.
        IntegrityError: it is a device, a pipe or a folder.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{path} does not exist", details={"path": str(path)}) from None
    except ValueError:
        raise InvalidInputError(f"{str(path)!r} is no path") from None
    if not stat.S_ISREG(found.st_mode):
        raise IntegrityError(f"{path} is no regular file", details={"path": str(path)})
    return found.st_size


def read_file(path: Path, bytes_max: int = SMALL_FILE_BYTES_MAX) -> bytes:
    """The bytes of a regular file.

    Raises:
        NotFoundError: there is no such file.
        IntegrityError: it is no regular file, or larger than `bytes_max`.
    """
    size = regular_size(path)
    if size > bytes_max:
        raise IntegrityError(
            f"{path} has {size:,} bytes, more than the {bytes_max:,} that such a file may have",
            details={"path": str(path), "expected": bytes_max, "actual": size},
        )
    with path.open("rb") as stream:
        return stream.read(size)  # not `bytes_max`: Python reserves what it is asked for


def map_file(path: Path) -> mmap.mmap | bytes:
    """The bytes of a regular file, mapped into memory. The file must not shrink meanwhile.

    Raises:
        NotFoundError, IntegrityError: as `read_file`.
    """
    if regular_size(path) == 0:
        return b""
    handle = os.open(path, os.O_RDONLY)
    try:
        return mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(handle)


def one_name(kind: str, names: list[str], wanted: str | None) -> str:
    """The one name of several, such as collections.

    Args:
        kind: what the names are of.
        names: all names.
        wanted: the caller's choice; None where there must be only one.

    Raises:
        NotFoundError: there is none, or not the wanted one.
        InvalidInputError: there are several, and none was chosen.
    """
    known = ", ".join(map(repr, sorted(names)[:20])) or "none"
    if wanted is not None and wanted not in names:
        raise NotFoundError(f"there is no {kind} {wanted!r}; there is {known}")
    if wanted is not None:
        return wanted
    if not names:
        raise NotFoundError(f"there is no {kind}")
    if len(names) > 1:
        raise InvalidInputError(f"name one {kind} of {known}")
    return names[0]


def check_dim(dim: int, what: str) -> int:
    """Checks a dimension.

    Raises:
        IntegrityError: it is not from 1 to 4,096.
    """
    if not 1 <= dim <= DIM_MAX:
        raise IntegrityError(
            f"{what}: a vector has 1 to {DIM_MAX} dimensions, this one {dim}", details={"limit": DIM_MAX, "actual": dim}
        )
    return dim


def parse_json(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object of a file.

    Raises:
        IntegrityError: the bytes are no JSON object, or have so many lists and objects that they would fill memory.
    """
    if raw.count(b"[") + raw.count(b"{") > _CONTAINERS_MAX:
        raise IntegrityError(f"{what} has more than {_CONTAINERS_MAX:,} lists and objects")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{what} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise IntegrityError(f"{what} must be a JSON object")
    return value


# ---- metadata


class Unstorable(NamedTuple):
    """Stands for metadata that an index cannot hold; the row is left out."""

    reason: str


def storable(value: Any, notes: Notes) -> Any:
    """A foreign metadata value in a form that metadata holds: what it has no type for becomes text.

    Returns:
        The value, or `Unstorable` for one that contains itself or too many values.
    """
    try:
        return _Storable(notes).value(value, VALUE_DEPTH_MAX)
    except ValueError as error:
        return Unstorable(str(error))


class _Storable:
    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._left = _VALUES_MAX

    def value(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if depth == 0 or self._left < 0:
            raise ValueError("metadata is nested too deeply, or has too many values")
        if value is None or isinstance(value, (bool, UUID)):
            return value
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                self._notes.say("text with lone surrogates came with ? in their place")
                return value.encode(errors="replace").decode()
            return value
        if isinstance(value, int):
            return self._int(value)
        if isinstance(value, float):
            if math.isfinite(value):
                return value
            self._notes.say("numbers in metadata that are NaN or infinite came as null")
            return None
        if isinstance(value, datetime):
            return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        if isinstance(value, date):
            return value
        if isinstance(value, Mapping):
            return {self._key(key): self.value(item, depth - 1) for key, item in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.value(item, depth - 1) for item in value]
        return self._other(value, depth)

    def _int(self, value: int) -> Any:
        if -(2**63) <= value < 2**64:
            return value
        self._notes.say("integers in metadata that need more than 64 bits came as text")
        return hex(value) if value.bit_length() > 1_024 else str(value)

    def _key(self, key: Any) -> str:
        if not isinstance(key, str):
            # By the exact type: the text of a tuple that holds itself many times has no end.
            if key is not None and type(key) not in (int, float, bool, bytes):
                raise ValueError(f"metadata has a {type(key).__name__} as a key")
            self._notes.say("keys in metadata that are no text came as text")
            key = repr(key[:200])[:200] if isinstance(key, bytes) else str(self._int(key) if type(key) is int else key)
        return str(self.value(key, 1))

    def _other(self, value: Any, depth: int) -> Any:
        if isinstance(value, (bytes, bytearray, memoryview)):
            self._notes.say("bytes in metadata came as base64 text")
            return base64.b64encode(bytes(value)).decode()
        if isinstance(value, (np.generic, np.ndarray)):
            return self.value(value.tolist(), depth - 1)
        if isinstance(value, Inert):
            return self.value(value.plain(), depth - 1)
        if isinstance(value, Decimal):
            self._notes.say("decimal numbers in metadata came as text")
            return str(value)
        self._notes.say(f"values of type {type(value).__name__} in metadata came as text")
        return str(json_ready(value))
