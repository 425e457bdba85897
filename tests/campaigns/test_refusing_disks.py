"""Disks that refuse: no permission, read-only, full, and a limit on the size of a file; by the system itself."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from versions import change, open_session, version_at, version_in

from fabstir_vectordb import StorageError

FOLDER = Path(__file__).resolve().parent
NOBODY = 65_534

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses rights, limits and mounts of Linux")

#: A version, and what the system refuses to do with it.
SCRIPT = """
import errno, os, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import anyio
from versions import change, open_session, version_at, version_in
from fabstir_vectordb import StorageError

root, uri = Path(sys.argv[1]), Path(sys.argv[1]).as_uri()

async def no_save(expected):
    async with await open_session(uri) as session:
        number = await version_in(session)
        await change(session, number + 1)
        try:
            await session.save_to_s5()
        except StorageError as error:
            assert error.errno == expected, error
        assert (await session.get_stats()).dirty
    assert await version_at(uri) == number

async def main():
{body}

anyio.run(main)
"""

SAVE = """
    async with await open_session(uri) as session:
        number = await version_in(session) + 1
        await change(session, number)
        await session.save_to_s5()
    assert await version_at(uri) == number
"""


def script(body: str) -> list[str]:
    return [sys.executable, "-c", SCRIPT.format(folder=str(FOLDER), body=body)]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others may enter, as pytest's is this user's alone."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


@contextmanager
def another_user() -> Iterator[None]:
    """Takes the place of nobody where root runs the tests, whom no rights bind."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def set_rights(root: Path, of_folders: int, of_files: int) -> None:
    for path in (root, *root.rglob("*")):
        path.chmod(of_folders if path.is_dir() else of_files)


@pytest.mark.anyio
@pytest.mark.one_loop
async def test_rights_that_are_missing_are_errors_and_no_empty_index(folder: Path) -> None:
    root = folder / "store"
    async with await open_session(root.as_uri()) as session:
        await change(session, 1)
        await session.save_to_s5()
        set_rights(root, 0o555, 0o444)
        with another_user():
            assert await version_at(root.as_uri()) == 1
            async with await open_session(root.as_uri()) as reader:
                await change(reader, await version_in(reader) + 1)
                with pytest.raises(StorageError) as caught:
                    await reader.save_to_s5()
                assert caught.value.errno == errno.EACCES
                assert (await reader.get_stats()).dirty
        for closed in (root / "blobs", root / "pointers", root):
            closed.chmod(0)
            with another_user(), pytest.raises(StorageError) as caught:
                await version_at(root.as_uri())
            assert caught.value.errno == errno.EACCES
            closed.chmod(0o755)
        set_rights(root, 0o755, 0o644)
        await change(session, 2)
        await session.save_to_s5()
    assert await version_at(root.as_uri()) == 2


@pytest.mark.long
def test_a_limit_on_the_size_of_files_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    limited = "    import resource\n    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))\n"
    for body in (SAVE, limited + "    await no_save(errno.EFBIG)", SAVE):
        done = run([*script(body), str(tmp_path)])
        assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_a_disk_that_is_full_or_read_only_refuses_and_loses_nothing(tmp_path: Path) -> None:
    mount = ["unshare", "--mount", "sh", "-c"]
    if run([*mount, f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"]).returncode != 0:
        pytest.skip("this user cannot mount a file system")
    steps = [
        (SAVE, "mount -t tmpfs -o size=1m tmpfs {0}"),
        ("    await no_save(errno.ENOSPC)", "! dd if=/dev/zero of={0}/filler bs=4k 2>/dev/null"),
        (SAVE, "rm {0}/filler"),
        ("    await no_save(errno.EROFS)", "mount -o remount,ro {0}"),
        (SAVE, "mount -o remount,rw {0}"),
    ]
    lines = ["set -e"]
    for number, (body, before) in enumerate(steps):
        file = tmp_path.with_name(f"{tmp_path.name}-{number}.py")
        file.write_text(script(body)[2], encoding="utf-8")
        lines += [before.format(tmp_path), f"{sys.executable} {file} {tmp_path}"]
    done = run([*mount, "\n".join(lines)])
    assert done.returncode == 0, done.stderr
