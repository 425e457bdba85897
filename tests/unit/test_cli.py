"""The command line: every command, what it prints, and that trouble is one line on stderr and an exit code."""

from __future__ import annotations

import errno
import getpass
import importlib
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import PHRASE, Ended, Run, records

from fabstir_vectordb import __main__, get_version, sync
from fabstir_vectordb.demo import story
from fabstir_vectordb.errors import S5Error
from fabstir_vectordb.extras import install_command
from fabstir_vectordb.plot import check_picture
from fabstir_vectordb.s5.phrase import parse_phrase

for needed in ("click", "platformdirs", "tqdm"):
    pytest.importorskip(needed, reason="the extra 'cli' is not installed")
module = importlib.import_module("fabstir_vectordb.cli")
records_in = importlib.import_module("fabstir_vectordb.cli_records")
support = importlib.import_module("fabstir_vectordb.cli_support")
care = importlib.import_module("fabstir_vectordb.cli_care")

ROOT = Path(__file__).resolve().parents[2]
VECTORS = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"id": f"doc{i}", "vector": vector.tolist(), "n": i} for i, vector in enumerate(VECTORS)]
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path


def trouble(ended: Ended, message: str, code: int = 1) -> None:
    """One line on stderr that says what is wrong, nothing on stdout, and an exit code."""
    assert ended.code == code
    assert re.search(message, ended.err), ended.err
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) == 1, ended.err
    assert ended.out == ""


# ---- the commands


def test_rows_go_in_and_are_found(run: Run, rows: Path) -> None:
    done = run("import", rows)
    assert (done.code, done.err) == (0, "")
    added, cid = done.out.splitlines()
    assert added == "added 4, replaced 0, skipped 0"
    assert cid.startswith("uW4Ie")

    found = run("search", "--like", "doc0", "-k", "2")
    assert found.out.splitlines() == ['1.0000  doc0  {"n": 0}', '0.9969  doc1  {"n": 1}']
    assert run("search", "--like", "doc0", "--threshold", "0.999").out.splitlines() == ['1.0000  doc0  {"n": 0}']
    assert len(run("search", "--like", "doc0", "--cid", cid).out.splitlines()) == 4


@pytest.mark.parametrize("name", ["query.npy", "query.json"])
def test_a_query_comes_from_a_file(run: Run, rows: Path, tmp_path: Path, name: str) -> None:
    run("import", rows)
    query = tmp_path / name
    if query.suffix == ".npy":
        np.save(query, np.array([[0, 0, 5]], dtype=np.float16))
    else:
        query.write_text("[0, 0, 5]", encoding="utf-8")
    found = [json.loads(line) for line in run("search", "--vector", query, "-k", "1", "--json").out.splitlines()]
    assert found == [{"id": "doc3", "score": 1.0, "distance": 0.0, "metadata": {"n": 3}}]


def test_an_import_takes_an_array_and_goes_on_where_it_was(run: Run, tmp_path: Path) -> None:
    path, vectors = tmp_path / "rows.jsonl", tmp_path / "vectors.npy"
    path.write_text('{"id": "a"}\n{"id": "b", "metadata": [1]}\n{"id": "c", "timestamp": 7.5}', encoding="utf-8")
    np.save(vectors, VECTORS[:3].astype(np.float64))
    assert run("import", path, "--vectors", vectors, "--metric", "l2").out.startswith("added 3,")
    trouble(run("import", path, "--vectors", vectors), "duplicate id 'a'")
    assert run("import", path, "--vectors", vectors, "--on-conflict", "skip").out.startswith(
        "added 0, replaced 0, skipped 3\n"
    )
    assert run("import", path, "--vectors", vectors, "--on-conflict", "replace").out.startswith(
        "added 0, replaced 3, skipped 0\n"
    )
    stored = run("export", tmp_path / "out.jsonl")
    assert stored.out == f"exported 3 rows to {tmp_path / 'out.jsonl'}\n"
    back = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["id"], row["vector"], row["metadata"]) for row in back] == [
        ("c", [0, 1, 0], None),  # its timestamp is the oldest
        ("a", [1, 0, 0], None),
        ("b", [float(np.float32(0.9)), float(np.float32(0.1)), 0], [1]),
    ]
    assert back[0]["timestamp"] == 7.5


def test_an_import_reads_its_input_in_batches(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_in, "BATCH_ROWS", 7)
    path, vectors = tmp_path / "rows.jsonl", tmp_path / "vectors.npy"
    path.write_text("".join(f'{{"id": "r{i}", "n": {i}}}\n' for i in range(30)), encoding="utf-8")
    base = np.random.default_rng(1).standard_normal((30, 4)).astype(np.float32)
    np.save(vectors, base)
    sizes, read = [], 0
    records = records_in._json_records
    add_batch = sync.VectorDBSession.add_batch

    def counted(path: Path, columns: Any) -> Any:
        nonlocal read
        for record in records(path, columns):
            read += 1
            yield record

    def add(session: Any, ids: list[str], vectors: Any, *args: Any, **kwargs: Any) -> Any:
        assert read == sum(sizes) + len(ids)
        assert isinstance(vectors, np.memmap)
        sizes.append(len(ids))
        return add_batch(session, ids, vectors, *args, **kwargs)

    monkeypatch.setattr(records_in, "_json_records", counted)
    monkeypatch.setattr(sync.VectorDBSession, "add_batch", add)
    assert run("import", path, "--vectors", vectors).out.startswith("added 30,")
    assert sizes == [7, 7, 7, 7, 2]
    run("export", tmp_path / "out.jsonl")
    back = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["id"], row["metadata"]) for row in back] == [(f"r{i}", {"n": i}) for i in range(30)]
    assert np.array([row["vector"] for row in back], np.float32).tobytes() == base.tobytes()


def test_dates_are_written_as_strings(run: Run, tmp_path: Path) -> None:
    noon = datetime(2024, 1, 31, 12, tzinfo=UTC)
    store = (tmp_path / "store").as_uri()
    with sync.VectorDBSession.create(s5_portal=store, user_seed_phrase=PHRASE, session_id="test") as session:
        session.add_vectors([{"id": "a", "vector": [1, 0], "metadata": {"at": noon, "key": uuid.UUID(int=1)}}])
        session.save_to_s5()
    texts = {"at": noon.isoformat(), "key": str(uuid.UUID(int=1))}
    assert json.loads(run("search", "--like", "a", "--json").out)["metadata"] == texts
    assert json.dumps(texts) in run("search", "--like", "a").out
    target = tmp_path / "out.jsonl"
    assert run("export", target).code == 0
    assert json.loads(target.read_text())["metadata"] == texts


def test_what_is_exported_can_be_imported(run: Run, rows: Path, tmp_path: Path) -> None:
    run("import", rows)
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    run("export", first)
    assert run("--index-name", "copy", "import", first).out.startswith("added 4,")
    run("--index-name", "copy", "export", second)
    assert first.read_bytes() == second.read_bytes()
    assert run("indexes").out == "copy\ndefault\n"


def test_rows_without_a_vector_go_in_and_come_out(run: Run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a", "vector": null, "n": 1}\n{"id": "b", "vector": [1, 2], "n": 2}\n', encoding="utf-8")
    assert run("import", rows).code == 0
    copy = tmp_path / "copy.jsonl"
    assert run("export", copy).code == 0
    assert [json.loads(line)["vector"] for line in copy.read_text().splitlines()] == [None, [1.0, 2.0]]
    assert run("search", "--like", "a").code != 0


def test_history_verify_and_stats(run: Run, rows: Path) -> None:
    first = run("import", rows).out.splitlines()[1]
    second = run("import", rows, "--on-conflict", "replace").out.splitlines()[1]
    shown = run("history").out.splitlines()
    assert [line.split()[0] for line in shown] == ["2", "1"]
    assert [line.split()[-1] for line in shown] == [second, first]
    assert all("  4 rows  " in line for line in shown)
    entries = [json.loads(line) for line in run("history", "--json").out.splitlines()]
    assert [(entry["cid"], entry["refused"]) for entry in entries] == [(second, False), (first, False)]
    assert run("export", rows.with_name("old.jsonl"), "--cid", first).code == 0

    checked = run("verify", "--cid", first)
    assert checked.out.splitlines()[0] == first
    assert checked.out.endswith(" 4 rows: all intact\n")
    assert run("verify").out.startswith(second)

    assert "vector_count: 4\n" in run("stats").out
    stats = json.loads(run("stats", "--json").out)
    assert (stats["vector_count"], stats["deleted_count"], stats["last_cid"]) == (4, 4, second)


def test_recall_is_measured_and_drawn(run: Run, rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` brings matplotlib")
    run("import", str(rows))
    picture = tmp_path / "recall.svg"
    lines = run("recall", "--sample", "5", "-k", "1", "--plot", str(picture)).out.splitlines()
    assert lines[0].startswith("recall@1, ")
    assert [line.split()[0] for line in lines[1:]] == ["default", "exact"]
    assert picture.stat().st_size > 1_000


def test_a_shared_version_opens_under_another_phrase(
    run: Run, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid = run("import", rows).out.split()[-1]
    share = run("share", cid).out.strip()
    monkeypatch.setenv("FABSTIR_SEED_PHRASE", "somebody else")
    assert run("export", tmp_path / "copy.jsonl", "--cid", share).out.startswith("exported 4 rows")
    trouble(run("share", cid), "DECRYPTION_ERROR")


def test_old_versions_are_pruned_when_told_twice(run: Run, rows: Path) -> None:
    for _ in range(3):
        run("import", rows, "--on-conflict", "replace")
    assert re.fullmatch(r"2 versions: would delete \d+ objects, [\d,]+ bytes\n", run("prune", "--keep", "1").out)
    assert len(run("history").out.splitlines()) == 3
    done = run("prune", "--keep", "1", "--delete").out
    assert re.fullmatch(r"2 versions: deleted (\d+) of \1 objects, [\d,]+ bytes\n", done)
    assert len(run("history").out.splitlines()) == 1
    assert run("verify").code == 0


def test_a_portal_serves_a_directory_until_it_is_interrupted(
    run: Run, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for needed in ("uvicorn", "starlette"):
        pytest.importorskip(needed, reason="the extra 'portal' is not installed")
    monkeypatch.setenv("FABSTIR_PORTAL_TOKEN", "sesame")
    command = [sys.executable, "-m", "fabstir_vectordb", "portal", str(tmp_path / "served"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", served.stdout.readline())
        try:
            assert found
            cid = run("--store", found[0], "import", rows).out.split()[-1]
            assert run("--store", f"portal+{found[0]}", "verify", "--cid", cid).code == 0
            assert "can be written and read" in run("--store", found[0], "doctor").out
            monkeypatch.delenv("FABSTIR_PORTAL_TOKEN")
            assert run("--store", found[0], "verify", "--cid", cid).code == 0  # reading takes none
            trouble(run("--store", found[0], "import", rows, "--on-conflict", "replace"), "portal_token")
        finally:
            served.send_signal(signal.SIGINT)
    assert served.returncode == 0
    assert run("--store", (tmp_path / "served").as_uri(), "verify", "--cid", cid).code == 0


def test_new_phrase_and_doctor(run: Run) -> None:
    assert parse_phrase(run("new-phrase").out.strip())
    shown = run("doctor")
    assert shown.code == 0
    assert f"fabstir_vectordb: {get_version()}\n" in shown.out
    assert "kernels: " in shown.out
    assert shown.out.endswith("can be written and read\n")
    assert run("--version").out == f"fabstir-vectordb, version {get_version()}\n"
    assert "import" in run("--help").out


def test_the_demo_tells_its_story_and_the_readme_shows_it(run: Run) -> None:
    told = run("demo")
    assert (told.code, told.err) == (0, "")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme[readme.index("```\nAdded 2000") + 4 :]
    shown = shown[: shown.index("```")]

    def essence(text: str) -> list[str]:
        # Times, CIDs (the phrase is a new one) and megabytes differ.
        return [re.sub(r" *\[\d+ ms\]|uW4Ie[\w-]+|[\d.]+ MB", "", line) for line in text.splitlines()]

    lines, expected = essence(told.out), essence(shown)
    gap = expected.index("  …")
    assert lines[:gap] == expected[:gap]
    assert lines[gap - len(expected) + 1 :] == expected[gap + 1 :]


def test_a_demo_that_goes_wrong_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    delete = story.VectorDBSession.delete_vector

    async def lost(self: Any, id: str) -> Any:
        return await delete(self, "no such row", missing_ok=True)

    monkeypatch.setattr(story.VectorDBSession, "delete_vector", lost)
    told = run("demo")
    assert told.code == 1
    assert "still found." in told.out


# ---- the phrase


def test_the_phrase_comes_from_a_file_or_a_prompt(
    run: Run, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid = run("import", rows).out.splitlines()[1]
    monkeypatch.delenv("FABSTIR_SEED_PHRASE")
    secret = tmp_path / "phrase.txt"
    secret.write_text(PHRASE + "\n", encoding="utf-8")
    assert run("--phrase-file", secret, "verify").out.startswith(cid)

    asked: list[dict[str, Any]] = []

    def prompt(text: str, **how: Any) -> str:
        asked.append(how)
        return PHRASE

    monkeypatch.setattr(support, "_has_terminal", lambda: True)
    monkeypatch.setattr(getpass, "getpass", prompt)
    assert run("verify").out.startswith(cid)
    # Neither shown nor written where a pipe would take it.
    assert asked == [{"stream": sys.stderr}]

    def nothing(text: str, **how: Any) -> str:
        raise EOFError

    monkeypatch.setattr(getpass, "getpass", nothing)
    trouble(run("verify"), "the prompt got no answer")
    monkeypatch.setattr(support, "_has_terminal", lambda: False)
    trouble(run("verify"), "set FABSTIR_SEED_PHRASE, or give --phrase-file")


def test_bad_phrases(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "phrase.txt"
    secret.write_bytes(b"\xff\xfe secret")
    trouble(run("--phrase-file", secret, "history"), "phrase.txt is not UTF-8")
    secret.write_text(" \n", encoding="utf-8")
    trouble(run("--phrase-file", secret, "history"), "user_seed_phrase is required")
    assert run("--phrase-file", tmp_path / "none", "history").code == 2
    monkeypatch.setenv("FABSTIR_SEED_PHRASE", "abandon " * 15)
    trouble(run("history"), "checksum")
    monkeypatch.setenv("FABSTIR_SEED_PHRASE", "another secret")
    trouble(run("verify"), r"\[NOT_FOUND\] Version not found: no version of index 'default'")


# ---- trouble


BAD_LINES: list[tuple[bytes, str]] = [
    (b"{", r"rows.jsonl line 2 is not JSON"),
    (b"\xff\xfe\xff", r"line 2 is not JSON"),
    (b"[" * 100_000, r"line 2 is not JSON"),
    (b"[1]", r'line 2: must be an object with a string "id"'),
    (b'{"id": 5}', r'line 2: must be an object with a string "id"'),
    (b'{"id": "b"}', r"row 'b' has no \"vector\": add it"),
    (b'{"id": "b", "vector": "0123"}', r'line 2: "vector" must be a list of numbers'),
    (b'{"id": "b", "vector": [[1, 0, 0]]}', r'"vector" must be a list of numbers'),
    (b'{"id": "b", "vector": [1, true, 0]}', r'"vector" must be a list of numbers'),
    (b'{"id": "b", "vector": [1, 0]}', r"Vector dimension mismatch: expected 3, got 2"),
    (b'{"id": "b", "vector": [NaN, 0, 0]}', r"row 1 \(id 'b'\).*NaN"),
    (b'{"id": "b", "vector": [1e39, 0, 0]}', r"row 1 \(id 'b'\).*infinity"),
    (b'{"id": "b", "vector": [' + b"9" * 500 + b", 0, 0]}", r"real numbers"),
    (b'{"id": "b", "vector": [1, 0, 0], "x": Infinity}', r"row 1 \(id 'b'\).*x holds inf"),
    (
        b'{"id": "b", "vector": [1, 0, 0], "timestamp": "now"}',
        r"line 2: .timestamp. must be .*ISO 8601, got 'now'",
    ),
    (b'{"id": "a", "vector": [1, 0, 0]}', r"duplicate id 'a'"),
    (b'{"id": "", "vector": [1, 0, 0]}', r"the id of row 1 is empty"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_named_and_nothing_is_saved(run: Run, tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a", "vector": [1, 0, 0]}\n' + line + b"\n")
    trouble(run("import", path), message)
    trouble(run("history"), "this phrase has saved no index here")


def test_bad_arrays_are_named_and_nothing_is_saved(run: Run, rows: Path, tmp_path: Path) -> None:
    vectors = tmp_path / "vectors.npy"
    np.save(vectors, VECTORS)
    whole = vectors.read_bytes()
    for raw, message in [
        (b"", "is not a .npy file"),
        (b"plain text", "is not a .npy file"),
        (whole[:-1], "is not a .npy file"),
        (b"PK\x03\x04", "is not a .npy file"),
    ]:
        vectors.write_bytes(raw)
        trouble(run("import", rows, "--vectors", vectors), message)
    for array, message in [
        (VECTORS[:3], "3 vectors and more than 3 rows"),
        (np.vstack([VECTORS, VECTORS]), "8 vectors and 4 rows"),
        (VECTORS[0], r"shape \(n, dim\), got \(3,\)"),
        (np.float32(1), r"shape \(n, dim\), got \(\)"),
        (np.array([["a", "b"]] * 4), "real numbers"),
        (np.array([[None, 1]] * 4), "is not a .npy file"),
    ]:
        np.save(vectors, array)
        trouble(run("import", rows, "--vectors", vectors), message)
    with vectors.open("wb") as out:
        np.savez(out, a=VECTORS, b=VECTORS)
    trouble(run("import", rows, "--vectors", vectors), "is not a .npy file")
    assert run("import", rows, "--vectors", tmp_path / "none.npy").code == 2
    assert run("import", tmp_path / "none.jsonl").code == 2
    trouble(run("history"), "this phrase has saved no index here")


def test_bad_queries(run: Run, rows: Path, tmp_path: Path) -> None:
    run("import", rows)
    query = tmp_path / "query.json"
    for raw, message in [
        (b"[1, 2", "query.json is not JSON"),
        (b"\xff", "query.json is not JSON"),
        (b"[" * 100_000, "query.json is not JSON"),
        (b'"abc"', "real numbers"),
        (b"{}", "real numbers|vector"),
        (b"[1, 2]", "expected 3 dimensions, got 2"),
        (b"[[1, 2, 3], [1, 2, 3]]", "one vector"),
        (b"[NaN, 1, 1]", "NaN"),
    ]:
        query.write_bytes(raw)
        trouble(run("search", "--vector", query), message)
    array = tmp_path / "query.npy"
    array.write_bytes(b"no array")
    trouble(run("search", "--vector", array), r"query.npy is not a .npy file")
    trouble(run("search", "--like", "nobody"), r"\[NOT_FOUND\] the index has no row with id 'nobody'")
    trouble(run("search", "--like", "doc0", "-k", "0"), "k must be")
    trouble(run("search", "--like", "doc0", "--threshold", "7"), "between 0 and 1")
    for arguments in ([], ["--like", "doc0", "--vector", query]):
        ended = run("search", *arguments)
        assert ended.code == 2
        assert "either --like ID or --vector FILE" in ended.err


def test_groups_by_a_date_are_json(run: Run, tmp_path: Path) -> None:
    store = (tmp_path / "store").as_uri()
    with sync.VectorDBSession.create(s5_portal=store, user_seed_phrase=PHRASE, session_id="s") as session:
        session.add_batch(["a"], [[1.0, 0.0]], [{"day": date(2026, 11, 27)}])
        session.save_to_s5()
    (found,) = records(run("search", "--like", "a", "--group-by", "day", "--json"))
    assert (found["id"], found["group"], found["metadata"]) == ("a", "2026-11-27", {"day": "2026-11-27"})


def test_words_are_searched_from_a_shell(run: Run, tmp_path: Path) -> None:
    lines = [{"id": "a", "vector": [1, 0], "text": "red apple"}, {"id": "b", "vector": [0, 1], "text": "blue sky"}]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    trouble(run("search", "--text", "apple"), "no version|NOT_FOUND")
    assert run("import", path, "--text-field", "text").code == 0
    found = [json.loads(line) for line in run("search", "--text", "apple", "--json").out.splitlines()]
    assert [(hit["id"], hit["distance"], hit["vector_score"]) for hit in found] == [("a", None, None)]
    assert found[0]["text_score"] > 0
    both = run("search", "--like", "b", "--text", "apple").out.splitlines()
    assert len(both) == 2
    fused = run("search", "--like", "b", "--text", "apple", "--fusion", "weighted", "--alpha", "1", "--json").out
    assert [json.loads(line)["id"] for line in fused.splitlines()] == ["b", "a"]
    only = run(
        "search", "--text", "apple sky", "--filter", '{"text": {"$startsWith": "red"}}', "--highlight", "--json"
    ).out
    assert json.loads(only)["highlights"] == [["text", 0, 4, 9]]
    grouped = run(
        "search", "--text", "blue apple sky", "--group-by", "text", "--group-size", "2", "-k", "1"
    ).out.splitlines()
    assert (grouped[0], len(grouped)) == ('"blue sky":', 2)
    assert (
        json.loads(run("search", "--like", "b", "--group-by", "text", "-k", "1", "--json").out)["group"] == "blue sky"
    )
    trouble(run("search", "--text", "sky", "--alpha", "0.5"), "alpha is the vector's share")
    for wrong in (
        ["--text", "sky", "--highlight"],
        ["--like", "b", "--highlight", "--json"],
        ["--text", "sky", "--fusion", "x"],
    ):
        assert run("search", *wrong).code == 2


def test_trouble_with_files_is_one_line(run: Run, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cid = run("import", rows).out.splitlines()[1]
    target = tmp_path / "no" / "such" / "folder" / "out.jsonl"
    trouble(run("export", target), re.escape(f"{target}: No such file or directory"))
    trouble(run("search", "--like", "doc0", "--cid", "nonsense"), r"\[INVALID_INPUT\]")
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    for command in (["doctor"], ["history"], ["import", rows]):
        ended = run("--store", (tmp_path / "file").as_uri(), *command)
        assert (ended.code, "Traceback" in ended.err) == (1, False)
        assert "[STORAGE_ERROR]" in ended.err
    trouble(run("--store", "ftp://x", "history"), r"\[INVALID_CONFIG\].*unknown scheme")
    trouble(run("--memory-budget-mb", "0", "history"), "memory_budget_mb must be greater")
    trouble(run("--index-name", "Ä", "history"), "index_name")
    trouble(run("--index-name", "other", "stats"), "NOT_FOUND")

    for blob in (tmp_path / "store" / "blobs").rglob("*"):
        if blob.is_file():
            raw = bytearray(blob.read_bytes())
            raw[len(raw) // 2] ^= 1
            blob.chmod(0o600)
            blob.write_bytes(raw)
    trouble(run("verify", "--cid", cid), r"\[INTEGRITY_ERROR\]")


def test_debug_shows_log_records_and_where_an_error_comes_from(run: Run, rows: Path, tmp_path: Path) -> None:
    logger = logging.getLogger("fabstir_vectordb")
    before = (logger.level, list(logger.handlers))
    plain = run("import", rows)
    assert plain.err == ""
    shown = run("--debug", "import", rows, "--on-conflict", "replace")
    assert shown.code == 0
    assert "DEBUG fabstir_vectordb.session: session cli: created\n" in shown.err
    assert "session cli: saved uW4Ie" in shown.err
    assert PHRASE not in shown.err
    failed = run("--debug", "export", tmp_path / "no" / "out.jsonl")
    assert (failed.code, failed.out) == (1, "")
    assert "Traceback" in failed.err
    assert "No such file" in failed.err
    # A program that calls the command twice does not get every record twice.
    assert (logger.level, logger.handlers) == before


# ---- a good tool of a shell


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_one_bar_at_a_time_and_never_in_a_result(
    run: Run, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a terminal gets of stdout and stderr together, each line of the result on a line of its own."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(module.click, "echo", lambda text, err=False: terminal.write(f"{text}\n"))

    def shown(*arguments: str | Path) -> tuple[list[str], list[str]]:
        """Titles of the bars in the order of their appearance, and the lines at the end."""
        terminal.seek(0)
        terminal.truncate()
        assert run(*arguments).code == 0
        text = terminal.getvalue()
        bars = list(dict.fromkeys(re.findall(r"\r(\w+): ", text)))
        return bars, [end for line in text.split("\n") if (end := line.rsplit("\r", 1)[-1])]

    bars, lines = shown("import", rows)
    assert bars == ["add", "save"]
    assert lines[0] == "added 4, replaced 0, skipped 0"
    bars, lines = shown("search", "--like", "doc0", "-k", "2")
    assert (bars, lines) == (["load"], ['1.0000  doc0  {"n": 0}', '0.9969  doc1  {"n": 1}'])
    assert shown("verify")[0] == ["verify"]
    assert shown("export", tmp_path / "out.jsonl")[0] == ["load", "export"]


def test_stdin_and_stdout_take_the_place_of_files(
    run: Run, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stdin(raw: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))

    stdin(rows.read_bytes())
    assert run("import", "-").out.startswith("added 4,")
    monkeypatch.chdir(tmp_path)
    piped = run("export", "-")
    assert piped.err == "exported 4 rows\n"
    assert not (tmp_path / "-").exists()
    run("export", "file.jsonl")
    assert piped.out == (tmp_path / "file.jsonl").read_text(encoding="utf-8")
    stdin(b"[0, 0, 5]")
    assert run("search", "--vector", "-", "-k", "1").out.startswith("1.0000  doc3")
    stdin(b"[0, 0")
    trouble(run("search", "--vector", "-"), "stdin is not JSON")
    stdin(b"{}")
    trouble(run("import", "-"), "stdin line 1: must be an object")
    monkeypatch.delenv("FABSTIR_SEED_PHRASE")
    stdin(PHRASE.encode() + b"\n")
    assert run("--phrase-file", "-", "history").code == 0
    for command in (["import", "-"], ["search", "--vector", "-"]):
        assert run("--phrase-file", "-", *command).code == 2


@pytest.mark.parametrize("before", [b"what was there", None])
def test_a_file_is_written_whole_or_not_at_all(
    run: Run, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    run("import", rows)
    target = tmp_path / "out" / "copy.jsonl"
    target.parent.mkdir()
    if before is not None:
        target.write_bytes(before)
        target.chmod(0o640)
    scan = sync.VectorDBSession.scan

    def fails(error: BaseException) -> Callable[..., Any]:
        def rows_of(session: Any, *args: Any, **kwargs: Any) -> Any:
            yield next(scan(session))
            raise error

        return rows_of

    for error, code in [
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
        (module._Terminated(signal.SIGTERM), 143),
    ]:
        monkeypatch.setattr(sync.VectorDBSession, "scan", fails(error))
        ended = run("export", target)
        assert (ended.code, ended.out, "Traceback" in ended.err) == (code, "", False)
        assert list(target.parent.iterdir()) == ([] if before is None else [target])
        assert before is None or target.read_bytes() == before
    monkeypatch.setattr(sync.VectorDBSession, "scan", scan)
    assert run("export", target).code == 0
    assert list(target.parent.iterdir()) == [target]
    if before is not None:
        assert target.stat().st_mode & 0o777 == 0o640


def test_an_export_writes_through_links_and_to_devices(run: Run, rows: Path, tmp_path: Path) -> None:
    run("import", rows)
    link, real = tmp_path / "link.jsonl", tmp_path / "real.jsonl"
    link.symlink_to(real)
    assert run("export", link).out == f"exported 4 rows to {link}\n"
    assert link.is_symlink()
    assert len(real.read_text(encoding="utf-8").splitlines()) == 4
    assert run("export", os.devnull).code == 0
    assert not Path(os.devnull).is_file()


def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(
    run: Run, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` brings matplotlib")
    run("import", rows)

    def measured(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it was measured")

    monkeypatch.setattr(sync.VectorDBSession, "recall", measured)
    trouble(run("recall", "--plot", tmp_path / "recall.txt"), "the file of a plot must end in .pdf, .png, .svg")
    trouble(run("recall", "--plot", tmp_path / "no" / "recall.svg"), "recall.svg: No such file or directory")
    monkeypatch.setattr(care, "check_picture", check_without_matplotlib)
    trouble(run("recall", "--plot", tmp_path / "recall.svg"), "drawing needs matplotlib: .* -m pip install 'matplotlib")


def check_without_matplotlib(path: Path) -> None:
    with pytest.MonkeyPatch.context() as without:
        without.setitem(sys.modules, "matplotlib.figure", None)
        check_picture(path)


def test_nothing_saved_under_this_phrase_is_said(run: Run, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("import", rows)
    trouble(run("--index-name", "other", "history"), r"no version of index 'other' .*: this phrase has 'default'")
    monkeypatch.setenv("FABSTIR_SEED_PHRASE", "another secret")
    for command in (["history"], ["history", "--json"], ["indexes"], ["prune", "--keep", "1"]):
        trouble(run(*command), r"\[NOT_FOUND\] .*this phrase has saved no index here; check the phrase for typos")


def test_a_metric_is_passed_on_only_where_it_was_given(run: Run, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    create = sync.VectorDBSession.create

    def noted(**settings: Any) -> Any:
        given.append(settings.get("metric"))
        return create(**settings)

    monkeypatch.setattr(sync.VectorDBSession, "create", noted)
    assert run("import", rows, "--metric", "l2").code == 0
    assert run("import", rows, "--on-conflict", "skip").code == 0
    assert given == ["l2", None]


def test_a_portal_that_is_down_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(session: Any) -> Any:
        raise S5Error("GET /s5/blob/uAbc: no answer")

    monkeypatch.setattr(sync.VectorDBSession, "history", down)
    trouble(run("--store", "http://portal.example", "history"), r"no answer \(portal http://portal\.example\)")


def outside(*arguments: str, store: Path, **how: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "FABSTIR_STORE": store.as_uri(), "FABSTIR_SEED_PHRASE": PHRASE}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "fabstir_vectordb", *arguments]
    return subprocess.Popen(command, env=environment, text=True, **how)


posix = pytest.mark.skipif(os.name != "posix", reason="signals and devices of POSIX")


@posix
@pytest.mark.parametrize("command", [["new-phrase"], ["--help"], ["export", "-"]])
def test_a_full_disk_behind_stdout_is_one_line(run: Run, rows: Path, tmp_path: Path, command: list[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    run("import", rows)
    with (
        open("/dev/full", "w") as full,
        outside(*command, store=tmp_path / "store", stdout=full, stderr=subprocess.PIPE) as process,
    ):
        _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (1, "stdout: No space left on device\n")


@posix
def test_a_full_disk_behind_stderr_changes_no_exit_code(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full, outside("history", store=tmp_path, stderr=full) as process:
        assert process.wait(300) == 1
    with (
        open("/dev/full", "w") as full,
        outside("new-phrase", store=tmp_path, stdout=subprocess.DEVNULL, stderr=full) as process,
    ):
        assert process.wait(300) == 0


@posix
def test_a_reader_that_has_gone_is_the_end_and_no_error(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"id": "r{i}", "vector": [1, {i}], "t": "{"x" * 500}"}}\n' for i in range(400)))
    run("import", path)
    for command in (["export", "-"], ["search", "--like", "r0", "-k", "400"]):
        with outside(*command, store=tmp_path / "store", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == ""
            assert process.wait(300) == 141


@posix
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_an_import_quietly(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with outside(
        "--debug", "import", "-", store=tmp_path / "store",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        while "created" not in process.stderr.readline():  # the log: the session is there, and waits for rows
            pass
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err


# ---- the entry point


def test_the_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fabstir_vectordb", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert get_version() in done.stdout


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "fabstir_vectordb.cli")
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"the command line needs click: {install_command('cli')}\n"
