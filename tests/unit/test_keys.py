"""Identity and keys: secrets stay out of sight and can be wiped; paths name keys."""

from __future__ import annotations

import pickle

import pytest
from blake3 import blake3

from fabstir_vectordb.errors import InvalidInputError, SessionError
from fabstir_vectordb.s5.cid import blake3_hash
from fabstir_vectordb.s5.keys import Identity, keyed_hash, part_key, root_nonce, share_key

ENTROPY = bytes(range(16))


def test_identity_does_not_show_its_secret() -> None:
    identity = Identity(ENTROPY)
    shown = repr(identity) + str(identity) + repr(identity.path_keys("a")) + repr(identity.file_system_root())
    keys = identity.path_keys("a")
    for secret in (
        ENTROPY,
        identity.identity_seed,
        keys.encryption_key,
        keys.write_seed,
        identity.file_system_root().write_key,
    ):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
    assert keys.public_key.hex() in shown or repr(keys.public_key)[2:-1] in shown
    assert not hasattr(identity, "__dict__")


def test_identity_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="secret"):
        pickle.dumps(Identity(ENTROPY))


def test_wiped_identity_gives_no_keys() -> None:
    identity = Identity(ENTROPY)
    seed = identity._seed
    identity.wipe()
    identity.wipe()
    assert seed == b""
    assert "wiped" in repr(identity)
    with pytest.raises(SessionError):
        identity.path_keys("a")
    with pytest.raises(SessionError):
        identity.file_system_root()


def test_wipe_overwrites_before_it_forgets() -> None:
    identity = Identity(ENTROPY)
    seen: list[bytes] = []

    class Watched(bytearray):
        def clear(self) -> None:
            seen.append(bytes(self))
            super().clear()

    identity._seed = Watched(identity._seed)
    identity.wipe()
    assert seen == [bytes(32)]


def test_entropy_of_another_size_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        Identity(bytes(32))


def test_path_ignores_empty_segments_and_white_space_around_them() -> None:
    identity = Identity(ENTROPY)
    keys = identity.path_keys("fabstir-vectordb/index/main")
    assert identity.path_keys("/fabstir-vectordb// index /main/") == keys
    assert identity.path_keys("fabstir-vectordb/index/main2") != keys
    assert identity.path_keys("fabstir-vectordb/index") != keys
    assert identity.path_keys("index/fabstir-vectordb/main") != keys


def test_keys_of_a_path_differ_from_each_other() -> None:
    keys = Identity(ENTROPY).path_keys("a")
    assert len({keys.encryption_key, keys.write_seed, keys.public_key[1:]}) == 3
    assert keys.public_key[0] == 0xED and len(keys.public_key) == 33


def test_unknown_sub_seed_is_refused() -> None:
    identity = Identity(ENTROPY)
    for number in (0, 1, 7, 64, 70, 126, 128):
        with pytest.raises(InvalidInputError):
            identity.sub_seed(number)


def test_each_use_of_an_encryption_key_has_a_key_of_its_own() -> None:
    key, text = b"k" * 32, b"t" * 32
    purposes = {
        name: blake3(key, derive_key_context=f"fabstir_vectordb 2026-11-26 {name}").digest()
        for name in ("part keys", "nonces", "share keys")
    }
    assert part_key(key, text) == keyed_hash(purposes["part keys"], text)
    assert root_nonce(key, text) == keyed_hash(purposes["nonces"], text)[:24]
    assert share_key(key, text) == keyed_hash(purposes["share keys"], text)
    assert len({key, *purposes.values()}) == 4


def test_part_key_depends_on_root_key_and_on_every_stored_byte() -> None:
    keys = {part_key(key * 32, data) for key in (b"k", b"l") for data in (b"data", b"datb", b"")}
    assert len(keys) == 6
    assert part_key(b"k" * 32, b"data") != blake3_hash(b"data")
