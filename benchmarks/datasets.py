"""Inputs of the benchmarks: the wordnet-minilm set where it is, the demo's rows where it is not."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.demo import load_demo_queries, load_demo_rows

WHERE = (
    "The set is a folder with base.f16.npy (n x dim float16), queries.f32.npy and neighbors.i32.npy (exact "
    "neighbours); name it with --data or FVDB_DATASET. benchmarks/README.md says how to make one. "
    "--tiny runs on the demo's rows."
)


class Dataset(NamedTuple):
    """Rows, queries and for each query the rows nearest to it."""

    base: npt.NDArray[np.float32]
    queries: npt.NDArray[np.float32]
    neighbours: npt.NDArray[np.int32]

    @property
    def ids(self) -> list[str]:
        """An id for each row: its number."""
        return [str(row) for row in range(len(self.base))]


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes."""
    found = argparse.ArgumentParser(description=description, epilog=WHERE)
    found.add_argument("--data", type=Path, default=os.environ.get("FVDB_DATASET"), help="folder of the set")
    found.add_argument("--tiny", action="store_true", help="the demo's rows: runs everywhere, measures little")
    found.add_argument("--out", type=Path, help="write the results as JSON")
    return found


def load(options: argparse.Namespace) -> Dataset:
    """The set that the arguments name.

    Raises:
        SystemExit: there is none, and --tiny was not asked for.
    """
    if options.tiny:
        base, queries = load_demo_rows().vectors, load_demo_queries().vectors
        return Dataset(base, queries, exact_neighbours(base, queries))
    if options.data is None:
        raise SystemExit(f"no data set. {WHERE}")
    folder = Path(options.data)
    base = np.load(folder / "base.f16.npy").astype(np.float32)
    queries = np.load(folder / "queries.f32.npy")
    return Dataset(base, queries, np.load(folder / "neighbors.i32.npy"))


def exact_neighbours(
    base: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], count: int = 100
) -> npt.NDArray[np.int32]:
    """The nearest rows of each query by inner product of unit vectors, summed in float64."""
    unit = base.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    order = np.argsort(-(queries.astype(np.float64) @ unit.T), axis=1, kind="stable")
    return order[:, :count].astype(np.int32)


def recall(found: list[list[int]], neighbours: npt.NDArray[np.int32], k: int) -> float:
    """Mean share of the exact k nearest that were found."""
    shares = [len(set(ids[:k]) & set(want[:k].tolist())) / k for ids, want in zip(found, neighbours, strict=True)]
    return float(np.mean(shares))


def report(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Prints results, and writes them where --out says."""
    text = json.dumps(results, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
