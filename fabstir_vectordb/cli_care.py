"""The commands of the command line that look after an index: `optimize`, `vacuum` and `recall`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from fabstir_vectordb.cli_support import (
    Settings,
    StageBars,
    changes,
    json_option,
    load,
    loaded,
    open_session,
    save,
    tell,
)
from fabstir_vectordb.output_file import writing
from fabstir_vectordb.plot import check_picture
from fabstir_vectordb.types import RecallPoint

__all__ = ["optimize", "recall", "vacuum"]


@click.command()
@click.option(
    "--recent-window-s",
    type=click.FloatRange(0),
    help="Age in seconds from which rows move to lists; by default a week.",
)
@json_option()
@click.pass_obj
def optimize(settings: Settings, recent_window_s: float | None, as_json: bool) -> None:
    """Move old rows from the graph to lists, vacuum and save the index."""
    fields: dict[str, Any] = {} if recent_window_s is None else {"recent_window_s": recent_window_s}
    with loaded(settings, **fields) as session, changes(session):
        with StageBars() as bars:
            done = session.optimize(bars)
        cid = save(session)
    moved = f"moved {done.migrated} rows to lists{', trained anew' if done.trained else ''}"
    tell(as_json, {**done.to_dict(), "cid": cid}, f"{moved}; removed {done.vacuum.total_removed} rows", cid)


@click.command()
@json_option()
@click.pass_obj
def vacuum(settings: Settings, as_json: bool) -> None:
    """Remove the bytes of deleted rows and replaced metadata, and save the index.

    Versions saved earlier keep them: `prune` removes these.
    """
    with loaded(settings) as session, changes(session):
        done = session.vacuum()
        cid = save(session)
    tell(as_json, {**done.to_dict(), "cid": cid}, f"removed {done.total_removed} rows", cid)


@click.command()
@click.option("--sample", default=200, show_default=True, type=click.IntRange(1, 10_000), help="Rows used as queries.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1, 1_000), help="Hits per query.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Also draw a plot: .svg, .png or .pdf.")
@json_option()
@click.pass_obj
def recall(settings: Settings, sample: int, k: int, plot: Path | None, as_json: bool) -> None:
    """Measure recall and latency of searches in the newest version."""
    if plot is not None:
        check_picture(plot)
    # The plot's file is created first: an unwritable path is reported before the measurement, which takes minutes.
    with contextlib.nullcontext() if plot is None else writing(plot) as picture:
        with open_session(settings) as session:
            load(session, lazy_load=False)
            report = session.recall(sample, k=k)
        if picture is not None:
            report.plot(picture)
    head = f"recall@{report.k}, {report.sample} of {report.rows:,} rows as queries; microseconds"
    points = [("default", report.default), *((_setting(point), point) for point in report.points)]
    tell(as_json, report.to_dict(), head, *(_measured(name, point) for name, point in points))


def _measured(name: str, point: RecallPoint) -> str:
    times = f"p50 {point.p50_us:7.1f}  p99 {point.p99_us:7.1f}"
    return f"{name:>14} {point.recall:.4f}  {times} {point.queries_per_s:7,.0f} QPS"


def _setting(point: RecallPoint) -> str:
    if point.exact:
        return "exact"
    return f"ef_search {point.ef_search}" if point.ef_search else f"nprobe {point.nprobe}"
