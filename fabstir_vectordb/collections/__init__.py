"""Collections of shards, for more rows than one process holds: see docs/collections.md."""

from fabstir_vectordb.collections.build import build
from fabstir_vectordb.collections.collection import Collection
from fabstir_vectordb.collections.engines import Engine, over, threads
from fabstir_vectordb.collections.measuring import Measured, measure
from fabstir_vectordb.collections.plan import CollectionPlan, plan
from fabstir_vectordb.collections.ray_engine import RayEngine
from fabstir_vectordb.collections.types import (
    CollectionProgress,
    CollectionReport,
    CollectionStats,
    ShardedResults,
    ShardInfo,
)

__all__ = [
    "Collection",
    "CollectionPlan",
    "CollectionProgress",
    "CollectionReport",
    "CollectionStats",
    "Engine",
    "Measured",
    "RayEngine",
    "ShardInfo",
    "ShardedResults",
    "build",
    "measure",
    "over",
    "plan",
    "threads",
]
