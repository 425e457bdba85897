"""The number of CPUs that this process may use: by its affinity, and by the quota of its cgroup (containers)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["usable_cpus"]


def usable_cpus(root: Path = Path("/")) -> int:
    """The number of CPUs that this process may use at a time, at least 1.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = min(count, len(os.sched_getaffinity(0)))
    return max(1, min([count, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """CPU quotas of this process's cgroups and of those above them (cgroups(7)), in CPUs."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                top = root / "sys/fs/cgroup"
            elif "cpu" in controllers.split(","):
                top = root / "sys/fs/cgroup" / controllers
            else:
                continue
            # In a container the path may be the host's, while the files are in the top directory.
            own = top / path.strip("/")
            for directory in (own, *(parent for parent in own.parents if parent.is_relative_to(top)), top):
                yield from _quota_of(directory)


def _quota_of(directory: Path) -> Iterator[float]:
    for name in ("cpu.max", "cpu.cfs_quota_us"):
        with suppress(OSError, ValueError, ZeroDivisionError):
            words = (directory / name).read_text().split()
            if name == "cpu.cfs_quota_us":
                words += (directory / "cpu.cfs_period_us").read_text().split()
            quota, period = words
            if quota != "max" and int(quota) > 0:
                yield int(quota) / int(period)
