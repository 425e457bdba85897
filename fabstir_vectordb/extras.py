"""The packages of the extras, and the commands that install them.

The package may come from a clone, a wheel or a registry. A command that names the needed packages themselves works for
all of them.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from typing import Final

__all__ = ["EXTRAS", "install_command", "pip_command"]

#: Packages of the extras for users; the same as in pyproject.toml.
EXTRAS: Final = {
    "arrow": ("pyarrow>=16",),
    "cli": ("click>=8.1", "platformdirs>=4.2", "tqdm>=4.66"),
    "dspy": ("dspy>=3",),
    "fastembed": ("fastembed>=0.7",),
    "haystack": ("haystack-ai>=3.0",),
    "langchain": ("langchain-core>=1.0",),
    "llama-index": ("llama-index-core>=0.14",),
    "mcp": ("mcp>=2",),
    "otel": ("opentelemetry-api>=1.27",),
    "plot": ("matplotlib>=3.9",),
    "portal": ("starlette>=0.40", "uvicorn>=0.46", "wsproto>=1.2"),
    "ray": ("ray[data]>=2.60",),
    "sentence-transformers": ("sentence-transformers>=5",),
    "text": ("PyStemmer>=3", "stop-words>=2025.11"),
    "txtai": ("txtai>=9",),
    "umap": ("umap-learn>=0.5.6",),
    "vectordbbench": ("vectordb-bench>=2",),
}


def install_command(extra: str) -> str:
    """The shell command that installs the packages of an extra into the running Python."""
    return pip_command(EXTRAS[extra])


def pip_command(packages: Iterable[str]) -> str:
    """The shell command that installs packages into the running Python, which may not be the `python` of the PATH."""
    return shlex.join([sys.executable or "python", "-m", "pip", "install", *packages])
