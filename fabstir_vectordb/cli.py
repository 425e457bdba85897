"""The command line: the session's verbs from a shell.

The seed phrase comes from FABSTIR_SEED_PHRASE, a file or a prompt, a portal's token from FABSTIR_PORTAL_TOKEN, and
neither from an argument: every user of a machine can read arguments, and they stay in shell histories.

Results go to stdout, all else to stderr: errors in one line, warnings, and progress where stderr is a terminal. Where a
file is read or written, `-` is stdin or stdout. A file that is written is there whole, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import io
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final, NamedTuple, NoReturn, TextIO
from urllib.parse import urlsplit

import anyio
import click
import numpy as np
import numpy.typing as npt
import platformdirs
from tqdm import tqdm

from fabstir_vectordb.demo.story import tell
from fabstir_vectordb.display import json_ready, json_text
from fabstir_vectordb.errors import (
    IntegrityError,
    InvalidConfigError,
    InvalidInputError,
    NotFoundError,
    S5Error,
    VectorDBError,
)
from fabstir_vectordb.extras import install_command
from fabstir_vectordb.plot import check_picture
from fabstir_vectordb.s5.phrase import new_seed_phrase
from fabstir_vectordb.session import get_platform_info, get_version
from fabstir_vectordb.storage import open_store
from fabstir_vectordb.sync import VectorDBSession
from fabstir_vectordb.types import Progress, RecallPoint

__all__ = ["cli"]

_BATCH_ROWS = 4_096
#: Where a file is named, stdin or stdout.
_STANDARD: Final = Path("-")
_INPUT: Final = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)

# Those above 128 are what a shell shows of a program that a signal ended.
EXIT_OK: Final = 0
EXIT_ERROR: Final = 1
EXIT_INTERRUPTED: Final = 130
EXIT_READER_GONE: Final = 141


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
            with _reading(settings.phrase_file) as stream:
                return stream.read().decode().strip()
        except UnicodeDecodeError:
            # Not chained: the error would show the file's bytes.
            raise InvalidConfigError(f"{_name(settings.phrase_file)} is not UTF-8 text") from None
    given = os.environ.get("FABSTIR_SEED_PHRASE", "").strip()
    return given or _ask("Seed phrase: ")


def _ask(text: str) -> str:
    """Asks on the terminal, whatever stdin and stdout are; what is typed is not shown.

    Raises:
        InvalidConfigError: there is no terminal, or no answer.
    """
    if not _has_terminal():
        raise InvalidConfigError(
            "the seed phrase is missing: set FABSTIR_SEED_PHRASE, or give --phrase-file FILE (- is stdin)"
        )
    try:
        return getpass.getpass(text, stream=sys.stderr)
    except EOFError:
        raise InvalidConfigError("the seed phrase is missing: the prompt got no answer") from None


def _has_terminal() -> bool:
    if sys.stdin is not None and sys.stdin.isatty():
        return True
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True


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


# ---- input, output and how a command ends


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """A file, or stdin."""
    if path == _STANDARD:
        yield sys.stdin.buffer
        return
    with path.open("rb") as stream:
        yield stream


def _name(path: Path) -> str:
    return "stdin" if path == _STANDARD else str(path)


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[Path]:
    """A new file that takes the target's place when the block ends well; else the target stays as it was.

    Raises:
        OSError: it cannot be made, with the target's name. The block has not begun then.
    """
    real = Path(os.path.realpath(target))
    if real.exists() and not real.is_file():  # a device or a pipe is written as it is
        yield target
        return
    try:
        handle, name = tempfile.mkstemp(dir=real.parent, prefix=f".{real.stem}-", suffix=real.suffix)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from None
    os.close(handle)
    fresh = Path(name)
    try:
        yield fresh
        fresh.chmod(real.stat().st_mode & 0o777 if real.exists() else 0o666 & ~_umask())
        with fresh.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(fresh, real)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(real.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class _OutputError(Exception):
    """Stdout takes nothing more: its disk is full, or its reader has gone."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"stdout: {cause.strerror}")
        self.reader_has_gone = cause.errno == errno.EPIPE


def _say(text: str) -> None:
    """Prints a line of the result."""
    try:
        click.echo(text)
    except OSError as error:
        raise _OutputError(error) from None


def _note(text: str) -> None:
    """Prints a line for people to stderr; nothing is lost where that takes none."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _one_line(error: Exception, store: str) -> str:
    if isinstance(error, OSError) and not isinstance(error, VectorDBError):
        return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror or error)
    text = " ".join(str(error).split())
    # An error of the network has the request; which portal it was is what a user can do something about.
    portal = urlsplit(store).netloc
    return f"{text} (portal {store})" if isinstance(error, S5Error) and portal and portal not in text else text


class _Terminated(BaseException):
    """A signal asks the process to end; what it is writing is cleaned up first."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _terminate(number: int, _: FrameType | None) -> None:
    raise _Terminated(number)


class _Cli(click.Group):
    """Ends every command in one way: an exit code and, for an error, one line on stderr."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Runs a command and ends the process with its exit code."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal may not know every character
                stream.reconfigure(errors="backslashreplace")
        code = self._code_of(args, prog_name or "fabstir-vectordb", extra)
        for name in ("stdout", "stderr"):
            code = _closed(getattr(sys, name), code)
        raise SystemExit(code)

    def _code_of(self, args: Sequence[str] | None, prog_name: str, extra: dict[str, Any]) -> int:
        signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        try:
            with contextlib.ExitStack() as before:
                if threading.current_thread() is threading.main_thread():
                    for number in signals:
                        before.callback(signal.signal, number, signal.signal(number, _terminate))
                result = super().main(args, prog_name, standalone_mode=False, **extra)
                sys.stdout.flush()
                # click gives the code of --help and --version back instead of raising it.
                return result if isinstance(result, int) else EXIT_OK
        except _OutputError as error:
            if error.reader_has_gone:
                return EXIT_READER_GONE
            _note(str(error))
            return EXIT_ERROR
        except OSError as error:  # stdout again: all others were met in `invoke`
            if error.errno == errno.EPIPE:
                return EXIT_READER_GONE
            _note(f"stdout: {error.strerror}")
            return EXIT_ERROR
        except click.exceptions.Exit as ended:
            return ended.exit_code
        except click.ClickException as error:
            with contextlib.suppress(OSError):
                error.show()
            return error.exit_code
        except (KeyboardInterrupt, click.Abort):
            return EXIT_INTERRUPTED
        except _Terminated as ended:
            return 128 + ended.number

    def invoke(self, context: click.Context) -> Any:
        """Runs the command; --debug shows where an error comes from."""
        try:
            return super().invoke(context)
        except (VectorDBError, OSError) as error:
            settings: _Settings | None = context.obj
            if settings is not None and settings.debug:
                with contextlib.suppress(OSError):
                    traceback.print_exc()
            else:
                _note(_one_line(error, settings.store if settings is not None else ""))
            raise click.exceptions.Exit(EXIT_ERROR) from None


def _closed(stream: TextIO | None, code: int) -> int:
    """Flushes a standard stream, so that the end of the process meets no error there; the exit code, then."""
    if stream is None:
        return code
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        return code or EXIT_ERROR
    return code


class _Log(logging.StreamHandler[TextIO]):
    """Log records on stderr, above a progress bar that is open there."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=self.stream)
        except OSError:  # nobody reads it
            pass


def _show_log(context: click.Context, debug: bool) -> None:
    """Shows the package's log records on stderr while the command runs: all of them, or warnings."""
    logger = logging.getLogger("fabstir_vectordb")
    handler = _Log(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s" if debug else "%(message)s"))
    level = logger.level
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    logger.addHandler(handler)

    def undo() -> None:
        logger.removeHandler(handler)
        logger.setLevel(level)

    context.call_on_close(undo)


@contextlib.contextmanager
def _changes(session: VectorDBSession) -> Iterator[None]:
    """Gives changes up without a warning when the block fails: its error says that nothing was saved."""
    try:
        yield
    except BaseException:
        logger = logging.getLogger("fabstir_vectordb")
        level = logger.level
        logger.setLevel(max(level, logging.ERROR))
        try:
            session.destroy()
        finally:
            logger.setLevel(level)
        raise


class _Bar:
    """A progress bar over the parts of a save, load or verification.

    It appears with the first part and only where stderr is a terminal, and it is gone before a result is printed.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None

    def __call__(self, state: Progress) -> None:
        if self._bar is None:
            self._bar = tqdm(desc=self._title, unit="B", unit_scale=True, leave=False, disable=None, file=sys.stderr)
        self._bar.total = state.bytes_total
        self._bar.update(state.bytes_done - self._bar.n)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _rows_bar(title: str, total: int | None = None) -> Any:
    return tqdm(desc=title, total=total, unit="row", leave=False, disable=None, file=sys.stderr)


def _load(session: VectorDBSession, cid: str | None = None, **fields: Any) -> None:
    with _Bar("load") as bar:
        session.load_user_vectors(cid, progress=bar, **fields)


_EPILOG = """Exit codes: 0 done; 1 an error, in one line on stderr; 2 wrong usage; 130 interrupted (Ctrl-C);
141 the reader of stdout has gone; 143 terminated. A file that is written is there whole, or not at all."""


@click.group(cls=_Cli, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(get_version(), prog_name="fabstir-vectordb")
@click.option("--store", envvar="FABSTIR_STORE", default=_default_store, help="Address of the store, as s5_portal.")
@click.option("--index-name", default="default", show_default=True, help="Which of the user's indexes.")
@click.option(
    "--phrase-file",
    type=_INPUT,
    help="File with the seed phrase, - for stdin; else FABSTIR_SEED_PHRASE, else a prompt.",
)
@click.option("--memory-budget-mb", default=4096, show_default=True, help="Most memory of an index, in MB.")
@click.option("--debug", is_flag=True, help="Show log records, and where an error comes from.")
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:
    """An embedded vector database whose index lives encrypted and verifiable on S5."""
    context.obj = _Settings(**options)
    _show_log(context, context.obj.debug)


@cli.command()
def demo() -> None:
    """Show the main job on real data, in a temporary store."""
    anyio.run(tell, _say)


@cli.command("new-phrase")
def new_phrase() -> None:
    """Print a fresh seed phrase. It opens all that is saved under it, and nothing else does: keep it."""
    _say(new_seed_phrase())


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
    with _reading(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidInputError(f"{_name(path)} line {number} is no JSON: {error}") from None
            if not isinstance(record, dict) or not isinstance(record.get("id"), str):
                raise InvalidInputError(f'{_name(path)} line {number}: needs an object with a string "id"')
            vector = record.pop("vector", _MISSING)
            if vector is not _MISSING and vector is not None and not _is_vector(vector):
                raise InvalidInputError(
                    f'{_name(path)} line {number}: "vector" must be a list of numbers, or null for none'
                )
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
@click.argument("rows", type=_INPUT)
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
    help="Of a new index, else cosine; of a stored one it must be the metric that it has.",
)
@click.pass_obj
def import_(settings: _Settings, rows: Path, vectors: Path | None, on_conflict: str, metric: str | None) -> None:
    """Add ROWS to the index, or start it, and save.

    ROWS is a jsonl file, or - for stdin: "id", perhaps "vector", other fields are metadata. Nothing is saved when a row
    is refused.
    """
    if rows == _STANDARD == settings.phrase_file:
        raise click.UsageError("stdin holds the rows or the phrase, not both")
    totals = [0, 0, 0]
    with _open(settings, **({} if metric is None else {"metric": metric})) as session, _changes(session):
        _load(session, missing_ok=True)
        with _rows_bar("add") as added:
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
        with _Bar("save") as bar:
            cid = session.save_to_s5(progress=bar)
    _say("added {}, replaced {}, skipped {}".format(*totals))
    _say(cid)


@cli.command()
@click.argument("target", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--cid", help="A version; without it the newest.")
@click.pass_obj
def export(settings: _Settings, target: Path, cid: str | None) -> None:
    """Write all rows with vectors and metadata to TARGET as jsonl, which `import` reads; - is stdout.

    Dates, datetimes and UUIDs in metadata become strings.
    """
    with _open(settings) as session:
        if target == _STANDARD:
            _load(session, cid)
            try:
                count = _export(session, sys.stdout.buffer)
                sys.stdout.buffer.flush()
            except OSError as error:
                if isinstance(error, VectorDBError):
                    raise
                raise _OutputError(error) from None
            _note(f"exported {count} rows")
            return
        with _writing(target) as fresh:
            _load(session, cid)
            with fresh.open("wb") as out:
                count = _export(session, out)
    _say(f"exported {count} rows to {target}")


def _export(session: VectorDBSession, out: IO[bytes]) -> int:
    """Writes all rows; how many there were."""
    count = 0
    with _rows_bar("export", session.count()) as bar:
        for row in session.scan():
            record = {
                "id": row.id,
                "vector": None if row.vector is None else [float(value) for value in row.vector],
                "timestamp": row.timestamp,
                "metadata": json_ready(row.metadata),
            }
            if row.expires_at is not None:
                record["expires_at"] = row.expires_at
            out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            bar.update()
            count += 1
    return count


# ---- reading


def _read_query(path: Path) -> Any:
    if path.suffix == ".npy":
        return _array(path).reshape(-1)
    try:
        with _reading(path) as stream:
            return json.loads(stream.read())
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{_name(path)} is no JSON: {error}") from None


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
    type=_INPUT,
    help="File with the query: .npy, or a JSON array; - for JSON on stdin.",
)
@click.option("-k", default=10, show_default=True, help="Hits at most.")
@click.option("--threshold", type=float, help="Least score; without it nothing is cut.")
@click.option("--cid", help="A version; without it the newest.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per hit.")
@click.pass_obj
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
    if vector == _STANDARD == settings.phrase_file:
        raise click.UsageError("stdin holds the query or the phrase, not both")
    query = None if vector is None else _read_query(vector)
    with _open(settings) as session:
        _load(session, cid)
        hits = session.search(_vector_of(session, like) if like is not None else query, k, threshold=threshold)
        for hit in hits:
            if as_json:
                record = {"id": hit.id, "score": hit.score, "distance": hit.distance, "metadata": hit["metadata"]}
                _say(json.dumps(record, ensure_ascii=False))
            else:
                text = "" if hit.metadata is None else json_text(hit.metadata)
                _say(f"{hit.score:.4f}  {hit.id}  {text}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per version.")
@click.pass_obj
def history(settings: _Settings, as_json: bool) -> None:
    """List the versions of the index, newest first."""
    with _open(settings) as session:
        versions = session.history()
        if not versions:
            raise _nothing(settings, session)
    for version in versions:
        if as_json:
            _say(json.dumps(asdict(version)))
            continue
        when = datetime.fromtimestamp(version.saved_at, UTC).isoformat(timespec="seconds")
        rows = "unknown" if version.vector_count is None else version.vector_count
        note = "  (refused: another version came between)" if version.refused else ""
        _say(f"{version.revision:>5}  {when}  {rows} rows  {version.cid}{note}")


def _nothing(settings: _Settings, session: VectorDBSession) -> NotFoundError:
    """Says that this phrase has saved nothing under this name, and what it has."""
    names = session.list_indexes()
    known = f"this phrase has {', '.join(map(repr, names))}" if names else "this phrase has saved no index here"
    return NotFoundError(
        f"no version of index {settings.index_name!r} in {settings.store}: {known}; a mistyped phrase is another one",
        details={"index_name": settings.index_name, "indexes": names},
    )


@cli.command()
@click.option("--keep", required=True, type=click.IntRange(1), help="How many of the newest versions stay.")
@click.option("--delete", is_flag=True, help="Do it; without it only say what would go.")
@click.pass_obj
def prune(settings: _Settings, keep: int, delete: bool) -> None:
    """Forget all but the newest versions, and delete what only the others need."""
    with _open(settings) as session:
        report = session.prune_history(keep, dry_run=not delete)
        if not report.versions and not session.history():
            raise _nothing(settings, session)
    done = f"deleted {report.blobs_deleted} of" if delete else "would delete"
    _say(f"{len(report.versions)} versions: {done} {report.blobs} objects, {report.bytes:,} bytes")


@cli.command()
@click.argument("cid")
@click.pass_obj
def share(settings: _Settings, cid: str) -> None:
    """Print a CID that opens the version CID without the phrase, and nothing else. It is a secret."""
    with _open(settings) as session:
        _say(session.share(cid))


@cli.command()
@click.pass_obj
def indexes(settings: _Settings) -> None:
    """List the names of the user's indexes."""
    with _open(settings) as session:
        names = session.list_indexes()
        if not names:
            raise _nothing(settings, session)
    for name in names:
        _say(name)


@cli.command()
@click.option("--cid", help="A version; without it the newest.")
@click.pass_obj
def verify(settings: _Settings, cid: str | None) -> None:
    """Read every object of a version and check all of it."""
    with _open(settings) as session, _Bar("verify") as bar:
        report = session.verify(cid, progress=bar)
    _say(f"{report.cid}\n{report.parts} parts, {report.bytes:,} bytes, {report.rows} rows: all whole")


@cli.command()
@click.option("--sample", default=200, show_default=True, type=click.IntRange(1, 10_000), help="Rows to ask for.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1, 1_000), help="Neighbours of each.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw it: .svg, .png or .pdf.")
@click.pass_obj
def recall(settings: _Settings, sample: int, k: int, plot: Path | None) -> None:
    """Measure how much of the truth searches of the newest version find, and what that costs."""
    if plot is not None:
        check_picture(plot)
    # The picture's file is made first: what cannot be written is said before the minutes that measuring takes.
    with contextlib.nullcontext() if plot is None else _writing(plot) as picture:
        with _open(settings) as session:
            _load(session, lazy_load=False)
            report = session.recall(sample, k=k)
        if picture is not None:
            report.plot(picture)
    _say(f"recall@{report.k} of {report.sample} of {report.rows:,} rows; microseconds of one search")
    for name, point in [("default", report.default), *((_setting(point), point) for point in report.points)]:
        times = f"p50 {point.p50_us:8.1f}  p99 {point.p99_us:8.1f}"
        _say(f"{name:>14}  {point.recall:.4f}  {times}  {point.queries_per_s:9,.0f} a second")


def _setting(point: RecallPoint) -> str:
    if point.exact:
        return "exact"
    return f"ef_search {point.ef_search}" if point.ef_search else f"nprobe {point.nprobe}"


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.pass_obj
def stats(settings: _Settings, as_json: bool) -> None:
    """Load the newest version and show what it holds and takes."""
    with _open(settings) as session:
        _load(session)
        found = asdict(session.get_stats())
    if as_json:
        _say(json.dumps(found))
        return
    for name, value in found.items():
        _say(f"{name}: {value}")


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5522, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one.")
@click.option(
    "--accounts", is_flag=True, help="Let in clients with an account; making one takes the token, where one is set."
)
@click.option("--allow-host", multiple=True, help="Another name that it may be asked for by; may be repeated.")
@click.option("--allow-origin", multiple=True, help="Let web pages of this origin use it; may be repeated.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
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
        raise InvalidConfigError(f"the portal needs {error.name}: {install_command('portal')}") from None
    app = create_app(
        directory.absolute(), _portal_token(), accounts=accounts, hosts=(host, *allow_host), origins=allow_origin
    )
    shown = f"[{host}]" if ":" in host else host
    try:
        listener = listen(host, port)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{shown}:{port}") from None
    with listener:
        _say(f"Serving {directory} at http://{shown}:{listener.getsockname()[1]}; Ctrl-C ends it.")
        server = uvicorn.Server(server_config(app))
        # Ctrl-C is how it ends; by the time that it is raised here, the server has finished what it was doing.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


@cli.command()
@click.pass_obj
def doctor(settings: _Settings) -> None:
    """Show the platform, the SIMD kernels in use, and whether the store can be used."""
    _say(f"fabstir_vectordb: {get_version()}")
    for name, value in get_platform_info().items():
        _say(f"{name}: {value}")
    anyio.run(partial(_try_store, settings.store))
    _say(f"store: {settings.store} can be written and read")


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
