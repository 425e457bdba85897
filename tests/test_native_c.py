"""The native core's own tests, one program per folder, under UBSan; those with threads under TSan too."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = sorted(path.stem for path in (ROOT / "tests" / "native").glob("test_*.c"))

TESTS = [
    pytest.param(program, test, id=f"{program}-{test}", marks=[pytest.mark.long] if how == "RUN_LONG" else [])
    for program in PROGRAMS
    for how, test in re.findall(
        r"\b(RUN|RUN_LONG)\((\w+)\)", (ROOT / "tests" / "native" / f"{program}.c").read_text(encoding="utf-8")
    )
]

# Undefined behaviour ends the program; misaligned loads and wrapped sizes would otherwise go unseen.
SANITIZE = ["-O2", "-g", "-UNDEBUG", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
# The sanitiser makes kernels many times slower. test_kernels runs those that have it, all other programs fast ones.
FAST_KERNELS = ["-O2", "-g", "-fno-sanitize=all"]
# No test comes near it, not on a machine that is many times slower or busier.
TIMEOUT_S = 1_800


@pytest.fixture(scope="session")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_native", ROOT / "build_native.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_native"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def compile_test(build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compiles the core once and each test program against it; the compiler keeps what has not changed."""
    out = tmp_path_factory.mktemp("native")
    flags = [*build.compiler(build.host_target()), *build.FLAGS, "-Inative/include", "-Inative/src"]

    def compile_object(source: Path, options: list[str], name: str) -> Path:
        target = out / f"{source.stem}{name}.o"
        subprocess.run([*flags, *options, "-c", str(source), "-o", str(target)], cwd=ROOT, check=True)
        return target

    with ThreadPoolExecutor(2) as workers:
        checked = dict(
            zip(build.sources(), workers.map(lambda s: compile_object(s, SANITIZE, ""), build.sources()), strict=True)
        )
    kernels = [source for source in checked if source.parent.name == "kernels"]
    fast = checked | {source: compile_object(source, FAST_KERNELS, "_fast") for source in kernels}

    @cache
    def compile_one(program: str) -> Path:
        target = out / program
        source = ROOT / "tests" / "native" / f"{program}.c"
        objects = map(str, (checked if program == "test_kernels" else fast).values())
        subprocess.run(
            [*flags, *SANITIZE, "-Itests/native", str(source), *objects, "-o", str(target), "-lm", "-lpthread"],
            cwd=ROOT,
            check=True,
        )
        return target

    return compile_one


@pytest.mark.parametrize(("program", "test"), TESTS)
def test_native(program: str, test: str, compile_test: Callable[[str], Path]) -> None:
    result = subprocess.run(
        [compile_test(program)],
        env={**os.environ, "FVDB_TEST": test},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    print(result.stdout, result.stderr)
    assert result.returncode == 0, f"{program} failed"
    assert f"ok   {test}\n" in result.stdout
    assert re.search(r"^[1-9]\d* checks, 0 failed$", result.stdout, re.MULTILINE)


WRAPPED = ("malloc", "calloc", "realloc", "free", "mmap", "mremap", "munmap")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the linker wraps the allocator on Linux")
@pytest.mark.long
@pytest.mark.parametrize("sanitizer", ["undefined", "address"])
def test_every_failed_allocation_is_survived(sanitizer: str, build: ModuleType, tmp_path: Path) -> None:
    """Each allocation of each call fails once: a status, nothing changed, what is written loads, nothing is left."""
    command = [*build.compiler(build.host_target()), *build.FLAGS]
    if sanitizer == "address":
        gcc = shutil.which("gcc")
        if gcc is None:
            pytest.skip("zig brings no address sanitiser, and gcc is not installed")
        command = [gcc, "-std=c17", "-pthread"]
    target = tmp_path / sanitizer
    options = ["-O1", "-g", "-UNDEBUG", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    includes = ["-Inative/include", "-Inative/src", "-Itests/native"]
    files = ["tests/native/failing_allocations.c", *map(str, build.sources())]
    wraps = [f"-Wl,--wrap={name}" for name in WRAPPED]
    subprocess.run([*command, *options, *includes, *files, *wraps, "-o", str(target), "-lm"], cwd=ROOT, check=True)
    result = subprocess.run([target], capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    print(result.stdout, result.stderr)
    assert result.returncode == 0
    survived = re.search(r"^(\d+) failed allocations survived$", result.stdout, re.MULTILINE)
    assert survived is not None
    assert int(survived[1]) > 4_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="zig brings a thread sanitiser for Linux")
@pytest.mark.long  # the compiler builds the sanitiser first, for minutes
@pytest.mark.parametrize("program", ["test_base", "test_index"])
def test_native_threads_do_not_race(program: str, build: ModuleType, tmp_path: Path) -> None:
    """Locks, pools of threads and the control word in test_base; parallel builds and searches in test_index."""
    target = tmp_path / program
    flags = [*build.compiler(build.host_target()), *build.FLAGS, "-O1", "-g", "-UNDEBUG", "-fsanitize=thread"]
    includes = ["-Inative/include", "-Inative/src", "-Itests/native"]
    files = [f"tests/native/{program}.c", *map(str, build.sources())]
    subprocess.run([*flags, *includes, *files, "-o", str(target), "-lm", "-lpthread"], cwd=ROOT, check=True)
    result = subprocess.run([target], capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert "WARNING: ThreadSanitizer" not in result.stderr, result.stderr
    assert result.returncode == 0
    assert " 0 failed" in result.stdout


#: Folders from the left to the right: a file includes headers of its own folder and of those to the right.
LAYERS = ("api", "format", "index", "hnsw ivf", "store", "kernels metadata text", "base")


def test_includes_point_one_way() -> None:
    """Those of one layer (hnsw, ivf) do not know each other, nor what is above them."""
    source = ROOT / "native" / "src"
    rank = {folder: place for place, layer in enumerate(LAYERS) for folder in layer.split()}
    for path in source.rglob("*.[ch]"):
        here = path.parent.name if path.parent != source else "api"
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r'#include "([^"]+)"', text):
            if name == "fabstir_vectordb.h":
                continue
            there = (path.parent / name).resolve().parent.name
            assert there == here or rank[there] > rank[here], f"{path.name} includes {name}"
        code = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        assert here == "api" or not re.search(r"\bfvdb_\w+\(", code), f"{path.name} calls an entry of api.c"


def test_there_is_a_program_for_each_folder() -> None:
    names = (
        *("base", "format", "hnsw", "ids", "index", "ivf", "kernels", "metadata", "states", "store", "text", "words"),
    )
    assert [f"test_{name}" for name in names] == PROGRAMS


def test_every_entry_is_tried_in_every_state(build: ModuleType) -> None:
    entries = re.findall(r"\b(fvdb_\w+)\(fvdb_index \*index", build.declarations())
    tried = set(re.findall(r"ROW\((\w+),", (ROOT / "tests" / "native" / "test_states.c").read_text()))
    assert len(entries) > 30
    assert set(entries) - tried == {"fvdb_free"}


@pytest.mark.parametrize("target", ["aarch64-linux-gnu", "x86_64-linux-musl", "aarch64-macos", "x86_64-windows-gnu"])
@pytest.mark.long
def test_every_target_cross_compiles(build: ModuleType, target: str, tmp_path: Path) -> None:
    library = build.build_library(target, tmp_path)
    assert library.name == build.library_name(target)
    assert 50_000 < library.stat().st_size < 1_500_000
