"""The command line: the session's verbs from a shell.

The seed phrase comes from FABSTIR_SEED_PHRASE, a file or a prompt; a portal's token comes from FABSTIR_PORTAL_TOKEN.
No argument takes either: every user of a machine can read arguments, and shell histories keep them.

Results go to stdout. Errors (one line each), warnings, and progress bars go to stderr; progress bars appear only on a
terminal. `-` in place of a file is stdin or stdout. An output file is written completely or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn, TextIO
from urllib.parse import urlsplit

import anyio
import click
import platformdirs
from tqdm import tqdm

from fabstir_vectordb.cli_collection import collection
from fabstir_vectordb.cli_import import export, import_
from fabstir_vectordb.cli_mcp import mcp
from fabstir_vectordb.cli_migrate import migrate
from fabstir_vectordb.cli_search import search
from fabstir_vectordb.cli_support import (
    INPUT,
    Bar,
    OutputError,
    Settings,
    load,
    note,
    open_session,
    portal_token,
    say,
)
from fabstir_vectordb.demo.story import tell
from fabstir_vectordb.errors import (
    IntegrityError,
    InvalidConfigError,
    NotFoundError,
    S5Error,
    VectorDBError,
)
from fabstir_vectordb.extras import install_command
from fabstir_vectordb.output_file import writing
from fabstir_vectordb.plot import check_picture
from fabstir_vectordb.s5.phrase import new_seed_phrase
from fabstir_vectordb.session import get_platform_info, get_version
from fabstir_vectordb.storage import open_store
from fabstir_vectordb.sync import VectorDBSession
from fabstir_vectordb.types import RecallPoint

__all__ = ["cli"]

# Codes above 128 are those that a shell reports for a program ended by a signal.
EXIT_OK: Final = 0
EXIT_ERROR: Final = 1
EXIT_INTERRUPTED: Final = 130
EXIT_READER_GONE: Final = 141


def _default_store() -> str:
    return Path(platformdirs.user_data_dir("fabstir-vectordb", appauthor=False), "store").as_uri()


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
        except OutputError as error:
            if error.reader_has_gone:
                return EXIT_READER_GONE
            note(str(error))
            return EXIT_ERROR
        except OSError as error:  # from the flush of stdout: `invoke` handles all others
            if error.errno == errno.EPIPE:
                return EXIT_READER_GONE
            note(f"stdout: {error.strerror}")
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
            settings: Settings | None = context.obj
            if settings is not None and settings.debug:
                with contextlib.suppress(OSError):
                    traceback.print_exc()
            else:
                note(_one_line(error, settings.store if settings is not None else ""))
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


_EPILOG = """Exit codes: 0 success; 1 an error, one line on stderr; 2 wrong usage; 130 interrupted (Ctrl-C);
141 the reader of stdout closed it; 143 terminated. Output files are written completely or not at all."""


@click.group(cls=_Cli, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(get_version(), prog_name="fabstir-vectordb")
@click.option("--store", envvar="FABSTIR_STORE", default=_default_store, help="Address of the store (s5_portal).")
@click.option("--index-name", default="default", show_default=True, help="Name of the index.")
@click.option(
    "--phrase-file",
    type=INPUT,
    help="File with the seed phrase, - for stdin. Without it: FABSTIR_SEED_PHRASE, or a prompt.",
)
@click.option("--memory-budget-mb", default=4096, show_default=True, help="Memory limit of the index, in MB.")
@click.option("--debug", is_flag=True, help="Show all log records, and the traceback of an error.")
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:
    """An embedded vector database that stores its index on S5, encrypted and verifiable."""
    context.obj = Settings(**options)
    _show_log(context, context.obj.debug)


cli.add_command(collection)
cli.add_command(import_)
cli.add_command(export)
cli.add_command(migrate)
cli.add_command(mcp)
cli.add_command(search)


@cli.command()
def demo() -> None:
    """Add, search, save, load and delete demo rows in a temporary store."""
    anyio.run(tell, say)


@cli.command("new-phrase")
def new_phrase() -> None:
    """Print a new seed phrase. Keep it: nothing else opens the data that is saved under it."""
    say(new_seed_phrase())


# ---- reading


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per version.")
@click.pass_obj
def history(settings: Settings, as_json: bool) -> None:
    """List the versions of the index, newest first."""
    with open_session(settings) as session:
        versions = session.history()
        if not versions:
            raise _nothing(settings, session)
    for version in versions:
        if as_json:
            say(json.dumps(asdict(version)))
            continue
        when = datetime.fromtimestamp(version.saved_at, UTC).isoformat(timespec="seconds")
        rows = "unknown" if version.vector_count is None else version.vector_count
        note = "  (refused: another session saved first)" if version.refused else ""
        say(f"{version.revision:>5}  {when}  {rows} rows  {version.cid}{note}")


def _nothing(settings: Settings, session: VectorDBSession) -> NotFoundError:
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
def prune(settings: Settings, keep: int, delete: bool) -> None:
    """Remove old versions from the history, and delete the objects that only they use."""
    with open_session(settings) as session:
        report = session.prune_history(keep, dry_run=not delete)
        if not report.versions and not session.history():
            raise _nothing(settings, session)
    done = f"deleted {report.blobs_deleted} of" if delete else "would delete"
    say(f"{len(report.versions)} versions: {done} {report.blobs} objects, {report.bytes:,} bytes")


@cli.command()
@click.argument("cid")
@click.pass_obj
def share(settings: Settings, cid: str) -> None:
    """Print a share CID, which opens the version CID without the phrase. It is a secret."""
    with open_session(settings) as session:
        say(session.share(cid))


@cli.command()
@click.pass_obj
def indexes(settings: Settings) -> None:
    """List the names of the user's indexes."""
    with open_session(settings) as session:
        names = session.list_indexes()
        if not names:
            raise _nothing(settings, session)
    for name in names:
        say(name)


@cli.command()
@click.option("--cid", help="CID of the version; by default the newest.")
@click.pass_obj
def verify(settings: Settings, cid: str | None) -> None:
    """Read and check every object of a version."""
    with open_session(settings) as session, Bar("verify") as bar:
        report = session.verify(cid, progress=bar)
    say(f"{report.cid}\n{report.parts} parts, {report.bytes:,} bytes, {report.rows} rows: all intact")


@cli.command()
@click.option("--sample", default=200, show_default=True, type=click.IntRange(1, 10_000), help="Rows used as queries.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1, 1_000), help="Hits per query.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Also draw a plot: .svg, .png or .pdf.")
@click.pass_obj
def recall(settings: Settings, sample: int, k: int, plot: Path | None) -> None:
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
    say(f"recall@{report.k}, {report.sample} of {report.rows:,} rows as queries; microseconds per search")
    for name, point in [("default", report.default), *((_setting(point), point) for point in report.points)]:
        times = f"p50 {point.p50_us:8.1f}  p99 {point.p99_us:8.1f}"
        say(f"{name:>14}  {point.recall:.4f}  {times}  {point.queries_per_s:9,.0f} QPS")


def _setting(point: RecallPoint) -> str:
    if point.exact:
        return "exact"
    return f"ef_search {point.ef_search}" if point.ef_search else f"nprobe {point.nprobe}"


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def stats(settings: Settings, as_json: bool) -> None:
    """Load the newest version and show its counts, settings and memory."""
    with open_session(settings) as session:
        load(session)
        found = asdict(session.get_stats())
    if as_json:
        say(json.dumps(found))
        return
    for name, value in found.items():
        say(f"{name}: {value}")


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
        directory.absolute(), portal_token(), accounts=accounts, hosts=(host, *allow_host), origins=allow_origin
    )
    shown = f"[{host}]" if ":" in host else host
    try:
        listener = listen(host, port)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{shown}:{port}") from None
    with listener:
        say(f"Serving {directory} at http://{shown}:{listener.getsockname()[1]}; Ctrl-C ends it.")
        server = uvicorn.Server(server_config(app))
        # uvicorn shuts the server down on Ctrl-C and raises it again afterwards. It is the usual end, not an error.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


@cli.command()
@click.pass_obj
def doctor(settings: Settings) -> None:
    """Show the platform and the SIMD kernels in use, and test the store."""
    say(f"fabstir_vectordb: {get_version()}")
    for name, value in get_platform_info().items():
        say(f"{name}: {value}")
    anyio.run(partial(_try_store, settings.store))
    say(f"store: {settings.store} can be written and read")


async def _try_store(uri: str) -> None:
    store = open_store(uri, token=portal_token())
    try:
        probe = b"fabstir-vectordb doctor"
        blob = await store.put(probe)
        if await store.get(blob.hash, blob.size) != probe:
            raise IntegrityError("the store returned other bytes than were stored")
        await store.delete(blob.hash)
    finally:
        await store.aclose()
