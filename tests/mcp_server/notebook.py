"""What the tests of a memory share: a phrase, an embedder without a model, and a store that can fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fabstir_vectordb import StorageError, new_seed_phrase
from fabstir_vectordb.mcp_server.memory import Memory

PHRASE = new_seed_phrase()
#: Words of one meaning are one number of a vector.
MEANINGS = (("car", "automobile", "vehicle"), ("rose", "tulip", "flower"), ("dog", "hound", "puppy"))


class Meanings:
    """Embeds a text as how often it has words of each meaning."""

    dimension = len(MEANINGS) + 1

    def __init__(self, name: str = "meanings") -> None:
        self.name = name

    def __call__(self, texts: Sequence[str], /) -> Any:
        words = [text.lower().split() for text in texts]
        return [[*(sum(map(text.count, meaning)) for meaning in MEANINGS), 0.01] for text in words]


def settings(uri: str, **more: Any) -> dict[str, Any]:
    return {
        "s5_portal": uri,
        "user_seed_phrase": PHRASE,
        "session_id": "agent",
        "index_name": "memory",
        "threads": 1,
        **more,
    }


async def opened(uri: str, **more: Any) -> Memory:
    return await Memory.open(settings(uri), **more)


def break_store(memory: Memory) -> None:
    """Lets every write and read of a memory's store fail, until `mend_store`."""

    async def fail(*_: object, **__: object) -> Any:
        raise StorageError("the disk is gone")

    for name in ("put", "get", "get_pointer", "set_pointer"):
        setattr(memory._session._workspace.store, name, fail)


def mend_store(memory: Memory) -> None:
    for name in ("put", "get", "get_pointer", "set_pointer"):
        delattr(memory._session._workspace.store, name)
