"""Filtered search: filters of given selectivity on the set's own metadata, and engines that support filters."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harness import datasets, measure, ours, peers
from harness.contract import EF, EF_CONSTRUCTION, Engine, K, M, Setting
from harness.curves import significant

#: Shares of the rows that the filters should match.
SHARES = (0.5, 0.1, 0.01, 0.001)
#: A third of the usual numbers of candidates: four filters take four times as long.
EF_SWEPT = EF[1::3]

Record = dict[str, Any]


class Case(NamedTuple):
    """One filter.

    Attributes:
        name: the share of rows that it should match.
        filter: the filter in the form of this library.
        mask: the rows that match.
    """

    name: str
    filter: dict[str, Any]
    mask: npt.NDArray[np.bool_]


def metadata_of(folder: Path) -> list[Record]:
    """Metadata of the rows: that of the set, and the number of words of the text.

    Raises:
        SystemExit: the set has no metadata.
    """
    texts = datasets.texts(folder)
    if texts is None:
        raise SystemExit(f"{folder} has no texts.jsonl.gz, which has the metadata for filters")
    return [{**record, "words": len(record["text"].split())} for record in texts]


def cases(metadata: list[Record]) -> list[Case]:
    """A filter for each share: on one field if its values allow it, else on two."""
    words = np.array([record["words"] for record in metadata])
    names = np.array([record["lexname"] for record in metadata])
    kinds = np.array([record["pos"] for record in metadata])
    most, second = (name for name, _ in Counter(names.tolist()).most_common(2))
    common = Counter(kinds.tolist()).most_common(1)[0][0]
    found = []
    for share in SHARES:
        if share >= 0.5:
            choices = [({"pos": common, "words": {"$gte": n}}, (kinds == common) & (words >= n)) for n in range(1, 40)]
        elif share >= 0.01:
            choices = [({"lexname": name}, names == name) for name in sorted(set(names.tolist()))]
        else:
            choices = [
                ({"lexname": name, "words": {"$gte": n}}, (names == name) & (words >= n))
                for name in (most, second)
                for n in range(1, 80)
            ]
        filter, mask = min(choices, key=lambda choice: _far(float(choice[1].mean()), share))
        found.append(Case(f"{100 * share:g}%", filter, mask))
    return found


def _far(share: float, wanted: float) -> float:
    return abs(math.log(share / wanted)) if share else math.inf


class Filtered(Engine):
    """An engine that gets the rows' metadata before the build, and a filter before searches."""

    def describe(self, metadata: list[Record]) -> None:
        """Gives the metadata of the rows; engines whose filters are sets of rows ignore it."""

    def filter_by(self, case: Case) -> dict[str, float]:
        """Restricts later searches to the rows of a case.

        Returns:
            The time to evaluate the filter, if the engine evaluates it.
        """
        raise NotImplementedError

    def families(self) -> list[list[Setting]]:
        return [[{"ef": ef} for ef in EF_SWEPT]]


class Fabstir(Filtered, ours.Fabstir):
    """A session of this library; every search gets the filter."""

    def describe(self, metadata: list[Record]) -> None:
        self._metadata = metadata

    def build(self, base: Any, threads: int) -> None:
        super().build(base[:0], threads)
        self._session.add_batch([str(row) for row in range(len(base))], base, self._metadata[: len(base)])

    def families(self) -> list[list[Setting]]:
        return [[{}], [{"ef_search": ef} for ef in EF_SWEPT]]

    def filter_by(self, case: Case) -> dict[str, float]:
        self._filter = case.filter
        first = self._count_s()
        # The next evaluation finds the columns in memory, with one changed row to read again.
        self._session.update_metadata("0", self._metadata[0])
        changed = self._count_s()
        known = min(self._count_s() for _ in range(20))
        return {"first_ms": 1e3 * first, "after_a_change_ms": 1e3 * changed, "known_us": 1e6 * known}

    def _count_s(self) -> float:
        before = time.perf_counter()
        self._session.count(self._filter)
        return time.perf_counter() - before

    def one(self, query: Any) -> list[str]:
        hits = self._session.search(query, K, threshold=None, filter=self._filter, **self._setting)
        return [hit.id for hit in hits]


class Hnswlib(Filtered, peers.Hnswlib):
    """hnswlib with the fastest filter function in Python: a lookup in a list."""

    def filter_by(self, case: Case) -> dict[str, float]:
        self._takes = case.mask.tolist().__getitem__
        return {}

    def one(self, query: Any) -> Any:
        try:
            return self._index.knn_query(query, K, num_threads=1, filter=self._takes)[0][0]
        except RuntimeError:  # raised if it found fewer than K rows
            return []


class Faiss(Filtered, peers.Faiss):
    """faiss HNSW on 8-bit codes with a selector."""

    def filter_by(self, case: Case) -> dict[str, float]:
        # The selector borrows the bits, so they must stay alive.
        self._bits = np.packbits(case.mask, bitorder="little")
        self._selector = self._faiss.IDSelectorBitmap(self._bits)
        return {}

    def use(self, setting: Setting) -> None:
        self._params = self._faiss.SearchParametersHNSW(efSearch=setting["ef"], sel=self._selector)


class FaissFlat(Faiss, peers.FaissFlat):
    """faiss IndexFlatIP with a selector: exact."""

    spec = "Flat"

    def families(self) -> list[list[Setting]]:
        return [[{}]]

    def use(self, setting: Setting) -> None:
        self._params = self._faiss.SearchParameters(sel=self._selector)


class Zvec(Filtered, peers.Zvec):
    """zvec with inverted indexes of the fields and a filter expression."""

    refine = (0, 2)

    def describe(self, metadata: list[Record]) -> None:
        self._metadata = metadata

    def build(self, base: Any, threads: int) -> None:
        zvec = self._zvec
        zvec.init(log_level=zvec.LogLevel.ERROR, query_threads=threads, optimize_threads=threads)
        self._path = self.scratch / "collection"
        index = zvec.InvertIndexParam(enable_range_optimization=True)
        kinds = {"lexname": zvec.DataType.STRING, "pos": zvec.DataType.STRING, "words": zvec.DataType.INT64}
        fields = [zvec.FieldSchema(name, kind, index_param=index) for name, kind in kinds.items()]
        params = zvec.HnswIndexParam(m=M, ef_construction=EF_CONSTRUCTION, **self._common_params())
        vectors = zvec.VectorSchema("v", zvec.DataType.VECTOR_FP32, base.shape[1], index_param=params)
        schema = zvec.CollectionSchema("bench", fields=fields, vectors=[vectors])
        self._collection = zvec.create_and_open(str(self._path), schema)
        for first in range(0, len(base), 1_000):
            docs = []
            for row in range(first, min(first + 1_000, len(base))):
                known = {name: self._metadata[row][name] for name in kinds}
                docs.append(zvec.Doc(id=str(row), vectors={"v": base[row]}, fields=known))
            self._collection.insert(docs)
        self._collection.optimize(zvec.OptimizeOption(concurrency=threads))
        self._collection.flush()

    def families(self) -> list[list[Setting]]:
        return [[{"ef": ef, "refine": refine} for ef in EF_SWEPT] for refine in self.refine]

    def filter_by(self, case: Case) -> dict[str, float]:
        self._expression = " AND ".join(_expressions(case.filter))
        return {}

    def one(self, query: Any) -> Any:
        wanted = self._zvec.Query("v", vector=query, param=self._params)
        found = self._collection.query_internal_ids(wanted, topk=K, filter=self._expression)
        return self._rows[found[found >= 0]]


def _expressions(filter: dict[str, Any]) -> Iterable[str]:
    for name, condition in filter.items():
        yield f"{name} >= {condition['$gte']}" if isinstance(condition, dict) else f"{name} = '{condition}'"


def measured(engine: Filtered, case: Case, base: datasets.Floats, queries: datasets.Floats) -> dict[str, Any]:
    """The points of an engine with a filter; recall is against the exact nearest rows that match."""
    rows = np.flatnonzero(case.mask)
    k = min(K, len(rows))
    nearest = rows[datasets.exact_neighbours(base[rows], queries, k)]
    result: dict[str, Any] = {"rows": len(rows), **{n: significant(v) for n, v in engine.filter_by(case).items()}}
    points = []
    for family in engine.families():
        for setting in family:
            engine.use(setting)
            measure.latencies(engine.one, queries[: measure.WARM_QUERIES])
            found, micros = measure.latencies(engine.one, queries)
            point = measure.as_point(setting, found, nearest, micros)
            point["recall"] = round(datasets.recall([[int(row) for row in hits] for hits in found], nearest, k), 5)
            points.append(point)
            if point["recall"] >= measure.RECALL_ENOUGH:
                break
    return result | {"points": points}
