"""What a larger collection would take, from figures measured on a smaller one: `measure`, then `plan`.

A plan has two kinds of figures. Measured ones are those of the smaller collection, on this machine, with its store. All
others are modelled, and each says how. The models are simple on purpose: bytes, objects and memory grow with the rows,
a walk in a graph with their logarithm, what a cold search fetches with the logarithm of the parts, its seconds with its
bytes, and how many shards have the nearest rows with the root of the number of shards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from fabstir_vectordb.collections.measuring import Measured
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.display import Record
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.persist.parts import layout_for

__all__ = ["CollectionPlan", "plan"]

#: Of each component: a float32, a 4-bit code, a 1-bit sketch. The rest of a row does not depend on its dimension.
_BYTES_PER_COMPONENT: Final = 4 + 0.5 + 0.125
#: What a search in lazily opened shards fetches, as a multiple of that in one index, measured with 8 shards: where near
#: rows are in one shard, and where they are not (docs/decisions/0036).
_SPREAD: Final = 1.25
_SPREAD_UNROUTED: Final = 2.6
_TIMES: Final = f"times {_SPREAD}, without a curve {_SPREAD_UNROUTED}"
#: The part of a machine's time and memory that is planned for: queues grow without bound near the whole of it.
_LOAD: Final = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionPlan(Record):
    """What a collection would take.

    Attributes:
        rows: of the collection.
        dim: components of a vector.
        qps: queries a second.
        recall: that of the measured searches.
        shard_rows: rows of a shard.
        shards: number of shards.
        asked: shards that a search asks.
        bytes: stored bytes of shards and root.
        objects: stored objects of shards.
        memory_bytes: resident bytes of all shards in memory as a whole.
        lazy_memory_bytes: resident bytes of all shards, lazily opened, without cached parts. This figure and the next
            with ``cold`` are None where the measured shards are so small that they are fetched as a whole.
        cores: CPU cores that answer `qps` queries a second from memory, at 0.7 of their time.
        workers: machines for the cores and the memory, at 0.7 of it.
        drivers: processes that route, hand out and merge `qps` queries a second, at 0.7 of their time.
        seconds: of a query whose shards are in memory, while nobody else asks.
        cold_requests: requests of a query whose shards are open lazily.
        cold_bytes: bytes that it fetches.
        cold_seconds: seconds that it takes.
        open_seconds: until the first answer of shards that are not open.
        modelled: how each figure that was not measured comes about, by its name.
    """

    rows: int
    dim: int
    qps: float
    recall: float
    shard_rows: int
    shards: int
    asked: int
    bytes: float
    objects: float
    memory_bytes: float
    lazy_memory_bytes: float | None
    cores: int
    workers: int
    drivers: int
    seconds: float
    cold_requests: float | None
    cold_bytes: float | None
    cold_seconds: float | None
    open_seconds: float
    modelled: Mapping[str, str]


def plan(
    measured: Measured,
    *,
    rows: float,
    qps: float,
    dim: int | None = None,
    shard_rows: int = 1_000_000,
    worker_cpus: int = 8,
    worker_gb: float = 64.0,
) -> CollectionPlan:
    """What a collection of more rows would take, at the recall of the measured one.

    Args:
        measured: what `measure` found.
        rows: number of rows; ``1e9`` will do.
        qps: queries a second.
        dim: components of a vector; None for those of the measured rows.
        shard_rows: rows of a shard.
        worker_cpus, worker_gb: cores and memory, in 10^9 bytes, of a worker.

    Returns:
        The plan.

    Raises:
        InvalidInputError: a number is not positive.
    """
    dim = measured.dim if dim is None else dim
    given = {"rows": rows, "qps": qps, "dim": dim, "shard_rows": shard_rows}
    given |= {"worker_cpus": worker_cpus, "worker_gb": worker_gb}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise InvalidInputError(f"{name} must be a positive number, got {shown(value)}", details={"field": name})
    rows = round(rows)
    of_shard = min(shard_rows, rows)
    shards = max(1, math.ceil(rows / of_shard))
    of_shard = math.ceil(rows / shards)
    more = math.sqrt(max(1.0, shards / measured.shards))
    asked = min(shards, math.ceil(measured.asked * more)) if measured.routed else shards
    wider = _BYTES_PER_COMPONENT * (dim - measured.dim)
    row_bytes = max(1.0, measured.row_bytes + wider)
    row_memory = max(1.0, measured.row_memory_bytes + wider)
    # Lazily opened shards keep codes of the rows; the vectors stay in the store.
    row_lazy = max(1.0, measured.row_lazy_bytes * dim / measured.dim)
    layout, before = layout_for(dim, measured.chunk_size), layout_for(measured.dim, measured.chunk_size)
    parts_before = math.ceil(measured.shard_rows / before.rows_per_part)
    others = max(1.0, measured.shard_objects - parts_before)
    objects = math.ceil(of_shard / layout.rows_per_part) + others * max(1.0, of_shard / layout.rows_per_group)
    farther = dim / measured.dim * max(1.0, _log(of_shard) / _log(measured.shard_rows))
    search_s, search_cpu_s = measured.search_s * farther, measured.search_cpu_s * farther
    route_s = measured.route_s * dim / measured.dim * shards / measured.shards
    # What the driver and the engine take: the search in the first shard is in one_s.
    hand_out_s = max(0.0, measured.one_s - measured.search_s) + measured.further_s * (asked - 1) + route_s
    hand_out_cpu_s = measured.one_cpu_s + measured.further_cpu_s * (asked - 1) + route_s
    cores = math.ceil(qps * asked * search_cpu_s / _LOAD)
    memory = rows * row_memory
    workers = max(1, math.ceil(cores / worker_cpus), math.ceil(memory / (worker_gb * 1e9 * _LOAD)))
    is_lazy = measured.cold_requests > 0
    # The more parts there are, the more of them have some of the likeliest rows.
    wider_spread = max(1.0, _log(math.ceil(rows / layout.rows_per_part)) / _log(parts_before))
    spread = wider_spread * min(asked, _SPREAD if measured.routed else _SPREAD_UNROUTED)
    cold_bytes = measured.cold_bytes * spread * dim / measured.dim
    # What the bytes of a measured search took grows with those that a worker fetches; the rest of its seconds stays.
    cold_s = measured.cold_s + measured.cold_byte_s * (cold_bytes / min(workers, asked) - measured.cold_bytes)
    # What a lazily opened shard holds is what opening it fetches.
    more_s = measured.cold_byte_s * row_lazy * max(0, of_shard - measured.shard_rows)
    beside = min(1.0, measured.open_further_s / measured.open_s) if measured.open_s else 1.0
    open_s = measured.open_s + measured.open_further_s * (asked - 1) + more_s * (1.0 + beside * (asked - 1)) + route_s
    waves = math.ceil(asked / (workers * worker_cpus))
    return CollectionPlan(
        rows=rows,
        dim=dim,
        qps=qps,
        recall=measured.recall,
        shard_rows=of_shard,
        shards=shards,
        asked=asked,
        bytes=rows * row_bytes + shards * measured.root_bytes * dim / measured.dim,
        objects=shards * objects,
        memory_bytes=memory,
        lazy_memory_bytes=rows * row_lazy if is_lazy else None,
        cores=cores,
        workers=workers,
        drivers=max(1, math.ceil(qps * hand_out_cpu_s / _LOAD)),
        seconds=hand_out_s + waves * search_s,
        cold_requests=measured.cold_requests * spread if is_lazy else None,
        cold_bytes=cold_bytes if is_lazy else None,
        cold_seconds=2 * hand_out_s + cold_s if is_lazy else None,
        open_seconds=open_s,
        modelled=_MODELS,
    )


#: How the figures of a plan come about that were not measured.
_MODELS: Final[Mapping[str, str]] = {
    "shards": "rows / shard_rows",
    "asked": "as many as measured, times the root of how many times more shards there are; all without a curve",
    "bytes": "stored bytes a row, and 4.625 bytes for each further component; the root in proportion to the shards",
    "objects": "parts with vectors, by the rows of a part; the other parts of a shard once for each group of parts",
    "memory_bytes": "resident bytes a row, and 4.625 bytes for each further component",
    "lazy_memory_bytes": "resident bytes a row of lazily opened shards, in proportion to the dimension",
    "cores": "qps x asked x processor seconds of a task, which grow with the logarithm of a shard's rows; / 0.7",
    "workers": "for the cores and for memory_bytes / 0.7",
    "drivers": "qps x processor seconds of choosing shards, handing out tasks and merging, / 0.7",
    "seconds": "choosing shards, handing out and merging; and tasks in waves over the cores, as in cores",
    "cold_requests": f"those of a search in one shard, with the logarithm of all parts with vectors; {_TIMES}",
    "cold_bytes": f"those of a search in one shard, with the logarithm of all parts with vectors; {_TIMES}",
    "cold_seconds": "handing out twice, and a search in one shard, of which a part grows with the bytes of a worker",
    "open_seconds": "those of opening one shard, and of each further one; what opening fetches grows with the rows",
}


def _log(rows: int) -> float:
    return math.log(max(rows, 2))
