"""Changes of a collection: from one snapshot to the next.

Tasks store new versions of the shards that change, and no snapshot names them yet. The caller then moves the root, once
for all of them. Until then, and if anything fails, the old snapshot is the collection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import anyio.to_thread
import numpy as np

from fabstir_vectordb.collections import tasks
from fabstir_vectordb.collections.build import BUILDS_IN_FLIGHT, build_jobs, shard_of
from fabstir_vectordb.collections.engines import Engine
from fabstir_vectordb.collections.fanout import Job, run_all
from fabstir_vectordb.collections.fingerprints import IdMap
from fabstir_vectordb.collections.keys import ShardKeys
from fabstir_vectordb.collections.placement import Placement, place, sampler_of
from fabstir_vectordb.collections.records import Recipe, Settings, Shard
from fabstir_vectordb.collections.root import Snapshot
from fabstir_vectordb.collections.routing import Centroids
from fabstir_vectordb.collections.rows import IDS_SHOWN, joined, picked, take_adds, with_vector
from fabstir_vectordb.collections.sampling import digests_of
from fabstir_vectordb.collections.shards import Change, change_shard, map_shard, read_shard
from fabstir_vectordb.collections.types import Teller
from fabstir_vectordb.errors import InvalidInputError, NotFoundError
from fabstir_vectordb.index.incoming import Batch, take_ids
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.params import wall_clock_us

__all__ = ["Changes"]


class Changes:
    """Makes the next snapshot of a collection.

    Args:
        at: the present snapshot.
        recipe: the store.
        keys: of the shards.
        engine: where shards are changed.
        ids: which shards may have an id.
        tell: is told of shards that are done.
    """

    def __init__(self, at: Snapshot, recipe: Recipe, keys: ShardKeys, engine: Engine, ids: IdMap, tell: Teller) -> None:
        self._at = at
        self._recipe = recipe
        self._keys = keys
        self._engine = engine
        self._ids = ids
        self._tell = tell

    # ---- rows

    async def change(self, adds: Any, deletes: Sequence[str], missing_ok: bool) -> Snapshot:
        """The snapshot after adds and deletes; `at` itself where they change nothing."""
        at, clock = self._at, self._recipe.clock
        now_us = wall_clock_us() if clock is None else round(clock() * 1e6)
        gone = list(dict.fromkeys(take_ids(deletes)))
        rows = take_adds(adds, now_us, at.settings.dim)
        both = set(gone).intersection(rows.ids)
        if both:
            raise InvalidInputError(
                f"the id {min(both)!r} is among adds and deletes: an add replaces the row",
                details={"ids": sorted(both)[:IDS_SHOWN]},
            )
        homes = await anyio.to_thread.run_sync(at.homes, rows)
        places: dict[int, list[int]] = {}
        for place_of_row, number in enumerate(homes.tolist()):
            places.setdefault(number, []).append(place_of_row)
        deleted = await self._where(rows.ids, homes.tolist(), gone, missing_ok)

        def change_of(number: int) -> Change:
            own = places.get(number)
            batch = picked(rows, np.array(own, dtype=np.intp)) if own else None
            return Change(batch, sorted(deleted.get(number, ())))

        after = await self._mapped(await self._stored(sorted({*places, *deleted}), change_of))
        if after is not at and at.settings.dim is None and with_vector(rows).any():
            after = replace(after, settings=replace(after.settings, dim=rows.vectors.shape[1]))
        return after

    async def _where(
        self, added: Sequence[str], homes: Sequence[int], gone: Sequence[str], missing_ok: bool
    ) -> dict[int, list[str]]:
        """The ids to delete by shard: those of `gone`, and old copies of added rows in other shards than their home.

        Raises:
            NotFoundError: an id of `gone` is in no shard.
        """
        at = self._at
        home = dict(zip(added, homes, strict=True))
        # With ranges of keys an added row is at home already.
        wanted = [*gone, *added] if at.centroids is not None else list(gone)
        asked = await self._ids.shards_of(at, wanted)
        jobs = [self._job(number, tasks.live_ids, partial(self._read_args, number, asked[number])) for number in asked]
        answers = await run_all(self._engine, jobs)
        found: dict[int, list[str]] = {}
        for number, ids in zip(answers.shards, answers.results, strict=True):
            if going := [id for id in ids if home.get(id) != number]:
                found[number] = going
        if not missing_ok:
            live = {id for ids in answers.results for id in ids}
            missing = [id for id in gone if id not in live]
            if missing:
                raise NotFoundError(
                    f"no row has the id {missing[0]!r}"
                    + (f", nor {len(missing) - 1} others" if len(missing) > 1 else ""),
                    details={"ids": missing[:IDS_SHOWN]},
                )
        return found

    async def vacuum(self) -> Snapshot:
        """The snapshot whose shards hold live rows only."""
        jobs = [self._job(number, tasks.dirt, partial(self._read_args, number)) for number in self._at.shards]
        answers = await run_all(self._engine, jobs)
        dirty = [number for number, one in zip(answers.shards, answers.results, strict=True) if one.rows or one.bytes]
        await self._ids.look(self._at)
        return await self._mapped(await self._stored(dirty, lambda _: Change(None, (), vacuum=True)))

    async def _mapped(self, after: Snapshot) -> Snapshot:
        """A snapshot whose shards have their fingerprints again, where these were found to be lost."""

        def args(number: int) -> Sequence[Any]:
            return self._recipe, self._keys.of_shard(number), after.shards[number].cid

        jobs = [self._job(number, map_shard, partial(args, number)) for number in self._ids.lost(after)]
        answers = await run_all(self._engine, jobs, in_flight=BUILDS_IN_FLIGHT)
        mapped = {
            number: replace(after.shards[number], fingerprints=fingerprints)
            for number, fingerprints in zip(answers.shards, answers.results, strict=True)
        }
        for shard in mapped.values():
            self._ids.stored(shard)
        # As a rule they are the same bytes at the same place: the root stays.
        other = {number: shard for number, shard in mapped.items() if shard != after.shards[number]}
        return after.with_shards(other, after.centroids, after.settings.next_shard) if other else after

    async def _stored(self, numbers: Sequence[int], change_of: Callable[[int], Change]) -> Snapshot:
        """The snapshot after a change of some shards, whose new versions are stored."""
        at = self._at

        def args(number: int) -> Sequence[Any]:
            key, is_mapped = self._keys.of_shard(number), at.centroids is not None
            return self._recipe, key, at.shards[number].cid, change_of(number), is_mapped

        jobs = [self._job(number, change_shard, partial(args, number)) for number in numbers]
        done = self._tell.counter("shards", len(jobs))
        answers = await run_all(self._engine, jobs, in_flight=BUILDS_IN_FLIGHT, done=done)
        changed = {
            number: shard_of(number, stored, at.shards[number].first)
            for number, stored in zip(answers.shards, answers.results, strict=True)
            if stored is not None
        }
        for shard in changed.values():
            self._ids.stored(shard)
        return at.with_shards(changed, at.centroids, at.settings.next_shard) if changed else at

    # ---- shards

    async def rebalance(self, rows_max: int | None, rows_min: int | None) -> Snapshot:
        """The snapshot whose shards are neither too large nor too small."""
        mean = max(1, self._at.rows // len(self._at.shards))
        most = _limit("rows_max", rows_max, 2 * mean)
        least = _limit("rows_min", rows_min, min(mean // 4, most // 2) or 1)
        if 2 * least > most and rows_min is not None:
            raise InvalidInputError(
                f"rows_min must be at most half of rows_max, {most}, got {least}", details={"limit": most // 2}
            )
        for shard in list(self._at.shards.values()):
            if shard.rows > most:
                self._at = await self._split(shard, max(2, -(-shard.rows // most)))
        for number in list(self._at.shards):
            small = self._at.shards.get(number)  # the other one of an earlier pair is gone
            if small is not None and small.rows < least:
                other = self._partner(small, most)
                if other is not None:
                    self._at = await self._join(small, other)
        return self._at

    async def _split(self, shard: Shard, parts: int) -> Snapshot:
        """The snapshot in which a shard is divided; the same one where its rows cannot be divided."""
        at = self._at
        rows = (await self._rows_of([shard]))[0]
        if at.centroids is not None and not with_vector(rows).any():
            return at
        new = range(at.settings.next_shard, at.settings.next_shard + parts)
        plan = await anyio.to_thread.run_sync(_divided, at.settings, rows, new, shard.first or "")
        if len(plan.numbers) < 2:
            return at
        return await self._exchanged([shard], rows, plan, new.stop)

    def _partner(self, shard: Shard, most: int) -> Shard | None:
        """The smallest shard that another one can be joined with; with ranges, one of its neighbours."""
        others = [other for other in self._at.shards.values() if other.number != shard.number]
        if self._at.centroids is None:
            ordered = sorted(self._at.shards.values(), key=lambda one: one.first or "")
            place_of_shard = ordered.index(shard)
            others = [
                *ordered[max(0, place_of_shard - 1) : place_of_shard],
                *ordered[place_of_shard + 1 : place_of_shard + 2],
            ]
        fitting = [other for other in others if other.rows + shard.rows <= most]
        return min(fitting, key=lambda one: (one.rows, one.number), default=None)

    async def _join(self, one: Shard, other: Shard) -> Snapshot:
        """The snapshot in which two shards are one."""
        at, number = self._at, self._at.settings.next_shard
        rows = joined(await self._rows_of([one, other]), at.settings.dim)
        centroids = at.centroids
        if centroids is not None:
            own = np.isin(centroids.shards, [one.number, other.number])
            centroids = replace(
                centroids, vectors=centroids.vectors[own], shards=np.full(int(own.sum()), number, dtype=np.intp)
            )
        firsts = {} if centroids is not None else {number: min(one.first or "", other.first or "")}
        plan = Placement([np.full(len(rows.ids), number, dtype=np.intp)], [number], centroids, firsts)
        return await self._exchanged([one, other], rows, plan, number + 1)

    async def _rows_of(self, shards: Sequence[Shard]) -> list[Batch]:
        def args(shard: Shard) -> Sequence[Any]:
            return self._recipe, self._keys.of_shard(shard.number), shard.cid, self._at.settings.dim

        jobs = [self._job(shard.number, read_shard, partial(args, shard)) for shard in shards]
        return (await run_all(self._engine, jobs, in_flight=BUILDS_IN_FLIGHT)).results

    async def _exchanged(self, old: Iterable[Shard], rows: Batch, plan: Placement, next_shard: int) -> Snapshot:
        """The snapshot with new shards of the same rows in place of old ones."""
        at = self._at
        no_queries = np.empty((0, rows.vectors.shape[1]), dtype=np.float32)
        (homes,) = plan.homes

        def rows_of(number: int) -> Batch:
            return picked(rows, np.flatnonzero(homes == number))

        jobs = build_jobs(self._recipe, self._keys, at.settings.params, plan, rows_of, no_queries)
        done = self._tell.counter("shards", len(jobs))
        built = (await run_all(self._engine, jobs, in_flight=BUILDS_IN_FLIGHT, done=done)).results
        changed: dict[int, Shard | None] = {shard.number: None for shard in old}
        for number, one in zip(plan.numbers, built, strict=True):
            changed[number] = shard_of(number, one.stored, plan.firsts.get(number))
        centroids = at.centroids
        if centroids is not None and plan.centroids is not None:
            staying = ~np.isin(centroids.shards, list(changed))
            centroids = Centroids(
                np.concatenate([centroids.vectors[staying], plan.centroids.vectors]),
                np.concatenate([centroids.shards[staying], plan.centroids.shards]),
                centroids.metric,
                centroids.scale,
            )
        after = at.with_shards(changed, centroids, next_shard)
        # It was measured for the shards that there were: without it, all shards are asked.
        return replace(after, settings=replace(after.settings, curve=()))

    # ---- tasks

    def _job(self, number: int, task: Callable[..., Any], args: Callable[[], Sequence[Any]]) -> Job:
        return Job(number, self._keys.hint(number), task, args)

    def _read_args(self, number: int, *args: Any) -> Sequence[Any]:
        return self._recipe, self._at.shards[number].share, *args


def _divided(settings: Settings, rows: Batch, numbers: Sequence[int], first: str) -> Placement:
    """The division of a shard's rows among new shards."""
    sampler = sampler_of(settings.route, len(numbers))
    sampler.add(rows, digests_of(rows.ids))
    metric, scale = settings.params.metric, settings.scale
    return place(settings.route, [rows], sampler.sample(), numbers, metric, scale, list, first)


def _limit(name: str, value: int | None, usual: int) -> int:
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInputError(f"{name} must be None or a positive integer, got {shown(value)}")
    return value
