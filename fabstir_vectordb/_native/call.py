"""What every call of the native library needs: pointers, checks of arrays, and the one `call` that raises.

A status becomes an error of this package, with the C file and line in ``details``. An array of the wrong type or shape
raises before C sees it: C would read memory that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.library import ffi, lib
from fabstir_vectordb.errors import (
    ConflictError,
    IndexStateError,
    IntegrityError,
    InternalError,
    InvalidInputError,
    NotFoundError,
    VectorDBError,
)

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]

# Room for an id, in bytes: most are shorter, and a call whose ids are longer is repeated with the room it needs.
ID_ROOM_PER_HIT = 64
_UINT64_MAX = 2**64 - 1


class NativeBusy(Exception):
    """A writer holds the index, and the call asked not to wait."""


class NativeCancelled(Exception):
    """The call was cancelled through its control word; nothing changed."""


class NativeTooFew(Exception):
    """There are too few rows to train lists on; nothing changed."""


class NativeUntrained(Exception):
    """There are no lists that rows could move to; nothing changed."""


_ERRORS: dict[int, type[VectorDBError]] = {
    lib.FVDB_ERR_ARGUMENT: InvalidInputError,
    lib.FVDB_ERR_NOT_FINITE: InvalidInputError,
    lib.FVDB_ERR_ZERO_VECTOR: InvalidInputError,
    lib.FVDB_ERR_ID: InvalidInputError,
    lib.FVDB_ERR_DUPLICATE_ID: ConflictError,
    lib.FVDB_ERR_NOT_FOUND: NotFoundError,
    lib.FVDB_ERR_MEMORY: IndexStateError,
    lib.FVDB_ERR_FORMAT: IntegrityError,
    lib.FVDB_ERR_TOO_MANY: IndexStateError,
    lib.FVDB_ERR_THREAD: IndexStateError,
}


class Control:
    """Progress of a native call, and the way to cancel it from another thread."""

    __slots__ = ("_word",)

    def __init__(self) -> None:
        self._word = ffi.new("fvdb_control *")

    @property
    def pointer(self) -> Any:
        """The C word."""
        return self._word

    @property
    def done(self) -> int:
        """Rows done so far."""
        return int(self._word.done)

    @property
    def total(self) -> int:
        """Rows in all, 0 while unknown."""
        return int(self._word.total)

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return bool(self._word.cancel)

    def cancel(self) -> None:
        """Asks the call to stop; it raises NativeCancelled soon after and leaves nothing behind."""
        self._word.cancel = 1


def call(function: Callable[..., int], *arguments: Any) -> None:
    """Calls a function of the library that takes a diag last.

    Raises:
        VectorDBError: the error of this package for the status.
        NativeBusy, NativeCancelled, NativeTooFew, NativeUntrained: what the caller asked for, or handles.
    """
    diag = ffi.new("fvdb_diag *")
    status = function(*arguments, diag)
    if status:
        raise_status(status, diag)


def raise_status(status: int, diag: Any) -> NoReturn:
    """Raises the error for a status."""
    if status == lib.FVDB_ERR_CANCELLED:
        raise NativeCancelled
    if status == lib.FVDB_ERR_BUSY:
        raise NativeBusy
    if status == lib.FVDB_ERR_TOO_FEW:
        raise NativeTooFew
    if status == lib.FVDB_ERR_UNTRAINED:
        raise NativeUntrained
    message = text_of(diag.message) or text_of(lib.fvdb_status_text(status))
    expected, actual = int(diag.expected), int(diag.actual)
    details: dict[str, Any] = {"row": int(diag.row)}
    if expected:
        details["expected"] = expected
    if (expected or actual) and actual != _UINT64_MAX and status != lib.FVDB_ERR_DUPLICATE_ID:
        details["actual"] = actual
    if status == lib.FVDB_ERR_DUPLICATE_ID:
        details["first_row"] = None if actual == _UINT64_MAX else actual
    # For those who debug the core, under one key.
    details["native"] = {
        "status": int(status),
        "file": text_of(diag.file).replace("\\", "/").rpartition("native/src/")[2],
        "line": int(diag.line),
    }
    raise _ERRORS.get(status, InternalError)(message, details=details)


def word_of(control: Control | None) -> Any:
    """The control word as C takes it."""
    return control.pointer if control else ffi.NULL


def text_of(pointer: Any) -> str:
    """Static text of the library."""
    return str(ffi.string(pointer).decode()) if pointer != ffi.NULL else ""


def pointer(ctype: str, array: npt.NDArray[Any]) -> Any:
    """The address of an array's first item."""
    # numpy's address of nothing means nothing to C; every call takes NULL for zero entries, but for `allow`.
    return ffi.from_buffer(ctype, array) if array.size else ffi.NULL


def expect(name: str, array: npt.NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Checks an array that C will read or write."""
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise InternalError(
            f"{name} must be C-contiguous {np.dtype(dtype)} of shape {shape}, got {array.dtype} of shape {array.shape}",
            details={"argument": name, "expected_shape": shape, "actual_shape": array.shape},
        )


def expect_ids(id_bytes: bytes, id_offsets: UInt64Array) -> int:
    """Checks packed ids, and counts them."""
    expect("id_offsets", id_offsets, np.uint64, (max(len(id_offsets), 1),))
    if id_offsets[0] != 0 or int(id_offsets[-1]) != len(id_bytes) or (id_offsets[1:] < id_offsets[:-1]).any():
        raise InternalError("id_offsets must rise from 0 to the size of id_bytes")
    return len(id_offsets) - 1


def bitmap_of(allow: UInt64Array) -> Any:
    """A bitmap as C takes it."""
    expect("allow", allow, np.uint64, (len(allow),))
    # NULL would allow every slot: a bitmap of no words, which allows none, needs an address too.
    return pointer("uint64_t[]", allow) if len(allow) else ffi.new("uint64_t[1]")


def pack_ids(ids: Sequence[str]) -> tuple[bytes, UInt64Array]:
    """The ids' UTF-8 bytes one after the other, with their n + 1 offsets.

    Args:
        ids: n strings; that they are strings is the caller's promise.

    Returns:
        The bytes, and n + 1 uint64 offsets into them.

    Raises:
        InvalidInputError: a string holds a lone surrogate; details has its row.
    """
    offsets = np.zeros(len(ids) + 1, dtype=np.uint64)
    joined = "".join(ids)
    if joined.isascii():
        lengths = np.fromiter(map(len, ids), dtype=np.uint64, count=len(ids))
        np.cumsum(lengths, out=offsets[1:])
        return joined.encode("ascii"), offsets
    try:
        encoded = [text.encode() for text in ids]
    except UnicodeEncodeError:
        row = next(row for row, text in enumerate(ids) if not _encodes(text))
        raise InvalidInputError(
            f"the id of row {row} holds a lone surrogate, which UTF-8 cannot encode", details={"row": row}
        ) from None
    np.cumsum(np.fromiter(map(len, encoded), dtype=np.uint64, count=len(ids)), out=offsets[1:])
    return b"".join(encoded), offsets


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unpack_ids(text: bytes, offsets: UInt64Array) -> list[str]:
    """The ids between the offsets."""
    bounds = offsets.tolist()
    return [text[start:end].decode() for start, end in pairwise(bounds)]
