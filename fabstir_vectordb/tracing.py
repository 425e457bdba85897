"""Spans of OpenTelemetry around the verbs of a session, for sessions that ask for them.

The verbs themselves hold no code of it: a traced session is of a class with wrapped verbs, and other sessions run as if
this file did not exist. Only the API package of OpenTelemetry is used; where spans go is the program's
choice. Names and attributes are those of its database conventions
(https://opentelemetry.io/docs/specs/semconv/db/database-spans/).

No span holds an id, a text, a vector, a filter, metadata, a CID, a key or the message of an error, which may have any
of these.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, Final, cast
from urllib.parse import urlsplit

from fabstir_vectordb.config import VectorDBConfig
from fabstir_vectordb.errors import InvalidConfigError, VectorDBError
from fabstir_vectordb.extras import install_command
from fabstir_vectordb.storage.base import AtMost, Store
from fabstir_vectordb.types import SearchResults

__all__ = ["Tracing", "trace_verbs"]

_SYSTEM: Final = "fabstir_vectordb"
#: The verbs that get a span, and their operations. A search needs no network by itself: its fetches do.
_VERBS: Final = {
    "search": "search",
    "search_batch": "search",
    "save_to_s5": "save",
    "load_user_vectors": "load",
}


class Tracing:
    """Makes the spans of a session.

    Args:
        config: settings of the session; `tracing` is True or a tracer provider.

    Raises:
        InvalidConfigError: the extra is not installed.
    """

    def __init__(self, config: VectorDBConfig) -> None:
        try:
            from opentelemetry import trace
        except ImportError as error:
            raise InvalidConfigError(
                f"tracing needs the extra 'otel': {install_command('otel')}", details={"field": "tracing"}
            ) from error
        provider = None if config.tracing is True else config.tracing
        self._trace: Any = trace
        self._tracer: Any = trace.get_tracer(_SYSTEM, tracer_provider=provider)
        self._index = config.index_name
        self._server = _server_of(config.portal_uri)

    @contextmanager
    def span(self, operation: str, *, of_network: bool, batch: int | None = None) -> Iterator[Any]:
        """A span that is the current one meanwhile. An error is told by its code, or the name of its type."""
        name = operation if batch is None else f"BATCH {operation}"
        attributes: dict[str, Any] = {
            "db.system.name": _SYSTEM,
            "db.operation.name": name,
            "db.collection.name": self._index,
        }
        if batch is not None:
            attributes["db.operation.batch.size"] = batch
        kind = self._trace.SpanKind.INTERNAL
        if of_network:
            kind = self._trace.SpanKind.CLIENT
            attributes.update(self._server)
        with self._tracer.start_as_current_span(
            f"{name} {self._index}",
            kind=kind,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute(
                    "error.type", error.code if isinstance(error, VectorDBError) else type(error).__name__
                )
                span.set_status(self._trace.StatusCode.ERROR)
                raise

    def around(self, verb: str, arguments: tuple[Any, ...], fields: Mapping[str, Any]) -> Any:
        """The span around one call of a verb."""
        batch = None
        if verb == "search_batch":
            queries = arguments[0] if arguments else fields.get("queries")
            count = len(queries) if isinstance(queries, Sized) else 0
            batch = count if count > 1 else None
        return self.span(_VERBS[verb], of_network=not verb.startswith("search"), batch=batch)

    def traced_store(self, store: Store) -> Store:
        """A store with a span around each fetch of a blob."""
        return cast(Store, _TracedStore(store, self))


def trace_verbs(session: Any, tracing: Tracing) -> None:
    """Puts a span around the verbs of a session, asynchronous or not."""
    session._tracing = tracing
    # Not attributes of the session: these would refer to it, and a forgotten session would wait for the collector.
    kind: Any = type(session)
    session.__class__ = _traced(kind)


@functools.cache
def _traced(kind: Any) -> type:
    """A class of sessions whose verbs have spans. It has the name of the class that it is made of."""
    wrapped = {name: _with_span(name, getattr(kind, name)) for name in _VERBS}
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__doc__": kind.__doc__, **wrapped})


def _with_span(name: str, verb: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(verb)
    async def awaited(self: Any, *arguments: Any, **fields: Any) -> Any:
        with self._tracing.around(name, arguments, fields) as span:
            return _described(span, await verb(self, *arguments, **fields))

    @functools.wraps(verb)
    def called(self: Any, *arguments: Any, **fields: Any) -> Any:
        with self._tracing.around(name, arguments, fields) as span:
            return _described(span, verb(self, *arguments, **fields))

    return awaited if inspect.iscoroutinefunction(verb) else called


def _described(span: Any, result: Any) -> Any:
    """The result of a verb, once its size is in the span."""
    if isinstance(result, SearchResults):
        span.set_attribute("db.response.returned_rows", len(result))
        span.set_attribute(f"{_SYSTEM}.plan", result.plan)
    elif isinstance(result, list):
        span.set_attribute("db.response.returned_rows", sum(map(len, result)))
    return result


class _TracedStore:
    """A store with a span around each fetch."""

    def __init__(self, store: Store, tracing: Tracing) -> None:
        self._store = store
        self._tracing = tracing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def get(self, hash: bytes, size: int | AtMost) -> bytes:
        """Return a blob after checking its hash."""
        with self._tracing.span("fetch", of_network=True) as span:
            blob = await self._store.get(hash, size)
            span.set_attribute(f"{_SYSTEM}.blob.size", len(blob))
            return blob


def _server_of(uri: str) -> dict[str, Any]:
    """The attributes of a store's server; none for a store on this machine."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return {}
    try:
        port = parts.port
    except ValueError:
        port = None
    return {"server.address": parts.hostname, **({} if port is None else {"server.port": port})}
