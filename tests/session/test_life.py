"""A session's life: configuration, deletes, destruction, secrets, cancellation, threads, the twin without await."""

from __future__ import annotations

import gc
import inspect
import logging
import pickle
import threading
import uuid
from pathlib import Path
from typing import Any, NoReturn

import anyio
import anyio.lowlevel
import anyio.to_thread
import numpy as np
import pytest
from holding import until
from saving import PHRASE, rows, session_on

import fabstir_vectordb
from fabstir_vectordb import (
    InvalidConfigError,
    InvalidInputError,
    MemoryBudgetExceededError,
    NotFoundError,
    SessionError,
    VectorDBConfig,
    VectorDBError,
    VectorDBSession,
    get_platform_info,
    get_version,
    sync,
)
from fabstir_vectordb._native.handle import Control, NativeIndex

pytestmark = pytest.mark.anyio
GOOD: dict[str, Any] = {"s5_portal": "memory:", "user_seed_phrase": PHRASE, "session_id": "s"}


# ---- configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"session_id": None, "s5_portal": None}, "session_id is required"),
        ({"session_id": ""}, "session_id is required"),
        ({"s5_portal": " "}, "s5_portal is required"),
        ({"user_seed_phrase": ""}, "user_seed_phrase is required"),
        ({"memory_budget_mb": 0}, "memory_budget_mb must be greater than zero"),
        ({"memory_budget_mb": "1"}, "memory_budget_mb must be an integer"),
        ({"M": 3}, "M must be between 4 and 64"),
        ({"M": -1}, "M must be greater than zero"),
        ({"ef_construction": 10**6}, "ef_construction must be between"),
        ({"threads": 0}, "threads must be greater than zero"),
        ({"chunk_size": True}, "chunk_size must be an integer"),
        ({"index_name": "Ä"}, "index_name"),
        ({"index_name": "x" * 65}, "index_name"),
        ({"metric": "hamming"}, "metric must be one of"),
        ({"memory": "tiny"}, "memory must be one of"),
        ({"debug": 1}, "debug must be True or False"),
        ({"default_threshold": 1.5}, "default_threshold"),
        ({"clock": 5}, "clock must be a function"),
        ({"session_id": 5}, "session_id must be a string"),
        ({"user_seed_phrase": 5}, "user_seed_phrase must be a string"),
        ({"nonsense": 1}, "nonsense is not a setting"),
        ({"s5_portal": "ftp://x"}, "unknown scheme"),
        ({"s5_portal": "https://x?y=1"}, "and nothing else"),
        ({"user_seed_phrase": "abandon " * 15}, "checksum"),
    ],
)
async def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    given = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    with pytest.raises(InvalidConfigError, match=message):
        await VectorDBSession.create(**given)
    with pytest.raises(InvalidConfigError, match=message):
        sync.VectorDBSession.create(given)


async def test_settings_come_from_objects_mappings_and_fields() -> None:
    config = VectorDBConfig(**GOOD)
    for session in [
        await VectorDBSession.create(config),
        await VectorDBSession.create(config, index_name="other"),
        await VectorDBSession.create(GOOD, metric="l2"),
    ]:
        await session.destroy()
    with pytest.raises(InvalidConfigError, match="VectorDBConfig or a mapping"):
        await VectorDBSession.create(3)  # type: ignore[arg-type]


async def test_creating_does_no_work_and_touches_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("creating a session is instant: it derives no keys, makes no index and needs no thread")

    monkeypatch.setattr(anyio.to_thread, "run_sync", refuse)
    monkeypatch.setattr(fabstir_vectordb.workspace, "secret_to_entropy", refuse)
    monkeypatch.setattr(NativeIndex, "__init__", refuse)
    # No phrase of S5: its keys would take Argon2id.
    session = await session_on((tmp_path / "store").as_uri(), user_seed_phrase="a secret")
    assert not (tmp_path / "store").exists()
    monkeypatch.undo()
    await session.destroy()
    assert not (tmp_path / "store").exists()


async def test_options_and_clocks_that_make_no_sense_are_refused() -> None:
    readings: list[Any] = ["noon", None, float("nan"), float("inf")]
    async with await session_on("memory:", clock=lambda: readings[0]) as session:
        for _ in range(len(readings)):
            with pytest.raises(InvalidConfigError, match="clock must return seconds"):
                await session.add_batch(["a"], [[1, 2]])
            readings.pop(0)
        with pytest.raises(InvalidInputError, match="error or overwrite"):
            await session.save_to_s5(on_conflict="merge")
        with pytest.raises(InvalidInputError, match="a CID must be a string"):
            await session.load_user_vectors(5)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="lazy_load must be True or False"):
            await session.load_user_vectors(lazy_load=1)
        for budget in (0, -1, True, 1.5, "1"):
            with pytest.raises(InvalidInputError, match="memory_budget_mb must be greater than zero"):
                await session.load_user_vectors(memory_budget_mb=budget)
        assert await session.count() == 0


@pytest.mark.one_loop
async def test_a_loads_own_budget_is_the_sessions_from_then_on() -> None:
    uri = f"memory:{uuid.uuid4()}"
    async with await session_on(uri) as session:
        await session.add_batch([str(row) for row in range(5000)], rows(5000, 32))
        await session.save_to_s5()
        with pytest.raises(MemoryBudgetExceededError):
            await session.load_user_vectors(memory_budget_mb=1)
        await session.load_user_vectors(memory_budget_mb=9)
        with pytest.raises(MemoryBudgetExceededError):
            await session.add_batch([f"x{row}" for row in range(20_000)], rows(20_000, 32))
        assert await session.count() == 5000


# ---- deletes and updates


@pytest.mark.one_loop
async def test_deleted_rows_are_gone_and_vacuum_gives_memory_back() -> None:
    base = rows(4000, 32)
    async with await session_on("memory:", threads=2) as session:
        await session.add_batch([f"r{i}" for i in range(4000)], base, [{"n": i} for i in range(4000)])
        for i in range(0, 4000, 5):
            done = await session.delete_vector(f"r{i}")
            assert done.deleted_ids == [f"r{i}"]
        with pytest.raises(NotFoundError, match="'r0'"):
            await session.delete_vector("r0")
        assert (await session.delete_vector("r0", missing_ok=True)).deleted_count == 0
        stats = await session.get_stats()
        assert (stats.vector_count, stats.deleted_count, stats.dirty) == (3200, 800, True)
        for i in range(0, 200, 5):
            hits = await session.search(base[i], 10, threshold=None)
            assert len(hits) == 10
            assert all(int(hit.id[1:]) % 5 for hit in hits)
        vacuumed = await session.vacuum()
        assert (vacuumed.hnsw_removed, vacuumed.total_removed) == (800, 800)
        assert (await session.vacuum()).total_removed == 0
        after = await session.get_stats()
        assert after.deleted_count == 0
        assert after.memory_bytes["vectors"] < stats.memory_bytes["vectors"]
        for i in (1, 7, 3999):
            hit = (await session.search(base[i], 1))[0]
            assert (hit.id, hit.distance, hit.metadata) == (f"r{i}", 0.0, {"n": i})
        assert [row.metadata["n"] async for row in session.scan()] == [i for i in range(4000) if i % 5]


async def test_update_metadata() -> None:
    async with await session_on("memory:") as session:
        await session.add_batch(["a", "b"], np.eye(2), [{"x": 1}, "text"])
        await session.update_metadata("a", {"y": 2}, merge=True)
        await session.update_metadata("b", None)
        got = [row.metadata for row in await session.get(["a", "b"]) if row]
        assert got == [{"x": 1, "y": 2}, None]
        await session.update_metadata("b", {"z": 1}, merge=True)
        await session.update_metadata("a", [1])
        with pytest.raises(InvalidInputError, match="dict"):
            await session.update_metadata("a", {"y": 2}, merge=True)
        with pytest.raises(NotFoundError):
            await session.update_metadata("c", {})
        with pytest.raises(InvalidInputError, match="JSON-shaped"):
            await session.update_metadata("a", {"x": object()})
        for _ in range(50):
            await session.update_metadata("a", "m" * 100_000)
        assert (await session.get_stats()).memory_bytes["metadata"] < 3_000_000


async def test_ids_must_be_strings() -> None:
    async with await session_on("memory:") as session:
        for call in (session.delete_vector, session.get):
            with pytest.raises(InvalidInputError):
                await call(5) if call == session.delete_vector else await call([5])  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="not one string"):
            await session.get("abc")
        with pytest.raises(InvalidInputError, match="got NoneType"):
            await session.get(None)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="must be a string"):
            await session.update_metadata(5, {})  # type: ignore[arg-type]


# ---- destruction


async def test_a_destroyed_session_refuses_everything(caplog: pytest.LogCaptureFixture) -> None:
    session = await session_on("memory:")
    await session.add_batch(["a"], [[1, 2]])
    scan = session.scan()
    with caplog.at_level(logging.WARNING, logger="fabstir_vectordb"):
        await session.destroy()
    assert "unsaved changes" in caplog.text
    await session.destroy()
    calls = [
        session.add_vectors([]),
        session.add_batch([], []),
        session.search([1, 2], 1),
        session.search_batch([[1, 2]], 1),
        session.get(["a"]),
        session.count(),
        session.update_metadata("a", 1),
        session.delete_vector("a"),
        session.vacuum(),
        session.save_to_s5(),
        session.load_user_vectors(),
        session.history(),
        session.list_indexes(),
        session.verify(),
        session.get_stats(),
        anext(scan),
    ]
    for call in calls:
        with pytest.raises(SessionError, match="Session already destroyed"):
            await call


async def test_a_forgotten_session_is_complained_about() -> None:
    session = await session_on("memory:")
    with pytest.warns(ResourceWarning, match="never destroyed"):
        del session
        gc.collect()


# ---- secrets


async def test_the_phrase_is_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    secret = "open sesame 4711"
    config = VectorDBConfig(s5_portal=f"memory:{uuid.uuid4()}", user_seed_phrase=secret, session_id="s", debug=True)
    with caplog.at_level(logging.DEBUG):
        session = await VectorDBSession.create(config)
        await session.add_batch(["a"], [[1, 2]])
        await session.save_to_s5()
        shown = [repr(config), str(config.user_seed_phrase), repr(session), repr(vars(session)), caplog.text]
        try:
            await session.load_user_vectors("nonsense")
        except VectorDBError as error:
            shown += [str(error), repr(error), repr(error.details)]
        await session.destroy()
    for text in shown:
        assert "sesame" not in text
        assert "4711" not in text
    with pytest.raises(TypeError):
        pickle.dumps(config.user_seed_phrase)
    assert config.user_seed_phrase != secret
    assert "sesame" not in repr(vars(session))


# ---- cancellation and concurrency


async def test_a_cancelled_add_leaves_the_session_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    base = rows(30_000, 64)
    async with await session_on("memory:", threads=2, memory_budget_mb=4096) as session:
        await session.add_batch([f"a{i}" for i in range(2000)], base[:2000])
        before = [(hit.id, hit.distance) for hit in await session.search(base[0], 10, threshold=None)]
        words: list[Control] = []

        def watched(native: NativeIndex, *args: Any) -> Any:
            words.append(args[5])
            return add(native, *args)

        add = NativeIndex.add
        monkeypatch.setattr(NativeIndex, "add", watched)
        async with anyio.create_task_group() as group:
            group.start_soon(session.add_batch, [f"b{i}" for i in range(30_000)], base)
            # In the midst of linking: the core has something to take back.
            await until(lambda: bool(words) and words[0].done > 2_000)
            group.cancel_scope.cancel()
        assert words[0].done < words[0].total
        assert await session.count() == 2000
        assert [(hit.id, hit.distance) for hit in await session.search(base[0], 10, threshold=None)] == before
        await session.add_batch(["after"], base[:1])
        assert await session.count() == 2001


async def test_searches_beside_changes_see_whole_rows() -> None:
    base = rows(6000, 16)
    async with await session_on("memory:", threads=2) as session:
        await session.add_batch([f"r{i}" for i in range(3000)], base[:3000], [{"n": i} for i in range(3000)])
        stop = False

        async def change() -> None:
            nonlocal stop
            for first in range(3000, 6000, 500):
                chosen = range(first, first + 500)
                ids, metadata = [f"r{i}" for i in chosen], [{"n": i} for i in chosen]
                await session.add_batch(ids, base[first : first + 500], metadata)
                for i in range(first - 3000, first - 2500, 10):
                    await session.delete_vector(f"r{i}")
                await session.vacuum()
            stop = True

        async def look() -> None:
            at = 0
            while not stop:
                at = (at + 37) % 3000
                for hit in await session.search(base[at], 5, threshold=None):
                    assert hit.metadata == {"n": int(hit.id[1:])}
                for result in await session.search_batch(base[at : at + 3], 3, threshold=None):
                    assert all(hit.metadata == {"n": int(hit.id[1:])} for hit in result)
                for row in await session.get([f"r{at}", f"r{at + 1}"]):
                    assert row is None or row.vector.tobytes() == base[int(row.id[1:])].tobytes()
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            group.start_soon(change)
            group.start_soon(look)
            group.start_soon(look)
        assert await session.count() == 6000 - 300


def test_threads_search_one_session_while_another_changes_it() -> None:
    base = rows(4000, 16)
    failures: list[BaseException] = []
    with sync.VectorDBSession.create(**GOOD, threads=1) as session:
        session.add_batch([f"r{i}" for i in range(2000)], base[:2000], [{"n": i} for i in range(2000)])
        stop = threading.Event()

        def look(seed: int) -> None:
            at = seed
            try:
                while not stop.is_set():
                    at = (at * 31 + 7) % 2000
                    hit = session.search(base[at], 1, threshold=None)[0]
                    assert hit.metadata == {"n": int(hit.id[1:])}
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=look, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for first in range(2000, 4000, 250):
            chosen = range(first, first + 250)
            session.add_batch([f"r{i}" for i in chosen], base[first : first + 250], [{"n": i} for i in chosen])
            session.delete_vector(f"r{first - 2000}")
            session.vacuum()
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures


# ---- the twin without await

VERBS = {
    "add_batch", "add_table", "add_texts", "add_vectors", "clear", "count", "create", "delete", "delete_by_metadata",
    "delete_vector", "destroy", "facets", "fields", "from_parts", "get", "get_historical_index", "get_recent_index",
    "get_stats", "get_timestamps", "history", "is_newest", "list_indexes", "load_user_vectors", "open_share",
    "optimize", "prune_history", "recall", "report", "save_to_s5", "scan", "scan_page", "search", "search_batch",
    "search_stream", "set_schema", "set_text_fields", "share", "to_arrow", "to_pandas", "update_by_metadata",
    "update_metadata", "update_vector", "vacuum", "verify", "warm",
}  # fmt: skip


def _verbs(cls: type) -> dict[str, inspect.Signature]:
    found = {}
    for name, member in inspect.getmembers(cls, callable):
        if not name.startswith("_"):
            found[name] = inspect.signature(member)
    return found


def test_the_twins_have_the_same_verbs_and_signatures() -> None:
    awaited, direct = _verbs(VectorDBSession), _verbs(sync.VectorDBSession)
    assert awaited.keys() == direct.keys() == VERBS
    for name, signature in awaited.items():
        assert signature.parameters == direct[name].parameters, name


def test_the_twin_does_the_whole_job(tmp_path: Any) -> None:
    fields = {**GOOD, "s5_portal": tmp_path.as_uri()}
    base = rows(1200, 8)
    with sync.VectorDBSession.create(**fields) as session:
        session.load_user_vectors(missing_ok=True)
        session.add_vectors([{"id": f"r{i}", "vector": base[i], "metadata": {"n": i}} for i in range(1200)])
        session.update_metadata("r1", {"m": 1}, merge=True)
        session.delete_vector("r2")
        assert session.vacuum().total_removed == 1
        cid = session.save_to_s5()
        assert "VectorDBSession" in repr(session)
    with sync.VectorDBSession.create(**fields) as session:
        session.load_user_vectors()
        assert session.count() == 1199
        assert len(list(session.scan())) == 1199
        assert session.get(["r1"])[0].metadata == {"n": 1, "m": 1}  # type: ignore[union-attr]
        assert [hit.id for hit in session.search(base[5], 1)] == ["r5"]
        assert [[hit.id for hit in hits] for hits in session.search_batch(base[5:7], 1)] == [["r5"], ["r6"]]
        assert [version.cid for version in session.history()] == [cid]
        assert session.list_indexes() == ["default"]
        assert session.verify(cid).rows == 1199
        assert session.get_stats().last_cid == cid
    session.destroy()
    with pytest.raises(SessionError):
        session.search(base[5], 1)


def test_a_twin_that_is_never_destroyed_lets_the_program_end() -> None:
    import subprocess
    import sys

    code = (
        "from fabstir_vectordb.sync import VectorDBSession as S;"
        f"s = S.create(s5_portal='memory:', user_seed_phrase={PHRASE!r}, session_id='x');"
        "s.add_batch(['a'], [[1, 2]]); print(s.count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1\n"


# ---- the package


def test_what_the_package_says_of_itself() -> None:
    assert get_version() == "1.0.0"
    info = get_platform_info()
    assert info["kernels"] in ("scalar", "avx2", "avx512", "neon")
    assert set(info) == {"platform", "arch", "python", "kernels"}


def test_every_exported_name_exists_and_is_sorted() -> None:
    names = fabstir_vectordb.__all__
    assert all(hasattr(fabstir_vectordb, name) for name in names)
    assert names == sorted(names, key=lambda name: (not name[1:].isupper(), name[0].islower(), name))


def test_every_error_has_a_code_a_builtin_and_survives_a_pickle() -> None:
    codes = set()
    for name in fabstir_vectordb.errors.__all__:
        cls = getattr(fabstir_vectordb.errors, name)
        error = cls("what", details={"a": 1}, retryable=True)
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), copy.message, copy.details, copy.retryable) == (cls, "what", {"a": 1}, True)
        assert str(error) == f"[{error.code}] what"
        if cls is not VectorDBError:
            codes.add(error.code)
            assert len(cls.__bases__) == 2
    assert len(codes) == 14


def test_import_loads_nothing_that_it_does_not_need() -> None:
    import subprocess
    import sys

    # Optional extras, and what loads for longer than the package itself.
    unwanted = ["click", "tqdm", "platformdirs", "httpx", "trio", "hypothesis", "pytest", "ziglang", "sqlite3"]
    unwanted += ["fabstir_vectordb.cli", "fabstir_vectordb.demo", "fabstir_vectordb.sync", "multiprocessing"]
    code = (
        "import sys, threading, numpy; before = set(sys.modules); import fabstir_vectordb;"
        f"loaded = sys.modules.keys() - before; assert not loaded & set({unwanted!r}), loaded & set({unwanted!r});"
        "assert threading.active_count() == 1"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
