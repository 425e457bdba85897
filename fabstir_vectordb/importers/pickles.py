"""An interpreter of the pickle opcodes that data needs. It imports nothing and calls nothing.

Objects of classes become `Inert` values with the class's name, its arguments and its state; a class that the caller
does not expect is refused, and so is every opcode beside those below. They suffice for what Python's protocols 2 to 5
write of data, and for serde-pickle, with which Chroma writes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import field
from datetime import date, datetime, timedelta, timezone
from typing import Any, Final
from uuid import UUID

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import IntegrityError

__all__ = ["Inert", "read_pickle"]

#: Most lists, dicts, sets and tuples: an empty set takes one byte of the pickle and 216 of memory.
_CONTAINERS_MAX: Final = 250_000
_LONG_BYTES_MAX: Final = 1_024
#: What may be a key of a dict or an item of a set, by its exact type. A tuple hashes all that is in it: nested deeply,
#: it ends the process, and one that holds itself often takes time without end. Longer integers can share one hash.
_KEY_TYPES: Final = frozenset({str, bytes, float, bool, type(None)})
_KEY_INTEGERS: Final = (-(2**63), 2**64)
#: Most values that a pickle remembers, and most that wait on the stack: each takes one byte of the pickle.
_MEMO_MAX: Final = 4_000_000
_STACK_MAX: Final = 20_000_000


@dataclass(slots=True, eq=False)
class Inert:
    """What a pickle says of an object; the object itself is never made.

    Attributes:
        name: module and name of its class.
        arguments: of its constructor.
        state: what the object would get.
    """

    name: str
    arguments: Any = ()
    state: Any = None

    def plain(self) -> Any:
        """The value, where the object is a UUID or a time.

        Raises:
            ValueError: it is of another class, or damaged.
        """
        try:
            if self.name == "uuid.UUID":
                return UUID(int=self.state["int"])
            if self.name == "datetime.timedelta":
                days, seconds, microseconds = self.arguments
                return timedelta(days=days, seconds=seconds, microseconds=microseconds)
            if self.name == "datetime.timezone":
                return timezone(self.arguments[0].plain())
            if self.name == "datetime.date":
                high, low, month, day = self.arguments[0]
                return date(high << 8 | low, month, day)
            if self.name == "datetime.datetime":
                high, low, month, day, hour, minute, second, *micro = self.arguments[0]
                zone = self.arguments[1].plain() if len(self.arguments) > 1 else None
                fraction = int.from_bytes(bytes(micro), "big")
                return datetime(high << 8 | low, month & 0x7F, day, hour, minute, second, fraction, zone)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
            raise ValueError(f"a damaged {self.name}") from None
        raise ValueError(f"an object of the class {self.name}")


@dataclass(slots=True, eq=False)
class _Class:
    name: str


_MARK: Final = object()


def read_pickle(raw: bytes, what: str, classes: Collection[str] = ()) -> Any:
    """The value of a pickle.

    Args:
        raw: the bytes.
        what: their name in errors.
        classes: the classes that may occur, as ``module.name``.

    Returns:
        None, bool, int, float, str, bytes, list, tuple, dict, set, or `Inert`. Values may contain themselves.

    Raises:
        IntegrityError: the pickle is damaged, or has an opcode or class that is not allowed.
    """
    try:
        return _Machine(raw, frozenset(classes)).run()
    except _RefusedError as error:
        raise IntegrityError(f"{what} is no pickle of data: {error}", details={"what": what}) from None
    except (IndexError, struct.error, UnicodeDecodeError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise IntegrityError(f"{what} is damaged: {error}", details={"what": what}) from None


class _RefusedError(Exception):
    """The pickle has something that is not allowed."""


@dataclass(slots=True)
class _Machine:
    raw: bytes
    classes: frozenset[str]
    at: int = 0
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    containers: int = 0

    def run(self) -> Any:
        while True:
            code = self.raw[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                value = self.pop()
                if isinstance(value, _Class):
                    raise _RefusedError("its value is a class")
                return value
            step = _STEPS.get(code)
            if step is None:
                raise _RefusedError(f"opcode {code:#04x}")
            step(self)
            if len(self.stack) > _STACK_MAX or len(self.memo) > _MEMO_MAX:
                raise _RefusedError("more values than data of its kind has")

    def take(self, size: int) -> bytes:
        if size < 0 or size > len(self.raw) - self.at:
            raise _RefusedError(f"{size} bytes were announced, and there are {len(self.raw) - self.at}")
        self.at += size
        return self.raw[self.at - size : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def made(self, value: Any) -> None:
        self.containers += 1
        if self.containers > _CONTAINERS_MAX:
            raise _RefusedError(f"more than {_CONTAINERS_MAX:,} containers")
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise _RefusedError("a mark in place of a value")
        return value

    def top(self, kind: type) -> Any:
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise _RefusedError(f"a {type(value).__name__} in place of a {kind.__name__}")
        return value

    def marked(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise _RefusedError("no mark")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def line(self) -> str:
        end = self.raw.index(b"\n", self.at)
        return self.take(end + 1 - self.at)[:-1].decode()

    def known(self, module: str, name: str) -> None:
        whole = f"{module}.{name}"
        if whole not in self.classes:
            raise _RefusedError(f"the class {whole[:120]!r}")
        self.push(_Class(whole))


def _long(machine: _Machine, size: int) -> None:
    if size > _LONG_BYTES_MAX:
        raise _RefusedError(f"an integer of {size} bytes")
    machine.push(int.from_bytes(machine.take(size), "little", signed=True))


def _tuple(machine: _Machine, size: int) -> None:
    items = [machine.pop() for _ in range(size)]
    machine.made(tuple(reversed(items)))


def _append(machine: _Machine, items: list[Any]) -> None:
    machine.top(list).extend(items)


def _hashed(value: Any) -> Any:
    """A value that may be hashed: quickly, and not to the hash of as many others as somebody likes."""
    kind = type(value)
    if kind in _KEY_TYPES or (kind is int and _KEY_INTEGERS[0] <= value < _KEY_INTEGERS[1]):
        return value
    what = "an integer of more than 64 bits" if kind is int else f"a {kind.__name__}"
    raise _RefusedError(f"{what} as a key or in a set")


def _set_items(machine: _Machine, items: list[Any]) -> None:
    if len(items) % 2:
        raise _RefusedError("a key without a value")
    machine.top(dict).update(zip(map(_hashed, items[::2]), items[1::2], strict=True))


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise _RefusedError("a class without a name")
    machine.known(module, name)


def _make(machine: _Machine) -> None:
    arguments, cls = machine.pop(), machine.pop()
    if not isinstance(cls, _Class) or not isinstance(arguments, tuple):
        raise _RefusedError("a call of something that is no class")
    machine.made(Inert(cls.name, arguments))


def _build(machine: _Machine) -> None:
    state = machine.pop()
    machine.top(Inert).state = state


def _memoize(machine: _Machine, at: int) -> None:
    machine.memo[at] = machine.stack[-1]


def _extend_set(machine: _Machine) -> None:
    items = machine.marked()
    machine.top(set).update(map(_hashed, items))


def _text(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.take(machine.number(form)).decode(errors="surrogatepass"))


def _bytes(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.take(machine.number(form)))


def _number(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.number(form))


def _value(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(value)


_STEPS: Final[dict[int, Callable[[_Machine], Any]]] = {
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME
    ord("("): _value(_MARK),
    ord("0"): lambda m: m.stack.pop(),
    ord("N"): _value(None),
    0x88: _value(True),
    0x89: _value(False),
    ord("J"): _number("<i"),  # BININT
    ord("K"): _number("<B"),  # BININT1
    ord("M"): _number("<H"),  # BININT2
    0x8A: lambda m: _long(m, m.number("<B")),  # LONG1
    ord("G"): _number(">d"),  # BINFLOAT
    ord("X"): _text("<I"),  # BINUNICODE
    0x8C: _text("<B"),  # SHORT_BINUNICODE
    0x8D: _text("<Q"),  # BINUNICODE8
    ord("B"): _bytes("<I"),  # BINBYTES
    ord("C"): _bytes("<B"),  # SHORT_BINBYTES
    0x8E: _bytes("<Q"),  # BINBYTES8
    ord("]"): lambda m: m.made([]),
    ord("a"): lambda m: _append(m, [m.pop()]),
    ord("e"): lambda m: _append(m, m.marked()),
    ord(")"): lambda m: m.made(()),
    ord("t"): lambda m: m.made(tuple(m.marked())),
    0x85: lambda m: _tuple(m, 1),
    0x86: lambda m: _tuple(m, 2),
    0x87: lambda m: _tuple(m, 3),
    ord("}"): lambda m: m.made({}),
    ord("s"): lambda m: _set_items(m, [m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: _set_items(m, m.marked()),
    0x8F: lambda m: m.made(set()),
    0x90: _extend_set,  # ADDITEMS
    ord("c"): lambda m: m.known(m.line(), m.line()),  # GLOBAL
    0x93: _stack_global,
    0x81: _make,  # NEWOBJ
    ord("R"): _make,  # REDUCE
    ord("b"): _build,
    ord("q"): lambda m: _memoize(m, m.number("<B")),  # BINPUT
    ord("r"): lambda m: _memoize(m, m.number("<I")),  # LONG_BINPUT
    0x94: lambda m: _memoize(m, len(m.memo)),  # MEMOIZE
    ord("h"): lambda m: m.push(m.memo[m.number("<B")]),  # BINGET
    ord("j"): lambda m: m.push(m.memo[m.number("<I")]),  # LONG_BINGET
}
