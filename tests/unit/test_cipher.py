"""The two encryptions: round trips at the edges, and every kind of damage named."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from fabstir_vectordb.errors import DecryptionError, IntegrityError, InvalidInputError
from fabstir_vectordb.s5.cipher import (
    CHUNK_BYTES,
    MUTABLE_BYTES_MAX,
    TAG_BYTES,
    decrypt_mutable,
    decrypt_static,
    encrypt_mutable,
    encrypt_static,
    encrypted_size,
    is_mutable,
    padded_size,
)

KEY = b"k" * 32
NONCE = b"n" * 24
EDGES = (0, 1, 100, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 17)


@pytest.mark.parametrize("size", EDGES)
def test_static_round_trip(size: int) -> None:
    data = bytes(i % 253 for i in range(min(size, 1000))) * (size // 1000 + 1)
    data = data[:size]
    blob = encrypt_static(KEY, data)
    assert len(blob) == encrypted_size(size)
    for form in (blob, bytearray(blob), memoryview(blob)):
        assert decrypt_static(KEY, form, size) == data
    assert encrypt_static(KEY, bytearray(data)) == encrypt_static(KEY, memoryview(data)) == blob


def test_chunk_stands_at_its_offset_and_opens_alone() -> None:
    data = bytes(CHUNK_BYTES) + b"tail"
    blob = encrypt_static(KEY, data)
    assert len(blob) == CHUNK_BYTES + TAG_BYTES + 4 + TAG_BYTES
    assert decrypt_static(KEY, blob[: CHUNK_BYTES + TAG_BYTES], CHUNK_BYTES) == data[:CHUNK_BYTES]


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_one_changed_bit_is_noticed(size: int) -> None:
    blob = bytearray(encrypt_static(KEY, bytes(size)))
    for place in (0, len(blob) // 2, len(blob) - 1):
        blob[place] ^= 1
        with pytest.raises(DecryptionError):
            decrypt_static(KEY, blob, size)
        blob[place] ^= 1
    with pytest.raises(DecryptionError):
        decrypt_static(b"l" * 32, blob, size)


def test_swapped_chunks_are_noticed() -> None:
    step = CHUNK_BYTES + TAG_BYTES
    blob = encrypt_static(KEY, bytes(2 * CHUNK_BYTES))
    with pytest.raises(DecryptionError):
        decrypt_static(KEY, blob[step:] + blob[:step], 2 * CHUNK_BYTES)


@pytest.mark.parametrize("size", [-1, 101, CHUNK_BYTES, 2**62])
def test_size_the_ciphertext_cannot_hold_is_refused(size: int) -> None:
    with pytest.raises(IntegrityError) as caught:
        decrypt_static(KEY, encrypt_static(KEY, bytes(100)), size)
    assert caught.value.details["actual"] == 100 + TAG_BYTES


def test_size_below_the_plaintext_does_not_cut_data_off() -> None:
    with pytest.raises(IntegrityError, match="padding"):
        decrypt_static(KEY, encrypt_static(KEY, b"x" * 100), 99)
    with pytest.raises(DecryptionError):
        decrypt_static(KEY, encrypt_static(KEY, b"x" * 100), 0)


@pytest.mark.parametrize("size", [0, 1, 4050, 4051, 80 * 1024, 200_000, MUTABLE_BYTES_MAX])
def test_mutable_round_trip(size: int) -> None:
    data = b"\x07" * size
    blob = encrypt_mutable(KEY, NONCE, data)
    assert len(blob) == padded_size(size + 46) == padded_size(len(blob))
    assert is_mutable(blob)
    assert decrypt_mutable(KEY, blob) == decrypt_mutable(KEY, memoryview(blob)) == data


def test_mutable_blob_over_one_mib_is_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        encrypt_mutable(KEY, NONCE, bytes(MUTABLE_BYTES_MAX + 1))
    assert caught.value.details == {"limit": MUTABLE_BYTES_MAX, "actual": MUTABLE_BYTES_MAX + 1}


def test_every_damage_of_a_mutable_blob_is_named() -> None:
    blob = encrypt_mutable(KEY, NONCE, b"root")
    changed = bytearray(blob)
    changed[100] ^= 1
    for key, damaged in ((b"l" * 32, blob), (KEY, bytes(changed)), (KEY, blob[:2] + b"m" + blob[3:])):
        with pytest.raises(DecryptionError):
            decrypt_mutable(key, damaged)
    for damaged in (b"", b"\x8d", b"\x8d\x01", blob[:45], blob[:-1], blob + b"\0", b"\x8d\x02" + blob[2:], b"_]"):
        with pytest.raises(IntegrityError):
            decrypt_mutable(KEY, damaged)
    with pytest.raises(IntegrityError):
        decrypt_mutable(KEY, b"\x8d\x01" + bytes(padded_size(2 * MUTABLE_BYTES_MAX) - 2))


def test_authenticated_length_beyond_the_blob_is_refused() -> None:
    from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as seal

    plain = (5000).to_bytes(4, "little") + bytes(4096 - 46)
    blob = b"\x8d\x01" + NONCE + seal(plain, None, NONCE, KEY)
    assert len(blob) == 4096
    with pytest.raises(IntegrityError, match="claims 5000"):
        decrypt_mutable(KEY, blob)


@given(st.integers(0, 2**32))
def test_padded_size_is_a_fixed_point_and_wastes_little(size: int) -> None:
    padded = padded_size(size)
    assert padded_size(padded) == padded >= size
    assert padded - size < max(4096, size / 10 + 1)
