"""Native parts that are damaged below every hash: a load refuses them, or makes an index that is whole.

The keys are the attacker's here, so an accepted part may hold other rows than it did; what counts is that nothing
crashes, hangs or reads past an end, and that what was accepted is consistent: it answers, changes, and saves to the
very bytes it came from.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import cache

import numpy as np
import pytest
from mutate import SEED, mutated

from fabstir_vectordb import VectorDBError
from fabstir_vectordb._native.handle import NO_SLOT, NativeIndex, pack_ids

DIM, M, ROWS = 3, 4, 1030  # the graph begins at 1,024 rows
LAYOUT = 256, 512
HYBRID_ROWS, SETTLED = 1800, 700
VECTORS, CODES, GRAPH, HEAD, LISTS, LISTS_HEAD, SECOND_LISTS = 1, 2, 6, 7, 8, 9, 11
FIRST_KINDS = {CODES, 3, 4, 5, HEAD}
Parts = dict[tuple[int, int], bytes]


@cache
def hybrid_parts(metric: str) -> Parts:
    """Settled rows, rows that moved since, recent ones, and tombstones on both sides."""
    rng = np.random.default_rng(SEED)
    index = NativeIndex(DIM, metric, "default", M, 30, 1)
    ids = [f"é{row}" for row in range(HYBRID_ROWS)]
    vectors = rng.standard_normal((HYBRID_ROWS, DIM)).astype(np.float32)
    index.add(vectors, *pack_ids(ids), np.arange(HYBRID_ROWS, dtype=np.int64))
    index.train(900)
    index.migrate(700, HYBRID_ROWS)
    index.vacuum()
    index.migrate(900, HYBRID_ROWS)
    index.delete(*pack_ids(ids[5:HYBRID_ROWS:9]), False)
    parts = written(index)
    assert index.stats().moved == 200
    index.close()
    return with_second_lists(parts)


def with_second_lists(parts: Parts) -> Parts:
    """Two in three of the rows on lists are also on the next one: training keeps no second lists on such rows."""
    lists, head = parts[LISTS, 0], parts[LISTS_HEAD, 0]
    numbers = bytes(0 if not number or row % 3 == 0 else number % 56 + 1 for row, number in enumerate(lists[40:]))
    second = lists[:6] + SECOND_LISTS.to_bytes(2, "little") + lists[8:40] + numbers
    limit = struct.pack("<f", 2.0)
    return {**parts, (LISTS_HEAD, 0): head[:52] + limit + head[56:], (SECOND_LISTS, 0): second}


@cache
def good_parts(rows: int, metric: str) -> Parts:
    if rows == HYBRID_ROWS:
        return hybrid_parts(metric)
    rng = np.random.default_rng(SEED)
    index = NativeIndex(DIM, metric, "default", M, 30, 1)
    ids = [f"é{row}" for row in range(rows)]
    index.add(rng.standard_normal((rows, DIM)).astype(np.float32), *pack_ids(ids), rng.integers(0, 2**40, rows))
    index.delete(*pack_ids(ids[5:rows:9]), False)
    parts = written(index)
    index.close()
    return parts


def written(index: NativeIndex) -> Parts:
    return {
        (info.kind, info.number): bytes(index.write_part(*LAYOUT, info.kind, info.number, info.size))
        for info in index.parts(*LAYOUT)
    }


def load(parts: Parts, rows: int, metric: str, memory: str = "default") -> NativeIndex:
    hybrid = any(kind == LISTS_HEAD for kind, _ in parts)
    graph_rows = 0 if rows < 1024 else rows - SETTLED if hybrid else rows
    index = NativeIndex.load_begin(
        DIM,
        metric=metric,
        memory=memory,
        M=M,
        ef_construction=30,
        threads=1,
        rows=rows,
        graph_rows=graph_rows,
        rows_per_part=LAYOUT[0],
        rows_per_group=LAYOUT[1],
        has_codes=rows >= 1024,
        lists=56 if hybrid else 0,
        has_seconds=any(kind == SECOND_LISTS for kind, _ in parts),
    )
    try:
        for raw in parts.values():
            index.load_part(raw)
        index.load_end()
    except BaseException:
        index.close()
        raise
    return index


def load_lazily(parts: Parts, rows: int, metric: str) -> NativeIndex:
    hybrid = any(kind == LISTS_HEAD for kind, _ in parts)
    index = NativeIndex.load_begin(
        DIM,
        metric=metric,
        memory="default",
        M=M,
        ef_construction=30,
        threads=1,
        rows=rows,
        graph_rows=rows - SETTLED if hybrid else rows,
        rows_per_part=LAYOUT[0],
        rows_per_group=LAYOUT[1],
        has_codes=rows >= 1024,
        lists=56 if hybrid else 0,
        has_seconds=any(kind == SECOND_LISTS for kind, _ in parts),
    )
    try:
        for (kind, _), raw in parts.items():
            if kind in FIRST_KINDS:
                index.load_part(raw)
        index.load_lazy()
    except BaseException:
        index.close()
        raise
    return index


def use_lazily(index: NativeIndex, parts: Parts, rows: int) -> None:
    """The same of one that is loaded lazily."""
    live = set(index.live_slots(0, rows).tolist())
    for query in np.eye(DIM, dtype=np.float32):
        candidates, estimates = index.candidates(query, 50)
        assert (np.sort(estimates) == estimates).all()
        assert len(candidates) == min(50, len(live))
        assert set(candidates.tolist()) <= live
        for (kind, _), raw in parts.items():
            if kind != VECTORS:
                continue
            try:
                index.check_part(raw)
            except VectorDBError:
                continue
            slots, distances = index.search_part(raw, query, 5)
            assert set(slots.tolist()) <= live
            assert np.isfinite(distances).all()
            assert np.isfinite(index.part_vectors(raw, slots)).all()


def use(index: NativeIndex, parts: Parts, rows: int, metric: str) -> None:
    """Everything an index can do, on one that a damaged part went into."""
    saved = written(index)
    assert saved.keys() == parts.keys()
    # Codes are for lazy loads: what is written follows from the rows.
    assert [key for key, raw in parts.items() if saved[key] != raw and key[0] != CODES] == []
    again = load(saved, rows, metric)
    assert written(again) == saved
    again.close()
    stats = index.stats()
    assert stats.rows == rows
    live = index.live_slots(0, rows)
    assert len(live) == stats.live
    everything = np.arange(rows, dtype=np.uint32)
    vectors, ids = index.get_vectors(everything), index.get_ids(everything)
    assert np.isfinite(vectors).all()
    index.get_timestamps(everything)
    if len(live):
        found = index.find(*pack_ids([ids[slot] for slot in live]))
        assert np.array_equal(found, live)
    queries = np.eye(DIM, dtype=np.float32)
    for exact, nprobe in ((False, 0), (False, 1), (True, 0)):
        hits = index.search(queries, 10, ef_search=50, exact=exact, nprobe=nprobe)
        assert (hits.counts <= stats.live).all()
        assert not {int(slot) for slot in hits.slots.ravel()} - {NO_SLOT} - set(live.tolist())
        assert (np.diff(hits.distances[:, : hits.counts.min()], axis=1) >= 0).all()
    new = np.ones((3, DIM), np.float32)
    index.add(new, *pack_ids(["new 0", "new 1", "new 2"]), np.zeros(3, np.int64), "replace")
    index.delete(*pack_ids(["new 1", *[ids[slot] for slot in live[:20]]]), True)
    if stats.lists:
        index.migrate(2**62, 100)
        assert index.historical().size == (index.stats().rows + 63) // 64
    order = index.vacuum_order()
    slot_map = index.vacuum()
    assert np.array_equal(slot_map[order], np.arange(len(order)))
    assert (index.find(*pack_ids(["new 0", "new 1", "new 2"])) != NO_SLOT).tolist() == [True, False, True]
    _, distances, *_ = index.search_one(new[0], 1, exact=True)
    assert metric == "dot" or distances == pytest.approx([0], abs=1e-9)


def campaign(rows: int, metric: str, rounds: int, random_: random.Random) -> tuple[int, int]:
    good = good_parts(rows, metric)
    corpus = list(good.values())
    accepted = refused = 0
    for _ in range(rounds):
        key = random_.choice(list(good))
        # The header is read first: most damage belongs behind it.
        raw = good[key]
        if random_.random() < 0.8:
            payload = mutated(raw[40:], corpus, random_)
            raw = raw[:32] + len(payload).to_bytes(8, "little") + payload
        else:
            raw = mutated(raw, corpus, random_)
        parts = {**good, key: raw}
        if rows >= 1024:
            with suppress(VectorDBError):
                lazy = load_lazily(parts, rows, metric)
                use_lazily(lazy, parts, rows)
                lazy.close()
        try:
            index = load(parts, rows, metric, random_.choice(("fast", "default", "compact")))
        except VectorDBError:
            refused += 1
            continue
        accepted += 1
        use(index, parts, rows, metric)
        index.close()
    return accepted, refused


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("rows", [20, ROWS, HYBRID_ROWS])
def test_damaged_parts(rows: int, metric: str) -> None:
    index = load(good_parts(rows, metric), rows, metric)
    use(index, good_parts(rows, metric), rows, metric)
    index.close()
    accepted, refused = campaign(rows, metric, 150, random.Random(f"{SEED} {rows} {metric}"))
    # Both happen, or the damage is not what it should be.
    assert accepted
    assert refused


@pytest.mark.long
@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("rows", [1, 20, 513, ROWS, HYBRID_ROWS])
def test_damaged_parts_for_long(rows: int, metric: str) -> None:
    campaign(rows, metric, 20_000, random.Random(f"{SEED} {rows} {metric} long"))


def _every_cut(parts: Parts) -> Iterator[tuple[tuple[int, int], bytes]]:
    for key, raw in parts.items():
        for cut in {*range(0, 60), *range(60, len(raw), max(1, len(raw) // 20)), len(raw) - 1}:
            if cut < len(raw):
                yield key, raw[:cut]
        yield key, raw + b"\0"


@pytest.mark.parametrize("rows", [ROWS, HYBRID_ROWS])
def test_a_part_that_is_cut_off_is_refused(rows: int) -> None:
    good = good_parts(rows, "cosine")
    for key, raw in _every_cut(good):
        read = load_lazily if key[0] == CODES else load
        with pytest.raises(VectorDBError):
            read({**good, key: raw}, rows, "cosine")
        if len(raw) > 40:
            # Cut off, and saying so.
            shorter = raw[:32] + (len(raw) - 40).to_bytes(8, "little") + raw[40:]
            with pytest.raises(VectorDBError):
                read({**good, key: shorter}, rows, "cosine")


def test_parts_of_another_index_never_crash() -> None:
    good, other = good_parts(ROWS, "cosine"), good_parts(ROWS, "l2")
    small = good_parts(20, "cosine")
    for key in good:
        for foreign in (other, small):
            for raw in foreign.values():
                parts = {**good, key: raw}
                try:
                    index = load(parts, ROWS, "cosine")
                except VectorDBError:
                    continue
                use(index, parts, ROWS, "cosine")
                index.close()
    for claimed in (0, 1, 1024, 2**31 - 1):
        with pytest.raises(VectorDBError):
            load(small, claimed, "cosine")


def test_vectors_that_were_refused_are_missing_at_the_end() -> None:
    """Their rows would be zeros, or lie where no memory is."""
    index = NativeIndex(DIM, "l2", "default", M, 30, 1)
    index.add(np.ones((20, DIM), np.float32), *pack_ids([str(row) for row in range(20)]), np.zeros(20, np.int64))
    parts = written(index)
    index.close()
    loading = NativeIndex.load_begin(
        DIM,
        metric="l2",
        memory="default",
        M=M,
        ef_construction=30,
        threads=1,
        rows=20,
        graph_rows=0,
        rows_per_part=LAYOUT[0],
        rows_per_group=LAYOUT[1],
        has_codes=False,
    )
    for key, raw in parts.items():
        if key[0] != VECTORS:
            loading.load_part(raw)
        else:
            with pytest.raises(VectorDBError, match="another size"):
                loading.load_part(raw[:32] + (len(raw) - 41).to_bytes(8, "little") + raw[40:-1])
    with pytest.raises(VectorDBError, match="a part is missing"):
        loading.load_end()
    loading.close()
