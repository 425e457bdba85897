"""A reader written from docs/format.md alone reads every golden store to the bit, and finds the same rows."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import plain

GOLDEN = Path(__file__).parents[1] / "golden"
STORES = sorted(path.parent for path in GOLDEN.glob("*/expected.json"))


def expected_of(store: Path) -> Any:
    return json.loads((store / "expected.json").read_text(encoding="utf-8"))


# The reader of what drafts of format 0 wrote rarely changes: one version of each store is enough.
VERSIONS = [
    pytest.param(
        store,
        version,
        id=f"{store.name}-{version['cid'][5:12]}",
        marks=() if store.name.startswith("format-1") or not place else pytest.mark.long,
    )
    for store in STORES
    for place, version in enumerate(expected_of(store).get("versions", ()))
]


@pytest.mark.parametrize(("store", "version"), VERSIONS)
def test_a_golden_version_is_read_to_the_bit_and_searched(store: Path, version: dict[str, Any]) -> None:
    expected = expected_of(store)
    entropy, now = bytes.fromhex(expected["entropy"]), expected["now_us"]
    found = plain.open_cid(plain.Store(store / "store"), version["cid"], entropy, version["index"])
    digest = hashlib.sha256()
    rows = found.rows_by_id(now)
    for id, vector, timestamp, expires, metadata in rows:
        line = [id, vector and vector.hex(), str(timestamp), expires and str(expires), plain.in_json(metadata)]
        text = json.dumps(line, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        digest.update(text.encode() + b"\n")
    assert len(rows) == version["rows"]
    assert digest.hexdigest() == version["sha256"]
    for search in version["searches"]:
        hits = found.search(search["query"], len(search["ids"]), now)
        assert [id for id, _, _ in hits] == search["ids"]
        assert [distance for _, distance, _ in hits] == pytest.approx(search["distances"], abs=1e-6)
        assert [score for _, _, score in hits] == pytest.approx(search["scores"], abs=1e-6)
    if found.key is not None and version["index"] is not None:
        found.check_keys()
    if "text" in found.manifest:
        check_words(found)


def check_words(found: plain.Version) -> None:
    """The index of words has those of the rows' texts, in their order, and their stems."""
    analyzer = found.manifest["text"]["analyzer"]
    words: dict[int, list[bytes]] = {}
    stems: dict[int, Counter[bytes]] = {}
    for segment in found.segments():
        for slot in segment.left:
            words.pop(slot, None)
            stems.pop(slot, None)
        words |= {slot: [word for _, word in sorted(of_row)] for slot, of_row in segment.words.items() if of_row}
        stems |= {slot: of_row for slot, of_row in segment.stems.items() if of_row}
    expected = {
        slot: [
            word
            for word in re.findall(r"\w+", found.metadata[slot]["text"].casefold())
            if word not in (analyzer["stop_words"] or ())
        ]
        for slot in np.flatnonzero(found.live).tolist()
    }
    assert words == {slot: [word.encode() for word in of_row] for slot, of_row in expected.items()}
    assert bool(stems) == (analyzer["language"] is not None)
    if stems and analyzer["stemmer"]["version"] == importlib.metadata.version("PyStemmer"):
        stem = pytest.importorskip("Stemmer").Stemmer(analyzer["language"]).stemWord
        assert stems == {slot: Counter(stem(word).encode() for word in of_row) for slot, of_row in expected.items()}


def test_the_store_of_draft_0_is_read() -> None:
    store = GOLDEN / "draft-0"
    expected, entropy = expected_of(store), bytes.fromhex(expected_of(GOLDEN / "draft-5")["entropy"])
    for name in ("first", "second"):
        found = plain.open_cid(plain.Store(store / "store"), expected[name], entropy, "default")
        found.check_keys()
    assert len(found.rows_by_id(0)) == expected["rows"]
    nearest = found.search([1.0, 0.5, -0.5, 0.25], 5, 0)
    assert [id for id, _, _ in nearest] == expected["nearest"]


@pytest.mark.parametrize("name", ["drafts-1-3", "draft-5", "format-1"])
def test_a_share_has_the_key_of_its_version(name: str) -> None:
    store = GOLDEN / name
    entropy = bytes.fromhex(expected_of(store)["entropy"])
    key = plain.derive(plain.path_key(entropy, "fabstir-vectordb/index/graph"), 3)
    root = plain.newest(plain.Store(store / "store"), entropy, "graph")
    (cid,) = (version["cid"] for version in expected_of(store)["versions"] if version["index"] is None)
    if name == "drafts-1-3":
        expected = plain.blake3(b"share" + root, key=key).digest()
    else:
        expected = plain.blake3(root, key=plain.purpose_key(key, "share keys")).digest()
    assert plain.base64url(cid[1:])[3:35] == expected


def test_the_root_of_a_collection_names_its_shards_and_the_fingerprints_of_their_ids() -> None:
    store = GOLDEN / "format-1-shards"
    entropy, there = bytes.fromhex(expected_of(store)["entropy"]), plain.Store(store / "store")
    *_, version = [version for version in expected_of(store)["versions"] if version["index"] == "big"]
    root = plain.open_cid(there, version["cid"], entropy, "big")
    rows = {id: metadata for id, *_, metadata in root.rows_by_id(0)}
    assert rows["collection"]["form"] == 2 and rows["collection"]["next_shard"] == 3
    assert type(rows["collection"]["scale"]) is float and {*map(type, rows["collection"]["curve"])} == {float}
    shards = [metadata for id, metadata in rows.items() if id.startswith("shard-")]
    assert [metadata["shard"] for metadata in shards] == [0, 1, 2]
    for metadata in shards:
        shard = plain.open_shard(there, root, "big", metadata)
        shard.check_keys()
        assert plain.open_cid(there, metadata["share"], b"", None).raw == shard.raw
        ids = [id for id, *_ in shard.rows_by_id(0)]
        assert metadata["rows"] == len(ids)
        prints = plain.fingerprints(there, metadata["fingerprints"], shard)
        assert prints == sorted({int.from_bytes(plain.blake3(id.encode()).digest()[:4], "big") for id in ids})
        centroids = [id for id in rows if id.startswith(f"centroid-{metadata['shard']:08d}-")]
        assert centroids and all(rows[id] == {"kind": "centroid", "shard": metadata["shard"]} for id in centroids)


@pytest.mark.parametrize("store", STORES, ids=[store.name for store in STORES])
def test_pointers_histories_and_the_catalogue_are_read(store: Path) -> None:
    there = plain.Store(store / "store")
    entropy = bytes.fromhex(expected_of(GOLDEN / "draft-5")["entropy"])
    names = plain.catalogue(there, entropy)["names"]
    for name in names:
        entries = plain.history(there, entropy, name)["entries"]
        assert entries[0]["cid"][3:35] == plain.newest(there, entropy, name)
        assert [entry["revision"] for entry in entries] == list(range(len(entries), 0, -1))
    versions = expected_of(store).get("versions", ())
    assert {version["index"] for version in versions} - {None} <= set(names)
