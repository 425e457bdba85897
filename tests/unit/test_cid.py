"""Identifiers: what is refused, and what stays equal on the way through text."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.s5.cid import (
    BlobId,
    EncryptedBlobCid,
    ShareCid,
    blake3_hash,
    multibase_decode,
    multibase_encode,
)

BASES = ("base16", "base32", "base58btc", "base64url")
HELLO = BlobId.of(b"hello")


def test_text_form_starts_with_uw4ie_at_every_size() -> None:
    for size in (0, 1, 255, 256, 2**16, 2**24, 2**31 - 1, 2**40):
        assert str(BlobId(bytes(32), size)).startswith("uW4Ie")
        assert len(BlobId(bytes(32), size).to_bytes()) in range(36, 44)


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1), st.sampled_from(BASES))
def test_identifier_survives_text_in_every_base(hash: bytes, size: int, base: str) -> None:
    blob = BlobId(hash, size)
    assert BlobId.parse(blob.to_text(base)) == blob  # type: ignore[arg-type]
    assert BlobId.parse(multibase_encode(blob.to_old_bytes(), base)) == blob  # type: ignore[arg-type]


@given(st.binary(max_size=80), st.sampled_from(BASES))
def test_multibase_round_trip(raw: bytes, base: str) -> None:
    assert multibase_decode(multibase_encode(raw, base)) == raw  # type: ignore[arg-type]


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_with_our_error(text: str) -> None:
    try:
        BlobId.parse(text)
    except InvalidInputError:
        pass


def test_old_hash_code_and_missing_size_are_read() -> None:
    for prefix in ("5b821e", "5b821f", "261e", "261f"):
        raw = bytes.fromhex(prefix) + HELLO.hash
        assert BlobId.from_bytes(raw + b"\x05") == HELLO
        assert BlobId.from_bytes(raw + b"\x05\0\0") == HELLO
        assert BlobId.from_bytes(raw) == BlobId.from_bytes(raw + b"\0") == BlobId(HELLO.hash, 0)


def test_size_zero_of_other_content_means_unknown() -> None:
    assert BlobId.of(b"").known_size == 0
    assert BlobId(HELLO.hash, 0).known_size is None
    assert HELLO.known_size == 5


def test_upper_case_and_padding_are_read_where_s5js_reads_them() -> None:
    text = HELLO.to_text("base32")
    assert BlobId.parse("b" + text[1:].upper()) == HELLO
    assert BlobId.parse(text + "===") == HELLO
    assert BlobId.parse(str(HELLO) + "=") == HELLO


@pytest.mark.parametrize(
    "text",
    [
        "",
        "u",
        "W4Ie6o8WPbOGgpJeRJHF5Y1Ls1Bu-MFOt4qG6QjFYkpnIA8F",
        "uW4Ie",
        "u" + "A" * 48,
        "uW4Ie6o8WPbOGgpJeRJHF5Y1Ls1Bu-MFOt4qG6QjFYkpnIA8 ",
        "uW4Ie6o8WPbOGgpJeRJHF5Y1Ls1Bu+MFOt4qG6QjFYkpnIA8F",
        " uW4Ie6o8WPbOGgpJeRJHF5Y1Ls1Bu-MFOt4qG6QjFYkpnIA8F",
        "f5b82 1e",
        "f5b8",
        "z0OIl",
        "zé",
        "b1089",
        "m5b82",
        "u" + "A" * 600,
        "uA",
        "ba",
        "\ud800",
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        BlobId.parse(text)


def test_text_that_is_no_string_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="NoneType"):
        BlobId.parse(None)  # type: ignore[arg-type]


def test_unknown_base_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="base64url"):
        multibase_encode(b"x", "base36")  # type: ignore[arg-type]


def test_wrong_last_character_is_noticed_where_it_holds_unused_bits() -> None:
    text = HELLO.to_text("base32")
    assert multibase_decode(text)[-1] == 5
    with pytest.raises(InvalidInputError):
        multibase_decode(text[:-1] + chr(ord(text[-1]) + 1))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x5b\x82",
        b"\x5b\x82\x12" + bytes(33),  # SHA-256
        b"\x5b\x82\x1e" + bytes(31),
        b"\x5b\x82\x1e" + bytes(41),
        b"\x26\x1f" + bytes(31),
        b"\x5d\x5e\xa6" + bytes(65),
        bytes(36),
    ],
)
def test_other_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInputError):
        BlobId.from_bytes(raw)


def test_identifier_refuses_impossible_fields() -> None:
    for hash, size in ((bytes(31), 0), (bytes(33), 0), (bytes(32), -1), (bytes(32), 2**64)):
        with pytest.raises(InvalidInputError):
            BlobId(hash, size)


def test_identifier_of_a_view_counts_bytes_not_items() -> None:
    import numpy as np

    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert BlobId.of(memoryview(array)) == BlobId.of(array.tobytes())
    assert blake3_hash(memoryview(array)) == blake3_hash(array.tobytes())


def test_cids_with_a_key_refuse_other_bytes_without_showing_them() -> None:
    secret = bytes(range(32))
    share = ShareCid(secret, HELLO.hash)
    assert ShareCid.from_bytes(share.to_bytes()) == share
    damaged = share.to_bytes()[:-1]
    for read in (ShareCid.from_bytes, EncryptedBlobCid.from_bytes, BlobId.from_bytes):
        with pytest.raises(InvalidInputError) as caught:
            read(damaged)
        assert secret.hex() not in str(caught.value)
        assert secret.hex()[:8] not in str(caught.value)
