"""`destroy` at a random moment of every verb: the verb ends well or says so, and the store stays whole."""

from __future__ import annotations

import importlib.util
import inspect
import random
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from saving import SEED, add_rows, content, rows, session_on

from fabstir_vectordb import SessionError, VectorDBSession, VectorInput

pytestmark = pytest.mark.anyio

ROWS = 40
PATIENCE_S = 60
QUERY = rows(1)[0]


class Words:
    """An embedder."""

    name, dimension = "words", 16

    def __call__(self, texts: Sequence[str]) -> Any:
        return rows(len(texts))


#: How each verb is called, in a session whose newest version has the CID.
VERBS: dict[str, Callable[[VectorDBSession, str], Any]] = {
    "add_batch": lambda session, cid: session.add_batch(["x"], rows(1)),
    "add_table": lambda session, cid: session.add_table(_table()),
    "add_texts": lambda session, cid: session.add_texts(["one", "two"]),
    "add_vectors": lambda session, cid: session.add_vectors([VectorInput("x", QUERY)]),
    "clear": lambda session, cid: session.clear(),
    "count": lambda session, cid: session.count({"n": {"$lt": 9}}),
    "delete": lambda session, cid: session.delete(["row-000001", "row-000002"]),
    "delete_by_metadata": lambda session, cid: session.delete_by_metadata({"n": {"$lt": 9}}),
    "delete_vector": lambda session, cid: session.delete_vector("row-000001"),
    "facets": lambda session, cid: session.facets("n"),
    "fields": lambda session, cid: session.fields(),
    "get": lambda session, cid: session.get(["row-000001"]),
    "get_historical_index": lambda session, cid: session.get_historical_index(),
    "get_recent_index": lambda session, cid: session.get_recent_index(),
    "get_stats": lambda session, cid: session.get_stats(),
    "get_timestamps": lambda session, cid: session.get_timestamps(),
    "history": lambda session, cid: session.history(),
    "is_newest": lambda session, cid: session.is_newest(),
    "list_indexes": lambda session, cid: session.list_indexes(),
    "load_user_vectors": lambda session, cid: session.load_user_vectors(cid),
    "optimize": lambda session, cid: session.optimize(),
    "prune_history": lambda session, cid: session.prune_history(1, dry_run=False),
    "recall": lambda session, cid: session.recall(5),
    "report": lambda session, cid: session.report(),
    "save_to_s5": lambda session, cid: _change_and_save(session),
    "scan": lambda session, cid: _all(session.scan()),
    "scan_page": lambda session, cid: session.scan_page(limit=7),
    "search": lambda session, cid: session.search(QUERY, 3, filter={"n": {"$lt": 9}}),
    "search_batch": lambda session, cid: session.search_batch(rows(5), 3),
    "search_stream": lambda session, cid: _all(session.search_stream(QUERY)),
    "set_schema": lambda session, cid: session.set_schema({"n": "number"}),
    "set_text_fields": lambda session, cid: session.set_text_fields(["text"]),
    "share": lambda session, cid: session.share(cid),
    "to_arrow": lambda session, cid: session.to_arrow(),
    "to_pandas": lambda session, cid: session.to_pandas(),
    "update_by_metadata": lambda session, cid: session.update_by_metadata({"n": 1}, {"m": 2}),
    "update_metadata": lambda session, cid: session.update_metadata("row-000001", {"m": 2}),
    "update_vector": lambda session, cid: session.update_vector("row-000001", np.zeros(16) + 1),
    "vacuum": lambda session, cid: session.vacuum(),
    "verify": lambda session, cid: session.verify(),
    "warm": lambda session, cid: session.warm(),
}
NEEDS = {"add_table": "pyarrow", "to_arrow": "pyarrow", "to_pandas": "pandas"}


def _table() -> Any:
    import pyarrow

    return pyarrow.table({"id": ["x"], "vector": rows(1).tolist()})


async def _change_and_save(session: VectorDBSession) -> None:
    await session.add_batch(["x"], rows(1), on_conflict="replace")
    await session.save_to_s5()


async def _all(items: Any) -> None:
    async for _ in items:
        pass


async def destroy_during(verb: str, uri: str, cid: str, choice: random.Random) -> None:
    """Calls a verb, and destroys the session some turns of the loop or some milliseconds later."""
    session = await session_on(uri, embedder=Words())
    await session.load_user_vectors()
    ended = []

    async def call() -> None:
        try:
            await VERBS[verb](session, cid)
            ended.append("done")
        except SessionError as error:
            ended.append(error.message)

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            if choice.random() < 0.5:
                await anyio.sleep(choice.uniform(0, 0.005))
            else:
                for _ in range(choice.randrange(30)):
                    await anyio.lowlevel.checkpoint()
            await session.destroy()
            with pytest.raises(SessionError):
                await session.count()
    assert ended[0] in ("done", "Session already destroyed")


async def destroy_during_all(uri: str, times: int) -> None:
    choice = random.Random(SEED)
    async with await session_on(uri) as session:
        await add_rows(session, ROWS)
        cid = await session.save_to_s5()
        before = await content(session)
    for verb in sorted(VERBS):
        if verb in NEEDS and importlib.util.find_spec(NEEDS[verb]) is None:
            continue
        for _ in range(times):
            await destroy_during(verb, uri, cid, choice)
        if verb == "save_to_s5":
            async with await session_on(uri) as session:
                await session.load_user_vectors()
                found = await content(session)
                assert found in (before, [*before, ("x", rows(1)[0].tobytes(), None)])
                await session.load_user_vectors(cid)  # prune_history has kept the newest, which this was then
                assert await content(session) == before


@pytest.mark.one_loop
async def test_destroy_during_every_verb() -> None:
    verbs = {
        name
        for name, member in inspect.getmembers(VectorDBSession)
        if not name.startswith("_") and (inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member))
    }
    assert verbs - {"destroy"} == VERBS.keys()
    await destroy_during_all(f"memory:{uuid.uuid4()}", 1)


@pytest.mark.long
async def test_destroy_at_many_moments_of_every_verb(tmp_path: Path) -> None:
    await destroy_during_all(tmp_path.as_uri(), 30)
