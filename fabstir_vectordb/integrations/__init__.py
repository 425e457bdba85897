"""Adapters for frameworks: each is a module of its own, which imports its framework and needs its extra.

``haystack``, ``langchain`` and ``llama_index`` are stores of documents; ``shared`` is the session below them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fabstir_vectordb.extras import install_command

__all__ = ["needing"]


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Around the imports of a framework: what it lacks is said together with the command that installs it.

    Args:
        extra: the extra that names the framework's packages.

    Raises:
        ImportError: a package of the extra is missing, or too old.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{error}: this adapter needs the extra {extra!r}: {install_command(extra)}") from error
