"""Other libraries' indexes as Engines, each through its public interface.

Graphs have M = 16 (32 links on level 0) or degree 32, and 200 candidates while building, like those of this library.
Rows are unit vectors, so inner product, cosine and Euclidean distance give the same order; each library uses the metric
with which it is fastest.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from harness.contract import EF, EF_AFTER_BUILD, EF_CONSTRUCTION, PROBES, Engine, K, M, Setting

#: Rows that can be added to a loaded index.
HEADROOM = 2_000


class Hnswlib(Engine):
    """hnswlib, float32."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._hnswlib = importlib.import_module("hnswlib")

    def build(self, base: Any, threads: int) -> None:
        self._index = self._hnswlib.Index(space="ip", dim=base.shape[1])
        self._index.init_index(max_elements=len(base), M=M, ef_construction=EF_CONSTRUCTION)
        self._index.add_items(base, np.arange(len(base)), num_threads=threads)

    def save(self, path: Path) -> None:
        self._index.save_index(str(path))

    def load(self, path: Path, rows: int, dim: int, threads: int) -> None:
        self._index = self._hnswlib.Index(space="ip", dim=dim)
        self._index.load_index(str(path), max_elements=rows + HEADROOM)

    def use(self, setting: Setting) -> None:
        self._index.set_ef(setting["ef"])

    def one(self, query: Any) -> Any:
        return self._index.knn_query(query, K, num_threads=1)[0][0]

    def batch(self, queries: Any, threads: int) -> Any:
        return self._index.knn_query(queries, K, num_threads=threads)[0]

    def add_one(self, number: int, vector: Any) -> None:
        self._index.add_items(vector[None], [number], num_threads=1)


class Faiss(Engine):
    """faiss by an index_factory string: HNSW on 8-bit codes."""

    spec = f"HNSW{M},SQ8"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._faiss = importlib.import_module("faiss")
        self._params: Any = None

    def build(self, base: Any, threads: int) -> None:
        self._faiss.omp_set_num_threads(threads)
        self._index = self._faiss.index_factory(base.shape[1], self.spec, self._faiss.METRIC_INNER_PRODUCT)
        if "HNSW" in self.spec:
            self._faiss.ParameterSpace().set_index_parameter(self._index, "efConstruction", EF_CONSTRUCTION)
        self._index.train(base)
        self._index.add(base)

    def save(self, path: Path) -> None:
        self._faiss.write_index(self._index, str(path))

    def load(self, path: Path, rows: int, dim: int, threads: int) -> None:
        self._faiss.omp_set_num_threads(threads)
        self._index = self._faiss.read_index(str(path))

    def use(self, setting: Setting) -> None:
        self._params = self._faiss.SearchParametersHNSW(efSearch=setting["ef"])

    def one(self, query: Any) -> Any:
        return self._index.search(query[None], K, params=self._params)[1][0]

    def batch(self, queries: Any, threads: int) -> Any:
        self._faiss.omp_set_num_threads(threads)
        return self._index.search(queries, K, params=self._params)[1]


class FaissIvf(Faiss):
    """faiss, inverted lists with PQ fast-scan and exact refinement."""

    #: Lists, as a multiple of the root of the rows.
    lists_of_root = 4
    #: Dimensions that share one 4-bit code.
    code_dims = 2
    refine: tuple[int, ...] = (1, 2, 4, 8)

    def build(self, base: Any, threads: int) -> None:
        self.spec = self._spec(int(self.lists_of_root * np.sqrt(len(base))), base.shape[1])
        super().build(base, threads)

    def _spec(self, lists: int, dim: int) -> str:
        return f"IVF{lists},PQ{dim // self.code_dims}x4fs,RFlat"

    def families(self) -> list[list[Setting]]:
        return [[{"nprobe": nprobe, "refine": refine} for nprobe in PROBES] for refine in self.refine]

    def setting_after_build(self) -> Setting:
        return {"nprobe": 64, "refine": 4}

    def use(self, setting: Setting) -> None:
        lists = self._faiss.SearchParametersIVF(nprobe=setting["nprobe"])
        self._params = self._faiss.IndexRefineSearchParameters(k_factor=setting["refine"], base_index_params=lists)


class FaissIvfFewer(FaissIvf):
    """The same with half as many lists."""

    lists_of_root = 2


class FaissIvfShort(FaissIvfFewer):
    """The same with codes half as long, of which more are refined."""

    code_dims = 4
    refine = (4, 8, 16)


class FaissIvfFlat(FaissIvf):
    """faiss, inverted lists of float32."""

    def _spec(self, lists: int, dim: int) -> str:
        return f"IVF{lists},Flat"

    def families(self) -> list[list[Setting]]:
        return [[{"nprobe": nprobe} for nprobe in PROBES]]

    def setting_after_build(self) -> Setting:
        return {"nprobe": 64}

    def use(self, setting: Setting) -> None:
        self._params = self._faiss.SearchParametersIVF(nprobe=setting["nprobe"])


class Scann(Engine):
    """ScaNN: lists, anisotropic 4-bit codes, exact reordering."""

    #: Lists, as a multiple of the root of the rows: it is fastest with fewer than others.
    lists_of_root = 2
    #: Weight of the second list of a row (Sun et al. 2023, SOAR); None if each row is on one list.
    soar_lambda: float | None = None

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._scann = importlib.import_module("scann")

    def build(self, base: Any, threads: int) -> None:
        lists = int(self.lists_of_root * np.sqrt(len(base)))
        builder = self._scann.scann_ops_pybind.builder(base, K, "dot_product").set_n_training_threads(threads)
        tree = builder.tree(
            num_leaves=lists,
            num_leaves_to_search=lists,
            training_sample_size=len(base),
            soar_lambda=self.soar_lambda,
        )
        self._index = tree.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()

    def save(self, path: Path) -> None:
        path.mkdir()
        # Relative paths, as the folder is moved.
        self._index.serialize(str(path), relative_path=True)

    def load(self, path: Path, rows: int, dim: int, threads: int) -> None:
        self._index = self._scann.scann_ops_pybind.load_searcher(str(path))

    def families(self) -> list[list[Setting]]:
        return [[{"nprobe": nprobe, "reorder": reorder} for nprobe in PROBES] for reorder in (20, 40, 100)]

    def setting_after_build(self) -> Setting:
        return {"nprobe": 64, "reorder": 40}

    def use(self, setting: Setting) -> None:
        self._setting = setting

    def one(self, query: Any) -> Any:
        setting = self._setting
        return self._index.search(
            query,
            final_num_neighbors=K,
            pre_reorder_num_neighbors=setting["reorder"],
            leaves_to_search=setting["nprobe"],
        )[0]


class ScannSoar(Scann):
    """The same with rows on two lists."""

    soar_lambda = 1.5


class ScannSoarFewer(ScannSoar):
    """The same with half as many lists."""

    lists_of_root = 1


class FaissFlat(Faiss):
    """faiss IndexFlatIP: an exact scan of float32 rows."""

    spec = "Flat"

    def families(self) -> list[list[Setting]]:
        return [[{}]]

    def use(self, setting: Setting) -> None:
        self._params = None


class SymQG(Engine):
    """rabitqlib's SymphonyQG graph, degree 32: raw rows beside the codes of each row's neighbours.

    Euclidean distance, as in its authors' paper (Gou et al., SIGMOD 2025). It takes no rows after the build.
    """

    #: Bits a dimension of the rows that it scores exactly; 0 keeps them as float32.
    bits = 0

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._rabitqlib = importlib.import_module("rabitqlib")
        self._ef = EF_AFTER_BUILD

    def build(self, base: Any, threads: int) -> None:
        self._index = self._rabitqlib.SymqgIndex(base.shape[1], 2 * M, "l2", self.bits)
        self._index.build(base, EF_CONSTRUCTION, threads)

    def save(self, path: Path) -> None:
        self._index.save(str(path))

    def load(self, path: Path, rows: int, dim: int, threads: int) -> None:
        self._index = self._rabitqlib.SymqgIndex.load(str(path))

    def use(self, setting: Setting) -> None:
        self._ef = setting["ef"]

    def one(self, query: Any) -> Any:
        return self._index.search(query[None], K, self._ef)[0][0]

    def batch(self, queries: Any, threads: int) -> Any:
        return self._index.search_batch(queries, K, self._ef, threads)[0]


class SymQGCoded(SymQG):
    """The same with rows of 8 bits a dimension; the originals are not kept."""

    bits = 8


class Svs(Engine):
    """SVS Vamana, float16."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._svs = importlib.import_module("svs")

    def build(self, base: Any, threads: int) -> None:
        parameters = self._svs.VamanaBuildParameters(alpha=0.95, graph_max_degree=2 * M, window_size=EF_CONSTRUCTION)
        rows = base.astype(np.float16)
        self._index = self._svs.Vamana.build(parameters, rows, self._svs.MIP, num_threads=threads)

    def save(self, path: Path) -> None:
        path.mkdir()
        self._index.save(*(str(path / part) for part in ("config", "graph", "data")))

    def load(self, path: Path, rows: int, dim: int, threads: int) -> None:
        data = self._svs.VectorDataLoader(str(path / "data"), self._svs.DataType.float16, dims=dim)
        graph = self._svs.GraphLoader(str(path / "graph"))
        self._index = self._svs.Vamana(str(path / "config"), graph, data, self._svs.MIP, num_threads=threads)

    def families(self) -> list[list[Setting]]:
        return [[{"window": ef} for ef in EF]]

    def setting_after_build(self) -> Setting:
        return {"window": EF_AFTER_BUILD}

    def use(self, setting: Setting) -> None:
        self._index.search_window_size = setting["window"]

    def one(self, query: Any) -> Any:
        return self._index.search(query, K)[0][0]

    def batch(self, queries: Any, threads: int) -> Any:
        self._index.num_threads = threads
        return self._index.search(queries, K)[0]


class Zvec(Engine):
    """zvec, HNSW on uniform 8-bit codes in contiguous memory, with and without refining on the originals.

    This codec supports Euclidean distance only. Searches return internal ids, the fastest call, which are then mapped.
    """

    batch_by = "Python threads over single queries"
    refine: tuple[int, ...] = (0, 1, 2)

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._zvec = importlib.import_module("zvec")

    def _index_params(self) -> Any:
        return self._zvec.HnswIndexParam(m=M, ef_construction=EF_CONSTRUCTION, **self._common_params())

    def _common_params(self) -> dict[str, Any]:
        return {
            "metric_type": self._zvec.MetricType.L2,
            "quantize_type": self._zvec.QuantizeType.UNIFORM_UINT8,
            "use_contiguous_memory": True,
        }

    def _query_params(self, ef: int, refining: dict[str, Any]) -> Any:
        return self._zvec.HnswQueryParam(ef=ef, **refining)

    def build(self, base: Any, threads: int) -> None:
        zvec = self._zvec
        zvec.init(log_level=zvec.LogLevel.ERROR, query_threads=threads, optimize_threads=threads)
        self._path = self.scratch / "collection"
        vectors = zvec.VectorSchema("v", zvec.DataType.VECTOR_FP32, base.shape[1], index_param=self._index_params())
        schema = zvec.CollectionSchema("bench", fields=[], vectors=[vectors])
        self._collection = zvec.create_and_open(str(self._path), schema)
        for first in range(0, len(base), 1_000):
            rows = range(first, min(first + 1_000, len(base)))
            self._collection.insert([zvec.Doc(id=str(row), vectors={"v": base[row]}) for row in rows])
        self._collection.optimize(zvec.OptimizeOption(concurrency=threads))
        self._collection.flush()

    def save(self, path: Path) -> None:
        self._collection.close()
        shutil.copytree(self._path, path)

    def load(self, path: Path, rows: int, dim: int, threads: int) -> None:
        self._zvec.init(log_level=self._zvec.LogLevel.ERROR, query_threads=threads)
        self._collection = self._zvec.open(str(path), self._zvec.CollectionOption(read_only=True, enable_mmap=False))
        self._rows = np.array([int(id) for id in self._collection.resolve_internal_ids(np.arange(rows))])

    def families(self) -> list[list[Setting]]:
        return [[{"ef": ef, "refine": refine} for ef in EF] for refine in self.refine]

    def setting_after_build(self) -> Setting:
        return {"ef": EF_AFTER_BUILD, "refine": 1}

    def use(self, setting: Setting) -> None:
        refining = {"is_using_refiner": True, "scale_factor": setting["refine"]} if setting["refine"] else {}
        self._params = self._query_params(setting["ef"], refining)

    def one(self, query: Any) -> Any:
        wanted = self._zvec.Query("v", vector=query, param=self._params)
        return self._rows[self._collection.query_internal_ids(wanted, topk=K)]

    def batch(self, queries: Any, threads: int) -> Any:
        return self.batch_by_threads(queries, threads)


class ZvecVamana(Zvec):
    """The same with a Vamana graph."""

    def _index_params(self) -> Any:
        return self._zvec.VamanaIndexParam(
            alpha=1.2, max_degree=2 * M, search_list_size=EF_CONSTRUCTION, **self._common_params()
        )

    def _query_params(self, ef: int, refining: dict[str, Any]) -> Any:
        return self._zvec.VamanaQueryParam(ef_search=ef, **refining)
