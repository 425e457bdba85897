"""Several processes that save into one directory, and clocks that are set back: no row is lost."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import anyio
import pytest
from saving import add_rows, content, rows, session_on

# Adds rows of its own, one a save, however often another process was faster.
WRITER = """
import sys, anyio
sys.path.insert(0, sys.argv[2])
from saving import rows, session_on
from fabstir_vectordb import ConflictError

async def main():
    uri, _, name, saves = sys.argv[1:]
    conflicts = 0
    async with await session_on(uri) as session:
        for number in range(int(saves)):
            while True:
                await session.load_user_vectors(missing_ok=True, discard_unsaved=True)
                await session.add_batch([f"{name}-{number:03d}"], rows(1), [{"of": name}])
                try:
                    await session.save_to_s5()
                    break
                except ConflictError:
                    conflicts += 1
    print(conflicts)

anyio.run(main)
"""
SAVES = 25


@pytest.mark.long
def test_processes_that_save_into_one_directory_lose_no_row(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, tmp_path.as_uri(), str(Path(__file__).parent)]
    writers = [subprocess.Popen([*command, name, str(SAVES)], stdout=subprocess.PIPE, text=True) for name in "abc"]
    conflicts = [int(writer.communicate()[0]) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert sum(conflicts) > 0
    anyio.run(check_rows, tmp_path.as_uri())


async def check_rows(uri: str) -> None:
    async with await session_on(uri) as session:
        await session.load_user_vectors()
        assert [row[0] for row in await content(session)] == [f"{name}-{n:03d}" for name in "abc" for n in range(SAVES)]
        await session.verify()
        versions = [entry for entry in await session.history() if not entry.refused]
        # A save that another writer interrupted is in the history as refused, and each that ended well as itself.
        assert [entry.vector_count for entry in versions] == list(range(3 * SAVES, 0, -1))


@pytest.mark.anyio
@pytest.mark.one_loop
async def test_a_clock_that_is_set_back_loses_nothing_and_changes_no_order() -> None:
    uri, times = f"memory:{uuid.uuid4()}", [1.8e9, 1.7e9, 1.7e9, 1.0, 0.0]
    cids = []
    for number, now in enumerate(times):
        async with await session_on(uri, clock=lambda now=now: now) as session:
            await session.load_user_vectors(missing_ok=True)
            await session.add_batch([f"{number}"], rows(1))
            assert (await session.search(rows(1)[0], 10, threshold=None)).ids == [f"{n}" for n in range(number + 1)]
            await session.optimize()
            cids.append(await session.save_to_s5())
            assert [entry.cid for entry in await session.history()] == cids[::-1]
    async with await session_on(uri, clock=lambda: times[0]) as session:
        await session.load_user_vectors()
        assert await session.get_timestamps() == {f"{number}": now for number, now in enumerate(times)}
        await add_rows(session, 1)
        await session.save_to_s5()
        await session.verify()
