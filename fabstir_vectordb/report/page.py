"""The page of a report.

Everything is inside one file. A content security policy allows the one script and the one style sheet of this package,
by their hashes, and no request at all. Values of rows stand in a JSON block, where ``<``, ``>`` and ``&`` are escapes:
no value ends the block. The script shows them as text. The page has neither CIDs nor ids nor metadata, other than the
values of the fields that the caller named.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from fabstir_vectordb.config import Metric
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.persist.version_sizes import VersionSize
from fabstir_vectordb.report.charts import bars, data_size, recall_chart, setting
from fabstir_vectordb.report.columns import Column
from fabstir_vectordb.report.index_report import IndexReport
from fabstir_vectordb.report.projection import Projection
from fabstir_vectordb.types import RecallReport, SessionStats

__all__ = ["Contents", "MapContents", "page_of"]

#: Coordinates of the map are integers from 0 to this: finer than any screen.
_GRID: Final = 16_383


@dataclass(frozen=True, slots=True, kw_only=True)
class MapContents:
    """The rows of a map.

    Attributes:
        total: rows that have a vector.
        projection: those drawn, in two dimensions.
        columns: the values of named fields.
    """

    total: int
    projection: Projection
    columns: Sequence[Column]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a page shows.

    Attributes:
        name: name of the index.
        at_us: when the report was made, microseconds since 1970.
        metric, dim: of the index; None for `dim` while no row has a vector.
        stats: counts and memory.
        recall: recall and latency; None where they were not measured.
        versions: the newest versions, newest first; None where they are not known.
        version_count: number of all versions.
        map: the map, or None.
    """

    name: str
    at_us: int
    metric: Metric
    dim: int | None
    stats: SessionStats
    recall: RecallReport | None
    versions: Sequence[VersionSize] | None
    version_count: int
    map: MapContents | None


def page_of(contents: Contents) -> IndexReport:
    """The page of a report."""
    style, script = _package_text("page.css"), _package_text("page.js")
    drawn = 0 if contents.map is None else len(contents.map.projection.points)
    columns: Sequence[Column] = () if contents.map is None else contents.map.columns
    page = _filled(
        _package_text("page.html"),
        {
            "policy": "; ".join(
                (
                    "default-src 'none'",
                    f"script-src '{_hash(script)}'",
                    f"style-src '{_hash(style)}'",
                    "img-src data:",
                    "base-uri 'none'",
                    "form-action 'none'",
                )
            ),
            "name": html.escape(contents.name),
            "style": style,
            "when": f"{datetime.fromtimestamp(contents.at_us / 1e6, UTC):%Y-%m-%d %H:%M} UTC",
            "notice": html.escape(_notice(contents, drawn, columns)),
            "tiles": _tiles(contents),
            "map": "" if contents.map is None else _map(contents.map, drawn),
            "sides": _sides(contents.stats),
            "memory": _memory(contents.stats),
            "recall": _recall(contents.recall),
            "versions": _versions(contents),
            "data": _data(contents.map),
            "script": script,
        },
    )
    return IndexReport(
        # The path of a field may hold a lone surrogate, which no file can.
        html=page.encode(errors="replace").decode(),
        index_name=contents.name,
        rows=contents.stats.vector_count,
        rows_drawn=drawn,
        fields=tuple(column.name for column in columns),
    )


@cache
def _package_text(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _filled(template: str, values: dict[str, str]) -> str:
    """A template with its places filled; a value is not searched for places."""
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], template)


def _notice(contents: Contents, drawn: int, columns: Sequence[Column]) -> str:
    held = ["counts, sizes and times of the index"]
    if drawn:
        held.append(f"a map of {drawn:,} embeddings")
    if columns:
        held.append(f"the values of {', '.join(column.name for column in columns)} of these rows")
    return f"It holds {' and '.join((', '.join(held[:-1]), held[-1])) if held[1:] else held[0]}."


def _tiles(contents: Contents) -> str:
    stats = contents.stats
    tiles = [
        ("rows", f"{stats.vector_count:,}"),
        ("dimensions", "none yet" if contents.dim is None else f"{contents.dim:,}"),
        ("metric", contents.metric),
        ("index", stats.index_type),
        ("in memory", data_size(stats.memory_usage_mb * 1e6)),
        ("versions", "unknown" if contents.versions is None else f"{contents.version_count:,}"),
        ("unsaved changes", "yes" if stats.dirty else "no"),
    ]
    return "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in tiles)


def _map(contents: MapContents, drawn: int) -> str:
    if not drawn:
        return _card("map", "Map", "<p>No row has a vector.</p>")
    how = {"pca": "principal components (PCA)", "umap": "UMAP"}[contents.projection.method]
    some = f"{drawn:,} of {contents.total:,} rows, drawn at random" if drawn < contents.total else f"{drawn:,} rows"
    share = contents.projection.share
    kept = "" if share is None else f"; the two axes hold {share:.0%} of the variance"
    hint = "" if contents.columns else " No field was named, so rows have neither colours nor texts here."
    return _card(
        "map", "Map of the embeddings", f"<p>{some}, by {how}{kept}.{hint}</p>" + _package_text("map.html"), wide=True
    )


def _sides(stats: SessionStats) -> str:
    graph, lists, bare = stats.hnsw_vector_count, stats.ivf_vector_count, stats.without_vector_count
    counts = {
        "recent, in the graph": graph,
        "recent, scanned": max(stats.vector_count - graph - lists - bare, 0),
        "historical, in lists": lists,
        "without a vector": bare,
        "deleted rows": stats.deleted_count,
    }
    return bars((name, count, f"{count:,}") for name, count in counts.items())


def _memory(stats: SessionStats) -> str:
    kinds = sorted(stats.memory_bytes.items(), key=lambda kind: -kind[1])
    total = sum(stats.memory_bytes.values())
    return f"<p>{data_size(total)} in all.</p>" + bars((name, size, data_size(size)) for name, size in kinds if size)


def _recall(report: RecallReport | None) -> str:
    if report is None:
        return "<p>Not measured.</p>"
    if not report.sample:
        return "<p>There are too few rows to measure it.</p>"
    lines = (
        (name, f"{point.recall:.4f}", f"{point.p50_us:,.0f}", f"{point.p99_us:,.0f}")
        for name, point in (("default", report.default), *((setting(point), point) for point in report.points))
    )
    return (
        f"<p>recall@{report.k}, with {report.sample:,} of {report.rows:,} rows as queries, one at a time.</p>"
        f"{recall_chart(report)}<details><summary>Figures</summary>"
        f"{_table(['setting', 'recall', 'p50 µs', 'p99 µs'], lines)}</details>"
    )


def _versions(contents: Contents) -> str:
    if contents.versions is None:
        return "<p>A session without a phrase sees no history.</p>"
    if not contents.versions:
        return "<p>No version was saved yet.</p>"
    stored = [version.new_bytes for version in contents.versions if version.new_bytes is not None]
    whole = [version.bytes for version in contents.versions if version.bytes is not None]
    count = len(contents.versions)
    shown = (
        f"The newest {count:,} of {contents.version_count:,}" if count < contents.version_count else f"All {count:,}"
    )
    said = f"{shown}, newest first. Each save stores only what changed"
    if sum(whole):
        said += f": {data_size(sum(stored))} for versions of {data_size(sum(whole))}"
    table = _table(
        ["no.", "saved (UTC)", "stored", "size", "share", "rows", "deleted"], _version_lines(contents.versions)
    )
    return f"<p>{said}.</p>{table}"


def _version_lines(versions: Sequence[VersionSize]) -> Iterator[tuple[str, ...]]:
    for version in versions:
        entry = version.entry
        share = version.new_bytes / version.bytes if version.new_bytes is not None and version.bytes else None
        yield (
            f"{entry.revision:,}{' (refused)' if entry.refused else ''}",
            f"{datetime.fromtimestamp(entry.saved_us / 1e6, UTC):%Y-%m-%d %H:%M}",
            "" if version.new_bytes is None else data_size(version.new_bytes),
            "gone" if version.bytes is None else data_size(version.bytes),
            "" if share is None else f"{share:.1%}",
            "" if entry.vector_count is None else f"{entry.vector_count:,}",
            "" if entry.deleted_count is None else f"{entry.deleted_count:,}",
        )


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table whose cells are made here, of numbers and words of this package."""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _card(name: str, title: str, body: str, *, wide: bool = False) -> str:
    return f'<section id="{name}"{" class=wide" if wide else ""}><h2>{title}</h2>{body}</section>'


def _data(contents: MapContents | None) -> str:
    """The JSON that the script reads."""
    if contents is None:
        return "null"
    points = contents.projection.points
    low = points.min(axis=0, initial=np.inf) if len(points) else np.zeros(2)
    # One scale for both axes: distances on the map compare in all directions.
    spread = float((points - low).max(initial=0.0)) or 1.0
    places = np.rint((points - low) / spread * _GRID).astype(int)
    data: dict[str, Any] = {
        "grid": _GRID,
        "x": places[:, 0].tolist(),
        "y": places[:, 1].tolist(),
        "fields": [{"name": column.name, "kind": column.kind, "values": column.values} for column in contents.columns],
    }
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
