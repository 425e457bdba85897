"""Hatchling hook: builds the native library into the wheel and names the platform it is for."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs build_native.py for the wheel's target; an sdist carries the sources instead."""

    _scratch: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Builds in place for an editable install; for a wheel beside the tree, whose own library stays as it is."""
        if self.target_name != "wheel":
            return
        native = self._load_build_script()
        target = os.environ.get("FVDB_TARGET") or native.host_target()
        if target not in native.TARGETS:
            raise SystemExit(f"unknown FVDB_TARGET {target!r}: one of {', '.join(native.TARGETS)}")
        build_data["tag"] = f"py3-none-{native.TARGETS[target]}"
        build_data["pure_python"] = False
        if version == "editable":
            with native.one_build_at_a_time(native.PACKAGE):
                native.build_library(target, native.PACKAGE)
                native.write_declarations(native.PACKAGE)
            return
        self._scratch = tempfile.TemporaryDirectory(prefix="fabstir-vectordb-")
        directory = Path(self._scratch.name)
        for path in (native.build_library(target, directory), native.write_declarations(directory)):
            build_data["force_include"][str(path)] = f"fabstir_vectordb/_native/{path.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes what was built beside the tree."""
        if self._scratch is not None:
            self._scratch.cleanup()

    def _load_build_script(self) -> Any:
        path = Path(self.root) / "build_native.py"
        spec = importlib.util.spec_from_file_location("build_native", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["build_native"] = module
        spec.loader.exec_module(module)
        return module
