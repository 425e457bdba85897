"""Builds the native library and its cffi declarations with one compiler, in a few commands.

Run by the wheel build (hatch_build.py), or by hand:

    python build_native.py                              # for this machine, into fabstir_vectordb/_native
    python build_native.py --target aarch64-linux-gnu   # cross-compile
    python build_native.py --output DIR --debug --sanitize undefined

The compiler is ``python -m ziglang cc``: it comes from the ziglang package, cross-compiles to every target below and
needs nothing installed. ``FVDB_CC`` names another C compiler, ``FVDB_TARGET`` another target. The same sources, target
and compiler give the same bytes, wherever they are built.

An import from a source tree loads this file (fabstir_vectordb/_native/library.py): it builds the library again when
the sources differ from those that declarations.py names. So this file imports only what every program has.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
HEADER = ROOT / "native" / "include" / "fabstir_vectordb.h"
PACKAGE = ROOT / "fabstir_vectordb" / "_native"

#: zig target -> platform tag of the wheel. manylinux2014 is the older name of manylinux_2_17, for older installers.
TARGETS = {
    "x86_64-linux-gnu": "manylinux_2_17_x86_64.manylinux2014_x86_64",
    "aarch64-linux-gnu": "manylinux_2_17_aarch64.manylinux2014_aarch64",
    "x86_64-linux-musl": "musllinux_1_2_x86_64",
    "aarch64-linux-musl": "musllinux_1_2_aarch64",
    "x86_64-macos": "macosx_11_0_x86_64",
    "aarch64-macos": "macosx_11_0_arm64",
    "x86_64-windows-gnu": "win_amd64",
    "aarch64-windows-gnu": "win_arm64",
}
GLIBC = "2.17"

#: The folder of native/src whose loops the compiler unrolls. It makes kernels 1.1 to 1.9 times as fast, and all else a
#: twelfth larger and no faster, for which the wheel for Windows on x86-64 has no room.
UNROLLED = "kernels"

#: No fused or reordered floating point: every CPU gives the same bits (native/src/kernels/kernels.h).
FLAGS = ["-std=c17", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]


def host_target() -> str:
    """The target of the running Python.

    Raises:
        SystemExit: no target fits this machine; FVDB_TARGET can name one.
    """
    machine = platform.machine().lower()
    cpu = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}.get(machine)
    if cpu and sys.platform == "darwin":
        return f"{cpu}-macos"
    if cpu and sys.platform == "win32":
        return f"{cpu}-windows-gnu"
    if cpu and sys.platform.startswith("linux"):
        return f"{cpu}-linux-{'gnu' if platform.libc_ver()[0] == 'glibc' else 'musl'}"
    raise SystemExit(f"no known target for {sys.platform} on {machine}: set FVDB_TARGET to one of {', '.join(TARGETS)}")


def library_name(target: str) -> str:
    """File name of the shared library on a target."""
    if "windows" in target:
        return "fabstir_vectordb.dll"
    return "libfabstir_vectordb.dylib" if "macos" in target else "libfabstir_vectordb.so"


def sources() -> list[Path]:
    """All C files of the core, in a fixed order."""
    return sorted((ROOT / "native" / "src").rglob("*.c"))


def sources_digest() -> str:
    """SHA-256 of all that the library is made from: C files, headers and this file, by name and content."""
    headers = [HEADER, *(ROOT / "native" / "src").rglob("*.h")]
    digest = hashlib.sha256()
    for path in sorted([*headers, *sources(), ROOT / "build_native.py"]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def has_compiler() -> bool:
    """Whether there is a compiler: the one of FVDB_CC, or the ziglang package."""
    return bool(os.environ.get("FVDB_CC")) or importlib.util.find_spec("ziglang") is not None


def compiler(target: str) -> list[str]:
    """The compiler and the flags that name the target."""
    if other := os.environ.get("FVDB_CC"):
        return shlex.split(other)
    zig_target = {"gnu": f"{target}.{GLIBC}"}.get(target.rpartition("-")[2], target) if "linux" in target else target
    if "macos" in target:
        zig_target = f"{target}.11.0"
    return [sys.executable, "-m", "ziglang", "cc", "-target", zig_target, *_baseline(target)]


def _baseline(target: str) -> list[str]:
    """The oldest CPU of a target; faster instructions are chosen at run time."""
    if target.startswith("x86_64"):
        return ["-mcpu=x86_64"]
    return ["-mcpu=apple_m1"] if "macos" in target else ["-mcpu=generic"]


def commands(target: str, output: Path, *, debug: bool = False, sanitize: str = "") -> list[list[str]]:
    """What builds the library: an object beside it of each file in UNROLLED, then all other files, linked with these.

    They run in ROOT and name files of it by their paths there, so that no path of this machine enters the result.
    """
    # zig cc defines NDEBUG by itself wherever it optimises and adds no sanitiser.
    is_release = not (debug or sanitize)
    optimise = ["-O3", "-fomit-frame-pointer", "-DNDEBUG"] if is_release else ["-O1", "-g", "-UNDEBUG"]
    if sanitize:
        optimise += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"]
    elif not os.environ.get("FVDB_CC"):
        optimise += ["-fno-sanitize=all"]  # zig cc traps on undefined behaviour unless told otherwise
    position = [] if "windows" in target else ["-fPIC"]
    compile_ = [*compiler(target), *FLAGS, *optimise, *position, "-Inative/include"]
    link = ["-s"] if is_release else []
    link += [] if "windows" in target else ["-lpthread", "-lm"]
    if "macos" in target:
        # The linker would write the path of the output file into it.
        link.append(f"-Wl,-install_name,@rpath/{library_name(target)}")
    objects = {path: output.with_name(f"{path.stem}.o") for path in sources() if path.parent.name == UNROLLED}
    files = [path.relative_to(ROOT).as_posix() for path in sources() if path not in objects]
    return [
        *([*compile_, "-c", path.relative_to(ROOT).as_posix(), "-o", str(made)] for path, made in objects.items()),
        [*compile_, "-fno-unroll-loops", "-shared", *files, *map(str, objects.values()), *link, "-o", str(output)],
    ]


def build_library(target: str, directory: Path, *, debug: bool = False, sanitize: str = "") -> Path:
    """Compiles the library into a directory.

    Args:
        target: a key of TARGETS.
        directory: where the library goes; made if missing.
        debug: assertions, poisoned memory and symbols instead of speed.
        sanitize: sanitisers of the compiler, for example ``undefined``; the first finding ends the process.

    Returns:
        Path of the library.

    Raises:
        SystemExit: the compiler failed; its messages are on stderr.
    """
    import subprocess
    import tempfile

    directory.mkdir(parents=True, exist_ok=True)
    output = directory / library_name(target)
    # A loaded library must not be written over: build beside it under its own name, which some linkers write into the
    # library, then put it in its place. Objects, import libraries and the like stay behind and go away.
    with tempfile.TemporaryDirectory(dir=directory, prefix=".build-") as scratch:
        fresh = Path(scratch) / output.name
        for command in commands(target, fresh, debug=debug, sanitize=sanitize):
            result = subprocess.run(command, cwd=ROOT, check=False)
            if result.returncode != 0:
                raise SystemExit(f"the C compiler failed with exit code {result.returncode}")
        os.replace(fresh, output)
    return output


def declarations() -> str:
    """The public header's declarations as cffi wants them: without comments and derived numbers."""
    text = HEADER.read_text(encoding="utf-8")
    body = text.split("/* cffi: begin */", 1)[1].split("/* cffi: end */", 1)[0]
    without_comments = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    return re.sub(r"\n\s*\n+", "\n", without_comments).strip() + "\n"


def write_declarations(directory: Path, *, debug: bool = False, sanitize: str = "") -> Path:
    """Writes declarations.py, cffi's out-of-line ABI mode: no C compiler and no parser at import.

    It also names the sources and options of the library beside it. So it is written behind the library.
    """
    import tempfile

    from cffi import FFI

    ffi = FFI()
    ffi.cdef(declarations())
    ffi.set_source("fabstir_vectordb._native.declarations", None)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "declarations.py"
    with tempfile.TemporaryDirectory(dir=directory, prefix=".build-") as scratch:
        fresh = Path(scratch) / path.name
        with contextlib.redirect_stdout(None):  # it prints what it generates
            ffi.emit_python_code(str(fresh))
        with fresh.open("a", encoding="utf-8") as out:
            out.write(f"\nSOURCES_SHA256 = {sources_digest()!r}\nOPTIONS = {(debug, sanitize)!r}\n")
        os.replace(fresh, path)
    return path


def build_in_place(directory: Path = PACKAGE) -> None:
    """Builds library and declarations for this machine, unless another process did so meanwhile.

    The options of the build before stay: a debug library is followed by a debug library.

    Raises:
        SystemExit: the compiler failed, or knows no target for this machine.
    """
    declared = directory / "declarations.py"
    with one_build_at_a_time(directory):
        text = declared.read_text(encoding="utf-8") if declared.exists() else ""
        if f"SOURCES_SHA256 = {sources_digest()!r}" in text and (directory / library_name(host_target())).exists():
            return
        found = re.search(r"^OPTIONS = \((True|False), '([\w,-]*)'\)$", text, re.MULTILINE)
        debug, sanitize = (found[1] == "True", found[2]) if found else (False, "")
        build_library(host_target(), directory, debug=debug, sanitize=sanitize)
        write_declarations(directory, debug=debug, sanitize=sanitize)


@contextlib.contextmanager
def one_build_at_a_time(directory: Path) -> Iterator[None]:
    """Keeps other processes from building into a directory; Windows, which has no such lock, lets them."""
    directory.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    import fcntl

    held = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def main(arguments: list[str] | None = None) -> None:
    """Command line entry point."""
    import argparse

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--target", default=os.environ.get("FVDB_TARGET"), help=f"one of {', '.join(TARGETS)}")
    parser.add_argument("--output", type=Path, default=PACKAGE, help="directory to build into")
    parser.add_argument("--debug", action="store_true", help="assertions, poisoned memory and symbols")
    parser.add_argument("--sanitize", default="", metavar="NAME", help="a sanitiser to build in, such as undefined")
    options = parser.parse_args(arguments)
    target = options.target or host_target()
    if target not in TARGETS:
        parser.error(f"unknown target {target!r}: one of {', '.join(TARGETS)}")
    how = {"debug": options.debug, "sanitize": options.sanitize}
    with one_build_at_a_time(options.output):
        library = build_library(target, options.output, **how)
        declared = write_declarations(options.output, **how)
    print(f"built {library} ({library.stat().st_size:,} bytes) and {declared.name}")


if __name__ == "__main__":
    main()
