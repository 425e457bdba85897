"""The files of a Fabstir gateway (version A of the S5 reference), kept as blobs beside those of the S5 node.

A path is a small file that holds the CID of its content, so that what is put here has its place among the blobs, once,
and is found by its CID as behind a real gateway.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.s5.cid import BlobId

__all__ = ["GatewayFiles"]

#: Bytes of a percent-encoded path: it becomes a file name, and file systems take 255.
_NAME_BYTES_MAX: Final = 240


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
            return BlobId.parse(self._file(path).read_text("ascii"))
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

    def listed(self, prefix: str) -> list[str]:
        """Returns all paths that begin so, sorted."""
        if not self._root.is_dir():
            return []
        paths = (unquote(entry.name) for entry in self._root.iterdir() if "." not in entry.name)
        return sorted(path for path in paths if path.startswith(prefix))

    def _file(self, path: str) -> Path:
        # One file name for the whole path: no path leads anywhere else.
        name = quote(path, safe="").replace(".", "%2E")
        if not path or len(name) > _NAME_BYTES_MAX:
            raise InvalidInputError(f"a path has 1 to {_NAME_BYTES_MAX} bytes, percent-encoded")
        return self._root / name
