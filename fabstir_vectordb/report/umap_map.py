"""Maps by UMAP (McInnes, Healy & Melville 2018): exact neighbours here, and umap-learn in a process of its own.

umap-learn cannot be stopped, nor can its import, which compiles for seconds; a process can. Its own search for
neighbours is approximate and compiles, too, and its spectral start takes longer than PCA's: they are replaced.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import Control, NativeCancelled
from fabstir_vectordb.errors import InvalidConfigError
from fabstir_vectordb.extras import install_command

__all__ = ["NEIGHBOURS", "check_umap", "umap_map"]

#: Neighbours of a row in the graph, itself included: umap-learn's default. With fewer rows there is no such graph.
NEIGHBOURS: Final = 15
#: Distances computed at a time: 16 MB of them, and a few times that beside them.
_BLOCK: Final = 1 << 22
#: How often a cancellation is looked for.
_WATCH_S: Final = 0.1
_PROGRAM: Final = Path(__file__).with_name("umap_program.py")


def check_umap() -> None:
    """Checks that umap-learn is there, without its import.

    Raises:
        InvalidConfigError: umap-learn is not installed, or this program has no Python to run it.
    """
    if importlib.util.find_spec("umap") is None:
        raise InvalidConfigError(
            f"the projection umap needs umap-learn: {install_command('umap')}", details={"extra": "umap"}
        )
    if not sys.executable or getattr(sys, "frozen", False):
        raise InvalidConfigError("the projection umap needs a Python interpreter, and this program is none: use pca")


def umap_map(
    rows: npt.NDArray[np.float32], start: npt.NDArray[np.float64], *, cosine: bool, seed: int, control: Control | None
) -> npt.NDArray[np.float64]:
    """The places of rows on a map.

    Args:
        rows: (rows, dim) float32, at least 15; of length 1 under cosine.
        start: (rows, 2) places to start from, not all the same.
        cosine: distances are 1 - cos, else Euclidean.
        seed: the same one gives the same map.
        control: cancellation.

    Returns:
        (rows, 2) float64.

    Raises:
        InvalidConfigError: umap-learn fails; the error has its last line.
        NativeCancelled: `control` asked for it.
    """
    near, far = _neighbours(rows, cosine, control)
    # Noise, as umap-learn adds to starts of its own: rows on one place, or on one line, would stay there.
    noise = np.random.default_rng(seed).normal(scale=1e-4, size=start.shape)
    given = io.BytesIO()
    for array in (near, far, (10 * start / np.abs(start).max() + noise).astype(np.float32)):
        np.save(given, array)
    return _answer(given.getvalue(), seed, control)


def _neighbours(
    rows: npt.NDArray[np.float32], cosine: bool, control: Control | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The nearest rows of each row, itself first, and the distances to them."""
    count = len(rows)
    near = np.empty((count, NEIGHBOURS), np.int64)
    far = np.empty((count, NEIGHBOURS), np.float32)
    squares = np.square(rows).sum(axis=1)
    step = max(1, _BLOCK // count)
    for first in range(0, count, step):
        if control is not None and control.cancelled:
            raise NativeCancelled
        block = slice(first, min(first + step, count))
        distances = squares[block, None] - 2 * (rows[block] @ rows.T) + squares
        np.maximum(distances, 0, out=distances)
        distances[np.arange(len(distances)), np.arange(block.start, block.stop)] = -1
        nearest = np.argpartition(distances, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        found = np.take_along_axis(distances, nearest, axis=1)
        order = np.argsort(found, axis=1, kind="stable")
        near[block] = np.take_along_axis(nearest, order, axis=1)
        far[block] = np.maximum(np.take_along_axis(found, order, axis=1), 0)
    return near, (far / 2 if cosine else np.sqrt(far)).astype(np.float32)


def _answer(given: bytes, seed: int, control: Control | None) -> npt.NDArray[np.float64]:
    # The phrase may be in the environment, which the user's other processes can read of a new process.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FABSTIR_")}
    # What this process can import, the other one can.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with (
        subprocess.Popen([sys.executable, "-P", str(_PROGRAM), str(seed)], env=environment, **pipes) as process,
        _killed_when(control, process),
    ):
        try:
            out, said = process.communicate(given)
        except BaseException:  # Ctrl-C, too
            process.kill()
            raise
    if control is not None and control.cancelled:
        raise NativeCancelled
    if process.returncode:
        lines = said.decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), f"exit code {process.returncode}")
        raise InvalidConfigError(f"umap-learn failed, use pca: {last.strip()[:300]}", details={"extra": "umap"})
    answer: npt.NDArray[np.float64] = np.load(io.BytesIO(out), allow_pickle=False)
    return answer


@contextlib.contextmanager
def _killed_when(control: Control | None, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kills a process during the block when a cancellation is asked for."""
    # By a second thread: a `communicate` that timed out does not write the rest of its input.
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_WATCH_S):
            if control is not None and control.cancelled:
                process.kill()
                return

    watcher = threading.Thread(target=watch, name="fabstir-umap", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
