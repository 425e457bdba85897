"""Plans of larger collections: measured on a small one, and modelled from there."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gathering import batch, settings

from fabstir_vectordb import InvalidInputError, NotFoundError, forget_memory_store
from fabstir_vectordb.collections import Measured, build, measure, plan

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

ROOT = Path(__file__).resolve().parents[2]
MEASURED = Measured(
    rows=100_000,
    dim=384,
    shards=8,
    recall=0.95,
    asked=4,
    routed=True,
    shard_rows=12_500,
    row_bytes=1_500.0,
    root_bytes=25_000.0,
    shard_objects=20.0,
    chunk_size=None,
    row_memory_bytes=2_000.0,
    row_lazy_bytes=230.0,
    search_s=0.000_2,
    search_cpu_s=0.000_25,
    route_s=0.000_02,
    one_s=0.000_5,
    further_s=0.000_1,
    one_cpu_s=0.000_2,
    further_cpu_s=0.000_05,
    cold_requests=3.0,
    cold_bytes=2e6,
    cold_s=0.3,
    cold_byte_s=5e-8,
    open_s=0.5,
    open_further_s=0.2,
)


@pytest.fixture
def memory() -> Iterator[str]:
    name = str(uuid.uuid4())
    yield f"memory:{name}"
    forget_memory_store(name)


async def test_a_collection_is_measured_and_its_own_size_planned_as_measured(memory: str) -> None:
    fields = settings(memory, text_fields="kind")
    await build(fields, [batch(400)], shards=2)
    found = await measure(fields, recall=0.9)
    assert (found.rows, found.dim, found.shards, found.recall) == (400, 8, 2, 0.9)
    assert 190 <= found.shard_rows <= 210
    assert found.routed
    assert found.asked in (1, 2)
    assert found.row_bytes > 4 * 8
    assert found.row_memory_bytes > 4 * 8
    assert found.shard_objects > 5
    assert min(found.search_s, found.search_cpu_s, found.one_s, found.open_s, found.cold_s, found.root_bytes) > 0
    assert (
        min(
            found.route_s,
            found.further_s,
            found.cold_byte_s,
            found.one_cpu_s,
            found.further_cpu_s,
            found.open_further_s,
        )
        >= 0
    )
    same = plan(found, rows=400, qps=1, shard_rows=found.shard_rows)
    assert (same.shards, same.asked) == (2, found.asked)
    assert same.bytes == pytest.approx(400 * found.row_bytes + 2 * found.root_bytes)
    assert same.objects == pytest.approx(2 * found.shard_objects, rel=0.1)
    assert same.cold_requests is None  # shards of 200 rows are fetched as a whole
    more = found.further_s * (found.asked - 1) + found.route_s
    assert same.seconds == pytest.approx(max(found.one_s, found.search_s) + more, rel=0.1)


def table(measured: Measured) -> list[str]:
    """The table of docs/collections.md: what the measured collection has, and what larger ones would take."""
    plans = [plan(measured, rows=rows, qps=500) for rows in (1e6, 1e8, 1e9)]

    def size(value: float) -> str:
        unit, name = next((unit, name) for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if value >= unit)
        return f"{value / unit:.3g} {name}"

    def line(title: str, own: str, name: str, shown: Callable[[Any], str]) -> str:
        return f"| {title} | {' | '.join([own, *(shown(getattr(one, name)) for one in plans)])} |"

    return [
        line("shards", f"{measured.shards}", "shards", "{:,}".format),
        line("shards asked", f"{measured.asked}", "asked", "{:,}".format),
        line("stored", size(measured.rows * measured.row_bytes), "bytes", size),
        line("objects", f"{measured.shards * measured.shard_objects:,.0f}", "objects", "{:,.0f}".format),
        line("memory, whole shards", size(measured.rows * measured.row_memory_bytes), "memory_bytes", size),
        line("workers of 8 cores and 64 GB", "", "workers", "{:,}".format),
    ]


def test_the_table_in_the_document_is_what_plan_says_of_the_measured_figures() -> None:
    measured = Measured(**json.loads((ROOT / "benchmarks/collection_plan.json").read_text(encoding="utf-8")))
    page = (ROOT / "docs/collections.md").read_text(encoding="utf-8")
    assert "\n".join(table(measured)) in page


def test_figures_grow_as_their_models_say() -> None:
    one = plan(MEASURED, rows=1e9, qps=500, worker_cpus=8, worker_gb=64)
    assert (one.rows, one.shards, one.shard_rows, one.dim) == (1_000_000_000, 1_000, 1_000_000, 384)
    assert one.asked == 45  # 4 x the root of 125
    assert one.bytes == pytest.approx(1.5e12 + 25e6)
    assert one.memory_bytes == pytest.approx(2e12)
    assert one.workers >= 2e12 / 64e9
    # 1,152 rows a part with vectors, 73,728 a group: 869 parts, and the 9 other objects for each of 13.6 groups.
    assert one.objects == pytest.approx(1_000 * (869 + 9 * 13.563), rel=1e-3)
    assert one.cores == pytest.approx(500 * 45 * 0.000_25 * 1.464_5 / 0.7, abs=1)
    # The driver: 0.3 ms for the first shard, 0.1 for each other, and centroids of 125 times as many shards.
    of_driver = 0.000_3 + 44 * 0.000_1 + 125 * 0.000_02
    assert one.seconds == pytest.approx(of_driver + 0.000_293, rel=0.01)
    assert one.drivers == math.ceil(500 * (0.000_2 + 44 * 0.000_05 + 125 * 0.000_02) / 0.7)
    # Candidates are chosen over all shards, of 868,056 parts instead of 11.
    more = 1.25 * math.log(868_056) / math.log(11)
    assert one.cold_requests == pytest.approx(3 * more)
    assert one.cold_bytes == pytest.approx(2e6 * more)
    # Of 0.3 s, 0.1 are those of 2 MB; each worker fetches its part.
    assert one.cold_seconds == pytest.approx(2 * of_driver + 0.2 + 0.1 * more / min(one.workers, 45))
    larger = 1 + 5e-8 * 230 * 987_500 / 0.5  # 11.4 s are those of the bytes of 987,500 rows
    assert one.open_seconds == pytest.approx((0.5 + 44 * 0.2) * larger + 125 * 0.000_02)
    few = plan(MEASURED, rows=1e6, qps=1, shard_rows=125_000, worker_cpus=2)  # asks 4 shards of 8, on two cores
    assert few.open_seconds == pytest.approx((0.5 + 3 * 0.2) * (1 + 5e-8 * 230 * 112_500 / 0.5) + 0.000_02)
    assert few.seconds == pytest.approx(0.000_62 + 2 * 0.000_2 * math.log(125_000) / math.log(12_500))
    whole = plan(replace(MEASURED, cold_requests=0.0), rows=1e9, qps=500)
    assert whole.lazy_memory_bytes is whole.cold_requests is whole.cold_bytes is whole.cold_seconds is None
    for fields, figure in (({"qps": 5_000}, "drivers"), ({"rows": 4e9}, "asked"), ({"dim": 768}, "bytes")):
        assert getattr(plan(MEASURED, **{"rows": 1e9, "qps": 500, **fields}), figure) > getattr(one, figure)
    assert plan(replace(MEASURED, routed=False, asked=8), rows=1e9, qps=500).asked == 1_000
    assert plan(MEASURED, rows=10, qps=1).shards == 1
    assert set(one.modelled) <= set(one.to_dict())


async def test_wrong_numbers_are_refused(memory: str) -> None:
    for fields in ({"rows": 0}, {"qps": -1}, {"rows": float("inf")}, {"rows": True}, {"shard_rows": 0}, {"dim": 0}):
        with pytest.raises(InvalidInputError, match=next(iter(fields))):
            plan(MEASURED, **{"rows": 1e9, "qps": 500, **fields})
    for wrong in ({"recall": 0}, {"recall": 1.5}, {"shards": 0}):
        with pytest.raises(InvalidInputError):
            await measure(settings(memory), **wrong)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        await measure(settings(memory))
