"""Versions: where they live, what one is once it is stored, and what a session remembers of them.

A version is ``parts -> root -> pointer -> records``. The root is a directory of parts whose blob id is the CID; the
pointer is a signed registry entry that names the newest root; records (`persist.records`) are conveniences written
last.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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
        index_name: selects keys and pointer.
        encrypt_at_rest: False stores parts and root in clear, and accepts such a root.
        memory: native memory setting of a loaded index, ``default`` or ``compact``.
        threads: most threads a native call may use.
        hash_seed: seed of a loaded index's id table; random, so that ids cannot be chosen that collide.
        budget_bytes: most bytes a load may take, everything counted; None for no limit.
        held_bytes: what the session holds meanwhile, and counts with it.
        clock: microseconds since 1970, for history entries.
    """

    index_name: str
    encrypt_at_rest: bool = True
    memory: str = "default"
    threads: int = 1
    hash_seed: int = field(default_factory=lambda: int.from_bytes(os.urandom(8), "little"), repr=False)
    budget_bytes: int | None = None
    held_bytes: int = 0
    clock: Callable[[], int] = wall_clock_us

    @property
    def spare_bytes(self) -> int | None:
        """What the budget leaves beside what the session holds; None without a budget."""
        budget = self.budget_bytes
        return None if budget is None else budget - kept_bytes(budget) - self.held_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version that is stored: what a later save may build on.

    Attributes:
        cid: blob id of its root.
        own: its root lies under this index's own key, so its parts may be named again.
        encrypted: its parts and root are encrypted.
        live: rows that searches can return.
        rows: slots, tombstones included.
        timestamp_us: time of the last change to a row.
        layout: how many rows its parts cover.
        stored_rows: rows of the graph that its parts have; those behind it come by steps.
        superseded_bytes: bytes that its parts hold of tombstones and of metadata that was replaced.
        row_bytes: bytes that its parts hold of a row beside its metadata, on average.
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
    """One version as the history knows it.

    Attributes:
        cid: blob id of the version's root.
        saved_us: when it was saved, microseconds since 1970, by the saving session's clock.
        revision: the pointer's revision that named it; of a refused version, the revision it lost against.
        vector_count: rows that searches can return, or None where only the pointer was known.
        deleted_count: tombstones, or None likewise.
        refused: it was stored but never became the newest version, because its base was not.
    """

    cid: BlobId
    saved_us: int
    revision: int
    vector_count: int | None
    deleted_count: int | None
    refused: bool = False

    @property
    def key(self) -> tuple[bytes, int, bool]:
        """What makes two entries one; the time does not, because a repair can only guess it."""
        return self.cid.hash, self.revision, self.refused


class Lineage:
    """What one session knows about the versions of its index; it passes the same one to every call.

    Attributes:
        base: the version that the session's content was loaded from or saved as, or None.
        seen: the highest revision met, by registry key: a lower one later is a rollback.
        attempted: roots this session tried to make the head without learning the outcome, for example because
            the connection broke. Meeting one of them as the head is our own success, not another writer's
            version.
        unfinished: parts that this session stored for versions that did not become its base, by name and BLAKE3 as
            in `Version.parts`: the next save names them instead of storing them again.
        history: history entries that this session has read or made; what a damaged record is repaired from.
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
