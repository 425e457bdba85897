"""The command line: the session's verbs from a shell.

The seed phrase comes from FABSTIR_SEED_PHRASE, a file or a prompt, a portal's token from FABSTIR_PORTAL_TOKEN, and
neither from an argument: every user of a machine can read arguments, and they stay in shell histories.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial, wraps
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

import anyio
import click
import numpy as np
import numpy.typing as npt
import platformdirs
from tqdm import tqdm

from fabstir_vectordb.demo.story import tell
from fabstir_vectordb.display import json_ready, json_text
from fabstir_vectordb.errors import IntegrityError, InvalidConfigError, InvalidInputError, NotFoundError, VectorDBError
from fabstir_vectordb.s5.phrase import new_seed_phrase
from fabstir_vectordb.session import get_platform_info, get_version
from fabstir_vectordb.storage import open_store
from fabstir_vectordb.sync import VectorDBSession
from fabstir_vectordb.types import Progress, RecallPoint

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
        try:
            return settings.phrase_file.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:
            # Not chained: the error would show the file's bytes.
            raise InvalidConfigError(f"{settings.phrase_file} is not UTF-8 text") from None
    given = os.environ.get("FABSTIR_SEED_PHRASE", "").strip()
    return given or click.prompt("Seed phrase", hide_input=True, err=True)


def _portal_token() -> str | None:
    # Like the phrase, from no argument.
    return os.environ.get("FABSTIR_PORTAL_TOKEN", "").strip() or None


def _open(settings: _Settings, **fields: Any) -> VectorDBSession:
    return VectorDBSession.create(
        s5_portal=settings.store,
        user_seed_phrase=_phrase(settings),
        session_id="cli",
        index_name=settings.index_name,
        memory_budget_mb=settings.memory_budget_mb,
        debug=settings.debug,
        portal_token=_portal_token(),
        **fields,
    )


def _reporting(command: Callable[_P, _T]) -> Callable[_P, _T]:
    """Shows errors of ours and of files in one line and ends with 1; --debug shows where they came from."""

    @wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return command(*args, **kwargs)
        except (VectorDBError, OSError) as error:
            # click ends quietly when the reader of a pipe has gone.
            gone = isinstance(error, OSError) and error.errno == errno.EPIPE
            if gone or click.get_current_context().obj.debug:
                raise
            click.echo(_one_line(error), err=True)
            raise SystemExit(1) from None

    return run


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and not isinstance(error, VectorDBError):
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _show_log(context: click.Context, debug: bool) -> None:
    """Shows the package's log records on stderr while the command runs: all of them, or warnings."""
    logger = logging.getLogger("fabstir_vectordb")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s" if debug else "%(message)s"))
    level = logger.level
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    logger.addHandler(handler)

    def undo() -> None:
        logger.removeHandler(handler)
        logger.setLevel(level)

    context.call_on_close(undo)


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
@click.option("--store", envvar="FABSTIR_STORE", default=_default_store, help="Address of the store, as s5_portal.")
@click.option("--index-name", default="default", show_default=True, help="Which of the user's indexes.")
@click.option(
    "--phrase-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the seed phrase; else FABSTIR_SEED_PHRASE, else a prompt.",
)
@click.option("--memory-budget-mb", default=4096, show_default=True, help="Most memory of an index, in MB.")
@click.option("--debug", is_flag=True, help="Show log records, and where an error comes from.")
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:
    """An embedded vector database whose index lives encrypted and verifiable on S5."""
    context.obj = _Settings(**options)
    _show_log(context, context.obj.debug)


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


class _Record(NamedTuple):
    id: str
    vector: list[float] | None
    metadata: Any
    timestamp: float | None
    expires_at: float | None


def _records(path: Path) -> Iterator[_Record]:
    """The rows of a jsonl file, one after the other.

    Raises:
        InvalidInputError: a line is no row; the message names it.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidInputError(f"{path} line {number} is no JSON: {error}") from None
            if not isinstance(record, dict) or not isinstance(record.get("id"), str):
                raise InvalidInputError(f'{path} line {number}: needs an object with a string "id"')
            vector = record.pop("vector", _MISSING)
            if vector is not _MISSING and vector is not None and not _is_vector(vector):
                raise InvalidInputError(f'{path} line {number}: "vector" must be a list of numbers, or null for none')
            id, times = record.pop("id"), (record.pop("timestamp", None), record.pop("expires_at", None))
            # A file of `export` keeps metadata under its own key; other files have the fields beside the id.
            metadata = record["metadata"] if record.keys() == {"metadata"} else record or None
            yield _Record(id, vector, metadata, *times)


#: Stands for a vector that is not mentioned; null means that the row has none.
_MISSING: Final = object()


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) in (int, float) for item in value)


def _array(path: Path) -> npt.NDArray[Any]:
    """The array of a .npy file, read as it is used.

    Raises:
        InvalidInputError: it holds none.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise InvalidInputError(f"{path} is no .npy file of numbers: {error}") from None


class _Batch(NamedTuple):
    rows: list[_Record]
    vectors: Any


def _batches(rows: Path, vectors: Path | None) -> Iterator[_Batch]:
    """Rows with their vectors, never more than one batch of them in memory.

    Raises:
        InvalidInputError: there is no row for a vector, or no vector for a row.
    """
    array = None if vectors is None else _array(vectors)
    if array is not None and array.ndim != 2:
        raise InvalidInputError(f"{vectors} holds an array of shape {array.shape}, not (n, dim)")
    records = _records(rows)
    count = 0
    while chosen := list(islice(records, _BATCH_ROWS)):
        first, count = count, count + len(chosen)
        if array is not None:
            if len(array) < count:
                raise InvalidInputError(f"there are {len(array)} vectors and more rows than that")
            yield _Batch(chosen, array[first:count])
            continue
        missing = next((record.id for record in chosen if record.vector is _MISSING), None)
        if missing is not None:
            raise InvalidInputError(f'row {missing!r} has no "vector", and no --vectors file was given')
        yield _Batch(chosen, [record.vector for record in chosen])
    if array is not None and len(array) != count:
        raise InvalidInputError(f"there are {len(array)} vectors and {count} rows")


@cli.command("import")
@click.argument("rows", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--vectors",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='.npy of (n, dim) numbers in the order of ROWS; without it each row has a "vector".',
)
@click.option(
    "--on-conflict",
    type=click.Choice(["error", "replace", "skip"]),
    default="error",
    show_default=True,
    help="For ids that are in the index.",
)
@click.option(
    "--metric",
    type=click.Choice(["cosine", "l2", "dot"]),
    help="Of a new index, cosine where it is left out; an index that is there must have it.",
)
@click.pass_obj
@_reporting
def import_(settings: _Settings, rows: Path, vectors: Path | None, on_conflict: str, metric: str | None) -> None:
    """Add ROWS (jsonl: "id", other fields are metadata) to the index, or start it, and save.

    Nothing is saved when a row is refused.
    """
    totals = [0, 0, 0]
    fields = {} if metric is None else {"metric": metric}
    with _open(settings, **fields) as session, _Bar("save") as bar:
        session.load_user_vectors(missing_ok=True)
        with tqdm(desc="add", unit="row", leave=False, disable=None, file=sys.stderr) as added:
            for batch in _batches(rows, vectors):
                times = [record.timestamp for record in batch.rows]
                expiries = [record.expires_at for record in batch.rows]
                done = session.add_batch(
                    [record.id for record in batch.rows],
                    batch.vectors,
                    [record.metadata for record in batch.rows],
                    times if any(time is not None for time in times) else None,
                    expires_at=expiries if any(time is not None for time in expiries) else None,
                    on_conflict=on_conflict,
                )
                counts = (done.added, done.replaced, done.skipped)
                totals = [total + more for total, more in zip(totals, counts, strict=True)]
                added.update(len(batch.rows))
        cid = session.save_to_s5(progress=bar)
    click.echo("added {}, replaced {}, skipped {}".format(*totals))
    click.echo(cid)


@cli.command()
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--cid", help="A version; without it the newest.")
@click.pass_obj
@_reporting
def export(settings: _Settings, target: Path, cid: str | None) -> None:
    """Write all rows with vectors and metadata to TARGET as jsonl, which `import` reads.

    Dates, datetimes and UUIDs in metadata become strings.
    """
    count = 0
    with _open(settings) as session, _Bar("load") as bar:
        session.load_user_vectors(cid, progress=bar)
        with target.open("w", encoding="utf-8") as out:
            rows = tqdm(session.scan(), total=session.count(), unit="row", leave=False, disable=None, file=sys.stderr)
            for row in rows:
                record = {
                    "id": row.id,
                    "vector": None if row.vector is None else [float(value) for value in row.vector],
                    "timestamp": row.timestamp,
                    "metadata": json_ready(row.metadata),
                }
                if row.expires_at is not None:
                    record["expires_at"] = row.expires_at
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
                count += 1
    click.echo(f"exported {count} rows to {target}")


# ---- reading


def _read_query(path: Path) -> Any:
    if path.suffix == ".npy":
        return _array(path).reshape(-1)
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} is no JSON: {error}") from None


def _vector_of(session: VectorDBSession, id: str) -> Any:
    row = session.get([id])[0]
    if row is None:
        raise NotFoundError(f"there is no row with id {id!r}", details={"id": id})
    if row.vector is None:
        raise InvalidInputError(f"row {id!r} has no vector to search with", details={"id": id})
    return row.vector


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
    if (like is None) is (vector is None):
        raise click.UsageError("give either --like ID or --vector FILE")
    query = None if vector is None else _read_query(vector)
    with _open(settings) as session, _Bar("load") as bar:
        session.load_user_vectors(cid, progress=bar)
        hits = session.search(_vector_of(session, like) if like is not None else query, k, threshold=threshold)
        for hit in hits:
            if as_json:
                record = {"id": hit.id, "score": hit.score, "distance": hit.distance, "metadata": hit["metadata"]}
                click.echo(json.dumps(record, ensure_ascii=False))
            else:
                text = "" if hit.metadata is None else json_text(hit.metadata)
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
@click.option("--keep", required=True, type=click.IntRange(1), help="How many of the newest versions stay.")
@click.option("--delete", is_flag=True, help="Do it; without it only say what would go.")
@click.pass_obj
@_reporting
def prune(settings: _Settings, keep: int, delete: bool) -> None:
    """Forget all but the newest versions, and delete what only the others need."""
    with _open(settings) as session:
        report = session.prune_history(keep, dry_run=not delete)
    done = f"deleted {report.blobs_deleted} of" if delete else "would delete"
    click.echo(f"{len(report.versions)} versions: {done} {report.blobs} objects, {report.bytes:,} bytes")


@cli.command()
@click.argument("cid")
@click.pass_obj
@_reporting
def share(settings: _Settings, cid: str) -> None:
    """Print a CID that opens the version CID without the phrase, and nothing else. It is a secret."""
    with _open(settings) as session:
        click.echo(session.share(cid))


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
@click.option("--sample", default=200, show_default=True, type=click.IntRange(1, 10_000), help="Rows to ask for.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1, 1_000), help="Neighbours of each.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw it: .svg, .png or .pdf.")
@click.pass_obj
@_reporting
def recall(settings: _Settings, sample: int, k: int, plot: Path | None) -> None:
    """Measure how much of the truth searches of the newest version find, and what that costs."""
    with _open(settings) as session, _Bar("load") as bar:
        session.load_user_vectors(progress=bar, lazy_load=False)
        report = session.recall(sample, k=k)
    click.echo(f"recall@{report.k} of {report.sample} of {report.rows:,} rows; microseconds of one search")
    for name, point in [("default", report.default), *((_setting(point), point) for point in report.points)]:
        times = f"p50 {point.p50_us:8.1f}  p99 {point.p99_us:8.1f}"
        click.echo(f"{name:>14}  {point.recall:.4f}  {times}  {point.queries_per_s:9,.0f} a second")
    if plot is not None:
        report.plot(plot)


def _setting(point: RecallPoint) -> str:
    if point.exact:
        return "exact"
    return f"ef_search {point.ef_search}" if point.ef_search else f"nprobe {point.nprobe}"


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
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5522, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one.")
@click.option("--accounts", is_flag=True, help="Let in who has an account; to make one takes the token, if there is.")
@click.option("--allow-host", multiple=True, help="Another name that it may be asked for by; may be repeated.")
@click.option("--allow-origin", multiple=True, help="Let web pages of this origin use it; may be repeated.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@_reporting
def portal(
    host: str, port: int, accounts: bool, allow_host: tuple[str, ...], allow_origin: tuple[str, ...], directory: Path
) -> None:
    """Serve DIRECTORY as a small S5 node and gateway, for development (extra `portal`).

    Where FABSTIR_PORTAL_TOKEN is set, clients must send it.
    """
    try:
        import uvicorn

        from fabstir_vectordb.portal.app import create_app
        from fabstir_vectordb.portal.server import listen, server_config
    except ImportError as error:
        raise InvalidConfigError(f"{error.name} is missing: install fabstir_vectordb[portal]") from None
    app = create_app(
        directory.absolute(), _portal_token(), accounts=accounts, hosts=(host, *allow_host), origins=allow_origin
    )
    with listen(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        click.echo(f"Serving {directory} at http://{shown}:{listener.getsockname()[1]}; Ctrl-C ends it.")
        server = uvicorn.Server(server_config(app))
        # Ctrl-C is how it ends; by the time that it is raised here, the server has finished what it was doing.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


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
    store = open_store(uri, token=_portal_token())
    try:
        probe = b"fabstir-vectordb doctor"
        blob = await store.put(probe)
        if await store.get(blob.hash, blob.size) != probe:
            raise IntegrityError("the store gave other bytes back")
        await store.delete(blob.hash)
    finally:
        await store.aclose()
