"""Chroma's persistent folder: ``chroma.sqlite3`` and, for each collection that was synchronised, an index of hnswlib.

The rows are those of the metadata segment. A row's vector is the newest in the log (``embeddings_queue``) if the index
has not seen that change, else the one in the index, whose labels a pickle names. Changes that the metadata segment has
not seen are applied from the log, too.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.errors import IntegrityError
from fabstir_vectordb.importers.base import (
    ForeignRow,
    Metric,
    Source,
    check_dim,
    map_file,
    one_name,
    read_file,
    storable,
)
from fabstir_vectordb.importers.hnswlib_file import HEADER_BYTES, is_deleted, read_elements
from fabstir_vectordb.importers.pickles import Inert, read_pickle
from fabstir_vectordb.importers.sqlite_file import SqliteFile

__all__ = ["ChromaFolder"]

_METRICS: Final[dict[str, Metric]] = {"l2": "l2", "cosine": "cosine", "ip": "dot"}
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_PICKLE_BYTES_MAX: Final = 256 << 20
#: The class of older pickles.
_OLD_CLASS: Final = "chromadb.segment.impl.vector.local_persistent_hnsw.PersistentData"
_ADD, _UPDATE, _UPSERT, _DELETE = range(4)
_DOCUMENT: Final = "chroma:document"
#: Bytes before hnswlib's header: the version of the format of several files.
_FORMAT_BYTES: Final = 4
_FORMS: Final = {"FLOAT32": "<f4", "INT32": "<i4"}


class _Collection(NamedTuple):
    id: str
    vectors: str | None
    """Id of the vector segment."""
    metadata: str
    """Id of the metadata segment."""


class ChromaFolder(Source):
    """A collection of a folder that ``chromadb.PersistentClient`` wrote.

    Args:
        path: the folder.
        collection: the collection; needed where there are several.
        database: its database; needed where several have a collection of that name.

    Raises:
        NotFoundError: there is no such folder or collection.
        IntegrityError: a file breaks the format.
        InvalidInputError: a choice is needed.
    """

    format = "chroma"

    def __init__(self, path: str | Path, *, collection: str | None = None, database: str | None = None) -> None:
        super().__init__()
        self._root = Path(path)
        self._file = SqliteFile(self._root / "chroma.sqlite3")
        try:
            self._file.need("collections", "segments", "embeddings", "embedding_metadata", "embeddings_queue")
            self._collection = self._find(collection, database)
            self.metric = self._metric()
        except BaseException:
            self._file.close()
            raise

    def _find(self, wanted: str | None, database: str | None) -> _Collection:
        databases = dict(self._file.rows("SELECT id, name FROM databases")) if self._file.has("databases") else {}
        found: dict[str, list[tuple[str, str]]] = {}
        for id, name, of in self._file.rows("SELECT id, name, database_id FROM collections"):
            if database is None or databases.get(of) == database:
                found.setdefault(str(name), []).append((str(databases.get(of)), str(id)))
        chosen = found[one_name("collection", list(found), wanted)]
        id = dict(chosen)[one_name("database", [name for name, _ in chosen], None)]
        segments: dict[str, str] = {}
        for segment, scope in self._file.rows("SELECT id, scope FROM segments WHERE collection = ?", id):
            # The id becomes the name of a folder, so nothing else is taken.
            if not isinstance(segment, str) or not _UUID.fullmatch(segment):
                raise IntegrityError(f"chroma: a segment of the name {str(segment)[:80]!r}")
            segments[str(scope)] = segment
        if "METADATA" not in segments:
            raise IntegrityError("chroma: the collection has no metadata segment")
        return _Collection(id, segments.get("VECTOR"), segments["METADATA"])

    def _metric(self) -> Metric | None:
        """The metric, from the collection's configuration or, in older releases, its metadata."""
        space: Any = None
        query = "SELECT str_value FROM collection_metadata WHERE collection_id = ? AND key = 'hnsw:space'"
        if self._file.has("collection_metadata") and (row := self._file.one(query, self._collection.id)):
            space = row[0]
        sql = self._file.tables["collections"]
        for column in ("config_json_str", "schema_str"):
            if space is None and column in sql:
                row = self._file.one(f"SELECT {column} FROM collections WHERE id = ?", self._collection.id)
                space = None if row is None else _space(row[0])
        metric = _METRICS.get(str(space or "l2"))  # Chroma's default
        if metric is None:
            self.notes.say(f"the collection has the space {space!r}, for which there is none here")
        return metric

    # ---- rows

    def rows(self) -> Iterator[ForeignRow]:
        """The live rows, in the order in which they were added."""
        stored = self._stored_vectors()
        fresh = self._fresh_vectors(stored)
        pending = self._pending()
        seen: set[str] = set()
        query = "SELECT id, embedding_id, created_at FROM embeddings WHERE segment_id = ? ORDER BY id"
        for number, id, created in self._file.rows(query, self._collection.metadata):
            if not isinstance(id, str):
                raise IntegrityError("chroma: a row without an id")
            seen.add(id)
            changes = pending.get(id, [])
            metadata = self._changed(self._metadata(number), changes)
            if metadata is None:
                self.notes.deleted += 1
                continue
            yield self._row(id, fresh, stored, metadata, created)
        for id, changes in pending.items():
            metadata = None if id in seen else self._changed(None, changes)
            if metadata is not None:
                yield self._row(id, fresh, stored, metadata, None)

    def _row(
        self, id: str, fresh: dict[str, int], stored: _Stored, metadata: dict[str, Any], created: Any
    ) -> ForeignRow:
        vector = self._logged(fresh[id]) if id in fresh else stored.vector(id)
        if vector is None:
            self.notes.say("rows whose vectors are neither in the index nor in the log came without a vector")
        if id not in fresh and self.metric == "cosine":
            self.notes.say("Chroma's index keeps vectors of the cosine space at length 1; their own lengths are lost")
        document = metadata.pop(_DOCUMENT, None)
        if document is not None:
            metadata["document" if "document" not in metadata else _DOCUMENT] = document
        return ForeignRow(id, vector, storable(metadata, self.notes) or None, _moment(created))

    def _metadata(self, number: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        fields = "key, string_value, int_value, float_value, bool_value"
        for key, *values in self._file.rows(f"SELECT {fields} FROM embedding_metadata WHERE id = ?", number):
            found[str(key)] = _value(values)
        if self._file.has("embedding_metadata_array"):
            query = f"SELECT {fields} FROM embedding_metadata_array WHERE id = ? ORDER BY rowid"
            for key, *values in self._file.rows(query, number):
                listed = found.setdefault(str(key), [])
                if isinstance(listed, list):
                    listed.append(_value(values))
        return found

    # ---- the log

    def _seen_by(self, segment: str | None) -> int:
        """The number of the last change that a segment has seen, 0 for none."""
        if segment is None or not self._file.has("max_seq_id"):
            return 0
        row = self._file.one("SELECT seq_id FROM max_seq_id WHERE segment_id = ?", segment)
        value = 0 if row is None else row[0]
        if isinstance(value, bytes):  # older releases
            value = int.from_bytes(value[:16], "big")
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    def _log(self, columns: str, after: int) -> Iterator[tuple[Any, ...]]:
        topic = f"%/{self._collection.id}"
        query = f"SELECT seq_id, operation, topic, id, {columns} FROM embeddings_queue WHERE seq_id > ? ORDER BY seq_id"
        for row in self._file.rows(query, after):
            if str(row[2]).endswith(topic[1:]):
                yield row

    def _fresh_vectors(self, stored: _Stored) -> dict[str, int]:
        """For each row whose vector the index has not seen, the number of the change that has it."""
        seen = self._seen_by(self._collection.vectors)
        if self._collection.vectors is not None:
            seen = max(seen, self._stored_until())
        fresh: dict[str, int] = {}
        gone: set[str] = set()
        for number, operation, _, id, form in self._log("encoding", seen):
            id = str(id)
            if operation == _DELETE:
                fresh.pop(id, None)
                gone.add(id)
                continue
            is_there = id in fresh or (id not in gone and stored.vector(id) is not None)
            # Chroma passes over an add of a row that there is, and over an update of one that there is not.
            if form is not None and (operation == _UPSERT or is_there is (operation == _UPDATE)):
                fresh[id] = number
        return fresh

    def _logged(self, number: int) -> npt.NDArray[np.float32]:
        row = self._file.one("SELECT vector, encoding FROM embeddings_queue WHERE seq_id = ?", number)
        raw, form = row if row is not None else (None, None)
        if not isinstance(raw, bytes) or form not in _FORMS or len(raw) % 4:
            raise IntegrityError("chroma: a vector of the log is damaged")
        check_dim(len(raw) // 4, "chroma")
        return np.frombuffer(raw, _FORMS[form]).astype(np.float32)

    def _pending(self) -> dict[str, list[tuple[int, Any]]]:
        """Changes of metadata that the metadata segment has not seen, by id."""
        pending: dict[str, list[tuple[int, Any]]] = {}
        for _, operation, _, id, metadata in self._log("metadata", self._seen_by(self._collection.metadata)):
            pending.setdefault(str(id), []).append((operation, metadata))
        return pending

    def _changed(self, metadata: dict[str, Any] | None, changes: list[tuple[int, Any]]) -> dict[str, Any] | None:
        """Metadata after changes of the log; None for a row that there is not."""
        for operation, text in changes:
            if operation == _DELETE:
                metadata = None
            elif metadata is not None or operation in (_ADD, _UPSERT):
                if metadata is not None and operation == _ADD:
                    continue
                metadata = dict(metadata or {})
                for key, value in _json(text).items():
                    if value is None:
                        metadata.pop(key, None)
                    else:
                        metadata[key] = value
        return metadata

    # ---- the index

    def _folder(self) -> Path | None:
        if self._collection.vectors is None:
            return None
        folder = self._root / self._collection.vectors
        return folder if (folder / "index_metadata.pickle").exists() else None

    def _pickled(self) -> dict[str, Any]:
        folder = self._folder()
        if folder is None:
            return {}
        raw = read_file(folder / "index_metadata.pickle", _PICKLE_BYTES_MAX)
        value = read_pickle(raw, "index_metadata.pickle", (_OLD_CLASS,))
        if isinstance(value, Inert):
            value = value.state
        if not isinstance(value, dict):
            raise IntegrityError("index_metadata.pickle has another form than Chroma's")
        return value

    def _stored_until(self) -> int:
        number = self._pickled().get("max_seq_id")
        return number if isinstance(number, int) and not isinstance(number, bool) else 0

    def _stored_vectors(self) -> _Stored:
        folder = self._folder()
        if folder is None:
            return _Stored({}, None, {})
        labels = self._pickled().get("id_to_label")
        if not isinstance(labels, dict):
            raise IntegrityError("index_metadata.pickle has no labels")
        header = map_file(folder / "header.bin")[_FORMAT_BYTES : _FORMAT_BYTES + HEADER_BYTES]
        data = map_file(folder / "data_level0.bin")
        elements = read_elements(header, data, 0, f"chroma {folder.name}")
        return _Stored(labels, elements, {int(label): at for at, label in enumerate(elements["label"])})


class _Stored(NamedTuple):
    """The vectors of an index."""

    labels: dict[Any, Any]
    elements: Any
    places: dict[int, int]
    """Where the element of each label is."""

    def vector(self, id: str) -> npt.NDArray[np.float32] | None:
        """The vector of a row, None where the index has none."""
        label = self.labels.get(id)
        place = self.places.get(label) if isinstance(label, int) else None
        if place is None or is_deleted(self.elements[place]):
            return None
        return np.asarray(self.elements[place]["vector"], dtype=np.float32)


def _space(text: Any) -> Any:
    """The space that a JSON configuration names, wherever it stands in it."""
    try:
        pending = deque([json.loads(text)] if isinstance(text, str) else [])
    except (ValueError, RecursionError):
        return None
    while pending:
        value = pending.popleft()
        if isinstance(value, dict):
            if isinstance(value.get("space"), str):
                return value["space"]
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
    return None


def _value(values: list[Any]) -> Any:
    text, integer, number, boolean = values
    if text is not None:
        return text
    if boolean is not None:
        return bool(boolean)
    return integer if integer is not None else number


def _json(text: Any) -> dict[str, Any]:
    try:
        value = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise IntegrityError("chroma: metadata of the log is no JSON object")
    return value


def _moment(created: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(created) if isinstance(created, str) else None
    except ValueError:
        return None
    return None if moment is None else moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
