"""Description of the machine for result files: enough to judge a figure, but no name of a machine or a person."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import fabstir_vectordb

#: Packages whose version is recorded with a result, if installed.
PACKAGES = (
    *("fabstir_vectordb", "numpy", "hnswlib", "zvec", "faiss-cpu", "scalable-vs", "scann", "chromadb", "lancedb"),
    *("qdrant-client", "rabitqlib"),
)


def describe() -> dict[str, Any]:
    """Processor, cores, memory, kernels and versions."""
    return {
        "cpu": cpu_model(),
        "cores": len(cores()),
        "memory_gib": memory_gib(),
        **fabstir_vectordb.get_platform_info(),
        "library": library_print(),
        "versions": {name: found for name in PACKAGES if (found := version(name)) is not None},
    }


def version(package: str) -> str | None:
    """Version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cores() -> list[int]:
    """Cores on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_model() -> str:
    """The processor's name, with family and model numbers if the name does not show the generation."""
    fields: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    return f"{fields['model name']} (family {fields.get('cpu family', '?')} model {fields.get('model', '?')})"


def memory_gib() -> float | None:
    """Physical memory in GiB, or None if the system does not tell."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def library_print() -> str:
    """A short hash of the package in use, so that results and saved indexes of different builds are not mixed."""
    folder = Path(fabstir_vectordb.__file__).parent
    files = [path for path in folder.rglob("*") if path.suffix in {".py", ".so", ".dylib", ".dll"}]
    found = hashlib.blake2b(digest_size=6)
    for path in sorted(files):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()
