"""Derivation of the 16 bytes of entropy of an S5 identity from a user's secret.

A secret of fifteen words is an S5 seed phrase, which gives the same identity in every S5 program. Words 1 to 13 hold
128 bits (12 times 10 bits, then 8 bits), words 14 and 15 the first 20 bits of their BLAKE3. Only the first three
letters of a word count.

For any other secret this package has a rule of its own; no other S5 program derives the same keys from such a secret::

    entropy = Argon2id13(password = UTF-8 of the NFC form, salt = BLAKE3("fabstir-vectordb phrase v1")[:16],
                         opslimit = 3, memlimit = 64 MiB, 16 bytes)

No error text of this module contains any part of a secret, and no traceback that leaves it holds a frame with one.
"""

from __future__ import annotations

import os
import threading
import unicodedata
from typing import Final

import nacl.exceptions
import nacl.pwhash.argon2id

from fabstir_vectordb.errors import InternalError, InvalidConfigError
from fabstir_vectordb.s5.cid import blake3_hash
from fabstir_vectordb.s5.wordlist import WORDS

__all__ = [
    "ENTROPY_BYTES",
    "PHRASE_WORDS",
    "encode_phrase",
    "new_seed_phrase",
    "parse_phrase",
    "secret_to_entropy",
]

ENTROPY_BYTES: Final = 16
PHRASE_WORDS: Final = 15

ARGON2_OPSLIMIT: Final = 3
ARGON2_MEMLIMIT_BYTES: Final = 64 * 2**20
ARGON2_SALT: Final = blake3_hash(b"fabstir-vectordb phrase v1")[: nacl.pwhash.argon2id.SALTBYTES]

_WORD_BITS: Final = 10
_PREFIX_CHARS: Final = 3
# Word 13 holds the last 8 of 128 bits.
_LAST_DATA_WORD: Final = 13
_LAST_DATA_WORD_LIMIT: Final = 256

_INDEX_BY_PREFIX: Final = {word[:_PREFIX_CHARS]: index for index, word in enumerate(WORDS)}

# One derivation takes 64 MiB for a fraction of a second. The lock bounds the memory of a host that opens many sessions
# at once.
_one_at_a_time = threading.Lock()


def _new_lock() -> None:
    global _one_at_a_time  # noqa: PLW0603  # a thread that the child process does not have may hold the old lock
    _one_at_a_time = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def new_seed_phrase() -> str:
    """Makes a new S5 seed phrase from 16 bytes of the system's randomness.

    Returns:
        15 words, lower case, one space between them.
    """
    return encode_phrase(os.urandom(ENTROPY_BYTES))


def encode_phrase(entropy: bytes) -> str:
    """Return the 15 words of an S5 identity.

    Args:
        entropy: 16 bytes.

    Returns:
        The words, lower case, one space between them.

    Raises:
        InvalidConfigError: the entropy has another size.
    """
    if len(entropy) != ENTROPY_BYTES:
        raise InvalidConfigError(f"The entropy of a seed phrase has {ENTROPY_BYTES} bytes, got {len(entropy)}")
    bits = int.from_bytes(entropy, "big")
    last = _LAST_DATA_WORD - 1
    indices = [bits >> (128 - _WORD_BITS * (word + 1)) & 1023 for word in range(last)]
    indices.append(bits & (_LAST_DATA_WORD_LIMIT - 1))
    indices.extend(_checksum(entropy))
    return " ".join(WORDS[index] for index in indices)


def parse_phrase(text: str) -> bytes:
    """Return the entropy of an S5 seed phrase.

    Args:
        text: 15 words. Case, the amount of white space and all letters after the third of a word are ignored.

    Returns:
        16 bytes.

    Raises:
        InvalidConfigError: the text is not an S5 seed phrase. The message names positions of words, never words.
    """
    found = _entropy(text)
    del text
    if isinstance(found, str):
        raise InvalidConfigError(found)
    return found


def _entropy(text: str) -> bytes | str:
    """The entropy of a seed phrase, or the reason why the text is not one.

    The reason is returned and not raised, as the traceback of an exception raised here would hold the words.
    """
    words = text.lower().split()
    if len(words) != PHRASE_WORDS:
        return f"An S5 seed phrase has {PHRASE_WORDS} words, this one has {len(words)}"
    indices: list[int] = []
    for position, word in enumerate(words, start=1):
        if len(word) < _PREFIX_CHARS:
            return f"Word {position} of the seed phrase has fewer than three letters"
        index = _INDEX_BY_PREFIX.get(word[:_PREFIX_CHARS])
        if index is None:
            return f"Word {position} of the seed phrase is not in the word list of S5"
        if position == _LAST_DATA_WORD and index >= _LAST_DATA_WORD_LIMIT:
            return f"Word {position} of the seed phrase is not among the first {_LAST_DATA_WORD_LIMIT} words"
        indices.append(index)
    bits = 0
    for index in indices[: _LAST_DATA_WORD - 1]:
        bits = bits << _WORD_BITS | index
    bits = bits << 8 | indices[_LAST_DATA_WORD - 1]
    entropy = bits.to_bytes(ENTROPY_BYTES, "big")
    if tuple(indices[_LAST_DATA_WORD:]) != _checksum(entropy):
        return "The seed phrase has a wrong checksum: a word is mistyped or out of order"
    return entropy


def secret_to_entropy(text: str) -> bytes:
    """Return the entropy of a user's secret.

    A secret that is not a seed phrase takes 0.1 s to 0.5 s (Argon2id over 64 MiB, the GIL released), so callers run
    this function in a thread. Calls run one at a time.

    Args:
        text: a secret. 15 words must be a valid S5 seed phrase.

    Returns:
        16 bytes.

    Raises:
        InvalidConfigError: the secret is empty, cannot be encoded as UTF-8, or is 15 words that are not an S5 seed
            phrase.
        InternalError: the system did not grant 64 MiB of memory; a later call may succeed.
    """
    words = len(text.split())
    if words == 0:
        raise InvalidConfigError("Missing required field: user_seed_phrase is required")
    found = _entropy(text) if words == PHRASE_WORDS else _stretched(text)
    del text
    if isinstance(found, str):
        raise InvalidConfigError(found)
    if found is None:
        raise InternalError(
            "Deriving keys from user_seed_phrase failed: the system did not grant 64 MiB of memory", retryable=True
        )
    return found


def _stretched(text: str) -> bytes | str | None:
    """The entropy of a secret that is not a seed phrase, or the reason of a failure, or None if memory ran out."""
    try:
        password = unicodedata.normalize("NFC", text).encode("utf-8")
    except UnicodeEncodeError:
        return "user_seed_phrase is not valid Unicode: it has a lone surrogate"
    with _one_at_a_time:
        try:
            return nacl.pwhash.argon2id.kdf(
                ENTROPY_BYTES,
                password,
                ARGON2_SALT,
                opslimit=ARGON2_OPSLIMIT,
                memlimit=ARGON2_MEMLIMIT_BYTES,
            )
        except (nacl.exceptions.CryptoError, MemoryError):
            return None


def _checksum(entropy: bytes) -> tuple[int, int]:
    bits = int.from_bytes(blake3_hash(entropy)[:3], "big")
    return bits >> 14, bits >> 4 & 1023
