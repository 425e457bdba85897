"""Hatchling hook: builds the native library into the wheel and names the platform it is for."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs build_native.py for the wheel's target; an sdist carries the sources instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Builds in place, so that editable installs find the library too."""
        if self.target_name != "wheel":
            return
        native = self._load_build_script()
        target = os.environ.get("FVDB_TARGET") or native.host_target()
        library = native.build_library(target, native.PACKAGE)
        declarations = native.write_declarations(native.PACKAGE)
        build_data["tag"] = f"py3-none-{native.TARGETS[target]}"
        build_data["pure_python"] = False
        if version != "editable":
            for path in (library, declarations):
                build_data["force_include"][str(path)] = str(path.relative_to(native.ROOT))

    def _load_build_script(self) -> Any:
        path = Path(self.root) / "build_native.py"
        spec = importlib.util.spec_from_file_location("build_native", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["build_native"] = module
        spec.loader.exec_module(module)
        return module
