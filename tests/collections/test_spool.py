"""Builds of more rows than fit in memory: what is on the disk meanwhile, and how much is in memory."""

from __future__ import annotations

import errno
import io
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gathering import batch

from fabstir_vectordb import ConflictError, StorageError
from fabstir_vectordb.collections import gathering, spool
from fabstir_vectordb.collections.build import _divided
from fabstir_vectordb.collections.gathering import gather
from fabstir_vectordb.collections.placement import sampler_of
from fabstir_vectordb.collections.records import Route
from fabstir_vectordb.collections.rows import take_batches
from fabstir_vectordb.collections.spool import RowsByShard, Spool
from fabstir_vectordb.index.incoming import Batch


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, buffers and ranges of hashes so small that few rows need many."""
    monkeypatch.setattr(gathering, "_BLOCK_ROWS", 500)
    monkeypatch.setattr(gathering, "_COMPARED_MAX", 700)
    monkeypatch.setattr(spool, "_IN_MEMORY_BYTES", 10_000)
    monkeypatch.setattr(spool, "_WAITING_BYTES", 100_000)


def pieces(rows: int, size: int, dim: int = 16) -> Iterator[dict[str, Any]]:
    for start in range(0, rows, size):
        rng = np.random.default_rng(start)
        yield {
            "ids": [f"row-{number}" for number in range(start, start + size)],
            "vectors": rng.standard_normal((size, dim), dtype=np.float32),
            "metadata": [{"text": f"{number} and some words"} for number in range(start, start + size)],
        }


def divided(route: Route, batches: Any, shards: int = 4) -> dict[int, Batch]:
    with Spool[Batch]() as blocks:
        rows = gather(batches, 7, sampler_of(route, shards), blocks)
        with RowsByShard(rows.dim) as parted:
            plan = _divided(route, rows, range(shards), "l2", 1.0, parted)
            return {number: parted.of(number) for number in plan.numbers}


@pytest.mark.parametrize("route", ["nearest", "range"])
def test_every_row_is_in_one_shard_whatever_the_batches_were(route: Route, little: None) -> None:
    whole = take_batches(pieces(2_000, 250), 7)
    expected = divided(route, [whole])
    seen: list[str] = []
    for number, rows in divided(route, pieces(2_000, 250)).items():
        assert rows.ids == sorted(rows.ids) == expected[number].ids
        places = [whole.ids.index(id) for id in rows.ids]
        assert np.array_equal(rows.vectors, whole.vectors[places])
        assert rows.metadata == [whole.metadata[place] for place in places]  # type: ignore[index]
        seen += rows.ids
    assert sorted(seen) == sorted(whole.ids)


def test_an_id_that_occurs_twice_far_apart_is_a_conflict(little: None) -> None:
    for twice in (5, 1_999):
        again = {"ids": [f"row-{twice}"], "vectors": np.ones((1, 16), dtype=np.float32)}
        with pytest.raises(ConflictError, match=f"'row-{twice}'") as refused:
            divided("nearest", [*pieces(2_000, 250), again])
        assert refused.value.details["ids"] == [f"row-{twice}"]


def test_more_rows_take_no_more_memory(little: None) -> None:
    peaks = []
    for rows in (3_000, 12_000):
        tracemalloc.start()
        with Spool[Batch]() as blocks:
            found = gather(pieces(rows, 250), 7, sampler_of("nearest", 1), blocks)
            with RowsByShard(found.dim) as parted:
                _divided("nearest", found, range(4), "l2", 1.0, parted)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    print(peaks)
    assert peaks[1] < 1.3 * peaks[0]


def test_the_disk_never_shows_rows(little: None) -> None:
    with Spool[dict[str, Any]]() as kept:
        for number in range(3):
            kept.append({"number": number, "secret": b"a secret" * 10_000})
        assert [one["number"] for one in kept] == [0, 1, 2]
        assert kept[1]["secret"] == b"a secret" * 10_000
        kept._file.seek(0)
        assert b"secret" not in kept._file.read()


def test_a_full_disk_is_a_storage_error(little: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spool.tempfile, "tempdir", str(tmp_path / "nowhere"))
    with Spool[bytes]() as kept, pytest.raises(StorageError, match="TMPDIR"):
        kept.append(bytes(20_000))


def test_a_disk_that_fills_up_is_a_storage_error(little: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        """A buffered file: what it could not write fails again when it is closed."""

        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            super().close()
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(StorageError, match="No space left"), Spool[bytes]() as kept:
        kept.append(bytes(20_000))


def test_a_machine_without_a_folder_for_temporary_files_is_a_storage_error(
    little: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(spool.tempfile, "tempdir", None)
    monkeypatch.setattr(spool.tempfile, "_get_default_tempdir", none)
    with Spool[bytes]() as kept, pytest.raises(StorageError, match=r"No usable .*TMPDIR") as refused:
        kept.append(bytes(20_000))
    assert refused.value.details["folder"] is None


def test_each_row_of_many_small_batches_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def counted(batch: Batch) -> int:
        nonlocal looks
        looks += 1
        return 0

    monkeypatch.setattr(Batch, "metadata_bytes", property(counted))
    with Spool[Batch]() as blocks:
        assert gather(pieces(200, 1), 7, sampler_of("hash", 1), blocks).rows == 200
    assert looks == 200


def test_rows_without_some_things_are_the_same_beside_others(little: None) -> None:
    rows = batch(40)
    plain = {"ids": rows["ids"][:20], "vectors": rows["vectors"][:20], "timestamps": rows["timestamps"][:20]}
    rich = {name: values[20:] for name, values in rows.items()} | {"expires_at": [2e9] * 20}
    one, other = divided("hash", [plain, rich]), divided("hash", [rich, plain])
    for number, own in one.items():
        again = other[number]
        assert (own.ids, own.metadata) == (again.ids, again.metadata)
        assert np.array_equal(own.expires, again.expires)  # type: ignore[arg-type]
