"""What the tests of collections share: rows, settings, and a session with the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabstir_vectordb import VectorDBSession, new_seed_phrase
from fabstir_vectordb.types import SearchResults

PHRASE = new_seed_phrase()
SEED = 20_261_126
ROWS, DIM = 120, 8
START_S = 1_700_000_000
WORDS = "harbour harvest harp lantern river stone stone's field fields running runner ran night 日本語 café".split()
TEXT = {"text_fields": ("text", "notes")}
QUERIES = (
    "harbour lantern night",
    "har*",
    "r* -runner",
    '"river stone"',
    "+river field -night",
    '+"field night" har* stone',
    "-har* +r*",
    "river river lantern",
    "nothing of it",
    "日本 café",
    "",
)


def vectors(count: int = ROWS, seed: int = SEED) -> NDArray[np.float32]:
    """Rows around twelve centres, so that shards have something to tell apart."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((12, DIM))
    return (centres[rng.integers(12, size=count)] + 0.4 * rng.standard_normal((count, DIM))).astype(np.float32)


def batch(count: int = ROWS, seed: int = SEED) -> dict[str, Any]:
    """The arguments of add_batch. Some times are equal; ids are in another order than times."""
    numbers = np.random.default_rng(seed).permutation(count).tolist()
    return {
        "ids": [f"row-{number:04d}" for number in numbers],
        "vectors": vectors(count, seed),
        "metadata": [{"n": number, "kind": "abc"[number % 3], "tags": ["x", number % 5]} for number in numbers],
        "timestamps": [START_S + place // 2 for place in range(count)],
    }


def worded() -> dict[str, Any]:
    """The rows of `batch` with texts, of which some are empty, long, or in a list."""
    rows = batch()
    rng = np.random.default_rng(5)
    for place, metadata in enumerate(rows["metadata"]):
        length = int(rng.geometric(0.15))
        chosen = [WORDS[int(n)] for n in np.minimum(rng.geometric(0.2, length), len(WORDS)) - 1]
        if place % 11:
            metadata["text"] = " ".join(chosen)
        if place % 5 == 0:
            metadata["notes"] = ["night field", " ".join(chosen[:2])]
    return rows


def settings(folder: Path | str, **fields: Any) -> dict[str, Any]:
    return {
        "s5_portal": folder if isinstance(folder, str) else folder.as_uri(),
        "user_seed_phrase": PHRASE,
        "session_id": "test",
        "index_name": "big",
        "threads": 1,
        **fields,
    }


async def single(**fields: Any) -> VectorDBSession:
    """A session of one index with the rows of `batch`."""
    session = await VectorDBSession.create(
        **{"s5_portal": "memory:", "user_seed_phrase": PHRASE, "session_id": "one", "threads": 1, **fields}
    )
    rows = batch()
    await session.add_batch(rows["ids"], rows["vectors"], rows["metadata"], rows["timestamps"])
    return session


def seen(hits: Any) -> list[Any]:
    """Hits as values, bit for bit."""
    return [(hit.id, hit.score, hit.distance, hit.metadata) for hit in hits]


def told(results: Any) -> list[Any]:
    """All that hits say, bit for bit, and how many the threshold removed."""
    return [
        results.below_threshold,
        *(
            (
                *(hit.id, hit.score, hit.distance, hit.metadata, hit.vector_score, hit.text_score, hit.rerank_score),
                *(hit.vector_rank, hit.text_rank, hit.highlights, None if hit.vector is None else hit.vector.tobytes()),
            )
            for hit in results
        ),
    ]


def group(one: Any) -> Any:
    """A group and all that its hits say."""
    return one.value, told(SearchResults(one.hits, 0, "flat"))


def bits(row: Any) -> Any:
    return (
        None
        if row is None
        else (row.id, None if row.vector is None else row.vector.tobytes(), row.metadata, row.timestamp)
    )
