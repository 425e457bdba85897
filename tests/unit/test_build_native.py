"""The build driver: what the compiler is asked for, what comes out, and that it is the same each time."""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fabstir_vectordb._native.library import ffi

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_native_under_test", ROOT / "build_native.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FVDB_CC", raising=False)
    monkeypatch.delenv("FVDB_TARGET", raising=False)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("system", "machine", "libc", "target"),
    [
        ("linux", "x86_64", "glibc", "x86_64-linux-gnu"),
        ("linux", "aarch64", "glibc", "aarch64-linux-gnu"),
        ("linux", "x86_64", "", "x86_64-linux-musl"),
        ("linux", "aarch64", "musl", "aarch64-linux-musl"),
        ("darwin", "arm64", "", "aarch64-macos"),
        ("darwin", "x86_64", "", "x86_64-macos"),
        ("win32", "AMD64", "", "x86_64-windows-gnu"),
        ("win32", "ARM64", "", "aarch64-windows-gnu"),
    ],
)
def test_the_host_has_its_target(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str, machine: str, libc: str, target: str
) -> None:
    monkeypatch.setattr(build.sys, "platform", system)
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    monkeypatch.setattr(build.platform, "libc_ver", lambda: (libc, ""))
    assert build.host_target() == target
    assert target in build.TARGETS


def test_an_unknown_host_is_told_what_to_set(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.platform, "machine", lambda: "pdp11")
    with pytest.raises(SystemExit, match=r"pdp11: set FVDB_TARGET to one of x86_64-linux-gnu"):
        build.host_target()


def test_every_target_names_its_oldest_system_and_cpu(build: ModuleType) -> None:
    for target in build.TARGETS:
        lowest = ".2.17" if target.endswith("linux-gnu") else ".11.0" if target.endswith("macos") else ""
        for command in build.commands(target, Path("out")):
            assert command[command.index("-target") + 1] == target + lowest
            assert any(flag.startswith("-mcpu=") for flag in command)
            assert "-ffp-contract=off" in command
            assert ("-fPIC" in command) == ("windows" not in target)


def test_loops_of_kernels_alone_are_unrolled(build: ModuleType) -> None:
    *kernels, link = build.commands("x86_64-windows-gnu", Path("out"))
    compiled = {command[command.index("-c") + 1] for command in kernels}
    assert compiled == {f"native/src/kernels/{path.name}" for path in (ROOT / "native/src/kernels").glob("*.c")}
    assert not any("-fno-unroll-loops" in command for command in kernels)
    assert "-fno-unroll-loops" in link
    assert not compiled & set(link)
    assert {command[-1] for command in kernels} <= set(link)


def test_another_compiler_takes_the_place_of_zig(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVDB_CC", "ccache gcc -m64")
    for command in build.commands("x86_64-linux-gnu", Path("out")):
        assert command[:3] == ["ccache", "gcc", "-m64"]
        assert not {"-target", "-fno-sanitize=all"} & set(command)


def test_a_sanitised_build_ends_at_the_first_finding(build: ModuleType) -> None:
    for command in build.commands("x86_64-linux-gnu", Path("out"), sanitize="undefined"):
        assert {"-fsanitize=undefined", "-fno-sanitize-recover=all", "-g"} <= set(command)
        assert not {"-DNDEBUG", "-s"} & set(command)


def test_sources_have_unique_names_in_one_order(build: ModuleType) -> None:
    names = [path.name for path in build.sources()]
    assert len(set(names)) == len(names) > 15
    assert build.sources() == sorted(build.sources())


def test_declarations_are_the_header_s(build: ModuleType, tmp_path: Path) -> None:
    text = build.declarations()
    assert "/*" not in text
    assert "#pragma" not in text
    assert "fvdb_status fvdb_search(fvdb_index *index" in text
    written = build.write_declarations(tmp_path / "new")
    assert digest(written) == digest(build.write_declarations(tmp_path / "again"))
    assert "fabstir_vectordb._native.declarations" in written.read_text(encoding="utf-8")


def test_the_library_is_small_exports_the_abi_and_is_the_same_each_time(build: ModuleType, tmp_path: Path) -> None:
    target = build.host_target()
    first = build.build_library(target, tmp_path / "one")
    second = build.build_library(target, tmp_path / "two" / "deeper")
    assert digest(first) == digest(second)
    assert first.stat().st_size < 1_000_000
    assert list(first.parent.iterdir()) == [first]
    assert str(ROOT).encode() not in first.read_bytes()
    lib = ffi.dlopen(str(first))
    assert lib.fvdb_abi_version() == lib.FVDB_ABI_VERSION


def test_a_failing_compiler_leaves_the_old_library(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / build.library_name(build.host_target())
    old.write_bytes(b"old")
    monkeypatch.setenv("FVDB_CC", f"{sys.executable} -c raise(SystemExit(3))")
    with pytest.raises(SystemExit, match="exit code 3"):
        build.build_library(build.host_target(), tmp_path)
    assert old.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [old]


@pytest.fixture
def another_compiler(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that writes what it was asked for: for tests of what happens around it."""
    script = tmp_path_factory.mktemp("cc") / "cc.py"
    script.write_text("import sys; open(sys.argv[-1], 'w').write(' '.join(sys.argv[1:]))")
    monkeypatch.setenv("FVDB_CC", shlex.join([sys.executable, str(script)]))


def test_the_command_line_builds_where_it_is_told(tmp_path: Path, another_compiler: None) -> None:
    command = [sys.executable, str(ROOT / "build_native.py"), "--output", str(tmp_path), "--debug"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "built" in printed
    assert "bytes) and declarations.py" in printed
    declared = (tmp_path / "declarations.py").read_text(encoding="utf-8")
    assert declared.endswith("OPTIONS = (True, '')\n")
    asked = next(path for path in tmp_path.iterdir() if path.name != "declarations.py").read_text(encoding="utf-8")
    assert "-O1 -g" in asked
    assert "-DNDEBUG" not in asked


@pytest.mark.long  # compiles the whole core
def test_a_debug_build_has_its_assertions(build: ModuleType, tmp_path: Path) -> None:
    """zig cc leaves them out of whatever it optimises, unless told otherwise."""
    assertion = b"s->live_count <= s->n"
    target = build.host_target()
    assert assertion in build.build_library(target, tmp_path, debug=True).read_bytes()
    assert assertion not in build.build_library(target, tmp_path).read_bytes()


def test_the_command_line_refuses_an_unknown_target(build: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build.main(["--target", "vax-ultrix"])
    assert "unknown target 'vax-ultrix': one of" in capsys.readouterr().err


# ---- the hook


def hook_run(tmp_path: Path, version: str, target_name: str = "wheel") -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hook = module.NativeBuildHook(str(ROOT), {}, None, None, str(tmp_path), target_name)
    data: dict[str, Any] = {"force_include": {}, "sbom_files": []}
    hook.initialize(version, data)
    made = [Path(source) for source in (*data["force_include"], *data["sbom_files"])]
    assert all(source.exists() for source in made)
    hook.finalize(version, data, "")
    assert not any(source.exists() for source in made)
    return data


def test_a_wheel_for_another_machine_leaves_the_tree_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another_compiler: None
) -> None:
    native = ROOT / "fabstir_vectordb" / "_native"
    before = {path.name: path.stat().st_mtime_ns for path in native.iterdir() if path.is_file()}
    monkeypatch.setenv("FVDB_TARGET", "aarch64-linux-gnu")
    data = hook_run(tmp_path, "standard")
    assert data["tag"] == "py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64"
    assert data["pure_python"] is False
    assert sorted(data["force_include"].values()) == [
        "fabstir_vectordb/_native/declarations.py",
        "fabstir_vectordb/_native/libfabstir_vectordb.so",
    ]
    assert before == {path.name: path.stat().st_mtime_ns for path in native.iterdir() if path.is_file()}


def test_an_sdist_builds_nothing(tmp_path: Path) -> None:
    assert hook_run(tmp_path, "standard", "sdist") == {"force_include": {}, "sbom_files": []}


def test_the_hook_refuses_an_unknown_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVDB_TARGET", "vax-ultrix")
    with pytest.raises(SystemExit, match="unknown FVDB_TARGET 'vax-ultrix'"):
        hook_run(tmp_path, "standard")
