"""Texts of a session: embedded by its embedder, then added or asked for.

All that can be refused is refused before the texts are embedded: that takes long, and may cost money. Then all texts
are embedded, beside other calls of the session, and at last the rows are added in one change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final
from uuid import uuid4

import numpy as np

from fabstir_vectordb._native.handle import Control
from fabstir_vectordb.additions import Additions
from fabstir_vectordb.embedders.base import EmbedProgress, Vectors, aembed, ask_info, check_texts, embed
from fabstir_vectordb.embedding import Embedder, EmbedderInfo, check_same, info_of
from fabstir_vectordb.errors import ConflictError, InvalidInputError
from fabstir_vectordb.index import Index
from fabstir_vectordb.index.hybrid import no_text_index
from fabstir_vectordb.index.incoming import check_ids, check_on_conflict, named, rows_kept, taken
from fabstir_vectordb.index.rows import check_schema
from fabstir_vectordb.metadata.path import parse_path
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.params import SearchOptions
from fabstir_vectordb.runtime import AnyIndex, Runtime
from fabstir_vectordb.types import AddResult, AddTextsResult
from fabstir_vectordb.worker_threads import is_async
from fabstir_vectordb.workspace import Workspace

__all__ = ["SessionTexts"]

#: Where the text of a row is kept, if no text fields say otherwise.
_TEXT: Final = "text"


class SessionTexts:
    """The texts of a session.

    Args:
        runtime: has the index.
        workspace: has the embedder.
        additions: adds the rows.
    """

    def __init__(self, runtime: Runtime, workspace: Workspace, additions: Additions) -> None:
        self._runtime = runtime
        self._workspace = workspace
        self._additions = additions

    # ---- texts in

    async def add(
        self,
        texts: Iterable[str],
        ids: Sequence[str] | None,
        metadata: Sequence[Mapping[str, Any] | None] | None,
        timestamps: Any,
        expires_at: Any,
        on_conflict: str,
        batch_size: int | None,
        progress: EmbedProgress | None,
    ) -> AddTextsResult:
        """Embeds texts and adds a row for each; see `VectorDBSession.add_texts`."""
        embedder = self._embedder()
        given = _texts_of(texts)
        names = [str(uuid4()) for _ in given] if ids is None else _list_of("ids", ids, len(given))
        rows = _Rows(given, names, _list_of("metadata", metadata, len(given)), timestamps, expires_at, on_conflict)
        if not given:
            return AddTextsResult(0, 0, 0, [])
        info = await self._info(embedder)
        kept = await self._runtime.concurrent(partial(self._check, rows, info))
        if not kept:
            return AddTextsResult(0, 0, len(given), names)
        vectors = await self._vectors(embedder, [given[row] for row in kept], batch_size, progress)
        result = await self._runtime.change(partial(self._add, rows.at(kept), vectors, info))
        return AddTextsResult(result.added, result.replaced, result.skipped + len(given) - len(kept), names)

    def _check(self, rows: _Rows, info: EmbedderInfo, index: Index, control: Control) -> list[int]:
        """Refuses what the add would refuse; returns the places of the texts that it would keep."""
        _check_index(index, info)
        index.check_room(np.broadcast_to(np.float32(0), (len(rows.ids), info.dimension)))
        batch = self._additions.prepared(rows.ids, None, rows.documents(index), rows.timestamps, rows.expires_at, index)
        check_schema(index.schema, batch.metadata or (), rows.ids)
        check_ids(batch)
        live = index.timestamps(rows.ids)
        if rows.on_conflict == "error":
            first: dict[str, int] = {}
            for row, id in enumerate(rows.ids):
                if id in live:
                    raise named(ConflictError("", details={"row": row}), batch)
                if first.setdefault(id, row) != row:
                    raise named(ConflictError("", details={"row": row, "first_row": first[id]}), batch)
        return rows_kept(rows.ids, lambda row: rows.ids[row] in live, rows.on_conflict)

    def _add(self, rows: _Rows, vectors: Vectors, info: EmbedderInfo, index: Index, control: Control) -> AddResult:
        _check_index(index, info)  # a load may have come in between
        documents = rows.documents(index)
        times = rows.timestamps, rows.expires_at
        result = self._additions.add(rows.ids, vectors, documents, *times, rows.on_conflict, index, control)
        if result.added or result.replaced:
            index.params = replace(index.params, embedder=info)
        return result

    # ---- queries

    async def asked(
        self, queries: list[str], options: SearchOptions | Mapping[str, Any] | None, fields: Mapping[str, Any]
    ) -> tuple[Vectors, Any]:
        """The vectors of one query or more, and the search's fields, with the queries' words for ``text=True``."""
        embedder, own_words = self._embedder(), _takes_own_words(options, fields)
        if own_words and self._runtime.here(lambda index: index.text) is None:
            raise no_text_index()
        vectors = await self._vectors(embedder, queries)
        # Also after the wait: a load may have come in between.
        self._runtime.here(lambda index: check_same(index.params.embedder, embedder.name, vectors.shape[1]))
        if own_words:
            return vectors, {**fields, "text": queries if len(queries) > 1 else queries[0]}
        return vectors, fields

    # ---- the embedder

    def _embedder(self) -> Embedder:
        """The session's embedder, which the index's texts were embedded by.

        Raises:
            InvalidInputError: there is none.
            InvalidConfigError: the index's texts were embedded by another one.
        """
        self._runtime.check()
        embedder = self._workspace.embedder
        if embedder is None:
            raise InvalidInputError(
                "this session has no embedder for texts: pass embedder= to create or load_user_vectors, or give "
                "vectors; text='…' searches for words alone"
            )
        name = embedder.name
        self._runtime.here(lambda index: check_same(index.params.embedder, name))
        return embedder

    async def _info(self, embedder: Embedder) -> EmbedderInfo:
        return info_of(embedder) if self._runtime.is_blocking else await ask_info(embedder)

    async def _vectors(
        self,
        embedder: Embedder,
        texts: Sequence[str],
        batch_size: int | None = None,
        progress: EmbedProgress | None = None,
    ) -> Vectors:
        """The vectors of texts, off the event loop; on the caller's thread where there is none."""
        if self._runtime.is_blocking and not is_async(embedder):
            return embed(embedder, texts, batch_size=batch_size, progress=progress)
        run = partial(aembed, embedder, texts, batch_size=batch_size, progress=progress)
        return await self._runtime.awaited(run)


class _Rows:
    """Rows of an add before their texts are embedded."""

    def __init__(
        self,
        texts: list[str],
        ids: list[str],
        metadata: list[Any] | None,
        timestamps: Any,
        expires_at: Any,
        on_conflict: str,
    ) -> None:
        check_on_conflict(on_conflict)
        self.texts, self.ids, self.metadata = texts, ids, metadata
        self.timestamps, self.expires_at, self.on_conflict = timestamps, expires_at, on_conflict

    def at(self, places: list[int]) -> _Rows:
        """The rows of some places."""
        if len(places) == len(self.ids):
            return self

        def some(values: Any) -> Any:
            return None if values is None else [values[place] for place in places]

        times = some(self.timestamps), some(self.expires_at)
        return _Rows(some(self.texts), some(self.ids), some(self.metadata), *times, self.on_conflict)

    def documents(self, index: AnyIndex) -> list[dict[str, Any]]:
        """The metadata of the rows, with their texts in it: in the first text field, or under ``text``."""
        path = [word for word, _ in parse_path(index.text.fields[0])] if index.text is not None else [_TEXT]
        return [
            _with_text({} if self.metadata is None else self.metadata[row], path, text, row)
            for row, text in enumerate(self.texts)
        ]


def _with_text(metadata: Any, path: list[str], text: str, row: int) -> dict[str, Any]:
    """A copy of metadata with a text at a path.

    Raises:
        InvalidInputError: it is no dict, or has something else at that place.
    """
    kept = {} if metadata is None else metadata
    if not isinstance(kept, Mapping):
        raise InvalidInputError(
            f"metadata of text {row} must be a dict or None, as the text is kept in it, got {type(kept).__name__}",
            details={"row": row},
        )
    key, *rest = path
    if rest:
        return {**kept, key: _with_text(kept.get(key), rest, text, row)}
    if kept.get(key, text) != text:
        raise InvalidInputError(
            f"metadata of text {row} has another {shown(key)}, where the text itself is kept: leave it out, or name "
            "another field in text_fields",
            details={"row": row},
        )
    return {**kept, key: text}


def _check_index(index: AnyIndex, info: EmbedderInfo) -> None:
    check_same(index.params.embedder, info.name, info.dimension)
    if index.vector_dim not in (None, info.dimension):
        raise InvalidInputError(
            f"Vector dimension mismatch: expected {index.vector_dim}, and the embedder {info.name!r} gives "
            f"{info.dimension}",
            details={"expected": index.vector_dim, "actual": info.dimension},
        )


def _texts_of(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise InvalidInputError(f"texts must be strings, got {type(texts).__name__}")
    given = taken(texts, "texts")
    check_texts(given)
    return given


def _list_of(name: str, values: Any, n: int) -> Any:
    """The values of an argument as a list of n; None for None."""
    if values is None:
        return None
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InvalidInputError(f"{name} must be a list with one for each text, got {type(values).__name__}")
    found = taken(values, name)
    if len(found) != n:
        raise InvalidInputError(
            f"there are {n} texts and {len(found)} {name}", details={"expected": n, "actual": len(found)}
        )
    return found


def _takes_own_words(options: SearchOptions | Mapping[str, Any] | None, fields: Mapping[str, Any]) -> bool:
    if "text" in fields or options is None:
        text = fields.get("text")
    else:
        text = options.get("text") if isinstance(options, Mapping) else getattr(options, "text", None)
    return text is True
