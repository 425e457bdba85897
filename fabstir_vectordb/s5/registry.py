"""Signed, versioned pointers of S5 (registry entries, generation A).

Serialised: ``07`` ‖ public key(33) ‖ revision u64 LE ‖ length(1) ‖ data ‖ signature(64). The signature covers these
bytes without the public key and the signature. Every node keeps the entry with the highest revision.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Final

import nacl.bindings
from nacl.exceptions import CryptoError

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import IntegrityError, InvalidInputError
from fabstir_vectordb.s5.base64url import from_base64url, to_base64url
from fabstir_vectordb.s5.cid import HASH_BLAKE3, HASH_BYTES, is_multihash
from fabstir_vectordb.s5.keys import SIGNATURE_BYTES, ed25519_public_key, ed25519_sign

__all__ = [
    "ENTRY_BYTES_MAX",
    "REVISION_MAX",
    "RegistryEntry",
    "is_public_key",
    "pointer_data",
    "pointer_hash",
]

# S5.js signs and checks revisions of 2^31 or more wrongly, so stores refuse them.
REVISION_MAX: Final = 2**31 - 1
# The specification says 48; every implementation accepts 64.
DATA_BYTES_MAX: Final = 64

_TYPE: Final = b"\x07"
_PUBLIC_KEY_BYTES: Final = 33
_ED25519_CODE: Final = 0xED
_REVISION_BYTES: Final = 8
_FIXED_BYTES: Final = 1 + _PUBLIC_KEY_BYTES + _REVISION_BYTES + 1 + SIGNATURE_BYTES
ENTRY_BYTES_MAX: Final = _FIXED_BYTES + DATA_BYTES_MAX


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """One signed pointer.

    Attributes:
        public_key: name of the pointer, 33 bytes: ``ed`` and the ed25519 public key.
        revision: number of the change, 0 to 2^64 - 1; each change has a higher one.
        data: target of the pointer, at most 64 bytes.
        signature: 64 bytes.
    """

    public_key: bytes
    revision: int
    data: bytes
    signature: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not is_public_key(self.public_key):
            raise InvalidInputError("The public key of a registry entry must be ed and 32 bytes")
        if not 0 <= self.revision < 2**64:
            raise InvalidInputError(f"The revision of a registry entry must fit 64 bits, got {self.revision}")
        if len(self.data) > DATA_BYTES_MAX:
            raise InvalidInputError(f"A registry entry holds at most {DATA_BYTES_MAX} bytes, got {len(self.data)}")
        if len(self.signature) != SIGNATURE_BYTES:
            raise InvalidInputError("The signature of a registry entry must be 64 bytes")

    @classmethod
    def sign(cls, write_seed: bytes, revision: int, data: bytes) -> RegistryEntry:
        """Make and sign an entry.

        Args:
            write_seed: ed25519 seed, 32 bytes.
            revision: the last revision plus 1, or 1 for the first entry.
            data: at most 64 bytes.

        Returns:
            The signed entry.

        Raises:
            InvalidInputError: the revision or the size of the data is out of range.
        """
        unsigned = cls(ed25519_public_key(write_seed), revision, data, bytes(SIGNATURE_BYTES))
        signature = ed25519_sign(write_seed, unsigned.signed_bytes())
        return cls(unsigned.public_key, revision, data, signature)

    @classmethod
    def parse(cls, raw: bytes) -> RegistryEntry:
        """Read a serialised entry; ``verify`` is a separate step.

        Raises:
            IntegrityError: the bytes are not an entry.
        """
        data_start = 1 + _PUBLIC_KEY_BYTES + _REVISION_BYTES + 1
        if len(raw) < _FIXED_BYTES or raw[:1] != _TYPE or raw[1] != _ED25519_CODE:
            raise IntegrityError("Not a registry entry", details={"actual": len(raw)})
        length = raw[data_start - 1]
        if length > DATA_BYTES_MAX or len(raw) != _FIXED_BYTES + length:
            raise IntegrityError(
                f"A registry entry with {length} bytes of data cannot have {len(raw)} bytes",
                details={"expected": _FIXED_BYTES + length, "actual": len(raw)},
            )
        return cls(
            public_key=bytes(raw[1 : 1 + _PUBLIC_KEY_BYTES]),
            revision=int.from_bytes(raw[1 + _PUBLIC_KEY_BYTES : data_start - 1], "little"),
            data=bytes(raw[data_start : data_start + length]),
            signature=bytes(raw[data_start + length :]),
        )

    @classmethod
    def from_portal_json(cls, document: object) -> RegistryEntry:
        """Read an entry from a portal's JSON; ``verify`` is a separate step.

        Args:
            document: ``{"pk", "revision", "data", "signature"}``, bytes as base64url.

        Raises:
            IntegrityError: the document is not an entry.
        """
        try:
            if not isinstance(document, Mapping):
                raise TypeError
            revision = document["revision"]
            if not isinstance(revision, int) or isinstance(revision, bool):
                raise TypeError
            return cls(
                public_key=_from_base64url(document["pk"]),
                revision=revision,
                data=_from_base64url(document["data"]),
                signature=_from_base64url(document["signature"]),
            )
        except (KeyError, TypeError, ValueError, binascii.Error, InvalidInputError):
            raise IntegrityError("Not the JSON of a registry entry") from None

    def to_portal_json(self) -> dict[str, Any]:
        """Return the entry as the JSON document that a portal accepts."""
        return {
            "pk": to_base64url(self.public_key),
            "revision": self.revision,
            "data": to_base64url(self.data),
            "signature": to_base64url(self.signature),
        }

    def signed_bytes(self) -> bytes:
        """Return the bytes that the signature covers: ``07`` ‖ revision ‖ length ‖ data."""
        return _TYPE + self._revision_and_data()

    def serialize(self) -> bytes:
        """Return the serialised entry."""
        return _TYPE + self.public_key + self._revision_and_data() + self.signature

    def verify(self) -> None:
        """Check the signature.

        Raises:
            IntegrityError: the entry was not signed by the owner of its public key.
        """
        try:
            nacl.bindings.crypto_sign_open(self.signature + self.signed_bytes(), self.public_key[1:])
        except CryptoError:
            raise IntegrityError(
                "The signature of a registry entry does not match",
                details={"public_key": self.public_key.hex(), "revision": self.revision},
            ) from None

    def _revision_and_data(self) -> bytes:
        return self.revision.to_bytes(_REVISION_BYTES, "little") + bytes([len(self.data)]) + self.data


def is_public_key(raw: bytes) -> bool:
    """Return whether the bytes are the 33 bytes of a registry key, ``ed`` and an ed25519 public key."""
    return len(raw) == _PUBLIC_KEY_BYTES and raw[0] == _ED25519_CODE


def pointer_data(hash: bytes) -> bytes:
    """Return ``1e`` ‖ hash, the data of an entry that points to a blob."""
    if len(hash) != HASH_BYTES:
        raise InvalidInputError(f"A BLAKE3 hash has {HASH_BYTES} bytes, got {len(hash)}")
    return bytes([HASH_BLAKE3]) + hash


def pointer_hash(data: bytes) -> bytes:
    """Return the hash of the blob to which an entry points.

    Args:
        data: ``1e H`` or ``1f H``, or an older form with two bytes before it (``5b 82 1e H S``, ``5a 26 1f H S``).

    Returns:
        32 bytes.

    Raises:
        IntegrityError: the data does not point to a blob.
    """
    if data[:1] not in (b"\x1e", b"\x1f"):
        data = data[2 : 3 + HASH_BYTES]
    if not is_multihash(data):
        raise IntegrityError("A registry entry does not point to a blob", details={"actual": len(data)})
    return data[1:]


def _from_base64url(text: object) -> bytes:
    if not isinstance(text, str) or len(text) > 256:
        raise TypeError
    return from_base64url(text.rstrip("="))
