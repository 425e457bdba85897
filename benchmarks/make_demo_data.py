"""Makes the demo's data from the wordnet-minilm set: some queries, their nearest rows, and other rows drawn by seed.

    python benchmarks/make_demo_data.py --data DIR

DIR holds base.f16.npy, queries.f32.npy, neighbors.i32.npy and texts.jsonl.gz. Run once; the output is committed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from pathlib import Path

import numpy as np

SEED = 20_261_123
ROWS = 2_000
QUERIES = 20
NEIGHBOURS = 25
# WordNet files that suit any audience: a dictionary also has words for illnesses, bodies and insults.
TOPICS = ("noun.animal", "noun.food", "noun.location", "noun.object", "noun.phenomenon", "noun.plant")
OUT = Path(__file__).resolve().parents[1] / "fabstir_vectordb" / "demo"


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="make the demo's data")
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    base = np.load(data / "base.f16.npy", mmap_mode="r")
    queries = np.load(data / "queries.f32.npy")
    neighbours = np.load(data / "neighbors.i32.npy")
    distances = np.load(data / "distances.f32.npy")
    with gzip.open(data / "texts.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line) for line in lines]
    query_texts = {row["row"]: row for row in texts if row["split"] == "query"}
    base_texts = {row["row"]: row for row in texts if row["split"] == "base"}

    # Queries with near neighbours: a demo should show what embeddings find, not where they fail.
    random = np.random.default_rng(SEED)
    shown = [row for row in range(len(queries)) if query_texts[row]["lexname"] in TOPICS]
    near = np.intersect1d(shown, np.flatnonzero(distances[:, 4] > 0.6))
    chosen = np.sort(random.choice(near, QUERIES, replace=False))
    suitable = [row for row in random.permutation(len(base)).tolist() if base_texts[row]["lexname"] in TOPICS]
    wanted = set(neighbours[chosen, :NEIGHBOURS].ravel().tolist()) & set(suitable)
    others = [row for row in suitable if row not in wanted]
    rows = sorted([*wanted, *others[: ROWS - len(wanted)]])

    np.save(OUT / "rows.f16.npy", np.ascontiguousarray(base[rows]))
    np.save(OUT / "queries.f16.npy", queries[chosen].astype(np.float16))
    with gzip.GzipFile(OUT / "texts.jsonl.gz", "wb", compresslevel=9, mtime=0) as packed:
        for row in rows:
            record = {name: base_texts[row][name] for name in ("id", "text", "lexname", "pos")}
            packed.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
    with (OUT / "queries.jsonl").open("w", encoding="utf-8") as plain:
        for row in chosen.tolist():
            plain.write(json.dumps({"text": query_texts[row]["text"]}, ensure_ascii=False) + "\n")
    shutil.copyfile(data / "LICENSE.WordNet.txt", OUT / "LICENSE.WordNet.txt")
    print(f"{len(rows)} rows, {len(chosen)} queries, {sum(f.stat().st_size for f in OUT.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
