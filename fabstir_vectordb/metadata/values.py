"""Metadata values: their types, their plain Python form, and their CBOR bytes.

A value is JSON-shaped (None, bool, int, float, str, lists and str-keyed dicts of values), or a date, an aware datetime
or a UUID. Subclasses and numpy scalars are stored as the plain type; docs/format.md has the encoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, Final
from uuid import UUID

import cbor2
import numpy as np

from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.s5.cbor import DEPTH_MAX, decode as decode_strict

__all__ = [
    "METADATA_BYTES_MAX",
    "METADATA_DEPTH_MAX",
    "Key",
    "Scalar",
    "ScalarError",
    "check_stored",
    "decode_metadata",
    "encode_metadata",
    "key_of",
    "list_key",
    "plain_scalar",
    "shown",
    "step",
]

#: Most CBOR bytes of one row's metadata.
METADATA_BYTES_MAX: Final = 1 << 20
#: Most levels of nested lists and dicts in one row's metadata. A date, datetime or UUID counts as one level. The reader
#: of stored bytes has the same limit.
METADATA_DEPTH_MAX: Final = DEPTH_MAX

Scalar = None | bool | int | float | str | date | datetime | UUID
#: A scalar other than a number, in the form that columns compare: a datetime is in UTC.
Key = None | bool | str | date | datetime | UUID

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_PATH_SHOWN_MAX: Final = 200
_VALUE_SHOWN_MAX: Final = 80
#: Bytes of a date and of a UUID: tag, head and content (docs/format.md).
_DATE_SIZE: Final = 3 + 1 + 10
_UUID_SIZE: Final = 2 + 1 + 16
_MINUTE: Final = timedelta(minutes=1)


def shown(value: object) -> str:
    """The `repr` of a value for an error text: one line of at most 80 characters, even if its `repr` raises."""
    try:
        # CPython refuses to convert an integer of more than 4,300 digits to text.
        text = f"an integer of {value.bit_length()} bits" if _is_huge(value) else repr(value)  # type: ignore[attr-defined]
    except Exception:
        return f"a {type(value).__name__}"
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= _VALUE_SHOWN_MAX else text[: _VALUE_SHOWN_MAX - 1] + "…"


def _is_huge(value: object) -> bool:
    return isinstance(value, int) and value.bit_length() > 1_024


def step(key: str) -> str:
    """A key as one step of a path, quoted if it needs quotes."""
    if key and "." not in key and key[0] not in '"$':
        return key
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


# ---- One value to its plain form ---------------------------------------------------------------------------


class ScalarError(Exception):
    """A value is not a scalar of metadata; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def plain_scalar(value: Any) -> Scalar:
    """A value converted to exactly None, bool, int, float, str, date, datetime or UUID.

    An instance of a subclass becomes an instance of the base type, a numpy scalar becomes a Python number or string,
    and a datetime's zone becomes its offset from UTC.

    Raises:
        ScalarError: the value is of another type, or metadata cannot hold it. The size of integers is not checked here.
    """
    kind = type(value)
    if value is None or kind is bool or kind is int:
        return value  # type: ignore[no-any-return]
    if kind is datetime:
        return _plain_datetime(value)
    if isinstance(value, str):
        text = str.__str__(value)
        if not text.isascii():
            _check_text(text)
        return text
    if isinstance(value, float):
        return _finite(float.__float__(value))
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, datetime):
        return _plain_datetime(value)
    if isinstance(value, date):
        return value if kind is date else _made(value, lambda: date(value.year, value.month, value.day))
    if isinstance(value, UUID):
        return value if kind is UUID else _made(value, lambda: UUID(int=value.int))
    if isinstance(value, np.generic):
        return _plain_numpy(value)
    raise ScalarError(f"a value of type {kind.__name__}{_hint(value)}")


def key_of(value: Any) -> Any:
    """The form of a plain scalar in a column: a datetime in UTC, any other value unchanged."""
    return value.astimezone(UTC) if type(value) is datetime else value


def list_key(items: Sequence[Any]) -> bytes | None:
    """Bytes that are equal for equal lists of scalars: numbers by exact value, datetimes as moments.

    Args:
        items: plain scalars; for a list that holds lists or dicts, the result is None.
    """
    if any(isinstance(item, (list, dict)) for item in items):
        return None
    exact = [int(item) if type(item) is float and item.is_integer() else key_of(item) for item in items]
    raw: bytes = cbor2.dumps(exact)
    return raw


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ScalarError("a lone surrogate, which UTF-8 cannot encode") from None


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ScalarError(f"{number}, which JSON does not know")
    return number


def _plain_datetime(value: datetime) -> datetime:
    if type(value) is datetime and value.tzinfo is UTC and not value.fold:
        return value

    def plain() -> datetime:
        offset = value.utcoffset()
        if offset is None:
            raise ScalarError(
                "a naive datetime, without a time zone: set one, as in value.replace(tzinfo=timezone.utc)"
            )
        if offset % _MINUTE:
            raise ScalarError(f"a datetime whose offset has seconds ({offset}): use value.astimezone(timezone.utc)")
        if getattr(value, "nanosecond", 0):
            raise ScalarError("a datetime with nanoseconds: round it to microseconds, as with value.floor('us')")
        zone = timezone(offset) if offset else UTC
        fields = (value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond)
        return datetime(*fields, tzinfo=zone)

    moment: datetime = _made(value, plain)
    if moment.year in (1, 9999):
        try:
            moment.astimezone(UTC)
        except OverflowError:
            raise ScalarError("a datetime that lies outside the years 1 to 9999 in UTC") from None
    return moment


def _made(value: Any, make: Callable[[], Any]) -> Any:
    """The result of `make`; foreign classes (pandas.NaT, a broken tzinfo) may raise any exception."""
    try:
        return make()
    except ScalarError:
        raise
    except Exception:
        raise ScalarError(f"a {type(value).__name__} whose value cannot be read") from None


def _plain_numpy(value: np.generic) -> Scalar:
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer) and not isinstance(value, np.timedelta64):
        return int(value)
    if isinstance(value, np.floating):
        number = _finite(float(value))
        if number != value:
            raise ScalarError(f"a {type(value).__name__} that float64 cannot represent exactly")
        return number
    raise ScalarError(f"a value of type {type(value).__name__}{_hint(value)}")


def _hint(value: Any) -> str:
    if isinstance(value, np.datetime64):
        return ", which has no time zone: use an aware datetime or a date"
    if isinstance(value, np.ndarray):
        return ": use its tolist()"
    return ""


# ---- A value to bytes --------------------------------------------------------------------------------------


class _RefusedError(Exception):
    """A value is refused, with the reason. Its path is built while the error propagates: valid values need no path."""

    def __init__(self, reason: str, **details: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.details = details
        self.path: list[str | int] = []

    def where(self) -> str:
        steps = [f"[{at}]" if isinstance(at, int) else f".{step(at)}" for at in reversed(self.path)]
        # A key may hold a lone surrogate, which logs cannot encode.
        path = "".join(steps).removeprefix(".").encode(errors="backslashreplace").decode()
        path = path if path.isprintable() else ascii(path)[1:-1]
        return path if len(path) <= _PATH_SHOWN_MAX else path[:_PATH_SHOWN_MAX] + "…"


class _TooLargeError(Exception):
    """The value takes more bytes than allowed."""


class _Sizer:
    """Counts the bytes of a value's CBOR (RFC 8949, as cbor2 writes it: shortest integers and lengths, floats in 9).

    Attributes:
        is_plain: whether every type met so far is exactly one that cbor2 writes as it stands.
    """

    def __init__(self) -> None:
        self.is_plain = True

    def size(self, value: Any, left: int, depth: int) -> int:
        """The size of a value in bytes; raises as soon as it exceeds `left`, or nesting exceeds `depth`."""
        if value is None or value is True or value is False:
            size = 1
        elif type(value) is str:
            size = len(value)
            if size <= left and not value.isascii():
                try:
                    size = len(value.encode())
                except UnicodeEncodeError:
                    raise _RefusedError("holds a lone surrogate, which UTF-8 cannot encode") from None
            size += _head(size)
        elif type(value) is int:
            if not _INT_MIN <= value <= _INT_MAX:
                raise _RefusedError("holds an integer that does not fit in 64 bits")
            size = _head(value if value >= 0 else -1 - value)
        elif type(value) is float:
            if not math.isfinite(value):
                raise _RefusedError(f"holds {value}, which JSON does not know")
            size = 9
        elif isinstance(value, dict):
            size = self._dict_size(value, left, depth)
        elif isinstance(value, (list, tuple)):
            size = self._list_size(value, left, depth)
        else:
            size = self._other_size(value, left, depth)
        if size > left:
            raise _TooLargeError
        return size

    def _other_size(self, value: Any, left: int, depth: int) -> int:
        self.is_plain = False
        try:
            plain = plain_scalar(value)
        except ScalarError as error:
            raise _RefusedError(f"holds {error.reason}") from None
        if isinstance(plain, (date, UUID)):
            _check_depth(depth)
            if isinstance(plain, UUID):
                return _UUID_SIZE
            return len(cbor2.dumps(plain)) if isinstance(plain, datetime) else _DATE_SIZE
        return self.size(plain, left, depth)

    def _dict_size(self, value: dict[Any, Any], left: int, depth: int) -> int:
        _check_depth(depth)
        if type(value) is not dict:
            self.is_plain = False
        size = _head(len(value))
        for key, item in value.items():
            if not isinstance(key, str):
                raise _RefusedError(f"holds a key of type {type(key).__name__}")
            try:
                size += self.size(key, left - size, depth)
                size += self.size(item, left - size, depth - 1)
            except _RefusedError as refused:
                refused.path.append(str.__str__(key))
                raise
        return size

    def _list_size(self, value: Sequence[Any], left: int, depth: int) -> int:
        _check_depth(depth)
        if type(value) not in (list, tuple):
            self.is_plain = False
        size = _head(len(value))
        position = 0
        try:
            for item in value:
                size += self.size(item, left - size, depth - 1)
                position += 1
        except _RefusedError as refused:
            refused.path.append(position)
            raise
        return size


def encode_metadata(value: Any) -> bytes | None:
    """The CBOR bytes of a metadata value; None stands for no metadata.

    Args:
        value: None, bool, int within 64 bits, finite float, str, date, aware datetime, UUID, numpy scalar, or lists and
            str-keyed dicts of these.

    Returns:
        The bytes, or None for None.

    Raises:
        InvalidInputError: a value has another type (details has ``path``), or the bytes would be more than
            METADATA_BYTES_MAX. The size is counted before any value is encoded.
    """
    if value is None:
        return None
    sizer = _Sizer()
    try:
        sizer.size(value, METADATA_BYTES_MAX, METADATA_DEPTH_MAX)
        return cbor2.dumps(value if sizer.is_plain else _plain(value))
    except _TooLargeError:
        raise InvalidInputError(
            f"metadata takes more than {METADATA_BYTES_MAX} bytes", details={"limit": METADATA_BYTES_MAX}
        ) from None
    except _RefusedError as refused:
        path = refused.where()
        raise InvalidInputError(
            f"metadata must be JSON-shaped: {path or 'the top level'} {refused.reason}",
            details={**refused.details, "path": path},
        ) from None


def _plain(value: Any) -> Any:
    """A value that `_Sizer` accepted, converted to the plain types."""
    if isinstance(value, dict):
        plain = {str.__str__(key): _plain(item) for key, item in value.items()}
        if len(plain) != len(value):
            # Keys of str subclasses may be unequal and have the same text. Readers would refuse the stored dict.
            raise _RefusedError("holds a dict in which two keys have the same text")
        return plain
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return plain_scalar(value)


def _check_depth(depth: int) -> None:
    if depth == 0:
        raise _RefusedError(f"is nested more than {METADATA_DEPTH_MAX} levels deep", limit=METADATA_DEPTH_MAX)


def _head(argument: int) -> int:
    """Size in bytes of a CBOR item's head (RFC 8949, section 3)."""
    if argument < 24:
        return 1
    if argument < 1 << 8:
        return 2
    if argument < 1 << 16:
        return 3
    return 5 if argument < 1 << 32 else 9


# ---- Bytes to a value --------------------------------------------------------------------------------------

#: Decodes stored metadata bytes, which were checked when they were stored or loaded. cbor2's function itself, as a
#: wrapper would add a tenth to the time.
decode_metadata: Final[Callable[[bytes | bytearray], Any]] = cbor2.loads


def check_stored(raw: bytes | bytearray | memoryview, what: str) -> None:
    """Checks untrusted bytes of one row's metadata.

    Args:
        raw: the bytes of one row.
        what: name of the bytes in errors.

    Raises:
        IntegrityError: the bytes are more than METADATA_BYTES_MAX, or not the strict CBOR of `encode_metadata`.
    """
    decode_strict(raw, max_bytes=METADATA_BYTES_MAX, what=what, scalar_tags=True)
