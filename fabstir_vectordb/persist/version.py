"""Versions: their paths, a stored version, and the session's memory of versions.

A version is ``parts -> root -> pointer -> records``. The root is a directory of parts whose blob id is the CID; the
pointer is a signed registry entry that names the newest root; records (`persist.records`) are lists for convenience,
written last.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field

from fabstir_vectordb.config import Memory
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.index.budget import kept_bytes
from fabstir_vectordb.params import wall_clock_us
from fabstir_vectordb.persist.manifest import Manifest
from fabstir_vectordb.persist.parts import Layout, StoredPart, bytes_of_rows
from fabstir_vectordb.s5.cid import BlobId

__all__ = [
    "CATALOGUE_PATH",
    "HistoryEntry",
    "Lineage",
    "PersistSettings",
    "Version",
    "history_path",
    "index_path",
]

CATALOGUE_PATH = "fabstir-vectordb/catalog"
"""Hidden-DB path of the record that lists the user's index names."""


def index_path(index_name: str) -> str:
    """The hidden-DB path whose keys encrypt an index's versions and sign its pointer."""
    return f"fabstir-vectordb/index/{index_name}"


def history_path(index_name: str) -> str:
    """The hidden-DB path of an index's history record."""
    return f"fabstir-vectordb/history/{index_name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistSettings:
    """The settings of a session that saving and loading depend on.

    Attributes:
        index_name: name of the index, which selects keys and pointer.
        encrypt_at_rest: False stores parts and root in clear, and accepts such a root.
        memory: memory setting of a loaded index; `transfer.memory_of` says what ``auto`` is.
        threads: most threads a native call may use.
        hash_seed: seed of a loaded index's id table; random, so that ids cannot be chosen that collide.
        budget_bytes: most bytes of memory during a load, the session's own included; None for no limit.
        held_bytes: bytes that the session holds meanwhile.
        clock: microseconds since 1970, for history entries.
    """

    index_name: str
    encrypt_at_rest: bool = True
    memory: Memory = "default"
    threads: int = 1
    hash_seed: int = field(default_factory=lambda: int.from_bytes(os.urandom(8), "little"), repr=False)
    budget_bytes: int | None = None
    held_bytes: int = 0
    clock: Callable[[], int] = wall_clock_us

    @property
    def spare_bytes(self) -> int | None:
        """Bytes of the budget that the session does not hold; None without a budget."""
        budget = self.budget_bytes
        return None if budget is None else budget - kept_bytes(budget) - self.held_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A stored version, on which a later save may build.

    Attributes:
        cid: blob id of its root.
        own: whether root and parts have this index's own keys, so that parts may be reused.
        encrypted: whether its parts and root are encrypted.
        live: rows that searches can return.
        rows: slots, tombstones included.
        timestamp_us: time of the last change to a row.
        layout: rows of its parts.
        stored_rows: rows in the stored graph; later rows are linked by steps.
        superseded_bytes: bytes of tombstones and replaced metadata in its parts.
        row_bytes: mean bytes of a row in its parts, without metadata.
        parts: its parts by name and BLAKE3 of their bytes before compression.
    """

    cid: BlobId
    own: bool
    encrypted: bool
    live: int
    rows: int
    timestamp_us: int
    layout: Layout
    stored_rows: int
    superseded_bytes: int
    row_bytes: int
    parts: Mapping[tuple[str, bytes], StoredPart] = field(repr=False)

    @classmethod
    def of(cls, cid: BlobId, manifest: Manifest, parts: Sequence[StoredPart], *, own: bool, encrypted: bool) -> Version:
        """The version that a manifest describes."""
        return cls(
            cid=cid,
            own=own,
            encrypted=encrypted,
            live=manifest.live,
            rows=manifest.rows,
            timestamp_us=manifest.timestamp_us,
            layout=manifest.layout,
            stored_rows=manifest.stored_rows,
            superseded_bytes=manifest.superseded,
            row_bytes=bytes_of_rows(manifest.parts) // max(manifest.rows, 1),
            parts={(part.record.name, part.record.hash): part for part in parts},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """The history's entry of a version.

    Attributes:
        cid: blob id of the version's root.
        saved_us: when it was saved, microseconds since 1970, by the saving session's clock.
        revision: revision of the pointer that named it; for a refused version, the revision it lost against.
        vector_count: rows that searches can return, or None where only the pointer is known.
        deleted_count: tombstones, or None where only the pointer is known.
        refused: whether it was stored but never became the newest version, because its base was not.
    """

    cid: BlobId
    saved_us: int
    revision: int
    vector_count: int | None
    deleted_count: int | None
    refused: bool = False

    @property
    def key(self) -> tuple[bytes, int, bool]:
        """The identity of an entry. The time is not in it, as a repair can only estimate the time."""
        return self.cid.hash, self.revision, self.refused


class Lineage:
    """A session's memory of the versions of its index. The session passes the same object to every call.

    Attributes:
        base: the version that the session's content was loaded from or saved as, or None.
        seen: the highest revision seen, by registry key; a lower revision later is a rollback.
        attempted: roots that this session tried to make the newest, with an unknown outcome, for example because the
            connection broke. If the pointer names one of them later, the attempt succeeded.
        unfinished: parts that this session stored for versions that did not become its base, by name and BLAKE3 as
            in `Version.parts`; the next save reuses them.
        history: history entries that this session has read or made; a damaged record is repaired from them.
        history_cut: the revision below which that history was pruned.
        unrecorded: entries that are not in the stored history yet.
    """

    def __init__(self) -> None:
        self.base: Version | None = None
        self.seen: dict[bytes, int] = {}
        self.attempted: dict[bytes, Version] = {}
        self.unfinished: dict[tuple[str, bytes], StoredPart] = {}
        self.history: dict[tuple[bytes, int, bool], HistoryEntry] = {}
        self.history_cut = 0
        self.unrecorded: list[HistoryEntry] = []

    def __repr__(self) -> str:
        return f"Lineage(base={self.base.cid if self.base else None})"
