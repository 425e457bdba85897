"""Results of a campaign, kept so that an interrupted campaign goes on, and the tables of docs/faults.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"

Trial = dict[str, Any]


class Tally:
    """The trials of a campaign.

    Args:
        path: file of the trials, continued if it exists; None keeps them in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.trials: list[Trial] = []
        if path is not None and path.exists():
            self.trials = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def add(self, trial: Trial) -> None:
        """Adds a trial, and writes it down at once."""
        self.trials.append(trial)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(trial) + "\n")

    def count(self, **fields: Any) -> int:
        """Trials with these fields."""
        return sum(all(trial.get(name) == value for name, value in fields.items()) for trial in self.trials)

    def rounds(self, wanted: Mapping[str, int], most: int) -> Iterator[tuple[str, range]]:
        """What is missing: a store and the numbers of its next trials, `most` at a time, the stores in turn.

        Args:
            wanted: number of trials for each store.
            most: most trials of a round, which the caller makes before it takes the next.
        """
        while True:
            missing = {kind: count for kind, count in wanted.items() if self.count(store=kind) < count}
            if not missing:
                return
            kind = min(missing, key=lambda kind: self.count(store=kind) / wanted[kind])
            done = self.count(store=kind)
            yield kind, range(done, min(done + most, wanted[kind]))


def table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown, whose first column is text and whose others are numbers."""
    found = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for line in lines:
        cells = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in line)
        found.append(f"| {' | '.join(cells)} |")
    return "\n".join(found) + "\n"


def marks(name: str) -> tuple[str, str]:
    """The comments of the page between which a table stands."""
    return f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"


def write_table(name: str, text: str) -> None:
    """Puts a table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = marks(name)
    before, after = page.index(begin) + len(begin), page.index(end)
    PAGE.write_text(page[:before] + text + page[after:], encoding="utf-8")
