"""Fusion: one ranking from the candidates of a search by vector and of a search by words.

The default, ``excess``, measures each side by its own candidates. A score counts by its excess over the side's last
candidate, in units of the mean excess of the side's first ten. So a side whose first hit stands out counts for more
than a side that cannot tell its hits apart. docs/decisions/0026-fusion.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.metadata.values import shown

__all__ = [
    "ALPHA",
    "DEPTH_MIN",
    "FUSIONS",
    "Fused",
    "Fusion",
    "Side",
    "check_alpha",
    "check_fusion",
    "depth_for",
    "fuse",
    "fuse_all",
    "ordered",
]

Fusion = Literal["excess", "rrf", "weighted"]
FUSIONS: Final[tuple[str, ...]] = get_args(Fusion)

#: Candidates of each side: so many, and at least so many more than the hits asked for. So the hits of k up to 50 are
#: the first hits of any other such k.
DEPTH_MIN: Final = 100
_DEPTH_MORE: Final = 50
#: Cormack, Clarke and Büttcher 2009.
_RRF_K: Final = 60
#: Hits of a page, on which the spread of a side is measured. 5 and 20 gave the same figures.
_PAGE: Final = 10
#: The vector's share in ``weighted``, where none is given.
ALPHA: Final = 0.5

Slots = npt.NDArray[np.uint32]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Side:
    """The candidates of one side, best first.

    Attributes:
        slots: their slots, each once.
        values: their scores, falling: any scale, larger is better.
    """

    slots: Slots
    values: Values

    def __post_init__(self) -> None:
        assert len(self.slots) == len(self.values)

    def first(self, n: int) -> Side:
        """The n best of them."""
        return Side(self.slots[:n], self.values[:n])


@dataclass(frozen=True, slots=True)
class Fused:
    """The candidates of both sides, ascending by slot.

    Attributes:
        slots: their slots.
        scores: in [0, 1], larger is better.
        vector_ranks, words_ranks: places on each side, counted from 1; 0 where that side lacks the row.
    """

    slots: Slots
    scores: Values
    vector_ranks: npt.NDArray[np.int64]
    words_ranks: npt.NDArray[np.int64]


def depth_for(k: int) -> int:
    """How many candidates each side gives for k hits."""
    return max(DEPTH_MIN, k + _DEPTH_MORE)


def fuse(fusion: Fusion, alpha: float, vector: Side, words: Side) -> Fused:
    """Scores the candidates of both sides.

    Every operation is one of IEEE 754 in a fixed order: equal candidates give equal bits on every machine.

    Args:
        fusion: ``excess``; ``rrf``, reciprocal ranks (Cormack et al. 2009, k = 60); or ``weighted``, the sum of min-max
            normalised scores.
        alpha: the vector's share in ``weighted``, 0 to 1; without effect otherwise.
        vector, words: the candidates.

    Returns:
        All candidates with their scores. A row that one side lacks gets nothing from it.
    """
    slots = np.union1d(vector.slots, words.slots)
    scores = np.zeros(len(slots))
    ranks = []
    for side, gains in zip((vector, words), _gains(fusion, alpha, vector, words), strict=True):
        places = np.searchsorted(slots, side.slots)
        scores[places] += gains
        rank = np.zeros(len(slots), dtype=np.int64)
        rank[places] = np.arange(1, len(side.slots) + 1)
        ranks.append(rank)
    return Fused(slots.astype(np.uint32), np.minimum(scores, 1.0), *ranks)


def fuse_all(
    fusion: Fusion, alpha: float, vector: Side, words: Side, depths: tuple[int, int] = (DEPTH_MIN, DEPTH_MIN)
) -> tuple[Fused, Values]:
    """Scores all rows of both sides: those of `fuse` for the first ones of each side, 0 for all others.

    Args:
        fusion, alpha, vector, words: as for `fuse`.
        depths: how many rows are the first ones, by vector and by words.

    Returns:
        The rows, and the order of those with the score 0: the sum of their reciprocal ranks, larger first; else 0.
    """
    first = fuse(fusion, alpha, vector.first(depths[0]), words.first(depths[1]))
    everything = fuse("rrf", alpha, vector, words)
    scores = np.zeros(len(everything.slots))
    scores[np.searchsorted(everything.slots, first.slots)] = first.scores
    return replace(everything, scores=scores), np.where(scores > 0.0, 0.0, everything.scores)


def _gains(fusion: Fusion, alpha: float, vector: Side, words: Side) -> tuple[Values, Values]:
    """What each candidate adds to a row's score; both maxima together are 1, but for rounding."""
    if fusion == "rrf":
        return _reciprocal(len(vector.slots)), _reciprocal(len(words.slots))
    if fusion == "weighted":
        return alpha * _normalised(vector.values, 0), (1.0 - alpha) * _normalised(words.values, 0)
    near, said = _normalised(vector.values, 0), _normalised(words.values, _PAGE)
    of_vector, of_words = _weight(near), _weight(said)
    both = of_vector + of_words
    return (near * (of_vector / both), said * (of_words / both)) if both else (near, said)


def _reciprocal(n: int) -> Values:
    return (_RRF_K + 1) / (2.0 * (_RRF_K + np.arange(1.0, n + 1.0)))


def _normalised(values: Values, page: int) -> Values:
    """The values from 0 for the last to 1 for the first; 1 for all where they are equal.

    Args:
        values: falling, and non-negative where `page` is given.
        page: where there are no more values than this, the value 0 becomes 0. Of three rows that match a word, the
            last one is still better than every row that does not.
    """
    if not len(values):
        return values
    floor = float(values[-1]) if len(values) > page else 0.0
    span = float(values[0]) - floor
    if not 0.0 < span < math.inf:
        return np.ones(len(values))
    return (values - floor) / span


def _weight(normalised: Values) -> float:
    """One over the mean of a page; missing hits count as 0. It is 1 where all are equal, and 10 for a single hit."""
    # Python's sum of floats: numpy may add in another order on another machine.
    return _PAGE / math.fsum(normalised[:_PAGE].tolist()) if len(normalised) else 0.0


# ---- Arguments ---------------------------------------------------------------------------------------------


def check_fusion(fusion: object) -> Fusion:
    """A fusion by its name; None is the default.

    Raises:
        InvalidInputError: there is no fusion of that name.
    """
    if fusion is None:
        return "excess"
    for known in get_args(Fusion):
        if isinstance(fusion, str) and fusion == known:
            return known  # type: ignore[no-any-return]  # it is one of the literals
    raise InvalidInputError(
        f"fusion must be one of {', '.join(FUSIONS)}, got {shown(fusion)}", details={"fusion": fusion}
    )


def check_alpha(alpha: object, fusion: Fusion) -> float:
    """The vector's share in ``weighted``; None is one half.

    Raises:
        InvalidInputError: it is no number from 0 to 1, or the fusion is another one.
    """
    if alpha is None:
        return ALPHA
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float, np.number)) or not 0.0 <= alpha <= 1.0:
        raise InvalidInputError(f"alpha must be None or a number between 0 and 1, got {shown(alpha)}")
    if fusion != "weighted":
        raise InvalidInputError(
            f"alpha is the vector's share in fusion='weighted'; fusion={fusion!r} has none: leave alpha out",
            details={"fusion": fusion, "alpha": float(alpha)},
        )
    return float(alpha)


def ordered(scores: Values, n: int, ids_of: Callable[[list[int]], Sequence[str]]) -> list[int]:
    """The first n positions by falling score, ties by the bytes of ids: UTF-8 keeps the order of code points.

    Args:
        scores: the scores.
        n: how many positions.
        ids_of: a function that gives the ids of some positions; it is asked for those that tie.
    """
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    if 0 < n < len(order):
        # A tie at the end of the list is decided among all that tie.
        n_tied = int(np.searchsorted(-falling, -falling[n - 1], side="right"))
        order, falling = order[:n_tied], falling[:n_tied]
    places: list[int] = order.tolist()
    if (falling[1:] == falling[:-1]).any():
        by_place = dict(zip(places, ids_of(places), strict=True))
        values = scores.tolist()
        places.sort(key=lambda place: (-values[place], by_place[place]))
    return places[:n]
