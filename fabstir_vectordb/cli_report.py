"""The command `report` of the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import click

from fabstir_vectordb.cli_support import (
    STANDARD,
    OutputError,
    Settings,
    cid_option,
    json_option,
    load,
    open_session,
    tell,
)
from fabstir_vectordb.metadata.path import check_field
from fabstir_vectordb.output_file import writing
from fabstir_vectordb.report.make import RECALL_SAMPLE_MAX, SAMPLE_MAX
from fabstir_vectordb.report.projection import PROJECTIONS

__all__ = ["report"]


@click.command()
@click.option("--field", "fields", multiple=True, help="Field whose values the map shows; may be repeated.")
@click.option(
    "--sample", default=5_000, show_default=True, type=click.IntRange(0, SAMPLE_MAX), help="Most rows of the map."
)
@click.option(
    "--recall-sample",
    default=200,
    show_default=True,
    type=click.IntRange(0, RECALL_SAMPLE_MAX),
    help="Rows used as queries for recall and latency.",
)
@click.option(
    "--projection", default="pca", show_default=True, type=click.Choice(PROJECTIONS), help="How the map is drawn."
)
@cid_option
@json_option("one JSON object in place of a line about the file")
@click.argument("target", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.pass_obj
def report(
    settings: Settings,
    fields: Sequence[str],
    sample: int,
    recall_sample: int,
    projection: str,
    cid: str | None,
    as_json: bool,
    target: Path,
) -> None:
    """Write a page for a browser to TARGET: rows, memory, versions, recall, and a map of the embeddings.

    The page holds decrypted data: the values of the fields that are named by --field. Its file has the mode 0600.
    """
    for field in fields:
        check_field(field)
    # The file is created first: an unwritable path is reported before the measurements.
    with contextlib.nullcontext() if target == STANDARD else writing(target, private=True) as fresh:
        with open_session(settings) as session:
            load(session, cid, lazy_load=False)
            made = session.report(fields, sample=sample, recall_sample=recall_sample, projection=projection)
        if fresh is not None:
            fresh.write_text(made.html, encoding="utf-8", newline="\n")
    if fresh is None:
        try:
            click.echo(made.html, nl=False)
        except OSError as error:
            raise OutputError(error) from None
        return
    shown = ", ".join(made.fields) or "no fields"
    tell(
        as_json,
        {"target": str(target), "rows": made.rows, "rows_drawn": made.rows_drawn, "fields": made.fields},
        f"{target}: {made.rows:,} rows, {made.rows_drawn:,} of them on the map, with {shown}. It holds decrypted data.",
    )
