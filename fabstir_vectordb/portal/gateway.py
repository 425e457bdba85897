"""The files of a Fabstir gateway (version A of the S5 reference), kept as blobs beside those of the S5 node.

A path is a small file that holds the CID of its content, so that what is put here has its place among the blobs, once,
and is found by its CID as behind a real gateway.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

from fabstir_vectordb.errors import IntegrityError, InvalidInputError, VectorDBError
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.storage.regular import read_regular

__all__ = ["GatewayFiles"]

#: Bytes of a percent-encoded path: it becomes a file name, and file systems take 255.
_NAME_BYTES_MAX: Final = 240
_CID_BYTES_MAX: Final = 100


class GatewayFiles:
    """Paths and the blobs they name; its methods block for a moment and belong into a worker thread.

    Args:
        root: directory of the names.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, path: str) -> BlobId | None:
        """Returns the blob that a path names, or None."""
        try:
            return _blob_in(self._file(path))
        except FileNotFoundError:
            return None

    def set(self, path: str, blob: BlobId) -> None:
        """Makes a path name a blob, in one step."""
        file = self._file(path)
        self._root.mkdir(parents=True, exist_ok=True)
        fresh = self._root / f"{uuid.uuid4().hex}.new"  # a dot is in no name
        fresh.write_text(str(blob), "ascii")
        fresh.replace(file)

    def remove(self, path: str) -> bool:
        """Forgets a path; returns whether there was one. The blob stays: others may name it."""
        try:
            self._file(path).unlink()
        except FileNotFoundError:
            return False
        return True

    def count(self) -> int:
        """Returns how many paths there are."""
        return sum(1 for _ in self._names())

    def listed(self, directory: str) -> list[dict[str, Any]]:
        """Returns what is in a directory: name, size in bytes and type, sorted by name.

        Args:
            directory: ends with a slash.

        Returns:
            One ``{"name", "size", "type"}`` a file or directory; the size of a directory is that of all its files.
        """
        entries: dict[str, dict[str, Any]] = {}
        for name in self._names():
            path = unquote(name)
            if not path.startswith(directory) or path == directory:
                continue
            try:
                size = _blob_in(self._root / name).size
            except (FileNotFoundError, VectorDBError):
                continue  # removed meanwhile, or damaged
            child, slash, _ = path.removeprefix(directory).partition("/")
            kind = "directory" if slash else "file"
            entry = entries.setdefault(child + slash, {"name": child, "size": 0, "type": kind})
            entry["size"] += size
        return [entries[key] for key in sorted(entries)]

    def _names(self) -> Iterator[str]:
        if self._root.is_dir():
            yield from (entry.name for entry in self._root.iterdir() if "." not in entry.name)

    def _file(self, path: str) -> Path:
        # One file name for the whole path: no path leads anywhere else.
        name = quote(path, safe="").replace(".", "%2E")
        if not path or len(name) > _NAME_BYTES_MAX:
            raise InvalidInputError(f"a path has 1 to {_NAME_BYTES_MAX} bytes, percent-encoded")
        return self._root / name


def _blob_in(file: Path) -> BlobId:
    """The blob that a file names.

    Raises:
        FileNotFoundError: there is no such file.
        IntegrityError: it is no regular file, or names no blob.
    """
    try:
        return BlobId.parse(read_regular(file, _CID_BYTES_MAX).decode("ascii", "replace"))
    except InvalidInputError as error:
        raise IntegrityError(f"the file of a gateway's path is damaged: {error.message}") from None
