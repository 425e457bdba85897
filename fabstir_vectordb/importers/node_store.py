"""The earlier Node package's stores: chunked manifests 2 and 3, and the layout of its first release.

Both hold CBOR. A row has an id of 32 bytes, the BLAKE3 hash of the user's id. Metadata stands under a label of the
first four bytes. Where it has no `_originalId`, ids can be found in a list of candidates.
"""

from __future__ import annotations

import mmap
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from blake3 import blake3

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from fabstir_vectordb.errors import IntegrityError, InvalidInputError, NotFoundError
from fabstir_vectordb.importers.base import ForeignRow, Source, map_file, parse_json, read_file, storable
from fabstir_vectordb.importers.cbor_reader import MAP, CborReader
from fabstir_vectordb.metadata.schema import parse_schema

__all__ = ["NodeStore"]

_VERSIONS: Final = (2, 3)
_CHUNK: Final = re.compile(r"chunk-[0-9]{1,9}")
_NODES: Final = re.compile(r"chunk_[0-9]{4,9}\.cbor")
_LISTS: Final = re.compile(r"(cluster|chunk)_[0-9]{4,9}\.cbor")
_LABEL: Final = re.compile(r"vec_[0-9a-f]{8}")
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
#: Most bytes of a list of the first layout after decompression. It had at most a thousand rows a file.
_LIST_BYTES_MAX: Final = 64 << 20
_FILES_MAX: Final = 1_000_000
#: Most characters of a candidate id.
_CANDIDATE_MAX: Final = 4_096


class _Node(NamedTuple):
    is_deleted: bool
    digest: int
    """Of the vector, to compare with the copy of the row in a chunk."""


class NodeStore(Source):
    """A store of the earlier Node package.

    Args:
        path: the folder of one session: with a manifest, or with the folders ``recent`` and ``historical``.
        id_candidates: a text file with an id in each line, in which ids are looked up that the store does not have.
        force: also read manifests of a version that is not known.

    Raises:
        NotFoundError: the folder has neither layout.
        IntegrityError: a file breaks the format.
        InvalidInputError: the manifest's version is not known.
    """

    format = "fabstir-node"
    metric = "l2"

    def __init__(self, path: str | Path, *, id_candidates: str | Path | None = None, force: bool = False) -> None:
        super().__init__()
        self._root = Path(path)
        self._candidates = id_candidates
        self._chunks: list[Path] | None = None
        self._deleted_labels: set[str] = set()
        if (self._root / "manifest.json").exists():
            self._read_manifest(force)
        elif not (self._root / "recent").is_dir() and not (self._root / "historical").is_dir():
            raise NotFoundError(
                f"{self._root} is no store of the Node package: it has neither manifest.json nor the folder recent",
                details={"path": str(self._root)},
            )
        self._read_schema()

    def _read_manifest(self, force: bool) -> None:
        manifest = parse_json(read_file(self._root / "manifest.json"), "manifest.json")
        version = manifest.get("version")
        if version not in _VERSIONS:
            if not force:
                raise InvalidInputError(
                    f"manifest.json has version {version!r}, known are 2 and 3: force=True or --force reads it anyway",
                    details={"version": version},
                )
            self.notes.say(f"the manifest has version {version!r}, which is not known")
        chunks = manifest.get("chunks")
        labels = manifest.get("deleted_vectors") or []
        if not isinstance(chunks, list) or not isinstance(labels, list):
            raise IntegrityError("manifest.json must have a list of chunks")
        self._chunks = []
        for chunk in chunks:
            name = chunk.get("chunk_id") if isinstance(chunk, dict) else None
            # The name becomes a path, so nothing else is taken.
            if not isinstance(name, str) or not _CHUNK.fullmatch(name):
                raise IntegrityError(f"manifest.json names a chunk {str(name)[:80]!r}")
            self._chunks.append(self._root / "chunks" / f"{name}.cbor")
        self._deleted_labels = {label for label in labels if isinstance(label, str) and _LABEL.fullmatch(label)}
        if len(self._deleted_labels) != len(set(map(str, labels))):
            raise IntegrityError("manifest.json has a deleted label that is none")

    def _read_schema(self) -> None:
        path = self._root / "schema.json"
        if path.exists():
            schema = parse_json(read_file(path), "schema.json")
            try:
                parse_schema(schema)
            except InvalidInputError as error:
                self.notes.say(f"the schema did not come: {error.message}")
            else:
                self.schema = schema

    # ---- rows

    def rows(self) -> Iterator[ForeignRow]:
        """The live rows."""
        nodes = dict(self._nodes())
        metadata = _Labelled(self._optional("metadata_map.cbor"))
        deleted = {id for id, node in nodes.items() if node.is_deleted}
        ids = self._all_ids(nodes)
        by_label: dict[str, list[bytes]] = {}
        for id in ids:
            by_label.setdefault(_label(id), []).append(id)
        names = _Names(self, by_label, metadata, deleted)
        times = self._times()
        seen: set[bytes] = set()
        for id, vector in self._vectors(nodes, seen):
            if id in deleted or _label(id) in self._deleted_labels:
                self.notes.deleted += 1
            elif metadata and _label(id) not in metadata:
                self.notes.left_out["without an entry in the metadata, as deleted rows are"] += 1
            else:
                name, value = names.of(id)
                yield ForeignRow(name, vector, self._storable(value), times.get(id))

    def _storable(self, value: Any) -> Any:
        return storable(value, self.notes)

    def _all_ids(self, nodes: Mapping[bytes, _Node]) -> dict[bytes, None]:
        ids = dict.fromkeys(nodes)
        for path in self._row_files():
            for id, _ in _chunk_rows(path):
                ids[id] = None
        return ids

    def _row_files(self) -> list[Path]:
        """The files that hold rows beside the graph."""
        if self._chunks is not None:
            return self._chunks
        return _files(self._root / "historical" / "inverted_lists", _LISTS)

    def _vectors(
        self, nodes: Mapping[bytes, _Node], seen: set[bytes]
    ) -> Iterator[tuple[bytes, npt.NDArray[np.float32]]]:
        """Every row once: first those of the chunks, then those that only the graph has."""
        for path in self._row_files():
            for id, vector in _chunk_rows(path):
                if id in seen:
                    self.notes.say("rows that several chunks hold came once")
                    continue
                seen.add(id)
                node = nodes.get(id)
                if node is not None and node.digest != _digest(vector):
                    self.notes.say("the graph holds other vectors of some rows than the chunks, whose vectors came")
                yield id, vector
        for path in self._node_files():
            for id, vector, _ in _node_rows(path):
                if id not in seen:
                    seen.add(id)
                    yield id, vector

    def _node_files(self) -> list[Path]:
        if self._chunks is None:
            return _files(self._root / "recent" / "nodes", _NODES)
        path = self._root / "hnsw_nodes.cbor"
        if path.exists() or not self._chunks:
            return [path] if path.exists() else []
        self.notes.say("hnsw_nodes.cbor is missing: rows that it alone held did not come")
        return []

    def _nodes(self) -> Iterator[tuple[bytes, _Node]]:
        for path in self._node_files():
            for id, vector, is_deleted in _node_rows(path):
                yield id, _Node(is_deleted, _digest(vector))

    def _optional(self, name: str) -> tuple[mmap.mmap | bytes, str]:
        path = self._root / name
        if not path.exists():
            if self._chunks or self._chunks is None:
                self.notes.say(f"{name} is missing")
            return b"\xa0", name
        return map_file(path), name

    def _times(self) -> dict[bytes, datetime]:
        """When rows were added."""
        reader = CborReader(*self._optional("timestamps.cbor"))
        times: dict[bytes, datetime] = {}
        for key in reader.text_keys():
            if key != "timestamps":
                reader.skip()
                continue
            for id in reader.id_keys():
                text = reader.text()
                moment = _moment(text)
                if moment is None:
                    self.notes.say("times that are none came as the time of the import")
                else:
                    times[id] = moment
        reader.end()
        return times

    def candidates(self, ids: Mapping[bytes, Any]) -> dict[bytes, str]:
        """Which candidates are the ids of rows."""
        if self._candidates is None:
            return {}
        found: dict[bytes, str] = {}
        try:
            with Path(self._candidates).open(encoding="utf-8-sig") as lines:
                while line := lines.readline(_CANDIDATE_MAX):
                    text = line.rstrip("\r\n")
                    hash = blake3(text.encode()).digest()
                    if hash in ids:
                        found[hash] = text
        except UnicodeDecodeError:
            raise InvalidInputError(f"{self._candidates} is not UTF-8 text") from None
        return found


class _Labelled:
    """The metadata of a store by label; entries are decoded when they are asked for."""

    def __init__(self, source: tuple[mmap.mmap | bytes, str]) -> None:
        self._raw, self._what = source
        self._at: dict[str, int] = {}
        reader = CborReader(self._raw, self._what)
        for label in reader.text_keys():
            self._at[label] = reader.at
            reader.skip()
        reader.end()

    def __contains__(self, label: str) -> bool:
        return label in self._at

    def __bool__(self) -> bool:
        return bool(self._at)

    def entry(self, label: str) -> tuple[str | None, Any]:
        """The user's id, where it is known, and the user's metadata."""
        at = self._at.get(label)
        if at is None:
            return None, None
        value = CborReader(self._raw, self._what, at).value()
        if not isinstance(value, dict) or not isinstance(value.get("_originalId"), str):
            return None, value
        original = value.pop("_originalId")
        if value.keys() == {"_userMetadata"}:
            value = value["_userMetadata"]
        return original, value


class _Names:
    """Ids of the user's for the hashes of a store."""

    def __init__(
        self, store: NodeStore, by_label: Mapping[str, list[bytes]], metadata: _Labelled, deleted: set[bytes]
    ) -> None:
        self._notes, self._metadata = store.notes, metadata
        ids = {id: None for several in by_label.values() for id in several}
        self._candidates = store.candidates(ids)
        self._by_label, self._deleted = by_label, deleted
        self._given: set[str] = set()

    def of(self, id: bytes) -> tuple[str, Any]:
        """The id and the metadata of a row."""
        label = _label(id)
        original, value = self._metadata.entry(label)
        if original is not None and blake3(original.encode(errors="replace")).digest() != id:
            # The label is four bytes of a hash, so another row may have left its metadata under it.
            self._notes.collide(original)
            self._notes.say("rows whose metadata another row of the same label replaced came with their label as id")
            return self._free(label, id), None
        if original is None:
            original = self._candidates.get(id)
        if original is None:
            hint = "" if self._candidates else "; --id-candidates FILE or id_candidates finds ids in a list"
            self._notes.say(f"the store lacks the ids of some rows, which came with their labels as ids{hint}")
            if len([one for one in self._by_label[label] if one not in self._deleted]) > 1:
                self._notes.collide(label)
            return self._free(label, id), value
        return self._free(original, id), value

    def _free(self, name: str, id: bytes) -> str:
        """A name that no row before has."""
        name = name if name and name not in self._given else f"vec_{id.hex()}"
        self._given.add(name)
        return name


# ---- files


def _files(folder: Path, names: re.Pattern[str]) -> list[Path]:
    with suppress(FileNotFoundError):
        found = []
        for path in folder.iterdir():
            if names.fullmatch(path.name):
                found.append(path)
            if len(found) > _FILES_MAX:
                raise IntegrityError(f"{folder} has more than {_FILES_MAX} files")
        return sorted(found)
    return []


def _opened(path: Path) -> CborReader:
    raw = map_file(path)
    if raw[:4] == _ZSTD_MAGIC:
        raw = _decompressed(raw, path.name)
    return CborReader(raw, path.name)


def _decompressed(raw: mmap.mmap | bytes, name: str) -> bytes:
    try:
        content = zstd.ZstdDecompressor().decompress(bytes(raw), _LIST_BYTES_MAX + 1)
    except zstd.ZstdError as error:
        raise IntegrityError(f"{name} is damaged: {error}") from None
    if len(content) > _LIST_BYTES_MAX:
        raise IntegrityError(f"{name} has more than {_LIST_BYTES_MAX:,} bytes when it is decompressed")
    return content


def _chunk_rows(path: Path) -> Iterator[tuple[bytes, npt.NDArray[np.float32]]]:
    """The rows of a chunk, or of a list of the first layout: a map with ``vectors``, or an array of such maps."""
    reader = _opened(path)
    if reader.peek() == MAP:
        yield from _mapped_rows(reader)
    else:
        for _ in reader.array():
            yield from _mapped_rows(reader)
    reader.end()


def _mapped_rows(reader: CborReader) -> Iterator[tuple[bytes, npt.NDArray[np.float32]]]:
    found = False
    for key in reader.text_keys():
        if key != "vectors":
            reader.skip()
            continue
        found = True
        for id in reader.id_keys():
            yield id, reader.floats()
    if not found:
        raise reader.fail("it has no vectors")


def _node_rows(path: Path) -> Iterator[tuple[bytes, npt.NDArray[np.float32], bool]]:
    reader = _opened(path)
    readers: dict[str, Callable[[], Any]] = {"id": reader.id, "vector": reader.floats, "is_deleted": reader.value}
    for _ in reader.array():
        node: dict[str, Any] = {}
        for key in reader.text_keys():
            if key in readers:
                node[key] = readers[key]()
            else:
                reader.skip()
        if "id" not in node or "vector" not in node:
            raise reader.fail("a node without id or vector")
        yield node["id"], node["vector"], node.get("is_deleted") is True
    reader.end()


def _label(id: bytes) -> str:
    return f"vec_{id[:4].hex()}"


def _digest(vector: npt.NDArray[np.float32]) -> int:
    return zlib.crc32(vector.tobytes())


def _moment(text: str) -> datetime | None:
    if not _TIME.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
