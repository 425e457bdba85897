"""Seconds of saves, loads and a verification on a local directory, compared with copying the same bytes."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from harness import curves, datasets, measure, ours, rounds

from fabstir_vectordb.sync import VectorDBSession


def seconds(call: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def one_round(data: datasets.Dataset) -> dict[str, float]:
    """Times add, saves, load and verification. Keys are derived first, so that Argon2id does not count as the save."""
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory, "store")
        with VectorDBSession.create(**ours.fields(store.as_uri())) as session:
            session.add_batch(data.ids, data.base)
            results["keys_s"] = seconds(session.list_indexes)
            results["save_s"] = seconds(session.save_to_s5)
            results["save_unchanged_s"] = seconds(session.save_to_s5)
            session.add_batch(["one more"], data.queries[:1])
            results["save_one_row_s"] = seconds(session.save_to_s5)
        with VectorDBSession.create(**ours.fields(store.as_uri())) as session:
            session.list_indexes()
            results["load_s"] = seconds(lambda: session.load_user_vectors(lazy_load=False))
            results["verify_s"] = seconds(session.verify)
        results["copy_s"] = seconds(lambda: shutil.copytree(store, Path(directory, "copy")))
        results["stored_mb"] = measure.stored_bytes(store) / 1e6
    results["raw_mb"] = data.base.nbytes / 1e6
    for name in ("save", "load"):
        results[f"{name}_over_copy"] = results[f"{name}_s"] / max(results["copy_s"], 1e-3)
    return results


def main() -> None:
    """Command line entry point."""
    options = datasets.parser(__doc__).parse_args()
    data = datasets.load(options)
    results = rounds.ResultFile(options, "bench_save_load", {"rows": len(data.base), "dim": data.base.shape[1]}, {})
    for number in range(options.rounds):
        results.do({"round": number, "engine": "fabstir"}, lambda: one_round(data))
    runs = [{name: value for name, value in run.items() if name not in rounds.KEY} for run in results.runs]
    results.finish(curves.over_rounds(runs))


if __name__ == "__main__":
    main()
