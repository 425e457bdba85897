"""fabstir_vectordb: an embedded vector database whose index lives encrypted and verifiable on S5."""

import logging

from fabstir_vectordb.config import UNSET, SeedPhrase, VectorDBConfig
from fabstir_vectordb.errors import (
    ConflictError,
    DecryptionError,
    IndexStateError,
    IntegrityError,
    InternalError,
    InvalidConfigError,
    InvalidInputError,
    MemoryBudgetExceededError,
    NotFoundError,
    OperationTimeoutError,
    S5Error,
    SessionError,
    StorageError,
    VectorDBError,
)
from fabstir_vectordb.s5.phrase import new_seed_phrase
from fabstir_vectordb.session import VectorDBSession, get_platform_info, get_version
from fabstir_vectordb.types import (
    AddResult,
    CalibrationPoint,
    DeleteResult,
    FacetCount,
    LoadOptions,
    Progress,
    PruneReport,
    Row,
    SearchOptions,
    SearchResult,
    SearchResults,
    SessionStats,
    VacuumStats,
    VectorInput,
    VerifyReport,
    VersionInfo,
)

__all__ = [
    "UNSET",
    "AddResult",
    "CalibrationPoint",
    "ConflictError",
    "DecryptionError",
    "DeleteResult",
    "FacetCount",
    "IndexStateError",
    "IntegrityError",
    "InternalError",
    "InvalidConfigError",
    "InvalidInputError",
    "LoadOptions",
    "MemoryBudgetExceededError",
    "NotFoundError",
    "OperationTimeoutError",
    "Progress",
    "PruneReport",
    "Row",
    "S5Error",
    "SearchOptions",
    "SearchResult",
    "SearchResults",
    "SeedPhrase",
    "SessionError",
    "SessionStats",
    "StorageError",
    "VacuumStats",
    "VectorDBConfig",
    "VectorDBError",
    "VectorDBSession",
    "VectorInput",
    "VerifyReport",
    "VersionInfo",
    "get_platform_info",
    "get_version",
    "new_seed_phrase",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())
