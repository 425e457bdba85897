"""Foreign stores are hostile: whatever their bytes are, an import ends in rows or a typed error, in bounded memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sqlite3
import struct
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabstir_vectordb import IntegrityError, InvalidInputError, NotFoundError, VectorDBError
from fabstir_vectordb.importers import Notes, base, chroma_folder, migrate, open_source, pickles, sqlite_vec_file
from fabstir_vectordb.importers.base import Unstorable, parse_json, read_file, storable
from fabstir_vectordb.importers.cbor_reader import CborReader
from fabstir_vectordb.importers.pickles import Inert, read_pickle
from fabstir_vectordb.importers.sqlite_file import SqliteFile

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytest_plugins = ["stored"]

STORES: list[tuple[str, str, dict[str, Any]]] = [
    ("fabstir-node", "V010", {}),
    ("fabstir-node", "v030", {}),
    ("fabstir-sdk", "sdk-store/my-docs", {}),
    ("fabstir-sdk", "sdk-store/json", {}),
    ("hnswlib", "peers/h.bin", {}),
    ("faiss", "peers/flat.faiss", {}),
    ("faiss", "peers/ivfdm.faiss", {}),
    ("faiss", "peers/idhnsw.faiss", {}),
    ("sqlite-vec", "peers/v.db", {"table": "docs"}),
    ("qdrant", "peers/qdrant", {"collection": "docs"}),
    ("chroma", "peers/chroma", {"collection": "big"}),
]
#: Errors that only some formats have: a manifest that looks encrypted.
MORE = {"DecryptionError"}
#: Most bytes of Python objects that an import of a store of some hundred kilobytes may take.
MEMORY_MAX = 48 << 20


@contextmanager
def bounded(most: int = MEMORY_MAX) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def tried(format: str, path: Path, options: dict[str, Any]) -> str:
    """Imports a store for nothing: ``rows``, or the name of the typed error. Any other error fails the test."""
    try:
        with open_source(format, path, **options) as source:
            migrate(None, source, dry_run=True)
    except (VectorDBError, OSError) as error:
        return type(error).__name__ if len(str(error)) < 2_000 else "an endless message"
    return "rows"


@pytest.mark.parametrize(("format", "name", "options"), STORES, ids=[f"{s[0]}-{Path(s[1]).name}" for s in STORES])
def test_damaged_stores_end_in_rows_or_a_typed_error(
    samples: Path, tmp_path: Path, format: str, name: str, options: dict[str, Any]
) -> None:
    """Each file cut off, emptied, missing, and with bits and numbers changed."""
    rng = np.random.default_rng(7)
    origin = samples / name
    copy = tmp_path / "store"
    if origin.is_dir():
        shutil.copytree(origin, copy)
    else:
        shutil.copy(origin, copy)
    assert tried(format, copy, options) == "rows"
    files = sorted(path for path in copy.rglob("*") if path.is_file()) if copy.is_dir() else [copy]
    ends = set()
    tries = (16 if format == "fabstir-node" else 24) // len(files)
    for path in files:
        raw = path.read_bytes()
        with bounded():
            for damaged in variants(raw, rng, tries):
                path.write_bytes(damaged)
                ends.add(tried(format, copy, options))
            path.unlink()
            ends.add(tried(format, copy, options))
        path.write_bytes(raw)
    assert {"IntegrityError"} <= ends <= {"IntegrityError", "InvalidInputError", "NotFoundError", "rows", *MORE}
    assert tried(format, copy, options) == "rows"


def variants(raw: bytes, rng: np.random.Generator, tries: int) -> Iterator[bytes]:
    yield b""
    for n in range(tries if raw else 0):
        at = int(rng.integers(len(raw))) if n % 2 else int(rng.integers(min(len(raw), 200)))
        match n % 4:
            case 0:
                yield raw[:at]
            case 1:
                yield raw[:at] + bytes([raw[at] ^ 1 << int(rng.integers(8))]) + raw[at + 1 :]
            case 2:
                yield raw[:at] + b"\xff" * 8 + raw[at + 8 :]
            case _:
                yield raw[:at] + rng.bytes(4) + raw[at + 4 :]


# ---- CBOR


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x9b" + b"\xff" * 8,  # arrays, maps, texts and bytes of 2^64 - 1 items
        b"\xbb" + b"\xff" * 8,
        b"\x7b" + b"\xff" * 8 + b"a",
        b"\x5b" + b"\xff" * 8 + b"a",
        b"\x9b\x00\x00\x00\x01\x00\x00\x00\x00" + b"\x00" * 100,
        b"\x9f\xff",  # indefinite
        b"\x81" * 5_000 + b"\x00",
        b"\xa1\x01\x02",
        b"\xc0\x61a",
        b"\xf8\x20",
        b"\x61\xff",
        b"\x1c",
        b"\x82\x00",
    ],
)
def test_cbor_that_breaks_the_rules_is_refused(raw: bytes) -> None:
    with bounded(1 << 20):
        for read in (CborReader.value, CborReader.floats, CborReader.id):
            with pytest.raises(IntegrityError):
                read(CborReader(raw, "it"))


def test_cbor_of_every_width_is_read() -> None:
    raw = (
        b"\x88"
        + b"\xf9\x3c\x00"
        + b"\xfa\x3f\x80\x00\x00"
        + b"\xfb\x3f\xf0"
        + bytes(6)
        + b"\x01\x20\x18\x80\x19\x01\x00"
    )
    raw += b"\xf9\x7e\x00"
    numbers = CborReader(raw, "it").floats()
    assert numbers[:-1].tolist() == [1, 1, 1, 1, -1, 128, 256]
    assert np.isnan(numbers[-1])
    assert CborReader(b"\xb9\x00\x02aa\xf7ab\x83\xf5\xf4\xf6", "it").value() == {"a": None, "b": [True, False, None]}
    with pytest.raises(IntegrityError, match="more than 100 bytes"):
        CborReader(b"\x58\x80" + bytes(128), "it").value(100)


# ---- pickles


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    "raw",
    [
        pickle.dumps(Evil()),
        pickle.dumps(Evil(), 0),
        pickle.dumps(Evil(), 2),
        b"cos\nsystem\n(S'touch pwned'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x071/0 + 1\x85R.",
        pickle.dumps(np.zeros(3)),
        pickle.dumps(io.BytesIO()),
        b"\x80\x02I1\n.",  # INT, which is text
        b"\x80\x02(dl.",
        b"\x80\x04P1\n.",  # a persistent id
        b"\x80\x02\x82\x01.",  # the extension registry
        b"\x80\x04\x8d" + b"\xff" * 8 + b".",
        b"\x80\x04\x8e" + b"\xff" * 8 + b".",
        b"\x80\x04\x8b\xff\xff\xff\x7f.",  # LONG4
        b"\x80\x04(((((e.",
        b"\x80\x04]NNs.",
        b"\x80\x04}]Ns.",
        b"\x80\x04h\x05.",
        b"\x80\x04.",
        b"\x80\x04N",
        b"\x80\x04a.",
        b"\x80\x04e.",
        b"\x80\x04u.",
        b"\x80\x04Nb.",
        b"\x80\x04)\x81.",
    ],
)
def test_pickles_that_are_no_data_are_refused(raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with bounded(1 << 20), pytest.raises(IntegrityError):
        read_pickle(raw, "it")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_data_are_read(protocol: int) -> None:
    value = {"a": [1, -1, 2**40, 2.5, None, True, False, "é", (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}], "b": {"c"}}
    if protocol < 4:
        value["b"] = ["c"]
    assert read_pickle(pickle.dumps(value, protocol), "it") == value


def test_a_class_that_is_expected_makes_no_object() -> None:
    raw = pickle.dumps(Evil)
    name = f"{Evil.__module__}.Evil"
    with pytest.raises(IntegrityError, match="its value is a class"):
        read_pickle(raw, "it", (name,))
    made = read_pickle(pickle.dumps(np.float64(1)), "it", ("numpy._core.multiarray.scalar", "numpy.dtype"))
    assert isinstance(made, Inert)
    assert isinstance(storable(made, Notes()), Unstorable)


def test_pickles_cannot_take_more_memory_than_they_should() -> None:
    with bounded(128 << 20), pytest.raises(IntegrityError, match="more than 250,000 containers"):
        read_pickle(b"\x80\x04(" + b"\x8f" * 300_000 + b"t.", "it")


def test_pickles_cannot_remember_or_stack_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_MEMO_MAX", 1_000)
    monkeypatch.setattr(pickles, "_STACK_MAX", 1_000)
    for item in (b"\x94", b"N"):
        with pytest.raises(IntegrityError, match="more values than"):
            read_pickle(b"\x80\x04(N" + item * 2_000 + b"t.", "it")


@pytest.mark.parametrize("protocol", [2, 4])
def test_keys_that_take_a_stack_or_time_without_end_are_refused(protocol: int) -> None:
    """Deep tuples end the process when they are hashed, shared ones take 2^n steps, long integers share a hash."""
    for key in (b")" + b"\x85" * 120_000, b"]", b"}"):
        for pickled in (b"\x80\x04}" + key + b"Ns.", b"\x80\x04}(" + key + b"Nu.", b"\x80\x04\x8f(" + key + b"\x90."):
            with pytest.raises(IntegrityError, match="as a key or in a set"):
                read_pickle(pickled, "it")
    shared: Any = ("x",)
    for _ in range(60):
        shared = (shared, shared)
    body = pickle.dumps(shared, protocol)[2:-1]
    with pytest.raises(IntegrityError, match="a tuple as a key"):
        read_pickle(b"\x80\x04}" + body + b"Ns.", "it")
    assert storable({("x",): 1}, Notes()) == Unstorable("metadata has a tuple as a key")
    for wrong in ({2**64: 1}, {-(2**63) - 1: 1}, {(2**61 - 1) * 2**70: 1}):
        with pytest.raises(IntegrityError, match="an integer of more than 64 bits"):
            read_pickle(pickle.dumps(wrong, protocol), "it")
    right = {"a": 1, b"b": 2, 1.5: 3, True: 4, None: 5, 2**64 - 1: 6, -(2**63): 7}
    right = {key: value for key, value in right.items() if protocol > 2 or not isinstance(key, bytes)}
    assert read_pickle(pickle.dumps(right, protocol), "it") == right
    if protocol == 4:
        assert read_pickle(pickle.dumps({"a", 1, None}, protocol), "it") == {"a", 1, None}
    assert storable({1: 1, None: 2, b"k": 3}, Notes()) == {"1": 1, "None": 2, "b'k'": 3}


def test_json_cannot_take_more_memory_than_it_should() -> None:
    with bounded(16 << 20), pytest.raises(IntegrityError, match="more than 2,000,000 lists and objects"):
        parse_json(b'{"a": [' + b"{}," * 2_100_000 + b"1]}", "it")


def test_metadata_that_an_index_cannot_hold_leaves_its_row_out(samples: Path, tmp_path: Path) -> None:
    shutil.copytree(samples / "sdk-store" / "json" / "my-docs", tmp_path / "s")

    def change(chunk: dict[str, Any]) -> None:
        deep: Any = 1
        for _ in range(70):
            deep = [deep]
        chunk["vectors"][0]["metadata"] = {"deep": deep}
        chunk["vectors"][1]["metadata"] = {"many": [0] * 210_000}

    edited(tmp_path / "s" / "chunk-0.json", change)
    with open_source("fabstir-sdk", tmp_path / "s") as source:
        report = migrate(None, source, dry_run=True)
    assert (report.rows, sum(report.left_out.values())) == (10, 2)


def test_values_that_contain_themselves_or_multiply_end(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_VALUES_MAX", 10_000)
    circle: list[Any] = []
    circle.append(circle)
    wide: list[Any] = ["x"]
    for _ in range(40):
        wide = [wide] * 10
    for value in (circle, wide):
        read = read_pickle(pickle.dumps(value), "it")
        with bounded():
            assert storable(read, Notes()) == Unstorable("metadata is nested too deeply, or has too many values")
    # In a store the point is left out, and the others come.
    shutil.copytree(samples / "peers" / "qdrant", tmp_path / "q")
    database = sqlite3.connect(tmp_path / "q" / "collection" / "docs" / "storage.sqlite")
    raw = database.execute("SELECT point FROM points LIMIT 1").fetchone()[0]
    at = raw.index(b"K\x00\x8c\x01s")
    database.execute("UPDATE points SET point = ? WHERE rowid = 1", (raw[:at] + b"]\x94h\x00a" + raw[at + 2 :],))
    forged = pickle.dumps(wide)[11:-1]
    database.execute("UPDATE points SET point = ? WHERE rowid = 2", (raw[:at] + forged + raw[at + 2 :],))
    database.commit()
    database.close()
    with bounded():
        assert tried("qdrant", tmp_path / "q", {"collection": "docs"}) in ("rows", "IntegrityError")


# ---- SQLite


def database(path: Path, *statements: str) -> Path:
    path.unlink(missing_ok=True)
    made = sqlite3.connect(path)
    for statement in statements:
        made.execute(statement)
    made.commit()
    made.close()
    return path


def test_a_database_can_only_be_read(tmp_path: Path) -> None:
    path = database(
        tmp_path / "d.db", "CREATE TABLE t(a)", "INSERT INTO t VALUES (1)", "CREATE VIEW v AS SELECT a FROM t"
    )
    before = path.read_bytes()
    with SqliteFile(path) as file:
        assert list(file.rows("SELECT a FROM t")) == [(1,)]
        for query in (
            "INSERT INTO t VALUES (2)",
            "DROP TABLE t",
            "ATTACH 'other.db' AS o",
            "PRAGMA trusted_schema=ON",
            "SELECT load_extension('x')",
            "SELECT randomblob(1000)",
            "CREATE TABLE u(a)",
            "VACUUM INTO 'copy.db'",
        ):
            with pytest.raises(IntegrityError):
                list(file.rows(query))
        assert file.one("SELECT a FROM t WHERE a = 5") is None
        with pytest.raises(IntegrityError, match="no table 'v'"):
            file.need("v")
        with pytest.raises(IntegrityError, match="no table"):
            file.quoted('t"; DROP TABLE t; --')
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["d.db"]


def test_values_of_a_schema_run_nothing(tmp_path: Path) -> None:
    """Generated columns and a view that call functions, and a virtual table whose declaration hides that it is one."""
    path = database(
        tmp_path / "d.db",
        "CREATE TABLE t(a, b AS (zeroblob(a)) VIRTUAL)",
        "CREATE TABLE s(a, b AS (a + 1) STORED)",
        "CREATE TABLE plain(a)",
        "INSERT INTO t(a) VALUES (60000000)",
        "INSERT INTO plain VALUES (5)",
        "CREATE VIEW points AS SELECT randomblob(100000000) AS point",
        "CREATE TABLE hidden(a)",
        "PRAGMA writable_schema=ON",
        "UPDATE sqlite_master SET sql = 'CREATE/**/VIRTUAL TABLE hidden USING fts5(a)', rootpage = 0"
        " WHERE name = 'hidden'",
    )
    with SqliteFile(path) as file, bounded():
        for query in ("SELECT b FROM t", "SELECT a FROM t", "SELECT count(*) FROM t", "SELECT b FROM s"):
            with pytest.raises(IntegrityError, match=r"prohibited|not authorized"):
                list(file.rows(query))
        for name in ("t", "s"):
            with pytest.raises(IntegrityError, match="generated or hidden column"):
                file.need(name)
        for name in ("points", "hidden"):
            with pytest.raises(IntegrityError, match="no table"):
                file.need(name)
        assert list(file.rows("SELECT a FROM plain")) == [(5,)]


def test_a_write_ahead_log_is_read_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "d.db"
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE t(a)")
    writer.execute("INSERT INTO t VALUES (1)")
    writer.commit()
    copied = tmp_path / "copy"
    copied.mkdir()
    for name in ("d.db", "d.db-wal"):
        shutil.copy(tmp_path / name, copied / name)
    writer.close()
    before = {entry.name: entry.read_bytes() for entry in copied.iterdir()}
    with SqliteFile(copied / "d.db") as file:
        assert list(file.rows("SELECT a FROM t")) == [(1,)]
    assert {entry.name: entry.read_bytes() for entry in copied.iterdir()} == before


@pytest.mark.parametrize("log", [False, True])
def test_a_journal_is_refused_and_the_file_that_it_names_stays(tmp_path: Path, log: bool) -> None:
    """A program that ended within a transaction leaves one. SQLite would delete the super-journal that it names."""
    path = database(tmp_path / "d.db", "CREATE TABLE t(a)", "INSERT INTO t VALUES (1)")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA cache_size=1")
    writer.execute("BEGIN")
    writer.executemany("INSERT INTO t VALUES (?)", [("x" * 1_000,)] * 500)
    copied = tmp_path / "copy"
    copied.mkdir()
    for entry in list(tmp_path.glob("d.db*")):
        shutil.copy(entry, copied / entry.name)
    writer.execute("ROLLBACK")
    writer.close()
    victim = tmp_path / "victim"
    victim.write_bytes(b"of the user")
    name = os.fsencode(victim)
    numbers = struct.pack(">ii", len(name), sum(struct.unpack(f"{len(name)}b", name)))
    with (copied / "d.db-journal").open("ab") as journal:
        journal.write(struct.pack(">I", 0x40000000 // 4096 + 1) + name + numbers + bytes.fromhex("d9d505f920a163d7"))
    if log:
        (copied / "d.db-wal").write_bytes(b"x" * 64)
    before = {entry.name: entry.read_bytes() for entry in copied.iterdir()}
    with pytest.raises(IntegrityError, match="open it once with its own program"):
        SqliteFile(copied / "d.db")
    assert tried("sqlite-vec", copied / "d.db", {}) == "IntegrityError"
    assert victim.read_bytes() == b"of the user"
    assert {entry.name: entry.read_bytes() for entry in copied.iterdir()} == before


def test_a_journal_of_a_change_that_ended_is_no_hindrance(tmp_path: Path) -> None:
    """PERSIST leaves the journal beside the file, its head cleared."""
    path = database(tmp_path / "d.db", "PRAGMA journal_mode=PERSIST", "CREATE TABLE t(a)", "INSERT INTO t VALUES (1)")
    journal = path.with_name("d.db-journal")
    assert journal.stat().st_size > 0
    with SqliteFile(path) as file:
        assert list(file.rows("SELECT a FROM t")) == [(1,)]
    journal.write_bytes(b"\0" * 27 + b"x" + b"\0" * 500)
    with pytest.raises(IntegrityError, match="open it once with its own program"):
        SqliteFile(path)


def test_long_declarations_take_linear_time() -> None:
    """What grew with the square of the length took minutes here."""
    head = "CREATE VIRTUAL TABLE t "
    for filling in (" ", "using ", "using vec0(", ") ;"):
        text = head + filling * (65_000 // len(filling))
        assert sqlite_vec_file._declared(text) is None
    assert sqlite_vec_file._declared(f"{head}USING vec0( a float[2] ) ;\n") == " a float[2] "
    assert sqlite_vec_file._declared("CREATE VIRTUAL TABLE t using vec0(") is None
    assert chroma_folder._space(json.dumps([[n] for n in range(100_000)] + [{"space": "ip"}])) == "ip"


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE docs_chunks(chunk_id, size, validity, rowids)",
        "CREATE VIEW docs_chunks AS SELECT 1 AS chunk_id, 1024 AS size, zeroblob(128) AS validity, 1 AS rowids",
    ],
)
def test_a_virtual_table_is_declared_and_its_shadow_tables_are_not_what_they_should_be(
    tmp_path: Path, sql: str
) -> None:
    declared = "CREATE VIRTUAL TABLE docs using vec0(e float[4])"
    path = database(tmp_path / "d.db", "CREATE TABLE docs(a)", sql)
    made = sqlite3.connect(path)
    made.execute("PRAGMA writable_schema=ON")
    made.execute("UPDATE sqlite_master SET sql = ?, rootpage = 0 WHERE name = 'docs'", (declared,))
    if "TABLE docs_chunks" in sql:
        made.execute("INSERT INTO docs_chunks VALUES (1, 9000000000, zeroblob(8), 5)")
    made.commit()
    made.close()
    assert tried("sqlite-vec", path, {}) == "IntegrityError"


# ---- names, kinds of files, sizes


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("name", ["../../../etc/passwd", "chunk-0/../x", "/etc/passwd", "chunk-", 5, None, "chunk-0\0"])
def test_names_in_a_manifest_are_no_paths(samples: Path, tmp_path: Path, name: Any) -> None:
    shutil.copytree(samples / "v030", tmp_path / "n")
    edited(tmp_path / "n" / "manifest.json", lambda manifest: manifest["chunks"][0].update(chunk_id=name))
    assert tried("fabstir-node", tmp_path / "n", {}) == "IntegrityError"
    shutil.copytree(samples / "sdk-store" / "json" / "my-docs", tmp_path / "s")
    edited(tmp_path / "s" / "manifest.json", lambda manifest: manifest["chunks"][0].update(chunkId=name))
    assert tried("fabstir-sdk", tmp_path / "s", {}) == ("NotFoundError" if name == 5 else "IntegrityError")
    shutil.copytree(samples / "peers" / "qdrant", tmp_path / "q")
    if isinstance(name, str) and "/" in name:
        edited(
            tmp_path / "q" / "meta.json", lambda meta: meta["collections"].update({name: meta["collections"]["docs"]})
        )
        assert tried("qdrant", tmp_path / "q", {"collection": name}) == "IntegrityError"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_pipes_in_place_of_files_do_not_hang(samples: Path, tmp_path: Path) -> None:
    shutil.copytree(samples / "v030", tmp_path / "n")
    (tmp_path / "n" / "chunks" / "chunk-0.cbor").unlink()
    os.mkfifo(tmp_path / "n" / "chunks" / "chunk-0.cbor")
    assert tried("fabstir-node", tmp_path / "n", {}) == "IntegrityError"
    os.mkfifo(tmp_path / "pipe")
    for format in ("faiss", "hnswlib", "sqlite-vec"):
        assert tried(format, tmp_path / "pipe", {}) == "IntegrityError"


def test_a_list_that_decompresses_without_end_is_refused(samples: Path, tmp_path: Path) -> None:
    shutil.copytree(samples / "V010", tmp_path / "n")
    bomb = zstd.compress(bytes(1 << 28), 19)
    assert len(bomb) < 100_000
    (tmp_path / "n" / "historical" / "inverted_lists" / "cluster_000000.cbor").write_bytes(bomb)
    with bounded(160 << 20):
        assert tried("fabstir-node", tmp_path / "n", {}) == "IntegrityError"


def test_lists_of_the_first_layout_come_compressed_or_not(samples: Path, tmp_path: Path) -> None:
    """Rows that the first release had moved to lists, as one map a file, as arrays of them, and compressed."""
    shutil.copytree(samples / "V010", tmp_path / "n")
    lists = tmp_path / "n" / "historical" / "inverted_lists"
    nodes = tmp_path / "n" / "recent" / "nodes" / "chunk_0000.cbor"
    reader = CborReader(nodes.read_bytes(), "nodes")
    rows = []
    for _ in reader.array():
        for key in reader.text_keys():
            if key == "id":
                rows.append(reader.id())
            else:
                reader.skip()
    array = [b"\x98\x20" + b"".join(bytes([v]) if v < 24 else bytes([24, v]) for v in id) for id in rows[:3]]
    vector = b"\x99\x01\x80" + b"\xf9\x38\x00" * 384
    cluster = [b"\xa2jcluster_id\x00gvectors\xa1" + id + vector for id in array]
    nodes.write_bytes(b"\x80")
    (lists / "cluster_000000.cbor").write_bytes(cluster[0])
    (lists / "cluster_000001.cbor").write_bytes(zstd.compress(b"\x81" + cluster[1]))
    (lists / "chunk_0000.cbor").write_bytes(b"\x82" + cluster[1] + cluster[2])
    with open_source("fabstir-node", tmp_path / "n") as source:
        found = list(source.rows())
    assert {row.id for row in found} == {f"vec_{id[:4].hex()}" for id in rows[:3]}
    assert all((row.vector == 0.5).all() for row in found)
    assert "rows that several chunks hold came once" in source.notes.texts


@pytest.mark.parametrize(
    ("at", "value"),
    [(4, 2**31 - 1), (4, 0), (8, 2**62), (8, 2**63), (37, 2**61), (37, 2**64 - 1)],
)
def test_counts_of_an_index_of_faiss_are_checked(samples: Path, tmp_path: Path, at: int, value: int) -> None:
    raw = (samples / "peers" / "flat.faiss").read_bytes()
    form = "<I" if at == 4 else "<Q"
    path = tmp_path / "x.faiss"
    path.write_bytes(raw[:at] + struct.pack(form, value) + raw[at + struct.calcsize(form) :])
    with bounded(1 << 20):
        assert tried("faiss", path, {}) == "IntegrityError"


def test_indexes_of_faiss_that_nest_without_end_are_refused(samples: Path, tmp_path: Path) -> None:
    header = b"IxMp" + (samples / "peers" / "flat.faiss").read_bytes()[4:37]
    (tmp_path / "x.faiss").write_bytes(header * 10_000)
    assert tried("faiss", tmp_path / "x.faiss", {}) == "IntegrityError"


@pytest.mark.parametrize(("field", "value"), [(0, 8), (2, 2**60), (3, 7), (3, 2**63), (4, 0), (5, 2**40), (9, 2**62)])
def test_sizes_of_an_index_of_hnswlib_are_checked(samples: Path, tmp_path: Path, field: int, value: int) -> None:
    raw = (samples / "peers" / "h.bin").read_bytes()
    header = struct.Struct("<6QiI3QdQ")
    fields = list(header.unpack_from(raw))
    fields[field] = value
    (tmp_path / "h.bin").write_bytes(header.pack(*fields) + raw[header.size :])
    with bounded(1 << 20):
        assert tried("hnswlib", tmp_path / "h.bin", {}) == "IntegrityError"


def test_files_larger_than_they_may_be_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with bounded(1 << 20):
        with pytest.raises(IntegrityError, match="more than the"):
            read_file(path)
        assert tried("fabstir-node", tmp_path, {}) == "IntegrityError"
        assert tried("fabstir-sdk", tmp_path, {}) == "IntegrityError"
    with pytest.raises(IntegrityError, match="no regular file"):
        read_file(tmp_path)
    with pytest.raises(NotFoundError):
        read_file(tmp_path / "none")
    with pytest.raises(InvalidInputError, match="is no path"):
        read_file(tmp_path / "a\0b")


def test_metadata_of_other_types_becomes_text_and_the_report_says_so() -> None:
    notes = Notes()
    value = {
        "b": b"\x00",
        5: float("nan"),
        "n": 2**70,
        "t": (1, {2}),
        "s": "\ud800",
        "d": Decimal("1.5"),
    }
    assert storable(value, notes) == {
        "b": "AA==",
        "5": None,
        "n": str(2**70),
        "t": [1, [2]],
        "s": "?",
        "d": "1.5",
    }
    assert len(notes.texts) == 6
