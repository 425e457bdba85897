"""Finds the native library, loads it, and compares its ABI with the declarations before any other call.

In an installed package the library is beside this file. In a source tree (a clone, an unpacked sdist) it is there only
after a build, and the C files may have changed since. An import from a source tree therefore compares the digest of the
C sources with the digest in the declarations. If they differ, it uses the library of an installed package that was
built from the same sources, as when a clone hides the package that pip installed from it. If there is none, it builds
the library.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from fabstir_vectordb.errors import InternalError
from fabstir_vectordb.extras import pip_command

__all__ = ["ffi", "lib"]

_STRUCTS = (
    "fvdb_diag",
    "fvdb_control",
    "fvdb_config",
    "fvdb_rows",
    "fvdb_stats",
    "fvdb_search_params",
    "fvdb_part",
    "fvdb_allowed",
    "fvdb_answer",
    "fvdb_load",
    "fvdb_step",
    "fvdb_field",
    "fvdb_cells",
    "fvdb_text_config",
    "fvdb_text_rows",
    "fvdb_text_stats",
    "fvdb_text_term",
    "fvdb_text_clause",
    "fvdb_text_totals",
    "fvdb_text_query",
)
_HERE = Path(__file__).resolve().parent


class Built(NamedTuple):
    """A library and the declarations that were generated with it.

    Attributes:
        directory: directory of both.
        declarations: the loaded module declarations.py.
    """

    directory: Path
    declarations: ModuleType

    @property
    def sources(self) -> str:
        """SHA-256 of the sources of the library; empty if the declarations have none."""
        return str(getattr(self.declarations, "SOURCES_SHA256", ""))


def library_path(directory: Path = _HERE) -> Path:
    """The path of this platform's library in a directory."""
    name = {"win32": "fabstir_vectordb.dll", "darwin": "libfabstir_vectordb.dylib"}.get(
        sys.platform, "libfabstir_vectordb.so"
    )
    return directory / name


def find(directory: Path = _HERE) -> Path:
    """The directory whose library and declarations belong to this package.

    Args:
        directory: the package's own `_native` directory.

    Returns:
        The directory itself, or the directory of an installed package that was built from the same sources.

    Raises:
        ImportError: there is no library, and the library cannot be built.
    """
    script = _build_script(directory)
    if script is None:
        if (found := _built(directory)) is None:
            raise ImportError(f"the package has no native library in {directory}; {_remedy(directory)}")
        return found.directory
    wanted = script.sources_digest()
    own = _built(directory)
    if own is not None and own.sources == wanted:
        return directory
    for other in _installed(directory):
        if other.sources == wanted:
            return other.directory
    reason = _build(script, directory)
    if reason is None:
        return directory
    if own is None:
        raise ImportError(f"the native library was never built: {reason}; {_remedy(directory)}")
    # The older library is used: `check` still refuses it if its ABI differs.
    message = f"the native library is older than its C sources: {reason}; {_remedy(directory)}"
    warnings.warn(message, RuntimeWarning, stacklevel=2)
    return directory


def _build_script(directory: Path) -> ModuleType | None:
    """The module build_native.py of the source tree around a `_native` directory; None in an installed package."""
    path = directory.parents[1] / "build_native.py"
    if not (path.is_file() and (directory.parents[1] / "native" / "src").is_dir()):
        return None
    return _module("fabstir_vectordb_build_native", path)


def _module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _built(directory: Path) -> Built | None:
    declarations = directory / "declarations.py"
    if not (declarations.is_file() and library_path(directory).is_file()):
        return None
    return Built(directory, _module("fabstir_vectordb._native.declarations", declarations))


def _installed(own: Path) -> Iterator[Built]:
    """The libraries in other directories of the search path, such as site-packages."""
    for entry in sys.path:
        directory = Path(entry or ".").resolve() / "fabstir_vectordb" / "_native"
        with contextlib.suppress(OSError):
            if directory != own and (found := _built(directory)) is not None:
                yield found


def _build(script: ModuleType, directory: Path) -> str | None:
    """Builds the library and its declarations in place; returns the reason of a failure, else None."""
    if not script.has_compiler():
        return "the compiler, the package ziglang, is not installed"
    print("fabstir_vectordb: building the native library from its C sources …", file=sys.stderr)
    try:
        script.build_in_place(directory)
    except (SystemExit, OSError, ImportError) as error:
        return str(error)
    return None


def _remedy(directory: Path) -> str:
    """The shell commands that build or install a matching library."""
    root = directory.parents[1]
    if (root / "build_native.py").is_file():
        build = shlex.join([sys.executable or "python", str(root / "build_native.py")])
        return f"build it: {pip_command(['ziglang', 'cffi'])} && {build}"
    return f"install the package again: {pip_command(['--force-reinstall', '--no-deps', _origin()])}"


def _origin() -> str:
    """The source of the installed package (PEP 610): a directory or URL; else the package's name."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import unquote, urlsplit

    try:
        source = json.loads(distribution("fabstir_vectordb").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        source = {}
    url, vcs = str(source.get("url", "")), source.get("vcs_info", {}).get("vcs")
    if vcs:
        return f"{vcs}+{url}"
    return unquote(urlsplit(url).path) if url.startswith("file://") else url or "fabstir_vectordb"


def load(directory: Path) -> tuple[Any, Any]:
    """Loads a library and checks that it matches its declarations.

    Args:
        directory: directory of the shared library and declarations.py.

    Returns:
        cffi's ``ffi`` and the loaded ``lib``.

    Raises:
        ImportError: the library or its declarations are missing, or cannot be loaded on this platform.
        InternalError: the library was built from another header; it was not used.
    """
    path = library_path(directory)
    if (found := _built(directory)) is None:
        raise ImportError(f"the package has no native library in {directory}; {_remedy(directory)}")
    ffi = found.declarations.ffi
    try:
        lib = ffi.dlopen(str(path))
    except OSError as error:
        raise ImportError(f"the native library {path} cannot be loaded ({error}); {_remedy(directory)}") from error
    check(ffi, lib)
    return ffi, lib


def check(ffi: Any, lib: Any) -> None:
    """Compares the ABI number and the size of every struct of a library with the declarations.

    Raises:
        InternalError: the number or a size differs.
    """
    built, declared = int(lib.fvdb_abi_version()), int(lib.FVDB_ABI_VERSION)
    if built != declared:
        raise InternalError(
            f"the native library has ABI {built}, its declarations have {declared}; {_remedy(_HERE)}",
            details={"library_abi": built, "declared_abi": declared},
        )
    for name in _STRUCTS:
        size, expected = int(lib.fvdb_struct_size(name.encode())), ffi.sizeof(name)
        if size != expected:
            raise InternalError(
                f"{name} has {size} bytes in the native library and {expected} in its declarations; {_remedy(_HERE)}",
                details={"struct": name, "library_bytes": size, "declared_bytes": expected},
            )


ffi, lib = load(find())
