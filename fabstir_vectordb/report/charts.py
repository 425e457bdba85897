"""Pictures of a report: HTML and SVG without scripts or style attributes, which the page's policy forbids."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from fabstir_vectordb.types import RecallPoint, RecallReport

__all__ = ["bars", "data_size", "recall_chart", "setting"]

_Scale = Callable[[float], float]

# Recall chart, in units of the SVG: its size, and the frame of the plot.
_WIDTH: Final = 400
_HEIGHT: Final = 270
_LEFT: Final = 44
_RIGHT: Final = 388
_TOP: Final = 12
_BOTTOM: Final = 226


def data_size(size: float) -> str:
    """A number of bytes for people, in powers of 1,000."""
    power = 0
    while size >= 1000 and power < 4:
        size, power = size / 1000, power + 1
    unit = ("B", "kB", "MB", "GB", "TB")[power]
    return f"{size:.0f} {unit}" if power == 0 or size >= 100 else f"{size:.1f} {unit}"


def bars(rows: Iterable[tuple[str, float, str]]) -> str:
    """A table with a bar in each line.

    Args:
        rows: label, value and the text of the value.
    """
    rows = list(rows)
    most = max((value for _, value, _ in rows), default=0) or 1
    lines = "".join(
        f'<tr><th scope="row">{html.escape(label)}</th><td class="bar"><svg viewBox="0 0 100 10" '
        f'preserveAspectRatio="none" aria-hidden="true"><rect width="{100 * value / most:.2f}" height="10"/></svg></td>'
        f'<td class="number">{html.escape(text)}</td></tr>'
        for label, value, text in rows
    )
    return f'<table class="bars">{lines}</table>'


def setting(point: RecallPoint) -> str:
    """The setting of a point, for people."""
    if point.exact:
        return "exact"
    return f"ef_search {point.ef_search}" if point.ef_search else f"nprobe {point.nprobe}"


def recall_chart(report: RecallReport) -> str:
    """Recall against the median latency of a search, on a logarithmic axis."""
    shown = [report.default, *report.points]
    times = [max(point.p50_us, 0.1) for point in shown]
    low, high = math.log10(min(times)) - 0.08, math.log10(max(times)) + 0.08
    lack = 1 - min(point.recall for point in shown)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if lack <= 5.5 * step)
    floor = 1 - step * max(math.ceil(lack / step + 0.3), 2)

    def x(micros: float) -> float:
        return _LEFT + (math.log10(max(micros, 0.1)) - low) / (high - low) * (_RIGHT - _LEFT)

    def y(recall: float) -> float:
        return _BOTTOM - (recall - floor) / (1 - floor) * (_BOTTOM - _TOP)

    parts = [*_recall_axis(floor, step, y), *_time_axis(low, high, x)]
    for name in ("ef_search", "nprobe"):
        parts += _line(name, [point for point in report.points if getattr(point, name)], x, y)
    for kind, points in (("exact", [point for point in report.points if point.exact]), ("default", [report.default])):
        parts += [_mark(kind, point, x(point.p50_us), y(point.recall), 6) for point in points]
    title = f"recall@{report.k} against microseconds per search"
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
        + _legend(report)
    )


def _recall_axis(floor: float, step: float, y: _Scale) -> Iterable[str]:
    for number in range(round((1 - floor) / step) + 1):
        recall = 1 - number * step
        yield f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y(recall):.1f}" y2="{y(recall):.1f}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y(recall) + 4:.1f}" text-anchor="end">{recall:.2f}</text>'


def _time_axis(low: float, high: float, x: _Scale) -> Iterable[str]:
    span = high - low
    steps = (1, 2, 3, 4, 5, 7) if span < 0.9 else (1, 2, 5) if span < 1.6 else (1, 3) if span < 3 else (1,)
    for power in range(math.floor(low), math.ceil(high) + 1):
        for step in steps:
            micros = step * 10.0**power
            if low <= math.log10(micros) <= high:
                at = f"{x(micros):.1f}"
                yield f'<line class="grid" x1="{at}" x2="{at}" y1="{_TOP}" y2="{_BOTTOM}"/>'
                yield f'<text x="{at}" y="{_BOTTOM + 17}" text-anchor="middle">{_micros(micros)}</text>'
    yield (
        f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_BOTTOM + 36}" text-anchor="middle">median time of a search '
        "(logarithmic)</text>"
    )


def _micros(micros: float) -> str:
    return f"{micros:g} µs" if micros < 1000 else f"{micros / 1000:g} ms"


def _line(kind: str, points: Sequence[RecallPoint], x: _Scale, y: _Scale) -> Iterable[str]:
    if not points:
        return
    places = " ".join(f"{x(point.p50_us):.1f},{y(point.recall):.1f}" for point in points)
    yield f'<polyline class="{kind}" points="{places}"/>'
    for point in points:
        yield _mark(kind, point, x(point.p50_us), y(point.recall), 3.5)


def _mark(kind: str, point: RecallPoint, x: float, y: float, radius: float) -> str:
    name = "default" if kind == "default" else setting(point)
    said = f"{name}: recall {point.recall:.4f}, {point.p50_us:.0f} µs"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{said}</title></circle>'


def _legend(report: RecallReport) -> str:
    kinds = {"default": "a search without settings"}
    if any(point.ef_search for point in report.points):
        kinds["ef_search"] = "ef_search"
    if any(point.nprobe for point in report.points):
        kinds["nprobe"] = "nprobe"
    if any(point.exact for point in report.points):
        kinds["exact"] = "exact"
    entries = "".join(
        f'<span><svg viewBox="0 0 10 10" aria-hidden="true"><circle class="{kind}" cx="5" cy="5" r="4"/></svg>{text}'
        "</span>"
        for kind, text in kinds.items()
    )
    return f'<p class="legend">{entries}</p>'
