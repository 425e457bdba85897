"""The components that retrieve documents in pipelines: by embedding, by words, by both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from fabstir_vectordb.integrations import needing
from fabstir_vectordb.integrations.haystack.store import FabstirDocumentStore

with needing("haystack"):
    from haystack import component, default_from_dict, default_to_dict
    from haystack.dataclasses import Document
    from haystack.document_stores.types import FilterPolicy
    from haystack.document_stores.types.filter_policy import apply_filter_policy

__all__ = ["FabstirBM25Retriever", "FabstirEmbeddingRetriever", "FabstirHybridRetriever"]


class _Retriever:
    """What the components have in common; `FabstirEmbeddingRetriever` describes the arguments."""

    def __init__(
        self,
        document_store: FabstirDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        filter_policy: FilterPolicy = FilterPolicy.REPLACE,
        return_embedding: bool | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(document_store, FabstirDocumentStore):
            raise TypeError("document_store must be a FabstirDocumentStore")
        if top_k <= 0:
            raise ValueError(f"top_k must be greater than 0, got {top_k}")
        self.document_store = document_store
        self.filters = filters
        self.top_k = top_k
        self.filter_policy = filter_policy
        self.return_embedding = return_embedding
        self.options = options

    def to_dict(self) -> dict[str, Any]:
        """The retriever and its store as a dict.

        Raises:
            ValueError: as `FabstirDocumentStore.to_dict`.
        """
        return default_to_dict(
            self,
            document_store=self.document_store,
            filters=self.filters,
            top_k=self.top_k,
            filter_policy=self.filter_policy.value,
            return_embedding=self.return_embedding,
            options=self.options,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The retriever that `to_dict` described."""
        parameters = dict(data.get("init_parameters", {}))
        if "filter_policy" in parameters:
            parameters["filter_policy"] = FilterPolicy.from_str(parameters["filter_policy"])
        if isinstance(parameters.get("document_store"), Mapping):
            parameters["document_store"] = FabstirDocumentStore.from_dict(parameters["document_store"])
        return default_from_dict(cls, {**data, "init_parameters": parameters})

    def _asked(
        self, filters: dict[str, Any] | None, top_k: int | None, return_embedding: bool | None
    ) -> dict[str, Any]:
        """The arguments of a run, for the store."""
        return {
            "filters": apply_filter_policy(self.filter_policy, self.filters, filters),
            "top_k": self.top_k if top_k is None else top_k,
            "return_embedding": self.return_embedding if return_embedding is None else return_embedding,
            **(self.options or {}),
        }


@component
class FabstirEmbeddingRetriever(_Retriever):
    """Retrieves the documents nearest to an embedding, in synchronous and asynchronous pipelines.

    Args:
        document_store: the store.
        filters: which documents.
        top_k: how many documents.
        filter_policy: whether filters of a run replace those of the retriever, or are merged with them.
        return_embedding: whether the documents have their embeddings; None for the store's setting.
        options: fields of SearchOptions, as ``{"threshold": 0.8}``.

    Raises:
        TypeError: the store is another one.
        ValueError: `top_k` is not above zero.
    """

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        return_embedding: bool | None = None,
    ) -> dict[str, list[Document]]:
        """Retrieves documents.

        Args:
            query_embedding: the query.
            filters: which documents, by the filter policy.
            top_k: how many documents; None for the retriever's setting.
            return_embedding: whether they have their embeddings; None for the retriever's setting.

        Returns:
            ``{"documents": …}``, nearest first.
        """
        asked = self._asked(filters, top_k, return_embedding)
        return {"documents": self.document_store.embedding_retrieval(query_embedding, **asked)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        return_embedding: bool | None = None,
    ) -> dict[str, list[Document]]:
        """As `run`, awaited."""
        asked = self._asked(filters, top_k, return_embedding)
        return {"documents": await self.document_store.embedding_retrieval_async(query_embedding, **asked)}


@component
class FabstirBM25Retriever(_Retriever):
    """Retrieves the documents that have words of a query, by BM25.

    Its arguments are those of `FabstirEmbeddingRetriever`, and it raises the same errors.
    """

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        return_embedding: bool | None = None,
    ) -> dict[str, list[Document]]:
        """Retrieves documents.

        Args:
            query: the words, as ``text`` in SearchOptions.
            filters: which documents, by the filter policy.
            top_k: how many documents; None for the retriever's setting.
            return_embedding: whether they have their embeddings; None for the retriever's setting.

        Returns:
            ``{"documents": …}``, best first.
        """
        asked = self._asked(filters, top_k, return_embedding)
        return {"documents": self.document_store.bm25_retrieval(query, **asked)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        return_embedding: bool | None = None,
    ) -> dict[str, list[Document]]:
        """As `run`, awaited."""
        asked = self._asked(filters, top_k, return_embedding)
        return {"documents": await self.document_store.bm25_retrieval_async(query, **asked)}


@component
class FabstirHybridRetriever(_Retriever):
    """Retrieves documents by embedding and by words, as one ranking.

    Its arguments are those of `FabstirEmbeddingRetriever`, and it raises the same errors. `options` may have ``fusion``
    and ``alpha``, as ``{"fusion": "weighted", "alpha": 0.7}``.
    """

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        return_embedding: bool | None = None,
    ) -> dict[str, list[Document]]:
        """Retrieves documents.

        Args:
            query: the words, as ``text`` in SearchOptions.
            query_embedding: the query's embedding.
            filters: which documents, by the filter policy.
            top_k: how many documents; None for the retriever's setting.
            return_embedding: whether they have their embeddings; None for the retriever's setting.

        Returns:
            ``{"documents": …}``, best first.
        """
        asked = self._asked(filters, top_k, return_embedding)
        return {"documents": self.document_store.hybrid_retrieval(query, query_embedding, **asked)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        return_embedding: bool | None = None,
    ) -> dict[str, list[Document]]:
        """As `run`, awaited."""
        asked = self._asked(filters, top_k, return_embedding)
        return {"documents": await self.document_store.hybrid_retrieval_async(query, query_embedding, **asked)}
