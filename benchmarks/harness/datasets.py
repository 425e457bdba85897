"""Inputs of the benchmarks: a folder with a few .npy files, the first rows of it, or the demo's rows.

A set is a folder with

    base.f16.npy or base.f32.npy   (n, dim) rows
    queries.f32.npy                (m, dim) queries, none of them a row
    neighbors.i32.npy              (m, 100) the nearest rows of each query, nearest first; computed if missing
    texts.jsonl.gz                 optional: one line of metadata for each row, in the order of rows

`prepare` first writes the set of a measurement as such a folder, so that the measuring processes only open files.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
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
NEIGHBOURS = 100
BLOCK_ROWS = 1 << 16
#: Extra candidates by float32 distances, which are then sorted by float64 distances.
SPARE = 28

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int32]


class Dataset(NamedTuple):
    """Rows, queries, and the nearest rows of each query."""

    base: Floats
    queries: Floats
    neighbours: Rows

    @property
    def ids(self) -> list[str]:
        """An id for each row: its number."""
        return [str(row) for row in range(len(self.base))]


def parser(description: str | None, rounds: int = 3) -> argparse.ArgumentParser:
    """The argument parser that all benchmarks share."""
    found = argparse.ArgumentParser(description=description, epilog=WHERE)
    found.add_argument("--data", type=Path, default=os.environ.get("FVDB_DATASET"), help="folder of the set")
    found.add_argument("--tiny", action="store_true", help="the demo's rows: runs everywhere, measures little")
    found.add_argument("--rows", type=int, help="only the first rows of the set")
    found.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}")
    found.add_argument("--json", type=Path, help="write the results as JSON; a file that is there is continued")
    found.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir(), "fabstir-bench"),
        help="scratch folder: prepared sets and saved indexes, used again by later runs",
    )
    return found


def prepare(options: argparse.Namespace) -> Path:
    """The folder of the set that the arguments name, complete with neighbours.

    Raises:
        SystemExit: there is no set and no --tiny, or the set is too small.
    """
    if options.tiny:
        rows = load_demo_rows()
        return _made(
            options,
            f"demo-{options.rows or len(rows.vectors)}",
            rows.vectors.astype(np.float16),
            load_demo_queries().vectors,
            rows.metadata,
        )
    if options.data is None:
        raise SystemExit(f"no data set. {WHERE}")
    folder = Path(options.data)
    base = _open_base(folder)
    if options.rows is not None and not 0 < options.rows <= len(base):
        raise SystemExit(f"--rows {options.rows}: the set has {len(base)} rows")
    if options.rows in (None, len(base)) and (folder / "neighbors.i32.npy").exists():
        return folder
    name = f"{folder.resolve().name}-{options.rows or len(base)}"
    return _made(options, name, base, np.load(folder / "queries.f32.npy"), texts(folder))


def _made(
    options: argparse.Namespace, name: str, base: npt.NDArray[Any], queries: Floats, metadata: list[Any] | None
) -> Path:
    """The first rows of a set as a separate folder, written unless it exists."""
    base = base[: options.rows]
    print_of_set = hashlib.blake2b(np.ascontiguousarray(base).tobytes() + queries.tobytes(), digest_size=4).hexdigest()
    folder = Path(options.work, "sets", f"{name}-{print_of_set}")
    if not folder.exists():
        write(folder, base, queries, None if metadata is None else metadata[: len(base)])
    return folder


def write(folder: Path, base: npt.NDArray[Any], queries: Floats, metadata: Sequence[Any] | None = None) -> None:
    """Writes a set with its exact neighbours; the folder is written completely or not at all."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    np.save(fresh / ("base.f16.npy" if base.dtype == np.float16 else "base.f32.npy"), base)
    np.save(fresh / "queries.f32.npy", queries)
    np.save(fresh / "neighbors.i32.npy", exact_neighbours(base, queries))
    if metadata is not None:
        with gzip.open(fresh / "texts.jsonl.gz", "wt", encoding="utf-8", compresslevel=1) as lines:
            lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in metadata)
    os.replace(fresh, folder)


def _open_base(folder: Path) -> npt.NDArray[Any]:
    """The stored rows, memory-mapped."""
    for name in ("base.f32.npy", "base.f16.npy"):
        if (folder / name).exists():
            found: npt.NDArray[Any] = np.load(folder / name, mmap_mode="r")
            return found
    raise SystemExit(f"{folder} has neither base.f32.npy nor base.f16.npy. {WHERE}")


def shape(folder: Path) -> tuple[int, int]:
    """Rows and dimensions of a set, without reading it."""
    rows, dim = _open_base(folder).shape
    return rows, dim


def open_base(folder: Path) -> Floats:
    """All rows as float32 of unit length.

    Inner product, cosine and Euclidean distance then give the same order, and stored rows compress as little as rows
    from a model; widened float16 would compress far better.
    """
    return np.ascontiguousarray(_unit(np.asarray(_open_base(folder), np.float32)), np.float32)


def open_rows(folder: Path, numbers: npt.NDArray[np.int64]) -> Floats:
    """Some rows as float32 of unit length; the others are not read."""
    return np.ascontiguousarray(_unit(np.asarray(_open_base(folder)[numbers], np.float32)), np.float32)


def open_stored(folder: Path) -> Floats:
    """All rows as float32 without normalisation: widened float16 stays compressible."""
    return np.ascontiguousarray(_open_base(folder), np.float32)


def open_queries(folder: Path) -> tuple[Floats, Rows]:
    """The queries and their exact neighbours."""
    return np.load(folder / "queries.f32.npy"), np.load(folder / "neighbors.i32.npy")


def open_set(folder: Path) -> Dataset:
    """The set without its texts."""
    return Dataset(open_base(folder), *open_queries(folder))


def load(options: argparse.Namespace) -> Dataset:
    """The set that the arguments name, in memory."""
    return open_set(prepare(options))


def has_texts(folder: Path) -> bool:
    """Whether a set has metadata of its rows."""
    return (folder / "texts.jsonl.gz").exists()


def texts(folder: Path) -> list[dict[str, str]] | None:
    """Metadata of the rows, with string values; None if the set has none."""
    if not has_texts(folder):
        return None
    with gzip.open(folder / "texts.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [
        {name: str(record.get(name, "")) for name in ("text", "lexname", "pos")}
        for record in records
        if record.get("split", "base") == "base"
    ]


def exact_neighbours(base: npt.NDArray[Any], queries: Floats, count: int = NEIGHBOURS) -> Rows:
    """The nearest rows of each query by cosine, nearest first, ties by row number.

    Candidates come from float32 products by block of rows, so that a million rows take no more memory than a block.
    Their final order comes from float64 products.
    """
    count = min(count, len(base))
    best = np.empty((len(queries), 0), np.int64)
    scores = np.empty((len(queries), 0), np.float32)
    for first in range(0, len(base), BLOCK_ROWS):
        block = _unit(np.asarray(base[first : first + BLOCK_ROWS], np.float32))
        found = queries @ block.T
        kept = min(count + SPARE, len(block))
        rows = np.argpartition(-found, kept - 1, axis=1)[:, :kept]
        best = np.concatenate([best, rows + first], axis=1)
        scores = np.concatenate([scores, np.take_along_axis(found, rows, axis=1)], axis=1)
        if best.shape[1] > count + SPARE:
            order = np.argpartition(-scores, count + SPARE - 1, axis=1)[:, : count + SPARE]
            best, scores = np.take_along_axis(best, order, axis=1), np.take_along_axis(scores, order, axis=1)
    best.sort(axis=1)
    nearest = np.empty((len(queries), count), np.int32)
    for position, (query, rows) in enumerate(zip(queries.astype(np.float64), best, strict=True)):
        exact = _unit(np.asarray(base[rows], np.float64)) @ query
        nearest[position] = rows[np.argsort(-exact, kind="stable")[:count]]
    return nearest


def _unit(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def recall(found: Iterable[Sequence[int]], neighbours: Rows, k: int) -> float:
    """Mean share of the exact k nearest rows that were found."""
    shares = [len(set(ids[:k]) & set(want[:k].tolist())) / k for ids, want in zip(found, neighbours, strict=True)]
    return float(np.mean(shares))
