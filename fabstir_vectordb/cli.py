"""The command line: the session's verbs from a shell.

The seed phrase comes from FABSTIR_SEED_PHRASE, a file or a prompt; a portal's token comes from FABSTIR_PORTAL_TOKEN.
No argument takes either: every user of a machine can read arguments, and shell histories keep them.

Results go to stdout. Errors (one line each), warnings, and progress bars go to stderr; progress bars appear only on a
terminal. `-` in place of a file is stdin or stdout. An output file is written completely or not at all.
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
#: The argument that stands for stdin or stdout.
_STANDARD: Final = Path("-")
_INPUT: Final = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)

# Codes above 128 are those that a shell reports for a program ended by a signal.
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
            # Not chained: the UnicodeDecodeError would show bytes of the file.
            raise InvalidConfigError(f"{_name(settings.phrase_file)} is not UTF-8 text") from None
    given = os.environ.get("FABSTIR_SEED_PHRASE", "").strip()
    return given or _ask("Seed phrase: ")


def _ask(text: str) -> str:
    """Prompts on the terminal, even if stdin and stdout are redirected; the typed text is not shown.

    Raises:
        InvalidConfigError: there is no terminal, or the prompt got no answer.
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
    # Not from an argument, for the reason in the module's docstring.
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
    """Opens a file, or stdin, for reading."""
    if path == _STANDARD:
        yield sys.stdin.buffer
        return
    with path.open("rb") as stream:
        yield stream


def _name(path: Path) -> str:
    return "stdin" if path == _STANDARD else str(path)


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[Path]:
    """Opens a new file that replaces the target if the block succeeds; after an exception the target is unchanged.

    Raises:
        OSError: the new file cannot be created; the error names the target. The block is not entered.
    """
    real = Path(os.path.realpath(target))
    if real.exists() and not real.is_file():  # a device or a pipe cannot be replaced, so write to it directly
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
    """Stdout cannot be written: the disk is full, or the reader has closed it."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"stdout: {cause.strerror}")
        self.reader_has_gone = cause.errno == errno.EPIPE


def _say(text: str) -> None:
    """Prints a line of the result to stdout."""
    try:
        click.echo(text)
    except OSError as error:
        raise _OutputError(error) from None


def _note(text: str) -> None:
    """Prints a message to stderr; ignores a failure to write it."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _one_line(error: Exception, store: str) -> str:
    if isinstance(error, OSError) and not isinstance(error, VectorDBError):
        return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror or error)
    text = " ".join(str(error).split())
    # An error of the network has the request. Add the portal's address, which the user can change.
    portal = urlsplit(store).netloc
    return f"{text} (portal {store})" if isinstance(error, S5Error) and portal and portal not in text else text


class _Terminated(BaseException):
    """A signal asks the process to end. Raised as an exception, so that unfinished files are removed first."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _terminate(number: int, _: FrameType | None) -> None:
    raise _Terminated(number)


class _Cli(click.Group):
    """The command group. Every command ends with an exit code and, after an error, one line on stderr."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Runs a command and ends the process with its exit code."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # the encoding of a terminal may lack characters
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
                # click returns the exit code of --help and --version instead of raising it.
                return result if isinstance(result, int) else EXIT_OK
        except _OutputError as error:
            if error.reader_has_gone:
                return EXIT_READER_GONE
            _note(str(error))
            return EXIT_ERROR
        except OSError as error:  # from the flush of stdout: `invoke` handles all others
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
        """Runs the command. An error is printed as one line, or with --debug as a traceback."""
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
    """Flushes a standard stream, so that the interpreter's exit does not fail on it; returns the exit code."""
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
    """Writes log records to stderr, above an open progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=self.stream)
        except OSError:  # stderr is closed; the command goes on
            pass


def _show_log(context: click.Context, debug: bool) -> None:
    """Shows the package's log records on stderr while the command runs: all with --debug, else warnings."""
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
    """Discards changes without a warning if the block fails: its error already says that nothing was saved."""
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
    """A progress bar for the bytes of a save, load or verification.

    The bar appears with the first part if stderr is a terminal, and is removed before a result is printed.
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


_EPILOG = """Exit codes: 0 success; 1 an error, one line on stderr; 2 wrong usage; 130 interrupted (Ctrl-C);
141 the reader of stdout closed it; 143 terminated. Output files are written completely or not at all."""


@click.group(cls=_Cli, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(get_version(), prog_name="fabstir-vectordb")
@click.option("--store", envvar="FABSTIR_STORE", default=_default_store, help="Address of the store (s5_portal).")
@click.option("--index-name", default="default", show_default=True, help="Name of the index.")
@click.option(
    "--phrase-file",
    type=_INPUT,
    help="File with the seed phrase, - for stdin. Without it: FABSTIR_SEED_PHRASE, or a prompt.",
)
@click.option("--memory-budget-mb", default=4096, show_default=True, help="Memory limit of the index, in MB.")
@click.option("--debug", is_flag=True, help="Show all log records, and the traceback of an error.")
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:
    """An embedded vector database that stores its index on S5, encrypted and verifiable."""
    context.obj = _Settings(**options)
    _show_log(context, context.obj.debug)


@cli.command()
def demo() -> None:
    """Add, search, save, load and delete demo rows in a temporary store."""
    anyio.run(tell, _say)


@cli.command("new-phrase")
def new_phrase() -> None:
    """Print a new seed phrase. Keep it: nothing else opens the data that is saved under it."""
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
        InvalidInputError: a line is not a row; the message has its number.
    """
    with _reading(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidInputError(f"{_name(path)} line {number} is not JSON: {error}") from None
            if not isinstance(record, dict) or not isinstance(record.get("id"), str):
                raise InvalidInputError(f'{_name(path)} line {number}: must be an object with a string "id"')
            vector = record.pop("vector", _MISSING)
            if vector is not _MISSING and vector is not None and not _is_vector(vector):
                raise InvalidInputError(
                    f'{_name(path)} line {number}: "vector" must be a list of numbers, or null for no vector'
                )
            id, times = record.pop("id"), (record.pop("timestamp", None), record.pop("expires_at", None))
            # `export` writes metadata under the key "metadata". In other files its fields stand beside the id.
            metadata = record["metadata"] if record.keys() == {"metadata"} else record or None
            yield _Record(id, vector, metadata, *times)


#: Stands for a missing key "vector"; null means that the row has no vector.
_MISSING: Final = object()


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) in (int, float) for item in value)


def _array(path: Path) -> npt.NDArray[Any]:
    """The array of a .npy file, memory-mapped.

    Raises:
        InvalidInputError: the file holds no array of numbers.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise InvalidInputError(f"{path} is not a .npy file of numbers: {error}") from None


class _Batch(NamedTuple):
    rows: list[_Record]
    vectors: Any


def _batches(rows: Path, vectors: Path | None) -> Iterator[_Batch]:
    """Rows with their vectors, in batches; only one batch is in memory at a time.

    Raises:
        InvalidInputError: the numbers of rows and vectors differ, or a row has no vector.
    """
    array = None if vectors is None else _array(vectors)
    if array is not None and array.ndim != 2:
        raise InvalidInputError(f"{vectors} must hold an array of shape (n, dim), got {array.shape}")
    records = _records(rows)
    count = 0
    while chosen := list(islice(records, _BATCH_ROWS)):
        first, count = count, count + len(chosen)
        if array is not None:
            if len(array) < count:
                raise InvalidInputError(f"there are {len(array)} vectors and more than {len(array)} rows")
            yield _Batch(chosen, array[first:count])
            continue
        missing = next((record.id for record in chosen if record.vector is _MISSING), None)
        if missing is not None:
            raise InvalidInputError(f'row {missing!r} has no "vector": add it, or give a file with --vectors')
        yield _Batch(chosen, [record.vector for record in chosen])
    if array is not None and len(array) != count:
        raise InvalidInputError(f"there are {len(array)} vectors and {count} rows")


@cli.command("import")
@click.argument("rows", type=_INPUT)
@click.option(
    "--vectors",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='.npy file of (n, dim) numbers in the order of ROWS. Without it each row needs a "vector".',
)
@click.option(
    "--on-conflict",
    type=click.Choice(["error", "replace", "skip"]),
    default="error",
    show_default=True,
    help="What to do with an id that is in the index already.",
)
@click.option(
    "--metric",
    type=click.Choice(["cosine", "l2", "dot"]),
    help="Metric of a new index, by default cosine. For a stored index it must be the stored metric.",
)
@click.pass_obj
def import_(settings: _Settings, rows: Path, vectors: Path | None, on_conflict: str, metric: str | None) -> None:
    """Add ROWS to the index and save it. A missing index is created.

    ROWS is a jsonl file, or - for stdin. Each line is an object with an "id" and optionally a "vector"; other fields
    are metadata. If a row is refused, nothing is saved.
    """
    if rows == _STANDARD == settings.phrase_file:
        raise click.UsageError("stdin cannot hold both the rows and the phrase")
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
@click.option("--cid", help="CID of the version; by default the newest.")
@click.pass_obj
def export(settings: _Settings, target: Path, cid: str | None) -> None:
    """Write all rows with vectors and metadata to TARGET as jsonl; - is stdout.

    `import` reads the file. Dates, datetimes and UUIDs in metadata become strings.
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
    """Writes all rows; returns their number."""
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
        raise InvalidInputError(f"{_name(path)} is not JSON: {error}") from None


def _vector_of(session: VectorDBSession, id: str) -> Any:
    row = session.get([id])[0]
    if row is None:
        raise NotFoundError(f"the index has no row with id {id!r}", details={"id": id})
    if row.vector is None:
        raise InvalidInputError(f"row {id!r} has no vector: use a row with a vector, or --vector", details={"id": id})
    return row.vector


@cli.command()
@click.option("--like", help="Id of a row whose vector is the query.")
@click.option(
    "--vector",
    type=_INPUT,
    help="File with the query: .npy, or a JSON array; - for JSON on stdin.",
)
@click.option("-k", default=10, show_default=True, help="Most hits.")
@click.option("--threshold", type=float, help="Least score of a hit; by default there is none.")
@click.option("--cid", help="CID of the version; by default the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per hit.")
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
    """Find the rows nearest to a query vector."""
    if (like is None) is (vector is None):
        raise click.UsageError("give either --like ID or --vector FILE")
    if vector == _STANDARD == settings.phrase_file:
        raise click.UsageError("stdin cannot hold both the query and the phrase")
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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per version.")
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
        note = "  (refused: another session saved first)" if version.refused else ""
        _say(f"{version.revision:>5}  {when}  {rows} rows  {version.cid}{note}")


def _nothing(settings: _Settings, session: VectorDBSession) -> NotFoundError:
    """The error for an index without versions; it lists the indexes of the phrase."""
    names = session.list_indexes()
    known = f"this phrase has {', '.join(map(repr, names))}" if names else "this phrase has saved no index here"
    return NotFoundError(
        f"no version of index {settings.index_name!r} in {settings.store}: {known}; check the phrase for typos",
        details={"index_name": settings.index_name, "indexes": names},
    )


@cli.command()
@click.option("--keep", required=True, type=click.IntRange(1), help="Number of newest versions to keep.")
@click.option("--delete", is_flag=True, help="Delete; without it only print what would be deleted.")
@click.pass_obj
def prune(settings: _Settings, keep: int, delete: bool) -> None:
    """Remove old versions from the history, and delete the objects that only they use."""
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
    """Print a share CID, which opens the version CID without the phrase. It is a secret."""
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
@click.option("--cid", help="CID of the version; by default the newest.")
@click.pass_obj
def verify(settings: _Settings, cid: str | None) -> None:
    """Read and check every object of a version."""
    with _open(settings) as session, _Bar("verify") as bar:
        report = session.verify(cid, progress=bar)
    _say(f"{report.cid}\n{report.parts} parts, {report.bytes:,} bytes, {report.rows} rows: all intact")


@cli.command()
@click.option("--sample", default=200, show_default=True, type=click.IntRange(1, 10_000), help="Rows used as queries.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1, 1_000), help="Hits per query.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Also draw a plot: .svg, .png or .pdf.")
@click.pass_obj
def recall(settings: _Settings, sample: int, k: int, plot: Path | None) -> None:
    """Measure recall and latency of searches in the newest version."""
    if plot is not None:
        check_picture(plot)
    # The plot's file is created first: an unwritable path is reported before the measurement, which takes minutes.
    with contextlib.nullcontext() if plot is None else _writing(plot) as picture:
        with _open(settings) as session:
            _load(session, lazy_load=False)
            report = session.recall(sample, k=k)
        if picture is not None:
            report.plot(picture)
    _say(f"recall@{report.k}, {report.sample} of {report.rows:,} rows as queries; microseconds per search")
    for name, point in [("default", report.default), *((_setting(point), point) for point in report.points)]:
        times = f"p50 {point.p50_us:8.1f}  p99 {point.p99_us:8.1f}"
        _say(f"{name:>14}  {point.recall:.4f}  {times}  {point.queries_per_s:9,.0f} QPS")


def _setting(point: RecallPoint) -> str:
    if point.exact:
        return "exact"
    return f"ef_search {point.ef_search}" if point.ef_search else f"nprobe {point.nprobe}"


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def stats(settings: _Settings, as_json: bool) -> None:
    """Load the newest version and show its counts, settings and memory."""
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
@click.option(
    "--port", default=5522, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 picks a free one."
)
@click.option(
    "--accounts", is_flag=True, help="Let in clients with an account. Registering requires the token, if one is set."
)
@click.option("--allow-host", multiple=True, help="Another host name of the portal; may be repeated.")
@click.option("--allow-origin", multiple=True, help="Let web pages of this origin use the portal; may be repeated.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def portal(
    host: str, port: int, accounts: bool, allow_host: tuple[str, ...], allow_origin: tuple[str, ...], directory: Path
) -> None:
    """Serve DIRECTORY as a small S5 node and gateway, for development (extra `portal`).

    If FABSTIR_PORTAL_TOKEN is set, clients must send it.
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
        # uvicorn shuts the server down on Ctrl-C and raises it again afterwards. It is the usual end, not an error.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


@cli.command()
@click.pass_obj
def doctor(settings: _Settings) -> None:
    """Show the platform and the SIMD kernels in use, and test the store."""
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
            raise IntegrityError("the store returned other bytes than were stored")
        await store.delete(blob.hash)
    finally:
        await store.aclose()
