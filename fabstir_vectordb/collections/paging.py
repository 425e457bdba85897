"""Pages of many shards as one sequence: each shard's pages are in order, and so is what comes of them."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple, TypeVar

__all__ = ["Page", "merged_pages"]

_T = TypeVar("_T")


class Page(NamedTuple):
    """The next items of a shard.

    Attributes:
        shard: its number.
        items: the items, in order.
        has_more: whether others follow.
    """

    shard: int
    items: Sequence[Any]
    has_more: bool


async def merged_pages(
    shards: Iterable[int],
    next_pages: Callable[[list[int]], Awaitable[Iterable[Page]]],
    place: Callable[[_T], tuple[Any, ...]],
) -> AsyncGenerator[_T, None]:
    """Yields the items of all shards in order.

    Args:
        shards: their numbers.
        next_pages: reads the next page of each of some shards.
        place: what items are in the order of; no two are equal.
    """
    left = set(shards)
    pages: dict[int, deque[_T]] = {}
    heads: list[tuple[tuple[Any, ...], int]] = []
    while left:
        # The next item is known once each shard that has more has shown its next one.
        for number, items, has_more in await next_pages([number for number in sorted(left) if not pages.get(number)]):
            pages[number] = deque(items)
            if items:
                heappush(heads, (place(items[0]), number))
            if not has_more:
                left.discard(number)
        while heads and all(pages[number] for number in left):
            _, number = heappop(heads)
            page = pages[number]
            yield page.popleft()
            if page:
                heappush(heads, (place(page[0]), number))
