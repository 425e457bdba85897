"""The command line: the session's verbs from a shell.

The seed phrase comes from FABSTIR_SEED_PHRASE, a file or a prompt; a portal's token comes from FABSTIR_PORTAL_TOKEN.
No argument takes either: every user of a machine can read arguments, and shell histories keep them.

Results go to stdout. Errors (one line each), warnings, and progress bars go to stderr; progress bars appear only on a
terminal. `-` in place of a file is stdin or stdout. An output file is written completely or not at all.

The commands stand in the files cli_*.py, and in one table at the end of this one.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn, TextIO
from urllib.parse import urlsplit

import anyio
import click
import platformdirs
from tqdm import tqdm

from fabstir_vectordb.cli_care import optimize, recall, vacuum
from fabstir_vectordb.cli_collection import collection
from fabstir_vectordb.cli_import import export, import_
from fabstir_vectordb.cli_mcp import mcp
from fabstir_vectordb.cli_migrate import migrate
from fabstir_vectordb.cli_report import report
from fabstir_vectordb.cli_rows import count, delete, facets, get, list_
from fabstir_vectordb.cli_search import search
from fabstir_vectordb.cli_support import (
    INPUT,
    OutputError,
    Settings,
    json_option,
    note,
    plain,
    portal_token,
    say,
    tell,
)
from fabstir_vectordb.cli_versions import history, indexes, prune, share, stats, verify
from fabstir_vectordb.demo import story
from fabstir_vectordb.errors import (
    IntegrityError,
    InvalidConfigError,
    S5Error,
    VectorDBError,
)
from fabstir_vectordb.extras import install_command
from fabstir_vectordb.s5.phrase import new_seed_phrase
from fabstir_vectordb.session import get_platform_info, get_version
from fabstir_vectordb.storage import open_store

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

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._sections: dict[str, tuple[click.Command, ...]] = {}

    def add_section(self, title: str, *commands: click.Command) -> None:
        """Adds commands, which the help lists under a title."""
        self._sections[title] = commands
        for command in commands:
            self.add_command(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the commands of each section, with a line each."""
        width = max(len(name) for name in self.commands)
        for title, commands in self._sections.items():
            with formatter.section(title):
                limit = formatter.width - width - 6
                formatter.write_dl(
                    [(f"{command.name:{width}}", command.get_short_help_str(limit)) for command in commands]
                )

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
                for line in traceback.format_exc().splitlines():
                    note(line)
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
            for line in self.format(record).split("\n"):  # a traceback has several
                tqdm.write(plain(line), file=self.stream)
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
141 the reader of stdout closed it; 129, 143 ended by SIGHUP, SIGTERM. Output files are written completely or not at
all."""


@click.group(cls=_Cli, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(get_version(), prog_name="fabstir-vectordb")
@click.option(
    "--store",
    envvar="FABSTIR_STORE",
    show_envvar=True,
    default=_default_store,
    help="Address of the store (s5_portal).",
)
@click.option(
    "--index-name",
    envvar="FABSTIR_INDEX_NAME",
    show_envvar=True,
    default="default",
    show_default=True,
    help="Name of the index.",
)
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


@click.command()
def demo() -> None:
    """Add, search, save, load and delete demo rows in a temporary store."""

    def say_lines(text: str) -> None:
        for line in text.split("\n"):
            say(line)

    anyio.run(story.tell, say_lines)


@click.command("new-phrase")
@json_option()
def new_phrase(as_json: bool) -> None:
    """Print a new seed phrase. Keep it: nothing else opens the data that is saved under it."""
    phrase = new_seed_phrase()
    tell(as_json, {"seed_phrase": phrase}, phrase)


# ---- portal and platform


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=5522, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 picks a free one."
)
@click.option(
    "--accounts", is_flag=True, help="Let in clients with an account. Registering requires the token, if one is set."
)
@click.option("--allow-host", multiple=True, help="Another host name of the portal; may be repeated.")
@click.option("--allow-origin", multiple=True, help="Let web pages of this origin use the portal; may be repeated.")
@json_option()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def portal(
    host: str,
    port: int,
    accounts: bool,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    as_json: bool,
    directory: Path,
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
        url = f"http://{shown}:{listener.getsockname()[1]}"
        tell(as_json, {"directory": str(directory), "url": url}, f"Serving {directory} at {url}; Ctrl-C ends it.")
        server = uvicorn.Server(server_config(app))
        # uvicorn shuts the server down on Ctrl-C and raises it again afterwards. It is the usual end, not an error.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


@click.command()
@json_option()
@click.pass_obj
def doctor(settings: Settings, as_json: bool) -> None:
    """Show the platform and the SIMD kernels in use, and test the store."""
    found = {"fabstir_vectordb": get_version(), **get_platform_info()}
    if not as_json:  # before the store is tried: it may be the one that fails
        tell(False, {}, *(f"{name}: {value}" for name, value in found.items()))
    anyio.run(partial(_try_store, settings.store))
    tell(as_json, {**found, "store": settings.store}, f"store: {settings.store} can be written and read")


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


# ---- the table of commands

cli.add_section("Rows in and out", import_, export, migrate)
cli.add_section("Rows", search, get, list_, count, facets, delete)
cli.add_section("Versions", history, indexes, stats, verify, prune, share)
cli.add_section("Care", optimize, vacuum, recall, report)
cli.add_section("Collections", collection)
cli.add_section("Tools", new_phrase, doctor, portal, mcp, demo)
