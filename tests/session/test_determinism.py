"""The same calls give the same CID, whatever the threads, the kernels and the store; no wall clock enters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from saving import Objects, add_rows, session_on

from fabstir_vectordb import get_platform_info

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

KERNELS = ("avx512", "avx2", "neon", "scalar")
UNUSABLE = "FVDB_KERNELS"

# Saves and deletes the same rows once for each memory setting and number of threads, in stores of both kinds; prints
# the CIDs.
SCRIPT = """
import json, sys, tempfile, pathlib, uuid, anyio
sys.path.insert(0, sys.argv[1])
from saving import add_rows, session_on
count, dim, threads_list = int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])

async def build(uri, memory, threads):
    fields = {"memory": memory, "threads": threads, "text_fields": "text"}
    async with await session_on(uri, session_id=uuid.uuid4().hex, **fields) as session:
        await add_rows(session, count // 2, dim=dim)
        cids = [await session.save_to_s5()]
        await add_rows(session, count - count // 2, first=count // 2, dim=dim)
        cids.append(await session.save_to_s5())
        # By the words of some rows, then, of more than a third, by a copy of the text index.
        for stop, step in ((count // 2, 5), (count, 2)):
            await session.delete([f"row-{row:06d}" for row in range(0, stop, step)], missing_ok=True)
            cids.append(await session.save_to_s5())
        await session.vacuum()
        cids.append(await session.save_to_s5())
        return cids

async def main():
    found = {"default": [], "compact": []}
    for memory, cids in found.items():
        for number, threads in enumerate(threads_list):
            with tempfile.TemporaryDirectory() as directory:
                uri = "memory:" + uuid.uuid4().hex if number % 2 else pathlib.Path(directory).as_uri()
                cids.append(await build(uri, memory, threads))
    print(json.dumps(found))

anyio.run(main)
"""


def cids_with(kernels: str | None, count: int, dim: int, threads: list[int]) -> dict[str, Any] | None:
    """The CIDs of a fresh process on one kernel table, or None where this CPU cannot run it."""
    environment = {**os.environ}
    environment.pop("FVDB_KERNELS", None)
    if kernels is not None:
        environment["FVDB_KERNELS"] = kernels
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SCRIPT,
            str(Path(__file__).parent),
            str(count),
            str(dim),
            json.dumps(threads),
        ],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        assert kernels is not None, done.stderr[-2000:]
        assert UNUSABLE in done.stderr, done.stderr[-2000:]
        return None
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_one_cid_each(count: int, dim: int, threads: list[int], of_each: list[int]) -> None:
    """Of numbers of threads with the kernels that this CPU gets, and of those in `of_each` with each table."""
    expected = cids_with(None, count, dim, threads)
    assert expected is not None
    chosen = get_platform_info()["kernels"]
    ran = []
    for kernels in KERNELS:
        found = expected if kernels == chosen else cids_with(kernels, count, dim, of_each)
        if found is None:
            continue
        ran.append(kernels)
        for memory in ("default", "compact"):
            distinct = {tuple(cids) for cids in found[memory]}
            assert distinct == {tuple(expected[memory][0])}, (kernels, memory)
    assert "scalar" in ran


def test_threads_kernels_and_stores_do_not_enter_a_cid() -> None:
    # Either half has a graph; an odd dimension takes the kernels' tails along.
    # A table of kernels knows nothing of threads.
    assert_one_cid_each(2_200, 37, [1, 8], [2])


@pytest.mark.long
def test_twenty_thousand_rows_have_one_cid_each() -> None:
    assert_one_cid_each(20_000, 384, [1, 2, 8], [1, 2, 8])


async def test_session_id_and_time_of_day_do_not_enter_a_cid() -> None:
    cids = set()
    for number in range(3):
        async with await session_on(f"memory:determinism-{number}", session_id=f"user-{number}") as session:
            await add_rows(session, 100)
            cids.add(await session.save_to_s5())
    assert len(cids) == 1


async def test_saving_in_between_or_loading_changes_no_part_but_pages(tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    async with await session_on(once.as_uri()) as session:
        await add_rows(session, 100)
        await session.delete_vector("row-000007")
        direct = await session.save_to_s5()
    async with await session_on(twice.as_uri()) as session:
        await add_rows(session, 100)
        await session.save_to_s5()
    async with await session_on(twice.as_uri()) as session:
        await session.load_user_vectors()
        await session.delete_vector("row-000007")
        stepwise = await session.save_to_s5()
    before, after = Objects(once).files(direct), Objects(twice).files(stepwise)
    changed = {name for name in before if before[name].hash != after[name].hash}
    # The manifest holds the time of the last change, and a delete is dated by the clock; a stored page stays.
    assert changed <= {"metadata", "documents.0000"}


async def test_the_index_name_and_the_phrase_do_enter() -> None:
    from fabstir_vectordb import new_seed_phrase

    cids = set()
    for fields in ({}, {"index_name": "other"}, {"user_seed_phrase": new_seed_phrase()}):
        async with await session_on("memory:determinism-keys", **fields) as session:
            await add_rows(session, 10)
            cids.add(await session.save_to_s5())
    assert len(cids) == 3
