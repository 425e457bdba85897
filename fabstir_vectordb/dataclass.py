"""`dataclass` of the standard library, made in a fifth of the time where a class is frozen and has slots.

Before Python 3.13 the standard library compiles six methods for each such class, which was a quarter of this package's
import (`docs/decisions/0034-dataclasses.md`). Here only `__init__` is compiled, as it is called most; the others are
functions that look at the fields. `fields`, `replace`, `asdict`, copies and pickles work as they do elsewhere.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]


class _Factory:
    """What stands in a signature for a default that a factory makes."""

    def __repr__(self) -> str:
        return "<factory>"


_FACTORY = _Factory()


def _init_of(cls: Any) -> Any:
    """`__init__` of `cls`, with the parameters, defaults and annotations that `dataclasses.dataclass` gives it."""
    # What a default or its factory is called in the source: its own value would need a text that means it.
    names: dict[str, Any] = {"set_": object.__setattr__, "factory": _FACTORY}
    by_position: list[str] = []
    by_name: list[str] = []
    body: list[str] = []
    fields = dataclasses.fields(cls)
    for field in fields:
        name, value = field.name, field.name
        parameter = name
        if field.default is not MISSING:
            names[f"default_{name}"] = field.default
            parameter = f"{name}=default_{name}"
        elif field.default_factory is not MISSING:
            names[f"factory_{name}"] = field.default_factory
            parameter = f"{name}=factory"
            value = f"factory_{name}() if {name} is factory else {name}"
        if field.init:
            (by_name if field.kw_only else by_position).append(parameter)
            body.append(f"set_(self, {name!r}, {value})")
        elif field.default is not MISSING:
            body.append(f"set_(self, {name!r}, default_{name})")
        elif field.default_factory is not MISSING:
            body.append(f"set_(self, {name!r}, factory_{name}())")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    parameters = ", ".join(["self", *by_position, *(["*", *by_name] if by_name else [])])
    exec(f"def __init__({parameters}):\n  " + "\n  ".join(body or ["pass"]), names)
    init = names["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    init.__module__ = cls.__module__
    init.__annotations__ = {field.name: field.type for field in fields if field.init} | {"return": None}
    return init


@cache
def _compared_of(cls: type) -> Callable[[Any], tuple[Any, ...]]:
    """What gives the compared values of an object of `cls`. To look for their names took 4 of 5 µs of a comparison."""
    names = [field.name for field in dataclasses.fields(cls) if field.compare]
    if len(names) > 1:
        return attrgetter(*names)
    return lambda self: tuple(getattr(self, name) for name in names)


def _compared(self: Any) -> tuple[Any, ...]:
    return _compared_of(self.__class__)(self)


def _equals(self: Any, other: object) -> bool:
    return _compared(self) == _compared(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))


def _repr(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
    return f"{self.__class__.__qualname__}({', '.join(shown)})"


def _no_assignment(self: object, name: str, value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _no_deletion(self: object, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)


_METHODS = {
    "__repr__": _repr,
    "__setattr__": _no_assignment,
    "__delattr__": _no_deletion,
    "__getstate__": _state,
    "__setstate__": _set_state,
}
_METHODS_OF_VALUES = {"__eq__": _equals, "__hash__": _hash}

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls=None, /, *, frozen=False, slots=False, eq=True, kw_only=False):
        """Make `cls` a dataclass, or return what makes one; each argument is one of `dataclasses.dataclass`."""

        def make(cls):
            if not (frozen and slots):
                return dataclasses.dataclass(frozen=frozen, slots=slots, eq=eq, kw_only=kw_only)(cls)
            own = set(cls.__dict__)
            if cls.__dict__.get("__hash__", True) is None:  # Python's doing, where a class has an own __eq__
                own.discard("__hash__")
            made = dataclasses.dataclass(slots=True, init=False, repr=False, eq=False, kw_only=kw_only)(cls)
            methods = {"__init__": _init_of(made), **_METHODS, **(_METHODS_OF_VALUES if eq else {})}
            for name, method in methods.items():
                if name not in own:
                    setattr(made, name, method)
            return made

        return make if cls is None else make(cls)
