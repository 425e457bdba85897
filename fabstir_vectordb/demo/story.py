"""The demo: add rows, search, save, open the saved version with the seed phrase alone, delete a row."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fabstir_vectordb.config import VectorDBConfig
from fabstir_vectordb.demo import load_demo_queries, load_demo_rows
from fabstir_vectordb.s5.phrase import new_seed_phrase
from fabstir_vectordb.session import VectorDBSession
from fabstir_vectordb.types import SearchResults

__all__ = ["tell"]

_SHOWN_QUERIES = 3
_SHOWN_HITS = 3
_WIDTH = 76


class _Steps:
    """Prints each step of the demo with its duration."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._started = time.perf_counter()

    def done(self, what: str) -> None:
        now = time.perf_counter()
        self.say(f"{what}  [{1e3 * (now - self._started):.0f} ms]")
        self._started = time.perf_counter()


async def tell(say: Callable[[str], None]) -> None:
    """Runs the demo on a temporary store with a new seed phrase.

    Args:
        say: function that prints a line.
    """
    with tempfile.TemporaryDirectory(prefix="fabstir-vectordb-demo-") as directory:
        await _tell(say, Path(directory).as_uri())


async def _tell(say: Callable[[str], None], store: str) -> None:
    rows, queries = load_demo_rows(), load_demo_queries()
    config = VectorDBConfig(s5_portal=store, user_seed_phrase=new_seed_phrase(), session_id="demo")
    steps = _Steps(say)
    async with await VectorDBSession.create(config) as session:
        await session.load_user_vectors(missing_ok=True)
        added = await session.add_batch(rows.ids, rows.vectors, rows.metadata)
        steps.done(f"Added {added.added} real sentence embeddings of {rows.vectors.shape[1]} dimensions.")
        before = [await session.search(vector, _SHOWN_HITS, threshold=None) for vector in queries.vectors]
        steps.done(f"Searched {len(before)} queries; the first {_SHOWN_QUERIES}:")
        for text, hits in list(zip(queries.texts, before, strict=True))[:_SHOWN_QUERIES]:
            _show(say, text, hits)
        stats = await session.get_stats()
        cid = await session.save_to_s5()
        steps.done(f"Saved, encrypted: {cid}")

    async with await VectorDBSession.create(config) as session:
        await session.load_user_vectors()
        steps.done("Opened again in a new session, by seed phrase alone.")
        after = [await session.search(vector, _SHOWN_HITS, threshold=None) for vector in queries.vectors]
        same = [list(hits) for hits in after] == [list(hits) for hits in before]
        steps.done(f"The same {len(after)} answers, bit for bit." if same else "The answers DIFFER.")
        gone = after[0][0].id
        await session.delete_vector(gone)
        still = [hit.id for hit in await session.search(queries.vectors[0], _SHOWN_HITS, threshold=None)]
        steps.done(f"Deleted {gone}: " + ("still found." if gone in still else "it is gone from the answers."))
        again = await session.save_to_s5()
        steps.done(f"Saved again, only the changed parts: {again}")
    say(f"Memory of the index: {stats.memory_usage_mb:.1f} MB; peak memory of this process: {_peak_mb()}.")
    if not same or gone in still:
        raise SystemExit(1)


def _show(say: Callable[[str], None], text: str, hits: SearchResults) -> None:
    say(f"  “{_short(text)}”")
    for hit in hits:
        say(f"    {hit.score:.3f}  {_short(hit.metadata['text'])}")


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _peak_mb() -> str:
    if sys.platform == "win32":
        return "not measured on Windows"
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak / (1e6 if sys.platform == 'darwin' else 1e3):.0f} MB"
