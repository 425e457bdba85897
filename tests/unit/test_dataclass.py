"""The package's `dataclass` makes the classes that the standard library makes."""

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, field, fields, replace
from typing import Any, ClassVar

import pytest

from fabstir_vectordb import VersionInfo
from fabstir_vectordb.dataclass import dataclass


def classes(make: Callable[..., Any]) -> list[Any]:
    """The same classes, made by `make`: positional and by name, defaults, factories, fields left out, subclasses."""

    @make(frozen=True, slots=True)
    class Point:
        """A point."""

        origin: ClassVar[int] = 0
        x: int
        y: int = 2
        tags: list[str] = field(default_factory=list)
        secret: str = field(default="s", repr=False)
        note: str = field(default="", compare=False)

    @make(frozen=True, slots=True)
    class Named(Point):
        """A point with a name that is made of another field."""

        name: str = "p"
        label: str = field(init=False, compare=False)
        count: int = field(init=False, default=7)
        seen: list[int] = field(init=False, default_factory=list)

        def __post_init__(self) -> None:
            object.__setattr__(self, "label", self.name.upper())

    @make(frozen=True, slots=True, kw_only=True)
    class Settings:
        """By name only."""

        a: int
        b: int = 1

    @make(frozen=True, slots=True, kw_only=True)
    class More(Settings):
        """What has no default may come last."""

        c: int

        def __repr__(self) -> str:
            return "its own"

    @make(frozen=True, slots=True, eq=False)
    class Identity:
        """Compared as an object."""

        a: int

    @make(frozen=True, slots=True)
    class Empty:
        """No fields."""

    @make(frozen=True, slots=True)
    class Own:  # noqa: PLW1641 - what hash it gets is the question
        """Its own methods stay."""

        a: int

        def __init__(self, a: int = 5) -> None:
            object.__setattr__(self, "a", a + 1)

        def __eq__(self, other: object) -> bool:
            return False

    return [Point, Named, Settings, More, Identity, Empty, Own]


OURS, THEIRS = classes(dataclass), classes(dataclasses.dataclass)
ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((1,), {}),
    ((1, 3, ["t"]), {"note": "n"}),
    ((), {"x": 1, "secret": "t"}),
    ((), {"a": 1}),
    ((), {"a": 1, "b": 3, "c": 4}),
    ((1,), {"name": "q"}),
    ((1,), {"label": "L"}),
    ((1, 2, 3, 4, 5, 6, 7, 8), {}),
]


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (TypeError, FrozenInstanceError, AttributeError) as error:
        return type(error)


@pytest.mark.parametrize(("our", "their"), list(zip(OURS, THEIRS, strict=True)), ids=lambda cls: str(cls.__name__))
def test_a_class_is_as_the_standard_library_makes_it(our: Any, their: Any) -> None:
    assert str(inspect.signature(our)) == str(inspect.signature(their))
    assert our.__slots__ == their.__slots__
    assert our.__match_args__ == their.__match_args__
    assert our.__doc__ == their.__doc__
    made = 0
    for arguments, named in ARGUMENTS:
        one, other = (
            outcome(lambda a=arguments, n=named: our(*a, **n)),
            outcome(lambda a=arguments, n=named: their(*a, **n)),
        )
        if isinstance(other, type):
            assert one is other
            continue
        made += 1
        assert repr(one) == repr(other)
        assert asdict(one) == asdict(other)
        assert (one == our(*arguments, **named)) == (other == their(*arguments, **named))
        assert one != other
        assert outcome(lambda i=one: hash(i) == hash(i)) == outcome(lambda i=other: hash(i) == hash(i))
        for name in (f.name for f in fields(their)):
            assert outcome(lambda i=one, n=name: setattr(i, n, 1)) == outcome(lambda i=other, n=name: setattr(i, n, 1))
            assert outcome(lambda i=one, n=name: delattr(i, n)) == outcome(lambda i=other, n=name: delattr(i, n))
        assert asdict(copy.deepcopy(one)) == asdict(other)
        names = [f.name for f in fields(one) if f.init]
        if names:
            assert repr(replace(one, **{names[0]: 9})) == repr(replace(other, **{names[0]: 9}))
    assert made > 0


def test_two_values_are_equal_where_the_compared_fields_are() -> None:
    point = OURS[0]
    assert point(1) == point(1, note="other")
    assert hash(OURS[2](a=1)) == hash(OURS[2](a=1))
    assert point(1) != point(1, secret="other")
    assert OURS[4](1) != OURS[4](1)


def test_nothing_can_be_set_that_is_no_field() -> None:
    with pytest.raises(FrozenInstanceError):  # the standard library's says TypeError here
        OURS[0](1).unknown = 1


def test_a_factory_makes_one_for_each() -> None:
    first, second = OURS[0](1), OURS[0](1)
    assert first.tags == [] and first.tags is not second.tags


def test_a_public_one_goes_through_a_pickle() -> None:
    info = VersionInfo(**{f.name: index for index, f in enumerate(fields(VersionInfo))})
    again = pickle.loads(pickle.dumps(info))
    assert again == info and again is not info
    with pytest.raises(FrozenInstanceError, match="cannot assign to field"):
        again.rows = 3
