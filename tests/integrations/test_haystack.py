"""The Haystack store: all of Haystack's own suites in three modes, and what they leave out."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before the import: no test sends anything anywhere
pytest.importorskip("haystack", reason="haystack-ai is not installed")

from haystack import Pipeline
from haystack.dataclasses import ByteStream, Document, SparseEmbedding
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
from haystack.errors import FilterError
from haystack.testing import document_store as suites, document_store_async as async_suites
from haystack.utils import Secret
from haystack.utils.filters import document_matches_filter
from modes import LONG_MODES, PHRASE, Hidden, anyio_backend, check_mode, reopen, settings  # noqa: F401

from fabstir_vectordb import InvalidConfigError, InvalidInputError
from fabstir_vectordb.integrations.haystack import (
    FabstirBM25Retriever,
    FabstirDocumentStore,
    FabstirEmbeddingRetriever,
    FabstirHybridRetriever,
)

DIM = 768


class HiddenStore(Hidden, FabstirDocumentStore):
    """The store of the suites."""


def without_embedding(documents: list[Document]) -> list[dict[str, Any]]:
    """Documents without what is not kept bit for bit: embeddings are float32."""
    return [{**each.to_dict(), "embedding": None} for each in documents]


class Suite(
    suites.DocumentStoreBaseExtendedTests,
    suites.CountDocumentsByFilterTest,
    suites.CountUniqueMetadataByFilterTest,
    suites.GetMetadataFieldsInfoTest,
    suites.GetMetadataFieldMinMaxTest,
    suites.GetMetadataFieldUniqueValuesTest,
    async_suites.DeleteAllAsyncTest,
    async_suites.CountDocumentsAsyncTest,
    async_suites.CountDocumentsByFilterAsyncTest,
    async_suites.CountUniqueMetadataByFilterAsyncTest,
    async_suites.DeleteByFilterAsyncTest,
    async_suites.UpdateByFilterAsyncTest,
    async_suites.WriteDocumentsAsyncTest,
    async_suites.DeleteDocumentsAsyncTest,
    async_suites.GetMetadataFieldsInfoAsyncTest,
    async_suites.GetMetadataFieldMinMaxAsyncTest,
    async_suites.GetMetadataFieldUniqueValuesAsyncTest,
    async_suites.FilterDocumentsAsyncTest,
):
    """Every suite that Haystack has for stores; its subclasses choose a mode."""

    mode: str
    quick_one_of = 10

    @pytest.fixture
    def document_store(self, tmp_path: Path) -> Iterator[FabstirDocumentStore]:
        with HiddenStore(**settings(self.mode, tmp_path, DIM)) as store:
            reopen(store, self.mode)
            yield store
            check_mode(store, self.mode)

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        """Documents come in the order in which they were written; embeddings are float32."""
        assert without_embedding(received) == without_embedding(expected)
        vectors = {each.id: each.embedding for each in expected}
        for document in received:
            vector = vectors[document.id]
            assert document.embedding == (None if vector is None else pytest.approx(vector, rel=1e-6))

    def test_write_documents(self, document_store: FabstirDocumentStore) -> None:
        """The suite leaves the policy NONE to the store: it is FAIL."""
        document = Document(content="test doc")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([document], DuplicatePolicy.NONE)

    async def test_write_documents_async(self, document_store: FabstirDocumentStore) -> None:
        document = Document(content="test doc")
        assert await document_store.write_documents_async([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            await document_store.write_documents_async([document])


@pytest.mark.anyio
@pytest.mark.usefixtures("anyio_backend")  # for the suites' static tests, which anyio would run on every loop
class TestInMemory(Suite):
    mode = "memory"


@pytest.mark.anyio
@pytest.mark.usefixtures("anyio_backend")
class TestSaved(Suite):
    mode = "saved"


@pytest.mark.anyio
@pytest.mark.usefixtures("anyio_backend")
class TestLazy(Suite):
    mode = "lazy"
    quick_one_of = 100  # one takes a second


# ---- what the suites leave out


def made(**others: Any) -> FabstirDocumentStore:
    return FabstirDocumentStore(s5_portal="memory:", user_seed_phrase=PHRASE, **others)


@pytest.fixture
def store() -> Iterator[FabstirDocumentStore]:
    with made() as store:
        yield store


def found(store: FabstirDocumentStore, field: str, operator: str, value: Any) -> list[str]:
    filters = {"field": field, "operator": operator, "value": value}
    return sorted(document.id for document in store.filter_documents(filters))


def test_dates_compare_as_moments(store: FabstirDocumentStore) -> None:
    """One moment, written with an offset, without one, as a datetime, and another one that is later as a text alone."""
    noon = datetime(2024, 1, 31, 12, tzinfo=UTC)
    store.write_documents(
        [
            Document(id="offset", meta={"at": "2024-01-31T13:00:00+01:00"}),
            Document(id="naive", meta={"at": "2024-01-31T12:00:00"}),
            Document(id="object", meta={"at": noon}),
            Document(id="later", meta={"at": "2024-01-31T12:30:00Z", "deep": {"day": "2024-02-01"}}),
            Document(id="text", meta={"at": "at noon"}),
        ]
    )
    same = ["naive", "object", "offset"]
    for value in (noon, "2024-01-31 12:00", noon.astimezone(timezone(timedelta(hours=-5))).isoformat()):
        assert found(store, "meta.at", "==", value) == same
        assert found(store, "at", "in", [value, "at noon"]) == [*same, "text"]
        assert found(store, "meta.at", "!=", value) == ["later", "text"]
        assert found(store, "meta.at", ">", value) == ["later"]
        assert found(store, "meta.at", ">=", value) == sorted([*same, "later"])
        assert found(store, "meta.at", "<", value) == []
    assert found(store, "meta.deep.day", "<=", "2024-02-01") == ["later"]
    assert store.update_by_filter({"field": "id", "operator": "==", "value": "text"}, {"at": "2025-01-01"}) == 1
    assert found(store, "meta.at", ">", "2024-06-01") == ["text"]
    read = {document.id: document.meta["at"] for document in store.filter_documents()}
    assert read["offset"] == "2024-01-31T13:00:00+01:00" and read["object"] == noon


def test_every_field_of_a_document_comes_back(store: FabstirDocumentStore) -> None:
    whole = Document(
        content="text",
        meta={"a": {"b": [1, 2.5, None]}, "content": "of meta"},
        blob=ByteStream(b"\x00\xff", {"name": "x"}, "image/png"),
        sparse_embedding=SparseEmbedding([1, 7], [0.5, 0.25]),
        score=0.5,
        embedding=[0.5, 0.25],
    )
    store.write_documents([whole, Document(id="bare")])
    read = {document.id: document for document in store.filter_documents()}
    assert read[whole.id] == whole and read["bare"] == Document(id="bare")
    assert found(store, "blob.mime_type", "==", "image/png") == [whole.id]
    assert found(store, "content", "==", "text") == found(store, "meta.content", "==", "of meta") == [whole.id]
    assert found(store, "score", ">", 0.4) == [whole.id]
    for field in ("embedding", "sparse_embedding", "meta", ""):
        with pytest.raises(FilterError):
            found(store, field, "==", 1)


VALUES: list[Any] = [None, True, 0, 1, -2.5, "a", "b", "2024-01-31", "2024-01-31T00:00:00+00:00", "2023-05-05"]


def comparison(choice: random.Random) -> dict[str, Any]:
    operator = choice.choice(["==", "!=", ">", ">=", "<", "<=", "in", "not in"])
    fields = ["meta.x", "meta.y", "x", "meta.deep.z", "meta.none"]
    field = choice.choice(fields if operator in (">", ">=", "<", "<=") else [*fields, "content", "id"])
    if operator in ("in", "not in"):
        value: Any = choice.sample(VALUES, 3)
    else:  # only numbers and dates have an order
        value = choice.choice([each for each in VALUES if operator in ("==", "!=") or each not in ("a", "b")])
    return {"field": field, "operator": operator, "value": value}


def nested(choice: random.Random, depth: int) -> dict[str, Any]:
    if depth == 0 or choice.random() < 0.3:
        return comparison(choice)
    conditions = [nested(choice, depth - 1) for _ in range(choice.randint(1, 3))]
    return {"operator": choice.choice(["AND", "OR", "NOT"]), "conditions": conditions}


def test_filters_agree_with_haystacks_own_evaluation(store: FabstirDocumentStore) -> None:
    """Except where values of several types meet: Haystack raises for some, and calls True and 1 equal."""
    choice = random.Random(20_261_126)
    documents = []
    for number in range(60):
        meta: dict[str, Any] = {name: choice.choice(VALUES[2:]) for name in "xy" if choice.random() < 0.8}
        if choice.random() < 0.5:
            meta["deep"] = {"z": choice.choice(VALUES[2:])}
        documents.append(Document(id=str(number), content=choice.choice(["a", "b", None]), meta=meta))
    store.write_documents(documents)
    asked = compared = 0
    while compared < 300:
        asked += 1
        filters = nested(choice, 2)
        if "True" in repr(filters):
            continue
        try:
            expected = sorted(each.id for each in documents if document_matches_filter(filters, each))
        except (FilterError, TypeError):
            continue
        assert sorted(each.id for each in store.filter_documents(filters)) == expected, filters
        assert store.count_documents_by_filter(filters) == len(expected)
        compared += 1
    assert asked < 3_000


@pytest.mark.parametrize(
    "filters",
    [
        {"field": "meta.x"},
        {"operator": "XOR", "conditions": []},
        {"operator": "AND", "conditions": {"field": "x"}},
        {"operator": "AND", "conditions": ["x"]},
        {"field": "x", "operator": "~", "value": 1},
        {"field": "x", "operator": "==", "value": {"a": 1}},
        {"field": "x", "operator": "in", "value": "abc"},
        {"field": "x", "operator": "<", "value": True},
        {"field": "x", "operator": "<", "value": "soon"},
        {"field": 3, "operator": "==", "value": 1},
        {"x": 1},
    ],
)
def test_a_filter_that_is_not_understood_is_refused(store: FabstirDocumentStore, filters: Any) -> None:
    with pytest.raises(FilterError):
        store.filter_documents(filters)
    with pytest.raises(FilterError):
        store.delete_by_filter(filters)


def test_lists_are_compared_as_a_whole_and_by_their_values(store: FabstirDocumentStore) -> None:
    store.write_documents([Document(id=str(n), meta={"tags": tags}) for n, tags in enumerate([["a", "b"], ["b"], []])])
    assert found(store, "tags", "==", ["a", "b"]) == ["0"] and found(store, "tags", "==", []) == ["2"]
    assert found(store, "tags", "in", [["b"], "a"]) == ["0", "1"] and found(store, "tags", "!=", "b") == ["2"]


def test_an_update_replaces_a_field_as_a_whole(store: FabstirDocumentStore) -> None:
    store.write_documents([Document(id="a", meta={"when": {"on": "2020-01-01", "by": "x"}, "kept": 1})])
    assert store.update_by_filter({"field": "id", "operator": "==", "value": "a"}, {"when": {"at": "2021-01-01"}}) == 1
    assert store.filter_documents()[0].meta == {"when": {"at": "2021-01-01"}, "kept": 1}
    assert found(store, "when.on", ">", "2019-01-01") == [] and found(store, "when.at", ">", "2019-01-01") == ["a"]


def test_changes_by_an_empty_filter_are_refused(store: FabstirDocumentStore) -> None:
    store.write_documents([Document(id="a")])
    for change in (lambda: store.delete_by_filter({}), lambda: store.update_by_filter({}, {"x": 1})):
        with pytest.raises(FilterError, match="empty"):
            change()
    assert store.count_documents_by_filter({}) == 1
    everything = {"operator": "AND", "conditions": []}
    assert store.count_documents_by_filter(everything) == 1


DOCUMENTS = [
    Document(id="rose", content="roses are red", embedding=[1.0, 0.0], meta={"year": 2019}),
    Document(id="violet", content="violets are blue", embedding=[0.0, 1.0], meta={"year": 2024}),
    Document(id="note", content="no vector", meta={"year": 2024}),
]


def test_a_retriever_answers_in_pipelines_of_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABSTIR_SEED_PHRASE", PHRASE)
    with FabstirDocumentStore(s5_portal="memory:") as store:
        store.write_documents(DOCUMENTS)
        recent = {"field": "meta.year", "operator": ">", "value": 2020}
        retriever = FabstirEmbeddingRetriever(store, filters=recent, filter_policy=FilterPolicy.MERGE, top_k=5)
        pipeline = Pipeline()
        pipeline.add_component("retriever", retriever)
        hits = pipeline.run({"retriever": {"query_embedding": [1.0, 0.1]}})["retriever"]["documents"]
        assert [hit.id for hit in hits] == ["violet"] and 0 <= hits[0].score <= 1 and hits[0].embedding is None
        both = pipeline.run({"retriever": {"query_embedding": [1.0, 0.1], "filters": {**recent, "value": 2030}}})
        assert both["retriever"]["documents"] == []
        again = Pipeline.loads(pipeline.dumps(), allowed_modules=["fabstir_vectordb.integrations.haystack"])
        other = again.get_component("retriever")
        assert other.filters == recent and other.document_store.count_documents() == 0
        other.document_store.close()
        assert PHRASE not in pipeline.dumps()

        beside = Pipeline()
        options = {"threshold": 0.9}
        beside.add_component("retriever", FabstirEmbeddingRetriever(store, return_embedding=True, options=options))
        answer = asyncio.run(beside.run_async({"retriever": {"query_embedding": [1.0, 0.1], "top_k": 2}}))
        assert answer["retriever"]["documents"][0].embedding == [1.0, 0.0]
        assert [hit.id for hit in answer["retriever"]["documents"]] == ["rose"]
        assert retriever.run([1.0, 0.1], top_k=0) == {"documents": []}
    with pytest.raises(TypeError):
        FabstirEmbeddingRetriever(object())
    with pytest.raises(ValueError, match="top_k"):
        FabstirEmbeddingRetriever(store, top_k=0)


@pytest.mark.parametrize("mode", LONG_MODES)
def test_words_find_documents_alone_and_beside_embeddings(mode: str, tmp_path: Path) -> None:
    def near(axis: int) -> list[float]:
        return [1.0 if each == axis else 0.01 for each in range(DIM)]

    with HiddenStore(**settings(mode, tmp_path, DIM)) as store:
        reopen(store, mode)
        store.write_documents(
            [
                Document(id="rose", content="roses are red", embedding=near(0), meta={"year": 2019}),
                Document(id="violet", content="violets are blue", embedding=near(1), meta={"year": 2024}),
                Document(id="note", content="a note on roses", meta={"year": 2024}),
                Document(id="bare", meta={"text": "roses"}),
            ]
        )
        recent = {"field": "meta.year", "operator": ">", "value": 2020}
        found = store.bm25_retrieval("roses")
        assert sorted(hit.id for hit in found) == ["note", "rose"] and all(0 < hit.score < 1 for hit in found)
        assert [hit.id for hit in store.bm25_retrieval("roses", recent)] == ["note"]
        assert store.bm25_retrieval("roses", top_k=0) == store.bm25_retrieval("tulips") == []
        both = store.hybrid_retrieval("note", near(1), top_k=2, return_embedding=True)
        assert sorted((hit.id, hit.embedding is None) for hit in both) == [("note", True), ("violet", False)]
        assert [hit.id for hit in store.hybrid_retrieval("+roses", near(1), recent)] == ["note"]
        assert asyncio.run(store.bm25_retrieval_async("roses")) == found
        assert asyncio.run(store.hybrid_retrieval_async("note", near(1), top_k=2, return_embedding=True)) == both
        check_mode(store, mode)


def test_retrievers_by_words_answer_in_pipelines_of_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABSTIR_SEED_PHRASE", PHRASE)
    with FabstirDocumentStore(s5_portal="memory:") as store:
        store.write_documents(DOCUMENTS)
        recent = {"field": "meta.year", "operator": ">", "value": 2020}
        options = {"fusion": "weighted", "alpha": 0.0}
        pipeline = Pipeline()
        pipeline.add_component("words", FabstirBM25Retriever(store, filters=recent, top_k=1))
        pipeline.add_component("both", FabstirHybridRetriever(store, top_k=1, options=options))
        asked = {"words": {"query": "blue roses"}, "both": {"query": "blue", "query_embedding": [1.0, 0.1]}}
        for answer in (pipeline.run(asked), asyncio.run(pipeline.run_async(asked))):
            assert [hit.id for hit in answer["words"]["documents"]] == ["violet"]
            assert [hit.id for hit in answer["both"]["documents"]] == ["violet"]
        again = Pipeline.loads(pipeline.dumps(), allowed_modules=["fabstir_vectordb.integrations.haystack"])
        for name, kind in (("words", FabstirBM25Retriever), ("both", FabstirHybridRetriever)):
            other = again.get_component(name)
            assert type(other) is kind and other.to_dict() == pipeline.get_component(name).to_dict()
            other.document_store.close()


def test_a_store_with_a_bare_phrase_is_not_serialized_and_does_not_show_it(store: FabstirDocumentStore) -> None:
    with pytest.raises(ValueError, match="from_env_var"):
        store.to_dict()
    assert PHRASE not in repr(vars(store))


def test_a_store_loads_itself_where_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_PHRASE", PHRASE)
    phrase = Secret.from_env_var("A_PHRASE")
    with FabstirDocumentStore(s5_portal=tmp_path.as_uri(), user_seed_phrase=phrase, load=True) as store:
        assert store.count_documents() == 0
        store.write_documents(DOCUMENTS)
        store.save()
        described = store.to_dict()
    with FabstirDocumentStore.from_dict(described) as again:
        assert again.count_documents() == 3
        assert again.get_metadata_field_min_max("meta.year") == {"min": 2019, "max": 2024}
    with pytest.raises(InvalidConfigError):
        FabstirDocumentStore(user_seed_phrase=phrase)


def test_a_document_that_is_refused_leaves_nothing(store: FabstirDocumentStore) -> None:
    for wrong in (Document(content="x", meta={"s": {1, 2}}), Document(content="x", embedding=[0.0, 0.0])):
        with pytest.raises(InvalidInputError):
            store.write_documents([Document(content="good"), wrong])
    assert store.count_documents() == 0
    assert store.write_documents([]) == 0
    twice = [Document(id="a", content="1"), Document(id="a", content="2")]
    assert store.write_documents(twice, DuplicatePolicy.SKIP) == 1
    assert store.write_documents(twice, DuplicatePolicy.OVERWRITE) == 2
    assert [document.content for document in store.filter_documents()] == ["2"]
