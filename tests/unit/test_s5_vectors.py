"""Every value other people's S5 code produced, reproduced by ours (tests/data/s5_vectors.json, see its meta.how)."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from fabstir_vectordb.errors import InvalidConfigError, InvalidInputError
from fabstir_vectordb.s5.cid import BlobId, EncryptedBlobCid, ShareCid, blake3_hash, multibase_encode
from fabstir_vectordb.s5.cipher import (
    CHUNK_BYTES,
    decrypt_mutable,
    decrypt_static,
    encrypt_mutable,
    encrypt_static,
    is_mutable,
    padded_size,
)
from fabstir_vectordb.s5.dirv1 import (
    DirectoryEntry,
    FileEncryption,
    FileEntry,
    Location,
    decode_directory,
    encode_directory,
    is_directory,
)
from fabstir_vectordb.s5.keys import (
    Identity,
    derive_int,
    derive_str,
    ed25519_public_key,
    ed25519_sign,
    keyed_hash,
    portal_challenge_response,
)
from fabstir_vectordb.s5.phrase import encode_phrase, parse_phrase, secret_to_entropy
from fabstir_vectordb.s5.registry import RegistryEntry, pointer_data, pointer_hash
from fabstir_vectordb.s5.wordlist import WORDS

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "s5_vectors.json").read_text("utf-8"))
BASES = ("base16", "base32", "base58btc", "base64url")


def cases(*path: str) -> Any:
    """Parametrise over a group of the vectors."""
    group: Any = VECTORS
    for key in path:
        group = group[key]
    return pytest.mark.parametrize("case", group, ids=[_label(case, index) for index, case in enumerate(group)])


def _label(case: dict[str, Any], index: int) -> str:
    label = case.get("name", case.get("size", case.get("value", case.get("entropy", index))))
    return str(label)


def content(source: dict[str, Any]) -> bytes:
    """The bytes an input rule stands for."""
    if "utf8" in source:
        return str(source["utf8"]).encode()
    if "hex" in source:
        return bytes.fromhex(source["hex"])
    return pattern251(source["pattern251"])


def pattern251(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


# --- identifiers


@cases("blob_ids")
def test_blob_id(case: dict[str, Any]) -> None:
    data = content(case["input"])
    blob = BlobId.of(data)
    assert blob.size == case["size"] == len(data)
    assert blob.hash.hex() == case["blake3"]
    assert blob.to_bytes().hex() == case["blob_id"]["bytes"]
    assert blob.to_old_bytes().hex() == case["legacy_cid"]["bytes"]
    for base in BASES:
        assert blob.to_text(base) == case["blob_id"][base]
        assert multibase_encode(blob.to_old_bytes(), base) == case["legacy_cid"][base]
        assert BlobId.parse(case["blob_id"][base]) == blob
        assert BlobId.parse(case["legacy_cid"][base]) == blob
    assert str(blob) == case["blob_id"]["base64url"]
    if "s5rs_blob_id_bytes" in case:
        assert BlobId.from_bytes(bytes.fromhex(case["s5rs_blob_id_bytes"])) == blob


@cases("blob_id_sizes")
def test_blob_id_size(case: dict[str, Any]) -> None:
    blob = BlobId(bytes.fromhex(case["hash"]), case["size"])
    assert blob.to_bytes().hex() == case["bytes"]
    assert str(blob) == case["base64url"]
    assert BlobId.parse(case["base64url"]) == blob


@cases("s5js_little_endian_defect")
def test_sizes_from_two_gib_are_written_right_where_s5js_is_wrong(case: dict[str, Any]) -> None:
    value, correct = case["value"], bytes.fromhex(case["correct_le8"])
    blob = BlobId(bytes(32), value)
    assert blob.to_bytes()[35:] == correct.rstrip(b"\0")
    assert BlobId.from_bytes(blob.to_bytes()).size == value
    entry = RegistryEntry.sign(bytes(32), value, b"")
    assert entry.serialize()[34:42] == correct
    if value >= 2**31:
        assert correct.hex() != case["s5js_encodeLittleEndian8"]


def test_values_quoted_from_the_specification() -> None:
    blobs, identifier, phrase, registry, blake = VECTORS["spec_values"]
    blob = BlobId.of(blobs["input_utf8"].encode())
    for base in BASES:
        assert blob.to_text(base) == blobs[base]
    other = BlobId(bytes.fromhex(identifier["hash"])[1:], identifier["size"])
    for base in ("base64url", "base58btc", "base32"):
        assert BlobId.parse(identifier[base]) == other
    assert str(other) == identifier["base64url"]
    assert parse_phrase(phrase["phrase"]).hex() == phrase["entropy"]
    entry = RegistryEntry.sign(bytes.fromhex(registry["seed"]), registry["revision"], bytes.fromhex(registry["data"]))
    assert entry.signature.hex() == registry["signature"]
    assert blake3_hash(blake["input_utf8"].encode()).hex() == blake["blake3"]


# --- phrases and keys


def test_derivations() -> None:
    group = VECTORS["derive"]
    base = bytes.fromhex(group["base"])
    for case in group["derive_hash_int"]:
        assert derive_int(base, case["tweak"]).hex() == case["out"]
    for case in group["derive_hash_string"]:
        assert derive_str(base, case["tweak_utf8"]).hex() == case["out"]


def test_word_list() -> None:
    group = VECTORS["seed_phrases"]["wordlist"]
    assert len(WORDS) == group["count"]
    assert list(WORDS) == sorted(WORDS)
    assert "".join(word[:3] for word in WORDS) == group["prefixes3_concatenated"]
    assert blake3_hash("\n".join(WORDS).encode()).hex() == group["blake3_of_words_joined_by_newline"]


def test_checksum_words_come_from_the_first_twenty_bits_of_the_hash() -> None:
    for case in VECTORS["seed_phrases"]["checksum_from_hash"]:
        digest = bytes.fromhex(case["blake3_of_empty"])
        bits = int.from_bytes(digest[:3], "big")
        assert [bits >> 14, bits >> 4 & 1023] == case["words"]


@cases("seed_phrases", "cases")
def test_phrase(case: dict[str, Any]) -> None:
    entropy = bytes.fromhex(case["entropy"])
    assert encode_phrase(entropy) == case["phrase"]
    assert [WORDS.index(word) for word in case["phrase"].split()] == case["word_indices"]
    for text in (case["phrase"], case["prefixes"], case["phrase"].upper()):
        assert parse_phrase(text) == entropy
        assert secret_to_entropy(text) == entropy


@cases("seed_phrases", "validation")
def test_phrase_validation(case: dict[str, Any]) -> None:
    if case["valid"]:
        assert parse_phrase(case["phrase"]).hex() == case["entropy"]
        return
    with pytest.raises(InvalidConfigError) as caught:
        parse_phrase(case["phrase"])
    # The reason must not give the secret away, not even one word of it.
    said = str(caught.value).lower().split()
    assert not [word for word in case["phrase"].split() if len(word) > 3 and word in said and word not in HARMLESS]


# Words of our own messages that are on S5's list too.
HARMLESS = {"phrase", "word", "words", "list", "first", "this", "order", "than", "among"}


@cases("seed_phrases", "cases")
def test_sub_seeds(case: dict[str, Any]) -> None:
    identity = Identity(bytes.fromhex(case["entropy"]))
    assert identity.identity_seed.hex() == case["identity_seed"]
    assert identity.main_seed.hex() == case["main_identity_seed"]
    assert identity.public_seed.hex() == case["public_identity_seed"]
    assert identity.private_seed.hex() == case["private_data_seed"]
    for number, expected in case["sub_seeds"].items():
        assert identity.sub_seed(int(number)).hex() == expected["seed"], expected["name"]


@cases("seed_phrases", "cases")
def test_file_system_keys(case: dict[str, Any]) -> None:
    expected = case["fs"]
    root = Identity(bytes.fromhex(case["entropy"])).file_system_root()
    assert root.write_key.hex() == expected["filesystem_root_key"]
    assert root.public_key.hex() == expected["root_public_key"]
    assert root.encryption_key.hex() == expected["root_encryption_key"]
    assert root.cid_bytes().hex() == expected["root_directory_cid_bytes"]
    assert multibase_encode(root.cid_bytes(), "base32") == expected["root_directory_cid_base32"]
    assert root.write_uri() == expected["root_write_uri"]
    for child in expected["children"]:
        keys = root
        for name in child["path"].split("/"):
            keys = keys.child(name)
        assert keys.write_key.hex() == child["write_key"]
        assert keys.public_key.hex() == child["public_key"]
        assert derive_int(keys.write_key, 0x5E).hex() == child["encryption_key_0x5e"]


@cases("seed_phrases", "cases")
def test_hidden_db_keys(case: dict[str, Any]) -> None:
    identity = Identity(bytes.fromhex(case["entropy"]))
    for expected in case["hidden_db"]:
        keys = identity.path_keys(expected["path"])
        assert identity.path_key(expected["path"]).hex() == expected["path_key"]
        assert keys.write_seed.hex() == expected["write_key"]
        assert keys.encryption_key.hex() == expected["encryption_key"]
        assert keys.public_key.hex() == expected["public_key"]


@cases("seed_phrases", "cases")
def test_portal_account(case: dict[str, Any]) -> None:
    expected = case["portal_account"]
    account_seed = bytes.fromhex(expected["account_seed"])
    seed = Identity(bytes.fromhex(case["entropy"])).portal_account_seed(account_seed)
    assert seed.hex() == expected["account_key"]
    public_key = ed25519_public_key(seed)
    assert public_key.hex() == expected["public_key"]
    assert _base64url(public_key) == expected["pubKey_b64u"]
    assert _base64url(account_seed[:12]) == expected["account_id_suffix_b64u"]
    challenge = bytes.fromhex(expected["challenge"])
    for name in ("register", "login"):
        answer = expected[name]
        response = portal_challenge_response(answer["type"], challenge, expected["portal_host"])
        assert response.hex() == answer["response"]
        assert _base64url(response) == answer["response_b64u"]
        assert ed25519_sign(seed, response).hex() == answer["signature"]


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


# --- encryption


@cases("padding")
def test_padding(case: dict[str, Any]) -> None:
    assert padded_size(case["size"]) == case["padded"]
    assert (padded_size(case["size"]) == case["size"]) is case["is_padded"]


@cases("mutable_encryption")
def test_mutable_encryption(case: dict[str, Any]) -> None:
    key, nonce, data = bytes.fromhex(case["key"]), bytes.fromhex(case["nonce"]), content(case["input"])
    blob = encrypt_mutable(key, nonce, data)
    assert len(blob) == case["output_size"]
    assert blake3_hash(blob).hex() == case["output_blake3"]
    assert blob[:64].hex() == case["output_first_64"]
    assert blob[-16:].hex() == case["output_last_16"]
    assert is_mutable(blob)
    assert decrypt_mutable(key, blob) == data


@cases("static_encryption")
def test_static_encryption_unpadded(case: dict[str, Any]) -> None:
    key, data = bytes.fromhex(case["key"]), content(case["input"])
    expected = case["unpadded"]
    blob = encrypt_static(key, data)
    assert len(blob) == expected["ciphertext"]["size"]
    assert blake3_hash(blob).hex() == expected["ciphertext"]["blake3"]
    assert str(BlobId.of(blob)) == expected["ciphertext_blob_id_base64url"]
    assert decrypt_static(key, blob, len(data)) == data


@cases("static_encryption")
def test_static_encryption_padded_is_read(case: dict[str, Any]) -> None:
    """Also the exact multiples of a chunk, which S5.js writes over-long and cannot read itself."""
    key, data = bytes.fromhex(case["key"]), content(case["input"])
    expected = case["padded"]
    blob = padded_ciphertext_like_s5js(key, data, expected["padding"])
    assert len(blob) == expected["ciphertext"]["size"]
    assert blake3_hash(blob).hex() == expected["ciphertext"]["blake3"]
    assert str(BlobId.of(blob)) == expected["ciphertext_blob_id_base64url"]
    assert decrypt_static(key, blob, len(data)) == data


def padded_ciphertext_like_s5js(key: bytes, data: bytes, padding: int) -> bytes:
    """S5.js's padded form, which this package reads and does not write."""
    from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as seal

    if not data:
        return seal(b"", None, b"\xff" * 24, key)
    pieces = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
    pieces[-1] += bytes(padding)
    return b"".join(seal(piece, None, i.to_bytes(24, "little"), key) for i, piece in enumerate(pieces))


@cases("static_encryption")
def test_encrypted_blob_cid(case: dict[str, Any]) -> None:
    data, expected = content(case["input"]), case["padded"]
    cid = EncryptedBlobCid(
        ciphertext_hash=bytes.fromhex(expected["ciphertext"]["blake3"]),
        key=bytes.fromhex(case["key"]),
        padding=expected["padding"],
        plaintext=BlobId.of(data),
    )
    assert cid.plaintext.hash.hex() == case["plaintext_blake3"]
    assert cid.to_bytes(old=True).hex() == expected["encrypted_cid_legacy"]["bytes"]
    assert cid.to_bytes().hex() == expected["encrypted_cid_blobid"]["bytes"]
    for form in ("encrypted_cid_legacy", "encrypted_cid_blobid"):
        raw = bytes.fromhex(expected[form]["bytes"])
        assert EncryptedBlobCid.from_bytes(raw) == cid
        for base in BASES:
            if base in expected[form]:
                assert multibase_encode(raw, base) == expected[form][base]
        with pytest.raises(InvalidInputError):
            BlobId.from_bytes(raw)
    assert case["key"] not in repr(cid)


# --- registry


@cases("registry")
def test_registry_entry(case: dict[str, Any]) -> None:
    seed, data = bytes.fromhex(case["seed"]), bytes.fromhex(case["data"])
    entry = RegistryEntry.sign(seed, case["revision"], data)
    assert entry.public_key.hex() == case["pk"]
    assert entry.signed_bytes().hex() == case["signed_bytes"]
    assert entry.signature.hex() == case["signature"]
    assert entry.serialize().hex() == case["serialized"]
    assert entry.to_portal_json() == case["http_post_json"]
    for read in (
        RegistryEntry.parse(bytes.fromhex(case["serialized"])),
        RegistryEntry.from_portal_json(case["http_post_json"]),
    ):
        assert read == entry
        read.verify()


# --- directories


@cases("dirv1", "vectors")
def test_s5js_directory(case: dict[str, Any]) -> None:
    raw = bytes.fromhex(case["bytes"])
    assert len(raw) == case["size"]
    assert blake3_hash(raw).hex() == case["blake3"]
    assert is_directory(raw)
    directory = decode_directory(raw)
    assert directory == decode_directory(raw.removeprefix(b"\x5f\x5d"))
    if case["name"] not in NOT_OUR_ENCODING:
        assert encode_directory(directory.files, directory.dirs) == raw


# S5.js orders names by locale, writes numbers above 2^32 as float64, and has headers we never write.
NOT_OUR_ENCODING = ("sort_case_and_punctuation", "file_size_over_4gib_number", "hamt_header")


def test_s5js_directory_contents() -> None:
    by_name = {case["name"]: decode_directory(bytes.fromhex(case["bytes"])) for case in VECTORS["dirv1"]["vectors"]}
    assert by_name["empty"].files == by_name["empty"].dirs == by_name["empty"].header == {}
    assert by_name["one_file_media_type_ts"].files == {
        "index.bin": FileEntry(b"\x11" * 32, 262145, "application/octet-stream", 1_700_000_000)
    }
    assert by_name["files_and_dirs"].dirs == {
        "chunks": DirectoryEntry(b"\x1e" + b"\xbb" * 32),
        "home": DirectoryEntry(b"\xed" + b"\xcc" * 32, 1_234_567_890, 123_456_789),
    }
    assert {name: entry.size for name, entry in by_name["files_and_dirs"].files.items()} == {
        "a.txt": 100,
        "b.txt": 200,
    }
    assert sorted(by_name["sort_case_and_punctuation"].files) == sorted(["_", "10", "9", "a", "A", "b", "B", "é", "z"])
    assert by_name["file_with_locations_and_prev"].files["v.bin"] == FileEntry(
        b"\x33" * 32,
        70_000,
        "application/octet-stream",
        1_700_000_001,
        timestamp_ns=5,
        locations=(Location(1, "https://example.com/f"), Location(0x1E, b"\x77" * 32)),
        previous=FileEntry(b"\x44" * 32, 60_000, timestamp_s=1_700_000_000),
    )
    for name in ("file_size_over_4gib_number", "file_size_over_4gib_bigint"):
        assert by_name[name].files["big"].size == 5_000_000_000
    assert by_name["hamt_header"].header["sharding"]["root"]["totalEntries"] == 1500


@cases("dirv1", "from_s5js_rust_test_vectors")
def test_early_rust_directory(case: dict[str, Any]) -> None:
    raw = bytes.fromhex(case["cbor_hex_without_5f5d_prefix"])
    assert is_directory(raw)
    directory = decode_directory(raw)
    assert encode_directory(directory.files, directory.dirs) == b"\x5f\x5d" + raw


# --- whole flows


def test_blobs_of_an_s5js_file_system() -> None:
    flow = VECTORS["fs5_flow"]
    root_keys = Identity(parse_phrase(flow["phrase"])).file_system_root()
    known = {
        keys.public_key: keys
        for keys in (
            root_keys,
            root_keys.child("home"),
            root_keys.child("archive"),
            root_keys.child("home").child("docs"),
        )
    }
    blobs = [blob for step in flow["steps"] for blob in step["blobs"]]
    hashes = {bytes.fromhex(blob["blake3"]) for blob in blobs}
    for blob in blobs:
        if "hex" in blob:
            raw = bytes.fromhex(blob["hex"])
            assert BlobId.of(raw) == BlobId(bytes.fromhex(blob["blake3"]), blob["size"])
            if is_directory(raw):
                decode_directory(raw)
    for step in flow["steps"]:
        for expected in step["registry"]:
            keys = known[bytes.fromhex(expected["pk"])]
            entry = RegistryEntry.sign(keys.write_key, expected["revision"], bytes.fromhex(expected["data"]))
            assert entry.signature.hex() == expected["signature"]
            assert pointer_hash(entry.data) in hashes


def test_root_of_an_s5js_file_system_is_decrypted() -> None:
    flow = VECTORS["fs5_flow"]
    root_keys = Identity(parse_phrase(flow["phrase"])).file_system_root()
    plaintext = bytes.fromhex(flow["root_dir_plaintext_hex"])
    # The vectors hold nonce and plaintext of the root blob; equal hashes prove that this is the blob itself.
    blob = encrypt_mutable(root_keys.encryption_key, bytes.fromhex(flow["nonces_in_order"][0]), plaintext)
    expected = flow["steps"][0]["blobs"][2]
    assert BlobId.of(blob) == BlobId(bytes.fromhex(expected["blake3"]), expected["size"])
    assert blob[:1].hex() == flow["root_encrypted_first_byte"]
    directory = decode_directory(decrypt_mutable(root_keys.encryption_key, blob))
    assert directory.files == {}
    assert {name: entry.link for name, entry in directory.dirs.items()} == {
        "archive": root_keys.child("archive").public_key,
        "home": root_keys.child("home").public_key,
    }


def test_encrypted_file_of_an_s5js_file_system_is_opened() -> None:
    flow = VECTORS["fs5_flow"]
    steps = {step["step"].split(" = ")[0].split(",")[0]: step for step in flow["steps"]}
    ciphertext, docs = (bytes.fromhex(blob["hex"]) for blob in steps["put home/docs/secret.bin"]["blobs"])
    # S5.js writes key and hash as lists of numbers under a non-minimal map header.
    entry = decode_directory(docs).files["secret.bin"]
    assert entry.encryption == FileEncryption(
        key=bytes.fromhex(flow["file_key"]), plaintext_hash=blake3_hash(pattern251(1000))
    )
    assert blake3_hash(ciphertext) == entry.hash
    assert decrypt_static(entry.encryption.key, ciphertext, entry.size) == pattern251(1000)
    last = bytes.fromhex(flow["steps"][-1]["blobs"][-1]["hex"])
    listing = {
        name: {"size": file.size, "mediaType": file.media_type, "timestamp": (file.timestamp_s or 0) * 1000}
        for name, file in decode_directory(last).files.items()
    }
    assert listing == {
        item["name"]: {key: item[key] for key in ("size", "mediaType", "timestamp")}
        for item in flow["listing_home_docs"]
    }


def test_version_that_s5js_has_read_is_read_here() -> None:
    """Inputs for reading only: that group's part keys and nonce follow older rules."""
    group = VECTORS["python_to_s5js"]
    keys = Identity(parse_phrase(group["phrase"])).path_keys(group["hidden_db_path"])
    assert keys.encryption_key.hex() == group["encryption_key"]
    plaintext = bytes.fromhex(group["directory_plaintext_hex"])
    blob = encrypt_mutable(keys.encryption_key, bytes.fromhex(group["root_nonce"]), plaintext)
    assert len(blob) == group["root_blob"]["size"]
    assert blake3_hash(blob).hex() == group["root_blob"]["blake3"]
    assert str(BlobId.of(blob)) == group["root_blob"]["blob_id_base64url"]

    entry = RegistryEntry.sign(keys.write_seed, group["registry"]["revision"], pointer_data(blake3_hash(blob)))
    assert entry.public_key.hex() == group["registry"]["pk"]
    assert entry.data.hex() == group["registry"]["data"]
    assert entry.signature.hex() == group["registry"]["signature"]

    share = ShareCid.from_bytes(bytes.fromhex(group["share_cid"]["hex"]))
    assert share == ShareCid(keys.encryption_key, blake3_hash(blob))
    assert share.to_bytes().hex() == group["share_cid"]["hex"]
    assert multibase_encode(share.to_bytes()) == group["share_cid"]["base64url"]
    assert group["encryption_key"] not in repr(share)

    directory = decode_directory(decrypt_mutable(share.key, blob))
    assert encode_directory(directory.files) == plaintext
    assert set(directory.files) == set(group["files"])
    for name, expected in group["files"].items():
        file = directory.files[name]
        data = content(expected["plaintext"])
        assert file.encryption is not None
        assert file.encryption.key.hex() == expected["key"]
        assert keyed_hash(keys.encryption_key, blake3_hash(data)) == file.encryption.key
        assert file.encryption.plaintext_hash.hex() == expected["plaintext_blake3"]
        ciphertext = encrypt_static(file.encryption.key, data)
        assert blake3_hash(ciphertext) == file.hash == bytes.fromhex(expected["ciphertext_blake3"])
        assert decrypt_static(file.encryption.key, ciphertext, file.size) == data
