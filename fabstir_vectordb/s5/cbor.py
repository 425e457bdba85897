"""Strict CBOR for bytes that were authenticated but are still not trusted (RFC 8949).

cbor2 does the work; this module takes away everything our formats never use: tags, indefinite lengths,
duplicate keys, undefined and simple values, deep nesting and trailing bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NoReturn

import cbor2

from fabstir_vectordb.errors import IntegrityError, InvalidInputError

__all__ = ["DEPTH_MAX", "decode", "encode"]

DEPTH_MAX: Final = 64

# Initial bytes of simple values other than false, true and null. Text and numbers may contain them too, so
# a match only means that the decoded value is looked through; most inputs have none and skip that walk.
_MAYBE_SIMPLE: Final = re.compile(rb"[\xe0-\xf3\xf7\xf8]")


class _RefuseTags(Mapping[int, Any]):
    """Stands in for cbor2's table of tag decoders: cbor2 asks it first, whatever the tag, and no tag is
    allowed."""

    def __getitem__(self, tag: int) -> NoReturn:
        raise ValueError(f"tag {tag} is not allowed")

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 1


_REFUSE_TAGS: Final = _RefuseTags()


def decode(raw: bytes | bytearray | memoryview, *, max_bytes: int, what: str) -> Any:
    """Decode one CBOR value that fills ``raw`` exactly.

    Args:
        raw: the encoded value.
        max_bytes: limit for the size of ``raw``; what a value takes in memory grows with it.
        what: names the value in errors, for example ``"manifest"``.

    Returns:
        None, bool, int, float, str, bytes, list or dict.

    Raises:
        IntegrityError: the bytes break one of the rules above.
    """
    size = memoryview(raw).nbytes
    if size > max_bytes:
        raise IntegrityError(
            f"The {what} has {size} bytes of CBOR, more than the {max_bytes} allowed",
            details={"what": what, "expected": max_bytes, "actual": size},
        )
    stream = io.BytesIO(raw)
    try:
        value = cbor2.CBORDecoder(
            stream,
            semantic_decoders=_REFUSE_TAGS,
            max_depth=DEPTH_MAX,
            allow_indefinite=False,
            allow_duplicate_keys=False,
        ).decode()
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, ValueError) else error
        raise IntegrityError(f"The {what} is not valid CBOR: {cause}", details={"what": what}) from None
    used = stream.tell()
    if used != size:
        raise IntegrityError(
            f"The {what} has {size - used} bytes after the end of its CBOR",
            details={"what": what, "expected": used, "actual": size},
        )
    if _MAYBE_SIMPLE.search(raw):
        _refuse_simple_values(value, what)
    return value


def encode(value: Any) -> bytes:
    """Encode in cbor2's default form: definite lengths, shortest integers, maps in insertion order.

    Args:
        value: None, bool, int, float, str, bytes, list or dict.

    Returns:
        The CBOR bytes.

    Raises:
        InvalidInputError: a value has a type CBOR cannot hold, or contains itself.
    """
    try:
        return cbor2.dumps(value)
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidInputError(f"Not encodable as CBOR: {error}") from None


def _refuse_simple_values(value: Any, what: str) -> None:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, (list, tuple)):
            pending.extend(item)
        elif isinstance(item, Mapping):
            pending.extend(item.keys())
            pending.extend(item.values())
        elif item is cbor2.undefined or isinstance(item, cbor2.CBORSimpleValue):
            raise IntegrityError(f"The {what} is not valid CBOR: simple values are not allowed", details={"what": what})
