"""A store on an S5 node over HTTP.

The node is not trusted: blobs are hashed, pointers are checked against their key, and the target of a redirect gets no
token. Nodes differ in the form of CID by which they find a blob. A read therefore tries each form in turn; later reads
start with the form that worked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread

from fabstir_vectordb.errors import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    OperationTimeoutError,
    S5Error,
    StorageError,
    VectorDBError,
)
from fabstir_vectordb.s5.base64url import to_base64url
from fabstir_vectordb.s5.cid import BlobId, multibase_encode
from fabstir_vectordb.s5.registry import RegistryEntry
from fabstir_vectordb.storage.base import (
    AtMost,
    check_blob,
    check_fetch,
    check_hash,
    check_new_entry,
    check_public_key,
    check_upload_size,
    damaged_blob,
    exact_size,
    missing_blob,
    parse_pointer,
    size_max,
)
from fabstir_vectordb.storage.exchange import ANSWER_BYTES_MAX, Answer, reason_of
from fabstir_vectordb.storage.http import HttpClient
from fabstir_vectordb.storage.loops import LoopLock
from fabstir_vectordb.storage.retry import second_look
from fabstir_vectordb.storage.s5_account import AccountSeed, sign_in

__all__ = ["S5PortalStore"]

_ENTRY_JSON_MAX: Final = 4_096
#: Generous, as the node may list many locations of a blob.
_LOCATIONS_JSON_MAX: Final = 64 * 1024
_REFUSED: Final = (401, 403)


def _old(blob: BlobId) -> str:
    return multibase_encode(blob.to_old_bytes(), "base58btc")


def _new(blob: BlobId) -> str:
    return blob.to_text("base58btc")


def _unsized(blob: BlobId) -> str:
    """The CID that S5.js asks for: ``5b 82 1f H 00``, whatever the size."""
    return multibase_encode(b"\x5b\x82\x1f" + blob.hash + b"\0", "base58btc")


#: Paths under which a node may serve a blob (S5 reference, robust download order).
_ROUTES: Final[tuple[Callable[[BlobId], str], ...]] = (
    lambda blob: f"/s5/blob/{_old(blob)}",
    lambda blob: f"/s5/blob/{_new(blob)}",
    lambda blob: f"/s5/blob/{_unsized(blob)}",
    lambda blob: f"/s5/download/{_old(blob)}",
    lambda blob: f"/{_old(blob)}",
)


class S5PortalStore:
    """Blobs and pointers on an S5 node; see ``base.Store`` for the methods.

    Args:
        http: client for the node.
        account_seed: the user's account, for a node that requires one; None for no account.
    """

    def __init__(self, http: HttpClient, account_seed: AccountSeed | None = None) -> None:
        self._http = http
        self._account_seed = account_seed
        self._signing_in = LoopLock()
        self._route = 0
        self._is_node = False

    @property
    def uri(self) -> str:
        """The node's address with the prefix ``portal+``."""
        return f"portal+{self._http.base_url}"

    async def put(self, data: bytes | bytearray | memoryview) -> BlobId:
        """Store a blob; the CID in the node's answer must have the same hash."""
        check_upload_size(memoryview(data).nbytes)
        content, blob = await anyio.to_thread.run_sync(_copied, data)
        await second_look(partial(self._upload, content, blob))
        return blob

    async def _upload(self, content: bytes, blob: BlobId) -> None:
        answer = await self._request("POST", "/s5/upload", file=content, body_most=ANSWER_BYTES_MAX)
        if not answer.ok:
            raise _failed("store a blob", answer)
        document = answer.json()
        try:
            stored = BlobId.parse(document["cid"])
        except (TypeError, KeyError, InvalidInputError):
            raise IntegrityError("The portal stored a blob and sent no CID", details={"cid": str(blob)}) from None
        if stored.hash != blob.hash:
            raise damaged_blob(blob.hash, blob.size, expected=blob.hash.hex(), actual=stored.hash.hex())

    async def get(self, hash: bytes, size: int | AtMost) -> bytes:
        """Return a blob after checking its hash."""
        check_fetch(hash, size)
        token = self._http.token
        try:
            return await self._get(hash, size)
        except S5Error as error:
            if error.details.get("status") != 401 or self._account_seed is None:
                raise
        await self._sign_in(token)
        return await self._get(hash, size)

    async def _get(self, hash: bytes, size: int | AtMost) -> bytes:
        """As `get`, without signing in: the first routes need no account, and most nodes serve blobs there."""
        blob = BlobId(hash, exact_size(size) or 0)
        damage: IntegrityError | None = None
        failure: VectorDBError | None = None
        for route in self._routes():
            try:
                # A node answers 500 for a form of CID that it does not understand.
                answer = await self._http.request(
                    "GET",
                    _ROUTES[route](blob),
                    body_most=size_max(size) + 1,  # one byte more than the blob has, so that another blob is noticed
                    redirects=True,
                    hashed=True,
                    final=(500,),
                )
                if answer.ok:
                    data = check_blob(answer.body, hash, size, answer.digest)
                    self._route = route
                    return data
            except IntegrityError as error:
                damage = error  # another route may lead to a good copy
            except (S5Error, OperationTimeoutError) as error:
                if "redirected_to" not in error.details:
                    raise
                failure = error
            else:
                if answer.status != 404 and not (failure and failure.details.get("status") in _REFUSED):
                    failure = _failed("read a blob", answer)
        if damage is not None:
            raise damage
        # Report a blob as missing only if the node says so: callers may give up a missing blob, but retry after other
        # failures. Some nodes answer 500 for a missing blob, or 401 before they look for it; those are asked for
        # locations.
        if failure is None:
            await self._show_that_it_is_a_node()
            raise missing_blob(hash, size)
        if failure.details.get("status") in (500, *_REFUSED) and await self._is_located(hash) is False:
            raise missing_blob(hash, size)
        raise failure

    def _routes(self) -> list[int]:
        return sorted(range(len(_ROUTES)), key=lambda route: (route != self._route, route))

    async def has(self, hash: bytes) -> bool:
        """Return whether the node knows a location of the blob; its bytes are not read or checked."""
        check_hash(hash)
        return await self._is_located(hash) is True

    async def _is_located(self, hash: bytes) -> bool | None:
        """Whether the node knows a location of the blob; None if the node does not serve locations."""
        multihash = to_base64url(b"\x1f" + hash)
        answer = await self._http.request(
            "GET", f"/s5/debug/storage_locations/{multihash}", body_most=_LOCATIONS_JSON_MAX
        )
        document = answer.json() if answer.ok else None
        if isinstance(document, dict) and isinstance(document.get("locations"), list):
            return bool(document["locations"])
        if answer.status not in (404, *_REFUSED):
            raise _failed("look for a blob", answer)
        return None

    async def delete(self, hash: bytes) -> bool:
        """Ask the node to delete a blob, which few nodes allow; return whether it did."""
        check_hash(hash)
        if not await self.has(hash):
            return False
        answer = await self._request("DELETE", f"/s5/delete/{_old(BlobId(hash, 0))}", body_most=ANSWER_BYTES_MAX)
        if not answer.ok and answer.status not in (*_REFUSED, 404, 405):
            raise _failed("delete a blob", answer)
        return answer.ok

    async def get_pointer(self, public_key: bytes) -> RegistryEntry | None:
        """Return the current entry of a pointer, or ``None``."""
        check_public_key(public_key)
        return await second_look(partial(self._get_pointer, public_key))

    async def _get_pointer(self, public_key: bytes) -> RegistryEntry | None:
        pk = to_base64url(public_key)
        answer = await self._request("GET", "/s5/registry", params={"pk": pk}, body_most=_ENTRY_JSON_MAX)
        if answer.status == 404:
            await self._show_that_it_is_a_node()
            return None
        if not answer.ok:
            raise _failed("read a pointer", answer)
        where = f"{public_key.hex()} of {self._http.base_url}"
        try:
            raw = RegistryEntry.from_portal_json(answer.json()).serialize()
        except IntegrityError as error:
            raise IntegrityError(
                f"The stored pointer {where} is damaged: {error.message}",
                details={"public_key": public_key.hex(), "where": where},
            ) from None
        return parse_pointer(raw, public_key, where)

    async def _show_that_it_is_a_node(self) -> None:
        """Asks for the node's version once: a 404 proves that an object is missing only if the server is an S5 node.

        Raises:
            S5Error: the server does not answer with the version of a node.
        """
        if self._is_node:
            return
        answer = await self._http.request("GET", "/s5/version", body_most=ANSWER_BYTES_MAX)
        if not answer.ok or not isinstance(answer.json(), dict):
            raise S5Error(
                f"{self._http.authority} answered 404 and does not answer as an S5 node (/s5/version), so the object "
                "may still exist: check s5_portal",
                details={"host": self._http.authority, "status": answer.status},
                retryable=False,
            )
        self._is_node = True

    async def set_pointer(self, entry: RegistryEntry) -> None:
        """Move a pointer. After a failure the pointer is read back: if it has the new entry, the move succeeded."""
        check_new_entry(entry)
        failure: VectorDBError
        try:
            # A node answers 500 for a revision that is too low.
            answer = await self._request(
                "POST", "/s5/registry", document=entry.to_portal_json(), body_most=ANSWER_BYTES_MAX, final=(500,)
            )
            if answer.ok:
                return
            failure = _failed("move a pointer", answer)
        except VectorDBError as error:
            failure = error
        try:
            stored = await self.get_pointer(entry.public_key)
        except VectorDBError:
            raise failure from None
        if stored == entry:
            return
        if stored is not None and stored.revision >= entry.revision:
            raise ConflictError(
                f"Revision number too low: the pointer is at {stored.revision}, got {entry.revision}",
                details={
                    "public_key": entry.public_key.hex(),
                    "stored_revision": stored.revision,
                    "revision": entry.revision,
                },
            )
        raise failure

    async def _request(self, method: str, path: str, **settings: Any) -> Answer:
        """As `HttpClient.request`; on a 401, signs in and sends the request once more."""
        token = self._http.token
        answer = await self._http.request(method, path, **settings)
        if answer.status != 401 or self._account_seed is None:
            return answer
        await self._sign_in(token)
        return await self._http.request(method, path, **settings)

    async def _sign_in(self, refused: str | None) -> None:
        """Gets a new token in place of the refused one."""
        assert self._account_seed is not None
        async with self._signing_in.here():
            if self._http.token == refused:  # else another task has signed in already
                self._http.token = await sign_in(self._http, self._account_seed)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _copied(data: bytes | bytearray | memoryview) -> tuple[bytes, BlobId]:
    content = bytes(data)
    return content, BlobId.of(content)


def _failed(doing: str, answer: Answer) -> VectorDBError:
    details: dict[str, Any] = {"status": answer.status}
    if answer.status in _REFUSED:
        return S5Error(
            f"Could not {doing}: the portal refused the token (portal_token): {reason_of(answer)}",
            details=details,
            retryable=False,
        )
    return StorageError(f"Could not {doing}: the portal answered {answer.status}: {reason_of(answer)}", details=details)
