"""What a path leads to in a value of metadata, as the documentation reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def reached(value: Any, keys: list[str]) -> Iterator[Any]:
    """The values behind the keys; maps in a list are each looked into."""
    if not keys:
        yield value
    elif isinstance(value, dict) and keys[0] in value:
        yield from reached(value[keys[0]], keys[1:])
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from reached(item, keys)
