"""Spans of OpenTelemetry around searches, saves, loads and fetches, recorded by a small provider of the API's own."""

from __future__ import annotations

import contextlib
import gc
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fabstir_vectordb import InvalidConfigError, NotFoundError, VectorDBConfig, VectorDBSession, new_seed_phrase, sync
from fabstir_vectordb.tracing import _server_of

trace = pytest.importorskip("opentelemetry.trace", reason="the extra 'otel' is not installed")

SECRET = "a-text-that-no-span-may-have"


class Span(trace.NonRecordingSpan):  # type: ignore[misc, name-defined]
    """Keeps what it is told."""

    def __init__(self, name: str, kind: Any, attributes: dict[str, Any]) -> None:
        parent = trace.get_current_span()
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self.name, self.kind, self.attributes = name, kind, dict(attributes)
        self.parent = parent.name if isinstance(parent, Span) else None
        self.status: Any = None
        self.ends = 0

    def set_attribute(self, key: str, value: Any) -> None:
        self.attributes[key] = value

    def set_status(self, status: Any, description: str | None = None) -> None:
        assert description is None
        self.status = status

    def record_exception(self, *arguments: Any, **fields: Any) -> None:
        raise AssertionError("an error's text may hold anything")

    def end(self, end_time: int | None = None) -> None:
        self.ends += 1


class Provider:
    """A tracer provider, and its one tracer."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def get_tracer(self, name: str, *others: Any, **more: Any) -> Provider:
        assert name == "fabstir_vectordb"
        return self

    @contextlib.contextmanager
    def start_as_current_span(self, name: str, *, kind: Any, attributes: Any, **options: Any) -> Iterator[Span]:
        span = Span(name, kind, attributes)
        self.spans.append(span)
        with trace.use_span(span, end_on_exit=True, **options):
            yield span

    def taken(self) -> list[Span]:
        spans, self.spans = self.spans, []
        assert all(span.ends == 1 for span in spans)
        assert SECRET not in repr([(span.name, span.attributes) for span in spans])
        return spans


def settings(provider: Provider, **others: Any) -> Any:
    fixed = {"s5_portal": "memory:", "user_seed_phrase": new_seed_phrase(), "session_id": "tests", "tracing": provider}
    return {**fixed, "index_name": "notes", **others}


@pytest.mark.anyio
async def test_verbs_and_their_fetches_have_spans() -> None:
    provider = Provider()
    async with VectorDBSession.create(**settings(provider)) as session:
        await session.add_batch([SECRET, "b"], [[1.0, 2.0], [2.0, 1.0]], [{"text": SECRET}, None])
        assert provider.taken() == []
        await session.search([1.0, 2.0], k=2, filter={"text": SECRET}, threshold=None)
        (span,) = provider.taken()
        assert (span.name, span.kind, span.status) == ("search notes", trace.SpanKind.INTERNAL, None)
        assert span.attributes == {
            "db.system.name": "fabstir_vectordb",
            "db.operation.name": "search",
            "db.collection.name": "notes",
            "db.response.returned_rows": 1,
            "fabstir_vectordb.plan": "filtered exact",
        }
        await session.search_batch([[1.0, 2.0], [2.0, 1.0]], k=2, threshold=None)
        (span,) = provider.taken()
        assert (span.name, span.attributes["db.operation.name"]) == ("BATCH search notes", "BATCH search")
        assert (span.attributes["db.operation.batch.size"], span.attributes["db.response.returned_rows"]) == (2, 4)
        await session.save_to_s5()
        (span,) = [span for span in provider.taken() if span.parent is None]
        assert (span.name, span.kind) == ("save notes", trace.SpanKind.CLIENT)
        await session.load_user_vectors()
        load, *fetches = provider.taken()
        assert (load.name, load.parent) == ("load notes", None) and len(fetches) > 4
        assert {(span.name, span.parent, span.kind) for span in fetches} == {
            ("fetch notes", "load notes", trace.SpanKind.CLIENT)
        }
        assert all(span.attributes["fabstir_vectordb.blob.size"] > 0 for span in fetches)


def test_the_same_without_await(tmp_path: Path) -> None:
    provider = Provider()
    with sync.VectorDBSession.create(**settings(provider, s5_portal=tmp_path)) as session:
        session.add_batch(["a"], [[1.0, 2.0]])
        assert session.search([1.0, 2.0]).ids == session.search([2.0, 4.0]).ids == ["a"]
        session.save_to_s5()
        assert [span.name for span in provider.taken() if span.parent is None] == [*["search notes"] * 2, "save notes"]
        session.load_user_vectors()
        load, *fetches = provider.taken()
        assert load.name == "load notes" and {span.parent for span in fetches} == {"load notes"}


@pytest.mark.anyio
async def test_an_error_is_told_by_its_code_alone() -> None:
    provider = Provider()
    async with VectorDBSession.create(**settings(provider)) as session:
        with pytest.raises(NotFoundError):
            await session.load_user_vectors()
        load = provider.taken()[0]
        assert load.attributes["error.type"] == "NOT_FOUND" and load.status is trace.StatusCode.ERROR
        await session.add_batch(["a"], [[1.0]])
        with pytest.raises(RuntimeError, match=SECRET):
            await session.search([1.0], rerank=lambda *_: (_ for _ in ()).throw(RuntimeError(SECRET)))
        assert [span.attributes["error.type"] for span in provider.taken()] == ["RuntimeError"]


@pytest.mark.anyio
async def test_a_session_that_did_not_ask_has_the_plain_verbs() -> None:
    provider = Provider()
    plain = settings(provider, tracing=False)
    async with VectorDBSession.create(**plain) as session:
        assert type(session) is VectorDBSession
        await session.search([1.0])
    async with VectorDBSession.create(**settings(provider)) as session:
        assert isinstance(session, VectorDBSession) and type(session).__name__ == "VectorDBSession"
        await (await VectorDBSession.create(session._config, **settings(provider))).destroy()
    async with VectorDBSession.create(**settings(provider, tracing=True)) as session:  # by the program's own provider
        await session.search([1.0])
    assert provider.taken() == []


def test_a_forgotten_session_goes_at_once() -> None:
    session = sync.VectorDBSession.create(**settings(Provider()))
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del session
    finally:
        gc.enable()
    assert [warning.category for warning in caught] == [ResourceWarning]


def test_settings_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (None, 1, "yes", object()):
        with pytest.raises(InvalidConfigError, match="tracing"):
            VectorDBConfig(**settings(Provider(), tracing=wrong))
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(InvalidConfigError, match="pip install"):
        sync.VectorDBSession.create(**settings(Provider()))
    sync.VectorDBSession.create(**settings(Provider(), tracing=False)).destroy()


def test_a_server_is_named_without_its_user() -> None:
    assert _server_of("https://me:secret@s5.example:5522/x") == {"server.address": "s5.example", "server.port": 5522}
    assert _server_of("http://s5.example") == {"server.address": "s5.example"}
    for uri in ("memory:x", "file:///a/b", "http://a:port", "http://"):
        assert "server.port" not in _server_of(uri)


def test_the_block_of_the_page_runs_with_the_sdk(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
    page = Path(__file__).resolve().parents[2] / "docs" / "telemetry.md"
    (block,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec(compile(block, "telemetry.md", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    for name in ("search notes", "save notes", "load notes", "fetch notes"):
        assert f'"name": "{name}"' in printed
