"""The client for VectorDBBench, used as its runners use it: copied into processes, opened in each."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("LOG_FILE", str(Path(tempfile.gettempdir()) / "vectordb_bench" / "vectordb_bench.log"))
pytest.importorskip("vectordb_bench.backend.clients.api", reason="vectordb-bench is not installed")

from vectordb_bench.backend.filter import IntFilter, LabelFilter, NonFilter

from fabstir_vectordb import InvalidConfigError, new_seed_phrase
from fabstir_vectordb.integrations.vectordbbench import FabstirClient

ROWS = np.random.default_rng(20_261_126).standard_normal((200, 16)).astype("f4")


def search_elsewhere(client: FabstirClient, query: list[float], answers: Any) -> None:
    with client.init():
        answers.put(client.search_embedding(query, k=5))


def test_a_case_runs_from_insertion_to_search(tmp_path: Path) -> None:
    config = {"s5_portal": tmp_path.as_uri(), "user_seed_phrase": new_seed_phrase(), "session_id": "bench"}
    client = FabstirClient(16, config, None, "A-Case", drop_old=True)
    labels = ["label_5p" if number < 10 else "label_95p" for number in range(200)]
    with client.init():
        for start in (0, 100):
            done, error = client.insert_embeddings(
                ROWS[start : start + 100].tolist(), list(range(start, start + 100)), labels[start : start + 100]
            )
            assert (done, error) == (100, None)
        client.optimize(200)
        done, error = client.insert_embeddings([[1.0]], [7])
        assert done == 0 and isinstance(error, ValueError)
    copied = pickle.loads(pickle.dumps(client))
    near = np.argsort(-(ROWS @ ROWS[42]) / np.linalg.norm(ROWS, axis=1))
    with copied.init():
        assert copied.search_embedding(ROWS[42].tolist(), k=5) == near[:5].tolist()
        copied.prepare_filter(IntFilter(int_value=150, filter_rate=0.75))
        assert copied.search_embedding(ROWS[42].tolist(), k=5) == [id for id in near.tolist() if id >= 150][:5]
        copied.prepare_filter(LabelFilter(0.05))
        assert copied.search_embedding(ROWS[42].tolist(), k=50) == [id for id in near.tolist() if id < 10]
        copied.prepare_filter(NonFilter())
        assert copied.search_embedding(ROWS[42].tolist(), k=1) == [42]
    spawned = multiprocessing.get_context("spawn")
    answers = spawned.Queue()
    process = spawned.Process(target=search_elsewhere, args=(client, ROWS[42].tolist(), answers))
    process.start()
    assert answers.get(timeout=120) == near[:5].tolist()
    process.join(60)
    assert process.exitcode == 0
    again = FabstirClient(16, config, None, "A-Case", drop_old=True)
    with again.init():
        assert again.search_embedding(ROWS[0].tolist()) == []
    with pytest.raises(InvalidConfigError, match="init"):
        again.search_embedding(ROWS[0].tolist())
    with pytest.raises(InvalidConfigError, match="share memory"):
        FabstirClient(16, {**config, "s5_portal": "memory:"})
