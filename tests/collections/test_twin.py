"""The twin without await, the page docs/collections.md, and the commands."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from gathering import PHRASE, ROWS, batch, settings, vectors

from fabstir_vectordb import SessionError, forget_memory_store
from fabstir_vectordb.collections import Collection, sync

ROOT = Path(__file__).resolve().parents[2]


def verbs(cls: type) -> dict[str, inspect.Signature]:
    return {name: inspect.signature(one) for name, one in inspect.getmembers(cls, callable) if not name.startswith("_")}


def test_it_has_the_same_verbs_with_the_same_arguments() -> None:
    awaited, direct = verbs(Collection), verbs(sync.Collection)
    assert awaited.keys() == direct.keys()
    for name, signature in awaited.items():
        assert signature.parameters == direct[name].parameters, name


def test_it_does_the_whole_job() -> None:
    uri = f"memory:{uuid.uuid4()}"
    cid = sync.build(settings(uri), [batch()], shards=2, route="range")
    with sync.Collection.open(settings(uri)) as many:
        assert many.stats().cid == cid
        assert many.count() == ROWS == len(list(many.scan()))
        assert many.search_batch(vectors(2), 3)[0] == many.search(vectors(2)[0], 3)
        assert next(many.search_stream(vectors(2)[0])) == many.search(vectors(2)[0], 1)[0]
        assert many.scan_page(limit=1).has_more and many.is_newest()
        assert len(many.get_timestamps()) == ROWS
        assert [field.path for field in many.fields()] == ["kind", "n", "tags"]
        assert many.change(deletes=["row-0001"]) != cid
        many.warm()
        assert many.get(["row-0001"]) == [None]
        assert many.vacuum() == many.rebalance()
        assert many.verify().rows == ROWS - 1
        share = many.share()
        assert many.refresh() is False
        assert len(many.history()) == 3
        assert len(many.prune_history(1).versions) == 2
    many.close()
    with pytest.raises(SessionError, match="closed"):
        many.count()
    with sync.Collection.open_share(share, uri) as reader:
        assert reader.facets("kind", limit=1)[0].count == 40
    forget_memory_store(uri.removeprefix("memory:"))


@pytest.mark.long
def test_the_commands_do_the_same(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = batch()
    table = arrow.table({"id": rows["ids"], "vector": rows["vectors"].tolist(), "kind": ["a"] * ROWS})
    parquet.write_table(table, tmp_path / "rows.parquet")
    environment = {**os.environ, "FABSTIR_STORE": (tmp_path / "store").as_uri(), "FABSTIR_SEED_PHRASE": PHRASE}

    def run(*command: str, code: int = 0) -> list[str]:
        program = [sys.executable, "-m", "fabstir_vectordb", "--index-name", "big", "collection", *command]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout.splitlines() or done.stderr.splitlines()

    cid = run("build", str(tmp_path / "rows.parquet"), "--shards", "2", "--processes", "1")[0]
    assert cid in run("stats")[0]
    hits = [json.loads(line) for line in run("search", "--like", "row-0007", "-k", "3", "--json")]
    assert (hits[0]["id"], hits[0]["metadata"]) == ("row-0007", {"kind": "a"})
    assert run("search", "--like", "row-0007", "-k", "1", "--shards", "1")[0].startswith("1.0000  row-0007")
    assert run("verify")[0].startswith("2 shards")
    assert json.loads(run("stats", "--json")[0])["rows"] == ROWS
    planned = run("plan", "--rows", "1e6", "--qps", "10")
    assert planned[1].split()[:2] == ["modelled:", "1000000"]
    assert {line.split()[0] for line in planned[2:]} >= {"bytes", "objects", "memory_bytes", "workers", "cold_requests"}
    assert json.loads(run("plan", "--rows", "1e6", "--json")[0])["measured"]["shards"] == 2
    assert "CONFLICT" in run("build", str(tmp_path / "rows.parquet"), code=1)[0]
    assert "NOT_FOUND" in run("search", "--like", "nothing", code=1)[0]


def test_the_command_searches_by_words_and_filters(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    testing, cli = pytest.importorskip("click.testing"), importlib.import_module("fabstir_vectordb.cli").cli
    rows = batch()
    texts = [f"river {'stone' if place % 40 == 3 else 'field'}" for place in range(ROWS)]
    columns = {"id": rows["ids"], "vector": rows["vectors"].tolist(), "text": texts, "n": list(range(ROWS))}
    parquet.write_table(arrow.table(columns), tmp_path / "rows.parquet")
    environment = {"FABSTIR_STORE": (tmp_path / "store").as_uri(), "FABSTIR_SEED_PHRASE": PHRASE}

    def run(*command: str, code: int = 0) -> str:
        done = testing.CliRunner().invoke(cli, ["--index-name", "big", "collection", *command], env=environment)
        assert done.exit_code == code, done.output
        return str(done.output)

    run("build", str(tmp_path / "rows.parquet"), "--shards", "2", "--text-field", "text")
    found = [json.loads(line) for line in run("search", "--text", "+stone", "--json", "--highlight").splitlines()]
    assert {hit["id"] for hit in found} == {rows["ids"][place] for place in range(3, ROWS, 40)}
    assert found[0]["text_score"] > 0
    assert found[0]["highlights"][0][0] == "text"
    both = run("search", "--like", rows["ids"][0], "--text", "stone", "--filter", '{"n": {"$lt": 50}}', "-k", "50")
    assert rows["ids"][3] in both.splitlines()[0] + both.splitlines()[1]
    assert len(both.splitlines()) == 50
    assert run("search", "--text", "river", "--group-by", "text", "-k", "2").count("river") > 2
    for wrong in (["--text", "x", "--highlight"], ["--json"], ["--text", "x", "--filter", "7"]):
        run("search", *wrong, code=2)


@pytest.mark.long
def test_the_page_runs(tmp_path: Path) -> None:
    """Every program of docs/collections.md, one after the other, as a user would run them."""
    text = (ROOT / "docs" / "collections.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    script = tmp_path / "page.py"
    script.write_text("\n".join(code).replace("/tmp/fabstir-collection", str(tmp_path / "store")), encoding="utf-8")
    body = script.read_text(encoding="utf-8")
    # The second program stands at the top of a module: a spawned process must not run it.
    first, second = body.split("from fabstir_vectordb.collections import sync\n")
    guarded = "if __name__ == '__main__':\n    from fabstir_vectordb.collections import sync\n"
    script.write_text(first + guarded + re.sub(r"(?m)^(?=.)", "    ", second), encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "(0, 1, 2, 3, 4, 5, 6, 7)" in lines[0]
    assert lines[1].startswith("4000 [FacetCount(")
    assert lines[2:] == ["['article-9000']", "4000"]
