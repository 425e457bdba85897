"""What the commands of the command line share: the session, options, input and output, progress bars.

An output file is written completely or not at all; `-` in place of a file is stdin or stdout. Names, ids and metadata
may come from strangers: on their way to a terminal, control characters become escapes as in JSON.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import click
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from fabstir_vectordb.display import json_ready, json_text
from fabstir_vectordb.errors import InvalidConfigError, InvalidInputError, NotFoundError
from fabstir_vectordb.sync import VectorDBSession
from fabstir_vectordb.types import OptimizeProgress, Progress, Row, SearchResult

__all__ = [
    "INPUT",
    "STANDARD",
    "Bar",
    "OutputError",
    "Settings",
    "StageBars",
    "array_of",
    "changes",
    "cid_option",
    "count_bar",
    "file_name",
    "filter_option",
    "json_line",
    "json_option",
    "load",
    "loaded",
    "note",
    "open_session",
    "plain",
    "portal_token",
    "query_of",
    "reading",
    "row_record",
    "rows_bar",
    "save",
    "say",
    "say_fitted",
    "session_settings",
    "tell",
    "tell_hit",
    "terminal_columns",
    "vector_of",
]

#: The argument that stands for stdin or stdout.
STANDARD: Final = Path("-")
INPUT: Final = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
#: Characters that steer a terminal, end a line, or turn the direction of text.
_CONTROLS: Final = {
    code: f"\\u{code:04x}"
    for code in (
        *range(0x20),
        *range(0x7F, 0xA0),
        0x061C,
        *(0x200E, 0x200F),
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
    )
}


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


@contextlib.contextmanager
def loaded(settings: Settings, cid: str | None = None, **fields: Any) -> Iterator[VectorDBSession]:
    """A session with a saved version, by default the newest."""
    with open_session(settings, **fields) as session:
        load(session, cid)
        yield session


# ---- options


def _filter_of(_: click.Context, __: click.Parameter, text: str | None) -> dict[str, Any] | None:
    try:
        found = None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"it is not JSON: {error}") from None
    if text is not None and not isinstance(found, dict):
        raise click.BadParameter("a filter is a JSON object")
    return found


filter_option: Final = click.option(
    "--filter",
    metavar="JSON",
    callback=_filter_of,
    help="""Only rows that match, as '{"year": {"$gte": 2020}}' (docs/filters.md).""",
)
cid_option: Final = click.option("--cid", help="CID of the version; by default the newest.")


def json_option(what: str = "one JSON object") -> Callable[[Any], Any]:
    """The option --json of a command that prints what `what` says."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what}.")


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


def vector_of(found: Row | None, id: str, what: str = "index") -> npt.NDArray[Any]:
    """The vector of the row that `get` found for an id.

    Raises:
        NotFoundError: there is none.
        InvalidInputError: it has no vector.
    """
    if found is None:
        raise NotFoundError(f"the {what} has no row with id {id!r}", details={"id": id})
    if found.vector is None:
        raise InvalidInputError(f"row {id!r} has no vector: use a row with a vector, or --vector", details={"id": id})
    return found.vector


class OutputError(Exception):
    """Stdout cannot be written: the disk is full, or the reader has closed it."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"stdout: {cause.strerror}")
        self.reader_has_gone = cause.errno == errno.EPIPE


def plain(text: str) -> str:
    """Text in one line, without characters that steer a terminal; JSON stays the same JSON."""
    return text.translate(_CONTROLS)


def json_line(record: Any) -> str:
    """A record as JSON, in one line that a terminal can show."""
    return plain(json.dumps(record, ensure_ascii=False, default=json_ready))


def say(text: str) -> None:
    """Prints a line of the result to stdout."""
    try:
        click.echo(plain(text))
    except OSError as error:
        raise OutputError(error) from None


def terminal_columns() -> int | None:
    """Columns of the terminal that stdout is; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def say_fitted(text: str, indent: int = 0) -> None:
    """Prints a line of a table; on a terminal with fewer columns as several lines, all but the first indented."""
    text, columns = plain(text), terminal_columns()
    if columns is None:
        say(text)
        return
    width = max(columns, indent + 10)
    after = " " * indent
    for line in textwrap.wrap(text, width, subsequent_indent=after, break_long_words=False, break_on_hyphens=False):
        say(line)


def tell(as_json: bool, record: Mapping[str, Any], *lines: str) -> None:
    """Prints a result: one JSON object, or lines for people."""
    for line in (json_line(record),) if as_json else lines:
        say(line)


def tell_hit(as_json: bool, hit: SearchResult, more: Mapping[str, Any] | None = None) -> None:
    """Prints a hit; JSON has more than its own record."""
    record = {"id": hit.id, "score": hit.score, "distance": hit.distance, "metadata": hit["metadata"], **(more or {})}
    tell(as_json, record, f"{hit.score:.4f}  {hit.id}  {'' if hit.metadata is None else json_text(hit.metadata)}")


def note(text: str) -> None:
    """Prints a message of one line to stderr; ignores a failure to write it."""
    with contextlib.suppress(OSError):
        click.echo(plain(text), err=True)


def row_record(row: Row, *, vectors: bool = True) -> dict[str, Any]:
    """A row in the form that `import` reads."""
    record: dict[str, Any] = {"id": row.id}
    if vectors:
        record["vector"] = None if row.vector is None else row.vector.tolist()
    record |= {"timestamp": row.timestamp, "metadata": row.metadata}
    return record if row.expires_at is None else {**record, "expires_at": row.expires_at}


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
            self._bar = _bar(self._title, unit="B", unit_scale=True)
        self._bar.total = state.bytes_total
        self._bar.update(state.bytes_done - self._bar.n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


class StageBars:
    """Progress bars of an `optimize`, one after the other for its stages."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._bar: Any = None

    def __call__(self, state: OptimizeProgress) -> None:
        if state.stage != self._stage:
            self.__exit__()
            self._stage, self._bar = state.stage, rows_bar(state.stage)
        self._bar.total = state.rows_total
        self._bar.update(state.rows_done - self._bar.n)

    def __enter__(self) -> StageBars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def rows_bar(title: str, total: int | None = None, *, hidden: bool = False) -> Any:
    """A progress bar that counts rows."""
    return _bar(title, total=total, unit="row", hidden=hidden)


def count_bar(title: str, unit: str) -> Any:
    """A progress bar that counts things other than rows."""
    return _bar(title, unit=unit)


def _bar(title: str, *, hidden: bool = False, **how: Any) -> Any:
    """A bar on stderr, if that is a terminal; it goes when it is closed."""
    disable = True if hidden else None
    return tqdm(desc=title, leave=False, disable=disable, dynamic_ncols=True, file=sys.stderr, **how)


def load(session: VectorDBSession, cid: str | None = None, **fields: Any) -> None:
    """Loads a version, with a progress bar."""
    with Bar("load") as bar:
        session.load_user_vectors(cid, progress=bar, **fields)


def save(session: VectorDBSession) -> str:
    """Saves the index, with a progress bar; returns the CID of the new version."""
    with Bar("save") as bar:
        return session.save_to_s5(progress=bar)
