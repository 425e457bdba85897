"""The files of a Fabstir gateway, stored as blobs of the S5 node.

Each gateway path is a small file that holds the CID of the content. The content itself is a blob of the node, stored
once, and can also be read by its CID, as behind a real gateway.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

from fabstir_vectordb.errors import IntegrityError, InvalidInputError, VectorDBError
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.storage.local_dir import LocalDirStore
from fabstir_vectordb.storage.regular import read_regular

__all__ = ["GatewayFiles"]

#: Most bytes of a percent-encoded path: it becomes a file name, and file systems allow 255 bytes.
_NAME_BYTES_MAX: Final = 240
_CID_BYTES_MAX: Final = 100


class GatewayFiles:
    """The paths of a gateway and the blobs they name. Methods block briefly: call them in a worker thread.

    Args:
        root: directory of the files that hold the CIDs, below the root of `store`.
        store: the node's store, which writes them.
    """

    def __init__(self, root: Path, store: LocalDirStore) -> None:
        self._root = root
        self._store = store

    def get(self, path: str) -> BlobId | None:
        """Returns the blob that a path names, or None."""
        try:
            return _blob_in(self._file(path))
        except FileNotFoundError:
            return None

    def set(self, path: str, blob: BlobId) -> None:
        """Sets the blob of a path; after a crash or a loss of power it is the old one or the new one."""
        self._store.replace_file(self._file(path), str(blob).encode("ascii"))

    def remove(self, path: str) -> bool:
        """Removes a path; returns whether it existed. The blob stays, as other paths may name it."""
        try:
            self._file(path).unlink()
        except FileNotFoundError:
            return False
        return True

    def count(self) -> int:
        """Returns the number of paths."""
        return sum(1 for _ in self._names())

    def listed(self, directory: str) -> list[dict[str, Any]]:
        """Returns the entries of a directory, sorted by name.

        Args:
            directory: path that ends with a slash.

        Returns:
            One ``{"name", "size", "type"}`` for each file or directory, sizes in bytes. The size of a directory is the
            sum over all its files.
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
            # A name with a dot is of no path: earlier releases wrote such files, and a killed one may have left some.
            yield from (entry.name for entry in self._root.iterdir() if "." not in entry.name)

    def _file(self, path: str) -> Path:
        # The whole path becomes one file name, so no path can lead out of the directory.
        name = quote(path, safe="").replace(".", "%2E")
        if not path or len(name) > _NAME_BYTES_MAX:
            raise InvalidInputError(f"a path must have 1 to {_NAME_BYTES_MAX} bytes when percent-encoded")
        return self._root / name


def _blob_in(file: Path) -> BlobId:
    """The blob whose CID a file holds.

    Raises:
        FileNotFoundError: there is no such file.
        IntegrityError: it is not a regular file, or does not hold a CID.
    """
    try:
        return BlobId.parse(read_regular(file, _CID_BYTES_MAX).decode("ascii", "replace"))
    except InvalidInputError as error:
        raise IntegrityError(f"the file of a gateway's path is damaged: {error.message}") from None
