"""Loading the native library: what is missing or does not fit is said before anything of it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fabstir_vectordb._native import library
from fabstir_vectordb.errors import InternalError


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
    public = {name for name in {*structs, *typedefs} if name not in ("fvdb_index", "fvdb_status")}
    assert set(fake.asked) == public


def test_another_abi_is_refused_before_any_struct_is_used() -> None:
    fake = FakeLibrary(abi=99)
    with pytest.raises(InternalError, match=r"ABI 99.*rebuild it: python build_native\.py") as caught:
        library.check(library.ffi, fake)
    assert caught.value.details == {"library_abi": 99, "declared_abi": fake.FVDB_ABI_VERSION}
    assert fake.asked == []


@pytest.mark.parametrize("name", ["fvdb_diag", "fvdb_stats", "fvdb_part"])
def test_another_struct_size_is_refused(name: str) -> None:
    with pytest.raises(InternalError, match=rf"{name} has 0 bytes.*rebuild") as caught:
        library.check(library.ffi, FakeLibrary(wrong=name))
    assert caught.value.details["struct"] == name
    assert caught.value.details["library_bytes"] == 0


def test_a_missing_library_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"cannot be loaded.*python build_native\.py"):
        library.load(tmp_path / "libfabstir_vectordb.so")


def test_a_damaged_library_says_how_to_build_it(tmp_path: Path) -> None:
    path = tmp_path / "libfabstir_vectordb.so"
    path.write_bytes(b"no library at all")
    with pytest.raises(ImportError, match=r"cannot be loaded.*python build_native\.py"):
        library.load(path)


def test_missing_declarations_say_how_to_build_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fabstir_vectordb._native.declarations", None)
    with pytest.raises(ImportError, match=r"never built.*python build_native\.py"):
        library.load(library.library_path())


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
