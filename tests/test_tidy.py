"""The rules of the house, which every file keeps.

Imports and includes point one way. A limit is written once. A session shows its verbs only. No class has more than 400
lines of code. A name in a comment exists.

`TODAY` lists what breaks a rule for the time being. It can only shrink: an entry that is no longer true fails the test.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
import subprocess
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from fabstir_vectordb import VectorDBSession, sync

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fabstir_vectordb"
CORE = ROOT / "native" / "src"
HEADER = ROOT / "native" / "include" / "fabstir_vectordb.h"

CLASS_LINES_MAX = 400

#: The verbs of a session, as README and docs/reference.md show them.
VERBS = {
    *("create", "from_parts", "open_share", "destroy"),
    *("add_vectors", "add_batch", "add_texts", "add_table"),
    *("update_metadata", "update_by_metadata", "update_vector", "set_schema"),
    "set_text_fields",
    *("delete", "delete_vector", "delete_by_metadata", "clear", "vacuum", "optimize"),
    *(
        "search",
        "search_batch",
        "search_stream",
        "get",
        "count",
        "scan",
        "scan_page",
        "to_arrow",
        "to_pandas",
        "facets",
        "fields",
        "recall",
        "report",
        "get_stats",
    ),
    *("get_recent_index", "get_historical_index", "get_timestamps"),
    *("load_user_vectors", "save_to_s5", "warm", "is_newest", "history", "list_indexes", "prune_history", "verify"),
    "share",
}

#: Folders of the core, each includes only what stands below it; hnsw and ivf none of each other, nor metadata or text.
#: The entries of the ABI are the files at the top: api.c and api_*.c.
LAYERS = {
    **{"api": 7, "format": 6, "index": 5, "hnsw": 4, "ivf": 4, "store": 3},
    **{"kernels": 2, "metadata": 2, "text": 2, "base": 1},
}

TODAY: dict[str, set[str]] = {
    "imports that close a circle": set(),
    "packages that import each other": set(),
    "includes against the direction": set(),
    "calls against the direction": set(),
    "limits written twice": set(),
    "limits written as a bare number": set(),
    "no verb of a session": set(),
    "verbs that the twin lacks or takes otherwise": set(),
    "classes that are too long": set(),
    "files that a comment names and that do not exist": set(),
    "names in backticks that do not exist": set(),
}


def agree(rule: str, found: Iterable[str]) -> None:
    """Fails for what breaks a rule and is not listed, and for what is listed and keeps it."""
    broken = set(found)
    assert sorted(broken - TODAY[rule]) == [], rule
    assert sorted(TODAY[rule] - broken) == [], f"{rule}: these are mended, take them off the list"


# ---- Python: imports


def modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "declarations.py":
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(parsed(path)))


def test_dataclasses_are_the_quick_ones() -> None:
    for name, path in modules().items():
        for node in nodes(path):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module == "dataclasses"
                and name != f"{PACKAGE.name}.dataclass"
            ):
                assert "dataclass" not in [alias.name for alias in node.names], (
                    f"{name}: fabstir_vectordb.dataclass has it"
                )


@cache
def imports() -> dict[str, set[str]]:
    """What each module imports of the package: at its top, in a function, or for type checking only."""
    known = modules()
    edges: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for node in nodes(path):
            if isinstance(node, ast.Import):
                edges[name] |= {alias.name for alias in node.names if alias.name in known}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} imports relatively"
                source = node.module or ""
                for alias in node.names:
                    inner = f"{source}.{alias.name}"
                    edges[name] |= {inner} if inner in known else {source} & known.keys()
        edges[name].discard(name)
    return edges


def circle(edges: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def without(edges: dict[str, set[str]], exceptions: set[str]) -> dict[str, set[str]]:
    return {one: {other for other in others if f"{one} → {other}" not in exceptions} for one, others in edges.items()}


def only_as_listed(rule: str, edges: dict[str, set[str]]) -> None:
    """No circle but those that the listed imports close; each of them does close one."""
    listed = TODAY[rule]
    left = without(edges, listed)
    assert circle(left) == [], rule
    for entry in sorted(listed):
        one, other = entry.split(" → ")
        assert other in edges.get(one, set()), f"{rule}: {entry} is mended, take it off the list"
        assert circle({**left, one: left[one] | {other}}), f"{rule}: {entry} closes no circle, take it off the list"


def test_imports_make_no_circle() -> None:
    only_as_listed("imports that close a circle", imports())


def test_packages_import_one_way() -> None:
    """A folder counts as one; a file at the top stands for itself."""

    def room(name: str) -> str:
        parts = name.split(".")
        return ".".join(parts[:2]) if len(parts) > 1 else name

    edges: dict[str, set[str]] = {}
    for one, others in imports().items():
        edges.setdefault(room(one), set()).update(room(other) for other in others)
    for one, others in edges.items():
        others.discard(one)
    only_as_listed("packages that import each other", edges)


# ---- C: includes and calls


def layer(path: Path) -> str:
    parts = path.relative_to(CORE).parts
    return parts[0] if len(parts) > 1 else "api"


def c_files() -> list[Path]:
    return sorted([*CORE.rglob("*.c"), *CORE.rglob("*.h")])


def may_use(one: str, other: str) -> bool:
    return one == other or LAYERS[one] > LAYERS[other]


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)


def test_includes_point_one_way() -> None:
    found = []
    for path in c_files():
        for name in re.findall(r'#include "([^"]+)"', path.read_text(encoding="utf-8")):
            target = (path.parent / name).resolve()
            if CORE in target.parents and not may_use(layer(path), layer(target)):
                found.append(f"{path.relative_to(CORE).as_posix()} → {target.relative_to(CORE).as_posix()}")
    agree("includes against the direction", found)


def test_calls_point_one_way() -> None:
    """What a file defines for others is used by files of its own folder, and of those above."""
    texts = {path: without_comments(path.read_text(encoding="utf-8")) for path in CORE.rglob("*.c")}
    definition = re.compile(r"^(?!static\b|typedef\b)[a-z]\w*[\w\s*]*?\b(\w+)\([^;{}]*\)\s*\{", re.MULTILINE)
    owner = {name: path for path, text in texts.items() for name in definition.findall(text)}
    assert len(owner) > 100
    found = [
        f"{path.relative_to(CORE).as_posix()} → {name} of {owner[name].relative_to(CORE).as_posix()}"
        for path, text in texts.items()
        for name in set(re.findall(r"\b(\w+)\(", text)) & owner.keys()
        if not may_use(layer(path), layer(owner[name]))
    ]
    agree("calls against the direction", found)


# ---- limits


def number(node: ast.expr | None) -> int | float | None:
    """The value of an expression of literals, as `1 << 20`."""
    if node is None or not all(
        isinstance(part, (ast.Constant, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop)) for part in ast.walk(node)
    ):
        return None
    try:
        value = eval(compile(ast.Expression(node), "", "eval"), {})
    except TypeError:  # texts
        return None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def python_constants() -> Iterator[tuple[str, str, int | float]]:
    """Module, name without underscores and value of every constant that a module writes as a number."""
    for module, path in modules().items():
        for node in parsed(path).body:
            targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
            value = number(getattr(node, "value", None)) if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
            for target in targets:
                if isinstance(target, ast.Name) and value is not None:
                    yield module, target.id.strip("_"), value


def c_constants(path: Path) -> dict[str, int | float]:
    found: dict[str, int | float] = {}
    for name, text in re.findall(r"^#define (\w+) ([\d.x()<u* a-f]+)$", without_comments_kept(path), re.MULTILINE):
        with_python_literals = re.sub(r"\b(0x[\da-f]+|[\d.]+)[uUlLf]*\b", r"\1", text)
        try:
            value = number(ast.parse(with_python_literals, mode="eval").body)
        except SyntaxError:
            continue
        if value is not None:
            found[name] = value
    return found


def without_comments_kept(path: Path) -> str:
    return "\n".join(line.rstrip() for line in without_comments(path.read_text(encoding="utf-8")).split("\n"))


def test_no_limit_is_written_twice() -> None:
    """In Python what the header has, or one name with one value in two modules or two C files."""
    header = {name.removeprefix("FVDB_"): value for name, value in c_constants(HEADER).items()}
    assert header["DIM_MAX"] == 4096
    found = []
    homes: dict[tuple[str, int | float], set[str]] = {}
    for module, name, value in python_constants():
        if header.get(name) == value:
            found.append(f"{name} of {module} is FVDB_{name}")
        homes.setdefault((name, value), set()).add(module)
    for path in c_files():
        for name, value in c_constants(path).items():
            homes.setdefault((name, value), set()).add(path.relative_to(CORE).as_posix())
    found += [f"{name} of {' and '.join(sorted(where))}" for (name, _), where in homes.items() if len(where) > 1]
    agree("limits written twice", found)


def test_no_large_limit_of_the_header_stands_in_an_expression() -> None:
    found = []
    large = {value: name for name, value in c_constants(HEADER).items() if value >= 100_000 and name != "FVDB_NO_SLOT"}
    assert len(large) >= 3
    constants = {(module, value) for module, _, value in python_constants()}
    for module, path in modules().items():
        for node in nodes(path):
            value = node.value if isinstance(node, ast.Constant) else None
            if isinstance(value, int) and value in large and (module, value) not in constants:
                found.append(f"{value} in {module} is {large[value]}")
    agree("limits written as a bare number", found)


# ---- classes


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def test_a_session_shows_its_verbs_only() -> None:
    agree("no verb of a session", public(VectorDBSession) - VERBS)


def test_the_twin_has_the_same_verbs_with_the_same_arguments() -> None:
    found = []
    for name in sorted(public(VectorDBSession) & VERBS | public(sync.VectorDBSession)):
        one, other = (getattr(cls, name, None) for cls in (VectorDBSession, sync.VectorDBSession))
        if one is None or other is None:
            found.append(name)
            continue
        first, second = (
            [(p.name, p.kind, p.default) for p in inspect.signature(verb).parameters.values()] for verb in (one, other)
        )
        if first != second:
            found.append(f"{name}: {first} and {second}")
    agree("verbs that the twin lacks or takes otherwise", found)


@cache
def scanned(path: Path) -> tuple[set[int], list[str]]:
    """The numbers of the lines that hold code, no blank lines, comments or docstrings; and the comments."""
    text = path.read_text(encoding="utf-8")
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}
    lines: set[int] = set()
    comments = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.append(token.string)
        elif token.type not in silent and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in nodes(path):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            said = body[0].value
            if isinstance(said, ast.Constant) and isinstance(said.value, str):
                lines -= set(range(body[0].lineno, (body[0].end_lineno or body[0].lineno) + 1))
    return lines, comments


def test_no_class_is_too_long() -> None:
    found = []
    for module, path in modules().items():
        lines, _ = scanned(path)
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                size = len(lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
                if size > CLASS_LINES_MAX:
                    found.append(f"{module}.{node.name}")
    agree("classes that are too long", found)


# ---- names in comments


@cache
def tracked() -> list[Path]:
    """The files of the repository; in an unpacked sdist, all there are."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and ".git" not in path.parts]


@cache
def remarks(path: Path) -> list[str]:
    """Comments and docstrings of a Python or C file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".c", ".h"):
        return re.findall(r"/\*.*?\*/|//[^\n]*", text, re.DOTALL)
    found = [*scanned(path)[1]]
    for node in nodes(path):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(ast.get_docstring(node) or "")
    return found


@cache
def sources() -> list[Path]:
    """The files of this project that are code."""
    ours = (PACKAGE, ROOT / "native", ROOT / "tests", ROOT / "benchmarks", ROOT / "docs")
    return [
        path
        for path in tracked()
        if path.suffix in (".py", ".c", ".h")
        and (path.parent == ROOT or any(folder in path.parents for folder in ours))
        and path.name != "declarations.py"
    ]


@cache
def words_of_code() -> frozenset[str]:
    """Every word that code has, comments and docstrings left out: names, and what texts say."""
    found: set[str] = set()
    for path in sources():
        if path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            lines, _ = scanned(path)
            kept = "\n".join(line for at, line in enumerate(text.split("\n"), 1) if at in lines)
            found |= set(re.findall(r"\w+", re.sub(r"(?m)\s#.*$", "", kept)))
            found |= {node.name for node in nodes(path) if isinstance(node, ast.ClassDef)}
        else:
            found |= set(re.findall(r"\w+", without_comments(text)))
    for name in ("pyproject.toml", "docs/format.md"):
        found |= set(re.findall(r"[\w-]+", (ROOT / name).read_text(encoding="utf-8")))
    return frozenset(found)


def test_files_that_comments_name_exist() -> None:
    names = {path.name for path in tracked()} | {"declarations.py"}
    found = []
    for path in sources():
        for remark in remarks(path):
            for name in re.findall(r"(?<![\w/.*%{}-])((?:\w[\w-]*/)*\w+\.(?:py|c|h|md|json|toml))\b(?!\()", remark):
                # A file has a name of some length: `x.c` is a product.
                if Path(name).name not in names and len(Path(name).stem) > 1:
                    found.append(f"{path.relative_to(ROOT).as_posix()}: {name}")
    agree("files that a comment names and that do not exist", found)


def test_names_in_backticks_exist() -> None:
    """In the package's comments and docstrings: each word of an identifier in backticks is one of the code."""
    words = words_of_code()
    found = []
    for path in sources():
        if PACKAGE not in path.parents and ROOT / "native" not in path.parents:
            continue
        for remark in remarks(path):
            for name in re.findall(r"(?<!`)`([A-Za-z_][\w.]*)(?:\(\))?`(?!`)", remark):
                if any(word not in words for word in name.split(".") if word):
                    found.append(f"{path.relative_to(ROOT).as_posix()}: {name}")
    agree("names in backticks that do not exist", found)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/troubleshooting.md"])
def test_names_in_documents_exist(page: str) -> None:
    """Files, and identifiers with an underscore or a call."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {path.name for path in tracked()} | {"declarations.py"}
    words = words_of_code()
    for quoted in re.findall(r"`([^`\n]+)`", text):
        if found := re.fullmatch(r"(?:[\w-]+/)*([\w-]+\.(?:py|c|h|md))(?: .*)?", quoted):
            assert found[1] in names or found[1] in ("example.py",), f"{page} names the file {quoted}"
        elif re.fullmatch(r"(\w+\.)*\w*_\w+(\(.*\))?", quoted):
            for word in re.findall(r"\w+", quoted.split("(")[0]):
                assert word in words or word.startswith("kernels_"), f"{page} names {quoted}"
        for option in re.findall(r"(?<!\S)--[a-z-]+", quoted):
            assert option_exists(option), f"{page} names the option {option}"


@cache
def options() -> frozenset[str]:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources() if path.suffix == ".py")
    return frozenset(re.findall(r"\"(--[a-z-]+)\"", text))


def option_exists(option: str) -> bool:
    return option in options() or option in ("--args", "--version", "--check", "--config-file", "--dist")


def test_the_lists_of_today_name_rules_that_there_are() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(text.count(f'"{rule}"') == 2 for rule in TODAY)
    assert importlib.import_module("fabstir_vectordb").__all__
