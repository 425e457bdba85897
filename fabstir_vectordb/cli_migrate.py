"""The command `migrate`: rows of another vector database into the index.

The name is free: what moves rows from the graph to lists is called `optimize` for users.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, Final

import click

from fabstir_vectordb.cli_support import (
    Settings,
    changes,
    json_line,
    json_option,
    load,
    note,
    open_session,
    rows_bar,
    save,
    say,
)
from fabstir_vectordb.importers import FORMATS, MigrationReport, Source, migrate as migrate_rows, open_source

__all__ = ["migrate"]

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
#: Options that go to the reader of a format, which refuses those that it does not know.
_OPTIONS: Final[list[Callable[[Any], Any]]] = [
    click.option("--collection", help="Collection of Chroma or Qdrant."),
    click.option("--database", help="Database of the SDK, or that of a Chroma collection."),
    click.option("--table", help="Table of LanceDB or sqlite-vec."),
    click.option("--vector", help="Column or name of the vectors, where there are several."),
    click.option("--id-column", "id", help="Column of the ids in LanceDB."),
    click.option("--ids", type=_FILE, help="FAISS, hnswlib: text file, the id of label n in line n from 0."),
    click.option("--metadata", type=_FILE, help="FAISS, hnswlib: jsonl file, the metadata of label n in line n."),
    click.option("--id-candidates", type=_FILE, help="Node package: text file with ids, to find those it lacks."),
    click.option("--key-file", type=_FILE, help="SDK: file with the key of an encrypted store."),
    click.option("--force", is_flag=True, default=None, help="Node package: read manifests of unknown versions."),
]


def _reader_options(command: Callable[..., None]) -> Callable[..., None]:
    return reduce(lambda made, option: option(made), reversed(_OPTIONS), command)


@click.command()
@click.argument("format", type=click.Choice(FORMATS))
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@_reader_options
@click.option(
    "--metric",
    type=click.Choice(["cosine", "l2", "dot"]),
    help="Metric of a new index; by default that of SOURCE. For a stored index it must be the stored metric.",
)
@click.option(
    "--on-conflict",
    type=click.Choice(["error", "replace", "skip"]),
    default="error",
    show_default=True,
    help="What to do with an id that is in the index already.",
)
@click.option("--schema", is_flag=True, help="Also take the schema of SOURCE, where it has one.")
@click.option("--dry-run", is_flag=True, help="Read everything and report; add and save nothing.")
@json_option("the report as one JSON object")
@click.pass_obj
def migrate(
    settings: Settings,
    /,
    format: str,
    source: Path,
    metric: str | None,
    on_conflict: str,
    schema: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Add the rows of another vector database and save the index. A missing index is created.

    FORMAT names the database, SOURCE is its file or folder, which is only read. Begin with --dry-run. If the store is
    damaged or a row is refused, nothing is saved. Files of LanceDB are read by its own library: trusted ones only.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if format == "hnswlib" and metric is not None:
        given["metric"] = metric
    with open_source(format, source, **given) as opened:
        if dry_run:
            _tell(_rows_of(None, opened, "read", dry_run=True), None, as_json)
            return
        chosen = metric or opened.metric
        if chosen is None:
            raise click.UsageError(f"{source} does not say a metric that there is here: give --metric")
        with open_session(settings, metric=chosen) as session, changes(session):
            load(session, missing_ok=True)
            report = _rows_of(session, opened, "add", on_conflict=on_conflict, schema=schema)
            cid = save(session)
    _tell(report, cid, as_json)


def _rows_of(session: Any, opened: Source, title: str, **options: Any) -> MigrationReport:
    with rows_bar(title) as bar:
        report: MigrationReport = migrate_rows(
            session, opened, progress=lambda rows: bar.update(rows - bar.n), **options
        )
    return report


def _tell(report: MigrationReport, cid: str | None, as_json: bool) -> None:
    """Prints the report, and on stderr what else there is to know."""
    if as_json:
        say(json_line({**report.to_dict(), "cid": cid}))
        return
    metric = report.metric or "unknown"
    say(f"{report.rows} rows of {report.format}, {report.dim or 0} dimensions, metric {metric}")
    if report.deleted:
        say(f"{report.deleted} rows are deleted there and did not come")
    for reason, count in report.left_out.items():
        say(f"{count} rows did not come: {reason}")
    if report.collisions:
        say(f"ids that several rows have: {', '.join(report.collisions[:10])}")
    if cid is not None:
        say(f"added {report.added}, replaced {report.replaced}, skipped {report.skipped}")
        say(cid)
    for text in report.notes:
        note(text)
