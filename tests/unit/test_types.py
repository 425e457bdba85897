"""Results: they compare by value, become JSON, and show themselves without doing harm or filling the screen."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import json
import pickle
import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import httpx
import numpy as np
import pytest

import fabstir_vectordb
from fabstir_vectordb import (
    AddResult,
    AddTextsResult,
    CalibrationPoint,
    DeleteResult,
    EmbedderInfo,
    FacetCount,
    FieldInfo,
    FieldType,
    FusedResult,
    Highlight,
    IndexSide,
    OptimizeProgress,
    OptimizeResult,
    Progress,
    PruneReport,
    RecallPoint,
    RecallReport,
    Receipt,
    RerankedResult,
    Row,
    ScanPage,
    SearchGroup,
    SearchResult,
    SearchResults,
    SessionStats,
    UpdateResult,
    VacuumStats,
    VectorInput,
    VerifyReport,
    VersionInfo,
)
from fabstir_vectordb.display import Record

NOON = datetime(2024, 1, 31, 12, tzinfo=timezone(timedelta(hours=2)))
METADATA: dict[str, Any] = {
    "at": NOON,
    "day": NOON.date(),
    "key": uuid.UUID(int=1),
    "n": [1, 0.5, None, True],
    "é": "ß",
}
AS_JSON = {
    "at": "2024-01-31T12:00:00+02:00",
    "day": "2024-01-31",
    "key": "00000000-0000-0000-0000-000000000001",
    "n": [1, 0.5, None, True],
    "é": "ß",
}
VECTOR = np.arange(384, dtype=np.float32) / 4


def row(**fields: Any) -> Row:
    return Row(**{"id": "a", "vector": VECTOR.copy(), "metadata": dict(METADATA), "timestamp": 1.5, **fields})


def hit(**fields: Any) -> SearchResult:
    return SearchResult(
        **{"id": "a", "score": 0.9, "distance": 0.2, "metadata": dict(METADATA), "vector": VECTOR.copy(), **fields}
    )


def results(n: int = 3, **fields: Any) -> SearchResults:
    return SearchResults([hit(id=f"row {i}", **fields) for i in range(n)], 2, "graph")


POINT = RecallPoint(ef_search=64, nprobe=None, exact=False, recall=0.9, p50_us=1.0, p99_us=2.0, queries_per_s=3.0)
VERSION = VersionInfo(cid="u1", saved_at=1.0, revision=1, vector_count=2, deleted_count=0, refused=False, head=True)
RECORDS: list[Any] = [
    AddResult(1, 2, 3),
    CalibrationPoint(k=10, recall=0.9, ef_search=None),
    DeleteResult(1, ["a"]),
    FacetCount(NOON, 3),
    FieldInfo("at", 3, (FieldType("datetime", 3, NOON, NOON),)),
    FieldType("number", 3, 1, 2.5),
    IndexSide("hnsw", 1, 0, 0, ("a",)),
    OptimizeProgress("train", 1, 2),
    OptimizeResult(True, 3, VacuumStats(1, 2, 3)),
    Progress("parts", 1, 2, 3, 4, 5, 6, None),
    PruneReport(versions=[VERSION], blobs=1, bytes=2, blobs_deleted=0),
    POINT,
    RecallReport(k=10, sample=3, rows=4, default=POINT, points=(POINT, POINT)),
    Receipt(requests=1),
    SessionStats(
        vector_count=1, memory_usage_mb=0.5, index_type="flat", hnsw_vector_count=0, ivf_vector_count=0,
        deleted_count=0, without_vector_count=0, memory="default", memory_bytes={"rows": 5}, plans={"flat": 1},
        dirty=True, last_cid=None,
        recall_calibration=(CalibrationPoint(k=10, recall=0.9, ef_search=64),),
        default_search="usual",
        superseded_bytes=0,
        embedder=EmbedderInfo("m", 3),
    ),
    EmbedderInfo("m", 3),
    AddTextsResult(1, 2, 3, ["a"]),
    ScanPage((row(),), "gwEA", False),
    SearchGroup("doc", (hit(),)),
    UpdateResult(3, 1, ["a"]),
    VacuumStats(1, 2, 3),
    VerifyReport(cid="u1", parts=1, bytes=2, rows=3),
    VERSION,
]  # fmt: skip


def test_every_public_result_becomes_a_dict() -> None:
    offered = [getattr(fabstir_vectordb, name) for name in fabstir_vectordb.__all__]
    reranked, fused = RerankedResult(hit(), 3.5), FusedResult("a", 0.9, None, None, 2.5, 1, None)
    made = {type(record) for record in (*RECORDS, row(), hit(), results(), reranked, fused)}
    assert {kind for kind in offered if isinstance(kind, type) and hasattr(kind, "to_dict")} == made
    assert {kind for kind in offered if isinstance(kind, type) and issubclass(kind, Record)} <= made


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_reports_become_json_and_stay_dataclasses(record: Any) -> None:
    as_dict = record.to_dict()
    assert json.loads(json.dumps(as_dict)) == as_dict
    assert list(as_dict) == [field.name for field in dataclasses.fields(record)] == list(dataclasses.asdict(record))
    assert record == copy.deepcopy(record) == pickle.loads(pickle.dumps(record))
    assert type(record).__name__ in record._repr_html_()
    assert len(repr(record)) < 1_000


def test_rows_and_hits_become_json() -> None:
    for one in (row(), hit(), row(vector=None, metadata=None), hit(vector=None, metadata=None)):
        as_dict = one.to_dict()
        assert json.loads(json.dumps(as_dict)) == as_dict == dict(one) == {**one}  # type: ignore[call-overload]
        assert as_dict["vector"] == (None if one.vector is None else VECTOR.tolist())
        assert as_dict["metadata"] == (None if one.metadata is None else AS_JSON)
        assert one["id"] == "a"
        with pytest.raises(KeyError):
            one["nothing"]
        with pytest.raises(TypeError):
            iter(one)  # type: ignore[call-overload]
    found = results()
    assert found.ids == ["row 0", "row 1", "row 2"]
    assert found.to_dicts() == [one.to_dict() for one in found]
    assert found.to_dict() == {
        "hits": found.to_dicts(),
        "below_threshold": 2,
        "plan": "graph",
        "receipt": {"requests": 0, "bytes": 0, "cache_hits": 0},
    }
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    odd = hit(metadata={"x": float("nan"), "numbers": np.array([1.0, 2.0]), "int": np.int64(3)}).to_dict()
    assert odd["metadata"] == {"x": None, "numbers": [1.0, 2.0], "int": 3}


@pytest.mark.parametrize("make", [row, hit])
def test_rows_and_hits_compare_by_value(make: Any) -> None:
    assert make() == make()
    assert (make() != make()) is False
    assert hash(make()) == hash(make())
    assert make(vector=None) == make(vector=None)
    others = [make(id="b"), make(vector=VECTOR + 1), make(vector=VECTOR[1:]), make(vector=None)]
    others += [make(metadata=None), make(metadata={**METADATA, "n": 1}), 3, None, row() if make is hit else hit()]
    for other in others:
        assert make() != other
        assert other != make()
    assert len({make(), make(), make(id="b")}) == 2
    assert make() in [make(id="b"), make()]


def test_answers_compare_by_value() -> None:
    assert results() == results()
    assert hash(results()) == hash(results())
    assert results() != results(2)
    assert results() != results(score=0.5)
    assert results() != SearchResults(list(results()), 0, "graph")
    assert results() == SearchResults(list(results()), 2, "flat")  # how an answer was found is not what it is
    assert results() == tuple(results())
    assert results() != "results"


def test_inputs_compare_by_value() -> None:
    one, same = VectorInput("a", VECTOR, {"b": 1}), VectorInput("a", VECTOR.copy(), {"b": 1})
    assert one == same
    assert hash(one) == hash(same)
    assert one != VectorInput("a", VECTOR + 1, {"b": 1})
    assert one != VectorInput("a", None, {"b": 1})
    assert VectorInput("a", [1.0, 2.0]) == VectorInput("a", [1.0, 2.0])
    assert hit(metadata={"a": VECTOR}) == hit(metadata={"a": VECTOR.copy()})
    assert hit(metadata={"a": VECTOR}) != hit(metadata={"a": VECTOR + 1})
    assert "0.25" not in repr(one)


def test_an_answer_is_a_sequence_whose_slices_are_lists() -> None:
    found = results(5)
    assert [one.id for one in found[1:3]] == ["row 1", "row 2"]
    assert type(found[1:3]) is list
    assert found[-1].id == "row 4"
    assert [found.index(found[2]), found.count(found[2]), len(found)] == [2, 1, 5]
    assert bool(results(0)) is False
    for again in (copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert again == found
        assert (again.below_threshold, again.plan, again.receipt) == (2, "graph", Receipt())


def test_a_row_cannot_be_changed() -> None:
    one = row()
    with pytest.raises(AttributeError):
        one.id = "b"
    with pytest.raises(AttributeError):
        del one.id
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    match one:
        case Row(id, vector, metadata, timestamp, expires_at):
            assert (id, vector is one.vector, metadata, timestamp, expires_at) == ("a", True, METADATA, 1.5, None)


def test_no_repr_fills_the_screen() -> None:
    long = {"text": "x" * 100_000}
    for value in (row(metadata=long), hit(metadata=long), results(10_000), DeleteResult(10**4, ["id"] * 10**4)):
        assert len(repr(value)) < 600
    assert repr(row()).startswith("Row(id='a', vector=<384 numbers>, metadata={'at'")
    assert "… 9997 more" in repr(results(10_000))
    assert len(results(10_000)._repr_html_()) < 100_000


EVIL = "<script>alert('x')</script>&\"\""


def test_a_notebook_shows_strangers_texts_as_texts() -> None:
    pages = [
        results(2, metadata={EVIL: [EVIL]})._repr_html_(),
        SearchResults([hit(id=EVIL)], 0, "flat")._repr_html_(),
        row(id=EVIL, metadata={EVIL: EVIL})._repr_html_(),
        hit(metadata=EVIL)._repr_html_(),
        FacetCount(EVIL, 1)._repr_html_(),
        DeleteResult(1, [EVIL])._repr_html_(),
        PruneReport(versions=[dataclasses.replace(VERSION, cid=EVIL)], blobs=0, bytes=0, blobs_deleted=0)._repr_html_(),
    ]
    for page in pages:
        assert "<script" not in page
        assert "&lt;script&gt;" in page
    assert "384 numbers" in row()._repr_html_()
    assert "2024-01-31T12:00:00+02:00" in results()._repr_html_()
    report = next(record for record in RECORDS if isinstance(record, RecallReport))
    assert report._repr_html_().count("<tr>") == 5 + 3  # a table within the table


def test_a_web_framework_returns_them() -> None:
    encoders = pytest.importorskip("fastapi.encoders")
    for value in (row(), hit(), *results()):
        assert encoders.jsonable_encoder(value) == value.to_dict()
    assert encoders.jsonable_encoder(results()) == results().to_dicts()
    assert encoders.jsonable_encoder(results(0)) == []
    assert encoders.jsonable_encoder({"rows": [row(), None]}) == {"rows": [row().to_dict(), None]}
    for record in RECORDS:
        assert encoders.jsonable_encoder(record) == record.to_dict()


@pytest.mark.anyio
async def test_endpoints_of_a_web_framework_return_them() -> None:
    fastapi = pytest.importorskip("fastapi")
    app = fastapi.FastAPI()
    answers = {"results": results(), "row": row(), "rows": [row(), None], "records": RECORDS}

    @app.get("/{name}")
    async def read(name: str):  # type: ignore[no-untyped-def]
        return answers[name]

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        got = {name: (await client.get(f"/{name}")).json() for name in answers}
    assert got["results"] == results().to_dicts()
    assert got["row"] == row().to_dict()
    assert got["rows"] == [row().to_dict(), None]
    assert got["records"] == [record.to_dict() for record in RECORDS]


@pytest.mark.parametrize(
    ("name", "above"),
    [
        ("plot", ["types", "persist", "index"]),
        ("display", ["types", "persist", "index"]),
        ("types", ["persist", "index"]),
        ("metadata.values", ["metadata.arena", "metadata.columns", "metadata.path", "types"]),
    ],
)
def test_results_know_nothing_of_what_makes_them(name: str, above: list[str]) -> None:
    source = inspect.getsource(importlib.import_module(f"fabstir_vectordb.{name}"))
    assert not [module for module in above if f"fabstir_vectordb.{module}" in source]


def test_dates_without_a_time_stay_dates() -> None:
    assert FacetCount(date(2024, 1, 31), 1).to_dict() == {"value": "2024-01-31", "count": 1}
    assert FacetCount(datetime(2024, 1, 31, tzinfo=UTC), 1).to_dict()["value"] == "2024-01-31T00:00:00+00:00"


def test_a_hit_of_a_search_with_text_says_what_each_side_gave() -> None:
    fused = FusedResult("a", 0.9, None, None, 2.5, 1, None)
    fused.describe(bytearray(), [Highlight("text", 0, 1, 3)])
    assert fused.to_dict() == {
        **{"id": "a", "score": 0.9, "distance": None, "metadata": None, "vector": None, "vector_score": None},
        **{"text_score": 2.5, "vector_rank": None, "text_rank": 1, "highlights": [["text", 0, 1, 3]]},
    }
    again = pickle.loads(pickle.dumps(fused))
    assert again == fused
    assert hash(again) == hash(fused)
    assert repr(fused) == "FusedResult(id='a', score=0.9000, vector_score=None, text_score=2.5000)"
    reranked = RerankedResult(fused, 3.5)
    assert (reranked.text_score, reranked.text_rank, reranked.highlights) == (2.5, 1, fused.highlights)
    assert "distance=None" in repr(reranked)
    assert "None" in SearchResults([fused], 0, "words")._repr_html_()
