"""Loading the native library: what is missing or does not fit is said before anything of it is used."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fabstir_vectordb import extras
from fabstir_vectordb._native import library
from fabstir_vectordb.errors import InternalError

ROOT = Path(__file__).resolve().parents[2]
NATIVE = library.find()


class FakeLibrary:
    """The two calls and the constant that the check uses, with answers of our choosing."""

    FVDB_ABI_VERSION = library.lib.FVDB_ABI_VERSION

    def __init__(self, abi: int | None = None, wrong: str = "") -> None:
        self.abi = self.FVDB_ABI_VERSION if abi is None else abi
        self.wrong = wrong
        self.asked: list[str] = []

    def fvdb_abi_version(self) -> int:
        return self.abi

    def fvdb_struct_size(self, name: bytes) -> int:
        self.asked.append(name.decode())
        return 0 if name.decode() == self.wrong else int(library.ffi.sizeof(name.decode()))


def test_the_library_in_the_package_is_the_declared_one() -> None:
    assert library.library_path().parent == Path(library.__file__).parent
    library.check(library.ffi, library.lib)


def test_every_public_struct_of_the_header_is_compared() -> None:
    fake = FakeLibrary()
    library.check(library.ffi, fake)
    _, structs, _ = library.ffi.list_types()
    typedefs, _, _ = library.ffi.list_types()
    opaque = ("fvdb_index", "fvdb_batch", "fvdb_text", "fvdb_text_change", "fvdb_status")
    public = {name for name in {*structs, *typedefs} if name not in opaque}
    assert set(fake.asked) == public


def test_another_abi_is_refused_before_any_struct_is_used() -> None:
    fake = FakeLibrary(abi=99)
    with pytest.raises(InternalError, match=r"ABI 99.*build it: .*build_native\.py") as caught:
        library.check(library.ffi, fake)
    assert caught.value.details == {"library_abi": 99, "declared_abi": fake.FVDB_ABI_VERSION}
    assert fake.asked == []


@pytest.mark.parametrize("name", ["fvdb_diag", "fvdb_stats", "fvdb_part"])
def test_another_struct_size_is_refused(name: str) -> None:
    with pytest.raises(InternalError, match=rf"{name} has 0 bytes.*build it") as caught:
        library.check(library.ffi, FakeLibrary(wrong=name))
    assert caught.value.details["struct"] == name
    assert caught.value.details["library_bytes"] == 0


# ---- an installed package


def test_an_installed_package_without_its_library_says_how_to_install_it_again(tmp_path: Path) -> None:
    directory = tmp_path / "site-packages" / "fabstir_vectordb" / "_native"
    for call in (library.find, library.load):
        with pytest.raises(ImportError, match=r"no native library in .*--force-reinstall"):
            call(directory)


def test_a_damaged_library_says_how_to_install_it_again(tmp_path: Path) -> None:
    library.library_path(tmp_path).write_bytes(b"no library at all")
    shutil.copy(NATIVE / "declarations.py", tmp_path)
    with pytest.raises(ImportError, match=r"cannot be loaded.*--force-reinstall"):
        library.load(tmp_path)


@pytest.mark.parametrize(
    ("record", "origin"),
    [
        ('{"url": "file:///home/me/a%20clone", "dir_info": {}}', "/home/me/a clone"),
        ('{"url": "https://host/p.git", "vcs_info": {"vcs": "git", "commit_id": "0"}}', "git+https://host/p.git"),
        ('{"url": "https://host/p.whl", "archive_info": {}}', "https://host/p.whl"),
        (None, "fabstir_vectordb"),
    ],
)
def test_the_hint_names_where_the_package_came_from(
    monkeypatch: pytest.MonkeyPatch, record: str | None, origin: str
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return record

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed())
    assert library._origin() == origin


# ---- a source tree


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A source tree that was never built."""
    root = tmp_path / "a clone"
    keep_out = shutil.ignore_patterns("__pycache__", "*.so", "*.dylib", "*.dll", "declarations.py", "demo")
    for name in ("fabstir_vectordb", "native"):
        shutil.copytree(ROOT / name, root / name, ignore=keep_out)
    for name in ("build_native.py", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    return root


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler whose every result is the library of this installation; its file lists what it linked."""
    script, calls = tmp_path / "cc.py", tmp_path / "calls"
    script.write_text(
        "import shutil, sys\n"
        f"if '-shared' in sys.argv: open({str(calls)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))\n"
        f"shutil.copy({str(library.library_path(NATIVE))!r}, sys.argv[-1])\n"
    )
    calls.touch()
    monkeypatch.setenv("FVDB_CC", shlex.join([sys.executable, str(script)]))
    return calls


def in_clone(clone: Path, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": "" if path is None else str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False, timeout=300)


def differ(clone: Path) -> Path:
    """Gives a clone other sources than any installed library was built from; a header of it."""
    header = clone / "native" / "src" / "hnsw" / "hnsw.h"
    header.write_text(header.read_text(encoding="utf-8") + "/* of the clone */\n", encoding="utf-8")
    return header


SHOW = "import fabstir_vectordb as f; from fabstir_vectordb._native import library as n; print(f.__file__, n.find())"


def test_the_first_example_runs_in_a_clone_that_hides_the_installed_package(clone: Path, tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    shutil.copytree(ROOT / "fabstir_vectordb", site / "fabstir_vectordb", ignore=shutil.ignore_patterns("__pycache__"))
    for built in (library.library_path(NATIVE), NATIVE / "declarations.py"):
        shutil.copy(built, site / "fabstir_vectordb" / "_native")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (clone / "example.py").write_text(readme.split("```python\n", 1)[1].split("```", 1)[0], encoding="utf-8")
    for _ in range(2):
        done = in_clone(clone, "example.py", path=site)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("0.998 doc1 roses are red\n")
    shown = in_clone(clone, "-c", SHOW, path=site)
    package, native = shown.stdout.strip().split(f"{os.sep}__init__.py ")
    assert Path(package) == clone / "fabstir_vectordb"
    assert Path(native) == site / "fabstir_vectordb" / "_native"


def test_a_source_tree_builds_what_it_lacks_and_what_has_changed(clone: Path, compiler: Path) -> None:
    header = differ(clone)
    for builds in (1, 1, 2):
        if builds == 2:
            header.write_text(header.read_text(encoding="utf-8") + "/* changed */\n", encoding="utf-8")
        done = in_clone(clone, "-c", SHOW)
        assert done.returncode == 0, done.stderr
        assert str(clone) in done.stdout
        assert len(compiler.read_text().splitlines()) == builds
        assert len(done.stdout.splitlines()) == 1  # a build says nothing on stdout
    assert "-O3" in compiler.read_text().splitlines()[-1]

    # A debug library is followed by a debug library.
    assert in_clone(clone, "build_native.py", "--debug").returncode == 0
    header.write_text(header.read_text(encoding="utf-8") + "/* again */\n", encoding="utf-8")
    assert in_clone(clone, "-c", SHOW).returncode == 0
    assert ["-O3" in line for line in compiler.read_text().splitlines()] == [True, True, False, False]


def test_processes_that_begin_together_build_once(clone: Path, compiler: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows lets both build")
    differ(clone)
    environment = {**os.environ, "PYTHONPATH": ""}
    running = [subprocess.Popen([sys.executable, "-c", SHOW], cwd=clone, env=environment) for _ in range(3)]
    assert [process.wait(300) for process in running] == [0, 0, 0]
    assert len(compiler.read_text().splitlines()) == 1


def test_a_source_tree_that_cannot_be_built_says_what_to_do(
    clone: Path, compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = clone / "fabstir_vectordb" / "_native"
    monkeypatch.setattr(library, "_installed", lambda own: iter(()))
    monkeypatch.setenv("FVDB_CC", f"{sys.executable} -c raise(SystemExit(3))")
    with pytest.raises(ImportError, match=r"never built: the C compiler failed with exit code 3; build it: ") as caught:
        library.find(directory)
    # The command at the end is one for a shell, with this Python and the clone's script.
    remedy = str(caught.value).rpartition(" && ")[2]
    assert shlex.split(remedy) == [sys.executable, str(clone / "build_native.py")]

    monkeypatch.delenv("FVDB_CC")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ziglang" else find_spec(name))
    with pytest.raises(ImportError, match=r"ziglang, is not installed; build it: .* -m pip install ziglang"):
        library.find(directory)


def test_a_library_older_than_its_sources_is_used_with_a_warning_where_nothing_can_build_it(
    clone: Path, compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = clone / "fabstir_vectordb" / "_native"
    monkeypatch.setattr(library, "_installed", lambda own: iter(()))
    assert library.find(directory) == directory
    source = clone / "native" / "src" / "api.c"
    source.write_text(source.read_text(encoding="utf-8") + "/* changed */\n", encoding="utf-8")
    monkeypatch.setenv("FVDB_CC", f"{sys.executable} -c raise(SystemExit(3))")
    with pytest.warns(RuntimeWarning, match="older than its C sources: the C compiler failed"):
        assert library.find(directory) == directory


def test_a_clone_that_was_never_installed_knows_its_version(clone: Path, compiler: Path) -> None:
    code = (
        "import importlib.metadata as m\n"
        "def none(name): raise m.PackageNotFoundError(name)\n"
        "m.version = none\n"
        "import fabstir_vectordb; print(fabstir_vectordb.get_version())"
    )
    assert in_clone(clone, "-c", code).stdout.strip() == library_version()


def library_version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return str(project["project"]["version"])


def test_the_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    optional = project["project"]["optional-dependencies"]
    assert {name: list(packages) for name, packages in extras.EXTRAS.items()} == {
        name: optional[name] for name in extras.EXTRAS
    }
    assert set(optional) - set(extras.EXTRAS) == {"docs", "test"}
    assert shlex.split(extras.install_command("plot")) == [sys.executable, "-m", "pip", "install", *optional["plot"]]


@pytest.mark.long
def test_the_first_line_of_the_readme_makes_demo_and_example_run(tmp_path: Path) -> None:
    """With a fresh environment and the package registry, in a clone; also when the install is not an editable one."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    line = readme.split("```sh\n", 1)[1].split("\n", 1)[0]
    example = readme.split("```python\n", 1)[1].split("```", 1)[0]
    for name, first in [("editable", line), ("plain", line.replace(" -e ", " "))]:
        root = tmp_path / name
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(root)], check=True)
        subprocess.run([sys.executable, "-m", "venv", str(root / ".venv")], check=True)
        environment = {**os.environ, "PATH": f"{root / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(first, shell=True, cwd=root, env=environment, capture_output=True, text=True, check=True)
        assert "gone from the answers" in done.stdout
        assert "unsaved" not in done.stderr
        (root / "example.py").write_text(example, encoding="utf-8")
        for _ in range(2):
            ran = subprocess.run(
                "python example.py", shell=True, cwd=root, env=environment, capture_output=True, text=True, check=False
            )
            assert (ran.returncode, ran.stderr) == (0, "")
            assert ran.stdout.startswith("0.998 doc1 roses are red\n")


@pytest.mark.parametrize(
    ("system", "name"),
    [
        ("linux", "libfabstir_vectordb.so"),
        ("darwin", "libfabstir_vectordb.dylib"),
        ("win32", "fabstir_vectordb.dll"),
    ],
)
def test_the_file_name_is_that_of_the_platform(system: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.sys, "platform", system)  # type: ignore[attr-defined]
    assert library.library_path().name == name


def _import_in_new_process(code: str) -> Any:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_takes_no_heavy_module() -> None:
    """What makes an import slow; its seconds belong into a benchmark, not into a test on a shared machine."""
    code = "import sys, fabstir_vectordb; print(*(m for m in sys.modules if '.' not in m))"
    heavy = {"click", "tqdm", "platformdirs", "trio", "asyncio", "cffi", "pycparser", "httpx"}
    loaded = set(_import_in_new_process(code).split())
    assert not loaded & heavy, f"import loads {loaded & heavy}"
