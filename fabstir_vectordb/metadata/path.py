"""Paths to metadata values: steps joined by dots, and the readings of a dotted path.

A step is a key. A step that begins with a double quote is quoted: ``v."a.b"`` has the keys ``v`` and ``a.b``; inside
quotes ``\\"`` stands for a quote and ``\\\\`` for a backslash. A key may hold dots, so steps that are not quoted have
several readings: ``v.a.b`` is the key ``v.a.b``, or ``v`` and ``a.b``, or ``v.a`` and ``b``, or three keys. Every
reading that a row has counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.metadata.values import shown, step

__all__ = ["PATH_STEPS_MAX", "Path", "check_field", "parse_path", "readings"]

#: Steps of a path. A key with more dots must be quoted.
PATH_STEPS_MAX: Final = 100

#: For each step the keys that may stand there, the longest first, each with the step that follows.
Path = tuple[tuple[tuple[str, int], ...], ...]


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


def parse_path(path: str) -> Path:
    """The readings of a path, as keys for each step.

    Raises:
        InvalidInputError: a step is empty, a quote is not closed, or there are more than PATH_STEPS_MAX steps; details
            has ``path``.
    """
    if '"' not in path and "." not in path and path:
        return (((path, 1),),)
    steps = list(_steps(path))
    if len(steps) > PATH_STEPS_MAX:
        raise _refused(path, f"has more than {PATH_STEPS_MAX} steps; a key with so many dots must be quoted")
    out = []
    for at in range(len(steps)):
        end = at + 1
        while end < len(steps) and not steps[at][1] and not steps[end][1]:
            end += 1
        # A quoted step is always one key of its own.
        out.append(tuple((".".join(text for text, _ in steps[at:to]), to) for to in range(end, at, -1)))
    return tuple(out)


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


def readings(value: Any, path: Path) -> list[list[Any]]:
    """The values of a row at a path: for each reading that exists in the row, its values.

    A list along the path stands for each dict in it, so a reading may have several values. Readings without a value are
    left out.
    """
    if len(path) == 1 and isinstance(value, dict):  # most rows and paths
        key = path[0][0][0]
        return [[value[key]]] if key in value else []
    found: list[list[Any]] = []
    _descend(value, path, 0, found)
    return found


def _descend(value: Any, path: Path, at: int, found: list[list[Any]]) -> None:
    if isinstance(value, dict):
        for key, after in path[at]:
            if key in value:
                if after == len(path):
                    found.append([value[key]])
                else:
                    _descend(value[key], path, after, found)
    elif isinstance(value, list):
        by_keys: dict[tuple[int, ...], list[Any]] = {}
        _spread(value, path, (at,), by_keys)
        found.extend(by_keys.values())


def _spread(value: Any, path: Path, taken: tuple[int, ...], found: dict[tuple[int, ...], list[Any]]) -> None:
    """`_descend` below a list, where a reading may have several values; `taken` has the steps where its keys begin."""
    if isinstance(value, dict):
        for key, after in path[taken[-1]]:
            if key in value:
                if after == len(path):
                    found.setdefault((*taken, after), []).append(value[key])
                else:
                    _spread(value[key], path, (*taken, after), found)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                _spread(item, path, taken, found)


def _refused(path: str, reason: str) -> InvalidInputError:
    # A key may hold a lone surrogate or a line end, which must not get into a log.
    text = (path if path.isprintable() else ascii(path)[1:-1])[:200] or "''"
    return InvalidInputError(f"{text} is no field: {reason}", details={"path": text})
