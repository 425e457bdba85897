"""Versions of draft 0 open: `draft-0/store` is a local store that commit 68bfce6 wrote.

It has two versions: one with a graph and lists, and one that keeps its graph and pages and adds rows (a step), changed
metadata and tombstones.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "session"))
from saving import START_US, Objects, add_rows, content, session_on

from fabstir_vectordb import ConflictError, VectorDBSession

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]
DRAFT = Path(__file__).with_name("draft-0")
EXPECTED = json.loads((DRAFT / "expected.json").read_text())


async def opened(root: Path) -> VectorDBSession:
    return await session_on(root.as_uri(), clock=lambda: START_US / 1e6 + 1_150, recent_window_s=1_000)


async def digest(session: VectorDBSession) -> str:
    found = hashlib.sha256()
    for row in await content(session):
        found.update(json.dumps([row[0], row[1].hex(), row[2]], sort_keys=True).encode())
    return found.hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return shutil.copytree(DRAFT / "store", tmp_path / "store")


async def test_versions_of_draft_0_open(store: Path) -> None:
    async with await opened(store) as session:
        await session.load_user_vectors()
        assert (await session.get_stats()).last_cid == EXPECTED["second"]
        assert (await session.get_stats()).index_type == "hybrid"
        assert await digest(session) == EXPECTED["content_sha256"]
        hits = await session.search([1.0, 0.5, -0.5, 0.25], 5, threshold=None)
        assert [hit.id for hit in hits] == EXPECTED["nearest"]
        for cid in (EXPECTED["first"], EXPECTED["second"]):
            await session.verify(cid)
        assert [version.cid for version in await session.history()] == [EXPECTED["second"], EXPECTED["first"]]
        assert len(Objects(store).manifest(EXPECTED["second"]).steps) == 1


async def test_what_a_version_of_draft_0_holds_of_removed_rows_is_known(store: Path) -> None:
    async with await opened(store) as session:
        await session.load_user_vectors()
        assert (await session.get_stats()).superseded_bytes > 3 * 4 * 4
        with pytest.raises(ConflictError, match=r"vacuum\(\)"):
            await session.share(EXPECTED["second"])
        await session.share(EXPECTED["first"])


async def test_a_session_goes_on_from_a_version_of_draft_0(store: Path) -> None:
    async with await opened(store) as session:
        await session.load_user_vectors()
        # Nothing changed, but the keys: all parts are stored again under those of draft 5 and later.
        again = await session.save_to_s5()
        before, earlier = (Objects(store).files(cid) for cid in (again, EXPECTED["second"]))
        assert before["ids.0000"].hash != earlier["ids.0000"].hash
        assert [version.cid for version in await session.history()] == [again, EXPECTED["second"], EXPECTED["first"]]
        assert await session.save_to_s5() == again
        await add_rows(session, 1, first=9_000, dim=4)
        cid = await session.save_to_s5()
        after = Objects(store).files(cid)
        assert {name for name in before if before[name].hash == after[name].hash} >= {"vectors.0000", "documents.0000"}
        await session.verify()
        expected = await content(session)
    async with await opened(store) as session:
        await session.load_user_vectors()
        assert await content(session) == expected
