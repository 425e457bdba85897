"""Other whole databases as `Database`, each through its public interface."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from harness.contract import EF_CONSTRUCTION, Database, K, M, Setting
from harness.measure import latencies

Hits = list[tuple[str, Any]]


class _Synchronous(Database):
    """A database with one synchronous call for each query."""

    def _query(self, setting: Setting) -> Callable[[Any], Hits]:
        raise NotImplementedError

    def answer(self, queries: Any, setting: Setting) -> tuple[list[list[str]], list[float]]:
        found, micros = latencies(self._query(setting), queries)
        return [[id for id, _ in hits] for hits in found], micros


class ZvecDatabase(_Synchronous):
    """A zvec collection with its HNSW index on float32."""

    def _index_params(self, zvec: Any) -> Any:
        return zvec.HnswIndexParam(metric_type=zvec.MetricType.IP, m=M, ef_construction=EF_CONSTRUCTION)

    def add(self, base: Any, metadata: list[dict[str, str]]) -> None:
        zvec = self._zvec = importlib.import_module("zvec")
        zvec.init(log_level=zvec.LogLevel.ERROR)
        names = sorted(metadata[0])
        schema = zvec.CollectionSchema(
            "bench",
            fields=[zvec.FieldSchema(name, zvec.DataType.STRING) for name in names],
            vectors=[
                zvec.VectorSchema("v", zvec.DataType.VECTOR_FP32, base.shape[1], index_param=self._index_params(zvec))
            ],
        )
        self._collection = zvec.create_and_open(str(self.path / "collection"), schema)
        for first in range(0, len(base), 1_000):
            rows = range(first, min(first + 1_000, len(base)))
            self._collection.insert(
                [zvec.Doc(id=str(row), vectors={"v": base[row]}, fields=metadata[row]) for row in rows]
            )
        self._collection.optimize(zvec.OptimizeOption())

    def store(self) -> None:
        self._collection.flush()

    def settings(self) -> list[Setting]:
        return [{"ef": ef} for ef in (50, 100, 200)]

    def _query(self, setting: Setting) -> Callable[[Any], Hits]:
        refining = {"is_using_refiner": True, "scale_factor": setting["refine"]} if setting.get("refine") else {}
        params = self._zvec.HnswQueryParam(ef=setting["ef"], **refining)

        def query(vector: Any) -> Hits:
            wanted = self._zvec.Query("v", vector=vector, param=params)
            return [(row.id, row.fields) for row in self._collection.query(wanted, topk=K)]

        return query

    def close(self) -> None:
        self._collection.close()


class ZvecCodedDatabase(ZvecDatabase):
    """A zvec collection on 8-bit codes in contiguous memory, its faster index."""

    def _index_params(self, zvec: Any) -> Any:
        return zvec.HnswIndexParam(
            metric_type=zvec.MetricType.L2,
            m=M,
            ef_construction=EF_CONSTRUCTION,
            quantize_type=zvec.QuantizeType.UNIFORM_UINT8,
            use_contiguous_memory=True,
        )

    def settings(self) -> list[Setting]:
        return [{"ef": ef, "refine": refine} for refine in (0, 2) for ef in (50, 100, 200)]


class Chroma(_Synchronous):
    """A persistent Chroma collection; its ef is fixed when the collection is made."""

    def add(self, base: Any, metadata: list[dict[str, str]]) -> None:
        chromadb = importlib.import_module("chromadb")
        settings = importlib.import_module("chromadb.config").Settings(anonymized_telemetry=False)
        graph = {"space": "cosine", "max_neighbors": M, "ef_construction": EF_CONSTRUCTION, "ef_search": 100}
        self._client = chromadb.PersistentClient(str(self.path), settings=settings)
        self._collection = self._client.create_collection(
            "bench", configuration={"hnsw": graph}, embedding_function=None
        )
        for first in range(0, len(base), 5_000):
            past = min(first + 5_000, len(base))
            self._collection.add(
                ids=[str(row) for row in range(first, past)],
                embeddings=base[first:past],
                metadatas=metadata[first:past],
            )

    def settings(self) -> list[Setting]:
        return [{"ef": 100}]

    def _query(self, setting: Setting) -> Callable[[Any], Hits]:
        def query(vector: Any) -> Hits:
            found = self._collection.query(query_embeddings=[vector], n_results=K, include=["metadatas"])
            return list(zip(found["ids"][0], found["metadatas"][0], strict=True))

        return query


class Lance(_Synchronous):
    """A LanceDB table with IVF_HNSW_SQ in one partition, its graph index."""

    def add(self, base: Any, metadata: list[dict[str, str]]) -> None:
        lancedb, arrow = importlib.import_module("lancedb"), importlib.import_module("pyarrow")
        self._columns = ["id", *sorted(metadata[0])]
        values = {name: [record[name] for record in metadata] for name in self._columns[1:]}
        vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(base.reshape(-1)), base.shape[1])
        rows = arrow.table({"id": [str(row) for row in range(len(base))], "vector": vectors, **values})
        self._table = lancedb.connect(str(self.path)).create_table("bench", rows)
        self._table.create_index(
            metric="cosine",
            vector_column_name="vector",
            index_type="IVF_HNSW_SQ",
            num_partitions=1,
            m=M,
            ef_construction=EF_CONSTRUCTION,
        )

    def settings(self) -> list[Setting]:
        return [{"ef": 100, "refine": 2}]

    def _query(self, setting: Setting) -> Callable[[Any], Hits]:
        def query(vector: Any) -> Hits:
            search = self._table.search(vector, vector_column_name="vector").limit(K).ef(setting["ef"])
            rows = search.refine_factor(setting["refine"]).select(self._columns).to_list()
            return [(row["id"], row) for row in rows]

        return query
