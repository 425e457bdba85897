"""The contents of a report: what is asked for, and how it is read from a session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

import numpy as np

from fabstir_vectordb._native.handle import Control
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.index.index import Index, Sample
from fabstir_vectordb.index.protocol import Gathered, Reach
from fabstir_vectordb.metadata.filter_parse import check_field
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.recall import measure_recall
from fabstir_vectordb.report.columns import column_of
from fabstir_vectordb.report.index_report import IndexReport
from fabstir_vectordb.report.page import Contents, MapContents, page_of
from fabstir_vectordb.report.projection import PROJECTIONS, SEED, Method, project
from fabstir_vectordb.report.umap_map import check_umap
from fabstir_vectordb.runtime import AnyIndex, Runtime
from fabstir_vectordb.types import Row, SessionStats
from fabstir_vectordb.workspace import Workspace

__all__ = ["FIELDS_MAX", "RECALL_SAMPLE_MAX", "SAMPLE_MAX", "ReportRequest", "make_report", "make_request"]

#: Most fields of a report.
FIELDS_MAX: Final = 20
#: Most rows of a map.
SAMPLE_MAX: Final = 20_000
#: Most queries of the measurement of recall.
RECALL_SAMPLE_MAX: Final = 10_000
#: Most bytes of the vectors of a map.
_VECTOR_BYTES_MAX: Final = 64_000_000
_NEIGHBOURS: Final = 10


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """What a report shows.

    Attributes:
        fields: paths of the fields whose values it holds.
        sample: most rows of the map; 0 for no map.
        recall_sample: queries of the measurement of recall; 0 for none.
        projection: how the map is drawn.
    """

    fields: tuple[str, ...]
    sample: int
    recall_sample: int
    projection: Method


def make_request(fields: object, sample: object, recall_sample: object, projection: object) -> ReportRequest:
    """A request from the arguments of a verb.

    Raises:
        InvalidInputError: an argument is refused.
        InvalidConfigError: the projection needs a package that is not installed.
    """
    if isinstance(fields, (str, bytes)) or not isinstance(fields, Iterable):
        raise InvalidInputError(f"fields must be a list of paths, got {shown(fields)}", details={"option": "fields"})
    paths = tuple(dict.fromkeys(check_field(path) for path in fields))
    if len(paths) > FIELDS_MAX:
        raise InvalidInputError(
            f"a report has at most {FIELDS_MAX} fields, got {len(paths)}", details={"limit": FIELDS_MAX}
        )
    if projection not in PROJECTIONS:
        raise InvalidInputError(
            f"projection must be one of {', '.join(PROJECTIONS)}, got {shown(projection)}",
            details={"option": "projection"},
        )
    if projection == "umap":
        check_umap()
    return ReportRequest(
        paths,
        _count("sample", sample, SAMPLE_MAX),
        _count("recall_sample", recall_sample, RECALL_SAMPLE_MAX),
        projection,
    )


def _count(name: str, value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value <= most:
        raise InvalidInputError(
            f"{name} must be an integer from 0 to {most:,}, got {shown(value)}",
            details={"option": name, "limit": most},
        )
    return int(value)


async def make_report(
    runtime: Runtime,
    workspace: Workspace,
    request: ReportRequest,
    stats: Callable[[AnyIndex], SessionStats],
    recall_target: float | None,
) -> IndexReport:
    """Reads the versions and the whole index, and makes the page.

    Raises:
        VectorDBError: the history or the rest of a lazily loaded index cannot be read.
    """
    sizes = await runtime.exclusive(workspace.version_sizes)

    def read(index: Index, _: Gathered, control: Control | None) -> IndexReport:
        recall = None
        if request.recall_sample:
            recall = measure_recall(index, request.recall_sample, _NEIGHBOURS, recall_target, control)
        contents = Contents(
            name=workspace.index_name,
            at_us=workspace.now_us(),
            metric=index.metric,
            dim=index.vector_dim,
            stats=stats(index),
            recall=recall,
            versions=None if sizes is None else sizes[0],
            version_count=0 if sizes is None else sizes[1],
            map=_map_of(index, request, control) if request.sample else None,
        )
        return page_of(contents)

    return await runtime.cancellable(Reach.WHOLE, read)


def _map_of(index: Index, request: ReportRequest, control: Control | None) -> MapContents:
    ids, total = index.sampled(partial(_sampled_ids, sample=request.sample, dim=index.vector_dim or 1))
    # A row that was deleted since, or lost its vector, is left out.
    rows: list[Row] = [row for row in index.get(ids) if row is not None and row.vector is not None]
    vectors = np.array([row.vector for row in rows], dtype=np.float32) if rows else np.zeros((0, 1), dtype=np.float32)
    return MapContents(
        total=total,
        projection=project(vectors, index.metric, request.projection, control),
        columns=[column_of(path, rows) for path in request.fields],
    )


def _sampled_ids(rows: Sample | None, sample: int, dim: int) -> tuple[Sequence[str], int]:
    """The ids of some of the rows that have a vector, always the same ones, and how many there are."""
    if rows is None or not len(rows.slots):
        return [], 0
    most = min(sample, _VECTOR_BYTES_MAX // (4 * dim), len(rows.slots))
    chosen = np.random.default_rng(SEED).choice(len(rows.slots), most, replace=False)
    return rows.native.get_ids(rows.slots[np.sort(chosen)]), len(rows.slots)
