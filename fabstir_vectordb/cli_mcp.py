"""The command `mcp`: an agent's memory over stdin and stdout, for a client of the Model Context Protocol."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from typing import Final

import anyio
import click

from fabstir_vectordb.cli_support import STANDARD, OutputError, Settings, session_settings
from fabstir_vectordb.config import SeedPhrase, VectorDBConfig
from fabstir_vectordb.embedders import Embedder
from fabstir_vectordb.errors import InvalidConfigError
from fabstir_vectordb.mcp_server.memory import Memory

__all__ = ["mcp"]

_KINDS: Final = ("sentence-transformers", "fastembed", "openai")
#: Signals that end the server.
_SIGNALS: Final = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@click.command()
@click.option(
    "--embedder",
    "named",
    metavar="KIND:MODEL",
    help=f"Find notes by meaning, too. KIND is {', '.join(_KINDS[:-1])} or {_KINDS[-1]} (any compatible endpoint). "
    "Without it, by words alone.",
)
@click.option(
    "--embedder-url", help="Endpoint of openai:MODEL, as http://127.0.0.1:11434/v1; its key: FABSTIR_EMBEDDER_KEY."
)
@click.option(
    "--language",
    help="Language of the notes, as english, to find other forms of a word (extra `text`). A memory keeps it.",
)
@click.pass_obj
def mcp(settings: Settings, named: str | None, embedder_url: str | None, language: str | None) -> None:
    """Serve the index as an agent's memory, over the Model Context Protocol on stdin and stdout (extra `mcp`).

    Clients start this command; docs/mcp.md has their settings. The phrase comes from FABSTIR_SEED_PHRASE or
    --phrase-file. Choose an --index-name of the memory's own.
    """
    if settings.phrase_file == STANDARD:
        raise click.UsageError("stdin cannot hold both the protocol and the phrase: use FABSTIR_SEED_PHRASE, or a file")
    config, key = VectorDBConfig(**session_settings(settings, ask=False)), _key()
    with _stdout_on_stderr():  # packages and models that are loaded may print
        try:
            from fabstir_vectordb.mcp_server.server import serve
        except ImportError as error:
            raise InvalidConfigError(str(error)) from None
        embedder = _embedder(named, embedder_url, key)

    async def run() -> None:
        with _stdout_on_stderr():
            memory = await Memory.open(config, embedder=embedder, language=language)
        async with memory, anyio.create_task_group() as tasks:
            if sys.platform != "win32":  # which has no such signals
                tasks.start_soon(_end_on_signal, memory)
            await serve(memory)
            tasks.cancel_scope.cancel()

    gone: BaseException | None = None
    try:
        anyio.run(run)
    except* BrokenPipeError as group:
        gone = group
    if gone is not None:
        raise OutputError(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))) from gone


async def _end_on_signal(memory: Memory) -> None:
    """Ends the process at a signal, when a running save is done."""
    with anyio.open_signal_receiver(*_SIGNALS) as signals:
        async for number in signals:
            with anyio.CancelScope(shield=True):
                await memory.aclose()
            # A thread of the SDK waits for stdin and cannot be stopped; an exit that waits for it would last.
            os._exit(128 + number)


def _key() -> SeedPhrase | None:
    given = os.environ.get("FABSTIR_EMBEDDER_KEY", "").strip()
    return SeedPhrase(given) if given else None


def _embedder(named: str | None, url: str | None, key: SeedPhrase | None) -> Embedder | None:
    """The embedder that the options name, or None.

    Raises:
        InvalidConfigError: the extra of its kind is not installed, or the endpoint is refused.
        EmbeddingError: the endpoint does not say the dimension of its model.
    """
    kind, _, model = (named or "").partition(":")
    if named is not None and (kind not in _KINDS or not model):
        raise click.BadParameter(f"{named!r} is not KIND:MODEL with KIND one of {', '.join(_KINDS)}")
    if (url is None) == (kind == "openai"):
        raise click.UsageError("--embedder-url goes with --embedder openai:MODEL, and each needs the other")
    if named is None:
        return None
    match kind:
        case "sentence-transformers":
            from fabstir_vectordb.embedders.sentence_transformers import SentenceTransformerEmbedder

            return SentenceTransformerEmbedder(model)
        case "fastembed":
            from fabstir_vectordb.embedders.fastembed import FastEmbedEmbedder

            return FastEmbedEmbedder(model)
    from fabstir_vectordb.embedders.openai_compatible import OpenAICompatibleEmbedder

    assert url is not None
    return OpenAICompatibleEmbedder(url, model, api_key=key)


@contextlib.contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Sends what is printed to stderr, also what libraries in C print: a client reads stdout as the protocol."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
