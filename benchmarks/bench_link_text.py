"""First searches by words over a link of 50 ms a request and 20 MB/s: bytes, requests, round trips, seconds.

Each search is the first one of a new session, after its lazy load: by three words of a text, by a vector, and by both.
Pages with the metadata of hits are counted apart, as every search fetches them. What a search by both takes is compared
with that of the same vector and the same words.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from bench_link import SEED, costs, session_over
from harness import curves, datasets, rounds
from harness.contract import K
from harness.link import BYTES_PER_S, LATENCY_S, PARALLEL, Link

from fabstir_vectordb.index.contents import DOCUMENTS
from fabstir_vectordb.persist.part_source import LazyParts

#: New sessions for each kind of search.
QUERIES = 50


def three_words(metadata: list[Any], count: int) -> list[str]:
    """Queries: three words that follow each other in one of the texts."""
    random = np.random.default_rng(SEED)
    found = []
    for row in random.integers(0, len(metadata), count):
        parts = metadata[row]["text"].split()
        start = int(random.integers(0, max(len(parts) - 3, 0) + 1))
        found.append(" ".join(parts[start : start + 3]))
    return found


async def first_searches(
    link: Link, store: Path, searches: list[dict[str, Any]], stored_mb: float
) -> list[dict[str, float]]:
    """What each of the first searches of new sessions takes."""
    found = []
    for fields in searches:
        async with await session_over(store, link) as session:
            await session.load_user_vectors()
            parts = getattr(session._runtime.index, "parts", None)
            # A small version is loaded whole.
            stored = parts.stored.items() if isinstance(parts, LazyParts) else ()
            cost = await costs(
                link, lambda session=session, fields=fields: session.search(k=K, threshold=None, **fields)
            )
            pages = [part.entry.hash for key, part in stored if key.kind == DOCUMENTS]
            cost["pages_mb"] = sum(link.traffic.fetched.get(hash, 0) for hash in pages) / 1e6
            cost["without_pages_mb"] = cost["mb"] - cost["pages_mb"]
            cost["without_pages_over_stored"] = cost["without_pages_mb"] / stored_mb
            found.append(cost)
    return found


def summarised(found: list[dict[str, float]]) -> dict[str, float]:
    """Means, and the most of what has a limit."""
    results = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    for name in ("round_trips", "without_pages_over_stored"):
        results[f"{name}_max"] = max(one[name] for one in found)
    return results


async def one_round(data: datasets.Dataset, metadata: list[Any], tiny: bool) -> dict[str, Any]:
    """One round: a version with a text index, and the first searches of it."""
    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory, "store")
        link = Link(latency_s=0.001) if tiny else Link()
        async with await session_over(store, link, text_fields=("text",)) as session:
            await session.add_batch([str(row) for row in range(len(data.base))], data.base, metadata)
            saved = await costs(link, session.save_to_s5)
        count = 1 if tiny else QUERIES
        texts = [{"text": text} for text in three_words(metadata, count)]
        vectors = [{"query": query} for query in data.queries[:count]]
        both = [{**one, **other} for one, other in zip(texts, vectors, strict=True)]
        found: dict[str, Any] = {"stored_mb": saved["mb"]}
        taken = {
            side: await first_searches(link, store, searches, saved["mb"])
            for side, searches in {"words": texts, "vector": vectors, "both": both}.items()
        }
        found |= {side: summarised(of_side) for side, of_side in taken.items()}
        for name in ("round_trips", "without_pages_mb"):
            # Above 0 where a search by both took more than that of its vector and that of its words together.
            beyond = [
                one[name] - vector[name] - words[name]
                for words, vector, one in zip(taken["words"], taken["vector"], taken["both"], strict=True)
            ]
            found["both"][f"{name}_beyond_sides_max"] = max(beyond)
        return found


def main() -> None:
    """Command line entry point."""
    options = datasets.parser(__doc__, rounds=1).parse_args()
    folder = datasets.prepare(options)
    data = datasets.open_set(folder)._replace(base=datasets.open_stored(folder))
    metadata = datasets.texts(folder) or [{"text": f"row number {row}"} for row in range(len(data.base))]
    parameters = {
        "rows": len(data.base), "dim": data.base.shape[1], "latency_s": LATENCY_S, "bytes_per_s": BYTES_PER_S,
        "parallel": PARALLEL, "searches": QUERIES,
    }  # fmt: skip
    results = rounds.ResultFile(options, "bench_link_text", parameters, {})
    for number in range(options.rounds):
        results.do(
            {"round": number, "engine": "fabstir"},
            lambda: anyio.run(one_round, data, metadata[: len(data.base)], options.tiny),
        )
    measured = [{name: run[name] for name in run if name not in rounds.KEY} for run in results.runs]
    results.finish(curves.over_rounds(measured))


if __name__ == "__main__":
    main()
