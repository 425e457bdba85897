"""The best rows of each group: of each document, say, the best of its chunks.

A search finds the nearest rows, and so the groups that they belong to. While it has found fewer groups than asked for,
it searches again among the rows of all other groups. Then groups with too few hits get their others from an exact
search among their own rows. A row of several groups may be found again as a row of one of them: it counts only for the
groups all of whose rows were looked at, as nearer rows of the others were not. So no group is missed because another
one has many near rows, at any number of groups.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import K_MAX
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.metadata.columns import NONE, Column, Mask, sort_key
from fabstir_vectordb.metadata.values import Scalar

__all__ = ["Groups", "Hit", "best_of_groups", "first_of_groups", "groups_of"]

#: Distance, id and slot of a row: what hits are sorted by.
Hit: TypeAlias = tuple[float, bytes, int]
#: Searches some rows: their mask, how many hits, and whether each row must be scored exactly.
Search: TypeAlias = Callable[[Mask, int, bool], Iterable[Hit]]

#: An exact search among the rows of groups asks for so many times the hits that these lack.
_LACKING_TIMES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The groups of all rows by one field. A row whose value is a list belongs to the group of each of its values.

    Attributes:
        alone: the group of each slot with a single value, else -1.
        listed_slots, listed: slots and groups of the others, each pair once.
        values: the value of each group.
    """

    alone: npt.NDArray[np.int32]
    listed_slots: npt.NDArray[np.int64]
    listed: npt.NDArray[np.int32]
    values: list[Scalar]

    @property
    def nbytes(self) -> int:
        """Bytes held, without the values, which the column has, too."""
        return self.alone.nbytes + self.listed_slots.nbytes + self.listed.nbytes + 8 * len(self.values)

    def of(self, slot: int) -> list[int]:
        """The groups of a row."""
        group = int(self.alone[slot])
        if group != NONE:
            return [group]
        first, end = np.searchsorted(self.listed_slots, (slot, slot + 1)).tolist()
        found: list[int] = self.listed[first:end].tolist()
        return found

    def rows_of(self, groups: Collection[int]) -> Mask:
        """The mask of rows that belong to some of these groups."""
        table = np.zeros(len(self.values) + 1, dtype=np.bool_)  # the last entry is for NONE
        table[list(groups)] = True
        return self._rows(table)

    def rows_beside(self, groups: Collection[int]) -> Mask:
        """The mask of rows that belong to some other group."""
        table = np.ones(len(self.values) + 1, dtype=np.bool_)
        table[[*groups, len(self.values)]] = False
        return self._rows(table)

    def _rows(self, table: Mask) -> Mask:
        mask = table[self.alone]
        mask[self.listed_slots[table[self.listed]]] = True
        return mask

    def only(self, groups: Collection[int]) -> Groups:
        """The same without all other groups."""
        table = np.full(len(self.values) + 1, NONE, dtype=np.int32)  # the last entry is for NONE
        table[list(groups)] = list(groups)
        kept = table[self.listed] != NONE
        return Groups(table[self.alone], self.listed_slots[kept], self.listed[kept], self.values)

    def numbers(self, values: Iterable[Scalar]) -> list[int]:
        """The groups with some values, without those that no row has."""
        wanted = {sort_key(value) for value in values}
        if not wanted:
            return []
        return [number for number, value in enumerate(self.values) if sort_key(value) in wanted]

    def sizes(self, rows: Mask) -> npt.NDArray[np.int64]:
        """How many of some rows belong to each group."""
        groups = np.append(self.alone[rows], self.listed[rows[self.listed_slots]])
        return np.bincount(groups[groups != NONE], minlength=len(self.values))


def groups_of(column: Column) -> Groups:
    """The groups of all rows by the field of a column."""
    alone, listed_slots, listed, values = column.codes()
    # Sorted by slot, each pair once.
    pairs = np.unique(np.stack([listed_slots, listed.astype(np.int64)], axis=1), axis=0)
    return Groups(alone, pairs[:, 0].copy(), pairs[:, 1].astype(np.int32), values)


def first_of_groups(groups: Groups, ranked: npt.NDArray[np.uint32], k: int, size: int) -> list[tuple[int, list[int]]]:
    """The first k groups of rows in an order, and of each the places of its first `size` rows.

    Args:
        groups: the groups of all rows.
        ranked: slots, the best first, each once.
        k: number of groups.
        size: most rows of a group.
    """
    place_of = np.full(len(groups.alone), NONE, dtype=np.int64)
    place_of[ranked] = np.arange(len(ranked))
    alone, listed = groups.alone[ranked], place_of[groups.listed_slots]
    single, several = np.flatnonzero(alone != NONE), listed != NONE
    of = np.append(alone[single], groups.listed[several])
    places = np.append(single, listed[several])
    order = np.lexsort((places, of))
    of, places = of[order], places[order]
    starts = np.flatnonzero(np.append(True, of[1:] != of[:-1])) if len(of) else np.empty(0, dtype=np.int64)
    firsts = places[starts]
    if len(starts) > k:
        # Groups of one row, whose value is a list, compete by their values.
        starts = starts[firsts <= np.partition(firsts, k - 1)[k - 1]]
    best = sorted(starts.tolist(), key=lambda at: (places[at], sort_key(groups.values[of[at]])))[:k]
    return [
        (
            int(of[at]),
            [
                int(place)
                for place, group in zip(places[at : at + size], of[at : at + size], strict=True)
                if group == of[at]
            ],
        )
        for at in best
    ]


class Found(NamedTuple):
    """The groups that a search found.

    Attributes:
        groups: of each group its number and its hits, nearest first; the group with the nearest hit comes first.
        searches: how many searches it took.
    """

    groups: list[tuple[int, list[Hit]]]
    searches: int


def best_of_groups(groups: Groups, rows: Mask, k: int, size: int, search: Search) -> Found:
    """The k groups with the nearest rows, and the `size` best rows of each.

    Args:
        groups: the groups of all rows.
        rows: the mask of rows that a search can find.
        k: number of groups.
        size: most rows of a group.
        search: the search.
    """
    found: dict[int, dict[int, Hit]] = {}  # by group, then by slot
    free = rows.copy()  # rows that are no hits yet of some group of theirs
    searches = 0

    def ask(mask: Mask, most: int, exact: bool, known: Collection[int] = ()) -> bool:
        """Searches rows; a hit counts for its groups, but for those known before, whose nearer rows were left out."""
        nonlocal searches
        n = int(np.count_nonzero(mask))
        if not n:
            return False
        searches += 1
        hits = list(search(mask, min(most, n, K_MAX), exact))
        for hit in hits:
            of_hit = groups.of(hit[2])
            counted = [group for group in of_hit if group not in known]
            for group in counted:
                found.setdefault(group, {}).setdefault(hit[2], hit)
            free[hit[2]] = len(counted) < len(of_hit)
        return bool(hits)

    most = k * size
    while len(found) < k:
        known = frozenset(found)
        if not ask(free & groups.rows_beside(known), most, False, known):
            break
        most *= 2

    def place(group: int) -> tuple[Hit, tuple[int, Any]]:
        # Groups of one row, whose value is a list, are in the order of their values.
        return min(found[group].values()), sort_key(groups.values[group])

    best = sorted(found, key=place)[:k]
    sizes = groups.sizes(rows) if any(len(found[group]) < size for group in best) else None
    while sizes is not None:
        lacking = {group: least for group in best if (least := min(size, int(sizes[group])) - len(found[group])) > 0}
        most = max(most, _LACKING_TIMES * sum(lacking.values()))
        if not lacking or not ask(free & groups.rows_of(lacking), most, True):
            break
        most *= 2
    return Found([(group, sorted(found[group].values())[:size]) for group in sorted(best, key=place)], searches)
