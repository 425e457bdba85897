"""The embedder over an endpoint, against endpoints that are slow, limit the rate, or answer nonsense."""

from __future__ import annotations

import gzip
import json
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from fabstir_vectordb import InvalidConfigError, SeedPhrase, VectorDBSession, new_seed_phrase
from fabstir_vectordb.embedders import EmbeddingError, embed, openai_compatible
from fabstir_vectordb.embedders.openai_compatible import OpenAICompatibleEmbedder

KEY = "sk-a-secret-key"
Answer = Callable[[httpx.Request], httpx.Response]


def vectors_for(request: httpx.Request, dim: int = 2) -> list[dict[str, Any]]:
    """A right answer's vectors, last first: the index counts, not the order."""
    texts = json.loads(request.content)["input"]
    return [{"index": n, "embedding": [len(texts[n]), *[0.5] * (dim - 1)]} for n in reversed(range(len(texts)))]


def right(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"data": vectors_for(request), "model": "m"})


class Endpoint:
    """Answers with each of the given answers in turn, then with the last one for ever."""

    def __init__(self, *answers: Answer | httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else answer(request)

    def embedder(self, **others: Any) -> OpenAICompatibleEmbedder:
        return OpenAICompatibleEmbedder(
            "http://127.0.0.1:1/v1",
            "model",
            transport=httpx.MockTransport(self),
            sleep=self.pauses.append,
            **{"dimension": 2, **others},
        )


def test_texts_become_vectors_in_their_order() -> None:
    endpoint = Endpoint(right)
    with endpoint.embedder(api_key=KEY, batch_size=2, dimension=None) as embedder:
        vectors = embed(embedder, ["a", "bb", "ccc"])
        assert vectors.tolist() == [[1, 0.5], [2, 0.5], [3, 0.5]] and vectors.dtype == np.float32
        assert (embedder.name, embedder.dimension) == ("model", 2)
    bodies = [json.loads(request.content) for request in endpoint.requests]
    assert [body["input"] for body in bodies] == [["dimension"], ["a", "bb"], ["ccc"]]
    assert str(endpoint.requests[0].url) == "http://127.0.0.1:1/v1/embeddings"
    assert endpoint.requests[0].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ReadTimeout("slow"),
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("cut"),
        *[httpx.Response(status) for status in (408, 429, 500, 502, 503, 504)],
    ],
)
def test_trouble_that_may_pass_is_tried_again(trouble: Any) -> None:
    endpoint = Endpoint(trouble, trouble, right)
    assert embed(endpoint.embedder(), ["a"]).tolist() == [[1, 0.5]]
    assert endpoint.pauses == [0.5, 1.0]
    endpoint = Endpoint(trouble)
    with pytest.raises(EmbeddingError) as raised:
        embed(endpoint.embedder(max_retries=2, api_key=KEY), ["a"])
    assert raised.value.retryable and len(endpoint.requests) == 3
    assert KEY not in str(raised.value) + repr(raised.value.details)


@pytest.mark.parametrize(("said", "pause"), [("7", 7.0), ("1e9", 60.0), ("-5", 0.5), ("soon", 0.5), ("nan", 0.5)])
def test_a_rate_limit_is_waited_for_up_to_a_minute(said: str, pause: float) -> None:
    endpoint = Endpoint(httpx.Response(429, headers={"Retry-After": said}), right)
    embed(endpoint.embedder(), ["a"])
    assert endpoint.pauses == [pause]


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 413, 422])
def test_a_refusal_is_not_tried_again(status: int) -> None:
    answer = httpx.Response(status, headers={"Location": "http://127.0.0.1:2/v1/embeddings"}, text="no such model")
    endpoint = Endpoint(answer)
    with pytest.raises(EmbeddingError, match="no such model") as raised:
        embed(endpoint.embedder(api_key=KEY), ["a"])
    assert raised.value.details["status"] == status and not raised.value.retryable
    assert [request.url.port for request in endpoint.requests] == [1] and not endpoint.pauses


def raw(text: str) -> Answer:
    return lambda request: httpx.Response(200, text=text)


def data(change: Callable[[list[dict[str, Any]]], Any]) -> Answer:
    return lambda request: httpx.Response(200, json={"data": change(vectors_for(request))})


@pytest.mark.parametrize(
    "answer",
    [
        raw("no JSON"),
        raw("[" * 50_000),
        raw("[]"),
        raw("{}"),
        raw('{"data": null}'),
        raw('{"data": [1, 2]}'),
        raw('{"data": [{"index": 0, "embedding": [NaN, 1]}, {"index": 1, "embedding": [1, 1]}]}'),
        raw('{"data": [{"index": 0, "embedding": [1e999, 1]}, {"index": 1, "embedding": [1, 1]}]}'),
        raw(" " * 1_000_000),
        raw('{"data": [{"embedding": [1e300, 1]}, {"embedding": [1, 1]}]}'),
        raw('{"data": [{"embedding": [1' + "0" * 400 + ', 1]}, {"embedding": [1, 1]}]}'),
        raw('{"data": [{"embedding": [1' + "0" * 5_000 + ', 1]}, {"embedding": [1, 1]}]}'),
        data(lambda found: found[:1]),
        data(lambda found: [*found, found[0]]),
        data(lambda found: [{**each, "index": 0} for each in found]),
        data(lambda found: [{**each, "index": "0"} for each in found]),
        data(lambda found: [{**each, "embedding": [1.0]} for each in found]),
        data(lambda found: [{**each, "embedding": [1.0, 2.0, 3.0]} for each in found]),
        data(lambda found: [{**each, "embedding": ["1", "2"]} for each in found]),
        data(lambda found: [{**each, "embedding": [True, False]} for each in found]),
        data(lambda found: [{**each, "embedding": "AAAA"} for each in found]),
        data(lambda found: [{"index": each["index"]} for each in found]),
    ],
)
def test_nonsense_is_a_typed_error_and_not_tried_again(answer: Answer) -> None:
    endpoint = Endpoint(answer)
    with pytest.raises(EmbeddingError, match=r"the endpoint http://127\.0\.0\.1:1/v1/ of 'model'"):
        embed(endpoint.embedder(), ["a", "bb"])
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip", "br", "zstd", "x-nonsense"])
def test_a_compressed_answer_is_refused_unread(coding: str) -> None:
    """Stacked codings make a few bytes of gigabytes."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["Accept-Encoding"] == "identity"

        def body() -> Iterator[bytes]:
            raise AssertionError("it was read")
            yield gzip.compress(b" ")

        return httpx.Response(200, headers={"Content-Encoding": coding}, content=body())

    endpoint = Endpoint(answer)
    with pytest.raises(EmbeddingError, match="coding"):
        embed(endpoint.embedder(), ["a"])
    assert len(endpoint.requests) == 1


def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_compatible, "_ANSWER_S", -1.0)
    with pytest.raises(EmbeddingError, match="took more than") as raised:
        embed(Endpoint(right).embedder(), ["a"])
    assert raised.value.retryable


def test_every_error_of_a_request_is_typed() -> None:
    for trouble in (httpx.DecodingError("x"), httpx.InvalidURL("x"), httpx.TooManyRedirects("x"), RecursionError("x")):
        with pytest.raises(EmbeddingError, match=type(trouble).__name__) as raised:
            Endpoint(trouble).embedder()(["a"])
        assert not raised.value.retryable
    embedder = Endpoint(right).embedder()
    embedder.close()
    with pytest.raises(EmbeddingError, match="could not be asked"):
        embedder(["a"])


def test_an_index_may_be_missing() -> None:
    answer = data(lambda found: [{"embedding": each["embedding"]} for each in reversed(found)])
    assert embed(Endpoint(answer).embedder(), ["a", "bb"]).tolist() == [[1, 0.5], [2, 0.5]]


def test_settings_are_checked_and_the_key_is_not_shown() -> None:
    for wrong in (
        {"base_url": "127.0.0.1"},
        {"model": ""},
        {"batch_size": 0},
        {"max_retries": -1},
        {"batch_size": True},
        {"base_url": "http://[::1"},
        {"base_url": "http://127.0.0.1:port"},
        {"base_url": "http://a\nb"},
        {"dimension": 0},
        {"dimension": 5_000},
        {"dimension": 2.0},
        {"dimension": True},
        {"name": ""},
        {"name": "a\nb"},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"timeout_s": "5"},
    ):
        with pytest.raises(InvalidConfigError):
            OpenAICompatibleEmbedder(**{"base_url": "http://127.0.0.1/v1", "model": "m", **wrong})
    with OpenAICompatibleEmbedder("http://me:secret@127.0.0.1/v1", "m", api_key=KEY) as embedder:
        assert KEY not in repr(embedder) + repr(vars(embedder)) and "secret" not in repr(embedder)


@pytest.mark.parametrize(
    "wrong", ["", " \n", "{key}\n{key}", "{key}\0", "a\r\nX-Other: {key}", "{key}\x7f", "{key}é", 5]
)
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(wrong: Any) -> None:
    key = wrong.format(key=KEY) if isinstance(wrong, str) else wrong
    for given in (key, SeedPhrase(key)) if isinstance(key, str) else (key,):
        with pytest.raises(InvalidConfigError, match="api_key") as caught:
            OpenAICompatibleEmbedder("http://127.0.0.1/v1", "m", api_key=given)
        assert KEY not in "".join(traceback.format_exception(caught.value))


def test_white_space_around_a_key_is_not_sent() -> None:
    sent = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["Authorization"])
        return right(request)

    for given in (f" {KEY}\n", SeedPhrase(f"{KEY}\r\n")):
        transport = httpx.MockTransport(answer)
        with OpenAICompatibleEmbedder("http://127.0.0.1/v1", "m", api_key=given, transport=transport) as embedder:
            embed(embedder, ["a"])
    assert len(sent) >= 2 and set(sent) == {f"Bearer {KEY}"}


def test_a_request_that_is_refused_before_it_is_sent_does_not_show_its_headers() -> None:
    tries = 0

    def refuse(request: httpx.Request) -> httpx.Response:
        nonlocal tries
        tries += 1
        raise httpx.LocalProtocolError(f"Illegal header value {request.headers['Authorization']!r}")

    transport = httpx.MockTransport(refuse)
    with (
        OpenAICompatibleEmbedder("http://127.0.0.1/v1", "m", api_key=KEY, transport=transport) as embedder,
        pytest.raises(EmbeddingError, match="LocalProtocolError") as caught,
    ):
        embedder(["a"])
    assert KEY not in "".join(traceback.format_exception(caught.value)) and not caught.value.retryable
    assert caught.value.__cause__ is None and caught.value.__context__ is None and tries == 1


@pytest.mark.anyio
@pytest.mark.one_loop
async def test_a_session_over_an_endpoint_in_trouble_adds_all_or_nothing() -> None:
    """Each trouble comes with the second of three requests."""
    nan = '{"data": [{"index": 0, "embedding": [NaN, 1]}]}'
    troubles: list[Any] = [
        httpx.ReadTimeout("slow"),
        httpx.Response(429),
        httpx.Response(401),
        raw(nan),
        data(lambda found: [{**each, "embedding": [1.0]} for each in found]),
        data(lambda found: []),
    ]
    for trouble in troubles:
        endpoint = Endpoint(right, trouble)
        embedder = endpoint.embedder(batch_size=1, max_retries=1)
        settings: Any = {"s5_portal": "memory:", "user_seed_phrase": new_seed_phrase(), "session_id": "tests"}
        async with VectorDBSession.create(settings, embedder=embedder, default_threshold=None) as session:
            with pytest.raises(EmbeddingError):
                await session.add_texts(["a", "bb", "ccc"], ["1", "2", "3"])
            assert await session.count() == 0 and not (await session.get_stats()).dirty
            endpoint.answers[:] = [httpx.Response(503), right]  # it recovers
            assert (await session.add_texts(["a", "bb", "ccc"], ["1", "2", "3"])).added == 3
            assert (await session.search("ccc", k=1)).ids == ["3"]
            endpoint.answers[:] = [trouble]
            with pytest.raises(EmbeddingError):
                await session.search("a")
