"""Parameters of an index, and options of searches and loads.

All of them are frozen. The public ones validate themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import EF_MAX, K_MAX, LISTS_MAX
from fabstir_vectordb._native.text import TextTotals
from fabstir_vectordb.config import (
    MEMORY_MB_MAX,
    UNSET,
    Memory,
    Metric,
    Unset,
    check_known,
    check_recall_target,
    check_threshold,
)
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.embedding import Embedder, EmbedderInfo, check_embedder
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.metadata.filter_parse import Filter
from fabstir_vectordb.metadata.path import check_metadata_field
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.text.fusion import Fusion, check_alpha, check_fusion
from fabstir_vectordb.text.query import ParsedQuery, parse_query
from fabstir_vectordb.text.settings import TextSettings
from fabstir_vectordb.types import ProgressCallback, SearchResults

__all__ = [
    "GROUPED_HITS_MAX",
    "MMR_K_MAX",
    "OPTION_NAMES",
    "IndexParams",
    "LoadFields",
    "LoadOptions",
    "Rerank",
    "RunParams",
    "SearchFields",
    "SearchOptions",
    "SearchRequest",
    "TextRequest",
    "check_ef",
    "check_exact",
    "check_groups",
    "check_k",
    "check_mmr",
    "check_nprobe",
    "check_rerank",
    "check_text",
    "make_options",
]

#: Most hits of a search with `group_by`: groups times hits of a group.
GROUPED_HITS_MAX: Final = 100_000
#: Most hits of a search with `mmr`: each step compares all candidates with the last hit.
MMR_K_MAX: Final = 1_000

#: Scores for the hits of a query: a function, or a coroutine function.
Rerank: TypeAlias = Callable[[Any, SearchResults], Any]

_O = TypeVar("_O", "SearchOptions", "LoadOptions")


def wall_clock_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


# ---- An index ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexParams:
    """Parameters of an index that a version stores. The dimension is not among them: the first vector sets it.

    Attributes:
        metric: ``cosine``, ``l2`` or ``dot``.
        M: links of a row.
        ef_construction: candidates while linking.
        chunk_size: rows of a part; None chooses it from the size of a row.
        text: the settings of the text index that a new index begins with; None for none.
        embedder: the embedder of the index's texts; None where no text was embedded.
    """

    metric: Metric = "cosine"
    M: int = 16
    ef_construction: int = 200
    chunk_size: int | None = None
    text: TextSettings | None = None
    embedder: EmbedderInfo | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParams:
    """Parameters of an index in this process. They change no answer and no stored byte.

    Attributes:
        memory: ``auto``, ``fast``, ``default`` or ``compact``.
        threads: most threads of a native call.
        budget_bytes: most bytes of memory; None for no limit.
        now_us: the clock, microseconds since 1970.
    """

    memory: Memory = "default"
    threads: int = 1
    budget_bytes: int | None = None
    now_us: Callable[[], int] = wall_clock_us


# ---- A search ----------------------------------------------------------------------------------------------


class TextRequest(NamedTuple):
    """The text of a search.

    Attributes:
        texts: one text for each vector of the search, or one for all of them.
        queries: the same as they were read.
        fusion: how the candidates of both sides are joined.
        alpha: the vector's share in ``weighted``.
        highlight: fill `FusedResult.highlights`.
        totals: numbers of the words of all shards, in a search of one of them; else None.
    """

    texts: tuple[str, ...]
    queries: tuple[ParsedQuery, ...]
    fusion: Fusion
    alpha: float
    highlight: bool
    totals: TextTotals | None = None

    def text(self, place: int) -> str:
        """The text of a vector, by its place."""
        return self.texts[place if len(self.texts) > 1 else 0]

    def query(self, place: int) -> ParsedQuery:
        """The query of a vector, by its place."""
        return self.queries[place if len(self.queries) > 1 else 0]


class SearchRequest(NamedTuple):
    """One search: options checked, defaults filled in, the filter parsed.

    It is a tuple, as every search makes one: a frozen dataclass would take four times as long.

    Attributes:
        query: dim float32, C-contiguous.
        k: rows to find.
        threshold: least score of a hit; UNSET is the metric's own, None drops nothing.
        include_vectors: fill `SearchResult.vector`.
        ef_search: candidates of the walk; 0 lets the library choose.
        exact: score every row.
        nprobe: lists to look at; 0 lets the library choose.
        recall_target: expected recall, in place of `ef_search`, `exact` and `nprobe`; None for none.
        where: the filter; None for all rows.
        mmr: λ of maximal marginal relevance; None for the nearest hits.
        group_by: the field whose values make groups, of which `k` are found; None for single rows.
        group_size: most hits of a group.
        rerank: a function that gives scores to candidates; None for none.
        rerank_k: number of candidates; 0 lets the library choose.
        text: the text; None for a search by vector alone. With a text, an empty query is a search by words alone.
    """

    query: npt.NDArray[np.float32]
    k: int
    threshold: float | Unset | None = UNSET
    include_vectors: bool = False
    ef_search: int = 0
    exact: bool = False
    nprobe: int = 0
    recall_target: float | None = None
    where: Filter | None = None
    mmr: float | None = None
    group_by: str | None = None
    group_size: int = 1
    rerank: Rerank | None = None
    rerank_k: int = 0
    text: TextRequest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """Options of a search.

    A search without `ef_search`, `nprobe`, `exact` and `recall_target` is the default search. It is measured on the
    index's own rows: where the usual number of candidates finds fewer than 0.95 of the nearest rows, it takes more
    candidates, or scores every row; where far fewer than the usual number find all, it takes about twice these.
    ``get_stats().default_search`` says which, `VectorDBSession.recall` how much it finds.

    Attributes:
        threshold: least score of a hit; UNSET takes the session's default, None drops nothing.
        include_vectors: fill `SearchResult.vector`.
        ef_search: candidates of the walk over the graph; more is slower and finds more. Where more candidates are
            measured to find nothing more, though some rows are missed, a search scores every row instead. None lets
            the library choose.
        exact: score every row exactly (``plan="flat"``); not together with `ef_search` or `nprobe`.
        recall_target: expected share of the k nearest rows that is found, above 0, at most 1; in place of `ef_search`,
            `nprobe` and `exact`. The number of candidates is measured on the index's own rows; where no number is
            known to be enough, every row is scored. It is an average over queries like the rows, no promise for a
            single query. None takes the session's default.
        nprobe: lists of historical rows to scan, with or without `ef_search`; at most all lists are. None takes the
            number that held 99 % of the nearest rows when the lists were trained.
        filter: a dict of metadata fields and conditions, as in MongoDB: ``{"year": {"$gte": 2020}}``; or the same
            built with `F`. A dot in a field steps into a dict; a step in double quotes is one key, as in
            ``'v."a.b"'``. Only rows that match can be hits; k hits come whenever k rows match. None matches all rows.
        mmr: λ of maximal marginal relevance (Carbonell & Goldstein 1998), which chooses hits that also differ from each
            other: from 1, by nearness alone, to 0, by difference alone. The candidates are the 4 k nearest rows, at
            least k + 32, that pass the threshold. Hits come in the order in which they are chosen; k is at most 1,000.
            None returns the nearest rows.
        group_by: a metadata field: `k` is then a number of groups, each of the rows with one value of the field, and
            hits are the best rows of the groups with the nearest rows: of each document, say, the best chunks. k groups
            come whenever there are k. A row with a list belongs to the group of each of its values; a row without the
            field to none. ``results.groups`` has the groups. With ``text=``, all rows that match either side are put in
            order; a lazily loaded index fetches all metadata for that, and is loaded whole where there is a vector,
            too, or `include_vectors`. Not together with `mmr`.
        group_size: most hits of a group; k times `group_size` is at most 100,000.
        rerank: a function that is called with the query's vector, or the text of a search with ``text=``, and the
            candidates, a SearchResults, and returns a
            number for each of them, as a cross-encoder does: ``lambda query, hits: model.predict([(question,
            hit.metadata["text"]) for hit in hits])``. The k candidates with the largest numbers are the hits, each a
            RerankedResult. It runs in a worker thread; a coroutine function is awaited on the event loop. In
            `search_batch` it is called for one query after the other. Its exceptions come through, StopIteration as
            InvalidInputError. Not together with `mmr`.
        rerank_k: number of candidates, the nearest rows that pass the threshold; with `group_by`, of groups. At least
            k; None takes 4 k, at least k + 32.
        text: words to search for, beside the vector or without one: ``"phrases"``, ``+required``, ``-excluded`` and
            ``pre*`` are understood, and every text is a query. `score` then sets the order: with a vector the fused
            value over its maximum, without one s / (1 + s) of BM25's s. The default threshold does not apply. In
            `search_batch`, one text for all vectors, or a list with one for each. True takes the words of a query that
            is a string.
        fusion: how the hits of vector and words are joined: ``excess`` (the default: scores in units of each side's own
            first ten), ``rrf`` (reciprocal ranks, k = 60) or ``weighted`` (a sum of min-max normalised scores). Each
            side gives its best 100 rows, or k + 50 where that is more.
        alpha: the vector's share in ``weighted``, 0 to 1; None is 0.5.
        highlight: fill `FusedResult.highlights` with the places that have words of the text.

    Raises:
        InvalidInputError: an option is unknown, of another type or out of range.
    """

    threshold: float | Unset | None = UNSET
    include_vectors: bool = False
    ef_search: int | None = None
    exact: bool = False
    recall_target: float | None = None
    filter: Mapping[str, Any] | None = None
    nprobe: int | None = None
    mmr: float | None = None
    group_by: str | None = None
    group_size: int = 1
    rerank: Rerank | None = None
    rerank_k: int | None = None
    text: str | Sequence[str] | Literal[True] | None = None
    fusion: Fusion | None = None
    alpha: float | None = None
    highlight: bool = False

    def __new__(cls, **given: Any) -> SearchOptions:
        _check_names(cls, given)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, Unset):
            check_threshold("threshold", self.threshold, InvalidInputError)
        check_bool("include_vectors", self.include_vectors)
        ef, probes = check_ef(self.ef_search), check_nprobe(self.nprobe)
        exact = check_exact(self.exact, ef or probes)
        target = check_recall_target(self.recall_target, InvalidInputError)
        if target is not None and (ef or exact or probes):
            raise recall_target_excludes(target, self.ef_search, exact, self.nprobe)
        if self.filter is not None and not isinstance(self.filter, Mapping):
            raise InvalidInputError(f"filter must be a dict of fields or None, got {type(self.filter).__name__}")
        if self.mmr is not None:
            check_mmr(self.mmr, 1)
        check_groups(self.group_by, self.group_size, 1, self.mmr)
        check_rerank(self.rerank, self.rerank_k, 1, self.group_size, self.mmr)
        text = "" if self.text is True else self.text  # the query's own is not known here
        check_text(text, self.fusion, self.alpha, self.highlight)


class SearchFields(TypedDict, total=False):
    """The fields of SearchOptions as keyword arguments."""

    threshold: float | Unset | None
    include_vectors: bool
    ef_search: int | None
    exact: bool
    recall_target: float | None
    filter: Mapping[str, Any] | None
    nprobe: int | None
    mmr: float | None
    group_by: str | None
    group_size: int
    rerank: Rerank | None
    rerank_k: int | None
    text: str | Sequence[str] | Literal[True] | None
    fusion: Fusion | None
    alpha: float | None
    highlight: bool


def recall_target_excludes(
    recall_target: object, ef_search: object, exact: object, nprobe: object
) -> InvalidInputError:
    """The error for a recall target together with an option that it replaces."""
    return InvalidInputError(
        "recall_target is in place of ef_search, nprobe and exact: give it or these",
        details={"recall_target": recall_target, "ef_search": ef_search, "exact": exact, "nprobe": nprobe},
    )


# ---- A load ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Options of a load.

    Attributes:
        lazy_load: fetch only the parts that a first search needs, and others on demand; a small version is fetched as
            a whole. False fetches every part before the call returns.
        become_whole: fetch the rest of a lazily loaded index once most of it was fetched, as searches of a whole index
            are a hundred times as fast. False stays lazy; a call that needs every row, such as a change, still fetches
            the rest.
        missing_ok: start empty where no version was ever saved, instead of raising.
        memory_budget_mb: a new memory budget from this load on, in 10^6 bytes; None keeps the session's.
        discard_unsaved: drop unsaved changes instead of raising CONFLICT.
        rebuild_text: index the texts anew, by the releases of Unicode and of the libraries that are in use, for a
            version whose text index others made. The version is loaded whole, and the session has unsaved changes.
        progress: called after every part, with a `Progress`.
        embedder: the session's embedder from this load on, as in VectorDBConfig; None keeps the present one.

    Raises:
        InvalidInputError: an option is unknown, of another type or out of range.
    """

    lazy_load: bool = True
    become_whole: bool = True
    missing_ok: bool = False
    memory_budget_mb: int | None = None
    discard_unsaved: bool = False
    rebuild_text: bool = False
    progress: ProgressCallback | None = None
    embedder: Embedder | None = field(default=None, repr=False)

    def __new__(cls, **given: Any) -> LoadOptions:
        _check_names(cls, given)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        for name in ("lazy_load", "become_whole", "missing_ok", "discard_unsaved", "rebuild_text"):
            check_bool(name, getattr(self, name))
        budget = self.memory_budget_mb
        if budget is not None and (
            isinstance(budget, bool) or not isinstance(budget, int) or not 1 <= budget <= MEMORY_MB_MAX
        ):
            raise InvalidInputError(
                f"memory_budget_mb must be greater than zero, at most {MEMORY_MB_MAX}, got {shown(budget)}"
            )
        if self.progress is not None and not callable(self.progress):
            raise InvalidInputError(f"progress must be a function or None, got {type(self.progress).__name__}")
        if self.embedder is not None:
            check_embedder(self.embedder, InvalidInputError)


class LoadFields(TypedDict, total=False):
    """The fields of LoadOptions as keyword arguments."""

    lazy_load: bool
    become_whole: bool
    missing_ok: bool
    memory_budget_mb: int | None
    discard_unsaved: bool
    rebuild_text: bool
    progress: ProgressCallback | None
    embedder: Embedder | None


# ---- Options from what a caller gave -----------------------------------------------------------------------


def make_options(kind: type[_O], options: _O | Mapping[str, Any] | None, given: Mapping[str, Any]) -> _O:
    """Options from an object or a mapping; single fields override it.

    Raises:
        InvalidInputError: an option is unknown, of another type or out of range.
    """
    if options is None:
        return kind(**given)
    if isinstance(options, kind):
        _check_names(kind, given)
        return replace(options, **given) if given else options
    if not isinstance(options, Mapping):
        raise InvalidInputError(f"options must be {kind.__name__} or a mapping, got {type(options).__name__}")
    for name in options:
        if not isinstance(name, str):
            raise InvalidInputError(f"the name of an option must be a string, got {type(name).__name__}")
    return kind(**{**options, **given})


def _check_names(kind: type[Any], given: Mapping[str, Any]) -> None:
    known = OPTION_NAMES.get(kind.__name__, frozenset())
    for name in given:
        if name not in known:
            check_known(name, sorted(known), f"one of {kind.__name__}'s fields", InvalidInputError)


#: The fields of each kind of options.
OPTION_NAMES: Final[dict[str, frozenset[str]]] = {
    kind.__name__: frozenset(each.name for each in fields(kind)) for kind in (SearchOptions, LoadOptions)
}


# ---- Single values -----------------------------------------------------------------------------------------


def check_bool(name: str, value: object) -> bool:
    """Checks that a value is True or False; 0, 1 and other values are refused.

    Raises:
        InvalidInputError: it is no bool.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise InvalidInputError(f"{name} must be True or False, got {shown(value)}", details={"option": name})


def check_k(k: object) -> int:
    """A k that is an integer from 1 to K_MAX.

    Raises:
        InvalidInputError: it is not.
    """
    if type(k) is int and 1 <= k <= K_MAX:
        return k
    if isinstance(k, np.integer):
        k = int(k)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= K_MAX:
        raise InvalidInputError(
            f"k must be an integer between 1 and {K_MAX}, got {shown(k)}", details={"k": k, "limit": K_MAX}
        )
    return k


def check_ef(ef_search: object) -> int:
    """ef_search as the core wants it: 0 for None.

    Raises:
        InvalidInputError: it is no integer from 1 to EF_MAX.
    """
    return _count_or_none("ef_search", ef_search, EF_MAX)


def check_nprobe(nprobe: object) -> int:
    """nprobe as the core wants it: 0 for None.

    Raises:
        InvalidInputError: it is no integer from 1 to LISTS_MAX.
    """
    return _count_or_none("nprobe", nprobe, LISTS_MAX)


def _count_or_none(name: str, value: object, most: int) -> int:
    if value is None:
        return 0
    if type(value) is int and 1 <= value <= most:
        return value
    if isinstance(value, np.integer):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidInputError(
            f"{name} must be None or an integer between 1 and {most}, got {shown(value)}",
            details={name: value, "limit": most},
        )
    return value


def check_exact(exact: object, ef_search: int) -> bool:
    """Whether a search is to score every row; `ef_search` as `check_ef` gives it.

    Raises:
        InvalidInputError: it is no bool, or there is an ef_search, too.
    """
    if exact is False:
        return False
    if check_bool("exact", exact) and ef_search:
        raise InvalidInputError(
            "an exact search scores every row and walks over no candidates: leave out exact or ef_search",
            details={"ef_search": ef_search},
        )
    return bool(exact)


def check_mmr(mmr: object, k: int) -> float:
    """λ: a number from 0 (hits that differ) to 1 (hits that are near).

    Raises:
        InvalidInputError: it is something else, or `k` is more than MMR_K_MAX.
    """
    if isinstance(mmr, bool) or not isinstance(mmr, (int, float, np.number)) or not 0.0 <= mmr <= 1.0:
        raise InvalidInputError(f"mmr must be None or a number between 0 and 1, got {shown(mmr)}", details={"mmr": mmr})
    if k > MMR_K_MAX:
        raise InvalidInputError(
            f"with mmr, k must be at most {MMR_K_MAX}, got {k}", details={"k": k, "limit": MMR_K_MAX}
        )
    return float(mmr)


def check_groups(group_by: object, group_size: object, k: int, mmr: object) -> tuple[str | None, int]:
    """The field and the size of groups.

    Raises:
        InvalidInputError: one of them is refused, or does not go with `k` or `mmr`.
    """
    if group_by is None and type(group_size) is int and group_size == 1:
        return None, 1
    if isinstance(group_size, np.integer):
        group_size = int(group_size)
    most = GROUPED_HITS_MAX // k
    if isinstance(group_size, bool) or not isinstance(group_size, int) or not 1 <= group_size <= most:
        raise InvalidInputError(
            f"group_size must be an integer from 1 to {most} with k = {k}, got {shown(group_size)}",
            details={"group_size": group_size, "limit": most},
        )
    if group_by is None:
        raise InvalidInputError("group_size is a number of hits of each group: give group_by, too")
    if mmr is not None:
        raise InvalidInputError("mmr chooses among single rows: give mmr or group_by", details={"mmr": mmr})
    return check_metadata_field(group_by, "group_by"), group_size


def check_rerank(rerank: object, rerank_k: object, k: int, group_size: int, mmr: object) -> tuple[Rerank | None, int]:
    """The function and the number of its candidates, 0 for None.

    Raises:
        InvalidInputError: one of them is refused, or does not go with `k`, `group_size` or `mmr`.
    """
    if rerank is None:
        if rerank_k is not None:
            raise InvalidInputError("rerank_k is a number of candidates for rerank: give rerank, too")
        return None, 0
    if not callable(rerank):
        raise InvalidInputError(f"rerank must be a function of query and hits, got {type(rerank).__name__}")
    if mmr is not None:
        raise InvalidInputError("mmr and rerank each set the order: give one of them", details={"mmr": mmr})
    candidates = _count_or_none("rerank_k", rerank_k, min(K_MAX, GROUPED_HITS_MAX // group_size))
    if 0 < candidates < k:
        raise InvalidInputError(
            f"rerank_k is a number of candidates, at least k: got {candidates} with k = {k}",
            details={"rerank_k": candidates, "k": k},
        )
    return rerank, candidates


def check_text(text: object, fusion: object, alpha: object, highlight: object) -> TextRequest | None:
    """The text of a search; None without one.

    Raises:
        InvalidInputError: it is no string and no list of strings; the fusion is unknown, or `alpha` out of range; or
            there is one of these without a text.
    """
    is_highlit = check_bool("highlight", highlight)
    if text is None:
        for name, value in (("fusion", fusion), ("alpha", alpha), ("highlight", is_highlit or None)):
            if value is not None:
                raise InvalidInputError(f"{name} has no meaning without text", details={"option": name})
        return None
    if isinstance(text, str):
        texts: tuple[str, ...] = (text,)
    elif isinstance(text, Sequence) and not isinstance(text, (bytes, bytearray, memoryview)):
        texts = tuple(text)
    elif text is True:
        raise InvalidInputError(
            "text=True takes the words of a query that is a string: give such a query, or text='…'",
            details={"option": "text"},
        )
    else:
        raise InvalidInputError(f"text must be a string, got {type(text).__name__}", details={"option": "text"})
    kind = check_fusion(fusion)
    return TextRequest(texts, tuple(map(parse_query, texts)), kind, check_alpha(alpha, kind), is_highlit)
