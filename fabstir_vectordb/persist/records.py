"""History and catalogue: two small encrypted records beside the versions, written last and never authoritative.

The history of an index lists its versions, the catalogue lists the user's index names. Each is one CBOR blob in S5's
mutable encryption under the keys of its own hidden-DB path, named by its own pointer. A version never depends on them:
the loss of a record is the loss of a list, not of data. So `record_version` only logs failures, and keeps entries that
could not be written in the session's `Lineage` for the next save or load. Several writers may update a record: an
update reads, merges, writes, and tries again when another writer was faster.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import anyio.to_thread

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import (
    ConflictError,
    DecryptionError,
    IntegrityError,
    NotFoundError,
    StorageError,
    VectorDBError,
)
from fabstir_vectordb.persist.pointer import checked_pointer
from fabstir_vectordb.persist.transfer import fetch_root, is_on_this_machine, run_bounded
from fabstir_vectordb.persist.version import (
    CATALOGUE_PATH,
    HistoryEntry,
    Lineage,
    PersistSettings,
    history_path,
    index_path,
)
from fabstir_vectordb.s5 import cbor
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.cipher import decrypt_mutable, encrypt_mutable
from fabstir_vectordb.s5.keys import Identity, PathKeys, root_nonce
from fabstir_vectordb.s5.registry import RegistryEntry, pointer_data, pointer_hash
from fabstir_vectordb.storage.base import Store

__all__ = [
    "HISTORY_ENTRIES_MAX",
    "RECORD_BYTES_MAX",
    "cut_history",
    "each_once",
    "list_versions",
    "read_catalogue",
    "read_history",
    "record_version",
]

HISTORY_ENTRIES_MAX = 1000
"""Most versions of a history, the newest ones; about 100 bytes each."""

RECORD_BYTES_MAX = 1024 * 1024
"""Most bytes of a record: S5's limit for the plaintext of a mutable blob."""

_RECORD_VERSION = 0
_UPDATE_TRIES = 5
_INDEX_NAME_CHARS_MAX = 64

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


async def read_history(store: Store, identity: Identity, index_name: str, lineage: Lineage) -> list[HistoryEntry]:
    """The versions of an index, newest first.

    Args:
        store: where the record lives.
        identity: the user's keys.
        index_name: the index.
        lineage: the session's memory; entries read are added to it.

    Returns:
        At most `HISTORY_ENTRIES_MAX` entries; an empty list for an index that was never saved.

    Raises:
        IntegrityError: the record or its pointer is damaged; the next save repairs it.
        NotFoundError: the pointer names a record that the store does not have.
        VectorDBError: the store failed.
    """
    stored, _ = await _read(store, _history_record(identity, index_name), lineage)
    return (stored or _NO_HISTORY).merged(lineage.unrecorded).entries


async def list_versions(
    store: Store, identity: Identity, settings: PersistSettings, lineage: Lineage
) -> tuple[list[HistoryEntry], bytes | None]:
    """The versions of an index for the user: newest first, each once, and the newest version.

    Args:
        store: where history and pointer live.
        identity: the user's keys.
        settings: index name.
        lineage: the session's memory; entries read are added to it.

    Returns:
        One entry for each CID, and the hash of the newest version's root; None where no version was saved, or where
        the pointer is damaged: the versions can then be opened by the CIDs of the history.

    Raises:
        IntegrityError, NotFoundError, VectorDBError: as `read_history`.
    """
    entries = await read_history(store, identity, settings.index_name, lineage)
    keys = identity.path_keys(index_path(settings.index_name))
    try:
        head = await checked_pointer(store, keys.public_key, lineage, f"index {settings.index_name!r}")
    except IntegrityError as error:
        logger.warning("which version of index %r is the newest is not known: %s", settings.index_name, error)
        head = None
    return each_once(entries), None if head is None else pointer_hash(head.data)


def each_once(entries: Iterable[HistoryEntry]) -> list[HistoryEntry]:
    """One entry for each version, newest first: that of its last revision, a refused one only where there is no
    other."""
    chosen: dict[bytes, HistoryEntry] = {}
    for entry in entries:
        other = chosen.get(entry.cid.hash)
        if other is None or (not entry.refused, entry.revision) > (not other.refused, other.revision):
            chosen[entry.cid.hash] = entry
    return _newest_first(chosen.values())


async def read_catalogue(store: Store, identity: Identity, lineage: Lineage) -> list[str]:
    """The names of the user's saved indexes, sorted.

    Args:
        store: where the record lives.
        identity: the user's keys.
        lineage: the session's memory.

    Returns:
        The names; an empty list before the first save.

    Raises:
        IntegrityError: the record or its pointer is damaged; the next save repairs it.
        NotFoundError: the pointer names a record that the store does not have.
        VectorDBError: the store failed.
    """
    stored, _ = await _read(store, _catalogue_record(identity), lineage)
    return stored or []


async def record_version(
    store: Store,
    identity: Identity,
    settings: PersistSettings,
    lineage: Lineage,
    entries: Iterable[HistoryEntry],
    *,
    repair_damage: bool,
) -> None:
    """Enters versions into the history and the index into the catalogue. Failures are logged, never raised.

    Args:
        store: where the records live.
        identity: the user's keys.
        settings: index name.
        lineage: entries that could not be written stay in it for the next call.
        entries: versions that the history should list.
        repair_damage: replace an unreadable record by the entries that this session knows. A save does; a load only
            logs the damage, as reading must not destroy a record that might still be rescued.
    """
    known = {entry.key for entry in lineage.unrecorded}
    lineage.unrecorded.extend(entry for entry in entries if entry.key not in known)
    pending = list(lineage.unrecorded)

    def merge_history(stored: _History | None) -> _History:
        # A readable record is right, also about removed entries. Only a lost record is rebuilt from memory.
        before = _History(list(lineage.history.values()), lineage.history_cut) if stored is None else stored
        return before.merged(pending)

    def merge_catalogue(stored: list[str] | None) -> list[str]:
        return sorted({*(stored or ()), settings.index_name})

    async def history() -> None:
        await _update(store, _history_record(identity, settings.index_name), lineage, merge_history, repair_damage)
        del lineage.unrecorded[: len(pending)]

    async def catalogue() -> None:
        await _update(store, _catalogue_record(identity), lineage, merge_catalogue, repair_damage)

    async def quietly(name: str, update: Callable[[], Any]) -> None:
        try:
            await update()
        except (VectorDBError, OSError) as error:
            logger.warning(
                "index %r: the %s could not be brought up to date (%s); the next save tries again",
                settings.index_name,
                name,
                error,
            )

    await run_bounded([lambda: quietly("history", history), lambda: quietly("catalogue", catalogue)], 2)


async def cut_history(store: Store, identity: Identity, settings: PersistSettings, lineage: Lineage, cut: int) -> None:
    """Removes the versions below a revision from the history, for good.

    Args:
        store: where the record lives.
        identity: the user's keys.
        settings: index name.
        lineage: the session's memory.
        cut: the lowest revision that stays.

    Raises:
        StorageError: other writers were faster each time, or a newer release wrote the record.
        VectorDBError: the record is damaged, or the store failed.
    """

    def merge(stored: _History | None) -> _History:
        before = stored or _NO_HISTORY
        return before._replace(cut=max(before.cut, cut)).merged(())

    await _update(store, _history_record(identity, settings.index_name), lineage, merge, repair_damage=False)


# ---- One record --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Record:
    """A record: its keys, and the encoding of its plaintext."""

    what: str
    details: dict[str, Any]
    keys: PathKeys
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    remember: Callable[[Lineage, Any], None]


def _history_record(identity: Identity, index_name: str) -> _Record:
    def remember(lineage: Lineage, history: _History) -> None:
        lineage.history = {entry.key: entry for entry in history.entries}
        lineage.history_cut = history.cut

    return _Record(
        f"the history of index {index_name!r}",
        {"record": "history", "index_name": index_name},
        identity.path_keys(history_path(index_name)),
        _encode_history,
        _decode_history,
        remember,
    )


def _catalogue_record(identity: Identity) -> _Record:
    return _Record(
        "the catalogue of indexes",
        {"record": "catalogue"},
        identity.path_keys(CATALOGUE_PATH),
        _encode_catalogue,
        _decode_catalogue,
        lambda lineage, names: None,
    )


async def _read(store: Store, record: _Record, lineage: Lineage) -> tuple[Any, RegistryEntry | None]:
    """The decoded record and its pointer; (None, None) where there is none."""
    try:
        entry, blob = await _read_blob(store, record, lineage)
        if entry is None:
            return None, None
        value = await anyio.to_thread.run_sync(_open, record, blob)
    except (IntegrityError, DecryptionError, NotFoundError) as error:
        kind = NotFoundError if isinstance(error, NotFoundError) else IntegrityError
        raise kind(
            f"{record.what} is damaged: {error.message}; the next save repairs it",
            details={**error.details, **record.details},
        ) from error
    record.remember(lineage, value)
    return value, entry


async def _read_blob(store: Store, record: _Record, lineage: Lineage) -> tuple[RegistryEntry | None, bytes]:
    """A stored record and its pointer."""
    entry = await checked_pointer(store, record.keys.public_key, lineage, record.what)
    while entry is not None:
        try:
            return entry, await fetch_root(store, pointer_hash(entry.data))
        except NotFoundError:
            # Another writer may have replaced and deleted the record between the two requests.
            newer = await checked_pointer(store, record.keys.public_key, lineage, record.what)
            if newer is None or newer.revision == entry.revision:
                raise
            entry = newer
    return None, b""


async def _update(
    store: Store, record: _Record, lineage: Lineage, merge: Callable[[Any], Any], repair_damage: bool
) -> None:
    """Reads, merges and writes a record, again when another writer was faster."""
    public_key = record.keys.public_key
    floor = 0
    for _ in range(_UPDATE_TRIES):
        try:
            stored, before = await _read(store, record, lineage)
            revision = 0 if before is None else before.revision
        except (IntegrityError, NotFoundError) as error:
            if not repair_damage:
                raise
            logger.warning("%s; it is rebuilt from what this session knows", error)
            stored, before, revision = None, None, lineage.seen.get(public_key, 0)
        merged = merge(stored)
        if stored is not None and merged == stored:
            return
        blob = await anyio.to_thread.run_sync(_seal, record, merged)
        blob_id = await store.put(blob)
        revision = max(revision, floor) + 1
        entry = RegistryEntry.sign(record.keys.write_seed, revision, pointer_data(blob_id.hash))
        try:
            await store.set_pointer(entry)
        except ConflictError as error:
            # Another writer was faster, or an unreadable pointer has a higher revision than this session has seen.
            stored_revision = error.details.get("stored_revision")
            floor = stored_revision if isinstance(stored_revision, int) else revision
            continue
        lineage.seen[public_key] = revision
        record.remember(lineage, merged)
        if before is not None and pointer_hash(before.data) != blob_id.hash and is_on_this_machine(store):
            await _delete_superseded(store, record, pointer_hash(before.data))
        return
    raise StorageError(f"{record.what} changed {_UPDATE_TRIES} times while it was being updated", retryable=True)


async def _delete_superseded(store: Store, record: _Record, digest: bytes) -> None:
    # Each save stores a longer history: without deletion, the bytes would grow with the square of the number of saves.
    # In a network the old record stays, as a node may answer with an old pointer for a while.
    try:
        await store.delete(digest)
    except (VectorDBError, OSError) as error:
        logger.debug("the record before the newest of %s stays in the store (%s)", record.what, error)


def _open(record: _Record, blob: bytes) -> Any:
    return record.decode(decrypt_mutable(record.keys.encryption_key, blob))


def _seal(record: _Record, value: Any) -> bytes:
    plain = record.encode(value)
    if len(plain) > RECORD_BYTES_MAX:
        raise StorageError(
            f"{record.what} would take {len(plain)} bytes, more than S5's {RECORD_BYTES_MAX}",
            details={**record.details, "size": len(plain), "limit": RECORD_BYTES_MAX},
        )
    key = record.keys.encryption_key
    return encrypt_mutable(key, root_nonce(key, plain), plain)


# ---- History -----------------------------------------------------------------------------------------------


class _History(NamedTuple):
    """The content of a history record: entries, and the revision below which they were pruned.

    Without that revision, a writer that remembers pruned entries would add them again.
    """

    entries: list[HistoryEntry]
    cut: int

    def merged(self, more: Iterable[HistoryEntry]) -> _History:
        return _History(
            _newest_first(entry for entry in (*self.entries, *more) if entry.revision >= self.cut), self.cut
        )


_NO_HISTORY = _History([], 0)


def _newest_first(entries: Iterable[HistoryEntry]) -> list[HistoryEntry]:
    unique: dict[tuple[bytes, int, bool], HistoryEntry] = {}
    for entry in entries:
        other = unique.get(entry.key)
        # Prefer the entry of the save: a repair knows no counts, and only the earlier time of the last change.
        if other is None or (entry.vector_count is not None, entry.saved_us) > (
            other.vector_count is not None,
            other.saved_us,
        ):
            unique[entry.key] = entry
    # The order of revisions trusts no clock. A refused version comes after the version that it lost against, which was
    # the newer one.
    order = sorted(
        unique.values(),
        key=lambda entry: (entry.revision, not entry.refused, entry.saved_us, entry.cid.hash),
        reverse=True,
    )
    return order[:HISTORY_ENTRIES_MAX]


def _encode_history(history: _History) -> bytes:
    return cbor.encode(
        {
            "version": _RECORD_VERSION,
            "cut": history.cut,
            "entries": [
                {
                    "cid": entry.cid.to_bytes(),
                    "saved": entry.saved_us,
                    "revision": entry.revision,
                    "vector_count": entry.vector_count,
                    "deleted_count": entry.deleted_count,
                    "refused": entry.refused,
                }
                for entry in history.entries
            ],
        }
    )


def _decode_history(raw: bytes) -> _History:
    top = _top_of(raw)
    rows = _list_of(top, "entries", HISTORY_ENTRIES_MAX)
    entries = []
    for row in rows:
        if not isinstance(row, dict):
            raise IntegrityError("an entry is not a map")
        cid, refused = row.get("cid"), row.get("refused")
        if not isinstance(cid, bytes) or type(refused) is not bool:
            raise IntegrityError("an entry has no CID or no mark")
        try:
            blob_id = BlobId.from_bytes(cid)
        except VectorDBError as error:
            raise IntegrityError("an entry's CID is malformed") from error
        entries.append(
            HistoryEntry(
                cid=blob_id,
                saved_us=_integer(row, "saved", -(2**63), 2**63 - 1),
                revision=_integer(row, "revision", 0, 2**31),
                vector_count=_count(row, "vector_count"),
                deleted_count=_count(row, "deleted_count"),
                refused=refused,
            )
        )
    return _History(entries, _integer(top, "cut", 0, 2**31) if "cut" in top else 0)


def _count(row: dict[Any, Any], key: str) -> int | None:
    return None if row.get(key) is None else _integer(row, key, 0, 2**31)


def _integer(row: dict[Any, Any], key: str, least: int, most: int) -> int:
    value = row.get(key)
    if type(value) is not int or not least <= value <= most:
        raise IntegrityError(f"{key} is not an integer in {least}..{most}")
    return value


# ---- Catalogue ---------------------------------------------------------------------------------------------


def _encode_catalogue(names: list[str]) -> bytes:
    return cbor.encode({"version": _RECORD_VERSION, "names": names})


def _decode_catalogue(raw: bytes) -> list[str]:
    names = _list_of(_top_of(raw), "names", RECORD_BYTES_MAX)
    if not all(isinstance(name, str) and 0 < len(name) <= _INDEX_NAME_CHARS_MAX for name in names):
        raise IntegrityError("a name is not a text of 1 to 64 characters")
    return sorted(set(names))


def _top_of(raw: bytes) -> dict[Any, Any]:
    top = cbor.decode(raw, max_bytes=RECORD_BYTES_MAX, what="record")
    if not isinstance(top, dict) or type(top.get("version")) is not int:
        raise IntegrityError("it is not a map with a version")
    if top["version"] > _RECORD_VERSION:
        # A StorageError is no damage, so it causes no repair: an older release must not replace a newer record.
        raise StorageError(f"a newer release wrote it, in format {top['version']}; upgrade fabstir-vectordb")
    return top


def _list_of(top: dict[Any, Any], key: str, most: int) -> list[Any]:
    rows = top.get(key)
    if not isinstance(rows, list) or len(rows) > most:
        raise IntegrityError(f"{key} is not a list of at most {most}")
    return rows
