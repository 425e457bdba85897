"""The LlamaIndex store against `SimpleVectorStore`, LlamaIndex's own, in three modes; every difference is listed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")

from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex, load_index_from_storage
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
from modes import LONG_MODES, PHRASE, Hidden, check_mode, reopen, settings

from fabstir_vectordb import ConflictError, InvalidConfigError, InvalidInputError
from fabstir_vectordb.integrations.llama_index import FabstirVectorStore

DIM, NODES, SEED = 64, 80, 20_261_126


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

ORDERS = (FilterOperator.GT, FilterOperator.GTE, FilterOperator.LT, FilterOperator.LTE)
EQUALITIES = (FilterOperator.EQ, FilterOperator.NE, FilterOperator.IN, FilterOperator.NIN)
OF_LISTS = (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL)
OF_TEXTS = (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


#: Why the answer for one row may differ from that of `SimpleVectorStore`, and when: for which filter, and which value
#: of the row.
DIFFERENCES: dict[str, Callable[[MetadataFilter, Any], bool]] = {
    "a list matches by any of its values, as in the session's filters": lambda filter, value: (
        isinstance(value, list) and filter.operator in (*EQUALITIES, *ORDERS)
    ),
    "True is no number: Python's True equals 1 and is above 0": lambda filter, value: isinstance(value, bool),
    "True is no number, also in a list": lambda filter, value: (
        isinstance(value, list) and any(isinstance(each, bool) for each in value)
    ),
    "a list of texts matches by any of them: SimpleVectorStore raises TypeError": lambda filter, value: (
        isinstance(value, list) and filter.operator in OF_TEXTS
    ),
    "a single value is a list of one: SimpleVectorStore raises TypeError, or takes a text for its characters": (
        lambda filter, value: not isinstance(filter.value, list) and filter.operator in OF_LISTS
    ),
    "a node without a source has none: SimpleVectorStore calls it 'None'": lambda filter, value: (
        filter.key in ("ref_doc_id", "doc_id", "document_id") and value is None
    ),
}
#: What is refused here: SimpleVectorStore raises TypeError when it meets a value that is not null, or compares lists
#: by their order, or finds no list in another.
REFUSED = {
    *((operator, "null") for operator in (*ORDERS, *OF_LISTS, *OF_TEXTS)),
    *((operator, "list") for operator in (*ORDERS, *OF_TEXTS, FilterOperator.CONTAINS)),
    *((operator, "number") for operator in OF_TEXTS),
}


def kind_of(value: Any) -> str:
    if value is None:
        return "null"
    return "bool" if isinstance(value, bool) else "number" if is_number(value) else type(value).__name__


def differs(filter: MetadataFilter, value: Any) -> str | None:
    """Why the answer for a row with a value may differ from that of `SimpleVectorStore`; None where it may not."""
    return next((reason for reason, applies in DIFFERENCES.items() if applies(filter, value)), None)


def simple_answer(filter: MetadataFilter, metadata: dict[str, Any]) -> bool | None:
    """LlamaIndex's own evaluation for one row; None where it raises TypeError."""
    try:
        return build_metadata_filter_fn(lambda _: metadata, MetadataFilters(filters=[filter]))("x")
    except TypeError:
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
        found.append({bool(simple_answer(part, metadata))})  # a type that it cannot compare matches no row here
    if filters.condition in (FilterCondition.AND, None):
        return {all(True in each for each in found), all(False not in each for each in found)}
    either = {any(True in each for each in found), any(False not in each for each in found)}
    return either if filters.condition == FilterCondition.OR else {not each for each in either}


def simple_metadata(node: TextNode) -> dict[str, Any]:
    names = dict.fromkeys(("ref_doc_id", "doc_id", "document_id"), node.ref_doc_id)
    return {**node.metadata, **names}


@pytest.fixture(params=LONG_MODES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FabstirVectorStore]:
    with HiddenStore(**settings(request.param, tmp_path, DIM)) as store:
        reopen(store, request.param)
        yield store
        check_mode(store, request.param)


VALUES: list[Any] = [*SCALARS, *LISTS, [True, "a"]]
WANTED: list[Any] = [None, 0, 1, -3, 2.5, *TEXTS[:5], [], ["a"], ["a", "b"], ["Rose"], [1, 2], [2.5]]


def test_every_operator_meets_every_kind_of_value(store: FabstirVectorStore) -> None:
    """Each answer for each row is SimpleVectorStore's, or its difference is listed. No listed difference is idle."""
    nodes = [TextNode(id_=f"n{number}", metadata={"x": value}) for number, value in enumerate(VALUES)]
    nodes.append(TextNode(id_=f"n{len(nodes)}", metadata={}))
    for node, vector in zip(nodes, vectors(len(nodes)), strict=True):
        node.embedding = vector
    store.add(nodes)
    refused: set[tuple[FilterOperator, str]] = set()
    met: set[str | None] = set()
    pairs = [(operator, wanted) for operator in FilterOperator for wanted in WANTED]
    for operator, wanted in pairs:
        if operator == FilterOperator.IS_EMPTY and wanted is not None:
            continue
        filter = MetadataFilter(key="x", operator=operator, value=wanted)
        try:
            kept = {node.node_id for node in store.get_nodes(filters=MetadataFilters(filters=[filter]))}
        except ValueError:
            refused.add((operator, kind_of(wanted)))
            continue
        for node in nodes:
            value = node.metadata.get("x")
            theirs, mine = simple_answer(filter, node.metadata), node.node_id in kept
            if mine != bool(theirs):
                reason = differs(filter, value)
                assert reason is not None, (filter, value, mine, theirs)
                met.add(reason)
    assert refused == REFUSED
    simple = SimpleVectorStore()
    simple.add(nodes)
    nameless = MetadataFilter(key="ref_doc_id", value="None")
    assert store.get_nodes(filters=MetadataFilters(filters=[nameless])) == []
    assert simple_answer(nameless, simple.data.metadata_dict["n0"])
    assert met | {differs(nameless, None)} == set(DIFFERENCES)


@pytest.mark.parametrize("count", [100, pytest.param(1_000, marks=pytest.mark.long)])
def test_filters_agree_with_llama_indexs_own_evaluation(store: FabstirVectorStore, count: int) -> None:
    """All 14 operators, all kinds of values, all conditions, nested: as filters of nodes and of queries in turn."""
    nodes = some_nodes()
    assert store.add(nodes) == [node.node_id for node in nodes]
    choice = random.Random(SEED)
    operators: set[Any] = set()
    decided = undecided = 0
    for number in range(count):
        filters = some_filters(choice, 2)
        if number % 2:
            kept = {node.node_id for node in store.get_nodes(filters=filters)}
        else:
            query = VectorStoreQuery(query_embedding=nodes[0].embedding, similarity_top_k=NODES, filters=filters)
            kept = set(store.query(query).ids or [])
        for node in nodes:
            possible = verdicts(filters, simple_metadata(node))
            assert (node.node_id in kept) in possible, (filters, node.metadata)
            decided += len(possible) == 1
            undecided += len(possible) == 2
        operators |= {part.operator for part in filters.filters if isinstance(part, MetadataFilter)}
    assert operators == set(FilterOperator) and len(operators) == 14
    assert decided > 2 * undecided


@pytest.mark.parametrize("count", [20, pytest.param(60, marks=pytest.mark.long)])
def test_queries_agree_with_the_simple_store(store: FabstirVectorStore, count: int) -> None:
    nodes, simple = some_nodes(), SimpleVectorStore()
    simple.add(nodes)
    store.add(nodes)
    choice = random.Random(SEED)
    queries = np.random.default_rng(SEED + 1).standard_normal((count, DIM)).astype(np.float32).tolist()
    for number, vector in enumerate(queries):
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


def test_query_modes_by_words(store: FabstirVectorStore) -> None:
    nodes = some_nodes()[:20]
    for node, text in zip(nodes, ["red rose", "red tulip", "blue sea", "blue sky"] * 5, strict=True):
        node.set_content(text)
    store.add(nodes)
    blue, sky = ({node.node_id for node in nodes if word in node.text} for word in ("blue", "sky"))

    def found(mode: VectorStoreQueryMode, text: str, k: int = 10, **others: Any) -> list[str]:
        query = VectorStoreQuery(query_str=text, similarity_top_k=k, mode=mode, **others)
        result = store.query(query)
        assert [node.node_id for node in result.nodes] == result.ids
        assert all(0 <= score <= 1 for score in result.similarities)
        assert asyncio.run(store.aquery(query)).ids == result.ids
        return result.ids

    for mode in (VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.TEXT_SEARCH):
        assert set(found(mode, "blue", 20)) == blue and set(found(mode, "blue sky", 5)) == sky
        assert len(found(mode, "blue", 10, sparse_top_k=3)) == 3 and found(mode, "tulips") == []
        assert set(found(mode, "sky", node_ids=["n3", "n4", "n7"])) == {"n3", "n7"}
    near = nodes[0].embedding
    hybrid = VectorStoreQueryMode.HYBRID
    assert set(found(hybrid, "sky", 5, query_embedding=near, alpha=0.0)) == sky
    assert found(hybrid, "sky", 1, query_embedding=near, alpha=1.0) == ["n0"]
    assert set(found(hybrid, "sky", 6, query_embedding=near, alpha=0.5)) > sky
    assert len(found(hybrid, "sky", 2, query_embedding=near, hybrid_top_k=7)) == 7
    only = MetadataFilters(filters=[MetadataFilter(key="ref_doc_id", operator=FilterOperator.IN, value=["doc1"])])
    assert {store.get_nodes([id])[0].ref_doc_id for id in found(hybrid, "sky", query_embedding=near, filters=only)} == {
        "doc1"
    }


def test_modes_that_there_are_not_and_queries_that_lack_something_are_refused(plain: FabstirVectorStore) -> None:
    modes = VectorStoreQueryMode
    for mode in (modes.SEMANTIC_HYBRID, modes.SVM, modes.LOGISTIC_REGRESSION, modes.LINEAR_REGRESSION):
        with pytest.raises(ValueError, match=f"'{mode.value}' is not supported"):
            plain.query(VectorStoreQuery(query_embedding=[1.0, 0.0], query_str="a", mode=mode))
    for mode in (modes.DEFAULT, modes.MMR, modes.HYBRID):
        with pytest.raises(ValueError, match="no embedding"):
            plain.query(VectorStoreQuery(query_str="a", mode=mode))
    for mode in (modes.HYBRID, modes.SPARSE, modes.TEXT_SEARCH):
        with pytest.raises(ValueError, match=f"no query_str, whose words the mode '{mode.value}' needs"):
            plain.query(VectorStoreQuery(query_embedding=[1.0, 0.0], mode=mode))
    with (
        FabstirVectorStore(
            s5_portal="memory:", user_seed_phrase=PHRASE, session_id="tests", text_fields=None
        ) as wordless,
        pytest.raises(InvalidInputError, match="no text fields"),
    ):
        wordless.query(VectorStoreQuery(query_str="a", mode=modes.SPARSE))


def test_a_filter_may_be_long(plain: FabstirVectorStore) -> None:
    """More comparisons of one field than a session's filter may have, and thousands of ids."""
    plain.add(some_nodes())
    equal, other = (
        [MetadataFilter(key="n", operator=operator, value=n) for n in range(3, 5_000)]
        for operator in (FilterOperator.EQ, FilterOperator.NE)
    )
    plain.add([TextNode(id_=str(n), metadata={"n": n}, embedding=[1.0] * DIM) for n in range(5)])
    for filters, condition, kept in (
        (equal, FilterCondition.OR, {"3", "4"}),
        (other, FilterCondition.AND, {"0", "1", "2"}),
        (equal, FilterCondition.NOT, {"0", "1", "2"}),
    ):
        where = MetadataFilters(filters=filters, condition=condition)
        assert {node.node_id for node in plain.get_nodes([*map(str, range(9_000))], where)} == kept
    query = VectorStoreQuery(query_embedding=[1.0] * DIM, similarity_top_k=9, node_ids=[*map(str, range(2, 9_000))])
    assert sorted(plain.query(query).ids) == ["2", "3", "4"]


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
        by_words = index.as_retriever(vector_store_query_mode="text_search", similarity_top_k=5).retrieve("two")
        assert [node.text for node in by_words] == ["two"]
        both = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=2, alpha=0.1).retrieve("two")
        assert [node.text for node in both] == ["two", "one"]
        index.delete_ref_doc("one")
        context.persist(tmp_path / "rest")  # of the index; the nodes go to the store of the settings
    with FabstirVectorStore(options).load() as again:
        index = VectorStoreIndex.from_vector_store(again, embed_model=model)
        found = asyncio.run(index.as_retriever().aretrieve("anything"))
        assert [(node.text, node.node.ref_doc_id) for node in found] == [("two", "two")]
        context = StorageContext.from_defaults(vector_store=again, persist_dir=tmp_path / "rest")
        same = load_index_from_storage(context, embed_model=model)
        assert [node.text for node in same.as_retriever().retrieve("anything")] == ["two"]


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
