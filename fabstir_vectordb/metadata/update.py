"""Updates of metadata: replace it, merge into it, take fields out of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.metadata.path import Path, check_metadata_field, parse_path, remove
from fabstir_vectordb.metadata.values import decode_metadata, encode_metadata, shown

__all__ = ["FIELDS_MAX", "REPLACE", "Merge", "MetadataUpdate", "make_update"]

#: Most fields that one update takes out.
FIELDS_MAX: Final = 1_000

Merge: TypeAlias = bool | Literal["deep"]


@dataclass(frozen=True, slots=True)
class MetadataUpdate:
    """What becomes of the metadata of rows: first fields go, then a value replaces it or is merged into it.

    Attributes:
        merge: False replaces; True merges dicts key by key; ``deep`` merges dicts within them, too.
        removed: paths of fields that go; none where `merge` is False.
    """

    merge: Merge
    removed: tuple[Path, ...]

    def applied(self, stored: bytes | None, value: bytes | None) -> bytes | None:
        """The new metadata of a row.

        Args:
            stored: its metadata.
            value: the encoded value to put in its place, or to merge into it; None where fields only go.

        Raises:
            InvalidInputError: the row's metadata is no dict to merge into, or the result is refused.
        """
        if self.merge is False:
            return value
        metadata = None if stored is None else decode_metadata(stored)
        for path in self.removed:
            remove(metadata, path)
        if value is not None or not self.removed:
            update = None if value is None else decode_metadata(value)
            current = {} if metadata is None else metadata
            if not isinstance(current, dict) or not isinstance(update, dict):
                raise _no_dict(self.merge)
            metadata = _merged(current, update, self.merge == "deep")
        return encode_metadata(metadata)


#: Replaces the metadata by a value.
REPLACE: Final = MetadataUpdate(False, ())


def make_update(merge: object, fields: object, value: object) -> MetadataUpdate:
    """An update from the arguments of a verb.

    Args:
        merge: True, False or ``deep``.
        fields: paths of fields to remove.
        value: the value to put in place of metadata, or to merge into it; None for none.

    Raises:
        InvalidInputError: an argument is refused, or fields are to be removed from metadata that is replaced.
    """
    if not isinstance(merge, (bool, np.bool_)) and not (isinstance(merge, str) and merge == "deep"):
        raise InvalidInputError(
            f"merge must be True or False, or 'deep', got {shown(merge)}", details={"option": "merge"}
        )
    how: Merge = "deep" if isinstance(merge, str) else bool(merge)
    removed = _paths(fields)
    if removed and not how:
        if value is not None:
            raise InvalidInputError("remove takes fields out of metadata that merge=False replaces: pass merge=True")
        how = True
    if how and not isinstance(value, Mapping) and (value is not None or not removed):
        raise _no_dict(how)
    return MetadataUpdate(how, removed)


def _no_dict(merge: Merge) -> InvalidInputError:
    return InvalidInputError(f"merge={merge!r} needs a dict to merge into a dict")


def _paths(fields: object) -> tuple[Path, ...]:
    if isinstance(fields, (str, bytes)) or not isinstance(fields, Iterable):
        raise InvalidInputError(f"remove must be a list of fields, got {shown(fields)}", details={"option": "remove"})
    try:
        listed = list(islice(fields, FIELDS_MAX + 1))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InvalidInputError(f"remove could not be read: {reason}", details={"option": "remove"}) from error
    if len(listed) > FIELDS_MAX:
        raise InvalidInputError(f"remove has more than {FIELDS_MAX} fields", details={"limit": FIELDS_MAX})
    return tuple(parse_path(check_metadata_field(field, "remove")) for field in listed)


def _merged(stored: dict[str, Any], update: dict[str, Any], deep: bool) -> dict[str, Any]:
    merged = {**stored, **update}
    if deep:
        for key, value in update.items():
            old = stored.get(key)
            if isinstance(old, dict) and isinstance(value, dict):
                merged[key] = _merged(old, value, True)
    return merged
