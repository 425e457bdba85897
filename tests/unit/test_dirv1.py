"""Directories: deterministic bytes out, hostile bytes refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from fabstir_vectordb.errors import IntegrityError, InvalidInputError
from fabstir_vectordb.s5 import cbor
from fabstir_vectordb.s5.dirv1 import (
    DIRECTORY_BYTES_MAX,
    ENTRIES_MAX,
    DirectoryEntry,
    FileEncryption,
    FileEntry,
    decode_directory,
    encode_directory,
    is_directory,
)

FILE = FileEntry(b"h" * 32, 5)
SECRET = FileEntry(b"c" * 32, 100, "application/octet-stream", 1_700_000_000, FileEncryption(b"k" * 32, b"p" * 32))


def directory_with(files: Any = None, dirs: Any = None, header: Any = None) -> bytes:
    return b"\x5f\x5d" + cbor.encode(["S5.pro", header or {}, dirs or {}, files or {}])


@given(
    st.dictionaries(
        st.text(max_size=20),
        st.builds(
            FileEntry,
            st.binary(min_size=32, max_size=32),
            st.integers(0, 2**64 - 1),
            st.none() | st.text(max_size=20),
            st.none() | st.integers(0, 2**40),
            st.none()
            | st.builds(FileEncryption, st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32)),
        ),
        max_size=5,
    )
)
def test_files_survive(files: dict[str, FileEntry]) -> None:
    raw = encode_directory(files)
    assert is_directory(raw)
    assert decode_directory(raw).files == files


def test_bytes_do_not_depend_on_the_order_of_files() -> None:
    names = ["b", "a", "é", "z", "A", "metadata", "timestamps.0000"]
    raw = encode_directory(dict.fromkeys(names, FILE))
    assert raw == encode_directory(dict.fromkeys(reversed(names), FILE))
    assert list(decode_directory(raw).files) == sorted(names, key=lambda name: name.encode())


def test_encryption_is_written_as_byte_strings() -> None:
    entry = cbor.decode(encode_directory({"x": SECRET})[2:], max_bytes=1000, what="directory")[3]["x"]
    assert list(entry) == [3, 4, 6, 7, 22]
    assert entry[22] == {
        "encryption": {"algorithm": "xchacha20-poly1305", "key": b"k" * 32, "plaintextHash": b"p" * 32}
    }


def test_key_is_not_shown() -> None:
    assert repr(b"k" * 32)[2:-1] not in repr(decode_directory(encode_directory({"x": SECRET})))


def test_999_entries_are_written_and_read_and_1000_refused() -> None:
    files = {f"{number:04}": FILE for number in range(ENTRIES_MAX)}
    assert len(decode_directory(encode_directory(files)).files) == 999
    with pytest.raises(InvalidInputError) as caught:
        encode_directory({**files, "more": FILE})
    assert caught.value.details == {"limit": 999, "actual": 1000}
    with pytest.raises(InvalidInputError):
        encode_directory(files, {"more": DirectoryEntry(b"\x1e" + bytes(32))})
    with pytest.raises(IntegrityError):
        decode_directory(directory_with({f"{number:04}": {3: bytes(32), 4: 0} for number in range(1000)}))


@pytest.mark.parametrize(
    ("entry", "name"),
    [(FileEntry(b"h", 5), "x"), (FileEntry(b"h" * 32, -1), "x"), (FileEntry(b"h" * 32, 2**64), "x"), (FILE, "\ud800")],
)
def test_impossible_file_is_not_written(entry: FileEntry, name: str) -> None:
    with pytest.raises(InvalidInputError):
        encode_directory({name: entry})


def encrypted(**change: Any) -> dict[int, Any]:
    fields = {"algorithm": "xchacha20-poly1305", "key": b"k" * 32, "plaintextHash": b"p" * 32, **change}
    return {3: bytes(32), 4: 1, 22: {"encryption": fields}}


@pytest.mark.parametrize(
    "file",
    [
        None,
        [],
        {},
        {3: bytes(32)},
        {4: 1},
        {3: bytes(31), 4: 1},
        {3: "x" * 32, 4: 1},
        {3: bytes(32), 4: -1},
        {3: bytes(32), 4: 1.5},
        {3: bytes(32), 4: float("nan")},
        {3: bytes(32), 4: 1e300},
        {3: bytes(32), 4: True},
        {3: bytes(32), 4: "1"},
        {3: bytes(32), 4: 1, 6: b"text"},
        {3: bytes(32), 4: 1, 6: "x" * 5000},
        {3: bytes(32), 4: 1, 7: "now"},
        {3: bytes(32), 4: 1, 7: -1},
        {3: bytes(32), 4: 1, 9: "url"},
        {3: bytes(32), 4: 1, 9: [[1]]},
        {3: bytes(32), 4: 1, 9: [["http", "x"]]},
        {3: bytes(32), 4: 1, 9: [[1, 2]]},
        {3: bytes(32), 4: 1, 9: [[1, "x"]] * 65},
        {3: bytes(32), 4: 1, 22: "x"},
        {3: bytes(32), 4: 1, 22: {"encryption": []}},
        {3: bytes(32), 4: 1, 23: []},
        {3: bytes(32), 4: 1, 23: {3: bytes(32)}},
        encrypted(algorithm=None),
        encrypted(algorithm=1),
        encrypted(key=None),
        encrypted(key=bytes(31)),
        encrypted(key=[0] * 31),
        encrypted(key=[256] * 32),
        encrypted(key=[True] * 32),
        encrypted(key="k" * 32),
        encrypted(plaintextHash=[0.0] * 32),
    ],
)
def test_hostile_file_is_refused(file: Any) -> None:
    with pytest.raises(IntegrityError):
        decode_directory(directory_with({"x": file}))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x5f\x5d",
        b"not a directory",
        cbor.encode(["S5.pro", {}, {}]),
        cbor.encode(["S5.pro", {}, {}, {}, {}]),
        cbor.encode(["S6.pro", {}, {}, {}]),
        cbor.encode({"S5.pro": 1}),
        directory_with(header=[1]),
        directory_with(header={1: 2}),
        directory_with(dirs=[1]),
        directory_with({1: {3: bytes(32), 4: 1}}),
        directory_with({b"x": {3: bytes(32), 4: 1}}),
        directory_with({"x" * 1025: {3: bytes(32), 4: 1}}),
        directory_with(dirs={"x": {}}),
        directory_with(dirs={"x": {2: bytes(33)}}),
        directory_with(dirs={"x": {2: b"\x1e" + bytes(31)}}),
        directory_with() + b"\0",
        bytes.fromhex("5f5d846653352e70726fa0a0a2") + b"\x61x\xa2\x03\x58\x20" + bytes(32) + b"\x04\x01" + b"\x61x\xa0",
    ],
)
def test_hostile_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_directory(raw)


def test_endless_history_of_a_file_is_refused() -> None:
    file: dict[int, Any] = {3: bytes(32), 4: 1}
    for _ in range(20):
        file = {3: bytes(32), 4: 1, 23: file}
    with pytest.raises(IntegrityError):
        decode_directory(directory_with({"x": file}))


def test_directory_over_one_mib_is_refused_before_parsing() -> None:
    with pytest.raises(IntegrityError) as caught:
        decode_directory(b"\x5f\x5d" + bytes(DIRECTORY_BYTES_MAX + 1))
    assert caught.value.details["expected"] == DIRECTORY_BYTES_MAX


def test_unknown_fields_are_ignored_and_unknown_extras_kept() -> None:
    raw = directory_with({"x": {3: b"h" * 32, 4: 5, 99: "new", 22: {"colour": "red"}}})
    assert decode_directory(raw).files["x"] == FileEntry(b"h" * 32, 5, extra={"colour": "red"})


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused_with_our_error(raw: bytes) -> None:
    for prefix in (b"", b"\x5f\x5d\x84\x66S5.pro"):
        try:
            decode_directory(prefix + raw)
        except IntegrityError:
            pass


def test_is_directory_tells_by_the_first_bytes() -> None:
    assert is_directory(encode_directory({})) and is_directory(memoryview(encode_directory({}))[2:])
    assert not is_directory(b"") and not is_directory(b"\x5f\x5d") and not is_directory(b"\x8d\x01S5.pro")
