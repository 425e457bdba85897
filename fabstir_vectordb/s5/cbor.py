"""Strict CBOR for bytes that were authenticated but are still not trusted (RFC 8949).

cbor2 decodes; this module refuses everything that our formats never use: tags (except those of datetimes, dates and
UUIDs, if the caller allows them), indefinite lengths, duplicate keys, undefined and simple values, deep nesting and
trailing bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any, Final
from uuid import UUID

import cbor2

from fabstir_vectordb.errors import IntegrityError, InvalidInputError

__all__ = ["DEPTH_MAX", "decode", "encode"]

DEPTH_MAX: Final = 64

# Initial bytes of simple values other than false, true and null. Text and numbers may contain these bytes too, so after
# a match the decoded value is searched. Most inputs have no match and skip that search.
_MAYBE_SIMPLE: Final = re.compile(rb"[\xe0-\xf3\xf7\xf8]")


class _Tags(Mapping[int, Any]):
    """Replaces cbor2's table of tag decoders, which cbor2 asks first for every tag.

    Attributes:
        readers: for each allowed tag, the function that makes its value.
        found: whether a value with a tag was read.
    """

    def __init__(self, readers: Mapping[int, Callable[[Any], Any]]) -> None:
        self.readers = readers
        self.found = False

    def __getitem__(self, tag: int) -> Callable[[Any, bool], Any]:
        reader = self.readers.get(tag)
        if reader is None:
            raise ValueError(f"tag {tag} is not allowed")
        self.found = True

        def read(content: Any, is_key: bool) -> Any:
            if is_key:
                raise ValueError(f"a key of a map has tag {tag}")
            try:
                return reader(content)
            except (ValueError, TypeError, OverflowError):
                raise ValueError(f"the content of tag {tag} is not allowed") from None

        return read

    def __iter__(self) -> Iterator[int]:
        return iter(self.readers)

    def __len__(self) -> int:
        return 1  # cbor2 ignores an empty table


def _moment(content: Any) -> datetime:
    """The datetime of an RFC 3339 text. `decode` writes the value again and compares, so other spellings fail."""
    if not isinstance(content, str) or not _RFC_3339.fullmatch(content):
        raise ValueError
    moment = datetime.fromisoformat(content)
    moment.astimezone(UTC)  # raises for a moment outside the years 1 to 9999, which cannot be compared
    return moment


def _day(content: Any) -> date:
    if not isinstance(content, str) or not _RFC_8943.fullmatch(content):
        raise ValueError
    return date.fromisoformat(content)


def _uuid(content: Any) -> UUID:
    if not isinstance(content, bytes):
        raise ValueError
    return UUID(bytes=content)


_SCALAR_TAGS: Final[Mapping[int, Callable[[Any], Any]]] = {0: _moment, 1004: _day, 37: _uuid}
_RFC_3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{6})?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_RFC_8943: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def decode(raw: bytes | bytearray | memoryview, *, max_bytes: int, what: str, scalar_tags: bool = False) -> Any:
    """Decode one CBOR value that fills ``raw`` exactly.

    Args:
        raw: the encoded value.
        max_bytes: limit for the size of ``raw``, which also limits the memory of the value.
        what: name of the value in errors, for example ``"manifest"``.
        scalar_tags: also accept datetimes (tag 0), dates (tag 1004) and UUIDs (tag 37) as values, not as keys. Bytes
            with such a tag must be exactly those that `encode` writes for the value.

    Returns:
        None, bool, int, float, str, bytes, list or dict; with `scalar_tags` also aware datetime, date or UUID.

    Raises:
        IntegrityError: the bytes break one of the rules above.
    """
    size = memoryview(raw).nbytes
    if size > max_bytes:
        raise IntegrityError(
            f"The {what} has {size} bytes of CBOR, more than the {max_bytes} allowed",
            details={"what": what, "expected": max_bytes, "actual": size},
        )
    stream, tags = io.BytesIO(raw), _Tags(_SCALAR_TAGS if scalar_tags else {})
    try:
        value = cbor2.CBORDecoder(
            stream,
            semantic_decoders=tags,
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
    if tags.found and cbor2.dumps(value) != bytes(raw):
        raise IntegrityError(
            f"The {what} is not valid CBOR: a value with a tag is not in its canonical form", details={"what": what}
        )
    return value


def encode(value: Any) -> bytes:
    """Encode in cbor2's default form: definite lengths, shortest integers, maps in insertion order.

    Args:
        value: None, bool, int, float, str, bytes, list or dict.

    Returns:
        The CBOR bytes.

    Raises:
        InvalidInputError: a value has a type that CBOR cannot encode, or contains itself.
    """
    try:
        return cbor2.dumps(value)
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidInputError(f"The value cannot be encoded as CBOR: {error}") from None


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
