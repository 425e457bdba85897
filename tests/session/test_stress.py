"""Every kind of read beside every kind of change: each answer is that of one state that the rows had meanwhile.

One writer leads the rows through a list of states. A reader notes the last state that was complete when it asked, and
the newest one that had begun when it was answered; its answer must be that of one state between the two, entirely. A
scan or a stream takes long: each row that it gives must be of one of these states, and a row that nothing touched
meanwhile must come exactly once.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from saving import PHRASE, session_on

from fabstir_vectordb import (
    ConflictError,
    InvalidInputError,
    MemoryBudgetExceededError,
    SearchResult,
    SearchResults,
    SessionError,
    sync,
)
from fabstir_vectordb.maintenance import Maintainer
from fabstir_vectordb.persist import load as load_module

DIM, SEED = 6, 20_261_126
ROWS, ROWS_MOST = 1_300, 2_200
"""With more than 1,024 rows there is a graph; after `clear` there is none for a while."""
BUDGET_MB = 12
HEAVY = "x" * 700_000
"""So much text that a few rows of it fill the budget."""
PATIENCE_S = 120
"""What runs comes to an end in time or never: this only turns a hang into a failure."""
NOW = 1_700_000_000.0
SCHEMA = {"id": {"type": "string", "required": True}, "n": "number"}
KINDS = "abc"


# ---- what the rows were


class Held(NamedTuple):
    """A row as it was written; another object for each time it was."""

    vector: tuple[int, ...] | None
    metadata: dict[str, Any]
    timestamp: float
    expires: float | None


@dataclass(frozen=True)
class State:
    """All rows at a moment.

    Attributes:
        begins_anew: a load put other rows in the place of all.
    """

    rows: Mapping[str, Held]
    now: float
    has_schema: bool = False
    begins_anew: bool = False

    @cached_property
    def alive(self) -> dict[str, Held]:
        return {id: row for id, row in self.rows.items() if row.expires is None or row.expires > self.now}

    @cached_property
    def found(self) -> tuple[list[str], np.ndarray]:
        """The rows that a search can find, sorted by id."""
        ids = sorted(id for id, row in self.alive.items() if row.vector is not None)
        return ids, np.array([self.alive[id].vector for id in ids], np.float64).reshape(len(ids), DIM)

    def of_kind(self, kind: str | None) -> set[str]:
        return {id for id, row in self.alive.items() if kind is None or row.metadata.get("kind") == kind}

    def nearest(self, query: np.ndarray, kind: str | None) -> list[tuple[str, float]]:
        """All rows that a search can find, nearest first. Components are small integers: distances are exact."""
        ids, vectors = self.found
        distances = np.sqrt(np.square(vectors - query).sum(axis=1))
        order, wanted = np.argsort(distances, kind="stable").tolist(), self.of_kind(kind)
        return [(ids[at], float(distances[at])) for at in order if ids[at] in wanted]


class Span(NamedTuple):
    """The states that a read may have met."""

    states: list[State]

    def check(self, holds: Callable[[State], bool], what: object) -> None:
        # The newest first: it is the likeliest.
        assert any(holds(state) for state in reversed(self.states)), f"of none of {len(self.states)} states: {what}"


@dataclass
class Chronicle:
    """The list of states."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    states: dict[int, State] = field(default_factory=lambda: {0: State({}, NOW)})
    complete: int = 0
    asked: Counter[int] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[BaseException] = field(default_factory=list)
    over: bool = False

    @property
    def now(self) -> State:
        """The newest state, for the writer."""
        return self.states[max(self.states)]

    def begin(self, state: State) -> None:
        with self.lock:
            self.states[max(self.states) + 1] = state

    def end(self) -> None:
        """From now on every read meets the newest state."""
        with self.lock:
            self.complete = max(self.states)
            oldest = min([self.complete, *self.asked])
            for number in [number for number in self.states if number < oldest]:
                del self.states[number]

    def ask(self) -> int:
        with self.lock:
            self.asked[self.complete] += 1
            return self.complete

    def answered(self, since: int) -> Span:
        with self.lock:
            span = Span([state for number, state in self.states.items() if number >= since])
            self.asked[since] -= 1
            self.asked += Counter()  # drops what is zero
            return span


# ---- sessions with and without await, as one


class Awaited:
    """The twin, with verbs to be awaited, none of which ever waits."""

    def __init__(self, twin: sync.VectorDBSession) -> None:
        self._twin = twin

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._twin, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return verb(*args, **kwargs)

        async def each(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            for item in verb(*args, **kwargs):
                yield item

        return each if name in ("scan", "search_stream") else call


def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Runs what never waits."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("it waited")


# ---- reads

Session = Any
Choose = random.Random


def some_query(choose: Choose) -> np.ndarray:
    return np.array([choose.randint(-9, 9) for _ in range(DIM)], np.float32)


def is_of(hit: SearchResult, state: State, query: np.ndarray) -> bool:
    """Whether a hit is a row of a state, with its metadata and its distance."""
    row = state.alive.get(hit.id)
    if row is None or row.vector is None or hit.metadata != row.metadata:
        return False
    if hit.vector is not None and hit.vector.tolist() != list(row.vector):
        return False
    return hit.distance == float(np.sqrt(np.square(np.array(row.vector, np.float64) - query).sum()))


def found_in(hits: SearchResults, state: State, query: np.ndarray, k: int, kind: str | None, least: float) -> bool:
    """Whether hits are those of a search of a state: as many as there must be, in order; which is not asked."""
    wanted = [id for id, _ in state.nearest(query, kind)]
    if len(hits) + hits.below_threshold != min(k, len(wanted)) or not {hit.id for hit in hits} <= set(wanted):
        return False
    order = [(hit.distance, hit.id) for hit in hits]
    return (
        order == sorted(set(order))
        and all(hit.score >= least for hit in hits)
        and all(is_of(h, state, query) for h in hits)
    )


def exactly_in(hits: SearchResults, state: State, query: np.ndarray, k: int, kind: str | None, least: float) -> bool:
    nearest = [(id, far) for id, far in state.nearest(query, kind)[:k] if 1 / (1 + far) >= least]
    return [(hit.id, hit.distance) for hit in hits] == nearest and found_in(hits, state, query, k, kind, least)


WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "exact": {"exact": True},
    "ef": {"ef_search": 80},
    "target": {"recall_target": 0.9},
}


async def search(session: Session, choose: Choose, chronicle: Chronicle, way: str) -> None:
    query, k = some_query(choose), choose.choice((1, 10, 60))
    kind, least = choose.choice((None, choose.choice(KINDS))), choose.choice((0.0, 0.0, 0.12))
    options: dict[str, Any] = {"threshold": least or None, "include_vectors": choose.random() < 0.3}
    options |= {} if kind is None else {"filter": {"kind": kind}}
    options |= WAYS[way]
    many = choose.random() < 0.4
    since = chronicle.ask()
    try:
        each = await session.search_batch(np.stack([query, -query]), k, options) if many else None
        one = None if many else await session.search(query, k, options)
    finally:
        span = chronicle.answered(since)
    fits = exactly_in if way == "exact" else found_in
    answers = [(query, one)] if each is None else [(query, each[0]), (-query, each[1])]
    span.check(lambda state: all(fits(hits, state, q, k, kind, least) for q, hits in answers), answers)


async def diverse(session: Session, choose: Choose, chronicle: Chronicle) -> None:
    query, since = some_query(choose), chronicle.ask()
    try:
        hits = await session.search(query, 5, threshold=None, mmr=0.5)
    finally:
        span = chronicle.answered(since)
    ids = {hit.id for hit in hits}
    span.check(
        lambda s: len(ids) == len(hits) == min(5, len(s.found[0])) and all(is_of(hit, s, query) for hit in hits), hits
    )


def check_long_read(span: Span, seen: list[str], kind: str | None, whole: bool, vectorless: bool) -> None:
    """A row that is the same in all states comes once; any other at most once."""
    assert len(seen) == len(set(seen)), "a row came twice"
    if not whole:
        return
    first, *others = span.states
    wanted = first.of_kind(kind)
    for id, row in first.alive.items():
        if id in wanted and (vectorless or row.vector is not None) and all(s.alive.get(id) is row for s in others):
            assert id in seen, f"{id} never came"


def may_begin_again(span: Span, error: SessionError) -> bool:
    return "begin again" in str(error) and any(state.begins_anew for state in span.states[1:])


async def stream(session: Session, choose: Choose, chronicle: Chronicle) -> None:
    query, most, kind = some_query(choose), choose.choice((5, 700, 10**6)), choose.choice((None, "a"))
    options = {} if kind is None else {"filter": {"kind": kind}}
    since, hits, stopped = chronicle.ask(), [], None
    try:
        async with aclosing(session.search_stream(query, threshold=None, **options)) as stream:
            async for hit in stream:
                hits.append(hit)
                if len(hits) >= most:
                    break
    except SessionError as error:
        stopped = error
    finally:
        span = chronicle.answered(since)
    assert stopped is None or may_begin_again(span, stopped), stopped
    assert [(hit.distance, hit.id) for hit in hits] == sorted((hit.distance, hit.id) for hit in hits)
    for hit in hits:
        span.check(lambda state, hit=hit: is_of(hit, state, query), hit)
    check_long_read(span, [hit.id for hit in hits], kind, stopped is None and len(hits) < most, vectorless=False)


async def scan(session: Session, choose: Choose, chronicle: Chronicle) -> None:
    kind, order = choose.choice((None, "a")), choose.choice((None, None, "-n"))
    since, rows, stopped, whole = chronicle.ask(), [], None, False
    try:
        async with aclosing(session.scan(None if kind is None else {"kind": kind}, order=order)) as scan:
            async for row in scan:
                rows.append(row)
                if choose.random() < 0.001:
                    break
            else:
                whole = True
    except SessionError as error:
        stopped = error
    finally:
        span = chronicle.answered(since)
    assert stopped is None or may_begin_again(span, stopped), stopped
    for row in rows:
        span.check(lambda state, row=row: is_row_of(row, state), row)
    check_long_read(span, [row.id for row in rows], kind, whole, vectorless=True)


def is_row_of(row: Any, state: State) -> bool:
    held = state.alive.get(row.id)
    return held is not None and held == Held(
        None if row.vector is None else tuple(map(int, row.vector.tolist())),
        row.metadata,
        row.timestamp,
        row.expires_at,
    )


async def get(session: Session, choose: Choose, chronicle: Chronicle) -> None:
    known = list(chronicle.states[chronicle.complete].rows) if choose.random() < 0.9 else []
    ids = [*choose.choices(known, k=8), "r0", "nobody"] if known else ["r0", "nobody"]
    since = chronicle.ask()
    try:
        rows = await session.get(ids)
    finally:
        span = chronicle.answered(since)
    span.check(
        lambda state: all(
            (row is None and id not in state.alive) or (row is not None and row.id == id and is_row_of(row, state))
            for id, row in zip(ids, rows, strict=True)
        ),
        rows,
    )


async def count(session: Session, choose: Choose, chronicle: Chronicle) -> None:
    kind = choose.choice((None, "a", "b"))
    since = chronicle.ask()
    try:
        counted = await session.count(None if kind is None else {"kind": kind})
    finally:
        span = chronicle.answered(since)
    span.check(
        lambda state: counted == len(state.of_kind(kind)), (kind, counted, [len(s.of_kind(kind)) for s in span.states])
    )


async def facets(session: Session, choose: Choose, chronicle: Chronicle) -> None:
    kind = choose.choice((None, "a"))
    since = chronicle.ask()
    try:
        found = await session.facets("n", None if kind is None else {"kind": kind})
    finally:
        span = chronicle.answered(since)
    counted = {facet.value: facet.count for facet in found}
    span.check(lambda state: counted == Counter(state.alive[id].metadata["n"] for id in state.of_kind(kind)), counted)


async def stats(session: Session, choose: Choose, chronicle: Chronicle) -> None:
    since = chronicle.ask()
    try:
        found = await session.get_stats()
    finally:
        span = chronicle.answered(since)
    told = (found.vector_count, found.without_vector_count)
    span.check(
        lambda state: told == (len(state.alive), len(state.alive) - len(state.found[0])),
        (told, [(len(s.alive), len(s.alive) - len(s.found[0])) for s in span.states]),
    )


async def timestamps(session: Session, choose: Choose, chronicle: Chronicle) -> None:
    since = chronicle.ask()
    try:
        found = await session.get_timestamps()
    finally:
        span = chronicle.answered(since)
    span.check(lambda state: found == {id: row.timestamp for id, row in state.alive.items()}, len(found))


async def sides(session: Session, choose: Choose, chronicle: Chronicle) -> None:
    since = chronicle.ask()
    try:
        side = await (session.get_historical_index() if choose.random() < 0.5 else session.get_recent_index())
    finally:
        span = chronicle.answered(since)
    assert side.vector_count == len(side.ids) == len(set(side.ids))
    span.check(lambda state: set(side.ids) <= state.alive.keys(), side)


async def recall(session: Session, choose: Choose, chronicle: Chronicle) -> None:
    if chronicle.done["recall"] > 3 and choose.random() < 0.9:
        return  # it takes as long as all others together
    report = await session.recall(3)
    assert 0.0 <= report.default.recall <= 1.0


async def history(session: Session, choose: Choose, chronicle: Chronicle) -> None:
    versions = await session.history()
    assert len({version.cid for version in versions}) == len(versions)
    assert [version.head for version in versions] == [True, *[False] * (len(versions) - 1)][: len(versions)]


READS: dict[str, Callable[[Session, Choose, Chronicle], Awaitable[None]]] = {
    **{f"search {way}": partial(search, way=way) for way in WAYS},
    **{"mmr": diverse, "stream": stream, "scan": scan, "get": get, "count": count, "facets": facets, "stats": stats},
    **{"timestamps": timestamps, "sides": sides, "recall": recall, "history": history},
}


# ---- changes


@dataclass
class Writer:
    """Leads the rows from state to state."""

    session: Session
    chronicle: Chronicle
    choose: Choose
    pause: Callable[[float], Awaitable[None]]
    clock: list[float]
    open_another: Callable[[], Awaitable[Session]]
    numbers: Iterator[int] = field(default_factory=itertools.count)
    saved: tuple[str, State] | None = None

    async def to(self, state: State, call: Callable[[], Awaitable[Any]], *refusals: type[Exception]) -> bool:
        """Makes a change; returns whether it was made. One that is refused leaves everything as it was."""
        before = self.chronicle.now
        self.chronicle.begin(state)
        try:
            await call()
            return True
        except (MemoryBudgetExceededError, *refusals) as error:
            self.chronicle.refused[type(error).__name__] += 1
            self.chronicle.begin(replace(before, begins_anew=False))
            return False
        finally:
            self.chronicle.end()

    async def refused(self, call: Callable[[], Awaitable[Any]], error: type[Exception]) -> None:
        assert not await self.to(self.chronicle.now, call, error), "it was not refused"

    def with_rows(self, rows: Mapping[str, Held], gone: set[str] | frozenset[str] = frozenset()) -> State:
        # Whatever has expired is deleted by the next change: it is alive in no later state either way.
        now = self.chronicle.now
        kept = {id: row for id, row in now.rows.items() if id not in gone}
        return replace(now, rows={**kept, **rows}, begins_anew=False)

    def some(self, most: int) -> list[str]:
        alive = sorted(self.chronicle.now.alive)
        return self.choose.sample(alive, min(most, len(alive)))

    def row(self, id: str) -> Held:
        vectorless, expires = self.choose.random() < 0.1, None
        if self.choose.random() < 0.15:
            expires = self.chronicle.now.now + self.choose.randint(1, 60)
        vector = None if vectorless else tuple(self.choose.randint(-9, 9) for _ in range(DIM))
        when = NOW if self.choose.random() < 0.5 else 1.0
        return Held(vector, {"id": id, "kind": self.choose.choice(KINDS), **self.written()}, when, expires)

    def written(self) -> dict[str, Any]:
        return {"n": self.choose.randint(0, 9), "w": next(self.numbers)}

    async def put(self, rows: Mapping[str, Held], on_conflict: str, after: State, *refusals: type[Exception]) -> bool:
        held = list(rows.values())
        vectors = [None if row.vector is None else list(row.vector) for row in held]
        return await self.to(
            after,
            lambda: self.session.add_batch(
                list(rows),
                vectors,
                [row.metadata for row in held],
                [row.timestamp for row in held],
                expires_at=[row.expires for row in held],
                on_conflict=on_conflict,
            ),
            *refusals,
        )

    def new(self, count: int) -> dict[str, Held]:
        return {id: self.row(id) for id in (f"r{next(self.numbers)}" for _ in range(count))}

    # Each of these is one kind.

    async def add(self) -> None:
        missing = ROWS - len(self.chronicle.now.alive)
        rows = self.new(max(missing, self.choose.choice((1, 40, 200))))
        if len(self.chronicle.now.alive) + len(rows) <= ROWS_MOST:
            await self.put(rows, "error", self.with_rows(rows))

    async def add_what_is_there(self) -> None:
        there = {id: self.row(id) for id in self.some(1)}
        rows = {**self.new(5), **there}
        if there:
            assert not await self.put(rows, "error", self.with_rows(rows), ConflictError)
        await self.put(rows, "skip", self.with_rows({id: row for id, row in rows.items() if id not in there}))

    async def replace(self) -> None:
        rows = {id: self.row(id) for id in [*self.some(self.choose.choice((1, 30))), f"r{next(self.numbers)}"]}
        await self.put(rows, "replace", self.with_rows(rows))

    async def update_vector(self) -> None:
        for id in self.some(3):
            vector = tuple(self.choose.randint(-9, 9) for _ in range(DIM))
            after = self.with_rows({id: self.chronicle.now.rows[id]._replace(vector=vector)})
            await self.to(after, partial(self.session.update_vector, id, list(vector)))

    async def update_metadata(self) -> None:
        for ids, merge in ((self.some(1), False), (self.some(1), True), (self.some(40), True), (self.some(40), False)):
            values, now = {}, self.chronicle.now
            for id in ids:
                values[id] = (
                    self.written() if merge else {"id": id, "kind": self.choose.choice(KINDS), **self.written()}
                )
            held = {id: now.rows[id].metadata if merge else {} for id in ids}
            after = {id: now.rows[id]._replace(metadata={**held[id], **values[id]}) for id in ids}
            await self.to(self.with_rows(after), partial(self.session.update_metadata, values, merge=merge))

    async def delete(self) -> None:
        ids = self.some(self.choose.choice((1, 60)))
        await self.to(self.with_rows({}, set(ids)), partial(self.session.delete, ids))
        for id in self.some(2):
            await self.to(self.with_rows({}, {id}), partial(self.session.delete_vector, id))

    async def delete_by_metadata(self) -> None:
        kind, n, now = self.choose.choice(KINDS), self.choose.randint(0, 9), self.chronicle.now
        gone = {id for id in now.of_kind(kind) if now.alive[id].metadata["n"] == n}
        await self.to(self.with_rows({}, gone), partial(self.session.delete_by_metadata, {"kind": kind, "n": n}))

    async def let_expire(self) -> None:
        after = replace(self.chronicle.now, now=self.chronicle.now.now + 10, begins_anew=False)

        async def tick() -> None:
            self.clock[0] = after.now

        await self.to(after, tick)
        await self.pause(0.01)

    async def clear(self) -> None:
        await self.to(replace(self.chronicle.now, rows={}, begins_anew=False), self.session.clear)
        await self.pause(0.005)
        await self.add()

    async def stay(self, call: Callable[[], Awaitable[Any]]) -> None:
        await self.to(replace(self.chronicle.now, begins_anew=False), call)

    async def vacuum(self) -> None:
        await self.stay(self.session.vacuum)

    async def optimize(self) -> None:
        await self.stay(self.session.optimize)

    async def set_schema(self) -> None:
        now = self.chronicle.now
        wanted = None if now.has_schema else SCHEMA
        after = replace(now, has_schema=wanted is not None, begins_anew=False)
        await self.to(after, partial(self.session.set_schema, wanted))
        if self.chronicle.now.has_schema:
            broken = {"broken": Held(None, {"n": "no number"}, NOW, None)}
            assert not await self.put(broken, "error", self.with_rows(broken), InvalidInputError)

    async def save(self) -> None:
        kept: list[str] = []

        async def save() -> None:
            kept.append(await self.session.save_to_s5(on_conflict="overwrite"))

        await self.stay(save)
        if not kept:
            return
        self.saved = kept[0], self.chronicle.now
        another = await self.open_another()
        try:
            await another.load_user_vectors(kept[0])
            rows = [row async for row in another.scan()]
            assert len(rows) == len(self.saved[1].alive)
            assert all(is_row_of(row, self.saved[1]) for row in rows)
        finally:
            await another.destroy()

    async def prune(self) -> None:
        await self.save()
        await self.stay(partial(self.session.prune_history, 2, dry_run=False))

    async def load(self) -> None:
        if self.saved is None:
            await self.save()
        assert self.saved is not None
        cid, state = self.saved
        load = partial(self.session.load_user_vectors, cid, lazy_load=self.choose.random() < 0.6)
        if (await self.session.get_stats()).dirty:
            await self.refused(load, ConflictError)
        after = replace(state, now=self.chronicle.now.now, begins_anew=True)
        await self.to(after, partial(load, discard_unsaved=True))
        await self.pause(0.03)  # some searches of parts

    async def press(self) -> None:
        """Fills the budget, and lets reads meet it."""
        for number in range(100):
            id = f"heavy-{number}"
            rows = {id: Held(None, {"id": id, "kind": "heavy", "n": 1, "text": HEAVY}, NOW, None)}
            if not await self.put(rows, "replace", self.with_rows(rows)):
                break
        else:
            raise AssertionError("the budget holds everything")
        await self.pause(0.02)
        gone = self.chronicle.now.of_kind("heavy")
        await self.to(self.with_rows({}, gone), partial(self.session.delete, gone))
        await self.vacuum()

    async def give_up(self) -> None:
        """Cancels a long add, wherever that meets it: it is done or left no trace."""
        if isinstance(self.session, Awaited):
            return
        rows, before = self.new(200), self.chronicle.now
        if len(before.alive) > ROWS_MOST - len(rows):
            return
        first = next(iter(rows))

        async def add() -> None:
            with anyio.move_on_after(self.choose.choice((0.0, 0.001, 0.004))):
                await self.session.add_batch(
                    list(rows),
                    [None if row.vector is None else list(row.vector) for row in rows.values()],
                    [row.metadata for row in rows.values()],
                    [row.timestamp for row in rows.values()],
                    expires_at=[row.expires for row in rows.values()],
                )
            if (await self.session.get([first]))[0] is None:
                raise _GivenUp

        await self.to(self.with_rows(rows), add, _GivenUp)


class _GivenUp(Exception):
    pass


CHANGES = (
    *("add", "add_what_is_there", "replace", "update_vector", "update_metadata", "delete", "delete_by_metadata"),
    *("let_expire", "clear", "vacuum", "optimize", "set_schema", "save", "prune", "load", "press", "give_up"),
)


# ---- both beside each other


@dataclass
class Course:
    """One run: how long, and what everybody does."""

    session: Session
    open_another: Callable[[], Awaitable[Session]]
    clock: list[float]
    pause: Callable[[float], Awaitable[None]]
    rounds: int
    seconds: float
    chronicle: Chronicle = field(default_factory=Chronicle)

    async def write(self) -> None:
        choose, end = random.Random(SEED), time.monotonic() + self.seconds
        writer = Writer(self.session, self.chronicle, choose, self.pause, self.clock, self.open_another)
        turn = 0
        while not self.chronicle.failures and (turn < self.rounds or time.monotonic() < end or not self._all_read()):
            turn += 1
            for name in choose.sample(CHANGES, len(CHANGES)):
                if self.chronicle.failures:
                    break
                await writer.add()
                await getattr(writer, name)()
                self.chronicle.done[name] += 1
                await self.pause(0.002)
        self.chronicle.over = True

    def _all_read(self) -> bool:
        return all(self.chronicle.done[name] for name in READS)

    async def read(self, seed: int) -> None:
        choose = random.Random(seed)
        while not self.chronicle.over:
            for name in choose.sample(list(READS), len(READS)):
                if self.chronicle.over:
                    break
                try:
                    await READS[name](self.session, choose, self.chronicle)
                    self.chronicle.done[name] += 1
                except MemoryBudgetExceededError:
                    self.chronicle.refused[name] += 1
                await self.pause(0.0)

    async def keep_house(self) -> None:
        """A second one that changes: its calls wait for their turn beside the writer's."""
        choose = random.Random(SEED)
        while not self.chronicle.over:
            try:
                await choose.choice((self.session.optimize, self.session.vacuum))()
            except MemoryBudgetExceededError:
                self.chronicle.refused["keep_house"] += 1
            await self.pause(0.2)

    def jobs(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        return [
            self.write,
            self.keep_house,
            *(partial(self.read, SEED + number) for number in range(4 if self.seconds else 2)),
        ]

    async def guarded(self, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await job()
        except BaseException as error:
            self.chronicle.failures.append(error)
            self.chronicle.over = True
            raise

    def report(self) -> None:
        done = self.chronicle.done
        print(dict(sorted(done.items())), "refused:", dict(self.chronicle.refused))
        assert all(done[name] for name in (*CHANGES, *READS)), done


def fields(clock: list[float], memory: str) -> dict[str, Any]:
    settings = {"metric": "l2", "memory": memory, "memory_budget_mb": BUDGET_MB, "chunk_size": 128, "threads": 1}
    return {"clock": lambda: clock[0], **settings}


async def in_tasks(memory: str, rounds: int, seconds: float) -> None:
    async def pause(seconds: float) -> None:
        await anyio.sleep(seconds)

    clock = [NOW]
    open_one = partial(session_on, f"memory:{uuid.uuid4()}", **fields(clock, memory))
    async with await open_one() as session:
        course = Course(session, open_one, clock, pause, rounds, seconds)

        async def maintain() -> None:
            while True:
                try:
                    await Maintainer(session, interval_s=0.05).run()
                except MemoryBudgetExceededError:
                    course.chronicle.refused["maintain"] += 1

        async with anyio.create_task_group() as maintenance:
            maintenance.start_soon(maintain)
            async with anyio.create_task_group() as group:
                for job in course.jobs():
                    group.start_soon(course.guarded, job)
            maintenance.cancel_scope.cancel()
        course.report()


def in_threads(memory: str, rounds: int, seconds: float) -> None:
    async def pause(seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # a thread of its own

    clock = [NOW]
    settings = {"s5_portal": f"memory:{uuid.uuid4()}", "user_seed_phrase": PHRASE, "session_id": "s"}
    settings |= fields(clock, memory)

    async def open_another() -> Session:
        return Awaited(sync.VectorDBSession.create(settings))

    with sync.VectorDBSession.create(settings) as session:
        course = Course(Awaited(session), open_another, clock, pause, rounds, seconds)
        threads = [
            threading.Thread(target=lambda job=job: to_its_end(course.guarded(job)), daemon=True)
            for job in course.jobs()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + PATIENCE_S)
            assert not thread.is_alive(), "it hangs"
        if course.chronicle.failures:
            raise course.chronicle.failures[0]
        course.report()


#: Each form has another memory setting.
MEMORY = {"asyncio": "fast", "trio": "compact", "threads": "default"}


def run(form: str, rounds: int, seconds: float) -> None:
    """In a thread of its own: a loop that hangs must not hang the tests."""
    failures: list[BaseException] = []

    def target() -> None:
        try:
            if form == "threads":
                in_threads(MEMORY[form], rounds, seconds)
            else:
                anyio.run(in_tasks, MEMORY[form], rounds, seconds, backend=form)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=target, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_module, "_LAZY_BYTES_MIN", 0)
        thread.start()
        thread.join(seconds + 2 * PATIENCE_S)
        assert not thread.is_alive(), "it hangs"
    if failures:
        raise failures[0]


@pytest.mark.parametrize("form", ["asyncio", "threads"])
def test_every_read_beside_every_change_is_of_one_state(form: str) -> None:
    run(form, 1, 0.0)


@pytest.mark.long
@pytest.mark.parametrize("form", MEMORY)
def test_every_read_beside_every_change_is_of_one_state_for_a_minute(form: str) -> None:
    run(form, 1, 60.0)
