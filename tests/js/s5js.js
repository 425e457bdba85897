/* node tests/js/s5js.js CHECKOUT < request.json: a built, unmodified checkout of S5.js works through one portal alone.
 *
 * It tells what it did as lines of JSON.  `request.step` is one of
 *   first   register; read an index by phrase, by CID, by share and by path; watch its pointer; write files and an entry
 *   again   sign in with the account of `first`, as on another machine, and read what it wrote
 * Where S5.js has no public way, a private method of it is called as it stands: such lines say so. */

import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

import { openVersion } from "./reader.js";

const checkout = resolve(process.argv[2]);
const needs = createRequire(join(checkout, "package.json"));
const load = (path) => import(pathToFileURL(join(checkout, "dist/src", path)).href);
const tell = (what) => console.log(JSON.stringify(what));

const request = JSON.parse(await new Promise((done) => {
    let text = "";
    process.stdin.on("data", (piece) => (text += piece)).on("end", () => done(text));
}));

// S5.js is made for browsers: these two stand in for what Node lacks, as in its own tests.
globalThis.WebSocket = needs("ws");
needs("fake-indexeddb/auto");

const { S5, FS5Advanced } = await load("exports/advanced.js");
const { TrustedHiddenDBProvider } = await load("identity/hidden_db.js");
const { DirV1Serialiser } = await load("fs/dirv1/serialisation.js");

const peer = `${request.portal.replace("http", "ws")}/s5/p2p`;
const s5 = await S5.create({ initialPeers: [peer] });
await s5.recoverIdentityFromSeedPhrase(request.phrase);
// Private: the identity, of which the hidden database's key is a part.
const hidden = new TrustedHiddenDBProvider(s5.identity.hiddenDBKey, s5.apiWithIdentity);
const hex = (bytes) => Buffer.from(bytes).toString("hex");

async function openFiles(directory) {
    let size = 0;
    for (const [name, file] of directory.files) {
        const encryption = file.extra.get("encryption");
        const key = new Uint8Array(encryption.get("key"));
        const plain = await s5.fs.downloadAndDecryptBlob(file.hash, key, Number(file.size));
        const hash = await s5.fs.api.crypto.hashBlake3(plain);
        if (hex(hash) !== hex(new Uint8Array(encryption.get("plaintextHash")))) throw new Error(`${name}: other bytes`);
        size += plain.length;
    }
    return { files: directory.files.size, bytes: size };
}

async function first() {
    await s5.registerOnNewPortal(request.portal);
    await s5.fs.ensureIdentityInitialized();
    tell({ did: "registered" });

    const found = await hidden.getRawData(`fabstir-vectordb/index/${request.index}`);
    tell({ did: "by phrase", revision: found.revision, ...(await openFiles(DirV1Serialiser.deserialise(found.data))) });

    tell({ did: "by CID", bytes: (await s5.downloadByCID(request.cid)).length });

    // Private: list() would make one slash of the two in fs5://.
    const shared = await s5.fs._loadDirectory(`fs5://${request.share}`);
    tell({ did: "by share", ...(await openFiles(shared)) });
    const version = await openVersion((hash) => s5.downloadByCID(hash), request.share);
    const hits = version.search(request.query, 3, 0n).map((hit) => hit.id);
    tell({ did: "searched", hits });

    // Private: S5.js has no verb that puts a link to another directory into one of its own.
    const home = await s5.fs._preprocessLocalPath("home");
    const linked = (publicKey) => ({ link: { type: "mutable_registry_ed25519", publicKey }, ts_seconds: 1 });
    const pointer = (text) => new Uint8Array(Buffer.from(text, "hex")).subarray(1);
    const done = await s5.fs.runTransactionOnDirectory(home, async (directory) => {
        directory.dirs.set("clear", linked(pointer(request.clear_pointer)));
        directory.dirs.set("sealed", linked(pointer(request.sealed_pointer)));
        return directory;
    });
    done.unwrap();
    const names = [];
    for await (const entry of s5.fs.list("home/clear")) names.push(entry.name);
    tell({ did: "by path", names: names.sort(), rows: (await s5.fs.get("home/clear/metadata")).rows });
    let refusal = null;
    try {
        await s5.fs.get("home/sealed/metadata");
    } catch (error) {
        refusal = error.message;
    }
    tell({ did: "by path, sealed", refusal });

    const key = new Uint8Array(Buffer.from(request.sealed_pointer, "hex"));
    const moved = new Promise((done) => s5.node.registry.listen(key).subscribe((entry) => done(entry.revision)));
    tell({ did: "listening" });
    tell({ did: "heard", revision: await moved });

    await s5.fs.put("home/notes/plain.bin", new Uint8Array(Buffer.from("plain of S5.js")));
    await s5.fs.put("home/notes/secret.bin", new Uint8Array(Buffer.from("secret of S5.js")), {
        encryption: { algorithm: "xchacha20-poly1305" },
    });
    await hidden.setRawData("elsewhere/of/s5js", new Uint8Array(Buffer.from("hidden of S5.js")), 1);
    const cid = await new FS5Advanced(s5.fs).pathToCID("home/notes/plain.bin");
    tell({ did: "wrote", hash: hex(cid) });
}

async function again() {
    const names = [];
    for await (const entry of s5.fs.list("home/notes")) names.push(entry.name);
    const secret = Buffer.from(await s5.fs.get("home/notes/secret.bin")).toString();
    await s5.fs.put("home/notes/later.bin", new Uint8Array(Buffer.from("later")));
    tell({ did: "read again", names: names.sort(), secret });
}

await (request.step === "first" ? first() : again());
process.exit(0);
