"""The LangChain store: langchain-tests' own suite in three modes, and what that suite leaves out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_tests", reason="langchain-tests is not installed")

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from modes import LONG_MODES, PHRASE, Hidden, anyio_backend, check_mode, reopen, settings  # noqa: F401

from fabstir_vectordb import F, InvalidConfigError, InvalidInputError, SessionError
from fabstir_vectordb.integrations.langchain import FabstirVectorStore

DIM = 64


class HiddenStore(Hidden, FabstirVectorStore):
    """The store of the suite."""


class Suite(VectorStoreIntegrationTests):
    """langchain-tests' suite; its subclasses choose a mode."""

    mode: str
    quick_one_of = 10

    @staticmethod
    def get_embeddings() -> Embeddings:
        """More dimensions than the suite's own 6, in which codes of one bit tell nothing apart and no load is lazy."""
        return DeterministicFakeEmbedding(size=DIM)

    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[FabstirVectorStore]:
        with HiddenStore(self.get_embeddings(), **settings(self.mode, tmp_path, DIM)) as store:
            reopen(store, self.mode)
            yield store
            check_mode(store, self.mode)


@pytest.mark.anyio
class TestInMemory(Suite):
    mode = "memory"


@pytest.mark.anyio
class TestSaved(Suite):
    mode = "saved"


@pytest.mark.anyio
class TestLazy(Suite):
    mode = "lazy"
    quick_one_of = 100  # one takes a second


# ---- what the suite leaves out

WORDS = ["red rose", "red tulip", "blue sea", "blue sky", "green leaf"]


class Axes(DeterministicFakeEmbedding):
    """Embeds a text as the axis of its first word, and a little of its last."""

    size: int = 4

    def embed_query(self, text: str) -> list[float]:
        first, _, last = text.partition(" ")
        vector = [0.0] * 4
        vector[{"red": 0, "blue": 1, "green": 2}.get(first, 3)] = 1.0
        vector[3] += 0.1 * (sum(map(ord, last)) % 7)
        return vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


def made(**others: Any) -> FabstirVectorStore:
    return FabstirVectorStore(Axes(), s5_portal="memory:", user_seed_phrase=PHRASE, session_id="tests", **others)


@pytest.fixture
def store() -> Iterator[FabstirVectorStore]:
    with made() as store:
        metadatas = [{"n": n, "tags": word.split(), "deep": {"n": n}} for n, word in enumerate(WORDS)]
        assert store.add_texts(WORDS, metadatas, ids=[str(n) for n in range(5)]) == list("01234")
        yield store


def texts(documents: list[Document]) -> list[str]:
    return [document.page_content for document in documents]


@pytest.mark.parametrize(
    ("filter", "kept"),
    [
        ({"n": 3}, [3]),
        ({"n": {"$gte": 3}}, [3, 4]),
        ({"deep.n": {"$in": [0, 4]}}, [0, 4]),
        ({'deep."n"': 1}, [1]),
        ({"tags": "blue"}, [2, 3]),
        ({"$or": [{"n": 0}, {"$and": [{"tags": "blue"}, {"n": {"$gt": 2}}]}]}, [0, 3]),
        ({"$not": {"tags": "blue"}}, [0, 1, 4]),
        ({"n": {"$not": {"$lt": 4}}}, [4]),
        ({"text": "red rose"}, []),
        ({"$id": {"$in": ["1", "3"]}, "n": {"$gt": 1}}, [3]),
        ((F("n") >= 1) & ~(F("tags") == "blue") | (F.id == "0"), [0, 1, 4]),
        ({}, [0, 1, 2, 3, 4]),
    ],
)
def test_a_filter_names_fields_of_the_documents(store: FabstirVectorStore, filter: Any, kept: list[int]) -> None:
    found = store.similarity_search("red rose", k=10, filter=filter)
    assert sorted(document.metadata["n"] for document in found) == kept


@pytest.mark.parametrize("filter", ["n", [{"n": 1}], {"n": {"$near": 1}}, {"$or": "n"}, {"$and": [3]}, {1: 2}])
def test_a_filter_that_is_not_understood_is_refused(store: FabstirVectorStore, filter: Any) -> None:
    with pytest.raises(InvalidInputError):
        store.similarity_search("red rose", filter=filter)


def test_scores_are_in_the_unit_interval_and_no_hit_is_dropped_unasked(store: FabstirVectorStore) -> None:
    for search in (store.similarity_search_with_score, store.similarity_search_with_relevance_scores):
        scored = search("red rose", k=5)
        assert len(scored) == 5
        assert [score for _, score in scored] == sorted((score for _, score in scored), reverse=True)
        assert all(0.0 <= score <= 1.0 for _, score in scored)
        assert scored[0][0].page_content == "red rose" and scored[0][1] > 0.999
    assert len(store.similarity_search_with_relevance_scores("red rose", k=5, score_threshold=0.9)) == 2
    assert len(store.similarity_search("red rose", k=5, threshold=0.9)) == 2
    with made(default_threshold=0.9) as strict:
        strict.add_texts(WORDS)
        assert len(strict.similarity_search("red rose", k=5)) == 2


def test_mmr_chooses_among_fetch_k(store: FabstirVectorStore) -> None:
    near = texts(store.similarity_search("red rose", k=2))
    assert texts(store.max_marginal_relevance_search("red rose", k=2, fetch_k=2)) == near == ["red rose", "red tulip"]
    assert texts(store.max_marginal_relevance_search("red rose", k=2, fetch_k=5, lambda_mult=0.1))[1] not in near
    assert texts(store.max_marginal_relevance_search("red rose", k=3, fetch_k=1)) != []
    only = store.max_marginal_relevance_search("red rose", k=5, fetch_k=5, filter={"tags": "blue"})
    assert sorted(texts(only)) == ["blue sea", "blue sky"]


@pytest.mark.anyio
async def test_every_search_has_a_twin_that_is_awaited(store: FabstirVectorStore) -> None:
    vector = Axes().embed_query("blue sky")
    where = {"n": {"$gt": 0}}
    assert await store.asimilarity_search("blue sky", 3, where) == store.similarity_search("blue sky", 3, where)
    assert await store.asimilarity_search_with_score("blue sky") == store.similarity_search_with_score("blue sky")
    assert await store.asimilarity_search_by_vector(vector, 2) == store.similarity_search_by_vector(vector, 2)
    assert await store.asimilarity_search_with_score_by_vector(vector) == store.similarity_search_with_score_by_vector(
        vector
    )
    assert await store.asimilarity_search_with_relevance_scores(
        "blue sky"
    ) == store.similarity_search_with_relevance_scores("blue sky")
    assert await store.amax_marginal_relevance_search(
        "blue sky", 3, 4, 0.2, where
    ) == store.max_marginal_relevance_search("blue sky", 3, 4, 0.2, where)
    assert await store.amax_marginal_relevance_search_by_vector(
        vector, 2
    ) == store.max_marginal_relevance_search_by_vector(vector, 2)
    assert await store.aget_by_ids(["3", "none", "1"]) == store.get_by_ids(["3", "none", "1"])
    assert await store.adelete(["3"]) and store.get_by_ids(["3"]) == []
    assert await store.aadd_texts(["blue sky"], ids=["3"], batch_size=1) == ["3"]


@pytest.mark.parametrize("search_type", ["similarity", "mmr", "similarity_score_threshold"])
def test_a_retriever_searches(store: FabstirVectorStore, search_type: str) -> None:
    options: dict[str, Any] = {"k": 2, "filter": {"tags": "blue"}}
    if search_type == "similarity_score_threshold":
        options["score_threshold"] = 0.5
    retriever = store.as_retriever(search_type=search_type, search_kwargs=options)
    assert sorted(texts(retriever.invoke("blue sky"))) == ["blue sea", "blue sky"]
    assert sorted(texts(asyncio.run(retriever.ainvoke("blue sky")))) == ["blue sea", "blue sky"]


@pytest.mark.parametrize("mode", LONG_MODES)
def test_words_find_documents_alone_and_beside_embeddings(mode: str, tmp_path: Path) -> None:
    with HiddenStore(TestInMemory.get_embeddings(), **settings(mode, tmp_path, DIM)) as store:
        reopen(store, mode)
        metadatas = [{"n": n, "title": f"number {n}"} for n in range(5)]
        store.add_texts(WORDS, metadatas, ids=list("01234"))
        assert sorted(texts(store.keyword_search("blue moon"))) == ["blue sea", "blue sky"]
        assert texts(store.keyword_search("blue +sky")) == ["blue sky"]
        assert texts(store.keyword_search("blue", 5, {"n": {"$gt": 2}})) == ["blue sky"]
        assert store.keyword_search("number") == []  # the words of the texts alone
        scored = store.keyword_search_with_score('"red rose"', threshold=0.01)
        assert texts([document for document, _ in scored]) == ["red rose"] and 0 < scored[0][1] < 1
        # What the query embeds is unlike all texts: the words decide.
        for found in (
            store.hybrid_search("sky and leaf", 2),
            store.hybrid_search("nothing", 2, text="sky leaf"),
            store.similarity_search("nothing", 2, text="sky leaf"),
            asyncio.run(store.ahybrid_search("sky and leaf", 2)),
        ):
            assert sorted(texts(found)) == ["blue sky", "green leaf"]
        assert len(store.hybrid_search("sky", 5)) == 5 and texts(store.hybrid_search("-red", 5, {"n": 0})) == []
        exactly = store.hybrid_search_with_score("red rose", 1, fusion="weighted", alpha=1.0)
        assert texts([document for document, _ in exactly]) == ["red rose"] and 0.9 < exactly[0][1] <= 1
        assert asyncio.run(store.akeyword_search_with_score('"red rose"')) == scored
        diverse = store.max_marginal_relevance_search("red rose", 2, text="+red")
        assert sorted(texts(diverse)) == ["red rose", "red tulip"]
        check_mode(store, mode)


@pytest.mark.parametrize("search_type", ["hybrid", "keyword"])
def test_a_retriever_searches_for_words(store: FabstirVectorStore, search_type: str) -> None:
    retriever = store.as_retriever(search_type=search_type, search_kwargs={"k": 1}, tags=["mine"])
    assert texts(retriever.invoke("sky")) == texts(asyncio.run(retriever.ainvoke("sky"))) == ["blue sky"]
    assert texts(store.search("sky", search_type, k=1)) == texts(asyncio.run(store.asearch("sky", search_type, k=1)))
    assert retriever.tags == ["mine"] and "FabstirVectorStore" in (store.as_retriever().tags or [])
    for refuse in (store.as_retriever, lambda search_type: store.search("sky", search_type)):
        with pytest.raises(ValueError, match="near"):
            refuse(search_type="near")


def test_words_are_those_of_the_fields_that_were_chosen() -> None:
    with made(text_fields=("text", "metadata.title"), text_b=0.5) as store:
        store.add_texts(WORDS, [{"title": f"number {n}"} for n in "01234"])
        assert texts(store.keyword_search("3")) == ["blue sky"]
    with made(text_fields=None) as store:
        store.add_texts(WORDS)
        with pytest.raises(InvalidInputError, match="no text fields"):
            store.hybrid_search("sky")
        store.run(lambda session: session.set_text_fields("text"))
        assert texts(store.keyword_search("sky")) == ["blue sky"]


def test_a_version_without_words_opens_as_it_is(tmp_path: Path) -> None:
    options: dict[str, Any] = {"s5_portal": tmp_path.as_uri(), "user_seed_phrase": PHRASE, "session_id": "tests"}
    with FabstirVectorStore.from_texts(WORDS, Axes(), text_fields=None, **options) as store:
        store.save()
    with FabstirVectorStore(Axes(), options).load() as again:
        assert len(again.similarity_search("red rose", 9)) == 5
        with pytest.raises(InvalidInputError, match="no text fields"):
            again.keyword_search("sky")
    with FabstirVectorStore(Axes(), options, text_fields="text") as asked, pytest.raises(InvalidConfigError):
        asked.load()


def test_a_record_manager_keeps_the_store_in_step_with_its_sources() -> None:
    def sources(*contents: str) -> list[Document]:
        return [Document(page_content=content, metadata={"source": content.split()[0]}) for content in contents]

    with made() as store:
        records = InMemoryRecordManager("fabstir")
        records.create_schema()
        run = lambda documents: index(  # noqa: E731
            documents, records, store, cleanup="full", source_id_key="source", key_encoder="sha256"
        )
        assert run(sources("red rose", "blue sea"))["num_added"] == 2
        again = run(sources("red rose", "blue sky"))
        assert (again["num_added"], again["num_skipped"], again["num_deleted"]) == (1, 1, 1)
        assert sorted(texts(store.similarity_search("red rose"))) == ["blue sky", "red rose"]
        assert run([])["num_deleted"] == 2
        assert store.similarity_search("red rose") == []


def test_deleting_by_filter_and_all(store: FabstirVectorStore) -> None:
    with pytest.raises(InvalidInputError, match="not both"):
        store.delete(["1"], filter={"n": 1})
    with pytest.raises(InvalidInputError, match="empty filter"):
        store.delete(filter={})
    assert store.delete(filter={"tags": "blue"})
    assert sorted(texts(store.similarity_search("red", 9))) == ["green leaf", "red rose", "red tulip"]
    assert store.delete([])
    assert len(store.similarity_search("red", 9)) == 3
    assert store.delete()
    assert store.similarity_search("red", 9) == []


def test_what_is_wrong_is_refused_before_anything_is_embedded(store: FabstirVectorStore) -> None:
    for wrong in (
        lambda: store.add_texts("one text"),
        lambda: store.add_texts(["a"], metadatas=[{}, {}]),
        lambda: store.add_texts(["a"], ids=["1", "2"]),
        lambda: store.add_texts(["a"], [{"when": object()}]),
        lambda: store.similarity_search("a", k=0),
        lambda: store.similarity_search("a", near=1),
    ):
        with pytest.raises((InvalidInputError, TypeError)):
            wrong()
    assert len(store.similarity_search("red", 9)) == 5
    assert store.add_texts([]) == []


def test_ids_metadata_and_text_come_back_as_given(store: FabstirVectorStore) -> None:
    ids = store.add_documents([Document(page_content="red", metadata={"text": "other"}), Document(page_content="")])
    first, second = store.get_by_ids(ids)
    assert (first.page_content, first.metadata, first.id) == ("red", {"text": "other"}, ids[0])
    assert (second.page_content, second.metadata) == ("", {})
    assert store.add_texts(["new"], ids=["0"], on_conflict="skip") == ["0"]
    assert texts(store.get_by_ids(["0"])) == ["red rose"]


def test_a_version_is_found_by_phrase_alone(tmp_path: Path) -> None:
    options: dict[str, Any] = {"s5_portal": tmp_path.as_uri(), "user_seed_phrase": PHRASE, "session_id": "tests"}
    with FabstirVectorStore.from_texts(WORDS, Axes(), ids=list("01234"), **options) as store:
        cid = store.save()
        assert [version.cid for version in store.run(lambda session: session.history())] == [cid]
    with FabstirVectorStore(Axes(), options).load() as again:
        assert texts(again.get_by_ids(["4"])) == ["green leaf"]

    async def awaited() -> None:
        async with await FabstirVectorStore.afrom_texts(["red rose"], Axes(), config=options) as store:
            await store.aload(cid, discard_unsaved=True)
            assert texts(await store.aget_by_ids(["4"])) == ["green leaf"]
            assert await store.asave() != ""

    asyncio.run(awaited())


def test_a_store_that_cannot_be_made_leaves_nothing() -> None:
    with pytest.raises(InvalidConfigError, match="session_id is required"):
        FabstirVectorStore(Axes())
    with pytest.raises(InvalidInputError):
        FabstirVectorStore.from_texts(
            ["a"], Axes(), [{"x": object()}], s5_portal="memory:", user_seed_phrase=PHRASE, session_id="tests"
        )
    store = made()
    store.close()
    store.close()
    with pytest.raises(SessionError, match="closed"):
        store.similarity_search("red")
