"""Every command in a pseudo-terminal of 60 columns and in a pipe, and killed at any time (long: many processes)."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import shlex
import signal
import struct
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from commands import PHRASE, leaves

pytest.importorskip("click", reason="the extra 'cli' is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")
fcntl, pty, termios = (
    pytest.importorskip(name, reason="this system has no pseudo-terminals") for name in ("fcntl", "pty", "termios")
)

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 60
ROWS = 6_000
#: What a command prints on a terminal in place of its bars: each ends with the line blank again.
CLEARED = re.compile(r"\r *\r")
#: A CID, which no terminal makes shorter.
LONG_ID = re.compile(r"\bu[\w-]{40,}")


def rest_of(terminal: IO[bytes]) -> bytes:
    """All that comes until the other end is closed."""
    pieces = []
    try:
        while piece := terminal.read(65_536):
            pieces.append(piece)
    except OSError:  # a pseudo-terminal says so
        pass
    return b"".join(pieces)


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

    def start(self, *arguments: str, **how: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "fabstir_vectordb", *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=self._environment, **how)

    def piped(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=300)
        return process.returncode, out.decode(), err.decode()

    def shown(self, *arguments: str) -> tuple[int, str]:
        """The exit code, and all that the terminal got."""
        with self.on_terminal(*arguments) as (process, terminal):
            text = rest_of(terminal)
            return process.wait(300), text.decode().replace("\r\n", "\n")

    @contextmanager
    def serving(self, where: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]]:
        """A server, its stdin, and its stdout; on a terminal they are one."""
        with ExitStack() as stack:
            if where == "terminal":
                process, terminal = stack.enter_context(self.on_terminal(*arguments))
                given = said = terminal
            else:
                pipe = subprocess.PIPE
                process = stack.enter_context(
                    self.start(*arguments, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, bufsize=0)
                )
                assert process.stdin is not None and process.stdout is not None
                given, said = process.stdin, process.stdout
            stack.callback(process.kill)
            yield process, given, said

    @contextmanager
    def on_terminal(
        self, *arguments: str, stdout: int | None = None
    ) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
        """A process on a terminal, which stdout may leave, and what it shows there."""
        above, below = pty.openpty()
        with os.fdopen(above, "r+b", buffering=0) as terminal:
            fcntl.ioctl(below, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
            settings = termios.tcgetattr(below)
            settings[3] &= ~termios.ECHO
            termios.tcsetattr(below, termios.TCSANOW, settings)
            process = self.start(*arguments, stdin=below, stdout=below if stdout is None else stdout, stderr=below)
            os.close(below)
            with process:
                yield process, terminal


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
    for command in (
        ["export", "some.parquet", "--filter", '{"n": {"$lt": 800}}'],
        ["--index-name", "many", "collection", "build", "some.parquet", "--text-field", "text"],
    ):
        code, out, err = made.piped(*command)
        assert code == 0, err
    with tarfile.open(ROOT / "tests" / "data" / "import-samples.tar.xz") as archive:
        index = archive.extractfile("import-samples/peers/h.bin")
        assert index is not None
        (folder / "h.bin").write_bytes(index.read())
    return made


#: Examples of each command by its words; those that change what is stored come last. They work again and again.
EXAMPLES = {
    "search": ["search --like r1 -k 3", """search --text word --filter '{"n": 5}'"""],
    "get": ["get r1"],
    "list": ["list --limit 3"],
    "count": ["count"],
    "facets": ["facets n --limit 3"],
    "history": ["history"],
    "indexes": ["indexes"],
    "stats": ["stats"],
    "verify": ["verify"],
    "prune": ["prune --keep 1"],
    "share": ["share CID"],
    "recall": ["recall --sample 20"],
    "report": ["report out.html --field n --recall-sample 5"],
    "export": ["export copy.jsonl", """export - --filter '{"n": {"$lt": 9}}'"""],
    "new-phrase": ["new-phrase"],
    "doctor": ["doctor"],
    "demo": ["demo"],
    "collection build": ["--index-name NEW collection build some.parquet --shards 2"],
    "collection search": [
        "--index-name many collection search --like r1 -k 3",
        """--index-name many collection search --text word --filter '{"n": 5}'""",
    ],
    "collection stats": ["--index-name many collection stats"],
    "collection verify": ["--index-name many collection verify"],
    "collection plan": ["--index-name many collection plan --rows 1e9"],
    "import": ["import rows.jsonl --on-conflict skip"],
    "migrate": ["--index-name labels migrate hnswlib h.bin --metric l2 --on-conflict skip"],
    "delete": ["delete r99 --missing-ok"],
    "optimize": ["optimize --recent-window-s 1000"],
    "vacuum": ["vacuum"],
}
#: Commands that serve until they are interrupted, with the exit code that docs/command-line.md says.
SERVERS = {"portal": ("portal served --port 0", 0), "mcp": ("--index-name memory mcp", 128 + signal.SIGINT)}
#: What differs from run to run: times, names, phrases, what is still to be done.
VARYING = {
    "recall", "new-phrase", "demo", "collection build", "collection plan", "migrate", "delete", "optimize", "vacuum",
}  # fmt: skip
TABLES = {"list", "facets", "history", "indexes", "recall", "collection stats", "collection plan"}
WITH_BARS = {
    "search", "get", "list", "count", "facets", "stats", "verify", "recall", "report", "export", "collection build",
    "collection verify", "import", "migrate", "delete", "optimize", "vacuum",
}  # fmt: skip
BAR = re.compile(r"\d+%\||\?it/s|(it|row|shard|B)/s")


def test_every_command_has_an_example() -> None:
    assert EXAMPLES.keys() | SERVERS.keys() == leaves(importlib.import_module("fabstir_vectordb.cli").cli).keys()
    lines = [(path, line) for path, examples in EXAMPLES.items() for line in examples]
    lines += [(path, line) for path, (line, _) in SERVERS.items()]
    assert all(f" {path} " in f" {line} " for path, line in lines)


@pytest.mark.long
@pytest.mark.parametrize(
    ("path", "line"),
    [
        *((path, line) for path, lines in EXAMPLES.items() for line in lines),
        *(("", line) for line in ("--help", "--version", "collection --help", "collection plan --help")),
    ],
    ids=str,
)
def test_a_command_shows_the_same_on_a_terminal_as_in_a_pipe(shell: Shell, path: str, line: str) -> None:
    """What the terminal has at the end is stdout and stderr; bars come before, and go."""

    def words(where: str) -> list[str]:
        return [{"CID": shell.cid, "NEW": f"new-{where}"}.get(word, word) for word in shlex.split(line)]

    code, text = shell.shown(*words("terminal"))
    assert code == 0, text
    assert ("\r" in text) is (path in WITH_BARS)
    for bar in re.findall(r"\r([^\r\n]+)(?=\r)", text):  # after the last one comes the result
        assert len(bar) <= COLUMNS
    lines = [part.rsplit("\r", 1)[-1] for part in CLEARED.sub("\r", text).split("\n")]
    assert not any(BAR.search(shown) for shown in lines), lines
    if path in TABLES or line.endswith("--help"):
        assert all(len(LONG_ID.sub("", shown)) <= COLUMNS for shown in lines), lines

    code, out, err = shell.piped(*words("pipe"))
    assert code == 0, err
    assert out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out + err)
    assert not BAR.search(out + err)
    said = [shown for shown in (out + err).split("\n") if shown]
    if path in VARYING:
        return
    if path in TABLES or line.endswith("--help"):  # lines are cut or broken there
        assert " ".join(lines).split()[:3] == " ".join(said).split()[:3]
    else:
        assert sorted(shown for shown in lines if shown) == sorted(said)


@pytest.mark.long
@pytest.mark.parametrize("path", ["search", "export", "collection verify", "optimize"])
def test_bars_on_a_terminal_are_not_in_a_pipe_beside_it(shell: Shell, path: str) -> None:
    words = shlex.split(EXAMPLES[path][-1])
    with shell.on_terminal(*words, stdout=subprocess.PIPE) as (process, terminal):
        assert process.stdout is not None
        shown, out = rest_of(terminal), process.stdout.read()
    assert process.returncode == 0
    assert b"\r" in shown
    assert out and not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", out)
    assert not BAR.search(out.decode())


@pytest.mark.long
@pytest.mark.parametrize("where", ["terminal", "pipe"])
@pytest.mark.parametrize("path", SERVERS)
def test_a_server_answers_until_it_is_interrupted(shell: Shell, path: str, where: str) -> None:
    for needed in {"portal": ("uvicorn", "starlette"), "mcp": ("mcp",)}[path]:
        pytest.importorskip(needed, reason=f"the extra '{path}' is not installed")
    line, code = SERVERS[path]
    with shell.serving(where, *shlex.split(line)) as (server, given, said):
        if path == "mcp":
            given.write(b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
            assert json.loads(said.readline())["id"] == 1
        else:
            shown = said.readline().decode()
            url = re.search(r"http://\S+:\d+", shown)
            assert url is not None, shown
            with urllib.request.urlopen(url[0], timeout=30) as answer:
                assert answer.status == 200
        server.send_signal(signal.SIGINT)
        rest = rest_of(said)
        assert server.wait(60) == code
    assert not rest.strip()


@pytest.mark.long
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


@pytest.mark.long
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
