"""What users import lives in `fabstir_vectordb`: all of it, and nothing by accident."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
import types

import pytest

import fabstir_vectordb
from fabstir_vectordb import errors

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fabstir_vectordb.__path__, "fabstir_vectordb.")
    if not module.name.endswith(("__main__", ".declarations", "fabstir_vectordb"))  # the last: the library itself
)


def imported(name: str) -> types.ModuleType:
    """A module; one that needs a framework which is not installed is skipped."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if not name.startswith(("fabstir_vectordb.integrations.", "fabstir_vectordb.mcp_server.")):
            raise
        pytest.skip(str(error))


def test_all_names_what_the_package_offers() -> None:
    offered = {
        name
        for name, value in vars(fabstir_vectordb).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert offered == set(fabstir_vectordb.__all__)
    assert list(fabstir_vectordb.__all__) == sorted(set(fabstir_vectordb.__all__), key=_ruff_order)


def _ruff_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as ruff sorts ``__all__``."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


def test_every_error_is_offered() -> None:
    tree = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.VectorDBError) and value.__module__ == errors.__name__
    }
    assert tree <= set(fabstir_vectordb.__all__)


def test_every_offered_name_has_a_docstring() -> None:
    for name in fabstir_vectordb.__all__:
        value = getattr(fabstir_vectordb, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), f"{name} has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_every_name_in_all_exists(name: str) -> None:
    module = imported(name)
    missing = [entry for entry in getattr(module, "__all__", []) if not hasattr(module, entry)]
    assert not missing


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("fabstir_vectordb._native")])
def test_only_the_native_package_touches_cffi(name: str) -> None:
    assert not {"ffi", "lib"} & set(vars(imported(name))), f"{name} holds cffi's objects"


def test_star_import_gives_exactly_all() -> None:
    code = "from fabstir_vectordb import *; print(*sorted(n for n in dir() if not n.startswith('__')))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == sorted(fabstir_vectordb.__all__)
