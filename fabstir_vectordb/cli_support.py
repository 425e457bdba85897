"""What the commands of the command line share: the session, input and output, progress bars.

An output file is written completely or not at all; `-` in place of a file is stdin or stdout.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import click
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from fabstir_vectordb.errors import InvalidConfigError, InvalidInputError
from fabstir_vectordb.sync import VectorDBSession
from fabstir_vectordb.types import Progress

__all__ = [
    "INPUT",
    "STANDARD",
    "Bar",
    "OutputError",
    "Settings",
    "array_of",
    "changes",
    "file_name",
    "load",
    "note",
    "open_session",
    "portal_token",
    "query_of",
    "reading",
    "rows_bar",
    "say",
    "session_settings",
]

#: The argument that stands for stdin or stdout.
STANDARD: Final = Path("-")
INPUT: Final = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


class Settings(NamedTuple):
    """The options that come before the command."""

    store: str
    index_name: str
    phrase_file: Path | None
    memory_budget_mb: int
    debug: bool


def _phrase(settings: Settings, ask: bool) -> str:
    if settings.phrase_file is not None:
        try:
            with reading(settings.phrase_file) as stream:
                return stream.read().decode().strip()
        except UnicodeDecodeError:
            # Not chained: the UnicodeDecodeError would show bytes of the file.
            raise InvalidConfigError(f"{file_name(settings.phrase_file)} is not UTF-8 text") from None
    given = os.environ.get("FABSTIR_SEED_PHRASE", "").strip()
    return given or _ask("Seed phrase: ", ask)


def _ask(text: str, may_ask: bool) -> str:
    """Prompts on the terminal, even if stdin and stdout are redirected; the typed text is not shown.

    Raises:
        InvalidConfigError: there is no terminal, it may not be used, or the prompt got no answer.
    """
    if not may_ask or not _has_terminal():
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


def portal_token() -> str | None:
    """The token for the portal, or None."""
    # Not from an argument, for the reason in the module's docstring.
    return os.environ.get("FABSTIR_PORTAL_TOKEN", "").strip() or None


def open_session(settings: Settings, **fields: Any) -> VectorDBSession:
    """A session with the options of the command line."""
    return VectorDBSession.create(**session_settings(settings, **fields))


def session_settings(settings: Settings, *, ask: bool = True, **fields: Any) -> dict[str, Any]:
    """The settings of a session that the options of the command line make.

    Args:
        settings: the options.
        ask: whether a missing phrase is asked for on the terminal.
        **fields: further settings.

    Raises:
        InvalidConfigError: there is no phrase.
    """
    return dict(
        s5_portal=settings.store,
        user_seed_phrase=_phrase(settings, ask),
        session_id="cli",
        index_name=settings.index_name,
        memory_budget_mb=settings.memory_budget_mb,
        debug=settings.debug,
        portal_token=portal_token(),
        **fields,
    )


# ---- input and output


@contextlib.contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file, or stdin, for reading."""
    if path == STANDARD:
        yield sys.stdin.buffer
        return
    with path.open("rb") as stream:
        yield stream


def file_name(path: Path) -> str:
    """A file's name in messages."""
    return "stdin" if path == STANDARD else str(path)


def array_of(path: Path) -> npt.NDArray[Any]:
    """The array of a .npy file, memory-mapped.

    Raises:
        InvalidInputError: the file holds no array of numbers.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise InvalidInputError(f"{path} is not a .npy file of numbers: {error}") from None


def query_of(path: Path) -> Any:
    """The query vector in a file: .npy, or a JSON array.

    Raises:
        InvalidInputError: the file holds neither.
    """
    if path.suffix == ".npy":
        return array_of(path).reshape(-1)
    try:
        with reading(path) as stream:
            query = json.loads(stream.read())
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{file_name(path)} is not JSON: {error}") from None
    if isinstance(query, str):
        raise InvalidInputError(f"{file_name(path)} is a text, where a query is an array of real numbers")
    return query


class OutputError(Exception):
    """Stdout cannot be written: the disk is full, or the reader has closed it."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"stdout: {cause.strerror}")
        self.reader_has_gone = cause.errno == errno.EPIPE


def say(text: str) -> None:
    """Prints a line of the result to stdout."""
    try:
        click.echo(text)
    except OSError as error:
        raise OutputError(error) from None


def note(text: str) -> None:
    """Prints a message to stderr; ignores a failure to write it."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


@contextlib.contextmanager
def changes(session: VectorDBSession) -> Iterator[None]:
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


class Bar:
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

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def rows_bar(title: str, total: int | None = None) -> Any:
    """A progress bar that counts rows."""
    return tqdm(desc=title, total=total, unit="row", leave=False, disable=None, file=sys.stderr)


def load(session: VectorDBSession, cid: str | None = None, **fields: Any) -> None:
    """Loads a version, with a progress bar."""
    with Bar("load") as bar:
        session.load_user_vectors(cid, progress=bar, **fields)
