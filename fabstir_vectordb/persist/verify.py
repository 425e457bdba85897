"""Verifying a version: a whole load that continues after a damaged part, and lists all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fabstir_vectordb._native.handle import NativeIndex
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import DecryptionError, IntegrityError, NotFoundError
from fabstir_vectordb.index.contents import CODES, TEXT_KINDS, PartKey
from fabstir_vectordb.index.text import settings_of
from fabstir_vectordb.persist.load import begin_load, finish_load, load_text, no_version, take_part
from fabstir_vectordb.persist.manifest import Manifest
from fabstir_vectordb.persist.open import OpenedVersion, open_version
from fabstir_vectordb.persist.parts import StoredPart, part_cid, part_name, split_name
from fabstir_vectordb.persist.transfer import Meter, Workers, fetch_part, run_bounded, transfers_beside
from fabstir_vectordb.persist.version import Lineage, PersistSettings
from fabstir_vectordb.s5.cid import BlobId, blake3_hash
from fabstir_vectordb.s5.keys import Identity
from fabstir_vectordb.storage.base import Store
from fabstir_vectordb.types import ProgressCallback

__all__ = ["VerifiedVersion", "verify_version"]


@dataclass(frozen=True, slots=True)
class VerifiedVersion:
    """The result of a verification.

    Attributes:
        cid: the version.
        parts: parts read and checked, without the manifest.
        bytes: bytes of all blobs read, as stored.
        rows: slots of the index, tombstones included.
    """

    cid: BlobId
    parts: int
    bytes: int
    rows: int


async def verify_version(
    store: Store,
    identity: Identity,
    lineage: Lineage,
    settings: PersistSettings,
    cid: str | None = None,
    *,
    check_pages: Mapping[int, Callable[[int, int, bytes], object]] | None = None,
    progress: ProgressCallback | None = None,
) -> VerifiedVersion:
    """Reads every object of a version and checks all of it, up to building the index.

    Args:
        store: where the version lives.
        identity: the user's keys.
        lineage: the session's memory; only the revisions seen change.
        settings: index name, encryption, native settings.
        cid: the version, or None for the newest one.
        check_pages: functions by kind, called as ``check(number, document_rows, page)`` for every page of the kind in a
            worker thread; they raise IntegrityError for a bad page.
        progress: called on the event loop's thread after every part.

    Returns:
        The CID, and the numbers of parts, bytes and rows read.

    Raises:
        IntegrityError: a part is damaged or missing; ``details["bad"]`` lists every such part with its name, CID and
            reason.
        NotFoundError, InvalidInputError, DecryptionError, StorageError: as in `load_version`, for the root.
        StorageError, InvalidConfigError: all parts are whole, and a load would be refused for its text index, as
            `settings_of` says.
        MemoryBudgetExceededError: the index, which is built to check it, would not fit.
    """
    workers = Workers(settings.threads, settings.spare_bytes)
    opened = await open_version(store, identity, lineage, settings, workers=workers, cid=cid)
    if opened is None:
        raise no_version(settings)
    manifest = opened.manifest
    transfers = transfers_beside(manifest, settings)
    native = await workers.run(begin_load, manifest, settings)
    bad: dict[str, dict[str, object]] = {}
    total_bytes = opened.bytes_read
    try:
        meter = Meter(progress, len(opened.parts), sum(part.record.size for part in opened.parts), manifest.rows)

        words: dict[PartKey, bytes] = {}

        def check(part: StoredPart, blob: bytes) -> None:
            pages: dict[PartKey, bytes] = {}
            take_part(part, blob, native, pages)
            for (kind, number), page in pages.items():
                if kind in TEXT_KINDS:
                    words[PartKey(kind, number)] = page
                elif check_pages is not None:
                    check_pages[kind](number, manifest.layout.document_rows, page)

        def job(part: StoredPart) -> Callable[[], Awaitable[None]]:
            async def fetch() -> None:
                nonlocal total_bytes
                try:
                    blob = await fetch_part(store, part)
                    total_bytes += len(blob)
                    await workers.run(check, part, blob)
                except (IntegrityError, DecryptionError, NotFoundError) as error:
                    bad[part.record.name] = {
                        "part": part.record.name,
                        "cid": str(part_cid(part.entry)),
                        "reason": error.message,
                        "missing": isinstance(error, NotFoundError),
                    }
                await workers.moved(part.record.size)
                meter.advance(part.record.size)

            return fetch

        await run_bounded([job(part) for part in opened.parts], transfers)
        meter.stage("index")
        if not bad:
            try:
                if native is not None:
                    await workers.run(finish_load, native, manifest)
                    await workers.run(_check_codes, native, opened)
                await workers.run(_check_text, manifest, words)
            except IntegrityError as error:
                bad[""] = {
                    "part": None,
                    "cid": str(opened.version.cid),
                    "reason": error.message,
                    "missing": False,
                }
    finally:
        if native is not None:
            native.close()
    if bad:
        listed = [bad[name] for name in sorted(bad)]
        raise IntegrityError(
            f"{len(listed)} of the {len(opened.parts)} parts of {opened.version.cid} are damaged or missing: "
            + ", ".join(str(entry["part"] or "the whole") for entry in listed[:5])
            + (", ..." if len(listed) > 5 else ""),
            details={"cid": str(opened.version.cid), "bad": listed},
        )
    return VerifiedVersion(opened.version.cid, len(opened.parts), total_bytes, manifest.rows)


def _check_text(manifest: Manifest, words: dict[PartKey, bytes]) -> None:
    """Builds the text index, to check it, and checks that queries here would find its words."""
    found = load_text(manifest, words, True)
    if found is not None:
        try:
            found.native.validate()
            settings_of(found.shape)
        finally:
            found.native.close()


def _check_codes(native: NativeIndex, opened: OpenedVersion) -> None:
    """Checks the codes against the rows. A lazy load cannot do this, as it has no rows."""
    layout, expected = opened.manifest.layout, {}
    for info in native.parts(layout.rows_per_part, layout.rows_per_group):
        if info.kind == CODES:
            raw = native.write_part(layout.rows_per_part, layout.rows_per_group, *info)
            expected[part_name(info.kind, info.number)] = blake3_hash(raw)
    found = {part.record.name: part.record.hash for part in opened.parts if split_name(part.record.name)[0] == CODES}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise IntegrityError(f"part {name}: its codes are not those of the rows", details={"part": name})
