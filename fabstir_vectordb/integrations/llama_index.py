"""A LlamaIndex vector store (llama-index-core 0.14) over an encrypted index on S5.

A row's metadata is ``{"text": …, "metadata": {…}, "ref_doc_id": …, "node": …, "node_type": …}``. The text and the
metadata of a node are stored once: ``node`` holds the rest of it. The words of the text are indexed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from fabstir_vectordb.config import Given, VectorDBConfig
from fabstir_vectordb.integrations import needing
from fabstir_vectordb.integrations.shared import TEXT, Operation, SharedSession, Store
from fabstir_vectordb.metadata.filter_parse import ID
from fabstir_vectordb.metadata.values import shown, step
from fabstir_vectordb.session import VectorDBSession
from fabstir_vectordb.types import Row, SearchResult

with needing("llama-index"):
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
    from llama_index.core.schema import BaseNode
    from llama_index.core.vector_stores.types import (
        BasePydanticVectorStore,
        FilterCondition,
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import metadata_dict_to_node

__all__ = ["FabstirVectorStore"]

_REF: Final = "ref_doc_id"
#: Names under which LlamaIndex's stores keep the id of the source document.
_REF_NAMES: Final = ("ref_doc_id", "doc_id", "document_id")
_NOTHING: Final[Mapping[str, Any]] = {ID: {"$in": []}}
_EVERYTHING: Final[Mapping[str, Any]] = {"$not": _NOTHING}
_ORDERS: Final = {
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
}
#: Modes by words alone.
_WORDS: Final = (VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.TEXT_SEARCH)
#: Candidates of a search by maximal marginal relevance for each node that is wanted, as other stores have it.
_MMR_PREFETCH: Final = 4


class FabstirVectorStore(Store, BasePydanticVectorStore):
    """Nodes in an index of `fabstir_vectordb`, for synchronous and asynchronous callers alike.

    Beside LlamaIndex's methods it has `save`, `load`, `close`, their asynchronous twins, and `run`, which reaches every
    other verb of the session. Similarities are in [0, 1], larger is nearer.

    Args:
        config: a VectorDBConfig, or a mapping of settings.
        **settings: single settings, as of VectorDBConfig: ``s5_portal``, ``user_seed_phrase`` and ``session_id`` are
            required. A new index has the words of the nodes' texts, unless ``text_fields`` names other paths of a row,
            as ``("text", "metadata.title")``, or none.

    Raises:
        InvalidConfigError: a setting is missing, unknown or out of range.
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    _shared: SharedSession = PrivateAttr()

    def __init__(self, config: VectorDBConfig | Mapping[str, Any] | None = None, **settings: Any) -> None:
        given = Given(config, settings)
        del config, settings  # what fails from here on has no bare secret in its traceback
        super().__init__()
        self._shared = SharedSession(given)

    @classmethod
    def class_name(cls) -> str:
        """The name of the class, for LlamaIndex."""
        return "FabstirVectorStore"

    @property
    def client(self) -> SharedSession:
        """The session that the store shares among its callers."""
        return self._shared

    # ---- nodes in

    def add(self, nodes: Sequence[BaseNode], *, on_conflict: str = "replace", **_: Any) -> list[str]:
        """Adds nodes that have embeddings: all or nothing.

        Args:
            nodes: the nodes.
            on_conflict: for ids that are there already: ``replace``, ``error`` or ``skip``.

        Returns:
            The ids, in the order of the nodes.

        Raises:
            ValueError: a node has no embedding.
            InvalidInputError: a node is refused.
            ConflictError: with ``error``, an id is there already.
        """
        return self.run(_addition(nodes, on_conflict))

    async def async_add(self, nodes: Sequence[BaseNode], *, on_conflict: str = "replace", **_: Any) -> list[str]:
        """As `add`, awaited."""
        return await self.arun(_addition(nodes, on_conflict))

    def delete(self, ref_doc_id: str, **_: Any) -> None:
        """Deletes the nodes of a source document."""
        self.run(self._delete({_REF: ref_doc_id}))

    async def adelete(self, ref_doc_id: str, **_: Any) -> None:
        """As `delete`, awaited."""
        await self.arun(self._delete({_REF: ref_doc_id}))

    def delete_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **_: Any) -> None:
        """Deletes the nodes that have one of the ids and match the filters.

        Args:
            node_ids: ids; None for any.
            filters: filters; None for any node.

        Raises:
            ValueError: neither is given: `clear` deletes all nodes; or the filters are not understood.
        """
        self.run(self._delete(self._given(node_ids, filters)))

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **_: Any
    ) -> None:
        """As `delete_nodes`, awaited."""
        await self.arun(self._delete(self._given(node_ids, filters)))

    def _delete(self, where: Mapping[str, Any]) -> Operation[Any]:
        return lambda session: session.delete_by_metadata(where)

    def _given(self, node_ids: list[str] | None, filters: MetadataFilters | None) -> Mapping[str, Any]:
        where = self._where(filters, node_ids)
        if where is None or (node_ids is None and not (filters and filters.filters)):
            raise ValueError("give node_ids or filters: clear() deletes all nodes")
        return where

    def clear(self) -> None:
        """Deletes all nodes."""
        self.run(self._clear())

    async def aclear(self) -> None:
        """As `clear`, awaited."""
        await self.arun(self._clear())

    def _clear(self) -> Operation[Any]:
        where = self._where(None)
        return VectorDBSession.clear if where is None else lambda session: session.delete_by_metadata(where)

    def persist(self, persist_path: str | None = None, fs: Any = None) -> None:
        """Saves a new version, as `save` does; LlamaIndex calls it when it persists a storage context.

        Args:
            persist_path, fs: where other stores write a file; this one saves to the store of its settings.
        """
        self.save()

    # ---- nodes out

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """The nodes that have one of the ids and match the filters.

        Args:
            node_ids: ids; None for any.
            filters: filters; None for any node.

        Returns:
            The nodes, in the order of `node_ids` where there are some, else in that of insertion.

        Raises:
            ValueError: the filters are not understood.
        """
        return self.run(self._read(node_ids, filters))

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """As `get_nodes`, awaited."""
        return await self.arun(self._read(node_ids, filters))

    def _read(self, node_ids: list[str] | None, filters: MetadataFilters | None) -> Operation[list[BaseNode]]:
        where = self._where(filters, node_ids)

        async def read(session: VectorDBSession) -> list[BaseNode]:
            rows = {row.id: row async for row in session.scan(where)}
            wanted = rows if node_ids is None else dict.fromkeys(id for id in node_ids if id in rows)
            return [_node(rows[id]) for id in wanted]

        return read

    def query(self, query: VectorStoreQuery, **options: Any) -> VectorStoreQueryResult:
        """The nodes that a query finds.

        Args:
            query: the query, with its mode: ``default``, ``mmr``; ``hybrid``, by embedding and words; ``sparse`` or
                ``text_search``, by words alone. `hybrid_top_k` and `sparse_top_k` take the place of `similarity_top_k`
                in these modes; with `alpha`, ``hybrid`` is the weighted sum, from 0, words alone, to 1.
            **options: fields of SearchOptions, as ``threshold``, ``recall_target`` or ``fusion``; with mmr also
                ``mmr_threshold`` and ``mmr_prefetch_k``, the number of candidates.

        Returns:
            Nodes, similarities in [0, 1], and ids, best first; with mmr in the order in which they were chosen.

        Raises:
            ValueError: the mode is not supported, the query lacks its embedding or its text, or its filters are not
                understood.
            InvalidInputError: an option is refused, or the index has no text fields.
        """
        return self.run(self._query(query, options))

    async def aquery(self, query: VectorStoreQuery, **options: Any) -> VectorStoreQueryResult:
        """As `query`, awaited."""
        return await self.arun(self._query(query, options))

    def _query(self, query: VectorStoreQuery, options: dict[str, Any]) -> Operation[VectorStoreQueryResult]:
        mode, k = query.mode, query.similarity_top_k
        # An index over a store that keeps texts passes an empty list of ids for "any".
        where = self._where(query.filters, query.node_ids or None, query.doc_ids or None)
        if mode == VectorStoreQueryMode.MMR:
            return _choice(query, where, options)
        if mode == VectorStoreQueryMode.HYBRID:
            k = query.hybrid_top_k or k
            if query.alpha is not None:
                options = {"fusion": "weighted", "alpha": query.alpha, **options}
        elif mode in _WORDS:
            k = query.sparse_top_k or k
        elif mode != VectorStoreQueryMode.DEFAULT:
            raise ValueError(
                f"the query mode {mode.value!r} is not supported: use default, mmr, hybrid, sparse or text_search"
            )
        embedding = None if mode in _WORDS else _embedding(query)
        if mode != VectorStoreQueryMode.DEFAULT:
            options = {"text": _words(query), **options}

        async def search(session: VectorDBSession) -> VectorStoreQueryResult:
            return _result(await session.search(embedding, k, filter=where, **options))

        return search

    # ---- filters

    def _where(
        self,
        filters: MetadataFilters | None,
        node_ids: Sequence[str] | None = None,
        doc_ids: Sequence[str] | None = None,
    ) -> Mapping[str, Any] | None:
        """The session's filter for LlamaIndex's filters, and for ids of nodes and of source documents."""
        parts: list[Mapping[str, Any]] = []
        if filters is not None and filters.filters:
            parts.append(_condition(filters))
        if node_ids is not None:
            parts.append({ID: {"$in": list(node_ids)}})
        if doc_ids is not None:
            parts.append({_REF: {"$in": list(doc_ids)}})
        return {"$and": parts} if parts else None


# ---- Queries -----------------------------------------------------------------------------------------------


def _embedding(query: VectorStoreQuery) -> list[float]:
    if query.query_embedding is None:
        raise ValueError("the query has no embedding")
    return query.query_embedding


def _words(query: VectorStoreQuery) -> str:
    if query.query_str is None:
        raise ValueError(f"the query has no query_str, whose words the mode {query.mode.value!r} needs")
    return query.query_str


def _choice(
    query: VectorStoreQuery, where: Mapping[str, Any] | None, options: dict[str, Any]
) -> Operation[VectorStoreQueryResult]:
    """A query by maximal marginal relevance."""
    embedding, k = _embedding(query), query.similarity_top_k
    chosen = options.pop("mmr_threshold", query.mmr_threshold)
    candidates = max(k, options.pop("mmr_prefetch_k", _MMR_PREFETCH * k))

    async def choose(session: VectorDBSession) -> VectorStoreQueryResult:
        hits = await session.search(embedding, candidates, filter=where, include_vectors=True, **options)
        vectors = [np.asarray(hit.vector, dtype=np.float64) for hit in hits]
        _, places = get_top_k_mmr_embeddings(
            embedding, vectors, similarity_top_k=k, embedding_ids=list(range(len(hits))), mmr_threshold=chosen
        )
        return _result(hits[place] for place in places)

    return choose


# ---- A node to a row and back ------------------------------------------------------------------------------


def _addition(nodes: Sequence[BaseNode], on_conflict: str) -> Operation[list[str]]:
    ids = [node.node_id for node in nodes]
    vectors = [node.get_embedding() for node in nodes]
    metadata = [_row(node) for node in nodes]

    async def add(session: VectorDBSession) -> list[str]:
        if ids:
            await session.add_batch(ids, vectors, metadata, on_conflict=on_conflict)
        return ids

    return add


def _row(node: BaseNode) -> dict[str, Any]:
    rest = node.model_dump(mode="json")
    rest.pop("embedding", None)
    metadata = rest.pop("metadata", None) or {}
    return {
        TEXT: _text_of(rest).pop("text", None),
        "metadata": metadata,
        _REF: node.ref_doc_id,
        "node": {name: value for name, value in rest.items() if value is not None},
        "node_type": node.class_name(),
    }


def _text_of(node: dict[str, Any]) -> dict[str, Any]:
    """The part of a node's dict that holds its text."""
    resource = node.get("text_resource")
    return resource if isinstance(resource, dict) else node


def _node(row: Row | SearchResult) -> BaseNode:
    kept = row.metadata if isinstance(row.metadata, dict) else {}
    rest = kept.get("node") or {"id_": row.id}
    if kept.get(TEXT) is not None:
        _text_of(rest)["text"] = kept[TEXT]
    rest["metadata"] = kept.get("metadata") or {}
    node = metadata_dict_to_node({"_node_content": json.dumps(rest), "_node_type": kept.get("node_type")})
    if row.vector is not None:
        node.embedding = row.vector.tolist()
    return node


def _result(hits: Iterable[SearchResult]) -> VectorStoreQueryResult:
    found = list(hits)
    return VectorStoreQueryResult(
        nodes=[_node(hit) for hit in found],
        similarities=[hit.score for hit in found],
        ids=[hit.id for hit in found],
    )


# ---- LlamaIndex's filters ----------------------------------------------------------------------------------


def _condition(given: MetadataFilters) -> Mapping[str, Any]:
    """The session's filter for filters under one condition."""
    match given.condition:
        case FilterCondition.AND | None:
            parts = _joined(given.filters, FilterOperator.NE)
            return {"$and": parts} if parts else {}
        case FilterCondition.OR:
            parts = _joined(given.filters, FilterOperator.EQ)
            return {"$or": parts} if parts else _NOTHING
        case FilterCondition.NOT:  # none of them
            parts = _joined(given.filters, FilterOperator.EQ)
            return {"$not": {"$or": parts}} if parts else {}
    raise ValueError(f"the condition {shown(given.condition)} is not supported")


def _joined(filters: Iterable[MetadataFilter | MetadataFilters], operator: FilterOperator) -> list[Mapping[str, Any]]:
    """The session's filters for some, where comparisons of one field with many values become one with their list.

    A list has a thousand times as many values as a filter has comparisons.

    Args:
        filters: filters that are joined by one condition.
        operator: which comparisons can become one: `EQ` where one filter must match, `NE` where all must.
    """
    parts: list[Mapping[str, Any]] = []
    values: dict[str, list[Any]] = {}
    for part in filters:
        if isinstance(part, MetadataFilters):
            parts.append(_condition(part))
        elif part.operator == operator and isinstance(part.value, (int, float, str)):
            values.setdefault(_path(part.key), []).append(part.value)
        else:
            parts.append(_comparison(part))
    for path, among in values.items():
        one: Mapping[str, Any] = {path: {"$in": among}}
        parts.append(one if operator == FilterOperator.EQ else {"$not": one})
    return parts


def _path(key: str) -> str:
    """Where a row keeps a field that a filter names."""
    return _REF if key in _REF_NAMES else f"metadata.{step(key)}"


def _comparison(given: MetadataFilter) -> Mapping[str, Any]:
    path, operator, value = _path(given.key), given.operator, given.value
    match operator:
        case FilterOperator.EQ:  # null equals nothing, as in LlamaIndex's own evaluation
            return _NOTHING if value is None else {path: value}
        case FilterOperator.NE:
            return _EVERYTHING if value is None else {"$not": {path: value}}
        case FilterOperator.IN:
            return {path: {"$in": _listed(given)}}
        case FilterOperator.NIN:
            return {path: {"$nin": _listed(given)}}
        case FilterOperator.ANY:
            parts = [_contains(path, each) for each in _listed(given)]
            return {"$or": parts} if parts else _NOTHING
        case FilterOperator.ALL:
            parts = [_contains(path, each) for each in _listed(given)]
            return {"$and": parts} if parts else {"$and": [{path: {"$exists": True}}, {path: {"$ne": None}}]}
        case FilterOperator.CONTAINS:
            return _NOTHING if value is None else _contains(path, value)
        case FilterOperator.TEXT_MATCH:
            return _contains(path, _text(given))
        case FilterOperator.TEXT_MATCH_INSENSITIVE:
            return {path: {"$icontains": _text(given)}}
        case FilterOperator.IS_EMPTY:
            return {"$or": [{path: {"$exists": False}}, {path: None}, {path: ""}, {path: []}]}
    if operator in _ORDERS and isinstance(value, (int, float, str)):
        return {path: {_ORDERS[operator]: value}}
    raise ValueError(f"{given.key}: the operator {shown(operator)} cannot compare with {shown(value)}")


def _contains(path: str, value: Any) -> Mapping[str, Any]:
    if isinstance(value, list):
        raise ValueError(f"a list or text cannot contain the list {shown(value)}")
    return {path: {"$contains": value}}


def _listed(given: MetadataFilter) -> list[Any]:
    if isinstance(given.value, list):
        return given.value
    if given.value is None:
        raise ValueError(f"{given.key}: the operator {given.operator.value!r} needs a list of values")
    return [given.value]


def _text(given: MetadataFilter) -> str:
    if not isinstance(given.value, str):
        raise ValueError(f"{given.key}: the operator {given.operator.value!r} needs a text, got {shown(given.value)}")
    return given.value
