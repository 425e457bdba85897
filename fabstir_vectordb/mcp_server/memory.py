"""A memory: notes in one index of a user. Each change is saved before it answers.

Several memories may use one index, in one process or in many. A save that another memory came before is refused with
CONFLICT; the memory then loads the newest version and applies its own changes again, which is why every change gives
the same result if it is applied twice. A read first asks whether there is a newer version, and loads it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import anyio
from blake3 import blake3

from fabstir_vectordb.config import VectorDBConfig
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.embedders import Embedder
from fabstir_vectordb.embedding import check_embedder
from fabstir_vectordb.errors import (
    ConflictError,
    DecryptionError,
    IntegrityError,
    InvalidConfigError,
    InvalidInputError,
    NotFoundError,
    OperationTimeoutError,
    S5Error,
    StorageError,
    VectorDBError,
)
from fabstir_vectordb.mcp_server.kept_vectors import KeptVectors
from fabstir_vectordb.mcp_server.notes import (
    ID_CHARS_MAX,
    NOTE_CHARS_MAX,
    QUERY_CHARS_MAX,
    Note,
    Page,
    check_cursor,
    check_ids,
    check_limit,
    check_tags,
    check_text,
    fitting,
    id_of,
    note_of,
)
from fabstir_vectordb.session import VectorDBSession
from fabstir_vectordb.types import SearchResult, VerifyReport, VersionInfo

__all__ = ["Forgotten", "Memory", "Remembered", "Saved"]

logger = logging.getLogger(__name__)

#: Notes that `recall` finds for one query, over all pages. Each page is cut from the same hits, as the scores of a
#: search with a vector and words depend on how many hits it asks for.
_HITS_MAX: Final = 100
#: Saves of one change: each refused one means that another memory's save succeeded.
_SAVES_MAX: Final = 50
#: Seconds at most between a refused save and the next load: two memories that collided must not go on in step.
_JITTER_S: Final = 0.02
#: After so many saves without a rest, a memory rests for as many times as long as its last save took. Another one,
#: whose load and save take longer than each of these saves, would not be the first otherwise until they are over.
_SAVES_IN_A_ROW: Final = 16
_REST_SAVES: Final = 6

#: Notes without a vector that one call embeds at most: other calls wait for it.
_FILLED_MAX: Final = 64

#: What a store or a damaged version raises. A read then answers from the notes that are loaded.
_OUT_OF_REACH: Final = (S5Error, StorageError, OperationTimeoutError, NotFoundError, IntegrityError, DecryptionError)


@dataclass(frozen=True, slots=True)
class Remembered:
    """The outcome of `remember`.

    Attributes:
        id: the note's id.
        is_new: whether the text was not in the memory yet.
        count: how many notes there are now.
    """

    id: str
    is_new: bool
    count: int


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The outcome of `forget`.

    Attributes:
        ids: notes that were forgotten.
        unknown: ids that no note had.
        count: how many notes are left.
    """

    ids: tuple[str, ...]
    unknown: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Saved:
    """The outcome of `save`.

    Attributes:
        cid: the CID of the newest version; it opens together with the user's phrase alone.
        count: how many notes it has.
    """

    cid: str
    count: int


class _Remember:
    """Adds a note, or the tags that it lacks."""

    def __init__(self, text: str, tags: tuple[str, ...], has_embedder: bool) -> None:
        self.id = id_of(text)
        self.is_new = False
        self._text, self._tags, self._has_embedder = text, tags, has_embedder

    async def apply(self, session: VectorDBSession) -> None:
        [row] = await session.get([self.id])
        self.is_new = row is None
        if row is None:
            ids, metadata = [self.id], [{"text": self._text, "tags": list(self._tags)}]
            if self._has_embedder:
                await session.add_texts([self._text], ids, metadata)
            else:
                await session.add_batch(ids, None, metadata)
            return
        known = note_of(row, row.timestamp).tags
        tags = tuple(dict.fromkeys((*known, *self._tags)))
        if tags != known:
            await session.update_metadata(self.id, {"tags": list(tags)}, merge=True)


class _Forget:
    """Deletes notes and removes their bytes, so that no later version holds them."""

    def __init__(self, ids: tuple[str, ...]) -> None:
        self._ids = ids
        self.gone: set[str] = set()

    async def apply(self, session: VectorDBSession) -> None:
        deleted = await session.delete(self._ids, missing_ok=True)
        self.gone.update(deleted.deleted_ids)
        # Also for ids that are gone already: another memory may have deleted them without a vacuum.
        await session.vacuum()


class Memory:
    """The notes of one index of a user; made by `open`. Calls run one after the other.

    Args:
        session: the session that holds the notes; the memory destroys it at its end.
        embedder: the session's embedder, which finds notes also by meaning; None for words alone.
        language: language of the notes of a new memory; None takes words as they stand.
    """

    def __init__(
        self, session: VectorDBSession, embedder: KeptVectors | None = None, language: str | None = None
    ) -> None:
        self._session = session
        self._language = language
        self._embedder = embedder
        self._turn = anyio.Lock()
        self._pending: list[_Remember | _Forget] = []
        self._is_behind = False
        self._filled_to: str | None = None
        self._saves_in_a_row = 0
        self._save_s = 0.0
        self._saved_at = 0.0

    @classmethod
    async def open(
        cls,
        config: VectorDBConfig | Mapping[str, Any],
        *,
        embedder: Embedder | None = None,
        language: str | None = None,
    ) -> Self:
        """Opens the memory in the index that a configuration names, or begins a new one.

        Args:
            config: settings of the session.
            embedder: finds notes also by meaning, beside their words; None for words alone.
            language: language of the notes, as ``english``: words are found by their stems, too (extra ``text``).
                None takes that of the stored memory; a new one then takes words as they stand.

        Returns:
            The memory.

        Raises:
            InvalidConfigError: a setting is refused, the stored memory has another language or vectors of another
                embedder, or the index is no memory.
            VectorDBError: as `VectorDBSession.load_user_vectors`.
        """
        words: Any = {} if language is None else {"text_fields": "text", "text_language": language}
        if embedder is not None:
            check_embedder(embedder, InvalidConfigError)
        kept = None if embedder is None else KeptVectors(embedder)
        memory = cls(await VectorDBSession.create(config, embedder=kept, **words), kept, language)
        try:
            await memory._load(missing_ok=True)
            if await memory._last_cid() is not None:
                await memory._check_words()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await memory.aclose()
            raise
        return memory

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the memory; it waits for a running call. Idempotent."""
        async with self._turn:
            await self._session.destroy()

    @property
    def embedder_name(self) -> str | None:
        """The name of the embedder's model, or None."""
        return None if self._embedder is None else self._embedder.name

    @property
    def unsaved(self) -> int:
        """How many changes are in this memory and not saved, because the store failed."""
        return len(self._pending)

    # ---- changes

    async def remember(self, text: str, tags: Sequence[str] = ()) -> Remembered:
        """Adds a note and saves it. A text that is a note already gets the tags that it lacks, and stays one note.

        Args:
            text: up to `NOTE_CHARS_MAX` characters; white space around it is left out.
            tags: up to `TAGS_MAX`, each of up to `TAG_CHARS_MAX` characters.

        Returns:
            The note's id, and whether it is new.

        Raises:
            InvalidInputError: an argument is refused; nothing changed.
            EmbeddingError: the embedder failed; nothing changed.
            InvalidConfigError: the memory has vectors of another embedder; nothing changed.
            MemoryBudgetExceededError: the note would not fit; nothing changed.
            VectorDBError: the store failed. The change stays in this memory, and is saved by the next call that saves.
        """
        note, labels = check_text("text", text, NOTE_CHARS_MAX), check_tags(tags)
        await self._embed(note)
        change = _Remember(note, labels, self._embedder is not None)
        async with self._turn:
            await self._make(change)
            return Remembered(change.id, change.is_new, await self._session.count())

    async def forget(self, ids: Sequence[str]) -> Forgotten:
        """Deletes notes and saves: no part of the new version holds them. Earlier versions do until they are pruned.

        Args:
            ids: ids of 1 to `IDS_MAX` notes; unknown ones are no error.

        Returns:
            Which notes were forgotten.

        Raises:
            InvalidInputError: `ids` is refused; nothing changed.
            VectorDBError: the store failed. The change stays in this memory, and is saved by the next call that saves.
        """
        wanted = check_ids(ids)
        change = _Forget(wanted)
        async with self._turn:
            await self._make(change)
            gone = tuple(id for id in wanted if id in change.gone)
            unknown = tuple(id for id in wanted if id not in change.gone)
            return Forgotten(gone, unknown, await self._session.count())

    async def save(self) -> Saved:
        """Saves what is not saved yet, and stores parts of the newest version again that the store has lost.

        With an embedder, notes that were remembered without one get vectors, up to 64 by each `save` and
        `remember`.

        Returns:
            The newest version.

        Raises:
            InvalidConfigError: the memory has vectors of another embedder.
            VectorDBError: the store failed.
        """
        async with self._turn:
            await self._refresh()
            await self._catch_up()
            await self._fill()
            cid = await self._commit(verify_stored=True)
            return Saved(cid, await self._session.count())

    async def _make(self, change: _Remember | _Forget) -> None:
        await self._refresh()  # a save that another memory came before stores parts for nothing
        await self._catch_up()
        self._pending.append(change)
        try:
            await change.apply(self._session)
        except BaseException:
            self._pending.remove(change)
            raise
        if isinstance(change, _Remember):
            await self._fill()
        await self._commit()

    async def _fill(self) -> None:
        """Embeds the next notes that have no vector. What a refused save loses of that, a later call makes up for."""
        stats = await self._session.get_stats()
        if self._embedder is None or not stats.without_vector_count:
            return
        while True:
            page = await self._session.scan_page(limit=_FILLED_MAX, cursor=self._filled_to)
            found = [row for row in page.rows if row.vector is None and note_of(row, row.timestamp).text]
            if found or not page.has_more:
                break
            self._filled_to = page.cursor
        try:
            await self._session.add_texts(
                [row.metadata["text"] for row in found],
                [row.id for row in found],
                [row.metadata for row in found],
                timestamps=[row.timestamp for row in found],
                expires_at=[row.expires_at for row in found],
                on_conflict="replace",
            )
            self._filled_to = page.cursor
        except VectorDBError as error:  # the change itself is not to fail for it
            logger.warning("%d notes without a vector are found by words alone: %s", len(found), error)

    async def _catch_up(self) -> None:
        """Applies the unsaved changes to what was loaded since they were made."""
        if self._is_behind:
            for change in self._pending:
                await change.apply(self._session)
            self._is_behind = False

    async def _commit(self, verify_stored: bool = False) -> str:
        """Saves, after the changes of other memories; returns the CID."""
        await self._rest()
        for attempt in range(1, _SAVES_MAX + 1):
            await self._catch_up()
            if await self._last_cid() is None:
                await self._session.set_text_fields("text", language=self._language)
            begun = anyio.current_time()
            try:
                cid = await self._session.save_to_s5(verify_stored=verify_stored)
            except ConflictError:
                if attempt == _SAVES_MAX:
                    raise
                await anyio.sleep(random.uniform(0.0, _JITTER_S))
                try:
                    await self._load()
                except InvalidConfigError:  # the first notes of another embedder: no change of this one can be saved
                    self._pending.clear()
                    raise
            else:
                self._pending.clear()
                self._saves_in_a_row += 1
                self._saved_at = anyio.current_time()
                self._save_s = self._saved_at - begun
                return cid
        raise AssertionError

    async def _rest(self) -> None:
        rest_s = _REST_SAVES * self._save_s
        if anyio.current_time() - self._saved_at >= rest_s:
            self._saves_in_a_row = 0
        elif self._saves_in_a_row >= _SAVES_IN_A_ROW:
            self._saves_in_a_row = 0
            await anyio.sleep(rest_s)

    # ---- reads

    async def recall(self, query: str, *, tags: Sequence[str] = (), limit: int = 10, cursor: str | None = None) -> Page:
        """Finds notes by words, and with an embedder also by meaning.

        Args:
            query: words; ``"phrases"``, ``+required``, ``-excluded`` and ``pre*`` are understood.
            tags: only notes that have all of them.
            limit: most notes of the page, 1 to `LIMIT_MAX`.
            cursor: the place after an earlier page of the same query and tags.

        Returns:
            The notes, best first; no more than 100 over all pages.

        Raises:
            InvalidInputError: an argument is refused.
            EmbeddingError: the embedder failed.
            InvalidConfigError: the memory has vectors of another embedder.
            VectorDBError: parts of a lazily loaded version cannot be fetched.
        """
        words, labels = check_text("query", query, QUERY_CHARS_MAX), check_tags(tags)
        limit, start = check_limit(limit), _place_of(check_cursor(cursor), words, labels)
        await self._embed(words)
        async with self._turn:
            is_stale = not await self._refresh()
            stats = await self._session.get_stats()
            has_vectors = self._embedder is not None and stats.vector_count > stats.without_vector_count
            hits: Sequence[SearchResult] = ()
            if stats.vector_count:  # a new memory has no text index before its first save
                meaning = words if has_vectors else None
                hits = await self._session.search(meaning, _HITS_MAX, text=words, filter=_having(labels))
            chosen = hits[start : start + limit]
            times = await self._session.get_timestamps([hit.id for hit in chosen])
            notes = [note_of(hit, times.get(hit.id, 0.0)) for hit in chosen]
        notes = notes[: fitting(notes)]
        end = start + len(notes)
        return Page(tuple(notes), _cursor_of(end, words, labels) if end < len(hits) else None, is_stale)

    async def list_notes(self, *, tags: Sequence[str] = (), limit: int = 20, cursor: str | None = None) -> Page:
        """The notes in the order in which they were remembered.

        Args:
            tags: only notes that have all of them.
            limit: most notes of the page, 1 to `LIMIT_MAX`.
            cursor: the place after an earlier page. It stays good when notes come and go.

        Returns:
            The notes, oldest first.

        Raises:
            InvalidInputError: an argument is refused.
            InvalidConfigError: the memory has vectors of another embedder.
            VectorDBError: parts of a lazily loaded version cannot be fetched.
        """
        where, limit, place = _having(check_tags(tags)), check_limit(limit), check_cursor(cursor)
        async with self._turn:
            is_stale = not await self._refresh()
            page = await self._session.scan_page(where, limit=limit, cursor=place)
            notes = [note_of(row, row.timestamp) for row in page.rows]
            if (count := fitting(notes)) < len(notes):
                page = await self._session.scan_page(where, limit=count, cursor=place)
        return Page(tuple(notes[:count]), page.cursor if page.has_more else None, is_stale)

    async def get(self, id: str) -> Note | None:
        """A note by its id.

        Args:
            id: the note's id.

        Returns:
            The note, or None where there is none.

        Raises:
            InvalidInputError: `id` is refused.
            InvalidConfigError: the memory has vectors of another embedder.
            VectorDBError: parts of a lazily loaded version cannot be fetched.
        """
        wanted = check_text("id", id, ID_CHARS_MAX)
        async with self._turn:
            await self._refresh()
            [row] = await self._session.get([wanted])
        return None if row is None else note_of(row, row.timestamp)

    async def count(self) -> int:
        """How many notes there are."""
        async with self._turn:
            await self._refresh()
            return await self._session.count()

    async def history(self, *, limit: int = 20, cursor: str | None = None) -> tuple[list[VersionInfo], str | None]:
        """The saved versions, newest first.

        Args:
            limit: most versions, 1 to `LIMIT_MAX`.
            cursor: the place after an earlier page.

        Returns:
            The versions, and the cursor of the next page, or None.

        Raises:
            InvalidInputError: an argument is refused, or the version of the cursor was pruned.
            VectorDBError: the store failed.
        """
        limit, after = check_limit(limit), check_cursor(cursor)
        async with self._turn:
            versions = await self._session.history()
        start = 0
        if after is not None:
            start = next((place for place, version in enumerate(versions, 1) if version.cid == after), 0)
            if not start:
                raise InvalidInputError("cursor names no version of the history: begin again without it")
        page = versions[start : start + limit]
        return page, page[-1].cid if start + limit < len(versions) else None

    async def verify(self) -> VerifyReport:
        """Reads every object of the newest version and checks all bytes.

        Returns:
            What was read.

        Raises:
            NotFoundError: nothing was saved yet.
            IntegrityError: a part is damaged or missing.
            VectorDBError: the store failed.
        """
        async with self._turn:
            return await self._session.verify()

    # ---- the session

    async def _load(self, missing_ok: bool = False) -> None:
        await self._session.load_user_vectors(missing_ok=missing_ok, discard_unsaved=True)
        self._is_behind = True
        self._filled_to = None

    async def _refresh(self) -> bool:
        """Loads the newest version if it is another one; False where the store cannot be asked.

        While changes are unsaved it does nothing: a load would drop them, and the save that they wait for reloads.
        """
        if self._pending:
            return False
        try:
            if not await self._session.is_newest():
                await self._load()
        except _OUT_OF_REACH as error:
            logger.warning("newer notes cannot be read: %s", error)
            return False
        return True

    async def _last_cid(self) -> str | None:
        """The CID of the version that the notes come from; None before the first save."""
        return (await self._session.get_stats()).last_cid

    async def _embed(self, text: str) -> None:
        """Embeds a text before the turn: the session then finds its vector kept."""
        if self._embedder is not None:
            await self._embedder([text])

    async def _check_words(self) -> None:
        try:
            await self._session.search(text="words", k=1)
        except InvalidInputError:
            raise InvalidConfigError(
                "the index is no memory: it has no text index. Choose another index name, or call set_text_fields"
            ) from None


def _having(tags: tuple[str, ...]) -> dict[str, Any] | None:
    """The filter for notes that have all tags."""
    return {"tags": {"$all": list(tags)}} if tags else None


# ---- the cursor of `recall`: how many notes came before, and a mark of what was asked for


def _mark_of(words: str, tags: tuple[str, ...]) -> str:
    return blake3("\0".join((words, *sorted(tags))).encode()).hexdigest(length=8)


def _cursor_of(place: int, words: str, tags: tuple[str, ...]) -> str:
    return f"{place}.{_mark_of(words, tags)}"


def _place_of(cursor: str | None, words: str, tags: tuple[str, ...]) -> int:
    if cursor is None:
        return 0
    place, _, mark = cursor.partition(".")
    if mark != _mark_of(words, tags) or not place.isascii() or not place.isdigit() or len(place) > 3:
        raise InvalidInputError("cursor is not that of a page of the same query and tags: begin again without it")
    return int(place)
