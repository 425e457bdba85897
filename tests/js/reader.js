/* A reader of stored versions, written from docs/format.md alone, for browsers as well as Node: it opens a version or a
 * share, checks every part to the bit, and searches exactly.
 *
 * It asks for blobs by their BLAKE3: `fetchBlob(hash)` gives a promise of a Uint8Array.  Links, codes, lists and the index of
 * words are of no use to an exact search: of them only the hashes are checked. */

import { xchacha20poly1305 } from "@noble/ciphers/chacha.js";
import { blake3 } from "@noble/hashes/blake3.js";
import { decompress } from "fzstd";

const CHUNK = 262_144;
const TAG = 16;
const KINDS = { vectors: 1, ids: 3, timestamps: 4, tombstones: 5, bare: 10 };
const utf8 = new TextDecoder("utf-8", { fatal: true });
const encoder = new TextEncoder();

export class FormatError extends Error {}

function check(holds, what) {
    if (!holds) throw new FormatError(what);
}

const equal = (a, b) => a.length === b.length && a.every((byte, i) => byte === b[i]);
const view = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

function concat(...pieces) {
    const out = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
    let at = 0;
    for (const piece of pieces) {
        out.set(piece, at);
        at += piece.length;
    }
    return out;
}

/* ---- Keys ---- */

function derive(base, number) {
    const tweak = new Uint8Array(32);
    tweak[0] = number;
    return blake3(concat(base, tweak));
}

/** K, the encryption key of an index, from the 16 bytes of a phrase. */
export function indexKey(entropy, index) {
    let key = [0, 64, 0, 66].reduce(derive, blake3(entropy));
    for (const name of ["fabstir-vectordb", "index", index]) key = blake3(concat(key, blake3(encoder.encode(name))));
    return derive(derive(key, 1), 3);
}

/** The part key root (or nonce, or share key root) of K since draft 5. */
const purposeKey = (key, purpose) => blake3(key, { context: encoder.encode(`fabstir_vectordb 2026-11-26 ${purpose}`) });

/** What a CID in base64url says: {hash}, and the key where it is a share. */
export function parseCid(cid) {
    check(cid[0] === "u", "CID in base64url");
    const text = atob(cid.slice(1).replaceAll("-", "+").replaceAll("_", "/"));
    const raw = Uint8Array.from(text, (char) => char.charCodeAt(0));
    if (equal(raw.slice(0, 3), [0x5d, 0x5e, 0xa6])) {
        check(raw.length === 68 && raw[35] === 0x1f, "share CID");
        return { key: raw.slice(3, 35), hash: raw.slice(36) };
    }
    check(equal(raw.slice(0, 3), [0x5b, 0x82, 0x1e]), "CID");
    return { hash: raw.slice(3, 35) };
}

/* ---- CBOR: definite lengths, integers beyond 2^53 as BigInt ---- */

function decodeCbor(bytes) {
    const data = view(bytes);
    let at = 0;
    const take = (size) => {
        check(at + size <= bytes.length, "CBOR ends early");
        at += size;
        return at - size;
    };
    const argument = (low) => {
        if (low < 24) return low;
        check(low < 28, "CBOR length");
        const place = take(1 << (low - 24));
        if (low === 24) return data.getUint8(place);
        if (low === 25) return data.getUint16(place);
        if (low === 26) return data.getUint32(place);
        const value = data.getBigUint64(place);
        return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value;
    };
    const item = () => {
        const head = data.getUint8(take(1));
        const [major, low] = [head >> 5, head & 31];
        if (major === 7) {
            if (low === 20 || low === 21) return low === 21;
            if (low === 22) return null;
            check(low === 26 || low === 27, "CBOR simple value");
            return low === 26 ? data.getFloat32(take(4)) : data.getFloat64(take(8));
        }
        const n = argument(low);
        if (major === 0) return n;
        if (major === 1) return typeof n === "bigint" ? -1n - n : -1 - n;
        if (major === 2 || major === 3) {
            const start = take(n);
            const found = bytes.subarray(start, start + n);
            return major === 2 ? found : utf8.decode(found);
        }
        if (major === 4) return Array.from({ length: n }, item);
        if (major === 6) return { [`tag ${n}`]: item() };
        const found = new Map();
        for (let i = 0; i < n; i++) found.set(item(), item());
        return found;
    };
    const value = item();
    check(at === bytes.length, "bytes after CBOR");
    return value;
}

/* ---- Sealed blobs ---- */

function openRoot(blob, key) {
    check(blob[0] === 0x8d && blob[1] === 0x01, "no sealed root");
    const plain = xchacha20poly1305(key, blob.subarray(2, 26)).decrypt(blob.subarray(26));
    const size = view(plain).getUint32(0, true);
    check(size + 4 <= plain.length && plain.subarray(4 + size).every((byte) => byte === 0), "padding");
    return plain.subarray(4, 4 + size);
}

function openPart(blob, key) {
    const pieces = [];
    for (let at = 0, number = 0; at < blob.length; at += CHUNK + TAG, number++) {
        const nonce = new Uint8Array(24);
        view(nonce).setUint32(0, number, true);
        pieces.push(xchacha20poly1305(key, nonce).decrypt(blob.subarray(at, at + CHUNK + TAG)));
    }
    return concat(...pieces);
}

async function fetched(fetchBlob, hash) {
    const blob = await fetchBlob(hash);
    check(equal(blake3(blob), hash), "hash of a blob");
    return blob;
}

/* ---- A version ---- */

/** Opens a version by its CID; `key` is K, and is not needed for a share or a version in clear. */
export async function openVersion(fetchBlob, cid, key) {
    const asked = parseCid(cid);
    const blob = await fetched(fetchBlob, asked.hash);
    const sealed = blob[0] === 0x8d;
    const root = sealed ? openRoot(blob, asked.key ?? key) : blob;
    check(root[0] === 0x5f && root[1] === 0x5d, "no directory");
    const [magic, , , files] = decodeCbor(root.subarray(2));
    check(magic === "S5.pro", "directory");

    const stored = async (name) => {
        const entry = files.get(name);
        let plain = await fetched(fetchBlob, entry.get(3));
        if (sealed) {
            const cipher = entry.get(22).get("encryption");
            plain = openPart(plain, cipher.get("key"));
            check(equal(blake3(plain), cipher.get("plaintextHash")), "plaintextHash");
        }
        check(plain.length === entry.get(4), "size");
        return plain;
    };
    const manifest = decodeCbor(await stored("metadata"));
    check(manifest.get("version") === 1 || (manifest.get("version") === 0 && (manifest.get("draft") ?? 0) <= 6), "format");
    const separateKeys = manifest.get("version") === 1 || manifest.get("draft") >= 5;
    const parts = new Map();
    for (const [name, hash, size, codec] of manifest.get("parts")) {
        let raw = await stored(name);
        if (sealed && !asked.key && separateKeys)
            check(equal(blake3(raw, { key: purposeKey(key, "part keys") }), files.get(name).get(22).get("encryption").get("key")), name);
        if (codec === "zstd") raw = decompress(raw, new Uint8Array(size));
        check(raw.length === size && equal(blake3(raw), hash), `${name} to the bit`);
        parts.set(name, raw);
    }
    check(parts.size + 1 === files.size, "names");
    return new Version(manifest, parts);
}

class Version {
    constructor(manifest, parts) {
        this.manifest = manifest;
        this.rows = manifest.get("rows");
        this.dim = manifest.get("config").get("dim");
        this.metric = manifest.get("config").get("metric");
        this.parts = [...parts].sort(([a], [b]) => (a < b ? -1 : 1));
        this.#readRows();
        this.#readMetadata();
    }

    *#ofKind(kind) {
        for (const [name, raw] of this.parts) if (name.slice(0, -5) === kind) yield [Number(name.slice(-4)), raw];
    }

    /* Parts with a header: first row, number of rows, payload. */
    *#native(kind, rowsPerPart) {
        for (const [number, raw] of this.#ofKind(kind)) {
            const head = view(raw);
            const first = number * rowsPerPart;
            const n = Math.min(rowsPerPart, this.rows - first);
            check(utf8.decode(raw.subarray(0, 4)) === "FVDB" && head.getUint16(4, true) === 0, "header");
            check(head.getUint16(6, true) === KINDS[kind] && head.getUint32(8, true) === number, "header");
            check(head.getUint32(12, true) === this.dim && head.getBigUint64(16, true) === BigInt(first), "header");
            check(head.getUint32(24, true) === n && head.getUint32(28, true) === 0, "header");
            check(head.getBigUint64(32, true) === BigInt(raw.length - 40), "header");
            yield [first, n, raw.subarray(40)];
        }
    }

    #bits(kind) {
        const found = [...this.#native(kind, Math.max(this.rows, 1))];
        if (!found.length) return () => false;
        const bytes = found[0][2];
        check(bytes.length === Math.ceil(this.rows / 8), kind);
        return (slot) => ((bytes[slot >> 3] >> (slot & 7)) & 1) === 1;
    }

    #readRows() {
        const [perPart, perGroup] = [this.manifest.get("rows_per_part"), this.manifest.get("rows_per_group")];
        this.vectors = new Float32Array(this.rows * this.dim);
        const words = new Uint32Array(this.vectors.buffer);
        for (const [first, rows, bytes] of this.#native("vectors", perPart)) {
            const n = rows * this.dim;
            check(bytes.length === 4 * n, "vectors");
            for (let i = 0; i < n; i++) {
                const high = bytes[i] | (bytes[n + i] << 8);
                const low = ((bytes[2 * n + i] | (bytes[3 * n + i] << 8)) << 16) >> 16;
                words[first * this.dim + i] = (high << 16) + low;
            }
        }
        this.ids = [];
        for (const [, n, bytes] of this.#native("ids", perGroup)) {
            const sizes = view(bytes);
            let at = 2 * n;
            for (let i = 0; i < n; i++) {
                const size = sizes.getUint16(2 * i, true);
                this.ids.push(utf8.decode(bytes.subarray(at, at + size)));
                at += size;
            }
            check(at === bytes.length, "ids");
        }
        this.timestamps = [];
        for (const [, n, bytes] of this.#native("timestamps", perGroup)) {
            const [smallest, width] = [view(bytes).getBigInt64(0, true), bytes[8]];
            check(bytes.length === 16 + width * n, "timestamps");
            for (let i = 0; i < n; i++) {
                let distance = 0n;
                for (let place = width - 1; place >= 0; place--) distance = (distance << 8n) | BigInt(bytes[16 + place * n + i]);
                this.timestamps.push(smallest + distance);
            }
        }
        const [isTombstone, isBare] = [this.#bits("tombstones"), this.#bits("bare")];
        this.isBare = isBare;
        this.live = [...this.ids.keys()].filter((slot) => !isTombstone(slot));
        check(this.live.length === this.manifest.get("total_vectors") && this.ids.length === this.rows, "total_vectors");
    }

    #readMetadata() {
        const step = this.manifest.get("document_rows");
        this.metadata = new Array(this.rows).fill(null);
        this.expires = new Map();
        const fill = (bytes, at, slots) => {
            let start = at + 4 * slots.length;
            for (const [i, slot] of slots.entries()) {
                const size = view(bytes).getUint32(at + 4 * i, true);
                this.metadata[slot] = size ? decodeCbor(bytes.subarray(start, start + size - 1)) : null;
                start += Math.max(size - 1, 0);
            }
            check(start === bytes.length, "metadata");
        };
        for (const [number, bytes] of this.#ofKind("documents")) {
            const n = view(bytes).getUint32(0, true);
            fill(bytes, 4, Array.from({ length: n }, (_, i) => number * step + i));
        }
        for (const [, bytes] of this.#ofKind("documents.changed")) {
            const n = view(bytes).getUint32(0, true);
            fill(bytes, 4 + 4 * n, Array.from({ length: n }, (_, i) => view(bytes).getUint32(4 + 4 * i, true)));
        }
        for (const [number, bytes] of this.#ofKind("expiries")) {
            const n = view(bytes).getUint32(0, true);
            check(bytes.length === 4 + 12 * n, "expiries");
            for (let i = 0; i < n; i++)
                this.expires.set(number * step + view(bytes).getUint32(4 + 4 * i, true), view(bytes).getBigInt64(4 + 4 * n + 8 * i, true));
        }
    }

    /** Slots of the rows that are there at a time, in microseconds since 1970 (a BigInt). */
    slotsAt(nowUs) {
        return this.live.filter((slot) => (this.expires.get(slot) ?? nowUs + 1n) > nowUs);
    }

    vector(slot) {
        return this.isBare(slot) ? null : this.vectors.subarray(slot * this.dim, (slot + 1) * this.dim);
    }

    /** The k nearest rows: [{id, distance, score}], nearest first, ties by the bytes of ids. */
    search(query, k, nowUs) {
        const q = Float32Array.from(query);
        const lengthOf = (row) => Math.sqrt(row.reduce((sum, x) => sum + x * x, 0));
        const distanceTo = {
            cosine: (row) => 1 - row.reduce((sum, x, i) => sum + x * q[i], 0) / (lengthOf(row) * lengthOf(q)),
            l2: (row) => Math.sqrt(row.reduce((sum, x, i) => sum + (x - q[i]) ** 2, 0)),
            dot: (row) => -row.reduce((sum, x, i) => sum + x * q[i], 0),
        }[this.metric];
        const score = { cosine: (d) => 1 - d / 2, l2: (d) => 1 / (1 + d), dot: (d) => 1 / (1 + Math.exp(d)) }[this.metric];
        const hits = this.slotsAt(nowUs)
            .filter((slot) => !this.isBare(slot))
            .map((slot) => ({ id: this.ids[slot], distance: distanceTo([...this.vector(slot)]) }));
        hits.sort((a, b) => a.distance - b.distance || compareBytes(a.id, b.id));
        return hits.slice(0, k).map((hit) => ({ ...hit, score: score(hit.distance) }));
    }
}

/** The order of two texts by the bytes of their UTF-8. */
export function compareBytes(a, b) {
    const [x, y] = [encoder.encode(a), encoder.encode(b)];
    for (let i = 0; i < Math.min(x.length, y.length); i++) if (x[i] !== y[i]) return x[i] - y[i];
    return x.length - y.length;
}
