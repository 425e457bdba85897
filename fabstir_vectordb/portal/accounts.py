"""Accounts of the portal: the registered keys, and the access tokens given at login.

::

    <66>              a registered key, in hex; the file is empty
    tokens/<64>       SHA-256 of a token, in hex; the file holds the key, its modification time is that of the login

Tokens survive a restart, because S5.js keeps its token and does not log in again. The directory holds hashes only, so
reading it reveals no token. Keys and tokens are flushed to the disk before the client gets its token.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any, Final

import nacl.bindings
from nacl.exceptions import CryptoError

from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.s5.keys import portal_challenge_response
from fabstir_vectordb.s5.registry import is_public_key
from fabstir_vectordb.storage.local_dir import flush_directory
from fabstir_vectordb.storage.regular import is_regular
from fabstir_vectordb.storage.s5_account import CHALLENGE_BYTES

__all__ = ["LOGIN", "REGISTER", "TOKEN_S", "Accounts"]

REGISTER: Final = 1
LOGIN: Final = 2

#: Most challenges and most tokens kept. The oldest are dropped first; their owners have to ask again.
_REMEMBERED_MOST: Final = 10_000
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
#: Life of a token: 30 days.
TOKEN_S: Final = 30 * 24 * 60 * 60


class Accounts:
    """The accounts of one portal. All methods but `knows` block briefly: call them in a worker thread.

    Args:
        root: directory of the registered keys and the tokens; the first account creates it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._challenges: dict[tuple[int, bytes, bytes], None] = {}
        self._tokens_root = root / "tokens"
        # Digest of each token -> time of its login, oldest first.
        self._tokens = self._stored_tokens()

    def challenge(self, deed: int, public_key: bytes) -> bytes:
        """Returns a challenge: 32 random bytes for the owner of the key to sign.

        Args:
            deed: `REGISTER` or `LOGIN`.
            public_key: 33 bytes.

        Raises:
            InvalidInputError: the bytes are not a public key, or the key of a login is not registered.
        """
        if not is_public_key(public_key):
            raise InvalidInputError("pubKey must be ed and an ed25519 public key, 33 bytes in base64url")
        if deed == LOGIN and not is_regular(self._file(public_key)):
            raise InvalidInputError("this key is not registered here")
        challenge = secrets.token_bytes(CHALLENGE_BYTES)
        _remember(self._challenges, (deed, public_key, challenge), None)
        return challenge

    def prove(self, deed: int, public_key: bytes, response: bytes, signature: bytes, authority: str) -> str:
        """Checks the answer to a challenge and returns an access token. Each challenge can be answered once.

        Args:
            deed, public_key: as in the request for the challenge.
            response: the signed bytes, 65 of them.
            signature: ed25519, 64 bytes.
            authority: host and port of this portal, as the client names them.

        Returns:
            A new token.

        Raises:
            InvalidInputError: the answer is wrong, or there was no challenge.
        """
        # Several sessions of one user may sign in at the same time: each has its own challenge.
        challenge = response[1 : 1 + CHALLENGE_BYTES]
        is_asked = self._challenges.pop((deed, public_key, challenge), False) is None
        if not is_asked or response != portal_challenge_response(deed, challenge, authority):
            raise InvalidInputError("the response does not answer an open challenge")
        try:
            nacl.bindings.crypto_sign_open(signature + response, public_key[1:])
        except (CryptoError, ValueError):
            raise InvalidInputError("the signature does not match") from None
        if deed == REGISTER:
            self._root.mkdir(parents=True, exist_ok=True)
            flush_directory(self._root.parent)
            _write_durably(self._file(public_key), b"")
        token = "S5A" + secrets.token_urlsafe(32)
        self._keep(_digest(token), public_key)
        return token

    def knows(self, token: str) -> bool:
        """Whether this token was given in the last 30 days."""
        given = self._tokens.get(_digest(token))
        return given is not None and given > time.time() - TOKEN_S

    def _keep(self, digest: str, public_key: bytes) -> None:
        self._tokens_root.mkdir(parents=True, exist_ok=True, mode=0o700)
        flush_directory(self._tokens_root.parent)
        _write_durably(self._tokens_root / digest, public_key.hex().encode("ascii"))
        for forgotten in _remember(self._tokens, digest, time.time()):
            (self._tokens_root / forgotten).unlink(missing_ok=True)

    def _stored_tokens(self) -> dict[str, float]:
        if not self._tokens_root.is_dir():
            return {}
        oldest, found = time.time() - TOKEN_S, []
        with os.scandir(self._tokens_root) as entries:
            for entry in entries:
                if _DIGEST.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    given = entry.stat(follow_symlinks=False).st_mtime
                    if given > oldest:
                        found.append((given, entry.name))
                    else:
                        Path(entry.path).unlink(missing_ok=True)
        return {name: given for given, name in sorted(found)[-_REMEMBERED_MOST:]}

    def _file(self, public_key: bytes) -> Path:
        return self._root / public_key.hex()


def _write_durably(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    flush_directory(path.parent)


def _digest(token: str) -> str:
    # A fast hash is enough: a token has 256 random bits.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _remember(memory: dict[Any, Any], key: Any, value: Any) -> list[Any]:
    """Adds an entry, removes the oldest ones beyond the limit, and returns the removed keys."""
    memory[key] = value
    gone = list(memory)[: max(0, len(memory) - _REMEMBERED_MOST)]
    for one in gone:
        memory.pop(one, None)
    return gone
