"""The same verbs without ``await``: each runs the body of its namesake on the caller's thread (see `blocking`).

Reads go straight to the index: a warm search hops no thread. Changes, saves and loads run on an event loop in a thread
of the session's own, which starts with the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self, SupportsIndex, Unpack

from fabstir_vectordb.blocking import BlockingRuntime, iterate_here, run_here
from fabstir_vectordb.config import UNSET, ConfigFields, Given, Unset, VectorDBConfig, config_of
from fabstir_vectordb.params import LoadFields, LoadOptions, SearchFields, SearchOptions
from fabstir_vectordb.session import VectorDBSession as AsyncSession
from fabstir_vectordb.types import (
    AddResult,
    DeleteResult,
    FacetCount,
    IndexSide,
    OptimizeProgress,
    OptimizeResult,
    ProgressCallback,
    PruneReport,
    RecallReport,
    Row,
    SearchResult,
    SearchResults,
    SessionStats,
    VacuumStats,
    VectorInput,
    VerifyReport,
    VersionInfo,
)

__all__ = ["VectorDBSession"]


class VectorDBSession:
    """One user's vectors for the length of one session, without an event loop; made by `create`.

    Every method does what its namesake of `fabstir_vectordb.VectorDBSession` does and raises what it raises.

    Example:
        >>> with VectorDBSession.create(
        ...     s5_portal="memory:", user_seed_phrase="a secret", session_id="user-123"
        ... ) as session:
        ...     session.add_vectors([VectorInput("a", [1.0, 0.0])])
        ...     [hit.id for hit in session.search([1.0, 0.1], k=1)]
        AddResult(added=1, replaced=0, skipped=0)
        ['a']
    """

    def __init__(self, config: VectorDBConfig) -> None:
        self._verbs = AsyncSession(config, BlockingRuntime)

    @classmethod
    def create(
        cls, config: VectorDBConfig | Mapping[str, Any] | None = None, /, **settings: Unpack[ConfigFields]
    ) -> Self:
        """Makes a session; validates only, touches no store."""
        given = Given(config, settings)
        del config, settings  # what fails from here on has no bare secret in its traceback
        return cls(config_of(given))

    @classmethod
    def from_parts(
        cls,
        config: VectorDBConfig | Mapping[str, Any] | None = None,
        /,
        *,
        recent: Iterable[VectorInput | Row | Mapping[str, Any]] = (),
        historical: Iterable[VectorInput | Row | Mapping[str, Any]] = (),
        timestamps: Mapping[str, float] | None = None,
        **settings: Unpack[ConfigFields],
    ) -> Self:
        """Makes a session whose rows are on the sides that are said."""
        given = Given(config, settings)
        del config, settings
        session = cls(config_of(given))
        try:
            run_here(session._verbs._fill(recent, historical, timestamps))
        except BaseException:
            session.destroy()
            raise
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()

    def __repr__(self) -> str:
        return repr(self._verbs) if hasattr(self, "_verbs") else f"<{type(self).__name__} that could not be made>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        self._verbs.__reduce_ex__(protocol)

    def destroy(self) -> None:
        """Forgets everything; idempotent."""
        run_here(self._verbs.destroy())

    # ---- changes

    def add_vectors(self, items: Iterable[VectorInput | Mapping[str, Any]], *, on_conflict: str = "error") -> AddResult:
        """Adds rows: all or nothing."""
        return run_here(self._verbs.add_vectors(items, on_conflict=on_conflict))

    def add_batch(
        self,
        ids: Sequence[str],
        vectors: Any,
        metadata: Sequence[Any] | None = None,
        timestamps: Any = None,
        *,
        expires_at: Any = None,
        on_conflict: str = "error",
    ) -> AddResult:
        """Adds the rows of an array: all or nothing."""
        options = {"expires_at": expires_at, "on_conflict": on_conflict}
        return run_here(self._verbs.add_batch(ids, vectors, metadata, timestamps, **options))

    def update_metadata(self, id: str | Mapping[str, Any], metadata: Any = None, *, merge: bool = False) -> None:
        """Replaces the metadata of a row, or of many by a mapping of ids, or merges dicts into it."""
        run_here(self._verbs.update_metadata(id, metadata, merge=merge))

    def update_vector(self, id: str, vector: Any) -> None:
        """Gives a row another vector."""
        run_here(self._verbs.update_vector(id, vector))

    def set_schema(self, schema: Mapping[str, Any] | None) -> None:
        """Makes metadata follow a schema from now on; it is saved with the index."""
        run_here(self._verbs.set_schema(schema))

    def delete_vector(self, id: str, *, missing_ok: bool = False) -> DeleteResult:
        """Deletes a row."""
        return run_here(self._verbs.delete_vector(id, missing_ok=missing_ok))

    def delete(self, ids: Iterable[str], *, missing_ok: bool = False) -> DeleteResult:
        """Deletes many rows: all or nothing."""
        return run_here(self._verbs.delete(ids, missing_ok=missing_ok))

    def clear(self) -> int:
        """Deletes all rows, at once and for good."""
        return run_here(self._verbs.clear())

    def delete_by_metadata(self, filter: Mapping[str, Any]) -> DeleteResult:
        """Deletes the rows that a filter takes: all or nothing."""
        return run_here(self._verbs.delete_by_metadata(filter))

    def vacuum(self) -> VacuumStats:
        """Removes deleted rows for good."""
        return run_here(self._verbs.vacuum())

    def optimize(self, progress: Callable[[OptimizeProgress], None] | None = None) -> OptimizeResult:
        """Moves old rows to lists and vacuums; `progress` is called on this thread."""
        return run_here(self._verbs.optimize(progress))

    def get_recent_index(self) -> IndexSide:
        """The recent side."""
        return run_here(self._verbs.get_recent_index())

    def get_historical_index(self) -> IndexSide:
        """The historical side."""
        return run_here(self._verbs.get_historical_index())

    def get_timestamps(self, ids: Sequence[str] | None = None) -> dict[str, float]:
        """Seconds since 1970 by id."""
        return run_here(self._verbs.get_timestamps(ids))

    # ---- reads

    def search(
        self,
        query: Any,
        k: int = 10,
        options: SearchOptions | Mapping[str, Any] | None = None,
        **fields: Unpack[SearchFields],
    ) -> SearchResults:
        """Finds the k rows nearest to a query."""
        verbs = self._verbs
        verbs._runtime.check()
        request = verbs._request(query, k, options, fields)
        found = verbs._search_at_once(request)
        return run_here(verbs._search_aside(request)) if found is None else found

    def search_batch(
        self,
        queries: Any,
        k: int = 10,
        options: SearchOptions | Mapping[str, Any] | None = None,
        **fields: Unpack[SearchFields],
    ) -> list[SearchResults]:
        """Finds the k rows nearest to each of many queries, on all threads."""
        return run_here(self._verbs.search_batch(queries, k, options, **fields))

    def search_stream(
        self,
        query: Any,
        *,
        threshold: float | Unset | None = UNSET,
        include_vectors: bool = False,
        filter: Mapping[str, Any] | None = None,
    ) -> Iterator[SearchResult]:
        """All rows that a filter takes and whose score passes the threshold, nearest first, however many there are."""
        hits = self._verbs.search_stream(query, threshold=threshold, include_vectors=include_vectors, filter=filter)
        return iterate_here(hits)

    def get(self, ids: Sequence[str]) -> list[Row | None]:
        """Rows by id, in the order asked for; None for an id that is not live."""
        return run_here(self._verbs.get(ids))

    def count(self, filter: Mapping[str, Any] | None = None) -> int:
        """How many rows are live, of those that a filter takes."""
        return run_here(self._verbs.count(filter))

    def facets(self, field: str, filter: Mapping[str, Any] | None = None) -> list[FacetCount]:
        """The distinct values of a metadata field, each with the number of rows that have it."""
        return run_here(self._verbs.facets(field, filter))

    def recall(self, sample: int = 200, *, k: int = 10) -> RecallReport:
        """How much of the truth searches find on the index's own rows, and at what cost."""
        return run_here(self._verbs.recall(sample, k=k))

    def scan(self, filter: Mapping[str, Any] | None = None, *, order: str | None = None) -> Iterator[Row]:
        """The rows that are live at its start, of those that a filter takes, in the order of their slots or a field."""
        return iterate_here(self._verbs.scan(filter, order=order))

    def get_stats(self) -> SessionStats:
        """Measured state of the session."""
        return run_here(self._verbs.get_stats())

    # ---- versions

    def save_to_s5(
        self,
        *,
        on_conflict: str = "error",
        verify_stored: bool = False,
        progress: ProgressCallback | None = None,
    ) -> str:
        """Stores the index as a new version and returns its CID."""
        return run_here(self._verbs.save_to_s5(on_conflict=on_conflict, verify_stored=verify_stored, progress=progress))

    def load_user_vectors(
        self,
        cid: str | None = None,
        options: LoadOptions | Mapping[str, Any] | None = None,
        **fields: Unpack[LoadFields],
    ) -> None:
        """Replaces the content by a saved version: all or nothing."""
        run_here(self._verbs.load_user_vectors(cid, options, **fields))

    def warm(self, progress: ProgressCallback | None = None) -> None:
        """Fetches what a lazy load left in the store; `progress` is called on another thread."""
        run_here(self._verbs.warm(progress))

    def history(self) -> list[VersionInfo]:
        """The versions of this index, newest first."""
        return run_here(self._verbs.history())

    def prune_history(self, keep: int, dry_run: bool = True) -> PruneReport:
        """Forgets all but the newest versions, and deletes what only the others name."""
        return run_here(self._verbs.prune_history(keep, dry_run))

    def share(self, cid: str) -> str:
        """Makes a CID that opens one version without the phrase, and nothing else."""
        return run_here(self._verbs.share(cid))

    def list_indexes(self) -> list[str]:
        """The names of the user's saved indexes."""
        return run_here(self._verbs.list_indexes())

    def verify(self, cid: str | None = None, *, progress: ProgressCallback | None = None) -> VerifyReport:
        """Reads every object of a version and checks all of it."""
        return run_here(self._verbs.verify(cid, progress=progress))
