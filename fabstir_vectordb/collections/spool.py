"""Objects on disk for the length of a build: what does not fit in memory, read again in order or by number.

They are in a temporary file that has no name, where the system allows that, in the folder of TMPDIR. Each is encrypted
under a key that only this process has: a disk, or a copy of it, never shows rows. A few megabytes stay in memory.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, Generic, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.collections.rows import joined, picked
from fabstir_vectordb.errors import StorageError
from fabstir_vectordb.index.incoming import Batch
from fabstir_vectordb.s5.cipher import decrypt_static, encrypt_static, encrypted_size
from fabstir_vectordb.s5.keys import keyed_hash

__all__ = ["RowsByShard", "Spool"]

_T = TypeVar("_T")

_IN_MEMORY_BYTES: Final = 8_000_000
#: Rows that wait to be written, of all shards together. More make longer pieces of a shard, which are read faster.
_WAITING_BYTES: Final = 32_000_000


class _Piece(NamedTuple):
    offset: int
    size: int


class Spool(Generic[_T]):
    """A sequence of objects that can be pickled; `close` ends it.

    Raises:
        StorageError: from `append` and reads: the temporary file cannot be written or read.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES, prefix="fabstir-")  # noqa: SIM115
        self._key = os.urandom(32)
        self._pieces: list[_Piece] = []

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[_T]:
        return (self[number] for number in range(len(self)))

    def append(self, value: _T) -> None:
        """Writes one more object."""
        plain = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            offset = self._file.seek(0, os.SEEK_END)
            self._file.write(encrypt_static(self._key_of(len(self)), plain))
        except OSError as error:
            raise _failed(error) from error
        self._pieces.append(_Piece(offset, len(plain)))

    def __getitem__(self, number: int) -> _T:
        piece = self._pieces[number]
        try:
            self._file.seek(piece.offset)
            blob = self._file.read(encrypted_size(piece.size))
        except OSError as error:
            raise _failed(error) from error
        # What decrypts is what this process wrote: nobody else has the key.
        value: _T = pickle.loads(decrypt_static(self._key_of(number), blob, piece.size))
        return value

    def _key_of(self, number: int) -> bytes:
        return keyed_hash(self._key, number.to_bytes(8, "little"))

    def close(self) -> None:
        """Deletes the file. Idempotent."""
        # On a full disk, what waits to be written fails once more: the error of `append` has told it.
        with suppress(OSError):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RowsByShard:
    """The rows of new shards, written as they come and read shard by shard.

    Args:
        dim: components of a vector; None where no row has one.
    """

    def __init__(self, dim: int | None) -> None:
        self._dim = dim
        self._spool: Spool[Batch] = Spool()
        self._pieces: dict[int, list[int]] = {}
        self._waiting: dict[int, list[Batch]] = {}
        self._waiting_bytes = 0
        self._bytes: dict[int, int] = {}

    def add(self, rows: Batch, homes: npt.NDArray[np.integer[Any]]) -> None:
        """Adds rows, each to the shard whose number is in `homes`."""
        for number in np.unique(homes).tolist():
            own = picked(rows, np.flatnonzero(homes == number))
            self._waiting.setdefault(number, []).append(own)
            self._waiting_bytes += own.nbytes
            self._bytes[number] = self._bytes.get(number, 0) + own.nbytes
        if self._waiting_bytes > _WAITING_BYTES:
            self._write()

    def _write(self) -> None:
        for number, batches in self._waiting.items():
            self._pieces.setdefault(number, []).append(len(self._spool))
            self._spool.append(joined(batches, self._dim))
        self._waiting, self._waiting_bytes = {}, 0

    @property
    def bytes(self) -> Mapping[int, int]:
        """Bytes of the rows of each shard, by the shards' numbers."""
        return self._bytes

    def of(self, number: int) -> Batch:
        """All rows of a shard, in the order of their ids."""
        pieces = [self._spool[piece] for piece in self._pieces.get(number, ())]
        rows = joined([*pieces, *self._waiting.get(number, ())], self._dim)
        return picked(rows, np.arange(len(rows.ids)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()
        self._waiting = {}


def _failed(error: OSError) -> StorageError:
    folder = tempfile.tempdir  # None where no folder takes files: `gettempdir` would fail, too
    where = "" if folder is None else f" in {folder}"
    return StorageError(
        f"a temporary file{where} failed: {error.strerror}; set TMPDIR to a folder that has room",
        details={"folder": folder},
    )
