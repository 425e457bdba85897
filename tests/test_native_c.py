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
SANITIZE = ["-O2", "-g1", "-UNDEBUG", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
UNCHECKED = ["-O2", "-g1", "-UNDEBUG", "-fno-sanitize=all"]
# Folders whose loops the sanitiser makes many times slower: only the long suite has it there. Kernels have it in
# their own program alone.
HOT = ("kernels", "hnsw", "ivf", "store")
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
def compile_test(build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """Compiles each file of the core once, and each test program against it."""
    out = tmp_path_factory.mktemp("native")
    flags = [*build.compiler(build.host_target()), *build.FLAGS, "-Inative/include", "-Inative/src"]

    @cache
    def compile_object(source: Path, checked: bool) -> Path:
        target = out / f"{source.stem}{'-checked' if checked else ''}.o"
        subprocess.run(
            [*flags, *(SANITIZE if checked else UNCHECKED), "-c", str(source), "-o", str(target)], cwd=ROOT, check=True
        )
        return target

    @cache
    def compile_one(program: str, everywhere: bool) -> Path:
        def compile_for_it(source: Path) -> Path:
            folder = source.parent.name
            checked = folder not in HOT or (program == "test_kernels" if folder == "kernels" else everywhere)
            return compile_object(source, checked)

        with ThreadPoolExecutor(2) as workers:
            objects = list(map(str, workers.map(compile_for_it, build.sources())))
        target = out / f"{program}-{everywhere}"
        source = ROOT / "tests" / "native" / f"{program}.c"
        subprocess.run(
            [*flags, *SANITIZE, "-Itests/native", str(source), *objects, "-o", str(target), "-lm", "-lpthread"],
            cwd=ROOT,
            check=True,
        )
        return target

    return compile_one


def ran(program: Path, test: str) -> str:
    """What a program says of one of its tests, or of all for an empty name."""
    result = subprocess.run(
        [program],
        env={**os.environ, "FVDB_TEST": test},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    print(result.stdout, result.stderr)
    assert result.returncode == 0, f"{program.name} failed"
    assert re.search(r"^[1-9]\d* checks, 0 failed$", result.stdout, re.MULTILINE)
    return result.stdout


@pytest.mark.parametrize(("program", "test"), TESTS)
def test_native(program: str, test: str, compile_test: Callable[[str, bool], Path]) -> None:
    assert f"ok   {test}\n" in ran(compile_test(program, False), test)


@pytest.mark.long
@pytest.mark.parametrize("program", PROGRAMS)
def test_native_with_the_sanitiser_everywhere(program: str, compile_test: Callable[[str, bool], Path]) -> None:
    assert "ok   test_" in ran(compile_test(program, True), "")


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
    folders = {path.name for path in (ROOT / "native" / "src").iterdir() if path.is_dir()}
    assert folders | {"fast", "ids", "states", "words"} == {program.removeprefix("test_") for program in PROGRAMS}


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
