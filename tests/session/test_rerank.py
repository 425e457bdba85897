"""Hits in the order of a caller's function: off the event loop, or awaited, over more candidates than hits."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from saving import rows, session_on

from fabstir_vectordb import F, InvalidInputError, RerankedResult, SearchResults, VectorDBSession, sync

pytestmark = pytest.mark.anyio

COUNT = 500
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reranking.md"


async def filled(**fields: Any) -> VectorDBSession:
    session = await session_on("memory:", **fields)
    metadata = [{"n": row, "doc": row // 4} for row in range(COUNT)]
    await session.add_batch([f"{row:03d}" for row in range(COUNT)], rows(COUNT), metadata)
    return session


def by_n(query: Any, hits: SearchResults) -> list[int]:
    return [hit.metadata["n"] for hit in hits]


async def stops(query: Any, hits: SearchResults) -> Any:
    return next(iter(()))


def returns_awaitable(service: Any) -> Any:
    """No coroutine function itself, but what it returns must be awaited."""

    def call(query: Any, hits: SearchResults) -> Any:
        return service(query, hits)

    return call


async def test_hits_are_the_best_candidates() -> None:
    query = rows(1, seed=3)[0]
    async with await filled() as session:
        candidates = await session.search(query, 50, threshold=None)
        seen: list[Any] = []

        def scored(given: Any, hits: SearchResults) -> Any:
            seen.append((threading.get_ident(), given.tolist(), hits.ids, hits.plan))
            return np.array(by_n(given, hits), dtype=np.float32)

        found = await session.search(query, 5, threshold=None, rerank=scored, rerank_k=50)
        assert seen == [(seen[0][0], query.tolist(), candidates.ids, candidates.plan)]
        assert seen[0][0] != threading.get_ident()
        best = sorted(candidates, key=lambda hit: -hit.metadata["n"])[:5]
        assert found.ids == [hit.id for hit in best]
        for hit, plain in zip(found, best, strict=True):
            assert isinstance(hit, RerankedResult)
            assert (hit.score, hit.distance, hit.metadata) == (plain.score, plain.distance, plain.metadata)
            assert hit.rerank_score == plain.metadata["n"]
            assert hit.to_dict()["rerank_score"] == hit.rerank_score
            assert "rerank_score=" in repr(hit)
            assert hit != plain
        await session.search(query, 5, threshold=None, rerank=scored)
        assert len(seen[1][2]) == 37
        await session.search(query, 100, threshold=None, rerank=scored)
        assert len(seen[2][2]) == 400
        assert (await session.search(query, 5, threshold=None, filter=F("n") < 3, rerank=scored)).ids == [
            "002",
            "001",
            "000",
        ]
        batch = await session.search_batch([query, -query], 5, threshold=None, rerank=scored, rerank_k=50)
        assert batch[0] == found
        assert seen[-1][1] == (-query).tolist()
        cut = await session.search(query, 5, threshold=candidates[9].score, rerank=scored, rerank_k=50)
        assert cut.ids == [hit.id for hit in sorted(candidates[:10], key=lambda hit: -hit.metadata["n"])[:5]]
        assert await session.search(query, 5, filter={"n": -1}, rerank=lambda query, hits: 1 // 0) == SearchResults(
            [], 0, "flat"
        )


async def test_a_coroutine_function_is_awaited() -> None:
    class Service:
        async def __call__(self, query: Any, hits: SearchResults) -> list[int]:
            await anyio.sleep(0.01)
            assert threading.current_thread() is threading.main_thread()
            return by_n(query, hits)

    async def service(query: Any, hits: SearchResults) -> list[int]:
        return await Service()(query, hits)

    query = rows(1, seed=3)[0]
    async with await filled() as session:
        expected = await session.search(query, 5, threshold=None, rerank=by_n)
        for rerank in (service, Service(), returns_awaitable(service)):
            assert await session.search(query, 5, threshold=None, rerank=rerank) == expected


async def test_groups_count_by_their_best_hit() -> None:
    query = rows(1, seed=3)[0]
    options: dict[str, Any] = {"threshold": None, "group_by": "doc", "group_size": 2}
    async with await filled() as session:
        candidates = await session.search(query, 20, **options)
        found = await session.search(query, 5, rerank=by_n, rerank_k=20, **options)
        best = sorted(candidates.groups, key=lambda group: -max(hit.metadata["n"] for hit in group.hits))[:5]
        assert [group.value for group in found.groups] == [group.value for group in best]
        for group in found.groups:
            assert [hit.metadata["n"] for hit in group.hits] == sorted(
                (hit.metadata["n"] for hit in group.hits), reverse=True
            )
        assert [hit.id for group in found.groups for hit in group.hits] == found.ids


def test_equal_scores_keep_the_order_of_the_search() -> None:
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase="x", session_id="x") as session:
        session.add_batch([str(n) for n in range(30)], rows(30))
        query = rows(1, seed=3)[0]
        plain = session.search(query, 10, threshold=None)
        thread = threading.get_ident()

        def same(query: Any, hits: SearchResults) -> Any:
            assert threading.get_ident() == thread  # a session without async has no other
            return np.zeros((len(hits), 1))

        assert session.search(query, 10, threshold=None, rerank=same).ids == plain.ids
        assert session.search_batch([query], 10, threshold=None, rerank=same)[0].ids == plain.ids

        async def service(query: Any, hits: SearchResults) -> list[float]:
            return [0.0] * len(hits)

        big = session.search(
            query, 10, threshold=None, rerank=lambda query, hits: [2**70 + n for n in range(len(hits))]
        )
        assert big.ids == plain.ids  # as float64 these are equal
        with pytest.raises(InvalidInputError, match="rerank raised StopIteration"):
            session.search(query, 10, threshold=None, rerank=lambda query, hits: next(iter(())))
        for rerank in (service, returns_awaitable(service)):
            with pytest.raises(InvalidInputError, match="must be a plain function in a session without async"):
                session.search(query, 10, threshold=None, rerank=rerank)
        session.clear()


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rerank": 3}, "must be a function of query and hits, got int"),
        ({"rerank": by_n, "rerank_k": 3}, "at least k: got 3 with k = 5"),
        ({"rerank": by_n, "rerank_k": 0}, "rerank_k must be None or an integer between 1"),
        ({"rerank": by_n, "rerank_k": True}, "rerank_k must be None or an integer between 1"),
        ({"rerank": by_n, "rerank_k": 10_001}, "rerank_k must be None or an integer between 1 and 10000"),
        ({"rerank": by_n, "rerank_k": 5_000, "group_by": "doc", "group_size": 100}, "between 1 and 1000"),
        ({"rerank_k": 30}, "give rerank, too"),
        ({"rerank": by_n, "mmr": 0.5}, "give one of them"),
        ({"options": {"rerank": by_n, "mmr": 0.5}}, "give one of them"),
        ({"rerank": lambda query, hits: [1.0]}, r"one number for each of the 37 hits, got an array of shape \(1,\)"),
        ({"rerank": lambda query, hits: 1.0}, "one number for each of the 37 hits"),
        ({"rerank": lambda query, hits: None}, "one number for each|no numbers"),
        ({"rerank": lambda query, hits: ["a"] * len(hits)}, "are no numbers"),
        ({"rerank": lambda query, hits: ["1.5"] * len(hits)}, "are no numbers"),
        ({"rerank": lambda query, hits: [1.0] * (len(hits) - 1) + [b"2"]}, "are no numbers"),
        ({"rerank": lambda query, hits: np.array([1.0, "2"] * len(hits), dtype=object)[: len(hits)]}, "are no numbers"),
        ({"rerank": lambda query, hits: [1 + 2j] * len(hits)}, "are no numbers"),
        ({"rerank": lambda query, hits: np.ones(len(hits), dtype=np.complex64)}, "are no numbers"),
        ({"rerank": lambda query, hits: np.array([1, 1j] * len(hits), dtype=object)[: len(hits)]}, "are no numbers"),
        ({"rerank": lambda query, hits: np.zeros(len(hits), dtype="datetime64[s]")}, "are no numbers"),
        ({"rerank": lambda query, hits: next(iter(()))}, "rerank raised StopIteration"),
        ({"rerank": stops}, "rerank raised StopIteration"),
        ({"rerank": lambda query, hits: [[1, 2]] * len(hits)}, "one number for each"),
        ({"rerank": lambda query, hits: [float("nan")] * len(hits)}, "finite numbers, got nan"),
        ({"rerank": lambda query, hits: [10**400] * len(hits)}, "are no numbers|finite"),
    ],
)
async def test_wrong_functions_and_scores_are_refused(options: dict[str, Any], message: str) -> None:
    async with await filled() as session:
        with pytest.raises(InvalidInputError, match=message):
            await session.search(
                rows(1)[0], 5, **{"threshold": None, **options} if "options" not in options else options
            )
        with pytest.raises(ZeroDivisionError):
            await session.search(rows(1)[0], 5, threshold=None, rerank=lambda query, hits: 1 // 0)


# ---- the example of the documentation

BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


class FakeEmbedder:
    def __init__(self, name: str) -> None:
        assert name == "all-MiniLM-L6-v2"

    def encode(self, texts: Any) -> Any:
        vectors = np.array(
            [[len(text), 1.0] for text in ([texts] if isinstance(texts, str) else texts)], dtype=np.float32
        )
        return vectors[0] if isinstance(texts, str) else vectors


class FakeEncoder:
    def __init__(self, name: str) -> None:
        assert name.startswith("cross-encoder/")

    def predict(self, pairs: list[tuple[str, str]]) -> Any:
        return np.array([-len(text) for _, text in pairs], dtype=np.float32)


def test_the_example_runs_against_a_fake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = types.ModuleType("sentence_transformers")
    vars(fake).update(SentenceTransformer=FakeEmbedder, CrossEncoder=FakeEncoder)
    monkeypatch.setitem(sys.modules, "sentence_transformers", fake)
    assert len(BLOCKS) == 2
    for number, block in enumerate(BLOCKS):
        (tmp_path / f"block_{number}.py").write_text(block, encoding="utf-8")
        runpy.run_path(str(tmp_path / f"block_{number}.py"))
    assert capsys.readouterr().out.splitlines() == ["-13.0 doc1 roses are red", "-16.0 doc2 violets are blue"]


@pytest.mark.long  # mypy reads numpy and the package first
def test_the_example_has_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    for number, block in enumerate(BLOCKS):
        (tmp_path / f"block_{number}.py").write_text(block, encoding="utf-8")
    blocks = [str(tmp_path / f"block_{number}.py") for number in range(len(BLOCKS))]
    options = [
        "--strict",
        "--ignore-missing-imports",
        "--follow-imports=silent",
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *blocks],
        cwd=PAGE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
