"""Messages of the S5 network protocol, as S5.js and lib5 exchange them: one in each binary websocket message.

A message is a sequence of MessagePack values, the first of which is its type::

    1    opening           a challenge, which the receiver signs
    2    answer            the challenge, features, number of addresses; only inside a signed message
    4    blob query        multihash (33 bytes), wanted types of location
    10   signed message    public key (33 bytes), ed25519 signature (64), the signed message
    13   registry query    public key (33 bytes)

Two records have a fixed layout instead. ``07`` is a registry entry (`RegistryEntry`). ``05`` is a storage location:
``05`` ‖ multihash(33) ‖ type ‖ expiry as Unix seconds (u32) ‖ number of parts ‖ for each part length (u16) and UTF-8 ‖
``00`` ‖ public key(33) ‖ signature(64) of all bytes before the key. Integers are little-endian.
"""

from __future__ import annotations

from typing import Final

import nacl.bindings
from nacl.exceptions import CryptoError

from fabstir_vectordb.errors import IntegrityError, InvalidInputError
from fabstir_vectordb.s5.keys import SIGNATURE_BYTES, ed25519_public_key, ed25519_sign
from fabstir_vectordb.s5.registry import is_public_key

__all__ = [
    "BLOB_QUERY",
    "ENTRY",
    "FILE_LOCATION",
    "OPENING",
    "REGISTRY_QUERY",
    "SIGNED",
    "Reader",
    "answer_to",
    "opening",
    "pack_bytes",
    "signed",
    "storage_location",
    "verified_answer",
]

OPENING: Final = 1
_ANSWER: Final = 2
BLOB_QUERY: Final = 4
_LOCATION: Final = 5
ENTRY: Final = 7
SIGNED: Final = 10
REGISTRY_QUERY: Final = 13

#: Type of a storage location: the address of the whole file.
FILE_LOCATION: Final = 3
#: Features of the protocol that S5.js and lib5 announce in their answers.
_FEATURES: Final = 3


class Reader:
    """Reads the MessagePack values of a message, one after another.

    Args:
        raw: the message.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def integer(self) -> int:
        """Returns an integer from 0 to 127, the only integers that these messages have.

        Raises:
            InvalidInputError: the next value is not such an integer.
        """
        (value,) = self._take(1)
        if value > 0x7F:
            raise InvalidInputError("a message has another value where an integer must be")
        return value

    def binary(self) -> bytes:
        """Returns a byte string.

        Raises:
            InvalidInputError: the next value is not a byte string, or ends behind the message.
        """
        (head,) = self._take(1)
        if head not in (0xC4, 0xC5):
            raise InvalidInputError("a message has another value where bytes must be")
        return self._take(int.from_bytes(self._take(head - 0xC3), "big"))

    def integers(self) -> list[int]:
        """Returns an array of at most 15 integers.

        Raises:
            InvalidInputError: the next value is not such an array.
        """
        (head,) = self._take(1)
        if head & 0xF0 != 0x90:
            raise InvalidInputError("a message has another value where an array must be")
        return [self.integer() for _ in range(head & 0x0F)]

    def _take(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        if self._at > len(self._raw):
            raise InvalidInputError("a message ends early")
        return self._raw[start : self._at]


def pack_bytes(raw: bytes) -> bytes:
    """Returns a byte string of fewer than 65,536 bytes as a MessagePack value."""
    size = len(raw)
    return (b"\xc4" + bytes([size]) if size < 256 else b"\xc5" + size.to_bytes(2, "big")) + raw


def opening(challenge: bytes) -> bytes:
    """Returns the message that asks a peer to prove its key."""
    return bytes([OPENING]) + pack_bytes(challenge)


def answer_to(challenge: bytes, seed: bytes) -> bytes:
    """Returns the answer to a peer's challenge, signed.

    Args:
        challenge: the bytes of the peer's opening.
        seed: ed25519 seed of this node, 32 bytes.

    Returns:
        A message. Its signed bytes begin with ``02``, so they are never those of a record.
    """
    return signed(bytes([_ANSWER]) + pack_bytes(challenge) + bytes([_FEATURES, 0]), seed)


def signed(message: bytes, seed: bytes) -> bytes:
    """Returns a message inside a signed one."""
    key, signature = ed25519_public_key(seed), ed25519_sign(seed, message)
    return bytes([SIGNED]) + pack_bytes(key) + pack_bytes(signature) + pack_bytes(message)


def verified_answer(raw: bytes) -> bytes:
    """Returns the challenge that a signed answer repeats, after checking the signature.

    Raises:
        InvalidInputError: the message is not a signed answer.
        IntegrityError: the signature is wrong.
    """
    reader = Reader(raw)
    if reader.integer() != SIGNED:
        raise InvalidInputError("a signed message must answer the challenge first")
    key, signature, message = reader.binary(), reader.binary(), reader.binary()
    if not is_public_key(key) or len(signature) != SIGNATURE_BYTES:
        raise InvalidInputError("a signed message has a malformed key or signature")
    try:
        nacl.bindings.crypto_sign_open(signature + message, key[1:])
    except CryptoError:
        raise IntegrityError("the signature of a message does not match") from None
    inner = Reader(message)
    if inner.integer() != _ANSWER:
        raise InvalidInputError("a signed message must answer the challenge first")
    return inner.binary()


def storage_location(multihash: bytes, url: str, expiry_s: int, seed: bytes) -> bytes:
    """Returns the signed record that says where a blob can be downloaded.

    Args:
        multihash: the bytes that were asked for, 33 of them: ``1e`` or ``1f``, and the hash.
        url: address of the blob.
        expiry_s: Unix time in seconds until which the record counts.
        seed: ed25519 seed of this node, 32 bytes.
    """
    part = url.encode()
    record = bytes([_LOCATION]) + multihash + bytes([FILE_LOCATION]) + expiry_s.to_bytes(4, "little")
    record += b"\x01" + len(part).to_bytes(2, "little") + part + b"\x00"
    return record + ed25519_public_key(seed) + ed25519_sign(seed, record)
