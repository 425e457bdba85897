"""Every public name has a complete docstring, and docs/reference.md is made of them."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import griffe
import pytest

import fabstir_vectordb
from fabstir_vectordb import errors

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def made() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_reference"] = module
    spec.loader.exec_module(module)
    return module


def left_out(name: str, item: griffe.Object) -> Iterator[str]:
    """What the docstring of a class, method or function does not say."""
    if item.docstring is None or not item.docstring.value.strip():
        yield f"{name}: no docstring"
        return
    text = item.docstring.value
    if not re.match(r"[^\n]+[.:]$", text.split("\n\n")[0].replace("\n", " ").strip()):
        yield f"{name}: the first sentence"
    if isinstance(item, griffe.Function):
        documented = set(re.findall(r"\*{0,2}(\w+)", " ".join(re.findall(r"^ +([\w*, ]+):", text, re.MULTILINE))))
        documented |= set(re.findall(r"^([\w*, ]+):", section(text, "Args"), re.MULTILINE))
        for parameter in item.parameters:
            if parameter.name not in ("self", "cls") and parameter.name not in documented:
                yield f"{name}: argument {parameter.name}"
        returns = str(item.returns) if item.returns is not None else "None"
        sections = ("Yields", "Returns") if re.search("Iterator|Generator", returns) else ("Returns",)
        says = any(section(text, title) for title in sections) or re.match(r"(What|Whether|How|The) ", text)
        if returns not in ("None", "Self", "NoReturn") and not says:
            yield f"{name}: Returns"
        if raises(item) and not section(text, "Raises"):
            yield f"{name}: Raises"


def section(text: str, title: str) -> str:
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
    return inspect.cleandoc(found[1]) if found else ""


def raises(item: griffe.Function) -> bool:
    """Every verb of a session raises at least SessionError, except its end and what makes no use of the index."""
    return item.parent is not None and item.parent.name == "VectorDBSession" and item.name != "destroy"


def fields_left_out(name: str, item: griffe.Class, made: ModuleType) -> Iterator[str]:
    text = item.docstring.value if item.docstring is not None else ""
    said = set(re.findall(r"\w+", " ".join(re.findall(r"^([\w, ]+):", section(text, "Attributes"), re.MULTILINE))))
    said |= set(re.findall(r"\w+", " ".join(re.findall(r"^([\w, ]+):", section(text, "Args"), re.MULTILINE))))
    for member in item.members.values():
        field = made.target(member)
        if made.is_field(field) and field.name not in said and field.name not in ("code", "default_retryable"):
            yield f"{name}: field {field.name}"


def test_every_public_name_has_a_complete_docstring(made: ModuleType) -> None:
    package, names = made.public()
    public = {name: made.target(package[name]) for name in names}
    for module in made.MODULES:
        public |= {f"{module}.{name}": made.member(package[module], str(name)) for name in package[module].exports}
    missing: set[str] = set()
    for name, item in public.items():
        if isinstance(item, griffe.Attribute):
            continue
        missing |= set(left_out(name, item))
        if isinstance(item, griffe.Class):
            missing |= set(fields_left_out(name, item, made))
            for member in made.members(item):
                missing |= set(left_out(f"{name}.{member.name}", member))
    twin = made.target(package["sync"]["VectorDBSession"])
    for verb in made.members(twin):
        missing |= set(left_out(f"sync.{verb.name}", verb))
    assert missing == set(), "docstrings leave something out"


def test_the_page_is_made_of_the_docstrings(made: ModuleType) -> None:
    pages = made.pages()
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, "run: python docs/make_reference.py"
    for name in fabstir_vectordb.__all__:
        assert f"### `{name}`" in pages[made.REFERENCE], name


def test_every_command_has_a_help_text_for_itself_and_each_option(made: ModuleType) -> None:
    click = pytest.importorskip("click", reason="the extra 'cli' is not installed")
    from fabstir_vectordb.cli import cli

    for name, command in {"": cli, **cli.commands}.items():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts}"


def test_troubleshooting_has_every_code_and_names_only_what_there_is() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    codes = {getattr(errors, name).code for name in errors.__all__}
    assert set(re.findall(r"^### `(\w+)`$", text, re.MULTILINE)) == codes
