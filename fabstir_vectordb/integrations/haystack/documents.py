"""A document of Haystack to a row and back.

A row's metadata is ``{"text": content, "metadata": meta, "moments": …}``, with ``blob``, ``sparse`` and ``score`` where
the document has them. Haystack compares ISO dates in ``meta`` as moments, though they are strings: ``moments`` holds
each of them once more as a datetime, under the same keys, so that a search compares them itself.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fabstir_vectordb.integrations import needing
from fabstir_vectordb.integrations.shared import TEXT
from fabstir_vectordb.types import Row, SearchResult

with needing("haystack"):
    from haystack.dataclasses import ByteStream, Document, SparseEmbedding

__all__ = ["described", "document_of", "kept", "moment_of", "row_of"]


def row_of(document: Document) -> dict[str, Any]:
    """The metadata of a document's row."""
    row: dict[str, Any] = {TEXT: document.content, **described(document.meta)}
    if document.blob is not None:
        blob = document.blob
        data = base64.b64encode(blob.data).decode("ascii")
        row["blob"] = {"data": data, "meta": dict(blob.meta), "mime_type": blob.mime_type}
    if document.sparse_embedding is not None:
        row["sparse"] = document.sparse_embedding.to_dict()
    if document.score is not None:
        row["score"] = document.score
    return row


def described(meta: Mapping[str, Any]) -> dict[str, Any]:
    """``meta`` and its moments."""
    return {"metadata": dict(meta), "moments": _moments(meta)}


def _moments(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The ISO dates of ``meta`` as datetimes, under the same keys."""
    found: dict[str, Any] = {}
    for name, value in meta.items():
        if isinstance(value, Mapping):
            if inner := _moments(value):
                found[name] = inner
        elif isinstance(value, str) and (moment := moment_of(value)) is not None:
            found[name] = moment
    return found


def moment_of(value: object) -> datetime | None:
    """The moment that a value stands for; without an offset it is in UTC. None if it is no ISO date or datetime."""
    if isinstance(value, str):
        if not value[:4].isdigit() or value[4:5] != "-":  # quickly: few strings are dates
            return None
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        try:
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        except OverflowError:  # outside the years 1 to 9999 in UTC
            return None
    return None


def kept(row: Row | SearchResult) -> dict[str, Any]:
    """The metadata of a row; empty where it is of another kind."""
    return row.metadata if isinstance(row.metadata, dict) else {}


def document_of(row: Row | SearchResult) -> Document:
    """The document of a row; a hit has a score."""
    fields = kept(row)
    blob, sparse = fields.get("blob"), fields.get("sparse")
    return Document(
        id=row.id,
        content=fields.get(TEXT),
        meta=fields.get("metadata") or {},
        blob=None if blob is None else ByteStream(base64.b64decode(blob["data"]), blob["meta"], blob["mime_type"]),
        sparse_embedding=None if sparse is None else SparseEmbedding.from_dict(sparse),
        score=row.score if isinstance(row, SearchResult) else fields.get("score"),
        embedding=None if row.vector is None else row.vector.tolist(),
    )
