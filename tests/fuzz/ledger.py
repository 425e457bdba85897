"""What earlier runs of a harness did, so that its CPU time may be gathered over many; and what the harness reads.

A harness whose sources changed starts anew, and so does one that found something: only minutes without a finding, of
the code as it is, count.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "fabstir_vectordb"
HARNESSES = Path(__file__).resolve().parent
#: The harnesses in Python: what they read with, and what must hold of an answer.
READERS = [HARNESSES / f"{name}.py" for name in ("choices", "hostile", "readers")]
#: Minutes of other machines, too: `keep_minutes` adds those of this one.
KEPT = ROOT / "tests" / "data" / "fuzz" / "minutes.json"


class Ledger:
    """The minutes and inputs of one harness, in a file that each slice of a run writes.

    Attributes:
        minutes: CPU minutes without a finding, of earlier runs and this one.
        inputs: inputs tried in them.
    """

    def __init__(self, work: Path, name: str, engine: str, sources: Iterable[Path]) -> None:
        """Reads the file, and the kept minutes; what was done with another engine or other sources does not count."""
        work.mkdir(parents=True, exist_ok=True)
        self._path, self._digest = work / f"{name}.json", digest(engine, sources)
        self.minutes, self.inputs = 0.0, 0
        for there in (kept().get(name), _read(self._path)):  # of equal sources, the own file is the later one
            if there and there["digest"] == self._digest:
                self.minutes, self.inputs = there["minutes"], there["inputs"]

    def add(self, minutes: float, inputs: int) -> None:
        """Notes what a slice did without a finding."""
        self.minutes += minutes
        self.inputs += inputs
        self._write()

    def start_anew(self) -> None:
        """Forgets what was done: there was a finding."""
        self.minutes, self.inputs = 0.0, 0
        self._write()

    def _write(self) -> None:
        said = {"digest": self._digest, "minutes": self.minutes, "inputs": self.inputs}
        self._path.write_text(json.dumps(said) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def kept() -> dict[str, Any]:
    """The kept minutes, inputs and digests, by the name of the harness."""
    return _read(KEPT)


def keep_minutes(names: Iterable[str], work: Path) -> None:
    """Adds the minutes of earlier runs to the kept ones.

    Args:
        names: the harnesses; those that have not run keep what they have.
        work: --work of the runs.
    """
    found = kept()
    for name in names:
        if there := _read(work / "minutes" / f"{name}.json"):
            found[name] = {**there, "minutes": round(there["minutes"], 1)}
    lines = [f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found) if found[name]["minutes"]]
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def digest(engine: str, sources: Iterable[Path]) -> str:
    """The SHA-256 of an engine's name, and of names and bytes of files."""
    found = hashlib.sha256(engine.encode())
    for path in sorted(sources):
        found.update(f"\n{path.relative_to(ROOT)} ".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def native_sources() -> set[Path]:
    """All of the core: nearly all of it reads, or checks what was read."""
    return {path for end in ("c", "h") for path in (ROOT / "native").rglob(f"*.{end}")}


def sources_of_native(name: str) -> set[Path]:
    """What a harness in C reads with: the core, and itself."""
    folder = HARNESSES / "native"
    return {*native_sources(), *folder.glob("*.h"), folder / f"fuzz_{name}.c"}


def sources_of_reader(read: Any) -> set[Path]:
    """What a reader in Python reads with: the modules that its function names, and all that these import.

    Args:
        read: the function of a harness.
    """
    pending, found = {path for name in _named(read, set()) if (path := _file(name))}, set[Path]()
    while pending:
        path = pending.pop()
        if path not in found:
            found.add(path)
            pending |= _imports(path)
    if any(path.parent.name == "_native" for path in found):
        found |= native_sources()
    return found


def _named(thing: Any, seen: set[int]) -> Iterator[str]:
    """Names of the package's modules behind a function of a harness, and behind the functions that it names."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, ModuleType):
        yield thing.__name__
        return
    thing = getattr(thing, "__wrapped__", thing)  # a cached function
    home = getattr(thing, "__module__", None) or ""
    if home.partition(".")[0] == PACKAGE:
        yield home
    elif isinstance(thing, FunctionType) and Path(thing.__code__.co_filename).parent == HARNESSES:
        for cell in thing.__closure__ or ():
            yield from _named(cell.cell_contents, seen)
        for name in _names(thing.__code__):
            if name.startswith(f"{PACKAGE}."):  # imported by the function
                yield name
            elif name in thing.__globals__:
                yield from _named(thing.__globals__[name], seen)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _file(module: str) -> Path | None:
    """The file of a module of the package. That of the package itself only imports names."""
    if module.partition(".")[0] != PACKAGE or module == PACKAGE:
        return None
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


@cache
def _imports(path: Path) -> set[Path]:
    """The files of the package that a module imports, wherever it does."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
    return {file for name in names if (file := _file(name))}
