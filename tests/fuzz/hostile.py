"""More readers of outside bytes, each as a function: those behind a session, a portal, a file, or a key.

The writer of a share has its keys: so an input of `share` is edits of a good version, which get right hashes, sizes and
seals afterwards.
"""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import anyio
import numpy as np
from choices import EDITS_MAX, Choices, edited
from readers import DATED, KEY, METADATA, PHRASE, TARGETS, TEXTS, Target

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "session"))
from saving import Objects, session_on

from fabstir_vectordb import InvalidInputError, VectorDBError, VectorDBSession, forget_memory_store, sync
from fabstir_vectordb.collections.root import read_root
from fabstir_vectordb.importers import migrate, open_source
from fabstir_vectordb.importers.cbor_reader import CborReader
from fabstir_vectordb.importers.pickles import read_pickle
from fabstir_vectordb.metadata.expiry import parse_expiry_page
from fabstir_vectordb.metadata.schema import parse_schema
from fabstir_vectordb.metadata.values import check_stored, decode_metadata, encode_metadata
from fabstir_vectordb.persist import load as load_module
from fabstir_vectordb.persist.manifest import Manifest, encode_manifest
from fabstir_vectordb.persist.open import open_shared
from fabstir_vectordb.persist.parts import MANIFEST_NAME, PartRecord, StoredPart, seal, unpacked, with_hash
from fabstir_vectordb.s5 import cbor
from fabstir_vectordb.s5.cid import ShareCid, blake3_hash
from fabstir_vectordb.s5.cipher import encrypt_mutable
from fabstir_vectordb.s5.dirv1 import FileEntry, encode_directory
from fabstir_vectordb.s5.registry import RegistryEntry, pointer_data, pointer_hash
from fabstir_vectordb.storage import open_store
from fabstir_vectordb.storage.exchange import Answer

SAMPLES = Path(__file__).resolve().parents[1] / "data" / "import-samples.tar.xz"
#: What stands in the place of a value that was expected to be another.
ODD: tuple[Any, ...] = (
    *(0, 1, -1, 2**31, 2**53, 2**63, 2**64 - 1, -(2**63), -(2**64)),
    *(0.5, -0.0, 1e308, float("inf"), float("nan"), None, True, False),
    *("", "x", "é" * 300, "$and", "a.b", b"", b"\xff" * 32, [], {}, [[]], [None], {"": 0}, {"a": [1, "x"]}),
    *DATED["at"],
    DATED["day"],
    DATED["key"]["é"],
)


def value_of(raw: bytes) -> Any:
    """The value that CBOR bytes stand for, as metadata has them."""
    return cbor.decode(raw, max_bytes=1 << 20, what="value", scalar_tags=True)


def with_odd_values(value: Any, choices: Choices) -> Any:
    """A value with others in some places: every choice goes down one level, or replaces, adds or removes."""
    for _ in range(EDITS_MAX):
        if not choices.left:
            return value
        at, places = value, list(value) if isinstance(value, dict) else range(len(value or ()))
        while places:
            key, what = places[choices.below(len(places))], choices.below(4)
            inner = at[key]
            if what == 0:
                del at[key]
                break
            if what == 1 or not isinstance(inner, (dict, list)) or not inner:
                at[key] = ODD[choices.below(len(ODD))]
                break
            if what == 2 and isinstance(inner, list):
                inner.append(inner[choices.below(len(inner))])
                break
            at, places = inner, list(inner) if isinstance(inner, dict) else range(len(inner))
    return value


# ---- a session's arguments


@cache
def _session() -> sync.VectorDBSession:
    session = sync.VectorDBSession.create(
        s5_portal="memory:", user_seed_phrase=PHRASE, session_id="fuzz", threads=1, text_fields="t"
    )
    rows: list[Any] = [{"a": n, "b": [n, str(n)], "t": f"quick fox {n}"} for n in range(5)]
    rows += [{"a": {"b": n / 2, **DATED}} for n in range(3)]
    session.add_batch([f"r{n}" for n in range(8)], np.eye(8), rows, np.arange(8.0))
    return session


FILTERS: list[Any] = [
    {"a": 1},
    {"a": {"$gte": 1, "$lt": 3.5}, "$or": [{"b": "1"}, {"b": {"$in": [0, "2", None]}}]},
    {"$and": [{"a": {"$exists": True}}, {"$not": {"b": {"$nin": [1]}}}, {"a": {"$ne": 2, "$not": {"$eq": 7}}}]},
    {"a.b": {"$lte": 1}, "a.key.é": DATED["key"]["é"], "a.day": {"$eq": DATED["day"]}},
    {"b": {"$all": [1, "1"], "$size": 2}, "t": {"$startsWith": "q", "$contains": "fox", "$icontains": "FOX"}},
    {"$id": {"$in": ["r0", "r7"]}, "$timestamp": {"$lte": 4.0}},
]


def ask_with_filter(raw: bytes) -> Any:
    """A value as a filter."""
    filter = value_of(raw)
    if not isinstance(filter, dict):
        raise InvalidInputError("no filter")
    count = _session().count(filter)
    assert 0 <= count <= 8
    assert len(_session().search(np.ones(8), 8, filter=filter, threshold=None)) == count
    return count


def filters_with_odd_values(raw: bytes) -> Any:
    """A good filter with odd values."""
    choices = Choices(raw)
    good = value_of(cbor.encode(FILTERS[choices.below(len(FILTERS))]))
    return ask_with_filter(cbor.encode(with_odd_values(good, choices)))


def ask_with_text(raw: bytes) -> Any:
    """Any text as a query of words."""
    text = raw.decode("utf-8", "surrogateescape")
    hits = _session().search(text=text, k=5, highlight=True)
    return [hit.id for hit in hits]


SCHEMAS: list[Any] = [
    {"title": {"type": "string", "required": True}, "year": "Number", "grid": "array<Array<number>>"},
    {"fields": {"author": {"type": "object", "fields": {"name": "String"}}, "tags": {"Array": "UUID"}}, "required": []},
]


def read_schema(raw: bytes) -> Any:
    """A value as a schema."""
    schema = parse_schema(value_of(raw))
    again = parse_schema(schema.document())
    assert again.document() == schema.document()
    for metadata in (value_of(METADATA), {}, {"title": "x", "year": 1}):
        with suppress(InvalidInputError):
            schema.check(metadata)
    return schema


def schemas_with_odd_values(raw: bytes) -> Any:
    """A good schema with odd values."""
    choices = Choices(raw)
    good = value_of(cbor.encode(SCHEMAS[choices.below(len(SCHEMAS))]))
    return read_schema(cbor.encode(with_odd_values(good, choices)))


def keep_metadata(raw: bytes) -> Any:
    """A value as a row's metadata: what is taken is stored in the one form that a load takes."""
    stored = encode_metadata(value_of(raw))
    if stored is not None:
        check_stored(stored, "row")
        assert encode_metadata(decode_metadata(stored)) == stored
    return stored


# ---- pointers and roots under right keys


def read_signed_pointer(raw: bytes) -> Any:
    """Any revision and data, signed."""
    entry = RegistryEntry.sign(KEY, int.from_bytes(raw[:8], "little"), raw[8:])
    again = RegistryEntry.parse(entry.serialize())
    assert again == entry
    again.verify()
    return pointer_hash(again.data)


def read_portal_pointer(raw: bytes) -> Any:
    """The JSON of a portal's answer."""
    entry = RegistryEntry.from_portal_json(Answer(200, raw, {}).json())
    entry.verify()
    return pointer_hash(entry.data)


def read_shared_root(raw: bytes) -> Any:
    """Any plaintext, sealed as a root."""
    return open_shared(ShareCid(KEY, bytes(32)), encrypt_mutable(KEY, KEY[:24], raw))


class _Rows:
    """A session that has the rows of a root, whatever they are."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    async def scan(self) -> Any:
        for row in self._rows:
            yield row


def _shard(number: int, first: str | None) -> Any:
    of = {"cid": "c", "share": "s", "rows": 3, "superseded": False, "first": first}
    return {"kind": "shard", "shard": number, **of}


def _collection(route: str) -> Any:
    of = {"form": 1, "route": route, "dim": 2, "metric": "l2", "M": 16, "ef_construction": 200, "chunk_size": None}
    return {"kind": "collection", **of, "next_shard": 2, "scale": 1.5, "curve": [0.5, 1]}


ROOTS: list[Any] = [
    [[_collection("hash"), None], [_shard(0, ""), None], [_shard(1, "8"), None]],
    [
        *([_collection("nearest"), None], [_shard(0, None), None], [_shard(1, None), None]),
        *([{"kind": "centroid", "shard": shard}, [float(shard), 1.0]] for shard in (0, 1, 1)),
    ],
]


def read_collection(raw: bytes) -> Any:
    """Rows, as pairs of metadata and vector, as the root of a collection."""
    rows = []
    for number, pair in enumerate(value_of(raw)):
        if not isinstance(pair, list) or not pair or not isinstance(pair[0], dict):
            raise InvalidInputError("no row")
        components = pair[1] if len(pair) > 1 else None
        is_vector = isinstance(components, list) and len(components) == 2 and all(type(x) is float for x in components)
        with np.errstate(over="ignore"):
            vector = np.array(components, np.float32) if is_vector else None
        if vector is not None and not np.isfinite(vector).all():
            vector = None  # an index has no such rows
        encode_metadata(pair[0])
        rows.append(SimpleNamespace(id=f"row-{number}", metadata=pair[0], vector=vector))
    reading = read_root(_Rows(rows))
    try:
        reading.send(None)
    except StopIteration as done:
        snapshot = done.value
    assert snapshot.rows >= 0 and snapshot.settings.scale > 0 and snapshot.settings.params.M >= 4
    if snapshot.centroids is None:
        assert snapshot.home_of("id") in snapshot.shards
    assert {"collection"} <= snapshot.lines().keys()
    return snapshot


def collections_with_odd_values(raw: bytes) -> Any:
    """The root of a good collection with odd values."""
    choices = Choices(raw)
    good = value_of(cbor.encode(ROOTS[choices.below(len(ROOTS))]))
    return read_collection(cbor.encode(with_odd_values(good, choices)))


# ---- shares


class _Version(NamedTuple):
    """A good version: its manifest, and the bytes of its parts by name."""

    manifest: Manifest
    parts: Mapping[str, bytes]


async def _saved(rows: int, **fields: Any) -> _Version:
    with TemporaryDirectory() as directory:
        async with await session_on(Path(directory).as_uri(), **fields) as session:
            rng = np.random.default_rng(7)
            metadata = [{"n": n, "t": f"quick fox {n % 7}"} for n in range(rows)] if rows < 1024 else None
            expires = {"expires_at": np.full(rows, 4e9)} if rows < 1024 else {}
            ids, times = [f"r{n}" for n in range(rows)], np.arange(float(rows))
            await session.add_batch(ids, rng.standard_normal((rows, 3)), metadata, times, **expires)
            if rows < 1024:
                await session.update_metadata({"r1": {"n": "other", "t": "dog"}})
            cid = await session.save_to_s5()
        objects = Objects(Path(directory))
        manifest, files = objects.manifest(cid), objects.files(cid)
        parts = {}
        for record in manifest.parts:
            entry = files[record.name]
            parts[record.name] = unpacked(StoredPart(record, entry), objects.blob(entry.hash).read_bytes())
        return _Version(manifest, parts)


@cache
def _version(number: int) -> _Version:
    """With every kind of metadata and words; and with a graph, so that it can be loaded lazily."""
    return anyio.run(partial(_saved, 30, text_fields="t") if number == 0 else partial(_saved, 1100))


async def _open(share: ShareCid, blobs: list[bytes], lazily: bool) -> Any:
    name = "fuzz"
    store = open_store(f"memory:{name}")
    usual = load_module._LAZY_BYTES_MIN
    try:
        for blob in blobs:
            await store.put(blob)
        load_module._LAZY_BYTES_MIN = 0 if lazily else usual
        async with await VectorDBSession.open_share(
            share.reveal(), f"memory:{name}", threads=1, memory_budget_mb=16, become_whole=False
        ) as session:
            for ask in (
                lambda: session.search([1, 0, 0], 5, threshold=None),
                lambda: session.search([1, 0, 0], 5, exact=True, filter={"n": {"$gte": 3}}, threshold=None),
                lambda: session.search(text='quick +"fox 3" d*', k=5),
                lambda: session.facets("n"),
                lambda: session.get(["r1", "r7"]),
                session.get_stats,
            ):
                with suppress(VectorDBError):
                    await ask()
            return [row.id async for row in session.scan()]
    finally:
        load_module._LAZY_BYTES_MIN = usual
        await store.aclose()
        forget_memory_store(name)


def open_hostile_share(raw: bytes) -> Any:
    """A version with edits, of a part, the manifest or the root, under right keys, hashes and sizes."""
    choices = Choices(raw)
    version = _version(choices.below(2))
    lazily = choices.below(2) == 1
    parts, names = dict(version.parts), sorted(version.parts)
    of_manifest, of_root = [], []
    for _ in range(choices.below(EDITS_MAX)):
        which = choices.below(len(names) + 2)
        if which < len(names):
            name, is_native = names[which], parts[names[which]][:4] == b"FVDB"
            part = edited(parts[name], choices, list(parts.values()), 40 if is_native else 0)
            parts[name] = part[:32] + (len(part) - 40).to_bytes(8, "little") + part[40:] if is_native else part
        else:
            (of_manifest if which == len(names) else of_root).append(Choices(choices.take(12)))
    records = [PartRecord(name, blake3_hash(part), len(part), "raw") for name, part in sorted(parts.items())]
    blobs: list[bytes] = []

    def sealed(plain: bytes, media_type: str) -> FileEntry:
        entry, blob = seal(plain, KEY, media_type)
        blobs.append(bytes(blob))
        return with_hash(entry, blake3_hash(blob))

    files = {name: sealed(part, "application/octet-stream") for name, part in parts.items()}
    manifest = encode_manifest(replace(version.manifest, parts=tuple(records)))
    for choices in of_manifest:
        if choices.below(2):
            manifest = edited(manifest, choices, [manifest])
        else:
            with suppress(VectorDBError):
                manifest = cbor.encode(with_odd_values(value_of(manifest), choices))
    root = encode_directory({**files, MANIFEST_NAME: sealed(manifest, "application/cbor")})
    for choices in of_root:
        root = edited(root, choices, [root])
    blobs.append(encrypt_mutable(KEY, KEY[:24], root))
    return anyio.run(_open, ShareCid(KEY, blake3_hash(blobs[-1])), blobs, lazily)


# ---- imports


STORES: list[tuple[str, str, dict[str, Any]]] = [
    ("fabstir-node", "V022", {}),
    ("fabstir-node", "V010", {}),
    ("fabstir-sdk", "sdk-store/json", {}),
    ("hnswlib", "peers/h.bin", {}),
    ("faiss", "peers/flat.faiss", {}),
    ("faiss", "peers/ivf.faiss", {}),
    ("faiss", "peers/idhnsw.faiss", {}),
    ("chroma", "peers/chroma", {"collection": "big"}),
    ("qdrant", "peers/qdrant", {"collection": "docs"}),
]


@cache
def _samples() -> dict[str, bytes]:
    with tarfile.open(SAMPLES) as archive:
        files = [member for member in archive if member.isfile()]
        return {
            member.name.removeprefix("import-samples/"): archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in files
        }


def import_store(raw: bytes) -> Any:
    """A foreign store with edits of its files."""
    choices = Choices(raw)
    format, name, options = STORES[choices.below(len(STORES))]
    files = {path: raw for path, raw in _samples().items() if path == name or path.startswith(f"{name}/")}
    names = sorted(files)
    for _ in range(choices.below(EDITS_MAX)):
        path = names[choices.below(len(names))]
        files[path] = edited(files[path], choices, list(files.values()))
    with TemporaryDirectory() as directory:
        for path, content in files.items():
            target = Path(directory, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        try:
            with open_source(format, Path(directory, name), **options) as source:
                return migrate(None, source, dry_run=True)
        except OSError as error:
            raise InvalidInputError(ascii(str(error))) from None


def read_foreign_cbor(raw: bytes) -> Any:
    """CBOR of the earlier Node package, in each way that it is read."""
    for read in (CborReader.floats, CborReader.id, CborReader.skip):
        with suppress(VectorDBError):
            read(CborReader(raw, "it"))
    return CborReader(raw, "it").value()


# ---- the portal


ROUTES: tuple[str, ...] = (
    "/s5/blob/",
    "/s5/download/",
    "/s5/storage/",
    "/s5/debug/storage_locations/",
    "/s5/fs/",
    "/s5/registry",
)
ROUTES += ("/s5/account/register", "/s5/account/login", "/s5/upload", "/s5/delete/", "/health", "/")
METHODS = ("GET", "PUT", "POST", "HEAD", "DELETE", "OPTIONS", "PATCH")
HEADERS = (
    b"content-type",
    b"range",
    b"cookie",
    b"authorization",
    b"origin",
    b"content-length",
    b"if-none-match",
    b"host",
)


@cache
def _portal(accounts: bool) -> Callable[..., Any]:
    from fabstir_vectordb.portal.app import create_app

    return create_app(Path(mkdtemp(prefix="fvdb-fuzz-portal-")), accounts=accounts)


def ask_portal(raw: bytes) -> Any:
    """A request of any method, path, query, headers and body."""
    choices = Choices(raw)
    accounts, method = choices.below(8) == 7, METHODS[choices.below(len(METHODS))]
    route = ROUTES[choices.below(len(ROUTES))]
    path, query = (quote(choices.take(choices.below(64)), safe="/%=&;") for _ in range(2))
    headers = [] if choices.below(8) == 7 else [(b"host", b"localhost")]
    for _ in range(choices.below(4)):
        name, value = HEADERS[choices.below(len(HEADERS))], choices.take(choices.below(64))
        headers.append((name, bytes(byte for byte in value if byte >= 32)))
    body, statuses = io.BytesIO(choices.rest()), []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(route + path),
        "raw_path": (route + path).encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
    }

    async def receive() -> Any:
        if statuses:
            return {"type": "http.disconnect"}
        piece = body.read(50)
        return {"type": "http.request", "body": piece, "more_body": len(piece) == 50}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    anyio.run(_portal(accounts), scope, receive, send)
    assert statuses and statuses[0] < 500, statuses
    return statuses[0]


ENTRY = RegistryEntry.sign(KEY, 7, pointer_data(bytes(32)))
MORE: dict[str, Target] = {
    "expiries": Target(
        lambda raw: parse_expiry_page(0, 20, raw, 20),
        [b"\2\0\0\0" + b"\1\0\0\0\7\0\0\0" + b"\5" + bytes(7) + b"\6" + bytes(7)],
    ),
    "metadata": Target(keep_metadata, [METADATA, cbor.encode(DATED)]),
    "signed pointer": Target(read_signed_pointer, [b"\7" + bytes(7) + pointer_data(KEY)]),
    "portal pointer": Target(
        read_portal_pointer, [cbor.encode("x"), str(ENTRY.to_portal_json()).replace("'", '"').encode()]
    ),
    "shared root": Target(read_shared_root, [encode_directory({})]),
    "collection": Target(read_collection, [cbor.encode(root) for root in ROOTS]),
    "collection values": Target(collections_with_odd_values, [b"\0", b"\1"]),
    "filter": Target(ask_with_filter, [cbor.encode(filter) for filter in FILTERS]),
    "filter values": Target(filters_with_odd_values, [bytes([n]) for n in range(len(FILTERS))]),
    "text query": Target(ask_with_text, ['quick "brown fox" +fox* -dog “curved” a\u0301'.encode()]),
    "schema": Target(read_schema, [cbor.encode(schema) for schema in SCHEMAS]),
    "schema values": Target(schemas_with_odd_values, [bytes([n]) for n in range(len(SCHEMAS))]),
    "share": Target(open_hostile_share, [b"\0\0", b"\1\0", b"\1\1"]),
    "import": Target(import_store, [bytes([n]) for n in range(len(STORES))]),
    "foreign cbor": Target(read_foreign_cbor, [METADATA, cbor.encode([0.5, 1.5])]),
    "pickle": Target(
        lambda raw: read_pickle(raw, "it"), [b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01K\x02eu."]
    ),
    "portal": Target(ask_portal, [bytes([0, 0, 4, 4]) + b"home", bytes([0, 2, 5])]),
}


def _of_text(read: Callable[[str], Any], texts: list[str]) -> Target:
    return Target(lambda raw: read(raw.decode("utf-8", "surrogateescape")), [text.encode() for text in texts])


ALL: dict[str, Target] = {
    name.replace(" ", "-"): target
    for name, target in {
        **TARGETS,
        **{name: _of_text(*reader) for name, reader in TEXTS.items()},
        **MORE,
    }.items()
}
"""Every reader in Python, by the name of its file of kept inputs."""
