"""The measured engines: their names, the packages they need, and how to create them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from harness import damaged, databases, filtered, ours, peers
from harness.contract import Database, Engine

_T = TypeVar("_T")


class Entry(NamedTuple, Generic[_T]):
    """An engine or database that can be measured.

    Attributes:
        make: function from a scratch folder to the engine.
        module: module that must be importable.
        package: package to install.
        title: name in tables and pictures.
        saved_as: name of the engine whose saved index it opens.
    """

    make: Callable[[Path], _T]
    module: str
    package: str
    title: str
    saved_as: str


def _engine(
    name: str, make: Callable[[Path], Engine], module: str, package: str, title: str, saved_as: str | None = None
) -> tuple[str, Entry[Engine]]:
    return name, Entry(make, module, package, title, saved_as or name)


OURS = "fabstir"
_US = ("fabstir_vectordb", "fabstir_vectordb")

ENGINES: dict[str, Entry[Engine]] = dict(
    (
        _engine("fabstir", ours.Fabstir, *_US, "fabstir_vectordb"),
        _engine("fabstir-fast", ours.FabstirFast, *_US, "fabstir_vectordb, fast"),
        _engine("fabstir-compact", ours.FabstirCompact, *_US, "fabstir_vectordb, compact"),
        _engine("hnswlib", peers.Hnswlib, "hnswlib", "hnswlib", "hnswlib"),
        _engine("zvec-hnsw", peers.Zvec, "zvec", "zvec", "zvec, HNSW, 8 bits"),
        _engine("zvec-vamana", peers.ZvecVamana, "zvec", "zvec", "zvec, Vamana, 8 bits"),
        _engine("faiss-hnsw", peers.Faiss, "faiss", "faiss-cpu", "faiss, HNSW, 8 bits"),
        _engine("svs", peers.Svs, "svs", "scalable-vs", "SVS, Vamana, float16"),
        _engine("symqg", peers.SymQG, "rabitqlib", "rabitqlib", "SymphonyQG, float32"),
        _engine("symqg-coded", peers.SymQGCoded, "rabitqlib", "rabitqlib", "SymphonyQG, 8 bits"),
    )
)

#: Exact searches: an index that scans.
SCANS: dict[str, Entry[Engine]] = dict(
    (
        _engine("fabstir", ours.FabstirFlat, *_US, "fabstir_vectordb", "fabstir"),
        _engine("faiss-flat", peers.FaissFlat, "faiss", "faiss-cpu", "faiss IndexFlatIP"),
    )
)

#: Inverted lists alone; each variant of a peer is the fastest one at some recall.
LISTS: dict[str, Entry[Engine]] = dict(
    (
        _engine("fabstir", ours.FabstirLists, *_US, "fabstir_vectordb, lists", "fabstir-lists"),
        _engine("faiss-ivf", peers.FaissIvf, "faiss", "faiss-cpu", "faiss, IVF 4 √n, PQ fast-scan, refined"),
        _engine("faiss-ivf-fewer", peers.FaissIvfFewer, "faiss", "faiss-cpu", "faiss, IVF 2 √n, PQ fast-scan, refined"),
        _engine("faiss-ivf-short", peers.FaissIvfShort, "faiss", "faiss-cpu", "faiss, IVF 2 √n, short PQ, refined"),
        _engine("faiss-ivf-flat", peers.FaissIvfFlat, "faiss", "faiss-cpu", "faiss, IVF 4 √n, float32"),
        _engine("scann", peers.Scann, "scann", "scann", "ScaNN, 2 √n"),
        _engine("scann-soar", peers.ScannSoar, "scann", "scann", "ScaNN, 2 √n, SOAR"),
        _engine("scann-soar-fewer", peers.ScannSoarFewer, "scann", "scann", "ScaNN, √n, SOAR"),
    )
)

#: Filtered searches; engines without metadata open the index of the engine of the same name.
FILTERED: dict[str, Entry[Engine]] = dict(
    (
        _engine("fabstir", filtered.Fabstir, *_US, "fabstir_vectordb", "fabstir-filtered"),
        _engine("hnswlib", filtered.Hnswlib, "hnswlib", "hnswlib", "hnswlib"),
        _engine("zvec-hnsw", filtered.Zvec, "zvec", "zvec", "zvec, HNSW, 8 bits", "zvec-filtered"),
        _engine("faiss-hnsw", filtered.Faiss, "faiss", "faiss-cpu", "faiss, HNSW, 8 bits"),
        _engine("faiss-flat", filtered.FaissFlat, "faiss", "faiss-cpu", "faiss IndexFlatIP"),
    )
)

DATABASES: dict[str, Entry[Database]] = {
    "fabstir": Entry(ours.FabstirDatabase, *_US, "fabstir_vectordb", "fabstir"),
    "zvec": Entry(databases.ZvecDatabase, "zvec", "zvec", "zvec collection, float32", "zvec"),
    "zvec-coded": Entry(databases.ZvecCodedDatabase, "zvec", "zvec", "zvec collection, 8 bits", "zvec-coded"),
    "chroma": Entry(databases.Chroma, "chromadb", "chromadb", "Chroma", "chroma"),
    "lance": Entry(databases.Lance, "lancedb", "lancedb", "LanceDB", "lance"),
}

#: Tables by the names that jobs use.
TABLES: dict[str, dict[str, Entry[Engine]]] = {
    "engines": ENGINES,
    "scans": SCANS,
    "lists": LISTS,
    "filtered": FILTERED,
}

TITLES = {name: stored.title for name, stored in damaged.STORED.items()}
TITLES |= {name: entry.title for table in (DATABASES, LISTS, SCANS, ENGINES) for name, entry in table.items()}


def present(table: Mapping[str, Entry[_T]], wanted: Iterable[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """The engines whose package is installed, and for each other engine the reason why it is skipped.

    Raises:
        SystemExit: a wanted name is unknown.
    """
    names = list(table) if wanted is None else list(wanted)
    for name in names:
        if name not in table:
            raise SystemExit(f"unknown name {name!r}: one of {', '.join(table)}")
    found = [name for name in names if importlib.util.find_spec(table[name].module) is not None]
    skipped = {name: f"not installed: pip install {table[name].package}" for name in names if name not in found}
    return found, skipped
