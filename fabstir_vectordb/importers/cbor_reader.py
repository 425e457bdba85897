"""A reader of CBOR (RFC 8949) for files of other programs: one item at a time, arrays of numbers as numpy arrays.

The strict reader of `s5.cbor` takes a whole value and refuses what our own formats never hold. Files of the earlier
system have arrays as keys of maps, undefined values, lengths that are longer than needed, and rows by the hundred
megabytes. Here every count is checked against the bytes that are left, so that nothing is reserved on a file's word.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.errors import IntegrityError
from fabstir_vectordb.importers.base import VALUE_DEPTH_MAX, check_dim

__all__ = ["CborReader"]

UINT: Final = 0
NEGATIVE: Final = 1
BYTES: Final = 2
TEXT: Final = 3
ARRAY: Final = 4
MAP: Final = 5
SIMPLE: Final = 7

#: Most bytes of one value that becomes Python objects, which take up to a hundred times as much.
_VALUE_BYTES_MAX: Final = 1 << 20
_LENGTHS: Final = {24: 1, 25: 2, 26: 4, 27: 8}
_SIMPLE: Final[dict[int, Any]] = {20: False, 21: True, 22: None, 23: None}
#: An array of 32 integers below 256 in their shortest form: an id.
_ID: Final = re.compile(rb"\x98\x20((?:[\x00-\x17]|\x18[\x18-\xff]){32})", re.DOTALL)
_LONG_BYTE: Final = re.compile(rb"\x18(.)", re.DOTALL)
_FLOAT: Final = re.compile(rb"\xf9..|\xfa.{4}|\xfb.{8}", re.DOTALL)
_FLOATS: Final[dict[int, np.dtype[Any]]] = {0xF9: np.dtype(">f2"), 0xFA: np.dtype(">f4"), 0xFB: np.dtype(">f8")}
_FORMS: Final = {0xF9: struct.Struct(">e"), 0xFA: struct.Struct(">f"), 0xFB: struct.Struct(">d")}


@lru_cache(maxsize=16)
def _run_of_floats(n: int) -> re.Pattern[bytes]:
    return re.compile(rb"(?:\xf9..|\xfa.{4}|\xfb.{8}){%d}" % n, re.DOTALL)


def _floats_of(raw: bytes, n: int) -> npt.NDArray[np.float32]:
    """The numbers of a run of floats."""
    first = _FLOATS[raw[0]]
    if len(raw) == n * (1 + first.itemsize):
        table = np.frombuffer(raw, np.uint8).reshape(n, 1 + first.itemsize)
        if (table[:, 0] == raw[0]).all():
            return np.asarray(np.ascontiguousarray(table[:, 1:]).view(first).reshape(n), dtype=np.float32)
    items = _FLOAT.findall(raw)
    sizes = np.fromiter(map(len, items), np.uint8, n)
    numbers = np.empty(n, np.float32)
    for type in _FLOATS.values():
        size = 1 + type.itemsize
        joined = b"".join([item[1:] for item in items if len(item) == size])
        numbers[sizes == size] = np.frombuffer(joined, type)
    return numbers


class CborReader:
    """Reads items one after the other.

    Args:
        raw: the bytes.
        what: their name in errors.
        at: where to begin.
    """

    def __init__(self, raw: bytes | mmap.mmap, what: str, at: int = 0) -> None:
        self._raw, self._what, self._size = raw, what, len(raw)
        self.at = at

    def fail(self, reason: str) -> IntegrityError:
        """The error for bytes that break the format."""
        return IntegrityError(f"{self._what} is damaged at byte {self.at}: {reason}", details={"what": self._what})

    def peek(self) -> int:
        """The major type of the next item."""
        if self.at >= self._size:
            raise self.fail("it ends too early")
        return self._raw[self.at] >> 5

    def end(self) -> None:
        """Checks that nothing follows."""
        if self.at != self._size:
            raise self.fail(f"{self._size - self.at} bytes follow its end")

    def _head(self) -> tuple[int, int]:
        if self.at >= self._size:
            raise self.fail("it ends too early")
        first = self._raw[self.at]
        major, info = first >> 5, first & 31
        if info < 24:
            self.at += 1
            return major, info
        length = _LENGTHS.get(info)
        if length is None:
            raise self.fail("an item of indefinite or reserved length")
        end = self.at + 1 + length
        if end > self._size:
            raise self.fail("it ends too early")
        argument = int.from_bytes(self._raw[self.at + 1 : end], "big")
        self.at = end
        return major, argument

    def _count(self, wanted: int, least: int) -> int:
        major, count = self._head()
        if major != wanted:
            raise self.fail(f"{'a map' if wanted == MAP else 'an array'} was expected")
        if count > (self._size - self.at) // least:
            raise self.fail(f"it says that {count} items follow, and there are {self._size - self.at} bytes")
        return count

    def array(self) -> Iterator[int]:
        """Enters an array: yields the number of each item, which the caller reads or skips."""
        yield from range(self._count(ARRAY, 1))

    def text_keys(self) -> Iterator[str]:
        """Enters a map with text keys: yields each key, whose value the caller reads or skips."""
        for _ in range(self._count(MAP, 2)):
            yield self.text()

    def id_keys(self) -> Iterator[bytes]:
        """Enters a map whose keys are ids: yields each id, whose value the caller reads or skips."""
        for _ in range(self._count(MAP, 2)):
            yield self.id()

    def text(self) -> str:
        """A text."""
        major, size = self._head()
        if major != TEXT:
            raise self.fail("a text was expected")
        return self._text(size)

    def _text(self, size: int) -> str:
        if size > self._size - self.at:
            raise self.fail("a text is longer than the file")
        raw = self._raw[self.at : self.at + size]
        self.at += size
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.fail("a text is no UTF-8") from None

    def id(self) -> bytes:
        """An id: an array of 32 integers below 256."""
        found = _ID.match(self._raw, self.at)
        if found is not None:
            self.at = found.end()
            return _LONG_BYTE.sub(rb"\1", found[1])
        if self._count(ARRAY, 1) != 32:
            raise self.fail("an id has 32 bytes")
        values = []
        for _ in range(32):
            major, value = self._head()
            if major != UINT or value > 255:
                raise self.fail("an id has 32 bytes")
            values.append(value)
        return bytes(values)

    def floats(self) -> npt.NDArray[np.float32]:
        """A vector: an array of numbers of any width."""
        n = check_dim(self._count(ARRAY, 1), self._what)
        if self.at >= self._size:
            raise self.fail("it ends too early")
        # Almost every vector is a run of floats, of one width or of several: numpy converts them by width.
        found = _run_of_floats(n).match(self._raw, self.at)
        with np.errstate(over="ignore"):  # infinities are left out as rows, not refused as bytes
            if found is None:
                return np.array([self._number() for _ in range(n)], dtype=np.float64).astype(np.float32)
            self.at = found.end()
            return _floats_of(found[0], n)

    def _number(self) -> float:
        if self.at < self._size and (form := _FORMS.get(self._raw[self.at])) is not None:
            end = self.at + 1 + form.size
            if end > self._size:
                raise self.fail("it ends too early")
            (value,) = form.unpack(self._raw[self.at + 1 : end])
            self.at = end
            return float(value)
        major, argument = self._head()
        if major == UINT:
            return float(argument)
        if major == NEGATIVE:
            return float(-1 - argument)
        raise self.fail("a number was expected")

    def skip(self) -> None:
        """Passes over one item."""
        left = 1
        while left:
            found = _ID.match(self._raw, self.at)
            if found is not None:
                self.at = found.end()
                left -= 1
                continue
            major, argument = self._head()
            left -= 1
            if major in (BYTES, TEXT):
                if argument > self._size - self.at:
                    raise self.fail("a text is longer than the file")
                self.at += argument
            elif major in (ARRAY, MAP):
                items = argument * (2 if major == MAP else 1)
                if items > self._size - self.at:
                    raise self.fail(f"it says that {items} items follow, and there are {self._size - self.at} bytes")
                left += items
            elif major == 6:
                raise self.fail("a tag, which this format does not use")

    def value(self, bytes_max: int = _VALUE_BYTES_MAX) -> Any:
        """One item as Python objects: undefined becomes None, a map a dict with text keys."""
        start = self.at
        self.skip()
        if self.at - start > bytes_max:
            raise self.fail(f"a value of more than {bytes_max} bytes")
        self.at = start
        return self._value(VALUE_DEPTH_MAX)

    def _value(self, depth: int) -> Any:
        if depth == 0:
            raise self.fail(f"values are nested more than {VALUE_DEPTH_MAX} levels deep")
        if self.at < self._size and self._raw[self.at] in _FORMS:
            return self._number()
        major, argument = self._head()
        if major == UINT:
            return argument
        if major == NEGATIVE:
            return -1 - argument
        if major == TEXT:
            return self._text(argument)
        if major == BYTES:
            raw = bytes(self._raw[self.at : self.at + argument])
            self.at += argument
            return raw
        if major == ARRAY:
            return [self._value(depth - 1) for _ in range(argument)]
        if major == MAP:
            found = {}
            for _ in range(argument):
                if self.peek() != TEXT:
                    raise self.fail("a key that is no text")
                key = self._value(depth - 1)
                found[key] = self._value(depth - 1)
            return found
        if major == SIMPLE and argument in _SIMPLE:
            return _SIMPLE[argument]
        raise self.fail("a value that this format does not use")
