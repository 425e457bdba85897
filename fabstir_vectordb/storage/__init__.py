"""Stores of blobs and pointers: one small contract (``base.Store``), one module for each kind of store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fabstir_vectordb.errors import InvalidConfigError
from fabstir_vectordb.storage.base import Store
from fabstir_vectordb.storage.local_dir import LocalDirStore
from fabstir_vectordb.storage.memory import MemoryStore, forget_memory_store

if TYPE_CHECKING:
    from fabstir_vectordb.storage.s5_account import AccountSeed

__all__ = ["LocalDirStore", "MemoryStore", "Store", "forget_memory_store", "open_store"]

_SCHEMES = "http(s)://host[:port], file:///absolute/path, memory: or memory:name"


def open_store(uri: str, *, account_seed: AccountSeed | None = None, **http: Any) -> Store:
    """Return the store at a URI. The store opens no file or connection before its first use.

    Args:
        uri: one of these addresses:
            ``http(s)://host[:port][/path]``: an S5 node or a Fabstir gateway. The first call finds out which, unless
            the prefix ``portal+`` or ``gateway+`` says it.
            ``file:///absolute/path``: a directory; special characters are percent-encoded, as ``Path.as_uri()`` does.
            ``memory:``: a new store in memory.
            ``memory:name``: a store in memory. Stores of the same name share their content within this process, until
            `forget_memory_store`.
        account_seed: the user's account on an S5 node that requires one; None for no account.
        http: settings of `HttpSettings`, for an http(s) address.

    Returns:
        The store; close it with ``aclose``.

    Raises:
        InvalidConfigError: the URI is malformed, or its scheme is unknown.
    """
    if not isinstance(uri, str) or not uri:
        raise InvalidConfigError(f"Missing required field: s5_portal is required: {_SCHEMES}")
    scheme, separator, rest = uri.partition(":")
    scheme = scheme.lower() if separator else ""
    kind, plus, transport = scheme.rpartition("+")
    match scheme:
        case "file":
            return LocalDirStore(_local_path(uri))
        case "memory":
            return MemoryStore(rest.removeprefix("//"))
    if transport in ("http", "https") and kind in ("", "portal", "gateway"):
        return _on_http(kind, uri[len(kind) + len(plus) :], account_seed, http)
    raise InvalidConfigError(f"s5_portal has an unknown scheme: use {_SCHEMES}")


def _on_http(kind: str, uri: str, account_seed: AccountSeed | None, settings: dict[str, Any]) -> Store:
    # Imported here because only HTTP stores need these modules.
    from fabstir_vectordb.storage.exchange import HttpSettings
    from fabstir_vectordb.storage.fabstir_gateway import FabstirGatewayStore
    from fabstir_vectordb.storage.http import HttpClient, base_url_of
    from fabstir_vectordb.storage.probed import ProbedStore
    from fabstir_vectordb.storage.s5_portal import S5PortalStore

    client = HttpClient(base_url_of(uri), HttpSettings(**settings))
    match kind:
        case "portal":
            return S5PortalStore(client, account_seed)
        case "gateway":
            return FabstirGatewayStore(client)
    return ProbedStore(client, account_seed)


def _local_path(uri: str) -> Path:
    from urllib.request import url2pathname  # loads http, ssl and email, a tenth of the package's import

    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise InvalidConfigError(
            f"A file: address cannot name another host ({parts.netloc!r}): use file:///absolute/path"
        )
    if parts.query or parts.fragment:
        raise InvalidConfigError("A file: address has ? or #: write %3F and %23, as Path.as_uri() does")
    path = url2pathname(parts.path)
    if "\0" in path or not os.path.isabs(path):
        raise InvalidConfigError("The path of a file: address must be absolute: use file:///absolute/path")
    return Path(path)
