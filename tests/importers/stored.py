"""Stores that other programs wrote, unpacked once.

`import-samples.tar.xz` has stores of the earlier Node package and of the SDK, written by those programs and cut down to
some rows whose bytes are unchanged, and small stores that releases of other databases wrote in November 2026.
"""

from __future__ import annotations

import base64
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[1] / "data" / "import-samples.tar.xz"


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all stores."""
    folder = tmp_path_factory.mktemp("samples")
    with tarfile.open(DATA) as archive:
        # The first releases of Python 3.11 lack filters; the archive is ours.
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder / "import-samples"


@pytest.fixture(scope="session")
def expected(samples: Path) -> dict[str, Any]:
    """The rows that stores of the earlier system have, by store: id → vector and metadata."""
    found = json.loads((samples / "expected.json").read_text(encoding="utf-8"))
    for store in found.values():
        store["rows"] = {
            row["id"]: (np.frombuffer(base64.b64decode(row["vector"]), np.float32).tolist(), row["metadata"])
            for row in store["rows"]
        }
    return dict(found)


@pytest.fixture(scope="session")
def peer_vectors(samples: Path) -> np.ndarray:
    """The vectors of the stores of other databases."""
    return np.fromfile(samples / "peers" / "vectors.f32", dtype=np.float32).reshape(60, 8)
