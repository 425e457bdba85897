"""A memory: what it keeps, finds and forgets, without any protocol."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from notebook import Meanings, break_store, mend_store, opened, settings

from fabstir_vectordb import InvalidConfigError, InvalidInputError, StorageError, VectorDBSession, new_seed_phrase
from fabstir_vectordb.embedders import EmbeddingError
from fabstir_vectordb.mcp_server.memory import Memory
from fabstir_vectordb.mcp_server.notes import (
    CURSOR_CHARS_MAX,
    ID_CHARS_MAX,
    IDS_MAX,
    LIMIT_MAX,
    NOTE_CHARS_MAX,
    PAGE_CHARS,
    QUERY_CHARS_MAX,
    TAG_CHARS_MAX,
    TAGS_MAX,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mcp.md"

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


@pytest.fixture
def uri() -> str:
    return f"memory:{uuid.uuid4()}"


async def texts(memory: Memory, query: str, **options: Any) -> list[str]:
    return [note.text for note in (await memory.recall(query, **options)).notes]


async def test_notes_are_found_by_words_after_a_restart_by_phrase_alone(uri: str) -> None:
    async with await opened(uri) as memory:
        first = await memory.remember("  Ada likes roses\n", ["ada", "taste", "ada"])
        assert first.is_new and first.count == 1
        assert (await memory.remember("Bob's car is red", ["bob"])).count == 2
    async with await opened(uri) as memory:
        [note] = (await memory.recall("roses")).notes
        assert (note.id, note.text, note.tags) == (first.id, "Ada likes roses", ("ada", "taste"))
        assert note.score is not None and 0 < note.score <= 1 and note.saved_at > 1.7e9
        assert await texts(memory, '"car is"') == ["Bob's car is red"]
        assert await texts(memory, "likes car", tags=["bob"]) == ["Bob's car is red"]
        assert await texts(memory, "likes car", tags=["bob", "taste"]) == []
        assert await memory.get(first.id) == (await memory.list_notes()).notes[0]
        assert await memory.get("none") is None


async def test_a_new_memory_is_empty_and_leaves_nothing_unsaved(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    async with await opened(uri) as memory:
        assert await texts(memory, "anything") == []
        assert (await memory.list_notes()).notes == () and await memory.history() == ([], None)
    assert not caplog.records


async def test_the_same_text_is_one_note_and_its_tags_are_joined(uri: str) -> None:
    async with await opened(uri) as memory:
        first = await memory.remember("tea, not coffee", ["drink"])
        again = await memory.remember("tea, not coffee", ["taste", "drink"])
        assert again.id == first.id and not again.is_new and again.count == 1
        [note] = (await memory.list_notes()).notes
        assert note.tags == ("drink", "taste")
        versions, _ = await memory.history()
        await memory.remember("tea, not coffee", ["taste"])
        assert await memory.history() == (versions, None)  # nothing changed, so nothing was saved
        assert (await memory.list_notes()).notes == (note,) and memory.unsaved == 0


async def test_meaning_finds_what_words_do_not(uri: str) -> None:
    async with await opened(uri) as memory:  # a note of before the embedder
        await memory.remember("the tulip on the desk")
    async with await opened(uri, embedder=Meanings()) as memory:
        assert await texts(memory, "tulip") == ["the tulip on the desk"]  # there are no vectors yet
        for text in ("her automobile is red", "a hound barked", "a rose is a rose"):
            await memory.remember(text)
        assert (await texts(memory, "car"))[0] == "her automobile is red"
        assert (await texts(memory, "puppy"))[0] == "a hound barked"
        assert "the tulip on the desk" in await texts(memory, "tulip")
    async with await opened(uri) as memory:  # without the embedder, by words
        assert await texts(memory, "car") == [] and await texts(memory, "hound") == ["a hound barked"]


async def test_notes_of_before_the_embedder_get_vectors_with_later_changes(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fabstir_vectordb.mcp_server.memory._FILLED_MAX", 2)
    before = ["the tulip on the desk", "a hound barked", "her automobile is red"]
    async with await opened(uri) as memory:
        for text in before:
            await memory.remember(text, ["old"])
        kept = (await memory.list_notes(tags=["old"])).notes
    async with await opened(uri, embedder=Meanings()) as memory:
        await memory.remember("a note of today")
        assert (await memory._session.get_stats()).without_vector_count == 1
        monkeypatch.setattr(Meanings, "dimension", 9)
        await memory.save()  # does not fail, as the embedder does
        assert "1 notes without a vector are found by words alone" in caplog.text
        monkeypatch.undo()
        await memory.remember("another note of today")
        assert (await memory._session.get_stats()).without_vector_count == 0
        assert (await memory.list_notes(tags=["old"])).notes == kept
    async with await opened(uri, embedder=Meanings()) as memory:
        for query, text in zip(("rose", "puppy", "car"), before, strict=True):
            assert (await texts(memory, query))[0] == text


async def test_another_embedder_is_refused(uri: str) -> None:
    async with await opened(uri, embedder=Meanings()) as memory, await opened(uri) as plain:
        await memory.remember("a rose")
        with pytest.raises(
            InvalidConfigError,
            match="embedded by 'meanings' with 4 dimensions, and the embedder of this session is 'others'",
        ):
            await opened(uri, embedder=Meanings("others"))
        await plain.remember("a note without a vector")
        assert (await memory.remember("a car")).count == 3


async def test_another_embedder_that_came_first_is_noticed_before_anything_is_mixed(uri: str) -> None:
    async with await opened(uri, embedder=Meanings()) as one, await opened(uri, embedder=Meanings("others")) as other:
        await one.remember("a rose")
        for _ in range(2):
            with pytest.raises(InvalidConfigError, match="embedded by 'meanings'"):
                await other.remember("a tulip")
            with pytest.raises(InvalidConfigError, match="embedded by 'meanings'"):
                await other.recall("tulip")
        assert (await one.list_notes()).notes[0].text == "a rose" and await one.count() == 1


async def test_a_failing_embedder_changes_nothing(uri: str) -> None:
    class Broken(Meanings):
        def __call__(self, texts: Any, /) -> Any:
            raise RuntimeError("no model")

    async with await opened(uri, embedder=Broken()) as memory:
        with pytest.raises(EmbeddingError):
            await memory.remember("a rose")
        assert await memory.count() == 0 and memory.unsaved == 0


async def test_forgotten_notes_are_in_no_part_of_the_new_version(uri: str) -> None:
    async with await opened(uri) as memory:
        secret = await memory.remember("the sentinel zanzibar")
        await memory.remember("what stays", ["old tag"])
        await memory.remember("what stays", ["new tag"])
        done = await memory.forget([secret.id, "unknown", secret.id])
        assert (done.ids, done.unknown, done.count) == ((secret.id,), ("unknown",), 1)
        assert await texts(memory, "zanzibar") == []
        session = memory._session
        assert (await session.get_stats()).superseded_bytes == 0
        share = await session.share((await memory.history())[0][0].cid)  # refused while a part has leftovers
    async with VectorDBSession.create(settings(uri, user_seed_phrase=new_seed_phrase())) as reader:
        await reader.load_user_vectors(share)
        assert [row.metadata["text"] async for row in reader.scan()] == ["what stays"]
    async with await opened(uri) as memory:
        assert (await memory.forget([secret.id])).unknown == (secret.id,)
        assert [note.text for note in (await memory.list_notes()).notes] == ["what stays"]


async def test_two_memories_lose_nothing_and_see_each_other(uri: str) -> None:
    async with await opened(uri) as one, await opened(uri) as other:
        doomed = await one.remember("soon forgotten")

        async def fill(memory: Memory, name: str) -> None:
            for number in range(4):
                await memory.remember(f"{name} {number}")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fill, one, "one")
            tasks.start_soon(fill, other, "other")
            tasks.start_soon(other.forget, [doomed.id])
        expected = {f"{name} {number}" for name in ("one", "other") for number in range(4)}
        for memory in (one, other):
            assert {note.text for note in (await memory.list_notes(limit=LIMIT_MAX)).notes} == expected
        # What one forgets, the other's older content does not bring back.
        [gone] = (await one.recall('"other 3"')).notes
        await one.forget([gone.id])
        await other.remember("after that")
        assert await texts(one, '"other 3"') == [] and await texts(one, '"after that"') == ["after that"]


async def test_a_change_that_could_not_be_saved_is_saved_by_the_next_call(uri: str) -> None:
    async with await opened(uri) as memory, await opened(uri) as other:
        kept = await memory.remember("kept")
        break_store(memory)
        for text in ("lost at first", "lost at first, too"):
            with pytest.raises(StorageError):
                await memory.remember(text)
        with pytest.raises(StorageError):
            await memory.forget([kept.id])
        assert memory.unsaved == 3
        page = await memory.recall("lost")
        assert page.is_stale and len(page.notes) == 2
        mend_store(memory)
        await other.remember("of the other")  # so that the save has a conflict, too
        saved = await memory.save()
        assert memory.unsaved == 0 and saved.count == 3 and not (await memory.recall("lost")).is_stale
        found = [note.text for note in (await other.list_notes()).notes]
        assert found == ["of the other", "lost at first", "lost at first, too"]
        assert (await other.history())[0][0].cid == saved.cid == (await other.verify()).cid


async def no_newer(*_: object) -> bool:
    """Stands for a `_refresh` that came just before another memory's save."""
    return True


async def test_a_change_that_cannot_be_applied_again_yet_is_kept(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with await opened(uri, embedder=Meanings()) as memory, await opened(uri, embedder=Meanings()) as other:
        await other.remember("a tulip")
        get, calls = memory._session.get, []

        async def fail_again(ids: Any) -> Any:
            calls.append(ids)
            if len(calls) == 2:  # once the newest version is loaded
                raise StorageError("the disk is gone")
            return await get(ids)

        with monkeypatch.context() as patch:
            patch.setattr(memory, "_refresh", no_newer)
            patch.setattr(memory._session, "get", fail_again)
            with pytest.raises(StorageError):
                await memory.remember("a rose")
        assert memory.unsaved == 1
        assert (await memory.remember("a dog")).count == 3 and memory.unsaved == 0
        assert [note.text for note in (await other.list_notes()).notes] == ["a tulip", "a rose", "a dog"]


async def test_another_embedder_that_came_first_by_a_moment_leaves_nothing_unsaved(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await opened(uri, embedder=Meanings()) as one, await opened(uri, embedder=Meanings("others")) as other:
        await one.remember("a rose")
        with monkeypatch.context() as patch:
            patch.setattr(other, "_refresh", no_newer)
            with pytest.raises(InvalidConfigError, match="embedded by 'meanings'"):
                await other.remember("a tulip")
        assert other.unsaved == 0
        with pytest.raises(InvalidConfigError, match="embedded by 'meanings'"):
            await other.list_notes()
        assert await one.count() == 1


async def test_a_change_that_is_applied_again_is_embedded_once(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(Meanings):
        asked = 0

        def __call__(self, texts: Any, /) -> Any:
            self.asked += len(texts)
            return super().__call__(texts)

    counted = Counted()
    async with await opened(uri, embedder=counted) as memory, await opened(uri) as other:
        await other.remember("a tulip")
        monkeypatch.setattr(memory, "_refresh", no_newer)
        assert (await memory.remember("a rose")).count == 2 and counted.asked == 1
        assert (await memory._session.get_stats()).embedder.name == "meanings"
        assert [set(row.metadata) async for row in memory._session.scan()] == [{"text", "tags"}] * 2


async def test_reads_go_on_where_the_store_is_out_of_reach(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    async with await opened(uri) as memory:
        await memory.remember("a rose")
        break_store(memory)
        page = await memory.recall("rose")
        assert page.is_stale and [note.text for note in page.notes] == ["a rose"]
        assert "newer notes cannot be read" in caplog.text
        mend_store(memory)


async def test_answers_are_paged(uri: str) -> None:
    async with await opened(uri) as memory:
        for number in range(7):
            await memory.remember(f"item {number}", ["even"] if number % 2 == 0 else [])
        asked: list[Callable[..., Any]] = [memory.list_notes, partial(memory.recall, "item")]
        for ask in asked:
            found, cursor, pages = [], None, 0
            while pages == 0 or cursor is not None:
                page = await ask(limit=3, cursor=cursor)
                found += [note.text for note in page.notes]
                cursor, pages = page.cursor, pages + 1
            assert pages == 3 and sorted(found) == [f"item {number}" for number in range(7)]
        page = await memory.list_notes(tags=["even"], limit=2)
        assert [note.text for note in page.notes] == ["item 0", "item 2"]
        assert len((await memory.list_notes(tags=["even"], limit=2, cursor=page.cursor)).notes) == 2
        cursor = (await memory.recall("item", limit=3)).cursor
        for query, tags in (("other", []), ("item", ["even"])):
            with pytest.raises(InvalidInputError, match="not that of a page of the same query"):
                await memory.recall(query, tags=tags, cursor=cursor)
        versions: list[Any] = []
        cursor = None
        while not versions or cursor is not None:
            page_of_versions, cursor = await memory.history(limit=3, cursor=cursor)
            versions += page_of_versions
        assert [version.vector_count for version in versions] == [7, 6, 5, 4, 3, 2, 1]


async def test_a_page_ends_before_it_is_too_long_for_a_model(uri: str) -> None:
    async with await opened(uri) as memory:
        for number in range(5):
            await memory.remember(f"long {number} " + "x" * (PAGE_CHARS // 2 - 100))
        first = await memory.list_notes()
        assert len(first.notes) == 3 and first.cursor is not None
        second = await memory.list_notes(cursor=first.cursor)
        assert [note.text[:6] for note in second.notes] == ["long 3", "long 4"] and second.cursor is None
        found = await memory.recall("long")
        assert len(found.notes) == 3 and len((await memory.recall("long", cursor=found.cursor)).notes) == 2


async def test_bad_arguments_are_refused_before_anything_changes(uri: str) -> None:
    many = [str(number) for number in range(IDS_MAX + 1)]
    async with await opened(uri) as memory:
        for text in (None, 7, b"bytes", "", " \n", "x" * (NOTE_CHARS_MAX + 1), "half \ud800", ["list"]):
            with pytest.raises(InvalidInputError):
                await memory.remember(text)
        for tags in ("tag", None, {"a": 1}, [""], [1], ["x" * (TAG_CHARS_MAX + 1)], many[: TAGS_MAX + 1], ["\udfff"]):
            with pytest.raises(InvalidInputError):
                await memory.remember("text", tags)
            with pytest.raises(InvalidInputError):
                await memory.recall("text", tags=tags)
        for ids in ([], "id", many, [None], ["x" * (ID_CHARS_MAX + 1)], [["a"]]):
            with pytest.raises(InvalidInputError):
                await memory.forget(ids)
        for query in (None, "", "x" * (QUERY_CHARS_MAX + 1)):
            with pytest.raises(InvalidInputError):
                await memory.recall(query)
        for limit in (0, -1, LIMIT_MAX + 1, True, 1.0, "3", None, 10**5000):
            for call in (memory.list_notes, memory.history):
                with pytest.raises(InvalidInputError):
                    await call(limit=limit)
        for cursor in ("", 3, "x" * (CURSOR_CHARS_MAX + 1), "-1.0", "1", "9999999.x", "²."):
            for paged in (memory.list_notes, memory.history, partial(memory.recall, "a")):
                with pytest.raises(InvalidInputError):
                    await paged(cursor=cursor)
        assert await memory.count() == 0 and await memory.history() == ([], None)


async def test_an_index_that_is_no_memory_is_refused_and_left_alone(uri: str) -> None:
    async with VectorDBSession.create(settings(uri)) as session:
        await session.add_batch(["a"], [[1.0, 0.0]])
        cid = await session.save_to_s5()
        with pytest.raises(InvalidConfigError, match="no memory"):
            await opened(uri)
        assert [version.cid for version in await session.history()] == [cid]


async def test_a_memory_keeps_its_language(uri: str) -> None:
    pytest.importorskip("Stemmer", reason="the extra 'text' is not installed")
    async with await opened(uri, language="english") as memory:
        await memory.remember("clear skies")
    async with await opened(uri) as memory:  # the language comes from the stored memory
        assert await texts(memory, "sky") == ["clear skies"]
    with pytest.raises(InvalidConfigError, match="german"):
        await opened(uri, language="german")


async def test_the_example_of_the_documentation_runs() -> None:
    [code] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code.replace("print(asyncio.run(main()))", ""), "mcp.md", "exec"), names)
    assert await names["main"]() == ["Ada prefers tea, never coffee."]
