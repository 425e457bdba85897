"""The commands of the command line that look at rows, delete them and look after an index; JSON, names, completion."""

from __future__ import annotations

import csv
import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Run, leaves, records

pytest.importorskip("click", reason="the extra 'cli' is not installed")
cli = importlib.import_module("fabstir_vectordb.cli").cli
rows_of = importlib.import_module("fabstir_vectordb.cli_rows")
support = importlib.import_module("fabstir_vectordb.cli_support")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "command-line.md"
ROWS: list[dict[str, Any]] = [
    {"id": f"r{n}", "vector": [1.0, n / 4], "timestamp": float(n), "metadata": {"n": n, "kind": "ab"[n % 2]}}
    for n in range(5)
]


@pytest.fixture
def index(run: Run, tmp_path: Path) -> str:
    """An index of five rows; its CID."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return str(records(run("import", path, "--json"))[0]["cid"])


def test_rows_are_read_by_id_in_pages_and_by_filter(run: Run, index: str) -> None:
    assert run("get", "r1", "r0").out == (
        'r1  1970-01-01T00:00:01+00:00  {"n": 1, "kind": "b"}\nr0  1970-01-01T00:00:00+00:00  {"n": 0, "kind": "a"}\n'
    )
    assert records(run("get", "r1", "--json", "--vectors")) == [ROWS[1]]
    assert "vector" not in records(run("get", "r1", "--json"))[0]
    lost = run("get", "r1", "who")
    assert (lost.code, lost.out, lost.err) == (1, "", "[NOT_FOUND] the index has no row with id 'who'\n")
    assert len(run("get", "r1", "who", "--missing-ok").out.splitlines()) == 1

    first = run("list", "--limit", "3", "--json", "--vectors")
    assert records(first) == ROWS[:3]
    cursor = re.fullmatch(r"there are more: --cursor (\S+)\n", first.err)
    assert cursor is not None
    second = run("list", "--limit", "3", "--cursor", cursor[1], "--json", "--vectors")
    assert (records(second), second.err) == (ROWS[3:], "")
    newest = run("list", "--order", "-n", "--limit", "2", "--filter", '{"kind": "a"}')
    assert [line.split()[0] for line in newest.out.splitlines()] == ["r4", "r2"]

    assert run("count").out == "5\n"
    assert run("count", "--filter", '{"n": {"$gte": 3}}').out == "2\n"
    found = records(run("search", "--like", "r0", "--filter", '{"kind": "b"}', "--json"))
    assert [hit["id"] for hit in found] == ["r1", "r3"]
    assert run("facets", "kind").out == '       3  "a"\n       2  "b"\n'
    one = records(run("facets", "kind", "--order", "value", "--limit", "1", "--filter", '{"n": 1}', "--json"))
    assert one == [{"value": "b", "count": 1}]


def test_deletes_are_saved_and_other_versions_stay(run: Run, index: str, tmp_path: Path) -> None:
    assert run("delete", "r0", "r0", "--dry-run").out == "would delete 1\n"
    assert run("delete", "--filter", '{"kind": "b"}', "--dry-run").out == "would delete 2\n"
    assert run("delete", "who").code == 1
    assert len(run("history").out.splitlines()) == 1
    assert records(run("delete", "who", "--missing-ok", "--json")) == [{"deleted": 0, "cid": index}]
    by_id, by_filter = run("delete", "r0"), run("delete", "--filter", '{"kind": "b"}')
    assert (by_id.out.splitlines()[0], by_filter.out.splitlines()[0]) == ("deleted 1", "deleted 2")
    cleaned = run("vacuum")
    assert cleaned.out.splitlines()[0] == "removed 3 rows"
    assert records(run("stats", "--json", "--cid", cleaned.out.split()[-1]))[0]["deleted_count"] == 0
    assert run("count").out == "2\n"
    assert run("count", "--cid", index).out == "5\n"
    assert "vector_count: 5\n" in run("stats", "--cid", index).out
    moved = records(run("optimize", "--recent-window-s", "1e9", "--json"))[0]
    assert set(moved) == {"trained", "migrated", "vacuum", "cid"}
    target = tmp_path / "rest.jsonl"
    assert records(run("export", target, "--filter", '{"n": 2}', "--json")) == [{"rows": 1, "target": str(target)}]
    assert json.loads(target.read_text()) == ROWS[2]


def test_every_command_prints_json(run: Run, index: str) -> None:
    for command in (
        ["history"], ["indexes"], ["stats"], ["verify"], ["prune", "--keep", "1"], ["share", index], ["new-phrase"],
        ["doctor"], ["vacuum"], ["recall", "--sample", "2", "-k", "1"],
    ):  # fmt: skip
        assert len(records(run(*command, "--json"))) == 1, command
    # The demo tells a story, and a server of the protocol has no result.
    without = {name for name, it in leaves(cli).items() if not any("--json" in p.opts for p in it.params)}
    assert without == {"demo", "mcp"}
    assert all(re.search(rf"^  {name}  ", run("--help").out, re.MULTILINE) for name in cli.commands)
    piped = run("export", "-", "--json")
    assert (len(piped.out.splitlines()), json.loads(piped.err)) == (5, {"rows": 5})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["count", "--filter", "{"], "it is not JSON"),
        (["search", "--text", "sky", "--filter", "{"], "it is not JSON"),
        (["count", "--filter", "[" * 100_000], "it is not JSON"),
        (["list", "--filter", "[1]"], "a filter is a JSON object"),
        (["delete"], "give either ids or --filter"),
        (["delete", "a", "--filter", "{}"], "give either ids or --filter"),
        (["list", "--order", "n", "--cursor", "x"], "a cursor goes with the order of insertion"),
        (["get", "a", "--vectors"], "--vectors goes with --json"),
        (["get"], "Missing argument"),
    ],
)
def test_wrong_usage_is_refused_before_a_session_opens(run: Run, arguments: list[str], message: str) -> None:
    ended = run("--store", "ftp://nowhere", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


def test_refused_values_are_one_line(run: Run, index: str) -> None:
    for arguments, message in (
        (["count", "--filter", '{"n": {"$no": 1}}'], "INVALID_INPUT"),
        (["delete", "--filter", "{}"], "INVALID_INPUT"),
        (["list", "--cursor", "nonsense"], "INVALID_INPUT"),
        (["stats", "--cid", "nonsense"], "INVALID_INPUT"),
    ):
        ended = run(*arguments)
        assert (ended.code, ended.out, len(ended.err.splitlines())) == (1, "", 1)
        assert message in ended.err
    assert len(run("history").out.splitlines()) == 1


def test_what_strangers_wrote_cannot_steer_a_terminal(run: Run, tmp_path: Path) -> None:
    evil = "a\x1b]0;x\x07\n\x9b2J\u202eb\u2028"
    path = tmp_path / "evil.jsonl"
    path.write_text(json.dumps({"id": evil, "vector": [1, 0], "metadata": {evil: evil}}), encoding="utf-8")
    assert run("import", path).code == 0
    field = json.dumps(evil)
    for command in (
        ["get", evil], ["list"], ["list", "--json"], ["search", "--like", evil], ["search", "--like", evil, "--json"],
        ["facets", field], ["export", "-"], ["get", evil + "?"], ["migrate", "chroma", tmp_path, "--collection", evil],
        ["delete", evil + "?"], ["--debug", "get", evil + "?"],
    ):  # fmt: skip
        ended = run(*command)
        shown = ended.out + ended.err
        assert shown.strip()
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]", shown), (command, shown)
    assert records(run("get", evil, "--json"))[0]["metadata"] == {evil: evil}
    assert run("list").out.startswith("a\\u001b]0;x\\u0007\\u000a\\u009b2J\\u202eb\\u2028  ")


def test_collections_print_json(run: Run, index: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = tmp_path / "rows.parquet"
    assert run("export", table).code == 0
    many = ["--index-name", "many", "collection"]
    (built,) = records(run(*many, "build", table, "--shards", "2", "--json"))
    (stats,) = records(run(*many, "stats", "--json"))
    assert built == {"cid": stats["cid"]}
    (checked,) = records(run(*many, "verify", "--json"))
    assert (checked["rows"], checked["shards"]) == (5, len(stats["shards"]))
    (planned,) = records(run(*many, "plan", "--rows", "1e6", "--json"))
    assert planned["plan"]["rows"] == 1_000_000
    assert [hit["id"] for hit in records(run(*many, "search", "--like", "r1", "-k", "1", "--json"))] == ["r1"]


def test_lines_of_tables_are_broken_on_a_narrow_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "14")
    line = "  rows     12  stored bytes a row-group"
    support.say_fitted(line, 4)
    assert capsys.readouterr().out == line + "\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    support.say_fitted(line, 4)
    assert capsys.readouterr().out == "  rows     12\n    stored\n    bytes a\n    row-group\n"


def test_long_lines_are_cut_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "8")
    line = "é" * 9
    assert rows_of._cut(line) == line
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert rows_of._cut(line) == "é" * 7 + "…"
    assert rows_of._cut("é" * 8) == "é" * 8
    assert rows_of._cut("語" * 5) == "語" * 3 + "…"
    assert rows_of._cut("語" * 4) == "語" * 4


def test_an_index_is_named_by_the_environment(run: Run, index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABSTIR_INDEX_NAME", "other")
    assert "no version of index 'other'" in run("history").err
    assert run("--index-name", "default", "count").out == "5\n"


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_columns_of_lines_are_named(run: Run, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    row = {"key": "a", "emb": "[1, 2]", "at": "2024-01-31T12:00:00+02:00", "until": "7000000000", "t": "x", "u": "y"}
    if suffix == "csv":
        path.write_text(",".join(row) + "\n" + ",".join(f'"{cell}"' for cell in row.values()), encoding="utf-8")
    else:
        path.write_text(json.dumps({**row, "emb": [1, 2], "until": 7e9}), encoding="utf-8")
    columns = ["--id-column", "key", "--vector-column", "emb", "--timestamp-column", "at", "--expires-column", "until"]
    assert run("import", path, *columns, "--metadata-column", "t").code == 0
    assert records(run("get", "a", "--json", "--vectors")) == [
        {"id": "a", "vector": [1, 2], "timestamp": 1706695200.0, "metadata": {"t": "x"}, "expires_at": 7e9}
    ]
    if suffix == "csv":
        lost = run("import", path, *columns, "--metadata-column", "w")
        assert (lost.code, "has no column 'w'" in lost.err) == (1, True)


def test_a_cell_of_csv_may_be_as_large_as_metadata(run: Run, tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = tmp_path / "rows.csv"
    path.write_text(f'id,vector,text\na,"[1]",{"x" * 900_000}\n', encoding="utf-8")
    assert run("import", path).code == 0
    assert csv.field_size_limit() == before


def test_a_shell_completes_commands_options_and_choices(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_FABSTIR_VECTORDB_COMPLETE", "zsh_complete")
    for words, expected in (
        ("his", "history"),
        ("search --fil", "--filter"),
        ("migrate qd", "qdrant"),
        ("import x --on-conflict r", "replace"),
    ):
        monkeypatch.setenv("COMP_WORDS", f"fabstir-vectordb {words}")
        monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
        assert expected in run().out.split("\n"), words


def test_the_help_of_every_command_fits_into_60_columns() -> None:
    click = importlib.import_module("click")

    def every(command: Any, name: str) -> None:
        context = click.Context(command, info_name=name, terminal_width=60)
        too_long = [line for line in command.get_help(context).splitlines() if len(line) > 60]
        assert too_long == [], name
        for inner, found in getattr(command, "commands", {}).items():
            every(found, f"{name} {inner}")

    every(cli, "fabstir-vectordb")


# ---- the page


def test_the_page_has_every_command_and_option() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, command in {"": cli, **cli.commands}.items():
        assert f"`{name}" in text, name
        for parameter in command.params:
            assert f"`{max(parameter.opts, key=len)}" in text or parameter.param_type_name == "argument", (
                name,
                parameter.opts,
            )


def test_every_command_of_the_page_exists() -> None:
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    calls = [call for call in re.findall(r"fabstir-vectordb ([^\n|)]+)", lines) if not call.startswith("--")]
    assert len(calls) > 10
    for call in calls:
        name, *arguments = shlex.split(call, comments=True)
        command = cli.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {part for part in arguments if part.startswith("--")} <= known, call
