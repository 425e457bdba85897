"""The damage table: every kind of stored object, with a bit flipped, cut short, or exchanged for another object.

    python tests/fuzz/test_damage_table.py        # runs all trials, and writes the table of docs/threat-model.md

A trial damages one object of tests/golden/format-1, loads the version that has it, whole or lazily, and asks it for
rows and for searches by vector and by words. Right are the recorded answers, and a VectorDBError; all else is wrong.
Then `verify` must find the damage, where the object is of a version, and no call may end in another error.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from mutate import SEED

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "session"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))
from make_store import line_of
from saving import Objects, session_on

from fabstir_vectordb import VectorDBError, VectorDBSession
from fabstir_vectordb.persist import load as load_module
from fabstir_vectordb.s5.cid import parse_cid

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "format-1"
PAGE = ROOT / "docs" / "threat-model.md"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
DAMAGES = ("bit flipped", "cut short", "exchanged")
ROUNDS = 6
_MARKS = "<!-- damage table: begin -->\n", "<!-- damage table: end -->\n"


@dataclass(frozen=True)
class Target:
    """A stored object.

    Attributes:
        kind: what it is, in the table.
        path: its file in the store.
        version: number of the version in `EXPECTED` by which it is looked at.
        cid: that version's CID, or None where the pointer leads to it.
        is_of_version: whether it is a root, a manifest or a part.
    """

    kind: str
    path: str
    version: int
    cid: str | None
    is_of_version: bool


@dataclass(frozen=True)
class Outcome:
    """What a damaged store answered: the table's row, and the columns that count this trial."""

    kind: str
    columns: tuple[str, ...]


def targets() -> list[Target]:
    """The objects of the golden store."""
    found, root = [], GOLDEN / "store"
    # The newest version of an index is the last one here; that of `graph` was shared, and stands here as the share.
    newest = {version["index"] or "graph": number for number, version in enumerate(EXPECTED["versions"])}
    for number, version in enumerate(EXPECTED["versions"]):
        cid, index = version["cid"], version["index"]
        if index is None:
            path = Objects(root).blob(parse_cid(cid).hash)
            found.append(Target("root of a share", path.relative_to(root).as_posix(), number, cid, True))
            continue
        for name, path in Objects(root, index).of_version(cid).items():
            kind = "part in clear" if index == "clear" and "." in name else re.sub(r"\.\d{4}$", "", name)
            found.append(Target(kind, path.relative_to(root).as_posix(), number, cid, True))
    for index, number in newest.items():
        objects = Objects(root, index)
        for kind, path in (
            ("pointer", objects.pointer()),
            ("pointer of a record", objects.pointer(objects.history)),
            ("pointer of a record", objects.pointer(objects.catalogue)),
            ("history", objects.record(objects.history)),
            ("catalogue", objects.record(objects.catalogue)),
        ):
            found.append(Target(kind, path.relative_to(root).as_posix(), number, None, False))
    return found


TARGETS = targets()


async def answers(session: VectorDBSession, version: dict[str, Any]) -> bool:
    """Whether a session answers as recorded; first as a lazily loaded one would, before it is whole."""
    for search in version["searches"]:
        if (await session.search(search["query"], 1, threshold=None)).ids != search["ids"][:1]:
            return False
    found, count = hashlib.sha256(), 0
    ids = sorted([row.id async for row in session.scan()]) if version["rows"] else []
    for row in await session.get(ids):
        found.update(line_of(row))
        count += 1
    right = (count, found.hexdigest()) == (version["rows"], version["sha256"])
    if version["index"] in ("graph", None):
        hits = await session.search(text="sentence 77", k=3)
        right &= hits[0].id == "ré-77"
    for search in version["searches"]:
        hits = await session.search(search["query"], len(search["ids"]), exact=True, threshold=None)
        right &= hits.ids == search["ids"]
    return right


async def trial(root: Path, target: Target, damage: str, random_: random.Random) -> Outcome:
    """Damages one object, and looks at the store."""
    path, version = root / target.path, EXPECTED["versions"][target.version]
    whole = path.read_bytes()
    raw = bytearray(whole)
    if damage == "bit flipped":
        raw[random_.randrange(len(raw))] ^= 1 << random_.randrange(8)
    elif damage == "cut short":
        del raw[random_.randrange(len(raw)) :]
    else:
        folder = target.path.partition("/")[0]
        others = sorted({other.path for other in TARGETS if other.path.startswith(folder)} - {target.path})
        raw[:] = (root / random_.choice(others)).read_bytes()
    path.chmod(0o600)
    path.write_bytes(raw)
    try:
        return Outcome(target.kind, await _look(root, target, version))
    finally:
        path.write_bytes(whole)


async def _look(root: Path, target: Target, version: dict[str, Any]) -> tuple[str, ...]:
    index = version["index"] or "graph"
    session = await session_on(
        root.as_uri(),
        index_name=index,
        encrypt_at_rest=index != "clear",
        clock=lambda: EXPECTED["now_us"] / 1e6,
    )
    async with session:
        columns = []
        try:
            await session.load_user_vectors(target.cid)
            columns.append("right" if await answers(session, version) else "wrong")
        except VectorDBError:
            columns.append("refused")
        if target.is_of_version:
            try:
                await session.verify(target.cid)
            except VectorDBError:
                columns.append("found by verify")
        else:
            for read in (session.history, session.list_indexes):
                try:
                    await read()
                except VectorDBError:
                    columns.append("found by verify")
    return tuple(columns)


def _is_lazy(target: Target) -> bool:
    # The only version whose codes of one bit serve.
    return bool(EXPECTED["versions"][target.version]["index"] == "topics")


async def outcomes(step: int = 1) -> list[Outcome]:
    """Runs every `step`-th of all trials; half of them load lazily, where the version with such an object can."""
    random_, by_kind = random.Random(SEED), {}
    for target in TARGETS:
        by_kind.setdefault(target.kind, []).append(target)
    trials = list(itertools.product(by_kind, DAMAGES, range(ROUNDS)))
    random_.shuffle(trials)
    found, usual = [], load_module._LAZY_BYTES_MIN
    with TemporaryDirectory() as directory:
        root = Path(shutil.copytree(GOLDEN / "store", Path(directory) / "store"))
        try:
            for number, (kind, damage, round_) in enumerate(trials[::step]):
                lazily, seeded = round_ % 2 == 1, random.Random(f"{SEED} {number}")
                load_module._LAZY_BYTES_MIN = 0 if lazily else usual
                lazy_ones = [target for target in by_kind[kind] if lazily and _is_lazy(target)]
                found.append(await trial(root, seeded.choice(lazy_ones or by_kind[kind]), damage, seeded))
        finally:
            load_module._LAZY_BYTES_MIN = usual
    return found


def table_of(found: list[Outcome]) -> str:
    """The damage table, in Markdown."""
    columns = ("refused", "right", "wrong", "found by verify")
    lines = [f"| damaged object | trials | {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) + 1)}"]
    kinds = list(dict.fromkeys(target.kind for target in TARGETS))
    for kind in [*kinds, "all"]:
        of_kind = [outcome for outcome in found if kind in (outcome.kind, "all")]
        counts = [sum(column in outcome.columns for outcome in of_kind) for column in columns]
        lines.append(f"| {kind} | {len(of_kind)} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines) + "\n"


def check(found: list[Outcome]) -> None:
    """No wrong answer, and what belongs to a version is found by `verify`."""
    of_versions = {target.kind for target in TARGETS if target.is_of_version}
    assert not [outcome for outcome in found if "wrong" in outcome.columns]
    assert not [
        outcome for outcome in found if outcome.kind in of_versions and "found by verify" not in outcome.columns
    ]


@pytest.mark.anyio
@pytest.mark.one_loop
async def test_damage_never_gives_a_wrong_answer() -> None:
    found = await outcomes(step=10)
    check(found)
    assert len(found) >= 40


@pytest.mark.long
@pytest.mark.anyio
@pytest.mark.one_loop
async def test_the_damage_table_is_as_documented() -> None:
    found = await outcomes()
    print(table_of(found))
    check(found)
    assert len(found) >= 400
    assert _MARKS[0] + table_of(found) + _MARKS[1] in PAGE.read_text(encoding="utf-8")


def write() -> None:
    """Runs all trials, and writes the table."""
    found = anyio.run(outcomes)
    check(found)
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.index(_MARKS[0]) + len(_MARKS[0]), text.index(_MARKS[1])
    PAGE.write_text(text[:before] + table_of(found) + text[after:], encoding="utf-8")


if __name__ == "__main__":
    write()
