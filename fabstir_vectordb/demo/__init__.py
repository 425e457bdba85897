"""Demo data: glosses of WordNet 3.0, embedded with all-MiniLM-L6-v2."""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["DemoQueries", "DemoRows", "load_demo_queries", "load_demo_rows"]


class DemoRows(NamedTuple):
    """The rows of the demo.

    Attributes:
        ids: n ids, WordNet synsets.
        vectors: (n, 384) float32.
        metadata: n dicts with ``text``, ``lexname`` and ``pos``.
    """

    ids: list[str]
    vectors: npt.NDArray[np.float32]
    metadata: list[dict[str, Any]]


class DemoQueries(NamedTuple):
    """The queries of the demo: n texts and their (n, 384) float32 vectors. No query is also a row."""

    texts: list[str]
    vectors: npt.NDArray[np.float32]


def load_demo_rows() -> DemoRows:
    """The rows that ship with the package."""
    packed = (files(__name__) / "texts.jsonl.gz").read_bytes()
    records = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]
    return DemoRows([record.pop("id") for record in records], _vectors("rows.f16.npy"), records)


def load_demo_queries() -> DemoQueries:
    """The queries that ship with the package."""
    lines = (files(__name__) / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    return DemoQueries([json.loads(line)["text"] for line in lines], _vectors("queries.f16.npy"))


def _vectors(name: str) -> npt.NDArray[np.float32]:
    with (files(__name__) / name).open("rb") as stream:
        stored: npt.NDArray[np.float16] = np.load(stream, allow_pickle=False)
    return stored.astype(np.float32)
