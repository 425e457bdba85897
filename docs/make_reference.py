"""Writes docs/reference.md: every public name with its signature and docstring, and every command; and docs/names.md:
the methods and the names of modules in alphabetical order.

    python docs/make_reference.py            # write them
    python docs/make_reference.py --check    # only say whether they are up to date

The docstrings are read by griffe, without running the package; the commands are asked of click.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import griffe

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference.md"
NAMES = ROOT / "docs" / "names.md"
SESSION = "VectorDBSession"

#: Headings and what stands below each; what has no heading here is named after the kind of thing it is.
SECTIONS = {
    "Settings and options": ["VectorDBConfig", "LoadOptions", "SearchOptions", "SeedPhrase", "UNSET"],
    "Functions": ["get_platform_info", "get_version", "new_seed_phrase"],
}


#: Modules whose names users import, too.
MODULES = ["collections", "embedders", "importers", "mcp_server.memory", "tables"]


def public() -> tuple[griffe.Module, list[str]]:
    """The package as griffe sees it, and the names of its `__all__`."""
    logging.getLogger("griffe").setLevel(logging.ERROR)
    package = griffe.load("fabstir_vectordb", search_paths=[ROOT], docstring_parser="google")
    assert isinstance(package, griffe.Module)
    assert package.exports is not None
    return package, [str(name) for name in package.exports]


def target(item: griffe.Object | griffe.Alias) -> griffe.Object:
    """What a name stands for."""
    found = item.final_target if isinstance(item, griffe.Alias) else item
    assert isinstance(found, griffe.Object)
    return found


def member(module: griffe.Module, name: str) -> griffe.Object:
    """What a module has under a name: a function rather than the submodule of the same name that it comes from."""
    found = target(module[name])
    return target(found[name]) if found.is_module else found


def members(cls: griffe.Class) -> Iterator[griffe.Object]:
    """The public methods and properties of a class, in the order of the source; `__len__` and the like go without."""
    for name, member in cls.members.items():
        found = target(member)
        if not name.startswith("_") and (found.is_function or (found.is_attribute and "property" in found.labels)):
            yield found


def signature(function: griffe.Function, name: str) -> str:
    """One line, or a line for each parameter where that is too long."""
    parts, star = [], False
    for parameter in function.parameters:
        if parameter.name in ("self", "cls"):
            continue
        kind = parameter.kind
        if kind is griffe.ParameterKind.keyword_only and not star:
            parts.append("*")
            star = True
        if kind is griffe.ParameterKind.var_positional:
            star = True
        prefix = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(kind, "")
        text = f"{prefix}{parameter.name}"
        if parameter.annotation is not None:
            text += f": {parameter.annotation}"
        if parameter.default is not None and not prefix:
            text += f" = {parameter.default}" if parameter.annotation is not None else f"={parameter.default}"
        parts.append(text)
        following = [other.kind for other in function.parameters][list(function.parameters).index(parameter) + 1 :]
        if kind is griffe.ParameterKind.positional_only and griffe.ParameterKind.positional_only not in following:
            parts.append("/")
    returns = f" -> {function.returns}" if function.returns is not None else ""
    start = "async def" if "async" in function.labels else "def"
    line = f"{start} {name}({', '.join(parts)}){returns}"
    if len(line) <= 110:
        return line
    return f"{start} {name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def prose(text: str) -> str:
    """A docstring's text for Markdown: one line a paragraph."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(
        paragraph if re.match(r"\s*([-*|]|>>>)", paragraph) else " ".join(paragraph.split()) for paragraph in paragraphs
    )


def described(item: griffe.Object) -> Iterator[str]:
    """A docstring, section by section."""
    if item.docstring is None:
        return
    for section in item.docstring.parsed:
        match section:
            case griffe.DocstringSectionText():
                yield prose(section.value)
            case griffe.DocstringSectionParameters() | griffe.DocstringSectionAttributes():
                title = "Arguments" if isinstance(section, griffe.DocstringSectionParameters) else "Fields"
                yield f"{title}:\n\n" + "\n".join(f"- `{one.name}`: {prose(one.description)}" for one in section.value)
            case griffe.DocstringSectionReturns() | griffe.DocstringSectionYields():
                word = "Returns" if isinstance(section, griffe.DocstringSectionReturns) else "Yields"
                yield f"{word}: " + " ".join(prose(returned(one)) for one in section.value)
            case griffe.DocstringSectionRaises():
                # Several in one line come as a tuple.
                named = [(str(one.annotation).strip("()").split(", "), one.description) for one in section.value]
                lines = [f"- {', '.join(f'`{name}`' for name in names)}: {prose(text)}" for names, text in named]
                yield "Raises:\n\n" + "\n".join(lines)
            case griffe.DocstringSectionExamples():
                yield fenced("\n".join(str(code) for _, code in section.value))
            case griffe.DocstringSectionAdmonition():
                yield fenced(str(section.value.description))


def fenced(text: str) -> str:
    """An example, as a Python prompt shows it."""
    return f"```pycon\n{text.strip()}\n```" if ">>>" in text else prose(text)


def returned(one: griffe.DocstringReturn | griffe.DocstringYield) -> str:
    """Griffe takes what stands before a colon for a type; it belongs to the sentence."""
    before = one.name or (str(one.annotation) if one.annotation is not None and ":" in one.description else "")
    return f"{before}: {one.description}" if before else one.description


def function(item: griffe.Function, heading: str, name: str) -> Iterator[str]:
    """A function or method."""
    yield heading
    yield f"```python\n{signature(item, name)}\n```"
    yield from described(item)


def klass(item: griffe.Class, heading: str) -> Iterator[str]:
    """A class with its fields and methods."""
    yield heading
    if bases := [str(base) for base in item.bases if str(base) != "Protocol"]:
        yield f"A subclass of {', '.join(f'`{base}`' for base in bases)}."
    yield from described(item)
    if fields := [target(member) for member in item.members.values() if is_field(target(member))]:
        shown = []
        for field in fields:
            assert isinstance(field, griffe.Attribute)
            default = "" if field.value is None else f" = {field.value}"
            shown.append(f"{field.name}: {field.annotation}{default}")
        yield "```python\n" + "\n".join(shown) + "\n```"
    for member in members(item):
        name = f"{item.name}.{member.name}"
        if isinstance(member, griffe.Function):
            yield from function(member, f"#### `{name}`", member.name)
        else:
            assert isinstance(member, griffe.Attribute)
            yield f"#### `{name}`"
            yield f"```python\n{member.name}: {member.annotation}\n```"
            yield from described(member)


def entry(item: griffe.Object, heading: str, name: str) -> Iterator[str]:
    """Any public name."""
    if isinstance(item, griffe.Class):
        yield from klass(item, heading)
    elif isinstance(item, griffe.Function):
        yield from function(item, heading, name)
    else:
        yield heading
        yield from described(item) if item.docstring is not None else [prose(remark(item))]


def remark(item: griffe.Object) -> str:
    """The comment `#: …` above a constant."""
    assert item.lineno is not None and isinstance(item.filepath, Path)
    lines = []
    for line in reversed(item.lines_collection[item.filepath][: item.lineno - 1]):
        if not line.startswith("#:"):
            break
        lines.insert(0, line.removeprefix("#:"))
    assert lines, f"{item.path} needs a comment `#: …` above it"
    return " ".join(lines)


def modules(package: griffe.Module, known: set[str]) -> Iterator[str]:
    """The names of `MODULES`; those in `known` have an entry of their own already."""
    for title in MODULES:
        module = package[title]
        yield f"## Module `{title}`"
        yield f"Names of `fabstir_vectordb.{title}`."
        yield from described(module)
        for name in module.exports or ():
            heading = f"### `{title}.{name}`"
            if str(name) in known:
                yield heading
                yield f"The same as `{name}`."
            else:
                yield from entry(member(module, str(name)), heading, str(name))


def is_field(member: griffe.Object) -> bool:
    """Whether a member is an annotated field, as dataclasses have them."""
    return (
        isinstance(member, griffe.Attribute)
        and not member.name.startswith("_")
        and member.annotation is not None
        and "property" not in member.labels
    )


def commands() -> Iterator[str]:
    """Every command with its arguments and options, as `--help` shows them."""
    from fabstir_vectordb.cli import cli

    yield "## Command line"
    yield f"`fabstir-vectordb [OPTIONS] COMMAND`. {prose(cli.help or '')} {prose(cli.epilog or '')}"
    yield "\n".join(options(cli))
    for name, command in sorted(cli.commands.items()):
        yield from described_command(name, command)


def described_command(name: str, command: click.Command) -> Iterator[str]:
    """A command with its arguments and options, and after it those of its group."""
    arguments = [p.human_readable_name.upper() for p in command.params if isinstance(p, click.Argument)]
    yield f"### `{' '.join(['fabstir-vectordb', name, *arguments])}`"
    yield prose(command.help or "")
    if lines := list(options(command)):
        yield "\n".join(lines)
    if isinstance(command, click.Group):
        for inner, one in sorted(command.commands.items()):
            yield from described_command(f"{name} {inner}", one)


def options(command: click.Command) -> Iterator[str]:
    """A line for each option."""
    for parameter in command.params:
        if not isinstance(parameter, click.Option):
            continue
        names = ", ".join(f"`{name}`" for name in parameter.opts)
        kind = f" one of {', '.join(parameter.type.choices)};" if isinstance(parameter.type, click.Choice) else ""
        default = parameter.default if parameter.show_default else None
        shown = "" if default is None else f" Default: {default}."
        required = " Required." if parameter.required else ""
        yield f"- {names}:{kind} {parameter.help or ''}{required}{shown}".replace(":  ", ": ")


def names_page(reference: str) -> str:
    """Names that stand behind a dot in the headings of the reference, as headings of their own.

    The search box ranks a word at the start of a heading above one further on, so `search` would be found behind all
    that starts with it, were `VectorDBSession.search` its only heading.
    """
    sections = re.findall(r"^#{3,4} `([\w.]+)`$(.*?)(?=^#|\Z)", reference, re.MULTILINE | re.DOTALL)
    found: dict[str, list[str]] = {}
    for title, below in sections:
        name = title.rpartition(".")[2]
        if all(name != other for other, _ in sections):
            text = re.sub(r"^```.*?^```$|^A subclass of [^\n]*$", "", below, flags=re.MULTILINE | re.DOTALL)
            first = next(paragraph for paragraph in text.split("\n\n") if paragraph.strip())
            anchor = title.replace(".", "").lower()
            line = f"- [`{title}`](reference.md#{anchor}): {first.strip()}"
            found.setdefault(name, []).append(line)
    lines = [
        "# Methods by name",
        "Written by `python docs/make_reference.py`. Methods, properties and names of modules, from A to Z. Names of "
        "the package itself are headings of [the reference](reference.md).",
    ]
    for name in sorted(found, key=lambda name: (name.casefold(), name)):
        lines += [f"## `{name}`", "\n".join(found[name])]
    return "\n\n".join(lines) + "\n"


def page() -> str:
    """The reference."""
    package, names = public()
    items = {name: target(package[name]) for name in names}
    errors = [name for name, item in items.items() if item.canonical_path.startswith("fabstir_vectordb.errors.")]
    sections = {**SECTIONS, "Errors": errors}
    named = {SESSION, *(name for below in sections.values() for name in below)}
    sections["Results and other types"] = [name for name in names if name not in named]
    lines = [
        "# Reference",
        "Written by `python docs/make_reference.py` from the docstrings; do not edit it. All names are those of "
        "`fabstir_vectordb`.",
        "## Sessions",
    ]
    session = items.pop(SESSION)
    assert isinstance(session, griffe.Class)
    lines += klass(session, f"### `{SESSION}`")
    twin = target(package["sync"][SESSION])
    assert isinstance(twin, griffe.Class)
    lines += [f"### `sync.{SESSION}`", *described(twin)]
    calls = "\n\n".join(signature(verb, verb.name) for verb in members(twin) if isinstance(verb, griffe.Function))
    lines.append(f"```python\n{calls}\n```")
    for title in ["Settings and options", "Results and other types", "Errors", "Functions"]:
        lines.append(f"## {title}")
        for name in sections[title]:
            lines += entry(items[name], f"### `{name}`", name)
    lines += modules(package, set(names))
    lines += commands()
    return "\n\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """The text of each page."""
    reference = page()
    return {REFERENCE: reference, NAMES: names_page(reference)}


def main(arguments: list[str] | None = None) -> int:
    """Command line entry point; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is out of date")
    made = pages()
    if parser.parse_args(arguments).check:
        return int(any(not path.exists() or path.read_text(encoding="utf-8") != text for path, text in made.items()))
    for path, text in made.items():
        path.write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
