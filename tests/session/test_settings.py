"""What `create` takes and refuses: names, secrets, paths, clocks, stored settings, and what it leaves behind."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import gc
import inspect
import logging
import os
import pickle
import subprocess
import sys
import traceback
import typing
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import numpy as np
import pytest
from saving import PHRASE, rows, session_on

from fabstir_vectordb import (
    ConflictError,
    IntegrityError,
    InvalidConfigError,
    InvalidInputError,
    LoadOptions,
    Maintainer,
    NotFoundError,
    SearchOptions,
    SeedPhrase,
    SessionError,
    VectorDBConfig,
    VectorDBError,
    VectorDBSession,
    VectorInput,
    forget_memory_store,
    sync,
)
from fabstir_vectordb.config import ConfigFields
from fabstir_vectordb.cpus import usable_cpus
from fabstir_vectordb.params import LoadFields, SearchFields
from fabstir_vectordb.s5.phrase import parse_phrase, secret_to_entropy

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]
GOOD: dict[str, Any] = {"s5_portal": "memory:", "user_seed_phrase": PHRASE, "session_id": "s"}


# ---- names


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("s5Portal", "s5_portal"),
        ("userSeedPhrase", "user_seed_phrase"),
        ("sessionId", "session_id"),
        ("memoryBudgetMb", "memory_budget_mb"),
        ("seed_phrase", "user_seed_phrase"),
        ("default_treshold", "default_threshold"),
        ("m", "M"),
    ],
)
@pytest.mark.parametrize("others", [{}, GOOD])
async def test_an_unknown_setting_is_named_first_with_the_one_that_was_meant(
    name: str, meant: str, others: dict[str, Any]
) -> None:
    message = f"{name} is not a setting: did you mean {meant}?"
    for create in (VectorDBSession.create, sync.VectorDBSession.create):
        for arguments, settings in [(({**others, name: 1},), {}), ((), {**others, name: 1}), ((others,), {name: 1})]:
            with pytest.raises(InvalidConfigError) as caught:
                await typing.cast(Any, create(*arguments, **settings))  # type: ignore[arg-type]
            assert caught.value.message == message
    with pytest.raises(InvalidConfigError, match="5 is not a setting"):
        await VectorDBSession.create({**others, 5: 1})  # type: ignore[dict-item]


async def test_an_unknown_option_of_a_call_is_named_with_the_one_that_was_meant() -> None:
    async with await session_on("memory:") as session:
        with pytest.raises(InvalidInputError, match=r"include_vector is not one of .* did you mean include_vectors"):
            await session.search([1.0], include_vector=True)  # type: ignore[call-arg]
        with pytest.raises(InvalidInputError, match=r"missingOk is not one of .* did you mean missing_ok"):
            await session.load_user_vectors(missingOk=True)  # type: ignore[call-arg]


async def test_texts_that_handlers_look_for() -> None:
    with pytest.raises(InvalidConfigError, match="Missing required field: session_id"):
        await VectorDBSession.create({"s5_portal": "memory:"})
    async with await session_on("memory:") as session:
        await session.add_batch(["a"], [[1, 2]])
        with pytest.raises(ConflictError, match="already exists"):
            await session.add_batch(["a"], [[1, 2]])
        with pytest.raises(NotFoundError, match="not found"):
            await session.delete_vector("b")
        with pytest.raises(NotFoundError, match="not found"):
            await session.update_metadata("b", 1)
        with pytest.raises(NotFoundError, match="not found"):
            await session.load_user_vectors(discard_unsaved=True)
        with pytest.raises(NotFoundError, match="not found"):
            await session.verify()


@pytest.mark.parametrize(
    ("keywords", "options"),
    [(ConfigFields, VectorDBConfig), (SearchFields, SearchOptions), (LoadFields, LoadOptions)],
)
def test_keywords_are_the_fields_of_the_options(keywords: Any, options: Any) -> None:
    space = {**vars(sys.modules[options.__module__])}
    of_keywords = typing.get_type_hints(keywords, space)
    names = {field.name for field in dataclasses.fields(options)}
    of_options = {name: hint for name, hint in typing.get_type_hints(options, space).items() if name in names}
    assert of_keywords == of_options
    assert not keywords.__required_keys__


@pytest.mark.parametrize("twin", [VectorDBSession, sync.VectorDBSession])
def test_keyword_options_are_typed(twin: type) -> None:
    expected = {
        "create": ConfigFields, "from_parts": ConfigFields, "search": SearchFields, "search_batch": SearchFields,
        "load_user_vectors": LoadFields,
    }  # fmt: skip
    for verb, keywords in expected.items():
        parameters = inspect.signature(getattr(twin, verb)).parameters.values()
        (any_keywords,) = [each for each in parameters if each.kind is each.VAR_KEYWORD]
        assert any_keywords.annotation == f"Unpack[{keywords.__name__}]"


async def test_k_is_ten_where_none_is_given() -> None:
    base = rows(50, 4)
    async with await session_on("memory:", default_threshold=None) as session:
        await session.add_batch([str(row) for row in range(50)], base)
        assert len(await session.search(base[0])) == 10
        assert [len(hits) for hits in await session.search_batch(base[:2])] == [10, 10]
    with sync.VectorDBSession.create(GOOD, default_threshold=None) as session:
        session.add_batch([str(row) for row in range(50)], base)
        assert len(session.search(base[0])) == len(session.search_batch(base[:1])[0]) == 10


# ---- secrets


WORDS = PHRASE.split()
SECRETS: list[dict[str, Any]] = [
    {"user_seed_phrase": " ".join([*WORDS[:-1], "zzzsecret"])},
    {"user_seed_phrase": " ".join([*WORDS[:4], "zzzsecret", *WORDS[5:]])},
    {"user_seed_phrase": "zzzsecret with a budget that is none", "memory_budget_mb": 0},
    {"user_seed_phrase": "zzzsecret with a name that is none", "nonsense": 1},
    {"user_seed_phrase": "zzzsecret for nowhere", "s5_portal": "ftp://nowhere"},
    {"user_seed_phrase": b"zzzsecret in bytes"},
    {"user_seed_phrase": ["zzzsecret", "in", "a", "list"]},
    {"seedPhrase": "zzzsecret under another name"},
    {"portal_token": "zzzsecret token", "memory_budget_mb": 0},
    {"portal_token": "zzzsecret töken"},
]


def _frames_of_the_package(error: BaseException) -> Iterator[dict[str, Any]]:
    package = str(Path(sys.modules["fabstir_vectordb"].__file__ or "").parent)
    seen: list[BaseException | None] = [error]
    while seen:
        one = seen.pop()
        if one is None:
            continue
        seen += [one.__cause__, one.__context__]
        for frame, _ in traceback.walk_tb(one.__traceback__):
            # The class's generated methods have no file.
            if frame.f_code.co_filename.startswith(package) or frame.f_code.co_filename == "<string>":
                yield dict(frame.f_locals)


def _check_hides(error: BaseException) -> None:
    for names in _frames_of_the_package(error):
        assert "zzz" not in repr(names), names
    assert "zzz" not in "".join(traceback.format_exception(error)).replace('"zzz', "").split("Error:", 1)[-1]


@pytest.mark.parametrize("settings", SECRETS)
@pytest.mark.parametrize("as_mapping", [False, True])
async def test_a_refused_secret_is_in_no_frame_of_the_traceback(settings: dict[str, Any], as_mapping: bool) -> None:
    given = {**GOOD, **settings}
    makers: list[Callable[..., Any]] = [
        VectorDBSession.create,
        VectorDBSession.from_parts,
        sync.VectorDBSession.create,
        sync.VectorDBSession.from_parts,
    ]
    for make in makers:
        with pytest.raises(InvalidConfigError) as caught:
            await (make(given) if as_mapping else make(**given))
        _check_hides(caught.value)
    with pytest.raises(InvalidConfigError) as caught:
        await VectorDBSession.create(VectorDBConfig(**given))
    _check_hides(caught.value)


async def test_a_phrase_given_in_place_of_settings_is_in_no_frame() -> None:
    for make in (VectorDBSession.create, sync.VectorDBSession.create):
        with pytest.raises(InvalidConfigError, match="a VectorDBConfig or a mapping, got str") as caught:
            await typing.cast(Any, make("zzzsecret as it is"))  # type: ignore[arg-type]
        _check_hides(caught.value)


def test_functions_that_read_a_phrase_leave_none_in_their_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    import nacl.pwhash.argon2id

    for function, text in [
        (parse_phrase, "zzzsecret"),
        (parse_phrase, " ".join([*WORDS[:-1], "zzzsecret"])),
        (secret_to_entropy, " ".join([*WORDS[:-1], "zzzsecret"])),
        (secret_to_entropy, "zzzsecret \ud800"),
    ]:
        with pytest.raises(InvalidConfigError) as caught:
            function(text)
        _check_hides(caught.value)

    def no_memory(*_: Any, **__: Any) -> bytes:
        raise MemoryError

    monkeypatch.setattr(nacl.pwhash.argon2id, "kdf", no_memory)
    with pytest.raises(VectorDBError, match="64 MiB") as other:
        secret_to_entropy("zzzsecret")
    _check_hides(other.value)
    with sync.VectorDBSession.create({**GOOD, "user_seed_phrase": "zzzsecret"}) as session:
        with pytest.raises(VectorDBError, match="64 MiB") as other:
            session.history()
        _check_hides(other.value)


def test_configurations_are_copied_as_they_are_and_not_pickled() -> None:
    config = VectorDBConfig(**GOOD, portal_token="a token", M=8)
    for same in (copy.copy(config), copy.deepcopy(config), copy.deepcopy(SimpleNamespace(config=config)).config):
        assert same is config
    other = dataclasses.replace(config, index_name="other")
    assert (other.M, other.portal_token, other.index_name) == (8, "a token", "other")
    assert other.given >= {"M", "index_name"}
    assert "metric" not in other.given
    for secret in (config, config.user_seed_phrase, SeedPhrase("x")):
        with pytest.raises(TypeError, match="not written to pickles"):
            pickle.dumps(secret)
    assert "token'" not in repr(vars(config)).replace("portal_token'", "")


# ---- sessions are not copied; both spellings of create


async def test_a_session_cannot_be_copied_or_pickled() -> None:
    async with VectorDBSession.create(GOOD) as awaited:
        with sync.VectorDBSession.create(GOOD) as direct:
            for session in (awaited, direct, Maintainer(awaited)):
                for take in (copy.copy, copy.deepcopy, pickle.dumps):
                    if session is awaited or session is direct or take is not copy.copy:
                        with pytest.raises(SessionError, match="cannot be copied or pickled"):
                            take(session)


async def test_create_works_in_async_with_whether_awaited_or_not() -> None:
    base = rows(100, 4)
    past = [VectorInput(f"r{row}", base[row]) for row in range(100)]
    async with VectorDBSession.create(GOOD) as session:
        assert await session.count() == 0
    with pytest.raises(SessionError):
        await session.count()
    async with await VectorDBSession.create(GOOD) as session:
        assert await session.count() == 0
    async with VectorDBSession.from_parts(GOOD, historical=past) as session:
        assert await session.count() == 100
    async with await VectorDBSession.from_parts(GOOD, recent=past) as session:
        assert await session.count() == 100
    with pytest.raises(InvalidConfigError):
        async with VectorDBSession.create():
            pass
    with pytest.raises(RuntimeError, match="inside"):
        async with VectorDBSession.create(GOOD) as session:
            raise RuntimeError("inside")
    with pytest.raises(SessionError):
        await session.count()


def test_create_is_a_coroutine_for_those_who_want_one() -> None:
    async def by_task() -> VectorDBSession:
        return await asyncio.create_task(VectorDBSession.create(GOOD))

    for session in (asyncio.run(VectorDBSession.create(GOOD)), asyncio.run(by_task())):
        asyncio.run(session.destroy())
    session = anyio.run(lambda: VectorDBSession.create(GOOD), backend="trio")
    anyio.run(session.destroy, backend="trio")
    VectorDBSession.create(GOOD).close()


def test_a_creation_that_nobody_awaits_is_complained_about() -> None:
    creation = VectorDBSession.create(GOOD)
    with pytest.warns(RuntimeWarning, match="never awaited"):
        del creation
        gc.collect()


def test_a_maintainer_needs_a_session() -> None:
    with sync.VectorDBSession.create(GOOD) as session:
        for wrong in (session, None, "s"):
            with pytest.raises(InvalidInputError, match="a Maintainer needs a VectorDBSession"):
                Maintainer(wrong)  # type: ignore[arg-type]


# ---- stores


async def test_a_path_is_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with await session_on("memory:", s5_portal=Path("här e")) as session:
        await session.add_batch(["a"], [[1, 2]])
        await session.save_to_s5()
    assert (tmp_path / "här e" / "blobs").is_dir()
    async with await session_on((tmp_path / "här e").as_uri()) as session:
        await session.load_user_vectors()
        assert await session.count() == 1
    for wrong in (b"bytes", 5, SimpleNamespace()):
        with pytest.raises(InvalidConfigError, match="s5_portal must be a string, or a path"):
            await session_on("memory:", s5_portal=wrong)


async def test_memory_without_a_name_is_the_sessions_own() -> None:
    for portal in ("memory:", "memory://"):
        async with await session_on(portal) as one, await session_on(portal) as other:
            await one.add_batch(["a"], [[1, 2]])
            cid = await one.save_to_s5()
            await one.load_user_vectors()
            assert await one.count() == 1
            with pytest.raises(NotFoundError):
                await other.load_user_vectors()
            with pytest.raises(NotFoundError):
                await other.load_user_vectors(cid)
            await other.add_batch(["b"], [[1, 2]])
            await other.save_to_s5()  # no conflict with a session that has nothing to do with it
            store: Any = one._workspace.store
        assert not store._space.blobs
        assert not store._space.pointers


async def test_named_memory_is_shared_until_it_is_forgotten() -> None:
    name = f"a-name-{uuid.uuid4()}"
    async with await session_on(f"memory:{name}") as one:
        await one.add_batch(["a"], [[1, 2]])
        await one.save_to_s5()
    async with await session_on(f"memory://{name}") as other:
        await other.load_user_vectors(lazy_load=False)
        assert forget_memory_store(name)
        assert not forget_memory_store(name)
        assert await other.count() == 1
        with pytest.raises((NotFoundError, IntegrityError)):
            await other.verify()
    async with await session_on(f"memory:{name}") as later:
        await later.load_user_vectors(missing_ok=True)
        assert await later.count() == 0
    assert forget_memory_store(name)
    with pytest.raises(InvalidInputError, match="must be a string"):
        forget_memory_store(None)  # type: ignore[arg-type]


# ---- settings that a version brings along


@pytest.mark.parametrize(
    ("name", "stored", "asked"),
    [("metric", "cosine", "l2"), ("M", 16, 8), ("ef_construction", 200, 100), ("chunk_size", 64, 128)],
)
@pytest.mark.parametrize("lazy", [False, True])
async def test_a_setting_that_contradicts_the_stored_index_is_an_error_that_names_both(
    name: str, stored: Any, asked: Any, lazy: bool
) -> None:
    uri = f"memory:{uuid.uuid4()}"
    async with await session_on(uri, **{name: stored}) as session:
        await session.add_batch(["a", "b"], np.eye(2))
        cid = await session.save_to_s5()
    async with await session_on(uri, **{name: asked}) as session:
        await session.add_batch(["mine"], np.eye(3)[:1])
        for version in (None, cid):
            with pytest.raises(InvalidConfigError) as caught:
                await session.load_user_vectors(version, lazy_load=lazy, discard_unsaved=True)
            assert f"{name}={asked!r}" in caught.value.message
            assert f"{name}={stored!r}" in caught.value.message
        assert [row.id async for row in session.scan()] == ["mine"]
    for settings in ({}, {name: stored}):
        async with await session_on(uri, **settings) as session:
            await session.load_user_vectors(lazy_load=lazy)
            assert await session.count() == 2
    config = VectorDBConfig(s5_portal=uri, user_seed_phrase=PHRASE, session_id="s", **{name: asked})
    async with VectorDBSession.create(config, memory_budget_mb=100) as session:
        with pytest.raises(InvalidConfigError, match=f"{name}="):
            await session.load_user_vectors()
    default = VectorDBConfig(s5_portal=uri, user_seed_phrase=PHRASE, session_id="s")
    async with VectorDBSession.create(dataclasses.replace(default, memory_budget_mb=100)) as session:
        await session.load_user_vectors()


async def test_a_default_never_complains_of_what_a_version_has() -> None:
    uri = f"memory:{uuid.uuid4()}"
    async with await session_on(uri, metric="l2", M=8, ef_construction=50, chunk_size=64) as session:
        await session.add_batch(["a", "b"], np.eye(2))
        await session.save_to_s5()
    async with await session_on(uri) as session:
        await session.load_user_vectors()
        assert (await session.search([1.0, 0.0], 1))[0].distance == 0.0
        await session.delete_vector("b")
        assert await session.save_to_s5()


# ---- clocks, threads, logs


@pytest.mark.parametrize(
    "reading", [1e30, -1e30, float("nan"), float("inf"), 2.6e11, 1.7e12, "noon", None, 10**400, b"1", object()]
)
async def test_a_clock_that_tells_no_time_is_named(reading: Any) -> None:
    async with await session_on("memory:", clock=lambda: reading) as session:
        for call in (
            session.add_batch(["a"], [[1, 2]]),
            session.add_batch(["a"], [[1, 2]], expires_at=[5]),
            session.optimize(),
        ):
            with pytest.raises(InvalidConfigError, match="clock must return seconds since 1970") as caught:
                await call
            assert caught.value.details == {"field": "clock"}
        assert await session.count() == 0


async def test_a_clock_that_raises_is_named_and_its_error_kept() -> None:
    def broken() -> float:
        raise OSError("no clock here")

    async with await session_on("memory:", clock=broken) as session:
        with pytest.raises(InvalidConfigError, match="raised OSError: no clock here") as caught:
            await session.add_batch(["a"], [[1, 2]])
        assert isinstance(caught.value.__cause__, OSError)


async def test_clocks_may_return_any_kind_of_number() -> None:
    for reading in (1_700_000_000, np.float64(1.7e9), np.int64(1_700_000_000), np.float32(1.7e9), -62_135_596_800):
        async with await session_on("memory:", clock=lambda reading=reading: reading) as session:
            await session.add_batch(["a"], [[1, 2]])
            (row,) = await session.get(["a"])
            assert row
            assert row.timestamp == float(reading)


def _cgroup(root: Path, lines: str, files: dict[str, str]) -> Path:
    for name, text in {
        "proc/self/cgroup": lines,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("lines", "files", "cpus"),
    [
        ("0::/\n", {}, 64),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/host/path\n", {"cpu.max": "50000 100000\n"}, 1),  # a container that sees its host's path
        ("4:cpu,cpuacct:/x\n1:memory:/x\n",
         {"cpu,cpuacct/x/cpu.cfs_quota_us": "400000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 64),
        ("nonsense\n", {"cpu.max": "1 2 3"}, 64),
        ("0::/\n", {"cpu.max": "100000 0"}, 64),
    ],
)  # fmt: skip
def test_threads_are_as_many_as_cpus_may_be_used(
    lines: str, files: dict[str, str], cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _cgroup(tmp_path, lines, files)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert usable_cpus(root) == cpus
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5}, raising=False)
    assert usable_cpus(root) == min(cpus, 2)


def test_a_config_uses_what_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert VectorDBConfig(**GOOD).native_threads == 1
    assert VectorDBConfig(**GOOD, threads=5).native_threads == 5


@pytest.fixture
def package_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("fabstir_vectordb")
    before = logger.level
    yield logger
    logger.setLevel(before)


async def test_debug_is_undone_by_the_last_session_that_asked_for_it(package_logger: logging.Logger) -> None:
    package_logger.setLevel(logging.ERROR)
    async with await session_on("memory:", debug=True):
        assert package_logger.level == logging.DEBUG
        with sync.VectorDBSession.create(GOOD, debug=True) as other:
            async with await session_on("memory:"):
                pass
            assert package_logger.level == logging.DEBUG
            other.destroy()
        assert package_logger.level == logging.DEBUG
        with pytest.raises(InvalidConfigError):
            await session_on("ftp://x", debug=True)
    assert package_logger.level == logging.ERROR
    forgotten = await session_on("memory:", debug=True)
    assert package_logger.level == logging.DEBUG
    with pytest.warns(ResourceWarning, match="never destroyed"):
        del forgotten
        gc.collect()
    assert package_logger.level == logging.ERROR


async def test_a_level_that_the_program_sets_meanwhile_stays(package_logger: logging.Logger) -> None:
    async with await session_on("memory:", debug=True):
        package_logger.setLevel(logging.INFO)
    assert package_logger.level == logging.INFO


# ---- the default threshold


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "default threshold" in record.getMessage()]


NEAR_AND_FAR = np.array([[1, 0], [1, 0.1], [-1, 0], [0, -1], [-1, -1]], dtype=np.float32)


@pytest.mark.parametrize("verb", ["search", "search_batch", "search_stream", "mmr"])
async def test_the_default_threshold_says_once_what_it_dropped(verb: str, caplog: pytest.LogCaptureFixture) -> None:
    async def ask(session: VectorDBSession, **fields: Any) -> None:
        match verb:
            case "search":
                await session.search([1.0, 0.0], 5, **fields)
            case "search_batch":
                await session.search_batch([[1.0, 0.0]], 5, **fields)
            case "mmr":
                await session.search([1.0, 0.0], 5, mmr=0.5, **fields)
            case _:
                assert [hit async for hit in session.search_stream([1.0, 0.0], **fields)]

    async def filled(**settings: Any) -> VectorDBSession:
        session = await session_on("memory:", **settings)
        await session.add_batch([str(row) for row in range(5)], NEAR_AND_FAR)
        return session

    async with await filled() as session:
        await ask(session, threshold=0.9)
        await ask(session, threshold=None)
        assert not _warnings(caplog)
        for _ in range(3):
            await ask(session)
        (warning,) = _warnings(caplog)
        assert "dropped 3 of" in warning
        assert "threshold=None" in warning
        assert "default_threshold=None" in warning
    caplog.clear()
    for settings in ({"default_threshold": 0.7}, {"default_threshold": None}, {"metric": "l2"}):
        async with await filled(**settings) as session:
            await ask(session)
    assert not _warnings(caplog)


def test_the_twin_says_it_too_and_nothing_where_nothing_was_dropped(caplog: pytest.LogCaptureFixture) -> None:
    with sync.VectorDBSession.create(GOOD) as session:
        session.add_batch(["a", "b"], NEAR_AND_FAR[:2])
        session.search([1.0, 0.0])
        list(session.search_stream([1.0, 0.0]))
        assert not _warnings(caplog)
        session.add_batch(["c"], NEAR_AND_FAR[2:3])
        assert session.search([1.0, 0.0]).below_threshold == 1
        list(session.search_stream([1.0, 0.0]))
    assert len(_warnings(caplog)) == 1


def test_a_program_without_logging_sees_the_warning_on_stderr() -> None:
    code = (
        "from fabstir_vectordb import sync\n"
        f"with sync.VectorDBSession.create({GOOD!r}, clock=None) as s:\n"
        "    s.add_batch(['a', 'b'], [[1, 0], [-1, 0]])\n"
        "    s.save_to_s5()\n"
        "    s.search([1, 0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "default threshold of metric 'cosine' dropped 1" in done.stderr
