"""The native parts, read as docs/format.md describes them, by a reader that shares nothing with the core."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fabstir_vectordb._native.handle import NativeIndex, pack_ids

VECTORS, CODES, IDS, TIMESTAMPS, TOMBSTONES, GRAPH, HEAD = range(1, 8)
SEED = 20_261_123


class Reader:
    """Little-endian fields, one after the other."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0

    def take(self, size: int) -> bytes:
        assert self.at + size <= len(self.raw)
        self.at += size
        return self.raw[self.at - size : self.at]

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def numbers(self, count: int, size: int) -> list[int]:
        return [self.number(size) for _ in range(count)]

    def end(self) -> None:
        assert self.at == len(self.raw)


def payloads(
    index: NativeIndex, rows_per_part: int, rows_per_group: int, rows: int
) -> Iterator[tuple[int, int, int, int, Reader]]:
    """Kind, number, first row, rows and payload of every part, their headers checked."""
    for info in index.parts(rows_per_part, rows_per_group):
        raw = bytes(index.write_part(rows_per_part, rows_per_group, info.kind, info.number, info.size))
        magic, version, kind, number, dim, first, n, zero, size = struct.unpack("<4sHHIIQIIQ", raw[:40])
        assert (magic, version, kind, number, dim, zero) == (b"FVDB", 0, info.kind, info.number, index.dim, 0)
        assert size == len(raw) - 40
        whole = kind in (TOMBSTONES, HEAD)
        most = rows if whole else rows_per_part if kind == VECTORS else rows_per_group
        assert first == number * most
        assert n == min(most, rows - first)
        yield kind, number, first, n, Reader(raw[40:])


def plane(r: Reader, n: int, dim: int) -> np.ndarray:
    low = np.frombuffer(r.take(n * dim), np.uint8).astype(np.uint32)
    high = np.frombuffer(r.take(n * dim), np.uint8).astype(np.uint32)
    return (low | high << 8).reshape(n, dim)


def graph(r: Reader, first: int, n: int, rows: int, M: int) -> tuple[list[list[int]], dict[int, list[list[int]]]]:
    width = 1 if rows <= 2**8 else 2 if rows <= 2**16 else 3
    counts = r.numbers(n, 1)
    assert max(counts) <= 2 * M
    links = [r.numbers(count, width) for count in counts]
    upper = {}
    for _ in range(r.number(4)):
        slot, level = first + r.number(4), r.number(1)
        upper[slot] = [r.numbers(r.number(1), 4) for _ in range(level)]
        assert all(len(level_links) <= M for level_links in upper[slot])
    return links, upper


@pytest.mark.parametrize(("rows", "rows_per_part"), [(1, 4), (100, 7), (1500, 200), (1500, 4096)])
def test_every_part_is_what_the_format_says(rows: int, rows_per_part: int) -> None:
    dim, M = 5, 8
    rng = np.random.default_rng(SEED)
    vectors = rng.standard_normal((rows, dim)).astype(np.float32)
    # A half that rounds up, one that is a tie, and the ends of the range.
    vectors[0] = np.array([0x3F80FFFF, 0x3F808000, 0x7F7FFFFF, 0x00000001, 0x80000000], np.uint32).view(np.float32)
    ids = [f"é{row}" for row in range(rows)]
    times = rng.integers(-(2**40), 2**40, rows)
    index = NativeIndex(dim, "l2", "default", M, 40, 1)
    index.add(vectors, *pack_ids(ids), times)
    dead = sorted({row for row in range(rows) if row % 11 == 3})
    index.delete(*pack_ids([ids[row] for row in dead]), False)

    found: dict[str, Any] = {name: [] for name in ("high", "low", "ids", "times", "links", "signs", "factors", "norms")}
    upper: dict[int, list[list[int]]] = {}
    head: dict[str, Any] = {}
    kinds = []
    for kind, number, first, n, r in payloads(index, rows_per_part, 2 * rows_per_part, rows):
        kinds.append((kind, number))
        match kind:
            case 1:
                found["high"].append(plane(r, n, dim))
                found["low"].append(plane(r, n, dim))
            case 2:
                found["signs"].append(np.unpackbits(np.frombuffer(r.take(n), np.uint8), bitorder="little"))
                found["factors"].append(np.frombuffer(r.take(2 * n), "<u2"))
                found["norms"].append(np.frombuffer(r.take(4 * n), "<f4"))
            case 3:
                found["ids"] += [r.take(size).decode() for size in r.numbers(n, 2)]
            case 4:
                low, width = r.number(8, signed=True), r.number(8)
                planes = [r.numbers(n, 1) for _ in range(width)]
                found["times"] += [low + sum(p[i] << 8 * b for b, p in enumerate(planes)) for i in range(n)]
                spread = int(times[first : first + n].max()) - low
                assert width == (spread.bit_length() + 7) // 8
            case 5:
                bits = r.take((rows + 7) // 8)
                assert [row for row in range(8 * len(bits)) if bits[row // 8] >> row % 8 & 1] == dead
            case 6:
                links, more = graph(r, first, n, rows, M)
                found["links"] += links
                upper |= more
            case 7:
                names = ("M", "ef_construction", "entry", "max_level", "upper_rows", "trained_rows")
                head = dict(zip(names, r.numbers(6, 4), strict=True))
                head["lo"] = np.frombuffer(r.take(4 * dim), "<f4")
                head["step"] = np.frombuffer(r.take(4 * dim), "<f4")
        r.end()

    assert kinds == sorted(kinds)
    highs, lows = np.vstack(found["high"]), np.vstack(found["low"])
    words = vectors.view(np.uint32)
    assert np.array_equal(highs, (words + np.uint32(2**15)) >> 16)
    assert np.array_equal(lows, words & 0xFFFF)
    signed = lows.astype(np.uint16).view(np.int16).astype(np.int64)
    assert np.array_equal(((highs.astype(np.int64) << 16) + signed) & 0xFFFF_FFFF, words)
    assert found["ids"] == ids
    assert found["times"] == times.tolist()
    assert bool(head) is bool(found["links"]) is (rows >= 1024)
    if head:
        slots = sorted(upper)
        # The two highest bits say how well the codes tell rows apart.
        assert (head["M"], head["ef_construction"], head["trained_rows"] % 2**30) == (M, 40, 1024)
        assert head["upper_rows"] == len(upper)
        assert head["max_level"] == max(map(len, upper.values()))
        assert len(upper[slots[head["entry"]]]) == head["max_level"]
        for row, row_links in enumerate(found["links"]):
            assert row not in row_links
            assert len(set(row_links)) == len(row_links)
            assert all(link < rows for link in row_links)
        for levels in upper.values():
            for level, level_links in enumerate(levels, start=1):
                assert all(len(upper[slots[link]]) >= level for link in level_links)
        middle = head["lo"] + np.float32(7.5) * head["step"]
        off = vectors.astype(np.float64) - middle
        signs = np.concatenate(found["signs"]).reshape(rows, 8)
        assert np.array_equal(signs[:, :dim], off > 0)
        assert not signs[:, dim:].any()
        with np.errstate(over="ignore"):
            factors = ((off**2).sum(1) / (np.abs(off) * head["step"]).sum(1)).astype(np.float32)
            norms = (vectors.astype(np.float64) ** 2).sum(1).astype(np.float32)
        most = np.finfo(np.float32).max
        half = (np.minimum(factors, most).view(np.uint32) + np.uint32(2**15)) >> 16
        assert np.abs(np.concatenate(found["factors"]).astype(int) - np.minimum(half, 0x7F7F).astype(int)).max() <= 1
        assert np.allclose(np.concatenate(found["norms"]), np.minimum(norms, most), rtol=1e-6)
        assert np.isfinite(head["lo"]).all()
        assert ((head["step"] == 0) | (head["step"] >= 1e-30)).all()
    index.close()
