"""An embedder over any endpoint with OpenAI's ``/embeddings``: OpenAI, Ollama, vLLM, or a host of this network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Final, Self

import httpx
import numpy as np

from fabstir_vectordb._native.handle import DIM_MAX
from fabstir_vectordb.config import TIMEOUT_S_MAX, SeedPhrase
from fabstir_vectordb.embedders.base import Vectors
from fabstir_vectordb.embedding import check_embedder, is_dimension
from fabstir_vectordb.errors import EmbeddingError, InvalidConfigError
from fabstir_vectordb.metadata.values import shown

__all__ = ["OpenAICompatibleEmbedder"]

#: Answers that another try may change: timeouts, rate limits, overload.
_RETRIED: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
#: Pauses double from the first to the last, seconds. A server's Retry-After is followed up to `_RETRY_AFTER_MAX_S`.
_PAUSE_S: Final = 0.5
_PAUSE_MAX_S: Final = 20.0
_RETRY_AFTER_MAX_S: Final = 60.0
#: Most bytes of an answer: a number takes about 12 as JSON, some servers write 25.
_NUMBER_BYTES: Final = 32
_ANSWER_BYTES: Final = 65_536
#: Most seconds from the first to the last byte of an answer: a server that sends a byte now and then has no end.
_ANSWER_S: Final = 300.0


class OpenAICompatibleEmbedder:
    """Embeds texts by ``POST {base_url}/embeddings``. It may be called from any thread; `close` ends its connections.

    Redirects are not followed: the texts and the key go to the given host alone. Compressed answers are refused, as a
    small one could fill the memory.

    Args:
        base_url: the endpoint up to its version, as ``http://127.0.0.1:11434/v1``.
        model: the model's name at the endpoint.
        dimension: numbers of a vector; None asks the endpoint when it is first needed.
        name: the name of the model for an index; None for `model`. It should be the same for the same model elsewhere.
        api_key: sent as a bearer token, without white space around it; never in a repr, log or error.
        batch_size: most texts of one request.
        timeout_s: most seconds for a connection, or for a pause within an answer, up to 3,600. An answer may take 300
            in all.
        max_retries: how often a request is repeated after a timeout, a rate limit or an overload.
        transport: an httpx transport, for tests or proxies.
        sleep: waits between tries, seconds.

    Raises:
        InvalidConfigError: an argument is refused.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        dimension: int | None = None,
        name: str | None = None,
        api_key: SeedPhrase | str | None = None,
        batch_size: int = 64,
        timeout_s: float = 30.0,
        max_retries: int = 3,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        token = None if api_key is None else _token(api_key)
        del api_key
        if not isinstance(base_url, str) or not base_url.startswith(("http://", "https://")):
            raise InvalidConfigError("base_url must begin with http:// or https://")  # it may hold a password
        if not isinstance(model, str) or not model:
            raise InvalidConfigError("model must be the name of a model")
        for field, value, least in (("batch_size", batch_size, 1), ("max_retries", max_retries, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidConfigError(f"{field} must be an integer of at least {least}, got {shown(value)}")
        if dimension is not None and not is_dimension(dimension):
            raise InvalidConfigError(f"dimension must be None or from 1 to {DIM_MAX}, got {shown(dimension)}")
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not 0 < timeout_s <= TIMEOUT_S_MAX:
            raise InvalidConfigError(f"timeout_s must be above zero, at most {TIMEOUT_S_MAX}, got {shown(timeout_s)}")
        self._model, self._dimension, self._retries, self._sleep = model, dimension, max_retries, sleep
        self.name = model if name is None else name
        self.batch_size = batch_size
        check_embedder(self, InvalidConfigError)
        try:
            self._client = httpx.Client(
                base_url=base_url.rstrip("/") + "/",
                headers={"Accept-Encoding": "identity"},
                timeout=timeout_s,
                transport=transport,
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise InvalidConfigError(f"base_url is no URL: {type(error).__name__}") from None
        if token is not None:
            self._client.headers["Authorization"] = f"Bearer {token.reveal()}"

    def __repr__(self) -> str:
        return f"<OpenAICompatibleEmbedder {self._model!r} at {self._endpoint}>"

    @property
    def _endpoint(self) -> str:
        return str(self._client.base_url.copy_with(userinfo=b""))

    @property
    def dimension(self) -> int:
        """Numbers of a vector.

        Raises:
            EmbeddingError: it was not given, and the endpoint does not answer.
        """
        if self._dimension is None:
            self._dimension = self._ask(["dimension"]).shape[1]
        return self._dimension

    def __call__(self, texts: Sequence[str], /) -> Vectors:
        """The vectors of texts, in one request.

        Raises:
            EmbeddingError: the endpoint refused, does not answer, or answered something else.
        """
        return self._ask(texts) if texts else np.empty((0, self.dimension), dtype=np.float32)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- requests

    def _ask(self, texts: Sequence[str]) -> Vectors:
        body = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        for attempt in range(self._retries + 1):
            last, refused = attempt == self._retries, None
            pause = min(_PAUSE_S * 2**attempt, _PAUSE_MAX_S)
            try:
                with self._client.stream("POST", "embeddings", json=body) as response:
                    self._check_plain(response)
                    if response.status_code == 200:
                        return self._vectors(self._read(response, len(texts)), len(texts))
                    if last or response.status_code not in _RETRIED:
                        raise self._refused(response)
                    pause = _retry_after(response) or pause
            except httpx.LocalProtocolError:
                # Its text has the header that was refused, which may be the key. So the error has no cause, either.
                refused = self._failed("could not be asked: the request is no valid HTTP (LocalProtocolError)")
            except httpx.TransportError as error:
                if last:
                    what = "does not answer in time" if isinstance(error, httpx.TimeoutException) else "is out of reach"
                    raise self._failed(f"{what} ({type(error).__name__}: {error})", retryable=True) from error
            except EmbeddingError:
                raise
            except Exception as error:  # of httpx: an address that is none, a client that was closed
                refused = self._failed(f"could not be asked ({type(error).__name__})")
            if refused is not None:
                raise refused
            self._sleep(pause)
        raise AssertionError

    def _check_plain(self, response: httpx.Response) -> None:
        """Refuses an answer with a coding, which was not asked for and whose size says nothing."""
        coding = response.headers.get("Content-Encoding", "identity")
        if coding.strip().lower() not in ("", "identity"):
            raise self._failed(f"sent an answer in the coding {shown(coding)}, which was not asked for")

    def _read(self, response: httpx.Response, texts: int) -> Any:
        """The JSON of an answer, which may not be longer than the vectors that were asked for."""
        most = _ANSWER_BYTES + texts * (self._dimension or DIM_MAX) * _NUMBER_BYTES
        raw, end = bytearray(), time.monotonic() + _ANSWER_S
        for chunk in response.iter_bytes():
            raw += chunk
            if len(raw) > most:
                raise self._failed(f"sent more than {most} bytes for {texts} texts")
            if time.monotonic() > end:
                raise self._failed(f"sent an answer that took more than {_ANSWER_S:.0f} s", retryable=True)
        try:
            return httpx.Response(200, content=bytes(raw)).json()
        except (ValueError, RecursionError) as error:
            raise self._failed("sent something else than JSON") from error

    def _vectors(self, answer: Any, texts: int) -> Vectors:
        found: dict[int, Any] = {}
        data = answer.get("data") if isinstance(answer, dict) else None
        for place, item in enumerate(data if isinstance(data, list) else []):
            if isinstance(item, dict):
                found[item.get("index", place) if isinstance(item.get("index", place), int) else -1] = item
        if sorted(found) != list(range(texts)) or data is None or len(data) != texts:
            raise self._failed(f"sent {len(found)} vectors for {texts} texts")
        rows = [found[place].get("embedding") for place in range(texts)]
        dimension = self._dimension or (len(rows[0]) if isinstance(rows[0], list) else 0)
        if not dimension or not all(isinstance(row, list) and len(row) == dimension for row in rows):
            sizes = sorted({len(row) if isinstance(row, list) else -1 for row in rows})
            raise self._failed(f"sent vectors of {sizes} numbers where {dimension or 'some'} were expected")
        if not all(type(number) in (int, float) for row in rows for number in row):
            raise self._failed("sent something else than numbers")
        try:
            with np.errstate(over="ignore"):  # what is too large for float32 is infinite below
                vectors = np.asarray(rows, dtype=np.float32)
        except OverflowError as error:  # an integer beyond a float64
            raise self._failed("sent a number that is not finite") from error
        if not np.isfinite(vectors).all():
            raise self._failed("sent a number that is not finite")
        return vectors

    def _refused(self, response: httpx.Response) -> EmbeddingError:
        said = bytearray()
        for chunk in response.iter_bytes():
            said += chunk
            if len(said) > 1_000:
                break
        text = bytes(said[:200]).decode("utf-8", "replace")
        status = response.status_code
        return self._failed(f"answered {status}: {shown(text)}", status=status, retryable=status in _RETRIED)

    def _failed(self, reason: str, *, retryable: bool = False, **details: Any) -> EmbeddingError:
        return EmbeddingError(
            f"the endpoint {self._endpoint} of {self.name!r} {reason}",
            details={"embedder": self.name, "endpoint": self._endpoint, **details},
            retryable=retryable,
        )


def _token(given: SeedPhrase | str) -> SeedPhrase:
    """A key as a header can hold it, without the line end that a file of it has."""
    if not isinstance(given, (SeedPhrase, str)):
        del given
        raise InvalidConfigError("api_key must be a string")
    text = (given.reveal() if isinstance(given, SeedPhrase) else given).strip()
    is_sound = bool(text) and text.isascii() and text.isprintable()
    key = SeedPhrase(text)
    del given, text  # tracebacks with local variables must not show it
    if not is_sound:
        raise InvalidConfigError("api_key must have visible ASCII characters alone, and at least one")
    return key


def _retry_after(response: httpx.Response) -> float | None:
    """The seconds of a Retry-After header, bounded; None where there is none that makes sense."""
    said = response.headers.get("Retry-After", "")
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), _RETRY_AFTER_MAX_S) if math.isfinite(seconds) else None
