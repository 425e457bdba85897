"""The rows of a build: checked, written to a spool block by block, and never all in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.collections.rows import check_unique, checked_batches, joined, part, with_vector
from fabstir_vectordb.collections.sampling import Sample, Sampler, digests_of
from fabstir_vectordb.collections.spool import Spool
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.index.incoming import Batch

__all__ = ["Gathered", "gather"]

#: Rows of a block: each pass over all rows has one in memory.
_BLOCK_ROWS: Final = 16_384
_BLOCK_DATA_BYTES: Final = 12_000_000
#: Ids whose hashes are compared at a time, 8 bytes each.
_COMPARED_MAX: Final = 4_000_000
_NONE: Final = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Gathered:
    """All rows of a build.

    Attributes:
        blocks: the rows.
        rows: their number.
        dim: components of a vector; None where no row has one.
        sample: some of the rows.
    """

    blocks: Spool[Batch]
    rows: int
    dim: int | None
    sample: Sample


def gather(batches: object, now_us: int, sampler: Sampler, blocks: Spool[Batch]) -> Gathered:
    """Reads a caller's batches.

    Args:
        batches, now_us: as `rows.checked_batches`.
        sampler: takes the sample.
        blocks: where the rows go.

    Returns:
        The rows.

    Raises:
        InvalidInputError: a row or a batch is refused.
        ConflictError: an id occurs twice; details has ``ids``.
        StorageError: there is no room on the disk.
    """
    rows, dim = 0, None
    waiting: list[Batch] = []
    waiting_rows = waiting_bytes = 0
    with Spool[npt.NDArray[np.uint64]]() as hashes:

        def write() -> None:
            nonlocal waiting_rows, waiting_bytes
            if not waiting:
                return
            block = joined(waiting, dim)
            waiting.clear()
            waiting_rows = waiting_bytes = 0
            digests = digests_of(block.ids)
            sampler.add(block, digests)
            hashes.append(_hashes(digests))
            blocks.append(block)

        for batch in checked_batches(batches, now_us):
            if with_vector(batch).any():
                dim = batch.vectors.shape[1]
            for start in range(0, len(batch.ids), _BLOCK_ROWS):
                one = part(batch, start, start + _BLOCK_ROWS)
                waiting.append(one)
                rows += len(one.ids)
                waiting_rows += len(one.ids)
                waiting_bytes += one.vectors.nbytes + one.metadata_bytes
                if waiting_bytes > _BLOCK_DATA_BYTES or waiting_rows > _BLOCK_ROWS:
                    write()
        write()
        _refuse_twins(hashes, blocks, rows)
    return Gathered(blocks, rows, dim, sampler.sample())


def _hashes(digests: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    return np.frombuffer(b"".join(digest[:8] for digest in digests), dtype=">u8").astype(np.uint64)


def _refuse_twins(hashes: Iterable[npt.NDArray[np.uint64]], blocks: Iterable[Batch], rows: int) -> None:
    """Raises ConflictError where an id occurs twice. Only ids with equal hashes are compared, some range at a time."""
    parts = max(1, -(-rows // _COMPARED_MAX))
    width = (1 << 64) // parts + 1
    twice: list[npt.NDArray[Any]] = []
    for number in range(parts):
        least, most = np.uint64(number * width), np.uint64(min((number + 1) * width, 1 << 64) - 1)
        own = np.sort(
            np.concatenate([np.empty(0, np.uint64), *(one[(one >= least) & (one <= most)] for one in hashes)])
        )
        twice.append(own[1:][own[1:] == own[:-1]])
    wanted = np.concatenate(twice)
    if len(wanted):
        suspects: list[str] = []
        for block in blocks:
            of_block = _hashes(digests_of(block.ids))
            suspects += [block.ids[place] for place in np.flatnonzero(np.isin(of_block, wanted)).tolist()]
        check_unique(suspects)
