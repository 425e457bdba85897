"""Every command in a pseudo-terminal of 60 columns and in a pipe, and killed at any time (long: many processes)."""

from __future__ import annotations

import json
import os
import random
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import PHRASE

pytest.importorskip("click", reason="the extra 'cli' is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")
fcntl, pty, termios = (
    pytest.importorskip(name, reason="this system has no pseudo-terminals") for name in ("fcntl", "pty", "termios")
)
pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 60
ROWS = 6_000
#: What a command prints on a terminal in place of its bars: each ends with the line blank again.
CLEARED = re.compile(r"\r *\r")


class Shell:
    """Runs commands in processes of their own, on one store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cid = ""
        self._environment = {
            **os.environ,
            "FABSTIR_STORE": (folder / "store").as_uri(),
            "FABSTIR_SEED_PHRASE": PHRASE,
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm",
        }
        for name in ("COLUMNS", "LINES"):
            self._environment.pop(name, None)

    def start(self, *arguments: str, **how: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "fabstir_vectordb", *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=self._environment, **how)  # type: ignore[call-overload, no-any-return]

    def piped(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=300)
        return process.returncode, out.decode(), err.decode()

    def shown(self, *arguments: str) -> tuple[int, str]:
        """The exit code, and all that the terminal got."""
        above, below = pty.openpty()
        fcntl.ioctl(below, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        process = self.start(*arguments, stdin=below, stdout=below, stderr=below)
        os.close(below)
        pieces = []
        try:
            while piece := os.read(above, 65_536):
                pieces.append(piece)
        except OSError:  # the other end is closed
            pass
        os.close(above)
        return process.wait(300), b"".join(pieces).decode().replace("\r\n", "\n")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("cli")
    random.seed(7)
    lines = [
        {"id": f"r{n}", "vector": [random.gauss(0, 1) for _ in range(32)], "timestamp": float(n),
         "metadata": {"n": n, "text": "word " * 30}}
        for n in range(ROWS)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    made = Shell(folder)
    code, out, err = made.piped("import", "rows.jsonl", "--text-field", "text")
    assert code == 0, err
    made.cid = out.split()[-1]
    return made


READS = [
    ["search", "--like", "r1", "-k", "3"], ["search", "--text", "word", "--filter", '{"n": 5}'], ["get", "r1"],
    ["list", "--limit", "3"], ["count"], ["facets", "n", "--limit", "3"], ["history"], ["indexes"], ["stats"],
    ["verify"], ["prune", "--keep", "1"], ["share", "CID"], ["recall", "--sample", "20"],
    ["report", "out.html", "--field", "n", "--recall-sample", "5"], ["new-phrase"], ["doctor"],
    ["export", "copy.jsonl"], ["export", "-", "--filter", '{"n": {"$lt": 9}}'], ["demo"], ["--help"], ["--version"],
]  # fmt: skip
CHANGES = [
    ["import", "rows.jsonl", "--on-conflict", "skip"], ["delete", "r5"], ["optimize", "--recent-window-s", "1000"],
    ["vacuum"], ["migrate", "hnswlib", "none"],
]  # fmt: skip


@pytest.mark.parametrize("command", READS + CHANGES, ids=" ".join)
def test_a_command_shows_the_same_on_a_terminal_as_in_a_pipe(shell: Shell, command: list[str]) -> None:
    """What the terminal has at the end is stdout and stderr; bars come before, and go."""
    words = [shell.cid if word == "CID" else word for word in command]
    code, text = shell.shown(*words)
    assert code == (2 if command[0] == "migrate" else 0), text
    for bar in re.findall(r"\r([^\r\n]+)(?=\r)", text):  # after the last one comes the result
        assert len(bar) <= COLUMNS
    left = CLEARED.sub("\r", text).split("\n")
    lines = [line.rsplit("\r", 1)[-1] for line in left]
    assert not any(re.search(r"\d+%\||it/s|row/s|B/s", line) for line in lines), lines
    if command[0] == "list":
        assert all(len(line) <= COLUMNS for line in lines if line.startswith("r"))
    if command in READS and command[0] not in ("list", "recall", "new-phrase", "stats", "demo", "--help", "doctor"):
        again, out, err = shell.piped(*words)
        assert again == 0
        assert "\r" not in out + err
        said = [line for line in (out + err).split("\n") if line]
        assert sorted(line for line in lines if line) == sorted(said)
    if command[0] in ("search", "count", "verify", "import", "export"):
        assert "\r" in text  # a bar was there


@pytest.mark.parametrize(
    "target", ["copy.jsonl", "copy.csv", "copy.parquet", "copy.arrow", "recall.svg", "report.html"]
)
def test_a_command_that_is_killed_leaves_its_target_as_it_was(shell: Shell, target: str) -> None:
    command = {
        "recall.svg": ["recall", "--sample", "50", "--plot", target],
        "report.html": ["report", target, "--field", "text", "--recall-sample", "20"],
    }.get(target, ["export", target])
    if target.endswith(".svg"):
        pytest.importorskip("matplotlib", reason="the extra `plot` brings matplotlib")
    path = shell.folder / target
    started = time.monotonic()
    assert shell.start(*command, stdout=subprocess.DEVNULL).wait(300) == 0
    took, whole = time.monotonic() - started, path.read_bytes()
    random.seed(11)
    for _ in range(5):
        path.write_bytes(b"what was there")
        process = shell.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.3, 1.1) * took)
        process.kill()
        process.wait()
        now = path.read_bytes()
        end = {"recall.svg": b"</svg>", "report.html": b"</html>"}.get(target)  # these hold times, which differ
        is_whole = len(now) == len(whole) if end is None else now.rstrip().endswith(end)
        assert now == b"what was there" or is_whole


def test_a_change_that_is_killed_is_saved_whole_or_not_at_all(shell: Shell) -> None:
    """The store is the target of an import, a delete and an optimize."""
    (shell.folder / "more.jsonl").write_text(
        "".join(json.dumps({"id": f"m{n}", "vector": [n] * 32}) + "\n" for n in range(1, 2_001)), encoding="utf-8"
    )
    changes = [
        (["import", "more.jsonl", "--on-conflict", "replace"], 2_000),
        (["delete", "--filter", '{"$id": {"$in": ["m1", "m2"]}}'], 2_000),
        (["optimize", "--recent-window-s", "500"], 0),
    ]
    random.seed(13)
    _, out, _ = shell.piped("count")
    rows = {int(out)}
    for command, more in changes:
        for _ in range(3):
            process = shell.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(random.uniform(0.3, 2.5))
            process.kill()
            process.wait()
            code, out, err = shell.piped("verify")
            assert code == 0, err
            rows |= {count + change for count in rows for change in (more, -2)}
            code, out, err = shell.piped("count")
            assert code == 0, err
            assert int(out) in rows
