"""The root of a collection: an ordinary index that names its shards.

It has a row for the collection, one for each shard, and one for each centroid, whose vector is the centroid. So a root
has a pointer, a history, conflicts, encryption and shares as any index has. One save moves all shards at once.

Every row of a root has the timestamp 0: a root depends on the shards alone, not on the time when it was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.collections.placement import homes, key_of
from fabstir_vectordb.collections.records import Settings, Shard
from fabstir_vectordb.collections.routing import Centroids, Numbers, shard_of_key
from fabstir_vectordb.config import Given, VectorDBConfig, config_of
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import IntegrityError
from fabstir_vectordb.index.incoming import Batch
from fabstir_vectordb.session import VectorDBSession

__all__ = ["Snapshot", "moved_root", "read_root", "without_texts", "write_root"]

_COLLECTION: Final = "collection"


class _Line(NamedTuple):
    """A row of the root."""

    metadata: Mapping[str, Any]
    vector: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class Snapshot:
    """A version of the root, read. It never changes: whoever holds it has one view of all shards.

    Attributes:
        settings: what all shards have in common.
        shards: by number.
        centroids: with ``nearest``; else None.
    """

    settings: Settings
    shards: Mapping[int, Shard]
    centroids: Centroids | None

    @property
    def rows(self) -> int:
        """Live rows of all shards, as they were stored: rows that expired since count, too."""
        return sum(shard.rows for shard in self.shards.values())

    @cached_property
    def _ranges(self) -> tuple[list[str], list[int]]:
        """Least keys, ascending, and the numbers of their shards."""
        ordered = sorted((shard.first or "", shard.number) for shard in self.shards.values())
        return [first for first, _ in ordered], [number for _, number in ordered]

    def homes(self, rows: Batch) -> Numbers:
        """The number of the shard that each row belongs to."""
        if self.centroids is not None:
            return homes(rows, self.centroids)
        return np.array([self.home_of(id) for id in rows.ids], dtype=np.intp)

    def home_of(self, id: str) -> int | None:
        """The only shard that may have an id; None where any of them may, as with ``nearest``."""
        if self.centroids is not None:
            return None
        firsts, numbers = self._ranges
        return numbers[shard_of_key(firsts, key_of(self.settings.route, id))]

    def with_shards(self, changed: Mapping[int, Shard | None], centroids: Centroids | None, next_shard: int) -> Self:
        """The snapshot with other shards; None stands for one that is gone."""
        shards = {**self.shards, **changed}
        return replace(
            self,
            settings=replace(self.settings, next_shard=next_shard),
            shards={number: shard for number, shard in sorted(shards.items()) if shard is not None},
            centroids=centroids,
        )

    def lines(self) -> dict[str, _Line]:
        """The rows of the root, by id."""
        lines = {_COLLECTION: _Line(self.settings.to_metadata(), None)}
        for shard in self.shards.values():
            lines[f"shard-{shard.number:08d}"] = _Line(shard.to_metadata(), None)
        if self.centroids is not None:
            places: dict[int, int] = {}
            for vector, number in zip(self.centroids.vectors, self.centroids.shards.tolist(), strict=True):
                place = places[number] = places.get(number, -1) + 1
                lines[f"centroid-{number:08d}-{place:06d}"] = _Line({"kind": "centroid", "shard": number}, vector)
        return lines


async def read_root(session: VectorDBSession) -> Snapshot:
    """Reads the root that a session has loaded.

    Raises:
        IntegrityError: it is not the root of a collection.
        VectorDBError: the session failed.
    """
    settings: Settings | None = None
    shards: dict[int, Shard] = {}
    vectors: list[npt.NDArray[np.float32]] = []
    numbers: list[int] = []
    async for row in session.scan():
        match row.metadata:
            case {"kind": "collection"}:
                settings = Settings.of(row.metadata)
            case {"kind": "shard"}:
                shard = Shard.of(row.metadata)
                shards[shard.number] = shard
            case {"kind": "centroid", "shard": int(number)} if row.vector is not None:
                vectors.append(row.vector)
                numbers.append(number)
            case _:
                raise IntegrityError(
                    f"row {row.id!r} is none of a collection: this is another index", details={"id": row.id}
                )
    if settings is None or not shards:
        raise IntegrityError("the index has no shards: it is not the root of a collection")
    # Before arrays are made of them: numbers may be any.
    is_sound = (
        {*numbers} == shards.keys()
        if settings.route == "nearest"
        else not numbers and all(shard.first is not None for shard in shards.values())
    )
    if not is_sound or max(shards) >= settings.next_shard:
        raise IntegrityError("the rows of the root do not fit together")
    centroids = None
    if settings.route == "nearest":
        centroids = Centroids(
            np.array(vectors), np.array(numbers, dtype=np.intp), settings.params.metric, settings.scale
        )
    return Snapshot(settings, dict(sorted(shards.items())), centroids)


async def write_root(session: VectorDBSession, before: Snapshot | None, after: Snapshot) -> None:
    """Brings the rows of a root's session from one snapshot to another; a save makes it the newest.

    Nothing of the old snapshot stays in the new version.

    Raises:
        VectorDBError: the session failed.
    """
    old = {} if before is None else before.lines()
    new = after.lines()
    gone = [id for id in old if id not in new]
    added = [id for id in sorted(new) if id not in old or not _same_vector(old[id], new[id])]
    updated = [id for id in sorted(new) if id not in added and new[id].metadata != old[id].metadata]
    if gone:
        await session.delete(gone)
    if added:
        await session.add_batch(
            added,
            [new[id].vector for id in added],
            [new[id].metadata for id in added],
            np.zeros(len(added)),
            on_conflict="replace",
        )
    if updated:
        await session.update_metadata({id: new[id].metadata for id in updated})
    if old:
        await session.vacuum()


async def moved_root(session: VectorDBSession, before: Snapshot, after: Snapshot) -> str:
    """Makes a snapshot the newest root, and returns its CID.

    Raises:
        ConflictError: another process moved the root in between.
        VectorDBError: the session failed; it has unsaved changes then.
    """
    await write_root(session, before, after)
    return await session.save_to_s5()


def without_texts(config: VectorDBConfig) -> VectorDBConfig:
    """The settings of a root's own index: the texts of a collection are those of its shards."""
    if config.text_settings is None:
        return config
    none = dict.fromkeys(("text_fields", "text_language", "text_stop_words", "text_k1", "text_b"))
    return config_of(Given(config, none))


def _same_vector(one: _Line, other: _Line) -> bool:
    if one.vector is None or other.vector is None:
        return one.vector is other.vector
    return np.array_equal(one.vector, other.vector)
