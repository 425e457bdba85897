"""A release: one wheel a platform, the same bytes each time, with its contents listed; run where that is possible."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import packaging.tags
import pytest
import shared_libraries

from fabstir_vectordb._native.library import find, library_path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PROGRAMS = sorted(path.stem for path in (ROOT / "tests" / "native").glob("test_*.c"))
TARGETS = [
    *("x86_64-linux-gnu", "aarch64-linux-gnu", "x86_64-linux-musl", "aarch64-linux-musl"),
    *("x86_64-macos", "aarch64-macos", "x86_64-windows-gnu", "aarch64-windows-gnu"),
]
WHEEL_BYTES_MAX = 1_000_000  # without the demo's data
#: The libraries that a system brings, by the system's name in a target.
SYSTEM = {
    "linux-gnu": {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"},
    "linux-musl": {"libc.so"},
    "macos": {"/usr/lib/libSystem.B.dylib"},
    "windows-gnu": {"KERNEL32.dll", "api-ms-win-crt-*.dll"},
}
#: Names that the linker of a system exports from every library.
LINKERS = {
    "macos": {"_mh_dylib_header", "__dso_handle"},
    "windows-gnu": {"__mingw_module_is_dll", "atexit", "_CRT_INIT"},
}


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_under_test", ROOT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return module("build_native")


@pytest.fixture(scope="module")
def hatch() -> ModuleType:
    return module("hatch_build")


@pytest.fixture(autouse=True, scope="module")
def no_settings_of_the_machine() -> Iterator[None]:
    """Of the whole module, so that the first release has none of them either."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FVDB_CC", "FVDB_TARGET", "FVDB_PACKER", "SOURCE_DATE_EPOCH"):
            patch.delenv(name, raising=False)
        yield


def check_library(build: ModuleType, target: str, path: Path) -> None:
    """It exports the ABI alone, and needs the system alone."""
    library, system = shared_libraries.read(path), target.partition("-")[2]
    abi = set(re.findall(r"\b(fvdb_\w+)\(", build.declarations()))
    assert library.exports - LINKERS.get(system, set()) == abi
    assert library.needs
    assert [name for name in library.needs if not any(fnmatch(name, known) for known in SYSTEM[system])] == []


def check_bill(bill: dict[str, Any], target: str, *packers: str) -> None:
    """Each component has its licence, and each licence that is not ours is in a file of the wheel."""
    contents = {component["name"]: component for component in bill["components"]}
    runtime = {"mingw-w64 runtime of Zig", "compiler_rt of Zig"} if "windows" in target else set()
    data = {"Unicode Character Database", "WordNet", "S5 seed words"}
    [library] = set(contents) - runtime - data
    assert contents.keys() >= runtime | data
    assert library.endswith((".so", ".dylib", ".dll"))
    assert bill["metadata"]["component"]["version"] == PROJECT["version"]
    tools = {tool["name"] for tool in bill["metadata"]["tools"]["components"]}
    assert tools == {"hatchling", "cffi", "ziglang", *packers}
    assert [{*edge["dependsOn"]} for edge in bill["dependencies"]] == [contents.keys()]
    assert all(component["licenses"][0]["expression"] for component in contents.values())


def test_every_target_has_its_wheel_s_tag(build: ModuleType) -> None:
    assert list(build.TARGETS) == TARGETS
    known = {str(tag) for tag in packaging.tags.sys_tags()}
    own = packaging.tags.parse_tag(f"py3-none-{build.TARGETS[build.host_target()]}")
    assert known & {str(tag) for tag in own}


def test_the_library_exports_the_abi_and_needs_the_system_alone(build: ModuleType) -> None:
    check_library(build, build.host_target(), library_path(find()))


@pytest.mark.parametrize("target", ["x86_64-linux-gnu", "aarch64-windows-gnu"])
def test_a_bill_lists_contents_licences_and_tools(
    hatch: ModuleType, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "fabstir_vectordb.dll"
    library.write_bytes(b"a library")
    bill = hatch.bill_of_materials(ROOT, target, library)
    check_bill(bill, target)
    assert bill["components"][0]["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(b"a library").hexdigest()}]
    assert bill == hatch.bill_of_materials(ROOT, target, library)
    assert "timestamp" not in bill["metadata"]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
    assert hatch.bill_of_materials(ROOT, target, library)["metadata"]["timestamp"] == "2027-01-15T08:00:00+00:00"


def test_a_bill_says_nothing_of_an_unknown_compiler_s_runtime(
    hatch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libfabstir_vectordb.so"
    library.touch()
    monkeypatch.setenv("FVDB_CC", "gcc")
    bill = hatch.bill_of_materials(ROOT, "x86_64-windows-gnu", library)
    assert {part["type"] for part in bill["components"]} == {"file", "data"}
    assert [tool["name"] for tool in bill["metadata"]["tools"]["components"]] == ["hatchling", "cffi"]


def test_every_licence_is_in_the_wheels() -> None:
    chosen = {path for pattern in PROJECT["license-files"] for path in ROOT.glob(pattern)}
    folders = (ROOT / "native", ROOT / "fabstir_vectordb")
    assert chosen == {ROOT / "LICENSE", *(path for folder in folders for path in folder.rglob("LICENSE*"))}


def test_the_changelog_begins_with_this_version() -> None:
    [newest, *_] = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest == PROJECT["version"]


def test_a_release_takes_an_empty_directory(hatch: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("zopfli")
    (tmp_path / "older.whl").touch()
    with pytest.raises(SystemExit, match="is not empty"):
        hatch.main([str(tmp_path)])


def test_a_wheel_is_packed_smaller_with_the_same_files(hatch: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("zopfli")
    wheel = tmp_path / "one.whl"
    text = (ROOT / "hatch_build.py").read_bytes()
    with zipfile.ZipFile(wheel, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        for name, content in (("a.py", text), ("empty.py", b""), ("again.py", text)):
            entry = zipfile.ZipInfo(name, (2020, 2, 2, 0, 0, 0))
            entry.external_attr, entry.compress_type = 0o100644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    before = wheel.stat().st_size
    known: dict[bytes, bytes] = {}
    hatch.pack_smaller(wheel, known)
    assert wheel.stat().st_size < before
    assert known.keys() == {text, b""}
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        assert [entry.filename for entry in archive.infolist()] == ["a.py", "empty.py", "again.py"]
        assert archive.read("again.py") == text
        first = archive.getinfo("a.py")
        assert (first.date_time, first.external_attr) == ((2020, 2, 2, 0, 0, 0), 0o100644 << 16)
    assert list(tmp_path.iterdir()) == [wheel]


def test_a_release_names_the_packer_that_is_missing(
    hatch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hatch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install zopfli"):
        hatch.main([str(tmp_path)])


# ---- all wheels, for minutes


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zopfli")
    directory = tmp_path_factory.mktemp("release")
    subprocess.run([sys.executable, ROOT / "hatch_build.py", directory], check=True)
    return directory


def wheel_of(release: Path, build: ModuleType, target: str) -> Path:
    [wheel] = release.glob(f"*-py3-none-{build.TARGETS[target]}.whl")
    return wheel


@pytest.fixture(scope="module")
def libraries(release: Path, build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The library of each wheel, by target."""
    found = {}
    for target in TARGETS:
        directory = tmp_path_factory.mktemp(target)
        with zipfile.ZipFile(wheel_of(release, build, target)) as wheel:
            name = f"fabstir_vectordb/_native/{build.library_name(target)}"
            found[target] = Path(wheel.extract(name, directory))
    return found


@pytest.mark.long
def test_a_second_release_is_equal(release: Path, tmp_path: Path) -> None:
    """From the sdist of the first, in another directory, with a compiler that has compiled nothing yet."""
    [sdist] = release.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "elsewhere", filter="data")
    [tree] = (tmp_path / "elsewhere").iterdir()
    second = tmp_path / "second"
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(tmp_path / "zig")}
    subprocess.run([sys.executable, tree / "hatch_build.py", second], env=environment, check=True)
    sums = (release / "SHA256SUMS").read_text(encoding="utf-8")
    assert sums == (second / "SHA256SUMS").read_text(encoding="utf-8")
    assert sums.count("\n") == len(TARGETS) + 1


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_a_wheel_is_small_and_lists_its_contents(
    release: Path, libraries: dict[str, Path], build: ModuleType, target: str
) -> None:
    path = wheel_of(release, build, target)
    info = f"fabstir_vectordb-{PROJECT['version']}.dist-info"
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        bill = json.loads(wheel.read(f"{info}/sboms/fabstir_vectordb.cdx.json"))
        tags = re.findall(r"^Tag: (.*)$", wheel.read(f"{info}/WHEEL").decode(), re.MULTILINE)
        demo_bytes = sum(entry.compress_size for entry in wheel.infolist() if "/demo/" in entry.filename)
    assert sorted(tags) == [f"py3-none-{platform}" for platform in sorted(build.TARGETS[target].split("."))]
    assert not [name for name in names if not name.startswith(("fabstir_vectordb/", info))]
    for pattern in PROJECT["license-files"]:
        for licence in ROOT.glob(pattern):
            assert f"{info}/licenses/{licence.relative_to(ROOT).as_posix()}" in names
    check_bill(bill, target, "zopfli")
    content = libraries[target].read_bytes()
    assert bill["components"][0]["hashes"][0]["content"] == hashlib.sha256(content).hexdigest()
    print(f"{path.stat().st_size:,} bytes, {path.stat().st_size - demo_bytes:,} without the demo's, {path.name}")
    assert path.stat().st_size - demo_bytes <= WHEEL_BYTES_MAX


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_a_wheel_s_library_exports_the_abi_and_needs_the_system_alone(
    libraries: dict[str, Path], build: ModuleType, target: str
) -> None:
    """Hidden visibility once left a Windows library without a single call."""
    check_library(build, target, libraries[target])
    content = libraries[target].read_bytes()
    assert str(ROOT).encode() not in content
    versions = {tuple(map(int, found.split(b"."))) for found in re.findall(rb"\0GLIBC_([\d.]+)(?=\0)", content)}
    assert not versions or max(versions) <= (2, 17)
    assert bool(versions) == target.endswith("linux-gnu")


@pytest.mark.long
def test_an_installed_wheel_runs_the_first_example_and_the_demo(
    release: Path, build: ModuleType, tmp_path: Path
) -> None:
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel_of(release, build, build.host_target())) as wheel:
        wheel.extractall(installed)
    [example] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    (tmp_path / "example.py").write_text(
        f"import fabstir_vectordb\nassert fabstir_vectordb.__file__.startswith({str(installed)!r})\n{example}"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed), "FABSTIR_STORE": (tmp_path / "store").as_uri()}
    for command, printed in (
        (["example.py"], "0.998 doc1 roses are red"),
        (["-m", "fabstir_vectordb", "demo"], "bit for bit"),
    ):
        result = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert printed in result.stdout


# ---- other platforms, as far as this one runs them


def runner(target: str) -> list[str]:
    """The command before a program for a target; skips where there is none."""
    if target.startswith("x86_64"):
        return []
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("qemu-aarch64 (Debian: qemu-user) is not installed")
    return [emulator]


def ran(command: list[str]) -> str:
    """What a test program says, none of whose checks failed."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3_600)
    print(result.stdout, result.stderr)
    assert result.returncode == 0
    assert re.search(r"^[1-9]\d* checks, 0 failed$", result.stdout, re.MULTILINE)
    return result.stdout


def options(build: ModuleType, target: str) -> list[str]:
    """What compiles a test for a target, its assertions on."""
    includes = ["-Inative/include", "-Inative/src", "-Itests/native"]
    return [*build.compiler(target), *build.FLAGS, "-O2", "-UNDEBUG", "-fno-sanitize=all", *includes]


@pytest.mark.long
@pytest.mark.parametrize("target", ["x86_64-linux-musl", "aarch64-linux-musl"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_native_programs_run_without_a_libc_of_the_system(
    build: ModuleType, program: str, target: str, tmp_path: Path
) -> None:
    """Statically linked with musl; those for aarch64 in an emulator, which has all NEON instructions of the kernels."""
    start = runner(target)
    binary = tmp_path / program
    files = [f"tests/native/{program}.c", *map(str, build.sources())]
    command = [*options(build, target), "-static", *files, "-o", str(binary), "-lm", "-lpthread"]
    subprocess.run(command, cwd=ROOT, check=True)
    printed = ran([*start, str(binary)])
    if program == "test_kernels" and target.startswith("aarch64"):
        assert "  neon\n" in printed
        assert "  neon\n" not in ran([*start, "-cpu", "cortex-a53", str(binary)])  # without dot product instructions


#: The dynamic loader of a Linux target.
LOADERS = {
    "x86_64-linux-gnu": "/lib64/ld-linux-x86-64.so.2",
    "aarch64-linux-gnu": "/lib/ld-linux-aarch64.so.1",
    "x86_64-linux-musl": "/lib/ld-musl-x86_64.so.1",
    "aarch64-linux-musl": "/lib/ld-musl-aarch64.so.1",
}


@pytest.mark.long
@pytest.mark.parametrize("target", LOADERS)
def test_a_wheel_s_library_answers_in_another_system(
    libraries: dict[str, Path], build: ModuleType, target: str, tmp_path: Path
) -> None:
    """Every entry in every state, from a program that has nothing of the core but the wheel's library."""
    start = runner(target)
    # qemu takes files of the other system from here: Debian's libc6-arm64-cross, or a root of one's own.
    root = os.environ.get("QEMU_LD_PREFIX", "/usr/aarch64-linux-gnu") if start else "/"
    if not Path(root, LOADERS[target][1:]).exists():
        pytest.skip(f"{LOADERS[target]} is not in {root}")
    binary = tmp_path / "test_states"
    sources = ["tests/native/test_states.c", str(libraries[target])]
    dynamic = [f"-Wl,--dynamic-linker={LOADERS[target]}", "-dynamic"] if target.endswith("musl") else []
    command = [*options(build, target), *dynamic, *sources, "-o", str(binary), "-lm", "-lpthread"]
    subprocess.run(command, cwd=ROOT, check=True)
    ran([*start, *(["-L", root] if start else []), str(binary)])
