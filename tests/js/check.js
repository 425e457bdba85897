/* node tests/js/check.js GOLDEN_STORE [ENTROPY]: reads every version of a golden store, and compares it with expected.json.
 * That of draft 0 says less, and not the entropy of its phrase. */

import { readFile } from "node:fs/promises";
import { join } from "node:path";

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, hexToBytes } from "@noble/hashes/utils.js";

import { compareBytes, indexKey, openVersion } from "./reader.js";

const TOLERANCE = 1e-6;
const folder = process.argv[2];
const expected = JSON.parse(await readFile(join(folder, "expected.json"), "utf8"));
const now = BigInt(expected.now_us ?? 0);
const entropy = hexToBytes(expected.entropy ?? process.argv[3]);
const query = [1.0, 0.5, -0.5, 0.25];
const ofDraft0 = [{ cid: expected.first }, { cid: expected.second, rows: expected.rows, searches: [{ query, ids: expected.nearest }] }];

function fetchBlob(hash) {
    const name = Buffer.from(hash).toString("base64url");
    return readFile(join(folder, "store", "blobs", name.slice(0, 2), name)).then((bytes) => new Uint8Array(bytes));
}

/* JSON with keys in order; bytes are hexadecimal. */
function inJson(value) {
    if (value instanceof Map) {
        const keys = [...value.keys()].sort();
        return `{${keys.map((key) => `${JSON.stringify(key)}:${inJson(value.get(key))}`).join(",")}}`;
    }
    if (value instanceof Uint8Array) return `"${bytesToHex(value)}"`;
    if (Array.isArray(value)) return `[${value.map(inJson).join(",")}]`;
    if (value !== null && typeof value === "object") return inJson(new Map(Object.entries(value)));
    return typeof value === "bigint" ? `${value}` : JSON.stringify(value);
}

function hashOfRows(version) {
    const slots = version.slotsAt(now).sort((a, b) => compareBytes(version.ids[a], version.ids[b]));
    const found = sha256.create();
    for (const slot of slots) {
        const row = version.vector(slot);
        const vector = row && bytesToHex(new Uint8Array(row.buffer, row.byteOffset, row.byteLength));
        const expires = version.expires.has(slot) ? `${version.expires.get(slot)}` : null;
        const line = [version.ids[slot], vector, `${version.timestamps[slot]}`, expires, version.metadata[slot]];
        found.update(new TextEncoder().encode(`${inJson(line)}\n`));
    }
    return [slots.length, bytesToHex(found.digest())];
}

let searches = 0;
const versions = expected.versions ?? ofDraft0;
for (const { cid, index = "default", rows, sha256: digest, searches: asked = [] } of versions) {
    const key = index === null ? undefined : indexKey(entropy, index);
    const version = await openVersion(fetchBlob, cid, key);
    const [count, found] = hashOfRows(version);
    if (count !== (rows ?? count) || found !== (digest ?? found)) throw new Error(`${cid}: other rows`);
    for (const { query, ids, distances = [], scores = [] } of asked) {
        const hits = version.search(query, ids.length, now);
        if (hits.some((hit, i) => hit.id !== ids[i])) throw new Error(`${cid}: other hits`);
        if (distances.some((distance, i) => !(Math.abs(hits[i].distance - distance) <= TOLERANCE))) throw new Error(`${cid}: distances`);
        if (scores.some((score, i) => !(Math.abs(hits[i].score - score) <= TOLERANCE))) throw new Error(`${cid}: scores`);
        searches++;
    }
}
console.log(`${versions.length} versions, ${searches} searches`);
