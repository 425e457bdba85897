"""The shards that a process has open: one session for each, shared by its threads, within one memory budget.

A shard is opened by its share CID when a task needs it first, and stays open for later tasks. Where all open shards
take more than the budget, those that were used least recently are closed. A forked child forgets its parent's sessions,
which refuse every call there, and opens its own.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from fabstir_vectordb.collections.records import Recipe
from fabstir_vectordb.sync import VectorDBSession

__all__ = ["close_shards", "open_count", "opened"]


class _Key(NamedTuple):
    recipe: Recipe
    share: str


class _Entry:
    """A shard that is open, or that a thread opens."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.session: VectorDBSession | None = None
        self.users = 0
        self.bytes = 0
        self.is_leaving = False


class _OpenShards:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Those used least recently come first. An OrderedDict would hash every key whenever it is read in order.
        self._entries: dict[_Key, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def opened(self, recipe: Recipe, share: str) -> Iterator[VectorDBSession]:
        key = _Key(recipe, share)
        with self._lock:
            entry = self._entries.pop(key) if key in self._entries else _Entry()
            self._entries[key] = entry
            entry.users += 1
        try:
            with entry.lock:
                if entry.session is None:
                    entry.session = VectorDBSession.open_share(
                        share,
                        recipe.s5_portal,
                        lazy_load=recipe.lazy_load,
                        become_whole=recipe.become_whole,
                        **recipe.fields(),
                    )
            yield entry.session
        finally:
            self._release(key, entry)

    def _release(self, key: _Key, entry: _Entry) -> None:
        session = entry.session
        # Each task ends here: the statistics of a session would take as long as a short search.
        size = 0 if session is None else session._verbs._runtime.index.held_bytes
        with self._lock:
            entry.users -= 1
            entry.bytes = size
            if session is None and not entry.users and self._entries.get(key) is entry:
                del self._entries[key]  # it could not be opened
            going = self._over_budget(key.recipe.memory_budget_mb * 1_000_000)
            if entry.is_leaving and not entry.users:
                going.append(entry)
        _destroy(going)

    def _over_budget(self, budget_bytes: int) -> list[_Entry]:
        """Takes out the shards that were used least recently, until the others fit. One always stays."""
        total = sum(entry.bytes for entry in self._entries.values())
        if total <= budget_bytes:
            return []
        going = []
        for key in [key for key, entry in self._entries.items() if not entry.users][: len(self._entries) - 1]:
            if total <= budget_bytes:
                break
            entry = self._entries.pop(key)
            total -= entry.bytes
            going.append(entry)
        return going

    def close(self, unwanted: Callable[[Recipe], bool]) -> None:
        """Closes shards; those in use close when their last task ends."""
        going = []
        with self._lock:
            for key in [key for key in self._entries if unwanted(key.recipe)]:
                entry = self._entries.pop(key)
                entry.is_leaving = True
                if not entry.users:
                    going.append(entry)
        _destroy(going)


def _destroy(entries: list[_Entry]) -> None:
    for entry in entries:
        if entry.session is not None:
            entry.session.destroy()


_shards = _OpenShards()


@contextmanager
def opened(recipe: Recipe, share: str) -> Iterator[VectorDBSession]:
    """Gives the session of a shard, opened where it was not open.

    Args:
        recipe: how to open it.
        share: its share CID.

    Yields:
        A session that any thread may use.

    Raises:
        VectorDBError: it could not be opened.
    """
    with _shards.opened(recipe, share) as session:
        yield session


def open_count() -> int:
    """How many shards this process has open."""
    return len(_shards)


def close_shards(recipe: Recipe | None = None) -> None:
    """Closes the shards of one recipe, or all of this process."""
    _shards.close(lambda other: recipe is None or other == recipe)


def _forget_parent() -> None:
    global _shards  # noqa: PLW0603  # the parent's locks may be held for ever
    _shards = _OpenShards()


atexit.register(close_shards)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
