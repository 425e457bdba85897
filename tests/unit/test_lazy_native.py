"""What a native index does of which only some parts are there, and one whose last links are made again."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest

from fabstir_vectordb import IntegrityError, InvalidInputError
from fabstir_vectordb._native.handle import NativeIndex, pack_ids

VECTORS, CODES, IDS, TIMESTAMPS, TOMBSTONES, GRAPH, HEAD = range(1, 8)
FIRST = {CODES, IDS, TIMESTAMPS, TOMBSTONES, HEAD}
SEED, DIM, ROWS = 20_261_124, 33, 3000
LAYOUT = 256, 1024
Parts = dict[tuple[int, int], bytes]


def rows_of(n: int, seed: int = SEED) -> np.ndarray:
    """Rows in clusters, one after the other, far from the origin."""
    rng = np.random.default_rng(seed)
    middles = rng.standard_normal((n // 100 + 1, DIM)) * 2
    return (middles[np.arange(n) // 100] + rng.standard_normal((n, DIM)) + 1).astype(np.float32)


def add(index: NativeIndex, rows: np.ndarray, first: int) -> None:
    ids = [f"row {first + row}" for row in range(len(rows))]
    index.add(rows, *pack_ids(ids), np.arange(first, first + len(rows), dtype=np.int64))


def made(metric: str, memory: str = "default", threads: int = 1) -> NativeIndex:
    index = NativeIndex(DIM, metric, memory, 8, 60, threads)
    add(index, rows_of(ROWS), 0)
    index.delete(*pack_ids([f"row {row}" for row in range(0, ROWS, 7)]), False)
    return index


def written(index: NativeIndex) -> Parts:
    return {(info.kind, info.number): bytes(index.write_part(*LAYOUT, *info)) for info in index.parts(*LAYOUT)}


@cache
def kept(metric: str) -> tuple[NativeIndex, Parts]:
    """An index that no test changes, and its parts."""
    index = made(metric)
    return index, written(index)


def without_graph(parts: Parts) -> Parts:
    return {key: raw for key, raw in parts.items() if key[0] not in (GRAPH, HEAD)}


def begin(index: NativeIndex, metric: str, memory: str = "default", threads: int = 1, **more: int) -> NativeIndex:
    rows = index.stats().rows
    return NativeIndex.load_begin(
        DIM, metric=metric, memory=memory, M=8, ef_construction=60, threads=threads, rows=rows,
        graph_rows=index.stats().graph_rows, rows_per_part=LAYOUT[0], rows_per_group=LAYOUT[1],
        has_codes=rows >= 1024, **more,
    )  # fmt: skip


def historical_ids(index: NativeIndex) -> set[str]:
    bits = np.unpackbits(index.historical().view(np.uint8), bitorder="little")
    return set(index.get_ids(np.flatnonzero(bits).astype(np.uint32)))


def lazily(index: NativeIndex, parts: Parts, metric: str) -> NativeIndex:
    lazy = begin(index, metric)
    for (kind, _), raw in parts.items():
        if kind in FIRST:
            lazy.load_part(raw)
    lazy.load_lazy()
    return lazy


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
def test_codes_say_where_the_nearest_rows_are(metric: str) -> None:
    index, parts = kept(metric)
    lazy = lazily(index, parts, metric)
    allow = np.full((ROWS + 63) // 64, 0x5555_5555_5555_5555, dtype=np.uint64)
    found = wanted = 0
    for query in rows_of(50, seed=3):
        for chosen in (None, allow):
            exact = index.search(query[np.newaxis], 10, exact=True, allow=chosen)
            candidates, estimates = lazy.candidates(query, 100, chosen)
            assert (np.diff(estimates) >= 0).all()
            assert len(candidates) == len(set(candidates.tolist())) == 100
            assert chosen is None or not (candidates % 2).any()
            assert (candidates % 7).all()
            wanted += 10
            found += len(set(candidates.tolist()) & set(exact.slots[0].tolist()))
    assert found / wanted > 0.75


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
def test_codes_estimate_distances(metric: str) -> None:
    """So that the candidates of several indexes can be put into one order."""
    index, parts = kept(metric)
    lazy = lazily(index, parts, metric)
    for query in rows_of(5, seed=5):
        exact = index.search(query[np.newaxis], ROWS, exact=True)
        count = int(exact.counts[0])
        slots, estimates = lazy.candidates(query, ROWS)
        assert len(slots) == count
        true = np.empty(ROWS)
        true[exact.slots[0, :count]] = exact.distances[0, :count]
        spread = true[slots].std()
        assert abs(estimates.mean() - true[slots].mean()) < 0.5 * spread
        assert np.corrcoef(estimates, true[slots])[0, 1] > 0.7


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
def test_a_part_is_searched_as_the_index_is(metric: str) -> None:
    index, parts = kept(metric)
    lazy = lazily(index, parts, metric)
    for query in rows_of(5, seed=4):
        hits = []
        for number in range((ROWS + 255) // 256):
            raw = parts[VECTORS, number]
            lazy.check_part(raw)
            slots, distances = lazy.search_part(raw, query, 20)
            assert ((slots >= number * 256) & (slots < (number + 1) * 256)).all()
            assert np.array_equal(lazy.part_vectors(raw, slots), index.get_vectors(slots))
            hits += zip(distances.tolist(), slots.tolist(), strict=True)
        exact = index.search(query[np.newaxis], 20, exact=True)
        nearest = sorted(hits)[:20]
        assert [slot for _, slot in nearest] == exact.slots[0].tolist()
        assert [distance for distance, _ in nearest] == exact.distances[0].tolist()


def test_rows_are_known_before_their_vectors() -> None:
    index, parts = kept("cosine")
    lazy = lazily(index, parts, "cosine")
    everything = np.arange(ROWS, dtype=np.uint32)
    ids = lazy.get_ids(everything)
    assert ids == index.get_ids(everything)
    assert np.array_equal(lazy.get_timestamps(everything), index.get_timestamps(everything))
    assert np.array_equal(lazy.live_slots(0, ROWS), index.live_slots(0, ROWS))
    assert np.array_equal(lazy.find(*pack_ids(ids)), index.find(*pack_ids(ids)))
    assert lazy.stats().live == index.stats().live
    # A code is an eighth of the default setting's memory for a row and its links.
    assert lazy.stats().bytes_total < index.stats().bytes_total / 3


def test_a_lazy_load_wants_its_parts() -> None:
    index, parts = kept("cosine")
    for missing in FIRST:
        with pytest.raises(IntegrityError, match="missing"):
            lazily(index, {key: raw for key, raw in parts.items() if key != (missing, 0)}, "cosine")
    lazy = lazily(index, parts, "cosine")
    for wrong in (parts[IDS, 0], parts[VECTORS, 0][:-1], b"", parts[VECTORS, 0][:40]):
        with pytest.raises(IntegrityError):
            lazy.check_part(wrong)
    with pytest.raises(InvalidInputError):
        lazy.candidates(np.zeros(DIM, np.float32), 5)
    damaged = bytearray(parts[VECTORS, 0])
    damaged[40 : 40 + 2 * DIM * 256] = b"\xff" * (2 * DIM * 256)  # high halves of NaN
    with pytest.raises(IntegrityError):
        lazy.check_part(bytes(damaged))


@pytest.mark.parametrize("memory", ["default", "compact"])
def test_steps_give_the_graph_that_adds_gave(memory: str) -> None:
    index = made("cosine", memory)
    assert index.graph_steps() == (0, [])
    parts = written(index)
    graph = {key: parts[key] for key in parts.keys() - without_graph(parts).keys()}
    index.graph_stored()
    ends = []
    for size in (1, 40, 60, 3):
        add(index, rows_of(size, seed=size), 10_000 * size)
        ends.append(index.stats().rows)
        index.delete(*pack_ids([f"row {10_000 * size}"]), False)
    assert index.graph_steps() == (ROWS, ends)
    now = written(index)
    for threads in (1, 3):
        loaded = begin(index, "cosine", memory, threads, stored_rows=ROWS)
        for raw in {**without_graph(now), **graph}.values():
            loaded.load_part(raw)
        loaded.load_end(ends)
        assert written(loaded) == now
        assert loaded.graph_steps() == (ROWS, ends)


def test_steps_end_where_a_graph_is_worth_storing() -> None:
    index = made("cosine")
    index.graph_stored()
    add(index, rows_of(ROWS // 16 + 1), 10_000)
    assert index.graph_steps() == (0, [])
    index.graph_stored()
    for row in range(100):
        assert len(index.graph_steps()[1]) == row
        add(index, rows_of(1, seed=row), 20_000 + row)
    index.vacuum()
    assert index.graph_steps() == (0, [])


def test_steps_that_lead_nowhere_are_refused() -> None:
    index = made("cosine")
    parts = written(index)
    graph = {key: parts[key] for key in parts.keys() - without_graph(parts).keys()}
    add(index, rows_of(10), 10_000)
    now = {**without_graph(written(index)), **graph}
    for steps in ([], [ROWS], [ROWS + 10, ROWS + 10], [ROWS + 11], [ROWS + 5], [ROWS + 10, ROWS + 5]):
        loaded = begin(index, "cosine", stored_rows=ROWS)
        for raw in now.values():
            loaded.load_part(raw)
        with pytest.raises(IntegrityError, match="steps"):
            loaded.load_end(steps)
    with pytest.raises(InvalidInputError, match="stored_rows"):
        begin(index, "cosine", stored_rows=100)


# ---- calls that the state of an index does not answer

ONE_ROW = np.ones((1, DIM), np.float32)
FIRST_SLOTS = np.arange(5, dtype=np.uint32)
NEED_ROWS: dict[str, Callable[[NativeIndex], object]] = {
    "add": lambda index: add(index, ONE_ROW, 90_000),
    "delete": lambda index: index.delete(*pack_ids(["row 1"]), True),
    "exact": lambda index: index.search(ONE_ROW, 3, exact=True),
    "get_vectors": lambda index: index.get_vectors(FIRST_SLOTS),
    "graph_steps": lambda index: index.graph_steps(),
    "graph_stored": lambda index: index.graph_stored(),
    "historical": lambda index: index.historical(),
    "migrate": lambda index: index.migrate(2**62, 100),
    "locality_order": lambda index: index.locality_order(),
    "parts": lambda index: index.parts(*LAYOUT),
    "probes": lambda index: index.probes(10, 0.9),
    "renumber": lambda index: index.renumber(np.arange(ROWS, dtype=np.uint32)),
    "search": lambda index: index.search(ONE_ROW, 3),
    "search_one": lambda index: index.search_one(ONE_ROW[0], 3),
    "train": lambda index: index.train(2**62),
    "vacuum": lambda index: index.vacuum(),
    "vacuum_order": lambda index: index.vacuum_order(),
    "with_dim": lambda index: index.with_dim(DIM + 1),
    "write_part": lambda index: index.write_part(*LAYOUT, VECTORS, 0, 40 + 256 * DIM * 4),
}
NEED_IDS: dict[str, Callable[[NativeIndex], object]] = {
    "are_bare": lambda index: index.are_vectorless(FIRST_SLOTS),
    "find": lambda index: index.find(*pack_ids(["row 1"])),
    "get_ids": lambda index: index.get_ids(FIRST_SLOTS),
    "get_timestamps": lambda index: index.get_timestamps(FIRST_SLOTS),
    "live_bitmap": lambda index: index.live_bitmap(),
    "live_slots": lambda index: index.live_slots(0, 10),
    "stats": lambda index: index.stats(),
}


@pytest.mark.parametrize("call", NEED_ROWS)
def test_a_lazy_index_refuses_what_needs_vectors_or_changes_rows(call: str) -> None:
    index, parts = kept("cosine")
    lazy = lazily(index, parts, "cosine")
    before, _ = lazy.candidates(ONE_ROW[0], 10)
    with pytest.raises(InvalidInputError, match="lazily"):
        NEED_ROWS[call](lazy)
    assert lazy.stats().rows == ROWS
    assert lazy.candidates(ONE_ROW[0], 10)[0].tolist() == before.tolist()


@pytest.mark.parametrize("call", [*NEED_ROWS, *NEED_IDS])
def test_an_index_that_is_loading_refuses_calls_and_loads_on(call: str) -> None:
    index, parts = kept("cosine")
    loading = begin(index, "cosine")
    *most, last = parts.values()
    for raw in most:
        loading.load_part(raw)
    with pytest.raises(InvalidInputError, match="still being loaded"):
        (NEED_ROWS | NEED_IDS)[call](loading)
    loading.load_part(last)
    loading.load_end()
    assert written(loading) == parts


def test_a_load_that_failed_leaves_nothing_to_ask() -> None:
    index, parts = kept("cosine")
    broken = begin(index, "cosine")
    with pytest.raises(IntegrityError, match="missing"):
        broken.load_end()
    for call in ({**NEED_ROWS, **NEED_IDS}).values():
        with pytest.raises(InvalidInputError, match="failed"):
            call(broken)
    for again in (broken.load_end, broken.load_lazy, lambda: broken.load_part(parts[VECTORS, 0])):
        with pytest.raises(InvalidInputError, match="failed"):
            again()


def test_a_load_ends_once() -> None:
    index, parts = kept("cosine")
    for finished in (lazily(index, parts, "cosine"), index):
        for again in (finished.load_end, finished.load_lazy, partial(finished.load_part, parts[VECTORS, 0])):
            with pytest.raises(InvalidInputError):
                again()
    with pytest.raises(InvalidInputError, match="neither"):
        index.candidates(ONE_ROW[0], 10)
    with pytest.raises(InvalidInputError, match="neither"):
        index.check_part(parts[VECTORS, 0])


def test_live_rows_come_as_a_bitmap() -> None:
    index, parts = kept("cosine")
    for one in (index, lazily(index, parts, "cosine")):
        bits = np.unpackbits(one.live_bitmap().view(np.uint8), bitorder="little")
        assert np.array_equal(np.flatnonzero(bits), one.live_slots(0, ROWS))


# ---- an order in which near rows stand together


@pytest.mark.parametrize("memory", ["default", "compact"])
@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
def test_new_slots_change_no_answer(metric: str, memory: str) -> None:
    index, other = made(metric, memory), made(metric, memory)
    order = index.locality_order()
    assert np.array_equal(np.sort(order), np.arange(ROWS))
    index.renumber(order)
    assert index.get_ids(np.arange(ROWS, dtype=np.uint32)) == other.get_ids(order)
    assert np.array_equal(index.get_vectors(np.arange(ROWS, dtype=np.uint32)), other.get_vectors(order))
    assert np.array_equal(index.get_timestamps(np.arange(ROWS, dtype=np.uint32)), other.get_timestamps(order))
    assert index.stats()[:5] == other.stats()[:5]
    same = 0
    for query in rows_of(30, seed=5):
        exact = index.search(query[np.newaxis], 10, exact=True)
        assert exact.ids == other.search(query[np.newaxis], 10, exact=True).ids
        walked, walked_before = index.search(query[np.newaxis], 10), other.search(query[np.newaxis], 10)
        same += walked.ids == walked_before.ids
    assert same >= 29
    # It goes on as any index.
    add(index, rows_of(50, seed=6), 50_000)
    index.vacuum()
    assert index.stats().live == ROWS - 429 + 50


def test_near_rows_get_near_slots() -> None:
    rng = np.random.default_rng(SEED)
    middles = rng.standard_normal((24, DIM)) * 3
    clusters = rng.integers(0, 24, ROWS)
    index = NativeIndex(DIM, "l2", "default", 8, 60, 2)
    add(index, (middles[clusters] + rng.standard_normal((ROWS, DIM)) * 0.2).astype(np.float32), 0)
    before = np.count_nonzero(np.diff(clusters))
    after = np.count_nonzero(np.diff(clusters[index.locality_order()]))
    assert after < before / 3


def test_the_order_is_that_of_any_threads_and_memory() -> None:
    settings = [(memory, threads) for memory in ("default", "compact") for threads in (1, 3)]
    orders = {made("cosine", *setting).locality_order().tobytes() for setting in settings}
    assert len(orders) == 1


def test_lists_and_settled_rows_keep_their_places() -> None:
    index = made("cosine")
    add(index, rows_of(1500, seed=7), 10_000)
    index.train(2_000)
    index.migrate(2_000, 10_000)
    index.vacuum()
    settled = index.stats().historical
    assert 1_000 < settled < index.stats().rows
    add(index, rows_of(20, seed=8), 60_000)
    index.migrate(11_000, 300)
    on_lists = historical_ids(index)
    order = index.locality_order()
    assert np.array_equal(order[:settled], np.arange(settled))
    stats = index.stats()
    index.renumber(order)
    assert index.stats()[:9] == stats[:9]
    now = historical_ids(index)
    assert now == on_lists
    moved = np.arange(index.stats().rows, dtype=np.uint32)[::-1].copy()
    for wrong in (moved, order[:-1].copy(), np.zeros_like(order), order + 1):
        with pytest.raises(InvalidInputError):
            index.renumber(wrong)
    assert written(index)
    index.vacuum()
