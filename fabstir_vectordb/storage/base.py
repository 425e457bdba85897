"""The contract of a store, and the checks that all stores share.

A store keeps immutable blobs under their BLAKE3 hash and signed pointers under their public key. Stores are not
trusted: every fetched blob is hashed and every signature is checked, so a wrong byte is an error and never a result.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

from fabstir_vectordb.errors import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from fabstir_vectordb.s5.cid import BLOB_BYTES_MAX, HASH_BYTES, BlobId, blake3_hash
from fabstir_vectordb.s5.registry import ENTRY_BYTES_MAX, REVISION_MAX, RegistryEntry, is_public_key

__all__ = [
    "BLOB_BYTES_MAX",
    "ENTRY_BYTES_MAX",
    "IO_THREADS",
    "UPLOAD_BYTES_MAX",
    "AtMost",
    "Store",
    "blob_details",
    "check_blob",
    "check_blob_size",
    "check_fetch",
    "check_hash",
    "check_new_entry",
    "check_pointer_advances",
    "check_public_key",
    "check_stored_size",
    "check_upload_size",
    "damaged_blob",
    "exact_size",
    "missing_blob",
    "parse_pointer",
    "size_max",
    "storage_error",
]

#: Most bytes of one upload to an S5 node: 32 MiB. No network store accepts a larger blob.
UPLOAD_BYTES_MAX: Final = 32 * 1024 * 1024

# Worker threads the stores of one kind use at once within one event loop.
IO_THREADS: Final = 8


class AtMost(NamedTuple):
    """The bound of a fetch whose exact size is unknown: the largest size of a blob of this kind."""

    size: int


class Store(Protocol):
    """Blobs by hash and pointers by public key; usable from asyncio and trio, and from several event loops.

    Every call may raise StorageError when the medium fails; a call over a network also S5Error and
    OperationTimeoutError. Cancellation leaves no incomplete blob or pointer. A local store first completes a call that
    has started. After a cancelled call over a network, the blob or pointer may be stored or not.
    """

    @property
    def uri(self) -> str:
        """The address ``open_store`` opens this store with."""
        ...

    async def put(self, data: bytes | bytearray | memoryview) -> BlobId:
        """Store a blob. Storing it again is allowed, and repairs a damaged copy.

        Args:
            data: fewer than 2^31 bytes, which must not change during the call.

        Returns:
            The blob's identifier; the blob is durable when the call returns.

        Raises:
            InvalidInputError: the blob is too large.
        """
        ...

    async def get(self, hash: bytes, size: int | AtMost) -> bytes:
        """Return a blob after checking its hash. The read never takes more memory than the size or its bound.

        Args:
            hash: BLAKE3-256, 32 bytes.
            size: size in bytes, or the bound of an unknown size; a larger blob is refused before it is read.

        Returns:
            Exactly the bytes with that hash.

        Raises:
            NotFoundError: there is no such blob.
            IntegrityError: the stored bytes have another hash or size, or are not a regular file.
            InvalidInputError: the hash is malformed, or the size out of range.
        """
        ...

    async def has(self, hash: bytes) -> bool:
        """Return whether a blob is stored under the hash; its bytes are not read or checked."""
        ...

    async def delete(self, hash: bytes) -> bool:
        """Delete a blob, if the store allows it; return whether a blob was deleted."""
        ...

    async def get_pointer(self, public_key: bytes) -> RegistryEntry | None:
        """Return the current entry of a pointer after checking its signature, or ``None`` if the pointer is not set.

        Args:
            public_key: 33 bytes.

        Raises:
            IntegrityError: the stored bytes are not an entry that this key signed.
        """
        ...

    async def set_pointer(self, entry: RegistryEntry) -> None:
        """Move a pointer, if the entry's revision is higher than the stored revision.

        A damaged stored entry is treated as absent, so that its owner can repair it. An attacker gains nothing by this:
        whoever can damage the entry can also delete it.

        Args:
            entry: signed, with a revision below 2^31.

        Raises:
            ConflictError: the revision is not higher; details has ``stored_revision``.
            IntegrityError: the signature is wrong.
            InvalidInputError: the revision is 2^31 or more.
        """
        ...

    async def aclose(self) -> None:
        """Release the store's resources; calling it again does nothing."""
        ...


def exact_size(size: int | AtMost) -> int | None:
    """Return the exact size of a blob, or ``None`` if only its bound is known."""
    return None if isinstance(size, AtMost) else size


def size_max(size: int | AtMost) -> int:
    """Return the largest size in bytes that a blob may have."""
    return size.size if isinstance(size, AtMost) else size


def blob_details(hash: bytes, size: int | AtMost) -> dict[str, Any]:
    """Return the error details that name a blob: ``hash`` (hex), and ``cid`` if the size is known."""
    details: dict[str, Any] = {"hash": hash.hex()}
    exact = exact_size(size)
    if exact is not None:
        details["cid"] = str(BlobId(hash, exact))
    return details


def check_fetch(hash: bytes, size: int | AtMost) -> None:
    """Check the arguments of a fetch.

    Raises:
        InvalidInputError: the hash is malformed, or the size is out of range.
    """
    check_hash(hash)
    most = size_max(size)
    if type(most) is not int or not 0 <= most <= BLOB_BYTES_MAX:
        raise InvalidInputError(
            f"The size of a blob must be an integer from 0 to {BLOB_BYTES_MAX} bytes, or AtMost of one",
            details={"limit": BLOB_BYTES_MAX},
        )


def check_hash(hash: bytes) -> None:
    """Raise InvalidInputError unless ``hash`` is 32 bytes."""
    if not isinstance(hash, bytes) or len(hash) != HASH_BYTES:
        raise InvalidInputError(f"The hash of a blob must be {HASH_BYTES} bytes (BLAKE3-256)")


def check_public_key(public_key: bytes) -> None:
    """Raise InvalidInputError unless ``public_key`` is the byte ``ed`` and 32 more bytes."""
    if not isinstance(public_key, bytes) or not is_public_key(public_key):
        raise InvalidInputError("The public key of a pointer must be 33 bytes: ed and an ed25519 public key")


def check_blob_size(size: int) -> None:
    """Raise InvalidInputError if a blob is larger than S5.js can encode in a CID."""
    if size > BLOB_BYTES_MAX:
        raise InvalidInputError(
            f"A blob has at most {BLOB_BYTES_MAX} bytes, got {size}",
            details={"limit": BLOB_BYTES_MAX, "actual": size},
        )


def check_stored_size(actual: int, hash: bytes, size: int | AtMost) -> None:
    """Check the size of a stored blob before it is read.

    Raises:
        IntegrityError: the size differs, or exceeds the bound.
    """
    exact = exact_size(size)
    if exact is not None and actual != exact:
        raise damaged_blob(hash, size, expected=exact, actual=actual)
    if actual > size_max(size):
        raise damaged_blob(hash, size, expected=f"at most {size_max(size)} bytes", actual=actual)


def check_blob(data: bytes, hash: bytes, size: int | AtMost, digest: bytes | None = None) -> bytes:
    """Return ``data`` if it is the requested blob.

    Args:
        data: the received bytes.
        hash, size: hash and size of the requested blob.
        digest: the hash of ``data``, if it is known already.

    Raises:
        IntegrityError: the hash or the size differs.
    """
    check_stored_size(len(data), hash, size)
    actual = blake3_hash(data) if digest is None else digest
    if actual != hash:
        raise damaged_blob(hash, size, expected=hash.hex(), actual=actual.hex())
    return data


def check_upload_size(size: int) -> None:
    """Raise InvalidInputError if a blob is too large for one upload to a node."""
    check_blob_size(size)
    if size > UPLOAD_BYTES_MAX:
        raise InvalidInputError(
            f"A node accepts at most {UPLOAD_BYTES_MAX} bytes in one upload, got {size}: "
            "use a smaller chunk_size, or a file: store",
            details={"limit": UPLOAD_BYTES_MAX, "actual": size},
        )


def damaged_blob(hash: bytes, size: int | AtMost, *, expected: object, actual: object) -> IntegrityError:
    """Return the error for a blob that does not match its identifier."""
    return IntegrityError(
        f"A stored blob is damaged: expected {expected}, got {actual}",
        details={**blob_details(hash, size), "expected": expected, "actual": actual},
    )


def missing_blob(hash: bytes, size: int | AtMost) -> NotFoundError:
    """Return the error for a missing blob."""
    details = blob_details(hash, size)
    return NotFoundError(f"Blob not found: this store has no {details.get('cid', details['hash'])}", details=details)


def parse_pointer(raw: bytes, public_key: bytes, where: str) -> RegistryEntry:
    """Read and verify a stored pointer.

    Args:
        raw: the serialised entry.
        public_key: the key it must belong to, 33 bytes.
        where: name of the entry's place, for the error.

    Raises:
        IntegrityError: the bytes are not an entry of that key, or its signature is wrong.
    """
    details = {"public_key": public_key.hex(), "where": where}
    try:
        entry = RegistryEntry.parse(raw)
        entry.verify()
    except IntegrityError as error:
        raise IntegrityError(
            f"The stored pointer {where} is damaged: {error.message}", details={**details, **error.details}
        ) from None
    if entry.public_key != public_key:
        raise IntegrityError(
            f"The stored pointer {where} belongs to another key",
            details={**details, "expected": public_key.hex(), "actual": entry.public_key.hex()},
        )
    return entry


def check_pointer_advances(stored: RegistryEntry | None, entry: RegistryEntry) -> None:
    """Apply the rule of S5 nodes: only a strictly higher revision replaces an entry.

    Raises:
        ConflictError: the revision is equal or lower.
    """
    if stored is not None and entry.revision <= stored.revision:
        raise ConflictError(
            f"Revision number too low: the pointer is at {stored.revision}, got {entry.revision}",
            details={
                "public_key": entry.public_key.hex(),
                "stored_revision": stored.revision,
                "revision": entry.revision,
            },
        )


def check_new_entry(entry: RegistryEntry, revision_max: int = REVISION_MAX) -> None:
    """Check an entry before it is stored.

    Args:
        entry: the entry.
        revision_max: highest accepted revision.

    Raises:
        IntegrityError: the signature does not match.
        InvalidInputError: the revision is too high. S5.js cannot handle revisions of 2^31 or more.
    """
    if entry.revision > revision_max:
        raise InvalidInputError(
            f"A revision is at most {revision_max}, got {entry.revision}",
            details={"limit": revision_max, "actual": entry.revision},
        )
    entry.verify()


def storage_error(error: OSError, doing: str) -> StorageError:
    """Return the StorageError for a failed system call, with its errno as an attribute and in the details.

    Args:
        error: the system's error.
        doing: the operation, for example ``"write /data/blobs/ab"``.
    """
    reason = error.strerror or type(error).__name__
    result = StorageError(f"Could not {doing}: {reason}", details={"errno": error.errno})
    result.errno = error.errno
    result.strerror = error.strerror
    return result
