"""A Haystack document store (haystack-ai 3.x) over an encrypted index on S5, and its retriever.

A row's metadata is ``{"text": content, "metadata": meta, "moments": …}``, with ``blob``, ``sparse`` and
``score`` where the document has them. Haystack compares ISO dates in ``meta`` as moments, though they are strings:
``moments`` holds each of them once more as a datetime, under the same keys, so that a search compares them itself.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Final, Self
from uuid import UUID

from fabstir_vectordb.config import Given, SeedPhrase
from fabstir_vectordb.errors import ConflictError
from fabstir_vectordb.integrations import needing
from fabstir_vectordb.integrations.shared import Operation, SharedSession, Store
from fabstir_vectordb.metadata.filter_parse import ID
from fabstir_vectordb.metadata.values import shown, step
from fabstir_vectordb.session import VectorDBSession
from fabstir_vectordb.types import Row, SearchResult

with needing("haystack"):
    from haystack import component, default_from_dict, default_to_dict
    from haystack.dataclasses import ByteStream, Document, SparseEmbedding
    from haystack.document_stores.errors import DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
    from haystack.document_stores.types.filter_policy import apply_filter_policy
    from haystack.errors import FilterError
    from haystack.utils import Secret

__all__ = ["FabstirDocumentStore", "FabstirEmbeddingRetriever"]

#: Where a row keeps the fields of a document that filters may name.
_PATHS: Final = {"id": ID, "content": "text", "meta": "metadata", "blob": "blob", "score": "score"}
_CONFLICTS: Final = {
    DuplicatePolicy.NONE: "error",
    DuplicatePolicy.FAIL: "error",
    DuplicatePolicy.SKIP: "skip",
    DuplicatePolicy.OVERWRITE: "replace",
}
_ORDERS: Final = {">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
_NOTHING: Final[Mapping[str, Any]] = {ID: {"$in": []}}
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
        **settings: settings of VectorDBConfig, as ``s5_portal``, which is required.

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
            documents: the documents; one without an embedding is found by filters only.
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
        metadata = [_row(document) for document in documents]

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
        where, update = self._some(filters), _described(meta)
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
            return [_document(row) async for row in session.scan(where)]

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
        return self.run(self._nearest(query_embedding, filters, top_k, return_embedding, options))

    async def embedding_retrieval_async(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool | None = None,
        **options: Any,
    ) -> list[Document]:
        """As `embedding_retrieval`, awaited."""
        return await self.arun(self._nearest(query_embedding, filters, top_k, return_embedding, options))

    def _nearest(
        self,
        query: list[float],
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
            hits = await session.search(query, top_k, filter=where, include_vectors=with_vectors, **options)
            return [_document(hit) for hit in hits]

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
            yield _kept(row).get("metadata") or {}

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
        return _condition(filters) if filters else None

    def _some(self, filters: dict[str, Any]) -> Mapping[str, Any]:
        """As `_where`, for a change of the documents that match."""
        if not filters:
            raise FilterError("empty filters would match every document: use delete_all_documents to delete all")
        where = self._where(filters)
        assert where is not None
        return where


@component
class FabstirEmbeddingRetriever:
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
    def from_dict(cls, data: dict[str, Any]) -> FabstirEmbeddingRetriever:
        """The retriever that `to_dict` described."""
        parameters = dict(data.get("init_parameters", {}))
        if "filter_policy" in parameters:
            parameters["filter_policy"] = FilterPolicy.from_str(parameters["filter_policy"])
        if isinstance(parameters.get("document_store"), Mapping):
            parameters["document_store"] = FabstirDocumentStore.from_dict(parameters["document_store"])
        return default_from_dict(cls, {**data, "init_parameters": parameters})

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
        return {
            "documents": self.document_store.embedding_retrieval(
                query_embedding, **self._asked(filters, top_k, return_embedding)
            )
        }

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        return_embedding: bool | None = None,
    ) -> dict[str, list[Document]]:
        """As `run`, awaited."""
        return {
            "documents": await self.document_store.embedding_retrieval_async(
                query_embedding, **self._asked(filters, top_k, return_embedding)
            )
        }

    def _asked(
        self, filters: dict[str, Any] | None, top_k: int | None, return_embedding: bool | None
    ) -> dict[str, Any]:
        return {
            "filters": apply_filter_policy(self.filter_policy, self.filters, filters),
            "top_k": self.top_k if top_k is None else top_k,
            "return_embedding": self.return_embedding if return_embedding is None else return_embedding,
            **(self.options or {}),
        }


def _resolved(secret: Any) -> Any:
    return secret.resolve_value() if isinstance(secret, Secret) else secret


# ---- A document to a row and back --------------------------------------------------------------------------


def _row(document: Document) -> dict[str, Any]:
    row: dict[str, Any] = {"text": document.content, **_described(document.meta)}
    if document.blob is not None:
        blob = document.blob
        data = base64.b64encode(blob.data).decode("ascii")
        row["blob"] = {"data": data, "meta": dict(blob.meta), "mime_type": blob.mime_type}
    if document.sparse_embedding is not None:
        row["sparse"] = document.sparse_embedding.to_dict()
    if document.score is not None:
        row["score"] = document.score
    return row


def _described(meta: Mapping[str, Any]) -> dict[str, Any]:
    """``meta`` and its moments."""
    return {"metadata": dict(meta), "moments": _moments(meta)}


def _moments(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The ISO dates of ``meta`` as datetimes, under the same keys."""
    found: dict[str, Any] = {}
    for name, value in meta.items():
        if isinstance(value, Mapping):
            if inner := _moments(value):
                found[name] = inner
        elif isinstance(value, str) and (moment := _moment(value)) is not None:
            found[name] = moment
    return found


def _moment(value: object) -> datetime | None:
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


def _kept(row: Row | SearchResult) -> dict[str, Any]:
    return row.metadata if isinstance(row.metadata, dict) else {}


def _document(row: Row | SearchResult) -> Document:
    kept = _kept(row)
    blob, sparse = kept.get("blob"), kept.get("sparse")
    return Document(
        id=row.id,
        content=kept.get("text"),
        meta=kept.get("metadata") or {},
        blob=None if blob is None else ByteStream(base64.b64decode(blob["data"]), blob["meta"], blob["mime_type"]),
        sparse_embedding=None if sparse is None else SparseEmbedding.from_dict(sparse),
        score=row.score if isinstance(row, SearchResult) else kept.get("score"),
        embedding=None if row.vector is None else row.vector.tolist(),
    )


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


# ---- Haystack's filters ------------------------------------------------------------------------------------


def _condition(given: Any) -> Mapping[str, Any]:
    """The session's filter for a filter of Haystack."""
    if not isinstance(given, Mapping):
        raise FilterError(f"a filter must be a dict, got {type(given).__name__}")
    if "field" in given:
        return _comparison(given)
    operator, conditions = _required(given, "operator"), _required(given, "conditions")
    if not isinstance(conditions, (list, tuple)):
        raise FilterError(f"'conditions' must be a list, got {type(conditions).__name__}")
    parts = [_condition(part) for part in conditions]
    match operator:
        case "AND":
            return {"$and": parts} if parts else {}
        case "OR":
            return {"$or": parts} if parts else _NOTHING
        case "NOT":
            return {"$not": {"$and": parts}} if parts else _NOTHING
    raise FilterError(f"the logical operator {shown(operator)} is unknown: use AND, OR or NOT")


def _comparison(given: Mapping[str, Any]) -> Mapping[str, Any]:
    operator, value = _required(given, "operator"), _required(given, "value")
    path, moments = _paths(given["field"])
    match operator:
        case "==":
            return _any_of(path, moments, [value])
        case "!=":
            return {"$not": _any_of(path, moments, [value])}
        case "in" | "not in":
            if not isinstance(value, list):
                raise FilterError(f"{operator!r} needs a list of values, got {type(value).__name__}")
            among = _any_of(path, moments, value)
            return among if operator == "in" else {"$not": among}
        case ">" | ">=" | "<" | "<=":
            return _ordered(path, moments, _ORDERS[operator], value)
    known = ", ".join(["==", "!=", *_ORDERS, "in", "not in"])
    raise FilterError(f"the comparison operator {shown(operator)} is unknown: use one of {known}")


def _required(given: Mapping[str, Any], key: str) -> Any:
    if key not in given:
        raise FilterError(f"{key!r} is missing in {shown(dict(given))}")
    return given[key]


def _paths(field: object) -> tuple[str, str | None]:
    """The path of a field in a row, and that of its moments."""
    if not isinstance(field, str) or not field:
        raise FilterError(f"'field' must be a name, got {shown(field)}")
    root, *steps = field.split(".")
    if root not in _PATHS and root not in ("embedding", "sparse_embedding"):
        root, steps = "meta", [root, *steps]  # a field of meta may be named without it
    if root not in _PATHS or (root == "meta" and not steps):
        raise FilterError(f"documents cannot be filtered by {field!r}: name a field of meta, or id, content or score")
    path = ".".join([_PATHS[root], *map(step, steps)])
    return path, ".".join(["moments", *map(step, steps)]) if root == "meta" else None


def _any_of(path: str, moments: str | None, values: list[Any]) -> Mapping[str, Any]:
    """A filter that matches where a field equals one of the values; None also equals a missing field."""
    if path == ID:  # a session refuses other types, which equal no id
        return {ID: {"$in": [value for value in values if isinstance(value, str)]}}
    plain: list[Any] = []
    dates: list[datetime] = []
    parts: list[Mapping[str, Any]] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            parts.append({path: value})
            continue
        if isinstance(value, (Mapping, set)):
            kind = type(value).__name__
            raise FilterError(f"a field is compared with values and lists, not with the {kind} {shown(value)}")
        moment = _moment(value) if moments is not None else None
        if moment is not None:  # `meta` may hold the string, another string for the moment, or a datetime
            dates.append(moment)
            plain.append(moment)
        if moment is None or not isinstance(value, datetime):
            plain.append(value)
    if plain or not parts:
        parts.append({path: {"$in": plain}})
    if dates and moments is not None:
        parts.append({moments: {"$in": dates}})
    if None in plain:
        parts.append({path: {"$exists": False}})
    return parts[0] if len(parts) == 1 else {"$or": parts}


def _ordered(path: str, moments: str | None, operator: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return _NOTHING
    if isinstance(value, (str, datetime)):
        moment = _moment(value)
        if moment is None or moments is None:
            raise FilterError(f"{shown(value)} has no order here: compare numbers, or fields of meta with ISO dates")
        return {"$or": [{moments: {operator: moment}}, {path: {operator: moment}}]}
    if path == ID or isinstance(value, (bool, UUID, list, tuple, dict, set)):
        raise FilterError(f"{shown(value)} has no order: compare numbers or dates")
    if isinstance(value, date):
        return _ordered(path, moments, operator, datetime(value.year, value.month, value.day, tzinfo=UTC))
    return {path: {operator: value}}
