"""Every golden store opens, answers as recorded, and goes on under today's keys. `make_store.py` wrote them."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "session"))
sys.path.insert(0, str(Path(__file__).parents[1] / "reader"))
sys.path.insert(0, str(Path(__file__).parent))
import plain
from make_store import asked_by_words, described
from saving import PHRASE, Objects, session_on

from fabstir_vectordb import VectorDBSession
from fabstir_vectordb.collections import Collection
from fabstir_vectordb.persist.manifest import FORMAT
from fabstir_vectordb.text import clauses

HERE = Path(__file__).parent
pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]
OLD = ("draft-5", "draft-5-stems")
TODAY = ("format-1", "format-1-stems", "format-1-shards")
STORES = ["drafts-1-3", "draft-6-stems", *TODAY, *(pytest.param(name, marks=pytest.mark.long) for name in OLD)]


def expected_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / name / "expected.json").read_text(encoding="utf-8"))
    return found


async def opened(root: Path, name: str, index: str, **more: Any) -> VectorDBSession:
    now_s = expected_of(name)["now_us"] / 1e6
    return await session_on(
        root.as_uri(), index_name=index, encrypt_at_rest=index != "clear", clock=lambda: now_s, **more
    )


def same_stems(root: Path, version: dict[str, Any]) -> bool:
    """Whether the stems of a version are those of the stemmer that is installed."""
    if "asked_by_words" not in version:
        return True
    text = Objects(root, version["index"]).manifest(version["cid"]).text
    assert text is not None
    stemmer: dict[str, str] = text.analyzer["stemmer"]
    return stemmer["version"] == importlib.metadata.version(stemmer["name"])


@pytest.mark.parametrize("name", STORES)
async def test_versions_of_golden_stores_answer_as_recorded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("draft-5-stems", "draft-6-stems"):
        # When these answers were recorded, a word counted as much as its stem.
        monkeypatch.setattr(clauses, "FORM_WEIGHT", 1.0)
    root = shutil.copytree(HERE / name / "store", tmp_path / "store")
    for version in expected_of(name)["versions"]:
        async with await opened(root, name, version["index"] or "reader") as session:
            await session.load_user_vectors(version["cid"], rebuild_text=not same_stems(root, version))
            found = await described(session, version["index"], version["cid"])
            version.pop("collected", None)
            asked = version.pop("asked_by_words", [])
            answers = await asked_by_words(session) if asked else []
        for there, recorded in zip(answers, asked, strict=True):
            assert there.pop("scores") == pytest.approx(recorded.pop("scores"), rel=1e-6)
            assert there == recorded
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
        assert before.keys() == after.keys() and objects.manifest(cid).format == FORMAT
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


async def test_a_golden_collection_answers_as_recorded_and_goes_on(tmp_path: Path) -> None:
    name = "format-1-shards"
    root = shutil.copytree(HERE / name / "store", tmp_path / "store")
    versions = [version for version in expected_of(name)["versions"] if "collected" in version]
    fields = {"s5_portal": root.as_uri(), "user_seed_phrase": PHRASE, "session_id": "golden", "index_name": "big"}
    for version in versions:
        collected = version["collected"]
        async with await Collection.open(fields, cid=version["cid"]) as collection:
            for query, ids in zip(collected["queries"], collected["ids"], strict=True):
                hits = await collection.search(query, len(ids), threshold=None, exact=True)
                assert [hit.id for hit in hits] == ids
            words = await collection.search(text="sentence naïve", k=len(collected["words"]))
            assert [hit.id for hit in words] == collected["words"]
            assert [row is not None for row in await collection.get(["ré-1", "nobody"])] == [True, False]
    async with await Collection.open(fields) as collection:
        assert await collection.count() == 478
        await collection.change(deletes=["ré-1"])
        await collection.refresh()
        assert await collection.count() == 477
        await collection.verify()


@pytest.mark.long
async def test_stems_of_draft_5_keep_their_positions_until_a_merge(tmp_path: Path) -> None:
    name = "draft-5-stems"
    root = shutil.copytree(HERE / name / "store", tmp_path / "store")
    *_, version = expected_of(name)["versions"]
    if not same_stems(root, version):
        pytest.skip("another release of the stemmer: its stems are indexed anew")
    entropy = bytes.fromhex(expected_of(name)["entropy"])
    sizes = []
    async with await opened(root, name, "words") as session:
        await session.load_user_vectors()
        for change in (None, session.vacuum):
            if change is not None:
                await session.delete_vector("w-7")
                await change()
            answers = await asked_by_words(session)
            found = plain.open_cid(plain.Store(root), await session.save_to_s5(), entropy, "words")
            assert all(any(segment.stems.values()) for segment in found.segments())
            sizes.append(sum(len(raw) for kind, raw in found.raw.items() if kind.startswith("text.positions")))
            async with await opened(root, name, "words") as other:
                await other.load_user_vectors()
                assert await asked_by_words(other) == answers
    assert sizes[1] < 0.7 * sizes[0]


async def test_an_earlier_draft_in_clear_has_no_keys_and_keeps_its_parts(tmp_path: Path) -> None:
    root = shutil.copytree(HERE / "drafts-1-3" / "store", tmp_path / "store")
    async with await opened(root, "drafts-1-3", "clear") as session:
        await session.load_user_vectors()
        last = (await session.get_stats()).last_cid
        assert await session.save_to_s5() == last
