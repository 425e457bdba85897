"""The binding: arrays in, arrays out, statuses as errors with what a caller needs to say which row and why."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from fabstir_vectordb._native import handle, search
from fabstir_vectordb._native.call import raise_status
from fabstir_vectordb._native.handle import NO_SLOT, Control, NativeIndex, pack_ids
from fabstir_vectordb._native.library import ffi, lib
from fabstir_vectordb.errors import (
    ConflictError,
    IndexStateError,
    IntegrityError,
    InternalError,
    InvalidInputError,
    NotFoundError,
    VectorDBError,
)

DIM = 8
SEED = 20261123
NAMES = [f"row-{i}" for i in range(50)]


def make(metric: str = "l2", memory: str = "default") -> NativeIndex:
    return NativeIndex(DIM, metric, memory, 8, 40, 2, hash_seed=7)


def vectors(n: int, seed: int = SEED) -> Any:
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


def fill(index: NativeIndex, names: list[str], rows: Any = None, **options: Any) -> tuple[Any, Any]:
    rows = vectors(len(names)) if rows is None else rows
    return index.add(rows, *pack_ids(names), np.arange(len(names), dtype=np.int64) * 1_000, **options)


@pytest.fixture
def index() -> Iterator[NativeIndex]:
    index = make()
    fill(index, NAMES)
    yield index
    index.close()


# ---- ids


def test_ascii_ids_are_packed_end_to_end() -> None:
    packed, offsets = pack_ids(["a", "bcd", ""])
    assert (packed, offsets.tolist(), offsets.dtype) == (b"abcd", [0, 1, 4, 4], np.uint64)
    packed, offsets = pack_ids([])
    assert (packed, offsets.tolist()) == (b"", [0])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=20))
def test_packed_ids_are_their_utf8_bytes(names: list[str]) -> None:
    packed, offsets = pack_ids(names)
    bounds = offsets.tolist()
    assert [packed[a:b].decode() for a, b in pairwise(bounds)] == names


def test_a_lone_surrogate_is_refused_with_its_row() -> None:
    with pytest.raises(InvalidInputError, match="row 2 holds a lone surrogate") as caught:
        pack_ids(["fine", "ünïcode", "broken \ud800"])
    assert caught.value.details == {"row": 2}


def test_ids_of_every_plane_and_length_come_back(index: NativeIndex) -> None:
    names = ["\x00", "é", "\u20ac", "\U0001f600", "\U0010fffd", "x" * handle.ID_BYTES_MAX, "\U0001f600" * 256]
    slots, _ = fill(index, names)
    assert index.get_ids(slots) == names
    assert index.find(*pack_ids(names)).tolist() == slots.tolist()


# ---- add, find, read


def test_rows_come_back_as_given(index: NativeIndex) -> None:
    slots = index.find(*pack_ids(NAMES))
    assert slots.tolist() == list(range(50))
    assert index.get_vectors(slots).tobytes() == vectors(50).tobytes()
    assert index.get_timestamps(slots).tolist() == [i * 1_000 for i in range(50)]
    assert index.get_ids(slots[::-1].copy()) == NAMES[::-1]
    assert index.find(*pack_ids(["row-3", "nobody"])).tolist() == [3, NO_SLOT]
    assert index.live_slots(0, 100).tolist() == list(range(50))
    assert index.live_slots(45, 3).tolist() == [45, 46, 47]


def test_conflicts_are_refused_replaced_or_skipped(index: NativeIndex) -> None:
    with pytest.raises(ConflictError, match="live already") as caught:
        fill(index, ["new", "row-4"])
    assert caught.value.details["row"] == 1
    assert caught.value.details["first_row"] is None
    with pytest.raises(ConflictError, match="twice in the call") as caught:
        fill(index, ["new", "other", "new"], on_conflict="error")
    assert (caught.value.details["row"], caught.value.details["first_row"]) == (2, 0)
    assert index.stats().rows == 50

    slots, replaced = fill(index, ["new", "row-4"], on_conflict="replace")
    assert (slots.tolist(), replaced.tolist()) == ([50, 51], [NO_SLOT, 4])
    slots, replaced = fill(index, ["newer", "row-5"], on_conflict="skip")
    assert (slots.tolist(), replaced.tolist()) == ([52, NO_SLOT], [NO_SLOT, NO_SLOT])
    assert index.stats()[:2] == (53, 52)
    slots, replaced = fill(index, ["twice", "other", "twice"], on_conflict="skip")
    assert (slots.tolist(), replaced.tolist()) == ([53, 54, NO_SLOT], [NO_SLOT] * 3)
    slots, replaced = fill(index, ["twice", "third", "twice"], on_conflict="replace")
    assert (slots.tolist(), replaced.tolist()) == ([NO_SLOT, 55, 56], [NO_SLOT, NO_SLOT, 53])
    assert index.stats()[:2] == (57, 55)


def test_nothing_can_be_added_and_found(index: NativeIndex) -> None:
    slots, replaced = fill(index, [], np.empty((0, DIM), dtype=np.float32))
    assert len(slots) == len(replaced) == 0
    assert len(index.find(*pack_ids([]))) == 0
    assert len(index.delete(*pack_ids([]), missing_ok=False)) == 0
    none = np.empty(0, dtype=np.uint32)
    assert index.get_ids(none) == []
    assert index.get_vectors(none).shape == (0, DIM)
    assert len(index.get_timestamps(none)) == 0
    assert index.search(np.empty((0, DIM), dtype=np.float32), 3).ids == []


# ---- search


def test_one_query_answers_as_a_batch_does(index: NativeIndex) -> None:
    queries = vectors(5, seed=1)
    hits = index.search(queries, 4)
    for row, query in enumerate(queries):
        slots, distances, ids, plan, *_ = index.search_one(query, 4)
        assert list(slots) == hits.slots[row].tolist()
        assert list(distances) == hits.distances[row].tolist()
        assert ids == hits.ids[row] == [f"row-{slot}" for slot in slots]
        assert plan == hits.plans[row] == handle.PLAN_FLAT


def test_one_query_leaves_out_what_scores_too_little(index: NativeIndex) -> None:
    query = vectors(1, seed=1)[0]
    _, distances, ids, _, scores, below = index.search_one(query, 20)
    assert (list(scores), below) == (handle.scores_of("l2", np.array(distances)).tolist(), 0)
    assert list(scores) == [1.0 / (1.0 + distance) for distance in distances]
    for kept in (20, 7, 1):
        found = index.search_one(query, 20, threshold=scores[kept - 1])
        assert (len(found[0]), found[2], list(found[4]), found[5]) == (kept, ids[:kept], list(scores[:kept]), 20 - kept)
    assert index.search_one(query, 20, threshold=1.0)[1:] == ((), [], handle.PLAN_FLAT, (), 20)


def test_answers_are_those_of_a_plain_scan(index: NativeIndex) -> None:
    queries = vectors(5, seed=2)
    exact = np.linalg.norm(vectors(50).astype(np.float64)[None] - queries.astype(np.float64)[:, None], axis=2)
    hits = index.search(queries, 10, exact=True)
    assert hits.slots.tolist() == np.argsort(exact, axis=1)[:, :10].tolist()
    np.testing.assert_allclose(hits.distances, np.sort(exact, axis=1)[:, :10], rtol=1e-12)


def test_ids_can_be_left_out(index: NativeIndex) -> None:
    with_ids, without = (index.search(vectors(3), 5, with_ids=wanted) for wanted in (True, False))
    assert without.ids == []
    assert without.slots.tolist() == with_ids.slots.tolist()
    assert without.distances.tolist() == with_ids.distances.tolist()


def test_one_exact_answer_is_that_of_an_exact_search() -> None:
    index = make()
    fill(index, [f"row-{i}" for i in range(3000)])
    queries = vectors(5, seed=2)
    hits = index.search(queries, 10, exact=True)
    for row, query in enumerate(queries):
        slots, distances, _, plan, *_ = index.search_one(query, 10, exact=True, nowait=True)
        assert (list(slots), list(distances)) == (hits.slots[row].tolist(), hits.distances[row].tolist())
        assert plan == handle.PLAN_FLAT != index.search_one(query, 10, 10)[3]


def test_more_than_there_is_gives_what_there_is(index: NativeIndex) -> None:
    hits = index.search(vectors(2), 60)
    assert hits.counts.tolist() == [50, 50]
    assert [len(ids) for ids in hits.ids] == [50, 50]
    assert (hits.slots[:, 50:] == NO_SLOT).all()
    assert np.isposinf(hits.distances[:, 50:]).all()
    slots, distances, ids, *_ = index.search_one(vectors(1)[0], 60)
    assert len(slots) == len(distances) == len(ids) == 50


def test_an_empty_index_answers_nothing() -> None:
    index = make()
    assert index.search(vectors(2), 3).ids == [[], []]
    assert [list(found) for found in index.search_one(vectors(1)[0], 3)[:3]] == [[], [], []]


@pytest.mark.parametrize("n", [0, 1, 40, 500])
@pytest.mark.parametrize("text", ["plain", "ünï", "a\0b", "x" * 900])
def test_a_search_in_steps_finds_what_one_at_once_finds(n: int, text: str) -> None:
    index = make()
    fill(index, [f"{i}-{text}" for i in range(60)])
    queries = vectors(n, seed=4)
    for allow in (None, np.array([0b1011], dtype=np.uint64)):
        hits = index.search(queries, 5, allow=allow)
        steps = list(index.search_in_steps(queries, 5, allow=allow))
        assert [ids for some in steps for ids in some.ids] == hits.ids
        for name in ("slots", "distances", "counts", "plans"):
            parts = [getattr(some, name) for some in steps]
            assert [row for part in parts for row in part.tolist()] == getattr(hits, name).tolist()
    index.close()


def test_a_search_in_steps_that_is_closed_or_cancelled_keeps_no_change_waiting(index: NativeIndex) -> None:
    queries, control = vectors(2_000, seed=4), Control()
    steps = index.search_in_steps(queries, 5, control=control)
    assert next(steps).ids[0]
    control.cancel()
    with pytest.raises(handle.NativeCancelled):
        list(steps)
    index.delete(*pack_ids(["row-0"]), False)
    steps = index.search_in_steps(queries, 5)
    assert next(steps).ids[0]
    steps.close()
    index.delete(*pack_ids(["row-1"]), False)
    queries[1_500] = np.inf
    with pytest.raises(InvalidInputError) as caught:
        next(index.search_in_steps(queries, 5))
    assert caught.value.details["row"] == 1_500
    index.delete(*pack_ids(["row-2"]), False)


def test_only_allowed_slots_are_found(index: NativeIndex) -> None:
    hits = index.search(vectors(3), 5, allow=np.array([0b1011000], dtype=np.uint64))
    assert hits.counts.tolist() == [3, 3, 3]
    assert {name for ids in hits.ids for name in ids} == {"row-3", "row-4", "row-6"}
    assert index.search(vectors(1), 5, allow=np.empty(0, dtype=np.uint64)).ids == [[]]


def test_long_ids_grow_the_buffers() -> None:
    index = make()
    names = [f"{i:0{handle.ID_BYTES_MAX}d}" for i in range(30)]
    fill(index, names)
    query = vectors(30)[7]
    assert index.search_one(query, 30)[2][0] == names[7]
    assert index.search(query[None], 30).ids[0][0] == names[7]
    assert index.get_ids(np.arange(30, dtype=np.uint32)) == names


@pytest.mark.parametrize("k", [1, 128, 129, 400])
def test_one_query_finds_ids_of_all_kinds_at_every_k(k: int) -> None:
    names = [f"{i}-{text}" for i in range(100) for text in ("plain", "ünï", "漢字", "\U0001f600")]
    index = make()
    fill(index, names)
    for query in vectors(3, seed=4):
        hits = index.search(query[None], k)
        slots, distances, ids, *_ = index.search_one(query, k)
        assert (list(slots), list(distances), ids) == (hits.slots[0].tolist(), hits.distances[0].tolist(), hits.ids[0])
        assert ids == [names[slot] for slot in slots]
        assert index.search_one(query, k, with_slots=False)[1:3] == (distances, ids)


@pytest.mark.parametrize("k", [2, 200])
def test_one_query_looks_only_at_rows_that_are_allowed(index: NativeIndex, k: int) -> None:
    fill(index, [str(row) for row in range(300)])
    query = vectors(1, seed=4)
    for bits in (np.array([5, 0, 1 << 40], np.uint64), np.full(5, 2**64 - 1, np.uint64), np.empty(0, np.uint64)):
        hits = index.search(query, k, allow=bits)
        slots, distances, ids, plan, *_ = index.search_one(query[0], k, allow=bits)
        n = len(ids)
        assert (list(slots), list(distances)) == (hits.slots[0, :n].tolist(), hits.distances[0, :n].tolist())
        assert (ids, plan) == (hits.ids[0], int(hits.plans[0]))
        # What one search was allowed is nothing to the next.
        assert len(index.search_one(query[0], 300, allow=None)[2]) == 300
        assert len(index.search_one(query[0], 2)[2]) == 2
    with pytest.raises(InternalError, match="allow"):
        index.search_one(query[0], k, allow=np.zeros(1, np.int64))


def test_ids_with_zero_characters_are_told_apart(index: NativeIndex) -> None:
    names = ["\0", "a\0", "\0b", "a\0b\0", "\0é\0", "\0\0\0"]
    slots, _ = fill(index, names, vectors(6, seed=8))
    for name, query in zip(names, vectors(6, seed=8), strict=True):
        assert index.search_one(query, 1)[2] == [name]
    found, _, ids, *_ = index.search_one(vectors(1)[0], 56)
    assert ids == index.get_ids(np.array(found, dtype=np.uint32))
    assert set(names) < set(ids)
    assert index.get_ids(slots) == names


def test_a_search_within_a_search_has_an_answer_of_its_own(index: NativeIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a signal handler's, or one of a finaliser."""
    rows, inner = vectors(50), []

    def interrupted(found: Any) -> Any:
        monkeypatch.setattr(search, "_COUNTS", real)
        inner.append(index.search(rows[9][None], 1).ids)
        inner.append(NativeIndex.search_one(index, rows[9], 3)[2][0])
        return real(found)

    real = search._COUNTS
    monkeypatch.setattr(search, "_COUNTS", interrupted)
    assert index.search_one(rows[4], 3)[2] == index.search(rows[4][None], 3).ids[0]
    assert inner == [[["row-9"]], "row-9"]


def test_threads_do_not_share_their_answers(index: NativeIndex) -> None:
    rows, wrong = vectors(50), []

    def ask(name: int) -> None:
        for _ in range(200):
            if index.search_one(rows[name], 1 + name % 7)[2][0] != f"row-{name}":
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- delete, vacuum, statistics


def test_deleted_rows_are_gone_and_vacuum_renumbers(index: NativeIndex) -> None:
    with pytest.raises(NotFoundError, match="not live") as caught:
        index.delete(*pack_ids(["row-1", "nobody"]), missing_ok=False)
    assert caught.value.details["row"] == 1
    assert index.stats().live == 50
    assert index.delete(*pack_ids(["row-1", "nobody", "row-1"]), missing_ok=True).tolist() == [1, NO_SLOT, NO_SLOT]
    assert index.stats()[:2] == (50, 49)
    control = Control()
    assert index.vacuum(control).tolist() == [0, NO_SLOT, *range(1, 49)]
    assert index.stats()[:2] == (49, 49)
    assert index.get_ids(np.array([1], dtype=np.uint32)) == ["row-2"]


def test_memory_is_counted_by_kind(index: NativeIndex) -> None:
    stats = index.stats()
    kinds = [getattr(stats, name) for name in stats._fields if name.startswith("bytes_") and name != "bytes_total"]
    assert stats.bytes_total == sum(kinds)
    assert stats.bytes_vectors >= 50 * DIM * 4
    assert stats.id_bytes == sum(map(len, NAMES))
    estimate = handle.estimate_bytes(
        DIM, metric="l2", memory="default", M=8, ef_construction=40, rows=10**6, id_bytes=10**7
    )
    assert 10**6 * DIM * 4 < estimate < 10**9


def test_lists_are_trained_moved_to_and_searched() -> None:
    index = make()
    fill(index, NAMES)
    with pytest.raises(handle.NativeUntrained):
        index.migrate(0, 10)
    with pytest.raises(handle.NativeTooFew):
        index.train(-(2**62))
    assert index.probes(10, 0.9) == 0
    index.close()
    index = handle.NativeIndex(DIM, "l2", "default", 8, 40, 1)
    rows = vectors(3_000)
    index.add(rows, *pack_ids([f"r{i}" for i in range(3_000)]), np.arange(3_000, dtype=np.int64))
    index.train(2_500)
    assert index.migrate(2_500, 1_000) == (1_000, 1_000)
    assert index.migrate(2_500, 2_000, 1_000) == (1_500, NO_SLOT)
    stats = index.stats()
    assert (stats.historical, stats.moved, stats.lists, stats.graph_rows) == (2_500, 2_500, 156, 3_000)
    words = index.historical()
    assert sum(bin(int(word)).count("1") for word in words) == 2_500
    assert 1 <= index.probes(10, 0.8) <= index.probes(10, 0.99) <= index.probes(10, 1.0) == stats.lists
    order = index.vacuum_order()
    assert sorted(order.tolist()) == list(range(3_000))
    assert np.array_equal(index.vacuum()[order], np.arange(3_000))
    stats = index.stats()
    assert (stats.moved, stats.graph_rows, stats.bytes_graph) == (0, 0, 0)
    hits = index.search(rows[:5], 3, nprobe=stats.lists // 3)
    assert hits.plans.tolist() == [handle.PLAN_LISTS] * 5
    assert [ids[0] for ids in hits.ids] == [f"r{i}" for i in range(5)]
    index.close()


def test_rows_for_lists_need_no_graph_on_their_way_there() -> None:
    rows, stored = vectors(3_000), []
    for for_lists in (False, True):
        index = make()
        index.add(rows, *pack_ids([f"r{i}" for i in range(3_000)]), np.zeros(3_000, np.int64), for_lists=for_lists)
        assert index.stats().graph_rows == (0 if for_lists else 3_000)
        hits = index.search(rows[:5], 3)
        assert hits.plans.tolist() == [handle.PLAN_FLAT if for_lists else handle.PLAN_GRAPH] * 5
        index.train(1)
        assert index.migrate(1, 3_000) == (3_000, NO_SLOT)
        index.vacuum()
        stored.append([bytes(index.write_part(500, 1_000, *info)) for info in index.parts(500, 1_000)])
        fill(index, NAMES, for_lists=True)  # no graph is there that would miss them
        index.close()
    assert stored[0] == stored[1]


def test_rows_for_lists_cannot_join_a_graph() -> None:
    index = make()
    index.add(vectors(3_000), *pack_ids([f"r{i}" for i in range(3_000)]), np.zeros(3_000, np.int64))
    with pytest.raises(InvalidInputError, match="graph"):
        fill(index, NAMES, for_lists=True)
    assert index.stats().rows == 3_000
    index.close()


def test_closing_twice_is_fine_and_calls_after_it_raise() -> None:
    index = make()
    fill(index, NAMES)
    index.close()
    index.close()
    with pytest.raises(TypeError):
        index.stats()
    with pytest.raises(TypeError):
        index.search_one(vectors(1)[0], 1)


def test_an_index_nobody_closes_is_collected() -> None:
    index = make()
    fill(index, NAMES)
    del index
    gc.collect()


# ---- parts


def restore(
    index: NativeIndex, parts: list[bytes | bytearray], *, rows_per_part: int = 20, rows_per_group: int = 40
) -> NativeIndex:
    stats = index.stats()
    loaded = NativeIndex.load_begin(
        DIM, metric="l2", memory="default", M=8, ef_construction=40, threads=2,
        rows=stats.rows, graph_rows=stats.graph_rows, rows_per_part=rows_per_part,
        rows_per_group=rows_per_group, has_codes=stats.rows >= 1024,
    )  # fmt: skip
    for part in parts:
        loaded.load_part(part)
    loaded.load_end(control=Control())
    return loaded


def test_an_index_survives_its_parts(index: NativeIndex) -> None:
    index.delete(*pack_ids(["row-9"]), missing_ok=False)
    infos = index.parts(20, 40)
    assert len({(info.kind, info.number) for info in infos}) == len(infos) > 3
    parts: list[bytes | bytearray] = [index.write_part(20, 40, *info) for info in infos]
    loaded = restore(index, list(reversed(parts)))
    assert loaded.dim == DIM
    assert loaded.stats()[:3] == index.stats()[:3]
    before, after = index.search(vectors(5), 5), loaded.search(vectors(5), 5)
    assert before.ids == after.ids
    assert before.distances.tobytes() == after.distances.tobytes()
    assert [loaded.write_part(20, 40, *info) for info in loaded.parts(20, 40)] == parts


def test_parts_that_do_not_fit_are_integrity_errors(index: NativeIndex) -> None:
    parts: list[bytes | bytearray] = [index.write_part(20, 40, *info) for info in index.parts(20, 40)]
    for wrong in (
        [],
        parts[:-1],
        [*parts, parts[0]],
        [b"", *parts],
        [b"\xff" * 64, *parts],
        [parts[0][:-1], *parts[1:]],
    ):
        with pytest.raises(IntegrityError) as caught:
            restore(index, list(wrong))
        assert caught.value.details["native"]["file"].startswith("format/")


def test_part_calls_check_their_arguments(index: NativeIndex) -> None:
    with pytest.raises(InvalidInputError, match="rows_per_part"):
        index.parts(0, 40)
    with pytest.raises(InvalidInputError):
        index.write_part(20, 40, 99, 0, 64)
    info = index.parts(20, 40)[0]
    with pytest.raises(InternalError, match=r"buffer|fit|small"):
        index.write_part(20, 40, info.kind, info.number, info.size - 1)
    with pytest.raises(InternalError, match="the index has changed"):
        index.write_part(20, 40, info.kind, info.number, info.size + 1)
    with pytest.raises(InvalidInputError, match="dim"):
        NativeIndex.load_begin(
            0,
            metric="l2",
            memory="default",
            M=8,
            ef_construction=40,
            threads=1,
            rows=1,
            graph_rows=0,
            rows_per_part=1,
            rows_per_group=1,
            has_codes=False,
        )


# ---- errors


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"dim": 0}, "dim"),
        ({"dim": handle.DIM_MAX + 1}, "dim"),
        ({"M": handle.M_MIN - 1}, "M"),
        ({"M": handle.M_MAX + 1}, "M"),
        ({"ef_construction": 0}, "ef_construction"),
        ({"threads": handle.THREADS_MAX + 1}, "threads"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, Any], text: str) -> None:
    settings = {"dim": DIM, "metric": "l2", "memory": "compact", "M": 8, "ef_construction": 40, "threads": 1}
    with pytest.raises(InvalidInputError, match=f"^\\[INVALID_INPUT\\] {text} is out of range") as caught:
        NativeIndex(**{**settings, **changed})
    assert caught.value.details["actual"] == next(iter(changed.values()))


def test_wrong_vectors_name_their_row() -> None:
    index = make("cosine")
    for value, text in ((np.nan, "NaN or infinity"), (np.inf, "NaN or infinity")):
        rows = vectors(3)
        rows[1, 5] = value
        with pytest.raises(InvalidInputError, match=text) as caught:
            fill(index, NAMES[:3], rows)
        assert (caught.value.details["row"], caught.value.details["actual"]) == (1, 5)
        with pytest.raises(InvalidInputError, match=text):
            index.search_one(rows[1], 2)
    rows = vectors(3)
    rows[2] = 0
    with pytest.raises(InvalidInputError, match="zero vector") as caught:
        fill(index, NAMES[:3], rows)
    assert caught.value.details["row"] == 2
    with pytest.raises(InvalidInputError, match="zero vector"):
        index.search(rows, 2)
    assert index.stats().rows == 0


@pytest.mark.parametrize("name", ["", "x" * (handle.ID_BYTES_MAX + 1)])
def test_wrong_ids_name_their_row_and_the_limit(index: NativeIndex, name: str) -> None:
    with pytest.raises(InvalidInputError, match="empty, too long") as caught:
        fill(index, ["fine", name])
    details = caught.value.details
    assert (details["row"], details["expected"], details["actual"]) == (1, handle.ID_BYTES_MAX, len(name))
    assert details["native"]["status"] == lib.FVDB_ERR_ID
    assert details["native"]["file"] == "index/index_add.c"
    assert details["native"]["line"] > 0


@pytest.mark.parametrize(("k", "ef"), [(0, 0), (handle.K_MAX + 1, 0), (1, handle.EF_MAX + 1)])
def test_search_parameters_out_of_range_are_refused(index: NativeIndex, k: int, ef: int) -> None:
    with pytest.raises(InvalidInputError, match="out of range"):
        index.search(vectors(1), k, ef_search=ef)
    with pytest.raises(InvalidInputError, match="out of range"):
        index.search_one(vectors(1)[0], k, ef)


def test_slots_past_the_end_are_not_found(index: NativeIndex) -> None:
    slots = np.array([0, 50], dtype=np.uint32)
    for read in (index.get_vectors, index.get_timestamps, index.get_ids):
        with pytest.raises(NotFoundError, match="past the end") as caught:
            read(slots)
        assert caught.value.details["row"] == 1


def test_arrays_that_do_not_fit_never_reach_c(index: NativeIndex) -> None:
    rows, (packed, offsets), times = vectors(2), pack_ids(["a", "b"]), np.zeros(2, dtype=np.int64)
    wrong_adds = [
        (rows[:1], packed, offsets, times),
        (rows.astype(np.float64), packed, offsets, times),
        (np.asfortranarray(rows), packed, offsets, times),
        (rows, packed, offsets, times[:1]),
        (rows, packed[:1], offsets, times),
        (rows, packed, np.array([0, 9, 2], dtype=np.uint64), times),
        (rows, packed, offsets.astype(np.int64), times),
    ]
    for arguments in wrong_adds:
        with pytest.raises(InternalError):
            index.add(*arguments)
    with pytest.raises(InternalError, match="queries must be"):
        index.search(vectors(1)[:, :-1], 1)
    with pytest.raises(InternalError, match="query must be"):
        index.search_one(vectors(1)[0, :-1], 1)
    with pytest.raises(InternalError, match="allow must be"):
        index.search(rows, 1, allow=np.zeros(1, dtype=np.uint32))
    with pytest.raises(InternalError, match="slots must be"):
        index.get_ids(np.zeros(1, dtype=np.int64))
    assert index.stats().rows == 50


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (lib.FVDB_ERR_MEMORY, IndexStateError),
        (lib.FVDB_ERR_TOO_MANY, IndexStateError),
        (lib.FVDB_ERR_THREAD, IndexStateError),
        (lib.FVDB_ERR_FORMAT, IntegrityError),
        (lib.FVDB_ERR_BUFFER, InternalError),
        (lib.FVDB_ERR_CANCELLED, handle.NativeCancelled),
        (lib.FVDB_ERR_BUSY, handle.NativeBusy),
    ],
)
def test_every_status_has_its_error(status: int, expected: type[Exception]) -> None:
    diag = ffi.new("fvdb_diag *")
    with pytest.raises(expected) as caught:
        raise_status(status, diag)
    if isinstance(caught.value, VectorDBError):  # a diagnostic without a message falls back on the status' own text
        assert caught.value.message == ffi.string(lib.fvdb_status_text(status)).decode()
        assert caught.value.details["native"]["file"] == ""


# ---- control, locks, kernels


def test_a_cancelled_add_leaves_nothing(index: NativeIndex) -> None:
    before, queries = index.search(vectors(5), 5), vectors(2)
    control = Control()
    control.cancel()
    assert control.cancelled
    names = [f"new-{i}" for i in range(3_000)]
    for n in (1, 3_000):  # too few for a graph, and enough
        with pytest.raises(handle.NativeCancelled):
            fill(index, names[:n], control=control)
    assert index.stats()[:3] == (50, 50, 0)
    assert index.find(*pack_ids(names[:1])).tolist() == [NO_SLOT]
    assert index.search(vectors(5), 5).ids == before.ids
    with pytest.raises(handle.NativeCancelled):
        index.search(queries, 2, control=control)
    fill(index, names)
    assert index.stats().live == 3_050


def test_progress_ends_at_the_total(index: NativeIndex) -> None:
    control = Control()
    fill(index, [f"new-{i}" for i in range(3_000)], control=control)
    assert control.done == control.total == 3_000  # the rows of the call, which the 50 before it joined in the graph
    assert index.stats().graph_rows == 3_050
    assert not control.cancelled


def test_a_reader_need_not_wait_for_a_writer() -> None:
    """While one thread adds, a search that asks not to wait is refused at once, and answers afterwards."""
    index = NativeIndex(64, "l2", "default", 16, 200, 1)
    rows = np.random.default_rng(SEED).standard_normal((4_000, 64)).astype(np.float32)
    control = Control()
    writer = threading.Thread(
        target=lambda: index.add(
            rows, *pack_ids([f"{i}" for i in range(4_000)]), np.zeros(4_000, dtype=np.int64), control=control
        )
    )
    writer.start()
    refused = 0
    while writer.is_alive():
        for k in (1, 1_000):
            refused += index.search_one(rows[0], k, nowait=True) is None
    writer.join()
    assert refused > 1
    assert len(index._spare) == 1  # the room of refused searches is not piled up
    answer = index.search_one(rows[0], 1, nowait=True)
    assert answer is not None
    assert answer[2] == ["0"]
    index.close()


def test_the_kernels_have_a_name() -> None:
    assert handle.kernels() in ("scalar", "avx2", "avx512", "neon")


@pytest.mark.parametrize(("wanted", "fails"), [("scalar", False), ("abacus", True)])
def test_the_environment_chooses_kernels(wanted: str, fails: bool) -> None:
    code = (
        "from fabstir_vectordb._native.handle import NativeIndex, kernels\n"
        "from fabstir_vectordb.errors import InvalidInputError\n"
        "try: NativeIndex(4, 'l2', 'default', 8, 40, 1)\n"
        "except InvalidInputError as error: print(error)\n"
        "else: print(kernels())"
    )
    environment = {**os.environ, "FVDB_KERNELS": wanted}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ("FVDB_KERNELS names" in run.stdout) if fails else (run.stdout.strip() == wanted)
