"""Unmodified S5.js, Fabstir's storage library for browsers, works through the package's portal alone.

FVDB_S5JS names a built checkout of it; nothing of it is in this repository.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "storage"))
from serving import serving  # noqa: E402

from fabstir_vectordb import new_seed_phrase  # noqa: E402
from fabstir_vectordb.s5.cid import BlobId  # noqa: E402
from fabstir_vectordb.s5.cipher import decrypt_mutable, decrypt_static  # noqa: E402
from fabstir_vectordb.s5.dirv1 import Directory, decode_directory  # noqa: E402
from fabstir_vectordb.s5.keys import Identity  # noqa: E402
from fabstir_vectordb.s5.phrase import parse_phrase  # noqa: E402
from fabstir_vectordb.s5.registry import pointer_hash  # noqa: E402
from fabstir_vectordb.storage import Store, open_store  # noqa: E402
from fabstir_vectordb.storage.base import AtMost  # noqa: E402
from fabstir_vectordb.sync import VectorDBSession  # noqa: E402

NODE = shutil.which("node")
CHECKOUT = os.environ.get("FVDB_S5JS", "")
ROWS, DIM, SEED = 400, 16, 20_261_127

pytestmark = [
    pytest.mark.skipif(NODE is None, reason="node is not installed"),
    pytest.mark.skipif(not CHECKOUT, reason="FVDB_S5JS does not name a built checkout of S5.js"),
    pytest.mark.skipif(not (HERE / "node_modules").is_dir(), reason="run `npm ci` in tests/js first"),
]


def run(request: dict[str, Any]) -> subprocess.Popen[str]:
    command = [NODE or "", str(HERE / "s5js.js"), CHECKOUT]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(request))
    process.stdin.close()
    return process


def told(process: subprocess.Popen[str], last: str) -> dict[str, dict[str, Any]]:
    """What the script tells, up to what it did last, by what it did."""
    found: dict[str, dict[str, Any]] = {}
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="")
        if line.startswith("{"):
            found[json.loads(line)["did"]] = json.loads(line)
            if last in found:
                return found
    raise AssertionError(f"S5.js ended before {last!r}, exit code {process.wait()}")


def test_s5js_reads_our_index_and_we_read_its_files(tmp_path: Path) -> None:
    phrase, random = new_seed_phrase(), np.random.default_rng(SEED)
    vectors = random.standard_normal((ROWS, DIM), dtype=np.float32)
    with serving(tmp_path, accounts=True) as portal:

        def session(index_name: str, encrypt: bool = True) -> VectorDBSession:
            return VectorDBSession.create(
                s5_portal=portal,
                user_seed_phrase=phrase,
                session_id="s5js",
                index_name=index_name,
                encrypt_at_rest=encrypt,
            )

        def pointer(index_name: str) -> str:
            return Identity(parse_phrase(phrase)).path_keys(f"fabstir-vectordb/index/{index_name}").public_key.hex()

        with session("clear", False) as clear, session("sealed") as sealed:
            for one in (clear, sealed):
                one.add_batch([f"row {number}" for number in range(ROWS)], vectors)
                cid = one.save_to_s5()
            request = {
                "portal": portal,
                "phrase": phrase,
                "index": "sealed",
                "cid": cid,
                "share": sealed.share(cid),
                "query": vectors[7].tolist(),
                "clear_pointer": pointer("clear"),
                "sealed_pointer": pointer("sealed"),
            }
            with run({**request, "step": "first"}) as process:
                found = told(process, "listening")
                sealed.delete_vector("row 0")
                sealed.save_to_s5()
                found |= told(process, "wrote")
            expected = [hit.id for hit in sealed.search(vectors[7], k=3, exact=True)]
        # A fresh process signs in to the account with the phrase alone.
        with run({**request, "step": "again"}) as process:
            found |= told(process, "read again")

        assert found["by phrase"]["revision"] == 1
        assert found["by phrase"]["files"] == found["by share"]["files"] == len(found["by path"]["names"]) > 3
        assert found["by phrase"]["bytes"] == found["by share"]["bytes"] > ROWS * DIM
        assert found["by CID"]["bytes"] == BlobId.parse(cid).size
        assert found["searched"]["hits"] == expected
        assert found["by path"]["rows"] == ROWS
        # S5.js decrypts no directory below the root of its file system.
        assert found["by path, sealed"]["refusal"] == "MissingEncryptionKey"
        assert found["heard"]["revision"] == 2
        assert found["read again"]["names"] == ["plain.bin", "secret.bin"]
        assert found["read again"]["secret"] == "secret of S5.js"

        async def read() -> None:
            async with aclosing(open_store(f"portal+{portal}")) as store:
                await check_files_of_s5js(store, phrase, bytes.fromhex(found["wrote"]["hash"]))

        anyio.run(read)


async def check_files_of_s5js(store: Store, phrase: str, plain_hash: bytes) -> None:
    """Reads what S5.js wrote: by CID, by path from the phrase, and in the hidden database."""
    assert await store.get(plain_hash, AtMost(100)) == b"plain of S5.js"
    identity = Identity(parse_phrase(phrase))

    async def blob(public_key: bytes) -> bytes:
        entry = await store.get_pointer(public_key)
        assert entry is not None
        return await store.get(pointer_hash(entry.data), AtMost(2**20))

    top = identity.file_system_root()
    keys = top
    directory: Directory = decode_directory(decrypt_mutable(top.encryption_key, await blob(top.public_key)))
    for name in ("home", "notes"):
        keys = keys.child(name)
        assert name in directory.dirs
        directory = decode_directory(await blob(keys.public_key))
    assert set(directory.files) == {"plain.bin", "secret.bin", "later.bin"}
    secret = directory.files["secret.bin"]
    assert secret.encryption is not None
    sealed = await store.get(secret.hash, AtMost(100))
    assert decrypt_static(secret.encryption.key, sealed, secret.size) == b"secret of S5.js"

    path = identity.path_keys("elsewhere/of/s5js")
    assert decrypt_mutable(path.encryption_key, await blob(path.public_key)) == b"hidden of S5.js"
