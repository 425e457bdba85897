"""Hatchling hook: builds the native library into the wheel, names its platform, and lists what the wheel contains.

Run by hand it builds all that a release publishes, on any machine, for every platform:

    python hatch_build.py dist/

That is the sdist, one wheel for each target of build_native.py, and SHA256SUMS. It needs the packages that
pyproject.toml names under build-system, and zopfli, which packs wheels smaller than zlib does. Equal sources, versions
of these packages and SOURCE_DATE_EPOCH give equal bytes in any directory; without SOURCE_DATE_EPOCH the files in the
archives are dated 2 February 2020.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import uuid
import zipfile
from copy import copy
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BILL = "fabstir_vectordb.cdx.json"
#: Tells the build of a wheel what will pack it, for the list of tools.
PACKER = "FVDB_PACKER"


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs build_native.py for the wheel's target; an sdist carries the sources instead."""

    _scratch: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Builds in place for an editable install; for a wheel beside the tree, whose own library stays as it is."""
        if self.target_name != "wheel":
            return
        native = _build_script(Path(self.root))
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
        library = native.build_library(target, directory)
        for path in (library, native.write_declarations(directory)):
            build_data["force_include"][str(path)] = f"fabstir_vectordb/_native/{path.name}"
        bill = directory / BILL
        bill.write_text(
            json.dumps(bill_of_materials(Path(self.root), target, library), indent=2) + "\n", encoding="utf-8"
        )
        build_data["sbom_files"].append(str(bill))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes what was built beside the tree."""
        if self._scratch is not None:
            self._scratch.cleanup()


def _build_script(root: Path) -> ModuleType:
    path = root / "build_native.py"
    spec = importlib.util.spec_from_file_location("build_native", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_native"] = module
    spec.loader.exec_module(module)
    return module


def bill_of_materials(root: Path, target: str, library: Path) -> dict[str, Any]:
    """What a wheel contains that has another author or licence, and the tools that built it (CycloneDX 1.6, PEP 770).

    Packages that the wheel requires are in its METADATA and not here: it does not contain them.

    Args:
        root: the source tree.
        target: a key of build_native.TARGETS.
        library: the built library.

    Returns:
        The document, ready for JSON; equal for equal libraries, tools and SOURCE_DATE_EPOCH.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tables = (root / "native" / "src" / "text" / "unicode_tables.c").read_text(encoding="utf-8")
    unicode_version = re.search(r'unicode_version\[\] = "([\d.]+)"', tables)
    assert unicode_version is not None
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    contents = [
        _component("file", library.name, project["version"], "MIT")
        | {"hashes": [{"alg": "SHA-256", "content": digest}]},
        _component("data", "Unicode Character Database", unicode_version[1], "Unicode-3.0"),
        _component("data", "WordNet", "3.0", "LicenseRef-WordNet"),
        _component("data", "S5 seed words", "", "MIT"),
    ]
    tools = ["hatchling", "cffi", *os.environ.get(PACKER, "").split()]
    if not os.environ.get("FVDB_CC"):  # of another compiler neither the version nor what it links is known here
        tools.append("ziglang")
        if "windows" in target:
            contents.append(_component("library", "mingw-w64 runtime of Zig", _version("ziglang"), "ZPL-2.1"))
            contents.append(_component("library", "compiler_rt of Zig", _version("ziglang"), "MIT"))
    name = project["name"].replace("_", "-")
    this = _component("library", project["name"], project["version"], project["license"])
    this |= {"description": project["description"], "purl": f"pkg:pypi/{name}@{project['version']}"}
    metadata: dict[str, Any] = {
        "component": this,
        "tools": {"components": [_component("application", tool, _version(tool)) for tool in tools]},
        "properties": [{"name": "platform", "value": target}],
    }
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        metadata["timestamp"] = datetime.fromtimestamp(int(epoch), UTC).isoformat()
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest)}",
        "version": 1,
        "metadata": metadata,
        "components": contents,
        "dependencies": [{"ref": this["bom-ref"], "dependsOn": [part["bom-ref"] for part in contents]}],
    }


def _component(kind: str, name: str, version: str, licence: str = "") -> dict[str, Any]:
    component: dict[str, Any] = {"type": kind, "bom-ref": name, "name": name}
    if version:
        component["version"] = version
    if licence:
        component["licenses"] = [{"expression": licence}]
    return component


def _version(package: str) -> str:
    return importlib.metadata.version(package)


class _Zopfli:
    """What zipfile calls to compress an entry: zopfli takes a hundred times as long as zlib, for 4 to 5 percent."""

    def __init__(self, known: dict[bytes, bytes]) -> None:
        self._content, self._known = b"", known

    def compress(self, data: bytes) -> bytes:
        self._content += data
        return b""

    def flush(self) -> bytes:
        from zopfli.zlib import compress

        if self._content not in self._known:
            self._known[self._content] = compress(self._content)[2:-4]  # without what zlib puts around
        return self._known[self._content]


def pack_smaller(wheel: Path, known: dict[bytes, bytes]) -> None:
    """Writes a wheel again, the same files in the same order, with fewer bytes.

    Args:
        wheel: the file.
        known: contents of files that were compressed before, and what they became: most are in every wheel.
    """
    fresh = wheel.with_suffix(".fresh")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(fresh, "w") as new:
        for entry in old.infolist():
            with new.open(copy(entry), "w") as out:
                if entry.compress_type == zipfile.ZIP_DEFLATED:
                    out._compressor = _Zopfli(known)  # type: ignore[attr-defined]
                out.write(old.read(entry))
    fresh.replace(wheel)


def build_release(directory: Path) -> list[Path]:
    """Builds the sdist, one wheel for each target, and SHA256SUMS of them.

    Args:
        directory: where they go; made if missing, empty otherwise.

    Returns:
        The files, SHA256SUMS last.

    Raises:
        SystemExit: zopfli is missing, the directory has files already, or a build failed; its messages are on stderr.
    """
    if importlib.util.find_spec("zopfli") is None:
        raise SystemExit("zopfli, which packs the wheels, is missing: python -m pip install zopfli")
    root = Path(__file__).resolve().parent
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise SystemExit(
            f"{directory} is not empty: name another directory, so that nothing else gets into the release"
        )
    for kind, target in [("sdist", ""), *(("wheel", target) for target in _build_script(root).TARGETS)]:
        command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(directory)]
        settings = {**os.environ, "FVDB_TARGET": target, PACKER: "zopfli"}
        result = subprocess.run(command, cwd=root, env=settings, check=False)
        if result.returncode != 0:
            raise SystemExit(f"building the {kind} {target} failed with exit code {result.returncode}")
    known: dict[bytes, bytes] = {}
    built = sorted(directory.iterdir())
    for wheel in directory.glob("*.whl"):
        pack_smaller(wheel, known)
    sums = directory / "SHA256SUMS"
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in built]
    sums.write_text("".join(lines), encoding="utf-8", newline="\n")
    return [*built, sums]


def main(arguments: list[str] | None = None) -> None:
    """Command line entry point."""
    import argparse

    parser = argparse.ArgumentParser(description="Builds the sdist, a wheel for each platform, and SHA256SUMS.")
    parser.add_argument("directory", type=Path, help="where they go; it must be empty")
    for path in build_release(parser.parse_args(arguments).directory):
        print(f"{path.stat().st_size:>10,}  {path.name}")


if __name__ == "__main__":
    main()
