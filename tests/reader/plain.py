"""A second reader of stored versions, written from docs/format.md alone.

It shares no code with the package: numpy, blake3, PyNaCl, cbor2 and zstd are all it has. It is as strict as the
document: a byte that nothing accounts for is an error. It reads the directory of a `file:///` store.
"""

from __future__ import annotations

import base64
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import cbor2
import numpy as np
from blake3 import blake3
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt as open_sealed
from nacl.signing import SigningKey, VerifyKey
from numpy.typing import NDArray

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK, TAG = 262_144, 16
PART_NAMES = {
    "vectors": 1,
    "codes": 2,
    "ids": 3,
    "timestamps": 4,
    "tombstones": 5,
    "recent.graph": 6,
    "recent.head": 7,
    "historical.list": 8,
    "historical.head": 9,
    "bare": 10,
    "historical.second": 11,
}


class FormatError(Exception):
    """Bytes are not what docs/format.md says."""


def check(holds: object, what: str) -> None:
    """Raises FormatError where a rule of the format does not hold."""
    if not holds:
        raise FormatError(what)


# ---- Keys and CIDs ----


def derive(base: bytes, number: int) -> bytes:
    """S5's derivation by number."""
    return blake3(base + number.to_bytes(32, "little")).digest()


def step(base: bytes, name: str) -> bytes:
    """S5's derivation by name."""
    return blake3(base + blake3(name.encode()).digest()).digest()


def path_key(entropy: bytes, path: str) -> bytes:
    """The parent of a path's keys."""
    return path_key_of_seed(blake3(entropy).digest(), path)


def path_key_of_seed(seed: bytes, path: str) -> bytes:
    """The parent of a path's keys, of an identity seed."""
    key = derive(derive(derive(derive(seed, 0), 64), 0), 66)
    for segment in path.split("/"):
        key = step(key, segment)
    return derive(key, 1)


def purpose_key(key: bytes, purpose: str) -> bytes:
    """The key of one purpose, since draft 5."""
    return blake3(key, derive_key_context=f"fabstir_vectordb 2026-11-26 {purpose}").digest()


def base64url(text: str) -> bytes:
    """The bytes of base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


# ---- Objects ----


def padded(size: int) -> int:
    """S5's padded size."""
    k = 0
    while size > (80 * 1024) << k:
        k += 1
    return -(-size // (4096 << k)) * (4096 << k)


def open_root(blob: bytes, key: bytes) -> bytes:
    """The plaintext of a sealed root or record."""
    check(blob[:2] == b"\x8d\x01" and len(blob) == padded(len(blob)), "no sealed root")
    plain = open_sealed(blob[26:], None, blob[2:26], key)
    size = int.from_bytes(plain[:4], "little")
    check(len(plain) >= 4 + size and not any(plain[4 + size :]), "padding")
    return plain[4 : 4 + size]


def open_part(blob: bytes, key: bytes) -> bytes:
    """The plaintext of a sealed part."""
    pieces = [blob[at : at + CHUNK + TAG] for at in range(0, len(blob), CHUNK + TAG)]
    return b"".join(open_sealed(piece, None, n.to_bytes(24, "little"), key) for n, piece in enumerate(pieces))


@dataclass
class Store:
    """A directory of a `file:///` store."""

    root: Path

    def blob(self, digest: bytes) -> bytes:
        """One object, its hash checked."""
        name = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        raw = (self.root / "blobs" / name[:2] / name).read_bytes()
        check(blake3(raw).digest() == digest, "hash of a blob")
        return raw

    def pointer(self, path: bytes) -> tuple[int, bytes]:
        """Revision and root hash of the pointer of a path's key, its signature checked."""
        public = bytes(SigningKey(derive(path, 2)).verify_key)
        raw = (self.root / "pointers" / (b"\xed" + public).hex()).read_bytes()
        check(len(raw) == 140 and raw[:34] == b"\x07\xed" + public and raw[42:44] == b"\x21\x1e", "pointer")
        VerifyKey(public).verify(b"\x07" + raw[34:76], raw[76:])
        return int.from_bytes(raw[34:42], "little"), raw[44:76]


class Cursor:
    """Bytes of a part, taken from the front."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        check(0 <= size <= len(self.raw) - self.at, "part is too short")
        self.at += size
        return self.raw[self.at - size : self.at]

    def number(self, size: int = 4) -> int:
        """The next unsigned integer."""
        return int.from_bytes(self.take(size), "little")

    def varint(self) -> int:
        """The next varint."""
        value = shift = 0
        while True:
            byte = self.number(1)
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def array(self, dtype: str, count: int) -> NDArray[Any]:
        """The next numbers."""
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count), dtype)

    def planes(self, width: int, count: int) -> NDArray[np.uint64]:
        """The next numbers, stored as byte planes from the lowest."""
        out = np.zeros(count, np.uint64)
        for place in range(width):
            out |= self.array("u1", count).astype(np.uint64) << np.uint64(8 * place)
        return out

    def bits(self, count: int) -> NDArray[np.bool_]:
        """The next bitmap; unused bits are 0."""
        found = np.unpackbits(self.array("u1", -(-count // 8)), bitorder="little")
        check(not found[count:].any(), "unused bits")
        return found[:count].astype(bool)

    def end(self) -> None:
        """Nothing may be left."""
        check(self.at == len(self.raw), "trailing bytes")


def bytes_for(values: int) -> int:
    """Bytes of a link: 1 up to 2^8 values, and so on."""
    return next(size for size in (1, 2, 3, 4) if values <= 1 << 8 * size)


# ---- Versions ----


@dataclass
class Segment:
    """One segment of the index of words.

    Attributes:
        left: slots that left with it.
        words: of each document its words and their positions.
        stems: of each document its stems, each as often as it comes.
    """

    left: list[int]
    words: dict[int, list[tuple[int, bytes]]]
    stems: dict[int, Counter[bytes]]


class Version:
    """A version, read whole and checked.

    Attributes:
        manifest: the manifest.
        plain: the bytes of each file before encryption.
        raw: the bytes of each part before compression.
    """

    def __init__(self, store: Store, root: bytes, key: bytes | None) -> None:
        blob = store.blob(root)
        plain = blob if key is None else open_root(blob, key)
        self.key, self.root, self.directory, self.sealed = key, root, plain, blob
        check(plain[:2] == b"\x5f\x5d", "no directory")
        magic, header, directories, self.files = cbor2.loads(plain[2:])
        check((magic, header, directories) == ("S5.pro", {}, {}), "directory")
        self.plain: dict[str, bytes] = {}
        self.manifest = cbor2.loads(self._stored(store, "metadata"))
        self.format = (self.manifest["version"], self.manifest.get("draft", 0))
        check(self.format in [(1, 0), *((0, draft) for draft in range(7))], "format")
        self.raw = {}
        parts = self.manifest["parts"]
        check({name for name, *_ in parts} | {"metadata"} == set(self.files), "names")
        for name, digest, size, codec in parts:
            raw = self._stored(store, name)
            if codec == "zstd":
                raw = zstd.decompress(raw)
            check(len(raw) == size and blake3(raw).digest() == digest, f"{name} to the bit")
            self.raw[name] = raw
        self._read_rows()
        self._read_metadata()
        self._read_codes()
        self._read_graph()
        self._read_lists()

    def _stored(self, store: Store, name: str) -> bytes:
        """The bytes of a file after decryption; since draft 5 their key follows from K."""
        entry = self.files[name]
        media = "application/cbor" if name == "metadata" else "application/octet-stream"
        check(entry[6] == media and list(entry) == sorted(entry), "entry")
        blob = store.blob(entry[3])
        if self.key is None:
            check(set(entry) == {3, 4, 6}, "entry in clear")
            plain = blob
        else:
            cipher = entry[22]["encryption"]
            check(cipher["algorithm"] == "xchacha20-poly1305", "algorithm")
            plain = open_part(blob, cipher["key"])
            check(blake3(plain).digest() == cipher["plaintextHash"], "plaintextHash")
        check(len(plain) == entry[4], "size")
        self.plain[name] = plain
        return plain

    def check_keys(self) -> None:
        """Part keys and the nonce are those that K gives: since draft 5, or of earlier drafts."""
        assert self.key is not None
        today = self.format >= (0, 5)
        of_parts = purpose_key(self.key, "part keys") if today else self.key
        of_nonces = purpose_key(self.key, "nonces") if today else self.key
        check(self.sealed[2:26] == blake3(self.directory, key=of_nonces).digest()[:24], "nonce")
        for name, plain in self.plain.items():
            key = self.files[name][22]["encryption"]["key"]
            check(key == blake3(plain, key=of_parts).digest(), f"key of {name}")

    def _of_kind(self, kind: str) -> list[tuple[int, bytes]]:
        """Parts of a kind with their numbers."""
        found = [(int(name[-4:]), raw) for name, raw in self.raw.items() if name[:-5] == kind]
        return sorted(found)

    def _native(self, kind: str, rows_per_part: int, rows: int) -> Iterator[tuple[int, int, Cursor]]:
        """Parts with a header: first row, number of rows, and the payload."""
        dim = self.manifest["config"]["dim"]
        for number, raw in self._of_kind(kind):
            c = Cursor(raw)
            check(c.take(4) == b"FVDB" and c.number(2) == 0 and c.number(2) == PART_NAMES[kind], "header")
            first = number * rows_per_part
            check(c.number() == number and c.number() == dim and c.number(8) == first, "header")
            n = c.number()
            check(n == min(rows_per_part, rows - first), "rows of a part")
            check(c.number() == 0 and c.number(8) == len(raw) - 40, "header")
            yield first, n, c
            c.end()

    def _whole(self, kind: str, rows: int | None = None) -> tuple[int, Cursor] | None:
        """The only part of a kind, if there is one; `end` is for the caller."""
        found = list(self._of_kind(kind))
        if not found:
            return None
        n = self.rows if rows is None else rows
        return next((n, c) for _, n, c in self._native(kind, max(n, 1), n))

    @property
    def rows(self) -> int:
        """Slots, tombstones included."""
        return int(self.manifest["rows"])

    def _read_rows(self) -> None:
        m = self.manifest
        dim, n = m["config"]["dim"], self.rows
        self.vectors = np.zeros((n, dim), np.float32)
        self.ids: list[str] = []
        self.timestamps = np.zeros(n, np.int64)
        for first, count, c in self._native("vectors", m["rows_per_part"], n):
            high, low = c.planes(2, count * dim), c.planes(2, count * dim)
            signed = low.astype(np.uint16).view(np.int16).astype(np.int64)
            found = (high.astype(np.int64) * 65536 + signed).astype(np.uint32)
            check((((found.astype(np.uint64) + 32768) >> 16) % 65536 == high).all(), "the only pair for a float")
            self.vectors[first : first + count] = found.view(np.float32).reshape(count, dim)
        check(np.isfinite(self.vectors).all(), "finite")
        for _, count, c in self._native("ids", m["rows_per_group"], n):
            self.ids += [c.take(int(size)).decode() for size in c.array("<u2", count)]
        for first, count, c in self._native("timestamps", m["rows_per_group"], n):
            smallest, width = int.from_bytes(c.take(8), "little", signed=True), c.number(8)
            self.timestamps[first : first + count] = smallest + c.planes(width, count).astype(np.int64)
        check(len(self.ids) == n and all(1 <= len(id.encode()) <= 1024 for id in self.ids), "ids")
        tombstones, bare = self._whole("tombstones"), self._whole("bare")
        self.live = np.ones(n, bool) if tombstones is None else ~tombstones[1].bits(n)
        self.bare = np.zeros(n, bool) if bare is None else bare[1].bits(n)
        check(bare is None or self.bare.any(), "bare")
        check(self.live.sum() == m["total_vectors"] and (tombstones is None) == (n == 0), "tombstones")
        check(self.format == (0, 0) or (~self.bare).sum() == m["with_vector"], "with_vector")
        alive = [id for id, live in zip(self.ids, self.live, strict=True) if live]
        check(len(set(alive)) == len(alive), "ids of live rows differ")

    def _read_metadata(self) -> None:
        m = self.manifest
        step, n = m["document_rows"], self.rows
        self.metadata: list[Any] = [None] * n
        self.expires: dict[int, int] = {}
        for number, raw in self._of_kind("documents"):
            c, first = Cursor(raw), number * step
            count = c.number()
            self._fill(c, np.arange(first, first + count))
            check(first + count <= n, "rows of a page")
        for _, raw in self._of_kind("documents.changed"):
            c = Cursor(raw)
            slots = c.array("<u4", c.number())
            check(len(slots) and (np.diff(slots.astype(np.int64)) > 0).all(), "slots ascend")
            self._fill(c, slots)
        for number, raw in self._of_kind("expiries"):
            c = Cursor(raw)
            count = c.number()
            places = c.array("<u4", count)
            self.expires |= dict(zip((places + number * step).tolist(), c.array("<i8", count).tolist(), strict=True))
            c.end()

    def _fill(self, c: Cursor, slots: NDArray[Any]) -> None:
        sizes = c.array("<u4", len(slots))
        for slot, size in zip(slots.tolist(), sizes.tolist(), strict=True):
            self.metadata[slot] = cbor2.loads(c.take(size - 1), tag_hook=_tag) if size else None
        c.end()

    def _read_codes(self) -> None:
        """Codes of one bit, held against the rows from which they follow."""
        m = self.manifest
        dim, metric, stored = m["config"]["dim"], m["config"]["metric"], m["stored_rows"]
        self.head = None
        found = self._whole("recent.head", stored)
        if found is None:
            check(not self._of_kind("codes"), "codes without a head")
            return
        c = found[1]
        self.head = [c.number() for _ in range(6)]
        check(self.head[:2] == [m["config"]["M"], m["config"]["ef_construction"]], "head")
        lowest, width = c.array("<f4", dim).astype(float), c.array("<f4", dim).astype(float)
        c.end()
        middle = lowest + 7.5 * width
        rows = self.vectors.astype(np.float64)
        if metric == "cosine":
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = rows / np.where(lengths, lengths, 1)
        for first, n, c in self._native("codes", m["rows_per_group"], self.rows):
            packed = c.array("u1", n * -(-dim // 8)).reshape(n, -1)
            bits = np.unpackbits(packed, axis=1, bitorder="little")
            check(not bits[:, dim:].any(), "unused bits of codes")
            off = rows[first : first + n] - middle
            kept = ~self.bare[first : first + n]
            # A value may lie on the middle to within a float32.
            sure = (np.abs(off) > 1e-5) & kept[:, None]
            check(((bits[:, :dim] == 1) == (off > 0))[sure].all(), "codes of one bit")
            factors = (c.array("<u2", n).astype(np.uint32) << 16).view(np.float32)[kept]
            below = (np.abs(off) * width).sum(axis=1)[kept]
            expected = np.where(below > 0, (off**2).sum(axis=1)[kept] / np.where(below > 0, below, 1), 0)
            check(np.allclose(factors, expected, rtol=2**-7), "factors")
            if metric == "l2":
                lengths = c.array("<f4", n)[kept]
                check(np.allclose(lengths, (rows[first : first + n] ** 2).sum(axis=1)[kept], rtol=1e-5), "lengths")

    def _read_graph(self) -> None:
        """Links; the graph must be whole: every link leads to a row of it, no row to itself or twice."""
        m = self.manifest
        stored, links_max = m["stored_rows"], m["config"]["M"]
        self.links: dict[int, list[int]] = {}
        upper: list[tuple[int, list[list[int]]]] = []
        width = bytes_for(stored)
        for first, n, c in self._native("recent.graph", m["rows_per_group"], stored):
            for slot, count in enumerate(c.array("u1", n).tolist(), first):
                check(count <= 2 * links_max, "links")
                self.links[slot] = [c.number(width) for _ in range(count)]
            rows = []
            for _ in range(c.number()):
                row, highest = first + c.number(), c.number(1)
                check(1 <= highest <= 15, "level")
                rows.append((row, [c.array("<u4", c.number(1)).tolist() for _ in range(highest)]))
            check([row for row, _ in rows] == sorted({row for row, _ in rows}), "upper rows ascend")
            upper += rows
        for slot, links in self.links.items():
            check(slot not in links and len(set(links)) == len(links), "a link twice, or to its own row")
            check(all(link < stored for link in links), "a link past the end")
        for number, (_, levels) in enumerate(upper):
            for level, links in enumerate(levels):
                check(number not in links and len(set(links)) == len(links) <= links_max, "links of a level")
                check(all(len(upper[link][1]) > level for link in links), "a link to a row below its level")
        if self.head is not None:
            _, _, entry, highest, count, trained = self.head
            check(count == len(upper) and highest == max((len(levels) for _, levels in upper), default=0), "head")
            check(len(upper[entry][1]) == highest if upper else entry == 2**32 - 1, "entry point")
            check(trained % 2**30 in [1024 * 8**i for i in range(7)], "trained rows")
            check(self.format == (0, 0) or trained >> 30 & 1 == m["bits_serve"], "bits_serve")

    def _read_lists(self) -> None:
        m = self.manifest
        lists, dim = m["lists"], m["config"]["dim"]
        self.of_list = self._numbers("historical.list")
        self.second = self._numbers("historical.second")
        found = self._whole("historical.head")
        check((found is None) == (self.of_list is None) == (not lists or not self.rows), "lists")
        if found is None or self.of_list is None:
            return
        c = found[1]
        check(c.number() == lists and c.number() >= 64, "head of lists")
        settled, limit = c.number(), float(c.array("<f4", 1)[0])
        c.take(24)
        check(all(1 <= probes <= lists for probes in c.array("<u4", 16)), "probes")
        c.take(8 * dim + 32 * -(-dim // 64) * lists)
        c.end()
        check(self.of_list.max() <= lists and self.of_list[:settled].all(), "lists of rows")
        check((self.of_list[self.live] > 0).sum() == m["historical_count"], "historical_count")
        check(not any(self.links.get(slot) for slot in range(settled)), "links of settled rows")
        check((self.second is None) == (limit == 0), "second lists")
        if self.second is not None:
            twice = self.second > 0
            check(((self.of_list != self.second) & (self.of_list > 0))[twice].all(), "two lists")

    def _numbers(self, kind: str) -> NDArray[np.uint64] | None:
        found = self._whole(kind)
        if found is None:
            return None
        width = bytes_for(self.manifest["lists"] + 1)
        return found[1].planes(width, found[0])

    # ---- answers

    def rows_by_id(self, now_us: int) -> list[tuple[str, bytes | None, int, int | None, Any]]:
        """Live rows in the order of their ids: id, vector, timestamp, expiry, metadata."""
        return sorted(
            (
                (
                    self.ids[slot],
                    None if self.bare[slot] else self.vectors[slot].tobytes(),
                    int(self.timestamps[slot]),
                    self.expires.get(slot),
                    self.metadata[slot],
                )
                for slot in np.flatnonzero(self.live).tolist()
                if self.expires.get(slot, now_us + 1) > now_us
            ),
            key=lambda row: row[0],
        )

    def search(self, query: list[float], k: int, now_us: int) -> list[tuple[str, float, float]]:
        """The k nearest live rows with a vector: id, distance, score; ties by id."""
        there = self.live & ~self.bare
        for slot, expires in self.expires.items():
            there[slot] &= expires > now_us
        slots = np.flatnonzero(there)
        rows, q = self.vectors[slots].astype(np.float64), np.asarray(query, np.float32).astype(np.float64)
        metric = self.manifest["config"]["metric"]
        if metric == "l2":
            distances = np.sqrt(((rows - q) ** 2).sum(axis=1))
        else:
            distances = -(rows @ q)
            if metric == "cosine":
                distances = 1 + distances / (np.linalg.norm(rows, axis=1) * np.linalg.norm(q))
        score = {
            "cosine": lambda d: 1 - d / 2,
            "l2": lambda d: 1 / (1 + d),
            "dot": lambda d: 1 / (1 + math.exp(d)),
        }[metric]
        found = sorted((distance, self.ids[slot].encode()) for distance, slot in zip(distances, slots, strict=True))
        return [(id.decode(), float(distance), score(float(distance))) for distance, id in found[:k]]

    def segments(self) -> list[Segment]:
        """The index of words."""
        size = self.manifest["text"]["chunk_bytes"]
        streams = {
            kind: iter([raw for _, raw in self._of_kind(f"text.{kind}")])
            for kind in ("dictionary", "postings", "positions")
        }
        found = [_segment(raw, size, streams) for _, raw in self._of_kind("text.head")]
        check(len(found) == self.manifest["text"]["segments"], "segments")
        check(all(next(stream, None) is None for stream in streams.values()), "chunks that belong to no segment")
        return found


def _tag(_: Any, tag: cbor2.CBORTag) -> Any:
    return {f"tag {tag.tag}": tag.value}


def _segment(raw: bytes, chunk: int, streams: dict[str, Iterator[bytes]]) -> Segment:
    c = Cursor(raw)
    check(c.take(4) == b"FVTX" and c.number(2) == 1, "head of a segment")
    width, dense = c.number(1), c.number(1)
    check(width in (1, 2, 4) and dense in (0, 1), "head of a segment")
    n, first, with_text, n_left, n_terms, n_blocks = (c.number() for _ in range(6))
    n_postings = c.number(8)
    c.take(16)
    sizes = [c.number() for _ in range(3)]
    first_bytes = c.number()
    check(c.number(8) == 0 and n_blocks == -(-n_terms // 32), "head of a segment")
    lengths = c.array(f"<u{width}", n)
    check((lengths > 0).sum() == with_text, "documents with text")
    slots = list(range(first, first + n)) if dense else c.array("<u4", n).tolist()
    left = c.array("<u4", n_left).tolist()
    blocks = c.array("<u4", 4 * n_blocks).reshape(n_blocks, 4).tolist()
    firsts = c.take(first_bytes)
    c.end()
    dictionary, postings, positions = (
        Cursor(b"".join(next(stream) for _ in range(-(-size // chunk))))
        for size, stream in zip(sizes, streams.values(), strict=True)
    )
    check([len(stream.raw) for stream in (dictionary, postings, positions)] == sizes, "bytes of streams")
    words: dict[int, list[tuple[int, bytes]]] = {slot: [] for slot in slots}
    stems: dict[int, Counter[bytes]] = {slot: Counter() for slot in slots}
    before = term = b""
    total = 0
    for number in range(n_terms):
        if number % 32 == 0:
            at = blocks[number // 32]
            check(at[:3] == [dictionary.at, postings.at, positions.at], "where a block of terms begins")
            end = blocks[number // 32 + 1][3] if number // 32 + 1 < n_blocks else first_bytes
            before = firsts[at[3] : end]
        shared, others = dictionary.varint(), dictionary.varint()
        term, last = before[:shared] + dictionary.take(others), term
        check(before[: shared + 1] != term[: shared + 1] or shared == len(before), "bytes shared with the term before")
        check(term > last if number else term, "terms ascend")
        check(number % 32 or term == before, "the first term of a block")
        before = term
        count, _, posting_bytes, position_bytes = (dictionary.varint() for _ in range(4))
        total += count
        of_term, places = Cursor(postings.take(posting_bytes)), Cursor(positions.take(position_bytes))
        is_stem = term[0] == 1
        check(position_bytes or not count or is_stem, "positions of a word")
        for document, frequency in _postings(of_term, count, position_bytes):
            place = 0
            for nth in range(frequency if position_bytes else 0):
                place = place + places.varint() if nth else places.varint()
                if not is_stem:
                    words[slots[document]].append((place, term))
            if is_stem:
                stems[slots[document]][term[1:]] = frequency
        of_term.end()
        places.end()
    for stream in (dictionary, postings, positions):
        stream.end()
    check(total == n_postings, "postings")
    check(all(len(words[slot]) + 1 == size for slot, size in zip(slots, lengths, strict=True) if size), "lengths")
    return Segment(left, words, stems)


def _postings(c: Cursor, count: int, position_bytes: int) -> list[tuple[int, int]]:
    """Documents and frequencies of a term."""
    blocks = -(-count // 128)
    entries = [(c.number(), c.number(), c.number(), c.take(4), c.number()) for _ in range(blocks if blocks > 1 else 0)]
    begin, last, found = c.at, -1, []
    for block in range(blocks):
        n = min(128, count - 128 * block)
        wide, of_frequency = c.number(1), c.number(1)
        gaps, frequencies = _packed(c, n, wide), _packed(c, n, of_frequency)
        for gap, frequency in zip(gaps, frequencies, strict=True):
            last += gap + 1
            found.append((last, frequency + 1))
        if entries:
            of_block = found[128 * block :]
            check(entries[block][0] == last and entries[block][1] == c.at - begin, "entry of a block")
            check(block + 1 < blocks or entries[block][2] == position_bytes, "positions of a block")
            check(entries[block][4] == max(frequency for _, frequency in of_block), "highest frequency")
    return found


def _packed(c: Cursor, n: int, width: int) -> list[int]:
    """Numbers of some bits each; those of a full block in four streams whose words alternate."""
    if n < 128:
        return _unpacked(c.take(-(-n * width // 8)), n, width)
    words = c.array("<u4", 4 * width).reshape(width, 4)
    streams = [_unpacked(words[:, s].tobytes(), 32, width) for s in range(4)]
    return [streams[i % 4][i // 4] for i in range(n)]


def _unpacked(raw: bytes, n: int, width: int) -> list[int]:
    bits = int.from_bytes(raw, "little")
    check(bits < 1 << n * width, "bits past the last number")
    return [bits >> i * width & ((1 << width) - 1) for i in range(n)]


def newest(store: Store, entropy: bytes, index: str) -> bytes:
    """The root hash that the pointer of an index names."""
    return store.pointer(path_key(entropy, f"fabstir-vectordb/index/{index}"))[1]


def open_cid(store: Store, cid: str, entropy: bytes, index: str | None) -> Version:
    """Opens a version by its CID, of an index of the phrase or (None) by the key in a share CID."""
    raw = base64url(cid[1:])
    check(cid[0] == "u", "CID in base64url")
    if index is None:
        check(len(raw) == 68 and raw[:3] == b"\x5d\x5e\xa6" and raw[35] == 0x1F, "share CID")
        return Version(store, raw[36:], raw[3:35])
    check(raw[:3] == b"\x5b\x82\x1e", "CID")
    blob = store.blob(raw[3:35])
    check(int.from_bytes(raw[35:], "little") == len(blob), "size in the CID")
    sealed = blob[:2] == b"\x8d\x01"
    key = derive(path_key(entropy, f"fabstir-vectordb/index/{index}"), 3) if sealed else None
    return Version(store, raw[3:35], key)


def open_shard(store: Store, root: Version, collection: str, metadata: dict[str, Any]) -> Version:
    """Opens a shard of a collection by the key of the root, as the row of the shard names it."""
    assert root.key is not None
    context = "fabstir-vectordb 2026-11-26 key of a shard of a collection"
    secret = root.key + metadata["shard"].to_bytes(8, "little") + collection.encode()
    seed = blake3(secret, derive_key_context=context).digest()
    raw = base64url(metadata["cid"][1:])
    return Version(store, raw[3:35], derive(path_key_of_seed(seed, "fabstir-vectordb/index/shard"), 3))


def fingerprints(store: Store, cid: str, shard: Version) -> list[int]:
    """The fingerprints of a shard's ids."""
    assert shard.key is not None
    raw = base64url(cid[1:])
    check(raw[:4] == b"\xae\xa6\x12\x1e" and raw[68:75] == bytes(4) + b"\x5b\x82\x1e", "CID of fingerprints")
    key = raw[36:68]
    plain = open_part(store.blob(raw[4:36]), key)
    check(key == blake3(plain, key=purpose_key(shard.key, "part keys")).digest(), "key of fingerprints")
    check(blake3(plain).digest() == raw[75:107] and int.from_bytes(raw[107:], "little") == len(plain), "fingerprints")
    count = int.from_bytes(plain[:4], "little")
    c = Cursor(zstd.decompress(plain[4:]))
    found = np.cumsum(c.planes(4, count)).tolist()
    c.end()
    check(count <= len(plain) and found == sorted({*found}), "order of fingerprints")
    return [int(one) for one in found]


def history(store: Store, entropy: bytes, index: str) -> Any:
    """The record of an index's versions."""
    path = path_key(entropy, f"fabstir-vectordb/history/{index}")
    return cbor2.loads(open_root(store.blob(store.pointer(path)[1]), derive(path, 3)))


def catalogue(store: Store, entropy: bytes) -> Any:
    """The record of the names of indexes."""
    path = path_key(entropy, "fabstir-vectordb/catalog")
    return cbor2.loads(open_root(store.blob(store.pointer(path)[1]), derive(path, 3)))


def in_json(value: Any) -> Any:
    """Metadata in JSON: a tagged value is a map of its tag."""
    if isinstance(value, dict):
        return {key: in_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [in_json(item) for item in value]
    if isinstance(value, datetime):
        return {"tag 0": value.isoformat().replace("+00:00", "Z")}
    if isinstance(value, date):
        return {"tag 1004": value.isoformat()}
    if isinstance(value, float) and value.is_integer():
        return int(value)  # JavaScript has one type of number
    return {"tag 37": value.bytes.hex()} if isinstance(value, UUID) else value
