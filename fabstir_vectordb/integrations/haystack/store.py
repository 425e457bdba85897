"""The document store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, Self

from fabstir_vectordb.config import Given, SeedPhrase
from fabstir_vectordb.errors import ConflictError
from fabstir_vectordb.integrations import needing
from fabstir_vectordb.integrations.haystack.documents import described, document_of, kept, row_of
from fabstir_vectordb.integrations.haystack.filters import condition_of
from fabstir_vectordb.integrations.shared import Operation, SharedSession, Store
from fabstir_vectordb.metadata.values import step
from fabstir_vectordb.session import VectorDBSession

with needing("haystack"):
    from haystack import default_from_dict, default_to_dict
    from haystack.dataclasses import Document
    from haystack.document_stores.errors import DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy
    from haystack.errors import FilterError
    from haystack.utils import Secret

__all__ = ["FabstirDocumentStore"]

_CONFLICTS: Final = {
    DuplicatePolicy.NONE: "error",
    DuplicatePolicy.FAIL: "error",
    DuplicatePolicy.SKIP: "skip",
    DuplicatePolicy.OVERWRITE: "replace",
}
#: Names of environment variables, the same as those of the command line.
_PHRASE_VARIABLE: Final = "FABSTIR_SEED_PHRASE"
_TOKEN_VARIABLE: Final = "FABSTIR_PORTAL_TOKEN"


class FabstirDocumentStore(Store):
    """Documents in an index of `fabstir_vectordb`, for synchronous and asynchronous pipelines alike.

    Beside Haystack's methods it has `save`, `load`, `close`, their asynchronous twins, and `run`, which reaches every
    other verb of the session. Scores are in [0, 1], larger is nearer. Embeddings are kept as float32.

    Args:
        user_seed_phrase: the phrase. A Secret of an environment variable can be serialized with a pipeline, a string
            cannot.
        portal_token: a portal's access token, or None; an unset variable means none.
        session_id: a label in logs and errors.
        load: True loads the newest version at once, or starts empty where none was saved; False loads nothing.
        return_embedding: whether retrieved documents have their embeddings, where a call does not say.
        **settings: settings of VectorDBConfig, as ``s5_portal``, which is required. A new index has the words of the
            contents, unless ``text_fields`` names other paths of a row, as ``("text", "metadata.title")``, or none.

    Raises:
        InvalidConfigError: a setting is missing, unknown or out of range.
    """

    def __init__(
        self,
        *,
        user_seed_phrase: Secret | SeedPhrase | str = Secret.from_env_var(_PHRASE_VARIABLE),  # noqa: B008
        portal_token: Secret | str | None = Secret.from_env_var(_TOKEN_VARIABLE, strict=False),  # noqa: B008
        session_id: str = "haystack",
        load: bool = False,
        return_embedding: bool = False,
        **settings: Any,
    ) -> None:
        # Only references to environment variables are kept: a phrase would be shown by whoever prints the store.
        self._secrets = {
            name: secret if isinstance(secret, Secret) else None
            for name, secret in (("user_seed_phrase", user_seed_phrase), ("portal_token", portal_token))
        }
        self._unsafe = isinstance(user_seed_phrase, (str, SeedPhrase)) or isinstance(portal_token, str)
        given = Given(
            None,
            {
                **settings,
                "session_id": session_id,
                "user_seed_phrase": _resolved(user_seed_phrase),
                "portal_token": _resolved(portal_token),
            },
        )
        del user_seed_phrase, portal_token  # what fails from here on has no bare secret in its traceback
        self._parameters = {**settings, "session_id": session_id, "load": load, "return_embedding": return_embedding}
        self._return_embedding = return_embedding
        self._shared = SharedSession(given)
        if load:
            try:
                self.load(missing_ok=True)
            except BaseException:
                self.close()
                raise

    def to_dict(self) -> dict[str, Any]:
        """The store as a dict of settings. Its documents are not in it: `save` them, and set ``load``.

        Raises:
            ValueError: the phrase or the token was given as a string: name an environment variable instead.
        """
        if self._unsafe:
            raise ValueError(
                "a store whose seed phrase or token is a string cannot be serialized: pass Secret.from_env_var(…)"
            )
        return default_to_dict(self, **self._parameters, **self._secrets)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The store that `to_dict` described."""
        return default_from_dict(cls, data)

    # ---- documents in

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Writes documents: all or nothing.

        Args:
            documents: the documents; one without an embedding is found by words and filters only.
            policy: for ids that are there already; NONE is FAIL.

        Returns:
            How many documents were written.

        Raises:
            ValueError: `documents` is no list of documents, or one of them is refused.
            DuplicateDocumentError: with FAIL, an id is there already or occurs twice.
        """
        return self.run(self._write(documents, policy))

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """As `write_documents`, awaited."""
        return await self.arun(self._write(documents, policy))

    def _write(self, documents: list[Document], policy: DuplicatePolicy) -> Operation[int]:
        if not isinstance(documents, Sequence) or not all(isinstance(each, Document) for each in documents):
            raise ValueError("documents must be a list of Documents")
        ids = [document.id for document in documents]
        vectors = [document.embedding for document in documents]
        metadata = [row_of(document) for document in documents]

        async def write(session: VectorDBSession) -> int:
            if not ids:
                return 0
            try:
                result = await session.add_batch(ids, vectors, metadata, on_conflict=_CONFLICTS[policy])
            except ConflictError as error:
                raise DuplicateDocumentError(error.message) from error
            return len(ids) if policy == DuplicatePolicy.OVERWRITE else result.added

        return write

    def delete_documents(self, document_ids: list[str]) -> None:
        """Deletes documents by their ids; ids that are not there are ignored."""
        self.run(lambda session: session.delete(document_ids, missing_ok=True))

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """As `delete_documents`, awaited."""
        await self.arun(lambda session: session.delete(document_ids, missing_ok=True))

    def delete_all_documents(self, recreate_index: bool = False) -> None:
        """Deletes all documents; the next ones may have embeddings of any dimension.

        Args:
            recreate_index: other stores make a new index with True; this one is as new either way.
        """
        self.run(self._delete_all())

    async def delete_all_documents_async(self, recreate_index: bool = False) -> None:
        """As `delete_all_documents`, awaited."""
        await self.arun(self._delete_all())

    def _delete_all(self) -> Operation[Any]:
        where = self._where(None)
        return VectorDBSession.clear if where is None else lambda session: session.delete_by_metadata(where)

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Deletes the documents that match filters.

        Returns:
            How many were deleted.

        Raises:
            FilterError: the filters are empty or not understood.
        """
        return self.run(self._delete_by(filters))

    async def delete_by_filter_async(self, filters: dict[str, Any]) -> int:
        """As `delete_by_filter`, awaited."""
        return await self.arun(self._delete_by(filters))

    def _delete_by(self, filters: dict[str, Any]) -> Operation[int]:
        where = self._some(filters)

        async def delete(session: VectorDBSession) -> int:
            return (await session.delete_by_metadata(where)).deleted_count

        return delete

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Sets fields of ``meta`` of the documents that match filters: all of them or none.

        Args:
            filters: which documents.
            meta: the fields; other fields stay as they are.

        Returns:
            How many documents were updated.

        Raises:
            FilterError: the filters are empty or not understood.
            InvalidInputError: a value of `meta` is refused.
        """
        return self.run(self._update_by(filters, meta))

    async def update_by_filter_async(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """As `update_by_filter`, awaited."""
        return await self.arun(self._update_by(filters, meta))

    def _update_by(self, filters: dict[str, Any], meta: dict[str, Any]) -> Operation[int]:
        where, update = self._some(filters), described(meta)
        # A value takes the place of the old one as a whole, also a dict, and its moments with it.
        replaced = [f"{root}.{step(name)}" for root in update for name in meta]

        async def change(session: VectorDBSession) -> int:
            return (await session.update_by_metadata(where, update, merge="deep", remove=replaced)).matched_count

        return change

    # ---- documents out

    def count_documents(self) -> int:
        """How many documents there are."""
        return self.run(lambda session: session.count(self._where(None)))

    async def count_documents_async(self) -> int:
        """As `count_documents`, awaited."""
        return await self.arun(lambda session: session.count(self._where(None)))

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """How many documents match filters.

        Raises:
            FilterError: the filters are not understood.
        """
        where = self._where(filters)
        return self.run(lambda session: session.count(where))

    async def count_documents_by_filter_async(self, filters: dict[str, Any]) -> int:
        """As `count_documents_by_filter`, awaited."""
        where = self._where(filters)
        return await self.arun(lambda session: session.count(where))

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """The documents that match filters, with their embeddings.

        Args:
            filters: Haystack's filters; None or an empty dict for all documents.

        Returns:
            The documents, in the order in which they were written.

        Raises:
            FilterError: the filters are not understood.
        """
        return self.run(self._filtered(filters))

    async def filter_documents_async(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """As `filter_documents`, awaited."""
        return await self.arun(self._filtered(filters))

    def _filtered(self, filters: dict[str, Any] | None) -> Operation[list[Document]]:
        where = self._where(filters)

        async def read(session: VectorDBSession) -> list[Document]:
            return [document_of(row) async for row in session.scan(where)]

        return read

    def embedding_retrieval(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool | None = None,
        **options: Any,
    ) -> list[Document]:
        """The documents nearest to a query.

        Args:
            query_embedding: the query.
            filters: which documents; they are applied inside the search.
            top_k: how many documents.
            return_embedding: whether the documents have their embeddings; None for the store's setting.
            **options: fields of SearchOptions, as ``threshold`` or ``recall_target``.

        Returns:
            The documents, nearest first, with scores in [0, 1].

        Raises:
            FilterError: the filters are not understood.
            InvalidInputError: another argument is refused.
        """
        return self.run(self._retrieve(query_embedding, filters, top_k, return_embedding, options))

    async def embedding_retrieval_async(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool | None = None,
        **options: Any,
    ) -> list[Document]:
        """As `embedding_retrieval`, awaited."""
        return await self.arun(self._retrieve(query_embedding, filters, top_k, return_embedding, options))

    def bm25_retrieval(
        self,
        query: str,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool | None = None,
        **options: Any,
    ) -> list[Document]:
        """The documents whose content has words of a query, by BM25.

        Args:
            query: the words, as ``text`` in SearchOptions.
            filters, top_k, return_embedding, **options: as `embedding_retrieval`.

        Returns:
            The documents, best first, with scores in [0, 1].

        Raises:
            FilterError: the filters are not understood.
            InvalidInputError: another argument is refused, or the index has no text fields.
        """
        return self.run(self._retrieve(None, filters, top_k, return_embedding, {**options, "text": query}))

    async def bm25_retrieval_async(
        self,
        query: str,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool | None = None,
        **options: Any,
    ) -> list[Document]:
        """As `bm25_retrieval`, awaited."""
        return await self.arun(self._retrieve(None, filters, top_k, return_embedding, {**options, "text": query}))

    def hybrid_retrieval(
        self,
        query: str,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool | None = None,
        **options: Any,
    ) -> list[Document]:
        """The best documents by embedding and by words, as one ranking.

        Args:
            query: the words, as ``text`` in SearchOptions.
            query_embedding: the query's embedding.
            filters, top_k, return_embedding: as `embedding_retrieval`.
            **options: fields of SearchOptions, as ``fusion``, ``alpha`` or ``threshold``.

        Returns:
            The documents, best first, with scores in [0, 1].

        Raises:
            FilterError, InvalidInputError: as `bm25_retrieval`.
        """
        words = {**options, "text": query}
        return self.run(self._retrieve(query_embedding, filters, top_k, return_embedding, words))

    async def hybrid_retrieval_async(
        self,
        query: str,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool | None = None,
        **options: Any,
    ) -> list[Document]:
        """As `hybrid_retrieval`, awaited."""
        words = {**options, "text": query}
        return await self.arun(self._retrieve(query_embedding, filters, top_k, return_embedding, words))

    def _retrieve(
        self,
        embedding: list[float] | None,
        filters: dict[str, Any] | None,
        top_k: int,
        return_embedding: bool | None,
        options: Mapping[str, Any],
    ) -> Operation[list[Document]]:
        where = self._where(filters)
        with_vectors = self._return_embedding if return_embedding is None else return_embedding

        async def search(session: VectorDBSession) -> list[Document]:
            if top_k == 0:  # Haystack's retrievers allow it
                return []
            hits = await session.search(embedding, top_k, filter=where, include_vectors=with_vectors, **options)
            return [document_of(hit) for hit in hits]

        return search

    # ---- what there is in meta

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """The fields of ``meta`` with their types: ``boolean``, ``int``, ``float`` or ``keyword``."""
        return self.run(self._fields_info())

    async def get_metadata_fields_info_async(self) -> dict[str, dict[str, str]]:
        """As `get_metadata_fields_info`, awaited."""
        return await self.arun(self._fields_info())

    def _fields_info(self) -> Operation[dict[str, dict[str, str]]]:
        async def read(session: VectorDBSession) -> dict[str, dict[str, str]]:
            kinds = {}
            async for meta in self._metas(session, None):
                kinds.update({name: _kind(value) for name, value in meta.items() if value is not None})
            return {name: {"type": kind} for name, kind in kinds.items()}

        return read

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """The least and the largest value of a field of ``meta``.

        Args:
            metadata_field: its name, with or without ``meta.``.

        Returns:
            ``{"min": …, "max": …}``; None for both where no document has the field, or its values have no order.
        """
        return self.run(self._min_max(metadata_field))

    async def get_metadata_field_min_max_async(self, metadata_field: str) -> dict[str, Any]:
        """As `get_metadata_field_min_max`, awaited."""
        return await self.arun(self._min_max(metadata_field))

    def _min_max(self, field: str) -> Operation[dict[str, Any]]:
        async def read(session: VectorDBSession) -> dict[str, Any]:
            values = [
                value async for value in self._values(session, field, None) if isinstance(value, (int, float, str))
            ]
            try:
                return {"min": min(values), "max": max(values)}
            except (TypeError, ValueError):  # strings beside numbers, or no value
                return {"min": None, "max": None}

        return read

    def count_unique_metadata_by_filter(self, filters: dict[str, Any], metadata_fields: list[str]) -> dict[str, int]:
        """How many distinct values fields of ``meta`` have among the documents that match filters.

        Args:
            filters: which documents; an empty dict for all.
            metadata_fields: the fields, with or without ``meta.``.

        Returns:
            The number by the field's name without ``meta.``.

        Raises:
            FilterError: the filters are not understood.
        """
        return self.run(self._count_unique(filters, metadata_fields))

    async def count_unique_metadata_by_filter_async(
        self, filters: dict[str, Any], metadata_fields: list[str]
    ) -> dict[str, int]:
        """As `count_unique_metadata_by_filter`, awaited."""
        return await self.arun(self._count_unique(filters, metadata_fields))

    def _count_unique(self, filters: dict[str, Any], fields: list[str]) -> Operation[dict[str, int]]:
        where, names = self._where(filters), [field.removeprefix("meta.") for field in fields]

        async def count(session: VectorDBSession) -> dict[str, int]:
            found: dict[str, set[Any]] = {name: set() for name in names}
            async for meta in self._metas(session, where):
                for name in names:
                    if meta.get(name) is not None:
                        found[name].add(_identity(meta[name]))
            return {name: len(values) for name, values in found.items()}

        return count

    def get_metadata_field_unique_values(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """The distinct values of a field of ``meta``, a page of them in the order of their texts.

        Args:
            metadata_field: the field, with or without ``meta.``.
            search_term: only values whose text contains it, in any case.
            from_, size: where the page begins, and how many values it has.
            filters: only of documents that match.

        Returns:
            The page, and how many values there are.

        Raises:
            FilterError: the filters are not understood.
        """
        return self.run(self._unique(metadata_field, search_term, from_, size, filters))

    async def get_metadata_field_unique_values_async(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """As `get_metadata_field_unique_values`, awaited."""
        return await self.arun(self._unique(metadata_field, search_term, from_, size, filters))

    def _unique(
        self, field: str, search_term: str | None, from_: int, size: int, filters: dict[str, Any] | None
    ) -> Operation[tuple[list[Any], int]]:
        where, wanted = self._where(filters), (search_term or "").lower()

        async def read(session: VectorDBSession) -> tuple[list[Any], int]:
            found = {_identity(value): value async for value in self._values(session, field, where)}
            values = [value for value in found.values() if wanted in str(value).lower()]
            values.sort(key=lambda value: (str(value), type(value).__name__))
            return values[from_ : from_ + size], len(values)

        return read

    async def _metas(self, session: VectorDBSession, where: Mapping[str, Any] | None) -> AsyncIterator[dict[str, Any]]:
        async for row in session.scan(self._where(None) if where is None else where):
            yield kept(row).get("metadata") or {}

    async def _values(
        self, session: VectorDBSession, field: str, where: Mapping[str, Any] | None
    ) -> AsyncIterator[Any]:
        name = field.removeprefix("meta.")
        async for meta in self._metas(session, where):
            if meta.get(name) is not None:
                yield meta[name]

    # ---- filters

    def _where(self, filters: dict[str, Any] | None) -> Mapping[str, Any] | None:
        """The session's filter for Haystack's filters."""
        return condition_of(filters) if filters else None

    def _some(self, filters: dict[str, Any]) -> Mapping[str, Any]:
        """As `_where`, for a change of the documents that match."""
        if not filters:
            raise FilterError("empty filters would match every document: use delete_all_documents to delete all")
        where = self._where(filters)
        assert where is not None
        return where


def _resolved(secret: Any) -> Any:
    return secret.resolve_value() if isinstance(secret, Secret) else secret


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    return {int: "int", float: "float"}.get(type(value), "keyword")


def _identity(value: Any) -> Any:
    """A hashable stand-in for a value: equal for the same value of the same type alone."""
    if isinstance(value, dict):
        return "dict", frozenset((name, _identity(inner)) for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return "list", tuple(map(_identity, value))
    return type(value).__name__, value
