"""Kills clients and portals at random moments of saves; what opens afterwards is the version before or the one saved.

    python tests/campaigns/kills.py --trials 1000 --results kills.jsonl --page

This process imports everything and starts no thread, so that a fork makes a client or a portal in milliseconds. A
client loads, checks every row against `versions.version`, and saves one version after another. A trial ends in one of
two ways:

- the client was killed: the next client finds the version before or the one that was being saved, and saves the next;
- the portal was killed, and another started at its address: the save ended well, or with an error of the package; a new
  session of the same client finds the version before or the one saved; and where the save failed, the same session
  saves it now.

A trial that finds anything else ends the campaign with an error.

--page writes the table of docs/faults.md. Results are continued: only the trials that are missing are run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "session"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import anyio
import tally
import uvicorn
from versions import change, open_session, version_at, version_in

from fabstir_vectordb import VectorDBError
from fabstir_vectordb.portal.app import create_app
from fabstir_vectordb.portal.server import server_config
from fabstir_vectordb.storage import retry, wire

SEED = 20_261_127
STORES = ("file", "portal+http", "gateway+http")
#: Trials on one store: it stays small, and its saves short.
ROUND_TRIALS = 25
PATIENCE_S = 600.0
KILLED = ("client", "portal", "both")
#: What clients and portals would each import when they first use it.
LATER = ("anyio._backends._asyncio", "numpy.ma", "numpy.random", "tenacity", "uvicorn.lifespan.off")


class Process:
    """A forked process that reads lines and says lines."""

    def __init__(self, run: Callable[[Iterator[str], Callable[..., None]], None]) -> None:
        orders, self._orders = os.pipe()
        reports, says = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _become(run, orders, says)
        os.close(orders)
        os.close(says)
        os.set_blocking(reports, False)
        self._reports, self._said = reports, b""

    def order(self, line: str) -> None:
        os.write(self._orders, line.encode() + b"\n")

    def hear(self, *expected: str, within_s: float = PATIENCE_S) -> list[str] | None:
        """The next line as words, the first of which must be expected; None where the time is up."""
        end = time.monotonic() + within_s
        while b"\n" not in self._said:
            with contextlib.suppress(BlockingIOError):
                more = os.read(self._reports, 65_536)
                if not more:
                    raise AssertionError(f"process {self.pid} ended early; it said {self._said!r}")
                self._said += more
                continue
            if time.monotonic() >= end:
                return None
            time.sleep(0.000_5)
        line, _, self._said = self._said.partition(b"\n")
        words = line.decode().split()
        assert words[0] in expected, line
        return words

    def must_hear(self, *expected: str) -> list[str]:
        words = self.hear(*expected)
        assert words is not None, f"nothing for {PATIENCE_S} s"
        return words

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._orders)
        os.close(self._reports)


def _become(run: Callable[[Iterator[str], Callable[..., None]], None], orders: int, says: int) -> NoReturn:
    """Runs in a child, which never returns from here."""
    code = 1
    try:
        for descriptor in range(3, 256):
            if descriptor not in (orders, says):
                with contextlib.suppress(OSError):
                    os.close(descriptor)

        def report(*words: object) -> None:
            os.write(says, (" ".join(map(str, words)) + "\n").encode())

        with os.fdopen(orders) as lines:
            run(iter(lines.readline, ""), report)
        code = 0
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(says, f"broke {error!r}\n".replace("\n", " ", 1).encode() + b"\n")
    finally:
        os._exit(code)


# ---- a client


def client(uri: str) -> Callable[[Iterator[str], Callable[..., None]], None]:
    def run(orders: Iterator[str], report: Callable[..., None]) -> None:
        anyio.run(_save_on_order, uri, orders, report)

    return run


async def _save_on_order(uri: str, orders: Iterator[str], report: Callable[..., None]) -> None:
    async with await open_session(uri, timeout_s=10.0) as session:
        number = await version_in(session)
        report("found", number)
        for _ in orders:
            number += 1
            await change(session, number)
            report("saving", number)
            began = time.monotonic()
            try:
                await session.save_to_s5()
            except VectorDBError as error:
                assert (await session.get_stats()).dirty
                report("failed", error.code)
            else:
                report("saved", time.monotonic() - began)
            if next(orders).strip() == "look":
                report("found", await version_at(uri))
                if next(orders).strip() == "repeat":
                    await session.save_to_s5()
                    report("found", await version_at(uri))


# ---- a portal


class Portal:
    """A portal in a process of its own, always at the same address."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # Holds the port while no portal listens on it: connections are refused, and nobody else takes it.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._held.bind(("127.0.0.1", 0))
        self.port = self._held.getsockname()[1]
        self.start()

    def start(self) -> None:
        def serve(orders: Iterator[str], report: Callable[..., None]) -> None:
            listener = socket.create_server(("127.0.0.1", self.port), reuse_port=True)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Ends with the campaign, however that ends: nothing is ever ordered.
            threading.Thread(target=lambda: os._exit(len(list(orders))), daemon=True).start()
            report("listening")
            uvicorn.Server(server_config(create_app(self._root), "critical")).run(sockets=[listener])

        self._process: Process | None = Process(serve)
        self._process.must_hear("listening")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
        self._process = None

    def close(self) -> None:
        self.kill()
        self._held.close()


# ---- trials


class Round:
    """Some trials on one store.

    Attributes:
        number: version that the store has for certain.
    """

    def __init__(self, kind: str, root: Path) -> None:
        self._portal = None if kind == "file" else Portal(root)
        self._uri = root.as_uri() if self._portal is None else f"{kind}://127.0.0.1:{self._portal.port}"
        self._kind, self.number = kind, 0
        self._client: Process | None = None
        self._save_s = self._one_save()

    def close(self) -> None:
        if self._client is not None:
            self._client.kill()
        if self._portal is not None:
            self._portal.close()

    def trial(self, chance: random.Random) -> tally.Trial:
        """Kills once; returns what was seen."""
        killed = "client" if self._portal is None else chance.choice(KILLED)
        process = self._ready()
        process.order("save")
        process.must_hear("saving")
        # A little longer than a save takes, so that some kills come after it.
        answer = process.hear("saved", "failed", within_s=chance.uniform(0, 1.1 * self._save_s))
        if answer is not None and answer[0] == "saved":
            self._save_s = (self._save_s + float(answer[1])) / 2
        if killed != "client":
            assert self._portal is not None
            self._portal.kill()
            if killed == "portal":
                time.sleep(chance.choice([0.0, 0.1, 0.4]))
                self._portal.start()
                return self._after_portal(process, answer)
            time.sleep(chance.uniform(0, 0.02))
        self._client = None
        process.kill()
        if killed == "both":
            assert self._portal is not None
            self._portal.start()
        before, saved = self.number, answer is not None and answer[0] == "saved"
        self._ready()  # checks all rows
        assert self.number in ((before + 1,) if saved else (before, before + 1)), (before, self.number, saved)
        return self._seen(killed, None if answer is None else answer[0], self.number > before)

    def _after_portal(self, process: Process, answer: list[str] | None) -> tally.Trial:
        during = answer is None
        answer = answer or process.must_hear("saved", "failed")
        process.order("look")
        found, before = int(process.must_hear("found")[1]), self.number
        assert found in ((before + 1,) if answer[0] == "saved" else (before, before + 1)), (before, found, answer)
        process.order("go on" if answer[0] == "saved" else "repeat")
        if answer[0] == "failed":
            assert int(process.must_hear("found")[1]) == before + 1
        self.number = before + 1
        return self._seen("portal", None if during else answer[0], found > before, answer[0])

    def _seen(self, killed: str, answer: str | None, is_new: bool, ended: str = "killed") -> tally.Trial:
        return {
            "store": self._kind,
            "killed": killed,
            "during": "save" if answer is None else "after it",
            "found": "new" if is_new else "old",
            "save": ended,
        }

    def _ready(self) -> Process:
        """A client that has loaded and checked the newest version."""
        if self._client is None:
            self._client = Process(client(self._uri))
            self.number = int(self._client.must_hear("found")[1])
        return self._client

    def _one_save(self) -> float:
        """Seconds that a save takes."""
        process = self._ready()
        process.order("save")
        process.must_hear("saving")
        seconds = float(process.must_hear("saved")[1])
        process.order("go on")
        self.number += 1
        return seconds


def run(trials: int, results: tally.Tally, folder: Path) -> None:
    """Runs the trials that are missing: half of all on the directory, half over HTTP."""
    retry._pause = lambda state: 0.02  # type: ignore[assignment]
    wanted = {"file": trials - 2 * (trials // 4), **dict.fromkeys(STORES[1:], trials // 4)}
    for kind, numbers in results.rounds(wanted, ROUND_TRIALS):
        root = Path(tempfile.mkdtemp(dir=folder))
        round_ = Round(kind, root)
        try:
            for number in numbers:
                results.add(round_.trial(random.Random(f"{SEED} {kind} {number}")))
        finally:
            round_.close()
        shutil.rmtree(root)


def table_of(results: tally.Tally) -> str:
    """The table of the page."""
    lines = []
    for kind in STORES:
        for killed in KILLED:
            of = {"store": kind, "killed": killed}
            if results.count(**of):
                of_interest = ({}, {"during": "save"}, {"found": "old"}, {"found": "new"})
                counts = [results.count(**of, **more) for more in of_interest]
                lines.append((f"{kind.partition('+')[0]}, {killed}", *counts))
    totals = [sum(column) for column in zip(*(line[1:] for line in lines), strict=True)]
    head = ("store, killed", "kills", "during a save", "old version found", "new version found")
    return tally.table(head, [*lines, ("all", *totals)])


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1_000, help="kills, half of them over HTTP; default 1000")
    parser.add_argument("--results", type=Path, help="file of the trials, which is continued")
    parser.add_argument("--page", action="store_true", help="write the table of docs/faults.md")
    options = parser.parse_args()
    for module in LATER:
        importlib.import_module(module)
    wire._certificates()
    results = tally.Tally(options.results)
    with tempfile.TemporaryDirectory() as folder:
        run(options.trials, results, Path(folder))
    text = table_of(results)
    print(text, end="")
    if options.page:
        tally.write_table("kills", text)


if __name__ == "__main__":
    main()
