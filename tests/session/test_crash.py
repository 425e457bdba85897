"""Killing the process during saves: what opens afterwards is the version before, or the one being saved."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from saving import SEED, add_rows, content, session_on

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill without warning"),
]

BATCH = 40

# Adds a batch and saves, over and over; says on stdout how many saves have returned.
WRITER = """
import sys, anyio
sys.path.insert(0, sys.argv[2])
from saving import add_rows, session_on

async def main():
    async with await session_on(sys.argv[1], chunk_size=16) as session:
        await session.load_user_vectors(missing_ok=True)
        done = (await session.get_stats()).vector_count // {batch}
        print("ready", done, flush=True)
        while True:
            await add_rows(session, {batch}, first=done * {batch})
            await session.save_to_s5()
            done += 1
            print("saved", done, flush=True)

anyio.run(main)
"""


def kill_a_writer(uri: str, after_s: float) -> int:
    """Starts a writer, kills it a while after it is ready; returns the saves it had reported by then."""
    script = WRITER.format(batch=BATCH)
    with subprocess.Popen(
        [sys.executable, "-c", script, uri, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready "), line
        time.sleep(after_s)
        os.kill(process.pid, signal.SIGKILL)
        lines = [line, *process.stdout.readlines()]
    # The last line may be cut off.
    return int(next(text for text in reversed(lines) if text.endswith("\n")).split()[1])


async def crash(tmp_path: Path, times: int) -> None:
    generator = random.Random(SEED)
    uri = tmp_path.as_uri()
    versions: dict[int, list[tuple[str, bytes, object]]] = {0: []}
    for _ in range(times):
        reported = kill_a_writer(uri, generator.uniform(0.0, 0.25))
        async with await session_on(uri) as session:
            await session.load_user_vectors(missing_ok=True)
            found = await content(session)
            saves, rest = divmod(len(found), BATCH)
            assert rest == 0
            assert saves in (reported, reported + 1)
            if saves not in versions:
                async with await session_on("memory:crash-expected") as expected:
                    await add_rows(expected, saves * BATCH)
                    versions[saves] = await content(expected)
            assert found == versions[saves]
            if saves:
                await session.verify()
                listed = await session.history()
                # Loading has entered what the killed save left out.
                assert listed[0].vector_count == saves * BATCH


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_killed_save_leaves_the_previous_or_the_new_version(tmp_path: Path) -> None:
    await crash(tmp_path, 5)


@pytest.mark.long
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_two_hundred_killed_saves(tmp_path: Path) -> None:
    # A fresh store every 20 kills keeps the index small, so that most kills hit a save and not an add.
    for round_number in range(10):
        directory = tmp_path / str(round_number)
        directory.mkdir()
        await crash(directory, 20)
