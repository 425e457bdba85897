"""Settings of a session: frozen, keyword-only, validated when they are made.

Secrets are wrapped before anything can fail: some programs show or store the local variables of a traceback's frames,
and must not get a mistyped phrase.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, TypedDict

from fabstir_vectordb._native.handle import EF_MAX, M_MAX, M_MIN, THREADS_MAX
from fabstir_vectordb.cpus import usable_cpus
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.embedding import Embedder, check_embedder
from fabstir_vectordb.errors import InvalidConfigError, VectorDBError
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.text.settings import TextSettings, text_settings

__all__ = [
    "UNSET",
    "ConfigFields",
    "Memory",
    "Metric",
    "NoPhrase",
    "SeedPhrase",
    "ShareFields",
    "Tier",
    "Unset",
    "VectorDBConfig",
    "config_of",
    "share_config",
]

Metric = Literal["cosine", "l2", "dot"]
Tier = Literal["fast", "default", "compact"]
Memory = Literal["auto", "fast", "default", "compact"]

METRICS = ("cosine", "l2", "dot")
MEMORIES = ("auto", "fast", "default", "compact")
_INDEX_NAME = re.compile(r"[a-z0-9._-]{1,64}")

#: Most rows of a part. A part is one blob and must stay far below 2 GiB.
CHUNK_SIZE_MAX: Final = 1 << 24
TIMEOUT_S_MAX: Final = 3_600
RETRIES_MAX: Final = 20
_MB: Final = 1_000_000
#: Most memory that an int64 can count in bytes.
MEMORY_MB_MAX: Final = (2**63 - 1) // _MB


class Unset:
    """The type of UNSET: "no value was given", where None means something else."""

    _instance: Unset | None = None

    def __new__(cls) -> Unset:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> bool:
        return False


#: The default of a threshold, where None drops nothing: the session's own, or the metric's.
UNSET: Final = Unset()


class SeedPhrase:
    """A secret that is never shown: not in repr, str, logs, pickles or the error texts of comparisons."""

    __slots__ = ("_secret",)

    def __init__(self, secret: str) -> None:
        if not isinstance(secret, str):
            del secret
            raise _invalid("user_seed_phrase", "user_seed_phrase must be a string")
        self._secret = secret

    def reveal(self) -> str:
        """The secret itself."""
        return self._secret

    def __repr__(self) -> str:
        return "SeedPhrase('…')"

    def __bool__(self) -> bool:
        return bool(self._secret.strip())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeedPhrase) and self._secret == other._secret

    __hash__ = None  # type: ignore[assignment]

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> str:
        raise TypeError("a seed phrase is not written to pickles")


class NoPhrase(SeedPhrase):
    """Stands for the phrase in the settings of a session that a share CID opened: there is none."""

    def __init__(self) -> None:
        super().__init__("none")


class _Token(str):
    """A portal's token: a string whose repr hides it."""

    def __repr__(self) -> str:
        return "'…'"


class _NoText:
    """Stands for an invalid value that may be a secret, until the value is refused."""


def _seal(settings: dict[str, Any]) -> None:
    """Wraps the secrets among settings, in place. It cannot fail."""
    for name in settings.keys() - ConfigFields.__annotations__.keys():
        settings[name] = _NoText()  # it may be a phrase under a mistyped name
    phrase = settings.get("user_seed_phrase")
    if isinstance(phrase, str):
        settings["user_seed_phrase"] = SeedPhrase(phrase)
    elif phrase is not None and not isinstance(phrase, SeedPhrase):
        settings["user_seed_phrase"] = _NoText()
    if isinstance(settings.get("portal_token"), str):
        settings["portal_token"] = _Token(settings["portal_token"])


class _Sealing(type):
    """Makes a configuration of settings whose secrets are wrapped, and refuses what the generated ``__init__`` would
    refuse with a TypeError that has no code."""

    def __call__(cls, **settings: Any) -> Any:
        _seal(settings)
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]  # the one class of this kind is one
        for name in settings:
            check_known(name, names, "a setting", InvalidConfigError)
        _require(settings)
        config = super().__call__(**settings)
        given = frozenset(settings)
        if len(given) == len(names):
            # `dataclasses.replace` passes all settings: only those that differ from the default count as given.
            given = frozenset(name for name in names if settings[name] != _default_of(cls, name))
        object.__setattr__(config, "given", given)
        return config


def _default_of(cls: type, name: str) -> Any:
    return getattr(cls, name, MISSING)


class ConfigFields(TypedDict, total=False):
    """The settings of VectorDBConfig as keyword arguments."""

    s5_portal: str | os.PathLike[str]
    user_seed_phrase: SeedPhrase | str
    session_id: str
    index_name: str
    memory_budget_mb: int
    cache_size_mb: int
    disk_cache_dir: str | os.PathLike[str] | None
    disk_cache_mb: int
    debug: bool
    encrypt_at_rest: bool
    metric: Metric
    memory: Memory
    M: int
    ef_construction: int
    recent_window_s: float
    recall_target: float | None
    default_threshold: float | Unset | None
    timeout_s: float
    max_retries: int
    portal_token: str | None
    allow_private_redirects: bool
    clock: Callable[[], float] | None
    threads: int | None
    chunk_size: int | None
    text_fields: str | Iterable[str] | None
    text_language: str | None
    text_stop_words: bool | Iterable[str] | None
    text_k1: float | None
    text_b: float | None
    embedder: Embedder | None
    tracing: Any


class ShareFields(TypedDict, total=False):
    """The settings of VectorDBConfig that a session by share CID takes."""

    session_id: str
    memory_budget_mb: int
    cache_size_mb: int
    disk_cache_dir: str | os.PathLike[str] | None
    disk_cache_mb: int
    debug: bool
    memory: Memory
    recall_target: float | None
    default_threshold: float | Unset | None
    timeout_s: float
    max_retries: int
    portal_token: str | None
    allow_private_redirects: bool
    clock: Callable[[], float] | None
    threads: int | None


@dataclass(frozen=True, kw_only=True)
class VectorDBConfig(metaclass=_Sealing):
    """The settings of a session.

    `metric`, `M`, `ef_construction`, `chunk_size` and the settings of texts are stored with a version, and a load takes
    them from there. A load is refused where one of them was passed and the version has another value. Settings left at
    their default never cause a refusal.

    Args:
        s5_portal: where versions live: ``http(s)://host[:port]`` of an S5 node or a Fabstir gateway,
            ``file:///absolute/path`` or a `pathlib.Path` for a directory, ``memory:`` for memory of this session only,
            ``memory:name`` for memory that all sessions of the process share until `forget_memory_store` frees it.
        user_seed_phrase: 15 words of S5, or any other secret (docs/storage.md explains the difference).
        session_id: a label in logs and errors; it enters no key, path or stored byte.
        index_name: name of the index, 1 to 64 characters of ``[a-z0-9._-]``; it selects keys and pointer.
        memory_budget_mb: most memory of the index and its transfers, in 10^6 bytes.
        cache_size_mb: most memory, in 10^6 bytes, of fetched parts that a lazily loaded index keeps; limited also by
            the rest of memory_budget_mb.
        disk_cache_dir: absolute path of a directory that keeps fetched and stored blobs between sessions, encrypted as
            in the store; None keeps nothing. `destroy` leaves the directory: delete it to remove the blobs.
        disk_cache_mb: most bytes in disk_cache_dir, in 10^6 bytes.
        debug: log at DEBUG level on the logger ``fabstir_vectordb``.
        encrypt_at_rest: False stores versions in clear.
        metric: ``cosine``, ``l2`` or ``dot``.
        memory: ``fast`` (at most 2.5 times the raw rows from 384 dimensions on), ``default`` (1.25 times),
            ``compact`` (1.1 times, slowest), or ``auto``: ``fast`` while the index takes at most half of
            `memory_budget_mb` under it, else ``default``; `get_stats` tells which. A version opens under each; all but
            ``compact`` store the same.
        M: links of a row in the HNSW graph, M_MIN to M_MAX (Malkov & Yashunin 2018: 5 to 48, 16 is common).
        ef_construction: candidates while linking; more is slower to build and finds more.
        recent_window_s: seconds after which `optimize` moves a row from the recent to the historical side.
        recall_target: expected share of the k nearest rows that a search finds, for searches without `recall_target`,
            `ef_search`, `nprobe` and `exact`; above 0, at most 1. None takes the library's number of candidates, which
            is checked on the index's own rows.
        default_threshold: least score of a hit, for searches without a threshold. UNSET is 0.7 for cosine (cos >= 0.4)
            and none for the other metrics. None never drops a hit.
        timeout_s: most seconds for a connection to a portal, or for a pause within a transfer.
        max_retries: how often a failed request is repeated.
        portal_token: a portal's access token, or its invitation to make an account; never in a repr, log or error,
            never sent to another host.
        allow_private_redirects: let a portal of the internet redirect reads to loopback, link-local and private
            addresses.
        clock: a function that returns seconds since 1970 as a float; None for the system's clock.
        threads: most threads of a native call; None for the number of CPUs that the process may use, by its affinity
            and its cgroup's quota. It never changes a result.
        chunk_size: rows of a part; None chooses it from the size of a row.
        text_fields: metadata fields whose words searches with ``text=`` find; a dot steps into a dict, and a list of
            strings counts, too. `VectorDBSession.set_text_fields` changes them. None for no text index.
        text_language: language of the texts, such as ``english``: words are also found by their stems (extra ``text``).
            None takes words as they stand.
        text_stop_words: words that are left out. None: of English the 33 most frequent ones, of other languages none.
            True: the long list of the language. False: none. Or words of your own.
        text_k1: 0 to 1000, BM25's k1: how soon more of the same word stop counting. None is 1.2.
        text_b: 0 to 1, BM25's b: how much long texts are marked down. None is 0.75.
        embedder: turns texts into vectors, for `VectorDBSession.add_texts` and for searches by a string
            (docs/embedders.md): a callable, plain or awaited, with ``name`` and ``dimension``. An index stores both of
            the embedder of its texts, and a load with another one is refused. None for no embedder.
        tracing: True makes OpenTelemetry spans of searches, saves, loads and fetches, by the program's tracer provider
            (extra ``otel``, docs/telemetry.md); a tracer provider takes that one. False makes none.

    Attributes:
        given: names of the settings that were passed, as opposed to left at their defaults.

    Raises:
        InvalidConfigError: a setting is missing or out of range; details has ``field``.
    """

    s5_portal: str | os.PathLike[str]
    user_seed_phrase: SeedPhrase | str
    session_id: str
    index_name: str = "default"
    memory_budget_mb: int = 512
    cache_size_mb: int = 150
    disk_cache_dir: str | os.PathLike[str] | None = None
    disk_cache_mb: int = 1024
    debug: bool = False
    encrypt_at_rest: bool = True
    metric: Metric = "cosine"
    memory: Memory = "default"
    M: int = 16
    ef_construction: int = 200
    recent_window_s: float = 604_800.0
    recall_target: float | None = None
    default_threshold: float | Unset | None = UNSET
    timeout_s: float = 30.0
    max_retries: int = 3
    portal_token: str | None = field(default=None, repr=False)
    allow_private_redirects: bool = False
    clock: Callable[[], float] | None = None
    threads: int | None = None
    chunk_size: int | None = None
    text_fields: str | Iterable[str] | None = None
    text_language: str | None = None
    text_stop_words: bool | Iterable[str] | None = None
    text_k1: float | None = None
    text_b: float | None = None
    embedder: Embedder | None = field(default=None, repr=False)
    tracing: Any = False

    def __post_init__(self) -> None:
        self._check_text()
        for name, low, high in (
            ("memory_budget_mb", 1, MEMORY_MB_MAX),
            ("cache_size_mb", 1, MEMORY_MB_MAX),
            ("disk_cache_mb", 1, MEMORY_MB_MAX),
            ("M", M_MIN, M_MAX),
            ("ef_construction", 1, EF_MAX),
            ("threads", 1, THREADS_MAX),
            ("chunk_size", 1, CHUNK_SIZE_MAX),
        ):
            _check_integer(name, getattr(self, name), low, high, optional=name in ("threads", "chunk_size"))
        self._check_http()
        self._check_disk_cache()
        for name in ("text_fields", "text_stop_words"):
            # Iterators are read once.
            object.__setattr__(self, name, _taken(getattr(self, name)))
        self.text_settings  # noqa: B018  # it checks them
        for name in ("debug", "encrypt_at_rest", "allow_private_redirects"):
            if not isinstance(getattr(self, name), bool):
                raise _invalid(name, f"{name} must be True or False")
        if not isinstance(self.default_threshold, Unset):
            check_threshold("default_threshold", self.default_threshold, InvalidConfigError)
        check_recall_target(self.recall_target, InvalidConfigError)
        window = self.recent_window_s
        if isinstance(window, bool) or not isinstance(window, (int, float)) or not 0 < window < math.inf:
            raise _invalid("recent_window_s", f"recent_window_s must be greater than zero, got {shown(window)}")
        if self.clock is not None and not callable(self.clock):
            raise _invalid("clock", "clock must be a function that returns seconds since 1970")
        if self.embedder is not None:
            check_embedder(self.embedder, InvalidConfigError)
        if not isinstance(self.tracing, bool) and not callable(getattr(self.tracing, "get_tracer", None)):
            raise _invalid("tracing", f"tracing must be True, False or a tracer provider, got {shown(self.tracing)}")

    def _check_text(self) -> None:
        if not isinstance(self.session_id, str):
            raise _invalid("session_id", "session_id must be a string")
        if not isinstance(self.user_seed_phrase, SeedPhrase):
            raise _invalid("user_seed_phrase", "user_seed_phrase must be a string")
        if not isinstance(self.s5_portal, (str, os.PathLike)) or isinstance(os.fspath(self.s5_portal), bytes):
            raise _invalid("s5_portal", "s5_portal must be a string, or a path of text")
        if not isinstance(self.index_name, str) or not _INDEX_NAME.fullmatch(self.index_name):
            raise _invalid("index_name", "index_name must be 1 to 64 characters of [a-z0-9._-]")
        if self.metric not in METRICS:
            raise _invalid("metric", f"metric must be one of {', '.join(METRICS)}, got {shown(self.metric)}")
        if self.memory not in MEMORIES:
            raise _invalid("memory", f"memory must be one of {', '.join(MEMORIES)}, got {shown(self.memory)}")

    def _check_http(self) -> None:
        seconds, retries = self.timeout_s, self.max_retries
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= TIMEOUT_S_MAX:
            raise _invalid("timeout_s", f"timeout_s must be above zero, at most {TIMEOUT_S_MAX}, got {shown(seconds)}")
        if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= RETRIES_MAX:
            raise _invalid("max_retries", f"max_retries must be between 0 and {RETRIES_MAX}, got {shown(retries)}")
        if self.portal_token is not None and not _is_printable(self.portal_token):
            raise _invalid("portal_token", "portal_token must be printable ASCII text")

    def _check_disk_cache(self) -> None:
        directory = self.disk_cache_dir
        if directory is None:
            return
        if not isinstance(directory, (str, os.PathLike)) or not os.path.isabs(directory):
            raise _invalid("disk_cache_dir", f"disk_cache_dir must be an absolute path, got {shown(directory)}")
        if not self.encrypt_at_rest:
            raise _invalid("disk_cache_dir", "disk_cache_dir would keep blobs in clear: not with encrypt_at_rest=False")

    given: ClassVar[frozenset[str]]

    def __copy__(self) -> Self:
        return self  # nothing in it changes

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> str:
        raise TypeError("a configuration is not written to pickles: it holds the seed phrase")

    @property
    def secret(self) -> SeedPhrase:
        """The seed phrase in its wrapper."""
        assert isinstance(self.user_seed_phrase, SeedPhrase)
        return self.user_seed_phrase

    def without_secrets(self) -> Self:
        """The same settings without phrase and token."""
        bare = object.__new__(type(self))
        bare.__dict__.update(self.__dict__, user_seed_phrase=SeedPhrase("wiped"), portal_token=None)
        return bare

    @property
    def portal_uri(self) -> str:
        """s5_portal as a URI."""
        portal = self.s5_portal
        return portal if isinstance(portal, str) else Path(portal).absolute().as_uri()

    @property
    def budget_bytes(self) -> int:
        """memory_budget_mb in bytes."""
        return self.memory_budget_mb * _MB

    @cached_property
    def text_settings(self) -> TextSettings | None:
        """The settings of the text index of a new index; None for none."""
        return text_settings(
            self.text_fields, self.text_language, self.text_stop_words, self.text_k1, self.text_b, InvalidConfigError
        )

    @cached_property
    def native_threads(self) -> int:
        """Threads of a native call."""
        return min(self.threads or usable_cpus(), THREADS_MAX)


def share_config(s5_portal: str | os.PathLike[str], given: Mapping[str, Any]) -> VectorDBConfig:
    """The configuration of a session by share CID.

    Raises:
        InvalidConfigError: a setting is unknown, out of range, or none of a session without a phrase.
    """
    for name in given:
        check_known(name, ShareFields.__annotations__, "a setting of a session by share CID", InvalidConfigError)
    return VectorDBConfig(**{"session_id": "share", **given, "s5_portal": s5_portal, "user_seed_phrase": NoPhrase()})


def config_of(given: Given, **defaults: Any) -> VectorDBConfig:
    """Makes the configuration from a caller's settings.

    Args:
        given: the settings.
        **defaults: values of settings that are not among them, in place of the usual ones. They do not count as given:
            a load takes such settings from the version.

    Raises:
        InvalidConfigError: a setting is missing, unknown or out of range.
    """
    if given.problem is not None:
        raise _invalid("config", given.problem)
    if given.config is not None and not given.settings and not defaults:
        return given.config
    settings = given.settings
    if given.config is not None:
        # Only the passed settings, so that `given` names just these.
        settings = {**{name: getattr(given.config, name) for name in given.config.given}, **settings}
    config = VectorDBConfig(**{**defaults, **settings})
    object.__setattr__(config, "given", config.given - (defaults.keys() - settings.keys()))
    return config


class Given:
    """Settings as a caller gave them, a configuration or a mapping and single ones, with their secrets wrapped.

    The constructor never fails, so that no frame with a bare secret is in a traceback; `problem` holds the error text.
    """

    def __init__(self, config: object, settings: Mapping[str, Any]) -> None:
        self.config: VectorDBConfig | None = None
        self.settings: dict[str, Any] = {}
        self.problem: str | None = None
        if isinstance(config, VectorDBConfig):
            self.config = config
        elif isinstance(config, Mapping):
            self.settings.update(config)
        elif config is not None:
            self.problem = f"config must be a VectorDBConfig or a mapping, got {type(config).__name__}"
        self.settings.update(settings)
        _seal(self.settings)
        unknown = next((name for name in self.settings if not isinstance(name, str)), None)
        if unknown is not None:
            self.problem = f"{shown(unknown)} is not a setting: settings have names"


def _taken(values: object) -> Any:
    """An iterable's values as a tuple; strings and anything else as they are."""
    return tuple(values) if isinstance(values, Iterable) and not isinstance(values, (str, bytes)) else values


def check_known(name: str, names: Iterable[str], what: str, error: type[VectorDBError]) -> None:
    """Refuses an unknown name, and suggests the most similar known one.

    Raises:
        error: the name is not among `names`.
    """
    known = list(names)
    if name in known:
        return
    from difflib import get_close_matches  # here, as only an error needs it

    plain = {each.replace("_", "").lower(): each for each in known}
    close = get_close_matches(name.replace("_", "").lower(), plain, n=1, cutoff=0.75)
    hint = f": did you mean {plain[close[0]]}?" if close else f": there are {', '.join(known)}"
    raise error(f"{name} is not {what}{hint}", details={"field": name})


def _is_printable(text: object) -> bool:
    return isinstance(text, str) and text.isascii() and text.isprintable()


def _require(settings: dict[str, Any]) -> None:
    for name in ("session_id", "s5_portal", "user_seed_phrase"):
        value = settings.get(name)
        if (
            value is None
            or (isinstance(value, str) and not value.strip())
            or (isinstance(value, SeedPhrase) and not value)
        ):
            raise _invalid(name, f"Missing required field: {name} is required")


def _invalid(field: str, message: str) -> InvalidConfigError:
    return InvalidConfigError(message, details={"field": field})


def _check_integer(name: str, value: object, low: int, high: int, *, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise _invalid(name, f"{name} must be an integer, got {shown(value)}")
    if value <= 0:
        raise InvalidConfigError(
            f"{name} must be greater than zero, got {shown(value)}", details={"field": name, "value": value}
        )
    if not low <= value <= high:
        raise InvalidConfigError(
            f"{name} must be between {low} and {high}, got {shown(value)}",
            details={"field": name, "value": value, "low": low, "high": high},
        )


def check_recall_target(value: object, error: type[VectorDBError]) -> float | None:
    """Checks a recall target: None or a number above 0, at most 1.

    Raises:
        error: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value <= 1.0:
        raise error(
            f"recall_target must be None or a share above 0, at most 1, got {shown(value)}",
            details={"field": "recall_target", "value": value},
        )
    return float(value)


def check_threshold(name: str, value: object, error: type[Exception]) -> None:
    """Refuses a threshold that is neither None nor a number in [0, 1]."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise error(f"{name} must be None or a score between 0 and 1, got {shown(value)}")
