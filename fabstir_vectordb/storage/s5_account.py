"""Signing in to an S5 node that requires an account.

The account's key is derived from the user's phrase and the node's address, so the phrase alone is enough to sign in
from another machine. S5.js instead draws a random key for each portal and keeps it in the user's hidden DB on a portal:
a user with only the phrase would have to sign in to read the key that is needed to sign in.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

from fabstir_vectordb.errors import S5Error
from fabstir_vectordb.s5.base64url import to_base64url
from fabstir_vectordb.s5.keys import ed25519_public_key, ed25519_sign, portal_challenge_response
from fabstir_vectordb.storage.exchange import ANSWER_BYTES_MAX, Answer, reason_of
from fabstir_vectordb.storage.http import HttpClient

__all__ = ["AccountSeed", "sign_in"]

#: Function from a portal's authority (``host`` or ``host:port``) to the ed25519 seed of the user's account, 32 bytes.
AccountSeed = Callable[[str], Awaitable[bytes]]

_Deed = Literal["login", "register"]

_TYPES: Final[dict[_Deed, int]] = {"register": 1, "login": 2}
CHALLENGE_BYTES: Final = 32
#: Tokens that are valid in an HTTP header.
_TOKEN: Final = re.compile(r"[!-~]{1,4096}", re.ASCII)
_LABEL: Final = "fabstir_vectordb"


async def sign_in(http: HttpClient, account_seed: AccountSeed) -> str:
    """Logs in to a node; registers first if the node does not know the key yet.

    Args:
        http: client for the node. Its token, if any, is the invitation that most nodes require to register.
        account_seed: function that returns the user's key for the node.

    Returns:
        An access token.

    Raises:
        S5Error: the node refused the account, or its answer is malformed.
        VectorDBError: the node did not answer.
    """
    authority = http.authority
    seed = await account_seed(authority)
    outcome = await _prove(http, "login", seed, authority)
    if isinstance(outcome, Answer):
        refused = outcome = await _prove(http, "register", seed, authority)
        if isinstance(refused, Answer):
            # Another session of this user may have registered in between. If not, report the refused registration.
            outcome = await _prove(http, "login", seed, authority)
            outcome = refused if isinstance(outcome, Answer) else outcome
    if isinstance(outcome, Answer):
        raise S5Error(
            f"{authority} refused the token (portal_token) and an account of this user: {reason_of(outcome)}",
            details={"status": outcome.status},
            retryable=False,
        )
    return outcome


async def _prove(http: HttpClient, deed: _Deed, seed: bytes, authority: str) -> str | Answer:
    """Answers the node's challenge; returns the token, or the answer with which the node refused."""
    path, public_key = f"/s5/account/{deed}", to_base64url(ed25519_public_key(seed))
    # A node answers 500 for an unknown key, as for every refusal.
    asked = await http.request("GET", path, body_most=ANSWER_BYTES_MAX, params={"pubKey": public_key}, final=(500,))
    if not asked.ok:
        return asked
    response = portal_challenge_response(_TYPES[deed], _challenge(asked), authority)
    document = {
        "pubKey": public_key,
        "response": to_base64url(response),
        "signature": to_base64url(ed25519_sign(seed, response)),
        "label": _LABEL,
    }
    answer = await http.request("POST", path, body_most=ANSWER_BYTES_MAX, document=document, final=(500,))
    return _token(answer) if answer.ok else answer


def _challenge(answer: Answer) -> bytes:
    try:
        challenge = base64.b64decode(answer.json()["challenge"] + "=", b"-_", validate=True)
    except (TypeError, KeyError, ValueError, binascii.Error):
        challenge = b""
    if len(challenge) != CHALLENGE_BYTES:
        raise S5Error("The portal asked to sign in and sent no challenge of 32 bytes", retryable=False)
    return challenge


def _token(answer: Answer) -> str:
    # Some portals send only the cookie.
    document: Any = answer.json()
    token = answer.cookies.get("s5-auth-token") or (document.get("authToken") if isinstance(document, dict) else None)
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise S5Error("The portal accepted the account and sent no valid token", retryable=False)
    return token
