"""The manifest of a version: settings, counts, and the list of parts with their sizes.

It is CBOR, stored as the file ``metadata`` of the version's root. It bounds all memory that a reader allocates. So
`decode_manifest` treats its bytes as hostile, although the root's encryption authenticates them: a version without
encryption is authenticated by its CID alone, which may come from anybody. ``docs/format.md`` describes every key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from fabstir_vectordb._native.handle import DIM_MAX, EF_MAX, LISTS_MAX, M_MAX, M_MIN, ROWS_MAX, STEPS_MAX
from fabstir_vectordb._native.text import CHUNK_BYTES_MIN
from fabstir_vectordb.config import Metric
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.embedding import EmbedderInfo, is_dimension, is_name
from fabstir_vectordb.errors import IntegrityError, InvalidInputError, StorageError
from fabstir_vectordb.index.contents import (
    CHANGES,
    CODES,
    DOCUMENTS,
    EXPIRIES,
    GRAPH,
    GRAPH_HEAD,
    IDS,
    LISTS,
    LISTS_HEAD,
    SECOND_LISTS,
    TEXT_HEAD,
    TEXT_KINDS,
    TIMESTAMPS,
    TOMBSTONES,
    VECTORLESS,
    VECTORS,
    TextShape,
)
from fabstir_vectordb.metadata.schema import Schema, parse_schema
from fabstir_vectordb.persist.parts import (
    CODECS,
    MANIFEST_NAME,
    PART_BYTES_MAX,
    PARTS_MAX,
    Layout,
    PartRecord,
    bytes_of_rows,
    part_name,
    split_name,
)
from fabstir_vectordb.s5 import cbor
from fabstir_vectordb.text.settings import text_settings

__all__ = [
    "FORMAT",
    "FORMAT_OF_SEPARATE_KEYS",
    "MANIFEST_BYTES_MAX",
    "Format",
    "Manifest",
    "check_complete",
    "decode_manifest",
    "encode_manifest",
]


class Format(NamedTuple):
    """What a version is written in; a later format, or draft, is greater.

    Attributes:
        number: of the format.
        draft: of format 0; 0 in every later one, which has no drafts.
    """

    number: int
    draft: int = 0


FORMAT = Format(1)
"""The format of what is written. It is frozen: another layout has another number, and every earlier one is read."""
_LAST_DRAFT = Format(0, 6)
FORMAT_OF_SEPARATE_KEYS = Format(0, 5)
"""The first whose part keys have a key of their own (`s5.keys`)."""
_FORMAT_OF_COUNTS = Format(0, 1)
_FORMAT_OF_SECOND_LISTS = Format(0, 2)
_FORMAT_OF_TEXT = Format(0, 3)
_FORMAT_OF_EMBEDDER = Format(0, 4)
MANIFEST_BYTES_MAX = 1024 * 1024
"""Most bytes of a manifest; 900 parts take about 70 KB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The description of a version: settings, counts and parts.

    Attributes:
        dim: components of a vector; 0 while no row was ever added.
        metric: ``cosine``, ``l2`` or ``dot``.
        M: links of a row on the graph's upper layers.
        ef_construction: candidates while a row is linked.
        chunk_size: rows of a part that the user set, or None.
        rows: slots, tombstones included.
        live: rows that searches can return.
        with_vector: rows that have a vector, tombstones included; None in draft 0, which does not record it.
        bits_serve: whether codes of one bit find the nearest rows, so that lazy loads are possible; None in draft 0,
            which does not record it.
        graph_rows: number of rows in the HNSW graph, which are the last ones.
        historical: live rows on lists.
        lists: number of lists.
        layout: rows of a part.
        stored_rows: rows whose links are in the stored graph; `rows` where there are no steps.
        steps: number of rows after each add since the graph was stored.
        superseded: bytes before compression of tombstones and replaced metadata in the parts; 0 for a version of live
            rows only. For draft 0, which does not record it, an estimate.
        timestamp_us: newest timestamp that an add gave a row, microseconds since 1970.
        schema: the schema of metadata, or None.
        text: the text index, or None.
        embedder: the embedder of the rows' texts, or None.
        parts: every part but the manifest, in the order of their names' kinds and numbers.
        format: what the version was written in.
    """

    dim: int
    metric: str
    M: int
    ef_construction: int
    chunk_size: int | None
    rows: int
    live: int
    with_vector: int | None
    bits_serve: bool | None
    graph_rows: int
    historical: int
    lists: int
    layout: Layout
    stored_rows: int
    steps: tuple[int, ...]
    superseded: int
    timestamp_us: int
    schema: Schema | None
    parts: tuple[PartRecord, ...]
    text: TextShape | None = None
    embedder: EmbedderInfo | None = None
    format: Format = FORMAT


def encode_manifest(manifest: Manifest) -> bytes:
    """The stored bytes of a manifest, in today's format; equal manifests give equal bytes."""
    optional: dict[str, Any] = {}
    if manifest.text is not None:
        optional["text"] = _text_document(manifest.text)
    if manifest.embedder is not None:
        optional["embedder"] = {"name": manifest.embedder.name, "dimension": manifest.embedder.dimension}
    return cbor.encode(
        {
            "version": FORMAT.number,
            "config": {
                "dim": manifest.dim,
                "metric": manifest.metric,
                "M": manifest.M,
                "ef_construction": manifest.ef_construction,
                "chunk_size": manifest.chunk_size,
            },
            "recent_count": manifest.live - manifest.historical,
            "historical_count": manifest.historical,
            "total_vectors": manifest.live,
            "timestamp": manifest.timestamp_us,
            "rows": manifest.rows,
            "with_vector": manifest.with_vector,
            "bits_serve": int(bool(manifest.bits_serve)),
            "graph_rows": manifest.graph_rows,
            "lists": manifest.lists,
            "rows_per_part": manifest.layout.rows_per_part,
            "rows_per_group": manifest.layout.rows_per_group,
            "document_rows": manifest.layout.document_rows,
            "stored_rows": manifest.stored_rows,
            "steps": list(manifest.steps),
            "superseded": manifest.superseded,
            "schema": None if manifest.schema is None else manifest.schema.document(),
            "parts": [[part.name, part.hash, part.size, part.codec] for part in manifest.parts],
            **optional,
        }
    )


def decode_manifest(raw: bytes) -> Manifest:
    """Reads a manifest from untrusted bytes; every field is checked against its limit and against the others.

    Args:
        raw: the bytes of the file ``metadata``.

    Returns:
        The manifest.

    Raises:
        IntegrityError: the bytes break a rule of the format; the message names it.
        StorageError: a newer release wrote it: its format is a later one.
    """
    top = cbor.decode(raw, max_bytes=MANIFEST_BYTES_MAX, what="manifest")
    if not isinstance(top, dict):
        raise _broken("it is not a map")
    written = _decode_format(top)
    # Draft 3 was for versions with texts only.
    has_text = written == _FORMAT_OF_TEXT or (written > _FORMAT_OF_TEXT and "text" in top)
    has_embedder = written >= _FORMAT_OF_EMBEDDER and "embedder" in top
    has_counts = written >= _FORMAT_OF_COUNTS
    keys = _TOP_KEYS if has_counts else _TOP_KEYS - _COUNTS_KEYS
    keys |= {"draft"} if written.draft else set()
    keys |= ({"text"} if has_text else set()) | ({"embedder"} if has_embedder else set())
    _exact_keys(top, keys, "it")
    config = top["config"]
    if not isinstance(config, dict):
        raise _broken("config is not a map")
    _exact_keys(config, _CONFIG_KEYS, "config")
    metric = config["metric"]
    if not isinstance(metric, str) or metric not in get_args(Metric):
        raise _broken("config.metric is none of cosine, l2, dot")

    live = _integer(top, "total_vectors", 0, ROWS_MAX)
    rows = _integer(top, "rows", live, ROWS_MAX)
    graph_rows = _integer(top, "graph_rows", 0, rows)
    historical = _integer(top, "historical_count", 0, live)
    lists = _integer(top, "lists", 0, LISTS_MAX)
    if historical + _integer(top, "recent_count", 0, ROWS_MAX) != live:
        raise _broken("recent_count and historical_count do not add up to total_vectors")
    if not lists and (historical or graph_rows not in (0, rows)):
        raise _broken("rows are on neither side: there are no lists")
    dim = _integer(config, "dim", 0, DIM_MAX)
    if dim == 0 and rows:
        raise _broken("it has rows but no dimension")
    parts = _decode_parts(top["parts"])
    if written < _FORMAT_OF_SECOND_LISTS and _has_second_lists(parts):
        raise _broken(f"it has second lists, which draft {written.draft} does not know")
    superseded = _integer(top, "superseded", 0, 2**63 - 1) if has_counts else _superseded_of_draft_0(parts, rows, live)
    if rows > live and not superseded:
        raise _broken("it has tombstones, and says that nothing is superseded")
    return Manifest(
        dim=dim,
        metric=metric,
        M=_integer(config, "M", M_MIN, M_MAX),
        ef_construction=_integer(config, "ef_construction", 1, EF_MAX),
        chunk_size=None if config["chunk_size"] is None else _integer(config, "chunk_size", 1, ROWS_MAX),
        rows=rows,
        live=live,
        with_vector=_integer(top, "with_vector", 0, rows) if has_counts else None,
        bits_serve=_integer(top, "bits_serve", 0, 1) == 1 if has_counts else None,
        graph_rows=graph_rows,
        historical=historical,
        lists=lists,
        layout=Layout(
            _integer(top, "rows_per_part", 1, ROWS_MAX),
            _integer(top, "rows_per_group", 1, ROWS_MAX),
            _integer(top, "document_rows", 1, ROWS_MAX),
        ),
        stored_rows=_integer(top, "stored_rows", 0, rows),
        steps=_decode_steps(top["steps"], rows),
        superseded=superseded,
        timestamp_us=_integer(top, "timestamp", -(2**63), 2**63 - 1),
        schema=_decode_schema(top["schema"]),
        text=_decode_text(top["text"]) if has_text else None,
        embedder=_decode_embedder(top["embedder"]) if has_embedder else None,
        format=written,
        parts=parts,
    )


def _decode_format(top: dict[Any, Any]) -> Format:
    """What a version was written in. Checked before all else: a later layout may have other keys."""
    number = _integer(top, "version", 0, 2**31)
    if number > FORMAT.number:
        raise StorageError(
            f"this version was saved in format {number}; this release reads formats up to {FORMAT.number}: "
            "upgrade fabstir-vectordb",
            details={"format_version": number, "supported": FORMAT.number},
        )
    if number or "draft" not in top:
        return Format(number)
    draft = _integer(top, "draft", 1, 2**31)
    if draft > _LAST_DRAFT.draft:
        raise _broken(f"format 0 has no draft {draft}")
    return Format(number, draft)


def check_complete(manifest: Manifest) -> None:
    """Checks that a manifest names exactly the parts that follow from its counts, of every kind.

    Pages of metadata and of expiries may be missing, where no row of them has any.

    Raises:
        IntegrityError: a part is missing, or one is too many; details has ``part``.
    """
    found: dict[int, set[int]] = {}
    for part in manifest.parts:
        kind, number = split_name(part.name)
        found.setdefault(kind, set()).add(number)
    numbers_of = {kind: len(numbers) for kind, numbers in found.items()}
    for kind, numbers in _expected(manifest, numbers_of).items():
        there = found.pop(kind, set())
        # Stops at the first gap, so hostile counts cost no more steps than there are parts.
        missing = next((number for number in numbers if number not in there), None)
        if missing is not None and kind not in (DOCUMENTS, EXPIRIES, CHANGES):
            name = part_name(kind, min(missing, 9999))
            raise IntegrityError(f"part {name} is missing: the manifest does not name it", details={"part": name})
        found[kind] = {number for number in there if number not in numbers}
    for kind, odd in sorted(found.items()):
        if odd:
            name = part_name(kind, min(odd))
            raise IntegrityError(f"part {name} is more than the rows of this version ask for", details={"part": name})


def _expected(manifest: Manifest, numbers_of: Mapping[int, int]) -> dict[int, range]:
    """The numbers that parts of each kind have; the same rules as in ``native/src/format/format.h``.

    Args:
        manifest: the manifest.
        numbers_of: how many parts there are of each kind.
    """
    kinds = numbers_of.keys()
    rows, layout = manifest.rows, manifest.layout
    expected: dict[int, range] = {}
    if manifest.text is not None:
        # How many chunks there are follows from the heads. The native reader checks it.
        expected = {kind: range(numbers_of.get(kind, 0)) for kind in TEXT_KINDS}
        expected[TEXT_HEAD] = range(manifest.text.segments)
    if not rows:
        return expected
    once, groups = range(1), _numbers(rows, layout.rows_per_group)
    pages = _numbers(rows, layout.document_rows)
    expected |= {VECTORS: _numbers(rows, layout.rows_per_part), IDS: groups, TIMESTAMPS: groups, TOMBSTONES: once}
    expected |= {DOCUMENTS: pages, EXPIRIES: pages, CHANGES: once}
    # Whether a version must have codes depends on its rows with a vector. The native reader checks this in a whole
    # load, and a version without codes is always loaded as a whole.
    if CODES in kinds or GRAPH_HEAD in kinds:
        expected |= {CODES: groups, GRAPH_HEAD: once}
    if manifest.graph_rows:
        first = (rows - manifest.graph_rows) // layout.rows_per_group
        expected[GRAPH] = range(first, len(_numbers(manifest.stored_rows, layout.rows_per_group)))
    if manifest.lists:
        expected |= {LISTS: once, LISTS_HEAD: once}
        # The native reader checks whether there are second lists.
        if SECOND_LISTS in kinds:
            expected[SECOND_LISTS] = once
    if VECTORLESS in kinds if manifest.with_vector is None else manifest.with_vector < rows:
        expected[VECTORLESS] = once
    return expected


def _numbers(rows: int, rows_per_part: int) -> range:
    return range(-(-rows // rows_per_part))


_TOP_KEYS = frozenset(
    [
        "version",
        "config",
        "recent_count",
        "historical_count",
        "total_vectors",
        "timestamp",
        "rows",
        "with_vector",
        "bits_serve",
        "graph_rows",
        "lists",
        "rows_per_part",
        "rows_per_group",
        "document_rows",
        "stored_rows",
        "steps",
        "superseded",
        "schema",
        "parts",
    ]
)
_COUNTS_KEYS = frozenset(["superseded", "with_vector", "bits_serve"])
_EMBEDDER_KEYS = frozenset(["name", "dimension"])
_TEXT_KEYS = frozenset(["fields", "k1", "b", "analyzer", "segments", "chunk_bytes"])
_CONFIG_KEYS = frozenset(["dim", "metric", "M", "ef_construction", "chunk_size"])


def _has_second_lists(parts: Sequence[PartRecord]) -> bool:
    return any(split_name(part.name)[0] == SECOND_LISTS for part in parts)


def _superseded_of_draft_0(parts: Sequence[PartRecord], rows: int, live: int) -> int:
    # The old size of changed metadata is unknown without the pages: its present size is the estimate.
    changed = sum(part.size for part in parts if split_name(part.name)[0] == CHANGES)
    of_rows = max(bytes_of_rows(parts) // rows, 1) * (rows - live) if rows else 0
    return of_rows + changed


def _decode_schema(document: Any) -> Schema | None:
    if document is None:
        return None
    try:
        schema = parse_schema(document)
    except InvalidInputError as error:
        raise _broken(error.message) from None
    if schema.document() != document:
        raise _broken("schema is not spelled out")
    return schema


def _text_document(text: TextShape) -> dict[str, Any]:
    return {
        "fields": list(text.fields),
        "k1": text.k1,
        "b": text.b,
        "analyzer": dict(text.analyzer),
        "segments": text.segments,
        "chunk_bytes": text.chunk_bytes,
    }


def _decode_text(document: Any) -> TextShape:
    if not isinstance(document, dict):
        raise _broken("text is not a map")
    _exact_keys(document, _TEXT_KEYS, "text")
    fields, analyzer = document["fields"], document["analyzer"]
    if not isinstance(fields, list) or not fields:
        raise _broken("text.fields is not a list of paths")
    try:
        settings = text_settings(fields, None, None, document["k1"], document["b"], InvalidInputError)
    except InvalidInputError as error:
        raise _broken(error.message) from None
    if settings is None or (type(document["k1"]), type(document["b"])) != (float, float):
        raise _broken("text has no numbers for BM25")
    if not isinstance(analyzer, dict) or not {"language", "stop_words"} <= analyzer.keys():
        raise _broken("text.analyzer does not describe an analyzer")
    return TextShape(
        fields=settings.fields,
        k1=settings.k1,
        b=settings.b,
        analyzer=analyzer,
        segments=_integer(document, "segments", 0, PARTS_MAX),
        chunk_bytes=_integer(document, "chunk_bytes", CHUNK_BYTES_MIN, PART_BYTES_MAX),
    )


def _decode_embedder(document: Any) -> EmbedderInfo:
    if not isinstance(document, dict):
        raise _broken("embedder is not a map")
    _exact_keys(document, _EMBEDDER_KEYS, "embedder")
    name, dimension = document["name"], document["dimension"]
    if not is_name(name) or not is_dimension(dimension):
        raise _broken("embedder has no name and dimension of an embedder")
    return EmbedderInfo(name, dimension)


def _decode_steps(steps: Any, rows: int) -> tuple[int, ...]:
    if not isinstance(steps, list) or len(steps) > STEPS_MAX:
        raise _broken(f"steps is not a list of at most {STEPS_MAX}")
    if not all(type(step) is int and 0 < step <= rows for step in steps):
        raise _broken("a step is no number of rows")
    return tuple(steps)


def _decode_parts(rows: Any) -> tuple[PartRecord, ...]:
    if not isinstance(rows, list) or len(rows) > PARTS_MAX:
        raise _broken(f"parts is not a list of at most {PARTS_MAX}")
    parts: list[PartRecord] = []
    seen: set[str] = set()
    for row in rows:
        if not isinstance(row, list) or len(row) != 4:
            raise _broken("an entry of parts is not a list of 4")
        name, digest, size, codec = row
        if not isinstance(name, str) or name in seen:
            raise _broken("a part has no name, or the name of another")
        split_name(name)
        seen.add(name)
        if not isinstance(digest, bytes) or len(digest) != 32:
            raise _broken(f"the hash of {name} is not 32 bytes")
        if type(size) is not int or not 0 <= size <= PART_BYTES_MAX:
            raise _broken(f"the size of {name} is not in 0..{PART_BYTES_MAX}")
        if not isinstance(codec, str) or codec not in CODECS:
            raise _broken(f"the codec of {name} is none of {', '.join(CODECS)}")
        parts.append(PartRecord(name, digest, size, codec))
    return tuple(parts)


def _broken(reason: str) -> IntegrityError:
    return IntegrityError(f"manifest: {reason}", details={"part": MANIFEST_NAME})


def _exact_keys(value: dict[Any, Any], keys: frozenset[str], what: str) -> None:
    if value.keys() != keys:
        raise _broken(f"{what} does not have exactly the keys {', '.join(sorted(keys))}")


def _integer(value: dict[Any, Any], key: str, least: int, most: int) -> int:
    number = value.get(key)
    # bool is a subclass of int, and CBOR true must not pass for 1.
    if type(number) is not int or not least <= number <= most:
        raise _broken(f"{key} is not an integer in {least}..{most}")
    return number
