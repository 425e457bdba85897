"""BLAKE3 hashes and the identifiers of blobs. The CID that users see is the blob identifier in base64url, ``uW4Ie…``.

Layouts, with H the BLAKE3-256 hash and S the size as little-endian bytes without trailing zeros::

    blob identifier      5b 82 1e H S          written by this package; 1f in place of 1e is the older code of BLAKE3
    old raw CID          26 1f H S             sent by portals, sometimes with 1e in place of 1f
    encrypted blob CID   ae a6 P2 1f HC KEY(32) PAD(u32) CID
    share CID            5d 5e a6 KEY(32) 1f H

Text is multibase: ``f`` base16, ``b`` base32, ``z`` base58btc, ``u`` base64url. CIDs are compared by their bytes, never
by their text, as programs write the same CID in different bases.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import field
from typing import Final, Literal, TypeAlias

from blake3 import blake3

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.s5.base64url import to_base64url

__all__ = [
    "BLOB_BYTES_MAX",
    "HASH_BYTES",
    "Base",
    "BlobId",
    "EncryptedBlobCid",
    "ShareCid",
    "blake3_hash",
    "check_share_cid",
    "is_multihash",
    "multibase_decode",
    "multibase_encode",
    "parse_cid",
]

Base: TypeAlias = Literal["base16", "base32", "base58btc", "base64url"]

HASH_BYTES: Final = 32
# S5.js writes wrong sizes from 2^31 up, so no blob may reach it.
BLOB_BYTES_MAX: Final = 2**31 - 1

_SIZE_BYTES_MAX: Final = 8
# The longest known text (an encrypted blob CID in base16) has 231 characters. Decoding base58 takes quadratic time.
_TEXT_CHARS_MAX: Final = 512

_BLOB_MAGIC: Final = b"\x5b\x82"
_OLD_RAW: Final = 0x26
HASH_BLAKE3: Final = 0x1E
HASH_BLAKE3_OLD: Final = 0x1F
_HASH_CODES: Final = (HASH_BLAKE3, HASH_BLAKE3_OLD)
_ENCRYPTED_BLOB: Final = 0xAE
_SHARE_MAGIC: Final = b"\x5d\x5e\xa6"
_CIPHER_XCHACHA20_POLY1305: Final = 0xA6
_CHUNK_LOG2: Final = 18
_ENCRYPTED_HEADER_BYTES: Final = 4 + HASH_BYTES + 32 + 4

_BASE58_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_VALUES: Final = {character: value for value, character in enumerate(_BASE58_ALPHABET)}


def blake3_hash(data: bytes | bytearray | memoryview) -> bytes:
    """Return the BLAKE3-256 hash of ``data``.

    Uses one thread: it hashes several GB/s, more than any store delivers, and leaves the other cores to the host. The
    GIL is released, except for tiny inputs.

    Args:
        data: the bytes, any size; a contiguous view of larger items is hashed as its bytes.

    Returns:
        32 bytes.
    """
    return blake3(memoryview(data).cast("B")).digest()


EMPTY_HASH: Final = blake3_hash(b"")


@dataclass(frozen=True, slots=True)
class BlobId:
    """The identifier of one blob: hash and size.

    Attributes:
        hash: BLAKE3-256 of the whole blob, 32 bytes.
        size: size in bytes, 0 to 2^64 - 1.
    """

    hash: bytes
    size: int

    def __post_init__(self) -> None:
        if not isinstance(self.hash, bytes) or len(self.hash) != HASH_BYTES:
            raise InvalidInputError("The hash of a blob identifier must be 32 bytes")
        if not 0 <= self.size < 2 ** (8 * _SIZE_BYTES_MAX):
            raise InvalidInputError(f"The size of a blob must be 0 to 2^64 - 1, got {self.size}")

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> BlobId:
        """Return the identifier of ``data``."""
        return cls(blake3_hash(data), memoryview(data).nbytes)

    @classmethod
    def from_bytes(cls, raw: bytes) -> BlobId:
        """Read a blob identifier or an old raw CID.

        Args:
            raw: ``5b 82 1e H S`` or ``26 1f H S``; 1e and 1f are equivalent, a missing S means size 0.

        Returns:
            The identifier.

        Raises:
            InvalidInputError: the bytes are not a CID of either form.
        """
        if raw[:2] == _BLOB_MAGIC:
            prefix = 3
        elif raw[:1] == bytes([_OLD_RAW]):
            prefix = 2
        else:
            raise InvalidInputError(f"Not the CID of a blob: it starts with byte {raw[:1].hex() or 'nothing'}")
        if len(raw) < prefix or raw[prefix - 1] not in _HASH_CODES:
            raise InvalidInputError("Not the CID of a blob: its hash is not BLAKE3")
        hash_end = prefix + HASH_BYTES
        if not hash_end <= len(raw) <= hash_end + _SIZE_BYTES_MAX:
            raise InvalidInputError(
                f"Not the CID of a blob: {len(raw)} bytes, expected {hash_end} to {hash_end + _SIZE_BYTES_MAX}"
            )
        return cls(bytes(raw[prefix:hash_end]), int.from_bytes(raw[hash_end:], "little"))

    @classmethod
    def parse(cls, text: str) -> BlobId:
        """Read the text form of a blob identifier or an old raw CID in any of the four bases.

        Args:
            text: for example ``uW4Ie…``, ``blob…`` or a portal's ``z…``.

        Returns:
            The identifier.

        Raises:
            InvalidInputError: the text is not such a CID.
        """
        return cls.from_bytes(multibase_decode(text))

    @property
    def known_size(self) -> int | None:
        """The size, or ``None`` if the size is 0 and the hash is not that of the empty blob.

        Such a CID comes from a writer that did not know the size: S5.js asks portals for ``5b 82 1f H 00``, whatever
        the size.
        """
        return None if self.size == 0 and self.hash != EMPTY_HASH else self.size

    def to_bytes(self) -> bytes:
        """Return ``5b 82 1e H S``; size 0 is one zero byte, as in S5.js."""
        return _BLOB_MAGIC + bytes([HASH_BLAKE3]) + self.hash + _encode_size(self.size)

    def to_old_bytes(self) -> bytes:
        """Return the old raw CID ``26 1f H S``, the only form that the Dart portal reads."""
        return bytes([_OLD_RAW, HASH_BLAKE3_OLD]) + self.hash + _encode_size(self.size)

    def to_text(self, base: Base = "base64url") -> str:
        """Return the text form in the given base."""
        return multibase_encode(self.to_bytes(), base)

    def __str__(self) -> str:
        return self.to_text()


@dataclass(frozen=True, slots=True)
class EncryptedBlobCid:
    """The CID of a statically encrypted blob, with the key: enough to fetch and decrypt the blob.

    Attributes:
        ciphertext_hash: BLAKE3-256 of the encrypted blob, 32 bytes.
        key: the blob's key, 32 bytes, a secret.
        padding: zero bytes appended to the last chunk before encryption.
        plaintext: identifier of the plaintext.
    """

    ciphertext_hash: bytes
    key: bytes = field(repr=False)
    padding: int
    plaintext: BlobId

    @classmethod
    def from_bytes(cls, raw: bytes) -> EncryptedBlobCid:
        """Read ``ae a6 12 1f HC KEY PAD CID``. 1e is accepted in place of 1f, and CID may have either form.

        Raises:
            InvalidInputError: the bytes are not such a CID. The message shows none of them, as they include the key.
        """
        header = bytes([_ENCRYPTED_BLOB, _CIPHER_XCHACHA20_POLY1305, _CHUNK_LOG2])
        if len(raw) < _ENCRYPTED_HEADER_BYTES or raw[:3] != header or raw[3] not in _HASH_CODES:
            raise InvalidInputError("Not the CID of an encrypted blob")
        return cls(
            ciphertext_hash=raw[4:36],
            key=raw[36:68],
            padding=int.from_bytes(raw[68:72], "little"),
            plaintext=BlobId.from_bytes(raw[72:]),
        )

    def to_bytes(self, *, old: bool = False) -> bytes:
        """Return the bytes; with ``old``, the hash code is ``1f`` and the CID inside is an old raw CID."""
        code = HASH_BLAKE3_OLD if old else HASH_BLAKE3
        return b"".join(
            (
                bytes([_ENCRYPTED_BLOB, _CIPHER_XCHACHA20_POLY1305, _CHUNK_LOG2, code]),
                self.ciphertext_hash,
                self.key,
                self.padding.to_bytes(4, "little"),
                self.plaintext.to_old_bytes() if old else self.plaintext.to_bytes(),
            )
        )


@dataclass(frozen=True, slots=True)
class ShareCid:
    """The hash and key of one encrypted root. It opens that version without the phrase, so it is a secret.

    Attributes:
        key: the root's encryption key, 32 bytes.
        hash: BLAKE3-256 of the root blob, 32 bytes.
    """

    key: bytes = field(repr=False)
    hash: bytes

    @classmethod
    def from_bytes(cls, raw: bytes) -> ShareCid:
        """Read ``5d 5e a6 KEY 1f H``; 1e is accepted in place of 1f.

        Raises:
            InvalidInputError: the bytes are not such a CID. The message shows none of them, as they include the key.
        """
        if len(raw) != 68 or raw[:3] != _SHARE_MAGIC or raw[35] not in _HASH_CODES:
            raise InvalidInputError("Not the share CID of an index")
        return cls(key=raw[3:35], hash=raw[36:])

    def to_bytes(self) -> bytes:
        """Return ``5d 5e a6 KEY 1f H``, which S5.js opens as an encrypted directory."""
        return _SHARE_MAGIC + self.key + bytes([HASH_BLAKE3_OLD]) + self.hash

    def reveal(self) -> str:
        """Return the text form, ``uXV6m…``, which contains the key. ``str`` does not show it, so that no log does."""
        return multibase_encode(self.to_bytes())


def parse_cid(text: str) -> BlobId | ShareCid:
    """Read the CID of a version: a blob identifier, an old raw CID or a share CID.

    Raises:
        InvalidInputError: the text is not such a CID. The message shows none of it, as it may be a secret.
    """
    raw = multibase_decode(text)
    return ShareCid.from_bytes(raw) if raw[:3] == _SHARE_MAGIC else BlobId.from_bytes(raw)


def check_share_cid(text: object) -> None:
    """Refuses a text that is no share CID, without showing it.

    Raises:
        InvalidInputError: the text is no CID, or the CID of a version.
    """
    if not isinstance(parse_cid(text), ShareCid):  # type: ignore[arg-type]  # it refuses what is no string
        raise InvalidInputError("this is the CID of a version, which needs its owner's phrase: give a share CID")


def is_multihash(raw: bytes) -> bool:
    """Return whether the bytes are the 33 bytes of a BLAKE3 multihash, ``1e`` or ``1f`` and the hash."""
    return len(raw) == 1 + HASH_BYTES and raw[0] in _HASH_CODES


def multibase_encode(raw: bytes, base: Base = "base64url") -> str:
    """Return ``raw`` as multibase text without padding.

    Args:
        raw: any bytes.
        base: one of the four bases of S5.

    Returns:
        The prefix character followed by the digits.

    Raises:
        InvalidInputError: the base is unknown.
    """
    match base:
        case "base16":
            return "f" + raw.hex()
        case "base32":
            return "b" + base64.b32encode(raw).decode().rstrip("=").lower()
        case "base58btc":
            return "z" + _base58_encode(raw)
        case "base64url":
            return "u" + to_base64url(raw)
    raise InvalidInputError(f"Unknown base {base!r}: use base16, base32, base58btc or base64url")


def multibase_decode(text: str) -> bytes:
    """Read multibase text in base16, base32, base58btc or base64url.

    Upper case after ``b`` and ``f``, and ``=`` padding, are accepted, as in S5.js. Unused bits must be zero, so that a
    wrong last character is noticed.

    Args:
        text: prefix character and digits, at most 512 characters.

    Returns:
        The bytes.

    Raises:
        InvalidInputError: the text is not multibase in one of these four bases.
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"A CID is a string, got {type(text).__name__}")
    if len(text) > _TEXT_CHARS_MAX:
        raise InvalidInputError(f"A CID has at most {_TEXT_CHARS_MAX} characters, got {len(text)}")
    prefix, digits = text[:1], text[1:]
    if prefix == "f" and re.fullmatch(r"(?:[0-9a-f]{2})*", digits.lower(), re.ASCII):
        return bytes.fromhex(digits)
    if prefix == "b" and re.fullmatch(r"[a-z2-7]*=*", digits.lower(), re.ASCII):
        return _decode_padded(text, digits.rstrip("=").upper(), 8, base64.b32decode, base64.b32encode)
    if prefix == "u" and re.fullmatch(r"[A-Za-z0-9_-]*=*", digits, re.ASCII):
        stripped = digits.rstrip("=")
        return _decode_padded(text, stripped, 4, base64.urlsafe_b64decode, base64.urlsafe_b64encode)
    if prefix == "z" and all(character in _BASE58_VALUES for character in digits):
        return _base58_decode(digits)
    raise _not_multibase(text)


def _decode_padded(
    text: str,
    digits: str,
    group_chars: int,
    decode: Callable[[str], bytes],
    encode: Callable[[bytes], bytes],
) -> bytes:
    try:
        raw = decode(digits + "=" * (-len(digits) % group_chars))
    except (binascii.Error, ValueError):
        raise _not_multibase(text) from None
    if encode(raw).decode().rstrip("=") != digits:
        raise _not_multibase(text)
    return raw


def _not_multibase(text: str) -> InvalidInputError:
    # The text may be a pasted share CID or phrase, which is a secret; show its length only.
    return InvalidInputError(
        f"Not a CID: {len(text)} characters that are not base16 (f), base32 (b), base58 (z) or base64url (u)"
    )


def _base58_encode(raw: bytes) -> str:
    number = int.from_bytes(raw, "big")
    digits: list[str] = []
    while number:
        number, value = divmod(number, 58)
        digits.append(_BASE58_ALPHABET[value])
    zeros = len(raw) - len(raw.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(digits))


def _base58_decode(digits: str) -> bytes:
    number = 0
    for character in digits:
        number = number * 58 + _BASE58_VALUES[character]
    zeros = len(digits) - len(digits.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def _encode_size(size: int) -> bytes:
    return size.to_bytes(max(1, (size.bit_length() + 7) // 8), "little")
