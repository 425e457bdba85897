"""Saves on a disk that is full after some bytes or some files: the version before stays, and a later save works.

    python tests/campaigns/full_disks.py --runs 500 --results full.jsonl --page

Each run takes a store of a known version, makes the next version, and lets the disk below the store (or below the
portal) run full at a random byte, or at a random file or directory. The save ends well or with an error of the package;
a new session finds the version before or the one saved. Then the disk has room again, and the same session saves. A run
that finds anything else ends the campaign with an error.

--page writes the table of docs/faults.md. Results are continued: only the runs that are missing are made.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "session"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "storage"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import anyio
import tally
from disk import Disk
from serving import running
from versions import change, open_session, version_at, version_in

from fabstir_vectordb import VectorDBError
from fabstir_vectordb.portal.app import create_app

SEED = 20_261_127
STORES = ("file", "portal+", "gateway+")
#: Runs on one store: it stays small.
ROUND_RUNS = 25


async def one_run(uri: str, disk: Disk, chance: random.Random) -> tally.Trial:
    """Fills the disk once, during a save; returns what was seen."""
    full_by = chance.choice(["bytes", "files"])
    async with await open_session(uri, max_retries=1) as session:
        before = await version_in(session)
        await change(session, before + 1)
        # A save stores about as much as the one before.
        if full_by == "bytes":
            disk.room = chance.randrange(max(disk.written, 20_000))
        else:
            disk.names = chance.randrange(max(disk.made, 40))
        disk.written = disk.made = 0
        ended = "saved"
        try:
            await session.save_to_s5()
        except VectorDBError as error:
            ended = error.code
        hit = disk.was_full
        disk.empty()
        found = await version_at(uri)
        assert found in ((before + 1,) if ended == "saved" else (before, before + 1)), (before, found, ended)
        assert not list(disk.root.glob("tmp/*"))  # what could not be written takes no room
        if ended != "saved":
            assert ended in ("STORAGE_ERROR", "S5_ERROR")
            assert (await session.get_stats()).dirty
            disk.written = disk.made = 0
            await session.save_to_s5()
            assert await version_at(uri) == before + 1
    return {
        "full by": full_by,
        "full": hit,
        "save": "saved" if ended == "saved" else "refused",
        "found": "new" if found > before else "old",
    }


@contextmanager
def over(kind: str, root: Path) -> Iterator[str]:
    """The address of a store over a directory."""
    if kind == "file":
        yield root.as_uri()
    else:
        with running(create_app(root)) as address:
            yield kind + address


def run(runs: int, results: tally.Tally, folder: Path) -> None:
    """Makes the runs that are missing, a third on each store."""
    wanted = {kind: runs // 3 + (STORES.index(kind) < runs % 3) for kind in STORES}
    with mock.patch("fabstir_vectordb.storage.retry._pause", return_value=0.0):
        for kind, numbers in results.rounds(wanted, ROUND_RUNS):
            root = Path(tempfile.mkdtemp(dir=folder))
            disk = Disk(root)
            with over(kind, root) as uri, disk.watching():
                for number in numbers:
                    seen = anyio.run(one_run, uri, disk, random.Random(f"{SEED} {kind} {number}"))
                    disk.log.clear()
                    results.add({"store": kind, **seen})
            shutil.rmtree(root)


def table_of(results: tally.Tally) -> str:
    """The table of the page."""
    lines = []
    for kind in STORES:
        of = {"store": kind}
        of_interest = ({}, {"full": True}, {"save": "saved"}, {"save": "refused"}, {"save": "refused", "found": "old"})
        counts = [results.count(**of, **more) for more in of_interest]
        lines.append((kind.strip("+"), *counts))
    totals = [sum(column) for column in zip(*(line[1:] for line in lines), strict=True)]
    head = ("store", "runs", "disk full", "save succeeded", "save refused", "then the version before found")
    return tally.table(head, [*lines, ("all", *totals)])


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500, help="default 500")
    parser.add_argument("--results", type=Path, help="file of the runs, which is continued")
    parser.add_argument("--page", action="store_true", help="write the table of docs/faults.md")
    options = parser.parse_args()
    results = tally.Tally(options.results)
    logging.disable()  # of hundreds of full disks
    with tempfile.TemporaryDirectory() as folder:
        run(options.runs, results, Path(folder))
    text = table_of(results)
    print(text, end="")
    if options.page:
        tally.write_table("full disks", text)


if __name__ == "__main__":
    main()
