"""Deleted means gone: after a vacuum and a save no part of the version, and no share, holds what was removed.

Every part is fetched, decrypted and decompressed here, without the package's load pipeline, and searched for ids,
texts, vectors (their planes joined) and codes of what was removed.
"""

from __future__ import annotations

import struct
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saving import START_US, add_rows, content, identity, rows, session_on

from fabstir_vectordb import ConflictError, VectorDBSession
from fabstir_vectordb.persist import load as load_module
from fabstir_vectordb.persist.version import index_path
from fabstir_vectordb.s5.cid import ShareCid, parse_cid
from fabstir_vectordb.s5.cipher import decrypt_mutable, decrypt_static, encrypted_size
from fabstir_vectordb.s5.compress import zstd
from fabstir_vectordb.s5.dirv1 import decode_directory
from fabstir_vectordb.storage import open_store
from fabstir_vectordb.storage.base import AtMost

sys.path.insert(0, str(Path(__file__).parent.parent / "storage"))
from serving import serving

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

ROWS, DIM = 1_100, 64
NOW_S = START_US / 1e6 + 10_000
REMOVED = {"deleted": 3, "replaced": 450, "expired": 900, "by-filter": 1_050}
"""What happens to a row, and which row it is."""
UPDATED = 700
SECRET = "the secret of row"


class Clock:
    now = NOW_S

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory":
        yield f"memory:{uuid.uuid4()}"
    elif request.param == "file":
        yield tmp_path.as_uri()
    else:
        with serving(tmp_path) as address:
            yield f"{request.param}+{address}"


async def opened(uri: str, clock: Clock) -> VectorDBSession:
    return await session_on(uri, clock=clock, chunk_size=64)


async def filled(session: VectorDBSession) -> None:
    """Rows with a graph, some of them with a text that only they have, and one that will expire."""
    vectors = rows(ROWS, DIM)
    secret = {*REMOVED.values(), UPDATED}
    await session.add_batch(
        [f"gone-{number:06d}" if number in REMOVED.values() else f"row-{number:06d}" for number in range(ROWS)],
        vectors,
        [{"text": f"{SECRET} {number}" if number in secret else f"sentence {number}"} for number in range(ROWS)],
        [START_US / 1e6 + number for number in range(ROWS)],
        expires_at=[NOW_S + 5_000 if number == REMOVED["expired"] else None for number in range(ROWS)],
    )


async def remove(session: VectorDBSession, clock: Clock) -> None:
    """Deletes, replaces, redacts, lets expire and deletes by a filter."""
    await session.delete_vector(f"gone-{REMOVED['deleted']:06d}")
    await session.add_batch(
        [f"gone-{REMOVED['replaced']:06d}"], rows(1, DIM, seed=5), [{"text": "new"}], [NOW_S], on_conflict="replace"
    )
    await session.update_metadata(f"row-{UPDATED:06d}", {"text": "[redacted]"})
    clock.now = NOW_S + 6_000
    deleted = await session.delete_by_metadata({"text": f"{SECRET} {REMOVED['by-filter']}"})
    assert deleted.deleted_count == 1


async def parts_of(uri: str, cid: str) -> dict[str, bytes]:
    """Every part of a version, or of a share of one, as it was before compression and encryption."""
    store, named = open_store(uri), parse_cid(cid)
    key = identity().path_keys(index_path("default")).encryption_key
    if isinstance(named, ShareCid):
        key = named.key
    root = decrypt_mutable(key, await store.get(named.hash, AtMost(2**21)))
    parts = {"root": root}
    for name, entry in decode_directory(root).files.items():
        assert entry.encryption is not None
        raw = decrypt_static(entry.encryption.key, await store.get(entry.hash, encrypted_size(entry.size)), entry.size)
        if raw[:4] == b"\x28\xb5\x2f\xfd":  # a zstd frame, which names its content's size
            raw = zstd.decompress(raw)
        parts[name] = raw
    await store.aclose()
    return parts


def vectors_in(parts: dict[str, bytes]) -> np.ndarray[Any, Any]:
    """All vectors, from their four byte planes."""
    found = []
    for name in sorted(name for name in parts if name.startswith("vectors.")):
        dim, n = struct.unpack_from("<I8xI", parts[name], 12)
        planes = np.frombuffer(parts[name], np.uint8, offset=40).reshape(4, n * dim).astype(np.uint32)
        high, low = planes[0] | planes[1] << 8, planes[2] | planes[3] << 8
        # The low half is signed: a set sign bit borrows from the high half.
        bits = (high << 16) + low - ((low >> 15) << 16)
        found.append(bits.astype(np.uint32).view(np.float32).reshape(n, dim))
    return np.concatenate(found)


def codes_in(parts: dict[str, bytes]) -> set[bytes]:
    """All 1-bit codes."""
    found: set[bytes] = set()
    size = -(-DIM // 8)
    for name, raw in parts.items():
        if name.startswith("codes."):
            (n,) = struct.unpack_from("<I", raw, 24)
            found.update(raw[40 + size * row : 40 + size * (row + 1)] for row in range(n))
    return found


def leftovers(parts: dict[str, bytes], codes: set[bytes]) -> list[str]:
    """What parts hold of removed rows and replaced metadata."""
    vectors = rows(ROWS, DIM)
    found = []
    for what, number in {**REMOVED, "updated": UPDATED}.items():
        for name, raw in parts.items():
            if f"{SECRET} {number}".encode() in raw:
                found.append(f"text of the {what} row in {name}")
            if what not in ("updated", "replaced") and f"gone-{number:06d}".encode() in raw:
                found.append(f"id of the {what} row in {name}")
            if what != "updated" and vectors[number].tobytes() in raw:
                found.append(f"vector of the {what} row in {name}")
        if what != "updated" and (vectors_in(parts) == vectors[number]).all(axis=1).any():
            found.append(f"vector of the {what} row")
    if codes & codes_in(parts):
        found.append("codes")
    return found


def codes_of_removed(parts: dict[str, bytes]) -> set[bytes]:
    stored, vectors, size = vectors_in(parts), rows(ROWS, DIM), -(-DIM // 8)
    (name,) = [name for name in parts if name.startswith("codes.")]
    slots = [int(np.flatnonzero((stored == vectors[number]).all(axis=1))[0]) for number in REMOVED.values()]
    return {parts[name][40 + size * slot : 40 + size * (slot + 1)] for slot in slots}


# What a version holds does not depend on the store: each store once with one of them, a directory with both.
@pytest.mark.parametrize(
    ("uri", "merged"),
    [("memory", True), ("file", False), ("file", True), ("portal", False), ("gateway", True)],
    indirect=["uri"],
)
async def test_a_vacuum_and_a_save_leave_nothing_behind(uri: str, merged: bool) -> None:
    clock = Clock()
    async with await opened(uri, clock) as session:
        await filled(session)
        first = await session.save_to_s5()
        before = await parts_of(uri, first)
        codes = codes_of_removed(before)
        assert len(leftovers(before, codes)) > 10
        assert (await session.get_stats()).superseded_bytes == 0
        await session.share(first)
        # Few more rows: steps lead from the stored graph. Many: it is stored anew, and so is each page.
        await add_rows(session, 400 if merged else 10, first=5_000, dim=DIM)
        await remove(session, clock)
        assert (await session.get_stats()).superseded_bytes > 4 * 4 * DIM
        if merged:
            for number in range(60):
                if number not in REMOVED.values():
                    await session.update_metadata(f"row-{number:06d}", {"text": f"another sentence {number}"})
        second = await session.save_to_s5()
        stored = await parts_of(uri, second)
        assert ("documents.changed.0000" in stored) is True
        assert leftovers(stored, codes)
        assert (await session.get_stats()).superseded_bytes > 4 * 4 * DIM
        with pytest.raises(ConflictError, match=r"vacuum\(\) and save_to_s5\(\)") as caught:
            await session.share(second)
        assert caught.value.details["superseded_bytes"] > 0
        expected = await content(session)
        await session.vacuum()
        assert (await session.get_stats()).superseded_bytes > 0  # the last save is what it was
        third = await session.save_to_s5()
        assert (await session.get_stats()).superseded_bytes == 0
        clean = await parts_of(uri, third)
        assert leftovers(clean, codes) == []
        assert "documents.changed.0000" not in clean
        share = await session.share(third)
        assert leftovers(await parts_of(uri, share), codes) == []
        assert await content(session) == expected
    async with await opened(uri, clock) as session:
        await session.load_user_vectors()
        assert (await session.get_stats()).superseded_bytes == 0
        assert await content(session) == expected
        # What was loaded with leftovers is as clean after a vacuum and a save.
        await session.load_user_vectors(second)
        assert (await session.get_stats()).superseded_bytes > 0
        await session.vacuum()
        again = await session.save_to_s5(on_conflict="overwrite")
        assert leftovers(await parts_of(uri, again), codes) == []
        # The old versions hold what they held, until they are pruned.
        await session.prune_history(1, dry_run=False)
        assert [version.cid for version in await session.history()] == [again]


async def test_redacted_metadata_goes_without_a_deleted_row(tmp_path: Path) -> None:
    uri, clock = tmp_path.as_uri(), Clock()
    async with await opened(uri, clock) as session:
        await filled(session)
        await session.save_to_s5()
        await session.update_metadata(f"row-{UPDATED:06d}", {"text": "[redacted]"})
        second = await session.save_to_s5()
        assert any(f"{SECRET} {UPDATED}".encode() in raw for raw in (await parts_of(uri, second)).values())
        size = len(f"{SECRET} {UPDATED}")
        assert size < (await session.get_stats()).superseded_bytes < size + 20
        with pytest.raises(ConflictError):
            await session.share(second)
        assert (await session.vacuum()).total_removed == 0
        assert (await session.get_stats()).dirty
        assert f"{SECRET} {UPDATED}".encode() not in bytes(session._runtime.index._rows.arena._data)
        third = await session.save_to_s5()
        await session.share(third)
        assert not any(f"{SECRET} {UPDATED}".encode() in raw for raw in (await parts_of(uri, third)).values())
        # Nothing is left to be done: another vacuum changes nothing.
        await session.vacuum()
        assert not (await session.get_stats()).dirty
        assert await session.save_to_s5() == third


async def test_a_share_counts_the_rows_that_have_expired_by_then(tmp_path: Path) -> None:
    clock = Clock()
    async with await opened(tmp_path.as_uri(), clock) as session:
        await filled(session)
        cid = await session.save_to_s5()
        await session.share(cid)
        clock.now = NOW_S + 6_000
        assert (await session.get_stats()).superseded_bytes > 0
        with pytest.raises(ConflictError, match="1 rows that have expired") as caught:
            await session.share(cid)
        assert caught.value.details["expired_rows"] == 1
        await session.vacuum()
        await session.share(await session.save_to_s5())


async def test_a_lazily_loaded_version_says_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "_is_worth_a_lazy_load", lambda opened: True)
    uri, clock = tmp_path.as_uri(), Clock()
    async with await opened(uri, clock) as session:
        await filled(session)
        await session.save_to_s5()
        await session.delete_vector(f"gone-{REMOVED['deleted']:06d}")
        await session.save_to_s5()
        held = (await session.get_stats()).superseded_bytes
        assert held > 4 * DIM
    async with await opened(uri, clock) as session:
        await session.load_user_vectors()
        assert not session._runtime.index.is_whole
        assert (await session.get_stats()).superseded_bytes == held
        await session.vacuum()
        await session.save_to_s5()
        assert (await session.get_stats()).superseded_bytes == 0


async def test_values_of_removed_rows_leave_the_columns_with_a_vacuum(tmp_path: Path) -> None:
    clock = Clock()
    async with await opened(tmp_path.as_uri(), clock) as session:
        await filled(session)
        text = f"{SECRET} {REMOVED['deleted']}"
        assert await session.count({"text": text}) == 1
        await session.delete_vector(f"gone-{REMOVED['deleted']:06d}")
        column = session._runtime.index._cache.columns._columns["text"]
        assert text in column._code_of
        await session.vacuum()
        assert text not in column._code_of
        assert await session.count({"text": f"{SECRET} {REMOVED['replaced']}"}) == 1
        assert await session.count({"text": {"$gte": "sentence 990"}}) == 10 + 4


async def test_what_other_changes_take_away_goes_likewise(tmp_path: Path) -> None:
    """A vector that `update_vector` replaces, rows of `delete`, metadata of many rows, and `clear`."""
    uri, clock = tmp_path.as_uri(), Clock()
    vectors = rows(ROWS, DIM)
    async with await opened(uri, clock) as session:
        await filled(session)
        await session.save_to_s5()
        await session.update_vector(f"row-{UPDATED:06d}", rows(1, DIM, seed=5)[0])
        await session.delete([f"gone-{REMOVED[what]:06d}" for what in REMOVED])
        await session.update_metadata({f"row-{number:06d}": {"text": "[redacted]"} for number in (UPDATED, 5)})
        assert (await session.get_stats()).superseded_bytes > 5 * 4 * DIM
        await session.vacuum()
        clean = await parts_of(uri, await session.save_to_s5())
        stored = vectors_in(clean)
        for number in (*REMOVED.values(), UPDATED):
            assert not (stored == vectors[number]).all(axis=1).any()
            assert not any(f"{SECRET} {number}".encode() in raw for raw in clean.values())
        assert (await session.get_stats()).superseded_bytes == 0
        await session.clear()
        assert (await session.get_stats()).superseded_bytes > ROWS * 2 * DIM
        empty = await parts_of(uri, await session.save_to_s5())
        assert set(empty) == {"root", "metadata"}
        assert (await session.get_stats()).superseded_bytes == 0
