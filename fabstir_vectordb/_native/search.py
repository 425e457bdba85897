"""Searching an index that is whole."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from itertools import islice, pairwise
from math import inf
from struct import Struct
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.call import (
    ID_ROOM_PER_HIT,
    Allowed,
    Control,
    Float32Array,
    Float64Array,
    UInt32Array,
    UInt64Array,
    bitmap_of,
    expect,
    pointer,
    raise_status,
    word_of,
)
from fabstir_vectordb._native.library import ffi, lib
from fabstir_vectordb._native.owner import Owner


class SearchHits(NamedTuple):
    """Results of a search over n queries.

    Attributes:
        slots: (n, k) uint32; entries past a query's count are NO_SLOT.
        distances: (n, k) float64, ascending; +inf past a count.
        counts: n uint32.
        plans: n uint32, PLAN_*.
        all_ids: the ids of all results, one query after the other; empty where they were left out.
    """

    slots: UInt32Array
    distances: Float64Array
    counts: UInt32Array
    plans: UInt32Array
    all_ids: list[str]

    @property
    def ids(self) -> list[list[str]]:
        """For each query, the ids of its results."""
        if not self.all_ids and self.counts.any():
            return []  # left out
        each = iter(self.all_ids)
        return [list(islice(each, count)) for count in self.counts.tolist()]


#: Slots, distances, ids, plan, scores, and how many of the k nearest the threshold left out.
OneAnswer: TypeAlias = tuple[Sequence[int], Sequence[float], list[str], int, Sequence[float], int]
#: k, ef_search, exact, nowait, nprobe and threshold of a search.
Asked: TypeAlias = tuple[int, int, bool, bool, int, float]

_search_one = lib.fvdb_search_one
#: The float32 of a C-contiguous array, as C functions take them; they keep the array alive. ValueError: it is not
#: C-contiguous. A `partial` takes no frame of Python.
floats_of = partial(ffi.from_buffer, ffi.typeof("float[]"))

# What one search finds beside slots and ids, as `_Answer` has it in one piece: the size of the ids, the number of
# results, the plan, how many were below the threshold, then k distances and k scores. A Struct reads the first four in
# less time than cffi takes for one field.
_FOUND_AT = ffi.offsetof("fvdb_answer", "id_size")
_NUMBERS_AT = ffi.sizeof("fvdb_answer")
# Answers of so many results are kept by their index for the next search.
_SPARE_K = 128


_COUNTS = Struct("=Q3I").unpack_from
_FLOATS_AT = _NUMBERS_AT - _FOUND_AT
_FLOAT64S = [Struct(f"={n}d").unpack_from for n in range(_SPARE_K + 1)]
_UINT32S = [Struct(f"={n}I").unpack_from for n in range(_SPARE_K + 1)]


class _Answer:
    """Memory that answers of up to k results come in: allocating it would cost as much as a small walk."""

    __slots__ = ("_memory", "_numbers", "asked", "c", "found", "id_bytes", "id_ends", "params", "slot_bytes", "slots")

    def __init__(self, k: int) -> None:
        # The numbers stand behind the struct, whose last fields are what else is read of it. Words give the alignment.
        self._memory = ffi.new("uint64_t[]", _NUMBERS_AT // 8 + 2 * k)
        self._numbers = ffi.cast("double *", self._memory + _NUMBERS_AT // 8)
        self.found = ffi.buffer(self._memory + _FOUND_AT // 8, _NUMBERS_AT - _FOUND_AT + 16 * k)
        self.slots, self.id_ends = ffi.new("uint32_t[]", k), ffi.new("uint64_t[]", k)
        self.slot_bytes = ffi.buffer(self.slots)
        self.c = ffi.cast("fvdb_answer *", self._memory)
        self.c.slots, self.c.distances, self.c.id_ends = self.slots, self._numbers, self.id_ends
        # Most searches ask as the last one did: what is asked is written only when it differs.
        self.params = ffi.new("fvdb_search_params *")
        self.asked: Asked = (0, 0, False, False, 0, 0.0)
        self.reserve(k * ID_ROOM_PER_HIT)

    def ask(self, asked: Asked) -> None:
        """Writes what is asked."""
        params = self.params
        params.k, params.ef_search, params.exact, params.nowait, params.nprobe, self.c.threshold = asked
        self.c.scores = self._numbers + asked[0]
        self.asked = asked

    def reserve(self, size: int) -> None:
        """Makes room for ids."""
        room = ffi.new("uint8_t[]", size)
        self.c.id_bytes, self.c.id_capacity = room, size
        self.id_bytes = ffi.buffer(room)  # keeps the room alive

    def ids_by_ends(self, n: int) -> list[str]:
        """The ids of the answer, where one holds a 0 byte itself."""
        ends = ffi.unpack(self.id_ends, n)
        starts = [0, *(end + 1 for end in ends[:-1])]
        return [self.id_bytes[start:end].decode() for start, end in zip(starts, ends, strict=True)]


class Search(Owner):
    """Searches of one query and of many."""

    __slots__ = ()

    @overload
    def search_one(
        self,
        query: Float32Array,
        k: int,
        ef_search: int = 0,
        exact: bool = False,
        nowait: Literal[False] = False,
        with_slots: bool = True,
        nprobe: int = 0,
        allow: UInt64Array | Allowed | None = None,
        threshold: float = -inf,
    ) -> OneAnswer: ...
    @overload
    def search_one(
        self,
        query: Float32Array,
        k: int,
        ef_search: int = 0,
        exact: bool = False,
        nowait: bool = False,
        with_slots: bool = True,
        nprobe: int = 0,
        allow: UInt64Array | Allowed | None = None,
        threshold: float = -inf,
    ) -> OneAnswer | None: ...
    def search_one(
        self,
        query: Float32Array,
        k: int,
        ef_search: int = 0,
        exact: bool = False,
        nowait: bool = False,
        with_slots: bool = True,
        nprobe: int = 0,
        allow: UInt64Array | Allowed | None = None,
        threshold: float = -inf,
    ) -> OneAnswer | None:
        """The k nearest rows of one query, with as little around the C call as Python allows.

        Args:
            query: dim float32, C-contiguous.
            k: 1 to K_MAX.
            ef_search: 0 lets the library choose.
            exact: score every row exactly.
            nowait: return None instead of waiting for a writer.
            with_slots: False leaves the slots out, for callers that need none.
            nprobe: lists to look at; 0 lets the library choose.
            allow: as of `search`; or the same with the slots one by one.
            threshold: least score of a result.

        Returns:
            Slots, distances and ids of the results, nearest first, the plan, the scores of the results, and how many of
            the k nearest the threshold left out.

        Raises:
            InvalidInputError: `k` or `ef_search` is out of range, or the query is not finite or zero.
            IndexStateError: there was not enough memory.
        """
        if query.nbytes != self._query_bytes:
            expect("query", query, np.float32, (self.dim,))
        asked = k, ef_search, exact, nowait, nprobe, threshold
        allowed = allow if allow is None or isinstance(allow, Allowed) else Allowed(allow)
        return self.search_again(floats_of(query), asked, with_slots, allowed)

    def search_again(
        self, query: Any, asked: Asked, with_slots: bool, allowed: Allowed | None = None
    ) -> OneAnswer | None:
        """`search_one` for a caller that keeps what it asks, beside the query, from search to search.

        Args:
            query: dim float32, as of `floats_of`.
            asked: what is asked.
            with_slots: as of `search_one`.
            allowed: slots that may be returned, None for all.

        Raises:
            InvalidInputError, IndexStateError: as `search_one`.
        """
        spare, k = self._spare, asked[0]
        is_kept = k <= _SPARE_K
        try:
            answer = spare.pop() if is_kept else _Answer(k)
        except IndexError:
            answer = _Answer(_SPARE_K)
        c = answer.c
        if asked is not answer.asked and asked != answer.asked:
            answer.ask(asked)
        if allowed is not None:
            c.allowed = allowed.c
        while status := _search_one(self._index, query, answer.params, c):
            if status == lib.FVDB_ERR_BUSY:
                if is_kept:
                    c.allowed = ffi.NULL
                    spare.append(answer)
                return None
            if status != lib.FVDB_ERR_BUFFER:
                raise_status(status, c.diag)
            answer.reserve(int(c.diag.expected))
        found = answer.found
        id_size, n, plan, below = _COUNTS(found)
        read = _FLOAT64S[n] if is_kept else Struct(f"={n}d").unpack_from
        distances, scores = read(found, _FLOATS_AT), read(found, _FLOATS_AT + 8 * k)
        slots: Sequence[int] = ()
        if with_slots:
            slots = _UINT32S[n](answer.slot_bytes) if is_kept else ffi.unpack(answer.slots, n)
        ids = answer.id_bytes[: id_size - 1].decode().split("\0") if n else []
        if len(ids) != n:
            ids = answer.ids_by_ends(n)
        if allowed is not None:
            c.allowed = ffi.NULL
        if is_kept:
            spare.append(answer)
        return slots, distances, ids, plan, scores, below

    def search(
        self,
        queries: Float32Array,
        k: int,
        *,
        ef_search: int = 0,
        exact: bool = False,
        nowait: bool = False,
        allow: UInt64Array | None = None,
        with_ids: bool = True,
        control: Control | None = None,
        nprobe: int = 0,
    ) -> SearchHits:
        """The k nearest rows of each query, in one native call.

        Args:
            queries: (n, dim) float32, C-contiguous.
            k: 1 to K_MAX.
            ef_search: 0 lets the library choose.
            exact: score every row exactly.
            nowait: raise NativeBusy instead of waiting for a writer.
            allow: bitmap of slots that may be returned (bit s % 64 of word s // 64), None for all.
            with_ids: False leaves the ids out, for callers that need none.
            control: cancellation.
            nprobe: lists to look at; 0 lets the library choose.

        Raises:
            InvalidInputError: a parameter is out of range, or a query is not finite or zero (details ``row``).
            NativeBusy, NativeCancelled: as asked for.
            IndexStateError: there was not enough memory, or no thread could start.
        """
        n = len(queries)
        expect("queries", queries, np.float32, (n, self.dim))
        bitmap = ffi.NULL if allow is None else bitmap_of(allow)
        slots, distances = np.empty((n, k), dtype=np.uint32), np.empty((n, k), dtype=np.float64)
        counts, plans = np.empty(n, dtype=np.uint32), np.empty(n, dtype=np.uint32)
        offsets = np.zeros(n * k + 1 if with_ids else 0, dtype=np.uint64)
        params = ffi.new("fvdb_search_params *", [k, ef_search, exact, nowait, nprobe, 0])
        diag = ffi.new("fvdb_diag *")
        room = n * k * ID_ROOM_PER_HIT if with_ids else 0
        while True:
            id_bytes = np.empty(max(room, 1), dtype=np.uint8)
            status = lib.fvdb_search(
                self._index,
                pointer("float[]", queries),
                n,
                params,
                bitmap,
                0 if allow is None else len(allow),
                pointer("uint32_t[]", slots),
                pointer("double[]", distances),
                pointer("uint32_t[]", counts),
                pointer("uint32_t[]", plans),
                pointer("uint8_t[]", id_bytes),
                len(id_bytes),
                pointer("uint64_t[]", offsets),
                word_of(control),
                diag,
            )
            if status == lib.FVDB_ERR_BUFFER:
                room = int(diag.expected)
                continue
            if status:
                raise_status(status, diag)
            break
        if not with_ids:
            return SearchHits(slots, distances, counts, plans, [])
        return SearchHits(slots, distances, counts, plans, _ids(id_bytes, offsets, int(counts.sum())))

    def search_in_steps(
        self,
        queries: Float32Array,
        k: int,
        *,
        ef_search: int = 0,
        exact: bool = False,
        allow: UInt64Array | None = None,
        control: Control | None = None,
        nprobe: int = 0,
    ) -> Generator[SearchHits]:
        """`search` in steps: the hits of the first queries come while threads look for those of the next ones.

        To be closed by a caller that does not take all of them: until then the index waits for it with changes.

        Args:
            queries, k, ef_search, exact, allow, control, nprobe: as of `search`.

        Raises:
            InvalidInputError, NativeCancelled, IndexStateError: as `search`.
        """
        n = len(queries)
        expect("queries", queries, np.float32, (n, self.dim))
        bitmap = ffi.NULL if allow is None else bitmap_of(allow)
        slots, distances = np.empty((n, k), dtype=np.uint32), np.empty((n, k), dtype=np.float64)
        counts, plans = np.empty(n, dtype=np.uint32), np.empty(n, dtype=np.uint32)
        params = ffi.new("fvdb_search_params *", [k, ef_search, exact, False, nprobe, 0])
        diag, out = ffi.new("fvdb_diag *"), ffi.new("fvdb_batch **")
        pointers = [pointer("float[]", queries), n, params, bitmap, 0 if allow is None else len(allow)]
        pointers += [pointer("uint32_t[]", slots), pointer("double[]", distances)]
        pointers += [pointer("uint32_t[]", counts), pointer("uint32_t[]", plans), word_of(control), out, diag]
        most = min(n, lib.FVDB_BATCH_MOST) * k
        # The start is in the block that ends it, as a KeyboardInterrupt may come right behind it.
        try:
            if status := lib.fvdb_search_start(self._index, *pointers):
                raise_status(status, diag)
            id_bytes = np.empty(most * ID_ROOM_PER_HIT, dtype=np.uint8)
            offsets, taken = np.empty(most + 1, dtype=np.uint64), ffi.new("uint32_t *")
            id_room, offsets_room = pointer("uint8_t[]", id_bytes), pointer("uint64_t[]", offsets)
            first = 0
            while first < n:
                status = lib.fvdb_search_next(out[0], id_room, len(id_bytes), offsets_room, taken, diag)
                if status == lib.FVDB_ERR_BUFFER:
                    id_bytes = np.empty(int(diag.expected), dtype=np.uint8)
                    id_room = pointer("uint8_t[]", id_bytes)
                    continue
                if status:
                    raise_status(status, diag)
                some = slice(first, first := first + taken[0])
                found = counts[some]
                ids = _ids(id_bytes, offsets[: len(found) * k + 1], int(found.sum()))
                yield SearchHits(slots[some], distances[some], found, plans[some], ids)
        finally:
            lib.fvdb_search_end(out[0])


def _ids(text: npt.NDArray[np.uint8], offsets: UInt64Array, n: int) -> list[str]:
    """The ids of n results, each with a 0 byte behind it; one cut for each would take as long as a tenth of a walk."""
    size = int(offsets[-1])
    ids = text[: size - 1].tobytes().decode().split("\0") if size else []
    if len(ids) == n:
        return ids
    ends = np.unique(offsets).tolist()  # an id holds a 0 byte itself; places without a result end where they begin
    return [text[start : end - 1].tobytes().decode() for start, end in pairwise(ends)]
