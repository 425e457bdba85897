"""Damage: whatever byte of a version changes or goes missing, loading says so and the session stays as it
was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from saving import SEED, START_US, Objects, add_rows, content, session_on

from fabstir_vectordb import VectorDBSession, VectorInput
from fabstir_vectordb.errors import IntegrityError, NotFoundError, StorageError
from fabstir_vectordb.persist import load as load_module
from fabstir_vectordb.persist.manifest import Manifest, encode_manifest
from fabstir_vectordb.persist.parts import MANIFEST_NAME, PartRecord, seal, with_hash
from fabstir_vectordb.persist.save import _seal_root
from fabstir_vectordb.s5 import cbor
from fabstir_vectordb.s5.cid import ShareCid, blake3_hash
from fabstir_vectordb.s5.dirv1 import FileEntry, encode_directory
from fabstir_vectordb.storage import open_store

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


ROWS = 1030  # the graph begins at 1024 rows


@pytest.fixture
async def saved(tmp_path: Path) -> tuple[Path, str]:
    """A store with one version that has every kind of part."""
    async with await session_on(tmp_path.as_uri(), text_fields="text") as session:
        await add_rows(session, ROWS)
        await session.delete_vector("row-000005")
        cid = await session.save_to_s5()
    return tmp_path, cid


async def assert_refused(
    root: Path, cid: str | None, error: type[Exception], match: str | None = None, **fields: Any
) -> None:
    """A load fails with `error`, and a session that holds something keeps exactly that."""
    async with await session_on(root.as_uri(), **fields) as session:
        await add_rows(session, 7, first=5000)
        before = await content(session)
        with pytest.raises(error, match=match):
            await session.load_user_vectors(cid, discard_unsaved=True)
        assert await content(session) == before
        assert (await session.get_stats()).dirty


def damages(raw: bytes, count: int, seed: int) -> list[bytes]:
    """The bytes with one bit flipped at chosen places, cut off, and with one byte too many."""
    generator = random.Random(seed)
    places = {0, len(raw) - 1, *(generator.randrange(len(raw)) for _ in range(count))}
    flipped = []
    for place in sorted(places):
        changed = bytearray(raw)
        changed[place] ^= 1 << generator.randrange(8)
        flipped.append(bytes(changed))
    return [*flipped, raw[:-1], raw + b"\0", b""]


async def test_every_kind_of_object_exists(saved: tuple[Path, str]) -> None:
    root, cid = saved
    assert set(Objects(root).of_version(cid)) == {
        "root",
        MANIFEST_NAME,
        "vectors.0000",
        "codes.0000",
        "ids.0000",
        "timestamps.0000",
        "tombstones.0000",
        "recent.graph.0000",
        "recent.head.0000",
        "documents.0000",
        "text.head.0000",
        "text.head.0001",
        "text.dictionary.0000",
        "text.dictionary.0001",
        "text.postings.0000",
        "text.positions.0000",
    }


async def test_a_changed_byte_in_any_object_is_an_integrity_error(saved: tuple[Path, str]) -> None:
    root, cid = saved
    async with await session_on(root.as_uri()) as session:
        await add_rows(session, 3, first=5000)
        before = await content(session)
        for seed, (name, path) in enumerate(Objects(root).of_version(cid).items()):
            raw = path.read_bytes()
            for changed in damages(raw, 4, SEED + seed):
                path.write_bytes(changed)
                # Codes are for lazy loads.
                load = session.verify if name.startswith("codes") else session.load_user_vectors
                with pytest.raises(IntegrityError) as caught:
                    await load(cid, **({} if name.startswith("codes") else {"discard_unsaved": True}))
                assert caught.value.details, name
            path.write_bytes(raw)
        assert await content(session) == before
        await session.load_user_vectors(cid, discard_unsaved=True)
        assert len(await content(session)) == ROWS - 1


@pytest.mark.long
async def test_each_single_byte_of_each_object_matters(tmp_path: Path) -> None:
    async with await session_on(tmp_path.as_uri(), text_fields="text") as session:
        await add_rows(session, 8, dim=2)
        cid = await session.save_to_s5()
    async with await session_on(tmp_path.as_uri()) as session:
        for path in [*Objects(tmp_path).of_version(cid).values(), Objects(tmp_path).pointer()]:
            raw = path.read_bytes()
            for place in range(len(raw)):
                changed = bytearray(raw)
                changed[place] ^= 0x40
                path.write_bytes(changed)
                with pytest.raises(IntegrityError):
                    await session.load_user_vectors()
            path.write_bytes(raw)
        await session.load_user_vectors()


async def test_a_changed_byte_in_the_pointer_is_an_integrity_error(saved: tuple[Path, str]) -> None:
    root, _ = saved
    path = Objects(root).pointer()
    raw = path.read_bytes()
    async with await session_on(root.as_uri()) as session:
        for place in range(len(raw)):
            changed = bytearray(raw)
            changed[place] ^= 0x10
            path.write_bytes(changed)
            with pytest.raises(IntegrityError):
                await session.load_user_vectors()
        for other in (raw[:-1], raw + b"\0", b""):
            path.write_bytes(other)
            with pytest.raises(IntegrityError):
                await session.load_user_vectors()
        path.write_bytes(raw)
        await session.load_user_vectors()


async def test_a_missing_object_is_not_found(saved: tuple[Path, str]) -> None:
    root, cid = saved
    for name, path in Objects(root).of_version(cid).items():
        raw = path.read_bytes()
        path.unlink()
        if not name.startswith("codes"):  # they are for lazy loads
            for wanted in (cid, None):
                await assert_refused(root, wanted, NotFoundError)
        path.write_bytes(raw)
    Objects(root).pointer().unlink()
    await assert_refused(root, None, NotFoundError, "no version of index")


async def test_verify_reads_every_object_and_lists_all_the_bad_ones(saved: tuple[Path, str]) -> None:
    root, cid = saved
    objects = Objects(root).of_version(cid)
    async with await session_on(root.as_uri()) as session:
        report = await session.verify(cid)
        assert (report.cid, report.parts, report.rows) == (cid, len(objects) - 2, ROWS)
        assert report.bytes == sum(path.stat().st_size for path in objects.values())

        codes, ids = objects["codes.0000"], objects["ids.0000"]
        codes.write_bytes(damages(codes.read_bytes(), 0, 1)[0])
        ids.unlink()
        for wanted in (cid, None):
            with pytest.raises(IntegrityError, match=r"2 of the 14 parts") as caught:
                await session.verify(wanted)
            bad = {entry["part"]: entry for entry in caught.value.details["bad"]}
            assert set(bad) == {"codes.0000", "ids.0000"}
            assert [bad[name]["missing"] for name in ("ids.0000", "codes.0000")] == [True, False]
            assert all(entry["cid"].startswith("uW4Ie") and entry["reason"] for entry in bad.values())


async def test_the_store_cannot_go_back_behind_what_it_answered(saved: tuple[Path, str]) -> None:
    root, _ = saved
    path = Objects(root).pointer()
    old = path.read_bytes()
    async with await session_on(root.as_uri()) as session:
        await session.load_user_vectors()
        await add_rows(session, 1, first=5000)
        await session.save_to_s5()
        path.write_bytes(old)
        with pytest.raises(IntegrityError, match="rolled the pointer") as caught:
            await session.load_user_vectors()
        assert (caught.value.details["revision"], caught.value.details["seen"]) == (1, 2)
        path.unlink()
        with pytest.raises(IntegrityError, match="rolled the pointer"):
            await session.load_user_vectors(missing_ok=True)
        await add_rows(session, 1, first=5001)
        with pytest.raises(IntegrityError, match="rolled the pointer"):
            await session.save_to_s5()
        # Replacing it does not depend on what the store says was there.
        cid = await session.save_to_s5(on_conflict="overwrite")
    assert Objects(root).entry().revision == 3
    async with await session_on(root.as_uri()) as session:
        await session.load_user_vectors()
        assert await session.save_to_s5() == cid


# ---- Versions that were sealed with the right keys and are wrong all the same ------------------------------


async def forge(root: Path, cid: str, change: Callable[[Manifest, dict[str, FileEntry]], Any]) -> str:
    """Seals a changed version with the user's own keys and returns its CID: only the reader's checks are
    left."""
    objects, store = Objects(root), open_store(root.as_uri())
    key = objects.keys.encryption_key
    files = objects.files(cid)
    manifest = change(objects.manifest(cid), files)
    plain = manifest if isinstance(manifest, bytes) else encode_manifest(manifest)
    entry, blob = seal(plain, key, "application/cbor")
    files[MANIFEST_NAME] = with_hash(entry, (await store.put(blob)).hash)
    return str(await store.put(_seal_root(encode_directory(files), key)))


def with_part(manifest: Manifest, name: str, **changes: Any) -> Manifest:
    return replace(
        manifest,
        parts=tuple(replace(part, **changes) if part.name == name else part for part in manifest.parts),
    )


async def test_a_manifest_that_disagrees_with_its_parts_is_refused(saved: tuple[Path, str]) -> None:
    root, cid = saved
    cases: dict[str, Callable[[Manifest, dict[str, FileEntry]], Any]] = {
        "another hash": lambda m, f: with_part(m, "vectors.0000", hash=bytes(32)),
        "a larger size": lambda m, f: with_part(m, "documents.0000", size=m.parts[-1].size + 1),
        "a smaller size": lambda m, f: with_part(m, "documents.0000", size=m.parts[-1].size - 1),
        "another codec": lambda m, f: with_part(m, "documents.0000", codec="raw"),
        "more rows": lambda m, f: replace(m, rows=m.rows + 1, graph_rows=m.rows + 1),
        "fewer rows": lambda m, f: replace(m, rows=m.live, graph_rows=m.live),
        "no graph": lambda m, f: replace(m, graph_rows=0),
        "more live rows": lambda m, f: replace(m, live=m.live + 1),
        "another dimension": lambda m, f: replace(m, dim=m.dim * 2),
        "other parts' rows": lambda m, f: replace(m, layout=replace(m.layout, rows_per_part=100)),
        "other groups": lambda m, f: replace(m, layout=replace(m.layout, rows_per_group=100)),
        "fewer stored links": lambda m, f: replace(m, stored_rows=m.rows - 1),
        "a step that leads nowhere": lambda m, f: replace(m, stored_rows=m.rows - 1, steps=(m.rows - 1,)),
        "a step to itself": lambda m, f: replace(m, steps=(m.rows,)),
        "other links": lambda m, f: replace(m, M=m.M * 2),
        "a part less": lambda m, f: replace(m, parts=m.parts[1:]),
        "a part more": lambda m, f: replace(m, parts=(*m.parts, PartRecord("ids.0001", bytes(32), 1, "raw"))),
        "no dimension": lambda m, f: replace(m, dim=0, rows=0, live=0, graph_rows=0),
        "fewer rows with a vector": lambda m, f: replace(m, with_vector=m.rows - 1),
        "no manifest at all": lambda m, f: b"\x00",
    }
    for name, change in cases.items():
        forged = await forge(root, cid, change)
        await assert_refused(root, forged, IntegrityError)
        async with await session_on(root.as_uri()) as session:
            with pytest.raises(IntegrityError):
                await session.verify(forged)
        assert name


async def test_a_version_whose_writer_left_a_part_out_is_refused_at_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every kind, whole and lazily, and through a share CID, whose key is the writer's to choose."""
    clock = {"clock": lambda: START_US / 1e6 + 1_300}
    async with await session_on(tmp_path.as_uri(), chunk_size=64, recent_window_s=1_000, **clock) as session:
        await add_rows(session, 1_400, dim=4)
        await session.add_vectors([VectorInput("bare", None, {"n": -1}, timestamp=START_US / 1e6 + 1_250)])
        await session.optimize()
        cid = await session.save_to_s5()
    objects, store, key = Objects(tmp_path), open_store(tmp_path.as_uri()), bytes(range(32))
    manifest, kept = objects.manifest(cid), {"documents", "expiries", "documents.changed"}
    left_out = [part.name for part in manifest.parts if part.name.rpartition(".")[0] not in kept]
    kinds = {name.rpartition(".")[0] for name in left_out}
    assert len(kinds) == 10
    # The first and the last of each kind.
    some = {one(name for name in left_out if name.startswith(f"{kind}.0")) for kind in kinds for one in (min, max)}
    for lazy_bytes_min in (0, 10**9):
        monkeypatch.setattr(load_module, "_LAZY_BYTES_MIN", lazy_bytes_min)
        for name in sorted(some):
            files = objects.files(cid)
            del files[name]
            fewer = replace(manifest, parts=tuple(part for part in manifest.parts if part.name != name))
            entry, blob = seal(encode_manifest(fewer), key, "application/cbor")
            files[MANIFEST_NAME] = with_hash(entry, (await store.put(blob)).hash)
            root = await store.put(_seal_root(encode_directory(files), key))
            async with await session_on(tmp_path.as_uri(), user_seed_phrase="a reader's secret") as session:
                with pytest.raises(IntegrityError) as caught:
                    await session.load_user_vectors(ShareCid(key, root.hash).reveal())
                assert caught.value.details["part"], name


def drop(files: dict[str, FileEntry], name: str) -> None:
    del files[name]


async def test_a_root_that_disagrees_with_its_manifest_is_refused(saved: tuple[Path, str]) -> None:
    root, cid = saved

    def swap(manifest: Manifest, files: dict[str, FileEntry]) -> Manifest:
        files["vectors.0000"], files["ids.0000"] = files["ids.0000"], files["vectors.0000"]
        return manifest

    def lose(manifest: Manifest, files: dict[str, FileEntry]) -> Manifest:
        del files["ids.0000"]
        return manifest

    def in_clear(manifest: Manifest, files: dict[str, FileEntry]) -> Manifest:
        files["ids.0000"] = replace(files["ids.0000"], encryption=None)
        return manifest

    def other_cipher(manifest: Manifest, files: dict[str, FileEntry]) -> Manifest:
        entry = files["ids.0000"]
        assert entry.encryption is not None
        files["ids.0000"] = replace(entry, encryption=replace(entry.encryption, algorithm="rot13"))
        return manifest

    def other_key(manifest: Manifest, files: dict[str, FileEntry]) -> Manifest:
        entry = files["ids.0000"]
        assert entry.encryption is not None
        files["ids.0000"] = replace(entry, encryption=replace(entry.encryption, key=bytes(32)))
        return manifest

    def other_plain_hash(manifest: Manifest, files: dict[str, FileEntry]) -> Manifest:
        entry = files["ids.0000"]
        assert entry.encryption is not None
        files["ids.0000"] = replace(entry, encryption=replace(entry.encryption, plaintext_hash=bytes(32)))
        return manifest

    def huge(manifest: Manifest, files: dict[str, FileEntry]) -> Manifest:
        files["ids.0000"] = replace(files["ids.0000"], size=2**40)
        return manifest

    for change in (swap, lose, in_clear, other_cipher, other_key, other_plain_hash, huge):
        await assert_refused(root, await forge(root, cid, change), IntegrityError)


async def test_parts_under_swapped_names_never_mix_up(saved: tuple[Path, str]) -> None:
    root, cid = saved

    def swap(manifest: Manifest, files: dict[str, FileEntry]) -> Manifest:
        names = {"vectors.0000": "ids.0000", "ids.0000": "vectors.0000"}
        vectors, ids = (files[name] for name in names)
        files["vectors.0000"], files["ids.0000"] = ids, vectors
        # Same bytes under swapped names: the header inside a part says what it is, so this must load or be
        # refused, never mix them up.
        return replace(
            manifest,
            parts=tuple(replace(part, name=names.get(part.name, part.name)) for part in manifest.parts),
        )

    forged = await forge(root, cid, swap)
    async with await session_on(root.as_uri()) as session:
        await session.load_user_vectors(cid)
        before = await content(session)
        with contextlib.suppress(IntegrityError):
            await session.load_user_vectors(forged)
        assert await content(session) == before


async def test_a_bomb_stops_at_the_announced_size(saved: tuple[Path, str]) -> None:
    root, cid = saved
    from fabstir_vectordb.s5.compress import compress

    objects, store = Objects(root), open_store(root.as_uri())
    bomb = compress(bytes(256 * 1024 * 1024), 1)
    entry, blob = seal(bomb, objects.keys.encryption_key, "application/octet-stream")
    digest = (await store.put(blob)).hash

    def plant(manifest: Manifest, files: dict[str, FileEntry]) -> Manifest:
        files["documents.0000"] = with_hash(entry, digest)
        return with_part(
            manifest,
            "documents.0000",
            size=len(bomb) + 1,
            codec="zstd",
            hash=blake3_hash(bytes(len(bomb) + 1)),
        )

    await assert_refused(root, await forge(root, cid, plant), IntegrityError, "documents.0000")


async def test_a_newer_format_is_refused_by_name(saved: tuple[Path, str]) -> None:
    root, cid = saved
    forged = await forge(root, cid, lambda m, f: cbor.encode({"version": 3}))
    await assert_refused(root, forged, StorageError, "format 3")


async def test_random_metadata_pages_never_pass(saved: tuple[Path, str]) -> None:
    root, cid = saved
    objects, store = Objects(root), open_store(root.as_uri())
    generator = random.Random(SEED)
    for size in (0, 1, 16, 64, 1000):
        page = generator.randbytes(size)
        entry, blob = seal(page, objects.keys.encryption_key, "application/octet-stream")
        digest = (await store.put(blob)).hash

        def plant(
            manifest: Manifest,
            files: dict[str, FileEntry],
            page: bytes = page,
            entry: FileEntry = entry,
            digest: bytes = digest,
        ) -> Manifest:
            files["documents.0000"] = with_hash(entry, digest)
            return with_part(manifest, "documents.0000", size=len(page), codec="raw", hash=blake3_hash(page))

        forged = await forge(root, cid, plant)
        await assert_refused(root, forged, IntegrityError)
        async with await session_on(root.as_uri()) as session:
            with pytest.raises(IntegrityError) as caught:
                await session.verify(forged)
            assert [entry["part"] for entry in caught.value.details["bad"]] == ["documents.0000"]


async def test_a_flip_under_a_running_session_does_not_touch_it(saved: tuple[Path, str]) -> None:
    root, cid = saved
    async with await session_on(root.as_uri()) as session:
        await session.load_user_vectors()
        before = await content(session)
        for path in Objects(root).of_version(cid).values():
            path.write_bytes(b"gone")
        assert await content(session) == before
        assert isinstance(session, VectorDBSession)
