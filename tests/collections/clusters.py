"""A small cluster of Ray on this machine, for the tests: with a home of its own, as Ray writes a token there."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

#: Arguments of ray.init: bounded, without a dashboard, on loopback alone.
BOUNDED: dict[str, Any] = {
    "num_cpus": 2,
    "object_store_memory": 80_000_000,
    "include_dashboard": False,
    "log_to_driver": False,
    "_node_ip_address": "127.0.0.1",
}
#: Marks of tests that need a cluster. Ray and Dask leave sockets and files to the end of the process.
OF_CLUSTERS = [
    pytest.mark.anyio,
    pytest.mark.one_loop,
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@cache
def _home() -> Path:
    """The home of all clusters of this process: Ray reads a token from it once, and a cluster with another fails."""
    home = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return Path(home)


@contextmanager
def ray_home() -> Iterator[Path]:
    """A home for Ray's files, with a short name: its sockets are below it."""
    home = _home()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", str(home))
        patch.setenv("RAY_worker_niceness", "0")  # Ray's 15 lets workers wait for all else on a busy machine
        yield home


def begin(ray: Any) -> None:
    """Initialises Ray, which gives its own processes 30 s to start: too few on a busy machine, at times."""
    for last in (False, False, True):
        try:
            ray.init(**BOUNDED)
            return
        except Exception:
            ray.shutdown()
            if last:
                raise


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """Ray, initialised. Workers import the package, and the modules of these tests, from where this process does."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    here = Path(__file__).resolve().parent
    paths = [str(here.parents[1]), str(here), *filter(None, [os.environ.get("PYTHONPATH")])]
    with ray_home(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        try:
            begin(ray)
            yield ray
        finally:
            ray.shutdown()
            with warnings.catch_warnings():  # of processes that Ray ended and did not wait for
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()
