"""Every snippet of docs/importing.md runs, and every command of it exists."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabstir_vectordb import sync
from fabstir_vectordb.importers import FORMATS

pytest_plugins = ["stored"]

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "importing.md").read_text(encoding="utf-8")


def test_the_snippets_run_one_after_the_other(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pytest.importorskip("pandas", reason="pandas is not installed")
    from pyarrow import parquet

    monkeypatch.chdir(tmp_path)
    shutil.copytree(samples / "peers" / "chroma", "chroma")
    vectors = np.eye(8, dtype=np.float32)
    lists = arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.reshape(-1)), 8)
    table = arrow.table(
        {"key": [f"k{n}" for n in range(8)], "embedding": lists, "title": ["t"] * 8, "year": [2024] * 8}
    )
    parquet.write_table(arrow.table({"id": [f"p{n}" for n in range(8)], "vector": lists}), "rows.parquet")
    table = table.append_column("id", arrow.array([f"i{n}" for n in range(8)])).append_column("vector", lists)
    with sync.VectorDBSession.create(
        s5_portal="memory:", user_seed_phrase="docs", session_id="docs", metric="cosine"
    ) as session:
        names: dict[str, Any] = {"session": session, "table": table, "query": vectors[0]}
        snippets = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
        assert len(snippets) == 4
        for code in snippets:
            exec(compile(code, "importing.md", "exec"), names)
        assert session.count() == 3 * 8 + 59
        assert session.get_stats().last_cid is not None
    assert "MigrationReport(" in capsys.readouterr().out


def test_every_command_exists() -> None:
    cli = pytest.importorskip("fabstir_vectordb.cli", reason="the extra 'cli' is not installed").cli
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    calls = re.findall(r"fabstir-vectordb ([^\n#>]+)", lines)
    assert len(calls) == 8
    for call in calls:
        name, *arguments = shlex.split(call)
        known = {option for parameter in cli.commands[name].params for option in parameter.opts}
        for argument in arguments:
            assert not re.match(r"--?[a-z]", argument) or argument in known, f"{name} {argument}"


def test_every_format_and_option_is_named() -> None:
    from importlib import import_module
    from inspect import signature

    migrate = import_module("fabstir_vectordb.importers.migrate")
    for format in FORMATS:
        row = re.search(rf"^\| `{format}` \|.*$", PAGE, re.MULTILINE)
        assert row is not None, format
        module, name = migrate._SOURCES[format]
        cls = getattr(import_module(f"fabstir_vectordb.importers.{module}"), name)
        for option in list(signature(cls).parameters)[1:]:
            assert f"`{option}`" in row[0], f"{format} {option}"
