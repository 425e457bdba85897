"""The exception tree. One base, one subclass per code, each also the builtin a Python programmer would expect.

VectorDBError
├── S5Error                     S5_ERROR                    (+ ConnectionError)
├── StorageError                STORAGE_ERROR               (+ OSError)
├── IndexStateError             INDEX_ERROR                 (+ RuntimeError)
├── InvalidConfigError          INVALID_CONFIG              (+ ValueError)
├── SessionError                SESSION_ERROR               (+ RuntimeError)
├── InternalError               INTERNAL_ERROR              (+ RuntimeError)
├── InvalidInputError           INVALID_INPUT               (+ ValueError)
├── NotFoundError               NOT_FOUND                   (+ LookupError)
├── ConflictError               CONFLICT                    (+ ValueError)
├── IntegrityError              INTEGRITY_ERROR             (+ ValueError)
├── DecryptionError             DECRYPTION_ERROR            (+ ValueError)
├── EmbeddingError              EMBEDDING_ERROR             (+ RuntimeError)
├── MemoryBudgetExceededError   MEMORY_BUDGET_EXCEEDED      (+ MemoryError)
└── OperationTimeoutError       TIMEOUT                     (+ TimeoutError)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = [
    "ConflictError",
    "DecryptionError",
    "EmbeddingError",
    "IndexStateError",
    "IntegrityError",
    "InternalError",
    "InvalidConfigError",
    "InvalidInputError",
    "MemoryBudgetExceededError",
    "NotFoundError",
    "OperationTimeoutError",
    "S5Error",
    "SessionError",
    "StorageError",
    "VectorDBError",
]


class VectorDBError(Exception):
    """Base of all errors that this package raises; ``str()`` is ``[CODE] message``.

    Attributes:
        message: the problem, with the value, the limit and the fix.
        code: one of the codes in the tree above.
        details: structured facts: ids, dims, limits, CIDs, and for native failures the C file and line.
        retryable: whether the same call may succeed later without any change.
    """

    code: str = "INTERNAL_ERROR"
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})
        self.retryable = self.default_retryable if retryable is None else retryable

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process pools; the default would lose details and retryable.
        return _rebuild, (type(self), self.message, self.details, self.retryable)


def _rebuild(cls: type[VectorDBError], message: str, details: dict[str, Any], retryable: bool) -> VectorDBError:
    return cls(message, details=details, retryable=retryable)


class S5Error(VectorDBError, ConnectionError):
    """The S5 network or a portal sent a wrong answer or none."""

    code = "S5_ERROR"
    default_retryable = True


class StorageError(VectorDBError, OSError):
    """A store could not read or write, or a version breaks a limit of the layout."""

    code = "STORAGE_ERROR"


class IndexStateError(VectorDBError, RuntimeError):
    """The native index refused an operation."""

    code = "INDEX_ERROR"


class InvalidConfigError(VectorDBError, ValueError):
    """A setting is missing or out of range."""

    code = "INVALID_CONFIG"


class SessionError(VectorDBError, RuntimeError):
    """The session is destroyed, or in use on another event loop or by another process."""

    code = "SESSION_ERROR"


class InternalError(VectorDBError, RuntimeError):
    """A bug in this package; please report it."""

    code = "INTERNAL_ERROR"


class InvalidInputError(VectorDBError, ValueError):
    """An argument is wrong: type, shape, range or content."""

    code = "INVALID_INPUT"


class NotFoundError(VectorDBError, LookupError):
    """An id, version, pointer or stored object does not exist."""

    code = "NOT_FOUND"


class ConflictError(VectorDBError, ValueError):
    """An id is live already, changes are unsaved, or another session saved a version."""

    code = "CONFLICT"


class IntegrityError(VectorDBError, ValueError):
    """Stored bytes do not match their hash, their signature or their format."""

    code = "INTEGRITY_ERROR"


class DecryptionError(VectorDBError, ValueError):
    """The session's phrase does not open the version."""

    code = "DECRYPTION_ERROR"


class EmbeddingError(VectorDBError, RuntimeError):
    """An embedder failed, or gave something else than one finite vector for each text.

    ``details`` has ``embedder``, and ``status`` where an endpoint answered with one.
    """

    code = "EMBEDDING_ERROR"


class MemoryBudgetExceededError(VectorDBError, MemoryError):
    """The operation needs more memory than memory_budget_mb; nothing was changed."""

    code = "MEMORY_BUDGET_EXCEEDED"


class OperationTimeoutError(VectorDBError, TimeoutError):
    """The operation did not end within its time limit."""

    code = "TIMEOUT"
    default_retryable = True
