"""Milliseconds of the first use of a field in a filter: its column is made from the encoded metadata of all rows.

CPU time of the thread counts, as others may use the cores. Rows have the text and the categories of the set, and fields
made of the text: a number, values in nested dicts, and a list of words.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from harness import curves, datasets, rounds

from fabstir_vectordb.metadata.arena import MetadataArena
from fabstir_vectordb.metadata.columns import Columns
from fabstir_vectordb.metadata.values import encode_metadata

#: Paths, and what is there; `missing` is in no row.
FIELDS = {
    "text": "a text that differs in every row",
    "lexname": "one of a few texts",
    "count": "an integer",
    "of.word.first": "a text in nested dicts",
    "of.word.length": "a float in nested dicts",
    "words": "a list of words",
    "missing": "no value",
}


def metadata_of(row: int, record: dict[str, str]) -> dict[str, Any]:
    """Metadata of one row, with fields of all kinds."""
    words = record["text"].split() or [""]
    of_word = {"first": words[0], "length": len(record["text"]) / len(words)}
    return {"row": row, **record, "count": len(words), "of": {"word": of_word}, "words": words[:3]}


def measured(arena: MetadataArena, rows: int) -> dict[str, float]:
    """Milliseconds of each field."""
    found = {}
    for path in FIELDS:
        columns = Columns()
        before = time.thread_time_ns()
        columns.get([path], arena, rows)
        found[path] = (time.thread_time_ns() - before) / 1e6
    return found


def main() -> None:
    """Command line entry point."""
    options = datasets.parser(__doc__, rounds=5).parse_args()
    folder = datasets.prepare(options)
    records = datasets.texts(folder)
    if records is None:
        raise SystemExit(f"{folder} has no texts.jsonl.gz, which has the metadata")
    encoded = [encode_metadata(metadata_of(row, record)) for row, record in enumerate(records)]
    rows = len(encoded)
    arena = MetadataArena()
    arena.commit(arena.stage(encoded, rows), np.arange(rows, dtype=np.uint32), np.arange(rows))
    del records, encoded  # objects that are alive make collections of garbage slower
    parameters = {"set": folder.name, "rows": rows, "bytes_per_row": arena.nbytes // rows}
    results = rounds.ResultFile(options, "bench_columns", parameters, {})
    with rounds.Pinned(1):
        for number in range(options.rounds):
            results.do({"round": number, "engine": "fabstir"}, lambda: measured(arena, rows))
    runs = [{name: value for name, value in run.items() if name not in rounds.KEY} for run in results.runs]
    results.finish(curves.over_rounds(runs))


if __name__ == "__main__":
    main()
