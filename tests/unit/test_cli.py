"""The command line: every command, what it prints, and that trouble is one line on stderr and an exit code."""

from __future__ import annotations

import importlib
import json
import logging
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from fabstir_vectordb import __main__, get_version, sync
from fabstir_vectordb.demo import story
from fabstir_vectordb.s5.phrase import parse_phrase

for needed in ("click", "platformdirs", "tqdm"):
    pytest.importorskip(needed, reason="the extra 'cli' is not installed")
module = importlib.import_module("fabstir_vectordb.cli")

ROOT = Path(__file__).resolve().parents[2]
PHRASE = "amid romance hotel blue most myself guess host lobby rubber hook victim about odds child"
VECTORS = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line on a store of the test's own."""
    monkeypatch.setenv("FABSTIR_STORE", (tmp_path / "store").as_uri())
    monkeypatch.setenv("FABSTIR_SEED_PHRASE", PHRASE)

    def call(*arguments: str | Path) -> Ended:
        with pytest.raises(SystemExit) as ended:
            module.cli.main([str(argument) for argument in arguments], prog_name="fabstir-vectordb")
        code = ended.value.code
        out, err = capsys.readouterr()
        return Ended(code if isinstance(code, int) else 0, out, err)

    return call


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
    # Before it there may be the warning that changes were given up.
    lines = [line for line in ended.err.splitlines() if "destroyed with unsaved changes" not in line]
    assert len(lines) == 1, ended.err
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
        ("a", [1, 0, 0], None),
        ("b", [float(np.float32(0.9)), float(np.float32(0.1)), 0], [1]),
        ("c", [0, 1, 0], None),
    ]
    assert back[2]["timestamp"] == 7.5


def test_an_import_reads_its_input_in_batches(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_ROWS", 7)
    path, vectors = tmp_path / "rows.jsonl", tmp_path / "vectors.npy"
    path.write_text("".join(f'{{"id": "r{i}", "n": {i}}}\n' for i in range(30)), encoding="utf-8")
    base = np.random.default_rng(1).standard_normal((30, 4)).astype(np.float32)
    np.save(vectors, base)
    sizes, read = [], 0
    records = module._records
    add_batch = sync.VectorDBSession.add_batch

    def counted(path: Path) -> Any:
        nonlocal read
        for record in records(path):
            read += 1
            yield record

    def add(session: Any, ids: list[str], vectors: Any, *args: Any, **kwargs: Any) -> Any:
        assert read == sum(sizes) + len(ids)
        assert isinstance(vectors, np.memmap)
        sizes.append(len(ids))
        return add_batch(session, ids, vectors, *args, **kwargs)

    monkeypatch.setattr(module, "_records", counted)
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
    assert checked.out.endswith(" 4 rows: all whole\n")
    assert run("verify").out.startswith(second)

    assert "vector_count: 4\n" in run("stats").out
    stats = json.loads(run("stats", "--json").out)
    assert (stats["vector_count"], stats["deleted_count"], stats["last_cid"]) == (4, 4, second)


def test_recall_is_measured_and_drawn(run: Run, rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` brings matplotlib")
    run("import", str(rows))
    picture = tmp_path / "recall.svg"
    lines = run("recall", "--sample", "5", "-k", "1", "--plot", str(picture)).out.splitlines()
    assert lines[0].startswith("recall@1 of ")
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
    assert told.code == 0, told.err
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

    monkeypatch.setattr(module.click, "prompt", prompt)
    assert run("verify").out.startswith(cid)
    # Neither shown nor written where a pipe would take it.
    assert asked == [{"hide_input": True, "err": True}]


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
    (b"{", r"rows.jsonl line 2 is no JSON"),
    (b"\xff\xfe\xff", r"line 2 is no JSON"),
    (b"[" * 100_000, r"line 2 is no JSON"),
    (b"[1]", r'line 2: needs an object with a string "id"'),
    (b'{"id": 5}', r'line 2: needs an object with a string "id"'),
    (b'{"id": "b"}', r"row 'b' has no \"vector\""),
    (b'{"id": "b", "vector": "0123"}', r'line 2: "vector" must be a list of numbers'),
    (b'{"id": "b", "vector": [[1, 0, 0]]}', r'"vector" must be a list of numbers'),
    (b'{"id": "b", "vector": [1, true, 0]}', r'"vector" must be a list of numbers'),
    (b'{"id": "b", "vector": [1, 0]}', r"Vector dimension mismatch: expected 3, got 2"),
    (b'{"id": "b", "vector": [NaN, 0, 0]}', r"row 1 \(id 'b'\).*NaN"),
    (b'{"id": "b", "vector": [1e39, 0, 0]}', r"row 1 \(id 'b'\).*infinity"),
    (b'{"id": "b", "vector": [' + b"9" * 500 + b", 0, 0]}", r"real numbers"),
    (b'{"id": "b", "vector": [1, 0, 0], "x": Infinity}', r"row 1 \(id 'b'\).*x holds inf"),
    (b'{"id": "b", "vector": [1, 0, 0], "timestamp": "now"}', r"timestamp of row 1"),
    (b'{"id": "a", "vector": [1, 0, 0]}', r"duplicate id 'a'"),
    (b'{"id": "", "vector": [1, 0, 0]}', r"the id of row 1 is empty"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_named_and_nothing_is_saved(run: Run, tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a", "vector": [1, 0, 0]}\n' + line + b"\n")
    trouble(run("import", path), message)
    assert run("history").out == ""


def test_bad_arrays_are_named_and_nothing_is_saved(run: Run, rows: Path, tmp_path: Path) -> None:
    vectors = tmp_path / "vectors.npy"
    np.save(vectors, VECTORS)
    whole = vectors.read_bytes()
    for raw, message in [
        (b"", "is no .npy file"),
        (b"plain text", "is no .npy file"),
        (whole[:-1], "is no .npy file"),
        (b"PK\x03\x04", "is no .npy file"),
    ]:
        vectors.write_bytes(raw)
        trouble(run("import", rows, "--vectors", vectors), message)
    for array, message in [
        (VECTORS[:3], "3 vectors and more rows than that"),
        (np.vstack([VECTORS, VECTORS]), "8 vectors and 4 rows"),
        (VECTORS[0], r"shape \(3,\), not \(n, dim\)"),
        (np.float32(1), r"shape \(\), not \(n, dim\)"),
        (np.array([["a", "b"]] * 4), "real numbers"),
        (np.array([[None, 1]] * 4), "is no .npy file"),
    ]:
        np.save(vectors, array)
        trouble(run("import", rows, "--vectors", vectors), message)
    with vectors.open("wb") as out:
        np.savez(out, a=VECTORS, b=VECTORS)
    trouble(run("import", rows, "--vectors", vectors), "is no .npy file")
    assert run("import", rows, "--vectors", tmp_path / "none.npy").code == 2
    assert run("import", tmp_path / "none.jsonl").code == 2
    assert run("history").out == ""


def test_bad_queries(run: Run, rows: Path, tmp_path: Path) -> None:
    run("import", rows)
    query = tmp_path / "query.json"
    for raw, message in [
        (b"[1, 2", "query.json is no JSON"),
        (b"\xff", "query.json is no JSON"),
        (b"[" * 100_000, "query.json is no JSON"),
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
    trouble(run("search", "--vector", array), r"query.npy is no .npy file")
    trouble(run("search", "--like", "nobody"), r"\[NOT_FOUND\] there is no row with id 'nobody'")
    trouble(run("search", "--like", "doc0", "-k", "0"), "k must be")
    trouble(run("search", "--like", "doc0", "--threshold", "7"), "between 0 and 1")
    for arguments in ([], ["--like", "doc0", "--vector", query]):
        ended = run("search", *arguments)
        assert ended.code == 2
        assert "either --like ID or --vector FILE" in ended.err


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


def test_a_closed_pipe_is_the_end_and_no_trouble(run: Run, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("import", rows)
    echo = module.click.echo

    def broken(message: Any = None, **how: Any) -> None:
        if how.get("err"):
            echo(message, **how)
        else:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(module.click, "echo", broken)
    ended = run("search", "--like", "doc0")
    assert (ended.code, ended.err) == (1, "")


def test_debug_shows_log_records_and_where_an_error_comes_from(
    run: Run, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("fabstir_vectordb")
    before = (logger.level, list(logger.handlers))
    plain = run("import", rows)
    assert plain.err == ""
    shown = run("--debug", "import", rows, "--on-conflict", "replace")
    assert shown.code == 0
    assert "DEBUG fabstir_vectordb.session: session cli: created\n" in shown.err
    assert "session cli: saved uW4Ie" in shown.err
    assert PHRASE not in shown.err
    with pytest.raises(OSError, match="No such file"):
        module.cli.main(["--debug", "export", str(tmp_path / "no" / "out.jsonl")])
    capsys.readouterr()
    # A program that calls the command twice does not get every record twice.
    assert (logger.level, logger.handlers) == before


def test_the_progress_bar_counts_bytes(run: Run, rows: Path) -> None:
    class Bar:
        total, n = 0, 0

        def update(self, more: int) -> None:
            self.n += more

        def close(self) -> None:
            self.total = -1

    with module._Bar("save") as shown:
        real, shown._bar = shown._bar, Bar()
        for done in (10, 30, 100):
            shown(type("State", (), {"bytes_total": 100, "bytes_done": done})())
        assert (shown._bar.n, shown._bar.total) == (100, 100)
    real.close()


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
    assert capsys.readouterr().err == "the command line needs click: pip install 'fabstir_vectordb[cli]'\n"
