"""The command line: the session's verbs from a shell.

The seed phrase comes from FABSTIR_SEED_PHRASE, a file or a prompt, never from an argument: every user of a machine can
read arguments, and they stay in shell histories.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial, wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import anyio
import click
import numpy as np
import numpy.typing as npt
import platformdirs
from tqdm import tqdm

from fabstir_vectordb.demo.story import tell
from fabstir_vectordb.errors import InvalidInputError, VectorDBError
from fabstir_vectordb.persist.versions import Progress
from fabstir_vectordb.s5.phrase import new_seed_phrase
from fabstir_vectordb.session import get_platform_info, get_version
from fabstir_vectordb.storage import open_store
from fabstir_vectordb.sync import VectorDBSession

__all__ = ["cli"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_BATCH_ROWS = 4_096


class _Settings(NamedTuple):
    store: str
    index_name: str
    phrase_file: Path | None
    memory_budget_mb: int
    debug: bool


def _default_store() -> str:
    return Path(platformdirs.user_data_dir("fabstir-vectordb", appauthor=False), "store").as_uri()


def _phrase(settings: _Settings) -> str:
    if settings.phrase_file is not None:
        return settings.phrase_file.read_text(encoding="utf-8").strip()
    given = os.environ.get("FABSTIR_SEED_PHRASE", "").strip()
    return given or click.prompt("Seed phrase", hide_input=True, err=True)


def _open(settings: _Settings, **fields: Any) -> VectorDBSession:
    return VectorDBSession.create(
        s5_portal=settings.store,
        user_seed_phrase=_phrase(settings),
        session_id="cli",
        index_name=settings.index_name,
        memory_budget_mb=settings.memory_budget_mb,
        debug=settings.debug,
        **fields,
    )


def _reporting(command: Callable[_P, _T]) -> Callable[_P, _T]:
    """Shows our errors as ``[CODE] message`` and ends with 1; --debug shows where they came from."""

    @wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return command(*args, **kwargs)
        except VectorDBError as error:
            if click.get_current_context().obj.debug:
                raise
            click.echo(str(error), err=True)
            raise SystemExit(1) from None

    return run


class _Bar:
    """A progress bar over a save's, load's or verification's parts; silent where stderr is no terminal."""

    def __init__(self, title: str) -> None:
        self._bar = tqdm(desc=title, unit="B", unit_scale=True, leave=False, disable=None, file=sys.stderr)

    def __call__(self, state: Progress) -> None:
        self._bar.total = state.bytes_total
        self._bar.update(state.bytes_done - self._bar.n)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(get_version(), prog_name="fabstir-vectordb")
@click.option("--store", envvar="FABSTIR_STORE", default=_default_store, help="file:///path of the store.")
@click.option("--index-name", default="default", show_default=True, help="Which of the user's indexes.")
@click.option(
    "--phrase-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the seed phrase; else FABSTIR_SEED_PHRASE, else a prompt.",
)
@click.option("--memory-budget-mb", default=4096, show_default=True, help="Most memory of an index, in MB.")
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:
    """An embedded vector database whose index lives encrypted and verifiable on S5."""
    context.obj = _Settings(**options)


@cli.command()
@_reporting
def demo() -> None:
    """Show the main job on real data, in a temporary store."""
    anyio.run(tell, click.echo)


@cli.command("new-phrase")
def new_phrase() -> None:
    """Print a fresh seed phrase. Whoever has it has the data; who loses it has lost them."""
    click.echo(new_seed_phrase())


# ---- import and export


class _Rows(NamedTuple):
    ids: list[str]
    vectors: npt.NDArray[np.float32]
    metadata: list[Any]
    timestamps: list[float | None]


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InvalidInputError(f"{path} line {number}: {error}") from None
            if not isinstance(record, dict) or not isinstance(record.get("id"), str):
                raise InvalidInputError(f'{path} line {number}: needs an object with a string "id"')
            yield record


def _read_rows(path: Path, vectors_path: Path | None) -> _Rows:
    records = list(_read_jsonl(path))
    if vectors_path is not None:
        try:
            vectors = np.load(vectors_path, allow_pickle=False).astype(np.float32)
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"{vectors_path} is no array of numbers: {error}") from None
    else:
        missing = next((record["id"] for record in records if "vector" not in record), None)
        if missing is not None:
            raise InvalidInputError(f'row {missing!r} has no "vector", and no --vectors file was given')
        vectors = np.array([record.pop("vector") for record in records], dtype=np.float32)
    if len(vectors) != len(records):
        raise InvalidInputError(f"there are {len(vectors)} vectors and {len(records)} rows")
    ids = [record.pop("id") for record in records]
    times = [record.pop("timestamp", None) for record in records]
    # A file of `export` keeps metadata under its own key; other files have the fields beside the id.
    metadata = [record["metadata"] if set(record) == {"metadata"} else record or None for record in records]
    return _Rows(ids, vectors, metadata, times)


@cli.command("import")
@click.argument("rows", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--vectors",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=".npy of (n, dim) numbers in the order of ROWS; without it each row has a \"vector\".",
)
@click.option(
    "--on-conflict",
    type=click.Choice(["error", "replace", "skip"]),
    default="error",
    show_default=True,
    help="For ids that are in the index.",
)
@click.option("--metric", type=click.Choice(["cosine", "l2", "dot"]), default="cosine", show_default=True)
@click.pass_obj
@_reporting
def import_(settings: _Settings, rows: Path, vectors: Path | None, on_conflict: str, metric: str) -> None:
    """Add ROWS (jsonl: "id", other fields are metadata) to the index, or start it, and save."""
    table = _read_rows(rows, vectors)
    with _open(settings, metric=metric) as session, _Bar("save") as bar:
        session.load_user_vectors(missing_ok=True)
        totals = [0, 0, 0]
        firsts = range(0, len(table.ids), _BATCH_ROWS)
        for first in tqdm(firsts, desc="add", unit="batch", leave=False, disable=None, file=sys.stderr):
            chosen = slice(first, first + _BATCH_ROWS)
            times = table.timestamps[chosen]
            done = session.add_batch(
                table.ids[chosen],
                table.vectors[chosen],
                table.metadata[chosen],
                times if any(time is not None for time in times) else None,
                on_conflict=on_conflict,
            )
            counts = (done.added, done.replaced, done.skipped)
            totals = [total + more for total, more in zip(totals, counts, strict=True)]
        cid = session.save_to_s5(progress=bar)
    click.echo("added {}, replaced {}, skipped {}".format(*totals))
    click.echo(cid)


@cli.command()
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--cid", help="A version; without it the newest.")
@click.pass_obj
@_reporting
def export(settings: _Settings, target: Path, cid: str | None) -> None:
    """Write all rows with vectors and metadata to TARGET as jsonl, which `import` reads."""
    count = 0
    with _open(settings) as session, _Bar("load") as bar:
        session.load_user_vectors(cid, progress=bar)
        with target.open("w", encoding="utf-8") as out:
            rows = tqdm(session.scan(), total=session.count(), unit="row", leave=False, disable=None, file=sys.stderr)
            for row in rows:
                record = {
                    "id": row.id,
                    "vector": [float(value) for value in row.vector],
                    "timestamp": row.timestamp,
                    "metadata": row.metadata,
                }
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
                count += 1
    click.echo(f"exported {count} rows to {target}")


# ---- reading


def _query_vector(session: VectorDBSession, like: str | None, vector: Path | None) -> Any:
    if like is not None:
        row = session.get([like])[0]
        if row is None:
            raise InvalidInputError(f"there is no row with id {like!r}")
        return row.vector
    if vector is None:
        raise click.UsageError("give --like ID or --vector FILE")
    if vector.suffix == ".npy":
        return np.load(vector, allow_pickle=False).reshape(-1)
    return json.loads(vector.read_text(encoding="utf-8"))


@cli.command()
@click.option("--like", help="Search with the vector of this row.")
@click.option(
    "--vector",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the query: .npy, or a JSON array.",
)
@click.option("-k", default=10, show_default=True, help="Hits at most.")
@click.option("--threshold", type=float, help="Least score; without it nothing is cut.")
@click.option("--cid", help="A version; without it the newest.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per hit.")
@click.pass_obj
@_reporting
def search(
    settings: _Settings,
    like: str | None,
    vector: Path | None,
    k: int,
    threshold: float | None,
    cid: str | None,
    as_json: bool,
) -> None:
    """Find the rows nearest to a vector."""
    with _open(settings) as session, _Bar("load") as bar:
        session.load_user_vectors(cid, progress=bar)
        hits = session.search(_query_vector(session, like, vector), k, threshold=threshold)
        for hit in hits:
            if as_json:
                record = {"id": hit.id, "score": hit.score, "distance": hit.distance, "metadata": hit.metadata}
                click.echo(json.dumps(record, ensure_ascii=False))
            else:
                text = "" if hit.metadata is None else json.dumps(hit.metadata, ensure_ascii=False)
                click.echo(f"{hit.score:.4f}  {hit.id}  {text}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per version.")
@click.pass_obj
@_reporting
def history(settings: _Settings, as_json: bool) -> None:
    """List the versions of the index, newest first."""
    with _open(settings) as session:
        for version in session.history():
            if as_json:
                click.echo(json.dumps(asdict(version)))
                continue
            when = datetime.fromtimestamp(version.saved_at, UTC).isoformat(timespec="seconds")
            note = "  (refused: another version came between)" if version.refused else ""
            click.echo(f"{version.revision:>5}  {when}  {version.vector_count} rows  {version.cid}{note}")


@cli.command()
@click.pass_obj
@_reporting
def indexes(settings: _Settings) -> None:
    """List the names of the user's indexes."""
    with _open(settings) as session:
        for name in session.list_indexes():
            click.echo(name)


@cli.command()
@click.option("--cid", help="A version; without it the newest.")
@click.pass_obj
@_reporting
def verify(settings: _Settings, cid: str | None) -> None:
    """Read every object of a version and check all of it."""
    with _open(settings) as session, _Bar("verify") as bar:
        report = session.verify(cid, progress=bar)
    click.echo(f"{report.cid}\n{report.parts} parts, {report.bytes:,} bytes, {report.rows} rows: all whole")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.pass_obj
@_reporting
def stats(settings: _Settings, as_json: bool) -> None:
    """Load the newest version and show what it holds and takes."""
    with _open(settings) as session, _Bar("load") as bar:
        session.load_user_vectors(progress=bar)
        found = asdict(session.get_stats())
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, value in found.items():
        click.echo(f"{name}: {value}")


@cli.command()
@click.pass_obj
@_reporting
def doctor(settings: _Settings) -> None:
    """Show the platform, the SIMD kernels in use, and whether the store can be used."""
    click.echo(f"fabstir_vectordb: {get_version()}")
    for name, value in get_platform_info().items():
        click.echo(f"{name}: {value}")
    anyio.run(partial(_try_store, settings.store))
    click.echo(f"store: {settings.store} can be written and read")


async def _try_store(uri: str) -> None:
    store = open_store(uri)
    try:
        probe = b"fabstir-vectordb doctor"
        blob = await store.put(probe)
        if await store.get(blob.hash, blob.size) != probe:
            raise InvalidInputError("the store gave other bytes back")
        await store.delete(blob.hash)
    finally:
        await store.aclose()
