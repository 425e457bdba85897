"""A session's access to its user's store: keys, versions of the index, and the version that the session is based on.

The operations here need the turn (`Runtime.exclusive`): one runs at a time, and no change meanwhile. The base is the
version that the rows were loaded from or saved as. The next save builds on it, and it tells whether there are unsaved
changes. `Workspace.adopt` is the one place that sets it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar

import anyio

from fabstir_vectordb.config import NoPhrase, SeedPhrase, VectorDBConfig
from fabstir_vectordb.embedding import Embedder, check_same
from fabstir_vectordb.errors import ConflictError, InvalidConfigError, MemoryBudgetExceededError, SessionError
from fabstir_vectordb.index import Index, LazyIndex
from fabstir_vectordb.index.contents import CHANGES, DOCUMENTS, EXPIRIES, TextContents, TextShape
from fabstir_vectordb.index.text import settings_of
from fabstir_vectordb.metadata.arena import parse_page
from fabstir_vectordb.metadata.changes import parse_changes
from fabstir_vectordb.metadata.expiry import parse_expiry_page
from fabstir_vectordb.params import IndexParams, LoadOptions, RunParams
from fabstir_vectordb.persist.disk_cache import DiskCache
from fabstir_vectordb.persist.load import LazyVersion, LoadedVersion, load_rest, load_version
from fabstir_vectordb.persist.part_source import shape_of
from fabstir_vectordb.persist.pointer import is_newest
from fabstir_vectordb.persist.prune import PrunedHistory, prune_history
from fabstir_vectordb.persist.records import list_versions, read_catalogue, record_version
from fabstir_vectordb.persist.save import is_base_stored, save_version
from fabstir_vectordb.persist.share import share_version
from fabstir_vectordb.persist.verify import VerifiedVersion, verify_version
from fabstir_vectordb.persist.version import HistoryEntry, Lineage, PersistSettings, Version, index_path
from fabstir_vectordb.persist.version_sizes import VersionSize, measure_versions
from fabstir_vectordb.runtime import READ_ONLY, AnyIndex, Runtime
from fabstir_vectordb.s5.cid import ShareCid, parse_cid
from fabstir_vectordb.s5.keys import Identity
from fabstir_vectordb.s5.phrase import secret_to_entropy
from fabstir_vectordb.storage import Store, open_store
from fabstir_vectordb.tracing import Tracing
from fabstir_vectordb.types import ProgressCallback
from fabstir_vectordb.worker_threads import trim_threads

__all__ = ["Workspace"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Settings that a version stores. A load is refused where the caller passed another value.
_STORED_SETTINGS: Final = ("metric", "M", "ef_construction", "chunk_size")
#: The settings of texts, which are compared together.
_TEXT_SETTINGS: Final = frozenset({"text_fields", "text_language", "text_stop_words", "text_k1", "text_b"})
#: Versions of a report. The root of each is read: a request of up to some hundred kilobytes.
_VERSIONS_MEASURED_MAX: Final = 30


class Workspace:
    """A session's store, keys and versions.

    Args:
        config: the session's settings.
        runtime: holds the index, which is installed here, and runs long operations.
        now_us: the session's clock, microseconds since 1970.
        tracing: makes spans of fetches; None makes none.

    Attributes:
        store: where versions live.
        embedder: turns texts into vectors, or None.
        last_cid: CID of the version that was loaded or saved last, or None.
        budget_bytes: most memory of the index and its transfers.
        index_name: name of the index.
        now_us: the session's clock, microseconds since 1970.
    """

    def __init__(
        self, config: VectorDBConfig, runtime: Runtime, now_us: Callable[[], int], tracing: Tracing | None = None
    ) -> None:
        self.store: Store = open_store(
            config.portal_uri,
            timeout_s=config.timeout_s,
            max_retries=config.max_retries,
            token=config.portal_token,
            private_redirects=config.allow_private_redirects,
            account_seed=None if isinstance(config.secret, NoPhrase) else self._account_seed,
        )
        if tracing is not None:
            self.store = tracing.traced_store(self.store)
        if config.disk_cache_dir is not None:
            directory = Path(os.fspath(config.disk_cache_dir))
            self.store = DiskCache(self.store, directory, config.disk_cache_mb * 1_000_000)
        self.embedder = config.embedder
        self.last_cid: str | None = None
        self.budget_bytes = config.budget_bytes
        self._config = config.without_secrets()
        self._secret: SeedPhrase | None = config.secret
        self._identity: Identity | None = None
        self._lineage = Lineage()
        self._lazy: LazyVersion | None = None
        self._saved_changes = 0
        self.index_name = config.index_name
        self.now_us = now_us
        self._runtime = runtime
        runtime.install(self._new_index(), self.load_rest)

    @property
    def is_dirty(self) -> bool:
        """Whether the index has unsaved changes."""
        return self._runtime.index.changes != self._saved_changes

    @property
    def superseded_bytes(self) -> int:
        """Bytes of the base whose rows or metadata are deleted, replaced or expired; 0 without a base."""
        base = self._lineage.base
        if base is None:
            return 0
        return base.superseded_bytes + self._runtime.index.superseded_since_save(base.row_bytes)

    def adopt(self, version: Version | None, changes: int) -> None:
        """Makes a version the session's base; it cannot fail.

        Args:
            version: the version, or None for no version yet.
            changes: the index's count of changes at that version.
        """
        self._lineage.base = version
        self._saved_changes = changes
        self.last_cid = None if version is None else str(version.cid)

    def forget(self) -> None:
        """Wipes keys as far as CPython allows."""
        self._secret = None
        if self._identity is not None:
            self._identity.wipe()
        self._identity = None

    # ---- operations, one at a time

    async def save(
        self, on_conflict: Literal["error", "overwrite"], verify_stored: bool, progress: ProgressCallback | None
    ) -> str:
        """Stores the index as a new version, and returns its CID."""
        self._runtime.check_writes()
        settings = self._persist_settings()
        unchanged = (
            not self.is_dirty and not verify_stored and await is_base_stored(self.store, self._lineage, settings)
        )
        if not unchanged:
            await self.load_rest()
        index, runtime = self._runtime.index, self._runtime
        if self._lineage.base is None and isinstance(index, Index):
            # Makes lazy loads fetch fewer parts. At the first save only, as it changes every part. Skipped where the
            # budget has no room for it.
            with suppress(MemoryBudgetExceededError):
                await runtime.stoppable(index.arrange)
            await runtime.trim_where_due()
        index.make_room()
        changes, keys = index.changes, await self._keys()
        saved = await save_version(
            self.store,
            keys,
            None if unchanged else runtime.whole(),
            self._lineage,
            settings,
            on_conflict=on_conflict,
            verify_stored=verify_stored,
            progress=progress,
        )
        # The pointer names the version now: no await before it is adopted, as a cancellation could come there.
        self.adopt(saved.version, changes)
        if not unchanged:
            runtime.whole().pages_stored(saved.version.layout.document_rows, saved.changed_rows)
        await record_version(self.store, keys, settings, self._lineage, saved.entries, repair_damage=True)
        logger.debug(
            "session %s: saved %s, %d bytes stored", self._config.session_id, saved.version.cid, saved.bytes_stored
        )
        if not unchanged and saved.version.stored_rows == saved.version.rows:
            # If a cancellation skips this, the next save stores the whole graph.
            await runtime.in_thread(runtime.whole().graph_stored)
        return str(saved.version.cid)

    async def load(self, cid: str | None, options: LoadOptions) -> None:
        """Replaces the content by a version: all or nothing."""
        if self.is_dirty and not options.discard_unsaved:
            raise ConflictError(
                "there are unsaved changes: save them, or load with discard_unsaved=True",
                details={"last_cid": self.last_cid},
            )
        budget = self.budget_bytes
        if options.memory_budget_mb is not None:
            budget = options.memory_budget_mb * 1_000_000
        cache_bytes = self._config.cache_size_mb * 1_000_000
        keys = await self._keys(cid)
        loaded = await self._with_room(
            lambda settings: load_version(
                self.store,
                keys,
                self._lineage,
                replace(settings, budget_bytes=budget),
                cid,
                missing_ok=options.missing_ok,
                lazy_cache_bytes=cache_bytes if options.lazy_load and not options.rebuild_text else None,
                progress=options.progress,
            )
        )
        words = loaded.text if loaded is not None and options.rebuild_text else None
        if loaded is not None and words is not None:
            words.native.close()
            loaded = replace(loaded, text=None)
        embedder = self.embedder if options.embedder is None else options.embedder
        if loaded is None:
            fresh: AnyIndex = self._new_index()
        else:
            fresh = await self._restored(loaded, options.become_whole, words, embedder)
        changes = fresh.changes
        if words is not None and isinstance(fresh, Index):
            await self._index_texts(fresh, words.shape)
        self.budget_bytes, self.embedder = budget, embedder
        version, lazy = (None, None) if loaded is None else (loaded.version, loaded.lazy)
        await self._exchange(fresh, version, lazy, changes)
        logger.debug("session %s: loaded %s", self._config.session_id, self.last_cid or "nothing: no version yet")

    async def load_rest(self, progress: ProgressCallback | None = None) -> None:
        """Fetches the parts that a lazy load left in the store; does nothing for a whole index."""
        index, lazy = self._runtime.index, self._lazy
        if isinstance(index, LazyIndex) and lazy is not None:
            loaded = await self._with_room(lambda settings: load_rest(self.store, lazy, settings, progress=progress))
            fresh = await self._restored(loaded)
            if isinstance(fresh, Index):
                fresh.count_plans(index.plans_used)
            await self._exchange(fresh, self._lineage.base, None, fresh.changes)
            logger.debug("session %s: loaded the rest", self._config.session_id)

    async def is_newest(self) -> bool:
        """Whether no version came after the base."""
        name = self._config.index_name
        keys = (await self._keys()).path_keys(index_path(name))
        return await is_newest(self.store, keys.public_key, self._lineage, name)

    async def history(self) -> tuple[list[HistoryEntry], bytes | None]:
        """The versions of the index, newest first, and the hash of the newest one."""
        return await list_versions(self.store, await self._keys(), self._persist_settings(), self._lineage)

    async def version_sizes(self) -> tuple[list[VersionSize], int] | None:
        """The newest versions and what they take in the store, newest first, and the number of all versions.

        None for a session without a phrase: it sees no history.
        """
        if isinstance(self._secret, NoPhrase):
            return None
        keys, settings = await self._keys(), self._persist_settings()
        return await measure_versions(self.store, keys, self._lineage, settings, _VERSIONS_MEASURED_MAX)

    async def prune(self, keep: int, dry_run: bool) -> PrunedHistory:
        """Forgets all but the newest versions, and deletes the objects that only the others use."""
        settings = self._persist_settings()
        return await prune_history(self.store, await self._keys(), self._lineage, settings, keep, dry_run=dry_run)

    async def share(self, cid: str) -> ShareCid:
        """Makes a CID that opens one version without the phrase."""
        return await share_version(self.store, await self._keys(), self._lineage, self._persist_settings(), cid)

    async def indexes(self) -> list[str]:
        """The names of the user's saved indexes."""
        return await read_catalogue(self.store, await self._keys(), self._lineage)

    async def verify(self, cid: str | None, progress: ProgressCallback | None) -> VerifiedVersion:
        """Reads every object of a version and checks all of it."""
        return await verify_version(
            self.store,
            await self._keys(cid),
            self._lineage,
            self._persist_settings(),
            cid,
            check_pages={
                DOCUMENTS: parse_page,
                EXPIRIES: parse_expiry_page,
                CHANGES: lambda *page: parse_changes(page[-1]),
            },
            progress=progress,
        )

    # ---- the index

    def _new_index(self) -> Index:
        config = self._config
        params = IndexParams(
            metric=config.metric,
            M=config.M,
            ef_construction=config.ef_construction,
            chunk_size=config.chunk_size,
            text=config.text_settings,
        )
        return Index(params, self._run_params())

    def _run_params(self) -> RunParams:
        return RunParams(
            memory=self._config.memory,
            threads=self._config.native_threads,
            budget_bytes=self.budget_bytes,
            now_us=self.now_us,
        )

    async def _index_texts(self, fresh: Index, shape: TextShape) -> None:
        """Makes a text index as a version has it, by the analyzer of this release."""
        try:
            settings = settings_of(shape, any_release=True)
            await self._runtime.stoppable(partial(fresh.set_text, settings))
        except BaseException:
            fresh.close()
            raise

    async def _restored(
        self,
        loaded: LoadedVersion,
        become_whole: bool = True,
        words: TextContents | None = None,
        embedder: Embedder | None = None,
    ) -> AnyIndex:
        """The index of a version; `words` is its text index where that is made anew, `embedder` that of the session."""
        try:
            self._check_agrees(loaded, words)
            if embedder is not None:
                check_same(loaded.embedder, embedder.name)
            params = IndexParams(
                metric=loaded.metric,  # type: ignore[arg-type]  # the manifest's reader checked it
                M=loaded.M,
                ef_construction=loaded.ef_construction,
                chunk_size=loaded.chunk_size,
                embedder=loaded.embedder,
            )
            run, lazy = self._run_params(), loaded.lazy
            if lazy is None:
                return await self._runtime.in_thread(Index.restore, params, run, loaded)
            shape = shape_of(lazy.opened.manifest)
            return await self._runtime.in_thread(LazyIndex, params, run, loaded, lazy.parts, shape, become_whole)
        except BaseException:
            if loaded.native is not None:
                loaded.native.close()
            raise

    def _check_agrees(self, loaded: LoadedVersion, anew: TextContents | None) -> None:
        for name in _STORED_SETTINGS:
            wanted, stored = getattr(self._config, name), getattr(loaded, name)
            if name in self._config.given and wanted is not None and wanted != stored:
                raise InvalidConfigError(
                    f"{name}={wanted!r} was asked for, and the saved index has {name}={stored!r}: leave {name} out to "
                    "open it, or use another index_name for a new index",
                    details={"field": name, "value": wanted, "stored": stored},
                )
        words, of = self._config.text_settings, anew or loaded.text
        stored = None if of is None else settings_of(of.shape, any_release=anew is not None)
        if words is not None and words != stored and _TEXT_SETTINGS & self._config.given:
            raise InvalidConfigError(
                f"{words} was asked for, and the saved index has {stored or 'no text index'}: leave the settings of "
                "texts out to open it, then call set_text_fields",
                details={"field": "text_fields", "value": str(words), "stored": str(stored)},
            )

    async def _exchange(self, fresh: AnyIndex, version: Version | None, lazy: LazyVersion | None, changes: int) -> None:
        """Replaces the index by that of a version, which had so many changes when it was the version's."""
        # Nothing can fail here, and a cancellation must not leave two indexes half exchanged.
        fresh.budget_bytes = self.budget_bytes
        old, self._runtime.index, self._lazy = self._runtime.index, fresh, lazy
        self.adopt(version, changes)
        with anyio.CancelScope(shield=True):
            await self._runtime.in_thread(old.close)
            await trim_threads()

    # ---- helpers of the operations

    def _persist_settings(self) -> PersistSettings:
        return PersistSettings(
            index_name=self._config.index_name,
            encrypt_at_rest=self._config.encrypt_at_rest,
            memory=self._config.memory,
            threads=self._config.native_threads,
            budget_bytes=self.budget_bytes,
            held_bytes=self._runtime.index.held_bytes,
            clock=self.now_us,
        )

    async def _with_room(self, load: Callable[[PersistSettings], Awaitable[_T]]) -> _T:
        """Runs a load; where it does not fit in the budget, frees caches and runs it again."""
        try:
            return await load(self._persist_settings())
        except MemoryBudgetExceededError:
            if not self._runtime.index.forget_caches():
                raise
        return await load(self._persist_settings())

    async def _keys(self, cid: str | None = None) -> Identity:
        """The user's keys, derived at first use, as Argon2id is slow for secrets that are no S5 phrase.

        Args:
            cid: the version that is to be opened, if any: a share CID has its own key, and needs none of the user.
        """
        if isinstance(self._secret, NoPhrase):
            if cid is None or not isinstance(parse_cid(cid), ShareCid):
                raise SessionError(READ_ONLY, details={"session_id": self._config.session_id})
            return _nobody()
        if self._identity is None:
            if self._secret is None:
                raise SessionError("Session already destroyed", details={"session_id": self._config.session_id})
            self._identity = Identity(await self._runtime.in_thread(_entropy_of, self._secret))
        return self._identity

    async def _account_seed(self, authority: str) -> bytes:
        return (await self._keys()).own_account_seed(authority)


def _nobody() -> Identity:
    """An identity without a secret: its keys are asked for by mistake only, which raises SessionError."""
    identity = Identity(bytes(16))
    identity.wipe()
    return identity


def _entropy_of(secret: SeedPhrase) -> bytes:
    # Revealed in the worker thread only: the frames that wait for it may end up in a traceback.
    return secret_to_entropy(secret.reveal())
