"""Collections of shards, for more rows than one process holds."""

from fabstir_vectordb.collections.engines import Engine, over, threads

__all__ = ["Engine", "over", "threads"]
