"""Metadata through a session: what is accepted can be saved and loaded again, what is refused changes nothing."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from saving import content, rows, session_on

from fabstir_vectordb import InvalidInputError, VectorDBSession
from fabstir_vectordb.metadata.values import METADATA_BYTES_MAX, METADATA_DEPTH_MAX

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


def nested(depth: int) -> Any:
    value: Any = None
    for _ in range(depth):
        value = {"in": value}
    return value


# Five bytes are the head of the outermost text or list.
AT_THE_LIMIT: dict[str, Any] = {
    "text": "x" * (METADATA_BYTES_MAX - 5),
    "letters of three bytes": "x" + "漢" * ((METADATA_BYTES_MAX - 6) // 3),
    "small integers": [1] * (METADATA_BYTES_MAX - 5),
    "integers of nine bytes": [2**50] * ((METADATA_BYTES_MAX - 5) // 9) + [0] * ((METADATA_BYTES_MAX - 5) % 9),
    "nesting": nested(METADATA_DEPTH_MAX),
}
BEYOND: dict[str, Any] = {
    "text": "x" * (METADATA_BYTES_MAX - 4),
    "letters of three bytes": "漢" * ((METADATA_BYTES_MAX - 5) // 3 + 1),
    "small integers": [1] * (METADATA_BYTES_MAX - 4),
    "integers of nine bytes": [2**50] * ((METADATA_BYTES_MAX - 5) // 9 + 1),
    "many empty dicts": [{}] * (METADATA_BYTES_MAX - 4),
    "nesting": nested(METADATA_DEPTH_MAX + 1),
    "far too deep": nested(50_000),
}


@pytest.mark.parametrize("kind", AT_THE_LIMIT)
async def test_metadata_at_the_limit_is_saved_and_loaded(kind: str) -> None:
    uri = f"memory:{uuid.uuid4()}"
    value = AT_THE_LIMIT[kind]
    async with await session_on(uri) as session:
        await session.add_batch(["a", "b"], np.eye(2), [value, None])
        before = await content(session)
        await session.save_to_s5()
    async with await session_on(uri) as session:
        await session.load_user_vectors()
        assert (
            await content(session)
            == before
            == [
                ("a", np.array([1, 0], np.float32).tobytes(), value),
                ("b", np.array([0, 1], np.float32).tobytes(), None),
            ]
        )


async def _add(session: VectorDBSession, value: Any) -> None:
    await session.add_batch(["new", "other"], np.eye(2), [None, value])


async def _replace(session: VectorDBSession, value: Any) -> None:
    await session.add_vectors(
        [{"id": "a", "vector": [3, 4]}, {"id": "b", "vector": [3, 4], "metadata": value}], on_conflict="replace"
    )


async def _update(session: VectorDBSession, value: Any) -> None:
    await session.update_metadata("a", value)


async def _merge(session: VectorDBSession, value: Any) -> None:
    await session.update_metadata("a", {"more": value}, merge=True)


@pytest.mark.parametrize("change", [_add, _replace, _update, _merge])
@pytest.mark.parametrize("kind", BEYOND)
async def test_metadata_beyond_the_limit_is_refused_before_anything_changes(
    kind: str, change: Callable[[VectorDBSession, Any], Any]
) -> None:
    async with await session_on(f"memory:{uuid.uuid4()}") as session:
        await session.add_batch(["a", "b"], np.eye(2), [{"kept": 1}, None])
        await session.save_to_s5()
        before = await content(session)
        with pytest.raises(InvalidInputError, match=r"more than|nested") as caught:
            await change(session, BEYOND[kind])
        assert caught.value.details["limit"] in (METADATA_BYTES_MAX, METADATA_DEPTH_MAX)
        assert await content(session) == before
        assert not (await session.get_stats()).dirty


async def test_a_merge_that_passes_the_limit_is_refused() -> None:
    async with await session_on("memory:") as session:
        await session.add_batch(["a"], [[1, 2]], [{"first": "x" * (METADATA_BYTES_MAX // 2)}])
        before = await content(session)
        with pytest.raises(InvalidInputError, match="more than"):
            await session.update_metadata("a", {"second": "y" * (METADATA_BYTES_MAX // 2)}, merge=True)
        assert await content(session) == before
        await session.update_metadata("a", {"first": "y"}, merge=True)
        assert [metadata for _, _, metadata in await content(session)] == [{"first": "y"}]


# ---- schemas


async def test_a_schema_holds_for_adds_and_updates_and_is_saved() -> None:
    uri = f"memory:{uuid.uuid4()}"
    async with await session_on(uri) as session:
        await session.set_schema({"title": {"type": "string", "required": True}, "year": "Number"})
        await session.add_batch(["a"], rows(1), [{"title": "one"}])
        for metadata in (None, [{"year": 3}], [{"title": "two", "year": "x"}]):
            with pytest.raises(InvalidInputError) as caught:
                await session.add_batch(["b"], rows(1), metadata)
            assert (caught.value.details["row"], caught.value.details["id"]) == (0, "b")
        with pytest.raises(InvalidInputError, match="year"):
            await session.update_metadata("a", {"year": "x"}, merge=True)
        with pytest.raises(InvalidInputError, match="title"):
            await session.update_metadata("a", None)
        await session.update_metadata("a", {"year": 7}, merge=True)
        assert await content(session) == [("a", rows(1)[0].tobytes(), {"title": "one", "year": 7})]
        cid = await session.save_to_s5()
        await session.set_schema({"year": "Number", "title": {"required": True, "type": "String"}})
        assert not (await session.get_stats()).dirty
        await session.set_schema(None)
        assert (await session.get_stats()).dirty
        await session.add_batch(["c"], rows(1))
        with pytest.raises(InvalidInputError, match="the row 'c' breaks the schema") as caught:
            await session.set_schema({"title": {"type": "string", "required": True}})
        assert caught.value.details["id"] == "c"
        await session.add_batch(["d"], rows(1))
        assert await session.save_to_s5() != cid
    async with await session_on(uri) as session:
        await session.load_user_vectors(cid)
        with pytest.raises(InvalidInputError, match="needs a string at title"):
            await session.add_batch(["b"], rows(1))
        await session.load_user_vectors()
        await session.add_batch(["b"], rows(1))


async def test_a_schema_may_name_its_required_fields_apart() -> None:
    uri = f"memory:{uuid.uuid4()}"
    schema = {"fields": {"title": "String", "tags": {"Array": "String"}, "at": "DateTime"}, "required": ["title"]}
    noon = datetime(2024, 1, 31, 12, tzinfo=UTC)
    async with await session_on(uri) as session:
        await session.add_batch(["old"], rows(1), [{"title": 3}])
        with pytest.raises(InvalidInputError, match="the row 'old' breaks the schema") as caught:
            await session.set_schema(schema)
        assert (caught.value.details["id"], caught.value.details["path"]) == ("old", "title")
        await session.add_batch(["free"], rows(1), [{"title": 4}])  # the refused schema holds for nothing
        await session.delete_vector("old")
        await session.delete_vector("free")
        await session.set_schema(schema)
        await session.save_to_s5()
    async with await session_on(uri) as session:
        await session.load_user_vectors()
        await session.add_batch(["a"], rows(1), [{"title": "t", "tags": ["b"], "at": noon}])
        with pytest.raises(InvalidInputError, match="Missing required field"):
            await session.add_batch(["b"], rows(1), [{"tags": ["b"]}])
        with pytest.raises(InvalidInputError, match=r"tags\[0\], the schema requires a string"):
            await session.update_metadata("a", {"title": "t", "tags": [1]})
        with pytest.raises(InvalidInputError, match="the schema requires a datetime"):
            await session.update_metadata("a", {"at": "2024-01-31T12:00:00Z"}, merge=True)
