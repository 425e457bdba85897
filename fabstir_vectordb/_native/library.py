"""Finds the native library, loads it and compares its ABI with the declarations before anything else is called.

An installed package has the library beside this file. A source tree (a clone, an unpacked sdist) has it there only
after a build, and its C files may have changed since. So an import from a source tree compares the digest of the C
sources with that of the library: when they differ, it takes the library of an installed package that was built from
the same sources, as in a clone whose folder hides the package that pip installed from it, or else builds the library.
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
    "fvdb_answer",
    "fvdb_load",
)
_HERE = Path(__file__).resolve().parent


class Built(NamedTuple):
    """A library and the declarations that were made with it.

    Attributes:
        directory: where both are.
        declarations: the loaded module declarations.py.
    """

    directory: Path
    declarations: ModuleType

    @property
    def sources(self) -> str:
        """SHA-256 of the sources that it was built from; empty when it does not say."""
        return str(getattr(self.declarations, "SOURCES_SHA256", ""))


def library_path(directory: Path = _HERE) -> Path:
    """Where a directory has the library of this platform."""
    name = {"win32": "fabstir_vectordb.dll", "darwin": "libfabstir_vectordb.dylib"}.get(
        sys.platform, "libfabstir_vectordb.so"
    )
    return directory / name


def find(directory: Path = _HERE) -> Path:
    """The directory whose library and declarations belong to this package.

    Args:
        directory: the package's own `_native` directory.

    Returns:
        The directory itself, or that of an installed package which was built from the same sources.

    Raises:
        ImportError: there is no library, and none can be built.
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
    # The ABI check still refuses a library that does not fit.
    message = f"the native library is older than its C sources: {reason}; {_remedy(directory)}"
    warnings.warn(message, RuntimeWarning, stacklevel=2)
    return directory


def _build_script(directory: Path) -> ModuleType | None:
    """build_native.py of the source tree that a `_native` directory is in; None in an installed package."""
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
    """What other directories of the search path have, as site-packages behind a clone."""
    for entry in sys.path:
        directory = Path(entry or ".").resolve() / "fabstir_vectordb" / "_native"
        with contextlib.suppress(OSError):
            if directory != own and (found := _built(directory)) is not None:
                yield found


def _build(script: ModuleType, directory: Path) -> str | None:
    """Builds library and declarations in place; the reason why that failed, else None."""
    if not script.has_compiler():
        return "there is no compiler, the package ziglang"
    print("fabstir_vectordb: building the native library from its C sources …", file=sys.stderr)
    try:
        script.build_in_place(directory)
    except (SystemExit, OSError, ImportError) as error:
        return str(error)
    return None


def _remedy(directory: Path) -> str:
    """The commands that give this package a library that fits; they work where they are shown."""
    root = directory.parents[1]
    if (root / "build_native.py").is_file():
        build = shlex.join([sys.executable or "python", str(root / "build_native.py")])
        return f"build it: {pip_command(['ziglang', 'cffi'])} && {build}"
    return f"install it again from where it came: {pip_command(['--force-reinstall', '--no-deps', _origin()])}"


def _origin() -> str:
    """Where pip got the installed package from (PEP 610): a directory or address; else the registry's name."""
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
    """Loads a library and checks that it is the one the declarations were made for.

    Args:
        directory: has the shared library and declarations.py.

    Returns:
        cffi's ``ffi`` and the loaded ``lib``.

    Raises:
        ImportError: the library or its declarations are not there, or cannot be loaded on this platform.
        InternalError: it was built from another header; nothing of it was used.
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
    """Compares the ABI number and the size of every struct.

    Raises:
        InternalError: they differ.
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
