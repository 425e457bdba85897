"""Who may use the portal: keys that have registered, in files, and tokens of those who have logged in, in memory."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any, Final

import nacl.bindings
from nacl.exceptions import CryptoError

from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.s5.keys import portal_challenge_response
from fabstir_vectordb.s5.registry import is_public_key

__all__ = ["LOGIN", "REGISTER", "Accounts"]

REGISTER: Final = 1
LOGIN: Final = 2

_CHALLENGE_BYTES: Final = 32
#: Challenges and tokens that are remembered; the oldest go first, and whoever had one asks again.
_REMEMBERED_MOST: Final = 10_000


class Accounts:
    """The accounts of one portal; its methods block for a moment and belong into a worker thread.

    Args:
        root: directory of the registered keys, one empty file each.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._challenges: dict[tuple[int, bytes, bytes], None] = {}
        self._tokens: dict[str, bytes] = {}

    def challenge(self, deed: int, public_key: bytes) -> bytes:
        """Returns 32 random bytes, which the owner of the key is to sign.

        Args:
            deed: `REGISTER` or `LOGIN`.
            public_key: 33 bytes.

        Raises:
            InvalidInputError: it is no key, or logs in without having registered.
        """
        if not is_public_key(public_key):
            raise InvalidInputError("pubKey must be ed and an ed25519 public key, 33 bytes in base64url")
        if deed == LOGIN and not self._file(public_key).exists():
            raise InvalidInputError("this key is not registered here")
        challenge = secrets.token_bytes(_CHALLENGE_BYTES)
        _remember(self._challenges, (deed, public_key, challenge), None)
        return challenge

    def prove(self, deed: int, public_key: bytes, response: bytes, signature: bytes, authority: str) -> str:
        """Checks an answer to a challenge, which then counts no more, and lets its author in.

        Args:
            deed, public_key: as the challenge was asked for.
            response: what was signed, 65 bytes.
            signature: ed25519, 64 bytes.
            authority: what the client took this portal's host and port to be.

        Returns:
            A new token.

        Raises:
            InvalidInputError: the answer is wrong, or there was no challenge.
        """
        # Several sessions of one user may be at it: each has a challenge of its own.
        challenge = response[1 : 1 + _CHALLENGE_BYTES]
        is_asked = self._challenges.pop((deed, public_key, challenge), False) is None
        if not is_asked or response != portal_challenge_response(deed, challenge, authority):
            raise InvalidInputError("this does not answer a challenge")
        try:
            nacl.bindings.crypto_sign_open(signature + response, public_key[1:])
        except (CryptoError, ValueError):
            raise InvalidInputError("the signature does not match") from None
        if deed == REGISTER:
            self._root.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._file(public_key), os.O_CREAT | os.O_WRONLY, 0o600))
        token = "S5A" + secrets.token_urlsafe(32)
        _remember(self._tokens, token, public_key)
        return token

    def knows(self, token: str) -> bool:
        """Whether somebody has logged in with this token, since this portal was started."""
        return token in self._tokens

    def _file(self, public_key: bytes) -> Path:
        return self._root / public_key.hex()


def _remember(memory: dict[Any, Any], key: Any, value: Any) -> None:
    memory[key] = value
    while len(memory) > _REMEMBERED_MOST:
        del memory[next(iter(memory))]
