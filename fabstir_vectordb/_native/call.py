"""Helpers of every native call: pointers, checks of arrays, and `call`, which turns a status into an exception.

A status becomes an error of this package, with the C file and line in ``details``. An array of the wrong type or shape
raises before C sees it, as C would read past its end.
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

# Bytes reserved for each id. Most ids are shorter; a call with longer ids is repeated with a larger buffer.
ID_ROOM_PER_HIT = 64
_UINT64_MAX = 2**64 - 1


class NativeBusy(Exception):
    """A writer holds the lock of the index, and the call was told not to wait."""


class NativeCancelled(Exception):
    """The call was cancelled through its control word; nothing changed."""


class NativeTooFew(Exception):
    """There are too few rows to train lists on; nothing changed."""


class NativeUntrained(Exception):
    """There are no lists to which rows could move; nothing changed."""


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
        """Pointer to the C struct."""
        return self._word

    @property
    def done(self) -> int:
        """Rows done so far."""
        return int(self._word.done)

    @property
    def total(self) -> int:
        """Number of all rows, 0 while unknown."""
        return int(self._word.total)

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return bool(self._word.cancel)

    def cancel(self) -> None:
        """Asks the call to stop. It raises NativeCancelled soon after, and the index is unchanged."""
        self._word.cancel = 1


def call(function: Callable[..., int], *arguments: Any) -> None:
    """Calls a function of the library whose last argument is a diag.

    Raises:
        VectorDBError: the error of this package for the status.
        NativeBusy, NativeCancelled, NativeTooFew, NativeUntrained: statuses that the caller handles.
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
    # Facts for debugging the native core, under one key.
    details["native"] = {
        "status": int(status),
        "file": text_of(diag.file).replace("\\", "/").rpartition("native/src/")[2],
        "line": int(diag.line),
    }
    raise _ERRORS.get(status, InternalError)(message, details=details)


def word_of(control: Control | None) -> Any:
    """The control argument of a C call: a pointer, or NULL without a control."""
    return control.pointer if control else ffi.NULL


def text_of(pointer: Any) -> str:
    """A static text of the library; empty for NULL."""
    return str(ffi.string(pointer).decode()) if pointer != ffi.NULL else ""


def pointer(ctype: str, array: npt.NDArray[Any]) -> Any:
    """The address of an array's first item."""
    # The address of an empty numpy array is not valid in C. Every call accepts NULL for zero entries, except `allow`.
    return ffi.from_buffer(ctype, array) if array.size else ffi.NULL


def expect(name: str, array: npt.NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Checks the type, shape and layout of an array that C will read or write."""
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise InternalError(
            f"{name} must be C-contiguous {np.dtype(dtype)} of shape {shape}, got {array.dtype} of shape {array.shape}",
            details={"argument": name, "expected_shape": shape, "actual_shape": array.shape},
        )


def expect_ids(id_bytes: bytes, id_offsets: UInt64Array) -> int:
    """Checks packed ids; returns their number."""
    expect("id_offsets", id_offsets, np.uint64, (max(len(id_offsets), 1),))
    if id_offsets[0] != 0 or int(id_offsets[-1]) != len(id_bytes) or (id_offsets[1:] < id_offsets[:-1]).any():
        raise InternalError("id_offsets must rise from 0 to the size of id_bytes")
    return len(id_offsets) - 1


def bitmap_of(allow: UInt64Array) -> Any:
    """The bitmap argument of a C call."""
    expect("allow", allow, np.uint64, (len(allow),))
    # NULL allows every slot. An empty bitmap allows no slot, so it needs an address.
    return pointer("uint64_t[]", allow) if len(allow) else ffi.new("uint64_t[1]")


class Allowed:
    """Slots that searches may return, as C reads them.

    Attributes:
        c: pointer to the C struct.
        nbytes: bytes of the slots one by one.

    Args:
        allow: bitmap of slots (bit s % 64 of word s // 64).
        slots: the same slots, ascending; None where they are many.
    """

    __slots__ = ("_slots", "_words", "c", "nbytes")

    def __init__(self, allow: UInt64Array, slots: UInt32Array | None = None) -> None:
        self._words, self._slots, n = bitmap_of(allow), ffi.NULL, 0
        if slots is not None:
            n = len(slots)
            expect("slots", slots, np.uint32, (n,))
            self._slots = pointer("uint32_t[]", slots)
        # What the struct points to lives as long as the attributes.
        self.c = ffi.new("fvdb_allowed *", [self._words, len(allow), self._slots, n])
        self.nbytes = 4 * n


def pack_ids(ids: Sequence[str]) -> tuple[bytes, UInt64Array]:
    """Packs ids: their UTF-8 bytes one after the other, and n + 1 offsets.

    Args:
        ids: n strings; the caller has checked their type.

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
    """The strings of packed ids."""
    bounds, decoded = offsets.tolist(), text.decode()
    if len(decoded) == len(text):  # each byte is a character
        return [decoded[start:end] for start, end in pairwise(bounds)]
    return [text[start:end].decode() for start, end in pairwise(bounds)]
