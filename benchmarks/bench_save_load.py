"""Seconds of saves, loads and a verification on a local directory, and against copying the same bytes."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import datasets

from fabstir_vectordb.sync import VectorDBSession


def main() -> None:
    """Command line entry point."""
    options = datasets.parser(__doc__).parse_args()
    data = datasets.load(options)
    results: dict[str, float] = {}

    def timed(name: str, started: float) -> None:
        results[name] = round(time.perf_counter() - started, 3)

    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory, "store")
        fields = {"s5_portal": store.as_uri(), "user_seed_phrase": "bench", "session_id": "bench"}
        with VectorDBSession.create(**fields, memory_budget_mb=16_384) as session:
            session.add_batch(data.ids, data.base)
            session.list_indexes()  # the keys: Argon2id is not the save
            started = time.perf_counter()
            session.save_to_s5()
            timed("save_s", started)
            started = time.perf_counter()
            session.save_to_s5()
            timed("save_unchanged_s", started)
        with VectorDBSession.create(**fields, memory_budget_mb=16_384) as session:
            session.list_indexes()
            started = time.perf_counter()
            session.load_user_vectors()
            timed("load_s", started)
            started = time.perf_counter()
            session.verify()
            timed("verify_s", started)
        started = time.perf_counter()
        shutil.copytree(store, Path(directory, "copy"))
        timed("copy_s", started)
        stored = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    results["stored_mb"] = round(stored / 1e6, 2)
    results["save_over_copy"] = round(results["save_s"] / max(results["copy_s"], 1e-3), 2)
    results["load_over_copy"] = round(results["load_s"] / max(results["copy_s"], 1e-3), 2)
    datasets.report(options, results)


if __name__ == "__main__":
    main()
