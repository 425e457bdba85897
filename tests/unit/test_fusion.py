"""Fusion of the candidates of two sides."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fabstir_vectordb import InvalidInputError
from fabstir_vectordb.text.fusion import FUSIONS, Side, check_alpha, check_fusion, depth_for, fuse, ordered


def side(pairs: dict[int, float]) -> Side:
    best = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
    slots, values = [slot for slot, _ in best], [value for _, value in best]
    return Side(np.array(slots, dtype=np.uint32), np.array(values, dtype=np.float64))


def scores(fusion: Any, near: dict[int, float], said: dict[int, float], alpha: float = 0.5) -> dict[int, float]:
    fused = fuse(fusion, alpha, side(near), side(said))
    return dict(zip(fused.slots.tolist(), fused.scores.tolist(), strict=True))


def naive(fusion: str, near: dict[int, float], said: dict[int, float], alpha: float) -> dict[int, float]:
    """The same from the definitions."""

    def normalised(pairs: dict[int, float], page: int) -> dict[int, float]:
        low = min(pairs.values()) if len(pairs) > page else 0.0
        high = max(pairs.values())
        return {slot: (value - low) / (high - low) if high > low else 1.0 for slot, value in pairs.items()}

    def weight(pairs: dict[int, float]) -> float:
        first = sorted(pairs.values(), reverse=True)[:10]
        return 10 / sum(first)

    gains: list[dict[int, float]] = []
    for number, pairs in enumerate((near, said)):
        share = (alpha, 1 - alpha)[number]
        if not pairs:
            gains.append({})
        elif fusion == "rrf":
            best = sorted(pairs, key=lambda slot: (-pairs[slot], slot))
            gains.append({slot: 61 / 2 / (60 + rank) for rank, slot in enumerate(best, 1)})
        elif fusion == "weighted":
            gains.append({slot: share * value for slot, value in normalised(pairs, 0).items()})
        else:
            gains.append(normalised(pairs, 10 * number))
    if fusion == "excess":
        weights = [weight(one) if one else 0.0 for one in gains]
        gains = [
            {slot: value * weight / sum(weights) for slot, value in one.items()}
            for one, weight in zip(gains, weights, strict=True)
        ]
    return {slot: sum(one.get(slot, 0.0) for one in gains) for slot in near.keys() | said.keys()}


PAIRS = st.dictionaries(st.integers(0, 40), st.integers(1, 1000).map(lambda n: n / 64), max_size=25)


@settings(deadline=None)
@given(st.sampled_from(FUSIONS), PAIRS, PAIRS, st.floats(0, 1))
def test_scores_are_those_of_the_definition(
    fusion: str, near: dict[int, float], said: dict[int, float], alpha: float
) -> None:
    found, expected = scores(fusion, near, said, alpha), naive(fusion, near, said, alpha)
    assert found.keys() == expected.keys()
    for slot, score in expected.items():
        assert found[slot] == pytest.approx(score, abs=1e-12)
        assert 0.0 <= found[slot] <= 1.0


@settings(deadline=None)
@given(st.sampled_from(FUSIONS), PAIRS, PAIRS)
def test_a_row_that_is_best_on_both_sides_is_best(fusion: str, near: dict[int, float], said: dict[int, float]) -> None:
    found = scores(fusion, {**near, 99: 1000.0}, {**said, 99: 1000.0})
    assert found[99] == pytest.approx(1.0)
    assert max(found.values()) == found[99]


@settings(deadline=None)
@given(st.sampled_from(FUSIONS), PAIRS, st.integers(-3, 8), st.integers(0, 1000))
def test_units_and_zero_of_a_distance_change_nothing(
    fusion: str, near: dict[int, float], power: int, offset: int
) -> None:
    said = {3: 4.0, 50: 2.0}
    moved = {slot: value * 2.0**power - offset for slot, value in near.items()}
    assert scores(fusion, moved, said) == pytest.approx(scores(fusion, near, said), abs=1e-9)


@settings(deadline=None)
@given(st.sampled_from(FUSIONS), PAIRS)
def test_one_side_alone_keeps_its_order(fusion: str, pairs: dict[int, float]) -> None:
    for found in (scores(fusion, pairs, {}), scores(fusion, {}, pairs)):
        by_value = sorted(pairs, key=lambda slot: (-pairs[slot], slot))
        values = [found[slot] for slot in by_value]
        assert values == sorted(values, reverse=True)


def test_ranks_say_where_each_side_had_a_row() -> None:
    fused = fuse("excess", 0.5, side({7: 3.0, 2: 2.0}), side({2: 5.0, 9: 1.0}))
    assert fused.slots.tolist() == [2, 7, 9]
    assert fused.vector_ranks.tolist() == [2, 1, 0]
    assert fused.words_ranks.tolist() == [1, 0, 2]


def test_a_side_whose_first_hit_stands_out_leads() -> None:
    flat = {slot: 1.0 - slot / 1000 for slot in range(100)}
    peaked = {100: 9.0, **{slot: 1.0 + slot / 1000 for slot in range(101, 200)}}
    for near, said in ((flat, peaked), (peaked, flat)):
        found = scores("excess", near, said)
        assert max(found, key=lambda slot: found[slot]) == 100
        assert found[100] > 2 * found[0]
    assert scores("weighted", flat, peaked)[100] == scores("weighted", flat, peaked)[0] == 0.5


def test_the_last_of_few_rows_with_a_word_beats_most_rows_without_it() -> None:
    near = {slot: 1.0 - slot / 100 for slot in range(100)}
    found = scores("excess", near, {200: 7.0, 201: 6.9})
    best = sorted(found, key=lambda slot: -found[slot])
    assert best[:2] == [200, 201]
    # Min-max of the two would give the second nothing.
    assert scores("weighted", near, {200: 7.0, 201: 6.9})[201] == 0.0


def test_no_candidates_have_no_scores() -> None:
    for fusion in FUSIONS:
        assert scores(fusion, {}, {}) == {}


def test_distances_beyond_measure_are_ranked_as_equal() -> None:
    huge = {0: 1e308, 1: -1e308, 2: -1.7e308}
    assert all(math.isfinite(score) for score in scores("excess", huge, {1: 1.0}).values())


def test_each_side_is_asked_for_more_than_the_hits() -> None:
    assert [depth_for(k) for k in (1, 10, 50, 51, 10_000)] == [100, 100, 100, 101, 10_050]


def test_ties_go_by_id() -> None:
    ids, values = ["b", "c", "a"], np.array([0.5, 0.7, 0.5])
    for n, expected in ((0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 0]), (9, [1, 2, 0])):
        assert ordered(values, n, lambda places: [ids[place] for place in places]) == expected


@given(
    st.lists(st.tuples(st.integers(0, 4), st.text(max_size=3)), max_size=20, unique_by=lambda pair: pair[1]),
    st.integers(0, 25),
)
def test_the_order_is_that_of_score_and_id(pairs: list[tuple[int, str]], n: int) -> None:
    values, ids = np.array([float(value) for value, _ in pairs]), [id for _, id in pairs]
    expected = sorted(
        range(len(pairs)), key=lambda place: (-pairs[place][0], ids[place].encode("utf-8", "surrogatepass"))
    )
    assert ordered(values, n, lambda places: [ids[place] for place in places]) == expected[:n]


def test_names_of_fusions_are_checked() -> None:
    assert check_fusion(None) == "excess"
    assert [check_fusion(name) for name in FUSIONS] == list(FUSIONS)
    for wrong in ("RRF", "", 1, ["rrf"]):
        with pytest.raises(InvalidInputError, match="fusion must be one of"):
            check_fusion(wrong)


def test_alpha_is_the_share_of_weighted_only() -> None:
    assert check_alpha(None, "excess") == check_alpha(None, "weighted") == 0.5
    assert check_alpha(1, "weighted") == 1.0
    assert check_alpha(np.float32(0.25), "weighted") == 0.25
    for wrong in (-0.1, 1.1, math.nan, True, "0.5"):
        with pytest.raises(InvalidInputError, match="alpha must be"):
            check_alpha(wrong, "weighted")
    with pytest.raises(InvalidInputError, match="leave alpha out"):
        check_alpha(0.3, "rrf")
