"""A session in a child process of the one that made it: refused at once, whatever is called, and silent at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from saving import PHRASE

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

PRELUDE = f"""
import asyncio, inspect, os, signal, sys, threading, warnings
import numpy as np
from fabstir_vectordb import SessionError, VectorDBSession, sync

warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
SETTINGS = dict(user_seed_phrase={PHRASE!r}, session_id="s", threads=2, memory_budget_mb=256)
BASE = np.random.default_rng(1).standard_normal((1500, 8)).astype(np.float32)
IDS = [f"r{{row}}" for row in range(1500)]

CALLS = dict(
    add_vectors=([{{"id": "x", "vector": BASE[0]}}],), add_batch=(["x"], BASE[:1]), add_texts=(["x"],),
    update_metadata=("r1", 1), update_vector=("r1", BASE[0]), delete=(["r1"],), clear=(),
    set_schema=(None,), delete_vector=("r1",), delete_by_metadata=({{"n": 1}},), vacuum=(), optimize=(),
    update_by_metadata=({{"n": 1}}, {{"m": 1}}), fields=(), scan_page=(), set_text_fields=(None,),
    get_recent_index=(), get_historical_index=(), get_timestamps=(), search=(BASE[0],), search_batch=(BASE[:3],),
    search_stream=(BASE[0],), get=(["r1"],), count=(), facets=("n",), recall=(5,), scan=(), get_stats=(), save_to_s5=(),
    report=(), load_user_vectors=(), warm=(), is_newest=(), history=(), prune_history=(1,), share=("u",),
    list_indexes=(), verify=(),
)
# Those that make or end a session, and those of tables, which are made of the calls.
OTHERS = {{"create", "from_parts", "open_share", "destroy", "add_table", "to_arrow", "to_pandas"}}

def forked(child):
    '''The child's exit status; it is killed where it hangs.'''
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        status = 1
        try:
            child()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitpid(pid, 0)[1]

def refused(call):
    try:
        call()
    except SessionError as error:
        assert "fork" in str(error), error
        return
    raise AssertionError("the call was not refused")
"""


def run(code: str, *options: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *options, "-c", PRELUDE + code],
        capture_output=True, text=True, timeout=timeout, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_the_calls_are_all_verbs() -> None:
    run(
        """
verbs = {name for name, _ in inspect.getmembers(VectorDBSession, callable) if not name.startswith("_")}
assert verbs == CALLS.keys() | OTHERS, verbs ^ CALLS.keys()
"""
    )


@pytest.mark.parametrize("lazy", [False, True])
def test_each_verb_of_a_blocking_session_is_refused_in_a_child(lazy: bool, tmp_path: Path) -> None:
    run(
        f"""
s = sync.VectorDBSession.create(SETTINGS, s5_portal={tmp_path.as_uri()!r}, cache_size_mb=1)
s.add_batch(IDS, BASE, [{{"n": row}} for row in range(1500)])
s.save_to_s5()
if {lazy}:
    s.load_user_vectors(lazy_load=True)
scan, stream = s.scan(), s.search_stream(BASE[0], threshold=None)
if not {lazy}:
    next(scan), next(stream)

def child():
    for name, arguments in CALLS.items():
        result = lambda: getattr(s, name)(*arguments)
        refused(result if name not in ("scan", "search_stream") else lambda: list(result()))
    refused(lambda: [list(scan), list(stream)])
    s.destroy()
    s.destroy()
    refused(lambda: s.search(BASE[0]))
    with sync.VectorDBSession.create(SETTINGS, s5_portal={tmp_path.as_uri()!r}) as own:
        own.load_user_vectors()
        assert own.search(BASE[0], 1, threshold=None)[0].id == "r0"

assert forked(child) == 0
# The parent's goes on.
s.add_batch(["after"], BASE[:1])
assert s.count() == 1501 and len(list(s.scan())) == 1501
s.destroy()
"""
    )


@pytest.mark.parametrize("lazy", [False, True])
def test_each_verb_of_an_awaited_session_is_refused_in_a_child(lazy: bool, tmp_path: Path) -> None:
    run(
        f"""
async def main():
    async with VectorDBSession.create(SETTINGS, s5_portal={tmp_path.as_uri()!r}, cache_size_mb=1) as s:
        await s.add_batch(IDS, BASE, [{{"n": row}} for row in range(1500)])
        await s.save_to_s5()
        if {lazy}:
            await s.load_user_vectors(lazy_load=True)

        async def drain(generator):
            return [item async for item in generator]

        def child():
            async def calls():
                for name, arguments in CALLS.items():
                    made = getattr(s, name)(*arguments)
                    try:
                        await (made if inspect.iscoroutine(made) else drain(made))
                    except SessionError as error:
                        assert "fork" in str(error), (name, error)
                    else:
                        raise AssertionError(name)
                await s.destroy()
                async with VectorDBSession.create(SETTINGS, s5_portal={tmp_path.as_uri()!r}) as own:
                    await own.load_user_vectors()
                    assert (await own.search(BASE[0], 1, threshold=None))[0].id == "r0"
            thread = threading.Thread(target=lambda: asyncio.run(calls()) or done.append(1))
            done = []
            thread.start()
            thread.join()
            assert done

        assert forked(child) == 0
        await s.add_batch(["after"], BASE[:1])
        assert await s.count() == 1501

asyncio.run(main())
"""
    )


def test_a_child_that_forks_while_a_change_is_under_way_is_refused_too() -> None:
    run(
        """
from fabstir_vectordb._native.handle import NativeIndex
real, inside, go_on = NativeIndex.add, threading.Event(), threading.Event()

def add(*args, **kwargs):
    inside.set()
    assert go_on.wait(60)
    return real(*args, **kwargs)

s = sync.VectorDBSession.create(SETTINGS, s5_portal="memory:")
s.add_batch(IDS, BASE)
NativeIndex.add = add
changing = threading.Thread(target=s.add_batch, args=(["x"], BASE[:1]))
changing.start()
assert inside.wait(60)

def child():
    # The index's lock, the turn, the loop's thread and the locks of the runtime are all taken.
    for name in ("add_batch", "search", "get", "count", "get_stats", "vacuum"):
        refused(lambda: getattr(s, name)(*CALLS[name]))
    s.destroy()

runtime = s._verbs._runtime
with runtime._thread_lock, runtime._binding_lock:
    assert forked(child) == 0
go_on.set()
changing.join()
s.destroy()
"""
    )


@pytest.mark.parametrize("options", [(), ("-X", "dev")])
def test_a_child_that_merely_exits_is_silent(options: tuple[str, ...]) -> None:
    """Through the whole end of an interpreter, objects collected and exit handlers run."""
    done = run(
        """
import gc
# A fork meanwhile would find this module's first import half done, and CPython release a lock that it had not taken.
import concurrent.futures.thread
s = sync.VectorDBSession.create(SETTINGS, s5_portal="memory:")
s.add_batch(IDS, BASE)
s.save_to_s5()
scan = s.scan()
next(scan)

made, over = threading.Event(), threading.Event()

async def main():
    # On another thread than the fork: a child that goes on with its parent's event loop breaks that.
    async with VectorDBSession.create(SETTINGS, s5_portal="memory:") as a:
        await a.add_batch(IDS, BASE)
        await a.save_to_s5()
        kept.append(a)
        made.set()
        await asyncio.to_thread(over.wait, 60)

kept = []
looping = threading.Thread(target=asyncio.run, args=(main(),))
looping.start()
assert made.wait(60)
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    del s, scan, kept
    gc.collect()
    sys.exit(0)
status = os.waitpid(pid, 0)[1]
over.set()
looping.join()
scan.close()
s.destroy()
sys.exit(status)
""",
        *options,
    )
    assert done.stderr == ""


def test_processes_of_a_pool_are_refused_and_the_pool_goes_on() -> None:
    done = run(
        """
import concurrent.futures, multiprocessing
s = sync.VectorDBSession.create(SETTINGS, s5_portal="memory:")
s.add_batch(IDS, BASE)

def ask(row):
    try:
        return s.search(BASE[row])[0].id
    except SessionError as error:
        return error.code

with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    assert set(pool.map(ask, range(20))) == {"SESSION_ERROR"}
    try:
        pool.submit(len, [s]).result()
    except SessionError as error:
        assert "pickled" in str(error)
    else:
        raise AssertionError
s.destroy()
print("done")
"""
    )
    assert done.stdout == "done\n"


def test_a_named_memory_store_is_there_in_a_child() -> None:
    name = f"memory:{uuid.uuid4()}"
    run(
        f"""
from fabstir_vectordb.storage import memory
with sync.VectorDBSession.create(SETTINGS, s5_portal={name!r}) as s:
    s.add_batch(IDS, BASE)
    s.save_to_s5()

def child():
    with sync.VectorDBSession.create(SETTINGS, s5_portal={name!r}) as own:
        own.load_user_vectors()
        assert own.count() == 1500

with memory._spaces_lock, next(iter(memory._spaces.values())).lock:  # as a thread of the parent may at that moment
    assert forked(child) == 0
"""
    )


@pytest.mark.long
def test_forks_beside_sessions_at_work_for_a_minute() -> None:
    """Children are forked at any moment of saves, loads, adds and searches, in threads and on loops."""
    run(
        """
import concurrent.futures, faulthandler, multiprocessing, random, time
end, failures, children = time.monotonic() + 60, [], 0

def work(seed):
    choice = random.Random(seed)
    try:
        while time.monotonic() < end:
            with sync.VectorDBSession.create(SETTINGS, s5_portal="memory:") as s:
                open_sessions.append(s)
                s.add_batch(IDS, BASE)
                s.save_to_s5()
                s.load_user_vectors(lazy_load=choice.random() < 0.5)
                for row in range(200):
                    s.search(BASE[row])
                s.delete_vector("r1")
                s.vacuum()
                s.save_to_s5()
                open_sessions.remove(s)
    except BaseException as error:
        failures.append(error)

def ask(_):
    faulthandler.dump_traceback_later(60, exit=True)  # says where it hangs
    codes = []
    for s in list(open_sessions):
        for call in (lambda: s.search(BASE[0]), lambda: s.add_batch(["y"], BASE[:1]), lambda: s.get(["r1"])):
            try:
                call()
                codes.append("answered")
            except SessionError as error:
                codes.append(error.code)
        s.destroy()
    with sync.VectorDBSession.create(SETTINGS, s5_portal="memory:", user_seed_phrase="a secret") as own:
        own.add_batch(IDS[:50], BASE[:50])
        own.save_to_s5()
        codes.append(str(own.count()))
    faulthandler.cancel_dump_traceback_later()
    return codes

open_sessions = []
# All modules are loaded before the first fork: a child waits for ever for one that its parent was importing.
with sync.VectorDBSession.create(SETTINGS, s5_portal="memory:", user_seed_phrase="a secret") as warm:
    warm.add_batch(IDS, BASE)
    warm.save_to_s5()
    warm.load_user_vectors(lazy_load=True)
    warm.vacuum()
workers = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
for worker in workers:
    worker.start()
while time.monotonic() < end:
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        for codes in pool.map(ask, range(4), timeout=120):
            assert set(codes) <= {"SESSION_ERROR", "50"}, codes
            children += 1
for worker in workers:
    worker.join(120)
    assert not worker.is_alive()
assert not failures, failures
print(children)
""",
        timeout=400,
    )
