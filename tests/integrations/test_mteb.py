"""The search backend for MTEB, by its protocol, against a matrix product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fabstir_vectordb import InvalidConfigError, InvalidInputError, SessionError
from fabstir_vectordb.integrations.mteb import FabstirSearchIndex

RNG = np.random.default_rng(20_261_126)
CORPUS = RNG.standard_normal((300, 32))
QUERIES = RNG.standard_normal((7, 32))
IDS = [f"doc{number}" for number in range(300)]


def cosine(one: Any, other: Any) -> Any:
    lengths = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=1)
    return one @ other.T / lengths


def dot(one: Any, other: Any) -> Any:
    return one @ other.T


def nearness(one: Any, other: Any) -> Any:
    return -np.linalg.norm(one[:, None] - other[None], axis=2)


class Tensor:
    """What the backend needs of a tensor."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def detach(self) -> Tensor:
        return self

    cpu = detach

    def numpy(self) -> Any:
        return self._array


@pytest.fixture(params=[("cosine", cosine), ("dot", dot), ("l2", nearness)], ids=lambda param: param[0])
def backend(request: pytest.FixtureRequest) -> Iterator[tuple[FabstirSearchIndex, Any]]:
    metric, similarity = request.param
    with FabstirSearchIndex(metric=metric) as index:
        index.add_documents(CORPUS[:200], IDS[:200])
        index.add_documents(Tensor(CORPUS[200:]), IDS[200:])
        yield index, similarity


def test_documents_are_found_by_their_positions(backend: tuple[FabstirSearchIndex, Any]) -> None:
    index, similarity = backend
    exact = similarity(QUERIES, CORPUS)
    for k in (1, 10, 1_000):
        values, positions = index.search(QUERIES, k, similarity)
        for row, (found, near) in enumerate(zip(positions, values, strict=True)):
            assert found == np.argsort(-exact[row])[:k].tolist()
            assert near == pytest.approx(exact[row][found], abs=1e-4)


def test_given_documents_are_ordered(backend: tuple[FabstirSearchIndex, Any]) -> None:
    index, similarity = backend
    names = {row: f"q{row}" for row in range(7)}
    ranked = {f"q{row}": [IDS[place] for place in RNG.permutation(300)[:20]] for row in range(6)}
    values, positions = index.search(QUERIES, 5, similarity, ranked, names)
    for row in range(6):
        places = [IDS.index(id) for id in ranked[f"q{row}"]]
        scores = similarity(QUERIES[row : row + 1].astype("f4"), CORPUS[places].astype("f4"))[0]
        assert positions[row] == np.argsort(-scores)[:5].tolist()
        assert values[row] == pytest.approx(sorted(scores, reverse=True)[:5], abs=1e-4)
    assert positions[6] == values[6] == []
    with pytest.raises(InvalidInputError, match="query_idx_to_id"):
        index.search(QUERIES, 5, similarity, ranked)


def test_it_can_be_emptied_and_ended() -> None:
    index = FabstirSearchIndex(options={"exact": True})
    index.add_documents(CORPUS, IDS)
    index.clear()
    index.add_documents(RNG.standard_normal((3, 8)), ["a", "b", "c"])  # of another dimension
    assert sorted(index.search(RNG.standard_normal((1, 8)), 10, cosine)[1][0]) == [0, 1, 2]
    with pytest.raises(InvalidInputError):
        index.add_documents(CORPUS, ["too", "few"])
    index.close()
    with pytest.raises(SessionError):
        index.search(QUERIES, 1, cosine)
    with pytest.raises(InvalidConfigError):
        FabstirSearchIndex(metric="near")
