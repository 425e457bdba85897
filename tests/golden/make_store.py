"""Writes a golden store: versions of every kind, and what a reader must find in them.

    python tests/golden/make_store.py tests/golden/NAME                 # versions of every kind
    python tests/golden/make_store.py tests/golden/NAME-stems stems     # with stems
    python tests/golden/make_store.py tests/golden/NAME-shards shards   # a collection: its root, and its shards

Those with stems lie apart, as a load asks for the same release of the stemmer.

A store that was written stays as it is; a later format gets a store of its own. `expected.json` says for each version
its CID, its index, the hash of its rows, the answers of exact searches, of searches by words where there are stems, and
of the collection where it is the root of one.
The hash of the rows is the SHA-256 of one line for each live row, in the order of their ids: a JSON array of id, vector
(hexadecimal little-endian float32, or null), timestamp and expiry in microseconds (texts; the expiry may be null), and
metadata.
"""

from __future__ import annotations

import hashlib
import json
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "session"))
from saving import PHRASE, START_US, rows, rows_on_topics, session_on

from fabstir_vectordb import VectorDBSession
from fabstir_vectordb.collections import Collection, build
from fabstir_vectordb.s5.phrase import parse_phrase

NOW_S = START_US / 1e6 + 1_000_000
QUERIES, K = 3, 10
DIM = 6


def metadata_of(number: int) -> dict[str, Any]:
    """Metadata, of some rows with values of every type."""
    if number % 8:
        return {"text": f"sentence {number}", "n": number - 600}
    moment = datetime(2024, 1, 1, 12, 30, tzinfo=UTC) + timedelta(hours=number)
    if number % 16:
        moment = moment.replace(microsecond=500_000).astimezone(timezone(timedelta(hours=5, minutes=30)))
    return {
        "text": f"sentence {number}: naïve",
        "n": number - 600,
        "half": number / 2 + 0.25,
        "even": number % 16 == 0,
        "nothing": None,
        "when": moment,
        "day": date(2024, 2, 29) + timedelta(days=number),
        "key": uuid.UUID(int=number << 64 | 7),
        "tags": [f"t{number % 7}", "all"],
        "deep": {"er": 2**40 + number},
    }


def in_json(value: Any) -> Any:
    """Metadata in JSON: a tagged value is a map of its tag."""
    if isinstance(value, dict):
        return {key: in_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [in_json(item) for item in value]
    if isinstance(value, datetime):
        return {"tag 0": value.isoformat().replace("+00:00", "Z")}
    if isinstance(value, date):
        return {"tag 1004": value.isoformat()}
    if isinstance(value, float) and value.is_integer():
        return int(value)  # JavaScript has one type of number
    return {"tag 37": value.bytes.hex()} if isinstance(value, uuid.UUID) else value


def line_of(row: Any) -> bytes:
    """The line of a row in the hash of the rows."""
    vector = None if row.vector is None else row.vector.astype("<f4").tobytes().hex()
    expires = None if row.expires_at is None else str(round(row.expires_at * 1e6))
    line = [row.id, vector, str(round(row.timestamp * 1e6)), expires, in_json(row.metadata)]
    return json.dumps(line, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode() + b"\n"


async def described(session: VectorDBSession, index: str | None, cid: str) -> dict[str, Any]:
    """What a reader must find in the version that a session holds; `index` is None where the CID has its key."""
    ids = sorted([row.id async for row in session.scan()])
    found = hashlib.sha256()
    vectors = []
    for row in await session.get(ids):
        assert row is not None
        found.update(line_of(row))
        vectors += [] if row.vector is None else [row.vector]
    searches = []
    for query in rows(QUERIES, len(vectors[0]), seed=7) if vectors else ():
        hits = await session.search(query, K, exact=True, threshold=None)
        searches.append(
            {
                "query": [float(x) for x in query],
                "ids": [hit.id for hit in hits],
                "distances": [hit.distance for hit in hits],
                "scores": [hit.score for hit in hits],
            }
        )
    return {"cid": cid, "index": index, "rows": len(ids), "sha256": found.hexdigest(), "searches": searches}


async def add(session: VectorDBSession, numbers: range, dim: int = DIM, **more: Any) -> None:
    """Rows of one endless table."""
    await session.add_batch(
        [f"ré-{number}" for number in numbers],
        rows(numbers.stop, dim)[numbers.start :],
        [metadata_of(number) for number in numbers],
        [START_US / 1e6 + number for number in numbers],
        **more,
    )


class Lengths:
    """An embedder, of texts that nobody searches by meaning."""

    name, dimension = "lengths", 2

    def __call__(self, texts: Sequence[str], /) -> list[list[float]]:
        """The length of each text, and 1."""
        return [[float(len(text)), 1.0] for text in texts]


async def versions(uri: str) -> AsyncIterator[dict[str, Any]]:
    """Each metric, both sides, texts, changes, bare rows, rows that expire, in clear; a share, an embedder."""
    async with await session_on(
        uri, index_name="graph", text_fields=["text"], chunk_size=128, clock=lambda: NOW_S
    ) as session:
        await add(session, range(1_100))
        yield await described(session, "graph", await session.save_to_s5())
        await add(session, range(1_100, 1_120))
        await session.delete_vector("ré-3")
        await session.update_metadata("ré-5", {"text": "another"})
        yield await described(session, "graph", cid := await session.save_to_s5())
        await session.vacuum()
        cid = await session.save_to_s5()
        yield await described(session, None, await session.share(cid))
    async with await session_on(uri, index_name="lists", metric="dot", clock=lambda: NOW_S) as session:
        await session.add_batch(
            [f"{i}" for i in range(1_100)], rows_on_topics(1_100, 9), timestamps=[START_US / 1e6] * 1_100
        )
        await session.optimize()
        yield await described(session, "lists", await session.save_to_s5())
    # Rows whose codes of one bit serve a lazy load, and for which second lists pay.
    async with await session_on(uri, index_name="topics", clock=lambda: NOW_S) as session:
        await session.add_batch(
            [f"{i}" for i in range(1_600)], rows_on_topics(1_600, 40), timestamps=[START_US / 1e6] * 1_600
        )
        await session.optimize()
        yield await described(session, "topics", await session.save_to_s5())
    async with await session_on(uri, index_name="small", metric="l2", clock=lambda: NOW_S) as session:
        yield await described(session, "small", await session.save_to_s5())
        await session.set_schema({"n": "Number", "deep": {"type": "object", "fields": {"er": {"type": "number"}}}})
        await add(session, range(20), 5, expires_at=[NOW_S + 10.5 + i if i % 3 else None for i in range(20)])
        await session.add_vectors([{"id": "bare", "vector": None, "metadata": {"n": 1}, "timestamp": NOW_S}])
        yield await described(session, "small", await session.save_to_s5())
    clear = {"index_name": "clear", "encrypt_at_rest": False, "chunk_size": 64, "M": 8, "ef_construction": 50}
    async with await session_on(uri, metric="l2", clock=lambda: NOW_S, **clear) as session:
        await add(session, range(1_100), 3)
        yield await described(session, "clear", await session.save_to_s5())
    async with await session_on(uri, index_name="texts", embedder=Lengths(), clock=lambda: NOW_S) as session:
        await session.add_texts(["a", "an", "any"], ids=["a", "b", "c"], timestamps=[NOW_S] * 3)
        yield await described(session, "texts", await session.save_to_s5())


def text_of(number: int) -> str:
    """English words with stems, of which most rows have `dogs` and all have `the`."""
    subject = "dogs" if number % 9 else "a foxy lady"
    return f"The {subject} were running happily over {number} boats, and the skies, boating: {number % 7} flies fly"


async def asked_by_words(session: VectorDBSession) -> list[dict[str, Any]]:
    """Searches by words: a form that no text has, a phrase, one word of many rows, and a prefix."""
    found = []
    for text in ("boat runs", '"running happily over"', "dog", "+fox* sky", '"the skies" -dogs'):
        hits = await session.search(text=text, k=K)
        found.append({"text": text, "ids": [hit.id for hit in hits], "scores": [hit.score for hit in hits]})
    return found


async def versions_with_stems(uri: str) -> AsyncIterator[dict[str, Any]]:
    """An index of words and stems: a term of more than one block, a second segment, rows that left, and a merge."""

    async def saved(session: VectorDBSession) -> dict[str, Any]:
        version = await described(session, "words", await session.save_to_s5())
        return {**version, "asked_by_words": await asked_by_words(session)}

    fields = {"index_name": "words", "text_fields": ["text"], "text_language": "english", "clock": lambda: NOW_S}
    async with await session_on(uri, **fields) as session:
        for numbers in (range(300), range(300, 340)):
            await session.add_batch(
                [f"w-{number}" for number in numbers],
                rows(numbers.stop, 2)[numbers.start :],
                [{"text": text_of(number)} for number in numbers],
                [START_US / 1e6 + number for number in numbers],
            )
            yield await saved(session)
        await session.delete_vector("w-4")
        await session.update_metadata("w-5", {"text": "skies alone"})
        yield await saved(session)
        await session.vacuum()
        yield await saved(session)


async def versions_of_a_collection(uri: str) -> AsyncIterator[dict[str, Any]]:
    """The root of a collection and its shards, as built and after a change."""
    fields: dict[str, Any] = {"s5_portal": uri, "user_seed_phrase": PHRASE, "session_id": "golden", "index_name": "big"}
    fields |= {"text_fields": ["text"], "threads": 1, "clock": lambda: NOW_S}
    numbers = range(240)
    vectors = rows_on_topics(len(numbers), DIM)
    batch = {
        "ids": [f"ré-{number}" for number in numbers],
        "vectors": vectors,
        "metadata": [metadata_of(number) for number in numbers],
        "timestamps": [START_US / 1e6 + number for number in numbers],
    }
    cid = await build(fields, [batch], shards=3)
    for changes in (None, {"deletes": ["ré-3", "ré-8"], "adds": {**batch, "ids": [f"new-{n}" for n in numbers]}}):
        async with await Collection.open(fields) as collection:
            if changes is not None:
                cid = await collection.change(**changes)
                await collection.refresh()
            answers = []
            for query in vectors[:QUERIES]:
                hits = await collection.search(query, K, threshold=None, exact=True)
                answers.append([hit.id for hit in hits])
            words = await collection.search(text="sentence naïve", k=K)
        async with await session_on(uri, index_name="big", clock=lambda: NOW_S) as session:
            await session.load_user_vectors(cid)
            root = await described(session, "big", cid)
            shares = [row.metadata["share"] async for row in session.scan() if row.metadata["kind"] == "shard"]
            collected = {"queries": vectors[:QUERIES].tolist(), "ids": answers, "words": [hit.id for hit in words]}
            yield {**root, "collected": collected}
        for share in shares:
            async with await session_on(uri, index_name="reader", clock=lambda: NOW_S) as session:
                await session.load_user_vectors(share)
                yield await described(session, None, share)


KINDS = {"": versions, "stems": versions_with_stems, "shards": versions_of_a_collection}


async def write(directory: Path, kind: str) -> None:
    uri = (directory / "store").as_uri()
    found = [version async for version in KINDS[kind](uri)]
    (directory / "store" / "pointers.lock").unlink()
    keys = {"phrase": PHRASE, "entropy": parse_phrase(PHRASE).hex()}
    text = json.dumps({**keys, "now_us": round(NOW_S * 1e6), "versions": found}, ensure_ascii=False, indent=1)
    (directory / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    target.mkdir()
    anyio.run(write, target, *(sys.argv[2:] or [""]))
