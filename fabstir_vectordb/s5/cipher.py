"""S5's two blob encryptions, both XChaCha20-Poly1305 (IETF) without associated data.

Static blobs (parts): chunks of 256 KiB, chunk i encrypted under nonce i (24 bytes, little-endian), each followed by its
tag. The nonces restart at 0 for each blob, so a key must never encrypt two plaintexts; ``keys.part_key`` ensures this.
They are written without padding, the only form that round-trips in S5.js at all sizes. The padded form is read as well.

Mutable blobs (roots): ``8d 01`` ‖ nonce(24) ‖ AEAD(length u32 LE ‖ data ‖ zeros), padded to a size of `padded_size`.
"""

from __future__ import annotations

from typing import Final

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt as _aead_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt as _aead_encrypt,
)
from nacl.exceptions import CryptoError

from fabstir_vectordb.errors import DecryptionError, IntegrityError, InvalidInputError

__all__ = [
    "CHUNK_BYTES",
    "MUTABLE_BLOB_BYTES_MAX",
    "MUTABLE_BYTES_MAX",
    "TAG_BYTES",
    "decrypt_mutable",
    "decrypt_static",
    "encrypt_mutable",
    "encrypt_static",
    "encrypted_size",
    "is_mutable",
    "padded_size",
]

CHUNK_BYTES: Final = 262_144
TAG_BYTES: Final = 16
NONCE_BYTES: Final = 24
# "Maximum size of a mutable blob" in the S5 specification, 1 MiB of plaintext.
MUTABLE_BYTES_MAX: Final = 2**20

_MUTABLE_HEADER: Final = b"\x8d\x01"
_LENGTH_BYTES: Final = 4
_MUTABLE_OVERHEAD: Final = len(_MUTABLE_HEADER) + NONCE_BYTES + TAG_BYTES + _LENGTH_BYTES
# S5.js encrypts an empty padded blob under this nonce.
_EMPTY_NONCE: Final = b"\xff" * NONCE_BYTES


def encrypt_static(key: bytes, data: bytes | bytearray | memoryview) -> bytes:
    """Encrypt a static blob in the unpadded form.

    Args:
        key: 32 bytes, never used for other data.
        data: the plaintext, any size.

    Returns:
        The ciphertext, longer by 16 bytes for each chunk of 256 KiB; empty for empty data.
    """
    view = memoryview(data).cast("B")
    return b"".join(
        _aead_encrypt(bytes(view[start : start + CHUNK_BYTES]), None, _chunk_nonce(index), key)
        for index, start in enumerate(range(0, len(view), CHUNK_BYTES))
    )


def encrypted_size(size: int) -> int:
    """Return the size in bytes of the unpadded static ciphertext of ``size`` bytes."""
    return size + TAG_BYTES * -(-size // CHUNK_BYTES)


def decrypt_static(key: bytes, blob: bytes | bytearray | memoryview, size: int) -> bytes:
    """Decrypt a static blob, padded or not.

    Args:
        key: 32 bytes.
        blob: the ciphertext.
        size: size of the plaintext in bytes.

    Returns:
        Exactly ``size`` bytes.

    Raises:
        IntegrityError: the ciphertext cannot hold a plaintext of that size, or its padding is not zero.
        DecryptionError: a tag does not match: the key is wrong, or the bytes changed.
    """
    view = memoryview(blob).cast("B")
    if size == 0 and len(view) == 0:
        return b""
    chunks = max(1, -(-size // CHUNK_BYTES))
    padding = len(view) - size - TAG_BYTES * chunks
    # S5.js pads by at most one chunk. For a size that is an exact multiple it writes an over-long last chunk, which
    # this function can read.
    if size < 0 or not 0 <= padding <= CHUNK_BYTES:
        raise IntegrityError(
            f"A ciphertext of {len(view)} bytes cannot hold {size} bytes",
            details={"expected": encrypted_size(max(size, 0)), "actual": len(view)},
        )
    step = CHUNK_BYTES + TAG_BYTES
    pieces: list[bytes] = []
    for index in range(chunks):
        end = (index + 1) * step if index < chunks - 1 else len(view)
        nonce = _chunk_nonce(index) if size else _EMPTY_NONCE
        try:
            pieces.append(_aead_decrypt(bytes(view[index * step : end]), None, nonce, key))
        except CryptoError:
            raise DecryptionError("Wrong key, or changed bytes: the tag of an encrypted blob does not match") from None
    plain = b"".join(pieces)
    if not padding:
        return plain
    if plain.count(0, size) != padding:
        raise IntegrityError("The padding of an encrypted blob is not zero")
    return plain[:size]


def encrypt_mutable(key: bytes, nonce: bytes, data: bytes | bytearray | memoryview) -> bytes:
    """Encrypt a mutable blob.

    Args:
        key: 32 bytes.
        nonce: 24 bytes, different for different data under one key.
        data: the plaintext, at most 1 MiB.

    Returns:
        The blob, whose size is one that ``padded_size`` returns.

    Raises:
        InvalidInputError: the data is too large.
    """
    size = memoryview(data).nbytes
    if size > MUTABLE_BYTES_MAX:
        raise InvalidInputError(
            f"A mutable blob holds at most {MUTABLE_BYTES_MAX} bytes, got {size}",
            details={"limit": MUTABLE_BYTES_MAX, "actual": size},
        )
    padding = padded_size(size + _MUTABLE_OVERHEAD) - size - _MUTABLE_OVERHEAD
    plain = b"".join((size.to_bytes(_LENGTH_BYTES, "little"), data, bytes(padding)))
    return _MUTABLE_HEADER + nonce + _aead_encrypt(plain, None, nonce, key)


def decrypt_mutable(key: bytes, blob: bytes | bytearray | memoryview) -> bytes:
    """Decrypt a mutable blob.

    Args:
        key: 32 bytes.
        blob: the whole blob.

    Returns:
        The plaintext.

    Raises:
        IntegrityError: the bytes are not a mutable blob of the only known version, or are too large.
        DecryptionError: the tag does not match: the key is wrong, or the bytes changed.
    """
    raw = bytes(blob)
    if not is_mutable(raw):
        raise IntegrityError(f"Not a mutable encrypted blob: it starts with {raw[:2].hex() or 'nothing'}")
    if not _MUTABLE_OVERHEAD <= len(raw) <= MUTABLE_BLOB_BYTES_MAX or len(raw) != padded_size(len(raw)):
        raise IntegrityError(f"A mutable encrypted blob cannot have {len(raw)} bytes", details={"actual": len(raw)})
    header = len(_MUTABLE_HEADER)
    nonce = raw[header : header + NONCE_BYTES]
    try:
        plain = _aead_decrypt(raw[header + NONCE_BYTES :], None, nonce, key)
    except CryptoError:
        raise DecryptionError("Wrong key, or changed bytes: the tag of a mutable blob does not match") from None
    size = int.from_bytes(plain[:_LENGTH_BYTES], "little")
    if size > len(plain) - _LENGTH_BYTES or size > MUTABLE_BYTES_MAX:
        raise IntegrityError(
            f"A mutable encrypted blob claims {size} bytes and holds {len(plain) - _LENGTH_BYTES}",
            details={"expected": size, "actual": len(plain) - _LENGTH_BYTES},
        )
    return plain[_LENGTH_BYTES : _LENGTH_BYTES + size]


def is_mutable(blob: bytes | bytearray | memoryview) -> bool:
    """Return whether the bytes start with the header of a mutable encrypted blob."""
    return bytes(memoryview(blob)[: len(_MUTABLE_HEADER)]) == _MUTABLE_HEADER


def padded_size(size: int) -> int:
    """Return the size to which S5 pads ``size`` bytes.

    It is the next multiple of 4 KiB · 2^k, for the smallest k with size ≤ 80 KiB · 2^k.
    """
    k = 0
    while size > 80 * 1024 << k:
        k += 1
    block = 4096 << k
    return -(-size // block) * block


#: Most bytes of a stored mutable blob.
MUTABLE_BLOB_BYTES_MAX: Final = padded_size(MUTABLE_BYTES_MAX + _MUTABLE_OVERHEAD)


def _chunk_nonce(index: int) -> bytes:
    return index.to_bytes(NONCE_BYTES, "little")
