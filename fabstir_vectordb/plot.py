"""Plots of recall reports, drawn with matplotlib (extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from fabstir_vectordb.errors import InvalidConfigError, InvalidInputError
from fabstir_vectordb.extras import install_command

__all__ = ["Point", "Report", "check_picture", "draw_recall"]

_SUFFIXES: Final = (".pdf", ".png", ".svg")


class Point(Protocol):
    """The fields of a `types.RecallPoint` that a plot uses."""

    @property
    def ef_search(self) -> int | None: ...
    @property
    def nprobe(self) -> int | None: ...
    @property
    def exact(self) -> bool: ...
    @property
    def recall(self) -> float: ...
    @property
    def p50_us(self) -> float: ...


class Report(Protocol):
    """The fields of a `types.RecallReport` that a plot uses."""

    @property
    def k(self) -> int: ...
    @property
    def sample(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def default(self) -> Point: ...
    @property
    def points(self) -> Sequence[Point]: ...


def check_picture(path: Path) -> None:
    """Checks that a plot can be drawn; call it before a long measurement.

    Raises:
        InvalidConfigError: matplotlib is not installed.
        InvalidInputError: the suffix is not .pdf, .png or .svg.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise InvalidInputError(
            f"the file of a plot must end in {', '.join(_SUFFIXES)}, got {path.name!r}", details={"suffix": path.suffix}
        )
    _figure_class()


def draw_recall(report: Report, path: Path) -> None:
    """Draws recall against the median latency of a search.

    Raises:
        InvalidConfigError: matplotlib is not installed.
        InvalidInputError: the suffix is not .pdf, .png or .svg.
    """
    check_picture(path)
    figure = _figure_class()(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, points in (
        ("ef_search", [point for point in report.points if point.ef_search]),
        ("nprobe", [point for point in report.points if point.nprobe]),
    ):
        _draw_line(axes, name, points)
    for label, marker, points in (
        ("default", "*", [report.default]),
        ("exact", "D", [point for point in report.points if point.exact]),
    ):
        axes.plot([p.p50_us for p in points], [p.recall for p in points], marker, label=label, markersize=10)
    axes.set_xscale("log")
    axes.set_xlabel("microseconds per search (median, one at a time)")
    axes.set_ylabel(f"recall@{report.k}")
    axes.set_title(f"{report.sample} of {report.rows:,} rows as queries")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path)


def _draw_line(axes: Any, name: str, points: Sequence[Point]) -> None:
    if not points:
        return
    axes.plot([point.p50_us for point in points], [point.recall for point in points], "o-", label=name)
    for point in points:
        value = point.ef_search or point.nprobe
        axes.annotate(str(value), (point.p50_us, point.recall), textcoords="offset points", xytext=(4, -10), fontsize=7)


def _figure_class() -> Any:
    try:
        # pyplot is not used, as it would look for a display.
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidConfigError(
            f"drawing needs matplotlib: {install_command('plot')}", details={"extra": "plot"}
        ) from None
    return Figure
