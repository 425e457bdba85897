"""Where blobs and pointers are kept: one small contract (``base.Store``), one module per kind of store."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from fabstir_vectordb.errors import InvalidConfigError
from fabstir_vectordb.storage.base import Store
from fabstir_vectordb.storage.local_dir import LocalDirStore
from fabstir_vectordb.storage.memory import MemoryStore

__all__ = ["LocalDirStore", "MemoryStore", "Store", "open_store"]

_SCHEMES = "file:///absolute/path, memory: or memory:name"


def open_store(uri: str) -> Store:
    """Return the store a URI names; nothing is touched until it is used.

    Args:
        uri: ``file:///absolute/path`` (special characters percent-encoded, as ``Path.as_uri()`` does),
        ``memory:``
            or ``memory:name``; memory stores of the same name share their content within this process.

    Returns:
        The store; close it with ``aclose``.

    Raises:
        InvalidConfigError: the URI names no store that works today.
    """
    if not isinstance(uri, str) or not uri:
        raise InvalidConfigError(f"s5_portal is required: {_SCHEMES}")
    scheme, separator, rest = uri.partition(":")
    match scheme.lower() if separator else "":
        case "file":
            return LocalDirStore(_local_path(uri))
        case "memory":
            return MemoryStore(rest.removeprefix("//"))
        case "http" | "https":
            # The address may carry a token in its user part or query: it is not repeated.
            raise InvalidConfigError(f"s5_portal cannot be an {scheme}: address yet: use {_SCHEMES}")
    raise InvalidConfigError(f"s5_portal has an unknown scheme: use {_SCHEMES}")


def _local_path(uri: str) -> Path:
    from urllib.request import url2pathname  # loads http, ssl and email, a tenth of the package's import

    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise InvalidConfigError(
            f"A file: address of another host is not supported ({parts.netloc!r}): use file:///absolute/path"
        )
    if parts.query or parts.fragment:
        raise InvalidConfigError("In a file: address write ? as %3F and # as %23, as Path.as_uri() does")
    path = url2pathname(parts.path)
    if "\0" in path or not os.path.isabs(path):
        raise InvalidConfigError("A file: address needs an absolute path: file:///absolute/path")
    return Path(path)
