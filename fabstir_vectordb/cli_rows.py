"""The commands of the command line that look at rows, and the one that deletes them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import click

from fabstir_vectordb.cli_support import (
    Settings,
    changes,
    cid_option,
    filter_option,
    json_line,
    json_option,
    loaded,
    note,
    plain,
    row_record,
    save,
    say,
    tell,
    terminal_columns,
)
from fabstir_vectordb.display import json_text
from fabstir_vectordb.errors import NotFoundError
from fabstir_vectordb.sync import VectorDBSession
from fabstir_vectordb.types import Row

__all__ = ["count", "delete", "facets", "get", "list_"]

_vectors_option = click.option("--vectors", is_flag=True, help="With --json: the vectors, too, as `import` reads them.")


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--missing-ok", is_flag=True, help="Leave out ids that no row has.")
@_vectors_option
@cid_option
@json_option("one JSON object per row")
@click.pass_obj
def get(
    settings: Settings, ids: tuple[str, ...], missing_ok: bool, vectors: bool, cid: str | None, as_json: bool
) -> None:
    """Print the rows with these ids."""
    _check_vectors(vectors, as_json)
    with loaded(settings, cid) as session:
        rows = _rows_of(session, ids, missing_ok)
    for row in rows:
        say(json_line(row_record(row, vectors=vectors)) if as_json else _line(row))


def _rows_of(session: VectorDBSession, ids: Sequence[str], missing_ok: bool) -> list[Row]:
    rows = session.get(ids)
    lost = next((id for id, row in zip(ids, rows, strict=True) if row is None), None)
    if lost is not None and not missing_ok:
        raise NotFoundError(f"the index has no row with id {lost!r}", details={"id": lost})
    return [row for row in rows if row is not None]


@click.command("list")
@filter_option
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 10_000), help="Most rows.")
@click.option("--cursor", help="Go on where an earlier list ended; stderr had its cursor.")
@click.option("--order", metavar="FIELD", help="Order by a field, with a minus in front for descending.")
@_vectors_option
@cid_option
@json_option("one JSON object per row")
@click.pass_obj
def list_(
    settings: Settings,
    filter: dict[str, Any] | None,
    limit: int,
    cursor: str | None,
    order: str | None,
    vectors: bool,
    cid: str | None,
    as_json: bool,
) -> None:
    """Print rows, by default the first in the order of insertion. On a terminal, long lines are cut."""
    _check_vectors(vectors, as_json)
    if order is not None and cursor is not None:
        raise click.UsageError("a cursor goes with the order of insertion, without --order")
    with loaded(settings, cid) as session:
        if order is not None:
            rows, more = list(islice(session.scan(filter, order=order), limit)), None
        else:
            page = session.scan_page(filter, limit=limit, cursor=cursor)
            rows, more = list(page.rows), page.cursor if page.has_more else None
    for row in rows:
        say(json_line(row_record(row, vectors=vectors)) if as_json else _cut(_line(row)))
    if more is not None:
        note(f"there are more: --cursor {more}")


def _check_vectors(vectors: bool, as_json: bool) -> None:
    if vectors and not as_json:
        raise click.UsageError("--vectors goes with --json")


def _line(row: Row) -> str:
    when = datetime.fromtimestamp(row.timestamp, UTC).isoformat(timespec="seconds")
    return f"{row.id}  {when}  {'' if row.metadata is None else json_text(row.metadata)}".rstrip()


def _cut(text: str) -> str:
    """A line that fits into the terminal; unchanged where stdout is none."""
    left = terminal_columns()
    if left is None:
        return text
    text = plain(text)
    for at, character in enumerate(text):
        width = 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if left < width + (at + 1 < len(text)):  # the last column is for the ellipsis
            return text[:at] + "…"
        left -= width
    return text


@click.command()
@filter_option
@cid_option
@json_option()
@click.pass_obj
def count(settings: Settings, filter: dict[str, Any] | None, cid: str | None, as_json: bool) -> None:
    """Count the rows, or those that match a filter."""
    with loaded(settings, cid) as session:
        rows = session.count(filter)
    tell(as_json, {"rows": rows}, str(rows))


@click.command()
@click.argument("field")
@filter_option
@click.option("--limit", type=click.IntRange(0), help="Most values; by default all.")
@click.option(
    "--order",
    type=click.Choice(["-count", "count", "value", "-value"]),
    default="-count",
    show_default=True,
    help="Order of the values; a minus means descending.",
)
@click.option("--search", help="Only strings that contain this text.")
@cid_option
@json_option("one JSON object per value")
@click.pass_obj
def facets(
    settings: Settings,
    field: str,
    filter: dict[str, Any] | None,
    limit: int | None,
    order: str,
    search: str | None,
    cid: str | None,
    as_json: bool,
) -> None:
    """Count the distinct values of a metadata FIELD; dots lead into objects."""
    with loaded(settings, cid) as session:
        found = session.facets(field, filter, order=order, limit=limit, search=search)
    for facet in found:
        tell(as_json, facet.to_dict(), f"{facet.count:>8}  {json_text(facet.value)}")


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID...]")
@filter_option
@click.option("--missing-ok", is_flag=True, help="Pass over ids that no row has.")
@click.option("--dry-run", is_flag=True, help="Only count the rows.")
@json_option()
@click.pass_obj
def delete(
    settings: Settings,
    ids: tuple[str, ...],
    filter: dict[str, Any] | None,
    missing_ok: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete rows by id or by filter and save the index.

    Their bytes stay in versions saved earlier, and in this one until `vacuum`.
    """
    if bool(ids) is (filter is not None):
        raise click.UsageError("give either ids or --filter")
    with loaded(settings) as session, changes(session):
        if dry_run:
            rows = session.count(filter) if filter is not None else len({*_rows_of(session, ids, missing_ok)})
            tell(as_json, {"deleted": 0, "would_delete": rows}, f"would delete {rows}")
            return
        done = session.delete(ids, missing_ok=missing_ok) if filter is None else session.delete_by_metadata(filter)
        cid = save(session) if done.deleted_count else session.get_stats().last_cid
    tell(as_json, {"deleted": done.deleted_count, "cid": cid}, f"deleted {done.deleted_count}", str(cid))
