"""Core dumps are off after `forbid_core_dumps`, which the command line calls; not by importing the package."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux what it was told")

STATE = """
import ctypes, resource
def state():
    return resource.getrlimit(resource.RLIMIT_CORE)[0], ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
"""


def test_core_dumps_are_off_where_a_program_says_so_and_in_the_command_line() -> None:
    pytest.importorskip("click")
    code = """
import fabstir_vectordb
from fabstir_vectordb import __main__, cli
print(state()[1])
cli.cli = lambda: print(state())
__main__.main()
print(fabstir_vectordb.forbid_core_dumps())
"""
    result = subprocess.run([sys.executable, "-c", STATE + code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["1", "(0, 0)", "True"]
