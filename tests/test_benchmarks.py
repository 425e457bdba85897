"""Every benchmark runs, tiny, and says what it claims to measure; the documents are what the results give."""

from __future__ import annotations

import gc
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"
ONLY_OURS = ["--engines", "fabstir"]
#: Rows that a script gets: enough for a graph, for lists, and for a filter that matches 0.1 %.
ROWS = 1_200
#: Arguments beyond --tiny, and what the summary must have.
SCRIPTS: dict[str, tuple[list[str], set[str]]] = {
    "bench_batch": ([], {"fabstir", "fabstir-fast"}),
    "bench_collection": ([], {"real", "aliased", "routes", "lazy", "plan"}),
    "bench_columns": ([], {"text", "lexname", "count", "of.word.first", "words", "missing"}),
    "bench_damage": ([*ONLY_OURS, "--trials", "2"], {"fabstir"}),
    "bench_engines": (["--engines", "threads"], {"engines"}),
    "bench_filter": (ONLY_OURS, {"50%", "10%", "1%", "0.1%"}),
    "bench_growth": ([*ONLY_OURS, "--sizes", "1100,1500"], {"sizes", "evidence"}),
    "bench_kernels": (["--case-ms", "0.2"], {"copy_gb_s", "read_gb_s", "cases"}),
    "bench_kinds": ([*ONLY_OURS, "--metrics", "l2"], {"a ball, 8", "heavy tails, 128"}),
    "bench_link": ([], {"recent", "historical", "recent normalised"}),
    "bench_link_text": ([], {"stored_mb", "words", "vector", "both"}),
    "bench_loop_lag": ([], {"idle", "add", "search_batch", "save", "load"}),
    "bench_memory": (["--cycles", "3"], {"default", "loaded", "compact", "cycles"}),
    "bench_overhead": (["--count", "10"], {"native", "sync_ids", "async_ids", "with_metadata_async_ids_metadata"}),
    "bench_save_load": ([], {"save_s", "save_unchanged_s", "load_s", "verify_s", "copy_s", "stored_mb"}),
    "bench_search": ([], {"points"}),
    "bench_tables": (["--file-rows", "2500"], {"rates", "file"}),
    "compare_build": (["--engines", "fabstir,fabstir-compact"], {"fabstir", "fabstir-compact"}),
    "compare_flat": (ONLY_OURS, {"single-1", "batch-1", "batch-2"}),
    "compare_lists": (ONLY_OURS, {"fabstir"}),
    "compare_search": (ONLY_OURS, {"single-1", "batch-1", "batch-2"}),
    "compare_session": (ONLY_OURS, {"fabstir"}),
    "compare_text": (ONLY_OURS, {"fabstir"}),
}
NEEDS_CORES = {"bench_batch"}
NEEDS_LINUX = {"bench_damage", "bench_memory", "bench_tables"}
#: Runs as its users run it, its jobs in workers; the others run here, as most of such a run is interpreters' starts.
IN_PROCESSES = "compare_search"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / f"{script}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=1_800, check=False)


def run_here(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    """Runs in this process: most of a tiny run is an interpreter's start."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One scratch folder for all: indexes that one script builds are opened by the next."""
    return str(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """report.py and what it imports, as the scripts see them."""
    sys.path.insert(0, str(FOLDER))
    try:
        import report

        yield report
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture
def jobs_here(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Jobs run in this process, and grown sets are made of small blocks."""
    from harness import grow, rounds, worker

    def run_job(job: dict[str, Any]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=job["work"]) as scratch:
            return json.loads(json.dumps(worker.JOBS[job["do"]](job, Path(scratch))))  # type: ignore[no-any-return]

    monkeypatch.setattr(rounds, "run_job", run_job)
    monkeypatch.setattr(grow, "BLOCK_ROWS", 500)
    yield
    gc.collect()


@pytest.mark.parametrize("name", sorted(SCRIPTS))
@pytest.mark.usefixtures("jobs_here")
# A job leaves its engine to the end of its process.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_benchmark_runs_tiny(name: str, work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NEEDS_LINUX and not sys.platform.startswith("linux"):
        pytest.skip("uses forked processes or /proc")
    if name in NEEDS_CORES and (os.cpu_count() or 1) < 2:
        pytest.skip("compares one core with two")
    arguments, keys = SCRIPTS[name]
    out = tmp_path / "out.json"
    call = ["--tiny", "--rows", str(ROWS), "--rounds", "1", "--work", work, "--json", str(out), *arguments]
    if name == IN_PROCESSES:
        done = run(name, *call)
        assert done.returncode == 0, done.stderr
    else:
        run_here(monkeypatch, name, *call)
    result = json.loads(out.read_text())
    assert result["runs"]
    assert not [entry for entry in result["runs"] if "error" in entry]
    assert keys <= result["summary"].keys()
    assert {"cpu", "cores", "kernels", "library", "versions"} <= result["environment"].keys()

    # Run again, it has nothing left to do.
    run_here(monkeypatch, name, *call)
    assert json.loads(out.read_text())["runs"] == result["runs"]


@pytest.mark.long
@pytest.mark.usefixtures("jobs_here")
def test_a_grown_collection_is_built_and_planned_tiny(
    work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    call = ["--tiny", "--rows", str(ROWS), "--grown", "1300", "--work", work, "--json", str(out)]
    run_here(monkeypatch, "bench_collection", *call)
    summary = json.loads(out.read_text())["summary"]
    assert summary.keys() == {"build_collection", "search_collection", "one_index", "plan_and_truth"}
    assert sum(summary["build_collection"]["sizes"]) == 1_300
    assert summary["search_collection"]["recall"]["8"] > 0.9
    assert summary["one_index"]["recall"] > 0.9
    found = summary["plan_and_truth"]["planned_over_found"]
    assert 1 / 8 <= found["asked"] <= 8
    assert 0.5 < found["bytes"] < 2


def test_every_script_is_run_by_run_all_and_tested() -> None:
    scripts = {path.stem for pattern in ("bench_*.py", "compare_*.py") for path in FOLDER.glob(pattern)}
    assert scripts == SCRIPTS.keys()
    text = (FOLDER / "run_all.py").read_text(encoding="utf-8")
    assert set(re.findall(r'^    "(\w+)",$', text, re.MULTILINE)) == scripts - {"bench_search"}


def test_run_all_goes_through_its_scripts(work: str, tmp_path: Path) -> None:
    arguments = ["--tiny", "--rounds", "1", "--work", work, "--results", str(tmp_path), "--only", "bench_save_load"]
    done = run("run_all", *arguments)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bench_save_load.json"]


@pytest.mark.usefixtures("bench")
def test_a_missing_set_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FVDB_DATASET", raising=False)
    for script in ("bench_search", "compare_search", "run_all"):
        with pytest.raises(SystemExit, match="FVDB_DATASET"):
            run_here(monkeypatch, script, "--work", str(tmp_path))


@pytest.mark.usefixtures("bench")
def test_an_unknown_engine_is_named(monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    with pytest.raises(SystemExit, match="nonesuch"):
        run_here(monkeypatch, "compare_search", "--tiny", "--work", work, "--engines", "fabstir,nonesuch")


@pytest.mark.usefixtures("bench")
def test_results_of_another_measurement_are_not_continued(
    monkeypatch: pytest.MonkeyPatch, work: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    shared = ["--tiny", "--work", work, "--rounds", "1", "--json", str(out)]
    run_here(monkeypatch, "bench_save_load", *shared, "--rows", "500")
    with pytest.raises(SystemExit, match="another parameters"):
        run_here(monkeypatch, "bench_save_load", *shared, "--rows", "600")


@pytest.mark.usefixtures("bench")
def test_a_peer_that_is_not_installed_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import registry

    def find_spec(name: str) -> object:
        return object() if name == "fabstir_vectordb" else None

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    found, skipped = registry.present(registry.ENGINES)
    assert found == ["fabstir", "fabstir-fast", "fabstir-compact"]
    assert skipped.keys() == registry.ENGINES.keys() - set(found)
    assert skipped["faiss-hnsw"] == "not installed: pip install faiss-cpu"


@pytest.mark.usefixtures("bench")
def test_a_job_that_fails_is_an_entry_and_not_the_end(tmp_path: Path) -> None:
    from harness import rounds

    job = {"do": "search", "set": str(tmp_path), "engine": "fabstir", "threads": 1, "work": str(tmp_path)}
    assert "error" in rounds.run_job(job)
    assert list(tmp_path.iterdir()) == []


# ---- arithmetic


POINTS: list[dict[str, Any]] = [
    {"setting": {"ef": 1}, "recall": 0.8, "qps": 1000.0},
    {"setting": {"ef": 2}, "recall": 0.9, "qps": 400.0},
    {"setting": {"ef": 3}, "recall": 0.89, "qps": 300.0},  # beaten in both
    {"setting": {"ef": 4}, "recall": 1.0, "qps": 100.0},
]


@pytest.mark.usefixtures("bench")
def test_speed_at_a_recall_is_read_off_the_front() -> None:
    from harness import curves

    assert [point["recall"] for point in curves.front(POINTS)] == [0.8, 0.9, 1.0]
    assert curves.qps_at(POINTS, 0.9) == pytest.approx(400.0)
    assert curves.qps_at(POINTS, 0.95) == pytest.approx(200.0)  # half way in logarithms
    assert curves.qps_at(POINTS, 0.5) == 1000.0
    assert curves.qps_at(POINTS[:3], 0.95) is None
    best = curves.fastest(POINTS, 0.85)
    assert best is not None
    assert best["setting"] == {"ef": 2}


@pytest.mark.usefixtures("bench")
def test_ratios_are_formed_inside_rounds() -> None:
    from harness import curves

    found = curves.ratio({0: 10.0, 1: 40.0, 2: None, 3: 5.0}, {0: 5.0, 1: 10.0, 2: 1.0})
    assert found == {"median": 3.0, "min": 2.0, "max": 4.0, "rounds": 2}
    assert curves.stat([None]) is None


@pytest.mark.usefixtures("bench")
def test_the_speed_of_median_calls_leaves_interruptions_out() -> None:
    from harness import curves

    point = {"setting": {}, "recall": 0.9, "qps": 10.0, "p50_us": 50.0}
    assert curves.of_median_calls([point]) == [point | {"qps": 20_000.0}]


@pytest.mark.usefixtures("bench")
def test_exact_neighbours_by_blocks_are_those_of_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import datasets

    random = np.random.default_rng(3)
    base = random.standard_normal((1_000, 8)).astype(np.float32)
    queries = random.standard_normal((20, 8)).astype(np.float32)
    unit = base.astype(np.float64) / np.linalg.norm(base.astype(np.float64), axis=1, keepdims=True)
    want = np.argsort(-(queries.astype(np.float64) @ unit.T), axis=1)[:, :100]
    for rows in (70, 128, 1_000):
        monkeypatch.setattr(datasets, "BLOCK_ROWS", rows)
        assert np.array_equal(datasets.exact_neighbours(base, queries), want)


@pytest.mark.usefixtures("bench")
def test_grown_sets_are_seeded_prefixes_of_unit_rows_like_their_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import grow

    from fabstir_vectordb.demo import load_demo_rows

    monkeypatch.setattr(grow, "BLOCK_ROWS", 500)
    seed = load_demo_rows().vectors[:1_000]
    grown = grow.grow(seed, 2_700)
    assert np.array_equal(grown[:1_000], seed.astype(np.float16))
    assert np.array_equal(grown[:1_800], grow.grow(seed, 1_800))
    assert np.allclose(np.linalg.norm(grown.astype(np.float64), axis=1), 1, atol=2e-3)
    # No new row is a near copy of a real one.
    unit = grown.astype(np.float32)
    assert float((unit[1_000:] @ unit[:1_000].T).max()) < 0.97


# ---- documents


def test_the_documents_are_what_the_results_give(bench: ModuleType) -> None:
    """After a new measurement: python benchmarks/report.py."""
    for path, text in bench.everything(bench.load_results()).items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, path


def stat(value: float) -> dict[str, float]:
    return {"median": value, "min": value / 2, "max": value * 2, "rounds": 3}


def made_up_results() -> dict[str, Any]:
    """Small results of every kind; no figure of them was measured."""
    environment = {
        "cpu": "A Processor", "cores": 2, "memory_gib": 8, "platform": "linux", "arch": "x86_64", "python": "3.11.0",
        "kernels": "scalar", "library": "00", "versions": {"fabstir_vectordb": "0", "hnswlib": "0"},
    }  # fmt: skip

    def result(benchmark: str, summary: Any, **parameters: Any) -> dict[str, Any]:
        return {
            "benchmark": benchmark, "environment": environment, "parameters": {"rows": 5000, "dim": 4} | parameters,
            "skipped": {"svs": "not installed: pip install scalable-vs"},
            "runs": [{"round": 2, "engine": "hnswlib"}, {"round": 0, "engine": "zvec-hnsw", "error": "it broke"}],
            "summary": summary,
        }  # fmt: skip

    def curve(speed: float) -> dict[str, Any]:
        return {
            "qps": {"0.90": stat(3 * speed), "0.95": stat(2 * speed), "0.99": None},
            "points": [{**point, "qps": point["qps"] * speed} for point in POINTS],
            "p50_us": stat(10), "p99_us": stat(20),
        }  # fmt: skip

    ratios = {"0.90": stat(2.0), "0.95": stat(2.0), "0.99": None}
    both = {"fabstir": curve(2), "hnswlib": curve(1) | {"ours_over_it": ratios}}
    point = {"setting": {"ef": 100}, "recall": stat(0.995), "qps": stat(777), "p50_us": stat(1), "p99_us": stat(2)}
    views = ("all_calls", "median_call")
    speeds = {name: dict.fromkeys(("0.90", "0.95", "0.99"), stat(4)) for name in ("qps", "ours_over_it")}
    listed = dict.fromkeys(views, speeds)
    evaluated = {"first_ms": stat(300), "after_a_change_ms": stat(0.4), "known_us": stat(5)}
    filtered = {
        "fabstir": {view: {"qps": stat(8000), "ours_over_it": None} for view in views}
        | {"best_recall": 1.0, **evaluated},
        "hnswlib": {view: {"qps": None, "ours_over_it": None} for view in views} | {"best_recall": 0.9},
    }
    return {
        "bench_filter": result("bench_filter", {"10%": {"rows": 500, "engines": filtered}}, recall=0.97),
        "compare_lists": result(
            "compare_lists",
            {"fabstir": listed | {"build_s": stat(7)},
             "scann-soar": listed | {"build_s": stat(9), "it_over_ours_build_s": stat(1.5)}},
        ),
        "compare_search": result("compare_search", {"single-1": both, "batch-1": both, "batch-2": both}),
        "compare_session": result(
            "compare_session",
            {"fabstir": {name: stat(1) for name in ("add_s", "durable_s", "stored_bytes", "grown_bytes_per_row")}
             | {"points": [point]}},
        ),
    }  # fmt: skip


def test_a_document_shows_the_figures_of_its_results(bench: ModuleType) -> None:
    made_up = made_up_results()
    of_avx2 = "bench_filter", "compare_lists", "compare_search"
    results = made_up | {f"avx2/{name}": made_up[name] for name in of_avx2}
    text = bench.render((ROOT / "README.md").read_text(encoding="utf-8"), results)
    block = text.split("<!-- benchmarks: readme -->")[1].split("<!-- benchmarks: end -->")[0]
    assert "5,000 rows × 4 dimensions; A Processor, 2 cores, scalar kernels; 3 rounds." in block
    assert "| hnswlib | 2 | – | **2.00** (1.00 – 4.00) | – |" in block
    assert "777 QPS at recall 0.995" in block
    full = bench.render((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"), results)
    assert "Not measured: SVS, Vamana, float16 (not installed: pip install scalable-vs)." in full
    assert "Failed: zvec, HNSW, 8 bits: it broke." in full
    assert "| 500 | fabstir_vectordb | 8,000 | 1 | 8,000 | 1 | 1 |" in full
    assert "| 500 | hnswlib | – | – | – | – | 0.9 |" in full
    assert "| 500 | 300 | 0.4 | 5 |" in full
    assert "| ScaNN, 2 √n, SOAR | 4 | 4 | 4 | **4.00** (2.00 – 8.00) |" in full
    for name in ("search-single", "lists", "filters"):
        block, other = (full.split(f"<!-- benchmarks: {of} -->")[1].split("<!--")[0] for of in (name, f"{name}-avx2"))
        assert other.splitlines()[-3:] == block.splitlines()[-3:]
    assert full.count("Not measured yet.") == 15
    assert bench.render(full, results) == full


def test_results_of_a_subfolder_stand_beside_the_others(bench: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "avx2").mkdir()
    for place, kernels in (("a.json", "avx512"), ("avx2/a.json", "avx2"), ("avx2/b.json", "avx2")):
        name = Path(place).stem
        result = {"benchmark": name, "kernels": kernels, "summary": {} if name == "b" else {"ours": 1}}
        (tmp_path / place).write_text(json.dumps(result), encoding="utf-8")
    found = bench.load_results(tmp_path)
    assert {name: result["kernels"] for name, result in found.items()} == {"a": "avx512", "avx2/a": "avx2"}


def test_pictures_are_whole_and_the_same_every_time(bench: ModuleType) -> None:
    pictures = bench.pictures(made_up_results())
    assert pictures.keys() == {"search-single.svg", "search-batch.svg"}
    assert pictures == bench.pictures(made_up_results())
    for text in pictures.values():
        root = xml.etree.ElementTree.fromstring(text)
        assert len(root.findall("{*}polyline")) == 2
        assert len(text) < 20_000


def test_every_picture_and_link_of_the_page_exists(bench: ModuleType) -> None:
    page = ROOT / "docs" / "benchmarks.md"
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
