"""The commands `collection …`: building and reading a collection of shards."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import anyio
import click

from fabstir_vectordb.cli_search import checked_search, search_options, tell_hits
from fabstir_vectordb.cli_support import Settings, count_bar, json_option, say, say_fitted, session_settings, vector_of
from fabstir_vectordb.collections import (
    CollectionPlan,
    CollectionProgress,
    Engine,
    measure,
    over,
    plan as plan_of,
    sync,
)
from fabstir_vectordb.collections.records import ROUTES
from fabstir_vectordb.display import json_text

__all__ = ["collection"]

_PROCESSES = click.option(
    "--processes", type=click.IntRange(min=0), default=0, show_default=True, help="Processes to use; 0 for threads."
)
_JSON = json_option("JSON")


@contextmanager
def _engine(processes: int) -> Iterator[Engine | None]:
    if not processes:
        yield None
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield over(pool)


@contextmanager
def _shards_bar(title: str) -> Iterator[Any]:
    """A function that takes the progress of a build or a verification; shows it if stderr is a terminal."""
    with count_bar(title, "shard") as bar:

        def tell(state: CollectionProgress) -> None:
            bar.total = state.total
            bar.update(state.done - bar.n)

        yield tell


@click.group()
def collection() -> None:
    """Build, search and check a collection: an index of many shards, named by --index-name."""


@collection.command()
@click.argument("table", type=click.Path(exists=True, path_type=Path))
@click.option("--text-field", multiple=True, help="Metadata field whose words `search --text` finds; may be repeated.")
@click.option("--shards", type=int, default=8, show_default=True, help="Number of shards.")
@click.option("--route", type=click.Choice(ROUTES), default="nearest", show_default=True, help="How rows go to shards.")
@click.option(
    "--metric", type=click.Choice(["cosine", "l2", "dot"]), default="cosine", show_default=True, help="Metric."
)
@_PROCESSES
@_JSON
@click.pass_obj
def build(
    settings: Settings,
    table: Path,
    text_field: tuple[str, ...],
    shards: int,
    route: Any,
    metric: Any,
    processes: int,
    as_json: bool,
) -> None:
    """Build a collection from TABLE, a Parquet or Arrow file or a folder of Parquet files, and print its CID.

    Columns are id, vector or embedding, and timestamp and expires_at where there are any; all others are metadata.
    """
    fields = session_settings(settings, metric=metric)
    if text_field:
        fields["text_fields"] = text_field
    with _engine(processes) as engine, _shards_bar("build") as tell:
        cid = sync.build(fields, table, shards=shards, route=route, engine=engine, progress=tell)
    say(json_text({"cid": cid}) if as_json else cid)


@collection.command()
@search_options
@click.option("--shards", type=int, help="How many shards to ask, the most promising ones; by default all.")
@click.option("--recall-target", type=float, help="Share of the nearest rows to find; chooses how many shards to ask.")
@_PROCESSES
@click.pass_obj
def search(
    settings: Settings,
    /,
    like: str | None,
    vector: Path | None,
    text: str | None,
    k: int,
    as_json: bool,
    highlight: bool,
    processes: int,
    **options: Any,
) -> None:
    """Find the rows nearest to a query vector, those that have the words of a text, or both."""
    query, asked = checked_search(settings, like, vector, text, as_json, highlight, options)
    with _engine(processes) as engine, sync.Collection.open(session_settings(settings), engine=engine) as many:
        if like is not None:
            query = vector_of(many.get([like])[0], like, "collection")
        tell_hits(as_json, many.search(query, k, **asked))


@collection.command()
@_JSON
@click.pass_obj
def stats(settings: Settings, as_json: bool) -> None:
    """Show the shards of the collection, and how many of the nearest rows the most promising ones have."""
    with sync.Collection.open(session_settings(settings)) as many:
        found = many.stats()
    if as_json:
        say(json_text(found))
        return
    say(f"{found.rows} rows in {len(found.shards)} shards by {found.route}, {found.metric}, {found.cid}")
    for shard in found.shards:
        note = "  (holds deleted rows)" if shard.superseded else ""
        say(f"{shard.number:>6}  {shard.rows:>10} rows{note}")
    if found.curve:
        say_fitted("nearest rows in the most promising shards: " + ", ".join(f"{share:.3f}" for share in found.curve))


@collection.command()
@_PROCESSES
@_JSON
@click.pass_obj
def verify(settings: Settings, processes: int, as_json: bool) -> None:
    """Read every object of the collection and check all bytes."""
    with (
        _engine(processes) as engine,
        sync.Collection.open(session_settings(settings), engine=engine) as many,
        _shards_bar("verify") as tell,
    ):
        report = many.verify(progress=tell)
    said = f"{report.shards} shards, {report.parts} parts, {report.bytes} bytes, {report.rows} rows: undamaged"
    say(json_text(report) if as_json else said)


@collection.command()
@click.option("--rows", type=float, required=True, help="Number of rows to plan for, such as 1e9.")
@click.option("--qps", type=float, default=1, show_default=True, help="Queries a second.")
@click.option("--recall", type=float, default=0.95, show_default=True, help="Share of the nearest rows to find.")
@click.option("--dim", type=int, help="Components of a vector; by default those of the collection.")
@click.option("--shard-rows", type=int, default=1_000_000, show_default=True, help="Rows of a shard.")
@click.option("--worker-cpus", type=int, default=8, show_default=True, help="Cores of a worker.")
@click.option("--worker-gb", type=float, default=64, show_default=True, help="Memory of a worker, in 10^9 bytes.")
@_PROCESSES
@_JSON
@click.pass_obj
def plan(
    settings: Settings,
    rows: float,
    qps: float,
    recall: float,
    dim: int | None,
    shard_rows: int,
    worker_cpus: int,
    worker_gb: float,
    processes: int,
    as_json: bool,
) -> None:
    """Say what a larger collection would take: bytes, objects, memory, workers, requests and seconds.

    The collection that --index-name names is measured on this machine: eight of its shards are fetched and searched.
    The rest is modelled, and says how.
    """
    with _engine(processes) as engine:
        measured = anyio.run(partial(measure, session_settings(settings), recall=recall, engine=engine))
    wanted = plan_of(
        measured, rows=rows, qps=qps, dim=dim, shard_rows=shard_rows, worker_cpus=worker_cpus, worker_gb=worker_gb
    )
    if as_json:
        say(json_text({"measured": measured, "plan": wanted}))
        return
    say_fitted(
        f"measured: {measured.rows} rows of dimension {measured.dim} in {measured.shards} shards, of which "
        f"{measured.asked} are asked for a recall of {measured.recall}"
    )
    say_fitted(f"modelled: {wanted.rows} rows of dimension {wanted.dim}, {wanted.qps:g} queries a second")
    for name, value in _plan_lines(wanted):
        say_fitted(f"  {name:<18}{value:>14}  {wanted.modelled[name]}", indent=36)


def _plan_lines(wanted: CollectionPlan) -> Iterator[tuple[str, str]]:
    """Name and value of each figure that was modelled."""
    for name in wanted.modelled:
        value = getattr(wanted, name)
        if value is None:
            yield name, "unknown"
        elif name.endswith("bytes"):
            yield name, f"{value / 1e9:.3g} GB" if value >= 1e9 else f"{value / 1e6:.3g} MB"
        elif name.endswith("seconds"):
            yield name, f"{value * 1e3:.3g} ms"
        else:
            yield name, f"{value:.0f}"
