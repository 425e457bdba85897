"""Centroids grouped into shards: near ones together, shards of about equal sizes, the same on every machine.

Also how many of them a recall takes, and the recall target in each.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fabstir_vectordb.collections.routing import Centroids, _improve, shards_for, target_in, train, unit_of
from fabstir_vectordb.config import Metric

SEED = 20_261_127
ROWS, DIM, SHARDS = 2_000, 16, 24


def rows_near_a_plane(count: int = ROWS) -> NDArray[np.float32]:
    """Rows that differ in five directions much more than in the others, as embeddings do."""
    rng = np.random.default_rng(SEED)
    rows = rng.standard_normal((count, 5)) @ rng.standard_normal((5, DIM)) + 0.1 * rng.standard_normal((count, DIM))
    return rows.astype(np.float32)


def centroids_of(rows: NDArray[np.float32], metric: Metric, shards: int = SHARDS) -> Centroids:
    scale = unit_of(rows)
    alone = Centroids.alone(train(rows, 16 * shards, metric, scale), metric, scale)
    weights = np.bincount(alone.nearest(rows), minlength=len(alone.vectors))
    return alone.grouped(weights, range(10, 10 + shards))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_few_shards_have_the_nearest_rows(metric: Metric) -> None:
    """Halves cut across the line of two far centroids, and left so, have 0.849 (cosine) and 0.831 (l2)."""
    rows = rows_near_a_plane()
    grouped = centroids_of(rows, metric)
    homes = grouped.nearest(rows)
    sizes = np.bincount(homes - 10, minlength=SHARDS)
    assert sizes.min() > 0.75 * ROWS / SHARDS
    assert sizes.max() < 1.25 * ROWS / SHARDS
    wide = rows.astype(np.float64)
    if metric == "cosine":
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    asked = wide[:200]
    distances = np.square(wide).sum(axis=1) - 2.0 * asked @ wide.T
    neighbours = distances.argsort(axis=1)[:, 1:11]
    ranked = grouped.ranked(rows[:200])[:, :2]
    found = (homes[neighbours][:, :, np.newaxis] == ranked[:, np.newaxis, :]).any(axis=2).mean()
    print(f"{metric}: {found:.4f}, sizes {sizes.min()} to {sizes.max()}")
    assert found >= 0.86


def test_shards_do_not_depend_on_the_order_of_sums() -> None:
    """Other libraries, and other machines, add the components in another order."""
    rows = rows_near_a_plane(800)
    order = np.random.default_rng(SEED).permutation(DIM)
    one, other = (centroids_of(some, "l2", 8) for some in (rows, np.ascontiguousarray(rows[:, order])))
    assert np.array_equal(one.vectors[:, order], other.vectors)
    assert np.array_equal(one.shards, other.shards)


@pytest.mark.parametrize("rows", [np.ones((8, 3)), np.eye(8), np.r_[np.zeros((7, 8)), np.ones((1, 8))]])
def test_every_shard_has_a_centroid(rows: NDArray[np.float64]) -> None:
    alone = Centroids.alone(rows.astype(np.float32), "l2", 1.0)
    for weights in (np.arange(8), np.full(8, 5), np.array([0] * 7 + [100])):
        for shards in (1, 3, 8):
            grouped = alone.grouped(weights, range(shards))
            assert np.array_equal(np.unique(grouped.shards), np.arange(shards))


def test_half_of_what_a_target_allows_to_miss_is_left_to_the_choice_and_half_to_each_shard() -> None:
    curve = (0.7, 0.9, 0.976, 1.0)
    assert shards_for(curve, 0.95) == (3, pytest.approx(0.975))
    assert shards_for(curve, 0.8) == (2, pytest.approx(0.9))
    assert shards_for(curve, 1.0) == (4, 1.0)
    assert shards_for(curve[:3], 0.99) is None
    assert target_in(8, 0.95) == pytest.approx(0.975)


def test_one_shard_makes_up_for_the_rows_of_the_others() -> None:
    assert shards_for((0.98, 1.0), 0.95) == (1, pytest.approx(0.95 / 0.98))
    assert shards_for((1.0,), 0.95) == (1, 0.95)
    assert target_in(1, 0.95) == 0.95


def test_a_heavy_centroid_stays_where_no_group_has_room() -> None:
    """The first group took it, however full it was."""
    places = np.repeat([0.0, 1_000.0, 2_000.0, 0.0], [5, 5, 5, 1])[:, np.newaxis]
    weights = np.repeat([17, 17, 18, 40], [5, 5, 5, 1])
    groups = np.repeat([0, 1, 2, 2], [5, 5, 5, 1])
    _improve(places, weights, groups, 3)
    assert np.bincount(groups, weights).tolist() == [85, 85, 130]
