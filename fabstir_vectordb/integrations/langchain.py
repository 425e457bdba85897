"""A LangChain vector store (langchain-core 1.x) over an encrypted index on S5.

A row's metadata is ``{"text": page_content, "metadata": {…}}``: the text is beside the document's metadata, so that no
field of the one can hide the other. The words of the text are indexed.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Self

import numpy as np

from fabstir_vectordb.config import Given, VectorDBConfig
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.integrations import needing
from fabstir_vectordb.integrations.shared import TEXT, Operation, SharedSession, Store
from fabstir_vectordb.session import VectorDBSession
from fabstir_vectordb.types import Row, SearchResult, SearchResults

with needing("langchain"):
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
    from langchain_core.vectorstores.utils import maximal_marginal_relevance

__all__ = ["FabstirRetriever", "FabstirVectorStore"]

#: Where a row keeps the metadata of its document.
_METADATA: Final = "metadata"


class FabstirVectorStore(Store, VectorStore):
    """Documents in an index of `fabstir_vectordb`, for synchronous and asynchronous callers alike.

    Beside LangChain's methods it has `save`, `load`, `close`, their asynchronous twins, and `run`, which reaches every
    other verb of the session. It may be used from any thread and any event loop, and in a ``with`` block.

    Filters are those of `SearchOptions`, on the documents' metadata: ``{"year": {"$gte": 2020}}``. Scores are in
    [0, 1], larger is nearer. No search drops hits for their score, unless a ``threshold`` is given.

    Args:
        embedding: embeds texts and queries.
        config: a VectorDBConfig, or a mapping of settings.
        **settings: single settings, as of VectorDBConfig: ``s5_portal``, ``user_seed_phrase`` and ``session_id`` are
            required. A new index has the words of the texts, unless ``text_fields`` names other paths of a row, as
            ``("text", "metadata.title")``, or none.

    Raises:
        InvalidConfigError: a setting is missing, unknown or out of range.
    """

    def __init__(
        self, embedding: Embeddings, config: VectorDBConfig | Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        given = Given(config, settings)
        del config, settings  # what fails from here on has no bare secret in its traceback
        self._embedding = embedding
        self._shared = SharedSession(given)

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings of the constructor."""
        return self._embedding

    # ---- documents in

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        on_conflict: str = "replace",
        timestamps: Any = None,
        expires_at: Any = None,
        batch_size: int | None = None,
    ) -> list[str]:
        """Embeds texts and adds them: all or nothing.

        Args:
            texts: the texts.
            metadatas: a dict for each text, or None.
            ids: an id for each text; None, for all or for one, makes a UUID.
            on_conflict: for ids that are there already: ``replace``, ``error`` or ``skip``.
            timestamps, expires_at: as `VectorDBSession.add_batch`.
            batch_size: most texts of one call of the embeddings; None passes all of them.

        Returns:
            The ids, in the order of the texts.

        Raises:
            InvalidInputError: an argument is refused; nothing was added.
            ConflictError, MemoryBudgetExceededError, SessionError: as `VectorDBSession.add_batch`.
        """
        taken = _Texts(texts, metadatas, ids)
        vectors: list[list[float]] = []
        for part in taken.parts(batch_size):
            vectors += self._embedding.embed_documents(part)
        return self.run(taken.add(vectors, timestamps, expires_at, on_conflict))

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        on_conflict: str = "replace",
        timestamps: Any = None,
        expires_at: Any = None,
        batch_size: int | None = None,
    ) -> list[str]:
        """As `add_texts`, awaited."""
        taken = _Texts(texts, metadatas, ids)
        vectors: list[list[float]] = []
        for part in taken.parts(batch_size):
            vectors += await self._embedding.aembed_documents(part)
        return await self.arun(taken.add(vectors, timestamps, expires_at, on_conflict))

    def delete(self, ids: Sequence[str] | None = None, *, filter: Mapping[str, Any] | None = None) -> bool:
        """Deletes documents.

        Args:
            ids: their ids; ids that are not there are ignored. None, without a filter, deletes all documents.
            filter: deletes the documents that match it, in place of `ids`.

        Returns:
            True.

        Raises:
            InvalidInputError: both `ids` and a filter are given, or the filter is refused or empty.
        """
        self.run(self._delete(ids, filter))
        return True

    async def adelete(self, ids: Sequence[str] | None = None, *, filter: Mapping[str, Any] | None = None) -> bool:
        """As `delete`, awaited."""
        await self.arun(self._delete(ids, filter))
        return True

    def _delete(self, ids: Sequence[str] | None, filter: Mapping[str, Any] | None) -> Operation[Any]:
        if ids is not None and filter is not None:
            raise InvalidInputError("give ids or a filter to delete by, not both")
        if ids is not None:
            return lambda session: session.delete(ids, missing_ok=True)
        where = self._where(filter)
        if where is None:
            return VectorDBSession.clear
        return lambda session: session.delete_by_metadata(where)

    # ---- documents out

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, in their order; ids that are not there are left out."""
        return _documents(self.run(lambda session: session.get(ids)))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """As `get_by_ids`, awaited."""
        return _documents(await self.arun(lambda session: session.get(ids)))

    def similarity_search(
        self, query: str, k: int = 4, filter: Mapping[str, Any] | None = None, **options: Any
    ) -> list[Document]:
        """The k documents nearest to a query.

        Args:
            query: the text to embed and search for.
            k: how many documents.
            filter: which documents; None for all.
            **options: fields of SearchOptions, as ``threshold``, ``recall_target`` or ``ef_search``; with ``text`` it
                is a `hybrid_search` for these words.

        Returns:
            The documents, nearest first.

        Raises:
            InvalidInputError: an argument is refused.
        """
        return _bare(self.similarity_search_with_score(query, k, filter, **options))

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: Mapping[str, Any] | None = None, **options: Any
    ) -> list[Document]:
        """As `similarity_search`, awaited."""
        return _bare(await self.asimilarity_search_with_score(query, k, filter, **options))

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Mapping[str, Any] | None = None, **options: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search`, with scores in [0, 1], larger is nearer."""
        return self.similarity_search_with_score_by_vector(self._embedding.embed_query(query), k, filter, **options)

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: Mapping[str, Any] | None = None, **options: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score`, awaited."""
        vector = await self._embedding.aembed_query(query)
        return await self.asimilarity_search_with_score_by_vector(vector, k, filter, **options)

    def similarity_search_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Mapping[str, Any] | None = None, **options: Any
    ) -> list[Document]:
        """As `similarity_search`, for a query that is embedded already."""
        return _bare(self.similarity_search_with_score_by_vector(embedding, k, filter, **options))

    async def asimilarity_search_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Mapping[str, Any] | None = None, **options: Any
    ) -> list[Document]:
        """As `similarity_search_by_vector`, awaited."""
        return _bare(await self.asimilarity_search_with_score_by_vector(embedding, k, filter, **options))

    def similarity_search_with_score_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Mapping[str, Any] | None = None, **options: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score`, for a query that is embedded already."""
        return _scored(self.run(self._search(embedding, k, filter, options)))

    async def asimilarity_search_with_score_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Mapping[str, Any] | None = None, **options: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score_by_vector`, awaited."""
        return _scored(await self.arun(self._search(embedding, k, filter, options)))

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **options: Any
    ) -> list[tuple[Document, float]]:
        return self.similarity_search_with_score(query, k, **options)

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **options: Any
    ) -> list[tuple[Document, float]]:
        return await self.asimilarity_search_with_score(query, k, **options)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda score: score  # scores are in [0, 1] already, larger is nearer

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Document]:
        """The k documents that are near to a query and differ from each other.

        Args:
            query: the text to embed and search for.
            k: how many documents.
            fetch_k: how many of the nearest documents to choose from.
            lambda_mult: from 1, by nearness alone, to 0, by difference alone.
            filter, **options: as `similarity_search`.

        Returns:
            The documents, in the order in which they were chosen.

        Raises:
            InvalidInputError: an argument is refused.
        """
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, filter, **options)

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, awaited."""
        vector = await self._embedding.aembed_query(query)
        return await self.amax_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, filter, **options)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: Sequence[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, for a query that is embedded already."""
        hits = self.run(self._search(embedding, max(k, fetch_k), filter, {**options, "include_vectors": True}))
        return _diverse(embedding, hits, k, lambda_mult)

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: Sequence[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search_by_vector`, awaited."""
        search = self._search(embedding, max(k, fetch_k), filter, {**options, "include_vectors": True})
        return _diverse(embedding, await self.arun(search), k, lambda_mult)

    def hybrid_search(
        self,
        query: str,
        k: int = 4,
        filter: Mapping[str, Any] | None = None,
        *,
        text: str | None = None,
        **options: Any,
    ) -> list[Document]:
        """The k best documents by embedding and by words.

        Args:
            query: the text to embed.
            k: how many documents.
            filter: which documents; None for all.
            text: the words, as in SearchOptions; None for those of `query`.
            **options: fields of SearchOptions, as ``fusion``, ``alpha`` or ``threshold``.

        Returns:
            The documents, best first.

        Raises:
            InvalidInputError: an argument is refused, or the index has no text fields.
        """
        return _bare(self.hybrid_search_with_score(query, k, filter, text=text, **options))

    async def ahybrid_search(
        self,
        query: str,
        k: int = 4,
        filter: Mapping[str, Any] | None = None,
        *,
        text: str | None = None,
        **options: Any,
    ) -> list[Document]:
        """As `hybrid_search`, awaited."""
        return _bare(await self.ahybrid_search_with_score(query, k, filter, text=text, **options))

    def hybrid_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Mapping[str, Any] | None = None,
        *,
        text: str | None = None,
        **options: Any,
    ) -> list[tuple[Document, float]]:
        """As `hybrid_search`, with scores in [0, 1], larger is better."""
        return self.similarity_search_with_score(query, k, filter, text=query if text is None else text, **options)

    async def ahybrid_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Mapping[str, Any] | None = None,
        *,
        text: str | None = None,
        **options: Any,
    ) -> list[tuple[Document, float]]:
        """As `hybrid_search_with_score`, awaited."""
        words = query if text is None else text
        return await self.asimilarity_search_with_score(query, k, filter, text=words, **options)

    def keyword_search(
        self, query: str, k: int = 4, filter: Mapping[str, Any] | None = None, **options: Any
    ) -> list[Document]:
        """The k best documents by words alone (BM25). Nothing is embedded.

        Args:
            query: the words, as ``text`` in SearchOptions.
            k, filter: as `hybrid_search`.
            **options: fields of SearchOptions, as ``threshold``.

        Returns:
            The documents that have one of the words, best first.

        Raises:
            InvalidInputError: as `hybrid_search`.
        """
        return _bare(self.keyword_search_with_score(query, k, filter, **options))

    async def akeyword_search(
        self, query: str, k: int = 4, filter: Mapping[str, Any] | None = None, **options: Any
    ) -> list[Document]:
        """As `keyword_search`, awaited."""
        return _bare(await self.akeyword_search_with_score(query, k, filter, **options))

    def keyword_search_with_score(
        self, query: str, k: int = 4, filter: Mapping[str, Any] | None = None, **options: Any
    ) -> list[tuple[Document, float]]:
        """As `keyword_search`, with scores in [0, 1], larger is better."""
        return _scored(self.run(self._search(None, k, filter, {**options, "text": query})))

    async def akeyword_search_with_score(
        self, query: str, k: int = 4, filter: Mapping[str, Any] | None = None, **options: Any
    ) -> list[tuple[Document, float]]:
        """As `keyword_search_with_score`, awaited."""
        return _scored(await self.arun(self._search(None, k, filter, {**options, "text": query})))

    def search(self, query: str, search_type: str, **options: Any) -> list[Document]:
        """The documents that a search of one type finds.

        Args:
            query: the query.
            search_type: ``similarity``, ``similarity_score_threshold``, ``mmr``, ``hybrid`` or ``keyword``.
            **options: arguments of the method of that type.

        Raises:
            ValueError: there is no such type.
        """
        if search_type == "hybrid":
            return self.hybrid_search(query, **options)
        if search_type == "keyword":
            return self.keyword_search(query, **options)
        return super().search(query, search_type, **options)

    async def asearch(self, query: str, search_type: str, **options: Any) -> list[Document]:
        """As `search`, awaited."""
        if search_type == "hybrid":
            return await self.ahybrid_search(query, **options)
        if search_type == "keyword":
            return await self.akeyword_search(query, **options)
        return await super().asearch(query, search_type, **options)

    def as_retriever(self, **options: Any) -> FabstirRetriever:
        """A retriever over this store.

        Args:
            **options: ``search_type``, one of those of `search`; ``search_kwargs``, the arguments of that search; and
                other fields of a retriever.

        Raises:
            ValueError: an option is refused.
        """
        tags = options.pop("tags", None) or self._get_retriever_tags()
        return FabstirRetriever(vectorstore=self, tags=tags, **options)

    def _search(
        self, embedding: Sequence[float] | None, k: int, filter: Mapping[str, Any] | None, options: Mapping[str, Any]
    ) -> Callable[[VectorDBSession], Awaitable[SearchResults]]:
        where = self._where(filter)
        return lambda session: session.search(embedding, k, filter=where, **options)

    def _where(self, filter: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The session's filter for a filter on documents."""
        return None if filter is None else _on_metadata(filter)

    # ---- constructors

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings,
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        config: VectorDBConfig | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Self:
        """Makes a store that holds texts.

        Args:
            texts, metadatas, ids: as `add_texts`.
            embedding, config, **settings: as the constructor.

        Returns:
            The store; nothing is saved yet.

        Raises:
            InvalidConfigError, InvalidInputError: as the constructor and `add_texts`; no store was made.
        """
        store = cls(embedding, config, **settings)
        del config, settings
        try:
            store.add_texts(texts, metadatas, ids=ids)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings,
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        config: VectorDBConfig | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Self:
        """As `from_texts`, awaited."""
        store = cls(embedding, config, **settings)
        del config, settings
        try:
            await store.aadd_texts(texts, metadatas, ids=ids)
        except BaseException:
            await store.aclose()
            raise
        return store


class FabstirRetriever(VectorStoreRetriever):
    """A retriever with the search types ``hybrid`` and ``keyword`` beside LangChain's."""

    allowed_search_types: ClassVar[Collection[str]] = (*VectorStoreRetriever.allowed_search_types, "hybrid", "keyword")

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        return self.vectorstore.search(query, self.search_type, **{**self.search_kwargs, **options})

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        return await self.vectorstore.asearch(query, self.search_type, **{**self.search_kwargs, **options})


class _Texts:
    """Texts to add, with their metadata and ids, checked before they are embedded."""

    def __init__(
        self,
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any]] | None,
        ids: Sequence[str | None] | None,
    ) -> None:
        if isinstance(texts, str):
            raise InvalidInputError("texts must be a list of strings, got one string")
        self._texts = list(texts)
        count = len(self._texts)
        for name, given in (("metadatas", metadatas), ("ids", ids)):
            if given is not None and len(given) != count:
                raise InvalidInputError(f"{name} must be as many as the texts: got {len(given)} for {count} texts")
        self._ids = [id or str(uuid.uuid4()) for id in ids or [None] * count]
        self._metadata = [
            {TEXT: text, _METADATA: dict(metadata or {})}
            for text, metadata in zip(self._texts, metadatas or [{}] * count, strict=True)
        ]

    def parts(self, size: int | None) -> Iterable[list[str]]:
        """The texts, in lists of at most `size`."""
        step = max(1, size or len(self._texts))
        return (self._texts[start : start + step] for start in range(0, len(self._texts), step))

    def add(self, vectors: Any, timestamps: Any, expires_at: Any, on_conflict: str) -> Operation[list[str]]:
        """The operation that adds the texts with their vectors."""

        async def add(session: VectorDBSession) -> list[str]:
            if self._ids:
                await session.add_batch(
                    self._ids, vectors, self._metadata, timestamps, expires_at=expires_at, on_conflict=on_conflict
                )
            return self._ids

        return add


def _on_metadata(filter: Mapping[str, Any]) -> Mapping[str, Any]:
    """A filter whose fields are those of the documents' metadata."""
    if not isinstance(filter, Mapping):
        raise InvalidInputError(f"filter must be a dict of metadata fields, got {type(filter).__name__}")
    return {
        key if not isinstance(key, str) or key.startswith("$") else f"{_METADATA}.{key}": _inner(key, value)
        for key, value in filter.items()
    }


def _inner(key: object, value: Any) -> Any:
    """The value of a combinator with its filters rewritten; any other value unchanged."""
    if key == "$not" and isinstance(value, Mapping):
        return _on_metadata(value)
    if key in ("$and", "$or") and isinstance(value, Sequence) and not isinstance(value, str):
        return [_on_metadata(part) if isinstance(part, Mapping) else part for part in value]
    return value


def _document(found: Row | SearchResult) -> Document:
    kept = found.metadata if isinstance(found.metadata, Mapping) else {}
    return Document(id=found.id, page_content=kept.get(TEXT) or "", metadata=kept.get(_METADATA) or {})


def _documents(rows: Iterable[Row | None]) -> list[Document]:
    return [_document(row) for row in rows if row is not None]


def _scored(hits: SearchResults) -> list[tuple[Document, float]]:
    return [(_document(hit), hit.score) for hit in hits]


def _bare(scored: Iterable[tuple[Document, float]]) -> list[Document]:
    return [document for document, _ in scored]


def _diverse(embedding: Sequence[float], hits: SearchResults, k: int, lambda_mult: float) -> list[Document]:
    candidates = [hit for hit in hits if hit.vector is not None]  # a hit by words may have none
    vectors = [hit.vector for hit in candidates]
    chosen = maximal_marginal_relevance(np.asarray(embedding, dtype=np.float32), vectors, lambda_mult, k)
    return [_document(candidates[at]) for at in chosen]
