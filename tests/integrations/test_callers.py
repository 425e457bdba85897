"""One adapter object for threads, for event loops, inside a running loop, and for callers who forget it."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from modes import PHRASE
from test_shared import own_threads

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before the import: no test sends anything anywhere
SETTINGS: dict[str, Any] = {"s5_portal": "memory:", "user_seed_phrase": PHRASE, "session_id": "tests"}


class Adapter(NamedTuple):
    """An adapter as its users call it.

    Attributes:
        make: makes a store.
        write: writes a document with an id and a text.
        ask, aask: the id of the best document for a text.
    """

    make: Callable[[], Any]
    write: Callable[[Any, str], object]
    ask: Callable[[Any, str], str]
    aask: Callable[[Any, str], Awaitable[str]]


def vector(text: str) -> list[float]:
    return [1.0, *(1.0 + text.find(digit) for digit in "0123456789")]


def langchain() -> Adapter:
    module = importlib.import_module("fabstir_vectordb.integrations.langchain")
    embeddings = importlib.import_module("langchain_core.embeddings").Embeddings

    class Digits(embeddings):  # type: ignore[valid-type,misc]  # known once it is imported
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return list(map(vector, texts))

        def embed_query(self, text: str) -> list[float]:
            return vector(text)

    async def aask(store: Any, text: str) -> str:
        return (await store.ahybrid_search(text, k=1))[0].id

    return Adapter(
        lambda: module.FabstirVectorStore(Digits(), **SETTINGS),
        lambda store, text: store.add_texts([text], ids=[text]),
        lambda store, text: store.hybrid_search(text, k=1)[0].id,
        aask,
    )


def haystack() -> Adapter:
    module = importlib.import_module("fabstir_vectordb.integrations.haystack")
    document = importlib.import_module("haystack.dataclasses").Document

    async def aask(store: Any, text: str) -> str:
        found = await module.FabstirHybridRetriever(store).run_async(text, vector(text), top_k=1)
        return found["documents"][0].id

    return Adapter(
        lambda: module.FabstirDocumentStore(**SETTINGS),
        lambda store, text: store.write_documents([document(id=text, content=text, embedding=vector(text))]),
        lambda store, text: module.FabstirHybridRetriever(store).run(text, vector(text), top_k=1)["documents"][0].id,
        aask,
    )


def llama_index() -> Adapter:
    module = importlib.import_module("fabstir_vectordb.integrations.llama_index")
    core = importlib.import_module("llama_index.core")
    types = importlib.import_module("llama_index.core.vector_stores.types")

    def query(text: str) -> Any:
        return types.VectorStoreQuery(
            query_embedding=vector(text), query_str=text, mode=types.VectorStoreQueryMode.HYBRID
        )

    async def aask(store: Any, text: str) -> str:
        return (await store.aquery(query(text))).ids[0]

    return Adapter(
        lambda: module.FabstirVectorStore(**SETTINGS),
        lambda store, text: store.add([core.schema.TextNode(id_=text, text=text, embedding=vector(text))]),
        lambda store, text: store.query(query(text)).ids[0],
        aask,
    )


def dspy() -> Adapter:
    module = importlib.import_module("fabstir_vectordb.integrations.dspy")

    class Digits:
        name, dimension = "digits", 11

        def __call__(self, texts: Any, /) -> Any:
            return list(map(vector, texts))

    async def aask(store: Any, text: str) -> str:
        return (await store.acall(text)).ids[0]

    return Adapter(
        lambda: module.FabstirRetriever(Digits(), **SETTINGS),
        lambda store, text: store.add_passages({text: text}),
        lambda store, text: store(text).ids[0],
        aask,
    )


NEEDS = {langchain: "langchain_core", haystack: "haystack", llama_index: "llama_index.core", dspy: "dspy"}


@pytest.fixture(params=NEEDS, ids=lambda make: make.__name__)
def adapter(request: pytest.FixtureRequest) -> Adapter:
    package = NEEDS[request.param]
    pytest.importorskip(package, reason=f"{package} is not installed")
    return request.param()


def test_threads_and_event_loops_share_an_adapter(adapter: Adapter) -> None:
    both = threading.Barrier(2)

    async def many(store: Any, texts: list[str]) -> list[str]:
        await asyncio.to_thread(both.wait, 30)  # two loops run at the same time
        return await asyncio.gather(*[adapter.aask(store, text) for text in texts])

    def use(store: Any, number: int) -> None:
        texts = [f"text {number}{digit}" for digit in "123"]
        for text in texts:
            adapter.write(store, text)
            assert adapter.ask(store, text) == text
        assert asyncio.run(many(store, texts)) == texts

    with adapter.make() as store, ThreadPoolExecutor(2) as pool:
        list(pool.map(use, [store] * 4, range(4)))
        assert store.run(lambda session: session.count()) == 12


def test_a_synchronous_call_answers_inside_a_running_loop(adapter: Adapter) -> None:
    async def notebook() -> None:
        async with adapter.make() as store:
            adapter.write(store, "text 1")
            adapter.write(store, "text 2")
            assert adapter.ask(store, "text 2") == await adapter.aask(store, "text 2") == "text 2"

    asyncio.run(asyncio.wait_for(notebook(), 60))


def test_a_forgotten_adapter_leaves_no_thread(adapter: Adapter) -> None:
    before = own_threads()
    stores = [adapter.make() for _ in range(3)]
    for store in stores:
        adapter.write(store, "text 1")
        assert asyncio.run(adapter.aask(store, "text 1")) == "text 1"
    assert own_threads() == before + 3
    del store, stores
    deadline = time.monotonic() + 30
    while own_threads() > before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert own_threads() == before
