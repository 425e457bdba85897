"""Registry entries: nothing unsigned, truncated or out of range gets through."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fabstir_vectordb.errors import IntegrityError, InvalidInputError
from fabstir_vectordb.s5.keys import ed25519_public_key
from fabstir_vectordb.s5.registry import RegistryEntry, pointer_data, pointer_hash

SEED = b"s" * 32
ENTRY = RegistryEntry.sign(SEED, 7, pointer_data(b"h" * 32))


@given(st.integers(0, 2**64 - 1), st.binary(max_size=64))
def test_entry_survives_both_forms(revision: int, data: bytes) -> None:
    entry = RegistryEntry.sign(SEED, revision, data)
    entry.verify()
    assert RegistryEntry.parse(entry.serialize()) == entry
    assert RegistryEntry.from_portal_json(entry.to_portal_json()) == entry


def test_one_changed_byte_is_noticed_wherever_it_is() -> None:
    raw = ENTRY.serialize()
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1
        with pytest.raises(IntegrityError):
            RegistryEntry.parse(bytes(changed)).verify()


def test_signature_of_another_key_is_noticed() -> None:
    stolen = dataclasses.replace(ENTRY, public_key=ed25519_public_key(b"t" * 32))
    with pytest.raises(IntegrityError) as caught:
        stolen.verify()
    assert caught.value.details["revision"] == 7


@given(st.binary(max_size=250))
def test_any_bytes_are_read_or_refused_with_our_error(raw: bytes) -> None:
    try:
        RegistryEntry.parse(raw)
    except IntegrityError:
        pass


@pytest.mark.parametrize("raw", [b"", b"\x07", ENTRY.serialize()[:-1], ENTRY.serialize() + b"\0"])
def test_other_lengths_are_refused(raw: bytes) -> None:
    with pytest.raises(IntegrityError):
        RegistryEntry.parse(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"pk": None},
        {"pk": "AAAA"},
        {"pk": "*" * 44},
        {"revision": "7"},
        {"revision": True},
        {"revision": 1.0},
        {"revision": -1},
        {"revision": 2**64},
        {"data": "A" * 200},
        {"data": 5},
        {"signature": ""},
        {"signature": "é"},
        {"signature": "A" * 10_000},
    ],
)
def test_portal_answer_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError):
        RegistryEntry.from_portal_json({**ENTRY.to_portal_json(), **change})


@pytest.mark.parametrize("document", [None, [], "entry", {}, {"pk": "x"}])
def test_portal_answer_that_is_no_entry_is_refused(document: object) -> None:
    with pytest.raises(IntegrityError):
        RegistryEntry.from_portal_json(document)


def test_entry_refuses_impossible_fields() -> None:
    for revision, data in ((-1, b""), (2**64, b""), (1, bytes(65))):
        with pytest.raises(InvalidInputError):
            RegistryEntry.sign(SEED, revision, data)


def test_pointer_data_of_all_known_forms_leads_to_the_hash() -> None:
    hash = b"h" * 32
    assert pointer_hash(pointer_data(hash)) == hash
    for prefix, suffix in (("1f", ""), ("5b821e", "05"), ("5a261f", "05"), ("5b821f", "")):
        assert pointer_hash(bytes.fromhex(prefix) + hash + bytes.fromhex(suffix)) == hash


@pytest.mark.parametrize("data", [b"", b"\x1e", b"\x1e" + bytes(31), b"\x1e" + bytes(33), bytes(35), bytes(64)])
def test_pointer_to_no_blob_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        pointer_hash(data)


def test_pointer_to_a_hash_of_another_size_is_not_written() -> None:
    with pytest.raises(InvalidInputError):
        pointer_data(bytes(31))
