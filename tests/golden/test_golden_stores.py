"""Every golden store opens, answers as recorded, and goes on under today's keys. `make_store.py` wrote them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "session"))
sys.path.insert(0, str(Path(__file__).parent))
from make_store import described
from saving import Objects, session_on

from fabstir_vectordb import VectorDBSession
from fabstir_vectordb.persist.manifest import DRAFT

HERE = Path(__file__).parent
pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]
# The quick suite opens versions of today everywhere.
STORES = ["drafts-1-3", pytest.param("draft-5", marks=pytest.mark.long)]


def expected_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / name / "expected.json").read_text(encoding="utf-8"))
    return found


async def opened(root: Path, name: str, index: str, **more: Any) -> VectorDBSession:
    now_s = expected_of(name)["now_us"] / 1e6
    return await session_on(
        root.as_uri(), index_name=index, encrypt_at_rest=index != "clear", clock=lambda: now_s, **more
    )


@pytest.mark.parametrize("name", STORES)
async def test_versions_of_golden_stores_answer_as_recorded(name: str, tmp_path: Path) -> None:
    root = shutil.copytree(HERE / name / "store", tmp_path / "store")
    for version in expected_of(name)["versions"]:
        async with await opened(root, name, version["index"] or "reader") as session:
            await session.load_user_vectors(version["cid"])
            found = await described(session, version["index"], version["cid"])
        for there, recorded in zip(found["searches"], version["searches"], strict=True):
            for key in ("distances", "scores"):
                assert there.pop(key) == pytest.approx(recorded.pop(key), abs=1e-6)
        assert found == version


async def test_an_earlier_draft_is_saved_again_under_keys_of_its_own_and_nothing_is_lost(tmp_path: Path) -> None:
    """The pointer is found, the history goes on, shares and versions of before still open."""
    name = "drafts-1-3"
    root = shutil.copytree(HERE / name / "store", tmp_path / "store")
    expected = expected_of(name)["versions"]
    of_graph = [version["cid"] for version in expected if version["index"] == "graph"]
    (share,) = (version["cid"] for version in expected if version["index"] is None)
    objects = Objects(root, "graph")
    async with await opened(root, name, "graph") as session:
        await session.load_user_vectors()
        last = (await session.get_stats()).last_cid
        assert last is not None
        cid = await session.save_to_s5()
        before, after = objects.files(last), objects.files(cid)
        assert before.keys() == after.keys() and objects.manifest(cid).draft == DRAFT
        # Equal bytes, other keys; so other blobs.
        assert [part.hash for part in objects.manifest(cid).parts if part.name == "ids.0000"] == [
            part.hash for part in objects.manifest(last).parts if part.name == "ids.0000"
        ]
        keys = [{entry.encryption.key for entry in files.values() if entry.encryption} for files in (before, after)]
        assert len(keys[0]) == len(before) and not keys[0] & keys[1]
        assert [version.cid for version in await session.history()] == [cid, last, *reversed(of_graph)]
        assert await session.list_indexes() == ["clear", "graph", "lists", "small", "topics"]
        for older in (last, *of_graph):
            await session.verify(older)
        assert await session.share(last) != share
        await session.verify(await session.share(cid))
    async with await opened(root, name, "other") as session:
        for readable in (share, cid):
            await session.load_user_vectors(readable)
            assert await session.count() == 1_119
    async with await opened(root, name, "graph") as session:
        assert (await session.prune_history(1, dry_run=False)).blobs_deleted
        assert (await session.verify()).rows == 1_119


async def test_an_earlier_draft_in_clear_has_no_keys_and_keeps_its_parts(tmp_path: Path) -> None:
    root = shutil.copytree(HERE / "drafts-1-3" / "store", tmp_path / "store")
    async with await opened(root, "drafts-1-3", "clear") as session:
        await session.load_user_vectors()
        last = (await session.get_stats()).last_cid
        assert await session.save_to_s5() == last
