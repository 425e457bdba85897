"""An ANN for txtai: its vectors are in an encrypted index on S5, and the file that txtai keeps holds the version's CID.

txtai writes its configuration to disk in clear. So the phrase and the token come from the environment variables
``FABSTIR_SEED_PHRASE`` and ``FABSTIR_PORTAL_TOKEN``, and are refused in the configuration.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from fabstir_vectordb.config import Given, config_of
from fabstir_vectordb.errors import InvalidConfigError
from fabstir_vectordb.integrations import needing
from fabstir_vectordb.params import OPTION_NAMES
from fabstir_vectordb.sync import VectorDBSession

with needing("txtai"):
    from txtai.ann.base import ANN

__all__ = ["FabstirANN"]

_PHRASE_VARIABLE: Final = "FABSTIR_SEED_PHRASE"
_TOKEN_VARIABLE: Final = "FABSTIR_PORTAL_TOKEN"
_SECRETS: Final = ("user_seed_phrase", "portal_token")


class FabstirANN(ANN):
    """txtai's ANN over a session, named in txtai as ``backend="fabstir_vectordb.integrations.txtai.FabstirANN"``.

    Scores are cosines, from -1 to 1, as those of txtai's other backends.

    Args:
        config: txtai's configuration. Its dict ``fabstir`` has settings of VectorDBConfig, of which ``s5_portal`` is
            required, and options of searches, as ``recall_target``.

    Raises:
        InvalidConfigError: a setting is missing, unknown, out of range, or a secret.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.backend: VectorDBSession | None = None
        settings = dict(config.get("fabstir") or {})
        for name in _SECRETS:
            if name in settings:
                raise InvalidConfigError(
                    f"txtai would write {name} to disk: set {_PHRASE_VARIABLE} or {_TOKEN_VARIABLE} in its place"
                )
        searches = OPTION_NAMES["SearchOptions"]
        self._options: Mapping[str, Any] = {name: settings.pop(name) for name in searches & settings.keys()}
        settings |= {
            "session_id": settings.get("session_id", "txtai"),
            "user_seed_phrase": os.environ.get(_PHRASE_VARIABLE),
            "portal_token": os.environ.get(_TOKEN_VARIABLE) or None,
        }
        given = Given(None, settings)
        del settings  # what fails from here on has no bare secret in its traceback
        self._config = config_of(given)
        if self._config.metric != "cosine":
            raise InvalidConfigError("txtai compares by cosine: leave out metric")

    def _opened(self) -> VectorDBSession:
        if self.backend is None:
            self.backend = VectorDBSession(self._config)
        return self.backend

    def load(self, path: str) -> None:
        """Opens the version whose CID is in the file."""
        cid = Path(path).read_text(encoding="utf-8").strip()
        self._opened().load_user_vectors(cid, lazy_load=False, discard_unsaved=True)

    def save(self, path: str) -> None:
        """Saves a version, and writes its CID to the file."""
        cid = self._opened().save_to_s5()
        Path(path).write_text(cid + "\n", encoding="utf-8")

    def index(self, embeddings: Any) -> None:
        """Replaces all vectors; a vector's position is its id."""
        self._opened().clear()
        self.config["offset"] = 0
        self._add(embeddings)
        self.metadata({})

    def append(self, embeddings: Any) -> None:
        """Adds vectors; their ids follow the last one."""
        self._add(embeddings)
        self.metadata()

    def _add(self, embeddings: Any) -> None:
        first = self.config["offset"]
        vectors = np.ascontiguousarray(embeddings, dtype=np.float32)
        self._opened().add_batch([str(first + row) for row in range(len(vectors))], vectors)
        self.config["offset"] = first + len(vectors)

    def delete(self, ids: Iterable[int]) -> None:
        """Deletes vectors by their ids; ids that are not there are ignored."""
        self._opened().delete([str(id) for id in ids], missing_ok=True)

    def search(self, queries: Any, limit: int) -> list[list[tuple[int, float]]]:
        """The ids and scores of the vectors nearest to each query."""
        vectors = np.ascontiguousarray(queries, dtype=np.float32)
        answers = self._opened().search_batch(vectors, limit, threshold=None, **self._options)
        return [[(int(hit.id), 1.0 - hit.distance) for hit in hits] for hits in answers]

    def count(self) -> int:
        """How many vectors there are."""
        return self._opened().count()

    def close(self) -> None:
        """Ends the session."""
        if self.backend is not None:
            self.backend.destroy()
        super().close()
