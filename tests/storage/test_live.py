"""A real portal or gateway, named by the environment; skipped without it.

    FVDB_LIVE_PORTAL=https://s5.example FVDB_LIVE_TOKEN=… python -m pytest -m live tests/storage/test_live.py

FVDB_LIVE_PORTAL is an address as for `s5_portal`; FVDB_LIVE_TOKEN an access token or an invitation, where it wants one.
The tests upload about 100 KB under a phrase that they make up, and delete what the portal lets them delete.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_socket

from fabstir_vectordb import NotFoundError, VectorDBSession, new_seed_phrase
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.storage import open_store

PORTAL = os.environ.get("FVDB_LIVE_PORTAL")
TOKEN = os.environ.get("FVDB_LIVE_TOKEN")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.live,
    pytest.mark.skipif(not PORTAL, reason="FVDB_LIVE_PORTAL names no portal"),
]


@pytest.fixture(autouse=True)
def _network() -> None:
    # The one test that needs one. Every test's setup restricts it again.
    pytest_socket._remove_restrictions()


@pytest.fixture
async def session() -> AsyncIterator[VectorDBSession]:
    assert PORTAL is not None
    async with await VectorDBSession.create(
        s5_portal=PORTAL, portal_token=TOKEN, user_seed_phrase=new_seed_phrase(), session_id="live"
    ) as session:
        yield session


async def test_a_blob_comes_back(session: VectorDBSession) -> None:
    async with aclosing(open_store(PORTAL or "", token=TOKEN, account_seed=session._workspace._account_seed)) as store:
        data = os.urandom(50_000)
        blob = await store.put(data)
        assert await store.get(blob.hash, blob.size) == data
        assert await store.get(blob.hash, blob.size) == data
        assert await store.has(blob.hash)
        await store.delete(blob.hash)
        with pytest.raises(NotFoundError):
            await store.get(BlobId.of(os.urandom(32)).hash, 32)


async def test_a_version_is_saved_found_by_phrase_and_changed(session: VectorDBSession) -> None:
    await session.load_user_vectors(missing_ok=True)
    await session.add_batch(["a", "b"], [[1.0, 0.0], [0.0, 1.0]], [{"text": "one"}, None])
    first = await session.save_to_s5()
    await session.delete_vector("b")
    second = await session.save_to_s5()
    await session.load_user_vectors()
    assert [row.id async for row in session.scan()] == ["a"]
    assert [version.cid for version in await session.history()] == [second, first]
    assert await session.list_indexes() == ["default"]
    await session.verify(first)
    share = await session.share(first)
    await session.load_user_vectors(share)
    assert await session.count() == 2
    await session.prune_history(1, dry_run=False)
