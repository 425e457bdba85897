"""What all tests share: both event loops, no network, and the same examples in every run."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import pytest_socket

# Tests start some hundred processes: they compile the package once, outside the tree.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if "PYTHONPYCACHEPREFIX" not in os.environ:
    os.environ["PYTHONPYCACHEPREFIX"] = compiled = tempfile.mkdtemp(prefix="fabstir-vectordb-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)

pytest_plugins = ["commands"]

#: Files whose tests run in one of several processes, as what they share takes long to make.
TOGETHER = {
    "tests/session/test_lazy.py",  # a version of many parts
    "tests/test_benchmarks.py",  # sets and indexes, in one scratch folder
    "tests/test_native_c.py",  # the compiled core
    "tests/test_tidy.py",  # the parsed sources
}

# A failure here is a failure anywhere: no example depends on the clock, on chance or on an earlier run.
# `pytest --hypothesis-profile=explore` looks at others.
hypothesis.settings.register_profile(
    "same", max_examples=50, derandomize=True, database=None, deadline=None, print_blob=True
)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True, max_examples=1_000)
hypothesis.settings.load_profile("same")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every test of asynchronous code runs on both event loops, where it is not marked one_loop."""
    backend: str = request.param
    return backend


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps the tests of a file of TOGETHER in one process.

    The mark xdist_group does not: xdist 3.8 writes the group into a test's id, and pytest 9.2 does not take it.
    """
    from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]

    class Scheduling(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", maxsplit=1)[0]
            return file if file in TOGETHER else super()._split_scope(nodeid)

    assert all((config.rootpath / file).is_file() for file in TOGETHER)
    return Scheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what one_loop marks on a second event loop, and makes most tests of frameworks' suites long."""
    suites: Counter[Any] = Counter()
    for item in items:
        suite = getattr(item, "cls", None)
        quick_one_of = getattr(suite, "quick_one_of", 1)  # of so many tests, the first is quick
        if suites[suite] % quick_one_of:
            item.add_marker(pytest.mark.long)
        suites[suite] += 1
    left_out = [item for item in items if item.get_closest_marker("one_loop") and _backend(item) == "trio"]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]


def pytest_collection_finish() -> None:
    """Takes what was collected out of garbage collection, which would go through all of it again and again."""
    gc.collect()
    gc.freeze()


def _backend(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("anyio_backend")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own answer to SIGINT, which a process that a shell put into the background ignores, and its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_runtest_setup() -> None:
    """Nothing here needs a network; event loops need their socket pairs."""
    pytest_socket.socket_allow_hosts(["127.0.0.1", "::1"], allow_unix_socket=True)
