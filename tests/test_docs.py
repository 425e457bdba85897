"""The pages of the site: every block of code runs, every link leads somewhere, every public name is found."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import importlib.util
import inspect
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import fabstir_vectordb
from fabstir_vectordb import VectorDBSession, sync
from fabstir_vectordb.collections import Collection, build
from fabstir_vectordb.config import ConfigFields
from fabstir_vectordb.params import SearchOptions

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {page.relative_to(DOCS).as_posix(): page for page in sorted(DOCS.rglob("*.md"))}
#: Pages whose Python blocks run here, one after the other.
HERE = [
    "concepts.md",
    "filters.md",
    "from-node.md",
    "howto/add.md",
    "howto/change.md",
    "howto/save.md",
    "howto/search.md",
    "howto/shell.md",
    "migrating.md",
    "notebooks/memory.md",
    "notebooks/rag.md",
    "report.md",
    "tutorial.md",
]
#: Pages whose blocks run in the tests of what they describe.
ELSEWHERE = {
    "collections.md": "collections/test_twin.py",
    "embedders.md": "embedders/test_page.py",
    "importing.md": "importers/test_docs_importing.py",
    "integrations/": "integrations/test_pages.py",
    "mcp.md": "mcp_server/test_agent_memory.py",
    "ray.md": "collections/test_ray.py",
    "reranking.md": "session/test_rerank.py",
    "telemetry.md": "unit/test_tracing.py",
}
#: Modules whose names users import, beside those of the package.
MODULES = ["collections", "embedders", "importers", "mcp_server.memory", "tables"]
TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def blocks(name: str, *languages: str) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks of a page, or of those in some languages."""
    found = re.findall(r"^```([\w-]*)\n(.*?)^```$", PAGES[name].read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if not languages or language in languages]


def run(runner: asyncio.Runner, code: types.CodeType, names: dict[str, Any]) -> str:
    """What a cell prints. Its top level may await; where it does not, it may start an event loop of its own."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = eval(code, names)
        if inspect.iscoroutine(result):
            runner.run(result)
    return printed.getvalue()


@pytest.mark.parametrize("name", HERE)
def test_the_blocks_of_a_page_run_and_print_what_it_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    printed: str | None = None
    with asyncio.Runner() as runner:
        try:
            for language, text in blocks(name, "python", "text"):
                if language == "text":
                    assert printed is not None and printed.strip() == text.strip()
                    printed = None
                else:
                    printed = run(runner, compile(text, name, "exec", flags=TOP_LEVEL_AWAIT), names)
        finally:
            if inspect.iscoroutinefunction(getattr(names.get("session"), "destroy", None)):
                runner.run(names["session"].destroy())


def test_the_examples_of_the_reference_run(tmp_path: Path) -> None:
    """As a prompt that awaits shows them, with the names of the package."""
    examples = blocks("reference.md", "pycon")
    assert len(examples) > 3
    public = {name: getattr(fabstir_vectordb, name) for name in fabstir_vectordb.__all__} | {"Collection": Collection}
    with asyncio.Runner() as runner:
        for _, text in examples:
            names: dict[str, Any] = public | ({} if "await " in text else {"VectorDBSession": sync.VectorDBSession})
            for example in doctest.DocTestParser().get_examples(text.replace("file:///tmp", tmp_path.as_uri())):
                if "Collection.open" in example.source:
                    rows = {"ids": ["a", "b"], "vectors": [[1.0, 0.0], [0.0, 1.0]]}
                    store = f"{tmp_path.as_uri()}/vectors"
                    owner = {"user_seed_phrase": "a secret", "session_id": "docs", "index_name": "big"}
                    runner.run(build({"s5_portal": store, **owner}, [rows], shards=1))
                code = compile(example.source, "reference.md", "single", flags=TOP_LEVEL_AWAIT)
                assert run(runner, code, names) == example.want


def test_the_page_of_txtai_runs_against_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """txtai itself would download a model."""
    calls: list[str] = []

    class Embeddings:
        def __init__(self, path: str, backend: str, fabstir: dict[str, Any]) -> None:
            module, name = backend.rsplit(".", 1)
            spec = importlib.util.find_spec(module)
            assert spec is not None and spec.origin is not None
            assert f"class {name}" in Path(spec.origin).read_text(encoding="utf-8")
            assert set(fabstir) <= set(ConfigFields.__annotations__) | set(SearchOptions.__dataclass_fields__)

        def __getattr__(self, verb: str) -> Any:
            return lambda *arguments: calls.append(verb)

    monkeypatch.setitem(sys.modules, "txtai", types.SimpleNamespace(Embeddings=Embeddings))  # type: ignore[arg-type]
    for _, text in blocks("integrations/txtai.md", "py"):
        exec(compile(text, "txtai.md", "exec"), {})
    assert calls == ["index", "search", "save"]


def test_every_page_with_code_is_run() -> None:
    for name in PAGES:
        # The reference has signatures, whose examples run above.
        if name == "reference.md" or not blocks(name, "python", "py"):
            continue
        test = next((path for start, path in ELSEWHERE.items() if name.startswith(start)), None)
        assert (name in HERE) != (test is not None), name
        if test is not None:
            assert Path(name).name in (text := (ROOT / "tests" / test).read_text(encoding="utf-8")) or (
                f'"{Path(name).stem}"' in text
            ), f"{test} does not run {name}"


def test_every_command_of_the_pages_exists() -> None:
    group = pytest.importorskip("fabstir_vectordb.cli", reason="the extra 'cli' is not installed").cli
    lines = "\n".join(text for name in PAGES for _, text in blocks(name, "sh"))
    calls = re.findall(r"fabstir-vectordb ((?:'[^']*'|\"[^\"\n]*\"|[^\n#&>)|\"'])+)", lines.replace("\\\n", " "))
    assert len(calls) > 15
    for call in calls:
        command, options = group, {option for parameter in group.params for option in parameter.opts}
        for word in shlex.split(call):
            if re.match("--[a-z]|-[a-z]$", word):
                assert word in options, call
            elif word in getattr(command, "commands", {}):
                command = command.commands[word]
                options |= {option for parameter in command.params for option in parameter.opts}
        assert command is not group, call


def test_every_setting_and_error_is_named() -> None:
    text = PAGES["settings.md"].read_text(encoding="utf-8")
    for name in ConfigFields.__annotations__:
        assert f"`{name}`" in text, name
    for name in fabstir_vectordb.errors.__all__:
        code = getattr(fabstir_vectordb.errors, name).code
        assert name == "VectorDBError" or f"`{code}`" in text, name


def test_every_call_of_the_guides_exists() -> None:
    """The last cells of their tables are calls of this package."""
    known = set(dir(fabstir_vectordb)) | set(dir(VectorDBSession)) | set(ConfigFields.__annotations__)
    count = 0
    for name in ("from-node.md", "migrating.md"):
        for line in re.findall(r"^\|.*\|$", PAGES[name].read_text(encoding="utf-8"), re.MULTILINE):
            here = line.strip("|").split(" | ")[1:]  # of a call there, one here, what differs
            for call in re.findall(r"(?<![\w.$])([a-z_]\w*)\(", " ".join(re.findall("`([^`]+)`", " ".join(here)))):
                assert call in known, line
                count += 1
    assert count > 50


def headings(path: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)


@cache
def anchors(path: Path) -> frozenset[str]:
    """Anchors that a page has both in the site and on GitHub."""

    def of_site(title: str) -> str:
        plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
        return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())

    titles = headings(path)
    return frozenset(map(of_site, titles)) & frozenset(
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles
    )


def links(path: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("folder", ["docs", "."])
def test_every_link_leads_to_a_file_and_a_heading(folder: str) -> None:
    pages = list(PAGES.values()) if folder == "docs" else [*ROOT.glob("*.md"), *ROOT.glob("[bn]*/README.md")]
    count = 0
    for page in pages:
        for link in links(page):
            target, _, anchor = link.partition("#")
            if re.match(r"\w+:", target):
                continue
            file = (page.parent / target).resolve() if target else page
            where = f"{page.relative_to(ROOT)}: {link}"
            assert file.exists(), where
            # The site holds nothing but the folder of its pages.
            assert folder == "." or file.is_relative_to(DOCS), where
            assert not anchor or anchor in anchors(file), where
            count += 1
    assert count > 20


def test_the_navigation_has_every_page() -> None:
    def leaves(item: Any) -> Iterator[str]:
        if isinstance(item, str):
            yield item
        else:
            for one in item.values() if isinstance(item, dict) else item:
                yield from leaves(one)

    project = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    listed = list(leaves(project["nav"]))
    assert sorted(listed) == sorted(PAGES)


def public_names() -> set[str]:
    """What users import: of the package, and of its modules with a list of their own."""
    found = set(fabstir_vectordb.__all__)
    for module in MODULES:
        tree = ast.parse(source(module).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found |= {f"{module}.{name}" for name in ast.literal_eval(node.value)}
    return found


def source(module: str) -> Path:
    folder = ROOT.joinpath("fabstir_vectordb", *module.split("."))
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def test_every_public_name_is_a_heading() -> None:
    """The search box finds pages by their headings."""
    assert public_names() <= {title.strip("`") for title in headings(PAGES["reference.md"])}


@pytest.mark.long
def test_the_search_box_finds_every_public_name(tmp_path: Path) -> None:
    """The site as `.ci/run` builds it."""
    pytest.importorskip("zensical", reason="the extra 'docs' is not installed")
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=tmp_path, check=True)
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    # Names with their class or module, and alone.
    full = {title.strip("`") for title in headings(PAGES["reference.md"]) if re.fullmatch(r"`[\w.]+`", title)}
    assert public_names() <= full
    queries = sorted(full | {name.rpartition(".")[2] for name in full})
    program = Path(__file__).parent / "js" / "search_site.js"
    answer = subprocess.run(
        [node, program, tmp_path / "site"], input=json.dumps(queries), capture_output=True, text=True, check=True
    )
    found = json.loads(answer.stdout)
    assert len(found) == len(queries) > 200
    # The box shows ten hits, and more on scrolling. `search` comes behind the pages about searches.
    crowded_out = {name: titles for name, titles in zip(queries, found, strict=True) if name not in titles}
    assert crowded_out == {}


def test_the_readme_is_one_screen() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
