"""The engine of Ray's actors, datasets of Ray, and the page docs/ray.md."""

from __future__ import annotations

import os
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import OF_CLUSTERS, ray_cluster, ray_home
from gathering import PHRASE, ROWS, batch, bits, seen, settings, vectors
from hypothesis import settings as examples
from hypothesis.stateful import run_state_machine_as_test
from test_against_session import SHORT, CollectionAgainstSession

from fabstir_vectordb import (
    ConflictError,
    IntegrityError,
    InvalidConfigError,
    InvalidInputError,
    NotFoundError,
    SessionError,
    VectorDBError,
    VectorInput,
)
from fabstir_vectordb.collections import Collection, RayEngine, build, sync
from fabstir_vectordb.collections.fanout import Job, run_all
from fabstir_vectordb.s5.cid import multibase_encode, parse_cid

pytestmark = OF_CLUSTERS
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def engine(ray: Any) -> Iterator[RayEngine]:
    chosen = RayEngine(2)
    yield chosen
    chosen.close()


def pid_and(value: Any) -> tuple[int, Any]:
    return os.getpid(), value


def damaged(part: str) -> None:
    raise IntegrityError(f"part {part}: damaged", details={"part": part})


def broken() -> None:
    raise KeyError("of the task")


def lost() -> None:
    os._exit(1)


async def test_a_key_has_one_actor_and_results_are_those_of_the_tasks(engine: RayEngine) -> None:
    assert repr(engine) == "RayEngine(2)"
    array = np.arange(100_000, dtype=np.float32)
    jobs = [Job(n, f"key-{n % 3}", pid_and, lambda n=n: (array + n,)) for n in range(12)]  # type: ignore[misc]
    answers = await run_all(engine, jobs)
    pids = {n % 3: {pid for place, (pid, _) in enumerate(answers.results) if place % 3 == n % 3} for n in range(3)}
    assert all(len(one) == 1 for one in pids.values())
    assert len(set.union(*pids.values())) == 2
    assert os.getpid() not in set.union(*pids.values())
    assert all(np.array_equal(value, array + n) for n, (_, value) in enumerate(answers.results))


async def test_a_large_array_that_cannot_change_is_stored_once(
    engine: RayEngine, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    puts: list[Any] = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda value: puts.append(value) or put(value))
    for writable, stored in ((False, 1), (True, 0)):
        array = np.arange(100_000, dtype=np.float32)
        array.flags.writeable = writable
        puts.clear()
        answers = await run_all(engine, [Job(n, f"key-{n}", pid_and, lambda: (array,)) for n in range(4)])  # noqa: B023
        assert all(np.array_equal(value, array) for _, value in answers.results)
        assert len(puts) == stored
    puts.clear()
    for _ in range(2):  # another array each time, that may be where the one before was
        array = np.full(100_000, len(puts), dtype=np.float32)
        array.flags.writeable = False
        [(_, value)] = (await run_all(engine, [Job(0, "key-0", pid_and, lambda: (array,))])).results  # noqa: B023
        assert np.array_equal(value, array)
    assert len(puts) == 2


async def test_errors_keep_their_type_code_and_details(engine: RayEngine) -> None:
    with pytest.raises(IntegrityError, match=r"^\[INTEGRITY_ERROR\] shard 7: part ids\.0000: damaged$") as caught:
        await run_all(engine, [Job(7, "a", damaged, lambda: ("ids.0000",))])
    assert type(caught.value) is IntegrityError
    assert caught.value.details == {"shard": 7, "part": "ids.0000"}
    with pytest.raises(SessionError, match="shard 7: the engine failed: KeyError: 'of the task'") as failed:
        await run_all(engine, [Job(7, "a", broken, tuple)])
    assert failed.value.retryable
    # Ends its actor each time: Ray runs it again, but not for ever. The next task has a new process.
    with pytest.raises(SessionError, match="shard 7: the engine failed: Actor"):
        await run_all(engine, [Job(7, "a", lost, tuple)])
    assert (await run_all(engine, [Job(7, "a", pid_and, lambda: (1,))])).results[0][1] == 1


def test_a_collection_in_actors_is_as_one_session(engine: RayEngine) -> None:
    run_state_machine_as_test(lambda: CollectionAgainstSession(engine), settings=examples(SHORT, max_examples=20))


async def test_what_it_needs_is_said(ray: Any, engine: RayEngine) -> None:
    for fields in ({"concurrency": 0}, {"concurrency": True}, {"concurrency": 5_000}):
        with pytest.raises(InvalidConfigError, match="concurrency"):
            RayEngine(**fields)
    for options in (7, {"num_cpu": 1}):
        with pytest.raises(InvalidConfigError, match="ray_remote_args"):
            RayEngine(1, ray_remote_args=options)  # type: ignore[arg-type]
    assert repr(RayEngine()) == "RayEngine(2)"
    other = RayEngine(1)
    assert (await run_all(other, [Job(1, "a", pid_and, lambda: (1,))])).results[0][1] == 1
    other.close()
    other.close()
    with pytest.raises(SessionError, match="closed"):
        await run_all(other, [Job(1, "a", pid_and, lambda: (1,))])


async def test_an_actor_that_was_ended_for_good_is_replaced(ray: Any) -> None:
    other = RayEngine(1)
    job = [Job(1, "a", pid_and, lambda: (1,))]
    first = (await run_all(other, job)).results[0][0]
    ray.kill(other._actors[0])
    second = first
    for _ in range(200):  # ray.kill does not wait, and whether a call meets the lost actor is up to Ray
        with suppress(SessionError):
            second = (await run_all(other, job)).results[0][0]
        if second != first:
            break
    assert second != first
    other.close()


async def test_the_same_cids_and_the_same_answers_as_from_threads(engine: RayEngine, tmp_path: Path) -> None:
    rows = batch(3_000)
    cid = await build(settings(tmp_path / "threads"), [rows], shards=4)
    assert await build(settings(tmp_path / "ray"), [rows], shards=4, engine=engine) == cid
    where, answers = {"kind": "a"}, []
    for folder, chosen in (("threads", None), ("ray", engine)):
        async with await Collection.open(settings(tmp_path / folder), engine=chosen) as many:
            await many.warm()
            found = [
                [seen(hits) for hits in await many.search_batch(vectors(40, seed=9), 9, threshold=None, filter=where)],
                seen(await many.search(vectors(1)[0], 30, exact=True)),
                await many.count(where),
                await many.facets("tags"),
                [bits(row) async for row in many.scan(where)],
                [bits(row) for row in await many.get(["row-0003", "nothing"])],
                (await many.verify()).rows,
                await many.change([VectorInput("new", vectors(1)[0], {"n": -1}, 1.0)], ["row-0001"]),
                await many.rebalance(rows_max=900),
                await many.vacuum(),
            ]
            with pytest.raises(NotFoundError, match="row-0001"):
                await many.change(deletes=["row-0001"])
            share = await many.share()
        async with await Collection.open_share(share, settings(tmp_path / folder)["s5_portal"], engine=chosen) as many:
            answers.append([*found, seen(await many.search(vectors(1)[0], 9))])
    assert answers[0] == answers[1]


async def test_a_damaged_shard_is_named(engine: RayEngine, tmp_path: Path) -> None:
    await build(settings(tmp_path), [batch()], shards=3, engine=engine)
    async with await Collection.open(settings(tmp_path), engine=engine) as many:
        name = multibase_encode(parse_cid(many._snapshot.shards[1].share).hash)[1:]
        path = tmp_path / "blobs" / name[:2] / name
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        with pytest.raises(IntegrityError, match="shard 1") as caught:
            await many.count({"n": 1})
        assert caught.value.details["shard"] == 1
        found = await many.search(vectors(1)[0], 300, missing_ok=True, threshold=None)
        assert found.missing == (1,)


# ---- datasets


def table_of(rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": rows["ids"],
        "vector": rows["vectors"],
        "timestamp": (np.array(rows["timestamps"]) * 1_000_000).astype("datetime64[us]"),
        "n": [one["n"] for one in rows["metadata"]],
        "kind": [one["kind"] for one in rows["metadata"]],
    }


def as_table(rows: dict[str, Any]) -> dict[str, Any]:
    """The same rows without their lists of tags, as a batch."""
    return {**rows, "metadata": [{"n": one["n"], "kind": one["kind"]} for one in rows["metadata"]]}


def numbered(block: dict[str, Any]) -> dict[str, Any]:
    """The rows of `batch` at some places: their vectors are a column of tensors."""
    return {name: np.asarray(values)[block["item"]] for name, values in table_of(batch()).items()}


def dataset(ray: Any) -> Any:
    return ray.data.from_items(list(range(ROWS)), override_num_blocks=3).map_batches(numbered)


def test_a_dataset_becomes_a_collection_and_a_dataset_again(ray: Any, engine: RayEngine, tmp_path: Path) -> None:
    from fabstir_vectordb.integrations.ray_data import CollectionDatasink, CollectionDatasource

    cid = sync.build(settings(tmp_path / "threads"), [as_table(batch())], shards=3)
    sink = CollectionDatasink(settings(tmp_path / "ray"), shards=3, engine=engine)
    dataset(ray).write_datasink(sink)
    assert sink.cid == cid
    with pytest.raises(ConflictError, match="already"):
        dataset(ray).write_datasink(CollectionDatasink(settings(tmp_path / "ray"), engine=engine))
    more = ray.data.from_items([{"id": "row-0001", "vector": [9.0] * 8, "n": -1, "kind": "z"}])
    change = CollectionDatasink(settings(tmp_path / "ray"), mode="change")
    more.write_datasink(change)
    assert change.cid not in (None, cid)
    uri = settings(tmp_path / "ray")["s5_portal"]
    with sync.Collection.open(settings(tmp_path / "ray")) as many:
        assert many.vacuum()
        share = many.share()
        expected = {row.id: (row.metadata, row.vector.tobytes(), row.timestamp) for row in many.scan()}
    source = CollectionDatasource(share, uri)
    assert repr(source) == "<CollectionDatasource of 3 shards>"
    found = {
        row["id"]: (
            {"n": row["n"], "kind": row["kind"]},
            np.asarray(row["vector"], np.float32).tobytes(),
            row["timestamp"].timestamp(),
        )
        for row in ray.data.read_datasource(source).take_all()
    }
    assert found == expected
    some = ray.data.read_datasource(CollectionDatasource(share, uri, filter={"kind": "a"}))
    assert some.count() == sum(metadata["kind"] == "a" for metadata, *_ in expected.values())
    assert ray.data.read_datasource(CollectionDatasource(share, uri, filter={"kind": "none"})).count() == 0


def test_a_sink_refuses_rows_and_settings_and_keeps_the_phrase(ray: Any, engine: RayEngine, tmp_path: Path) -> None:
    from fabstir_vectordb.integrations.ray_data import CollectionDatasink, CollectionDatasource

    sink = CollectionDatasink(settings(tmp_path), engine=engine)
    words = PHRASE.encode()
    assert words not in pickle.dumps(sink)
    assert PHRASE not in repr(sink)
    with pytest.raises(SessionError, match="copy"):
        pickle.loads(pickle.dumps(sink)).on_write_start()
    for error, rows in (
        (ConflictError, [{"id": "a", "vector": [1.0, 0.0]}] * 2),
        (InvalidInputError, [{"id": "a", "vector": [1.0, float("nan")]}]),
        (InvalidInputError, [{"id": "a", "vector": [1.0, 0.0]}, {"id": "b", "vector": [1.0, 0.0, 0.0]}]),
    ):
        with pytest.raises((VectorDBError, ray.exceptions.RayTaskError)) as caught:
            ray.data.from_items(rows, override_num_blocks=len(rows)).write_datasink(sink)
        assert isinstance(caught.value, error), repr(caught.value)
    with pytest.raises(InvalidConfigError, match="mode"):
        CollectionDatasink(settings(tmp_path), mode="append")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="shards"):
        CollectionDatasink(settings(tmp_path), shards=0)
    with pytest.raises(InvalidConfigError, match="memory:name"):
        CollectionDatasink(settings("memory:"))
    with pytest.raises(InvalidInputError):
        CollectionDatasource("nothing", settings(tmp_path)["s5_portal"])
    with pytest.raises(NotFoundError):
        sync.Collection.open(settings(tmp_path))


def test_the_page_runs(tmp_path: Path) -> None:
    """The programs of docs/ray.md, one after the other, and a request to its deployment."""
    pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    text = (ROOT / "docs" / "ray.md").read_text(encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)).replace("/tmp/fabstir-ray", str(tmp_path))
    for line, bounded in (
        ("ray.init()", "from clusters import begin\nbegin(ray)"),
        # Serve gives its proxy 60 s to start: too few on a busy machine, at times.
        (
            "from ray import serve",
            "from ray.serve._private import api as serve_api\nfrom ray import serve\n"
            "serve_api.HTTP_PROXY_TIMEOUT = 600\n"
            f"serve.start(http_options={{'port': {port}}})",
        ),
    ):
        assert code.count(f"{line}\n") == 1
        code = code.replace(line, bounded)
    code += (
        f"\nimport httpx\nasked = {{'vector': vectors[5].tolist(), 'k': 2}}\n"
        f"print(httpx.post('http://127.0.0.1:{port}/', json=asked).json()['hits'][0]['id'])\n"
        "serve.shutdown()\nray.shutdown()\n"
    )
    script = tmp_path / "page.py"
    script.write_text(code, encoding="utf-8")
    with ray_home() as home:
        environment = {
            **os.environ,
            "HOME": str(home),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "collections")]),
        }
        done = subprocess.run(
            [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=900, check=False
        )
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    printed = [line for line in done.stdout.splitlines() if "(raylet)" not in line]  # Ray tells of its own ends there
    assert printed == [line for one in shown for line in one.splitlines()] + ["article-5"]
