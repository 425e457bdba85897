"""A loss of power at any moment: what was saved is there, and what was being saved is there whole or not at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import pytest
from disk import Disk, State, StoppedError, states, without_unsafe, write_state

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "storage"))

from serving import running
from versions import change, open_session, version_at, version_in

from fabstir_vectordb.portal.app import create_app
from fabstir_vectordb.s5.registry import RegistryEntry
from fabstir_vectordb.storage.local_dir import LocalDirStore

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows flushes no directories")

SEED = 20_261_127


class Place:
    """A store whose files can be exchanged: a directory, or a portal over one."""

    def __init__(self, kind: str, folder: Path, stack: ExitStack) -> None:
        self._kind, self._folder, self._count = kind, folder, 0
        self._address = "" if kind == "file" else kind + stack.enter_context(running(self))
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)

    def over(self, root: Path) -> str:
        """The address of a store with these files."""
        if self._kind == "file":
            return root.as_uri()
        self._app = create_app(root)
        return self._address

    def after(self, state: State) -> str:
        """The address of a store that a loss of power left in this state."""
        self._count += 1
        root = self._folder / str(self._count)
        write_state(state, root)
        return self.over(root)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(request.param, tmp_path, stack)


async def saves(uri: str, disk: Disk, count: int) -> None:
    """Saves some versions, and removes the versions before the last."""
    async with await open_session(uri) as session:
        await session.load_user_vectors(missing_ok=True)
        for number in range(1, count + 1):
            await change(session, number)
            await session.save_to_s5()
            disk.mark(number)
        await session.prune_history(1)


async def look(uri: str, saved: int, most: int, again: bool) -> None:
    """After a loss of power: one version, whole, and the next save works."""
    async with await open_session(uri) as session:
        number = await version_in(session)
        assert saved <= number <= min(saved + 1, most)
        if again:
            await change(session, number + 1)
            await session.save_to_s5()
    if again:
        assert await version_at(uri) == number + 1


async def lose_power(place: Place, folder: Path, saves_count: int, step: int) -> int:
    """Looks at every `step`-th state that a loss of power may leave; returns how many there were."""
    root = folder / "recorded"
    root.mkdir()
    disk = Disk(root)
    with disk.watching():
        await saves(place.over(root), disk, saves_count)
    looked = 0
    with mock.patch("os.fsync"):  # what follows is not about power
        for number, (marks, state) in enumerate(states(disk.log, SEED)):
            if number % step == 0:
                await look(place.after(state), marks[-1] if marks else 0, saves_count, again=looked % 8 == 0)
                looked += 1
    return looked


@pytest.mark.parametrize("place", ["file", "gateway+"], indirect=True)
def test_no_state_after_a_loss_of_power_loses_a_version(place: Place, tmp_path: Path) -> None:
    assert anyio.run(lose_power, place, tmp_path, 2, 16) >= 3


@pytest.mark.long
@pytest.mark.parametrize("place", ["file", "portal+", "gateway+"], indirect=True)
def test_no_state_at_all_loses_a_version(place: Place, tmp_path: Path) -> None:
    print(anyio.run(lose_power, place, tmp_path, 4, 1), "states")


def test_what_a_killed_process_began_is_safe_once_the_next_one_has_stored_it(tmp_path: Path) -> None:
    """The next process finds directories and files that the killed one did not flush."""
    seed, stopped = b"s" * 32, 0

    async def store(root: Path, revision: int, *blobs: bytes) -> list[Any]:
        local = LocalDirStore(root)
        stored = [await local.put(blob) for blob in blobs]
        entry = RegistryEntry.sign(seed, revision, b"d" * 34)
        await local.set_pointer(entry)
        return [*(blob.hash for blob in stored), entry]

    for steps in range(1, 60, 7):
        root = tmp_path / f"{steps}"
        root.mkdir()
        disk = Disk(root, stop_after=steps)
        with disk.watching():
            try:
                anyio.run(store, root, 1, b"one", b"two")
            except (StoppedError, BaseExceptionGroup):
                stopped += 1
            disk.stop_after = float("inf")
            first, second, entry = anyio.run(store, root, 2, b"one", b"two")
        write_state(without_unsafe(disk.log), tmp_path / f"{steps}-after")
        left = LocalDirStore(tmp_path / f"{steps}-after")
        assert anyio.run(left.get, first, 3) == b"one"
        assert anyio.run(left.get, second, 3) == b"two"
        assert anyio.run(left.get_pointer, entry.public_key) == entry
    assert 3 < stopped < 9
