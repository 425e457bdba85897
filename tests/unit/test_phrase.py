"""Phrases: the rules of S5, and the rule of our own for any other secret."""

from __future__ import annotations

import threading
import unicodedata

import nacl.pwhash.argon2id
import pytest
from hypothesis import given, strategies as st

from fabstir_vectordb.errors import InternalError, InvalidConfigError
from fabstir_vectordb.s5 import phrase as module
from fabstir_vectordb.s5.cid import blake3_hash
from fabstir_vectordb.s5.phrase import encode_phrase, new_seed_phrase, parse_phrase, secret_to_entropy

PHRASE = "cause volume could code victim murder reflect often opinion well enough tired advice client father"


@given(st.binary(min_size=16, max_size=16))
def test_phrase_carries_its_entropy(entropy: bytes) -> None:
    phrase = encode_phrase(entropy)
    assert len(phrase.split()) == 15
    assert parse_phrase(phrase) == entropy


def test_new_phrases_are_valid_and_differ() -> None:
    phrases = {new_seed_phrase() for _ in range(20)}
    assert len(phrases) == 20
    assert {len(parse_phrase(phrase)) for phrase in phrases} == {16}


def test_one_changed_word_is_noticed_with_its_checksum() -> None:
    words = PHRASE.split()
    for position in range(15):
        changed = [*words[:position], "abandon", *words[position + 1 :]]
        with pytest.raises(InvalidConfigError):
            parse_phrase(" ".join(changed))


def test_white_space_of_any_kind_separates_words() -> None:
    assert parse_phrase("\t" + PHRASE.replace(" ", "\u00a0\n") + "\r\n") == parse_phrase(PHRASE)


@pytest.mark.parametrize("secret", ["", " ", "\n\t"])
def test_empty_secret_is_refused(secret: str) -> None:
    with pytest.raises(InvalidConfigError, match="user_seed_phrase is required"):
        secret_to_entropy(secret)


def test_fifteen_words_of_another_kind_are_refused_rather_than_hashed() -> None:
    for secret in ("a b c d e f g h i j k l m n o", "legal " * 15, PHRASE.replace("father", "mother")):
        with pytest.raises(InvalidConfigError):
            secret_to_entropy(secret)


def test_other_secret_follows_the_documented_rule() -> None:
    secret = "correct horse battery staple"
    expected = nacl.pwhash.argon2id.kdf(
        16,
        secret.encode(),
        blake3_hash(b"fabstir-vectordb phrase v1")[:16],
        opslimit=3,
        memlimit=64 * 1024 * 1024,
    )
    assert secret_to_entropy(secret) == expected
    # Written down, so that a change of library or constant cannot lock users out of their data unnoticed.
    assert expected.hex() == "be121d5d34b67600beb11ed7a6270a9e"


def test_equal_characters_in_other_code_points_are_the_same_secret() -> None:
    composed, decomposed = "caf\u00e9 au lait", "cafe\u0301 au lait"
    assert unicodedata.is_normalized("NFC", composed) and not unicodedata.is_normalized("NFC", decomposed)
    assert secret_to_entropy(composed) == secret_to_entropy(decomposed)
    assert secret_to_entropy("Caf\u00e9 au lait") != secret_to_entropy(composed)


def test_lone_surrogate_is_refused_without_showing_the_secret() -> None:
    with pytest.raises(InvalidConfigError) as caught:
        secret_to_entropy("hunter2 \ud800")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_entropy_of_another_size_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="15"):
        encode_phrase(bytes(15))


def test_derivations_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0

    def kdf(*_: object, **__: object) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        threading.Event().wait(0.01)
        running -= 1
        return bytes(16)

    monkeypatch.setattr(module.nacl.pwhash.argon2id, "kdf", kdf)
    threads = [threading.Thread(target=secret_to_entropy, args=("some secret",)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_missing_memory_is_reported_as_worth_trying_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def kdf(*_: object, **__: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(module.nacl.pwhash.argon2id, "kdf", kdf)
    with pytest.raises(InternalError) as caught:
        secret_to_entropy("some secret")
    assert caught.value.retryable
