"""The LlamaIndex store against `SimpleVectorStore`, LlamaIndex's own, in three modes; every difference is listed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")

from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from modes import MODES, PHRASE, Hidden, check_mode, reopen, settings

from fabstir_vectordb import ConflictError, InvalidConfigError, InvalidInputError
from fabstir_vectordb.integrations.llama_index import FabstirVectorStore

DIM, NODES, SEED = 64, 80, 20_261_126
LONG = [pytest.param(mode, marks=() if mode == "memory" else pytest.mark.long) for mode in MODES]


class HiddenStore(Hidden, FabstirVectorStore):
    """The store of the suite."""


# ---- nodes and queries by chance

TEXTS = ["a", "b", "ab", "Rose", "rose petal", ""]
SCALARS: list[Any] = [None, True, False, 0, 1, -3, 2.5, *TEXTS]
LISTS: list[Any] = [[], ["a"], ["a", "b"], [1, 2.5], ["Rose", "ab"]]


def vectors(count: int) -> list[list[float]]:
    """Rows whose numbers are exact as float32."""
    return np.random.default_rng(SEED).standard_normal((count, DIM)).astype(np.float32).tolist()


def some_nodes() -> list[TextNode]:
    choice = random.Random(SEED)
    nodes = []
    for number, vector in enumerate(vectors(NODES)):
        # Fields of one kind each, as users have them, and one of all kinds.
        metadata: dict[str, Any] = {}
        for name, kinds in (
            ("text", TEXTS),
            ("number", [0, 1, -3, 2.5, 7]),
            ("tags", LISTS),
            ("any", SCALARS + LISTS),
            ("dotted.key", TEXTS),
        ):
            if choice.random() < 0.85:
                metadata[name] = choice.choice(kinds)
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc{number % 7}")} if number % 8 else {}
        node = TextNode(id_=f"n{number}", text=f"text {number}", metadata=metadata, relationships=source)
        node.embedding = vector
        nodes.append(node)
    return nodes


def some_value(choice: random.Random, operator: FilterOperator) -> Any:
    numbers, texts = [0, 1, -3, 2.5], TEXTS
    match operator:
        case FilterOperator.EQ | FilterOperator.NE:
            return choice.choice([None, *numbers, *texts, ["a"], ["a", "b"], [1, 2.5]])
        case FilterOperator.IN | FilterOperator.NIN | FilterOperator.ANY | FilterOperator.ALL:
            kinds: list[Any] = choice.choice([numbers[:3], [2.5, 0.5], texts])
            return choice.choice([choice.sample(kinds, choice.randint(0, 2)), *choice.sample(kinds, 1)])
        case FilterOperator.TEXT_MATCH | FilterOperator.TEXT_MATCH_INSENSITIVE:
            return choice.choice([*texts, "ROSE"])
        case FilterOperator.CONTAINS:
            return choice.choice([None, *numbers, *texts])
        case FilterOperator.IS_EMPTY:
            return None
    return choice.choice([*numbers, *texts])


def some_filters(choice: random.Random, depth: int) -> MetadataFilters:
    parts: list[Any] = []
    for _ in range(choice.randint(1, 3)):
        if depth and choice.random() < 0.4:
            parts.append(some_filters(choice, depth - 1))
        else:
            operator = choice.choice(list(FilterOperator))
            key = choice.choice(["text", "number", "tags", "any", "dotted.key", "none", "ref_doc_id", "doc_id"])
            parts.append(MetadataFilter(key=key, operator=operator, value=some_value(choice, operator)))
    return MetadataFilters(filters=parts, condition=choice.choice([*FilterCondition, None]))


# ---- the differences


def differs(filter: MetadataFilter, value: Any) -> str | None:
    """Why the answer for one row may differ from that of `SimpleVectorStore`; None where it may not.

    Args:
        filter: the filter.
        value: the value in the row's metadata.
    """
    operator, wanted = filter.operator, filter.value
    if isinstance(value, list) and operator in (
        *(FilterOperator.EQ, FilterOperator.NE, FilterOperator.IN, FilterOperator.NIN),
        *(FilterOperator.GT, FilterOperator.GTE, FilterOperator.LT, FilterOperator.LTE),
    ):
        return "a list matches by any of its values, as in the session's filters"
    if isinstance(value, bool):
        return "True is no number: Python's True equals 1 and is above 0"
    if isinstance(value, list) and operator in (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE):
        return "a list of texts matches by any of them: SimpleVectorStore raises TypeError"
    if isinstance(value, list) and isinstance(wanted, (bool, int, float)) and True in value:
        return "True is no number, also in a list"
    in_one = (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL)
    if not isinstance(wanted, list) and operator in in_one:
        return "a single value is a list of one: SimpleVectorStore raises TypeError, or takes a text for its characters"
    if filter.key in ("ref_doc_id", "doc_id", "document_id") and value is None:
        return "a node without a source has none: SimpleVectorStore calls it 'None'"
    return None


def verdicts(filters: MetadataFilters, metadata: dict[str, Any]) -> set[bool]:
    """The possible answers for one row: that of LlamaIndex's own evaluation, and for listed differences both."""
    found: list[set[bool]] = []
    for part in filters.filters:
        if isinstance(part, MetadataFilters):  # SimpleVectorStore refuses nested filters
            found.append(verdicts(part, metadata))
            continue
        if differs(part, metadata.get(part.key)) is not None:
            found.append({True, False})
            continue
        try:
            found.append({build_metadata_filter_fn(lambda _: metadata, MetadataFilters(filters=[part]))("x")})
        except TypeError:  # it cannot compare this type: here no such row matches
            found.append({False})
    if filters.condition in (FilterCondition.AND, None):
        return {all(True in each for each in found), all(False not in each for each in found)}
    either = {any(True in each for each in found), any(False not in each for each in found)}
    return either if filters.condition == FilterCondition.OR else {not each for each in either}


def simple_metadata(node: TextNode) -> dict[str, Any]:
    names = dict.fromkeys(("ref_doc_id", "doc_id", "document_id"), node.ref_doc_id)
    return {**node.metadata, **names}


@pytest.fixture(params=LONG)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FabstirVectorStore]:
    with HiddenStore(**settings(request.param, tmp_path, DIM)) as store:
        reopen(store, request.param)
        yield store
        check_mode(store, request.param)


@pytest.mark.parametrize("count", [100, pytest.param(1_000, marks=pytest.mark.long)])
def test_filters_agree_with_llama_indexs_own_evaluation(store: FabstirVectorStore, count: int) -> None:
    """All 14 operators, all kinds of values, all conditions, nested."""
    nodes = some_nodes()
    assert store.add(nodes) == [node.node_id for node in nodes]
    choice = random.Random(SEED)
    operators: set[Any] = set()
    decided = undecided = 0
    for _ in range(count):
        filters = some_filters(choice, 2)
        kept = {node.node_id for node in store.get_nodes(filters=filters)}
        for node in nodes:
            possible = verdicts(filters, simple_metadata(node))
            assert (node.node_id in kept) in possible, (filters, node.metadata)
            decided += len(possible) == 1
            undecided += len(possible) == 2
        operators |= {part.operator for part in filters.filters if isinstance(part, MetadataFilter)}
    assert operators == set(FilterOperator) and len(operators) == 14
    assert decided > 2 * undecided


def test_queries_agree_with_the_simple_store(store: FabstirVectorStore) -> None:
    nodes, simple = some_nodes(), SimpleVectorStore()
    simple.add(nodes)
    store.add(nodes)
    choice = random.Random(SEED)
    for number, vector in enumerate(np.random.default_rng(SEED + 1).standard_normal((60, DIM)).astype("f4").tolist()):
        key, operator, value = choice.choice(
            [
                ("number", FilterOperator.GTE, 1),
                ("text", FilterOperator.IN, ["a", "Rose"]),
                ("text", FilterOperator.NE, "a"),
                ("tags", FilterOperator.ANY, ["a", "ab"]),
                ("none", FilterOperator.IS_EMPTY, None),
            ]
        )
        query = VectorStoreQuery(
            query_embedding=vector,
            similarity_top_k=choice.choice([1, 5, 200]),
            filters=MetadataFilters(filters=[MetadataFilter(key=key, operator=operator, value=value)]),
            node_ids=None if number % 3 else [f"n{each}" for each in range(0, NODES, 2)],
            mode=VectorStoreQueryMode.MMR if number % 2 else VectorStoreQueryMode.DEFAULT,
        )
        options = {"mmr_threshold": choice.choice([0.2, 0.5, 1.0])} if number % 2 else {}
        mine = store.query(query, **options, **({"mmr_prefetch_k": 200} if number % 2 else {}))
        theirs = simple.query(query, **options)
        assert mine.ids == theirs.ids and [node.node_id for node in mine.nodes] == mine.ids
        if query.mode == VectorStoreQueryMode.DEFAULT:  # ours are in [0, 1]; theirs are cosines, from -1 to 1
            assert mine.similarities == pytest.approx([(1 + each) / 2 for each in theirs.similarities], abs=1e-6)


def test_deletes_agree_with_the_simple_store(store: FabstirVectorStore) -> None:
    nodes, simple = some_nodes(), SimpleVectorStore()
    simple.add(nodes)
    store.add(nodes)
    large = MetadataFilters(filters=[MetadataFilter(key="number", operator=FilterOperator.GT, value=1)])
    for change in (
        lambda one: one.delete("doc3"),
        lambda one: one.delete("no such document"),
        lambda one: one.delete_nodes(["n1", "n2", "none"]),
        lambda one: one.delete_nodes([]),
        lambda one: one.delete_nodes(["n8", "n9", "n10", "n11"], large),
        lambda one: one.delete_nodes(filters=large),
    ):
        change(store)
        change(simple)
        assert {node.node_id for node in store.get_nodes()} == set(simple.data.embedding_dict)
    store.clear()
    assert store.get_nodes() == []
    store.add(nodes[:2])
    assert len(store.get_nodes()) == 2


# ---- what the simple store does not have


@pytest.fixture
def plain() -> Iterator[FabstirVectorStore]:
    with FabstirVectorStore(s5_portal="memory:", user_seed_phrase=PHRASE, session_id="tests") as store:
        yield store


def test_every_kind_of_node_comes_back(plain: FabstirVectorStore) -> None:
    parent = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", metadata={"x": 1})}
    kept = [
        TextNode(id_="text", text="a text", metadata={"deep": {"x": [1, None]}, "text": "of metadata"}),
        TextNode(id_="bare"),
        TextNode(id_="child", text="b", relationships=parent, start_char_idx=3, excluded_llm_metadata_keys=["x"]),
        IndexNode(id_="index", text="c", index_id="other"),
        ImageNode(id_="image", text="d", image_path="a.png"),
        Node(id_="node", text_resource=MediaResource(text="e")),
        Node(id_="picture", image_resource=MediaResource(url="http://127.0.0.1/a.png")),
    ]
    for number, node in enumerate(kept):
        node.embedding = [1.0, float(number)]
    plain.add(kept)
    read = plain.get_nodes([node.node_id for node in kept])
    assert [node.model_dump() for node in read] == [node.model_dump() for node in kept]
    assert [type(node) for node in read] == [type(node) for node in kept]
    assert [node.node_id for node in plain.get_nodes(["child", "none", "text"])] == ["child", "text"]
    assert [node.text for node in plain.get_nodes() if node.ref_doc_id == "doc"] == ["b"]
    assert [row.metadata["text"] for row in plain.run(lambda session: session.get(["text", "node"]))] == ["a text", "e"]


def test_modes_that_need_words_are_refused(plain: FabstirVectorStore) -> None:
    for mode in VectorStoreQueryMode:
        query = VectorStoreQuery(query_embedding=[1.0, 0.0], query_str="a", mode=mode)
        if mode in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
            assert plain.query(query).ids == []
        else:
            with pytest.raises(ValueError, match=f"'{mode.value}' is not supported"):
                plain.query(query)
    with pytest.raises(ValueError, match="no embedding"):
        plain.query(VectorStoreQuery(query_str="a"))


@pytest.mark.parametrize(
    ("operator", "value"),
    [
        *[(operator, None) for operator in (FilterOperator.GT, FilterOperator.IN, FilterOperator.TEXT_MATCH)],
        (FilterOperator.LT, [1]),
        (FilterOperator.CONTAINS, ["a"]),
        (FilterOperator.TEXT_MATCH_INSENSITIVE, 3),
    ],
)
def test_a_filter_that_is_not_understood_is_refused(plain: FabstirVectorStore, operator: Any, value: Any) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="x", operator=operator, value=value)])
    with pytest.raises(ValueError, match=r"x: |contain"):
        plain.get_nodes(filters=filters)
    for nothing in (None, MetadataFilters(filters=[])):
        with pytest.raises(ValueError, match="clear"):
            plain.delete_nodes(filters=nothing)


def test_an_index_of_llama_index_uses_the_store(tmp_path: Path) -> None:
    options: dict[str, Any] = {"s5_portal": tmp_path.as_uri(), "user_seed_phrase": PHRASE, "session_id": "tests"}
    model = MockEmbedding(embed_dim=8)
    with FabstirVectorStore(**options) as store:
        context = StorageContext.from_defaults(vector_store=store)
        documents = [Document(text=text, doc_id=text, metadata={"n": n}) for n, text in enumerate(["one", "two"])]
        index = VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=model)
        found = index.as_retriever(similarity_top_k=5).retrieve("one")
        assert sorted(node.text for node in found) == ["one", "two"]
        assert all(0 <= node.score <= 1 for node in found)
        index.delete_ref_doc("one")
        store.persist()
    with FabstirVectorStore(options).load() as again:
        index = VectorStoreIndex.from_vector_store(again, embed_model=model)
        found = asyncio.run(index.as_retriever().aretrieve("anything"))
        assert [(node.text, node.node.ref_doc_id) for node in found] == [("two", "two")]


def test_every_method_has_a_twin_that_is_awaited(plain: FabstirVectorStore) -> None:
    async def use() -> None:
        nodes = some_nodes()
        assert await plain.async_add(nodes) == [node.node_id for node in nodes]
        query = VectorStoreQuery(query_embedding=vectors(1)[0], similarity_top_k=3)
        assert (await plain.aquery(query)).ids == plain.query(query).ids
        assert (await plain.aquery(query, threshold=0.99)).ids == ["n0"]
        await plain.adelete("doc1")
        await plain.adelete_nodes(["n0"])
        assert len(await plain.aget_nodes()) == len(plain.get_nodes()) < NODES - 1
        await plain.aclear()
        assert await plain.aget_nodes() == []

    asyncio.run(use())


def test_what_is_refused_leaves_nothing(plain: FabstirVectorStore) -> None:
    good = TextNode(id_="a", text="a", embedding=[1.0, 0.0])
    with pytest.raises(ValueError, match="embedding not set"):
        plain.add([good, TextNode(id_="b")])
    with pytest.raises(InvalidInputError):
        plain.add([good, TextNode(id_="b", embedding=[1.0])])
    assert plain.get_nodes() == []
    plain.add([good])
    with pytest.raises(ConflictError):
        plain.add([good], on_conflict="error")
    assert plain.add([]) == []
    with pytest.raises(InvalidConfigError):
        FabstirVectorStore()
    assert PHRASE not in plain.model_dump_json() + repr(plain) + repr(vars(plain))
