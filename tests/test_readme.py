"""Every Python snippet of the README runs, as it stands there."""

from __future__ import annotations

import ast
import asyncio
import gc
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from fabstir_vectordb import VectorDBSession

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python( session)?\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
WHOLE = [code for inside, code in SNIPPETS if not inside]
INSIDE = [code for inside, code in SNIPPETS if inside]


def test_the_first_example_runs_twice_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs = []
    for _ in range(2):
        exec(compile(WHOLE[0], "README.md", "exec"), {"__name__": "__main__"})
        outputs.append(capsys.readouterr().out.splitlines())
    for lines in outputs:
        assert lines[:2] == ["0.998 doc1 roses are red", "0.652 doc2 violets are blue"]
        assert "\n".join(lines[:2]) in README
        assert lines[2].startswith("uW4Ie")


def test_the_first_example_runs_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As cells of IPython: in a loop that runs already, where `asyncio.run` is refused."""
    monkeypatch.chdir(tmp_path)
    assert "`await main()` in place of `asyncio.run(main())`" in README
    cell = WHOLE[0].replace("asyncio.run(main())", "await main()")
    compiled = compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    async def notebook() -> None:
        await eval(compiled, {"__name__": "__main__"})
        # The coroutine that is refused is never awaited; Python says so when it goes.
        with pytest.warns(RuntimeWarning, match="never awaited"):
            with pytest.raises(RuntimeError, match="running event loop"):
                exec(compile(WHOLE[0], "cell", "exec"), {"__name__": "__main__"})
            gc.collect()

    asyncio.run(notebook())


def test_every_command_of_the_shell_snippets_exists() -> None:
    cli = pytest.importorskip("fabstir_vectordb.cli", reason="the extra 'cli' is not installed").cli
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
    calls = re.findall(r"fabstir-vectordb ([^)\n\"#&]+)", lines)
    assert len(calls) > 6
    for call in calls:
        name, *arguments = shlex.split(call)
        command = cli.commands[name]
        # Parsed as the command would, with files that need not exist.
        known = {option for parameter in command.params for option in parameter.opts}
        for argument in arguments:
            assert not argument.startswith("-") or argument in known, f"{name} {argument}"


def test_the_other_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(WHOLE) == 2
    exec(compile(WHOLE[1], "README.md", "exec"), {"__name__": "__main__"})


def test_the_tasks_run_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        async with await VectorDBSession.create(
            s5_portal=tmp_path.as_uri(), user_seed_phrase="readme", session_id="readme"
        ) as session:
            await session.add_batch(["doc1", "doc2"], [[1.0, 0, 0], [0, 1.0, 0]], [{"text": "a"}, None])
            names: dict[str, Any] = {"session": session}
            for code in INSIDE:
                compiled = compile(code, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                result = eval(compiled, names)
                if result is not None:
                    await result

    asyncio.run(run())
    assert "AddResult(added=1000, replaced=0, skipped=0)" in capsys.readouterr().out


def test_every_setting_and_error_is_named() -> None:
    import dataclasses

    from fabstir_vectordb import VectorDBConfig, errors

    for field in dataclasses.fields(VectorDBConfig):
        assert f"`{field.name}`" in README
    for name in errors.__all__:
        code = getattr(errors, name).code
        assert name == "VectorDBError" or f"`{code}`" in README


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
