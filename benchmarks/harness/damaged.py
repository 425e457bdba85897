"""Small stores of each library, which are written once and asked after damage."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fabstir_vectordb import sync
from harness import ours

K = 10


class Stored(ABC):
    """A library's files of some rows with a text each, in a folder of their own.

    Attributes:
        module, package, title: as in `registry.Entry`.
        imports: modules that are imported once for all trials, which are forked: none that starts threads.
    """

    module: ClassVar[str]
    package: ClassVar[str]
    title: ClassVar[str]
    imports: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def write(self, folder: Path, base: Any, texts: list[str]) -> None:
        """Writes the rows, numbered from 0, as the library's users do."""

    @abstractmethod
    def ask(self, folder: Path, queries: Any) -> Any:
        """Opens the files, searches for the nearest rows of each query, and reads all rows back; as JSON."""


def _exact(vectors: Any) -> list[str]:
    return [np.asarray(vector, np.float32).tobytes().hex() for vector in vectors]


class Fabstir(Stored):
    """A session on a directory."""

    module, package, title = "fabstir_vectordb", "fabstir_vectordb", "fabstir_vectordb"

    def write(self, folder: Path, base: Any, texts: list[str]) -> None:
        with sync.VectorDBSession.create(**ours.fields(folder.as_uri(), 1)) as session:
            session.add_batch([str(row) for row in range(len(base))], base, [{"text": text} for text in texts])
            session.save_to_s5()

    def ask(self, folder: Path, queries: Any) -> Any:
        with sync.VectorDBSession.create(**ours.fields(folder.as_uri(), 1)) as session:
            session.load_user_vectors()
            hits = [[(hit.id, hit.distance) for hit in session.search(one, K, threshold=None)] for one in queries]
            rows = list(session.scan())
            found = session.get([row.id for row in rows])
            return hits, [(row.id, row.metadata, _exact([row.vector])) for row in found if row is not None]


class Hnswlib(Stored):
    """An index file; texts are left to its users."""

    module, package, title = "hnswlib", "hnswlib", "hnswlib"
    imports = ("hnswlib",)

    def write(self, folder: Path, base: Any, texts: list[str]) -> None:
        index = importlib.import_module("hnswlib").Index(space="l2", dim=base.shape[1])
        index.init_index(max_elements=len(base), M=16, ef_construction=200)
        index.add_items(base, num_threads=1)
        index.save_index(str(folder / "index.bin"))

    def ask(self, folder: Path, queries: Any) -> Any:
        index = importlib.import_module("hnswlib").Index(space="l2", dim=queries.shape[1])
        index.load_index(str(folder / "index.bin"))
        index.set_ef(100)
        labels, distances = index.knn_query(queries, k=K, num_threads=1)
        ids = sorted(index.get_ids_list())
        return labels.tolist(), _exact(distances), ids, _exact(index.get_items(ids))


class Faiss(Stored):
    """An index file of a graph over float32 rows; texts are left to its users."""

    module, package, title = "faiss", "faiss-cpu", "FAISS, HNSW"
    imports = ("faiss",)

    def write(self, folder: Path, base: Any, texts: list[str]) -> None:
        faiss = importlib.import_module("faiss")
        faiss.omp_set_num_threads(1)
        index = faiss.IndexHNSWFlat(base.shape[1], 16)
        index.add(np.ascontiguousarray(base))
        faiss.write_index(index, str(folder / "index.faiss"))

    def ask(self, folder: Path, queries: Any) -> Any:
        faiss = importlib.import_module("faiss")
        faiss.omp_set_num_threads(1)
        index = faiss.read_index(str(folder / "index.faiss"))
        index.hnsw.efSearch = 100
        distances, labels = index.search(np.ascontiguousarray(queries), K)
        return labels.tolist(), _exact(distances), index.ntotal, _exact(index.reconstruct_n(0, index.ntotal))


class Chroma(Stored):
    """A persistent collection."""

    module, package, title = "chromadb", "chromadb", "Chroma"
    imports = ("chromadb",)

    def _client(self, folder: Path) -> Any:
        settings = importlib.import_module("chromadb.config").Settings(anonymized_telemetry=False)
        return importlib.import_module("chromadb").PersistentClient(str(folder), settings=settings)

    def write(self, folder: Path, base: Any, texts: list[str]) -> None:
        # The index reaches the disk with every so many rows; until then all is in the write-ahead log.
        graph = {"space": "l2", "sync_threshold": len(base) // 2, "batch_size": len(base) // 4}
        collection = self._client(folder).create_collection(
            "rows", configuration={"hnsw": graph}, embedding_function=None
        )
        ids = [str(row) for row in range(len(base))]
        collection.add(ids=ids, embeddings=base, documents=texts)

    def ask(self, folder: Path, queries: Any) -> Any:
        collection = self._client(folder).get_collection("rows", embedding_function=None)
        found = collection.query(query_embeddings=queries, n_results=K, include=["distances"])
        rows = collection.get(include=["documents", "embeddings"])
        order = np.argsort(rows["ids"]).tolist()
        stored = [(rows["ids"][at], rows["documents"][at], _exact([rows["embeddings"][at]])) for at in order]
        return found["ids"], found["distances"], stored


class Lance(Stored):
    """A table, searched exactly."""

    module, package, title = "lancedb", "lancedb", "LanceDB"
    imports = ("pyarrow", "pandas", "pydantic")  # lancedb starts a thread when it is imported

    def write(self, folder: Path, base: Any, texts: list[str]) -> None:
        rows = [{"id": str(row), "vector": base[row].tolist(), "text": texts[row]} for row in range(len(base))]
        importlib.import_module("lancedb").connect(str(folder)).create_table("rows", rows)

    def ask(self, folder: Path, queries: Any) -> Any:
        table = importlib.import_module("lancedb").connect(str(folder)).open_table("rows")
        hits = [[(hit["id"], hit["_distance"]) for hit in table.search(one).limit(K).to_list()] for one in queries]
        rows = table.to_arrow().to_pylist()
        return hits, [(row["id"], row["text"], _exact([row["vector"]])) for row in rows]


class Qdrant(Stored):
    """A collection of the client's local mode."""

    module, package, title = "qdrant_client", "qdrant-client", "Qdrant, local mode"
    imports = ("qdrant_client",)

    def _client(self, folder: Path) -> Any:
        return importlib.import_module("qdrant_client").QdrantClient(path=str(folder))

    def write(self, folder: Path, base: Any, texts: list[str]) -> None:
        models = importlib.import_module("qdrant_client.models")
        client = self._client(folder)
        settings = models.VectorParams(size=base.shape[1], distance=models.Distance.EUCLID)
        client.create_collection("rows", vectors_config=settings)
        points = [
            models.PointStruct(id=row, vector=base[row].tolist(), payload={"text": texts[row]})
            for row in range(len(base))
        ]
        client.upsert("rows", points)
        client.close()

    def ask(self, folder: Path, queries: Any) -> Any:
        client = self._client(folder)
        asked = [client.query_points("rows", query=one.tolist(), limit=K).points for one in queries]
        rows, _ = client.scroll("rows", limit=100_000, with_vectors=True)
        stored = [(row.id, row.payload, _exact([row.vector])) for row in sorted(rows, key=lambda row: row.id)]
        return [[(point.id, point.score) for point in points] for points in asked], stored


STORED: dict[str, Stored] = {
    "fabstir": Fabstir(),
    "hnswlib": Hnswlib(),
    "faiss": Faiss(),
    "chroma": Chroma(),
    "lance": Lance(),
    "qdrant": Qdrant(),
}


def present(wanted: list[str] | None) -> tuple[list[str], dict[str, str]]:
    """The names that are installed, and for each other the reason why it is skipped.

    Raises:
        SystemExit: a wanted name is unknown.
    """
    names = list(STORED) if wanted is None else wanted
    for name in names:
        if name not in STORED:
            raise SystemExit(f"unknown name {name!r}: one of {', '.join(STORED)}")
    found = [name for name in names if importlib.util.find_spec(STORED[name].module) is not None]
    return found, {name: f"not installed: pip install {STORED[name].package}" for name in names if name not in found}
