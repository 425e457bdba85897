"""The example of the README runs, as it stands there; `test_docs.py` checks all else of it."""

from __future__ import annotations

import ast
import asyncio
import gc
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
[EXAMPLE] = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_example_runs_twice_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs = []
    for _ in range(2):
        exec(compile(EXAMPLE, "README.md", "exec"), {"__name__": "__main__"})
        outputs.append(capsys.readouterr().out.splitlines())
    for lines in outputs:
        assert lines[:2] == ["0.998 doc1 roses are red", "0.652 doc2 violets are blue"]
        assert "\n".join(lines[:2]) in README
        assert lines[2].startswith("uW4Ie")


def test_the_first_example_runs_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As cells of IPython: in a loop that runs already, where `asyncio.run` is refused."""
    monkeypatch.chdir(tmp_path)
    assert "`await main()` in place of `asyncio.run(main())`" in README
    cell = EXAMPLE.replace("asyncio.run(main())", "await main()")
    compiled = compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    async def notebook() -> None:
        await eval(compiled, {"__name__": "__main__"})
        # The coroutine that is refused is never awaited; Python says so when it goes.
        with pytest.warns(RuntimeWarning, match="never awaited"):
            with pytest.raises(RuntimeError, match="running event loop"):
                exec(compile(EXAMPLE, "cell", "exec"), {"__name__": "__main__"})
            gc.collect()

    asyncio.run(notebook())
