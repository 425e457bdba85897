"""Finds the native library, loads it and compares its ABI with the declarations before anything else is called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fabstir_vectordb.errors import InternalError

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
_REBUILD = "rebuild it: python build_native.py, or install the package again"


def library_path() -> Path:
    """Where the library of this installation is expected."""
    name = {"win32": "fabstir_vectordb.dll", "darwin": "libfabstir_vectordb.dylib"}.get(
        sys.platform, "libfabstir_vectordb.so"
    )
    return Path(__file__).with_name(name)


def load(path: Path) -> tuple[Any, Any]:
    """Loads a library and checks that it is the one the declarations were made for.

    Args:
        path: the shared library.

    Returns:
        cffi's ``ffi`` and the loaded ``lib``.

    Raises:
        ImportError: the library or its declarations are not there, or cannot be loaded on this platform.
        InternalError: it was built from another header; nothing of it was used.
    """
    try:
        from fabstir_vectordb._native.declarations import ffi
    except ImportError as error:
        raise ImportError(f"the native library was never built ({error}); {_REBUILD}") from error
    try:
        lib = ffi.dlopen(str(path))
    except OSError as error:
        raise ImportError(f"the native library {path} cannot be loaded ({error}); {_REBUILD}") from error
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
            f"the native library has ABI {built}, its declarations have {declared}; {_REBUILD}",
            details={"library_abi": built, "declared_abi": declared},
        )
    for name in _STRUCTS:
        size, expected = int(lib.fvdb_struct_size(name.encode())), ffi.sizeof(name)
        if size != expected:
            raise InternalError(
                f"{name} has {size} bytes in the native library and {expected} in its declarations; {_REBUILD}",
                details={"struct": name, "library_bytes": size, "declared_bytes": expected},
            )


ffi, lib = load(library_path())
