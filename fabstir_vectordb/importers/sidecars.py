"""Ids and metadata for indexes that store numbers alone: line n of a file belongs to label n."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.importers.base import Notes, map_file

__all__ = ["Sidecars"]

_NEWLINE: Final = 10
_LINE_BYTES_MAX: Final = 4 << 20
_PIECE: Final = 1 << 24


class _Lines:
    """The lines of a file, found by number; the file is mapped, and only where lines end is in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._raw: bytes | mmap.mmap = map_file(path)
        ends = [
            np.flatnonzero(np.frombuffer(self._raw[at : at + _PIECE], np.uint8) == _NEWLINE) + at
            for at in range(0, len(self._raw), _PIECE)
        ]
        self._ends: npt.NDArray[np.int64] = np.concatenate(ends) if ends else np.empty(0, np.int64)
        if len(self._raw) and self._raw[-1] != _NEWLINE:
            self._ends = np.append(self._ends, len(self._raw))

    def line(self, number: int) -> str:
        if not 0 <= number < len(self._ends):
            raise InvalidInputError(f"{self._path} has {len(self._ends)} lines, and there is a row with label {number}")
        start = int(self._ends[number - 1]) + 1 if number else 0
        end = int(self._ends[number])
        if end - start > _LINE_BYTES_MAX:
            raise InvalidInputError(f"{self._path} line {number + 1} is longer than {_LINE_BYTES_MAX} bytes")
        try:
            return bytes(self._raw[start:end]).decode("utf-8-sig" if number == 0 else "utf-8").rstrip("\r")
        except UnicodeDecodeError:
            raise InvalidInputError(f"{self._path} line {number + 1} is not UTF-8 text") from None


class Sidecars:
    """Two optional files beside an index.

    Args:
        ids: text file, an id in each line.
        metadata: JSONL file, a JSON value in each line.

    Raises:
        NotFoundError, IntegrityError: a file is missing, or no regular file.
    """

    def __init__(self, ids: str | Path | None, metadata: str | Path | None) -> None:
        self._ids = None if ids is None else _Lines(Path(ids))
        self._metadata = None if metadata is None else _Lines(Path(metadata))
        self._path = metadata

    def id(self, label: int, notes: Notes) -> str:
        """The id of a label.

        Raises:
            InvalidInputError: the file has no such line.
        """
        if self._ids is None:
            notes.say("the index stores no ids as text: its numbers became ids; --ids FILE or ids names them")
            return str(label)
        return self._ids.line(label)

    def metadata(self, label: int) -> Any:
        """The metadata of a label, None without a file.

        Raises:
            InvalidInputError: the file has no such line, or the line is no JSON.
        """
        if self._metadata is None:
            return None
        line = self._metadata.line(label)
        try:
            return json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{self._path} line {label + 1} is not JSON: {error}") from None
