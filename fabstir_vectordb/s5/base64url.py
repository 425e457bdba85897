"""Base64 with ``-`` and ``_``, without padding (RFC 4648, 5): bytes in the JSON, addresses and file names of S5."""

from __future__ import annotations

import base64

__all__ = ["from_base64url", "to_base64url"]


def to_base64url(raw: bytes) -> str:
    """Return bytes as text."""
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def from_base64url(text: str) -> bytes:
    """Return the bytes of a text without padding.

    Raises:
        ValueError: the text is malformed.
    """
    return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
