"""A faulty layer below Python's file calls: it runs full, stops, and shows what a loss of power leaves.

`Disk.watching` patches the calls by which the package writes files below a folder. Each step is recorded: a directory
made, a file created, bytes written, a rename, a deletion, a file or a directory flushed. `states` replays a prefix of
these steps by the rules of POSIX alone, which are stricter than any file system: bytes are safe once their file was
flushed, a name is safe once its directory was, and nothing else is.
"""

from __future__ import annotations

import errno
import io
import os
import random
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

Number = tuple[int, int]
"""Identifies a file while it exists: device and inode."""

DIRECTORY: Number = (-1, -1)


class Step(NamedTuple):
    """A step of the log.

    Attributes:
        kind: mkdir, create, write, rename, unlink, sync, sync_directory, or mark.
        path: what it is done to, relative to the folder; empty for write and sync.
        number: the file.
        other: the bytes of a write, the target of a rename, or what a mark says.
    """

    kind: str
    path: str = ""
    number: Number = DIRECTORY
    other: Any = None


class StoppedError(BaseException):
    """The process ends here: nothing that it does afterwards reaches the disk."""


@dataclass
class Disk:
    """A folder whose writes are recorded, and may fail.

    Attributes:
        room: bytes that can still be written; then a write ends half done, with ENOSPC.
        names: files and directories that can still be made; then making one raises ENOSPC.
        stop_after: steps until `StoppedError`.
        written, made: bytes and names until now.
        was_full: whether something was refused for lack of room.
    """

    root: Path
    room: float = float("inf")
    names: float = float("inf")
    stop_after: float = float("inf")
    written: int = 0
    made: int = 0
    was_full: bool = False
    log: list[Step] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def empty(self) -> None:
        """Gives the disk all room again."""
        self.room = self.names = float("inf")
        self.was_full = False

    def _full(self) -> OSError:
        self.was_full = True
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def mark(self, what: Any) -> None:
        """Notes what the program knows by now."""
        with self._lock:
            self.log.append(Step("mark", other=what))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Patches the calls of this process; files outside the folder are left alone."""
        with (
            mock.patch("io.open", self._open(io.open)),
            mock.patch("os.mkdir", self._mkdir(os.mkdir)),
            mock.patch("os.replace", self._replace(os.replace)),
            mock.patch("os.unlink", self._unlink(os.unlink)),
            mock.patch("os.fsync", self._fsync),
        ):
            yield

    def _inside(self, path: Any) -> str | None:
        if not isinstance(path, str | os.PathLike):
            return None
        found = os.path.relpath(path, self.root)
        return None if found.startswith("..") else found

    def _step(self, step: Step) -> None:
        self.log.append(step)
        self.stop_after -= 1

    def _check(self, *, makes: bool = False) -> None:
        if self.stop_after <= 0:
            raise StoppedError
        if makes:
            if self.names <= 0:
                raise self._full()
            self.names -= 1
            self.made += 1

    def _open(self, real: Any) -> Any:
        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            path = self._inside(file)
            if path is None or not set(mode) & set("wxa"):
                return real(file, mode, *args, **kwargs)
            with self._lock:
                self._check(makes=True)
                opened = real(file, mode, *args, **kwargs)
                number = _number(os.fstat(opened.fileno()))
                self._step(Step("create", path, number))
            return _File(self, opened, number)

        return open_

    def write(self, opened: Any, number: Number, data: Any) -> int:
        """Writes what there is room for."""
        raw = data.encode() if isinstance(data, str) else bytes(data)
        with self._lock:
            self._check()
            fits = raw[: int(min(self.room, len(raw)))]
            opened.write(fits.decode() if isinstance(data, str) else fits)
            self.room -= len(fits)
            self.written += len(fits)
            self._step(Step("write", number=number, other=fits))
            if len(fits) < len(raw):
                raise self._full()
        return len(data)

    def _mkdir(self, real: Any) -> Any:
        def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
            inside = self._inside(path)
            if inside is None:
                real(path, *args, **kwargs)
                return
            with self._lock:
                self._check(makes=not os.path.exists(path))
                real(path, *args, **kwargs)
                self._step(Step("mkdir", inside))

        return mkdir

    def _replace(self, real: Any) -> Any:
        def replace(source: Any, target: Any, **kwargs: Any) -> None:
            inside, to = self._inside(source), self._inside(target)
            if inside is None or to is None:
                real(source, target, **kwargs)
                return
            with self._lock:
                self._check()
                number = _number(os.stat(source))
                real(source, target, **kwargs)
                self._step(Step("rename", inside, number, to))

        return replace

    def _unlink(self, real: Any) -> Any:
        def unlink(path: Any, **kwargs: Any) -> None:
            inside = self._inside(path)
            if inside is None:
                real(path, **kwargs)
                return
            with self._lock:
                self._check()
                real(path, **kwargs)
                self._step(Step("unlink", inside))

        return unlink

    def _fsync(self, descriptor: int) -> None:
        """Only notes it: what is lost is decided by `states`, and a real disk takes its time."""
        found = os.fstat(descriptor)
        with self._lock:
            self._check()
            path = self._directory(found)
            self._step(Step("sync", number=_number(found)) if path is None else Step("sync_directory", path))

    def _directory(self, found: os.stat_result) -> str | None:
        """The path of a directory of the log by its number, or None."""
        made = [step.path for step in self.log if step.kind == "mkdir"]
        for path in (".", *made):
            with_path = self.root / path
            if with_path.is_dir() and os.path.samestat(with_path.stat(), found):
                return path
        return None


class _File:
    """An open file that writes through the disk."""

    def __init__(self, disk: Disk, opened: Any, number: Number) -> None:
        self._disk, self._opened, self._number = disk, opened, number

    def write(self, data: Any) -> int:
        return self._disk.write(self._opened, self._number, data)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)


def _number(found: os.stat_result) -> Number:
    return found.st_dev, found.st_ino


# ---- loss of power

State = Mapping[str, bytes | None]
"""What is on a disk: path → content, or None for a directory."""


class _Replay:
    """The disk after some steps: what is safe, and what may be lost."""

    def __init__(self) -> None:
        self.content: dict[Number, bytes] = {}
        self.safe_content: dict[Number, bytes] = {}
        self.safe: dict[str, Number] = {}
        self.pending: list[Step] = []

    def take(self, step: Step) -> None:
        match step.kind:
            case "create":
                self.content[step.number] = self.safe_content[step.number] = b""
                self.pending.append(step)
            case "write":
                self.content[step.number] += step.other
            case "sync":
                self.safe_content[step.number] = self.content.get(step.number, b"")
            case "mkdir" | "rename" | "unlink":
                self.pending.append(step)
            case "sync_directory":
                done = [other for other in self.pending if _parent(_name(other)) == step.path]
                _apply(self.safe, done)
                self.pending = [other for other in self.pending if other not in done]

    def states(self, chance: random.Random) -> Iterator[State]:
        """What a loss of power may leave at this moment."""
        # What happens to temporary files alone is nothing that a reader sees.
        visible = [step for step in self.pending if not _name(step).startswith("tmp/")]
        half = [step for step in visible if chance.random() < 0.5]
        for done in ([], visible, half, *([step] for step in visible)):
            names = dict(self.safe)
            _apply(names, done)
            for torn in (_whole, _nothing, _half, _zeros):
                yield self._state(names, torn)

    def _state(self, names: Mapping[str, Number], torn: Any) -> State:
        found: dict[str, bytes | None] = {}
        for path, number in sorted(names.items()):
            parent = _parent(path)
            if path.startswith("tmp/") or (parent != "." and parent not in found):
                continue
            whole, safe = self.content.get(number, b""), self.safe_content.get(number, b"")
            found[path] = None if number == DIRECTORY else safe + torn(whole[len(safe) :])
        return found


def states(log: Iterable[Step], seed: int) -> Iterator[tuple[list[Any], State]]:
    """Every state in which a loss of power may leave the disk, each once, with the marks before it."""
    replay, marks, seen, chance = _Replay(), [], set(), random.Random(seed)
    for step in log:
        if step.kind == "mark":
            marks = [*marks, step.other]
        else:
            replay.take(step)
        for state in replay.states(chance):
            key = hash((len(marks), tuple(sorted(state.items()))))
            if key not in seen:
                seen.add(key)
                yield marks, state


def without_unsafe(log: Iterable[Step]) -> State:
    """What is left after a loss of power at the end of a log, if everything is lost that may be."""
    replay = _Replay()
    for step in log:
        replay.take(step)
    return next(replay.states(random.Random(0)))


def write_state(state: State, root: Path) -> None:
    """Makes a folder with these files."""
    root.mkdir()
    for path, content in state.items():
        if content is None:
            (root / path).mkdir(parents=True, exist_ok=True)
        else:
            (root / path).write_bytes(content)


def _name(step: Step) -> str:
    return str(step.other) if step.kind == "rename" else step.path


def _parent(path: str) -> str:
    return os.path.dirname(path) or "."


def _apply(names: dict[str, Number], steps: Iterable[Step]) -> None:
    for step in steps:
        if step.kind in ("rename", "unlink"):
            names.pop(step.path, None)
        if step.kind != "unlink":
            names[_name(step)] = step.number


def _whole(data: bytes) -> bytes:
    return data


def _nothing(data: bytes) -> bytes:
    return b""


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _zeros(data: bytes) -> bytes:
    return bytes(len(data))
