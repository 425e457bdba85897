"""A client for VectorDBBench.

VectorDBBench copies a client into its processes and opens it in each. So a client holds settings alone; `init` opens a
session on the store, which must be one that processes share: a folder or a portal. What was inserted is saved when the
session ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fabstir_vectordb.errors import InvalidConfigError
from fabstir_vectordb.integrations import needing
from fabstir_vectordb.sync import VectorDBSession

with needing("vectordbbench"):
    from vectordb_bench.backend.clients.api import VectorDB
    from vectordb_bench.backend.filter import Filter, FilterOp

__all__ = ["FabstirClient"]


class FabstirClient(VectorDB):
    """VectorDBBench's client over a session.

    Args:
        dim: ignored: the first vector sets it.
        db_config: settings of VectorDBConfig; ``s5_portal``, ``user_seed_phrase`` and ``session_id`` are required.
        db_case_config: its ``search_param`` are options of a search; None for none.
        collection_name: the name of the index.
        drop_old: begin with an empty index.

    Raises:
        InvalidConfigError: a setting is missing, unknown or out of range, or the store is in this process's memory.
    """

    name = "fabstir_vectordb"
    thread_safe = True
    supported_filter_types = [FilterOp.NonFilter, FilterOp.NumGE, FilterOp.StrEqual]  # noqa: RUF012  # as its base has it

    def __init__(
        self,
        dim: int,
        db_config: Mapping[str, Any],
        db_case_config: Any = None,
        collection_name: str = "vectordbbench",
        drop_old: bool = False,
        **_: Any,
    ) -> None:
        self._settings = {"memory_budget_mb": 16_000, **db_config, "index_name": collection_name.lower()}
        if str(self._settings.get("s5_portal", "")).startswith("memory:"):
            raise InvalidConfigError("processes do not share memory: give a folder or a portal as s5_portal")
        self._options = db_case_config.search_param() if db_case_config is not None else {}
        self._filter: Mapping[str, Any] | None = None
        self._session: VectorDBSession | None = None
        if drop_old:
            with VectorDBSession.create(self._settings) as session:
                session.save_to_s5(on_conflict="overwrite")

    @contextmanager
    def init(self) -> Iterator[None]:
        """Opens the index for the calls within, and saves what they changed."""
        with VectorDBSession.create(self._settings) as session:
            session.load_user_vectors(missing_ok=True, lazy_load=False)
            self._session = session
            try:
                yield
                if session.get_stats().dirty:
                    session.save_to_s5()
            finally:
                self._session = None

    def _opened(self) -> VectorDBSession:
        if self._session is None:
            raise InvalidConfigError("call it within init()")
        return self._session

    def insert_embeddings(
        self, embeddings: Any, metadata: list[int], labels_data: list[str] | None = None, **_: Any
    ) -> tuple[int, Exception | None]:
        """Inserts rows.

        Args:
            embeddings: their vectors.
            metadata: their ids, which filters compare.
            labels_data: their labels, or None.

        Returns:
            How many were inserted, and the error if none was.
        """
        labels = labels_data if labels_data is not None else [None] * len(metadata)
        rows = [{"id": int(id), "label": label} for id, label in zip(metadata, labels, strict=True)]
        try:
            self._opened().add_batch([str(id) for id in metadata], embeddings, rows, on_conflict="replace")
        except Exception as error:  # VectorDBBench decides whether it tries again
            return 0, error
        return len(metadata), None

    def prepare_filter(self, filters: Filter) -> None:
        """Sets the filter of the searches that follow.

        Raises:
            ValueError: the filter is of another kind.
        """
        match filters.type:
            case FilterOp.NonFilter:
                self._filter = None
            case FilterOp.NumGE:
                self._filter = {"id": {"$gte": filters.int_value}}
            case FilterOp.StrEqual:
                self._filter = {"label": filters.label_value}
            case _:
                raise ValueError(f"a filter of kind {filters.type} is not supported")

    def search_embedding(self, query: list[float], k: int = 100, **_: Any) -> list[int]:
        """The ids of the k nearest rows that match the prepared filter."""
        hits = self._opened().search(query, k, filter=self._filter, threshold=None, **self._options)
        return list(map(int, hits.ids))

    def optimize(self, data_size: int | None = None) -> None:
        """Measures the default search, which the first search would do otherwise."""
        session = self._opened()
        if session.count():
            vector = next(iter(session.scan())).vector
            session.search(vector, 1)
