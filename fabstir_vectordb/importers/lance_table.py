"""Tables of LanceDB, read by LanceDB's own library: only files that are trusted.

LanceDB's format has no reader that is made for hostile files, here or elsewhere. Rows come as Arrow batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from fabstir_vectordb.arrow import TableColumns, batches_of, load_pyarrow
from fabstir_vectordb.errors import IntegrityError, InvalidConfigError, InvalidInputError, NotFoundError
from fabstir_vectordb.extras import pip_command
from fabstir_vectordb.importers.base import MIGRATE_ROWS, ForeignRow, Metric, Source, one_name, storable

__all__ = ["LanceTable"]

_PACKAGES: Final = ("lancedb>=0.20",)
_METRICS: Final[dict[str, Metric]] = {"l2": "l2", "cosine": "cosine", "dot": "dot"}


class LanceTable(Source):
    """A table of a LanceDB folder. Its library reads the files, so they must be trusted.

    Args:
        path: the folder that ``lancedb.connect`` was given.
        table: the table; needed where there are several.
        id: the column of the ids; without one, rows get their numbers as ids.
        vector: the column of the vectors; needed where there are several.

    Raises:
        InvalidConfigError: lancedb is not installed.
        NotFoundError: there is no such folder or table.
        InvalidInputError: a choice is needed, or the table has no such column.
        IntegrityError: LanceDB cannot read it.
    """

    format = "lancedb"

    def __init__(
        self, path: str | Path, *, table: str | None = None, id: str | None = None, vector: str | None = None
    ) -> None:
        super().__init__()
        self._arrow = load_pyarrow()
        try:
            import lancedb
        except ImportError:
            raise InvalidConfigError(f"tables of LanceDB need lancedb: {pip_command(_PACKAGES)}") from None
        if not Path(path).is_dir():
            raise NotFoundError(f"{path} is no folder")
        try:
            database = lancedb.connect(str(path))
            names = [entry.name.removesuffix(".lance") for entry in Path(path).glob("*.lance")]
            self._table = database.open_table(one_name("table", names, table))
            self._schema = self._table.schema
            self._metric()
        except (NotFoundError, InvalidInputError):
            raise
        except Exception as error:  # LanceDB raises several kinds, RuntimeError among them
            raise IntegrityError(f"LanceDB cannot read {path}: {error}") from error
        self._id = "id" if id is None and "id" in self._schema.names else id
        self._columns = TableColumns(id=self._id or "", vector=vector)

    def _metric(self) -> None:
        """The metric of the table's index."""
        for index in self._table.list_indices():
            stats = self._table.index_stats(index.name)
            found = _METRICS.get(str(getattr(stats, "distance_type", "")).lower())
            if found is not None:
                self.metric = found
                return
        self.metric = "l2"
        self.notes.say("the table has no index of vectors, so the metric is LanceDB's default, l2")

    def rows(self) -> Iterator[ForeignRow]:
        """The rows of the table's newest version."""
        reader = self._batches()
        if self._id is None:
            self.notes.say("the table has no column id, so rows got their numbers as ids")
        for batch in batches_of(reader, self._columns, MIGRATE_ROWS):
            times = _listed(batch.timestamps, len(batch.ids))
            metadata = batch.metadata or [None] * len(batch.ids)
            for id, vector, value, time in zip(batch.ids, batch.vectors, metadata, times, strict=True):
                numbers = None if vector is None else np.asarray(vector, dtype=np.float32)
                yield ForeignRow(id, numbers, storable(value, self.notes), time)

    def _batches(self) -> Any:
        arrow = self._arrow
        reader = self._table.search().to_batches(MIGRATE_ROWS)
        if self._id is not None:
            return reader
        self._columns = TableColumns(id="_number", vector=self._columns.vector)

        def numbered() -> Iterator[Any]:
            first = 0
            for batch in reader:
                numbers = arrow.array(range(first, first + batch.num_rows), arrow.int64())
                first += batch.num_rows
                yield batch.append_column("_number", numbers)

        schema = reader.schema.append(arrow.field("_number", arrow.int64()))
        return arrow.RecordBatchReader.from_batches(schema, numbered())


def _listed(times: Any, n: int) -> list[Any]:
    if times is None:
        return [None] * n
    if isinstance(times, np.ndarray) and times.dtype.kind == "M":
        return [float(value) / 1e6 for value in times.astype("datetime64[us]").astype(np.int64)]
    return list(times)
