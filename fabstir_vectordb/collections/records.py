"""What a collection knows of its shards, and how a process opens one: small frozen values that can be pickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Final, Literal, Self, TypeGuard, cast

from fabstir_vectordb._native.constants import DIM_MAX, EF_MAX, M_MAX, M_MIN
from fabstir_vectordb.config import CHUNK_SIZE_MAX, Memory, ShareFields, VectorDBConfig
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import IntegrityError, InvalidConfigError, StorageError
from fabstir_vectordb.params import IndexParams
from fabstir_vectordb.text.settings import TextSettings, text_settings

__all__ = ["ROUTES", "SHARD_INDEX", "Recipe", "Route", "Settings", "Shard", "ShardKey"]

Route = Literal["nearest", "hash", "range"]
ROUTES: Final[tuple[Route, ...]] = ("nearest", "hash", "range")

#: Index name of every shard; its key makes the difference.
SHARD_INDEX: Final = "shard"
#: Forms of a root: without a text index, and with one, whose shards an older release would divide without it.
_FORM: Final = 1
_FORM_WITH_TEXT: Final = 2
#: Most shards that a collection ever has, those that are gone included: numbers that numpy and file names take.
_SHARDS_MAX: Final = 10**8


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a process opens shards: the store, and limits of memory and time. It holds no key.

    Attributes:
        s5_portal, portal_token, timeout_s, max_retries, allow_private_redirects, disk_cache_dir, disk_cache_mb, memory,
            threads, memory_budget_mb, cache_size_mb, clock: as in VectorDBConfig. The budget is that of all shards that
            a process has open.
        lazy_load, become_whole: as in LoadOptions.
    """

    s5_portal: str
    portal_token: str | None = field(repr=False)
    timeout_s: float
    max_retries: int
    allow_private_redirects: bool
    disk_cache_dir: str | None
    disk_cache_mb: int
    memory: Memory
    threads: int | None
    memory_budget_mb: int
    cache_size_mb: int
    clock: Callable[[], float] | None
    lazy_load: bool
    become_whole: bool

    @classmethod
    def of(cls, config: VectorDBConfig, *, lazy_load: bool, become_whole: bool) -> Self:
        """The recipe of a collection.

        Raises:
            InvalidConfigError: shards could not be opened elsewhere: the store is one session's own memory, or versions
                are not encrypted.
        """
        if config.portal_uri.removeprefix("memory:").strip("/") == "":
            raise InvalidConfigError(
                "memory: is the memory of one session: give a collection memory:name, file:///… or a portal",
                details={"field": "s5_portal"},
            )
        if not config.encrypt_at_rest:
            raise InvalidConfigError(
                "a collection is always encrypted: leave out encrypt_at_rest=False",
                details={"field": "encrypt_at_rest"},
            )
        return cls(
            s5_portal=config.portal_uri,
            portal_token=config.portal_token,
            timeout_s=config.timeout_s,
            max_retries=config.max_retries,
            allow_private_redirects=config.allow_private_redirects,
            disk_cache_dir=None if config.disk_cache_dir is None else str(config.disk_cache_dir),
            disk_cache_mb=config.disk_cache_mb,
            memory=config.memory,
            threads=config.threads,
            memory_budget_mb=config.memory_budget_mb,
            cache_size_mb=config.cache_size_mb,
            clock=config.clock,
            lazy_load=lazy_load,
            become_whole=become_whole,
        )

    def fields(self) -> ShareFields:
        """The settings of a session that reads a shard. It keeps all hits: the collection applies the threshold."""
        return {
            "session_id": "shard",
            "memory_budget_mb": self.memory_budget_mb,
            "cache_size_mb": self.cache_size_mb,
            "disk_cache_dir": self.disk_cache_dir,
            "disk_cache_mb": self.disk_cache_mb,
            "memory": self.memory,
            "default_threshold": None,
            "timeout_s": self.timeout_s,
            "max_retries": self.max_retries,
            "portal_token": self.portal_token,
            "allow_private_redirects": self.allow_private_redirects,
            "clock": self.clock,
            "threads": self.threads,
        }


@dataclass(frozen=True, slots=True)
class ShardKey:
    """The key of a shard, on its way to a worker.

    Attributes:
        key: 32 bytes, as `s5.keys.shard_key` derives them.
    """

    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard as the root names it.

    Attributes:
        number: never used again by this collection.
        cid: CID of its root, which the shard's key opens, for changes.
        share: share CID, for readers; a secret.
        rows: live rows.
        superseded: whether its parts may hold deleted or replaced rows or metadata.
        first: least key of its range, with the routes ``hash`` and ``range``; None with ``nearest``.
        fingerprints: CID of the fingerprints of its ids, a secret; None where it has none, as with ``hash`` and
            ``range``.
    """

    number: int
    cid: str
    share: str = field(repr=False)
    rows: int
    superseded: bool
    first: str | None
    fingerprints: str | None = field(default=None, repr=False)

    def to_metadata(self) -> dict[str, Any]:
        """The metadata of its row in the root."""
        return {
            "kind": "shard",
            "shard": self.number,
            "cid": self.cid,
            "share": self.share,
            "rows": self.rows,
            "superseded": self.superseded,
            "first": self.first,
            **({} if self.fingerprints is None else {"fingerprints": self.fingerprints}),
        }

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self:
        """The shard of a row's metadata.

        Raises:
            IntegrityError: it is no shard's.
        """
        number, cid, share, rows = (metadata.get(name) for name in ("shard", "cid", "share", "rows"))
        superseded, first, fingerprints = (metadata.get(name) for name in ("superseded", "first", "fingerprints"))
        if (
            not _is_within(number, 0, _SHARDS_MAX - 1)
            or type(cid) is not str
            or type(share) is not str
            or not _is_within(rows, 0, 2**53)
            or type(superseded) is not bool
            or not (first is None or type(first) is str)
            or not (fingerprints is None or type(fingerprints) is str)
        ):
            raise IntegrityError("a row of the root is no shard's: this is not a collection")
        return cls(
            number=number,
            cid=cid,
            share=share,
            rows=rows,
            superseded=superseded,
            first=first,
            fingerprints=fingerprints,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all shards of a collection have in common.

    Attributes:
        route: how rows go to shards.
        dim: components of a vector; None where no row has one.
        params: metric, M, ef_construction, chunk_size and the settings of the text index.
        next_shard: the number of the next new shard.
        scale: largest component of the sample, the unit of the integers that routes are computed with.
        curve: with ``nearest``, the expected share of the 10 nearest rows that are in the n most promising shards, for
            n from 1 on, as measured when the collection was built; else empty.
    """

    route: Route
    dim: int | None
    params: IndexParams
    next_shard: int
    scale: float
    curve: tuple[float, ...]

    def to_metadata(self) -> dict[str, Any]:
        """The metadata of its row in the root."""
        text = self.params.text
        return {
            "kind": "collection",
            "form": _FORM if text is None else _FORM_WITH_TEXT,
            "route": self.route,
            "dim": self.dim,
            "metric": self.params.metric,
            "M": self.params.M,
            "ef_construction": self.params.ef_construction,
            "chunk_size": self.params.chunk_size,
            "next_shard": self.next_shard,
            "scale": self.scale,
            "curve": list(self.curve),
            **({} if text is None else {"text": _from_text(text)}),
        }

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self:
        """The settings of a row's metadata.

        Raises:
            StorageError: a newer release wrote it.
            IntegrityError: it is no collection's.
        """
        form = metadata.get("form")
        if _is_within(form, _FORM_WITH_TEXT + 1, 2**31):
            raise StorageError(
                f"the root of this collection is of form {form}; this release reads forms up to {_FORM_WITH_TEXT}: "
                "upgrade fabstir-vectordb",
                details={"form": form, "supported": _FORM_WITH_TEXT},
            )
        route, dim, scale = metadata.get("route"), metadata.get("dim"), metadata.get("scale")
        curve, chunk_size = metadata.get("curve"), metadata.get("chunk_size")
        if (
            form != (_FORM if metadata.get("text") is None else _FORM_WITH_TEXT)
            or route not in ROUTES
            or metadata.get("metric") not in ("cosine", "l2", "dot")
            or not _is_within(metadata.get("M"), M_MIN, M_MAX)
            or not _is_within(metadata.get("ef_construction"), 1, EF_MAX)
            or not _is_within(metadata.get("next_shard"), 0, _SHARDS_MAX)
            or not (dim is None or _is_within(dim, 1, DIM_MAX))
            or not (chunk_size is None or _is_within(chunk_size, 1, CHUNK_SIZE_MAX))
            or not isinstance(scale, (int, float))
            or isinstance(scale, bool)
            or not 0 < scale < float("inf")
            or type(curve) is not list
            or not all(type(value) in (int, float) for value in curve)
        ):
            raise IntegrityError("the root is not that of a collection")
        params = IndexParams(
            metric=metadata["metric"],
            M=metadata["M"],
            ef_construction=metadata["ef_construction"],
            chunk_size=chunk_size,
            text=_to_text(metadata.get("text")),
        )
        return cls(
            route=cast(Route, route),
            dim=dim,
            params=params,
            next_shard=metadata["next_shard"],
            scale=float(scale),
            curve=tuple(map(float, curve)),
        )


def _from_text(text: TextSettings) -> dict[str, Any]:
    stored: dict[str, Any] = {"fields": list(text.fields), "language": text.language, "k1": text.k1, "b": text.b}
    stored["stop_words"] = text.stop_words if isinstance(text.stop_words, bool) else list(text.stop_words)
    return stored


def _to_text(stored: Any) -> TextSettings | None:
    """The settings of the text index; None for none.

    Raises:
        IntegrityError: they are no such settings.
        InvalidConfigError: the extra ``text`` is not installed.
    """
    if stored is None:
        return None
    if type(stored) is not dict or stored.keys() != {"fields", "language", "stop_words", "k1", "b"}:
        raise IntegrityError("the root does not say which texts are indexed")
    return text_settings(
        stored["fields"], stored["language"], stored["stop_words"], stored["k1"], stored["b"], IntegrityError
    )


def _is_within(value: object, least: int, most: int) -> TypeGuard[int]:
    return type(value) is int and least <= value <= most
