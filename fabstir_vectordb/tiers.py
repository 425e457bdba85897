"""``memory="auto"``: which memory setting an index has at a time.

`fast` while the index takes at most half of the memory budget under it, then `default`. Both link rows by the same
distances and store the same bytes, so that a change of the setting changes no version. `compact` links by others: it is
what a session asks for, and no part of `auto`.
"""

from __future__ import annotations

from typing import Final, get_args

from fabstir_vectordb._native.handle import MEMORY_NUMBERS
from fabstir_vectordb.config import Memory, Tier

__all__ = ["TIERS", "tier_of"]

#: Memory settings by their numbers in `NativeStats`.
TIERS: Final[dict[int, Tier]] = {MEMORY_NUMBERS[name]: name for name in get_args(Tier)}

#: Tenths of the budget that an index may take under `fast`: to stay so, and to become so again. Between them an index
#: keeps the setting that it has, as coding the neighbours of all rows takes some 20 µs a row.
_STAYS_TENTHS, _RETURNS_TENTHS = 5, 4


def tier_of(setting: Memory, fast_bytes: int, budget_bytes: int | None, now: Tier = "fast") -> Tier:
    """The setting of an index.

    Args:
        setting: what the session asks for.
        fast_bytes: bytes of the index, with metadata and words, under `fast`.
        budget_bytes: the memory budget; None for no limit.
        now: the setting that the index has; of a new one `fast`.
    """
    if setting != "auto":
        return setting
    tenths = _STAYS_TENTHS if now == "fast" else _RETURNS_TENTHS
    return "fast" if budget_bytes is None or 10 * fast_bytes <= tenths * budget_bytes else "default"
