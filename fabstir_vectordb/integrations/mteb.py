"""A search backend for MTEB: its retrieval tasks are searched by an index, in place of a matrix product.

It follows MTEB's protocol without importing MTEB: ``SearchEncoderWrapper(model, index_backend=FabstirSearchIndex())``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.config import Given, VectorDBConfig, config_of
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.params import SearchOptions
from fabstir_vectordb.s5.phrase import new_seed_phrase
from fabstir_vectordb.sync import VectorDBSession

__all__ = ["FabstirSearchIndex"]

#: Memory of a session, in 10^6 bytes, where the caller sets none: corpora of MTEB are larger than a user's index.
_BUDGET_MB: Final = 16_000


class FabstirSearchIndex:
    """MTEB's search backend over a session, which keeps everything in memory unless it is told otherwise.

    Args:
        config: a VectorDBConfig, or a mapping of settings.
        options: options of every search: ``{"exact": True}`` measures the model alone, without the index.
        **settings: single settings, as ``metric``: ``cosine`` unless given, or ``dot`` or ``l2``. A store, a phrase
            and a session id are made up where they are missing.

    Raises:
        InvalidConfigError: a setting is unknown or out of range.
    """

    def __init__(
        self,
        config: VectorDBConfig | Mapping[str, Any] | None = None,
        *,
        options: SearchOptions | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        made_up = {"s5_portal": "memory:", "session_id": "mteb", "memory_budget_mb": _BUDGET_MB}
        if config is None and "user_seed_phrase" not in settings:
            settings["user_seed_phrase"] = new_seed_phrase()
        given = Given(config, {**made_up, **settings} if config is None else settings)
        del config, settings  # what fails from here on has no bare secret in its traceback
        made = config_of(given)
        self._shift = 1.0 if made.metric == "cosine" else 0.0  # a cosine is 1 less its distance
        self._session = VectorDBSession(made)
        self._options = options
        self._ids: list[str] = []

    def add_documents(self, embeddings: Any, idxs: list[str]) -> None:
        """Adds documents after those that are there.

        Args:
            embeddings: (n, dim) numbers: an array or a tensor.
            idxs: n ids.

        Raises:
            InvalidInputError: there are more or fewer ids than vectors, or a vector is refused.
        """
        vectors = _array(embeddings)
        if vectors.ndim != 2 or len(vectors) != len(idxs):
            raise InvalidInputError(f"got embeddings of shape {vectors.shape} for {len(idxs)} ids")
        # The position is the id, as MTEB wants positions back.
        first = len(self._ids)
        self._session.add_batch([str(place) for place in range(first, first + len(idxs))], vectors)
        self._ids += idxs

    def search(
        self,
        embeddings: Any,
        top_k: int,
        similarity_fn: Callable[[Any, Any], Any],
        top_ranked: Mapping[str, list[str]] | None = None,
        query_idx_to_id: Mapping[int, str] | None = None,
    ) -> tuple[list[list[float]], list[list[int]]]:
        """The documents nearest to each query, or the order of given documents.

        Args:
            embeddings: (n, dim) queries.
            top_k: documents of a query, at most 10,000.
            similarity_fn: MTEB's similarity of two matrices; used to order given documents.
            top_ranked: ids of the documents to order, by the id of a query; None searches all documents.
            query_idx_to_id: the ids of the queries, where `top_ranked` is given.

        Returns:
            Similarities (cosines, inner products or negative distances, by the metric), and positions: of all
            documents, or within the list of `top_ranked`.

        Raises:
            InvalidInputError: an argument is refused.
        """
        queries = _array(embeddings)
        if top_ranked is not None:
            return self._ordered(queries, top_k, similarity_fn, top_ranked, query_idx_to_id)
        answers = self._session.search_batch(queries, top_k, self._options, threshold=None)
        similarities = [[self._shift - hit.distance for hit in hits] for hits in answers]
        return similarities, [[int(hit.id) for hit in hits] for hits in answers]

    def _ordered(
        self,
        queries: npt.NDArray[np.float32],
        top_k: int,
        similarity_fn: Callable[[Any, Any], Any],
        top_ranked: Mapping[str, list[str]],
        query_ids: Mapping[int, str] | None,
    ) -> tuple[list[list[float]], list[list[int]]]:
        if query_ids is None:
            raise InvalidInputError("top_ranked needs query_idx_to_id")
        places = {id: str(place) for place, id in enumerate(self._ids)}
        similarities: list[list[float]] = []
        positions: list[list[int]] = []
        for number, query in enumerate(queries):
            wanted = [places[id] for id in top_ranked.get(query_ids[number], ())]
            rows = [row.vector for row in self._session.get(wanted) if row is not None]
            scores = _array(similarity_fn(query[np.newaxis], np.asarray(rows)))[0] if rows else np.empty(0)
            best = np.argsort(-scores, kind="stable")[:top_k]
            similarities.append(scores[best].tolist())
            positions.append(best.tolist())
        return similarities, positions

    def clear(self) -> None:
        """Removes all documents."""
        self._session.clear()
        self._ids = []

    def close(self) -> None:
        """Ends the session."""
        self._session.destroy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _array(given: Any) -> npt.NDArray[np.float32]:
    if hasattr(given, "detach"):  # a tensor, perhaps on another device
        given = given.detach().cpu().numpy()
    return np.ascontiguousarray(given, dtype=np.float32)
