"""Projections of vectors onto two dimensions, for a map.

PCA by randomised subspace iteration (Halko, Martinsson & Tropp 2011, "Finding structure with randomness", Alg. 4.4 and
5.1). It takes O(rows × dim) a pass. An exact decomposition takes O(dim^3): half a minute for 4,096 components.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import Control
from fabstir_vectordb.config import Metric
from fabstir_vectordb.report.umap_map import NEIGHBOURS, umap_map

__all__ = ["PROJECTIONS", "SEED", "Method", "Projection", "project"]

Method = Literal["pca", "umap"]
PROJECTIONS: Final[tuple[Method, ...]] = ("pca", "umap")

#: The same rows make the same map.
SEED: Final = 20_261_126
#: Directions of the iteration: two, and eight more, which make it converge (the paper advises 5 to 10).
_DIRECTIONS: Final = 10
#: Passes over the rows. Each multiplies the lead of the first directions by the ratio of their variances.
_PASSES: Final = 8


class Projection(NamedTuple):
    """Rows in two dimensions.

    Attributes:
        method: how they were projected.
        points: (rows, 2) float64.
        share: share of the variance that two dimensions hold, for PCA; else None.
    """

    method: Method
    points: npt.NDArray[np.float64]
    share: float | None


def project(
    vectors: npt.NDArray[np.float32], metric: Metric, method: Method, control: Control | None = None
) -> Projection:
    """Projects rows. Under cosine their directions count alone.

    Args:
        vectors: (rows, dim) float32.
        metric: metric of the index.
        method: ``pca`` or ``umap``; fewer than 16 rows, and equal ones, are always projected by PCA.
        control: cancellation of UMAP; PCA is quick.

    Raises:
        InvalidConfigError: the method is ``umap``, and umap-learn fails.
        NativeCancelled: `control` asked for it.
    """
    # The largest number becomes 1: squares of float32 overflow.
    scaled = vectors / (np.abs(vectors).max(initial=0.0) or np.float32(1))
    if metric == "cosine":
        # Beside a very large row a small one has become zero: it stays there.
        lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
        scaled /= np.where(lengths > 0, lengths, np.float32(1))
    found = _pca(scaled)
    if method == "pca" or len(vectors) <= NEIGHBOURS or not found.points.any():
        return found
    points = umap_map(scaled, found.points, cosine=metric == "cosine", seed=SEED, control=control)
    return Projection("umap", points, None)


def _pca(rows: npt.NDArray[np.float32]) -> Projection:
    points = np.zeros((len(rows), 2))
    if not len(rows):
        return Projection("pca", points, None)
    rows = rows - rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    variance = float(np.square(rows, dtype=np.float64).sum())
    if variance == 0:
        return Projection("pca", points, None)
    start = np.random.default_rng(SEED).standard_normal((rows.shape[1], min(_DIRECTIONS, *rows.shape)))
    basis = np.linalg.qr(start.astype(np.float32))[0]
    for _ in range(_PASSES):
        basis = np.linalg.qr(rows.T @ (rows @ basis))[0]
    left, sizes, right = np.linalg.svd((rows @ basis).astype(np.float64), full_matrices=False)
    count = min(2, len(sizes))
    axes = basis @ right[:count].T
    # The sign of an axis is arbitrary: its largest component is positive, so that equal rows give equal maps.
    signs = np.where(axes[np.abs(axes).argmax(axis=0), range(count)] < 0, -1.0, 1.0)
    points[:, :count] = left[:, :count] * sizes[:count] * signs
    return Projection("pca", points, min(1.0, float(np.square(sizes[:count]).sum()) / variance))
