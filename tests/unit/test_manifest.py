"""The manifest: what it says comes back, and bytes that break a rule are refused by name."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from fabstir_vectordb.embedding import EmbedderInfo
from fabstir_vectordb.errors import IntegrityError, StorageError
from fabstir_vectordb.index.contents import DOCUMENTS, TextShape
from fabstir_vectordb.metadata.schema import parse_schema
from fabstir_vectordb.persist import manifest as module
from fabstir_vectordb.persist.manifest import (
    FORMAT,
    Format,
    Manifest,
    decode_manifest,
    encode_manifest,
)
from fabstir_vectordb.persist.parts import (
    PART_BYTES_MAX,
    PART_TARGET_BYTES,
    PARTS_MAX,
    Layout,
    PartRecord,
    layout_for,
    part_name,
    split_name,
)
from fabstir_vectordb.s5 import cbor


def example(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "dim": 384,
        "metric": "cosine",
        "M": 16,
        "ef_construction": 200,
        "chunk_size": None,
        "rows": 10_000,
        "live": 9_900,
        "with_vector": 9_999,
        "bits_serve": True,
        "graph_rows": 10_000,
        "historical": 0,
        "lists": 0,
        "layout": Layout(8192, 16384, 8192),
        "stored_rows": 9_800,
        "steps": (9_900, 10_000),
        "superseded": 153_700,
        "timestamp_us": 1_700_000_000_000_000,
        "schema": parse_schema({"title": {"type": "string", "required": True}, "pages": "Array<Number>"}),
        "parts": (
            PartRecord("vectors.0000", bytes(range(32)), 6_291_488, "zstd"),
            PartRecord("vectors.0001", bytes(range(1, 33)), 1_388_576, "raw"),
            PartRecord("recent.head.0000", bytes(32), 100, "raw"),
            PartRecord("documents.0000", bytes(32), 0, "raw"),
        ),
    }
    return Manifest(**{**fields, **changes})


TEXT = TextShape(
    fields=("text",),
    k1=1.2,
    b=0.75,
    analyzer={"unicode": "16.0.0", "rules": 1, "language": None, "stemmer": None, "stop_words": ["a"]},
    segments=2,
    chunk_bytes=262_144,
)


EMBEDDER = EmbedderInfo("all-MiniLM-L6-v2", 384)


def document(manifest: Manifest) -> dict[str, Any]:
    top: dict[str, Any] = cbor.decode(encode_manifest(manifest), max_bytes=10**6, what="manifest")
    return top


def broken(change: Callable[[dict[str, Any]], object]) -> bytes:
    top = document(example())
    change(top)
    return cbor.encode(top)


def in_draft(number: int, manifest: Manifest) -> bytes:
    """A manifest as a release before format 1 wrote it."""
    top = {**document(manifest), "version": 0, "draft": number}
    if not number:
        del top["draft"], top["superseded"], top["with_vector"], top["bits_serve"]
    return cbor.encode(top)


def test_every_field_comes_back() -> None:
    for manifest in (
        example(),
        example(chunk_size=1000, metric="dot"),
        example(rows=0, live=0, with_vector=0, graph_rows=0, stored_rows=0, steps=(), superseded=0, dim=0, parts=()),
        example(graph_rows=0, stored_rows=10_000, steps=(), timestamp_us=-1),
        example(graph_rows=4_000, historical=5_000, lists=90),
        example(text=TEXT),
        example(text=replace(TEXT, segments=0, k1=0.0, fields=("a", "b.c"))),
        example(embedder=EMBEDDER),
        example(embedder=EMBEDDER, text=TEXT),
    ):
        assert decode_manifest(encode_manifest(manifest)) == manifest


def test_names_of_the_original_layout_are_kept() -> None:
    top = document(example())
    assert top["version"] == FORMAT.number == 1
    assert top["config"]["dim"] == 384
    assert (top["recent_count"], top["historical_count"], top["total_vectors"]) == (9_900, 0, 9_900)
    assert top["timestamp"] == 1_700_000_000_000_000


def test_texts_and_embedders_need_their_drafts() -> None:
    for text, embedder, refused in ((None, None, 3), (TEXT, None, 2), (None, EMBEDDER, 3), (TEXT, EMBEDDER, 3)):
        manifest = example(text=text, embedder=embedder)
        top = document(manifest)
        assert "draft" not in top
        assert (("text" in top), ("embedder" in top)) == (text is not None, embedder is not None)
        with pytest.raises(IntegrityError, match="does not have exactly the keys"):
            decode_manifest(in_draft(refused, manifest))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"name": "m"},
        {"name": "m", "dimension": 384, "more": 1},
        {"name": "", "dimension": 384},
        {"name": "m" * 257, "dimension": 384},
        {"name": "a\nb", "dimension": 384},
        {"name": b"m", "dimension": 384},
        {"name": "m", "dimension": 0},
        {"name": "m", "dimension": 5_000},
        {"name": "m", "dimension": True},
        {"name": "m", "dimension": 384.0},
    ],
)
def test_an_embedder_is_checked(value: Any) -> None:
    with pytest.raises(IntegrityError, match="embedder"):
        decode_manifest(broken(lambda top: top.update(embedder=value)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fields", []),
        ("fields", "text"),
        ("fields", ["text", "text"]),
        ("fields", ["a..b"]),
        ("k1", -1.0),
        ("k1", 1),
        ("b", 2.0),
        ("b", None),
        ("analyzer", []),
        ("analyzer", {"language": None}),
        ("segments", -1),
        ("segments", 10_000),
        ("chunk_bytes", 16),
        ("other", 1),
    ],
)
def test_what_is_said_of_a_text_index_is_checked(key: str, value: Any) -> None:
    top = cbor.decode(encode_manifest(example(text=TEXT)), max_bytes=10**6, what="manifest")
    top["text"][key] = value
    with pytest.raises(IntegrityError):
        decode_manifest(cbor.encode(top))


def test_manifests_of_every_draft_are_read() -> None:
    for number, manifest in (
        (1, example()),
        (2, example()),
        (3, example(text=TEXT)),
        (4, example()),
        (4, example(embedder=EMBEDDER)),
        (5, example(text=TEXT)),
        (6, example(text=TEXT, embedder=EMBEDDER)),
    ):
        assert decode_manifest(in_draft(number, manifest)) == replace(manifest, format=Format(0, number))


def test_drafts_ended_with_format_0() -> None:
    with pytest.raises(IntegrityError, match="format 0 has no draft 7"):
        decode_manifest(in_draft(7, example()))
    with pytest.raises(IntegrityError, match="does not have exactly the keys"):
        decode_manifest(broken(lambda top: top.update(draft=6)))


def test_draft_1_had_no_second_lists() -> None:
    second = PartRecord("historical.second.0000", bytes(32), 10_040, "raw")
    manifest = example(graph_rows=4_000, historical=5_000, lists=90, parts=(*example().parts, second))
    assert decode_manifest(in_draft(2, manifest)) == replace(manifest, format=Format(0, 2))
    with pytest.raises(IntegrityError, match="second lists, which draft 1 does not know"):
        decode_manifest(in_draft(1, manifest))


def test_draft_0_had_no_number_and_did_not_say_what_is_superseded() -> None:
    manifest = decode_manifest(in_draft(0, example()))
    assert manifest == example(superseded=manifest.superseded, with_vector=None, bits_serve=None, format=Format(0))
    assert manifest.superseded > 0
    for number in (0, -1, True, "1"):
        with pytest.raises(IntegrityError):
            decode_manifest(broken(lambda top, number=number: top.update(version=0, draft=number)))  # type: ignore[misc]


def test_tombstones_are_superseded() -> None:
    with pytest.raises(IntegrityError, match="nothing is superseded"):
        decode_manifest(encode_manifest(example(superseded=0)))


def test_a_newer_format_is_refused_by_name() -> None:
    with pytest.raises(StorageError, match=r"format 7; this release reads formats up to 1: upgrade") as caught:
        decode_manifest(cbor.encode({"version": 7, "layers": []}))
    assert caught.value.details == {"format_version": 7, "supported": 1}


def set_part(column: int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(top: dict[str, Any]) -> None:
        top["parts"][0][column] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda top: top.pop("rows"), "rows is not an integer|exactly the keys"),
        (lambda top: top.update(extra=1), "exactly the keys"),
        (lambda top: top.update(version=True), "version is not an integer"),
        (lambda top: top.update(version=-1), "version is not an integer"),
        (lambda top: top.update(rows=1.0), "rows is not an integer"),
        (lambda top: top.update(rows=9_899), "rows is not an integer in 9900"),
        (lambda top: top.update(rows=2**31), "rows is not an integer"),
        (lambda top: top.update(graph_rows=5), "on neither side"),
        (lambda top: top.update(graph_rows=10_001), "graph_rows is not"),
        (lambda top: top.update(historical_count=1), "do not add up"),
        (lambda top: top.update(historical_count=1, recent_count=9_899), "on neither side"),
        (lambda top: top.update(historical_count=9_901), "historical_count is not"),
        (lambda top: top.update(lists=200_001), "lists is not"),
        (lambda top: top.update(recent_count=1), "do not add up"),
        (lambda top: top.update(rows_per_part=0), "rows_per_part is not"),
        (lambda top: top.update(rows_per_group=0), "rows_per_group is not"),
        (lambda top: top.update(stored_rows=10_001), "stored_rows is not"),
        (lambda top: top.update(steps=None), "steps is not a list"),
        (lambda top: top.update(steps=[1] * 257), "steps is not a list"),
        (lambda top: top.update(steps=[True]), "a step is no number"),
        (lambda top: top.update(steps=[10_001]), "a step is no number"),
        (lambda top: top.update(document_rows=0), "document_rows is not"),
        (lambda top: top.update(timestamp=2**63), "timestamp is not"),
        (lambda top: top.update(schema=[]), "must be a dict of fields"),
        (lambda top: top.update(schema={"a": {"type": "time", "required": False}}), "has the unknown type 'time'"),
        (lambda top: top.update(schema={"a": "String"}), "schema is not spelled out"),
        (lambda top: top.update(schema={"a": {"type": "string"}}), "schema is not spelled out"),
        (lambda top: top.update(config=[]), "config is not a map"),
        (lambda top: top["config"].update(metric="manhattan"), "config.metric"),
        (lambda top: top["config"].update(metric=["cosine"]), "config.metric"),
        (lambda top: top["config"].update(dim=4097), "dim is not"),
        (lambda top: top["config"].update(dim=0), "rows but no dimension"),
        (lambda top: top["config"].update(M=3), "M is not"),
        (lambda top: top["config"].update(ef_construction=0), "ef_construction is not"),
        (lambda top: top["config"].update(chunk_size=0), "chunk_size is not"),
        (lambda top: top["config"].update(quantiser=1), "config does not have exactly"),
        (lambda top: top.update(parts={}), "parts is not a list"),
        (lambda top: top.update(parts=top["parts"] * (PARTS_MAX // 4 + 1)), "at most 900"),
        (lambda top: top.update(parts=top["parts"] * 2), "the name of another"),
        (lambda top: top["parts"][0].append(0), "a list of 4"),
        (set_part(0, 5), "no name"),
        (set_part(0, "vectors.1"), "unknown part name"),
        (set_part(0, "vectors.00000"), "unknown part name"),
        (set_part(0, "../../etc/passwd"), "unknown part name"),
        (set_part(0, "metadata"), "unknown part name"),
        (set_part(0, "vectors.middle.0000"), "unknown part name"),
        (set_part(0, "vectors.000\u0661"), "unknown part name"),
        (set_part(1, bytes(31)), "not 32 bytes"),
        (set_part(1, "0" * 32), "not 32 bytes"),
        (set_part(2, -1), "the size of"),
        (set_part(2, True), "the size of"),
        (set_part(2, PART_BYTES_MAX + 1), "the size of"),
        (set_part(3, "gzip"), "the codec of"),
        (set_part(3, b"raw"), "the codec of"),
    ],
)
def test_a_broken_rule_is_named(change: Callable[[dict[str, Any]], object], reason: str) -> None:
    with pytest.raises(IntegrityError, match=reason):
        decode_manifest(broken(change))


@pytest.mark.parametrize("raw", [b"", b"\x00", b"\xa0", b"\x80", b"\xf6", b"\xff", bytes(1024 * 1024 + 1)])
def test_what_is_no_manifest_is_refused(raw: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_manifest(raw)


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.booleans())
def test_any_changed_byte_gives_a_manifest_or_an_error_of_ours(position: int, value: int, cut: bool) -> None:
    raw = bytearray(encode_manifest(example()))
    position %= len(raw)
    if cut:
        del raw[position:]
    else:
        raw[position] = value
    with contextlib.suppress(IntegrityError, StorageError):
        decode_manifest(bytes(raw))


def test_part_names_and_numbers_belong_together() -> None:
    for kind in range(DOCUMENTS, 8):
        for number in (0, 1, 42, 9999):
            name = part_name(kind, number)
            assert split_name(name) == (kind, number)
            assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.")
    assert sorted(part_name(1, number) for number in (10, 9, 100)) == [part_name(1, number) for number in (9, 10, 100)]
    with pytest.raises(StorageError, match="9999"):
        part_name(1, 10_000)


@pytest.mark.parametrize("dim", [1, 3, 16, 384, 768, 1536, 4096])
def test_parts_stay_near_the_target_size(dim: int) -> None:
    layout = layout_for(dim)
    assert PART_TARGET_BYTES // 2 < layout.rows_per_part * max(4 * dim, 64) <= PART_TARGET_BYTES
    assert layout.rows_per_group % layout.rows_per_part == layout.document_rows % layout.rows_per_part == 0
    assert layout.doubled() == Layout(*(2 * rows for rows in dataclasses.astuple(layout)))


def test_a_fixed_number_of_rows_is_that_of_parts_with_vectors() -> None:
    assert layout_for(384, 1000) == Layout(1000, 64_000, 7000)
    assert layout_for(384, 100_000) == Layout(100_000, 100_000, 100_000)


def test_the_parts_of_the_benchmark_set_are_known() -> None:
    # 100 K x 384: 87 parts of 1,152 rows with vectors, 1.8 MB each.  Changing this changes every CID.
    assert layout_for(384) == Layout(1152, 73_728, 8064)


def test_names_in_all_exist() -> None:
    assert all(hasattr(module, name) for name in module.__all__)
