"""The bytes that are saved, held against those of earlier commits: only a change of the format may change them.

`cids.json` has, for each version that `versions` saves, its CID and the BLAKE3 of each uncompressed part. A commit
that changes the format writes the file anew, `python tests/golden/test_golden_cids.py`, and says so in CHANGELOG.md.
Compressed bytes, and so CIDs, also depend on libzstd: they are compared where its version is the recorded one.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "session"))
from saving import START_US, Objects, add_rows, rows, rows_on_topics, session_on

from fabstir_vectordb import VectorDBSession, VectorInput

if sys.version_info >= (3, 14):
    from compression.zstd import zstd_version
else:
    from backports.zstd import zstd_version

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]
RECORDED = Path(__file__).with_name("cids.json")
NOW_S = START_US / 1e6 + 1_000_000


async def save(session: VectorDBSession, directory: Path, index_name: str) -> dict[str, Any]:
    """Saves; the version's CID, and the BLAKE3 of its parts."""
    cid = await session.save_to_s5()
    parts = Objects(directory, index_name).manifest(cid).parts
    return {
        "cid": cid,
        "parts": {part.name: base64.urlsafe_b64encode(part.hash).decode().rstrip("=") for part in parts},
    }


async def versions(directory: Path) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Versions of every kind: each metric, both sides, changes of every sort, and a save on top of another."""
    uri = directory.as_uri()
    for metric in ("cosine", "l2", "dot"):
        async with await session_on(uri, metric=metric, index_name=metric, clock=lambda: NOW_S) as session:
            await add_rows(session, 1_500, dim=24)
            yield f"{metric}, a graph", await save(session, directory, metric)
            await add_rows(session, 40, first=1_500, dim=24)
            await session.delete_vector("row-000003")
            await session.update_metadata("row-000005", {"text": "another"})
            yield f"{metric}, little changed", await save(session, directory, metric)
            await session.optimize()
            yield f"{metric}, lists", await save(session, directory, metric)
            await add_rows(session, 300, first=1_540, dim=24)
            await session.delete_by_metadata({"n": {"$lt": 200}})
            await session.vacuum()
            yield f"{metric}, vacuumed", await save(session, directory, metric)
    async with await session_on(uri, index_name="topics", clock=lambda: NOW_S) as session:
        vectors, times = rows_on_topics(2_500, 24), [START_US / 1e6] * 2_500
        await session.add_batch([f"{i}" for i in range(2_500)], vectors, timestamps=times)
        await session.optimize()
        yield "two lists a row", await save(session, directory, "topics")
    async with await session_on(uri, index_name="small", clock=lambda: NOW_S) as session:
        yield "empty", await save(session, directory, "small")
        await session.add_vectors([VectorInput("bare", None, {"kind": "note"}, timestamp=NOW_S)])
        await session.set_schema({"kind": "String"})
        yield "no vector", await save(session, directory, "small")
        vectors = rows(50, 5)
        await session.add_batch(
            [f"ünï-{i}" for i in range(50)],
            vectors,
            timestamps=[NOW_S] * 50,
            expires_at=[NOW_S + 10 + i for i in range(50)],
        )
        yield "rows that expire", await save(session, directory, "small")
    settings = {"index_name": "plain", "encrypt_at_rest": False, "chunk_size": 64, "M": 8, "ef_construction": 50}
    async with await session_on(uri, clock=lambda: NOW_S, **settings) as session:
        await add_rows(session, 1_200, dim=3)
        yield "in clear, small parts", await save(session, directory, "plain")


async def all_versions(directory: Path) -> dict[str, dict[str, Any]]:
    return {name: version async for name, version in versions(directory)}


async def test_a_commit_that_keeps_the_format_saves_the_recorded_bytes(tmp_path: Path) -> None:
    recorded, found = json.loads(RECORDED.read_text()), await all_versions(tmp_path)
    assert {name: version["parts"] for name, version in found.items()} == {
        name: version["parts"] for name, version in recorded["versions"].items()
    }
    if zstd_version == recorded["zstd"]:
        assert {name: version["cid"] for name, version in found.items()} == {
            name: version["cid"] for name, version in recorded["versions"].items()
        }


def record() -> None:
    with tempfile.TemporaryDirectory() as directory:
        found = anyio.run(all_versions, Path(directory))
    RECORDED.write_text(json.dumps({"zstd": zstd_version, "versions": found}, indent=1) + "\n")


if __name__ == "__main__":
    record()
