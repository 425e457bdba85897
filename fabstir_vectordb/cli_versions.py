"""The commands of the command line about versions: what there is, whether it is whole, who else may read it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from fabstir_vectordb.cli_support import (
    Bar,
    Settings,
    cid_option,
    json_line,
    json_option,
    loaded,
    open_session,
    tell,
)
from fabstir_vectordb.errors import NotFoundError
from fabstir_vectordb.sync import VectorDBSession

__all__ = ["history", "indexes", "prune", "share", "stats", "verify"]


@click.command()
@json_option("one JSON object per version")
@click.pass_obj
def history(settings: Settings, as_json: bool) -> None:
    """List the versions of the index, newest first."""
    with open_session(settings) as session:
        versions = session.history()
        if not versions:
            raise _nothing(settings, session)
    for version in versions:
        when = datetime.fromtimestamp(version.saved_at, UTC).isoformat(timespec="seconds")
        rows = "unknown" if version.vector_count is None else version.vector_count
        refused = "  (refused: another session saved first)" if version.refused else ""
        tell(as_json, version.to_dict(), f"{version.revision:>5}  {when}  {rows} rows  {version.cid}{refused}")


def _nothing(settings: Settings, session: VectorDBSession) -> NotFoundError:
    """The error for an index without versions; it lists the indexes of the phrase."""
    names = session.list_indexes()
    known = f"this phrase has {', '.join(map(repr, names))}" if names else "this phrase has saved no index here"
    return NotFoundError(
        f"no version of index {settings.index_name!r} in {settings.store}: {known}; check the phrase for typos",
        details={"index_name": settings.index_name, "indexes": names},
    )


@click.command()
@json_option("one JSON object per index")
@click.pass_obj
def indexes(settings: Settings, as_json: bool) -> None:
    """List the names of the user's indexes."""
    with open_session(settings) as session:
        names = session.list_indexes()
        if not names:
            raise _nothing(settings, session)
    for name in names:
        tell(as_json, {"index_name": name}, name)


@click.command()
@cid_option
@json_option()
@click.pass_obj
def stats(settings: Settings, cid: str | None, as_json: bool) -> None:
    """Load a version and show its counts, settings and memory."""
    with loaded(settings, cid) as session:
        found = session.get_stats().to_dict()
    tell(as_json, found, *(f"{name}: {_shown(value)}" for name, value in found.items()))


def _shown(value: Any) -> str:
    return json_line(value) if isinstance(value, (dict, list)) else str(value)


@click.command()
@cid_option
@json_option()
@click.pass_obj
def verify(settings: Settings, cid: str | None, as_json: bool) -> None:
    """Read and check every object of a version."""
    with open_session(settings) as session, Bar("verify") as bar:
        report = session.verify(cid, progress=bar)
    counts = f"{report.parts} parts, {report.bytes:,} bytes, {report.rows} rows: all intact"
    tell(as_json, report.to_dict(), report.cid, counts)


@click.command()
@click.option("--keep", required=True, type=click.IntRange(1), help="Number of newest versions to keep.")
@click.option("--delete", is_flag=True, help="Delete; without it only print what would be deleted.")
@json_option()
@click.pass_obj
def prune(settings: Settings, keep: int, delete: bool, as_json: bool) -> None:
    """Remove old versions from the history, and delete the objects that only they use."""
    with open_session(settings) as session:
        report = session.prune_history(keep, dry_run=not delete)
        if not report.versions and not session.history():
            raise _nothing(settings, session)
    done = f"deleted {report.blobs_deleted} of" if delete else "would delete"
    said = f"{len(report.versions)} versions: {done} {report.blobs} objects, {report.bytes:,} bytes"
    tell(as_json, {**report.to_dict(), "dry_run": not delete}, said)


@click.command()
@click.argument("cid")
@json_option()
@click.pass_obj
def share(settings: Settings, cid: str, as_json: bool) -> None:
    """Print a share CID, which opens the version CID without the phrase. It is a secret."""
    with open_session(settings) as session:
        shared = session.share(cid)
    tell(as_json, {"share": shared}, shared)
