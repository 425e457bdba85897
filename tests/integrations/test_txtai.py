"""The ANN for txtai, over txtai's own base class.

txtai imports PyTorch with its first module. Where that is missing, the base class is imported without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if (found := importlib.util.find_spec("txtai")) is None:
    pytest.skip("txtai is not installed", allow_module_level=True)
try:
    importlib.import_module("txtai")
except ImportError:
    for name in [name for name in sys.modules if name.partition(".")[0] == "txtai"]:
        del sys.modules[name]
    [top, *_] = found.submodule_search_locations or [""]
    for name, folder in (("txtai", ""), ("txtai.ann", "ann")):
        module = types.ModuleType(name)
        module.__path__ = [str(Path(top) / folder)]
        sys.modules[name] = module

from fabstir_vectordb import InvalidConfigError, new_seed_phrase
from fabstir_vectordb.integrations.txtai import FabstirANN

PHRASE = new_seed_phrase()
ROWS = np.random.default_rng(20_261_126).standard_normal((120, 16)).astype("f4")
BACKEND = "fabstir_vectordb.integrations.txtai.FabstirANN"


def expected(query: Any, rows: Any, ids: list[int], k: int) -> list[int]:
    cosines = rows[ids] @ query / np.linalg.norm(rows[ids], axis=1)
    return [ids[place] for place in np.argsort(-cosines)[:k]]


def test_vectors_are_indexed_appended_deleted_saved_and_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FABSTIR_SEED_PHRASE", PHRASE)
    settings = {"s5_portal": (tmp_path / "store").as_uri(), "recall_target": 1.0}
    config: dict[str, Any] = {"backend": BACKEND, "dimensions": 16, "fabstir": settings}
    ann = FabstirANN(config)
    ann.index(ROWS[:100])
    ann.append(ROWS[100:])
    ann.delete([3, 50, 9_999])
    left = [id for id in range(120) if id not in (3, 50)]
    assert ann.count() == 118 and config["offset"] == 120
    for query, hits in zip(ROWS[:5], ann.search(ROWS[:5], 7), strict=True):
        assert [id for id, _ in hits] == expected(query, ROWS, left, 7)
        assert all(-1.0 <= score <= 1.0 for _, score in hits)
    assert ann.search(ROWS[:1], 1)[0][0] == (0, pytest.approx(1.0, abs=1e-6))
    ann.save(str(tmp_path / "embeddings"))
    ann.close()
    assert (tmp_path / "embeddings").read_text().startswith("uW4Ie") and PHRASE not in repr(config)
    again = FabstirANN({**config})
    again.load(str(tmp_path / "embeddings"))
    assert again.count() == 118
    again.append(ROWS[:1])
    assert sorted(id for id, _ in again.search(ROWS[:1], 2)[0]) == [0, 120]
    again.index(ROWS[:2])
    assert again.count() == 2
    again.close()
    again.close()


def test_secrets_and_other_metrics_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABSTIR_SEED_PHRASE", PHRASE)
    for settings in (
        {"user_seed_phrase": PHRASE},
        {"portal_token": "x"},
        {"metric": "l2"},
        {"near": 1},
        {},
    ):
        portal = {} if settings == {} else {"s5_portal": "memory:"}
        with pytest.raises(InvalidConfigError):
            FabstirANN({"backend": BACKEND, "fabstir": {**portal, **settings}})
    monkeypatch.delenv("FABSTIR_SEED_PHRASE")
    with pytest.raises(InvalidConfigError, match="user_seed_phrase is required"):
        FabstirANN({"backend": BACKEND, "fabstir": {"s5_portal": "memory:"}})
