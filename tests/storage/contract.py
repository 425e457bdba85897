"""What every store must do. Each back-end's test module inherits the class and says how to open and to damage it."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

import anyio
import pytest

from fabstir_vectordb.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError
from fabstir_vectordb.s5.cid import BlobId, blake3_hash
from fabstir_vectordb.s5.keys import ed25519_public_key
from fabstir_vectordb.s5.registry import RegistryEntry, pointer_data
from fabstir_vectordb.storage import Store, open_store
from fabstir_vectordb.storage.base import AtMost

SEED = b"s" * 32
OTHER_SEED = b"t" * 32
PUBLIC_KEY = ed25519_public_key(SEED)
ABSENT = BlobId.of(b"absent")
# A bound that none of these blobs reaches.
ANY = AtMost(2**21)
# Above this the memory store hashes in a thread.
LARGE = bytes(range(256)) * 4096


def entry(revision: int, content: bytes = b"content", seed: bytes = SEED) -> RegistryEntry:
    return RegistryEntry.sign(seed, revision, pointer_data(blake3_hash(content)))


@pytest.mark.anyio
class StoreContract:
    """Behaviour shared by all stores; ``address`` and the two damaging methods come from the subclass."""

    @pytest.fixture
    def address(self) -> str:
        raise NotImplementedError

    def damage_blob(self, store: Any, blob: BlobId, data: bytes) -> None:
        raise NotImplementedError

    def damage_pointer(self, store: Any, public_key: bytes, data: bytes) -> None:
        raise NotImplementedError

    @pytest.fixture
    async def store(self, address: str) -> AsyncIterator[Store]:
        store = open_store(address)
        yield store
        await store.aclose()

    # --- blobs

    @pytest.mark.parametrize("data", [b"", b"x", b"hello", LARGE], ids=["empty", "one", "hello", "large"])
    async def test_blob_comes_back(self, store: Store, data: bytes) -> None:
        blob = await store.put(data)
        assert blob == BlobId.of(data)
        assert await store.get(blob.hash, ANY) == data
        assert await store.get(blob.hash, blob.size) == data
        assert await store.has(blob.hash)

    @pytest.mark.parametrize("form", [bytearray, memoryview])
    async def test_blob_is_taken_from_any_buffer_and_does_not_follow_its_changes(
        self, store: Store, form: type[bytearray] | type[memoryview]
    ) -> None:
        source = bytearray(b"buffer")
        blob = await store.put(source if form is bytearray else memoryview(source))
        source[:] = b"change"
        assert await store.get(blob.hash, ANY) == b"buffer"

    async def test_putting_twice_is_no_error(self, store: Store) -> None:
        assert await store.put(b"same") == await store.put(b"same")

    async def test_missing_blob_is_not_found_with_its_cid(self, store: Store) -> None:
        with pytest.raises(NotFoundError) as caught:
            await store.get(ABSENT.hash, ABSENT.size)
        assert caught.value.details == {"hash": ABSENT.hash.hex(), "cid": str(ABSENT)}
        with pytest.raises(NotFoundError) as caught:
            await store.get(ABSENT.hash, ANY)
        assert caught.value.details == {"hash": ABSENT.hash.hex()}
        assert not await store.has(ABSENT.hash)

    async def test_deleted_blob_is_gone(self, store: Store) -> None:
        blob = await store.put(b"short-lived")
        assert await store.delete(blob.hash)
        assert not await store.delete(blob.hash)
        assert not await store.has(blob.hash)
        with pytest.raises(NotFoundError):
            await store.get(blob.hash, ANY)
        await store.put(b"short-lived")
        assert await store.get(blob.hash, ANY) == b"short-lived"

    @pytest.mark.parametrize("data", [b"hello world", LARGE], ids=["small", "large"])
    async def test_changed_byte_is_noticed(self, store: Store, data: bytes) -> None:
        blob = await store.put(data)
        changed = bytes([data[0] ^ 1]) + data[1:]
        self.damage_blob(store, blob, changed)
        for size in (ANY, blob.size):
            with pytest.raises(IntegrityError) as caught:
                await store.get(blob.hash, size)
            assert caught.value.details["hash"] == caught.value.details["expected"] == blob.hash.hex()
            assert caught.value.details["actual"] == blake3_hash(changed).hex()
        assert caught.value.details["cid"] == str(blob)

    @pytest.mark.parametrize("damaged", [b"", b"hello", b"hello world!"], ids=["emptied", "cut", "grown"])
    async def test_changed_length_is_noticed(self, store: Store, damaged: bytes) -> None:
        blob = await store.put(b"hello world")
        self.damage_blob(store, blob, damaged)
        with pytest.raises(IntegrityError):
            await store.get(blob.hash, ANY)
        with pytest.raises(IntegrityError) as caught:
            await store.get(blob.hash, blob.size)
        assert caught.value.details["expected"] == 11
        assert caught.value.details["actual"] == len(damaged)

    async def test_another_size_than_the_blob_has_is_refused(self, store: Store) -> None:
        blob = await store.put(b"hello world")
        for size in (0, 10, 12):
            with pytest.raises(IntegrityError):
                await store.get(blob.hash, size)

    @pytest.mark.parametrize("damaged", [b"hellO world", b"", b"hello world and more"])
    async def test_putting_again_repairs_damage(self, store: Store, damaged: bytes) -> None:
        blob = await store.put(b"hello world")
        self.damage_blob(store, blob, damaged)
        assert await store.put(b"hello world") == blob
        assert await store.get(blob.hash, blob.size) == b"hello world"

    async def test_many_tasks_put_and_get_at_once(self, store: Store) -> None:
        contents = [b"blob %d" % (number % 10) for number in range(40)]

        async def put_and_get(data: bytes) -> None:
            blob = await store.put(data)
            assert await store.get(blob.hash, blob.size) == data

        async with anyio.create_task_group() as tasks:
            for data in contents:
                tasks.start_soon(put_and_get, data)

    @pytest.mark.parametrize("hash", [b"", bytes(31), bytes(33), "x" * 32, None])
    async def test_name_that_is_no_hash_is_refused(self, store: Store, hash: Any) -> None:
        for call in (partial(store.get, size=5), store.has, store.delete):
            with pytest.raises(InvalidInputError):
                await call(hash)

    @pytest.mark.parametrize("size", [-1, 2**31, AtMost(-1), AtMost(2**31), None, 1.0, True])
    async def test_size_that_no_blob_can_have_is_refused(self, store: Store, size: Any) -> None:
        with pytest.raises(InvalidInputError):
            await store.get(ABSENT.hash, size)

    async def test_a_blob_above_its_bound_is_refused(self, store: Store) -> None:
        blob = await store.put(b"hello world")
        assert await store.get(blob.hash, AtMost(11)) == b"hello world"
        for bound in (0, 10):
            with pytest.raises(IntegrityError):
                await store.get(blob.hash, AtMost(bound))

    async def test_blob_of_two_gib_is_refused(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        # With the limit moved, for the machines that test this.
        monkeypatch.setattr("fabstir_vectordb.storage.base.BLOB_BYTES_MAX", 10)
        with pytest.raises(InvalidInputError) as caught:
            await store.put(bytes(11))
        assert caught.value.details == {"limit": 10, "actual": 11}
        await store.put(bytes(10))

    # --- pointers

    async def test_pointer_is_absent_before_the_first_entry(self, store: Store) -> None:
        assert await store.get_pointer(PUBLIC_KEY) is None

    async def test_pointer_comes_back(self, store: Store) -> None:
        for revision in (0, 1, 2, 70_000, 2**31 - 1):
            new = entry(revision, b"%d" % revision)
            await store.set_pointer(new)
            assert await store.get_pointer(PUBLIC_KEY) == new

    async def test_pointers_of_different_keys_are_apart(self, store: Store) -> None:
        one, other = entry(5), entry(1, seed=OTHER_SEED)
        await store.set_pointer(one)
        await store.set_pointer(other)
        assert await store.get_pointer(one.public_key) == one
        assert await store.get_pointer(other.public_key) == other

    @pytest.mark.parametrize("revision", [0, 6, 7])
    async def test_only_a_higher_revision_moves_the_pointer(self, store: Store, revision: int) -> None:
        current = entry(7)
        await store.set_pointer(current)
        with pytest.raises(ConflictError) as caught:
            await store.set_pointer(entry(revision, b"other"))
        assert caught.value.details == {
            "public_key": PUBLIC_KEY.hex(),
            "stored_revision": 7,
            "revision": revision,
        }
        assert await store.get_pointer(PUBLIC_KEY) == current
        await store.set_pointer(entry(8))

    async def test_unsigned_entry_is_refused(self, store: Store) -> None:
        forged = RegistryEntry(PUBLIC_KEY, 9, pointer_data(bytes(32)), bytes(64))
        with pytest.raises(IntegrityError):
            await store.set_pointer(forged)
        assert await store.get_pointer(PUBLIC_KEY) is None

    async def test_revision_s5js_cannot_handle_is_refused(self, store: Store) -> None:
        with pytest.raises(InvalidInputError) as caught:
            await store.set_pointer(entry(2**31))
        assert caught.value.details == {"limit": 2**31 - 1, "actual": 2**31}

    async def test_damaged_pointer_is_noticed_and_its_owner_can_replace_it(self, store: Store) -> None:
        raw = entry(3).serialize()
        changed = bytes([*raw[:40], raw[40] ^ 1, *raw[41:]])
        stolen = entry(3, seed=OTHER_SEED).serialize()
        for revision, damaged in enumerate(
            (b"", b"\x07", raw[:-1], raw + b"\0", changed, stolen, bytes(5000)), start=1
        ):
            await store.set_pointer(entry(revision))
            self.damage_pointer(store, PUBLIC_KEY, damaged)
            with pytest.raises(IntegrityError) as caught:
                await store.get_pointer(PUBLIC_KEY)
            assert caught.value.details["public_key"] == PUBLIC_KEY.hex()
            assert PUBLIC_KEY.hex() in caught.value.details["where"]
            repaired = entry(revision)
            await store.set_pointer(repaired)
            assert await store.get_pointer(PUBLIC_KEY) == repaired

    async def test_of_writers_with_one_revision_exactly_one_wins(self, store: Store) -> None:
        outcomes: list[str] = []

        async def write(number: int) -> None:
            try:
                await store.set_pointer(entry(1, b"%d" % number))
                outcomes.append("won")
            except ConflictError:
                outcomes.append("lost")

        async with anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(write, number)
        assert sorted(outcomes) == ["lost"] * 11 + ["won"]

    @pytest.mark.parametrize("key", [b"", bytes(33), b"\xed" + bytes(31), None])
    async def test_name_that_is_no_public_key_is_refused(self, store: Store, key: Any) -> None:
        with pytest.raises(InvalidInputError):
            await store.get_pointer(key)

    # --- the store itself

    async def test_stores_of_one_address_share_their_content(self, store: Store, address: str) -> None:
        blob = await store.put(b"shared")
        await store.set_pointer(entry(1))
        async with aclosing(open_store(address)) as other:
            assert other.uri == store.uri
            assert await other.get(blob.hash, ANY) == b"shared"
            assert await other.get_pointer(PUBLIC_KEY) == entry(1)
            with pytest.raises(ConflictError):
                await other.set_pointer(entry(1, b"other"))

    async def test_uri_opens_the_same_store(self, store: Store) -> None:
        blob = await store.put(b"shared")
        async with aclosing(open_store(store.uri)) as other:
            assert await other.get(blob.hash, ANY) == b"shared"

    async def test_closing_twice_is_no_error_and_keeps_the_content(self, store: Store, address: str) -> None:
        blob = await store.put(b"kept")
        await store.aclose()
        await store.aclose()
        async with aclosing(open_store(address)) as other:
            assert await other.get(blob.hash, ANY) == b"kept"

    async def test_cancelled_put_leaves_a_whole_blob_or_none(self, store: Store) -> None:
        blob = BlobId.of(LARGE)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await store.put(LARGE)
        if await store.has(blob.hash):
            assert await store.get(blob.hash, blob.size) == LARGE
        await store.put(LARGE)
        assert await store.get(blob.hash, blob.size) == LARGE

    async def test_errors_cross_processes(self, store: Store) -> None:
        with pytest.raises(NotFoundError) as caught:
            await store.get(ABSENT.hash, ABSENT.size)
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (str(copy), copy.details) == (str(caught.value), caught.value.details)


def check_one_store_serves_several_event_loops(store: Store) -> None:
    """Use one store object from loops of both kinds, one after the other; the sync twin runs a loop of its own."""

    revision = 0

    async def use(data: bytes) -> bytes:
        nonlocal revision
        revision += 1
        try:
            # At once, so that tasks meet at the store's locks.
            async with anyio.create_task_group() as group:
                for number in range(3):
                    group.start_soon(store.has, blake3_hash(b"%d" % number))
            await store.set_pointer(entry(revision))
            blob = await store.put(data)
            return await store.get(blob.hash, ANY)
        finally:
            await store.aclose()

    for backend in ("asyncio", "trio", "asyncio"):
        for data in (b"small", LARGE):
            assert anyio.run(use, data, backend=backend) == data
