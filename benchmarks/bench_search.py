"""Recall against QPS of this library alone, one query at a time, through the public synchronous call."""

from __future__ import annotations

from typing import Any

from harness import curves, datasets, measure, ours, rounds
from harness.contract import EF, K

from fabstir_vectordb.sync import VectorDBSession


class Filled(ours.Fabstir):
    """An engine on a session that the caller has filled."""

    def __init__(self, session: VectorDBSession) -> None:
        self._session = session


def one_round(session: VectorDBSession, data: datasets.Dataset) -> dict[str, Any]:
    """The default number of candidates first, then other numbers."""
    settings: list[dict[str, Any]] = [{}, *({"ef_search": ef} for ef in EF)]
    return {"points": [measure.single_point(Filled(session), one, data.queries, data.neighbours) for one in settings]}


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__)
    parser.add_argument("--memory", choices=["fast", "default", "compact"], default="default")
    options = parser.parse_args()
    data = datasets.load(options)
    parameters = {"rows": len(data.base), "dim": data.base.shape[1], "k": K, "memory": options.memory}
    results = rounds.ResultFile(options, "bench_search", parameters, {})
    with VectorDBSession.create(**ours.fields("memory:", memory=options.memory)) as session:
        session.add_batch(data.ids, data.base)
        for number in range(options.rounds):
            results.do({"round": number, "engine": "fabstir"}, lambda: one_round(session, data))
    results.finish({"points": curves.median_points([run["points"] for run in results.of("fabstir")])})


if __name__ == "__main__":
    main()
