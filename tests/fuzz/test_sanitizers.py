"""Sanitisers and valgrind over ten threads of sessions, and over the kept inputs.

    FVDB_STRESS_S=60 python -m pytest -m long tests/fuzz/test_sanitizers.py -s

The library is built once more by gcc, whose runtimes can be loaded before Python, into a copy of the package.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import native_harnesses
import pytest
from stress_threads import VERBS
from test_corpus import native_inputs

from fabstir_vectordb._native.library import library_path

ROOT = Path(__file__).resolve().parents[2]
STRESS = Path(__file__).resolve().parent / "stress_threads.py"
#: Seconds of the stress under TSan; a fifth of it under ASan and UBSan.
SECONDS = float(os.environ.get("FVDB_STRESS_S", "300"))

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="runtimes are loaded before Python on Linux"),
]


def package_with(directory: Path, *flags: str) -> Path:
    """A copy of the package with a library that gcc built with these flags; returns the folder to import from."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc, which brings the runtimes, is not installed")
    build = native_harnesses.build_native()
    package = directory / "fabstir_vectordb"
    shutil.copytree(ROOT / "fabstir_vectordb", package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    command = [gcc, "-std=c17", "-ffp-contract=off", "-fvisibility=hidden", "-O1", "-g", "-fPIC", "-shared", *flags]
    sources = [str(source) for source in build.sources()]
    target = library_path(package / "_native")
    subprocess.run(
        [*command, "-Inative/include", *sources, "-o", str(target), "-lm", "-lpthread"], cwd=ROOT, check=True
    )
    build.write_declarations(package / "_native")
    return directory


def runtime(name: str) -> str:
    """The path of one of gcc's runtimes."""
    said = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(said).is_absolute():
        pytest.skip(f"{name} is not installed")
    return str(Path(said).resolve())


def stressed(folder: Path, seconds: float, command: list[str], threads: int = 10, **environment: str) -> str:
    """Runs the stress with a package, in which every verb succeeds; returns what was written to stderr."""
    result = subprocess.run(
        [*command, sys.executable, str(STRESS), str(seconds), str(threads)],
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONMALLOC": "malloc", **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    print(result.stdout, result.stderr[-8000:])
    assert result.returncode == 0, result.stderr[-8000:]
    done = json.loads(result.stdout.splitlines()[-1])
    assert {verb.__name__ for verb in VERBS} <= done.keys()
    return result.stderr


def fixed_addresses() -> list[str]:
    """Runs a program where the runtimes expect it: they do not know the addresses that newer kernels choose."""
    return [shutil.which("setarch") or pytest.skip("setarch, of util-linux, is not installed"), "-R"]


def test_tsan_stress(tmp_path: Path) -> None:
    folder = package_with(tmp_path, "-fsanitize=thread")
    said = stressed(
        folder,
        SECONDS,
        fixed_addresses(),
        LD_PRELOAD=runtime("libtsan.so"),
        # Python and numpy are not built for it: only what the library does is looked at.
        TSAN_OPTIONS="ignore_noninstrumented_modules=1 exitcode=66 history_size=4",
    )
    assert "WARNING: ThreadSanitizer" not in said


def test_asan_and_ubsan_stress(tmp_path: Path) -> None:
    folder = package_with(tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    said = stressed(
        folder,
        SECONDS / 5,
        fixed_addresses(),
        LD_PRELOAD=runtime("libasan.so"),
        # What Python itself keeps to its end would count as lost.
        ASAN_OPTIONS="detect_leaks=0",
    )
    assert "runtime error" not in said


def test_valgrind_stress(tmp_path: Path) -> None:
    """No error and no lost block whose stack has the library in it, while three threads do every verb once.

    Rows are some thousand of 24 dimensions, with metadata and words: enough for a graph and for lists.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        pytest.skip("valgrind is not installed")
    folder = package_with(tmp_path)
    said = stressed(
        folder,
        0,
        [valgrind, "--leak-check=full", "--show-leak-kinds=definite,indirect", "--num-callers=30", "--error-limit=no"],
        threads=3,
        FVDB_KERNELS="avx2",  # valgrind knows no later ones
    )
    assert "HEAP SUMMARY" in said
    print(*re.findall(r"(?:HEAP SUMMARY|ERROR SUMMARY|total heap usage).*", said), sep="\n")
    blocks = re.split(r"^==\d+== $", said, flags=re.MULTILINE)
    ours = [block for block in blocks if "libfabstir_vectordb.so" in block or "fvdb_" in block]
    assert ours == [], "\n".join(ours)[:20_000]


def test_kept_inputs_under_asan_and_ubsan(tmp_path: Path) -> None:
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc, which brings the sanitisers, is not installed")
    program = native_harnesses.build_replay(
        tmp_path, [gcc, "-pthread", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    )
    inputs = native_inputs()
    assert f"{sum(map(len, inputs.values()))} inputs" in native_harnesses.replayed(program, inputs, tmp_path)


def test_kept_inputs_under_valgrind(tmp_path: Path) -> None:
    valgrind, gcc = shutil.which("valgrind"), shutil.which("gcc")
    if valgrind is None or gcc is None:
        pytest.skip("valgrind or gcc is not installed")
    program = native_harnesses.build_replay(tmp_path, [gcc, "-pthread"])
    script = tmp_path / "replay-in-valgrind"
    options = "--quiet --leak-check=full --errors-for-leak-kinds=definite --error-exitcode=9"
    script.write_text(f'#!/bin/sh\nexec {valgrind} {options} {program} "$@"\n')
    script.chmod(0o755)
    # A few of each: it is fifty times slower.
    inputs = {name: raws[:12] for name, raws in native_inputs().items()}
    native_harnesses.replayed(script, inputs, tmp_path, FVDB_KERNELS="avx2")
