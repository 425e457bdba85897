"""A DSPy retriever over an encrypted index on S5, whose rows have their text in the metadata, as ``{"text": …}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fabstir_vectordb.config import Given, VectorDBConfig
from fabstir_vectordb.embedders import Embedder
from fabstir_vectordb.integrations import needing
from fabstir_vectordb.integrations.shared import TEXT, Operation, SharedSession, Store
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.session import VectorDBSession
from fabstir_vectordb.types import SearchResults

with needing("dspy"):
    import dspy

__all__ = ["FabstirRetriever"]


class FabstirRetriever(Store, dspy.Retrieve):
    """Retrieves passages: call it with a query, or await `acall`. It serves any thread and any event loop.

    Args:
        embedder: the session's embedder: of queries, and of the passages of `add_passages`. An index that another one
            filled is refused.
        config: a VectorDBConfig, or a mapping of settings.
        k: how many passages.
        filter: which rows, as in SearchOptions, for every query; None for all.
        **settings: single settings, as of VectorDBConfig.

    Raises:
        InvalidConfigError: a setting is missing, unknown or out of range.
    """

    def __init__(
        self,
        embedder: Embedder,
        config: VectorDBConfig | Mapping[str, Any] | None = None,
        *,
        k: int = 3,
        filter: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        given = Given(config, {**settings, "embedder": embedder})
        del config, settings  # what fails from here on has no bare secret in its traceback
        super().__init__(k=k)
        self._filter = filter
        self._shared = SharedSession(given)

    def add_passages(self, passages: Mapping[str, str], *, on_conflict: str = "replace") -> None:
        """Embeds passages and adds them: all or nothing.

        Args:
            passages: texts by id.
            on_conflict: for ids that are there already: ``replace``, ``error`` or ``skip``.

        Raises:
            EmbeddingError, InvalidInputError, ConflictError: nothing was added.
            InvalidConfigError: the passages of the index have another embedder.
        """
        ids, texts = list(passages), list(passages.values())
        # Passages are read from there, whatever field the words of the index are in.
        metadata = [{TEXT: text} for text in texts]
        self.run(lambda session: session.add_texts(texts, ids, metadata, on_conflict=on_conflict))

    def forward(self, query: str, k: int | None = None, **options: Any) -> dspy.Prediction:
        """The passages nearest to a query.

        Args:
            query: the query.
            k: how many; None for the retriever's setting.
            **options: fields of SearchOptions, as ``threshold``, ``filter``, which holds beside the retriever's own, or
                ``text``, for words that the passages should have, too.

        Returns:
            A Prediction with ``passages``, ``ids``, ``scores`` in [0, 1] and ``metadata``, nearest first.

        Raises:
            EmbeddingError, InvalidInputError: the query could not be embedded, or an argument is refused.
        """
        return _prediction(self.run(self._search(_text(query), k, options)))

    async def acall(self, query: str, k: int | None = None, **options: Any) -> dspy.Prediction:
        """As a call, awaited."""
        return _prediction(await self.arun(self._search(_text(query), k, options)))

    aforward = acall

    def _search(self, query: str, k: int | None, options: Mapping[str, Any]) -> Operation[SearchResults]:
        fields = dict(options)
        filters = [each for each in (self._filter, fields.pop("filter", None)) if each is not None]

        async def search(session: VectorDBSession) -> SearchResults:
            where = {"$and": filters} if filters else None
            return await session.search(query, self.k if k is None else k, filter=where, **fields)

        return search


def _text(query: object) -> str:
    if not isinstance(query, str):
        raise ValueError(f"the query must be a text, got {shown(query)}")
    return query


def _prediction(hits: SearchResults) -> dspy.Prediction:
    metadata = [hit.metadata if isinstance(hit.metadata, Mapping) else {} for hit in hits]
    return dspy.Prediction(
        passages=[kept.get(TEXT) or "" for kept in metadata],
        ids=[hit.id for hit in hits],
        scores=[hit.score for hit in hits],
        metadata=metadata,
    )
