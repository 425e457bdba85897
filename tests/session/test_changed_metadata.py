"""Metadata that changed since its pages were stored: in a part of its own, while it is little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from saving import Objects, add_rows, content, session_on

from fabstir_vectordb import IntegrityError, VectorDBSession
from fabstir_vectordb.metadata.changes import StoredPages, encode_changes, parse_changes
from fabstir_vectordb.persist import load as load_module

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


CHANGED = "documents.changed.0000"
ROWS = 1_500  # pages of 448 rows: three, and one that is not full


def row(number: int) -> str:
    return f"row-{number:06d}"


async def filled(root: Path) -> VectorDBSession:
    session = await session_on(root.as_uri(), chunk_size=64, clock=lambda: 1_700_000_000.0)
    await add_rows(session, ROWS)
    return session


async def reopened(root: Path, **options: Any) -> VectorDBSession:
    session = await session_on(root.as_uri(), clock=lambda: 1_700_000_000.0)
    await session.load_user_vectors(**options)
    return session


def differing(root: Path, before: str, after: str) -> set[str]:
    one, other = Objects(root).files(before), Objects(root).files(after)
    return {name for name in other if name not in one or one[name].hash != other[name].hash}


async def test_a_changed_text_is_stored_without_its_neighbours(tmp_path: Path) -> None:
    async with await filled(tmp_path) as session:
        first = await session.save_to_s5()
        await session.update_metadata(row(3), {"text": "new"})
        await session.update_metadata(row(1_000), None)
        second = await session.save_to_s5()
        assert differing(tmp_path, first, second) == {"metadata", CHANGED}
        await session.update_metadata(row(4), {"text": "newer"})
        third = await session.save_to_s5()
        assert differing(tmp_path, second, third) == {"metadata", CHANGED}
        expected = await content(session)
        await session.verify()
    async with await reopened(tmp_path) as session:
        assert await content(session) == expected
        got = await session.get([row(3), row(4), row(5), row(1_000)])
        assert [one.metadata for one in got if one] == [
            {"text": "new"}, {"text": "newer"}, {"text": "sentence number 5", "n": 5}, None,
        ]  # fmt: skip
        assert await session.count({"text": "new"}) == 1
        assert await session.save_to_s5(verify_stored=True) == third
        await session.update_metadata(row(3), {"text": "sentence number 3", "n": 3})
        assert differing(tmp_path, third, await session.save_to_s5()) == {"metadata", CHANGED}


async def test_pages_in_which_much_changed_are_stored_anew(tmp_path: Path) -> None:
    async with await filled(tmp_path) as session:
        first = await session.save_to_s5()
        for number in range(100):
            await session.update_metadata(row(number), {"text": "a text that is not shorter than it was"})
        await session.update_metadata(row(500), {"text": "new"})
        second = await session.save_to_s5()
        assert differing(tmp_path, first, second) == {"metadata", "documents.0000", CHANGED}
        # Once stored, a page is the base of what comes.
        await session.update_metadata(row(0), {"text": "newest"})
        assert differing(tmp_path, second, await session.save_to_s5()) == {"metadata", CHANGED}
        expected = await content(session)
    async with await reopened(tmp_path) as session:
        assert await content(session) == expected


async def test_deletes_store_no_page_and_the_rows_stay_gone(tmp_path: Path) -> None:
    async with await filled(tmp_path) as session:
        first = await session.save_to_s5()
        await session.update_metadata(row(7), {"text": "soon gone"})
        for number in range(0, ROWS, 50):
            await session.delete_vector(row(number))
        await session.delete_vector(row(7))
        second = await session.save_to_s5()
        assert differing(tmp_path, first, second) == {"metadata", "tombstones.0000"}
        expected = await content(session)
        metadata_bytes = session._runtime.index._rows.arena._used
    async with await reopened(tmp_path) as session:
        assert await content(session) == expected
        assert session._runtime.index._rows.arena._used == metadata_bytes
        await session.vacuum()
        third = await session.save_to_s5()
        assert "documents.0000" in differing(tmp_path, second, third)
    for name, path in Objects(tmp_path).of_version(third).items():
        assert b"soon gone" not in path.read_bytes(), name


async def test_added_rows_store_the_last_page_alone(tmp_path: Path) -> None:
    async with await filled(tmp_path) as session:
        first = await session.save_to_s5()
        await session.update_metadata(row(1), {"text": "new"})
        await add_rows(session, 10, first=ROWS)
        second = await session.save_to_s5()
        names = differing(tmp_path, first, second)
        assert {name for name in names if name.startswith("documents")} == {"documents.0003", CHANGED}
        assert "recent.graph.0000" not in names
        expected = await content(session)
    async with await reopened(tmp_path) as session:
        assert await content(session) == expected


async def test_a_lost_page_is_stored_again(tmp_path: Path) -> None:
    async with await filled(tmp_path) as session:
        first = await session.save_to_s5()
        await session.update_metadata(row(1), {"text": "new"})
        Objects(tmp_path).of_version(first)["documents.0000"].unlink()
        second = await session.save_to_s5(verify_stored=True)
        assert "documents.0000" in differing(tmp_path, first, second)
        expected = await content(session)
    async with await reopened(tmp_path) as session:
        assert await content(session) == expected


async def test_lazy_loads_see_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "_is_worth_a_lazy_load", lambda opened: True)
    async with await filled(tmp_path) as session:
        await session.save_to_s5()
        await session.update_metadata(row(3), {"text": "new"})
        await session.delete_vector(row(5))
        await session.save_to_s5()
        (wanted,) = await session.get([row(3)])
        expected = await content(session)
    async with await reopened(tmp_path) as session:
        assert wanted is not None
        hits = await session.search(wanted.vector, 1)
        assert (hits.plan, hits[0].id, hits[0].metadata) == ("lazy", row(3), {"text": "new"})
        assert await session.count({"text": "new"}) == 1
        assert await session.count({"n": {"$in": [3, 4, 5]}}) == 1
        assert not session._runtime.index.is_whole
        assert await content(session) == expected


async def test_an_unfinished_save_forgets_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with await filled(tmp_path) as session:
        await session.save_to_s5()
        await session.update_metadata(row(3), {"text": "new"})
        store: Any = session._workspace.store
        with monkeypatch.context() as patch:
            patch.setattr(store, "set_pointer", None)
            with pytest.raises(TypeError):
                await session.save_to_s5()
        await session.update_metadata(row(4), {"text": "newer"})
        await session.save_to_s5()
    async with await reopened(tmp_path) as session:
        assert [one.metadata["text"] for one in await session.get([row(3), row(4)]) if one] == ["new", "newer"]


def test_what_is_kept() -> None:
    pages = StoredPages(10, 25)
    sizes, size_of = {0: 800, 1: 800, 2: 800}, lambda slot: 30
    assert pages.kept(10, 25, sizes, [0, 1, 2], size_of) == ({0, 1, 2}, [])
    pages.note([3, 12, 13, 14, 15, 99])
    assert pages.kept(10, 25, sizes, [0, 1, 2], size_of) == ({0, 2}, [3])
    assert pages.kept(10, 25, sizes, [1, 2], size_of) == ({2}, [])
    assert pages.kept(10, 26, sizes, [0, 1, 2], size_of) == ({0}, [3])
    assert pages.kept(9, 25, sizes, [0, 1, 2], size_of) == (set(), [])
    assert StoredPages().kept(10, 25, sizes, [0, 1, 2], size_of) == (set(), [])


def test_changes_come_back_and_nothing_else_does() -> None:
    rows: list[tuple[int, bytes | None]] = [(0, b"\x01"), (7, None), (900, b"\xa0")]
    raw = encode_changes(rows)
    assert parse_changes(raw, 901) == dict(rows)
    assert parse_changes(b"") == {}
    for wrong, count in (
        (raw, 900),
        (raw[:-1], 901),
        (raw + b"\0", 901),
        (raw[:8], 901),
        (b"\0\0\0\0", 901),
        (b"\xff\xff\xff\xff" + raw[4:], 901),
        (encode_changes([(7, None), (7, None)]), 901),
        (encode_changes([(8, None), (7, None)]), 901),
        (encode_changes([(1, b"\xc0\x01")]), 901),
        (encode_changes([(1, b"\xff")]), 901),
    ):
        with pytest.raises(IntegrityError):
            parse_changes(wrong, count)
