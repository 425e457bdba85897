"""Paths to metadata values: steps joined by dots, and the readings of a dotted path.

A step is a key. A step that begins with a double quote is quoted: ``v."a.b"`` has the keys ``v`` and ``a.b``; inside
quotes ``\\"`` stands for a quote and ``\\\\`` for a backslash. A key may hold dots, so steps that are not quoted have
several readings: ``v.a.b`` is the key ``v.a.b``, or ``v`` and ``a.b``, or ``v.a`` and ``b``, or three keys. Every
reading that a row has counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.constants import PATH_STEPS_MAX
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.metadata.values import shown, step

__all__ = [
    "ID",
    "PATH_LENGTH_MAX",
    "TIMESTAMP",
    "Path",
    "check_field",
    "check_metadata_field",
    "packed",
    "parse_path",
    "reached",
    "remove",
]

#: Most characters of a path. Text of any length would be taken apart on the thread of the event loop.
PATH_LENGTH_MAX: Final = 4_096

#: The fields of a row itself. A path of metadata never begins so: such a key is quoted.
ID: Final = "$id"
TIMESTAMP: Final = "$timestamp"

#: The steps, each with whether it is quoted.
Path = tuple[tuple[str, bool], ...]


def check_field(path: object) -> str:
    """Checks the path of a metadata field, and returns it as a plain string.

    Raises:
        InvalidInputError: `path` is no string or no path; details has ``path``.
    """
    if not isinstance(path, str):
        raise InvalidInputError(f"a field must be a string, got {type(path).__name__}")
    path = str.__str__(path)
    parse_path(path)
    return path


def check_metadata_field(path: object, what: str) -> str:
    """`check_field` for what takes fields of metadata alone.

    Args:
        path: the path.
        what: the argument, for the error.

    Raises:
        InvalidInputError: as `check_field`, or `path` is a field of the row itself.
    """
    path = check_field(path)
    if path in (ID, TIMESTAMP):
        raise InvalidInputError(
            f"{what} takes fields of metadata, and {path} is one of the row itself; to name a key of metadata, quote "
            f"it, as in {step(path)!r}",
            details={"path": path},
        )
    return path


def parse_path(path: str) -> Path:
    """The steps of a path.

    Raises:
        InvalidInputError: a step is empty, a quote is not closed, or there are more than PATH_STEPS_MAX steps or
            PATH_LENGTH_MAX characters; details has ``path``.
    """
    if len(path) > PATH_LENGTH_MAX:
        reason = f"has {len(path):,} characters, a path has at most {PATH_LENGTH_MAX:,} (PATH_LENGTH_MAX)"
        raise _refused(path[:80] + "…", reason, limit=PATH_LENGTH_MAX)
    if '"' not in path and "." not in path and path:
        return ((path, False),)
    steps = tuple(_steps(path))
    if len(steps) > PATH_STEPS_MAX:
        raise _refused(path, f"has more than {PATH_STEPS_MAX} steps; a key with so many dots must be quoted")
    return steps


def packed(path: Path) -> tuple[bytes, npt.NDArray[np.uint32]]:
    """A path in the form of `read_field`: the text of its runs, and of each step its start, its end and its run's end.

    A run is a quoted step, or steps that are not quoted and follow each other: any of them may be one key with dots.
    """
    text, steps = bytearray(), []
    for at, (word, is_quoted) in enumerate(path):
        if at and not is_quoted and not path[at - 1][1]:
            text += b"."
        start = len(text)
        # A path may hold a lone surrogate, and then equals no key.
        text += word.encode("utf-8", "surrogatepass")
        end = at + 1
        while not is_quoted and end < len(path) and not path[end][1]:
            end += 1
        steps.append((start, len(text), end))
    return bytes(text), np.array(steps, dtype=np.uint32)


def reached(value: Any, path: Path) -> Iterator[Any]:
    """The values to which the readings of a path lead; dicts in a list are each looked into.

    Time grows with the value, not with the readings: each value in it is reached by one reading at most.
    """
    if not path:
        yield value
    elif isinstance(value, dict):
        key = ""
        for end, (word, is_quoted) in enumerate(path, 1):
            if end > 1 and (is_quoted or path[0][1]):
                return
            key = word if end == 1 else f"{key}.{word}"
            if key in value:
                yield from reached(value[key], path[end:])
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from reached(item, path)


def remove(value: Any, path: Path) -> None:
    """Removes from their dicts the values that `reached` gives for a path."""
    if isinstance(value, dict):
        key = ""
        for end, (word, is_quoted) in enumerate(path, 1):
            if end > 1 and (is_quoted or path[0][1]):
                return
            key = word if end == 1 else f"{key}.{word}"
            if end < len(path):
                remove(value.get(key), path[end:])
            else:
                value.pop(key, None)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                remove(item, path)


def _steps(path: str) -> Iterator[tuple[str, bool]]:
    """The steps of a path, and whether each is quoted."""
    at = 0
    while True:
        if path.startswith('"', at):
            text, at = _quoted(path, at + 1)
            yield text, True
        else:
            end = path.find(".", at)
            end = len(path) if end < 0 else end
            if end == at:
                raise _refused(path, f"a step of the path is empty; a key is quoted, as in {shown(step(path))}")
            yield path[at:end], False
            at = end
        if at == len(path):
            return
        if path[at] != ".":
            raise _refused(path, f"a dot must follow a quoted step; a key with quotes is written {shown(step(path))}")
        at += 1


def _quoted(path: str, at: int) -> tuple[str, int]:
    """The text of a quoted step that begins at `at`, and the position after its closing quote."""
    text: list[str] = []
    while at < len(path):
        letter = path[at]
        if letter == '"':
            return "".join(text), at + 1
        if letter == "\\":
            at += 1
            letter = path[at : at + 1]
            if letter not in ('"', "\\"):
                raise _refused(path, 'in a quoted step \\ stands before " or \\ alone')
        text.append(letter)
        at += 1
    raise _refused(path, f"a quoted step is not closed; a key with quotes is written {shown(step(path))}")


def _refused(path: str, reason: str, **details: Any) -> InvalidInputError:
    # A key may hold a lone surrogate or a line end, which must not get into a log.
    text = (path if path.isprintable() else ascii(path)[1:-1])[:200] or "''"
    return InvalidInputError(f"{text} is no field: {reason}", details={"path": text, **details})
