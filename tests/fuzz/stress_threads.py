"""Ten threads on two sessions of one store: every verb once, in an order of each thread's own, then verbs at random.

    python tests/fuzz/stress_threads.py [seconds] [threads] [seed]

With 0 seconds there are none at random: a start for tools that make a program fifty times slower.
Any VectorDBError is an answer; anything else ends the program with 1. test_sanitizers.py runs it with libraries under
sanitisers, which say what no answer shows.
"""

from __future__ import annotations

import faulthandler
import json
import random
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import count

import numpy as np

from fabstir_vectordb import VectorDBError, forget_memory_store, new_seed_phrase, sync
from fabstir_vectordb.index.gate import IndexClosed
from fabstir_vectordb.index.index import Index

#: So many dimensions that rows have codes.
DIM, IDS, STORE = 24, 3_000, "memory:stress"
#: Verbs of each thread at least, on whatever machine, where some are at random.
ROUNDS_MIN = 30
#: Seconds more than asked for, after which threads that wait for each other are taken for a deadlock.
DEADLOCK_S = 3_600
Session = sync.VectorDBSession
Choose = random.Random


def rows_of(choose: Choose, n: int) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(choose.getrandbits(32))
    return [f"r{number}" for number in choose.sample(range(IDS), n)], rng.standard_normal((n, DIM)).astype(np.float32)


def add(session: Session, choose: Choose, least: int = 1, most: int = 60) -> None:
    ids, vectors = rows_of(choose, choose.randint(least, most))
    metadata = [{"n": choose.randrange(9), "t": f"word{choose.randrange(50)} fox"} for _ in ids]
    # Half of them are old enough for lists.
    times = [choose.choice((1.0, time.time())) for _ in ids]
    session.add_batch(ids, vectors, metadata, times, on_conflict=choose.choice(("replace", "skip")))


def fill(session: Session, choose: Choose) -> None:
    """Enough rows at once for a graph and for lists."""
    add(session, choose, 1_100, 1_500)


def search(session: Session, choose: Choose) -> None:
    queries = rows_of(choose, 3)[1]
    session.search(queries[0], choose.choice((1, 10, 100)), threshold=None, exact=choose.random() < 0.2)
    session.search_batch(queries, 5, threshold=None)
    session.search(queries[1], 10, filter={"n": {"$lt": choose.randrange(9)}}, threshold=None, recall_target=0.9)


def search_many(session: Session, choose: Choose) -> None:
    """Enough queries for native calls of several threads."""
    session.search_batch(rows_of(choose, 300)[1], 5, threshold=None)


def end_early(session: Session, choose: Choose) -> None:
    """A batch that nobody reads to its end, as one that is cancelled."""
    index, queries = session._verbs._runtime.index, rows_of(choose, 300)[1]

    def begin() -> None:
        if (native := index._rows.native) is not None:
            with closing(native.search_in_steps(queries, 5)) as steps:
                next(steps, None)

    if isinstance(index, Index):  # it is whole
        with suppress(IndexClosed):
            index.gate.read(begin)


def search_words(session: Session, choose: Choose) -> None:
    session.search(text=f"word{choose.randrange(50)} fo*", k=10)
    session.search(rows_of(choose, 1)[1][0], 10, text="fox", threshold=None)


def read(session: Session, choose: Choose) -> None:
    ids = rows_of(choose, 20)[0]
    session.get(ids)
    session.get_stats()
    session.facets("n")
    for number, _ in enumerate(session.scan()):
        if number > 200:
            break


def delete(session: Session, choose: Choose) -> None:
    if choose.random() < 0.05:
        session.delete_by_metadata({"n": choose.randrange(9)})
    else:
        session.delete(rows_of(choose, 10)[0], missing_ok=True)


def update(session: Session, choose: Choose) -> None:
    there = [row.id for row in session.get(rows_of(choose, 10)[0]) if row is not None]
    session.update_metadata({id: {"n": 3, "t": "other words"} for id in there})


def save(session: Session, choose: Choose) -> None:
    session.save_to_s5(on_conflict="overwrite")


def load(session: Session, choose: Choose) -> None:
    session.load_user_vectors(discard_unsaved=True)


def optimize(session: Session, choose: Choose) -> None:
    session.optimize()


def vacuum(session: Session, choose: Choose) -> None:
    session.vacuum()


def destroy(session: Session, choose: Choose) -> None:
    session.destroy()


Verb = Callable[[Session, Choose], None]
#: Verbs by how often they are chosen.
VERBS: dict[Verb, float] = {
    **{add: 20, search: 40, search_words: 10, read: 10, delete: 8, update: 5},
    **{fill: 1, search_many: 2, end_early: 2, save: 2, load: 2, optimize: 2, vacuum: 2, destroy: 0.5},
}


def run(seconds: float, threads: int, seed: int) -> dict[str, int]:
    """Runs the threads; returns how often each verb answered, and how often it was refused.

    Raises:
        RuntimeError: a verb failed in another way than by a VectorDBError.
    """
    phrase = new_seed_phrase()
    failures: list[str] = []
    done: Counter[str] = Counter()

    def opened() -> Session:
        return Session.create(
            s5_portal=STORE, user_seed_phrase=phrase, session_id="stress", threads=2, text_fields="t", memory="fast"
        )

    sessions = [opened(), opened()]

    def verbs(choose: Choose) -> Iterator[Verb]:
        yield from choose.sample(list(VERBS), len(VERBS))
        for round in count(len(VERBS)):
            if time.monotonic() >= end and (round >= ROUNDS_MIN or not seconds):
                return
            yield choose.choices(list(VERBS), list(VERBS.values()))[0]

    def work(number: int) -> None:
        choose = Choose(f"{seed} {number}")
        for verb in verbs(choose):
            if failures:
                return
            place = choose.randrange(len(sessions))
            session = sessions[place]
            try:
                if verb is destroy:
                    sessions[place] = opened()
                verb(session, choose)
                done[verb.__name__] += 1
            except VectorDBError as error:
                done[f"{verb.__name__}: {type(error).__name__}"] += 1
            except BaseException:
                failures.append(traceback.format_exc())

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    fill(sessions[0], Choose(seed))
    save(sessions[0], Choose(seed))  # so that there is something to load
    end = time.monotonic() + seconds
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for session in sessions:
        session.destroy()
    forget_memory_store(STORE.partition(":")[2])
    if failures:
        raise RuntimeError("\n".join(failures))
    return dict(sorted(done.items()))


def main() -> None:
    given = dict(enumerate(sys.argv))
    seconds, threads, seed = float(given.get(1, 10)), int(given.get(2, 10)), int(given.get(3, 1))
    faulthandler.dump_traceback_later(seconds + DEADLOCK_S, exit=True)  # ends with the places of all threads
    print(json.dumps(run(seconds, threads, seed)))
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
