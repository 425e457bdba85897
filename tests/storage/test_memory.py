"""The memory store: the shared contract, and what only it does."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import anyio
import pytest

pytest.register_assert_rewrite("contract")

from contract import StoreContract, check_one_store_serves_several_event_loops, entry  # noqa: E402

from fabstir_vectordb.errors import ConflictError  # noqa: E402
from fabstir_vectordb.s5.cid import BlobId  # noqa: E402
from fabstir_vectordb.storage import MemoryStore, open_store  # noqa: E402


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def address(self) -> str:
        return f"memory:{uuid.uuid4().hex}"

    def damage_blob(self, store: Any, blob: BlobId, data: bytes) -> None:
        store._space.blobs[blob.hash] = data

    def damage_pointer(self, store: Any, public_key: bytes, data: bytes) -> None:
        store._space.pointers[public_key] = data


@pytest.mark.anyio
async def test_names_are_apart_and_the_empty_one_is_a_name() -> None:
    one, other, unnamed = open_store("memory:a-name"), open_store("memory:another"), open_store("memory:")
    blob = await one.put(b"only in one")
    assert not await other.has(blob.hash)
    assert not await unnamed.has(blob.hash)
    assert open_store("memory://").uri == unnamed.uri == "memory:"
    assert await open_store("memory://a-name").has(blob.hash)


@pytest.mark.anyio
async def test_clear_forgets_everything_of_that_name() -> None:
    store, kept = MemoryStore("cleared"), MemoryStore("kept")
    blob = await store.put(b"x")
    await kept.put(b"x")
    await store.set_pointer(entry(1))
    store.clear()
    assert not await store.has(blob.hash)
    assert await store.get_pointer(entry(1).public_key) is None
    assert await kept.has(blob.hash)


def test_one_store_serves_several_event_loops() -> None:
    check_one_store_serves_several_event_loops(MemoryStore("several loops"))


def test_loops_in_several_threads_agree_on_one_winner() -> None:
    store = MemoryStore("several threads")
    store.clear()
    outcomes: list[str] = []

    async def write(number: int) -> None:
        try:
            await store.set_pointer(entry(1, b"%d" % number))
            outcomes.append("won")
        except ConflictError:
            outcomes.append("lost")

    threads = [
        threading.Thread(target=anyio.run, args=(write, number), kwargs={"backend": backend})
        for number in range(4)
        for backend in ("asyncio", "trio")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("won") == 1
    assert len(outcomes) == 8
