"""Searches with text: verbs, options, versions, and what may go wrong."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from saving import PHRASE, Objects

from fabstir_vectordb import (
    ConflictError,
    InvalidConfigError,
    InvalidInputError,
    MemoryBudgetExceededError,
    StorageError,
    VectorDBSession as AsyncSession,
)
from fabstir_vectordb.index import text as text_module
from fabstir_vectordb.persist import load as load_module
from fabstir_vectordb.s5.cipher import decrypt_static
from fabstir_vectordb.s5.compress import zstd
from fabstir_vectordb.sync import VectorDBSession

FRUIT = {
    "a": "red apple pie",
    "b": "green apple",
    "c": "blue sky and red sun",
    "d": "nothing here",
    "e": "apple apple apple",
    "f": "red, red wine",
}
VECTORS = np.random.default_rng(5).standard_normal((len(FRUIT), 4)).astype(np.float32)


def opened(uri: str = "memory:", **fields: Any) -> VectorDBSession:
    return VectorDBSession.create(s5_portal=uri, user_seed_phrase=PHRASE, session_id="test", **{"threads": 1, **fields})


@pytest.fixture
def session() -> Iterator[VectorDBSession]:
    with opened(text_fields=("text", "note.tags")) as session:
        session.add_batch(list(FRUIT), VECTORS, [{"text": text, "n": n} for n, text in enumerate(FRUIT.values())])
        yield session


# ---- queries


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("apple", "abe"),
        ("APPLE!", "abe"),
        ('"red apple"', "a"),
        ('"apple red"', ""),
        ("+apple +red", "a"),
        ("apple -green -pie", "e"),
        ('apple -"red apple"', "be"),
        ("+red apple", "acf"),
        ("app*", "abe"),
        ("+app* -pi*", "be"),
        ("-apple", ""),
        ("", ""),
        ("?!", ""),
        ("plum", ""),
        ('"apple', "abe"),
    ],
)
def test_words_signs_phrases_and_prefixes(session: VectorDBSession, text: str, ids: str) -> None:
    assert sorted(session.search(text=text, k=10).ids) == list(ids)


def test_signs_hold_for_the_hits_of_the_vector_too(session: VectorDBSession) -> None:
    assert sorted(session.search(VECTORS[0], 10, text="sky -apple").ids) == list("cdf")
    assert sorted(session.search(VECTORS[0], 10, text="-apple").ids) == list("cdf")
    assert sorted(session.search(VECTORS[0], 10, text="+red sky").ids) == list("acf")
    assert session.search(VECTORS[0], 10, text="+plum").ids == []


def test_signs_hold_for_long_queries_common_prefixes_and_divided_words() -> None:
    with opened(text_fields="text") as session:
        n = 400
        rows = [{"text": f"{'pre' if row % 2 else 'other'}{row} word"} for row in range(n)]
        session.add_batch([f"r{row:03}" for row in range(n)], None, rows)
        session.add_batch(["mail"], None, [{"text": "word e-mail"}])
        odd, even = ([f"r{row:03}" for row in range(start, n, 2)] for start in (1, 0))
        # 200 words begin with pre, and 128 of them give scores; a sign is about all of them.
        assert sorted(session.search(text="word -pre*", k=n).ids) == ["mail", *even]
        assert set(session.search(text="word +pre*", k=n).ids) == set(odd)
        long = " ".join(f"x{word}" for word in range(1_100))
        assert session.search(text=f"{long} +word +other8", k=n).ids == ["r008"]
        assert len(session.search(text=f"word {long} -word", k=n)) == 0
        assert session.search(text="+e-mai*", k=n).ids == ["mail"]
        assert "mail" not in session.search(text="word -e-mai*", k=n + 1).ids
        assert len(session.search(text="word -x-pre*", k=n + 1)) == n + 1


def test_more_equal_scores_than_a_search_gives_are_in_the_order_of_ids() -> None:
    n = 10_500
    with opened(text_fields="text") as session:
        session.add_batch([f"r{n - row:05}" for row in range(n)], None, [{"text": "word"}] * n)
        assert session.search(text="word", k=3).ids == ["r00001", "r00002", "r00003"]
        filtered = session.search(text="word", k=2, filter={"$id": {"$gte": "r00007"}})
        assert filtered.ids == ["r00007", "r00008"]


def test_lists_and_nested_fields_count_as_one_text(session: VectorDBSession) -> None:
    metadata = {"text": ["plum", "jam"], "note": {"tags": ["plum"]}}
    session.add_vectors([{"id": "g", "vector": None, "metadata": metadata}])
    hit = session.search(text="plum", k=1)[0]
    assert (hit.id, hit.vector_score, hit.distance) == ("g", None, None)
    # No phrase reaches over the end of a text.
    assert session.search(text='"plum jam"', k=1).ids == []
    assert session.search(VECTORS[0], 10, text="plum").ids[0] == "g"


def test_what_each_side_gave_stands_in_the_hit(session: VectorDBSession) -> None:
    found = session.search(VECTORS[3], 10, text="apple")
    assert found.plan == "flat + words"
    by_id = {hit.id: hit for hit in found}
    alone = {hit.id: hit for hit in session.search(VECTORS[3], 10, threshold=None)}
    said = {hit.id: hit for hit in session.search(text="apple", k=10)}
    for id, hit in by_id.items():
        assert (hit.vector_score, hit.distance) == (alone[id].score, alone[id].distance)
        assert hit.text_score == (said[id].text_score if id in said else None)
        assert (hit.text_rank is None) == (id not in said)
    assert by_id["d"].vector_rank == 1
    assert sorted(rank for hit in found if (rank := hit.text_rank)) == [1, 2, 3]
    hit = alone["d"]
    assert (hit.vector_score, hit.text_score, hit.text_rank, hit.vector_rank) == (hit.score, None, None, None)
    assert found[0].to_dict().keys() >= {"text_score", "vector_score", "text_rank", "vector_rank", "highlights"}


@pytest.mark.parametrize("fusion", ["excess", "rrf", "weighted"])
def test_every_fusion_scores_in_the_unit_interval(session: VectorDBSession, fusion: Any) -> None:
    found = session.search(VECTORS[0], 10, text="red apple", fusion=fusion)
    assert len(found) == 6
    assert found.ids[0] == "a"  # the best on both sides
    assert found[0].score == pytest.approx(1.0)
    assert all(0.0 <= hit.score <= 1.0 for hit in found)


def test_alpha_is_the_share_of_the_vector(session: VectorDBSession) -> None:
    by_vector = session.search(VECTORS[3], 10, text="apple", fusion="weighted", alpha=1.0)
    assert by_vector.ids[:1] == ["d"]
    by_words = session.search(VECTORS[3], 10, text="apple", fusion="weighted", alpha=0.0)
    assert by_words.ids[0] == "e"


def test_the_default_threshold_does_not_apply_and_another_does(session: VectorDBSession) -> None:
    assert len(session.search(-VECTORS[0], 10, text="apple")) == 6
    found = session.search(VECTORS[0], 10, text="red apple", threshold=0.5)
    assert all(hit.score >= 0.5 for hit in found)
    assert len(found) + found.below_threshold == 6
    with opened(text_fields="text", default_threshold=0.99) as strict:
        strict.add_batch(list(FRUIT), VECTORS, [{"text": text} for text in FRUIT.values()])
        assert len(strict.search(text="apple", k=10)) == 3


def test_k_hits_come_whenever_k_rows_match_either_side() -> None:
    rng = np.random.default_rng(1)
    with opened(text_fields="text") as session:
        n = 700
        session.add_batch(
            [f"v{i:04}" for i in range(n)], rng.standard_normal((n, 4)), [{"text": "other"} for _ in range(n)]
        )
        session.add_batch([f"w{i:04}" for i in range(n)], None, [{"text": "word"} for _ in range(n)])
        for k in (1, 60, 300, 1_000, 1_400):
            found = session.search(rng.standard_normal(4), k, text="word")
            assert len(found) == k
            assert len(set(found.ids)) == k
        assert len(session.search(text="word", k=900)) == n
        # Of equal scores those with the first ids.
        assert session.search(text="word", k=5).ids == [f"w{i:04}" for i in range(5)]


def test_a_batch_takes_one_text_or_one_for_each_query(session: VectorDBSession) -> None:
    each = session.search_batch(VECTORS[:2], 3, text=["apple", "red"])
    assert each == [session.search(VECTORS[0], 3, text="apple"), session.search(VECTORS[1], 3, text="red")]
    both = session.search_batch(VECTORS[:2], 3, text="apple")
    assert both == [session.search(vector, 3, text="apple") for vector in VECTORS[:2]]
    alone = session.search_batch(text=["apple", "red", "plum"], k=3)
    assert alone == [session.search(text=text, k=3) for text in ("apple", "red", "plum")]
    assert session.search_batch(np.empty((0, 4), dtype=np.float32), 3, text="apple") == []
    with pytest.raises(InvalidInputError, match="text must be one text or 3 of them"):
        session.search_batch(VECTORS[:3], 3, text=["apple", "red"])
    with pytest.raises(InvalidInputError, match="text must be one text or 1 of them"):
        session.search(VECTORS[0], 3, text=["apple", "red"])


def test_mmr_takes_rows_without_a_vector(session: VectorDBSession) -> None:
    session.add_vectors([{"id": "g", "vector": None, "metadata": {"text": "apple"}}])
    found = session.search(VECTORS[0], 4, text="apple red", mmr=0.5)
    assert len(found) == 4
    assert found.ids[0] == session.search(VECTORS[0], 1, text="apple red").ids[0]
    assert all(hit.vector is None for hit in found)
    shown = session.search(VECTORS[0], 7, text="apple red", include_vectors=True)
    assert {hit.id for hit in shown if hit.vector is None} == {"g"}


@pytest.mark.parametrize("fusion", ["excess", "rrf", "weighted"])
def test_a_stream_begins_as_a_search_and_has_every_row(fusion: Any) -> None:
    rng = np.random.default_rng(3)
    with opened(text_fields="text") as session:
        n = 400
        texts = [" ".join(f"w{m}" for m in rng.integers(0, 9, 5)) for _ in range(n)]
        session.add_batch([f"v{i:03}" for i in range(n)], rng.standard_normal((n, 4)), [{"text": t} for t in texts])
        session.add_batch([f"x{i:03}" for i in range(n)], None, [{"text": f"other w{i % 9}"} for i in range(n)])
        query = rng.standard_normal(4)
        streamed = list(session.search_stream(query, text="w1 w5", fusion=fusion))
        found = session.search(query, 50, text="w1 w5", fusion=fusion, exact=True)
        assert [(hit.id, hit.score) for hit in streamed[:50]] == [(hit.id, hit.score) for hit in found]
        ids = [hit.id for hit in streamed]
        assert len(set(ids)) == len(ids) == sum(not id.startswith("x") or int(id[1:]) % 9 in (1, 5) for id in ids)
        assert len(ids) == n + sum(i % 9 in (1, 5) for i in range(n))
        scores = [hit.score for hit in streamed]
        assert scores == sorted(scores, reverse=True)
        by_words = list(session.search_stream(text="+w1 w5 -w2", threshold=0.3, filter={"$id": {"$startsWith": "v"}}))
        assert by_words == list(
            session.search(text="+w1 w5 -w2", k=n, threshold=0.3, filter={"$id": {"$startsWith": "v"}})
        )
        stream = session.search_stream(query, text="w1", highlight=True)
        first = next(stream)
        assert first.metadata["text"]
        session.delete(ids[600:])
        session.vacuum()
        rest = [hit.id for hit in stream]
        assert len({first.id, *rest}) == len(rest) + 1
        assert not set(rest[511:]) & set(ids[600:])


def test_a_reranker_gets_the_text_and_the_hits_of_both_sides(session: VectorDBSession) -> None:
    asked: list[Any] = []

    def rerank(query: Any, hits: Any) -> list[float]:
        asked.append(query)
        return [float(len(hit.metadata["text"])) for hit in hits]

    found = session.search(VECTORS[0], 2, text="apple", rerank=rerank)
    assert found.ids == ["c", "e"]
    assert found[1].text_score == session.search(text="apple", k=1)[0].text_score
    assert [len(one) for one in session.search_batch(text=["apple", "red"], k=2, rerank=rerank)] == [2, 2]
    assert asked == ["apple", "apple", "red"]


def first_groups(stream: list[Any], k: int, size: int) -> list[tuple[str, list[str]]]:
    """The first groups of hits in order, by a plain loop."""
    found: dict[str, list[str]] = {}
    for hit in stream:
        group = hit.metadata.get("of", [])
        for one in sorted(set(group)) if isinstance(group, list) else [group]:
            found.setdefault(one, []).append(hit.id)
    return [(group, ids[:size]) for group, ids in list(found.items())[:k]]


@pytest.mark.parametrize("n", [90, 1_200])
@pytest.mark.parametrize("by_vector", [True, False])
def test_groups_are_those_of_all_rows_in_order(n: int, by_vector: bool) -> None:
    rng = np.random.default_rng(n)
    groups: list[Any] = [["a", "b"], ["b"], "a", "c", *(f"g{m % 40}" for m in range(60))]
    with opened(text_fields="text") as session:
        # Most of the rows that are near, and that say w0, are of few groups.
        of = [groups[int(m)] if m < len(groups) else None for m in rng.integers(0, 80, n)]
        rows = [
            {"text": " ".join(f"w{m}" for m in rng.integers(0, 9, 4)), **({} if one is None else {"of": one})}
            for one in of
        ]
        session.add_batch([f"r{row:04}" for row in range(n)], rng.standard_normal((n, 4)), rows)
        session.add_batch(["only words"], None, [{"text": "w0 w1 w2", "of": "late"}])
        query = rng.standard_normal(4) if by_vector else None
        for text, k, size in (("w0", 3, 2), ("+w1 -w2", 7, 4), ("w3 w4", 200, 1), ("plum", 2, 1)):
            found = session.search(query, k, text=text, group_by="of", group_size=size)
            stream = list(session.search_stream(query, text=text))
            expected = first_groups(stream, k, size)
            if by_vector and n > 100:
                # A stream's scores are of the best 100 rows of each side; groups take deeper sides.
                assert len(found.groups) == len(expected)
                assert {one.value for one in found.groups} <= {one for one, _ in first_groups(stream, n, 1)}
                assert [len(one.hits) for one in found.groups] == [
                    min(size, len(dict(first_groups(stream, n, n))[one.value])) for one in found.groups
                ]
            else:
                assert [(one.value, [hit.id for hit in one.hits]) for one in found.groups] == expected
            assert [hit for one in found.groups for hit in one.hits] == list(found)
            best = [one.hits[0].score for one in found.groups]
            assert best == sorted(best, reverse=True)
        assert session.search_batch([query] * 2 if by_vector else None, 3, text=["w0", "w1"], group_by="of")[0] == (
            session.search(query, 3, text="w0", group_by="of")
        )
        above = session.search(query, 5, text="w0 w1", group_by="of", threshold=0.3, include_vectors=True)
        assert all(hit.score >= 0.3 for hit in above)
        where = {"of": {"$in": ["a", "c"]}}
        filtered = session.search(query, 5, text="w0 -w1", group_by="of", filter=where, highlight=True)
        assert {one.value for one in filtered.groups} <= {"a", "b", "c"}
        assert filtered[0].highlights is not None


def test_filters_and_recall_targets_hold(session: VectorDBSession) -> None:
    found = session.search(VECTORS[0], 10, text="apple", filter={"n": {"$gte": 2}}, recall_target=0.9)
    assert sorted(found.ids) == list("cdef")
    assert found.plan == "filtered exact + words"
    assert session.search(text="apple", k=10, filter={"n": {"$lt": 2}}).ids == ["b", "a"]


def test_highlights_are_places_in_the_texts(session: VectorDBSession) -> None:
    session.update_metadata("d", {"text": ["no", "Red apples, RED!"], "note": {"tags": "red"}})
    (hit,) = session.search(text="+red apple* -wine -pie -sky", k=5, highlight=True)
    assert [tuple(place) for place in hit.highlights or []] == [
        ("text", 1, 0, 3),
        ("text", 1, 4, 10),
        ("text", 1, 12, 15),
        ("note.tags", 0, 0, 3),
    ]
    assert session.search(text="red", k=1)[0].highlights is None


def test_a_quoted_word_is_highlighted_in_that_form_alone() -> None:
    pytest.importorskip("Stemmer")
    with opened(text_fields="text", text_language="english") as session:
        session.add_vectors([{"id": "a", "vector": None, "metadata": {"text": "sky and skies"}}])
        found = {text: session.search(text=text, k=1, highlight=True)[0].highlights for text in ("sky", '"sky"', "sk*")}
        places = {text: [tuple(place)[2:] for place in of or []] for text, of in found.items()}
        assert places == {"sky": [(0, 3), (8, 13)], '"sky"': [(0, 3)], "sk*": [(0, 3), (8, 13)]}


# ---- settings


def test_a_search_with_text_needs_a_text_index() -> None:
    with opened() as session:
        session.add_batch(["a"], [[1.0, 0.0]], [{"text": "red"}])
        for query in (None, [1.0, 0.0]):
            with pytest.raises(InvalidInputError, match="no text fields"):
                session.search(query, 1, text="red")
        session.set_text_fields("text")
        assert session.search(text="red", k=1).ids == ["a"]
        session.set_text_fields(None)
        with pytest.raises(InvalidInputError, match="no text fields"):
            session.search(text="red", k=1)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"text": 1}, "text must be a string"),
        ({"text": b"a"}, "text must be a string"),
        ({"text": ["a", 1]}, "text must be a string"),
        ({"fusion": "rrf"}, "fusion has no meaning without text"),
        ({"alpha": 0.5}, "alpha has no meaning without text"),
        ({"highlight": True}, "highlight has no meaning without text"),
        ({"text": "a", "fusion": "sum"}, "fusion must be one of excess, rrf, weighted"),
        ({"text": "a", "alpha": 0.5}, "leave alpha out"),
        ({"text": "a", "fusion": "weighted", "alpha": 2}, "alpha must be None or a number"),
        ({"text": "a", "highlight": 1}, "highlight must be True or False"),
        ({"text": "a" * 70_000}, "at most 65536 characters"),
        ({"txet": "a"}, "did you mean text"),
    ],
)
def test_wrong_options_are_refused(session: VectorDBSession, fields: Any, match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        session.search(VECTORS[0], 3, **fields)


def test_a_search_needs_a_vector_or_a_text(session: VectorDBSession) -> None:
    with pytest.raises(InvalidInputError, match="a query, a text or both"):
        session.search(k=3)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"text_fields": 1}, "text_fields must be paths"),
        ({"text_fields": ["a", 1]}, "text_fields: a field must be a string"),
        ({"text_fields": ["a", "a"]}, "names a field twice"),
        ({"text_fields": ["a..b"]}, "a step of the path is empty"),
        ({"text_fields": [str(n) for n in range(20)]}, "more than 16 paths"),
        ({"text_language": "english"}, "no meaning without text_fields"),
        ({"text_stop_words": ["a"]}, "no meaning without text_fields"),
        ({"text_fields": "a", "text_k1": -1}, "text_k1 must be None or a number from 0 to 1000"),
        ({"text_fields": "a", "text_b": 1.5}, "text_b must be None or a number from 0 to 1"),
        ({"text_fields": "a", "text_language": 1}, "text_language must be the name"),
        ({"text_fields": "a", "text_stop_words": True}, "stop_words=True needs a language"),
        ({"text_fields": "$id"}, "text_fields: a text index takes fields of metadata"),
        ({"text_fields": "a", "text_stop_words": "the"}, "text_stop_words must be"),
        ({"text_fields": "a", "text_stop_words": [1]}, "text_stop_words must be"),
    ],
)
def test_wrong_settings_are_refused(fields: Any, match: str) -> None:
    with pytest.raises(InvalidConfigError, match=match) as caught:
        opened(**fields)
    assert str(caught.value.details["field"]).startswith("text_")
    names = {name.removeprefix("text_"): value for name, value in fields.items()}
    with opened() as session, pytest.raises(InvalidInputError, match=match):
        session.set_text_fields(names.pop("fields", None), **names)


def test_an_unknown_language_is_the_callers_error() -> None:
    pytest.importorskip("Stemmer")
    test_wrong_settings_are_refused({"text_fields": "a", "text_language": "klingon"}, "no stemmer for the language")


def test_stop_words_are_left_out_with_and_without_a_language() -> None:
    with opened(text_fields="text", text_stop_words=["red", "Green"]) as session:
        session.add_batch(list(FRUIT), VECTORS, [{"text": text} for text in FRUIT.values()])
        assert session.search(text="red green", k=9).ids == []
        assert sorted(session.search(text="red apple", k=9).ids) == list("abe")
        assert session.search(text='"red apple red pie"', k=9).ids == []
        assert session.search(text='"red apple pie"', k=9).ids == ["a"]


def test_a_language_finds_other_forms_of_a_word() -> None:
    pytest.importorskip("Stemmer")
    with opened(text_fields="text", text_language="english") as session:
        session.add_batch(list(FRUIT), VECTORS, [{"text": text} for text in FRUIT.values()])
        assert sorted(session.search(text="apples", k=9).ids) == list("abe")
        assert session.search(text="+skies", k=9).ids == ["c"]
        assert session.search(text='"skies"', k=9).ids == []
        assert session.search(text="and", k=9).ids == []  # a stop word
        (hit,) = session.search(text="+skies", k=9, highlight=True)
        assert [tuple(place) for place in hit.highlights or []] == [("text", 0, 5, 8)]


def test_a_refused_add_leaves_the_words_as_they_were(session: VectorDBSession) -> None:
    added = {"id": "x", "vector": VECTORS[0], "metadata": {"text": "plum"}}
    with pytest.raises(ConflictError):
        session.add_vectors([added, {"id": "a", "vector": None}])
    with pytest.raises(InvalidInputError):
        session.add_vectors([{"id": "x", "vector": [1.0], "metadata": {"text": "plum"}}])
    assert session.search(text="plum", k=3).ids == []
    session.set_schema({"text": "String"})
    with pytest.raises(InvalidInputError):
        session.update_metadata("a", {"text": ["plum"]})
    assert session.search(text="plum", k=3).ids == []
    assert len(session.search(text="apple", k=9)) == 3


def test_the_words_count_for_the_budget(session: VectorDBSession) -> None:
    stats = session.get_stats()
    assert stats.memory_bytes["text"] > 0
    assert stats.plans["words"] == 0
    session.search(text="apple", k=1)
    assert session.get_stats().plans["words"] == 1
    texts = [" ".join(f"word{n}x{m}" for m in range(100)) for n in range(1_000)]
    with opened(memory_budget_mb=6) as plain, opened(memory_budget_mb=6, text_fields="text") as tight:
        plain.add_batch([str(n) for n in range(1_000)], None, [{"text": text} for text in texts])
        with pytest.raises(MemoryBudgetExceededError):
            tight.add_batch([str(n) for n in range(1_000)], None, [{"text": text} for text in texts])
        assert tight.count() == 0
        with pytest.raises(MemoryBudgetExceededError):
            plain.set_text_fields("text")
        assert plain.count() == 1_000


@pytest.mark.parametrize("rows", [5_000, 1])
def test_texts_whose_words_repeat_need_less_of_the_budget_than_any_texts(rows: int) -> None:
    text = " ".join(f"word{n % 5_000}" for n in range(100_000))
    size = len(text) // rows
    metadata = [{"text": text[n * size : (n + 1) * size]} for n in range(rows)]
    ids = [str(n) for n in range(rows)]
    with opened(memory_budget_mb=24, text_fields="text") as session, opened(memory_budget_mb=24) as plain:
        session.add_batch(ids, None, metadata)
        plain.add_batch(ids, None, metadata)
        plain.set_text_fields("text")
        assert session.search(text="word77", k=1).ids == plain.search(text="word77", k=1).ids != []


# ---- versions


ROWS, DIM = 3_000, 64


def filled(uri: str, **fields: Any) -> VectorDBSession:
    """A session with texts of some hundred words, so that a text index has several parts."""
    rng = np.random.default_rng(9)
    chosen = rng.integers(0, 4_000, (ROWS, 12)) // rng.integers(1, 40, (ROWS, 12))
    texts = [" ".join(f"w{n}" for n in row) for row in chosen]
    session = opened(uri, text_fields="text", **fields)
    times = 1_700_000_000.0 + np.arange(ROWS)
    middles = np.random.default_rng(8).standard_normal((60, DIM)) * 1.5
    vectors = (middles[rng.integers(0, 60, ROWS)] + rng.standard_normal((ROWS, DIM))).astype(np.float32)
    session.add_batch([f"row-{n:05}" for n in range(ROWS)], vectors, [{"text": text} for text in texts], times)
    return session


def answers(session: VectorDBSession, with_vectors: bool = True) -> list[Any]:
    rng = np.random.default_rng(10)
    asked = ["w1 w50 w700", '"w1 w2"', "+w3 -w1 w9", "w12*", "w3999 w2 -w1*"]
    found: list[Any] = [session.search(text=text, k=20) for text in asked]
    vectors = rng.standard_normal((len(asked), DIM))
    if with_vectors:
        found += [session.search(vectors[n], 20, text=text, exact=True) for n, text in enumerate(asked)]
    return [[(hit.id, hit.score, hit.text_score) for hit in one] for one in found]


def test_a_version_brings_its_text_index(tmp_path: Path) -> None:
    with filled(tmp_path.as_uri()) as session:
        before = answers(session)
        cid = session.save_to_s5()
        assert answers(session) == before
        report = session.verify(cid)
        assert report.rows == ROWS
    with opened(tmp_path.as_uri()) as session:
        session.load_user_vectors(cid, lazy_load=False)
        assert answers(session) == before
        session.add_vectors([{"id": "new", "vector": None, "metadata": {"text": "w3999 unheard"}}])
        assert session.search(text="unheard", k=3).ids == ["new"]
    with (
        pytest.raises(InvalidConfigError, match="was asked for, and the saved index has"),
        opened(tmp_path.as_uri(), text_fields="title") as session,
    ):
        session.load_user_vectors(cid)


def test_words_are_found_before_a_version_is_downloaded(tmp_path: Path) -> None:
    grouped: dict[str, Any] = {"text": "w1 w50 -w700", "k": 7, "group_by": "text", "filter": {"text": {"$ne": "w1"}}}
    with filled("memory:") as session:
        expected = answers(session, False)
        groups = session.search(**grouped)
    with patch.object(load_module, "_LAZY_BYTES_MIN", 0), patch.object(text_module, "_TEXT_CHUNK_BYTES", 4096):
        with filled(tmp_path.as_uri()) as session:
            session.save_to_s5()
        with opened(tmp_path.as_uri()) as session:
            session.load_user_vectors(become_whole=False)
            found = session.search(text="w1 w50 w700", k=20)
            assert found.plan == "words"
            assert [(hit.id, hit.score, hit.text_score) for hit in found] == expected[0]
            assert found.receipt.requests > 0
            again = session.search(text="w1 w50 w700", k=20)
            assert (again, again.receipt.requests) == (found, 0)
            assert answers(session, False) == expected
            first = session.search(**grouped)
            assert (first, first.groups, first.plan) == (groups, groups.groups, "words")
            again = session.search_batch(**{**grouped, "text": [grouped["text"]]})[0]
            assert (again, again.groups) == (groups, groups.groups)
            both = session.search(np.ones(DIM), 5, text="w1")
            assert both.plan == "lazy + words"
            assert len(both) == 5
            assert session.search_batch(np.ones((2, DIM)), 5, text=["w1", "w2"])[0] == both
            assert session.search(np.ones(DIM), 5, text="w1", mmr=0.5, include_vectors=True)[0].vector is not None
            row = session.get([both[0].id])[0]
            assert row is not None
            assert row.metadata == both[0].metadata


def test_signed_clauses_choose_the_candidates_of_a_version_in_a_store(tmp_path: Path) -> None:
    """The nearest rows of all have none of the text that is asked for, so they are no candidates."""
    rng = np.random.default_rng(11)
    middles = rng.standard_normal((60, DIM)) * 1.5
    vectors = (middles[rng.integers(0, 60, ROWS)] + rng.standard_normal((ROWS, DIM))).astype(np.float32)
    query = np.ones(DIM)
    far = set(np.argsort(vectors @ query / np.linalg.norm(vectors, axis=1))[:12].tolist())
    rows = [{"text": "final" if n in far else "draft blue"} for n in range(ROWS)]
    asked = ["-draft", "-draft zzz", "+final", "final -draft", "+final -blue"]
    with patch.object(load_module, "_LAZY_BYTES_MIN", 0):
        with opened(tmp_path.as_uri(), text_fields="text") as session:
            session.add_batch([f"row-{n:05}" for n in range(ROWS)], vectors, rows)
            session.save_to_s5()
            expected = [session.search(query, 10, text=text, exact=True) for text in asked]
        with opened(tmp_path.as_uri()) as session:
            session.load_user_vectors(become_whole=False)
            for text, whole in zip(asked, expected, strict=True):
                found = session.search(query, 10, text=text)
                assert found.plan == "lazy + words"
                assert len(found) == 10, text
                assert found.ids == whole.ids, text
                assert [hit.vector_rank for hit in found] == [hit.vector_rank for hit in whole], text
            batch = session.search_batch(np.ones((len(asked), DIM)), 10, text=asked)
            assert [one.ids for one in batch] == [one.ids for one in expected]


def test_equal_histories_have_equal_versions() -> None:
    cids = set()
    for threads in (1, 3):
        with filled(f"memory:{uuid.uuid4()}", threads=threads) as session:
            session.delete([f"row-{n:05}" for n in range(0, ROWS, 7)])
            cids.add(session.save_to_s5())
            session.vacuum()
            cids.add(session.save_to_s5())
    assert len(cids) == 2


def test_a_save_of_few_changes_keeps_most_parts(tmp_path: Path) -> None:
    with filled(tmp_path.as_uri()) as session:
        before = Objects(tmp_path).manifest(session.save_to_s5())
        session.update_metadata("row-00007", {"text": "w1 changed"})
        after = Objects(tmp_path).manifest(session.save_to_s5())
    of_text = [{part.hash for part in one.parts if part.name.startswith("text.")} for one in (before, after)]
    assert len(of_text[0] & of_text[1]) >= len(of_text[0]) - 1
    assert before.text is not None


def test_a_save_after_one_percent_of_the_rows_stores_at_most_twice_their_postings(tmp_path: Path) -> None:
    """What a save stores is compressed; postings count as they are in memory, documents and places."""
    rng, n = np.random.default_rng(12), 20_000
    ranks = np.minimum(rng.pareto(0.9, (n, 12)) * 8, 30_000).astype(int)
    texts = [{"text": " ".join(f"{m * 2654435761 % 2**32:x}"[:7] for m in row)} for row in ranks.tolist()]
    with opened(tmp_path.as_uri(), text_fields="text") as session:
        session.add_batch([f"row-{row:05}" for row in range(n)], None, texts)
        before = Objects(tmp_path).manifest(session.save_to_s5()).parts
        changed = range(0, n, 100)
        session.add_batch([f"row-{row:05}" for row in changed], None, texts[:200], on_conflict="replace")
        cid = session.save_to_s5()
    files = Objects(tmp_path).files(cid)
    parts = [part for part in Objects(tmp_path).manifest(cid).parts if part.name.startswith("text.")]
    held = {part.hash for part in before}
    stored = [files[part.name].size for part in parts if part.hash not in held]
    postings = sum(part.size for part in before if part.name.startswith(("text.postings", "text.positions")))
    assert len(stored) == 4
    assert sum(stored) <= 2 * postings * len(changed) / n


def parts_of(root: Path, cid: str) -> dict[str, bytes]:
    """The bytes of all parts, decrypted and decompressed."""
    objects, found = Objects(root), {}
    for record in objects.manifest(cid).parts:
        entry = objects.files(cid)[record.name]
        assert entry.encryption is not None
        raw = decrypt_static(entry.encryption.key, objects.blob(entry.hash).read_bytes(), entry.size)
        found[record.name] = zstd.decompress(raw) if record.codec == "zstd" else raw
    return found


def test_words_that_only_removed_rows_had_are_gone(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    with opened(tmp_path.as_uri(), text_fields="text", clock=lambda: now) as session:
        texts = {"kept": "common word", "deleted": "common xylophone", "replaced": "common zeppelin", "old": "quixotic"}
        session.add_vectors([{"id": id, "vector": None, "metadata": {"text": text}} for id, text in texts.items()])
        session.save_to_s5()
        session.delete(["deleted"])
        session.update_metadata("replaced", {"text": "common plum"})
        session.add_vectors([{"id": "old", "vector": None, "metadata": {"text": "plain"}}], on_conflict="replace")
        held = session.save_to_s5()
        with pytest.raises(ConflictError, match="vacuum"):
            session.share(held)
        session.vacuum()
        cid = session.save_to_s5()
        session.share(cid)
        assert session.get_stats().superseded_bytes == 0
    found = parts_of(tmp_path, cid)
    assert {name.rsplit(".", 1)[0] for name in found} >= {"text.head", "text.dictionary", "text.postings"}
    for secret in (b"xylophone", b"zeppelin", b"quixotic"):
        assert not any(secret in raw for raw in found.values())


def test_no_share_has_words_of_a_replaced_text(tmp_path: Path) -> None:
    with filled(tmp_path.as_uri()) as session:
        session.update_metadata("row-00007", {"text": "xylophone"})
        session.update_metadata("row-00007", {"text": "other"})
        cid = session.save_to_s5()
        assert session.get_stats().superseded_bytes > 0
        with pytest.raises(ConflictError, match="vacuum"):
            session.share(cid)
        session.vacuum()
        cid = session.save_to_s5()
        session.share(cid)
    assert not any(b"xylophone" in raw for raw in parts_of(tmp_path, cid).values())


def test_another_release_of_the_rules_for_words_is_refused_by_name(tmp_path: Path) -> None:
    with opened(tmp_path.as_uri(), text_fields="text") as session:
        session.add_vectors([{"id": "a", "vector": None, "metadata": {"text": "word"}}])
        with patch("fabstir_vectordb.text.analyzer.UNICODE_VERSION", "9.0.0"):
            cid = session.save_to_s5()
    with opened(tmp_path.as_uri()) as session:
        for call in (session.load_user_vectors, session.verify):
            with pytest.raises(StorageError, match=r"9\.0\.0"):
                call(cid)


@pytest.mark.parametrize("fields", [{}, {"text_fields": "text"}])
def test_texts_that_another_release_indexed_are_indexed_anew(tmp_path: Path, fields: dict[str, Any]) -> None:
    with opened(tmp_path.as_uri(), text_fields="text") as session:
        session.add_batch(list(FRUIT), VECTORS, [{"text": text} for text in FRUIT.values()])
        with patch("fabstir_vectordb.text.analyzer.UNICODE_VERSION", "9.0.0"):
            session.save_to_s5()
    with opened(tmp_path.as_uri(), **fields) as session:
        with pytest.raises(StorageError, match="rebuild_text=True"):
            session.load_user_vectors()
        session.load_user_vectors(rebuild_text=True)
        with pytest.raises(ConflictError, match="unsaved"):
            session.load_user_vectors()
        assert session.search(text="apple").ids == list("eba")
        later = session.save_to_s5()
    with opened(tmp_path.as_uri()) as session:
        session.load_user_vectors(later)
        assert session.search(text="apple").ids == list("eba")
        session.load_user_vectors(rebuild_text=True)
        assert session.search(text="apple").ids == list("eba")


def test_rebuilding_changes_nothing_where_there_is_no_text_index(tmp_path: Path) -> None:
    with opened(tmp_path.as_uri()) as session:
        session.add_batch(list(FRUIT), VECTORS)
        cid = session.save_to_s5()
        session.load_user_vectors(rebuild_text=True)
        assert session.save_to_s5() == cid


@pytest.mark.anyio
@pytest.mark.one_loop
async def test_the_asynchronous_twin_answers_the_same() -> None:
    async with AsyncSession.create(
        s5_portal="memory:", user_seed_phrase=PHRASE, session_id="test", text_fields="text"
    ) as session:
        await session.add_batch(list(FRUIT), VECTORS, [{"text": text} for text in FRUIT.values()])
        assert sorted((await session.search(text="apple", k=9)).ids) == list("abe")
        assert len(await session.search(VECTORS[0], 9, text="apple")) == 6
        await session.set_text_fields(["text"], k1=0.5, b=0)
        both = await session.search_batch(VECTORS[:2], 2, text="red")
        assert [len(one) for one in both] == [2, 2]
