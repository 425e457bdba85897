"""Builds the C harnesses of tests/fuzz/native: with libFuzzer, or as one program that replays inputs."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
NATIVE = Path(__file__).resolve().parent / "native"
NAMES = tuple(sorted(path.stem.removeprefix("fuzz_") for path in NATIVE.glob("fuzz_*.c")))

_BASE = ["-std=c17", "-ffp-contract=off", "-g1", "-UNDEBUG", "-Inative/include"]
_SANITIZE = [*_BASE, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# The loops of these folders take long enough with addresses checked; what guides the fuzzer lies elsewhere.
_HOT = ("kernels", "hnsw", "ivf", "store")
_SANITIZE_HOT = [*_BASE, "-O2", "-fsanitize=address"]


@cache
def build_native() -> ModuleType:
    """The build script of the library."""
    spec = importlib.util.spec_from_file_location("build_native", ROOT / "build_native.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def clang() -> str | None:
    """A clang that brings libFuzzer, the newest by number; None where there is none."""
    for name in ("clang", *(f"clang-{version}" for version in range(30, 13, -1))):
        found = shutil.which(name)
        if found is None:
            continue
        with TemporaryDirectory() as scratch:
            source = Path(scratch, "empty.c")
            source.write_text("int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return n && !d; }\n")
            command = [found, "-fsanitize=fuzzer,address,undefined", str(source), "-o", f"{scratch}/empty"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return found
    return None


def build_fuzzers(out: Path, names: tuple[str, ...] = NAMES) -> dict[str, Path]:
    """Fuzzers under ASan and UBSan; objects that are newer than their sources stay.

    Args:
        out: where objects and programs go.
        names: the harnesses.

    Returns:
        The programs by name.
    """
    compiler = clang()
    assert compiler is not None
    out.mkdir(parents=True, exist_ok=True)
    headers = [*(ROOT / "native").rglob("*.h"), *NATIVE.glob("*.h")]
    newest = max(path.stat().st_mtime for path in headers)

    def compile_object(source: Path) -> str:
        target = out / f"{source.stem}.o"
        flags = _SANITIZE_HOT if source.parent.name in _HOT else [*_SANITIZE, "-fsanitize=fuzzer-no-link"]
        if not target.exists() or target.stat().st_mtime < max(newest, source.stat().st_mtime):
            subprocess.run([compiler, *flags, "-c", str(source), "-o", str(target)], cwd=ROOT, check=True)
        return str(target)

    with ThreadPoolExecutor(2) as workers:
        objects = list(workers.map(compile_object, build_native().sources()))
    programs = {}
    for name in names:
        programs[name] = out / f"fuzz_{name}"
        harness, libraries = str(NATIVE / f"fuzz_{name}.c"), ["-lm", "-lpthread"]
        command = [compiler, *_SANITIZE, "-fsanitize=fuzzer", harness, *objects, *libraries, "-o", str(programs[name])]
        subprocess.run(command, cwd=ROOT, check=True)
    return programs


def build_replay(out: Path, sanitizer: list[str] | None = None) -> Path:
    """The program that runs inputs through all harnesses.

    Args:
        out: a folder for it.
        sanitizer: a compiler with its sanitiser, for the core and the harnesses; None links with the built library.

    Returns:
        The program.
    """
    script, target = build_native(), out / "replay"
    files = ["-DFUZZ_REPLAY", "-Inative/include", *map(str, sorted(NATIVE.glob("*.c")))]
    if sanitizer is None:
        from fabstir_vectordb._native.library import find, library_path

        library = library_path(find())
        command = [*script.compiler(script.host_target()), "-std=c17", "-O1", *files, str(library)]
        command += [f"-Wl,-rpath,{library.parent}"]
    else:
        sources = [str(source) for source in script.sources()]
        command = [*sanitizer, "-std=c17", "-ffp-contract=off", "-O1", "-g", "-UNDEBUG", *files, *sources]
    subprocess.run([*command, "-o", str(target), "-lm", "-lpthread"], cwd=ROOT, check=True)
    return target


def replayed(program: Path, inputs: dict[str, list[bytes]], scratch: Path, **environment: str) -> str:
    """Runs inputs through a program of `build_replay`; returns what it prints.

    Raises:
        AssertionError: it ended with a finding; the last input is in the message.
    """
    import os

    arguments = []
    for name, raws in inputs.items():
        arguments.append(name)
        for number, raw in enumerate(raws):
            path = scratch / f"{name}-{number:04d}"
            path.write_bytes(raw)
            arguments.append(str(path))
    result = subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout
