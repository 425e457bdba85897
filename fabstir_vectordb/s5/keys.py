"""Derivation of every key of an S5 identity from 16 bytes of entropy (generation A, as in S5.js).

::

    identity seed = BLAKE3(entropy)          main = derive_int(identity seed, 0)
    public  = derive_int(main, 1)            private = derive_int(main, 64)
    sub-seed = derive_int(derive_int(public or private, 0), number)        the 0 is the key rotation index
    private: 65 storage accounts, 66 hidden DB, 67 file system, …    public: 2 signing, 3 encryption, …

The keys of an index come from its path in the hidden DB: its encryption key, and the key that signs its pointer. S5
itself seals the path's blobs with the encryption key, so that is all that this key does. Part keys, nonces and
share keys come from three other keys, which BLAKE3's derive_key mode makes of it, each under a context of its own.
"""

from __future__ import annotations

from dataclasses import field
from typing import Final

import nacl.bindings
from blake3 import blake3

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError, SessionError
from fabstir_vectordb.s5.cid import blake3_hash, multibase_encode
from fabstir_vectordb.s5.cipher import NONCE_BYTES

__all__ = [
    "DirectoryKeys",
    "Identity",
    "PathKeys",
    "derive_int",
    "derive_str",
    "ed25519_public_key",
    "ed25519_sign",
    "keyed_hash",
    "part_key",
    "portal_challenge_response",
    "root_nonce",
    "shard_key",
    "share_key",
]

KEY_BYTES: Final = 32

_ED25519_CODE: Final = b"\xed"
SIGNATURE_BYTES: Final = 64
_PUBLIC_SUB_SEEDS: Final = range(2, 7)
_PRIVATE_SUB_SEEDS: Final = (*range(65, 70), 127)
_ROTATION: Final = 0
_ACCOUNTS: Final = 65
_HIDDEN_DB: Final = 66
_FILE_SYSTEM: Final = 67
_SHARD_CONTEXT: Final = "fabstir-vectordb 2026-11-26 key of a shard of a collection"

# Contexts of derive_key. BLAKE3 asks for fixed texts that no other program uses: name, date, purpose.
_PART_KEYS: Final = "fabstir_vectordb 2026-11-26 part keys"
_NONCES: Final = "fabstir_vectordb 2026-11-26 nonces"
_SHARE_KEYS: Final = "fabstir_vectordb 2026-11-26 share keys"


def derive_int(base: bytes | bytearray, tweak: int) -> bytes:
    """Return BLAKE3(base ‖ tweak as 32 little-endian bytes), S5's derivation by number."""
    return blake3_hash(bytes(base) + tweak.to_bytes(32, "little"))


def derive_str(base: bytes | bytearray, tweak: str) -> bytes:
    """Return BLAKE3(base ‖ BLAKE3(UTF-8 of tweak)), S5's derivation by name."""
    return blake3_hash(bytes(base) + blake3_hash(tweak.encode("utf-8")))


def keyed_hash(key: bytes, message: bytes | bytearray | memoryview) -> bytes:
    """Return the BLAKE3 of ``message`` in keyed mode.

    Args:
        key: 32 bytes.
        message: any size.

    Returns:
        32 bytes.
    """
    return blake3(memoryview(message).cast("B"), key=key).digest()


def _derived_key(key: bytes, context: str) -> bytes:
    """Return the key of one purpose: BLAKE3 of ``key`` in derive_key mode, 32 bytes."""
    return blake3(key, derive_key_context=context).digest()


def part_key(root_key: bytes, stored_plain: bytes | bytearray | memoryview) -> bytes:
    """Return the key of one part: a keyed BLAKE3 of exactly the bytes given to the cipher.

    The same bytes give the same ciphertext, so an unchanged part is not uploaded again. No key ever encrypts two
    plaintexts, which the fixed nonces of static encryption require.

    Args:
        root_key: encryption key of the index, 32 bytes.
        stored_plain: the part after compression.

    Returns:
        32 bytes.
    """
    return keyed_hash(_derived_key(root_key, _PART_KEYS), stored_plain)


def root_nonce(key: bytes, plaintext: bytes | bytearray | memoryview) -> bytes:
    """Return the nonce of a root or a record: a keyed BLAKE3 of its plaintext, cut to 24 bytes.

    Equal content has an equal CID. Two different contents have the same nonce with a probability of 2^-192.

    Args:
        key: the key that seals it, 32 bytes.
        plaintext: the directory or the record.

    Returns:
        24 bytes.
    """
    return keyed_hash(_derived_key(key, _NONCES), plaintext)[:NONCE_BYTES]


def share_key(root_key: bytes, root_hash: bytes) -> bytes:
    """Return the key that encrypts the shared copy of one version's root.

    Args:
        root_key: encryption key of the index, 32 bytes. The share key does not reveal it.
        root_hash: BLAKE3 of the owner's stored root, 32 bytes.

    Returns:
        32 bytes, the same for the same version.
    """
    return keyed_hash(_derived_key(root_key, _SHARE_KEYS), root_hash)


def shard_key(root_key: bytes, collection: str, shard: int) -> bytes:
    """Return the key of one shard of a collection, from which `Identity.from_key` makes the shard's identity.

    BLAKE3's derive-key mode over root key ‖ shard number as 8 little-endian bytes ‖ UTF-8 of the name. A worker that
    has this key cannot compute the root key or the key of another shard.

    Args:
        root_key: encryption key of the collection's root index, 32 bytes.
        collection: index name of the root.
        shard: number of the shard; a collection never uses a number twice.

    Returns:
        32 bytes.
    """
    return blake3(
        root_key + shard.to_bytes(8, "little") + collection.encode("utf-8"), derive_key_context=_SHARD_CONTEXT
    ).digest()


def ed25519_public_key(seed: bytes) -> bytes:
    """Return the 33 bytes ``ed`` ‖ public key of an ed25519 seed of 32 bytes."""
    public_key, _ = nacl.bindings.crypto_sign_seed_keypair(seed)
    return _ED25519_CODE + public_key


def ed25519_sign(seed: bytes, message: bytes) -> bytes:
    """Return the 64-byte ed25519 signature of ``message``."""
    _, secret_key = nacl.bindings.crypto_sign_seed_keypair(seed)
    return nacl.bindings.crypto_sign(message, secret_key)[:SIGNATURE_BYTES]


@dataclass(frozen=True, slots=True)
class PathKeys:
    """The keys of one hidden-DB path.

    Attributes:
        encryption_key: key of the blobs to which the pointer leads, 32 bytes, a secret.
        write_seed: ed25519 seed that signs the pointer, 32 bytes, a secret.
        public_key: public key of the pointer, 33 bytes: ``ed`` and the ed25519 public key.
    """

    encryption_key: bytes = field(repr=False)
    write_seed: bytes = field(repr=False)
    public_key: bytes


@dataclass(frozen=True, slots=True)
class DirectoryKeys:
    """The keys of one directory of the S5 file system.

    Attributes:
        write_key: ed25519 seed of the directory's registry entry, 32 bytes, a secret.
        public_key: 33 bytes: ``ed`` and the ed25519 public key.
    """

    write_key: bytes = field(repr=False)
    public_key: bytes

    @classmethod
    def of(cls, write_key: bytes) -> DirectoryKeys:
        """Return the keys that belong to a write key."""
        return cls(write_key, ed25519_public_key(write_key))

    @property
    def encryption_key(self) -> bytes:
        """The key of an encrypted directory blob, 32 bytes; S5.js encrypts the root directory only."""
        return derive_int(self.write_key, 1)

    def child(self, name: str) -> DirectoryKeys:
        """Return the keys of the child directory ``name``."""
        return DirectoryKeys.of(derive_str(self.write_key, name))

    def cid_bytes(self) -> bytes:
        """Return the CID of this mutable encrypted directory, ``5d 5e a6 KEY ed PK``, which contains the key."""
        return b"\x5d\x5e\xa6" + self.encryption_key + self.public_key

    def write_uri(self) -> str:
        """Return ``fs5://write:…@…``, which gives full access to the directory."""
        user = multibase_encode(b"\0" + self.write_key, "base64url")
        return f"fs5://write:{user}@{multibase_encode(self.cid_bytes(), 'base32')}"


class Identity:
    """The keys of one S5 identity. It holds one secret, and derives each key on use.

    Args:
        entropy: 16 bytes, as ``phrase`` derives them.

    Raises:
        InvalidInputError: the entropy has another size.
    """

    __slots__ = ("_seed",)

    def __init__(self, entropy: bytes) -> None:
        if len(entropy) != 16:
            raise InvalidInputError(f"The entropy of an identity has 16 bytes, got {len(entropy)}")
        # `wipe` can overwrite a bytearray. The immutable copies made by a derivation cannot be overwritten.
        self._seed = bytearray(blake3_hash(entropy))

    @classmethod
    def from_key(cls, key: bytes) -> Identity:
        """Return the identity of a derived key, which no phrase has.

        Args:
            key: 32 bytes, as `shard_key` derives them; the identity seed.

        Raises:
            InvalidInputError: the key has another size.
        """
        if len(key) != KEY_BYTES:
            raise InvalidInputError(f"The key of an identity has {KEY_BYTES} bytes, got {len(key)}")
        self = object.__new__(cls)
        self._seed = bytearray(key)
        return self

    def __repr__(self) -> str:
        return f"<Identity{'' if self._seed else ' (wiped)'}>"

    def __reduce__(self) -> str:
        raise TypeError("An Identity is a secret and cannot be pickled")

    def wipe(self) -> None:
        """Overwrite the secret and drop it; calling it again does nothing."""
        self._seed[:] = bytes(len(self._seed))
        self._seed.clear()

    @property
    def identity_seed(self) -> bytes:
        """BLAKE3 of the entropy, 32 bytes.

        Raises:
            SessionError: the identity was wiped.
        """
        if not self._seed:
            raise SessionError("The keys of this session were wiped")
        return bytes(self._seed)

    @property
    def main_seed(self) -> bytes:
        """The main identity seed, 32 bytes."""
        return derive_int(self.identity_seed, 0)

    @property
    def public_seed(self) -> bytes:
        """The public identity seed, before key rotation, 32 bytes."""
        return derive_int(self.main_seed, 1)

    @property
    def private_seed(self) -> bytes:
        """The private data seed, before key rotation, 32 bytes."""
        return derive_int(self.main_seed, 64)

    def sub_seed(self, number: int) -> bytes:
        """Return one sub-seed, 32 bytes.

        Args:
            number: 2 signing, 3 encryption, 4 resolver links, 5 and 6 reserved; 65 storage accounts, 66 hidden DB,
                67 file system, 68 and 69 reserved, 127 extension.

        Raises:
            InvalidInputError: S5 has no such sub-seed.
        """
        if number in _PUBLIC_SUB_SEEDS:
            return derive_int(derive_int(self.public_seed, _ROTATION), number)
        if number in _PRIVATE_SUB_SEEDS:
            return derive_int(derive_int(self.private_seed, _ROTATION), number)
        raise InvalidInputError(f"S5 has no sub-seed {number}")

    def path_keys(self, path: str) -> PathKeys:
        """Return the keys of a hidden-DB path.

        Args:
            path: segments between slashes; white space around a segment and empty segments are ignored.

        Returns:
            Encryption key, signing seed and public key of the pointer.
        """
        key = self.path_key(path)
        write_seed = derive_int(key, 2)
        return PathKeys(
            encryption_key=derive_int(key, 3),
            write_seed=write_seed,
            public_key=ed25519_public_key(write_seed),
        )

    def path_key(self, path: str) -> bytes:
        """Return the parent of a hidden-DB path's keys, 32 bytes."""
        key = self.sub_seed(_HIDDEN_DB)
        for segment in path.split("/"):
            if name := segment.strip():
                key = derive_str(key, name)
        return derive_int(key, 1)

    def file_system_root(self) -> DirectoryKeys:
        """Return the keys of the root of the identity's S5 file system."""
        return DirectoryKeys.of(derive_int(self.sub_seed(_FILE_SYSTEM), 1))

    def own_account_seed(self, authority: str) -> bytes:
        """Return the ed25519 seed of this package's account on a portal, which is derived from the phrase alone.

        Args:
            authority: host, or host:port, as in the portal's URL.

        Returns:
            `portal_account_seed` of an account seed derived from the hidden-DB path ``fabstir-vectordb/account``.
        """
        return self.portal_account_seed(derive_str(self.path_key("fabstir-vectordb/account"), authority))

    def portal_account_seed(self, account_seed: bytes) -> bytes:
        """Return the ed25519 seed of one portal account.

        Args:
            account_seed: the 32 bytes of that portal, random in S5.js.

        Returns:
            BLAKE3(storage accounts ‖ account seed), 32 bytes.
        """
        return blake3_hash(self.sub_seed(_ACCOUNTS) + account_seed)


def portal_challenge_response(kind: int, challenge: bytes, authority: str) -> bytes:
    """Return the 65 bytes that a client signs to register at a portal or to log in.

    Args:
        kind: 1 to register, 2 to log in.
        challenge: 32 bytes from the portal.
        authority: host, or host:port, as in the portal's URL.

    Returns:
        kind ‖ challenge ‖ BLAKE3(UTF-8 of authority).
    """
    return bytes([kind]) + challenge + blake3_hash(authority.encode("utf-8"))
