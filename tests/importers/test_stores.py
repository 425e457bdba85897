"""Every foreign store comes to the row, and the report says what did not come."""

from __future__ import annotations

import asyncio
import json
import math
import os
import pickle
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fabstir_vectordb import (
    ConflictError,
    DecryptionError,
    InvalidConfigError,
    InvalidInputError,
    NotFoundError,
    VectorDBSession,
    sync,
)
from fabstir_vectordb.importers import FORMATS, ForeignRow, MigrationReport, Source, migrate, open_source

pytest_plugins = ["stored"]

KEY = "07" * 32
Rows = dict[str, tuple[Any, Any]]


@pytest.fixture
def session() -> Iterator[sync.VectorDBSession]:
    with sync.VectorDBSession.create(
        s5_portal="memory:", user_seed_phrase="importers", session_id="i", metric="l2"
    ) as made:
        yield made


def come(session: sync.VectorDBSession, format: str, path: Path, **options: Any) -> tuple[Rows, MigrationReport]:
    """Imports a store; its rows, and the report."""
    with open_source(format, path, **options) as source:
        report = migrate(session, source)
    rows = {row.id: (None if row.vector is None else row.vector.tolist(), row.metadata) for row in session.scan()}
    assert report.rows == report.added == len(rows) == session.count()
    assert report.format == format
    return rows, report


# ---- the earlier Node package


@pytest.mark.parametrize("name", ["V011", "V022", "v030", "aged2"])
def test_every_row_of_the_node_package_comes(
    session: sync.VectorDBSession, samples: Path, expected: dict[str, Any], name: str
) -> None:
    rows, report = come(session, "fabstir-node", samples / name)
    assert rows == expected[name]["rows"]
    assert not set(expected[name]["deleted"]) & set(rows)
    assert report.deleted == len(expected[name]["deleted"])
    assert (report.metric, report.dim, report.left_out, report.collisions) == ("l2", 384, {}, ())
    times = [row.timestamp for row in session.scan()]
    assert all(datetime(2026, 11, 1, tzinfo=UTC).timestamp() < time < 1_795_700_000 for time in times)
    assert len(set(times)) == len(times)


def test_rows_that_moved_to_lists_come(session: sync.VectorDBSession, samples: Path) -> None:
    rows, report = come(session, "fabstir-node", samples / "aged")
    assert len(rows) == 12
    assert report.deleted == 0
    assert all(id.startswith("doc-") for id in rows)


@pytest.mark.parametrize("name", ["V010", "VNOID"])
def test_ids_that_a_store_lacks_are_labels_or_found_among_candidates(
    session: sync.VectorDBSession, samples: Path, expected: dict[str, Any], tmp_path: Path, name: str
) -> None:
    wanted = expected[name]["rows"]
    rows, report = come(session, "fabstir-node", samples / name)
    assert all(id.startswith("vec_") and len(id) == 12 for id in rows)
    # JSON, in which the program wrote what it had, knows no -0.
    by_vector = {tuple(number + 0.0 for number in numbers): metadata for numbers, metadata in rows.values()}
    assert by_vector == {tuple(numbers): metadata for numbers, metadata in wanted.values()}
    assert any("--id-candidates" in note for note in report.notes)
    candidates = tmp_path / "ids.txt"
    candidates.write_text("\n".join(["nobody", *wanted, *(f"doc-{n}-chunk-{n}" for n in range(99))]), encoding="utf-8")
    session.clear()
    rows, report = come(session, "fabstir-node", samples / name, id_candidates=candidates)
    assert rows == wanted
    assert report.notes == ()
    candidates.write_bytes(b"\xff\n")
    with (
        open_source("fabstir-node", samples / name, id_candidates=candidates) as source,
        pytest.raises(InvalidInputError, match="is not UTF-8"),
    ):
        migrate(None, source, dry_run=True)


def test_the_schema_comes_where_it_is_wanted(session: sync.VectorDBSession, samples: Path) -> None:
    with open_source("fabstir-node", samples / "v030") as source:
        assert source.schema is not None
        schema = source.schema
        report = migrate(session, source, schema=True)
    assert report.schema == schema
    assert any("schema was not set, since a row breaks it" in note for note in report.notes)
    session.clear()
    made = Made([ForeignRow("a", vector(1, 2), {"draft": True})])
    made.schema = schema
    assert migrate(session, made, schema=True).notes == ()
    with pytest.raises(InvalidInputError, match="draft"):
        session.add_batch(["x"], [[0.0, 1.0]], [{"draft": "no bool"}])


def test_a_manifest_of_an_unknown_version_needs_force(
    session: sync.VectorDBSession, samples: Path, tmp_path: Path
) -> None:
    shutil.copytree(samples / "v030", tmp_path / "store")
    path = tmp_path / "store" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**manifest, "version": 4}), encoding="utf-8")
    with pytest.raises(InvalidInputError, match="version 4"):
        open_source("fabstir-node", tmp_path / "store")
    _, report = come(session, "fabstir-node", tmp_path / "store", force=True)
    assert report.notes == ("the manifest has version 4, which is not known",)


def test_two_rows_of_one_label_both_come(session: sync.VectorDBSession, samples: Path, tmp_path: Path) -> None:
    """Labels are four bytes of a hash. The metadata is its owner's, whom the hash of `_originalId` names."""
    shutil.copytree(samples / "v030", tmp_path / "store")
    with open_source("fabstir-node", samples / "v030") as source:
        first = next(iter(source.rows()))
    from blake3 import blake3

    hash = blake3(first.id.encode()).digest()
    twin = hash[:4] + bytes(28)
    array = b"\x98\x20" + b"".join(bytes([v]) if v < 24 else bytes([24, v]) for v in twin)
    vector = b"\x99\x01\x80" + b"\xfa\x3f\x00\x00\x00" * 384
    path = tmp_path / "store" / "chunks" / "chunk-0.cbor"
    raw = path.read_bytes()
    at = raw.index(b"gvectors") + 8
    count = raw[at] & 31
    path.write_bytes(raw[:at] + bytes([0xA0 | count + 1]) + array + vector + raw[at + 1 :])
    rows, report = come(session, "fabstir-node", tmp_path / "store")
    assert rows[first.id][1] is not None
    assert rows[f"vec_{twin[:4].hex()}"] == ([0.5] * 384, None)
    assert report.collisions == (first.id,)


# ---- the SDK's store


def test_every_row_of_the_sdk_comes(
    session: sync.VectorDBSession, samples: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text(KEY, encoding="utf-8")
    store = samples / "sdk-store"
    for path, options in [
        (store, {"database": "my-docs"}),
        (store / "my-docs", {}),
        (store / "json", {}),
        (store / "node-aes", {"key_file": key}),
    ]:
        rows, report = come(session, "fabstir-sdk", path, **options)
        assert rows == expected["sdk-store"]["rows"]
        assert report.metric == "cosine"
        assert {row.timestamp for row in session.scan()} == {1_795_688_062.923}
        assert any("folders did not come" in note for note in report.notes)
        session.clear()
    with pytest.raises(InvalidInputError, match="name one database of 'bare', 'gone', 'my-docs'"):
        open_source("fabstir-sdk", store)
    with pytest.raises(NotFoundError, match="no database 'none'"):
        open_source("fabstir-sdk", store, database="none")
    assert come(session, "fabstir-sdk", store / "bare")[1].notes == ()
    rows, report = come(session, "fabstir-sdk", store / "gone")
    assert (rows, report.deleted) == ({}, 3)
    assert any("marked as deleted" in note for note in report.notes)


def test_an_encrypted_store_needs_its_key(samples: Path, tmp_path: Path) -> None:
    store = samples / "sdk-store" / "node-aes" / "my-docs"
    with pytest.raises(DecryptionError, match="key_file"):
        open_source("fabstir-sdk", store)
    wrong = tmp_path / "key"
    wrong.write_bytes(b"\x08" * 32)
    with pytest.raises(DecryptionError, match="the key does not open"):
        open_source("fabstir-sdk", store, key_file=wrong)
    wrong.write_text("07", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="must have 32 bytes"):
        open_source("fabstir-sdk", store, key_file=wrong)


# ---- the whole samples, where they are at hand


@pytest.mark.parametrize("name", ["V010", "V011", "V022", "v030", "aged2", "VNOID", "sdk-store"])
def test_whole_samples_come_to_the_row(session: sync.VectorDBSession, tmp_path: Path, name: str) -> None:
    folder = os.environ.get("FVDB_IMPORT_SAMPLES")
    if folder is None:
        pytest.skip("FVDB_IMPORT_SAMPLES does not name the folder of the unpacked samples")
    found = json.loads(Path(folder, f"{name}.expected.json").read_text(encoding="utf-8"))
    wanted = {row["id"]: (np.array(row["vector"], np.float32).tolist(), row["metadata"]) for row in found["rows"]}
    if name == "sdk-store":
        rows, _ = come(session, "fabstir-sdk", Path(folder, name), database="my-docs")
    else:
        candidates = tmp_path / "ids"
        candidates.write_text("\n".join(wanted), encoding="utf-8")
        rows, report = come(session, "fabstir-node", Path(folder, name), id_candidates=candidates)
        assert report.deleted == len(found["deleted"])
    assert rows == wanted


# ---- other databases: stores in the repository


def test_an_index_of_hnswlib_comes(
    session: sync.VectorDBSession, samples: Path, peer_vectors: np.ndarray, tmp_path: Path
) -> None:
    path = samples / "peers" / "h.bin"
    rows, report = come(session, "hnswlib", path, metric="l2")
    assert rows == {str(n + 1000): (peer_vectors[n].tolist(), None) for n in range(60) if n != 5}
    assert (report.metric, report.deleted) == ("l2", 1)
    ids, metadata = tmp_path / "ids.txt", tmp_path / "rows.jsonl"
    ids.write_text("\n".join(f"id {n}" for n in range(1060)), encoding="utf-8")
    metadata.write_text("".join(f'{{"n": {n}}}\n' for n in range(1060)), encoding="utf-8")
    session.clear()
    rows, report = come(session, "hnswlib", path, ids=ids, metadata=metadata)
    assert rows["id 1007"] == (peer_vectors[7].tolist(), {"n": 1007})
    assert report.metric is None
    assert any("stores no metric" in note for note in report.notes)


@pytest.mark.parametrize(
    ("name", "first", "metric"),
    [
        ("flat", 0, "l2"),
        ("flatip", 0, "dot"),
        ("idmap", 500, "l2"),
        ("idmap2", 500, "l2"),
        ("ivf", 7, "l2"),
        ("ivfdm", 7, "l2"),
        ("hnsw", 0, "l2"),
        ("hnswip", 0, "dot"),
        ("idhnsw", 5, "l2"),
        ("l1", 0, None),
    ],
)
def test_an_index_of_faiss_comes(
    session: sync.VectorDBSession, samples: Path, peer_vectors: np.ndarray, name: str, first: int, metric: str | None
) -> None:
    rows, report = come(session, "faiss", samples / "peers" / f"{name}.faiss")
    assert rows == {str(n + first): (peer_vectors[n].tolist(), None) for n in range(60)}
    assert report.metric == metric


@pytest.mark.parametrize(("name", "kind"), [("pca", "IxPT"), ("sq", "IxSQ")])
def test_an_index_of_faiss_without_plain_vectors_is_refused(samples: Path, name: str, kind: str) -> None:
    with pytest.raises(InvalidInputError, match=kind):
        open_source("faiss", samples / "peers" / f"{name}.faiss")


def test_ids_and_metadata_come_from_files_beside_an_index(
    session: sync.VectorDBSession, samples: Path, tmp_path: Path
) -> None:
    path = samples / "peers" / "flat.faiss"
    ids, metadata = tmp_path / "ids.txt", tmp_path / "rows.jsonl"
    ids.write_bytes("\ufeffé".encode() + b"\r\n" + b"".join(b"id%d\r\n" % n for n in range(1, 60)))
    metadata.write_text("\n".join(["[1, 2]", "", *(f'{{"n": {n}}}' for n in range(58))]), encoding="utf-8")
    rows, report = come(session, "faiss", path, ids=ids, metadata=metadata)
    assert [rows[id][1] for id in ("é", "id1", "id2")] == [[1, 2], None, {"n": 0}]
    assert report.notes == ()
    session.clear()
    ids.write_text("same\n" * 60, encoding="utf-8")
    rows, report = come(session, "faiss", path, ids=ids)
    assert (len(rows), report.left_out, report.collisions[0]) == (1, {"with an id that a row before has": 59}, "same")
    for text, message in [("one\n", "has 1 lines, and there is a row with label 1"), ("", "has 0 lines")]:
        ids.write_text(text, encoding="utf-8")
        with open_source("faiss", path, ids=ids) as source, pytest.raises(InvalidInputError, match=message):
            migrate(None, source, dry_run=True)
    metadata.write_text("{\n" * 60, encoding="utf-8")
    with (
        open_source("faiss", path, metadata=metadata) as source,
        pytest.raises(InvalidInputError, match="line 1 is not JSON"),
    ):
        migrate(None, source, dry_run=True)


def test_a_table_of_sqlite_vec_comes(session: sync.VectorDBSession, samples: Path, peer_vectors: np.ndarray) -> None:
    path = samples / "peers" / "v.db"
    rows, report = come(session, "sqlite-vec", path, table="docs")
    assert report.metric == "cosine"
    assert set(rows) == {f"d{n}" for n in range(60) if n != 5}
    assert rows["d7"] == (
        peer_vectors[7].tolist(),
        {
            "year": 2007,
            "title": "t",
            "ok": True,
            "score": 3.5,
            "body": "body 7",
            "raw": "eHh4eHh4eA==",
            "lang": "en",
        },
    )
    assert rows["d8"][1]["title"] == "a longer title than twelve bytes"
    session.clear()
    rows, report = come(session, "sqlite-vec", path, table="plain")
    assert rows == {str(n + 10): (peer_vectors[n].tolist(), None) for n in range(60)}
    assert report.metric == "l2"
    with pytest.raises(InvalidInputError, match="name one table of sqlite-vec of 'docs', 'plain'"):
        open_source("sqlite-vec", path)


def test_a_collection_of_qdrant_comes(session: sync.VectorDBSession, samples: Path, peer_vectors: np.ndarray) -> None:
    path = samples / "peers" / "qdrant"
    rows, report = come(session, "qdrant", path, collection="docs")
    ids = {n: str(n) if n % 2 else f"00000000-0000-0000-0000-{n:012d}" for n in range(60) if n != 5}
    for n, id in ids.items():
        assert rows[id] == (peer_vectors[n].tolist(), {"n": n, "s": "x" * n, "l": [1, None, {"a": 1.5}]})
    assert set(rows) - set(ids.values()) == {"900", "901", "902"}
    assert report.metric == "cosine"
    session.clear()
    rows, report = come(session, "qdrant", path, collection="named", vector="a")
    assert rows == {"1": (peer_vectors[0].tolist(), None)}
    assert (report.metric, report.notes) == (
        "dot",
        ("the other vectors did not come: 'b'", "sparse vectors did not come"),
    )
    with pytest.raises(InvalidInputError, match="name one vector of 'a', 'b'"):
        open_source("qdrant", path, collection="named")
    with pytest.raises(InvalidInputError, match="have no names"):
        open_source("qdrant", path, collection="docs", vector="a")


def test_a_collection_of_chroma_comes(session: sync.VectorDBSession, samples: Path, peer_vectors: np.ndarray) -> None:
    """One collection that lies in the log alone, and one that is in the index, with changes after it."""
    path = samples / "peers" / "chroma"
    rows, report = come(session, "chroma", path, collection="docs")
    assert report.metric == "cosine"
    assert set(rows) == {f"c{n}" for n in range(60) if n != 5}
    assert rows["c7"] == (peer_vectors[7].tolist(), {"n": 7, "s": "é", "f": 0.5, "b": True, "document": "doc 7"})
    assert rows["c6"] == ([1.0] * 8, {"n": 600, "s": "é", "f": 0.5, "b": True, "document": "doc 6"})
    assert all(row.timestamp > 1_790_000_000 for row in session.scan())
    session.clear()
    rows, report = come(session, "chroma", path, collection="big")
    assert report.metric == "l2"
    assert set(rows) == {f"b{n}" for n in range(60) if n not in (1, 55)}
    assert rows["b2"] == ([2.0] * 8, {"n": 2, "u": 1})
    assert all(rows[f"b{n}"] == (peer_vectors[n].tolist(), {"n": n % 10}) for n in range(60) if n not in (1, 2, 55))
    with pytest.raises(NotFoundError, match="no collection 'none'; there is 'big', 'docs'"):
        open_source("chroma", path, collection="none")


def test_a_collection_of_older_releases_of_chroma_comes(
    session: sync.VectorDBSession,
    samples: Path,
    peer_vectors: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their pickles hold an object of a class, and the last change that the index has seen is in there."""
    shutil.copytree(samples / "peers" / "chroma", tmp_path / "chroma")
    (path,) = tmp_path.glob("chroma/*/index_metadata.pickle")
    name = "chromadb.segment.impl.vector.local_persistent_hnsw"
    made = ModuleType(name)
    persistent = type("PersistentData", (), {"__module__": name})
    made.PersistentData = persistent  # type: ignore[attr-defined]
    data = persistent()
    data.__dict__.update(pickle.loads(path.read_bytes()), max_seq_id=122)
    with monkeypatch.context() as patch:
        for at in range(1, 6):
            patch.setitem(sys.modules, name.rsplit(".", 5 - at)[0], made)
        path.write_bytes(pickle.dumps(data))
    database = sqlite3.connect(tmp_path / "chroma" / "chroma.sqlite3")
    database.execute("DELETE FROM max_seq_id WHERE segment_id = ?", (path.parent.name,))
    database.execute("DELETE FROM embeddings_queue WHERE seq_id <= 122")
    database.commit()
    database.close()
    rows, _ = come(session, "chroma", tmp_path / "chroma", collection="big")
    assert set(rows) == {f"b{n}" for n in range(60) if n not in (1, 55)}
    assert rows["b2"] == ([2.0] * 8, {"n": 2, "u": 1})
    assert rows["b7"] == (peer_vectors[7].tolist(), {"n": 7})


def test_changes_that_chroma_has_only_in_its_log_are_applied(
    session: sync.VectorDBSession, samples: Path, peer_vectors: np.ndarray, tmp_path: Path
) -> None:
    """Of metadata, too, where the metadata segment has not seen them."""
    shutil.copytree(samples / "peers" / "chroma", tmp_path / "chroma")
    database = sqlite3.connect(tmp_path / "chroma" / "chroma.sqlite3")
    (topic,) = database.execute("SELECT topic FROM embeddings_queue WHERE seq_id = 125").fetchone()
    vector = np.arange(8, dtype="<f4").tobytes()
    changes = [
        (0, "new", vector, '{"n": 1, "chroma:document": "text"}'),
        (0, "b3", vector, '{"n": "ignored"}'),  # an add of a row that there is
        (1, "b4", None, '{"n": null, "m": 5}'),
        (1, "none", vector, '{"n": 1}'),  # an update of a row that there is not
        (3, "b5", None, None),
        (2, "b6", vector, '{"k": true}'),
        (0, "gone", vector, "{}"),
        (3, "gone", None, None),
    ]
    for operation, id, raw, metadata in changes:
        row = (operation, topic, id, raw, "FLOAT32" if raw else None, metadata)
        fields = "operation, topic, id, vector, encoding, metadata"
        database.execute(f"INSERT INTO embeddings_queue({fields}) VALUES (?, ?, ?, ?, ?, ?)", row)
    database.commit()
    database.close()
    rows, report = come(session, "chroma", tmp_path / "chroma", collection="big")
    numbers = [float(n) for n in range(8)]
    assert rows["new"] == (numbers, {"n": 1, "document": "text"})
    assert rows["b3"] == (peer_vectors[3].tolist(), {"n": 3})
    assert rows["b4"][1] == {"m": 5}
    assert rows["b6"] == (numbers, {"n": 6, "k": True})
    assert not {"none", "b5", "gone"} & set(rows)
    assert (len(rows), report.deleted) == (58, 1)


# ---- other databases: stores that their releases write now


def test_a_store_that_hnswlib_writes_comes(session: sync.VectorDBSession, tmp_path: Path) -> None:
    hnswlib = pytest.importorskip("hnswlib", reason="hnswlib is not installed")
    vectors = np.random.default_rng(2).standard_normal((500, 33)).astype(np.float32)
    index = hnswlib.Index(space="l2", dim=33)
    index.init_index(max_elements=700, M=5, ef_construction=20)
    index.add_items(vectors, np.arange(500) * 3)
    index.save_index(str(tmp_path / "index.bin"))
    rows, _ = come(session, "hnswlib", tmp_path / "index.bin")
    assert rows == {str(n * 3): (vectors[n].tolist(), None) for n in range(500)}


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "HNSW8,Flat", "IDMap,Flat", "IDMap2,IVF8,Flat"])
def test_a_store_that_faiss_writes_comes(session: sync.VectorDBSession, tmp_path: Path, factory: str) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    vectors = np.random.default_rng(2).standard_normal((700, 24)).astype(np.float32)
    index = faiss.index_factory(24, factory)
    index.train(vectors)
    first = 9_000 if "IDMap" in factory else 0
    if first:
        index.add_with_ids(vectors, np.arange(700) + first)
    else:
        index.add(vectors)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    rows, _ = come(session, "faiss", tmp_path / "index.faiss")
    assert rows == {str(n + first): (vectors[n].tolist(), None) for n in range(700)}


def test_lists_of_faiss_that_are_mostly_empty_come(session: sync.VectorDBSession, tmp_path: Path) -> None:
    """FAISS then writes the sizes of the others alone."""
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    vectors = np.random.default_rng(2).standard_normal((700, 4)).astype(np.float32)
    index = faiss.index_factory(4, "IVF16,Flat")
    index.train(vectors)
    index.add(vectors[:3])
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    assert b"ilar" in (tmp_path / "index.faiss").read_bytes()
    assert b"sprs" in (tmp_path / "index.faiss").read_bytes()
    rows, _ = come(session, "faiss", tmp_path / "index.faiss")
    assert rows == {str(n): (vectors[n].tolist(), None) for n in range(3)}


def test_a_store_that_sqlite_vec_writes_comes(session: sync.VectorDBSession, tmp_path: Path) -> None:
    sqlite_vec = pytest.importorskip("sqlite_vec", reason="sqlite_vec is not installed")
    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        pytest.skip("this Python's sqlite3 loads no extensions")
    database = sqlite3.connect(tmp_path / "v.db")
    database.enable_load_extension(True)
    sqlite_vec.load(database)
    database.execute("CREATE VIRTUAL TABLE t USING vec0(e float[4], n integer)")
    rows = [(n + 1, np.full(4, n, np.float32).tobytes(), n) for n in range(1_500)]
    database.executemany("INSERT INTO t(rowid, e, n) VALUES (?, ?, ?)", rows)
    database.commit()
    database.close()
    found, _ = come(session, "sqlite-vec", tmp_path / "v.db")
    assert found == {str(n + 1): ([n] * 4, {"n": n}) for n in range(1_500)}


def test_a_store_that_qdrant_writes_comes(session: sync.VectorDBSession, tmp_path: Path) -> None:
    client_module = pytest.importorskip("qdrant_client", reason="qdrant_client is not installed")
    from qdrant_client import models

    client = client_module.QdrantClient(path=str(tmp_path / "q"))
    client.create_collection("c", vectors_config=models.VectorParams(size=3, distance=models.Distance.EUCLID))
    moment = datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    points = [models.PointStruct(id=n, vector=[n, 0.5, -1.0], payload={"n": n, "at": moment}) for n in range(300)]
    client.upsert("c", points)
    client.close()
    rows, report = come(session, "qdrant", tmp_path / "q")
    assert report.metric == "l2"
    assert {id: (vector, metadata["n"]) for id, (vector, metadata) in rows.items()} == {
        str(n): ([n, 0.5, -1.0], n) for n in range(300)
    }
    assert {metadata["at"] for _, metadata in rows.values()} == {"2024-01-02T03:04:05.000006Z"}


def test_a_store_that_chroma_writes_comes(session: sync.VectorDBSession, tmp_path: Path) -> None:
    chromadb = pytest.importorskip("chromadb", reason="chromadb is not installed")
    settings = chromadb.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(tmp_path / "c"), settings=settings)
    configuration = {"hnsw": {"space": "ip", "sync_threshold": 100, "batch_size": 50}}
    collection = client.create_collection("numbers", embedding_function=None, configuration=configuration)
    vectors = np.random.default_rng(2).standard_normal((260, 6)).astype(np.float32)
    for start in range(0, 260, 20):
        ids = [f"{n}" for n in range(start, start + 20)]
        collection.add(ids=ids, embeddings=vectors[start : start + 20], metadatas=[{"n": int(id)} for id in ids])
    collection.update(ids=["3"], embeddings=[[9.0] * 6])
    collection.delete(ids=["4", "259"])
    rows, report = come(session, "chroma", tmp_path / "c")
    vectors[3] = 9
    assert report.metric == "dot"
    assert rows == {str(n): (vectors[n].tolist(), {"n": n}) for n in range(260) if n not in (4, 259)}


def test_a_store_that_lancedb_writes_comes(session: sync.VectorDBSession, tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb", reason="lancedb is not installed")
    vectors = np.random.default_rng(2).standard_normal((300, 8)).astype(np.float32)
    database = lancedb.connect(str(tmp_path / "l"))
    table = database.create_table("t", [{"id": f"l{n}", "vector": v.tolist(), "n": n} for n, v in enumerate(vectors)])
    table.delete("n = 7")
    table.add([{"id": "l1", "vector": [0.0] * 8, "n": 0}])
    with open_source("lancedb", tmp_path / "l") as source:
        report = migrate(session, source)
    assert (report.rows, report.left_out, report.collisions) == (299, {"with an id that a row before has": 1}, ("l1",))
    assert session.get(["l8"])[0].vector.tolist() == vectors[8].tolist()
    assert session.get(["l8"])[0].metadata == {"n": 8}
    database.create_table("bare", [{"vector": [1.0, 2.0]}, {"vector": [3.0, 4.0]}])
    with pytest.raises(InvalidInputError, match="name one table"):
        open_source("lancedb", tmp_path / "l")
    session.clear()
    rows, report = come(session, "lancedb", tmp_path / "l", table="bare")
    assert set(rows) == {"0", "1"}


def test_without_lancedb_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(InvalidConfigError, match=r"need lancedb: .* install 'lancedb"):
        open_source("lancedb", tmp_path)


# ---- migrate


class Made(Source):
    """A source of given rows."""

    format = "made"

    def __init__(self, rows: list[ForeignRow]) -> None:
        super().__init__()
        self._rows = rows

    def rows(self) -> Iterator[ForeignRow]:
        yield from self._rows


def vector(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def test_rows_that_an_index_cannot_hold_are_left_out_and_counted(session: sync.VectorDBSession) -> None:
    rows = [
        ForeignRow("good", vector(1, 2), {"a": 1}, 5.0),
        ForeignRow("", vector(1, 2)),
        ForeignRow("x" * 1025, vector(1, 2)),
        ForeignRow("\ud800", vector(1, 2)),
        ForeignRow("three", vector(1, 2, 3)),
        ForeignRow("nan", vector(1, np.nan)),
        ForeignRow("big", vector(1, 2), "x" * (1 << 20)),
        ForeignRow("none", None),
    ]
    seen: list[int] = []
    report = migrate(session, Made(rows), progress=seen.append)
    assert (report.rows, report.added, seen) == (2, 2, [2])
    assert sum(report.left_out.values()) == 6
    assert {row.id for row in session.scan()} == {"good", "none"}
    assert session.get(["good"])[0].timestamp == 5.0
    assert report.to_dict()["left_out"] == report.left_out


def test_two_rows_of_one_id_and_times_that_are_none_are_told_by_a_dry_run(session: sync.VectorDBSession) -> None:
    rows = [
        ForeignRow("a", vector(1, np.nan), None, 5.0),
        ForeignRow("a", vector(1, 2), None, 1e300),
        ForeignRow("a", vector(2, 2), None, 6.0),
        ForeignRow("b", vector(3, 2), None, math.nan),
        ForeignRow("c", vector(4, 2), None, -62_135_596_800.0),
    ]
    dry, done = migrate(None, Made(rows), dry_run=True), migrate(session, Made(rows))
    assert (dry.rows, dry.left_out, dry.collisions, dry.notes) == (3, done.left_out, done.collisions, done.notes)
    assert done.left_out["with an id that a row before has"] == 1
    assert (done.added, done.collisions) == (3, ("a",))
    assert "got the time of the import" in done.notes[0]
    a, b, c = session.get(["a", "b", "c"])
    assert a.vector.tolist() == [1, 2]
    assert min(a.timestamp, b.timestamp) > 1_700_000_000
    assert c.timestamp == -62_135_596_800


def test_a_dry_run_adds_nothing(session: sync.VectorDBSession) -> None:
    rows = [ForeignRow(str(n), vector(n, 1)) for n in range(5_000)]
    report = migrate(session, Made(rows), dry_run=True)
    assert (report.rows, report.added, report.dry_run, session.count()) == (5_000, 0, True, 0)
    assert migrate(None, Made(rows), dry_run=True).rows == 5_000
    with pytest.raises(InvalidInputError, match="needs a session"):
        migrate(None, Made(rows))


def test_ids_that_are_live_already_are_a_conflict_replaced_or_skipped(session: sync.VectorDBSession) -> None:
    rows = [ForeignRow("a", vector(1, 1)), ForeignRow("b", vector(2, 2))]
    session.add_batch(["a"], [[0.0, 0.0]])
    with pytest.raises(ConflictError):
        migrate(session, Made(rows))
    report = migrate(session, Made(rows), on_conflict="skip")
    assert (report.added, report.replaced, report.skipped) == (1, 0, 1)
    report = migrate(session, Made(rows), on_conflict="replace")
    assert (report.added, report.replaced, report.skipped) == (0, 2, 0)


def test_an_asynchronous_session_takes_a_store(samples: Path) -> None:
    async def run() -> tuple[MigrationReport, MigrationReport, int]:
        async with VectorDBSession.create(
            s5_portal="memory:", user_seed_phrase="importers", session_id="i", metric="l2"
        ) as session:
            with open_source("fabstir-node", samples / "v030") as source:
                dry = await migrate(session, source, dry_run=True)
            with open_source("chroma", samples / "peers" / "chroma", collection="docs") as source:
                other = await migrate(session, source, dry_run=True)
            with open_source("fabstir-node", samples / "v030") as source:
                report = await migrate(session, source, schema=True)
            assert other.rows == 59
            return dry, report, await session.count()

    dry, report, count = asyncio.run(run())
    assert (dry.rows, dry.added) == (report.rows, 0)
    assert report.added == count > 0


def test_unknown_formats_and_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="must be one of chroma, faiss"):
        open_source("pinecone", tmp_path)
    with pytest.raises(InvalidInputError, match="takes the options ids, metadata, got table"):
        open_source("faiss", tmp_path, table="x")
    for format in FORMATS:
        if format == "lancedb":
            continue
        with pytest.raises(NotFoundError):
            open_source(format, tmp_path / "none")
