"""The commands import, export and migrate: every format in and out, pipes, and what they say."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run

pytest_plugins = ["stored"]

FORMATS = ["jsonl", "csv", "parquet", "arrow"]
ROWS: list[dict[str, Any]] = [
    {"id": "a", "vector": [1.0, 0.5], "timestamp": 5.25, "metadata": {"n": 1, "text": 'two\nlines, "quoted"'}},
    {"id": "b", "vector": None, "timestamp": 6.0, "metadata": {"n": 2, "tags": ["x", "é"]}},
    {"id": "c", "vector": [0.0, -1.0], "timestamp": 7.0, "metadata": None, "expires_at": 7_000_000_000.0},
    {"id": "d", "vector": [2.0, 2.0], "timestamp": 8.0, "metadata": ["no", {"dict": 1}]},
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def needs_arrow(format: str) -> None:
    if format in ("parquet", "arrow"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")


def exported(run: Run, index: str, folder: Path) -> list[dict[str, Any]]:
    path = folder / f"{index}.jsonl"
    assert run("--index-name", index, "export", path).code == 0
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("format", FORMATS)
def test_every_row_goes_out_and_in_again(
    run: Run, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """By a file whose suffix says the format, and by pipes."""
    needs_arrow(format)
    assert run("import", rows).out.startswith("added 4,")
    target = tmp_path / f"copy.{format}"
    assert run("export", target).out == f"exported 4 rows to {target}\n"
    assert run("--index-name", "file", "import", target).out.startswith("added 4,")
    piped = run("export", "-", "--format", format)
    assert (piped.code, piped.err) == (0, "exported 4 rows\n")
    assert piped.raw == target.read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(target.read_bytes())))
    assert run("--index-name", "pipe", "import", "-", "--format", format).out.startswith("added 4,")
    assert exported(run, "file", tmp_path) == exported(run, "pipe", tmp_path) == ROWS


def test_csv_of_other_programs_comes_in(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('\ufeffid,title,year,vector\na,"x, y",2020,"[1, 0]"\nb,,,"[0, 1]"\n', encoding="utf-8")
    assert run("import", path).out.startswith("added 2,")
    a, b = exported(run, "default", tmp_path)
    assert (a["metadata"], b["metadata"]) == ({"title": "x, y", "year": "2020"}, None)
    path.write_text("id,title\nc,t\n", encoding="utf-8")
    np.save(tmp_path / "v.npy", np.ones((1, 2), np.float32))
    assert run("import", path, "--vectors", tmp_path / "v.npy").out.startswith("added 1,")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,vector\na,[1]\n", "line 2: it must have the columns of the header, id among them"),
        ('id,vector\na,"[1]",more\n', "line 2: it must have the columns of the header"),
        ("id,vector\na,nothing\n", "line 2: .*Expecting value"),
        ('id,vector\na,"[true]"\n', 'line 2: "vector" must be a list of numbers'),
        ('id,vector\na,"' + "[" * 100_000 + '"\n', "line 2: "),
        ('id,vector,timestamp\na,"[1, 2]",soon\n', "line 2: .*or a time in ISO 8601, got 'soon'"),
        ("id,n\na,1\n", "row 'a' has no \"vector\""),
        ("id,vector\na,\xff\n", "is not CSV"),
        pytest.param('id,n\na,"' + "x" * (17 << 20) + '"\n', "is not CSV: field larger", id="a cell of 17 MB"),
    ],
)
def test_a_bad_line_of_csv_is_named(run: Run, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode("latin-1"))
    ended = run("import", path)
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (1, "", 1), ended.err
    assert re.search(message, ended.err), ended.err
    assert run("history").code == 1  # nothing was saved


def test_columns_of_a_table_are_named(run: Run, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    folder = tmp_path / "data"
    folder.mkdir()
    table = pa.table({"key": ["a"], "x": [[1.0, 0.0]], "y": [[0.0, 1.0]], "n": [1], "m": [2]})
    parquet.write_table(table, folder / "one.parquet")
    ended = run("import", folder, "--id-column", "key")
    assert ended.code == 1
    assert "there are 2: 'x', 'y'" in ended.err
    columns = ["--id-column", "key", "--vector-column", "y", "--metadata-column", "n"]
    assert run("import", folder, *columns).out.startswith("added 1,")
    (row,) = exported(run, "default", tmp_path)
    assert (row["vector"], row["metadata"]) == ([0.0, 1.0], {"n": 1})
    assert run("import", folder, "--format", "csv").code == 2
    assert run("import", folder / "one.parquet", "--vectors", folder / "one.parquet").code == 2


def test_tables_without_pyarrow_say_what_to_install(run: Run, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for command in (["export", rows.with_name("x.parquet")], ["import", rows, "--format", "arrow"]):
        ended = run(*command)
        assert (ended.code, len(ended.err.splitlines())) == (1, 1)
        assert "tables need pyarrow" in ended.err
    assert not rows.with_name("x.parquet").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_an_export_that_is_killed_leaves_the_target_as_it_was(run: Run, tmp_path: Path, format: str) -> None:
    needs_arrow(format)
    path = tmp_path / "many.jsonl"
    path.write_text(
        "".join(json.dumps({"id": str(n), "vector": [n, 1.0]}) + "\n" for n in range(3_000)), encoding="utf-8"
    )
    assert run("import", path).code == 0
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / f"copy.{format}"
    target.write_bytes(b"what was there")
    command = [sys.executable, "-m", "fabstir_vectordb", "export", str(target)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    while process.poll() is None and not any(entry.stat().st_size for entry in folder.glob(".copy-*")):
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert target.read_bytes() == b"what was there" or process.returncode == 0


# ---- migrate


def test_a_store_of_the_node_package_comes(run: Run, samples: Path, tmp_path: Path) -> None:
    dry = run("migrate", "fabstir-node", samples / "v030", "--dry-run")
    assert dry.code == 0
    first = dry.out.splitlines()[0]
    assert re.fullmatch(r"\d+ rows of fabstir-node, 384 dimensions, metric l2", first)
    assert run("history").code == 1  # a dry run saves nothing
    ended = run("migrate", "fabstir-node", samples / "v030", "--schema")
    count = int(first.split()[0])
    assert ended.out.splitlines()[:3] == [
        first,
        "4 rows are deleted there and did not come",
        f"added {count}, replaced 0, skipped 0",
    ]
    assert "schema was not set" in ended.err
    assert len(exported(run, "default", tmp_path)) == count
    assert json.loads(run("stats", "--json").out)["vector_count"] == count
    # The index has the metric of the store, so a store of another metric is refused by name.
    refused = run("migrate", "qdrant", samples / "peers" / "qdrant", "--collection", "docs")
    assert refused.code == 1
    assert "cosine" in refused.err
    assert "l2" in refused.err
    again = run("migrate", "fabstir-node", samples / "v030", "--on-conflict", "skip", "--json")
    report = json.loads(again.out)
    assert (report["skipped"], report["deleted"], report["dry_run"]) == (count, 4, False)
    assert report["cid"]


def test_options_go_to_the_format_that_has_them(run: Run, samples: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"id {n}\n" for n in range(1_100)), encoding="utf-8")
    index = samples / "peers" / "h.bin"
    assert run("migrate", "hnswlib", index, "--ids", ids).code == 2  # no metric
    assert run("migrate", "hnswlib", index, "--ids", ids, "--metric", "l2").out.splitlines()[2].startswith("added 59,")
    assert exported(run, "default", tmp_path)[0]["id"] == "id 1000"
    ended = run("migrate", "faiss", samples / "peers" / "flat.faiss", "--table", "x")
    assert (ended.code, ended.err) == (1, "[INVALID_INPUT] faiss takes the options ids, metadata, got table\n")
    ended = run("migrate", "chroma", samples / "peers" / "chroma", "--dry-run")
    assert (ended.code, "name one collection of 'big', 'docs'" in ended.err) == (1, True)
    assert run("migrate", "chroma", tmp_path / "none").code == 2
    ended = run("migrate", "sqlite-vec", index)
    assert (ended.code, "is no SQLite database" in ended.err) == (1, True)


def test_what_did_not_come_is_printed(run: Run, samples: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("same\n" * 60, encoding="utf-8")
    ended = run("migrate", "faiss", samples / "peers" / "flat.faiss", "--ids", ids)
    assert ended.out.splitlines()[:4] == [
        "1 rows of faiss, 8 dimensions, metric l2",
        "59 rows did not come: with an id that a row before has",
        "ids that several rows have: " + ", ".join(["same"] * 10),
        "added 1, replaced 0, skipped 0",
    ]
