"""Retries of requests: when, how often, and after which pause.

Pauses are random within a window that doubles ("full jitter"), so that clients refused at the same moment do not retry
at the same moment. A server may ask for a longer pause, up to a limit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

import anyio

from fabstir_vectordb.errors import IntegrityError, VectorDBError

if TYPE_CHECKING:
    import tenacity

__all__ = ["NotNowError", "asked_pause", "repeated", "second_look"]

_T = TypeVar("_T")

_PAUSE_S: Final = 0.1
_PAUSE_MOST_S: Final = 8.0
#: Longest pause that a server may ask for.
_RETRY_AFTER_MOST_S: Final = 60.0


class NotNowError(Exception):
    """An attempt failed; a later attempt may succeed.

    Attributes:
        error: the error for the caller after the last attempt.
        pause_s: seconds that the server asks to wait.
    """

    def __init__(self, error: VectorDBError, pause_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.pause_s = pause_s


async def repeated(attempt: Callable[[], Awaitable[_T]], max_retries: int) -> _T:
    """Runs an attempt again, after a pause, for as long as it raises NotNowError.

    Args:
        attempt: the function to call; it may be called any number of times.
        max_retries: attempts after the first one.

    Returns:
        The result of the first successful attempt.

    Raises:
        VectorDBError: the error of the last attempt.
    """
    import tenacity  # takes some 30 ms to load, and a session starts without it

    attempts = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(1 + max_retries),
        wait=_pause,
        retry=tenacity.retry_if_exception_type(NotNowError),
        sleep=anyio.sleep,
        reraise=True,
    )
    try:
        return await attempts(attempt)
    except NotNowError as failed:
        raise failed.error from None


async def second_look(read: Callable[[], Awaitable[_T]]) -> _T:
    """Reads once more if the bytes are damaged: they may be intact in the store and damaged in transit.

    Raises:
        IntegrityError: the bytes are damaged again.
    """
    try:
        return await read()
    except IntegrityError:
        return await read()


def asked_pause(retry_after: str | None) -> float:
    """Seconds of a ``Retry-After`` header, a number or a date (RFC 9110, 10.2.3); 0 if absent or malformed."""
    if retry_after is None:
        return 0.0
    if retry_after.isascii() and retry_after.isdecimal():
        return min(float(retry_after), _RETRY_AFTER_MOST_S)
    import datetime
    import email.utils

    try:
        date = email.utils.parsedate_to_datetime(retry_after)
        if date.tzinfo is None:
            date = date.replace(tzinfo=datetime.UTC)
        seconds = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0  # errors of the library for malformed dates
    return min(max(seconds, 0.0), _RETRY_AFTER_MOST_S)


def _pause(state: tenacity.RetryCallState) -> float:
    import tenacity

    failed = None if state.outcome is None else state.outcome.exception()
    backoff = tenacity.wait_random_exponential(multiplier=_PAUSE_S, max=_PAUSE_MOST_S)
    return max(backoff(state), failed.pause_s if isinstance(failed, NotNowError) else 0.0)
