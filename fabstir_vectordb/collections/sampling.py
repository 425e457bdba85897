"""Samples of rows: those with the smallest BLAKE3 of their ids.

A sample depends on the ids alone, not on the order in which rows come, and so does what is made of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.collections.rows import with_vector
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.index.incoming import Batch
from fabstir_vectordb.s5.cid import blake3_hash

__all__ = ["Sample", "Sampler", "digests_of"]


def digests_of(ids: Sequence[str]) -> list[bytes]:
    """The BLAKE3 of each id."""
    return [blake3_hash(id.encode("utf-8")) for id in ids]


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows, by ascending BLAKE3 of their ids.

    Attributes:
        ids: of the rows.
        vectors: (n, dim) of the rows; (n, 0) where only ids are wanted.
    """

    ids: Sequence[str]
    vectors: npt.NDArray[np.float32]


class Sampler:
    """Takes the sample of all rows, as they come.

    Args:
        most: rows of the sample.
        of_vectors: only rows with a vector, and with their vectors; otherwise ids of any rows.
    """

    def __init__(self, most: int, of_vectors: bool) -> None:
        self._most = most
        self._of_vectors = of_vectors
        # The smallest digests, ascending, with the ids; and the vectors in the same order.
        self._rows: list[tuple[bytes, str]] = []
        self._vectors: npt.NDArray[np.float32] | None = None

    def add(self, rows: Batch, digests: Sequence[bytes]) -> None:
        """Looks at more rows, whose ids have these digests."""
        places = np.flatnonzero(with_vector(rows)).tolist() if self._of_vectors else range(len(rows.ids))
        if len(self._rows) == self._most:
            last = self._rows[-1][0]
            places = [place for place in places if digests[place] < last]
        if not places:
            return
        both = [*self._rows, *((digests[place], rows.ids[place]) for place in places)]
        order = sorted(range(len(both)), key=both.__getitem__)[: self._most]
        self._rows = [both[place] for place in order]
        if self._of_vectors:
            own = rows.vectors[list(places)]
            self._vectors = (own if self._vectors is None else np.concatenate([self._vectors, own]))[order]

    def sample(self) -> Sample:
        """The sample."""
        vectors = self._vectors
        if vectors is None:
            vectors = np.empty((len(self._rows), 0), dtype=np.float32)
        return Sample([id for _, id in self._rows], vectors)
