"""Haystack's filters to those of a session."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any, Final
from uuid import UUID

from fabstir_vectordb.integrations import needing
from fabstir_vectordb.integrations.haystack.documents import moment_of
from fabstir_vectordb.integrations.shared import TEXT
from fabstir_vectordb.metadata.filter_parse import ID
from fabstir_vectordb.metadata.values import shown, step

with needing("haystack"):
    from haystack.errors import FilterError

__all__ = ["condition_of"]

#: Where a row keeps the fields of a document that filters may name.
_PATHS: Final = {"id": ID, "content": TEXT, "meta": "metadata", "blob": "blob", "score": "score"}
_ORDERS: Final = {">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
_NOTHING: Final[Mapping[str, Any]] = {ID: {"$in": []}}


def condition_of(given: Any) -> Mapping[str, Any]:
    """The session's filter for a filter of Haystack.

    Raises:
        FilterError: it is not understood.
    """
    if not isinstance(given, Mapping):
        raise FilterError(f"a filter must be a dict, got {type(given).__name__}")
    if "field" in given:
        return _comparison(given)
    operator, conditions = _required(given, "operator"), _required(given, "conditions")
    if not isinstance(conditions, (list, tuple)):
        raise FilterError(f"'conditions' must be a list, got {type(conditions).__name__}")
    parts = [condition_of(part) for part in conditions]
    match operator:
        case "AND":
            return {"$and": parts} if parts else {}
        case "OR":
            return {"$or": parts} if parts else _NOTHING
        case "NOT":
            return {"$not": {"$and": parts}} if parts else _NOTHING
    raise FilterError(f"the logical operator {shown(operator)} is unknown: use AND, OR or NOT")


def _comparison(given: Mapping[str, Any]) -> Mapping[str, Any]:
    operator, value = _required(given, "operator"), _required(given, "value")
    path, moments = _paths(given["field"])
    match operator:
        case "==":
            return _any_of(path, moments, [value])
        case "!=":
            return {"$not": _any_of(path, moments, [value])}
        case "in" | "not in":
            if not isinstance(value, list):
                raise FilterError(f"{operator!r} needs a list of values, got {type(value).__name__}")
            among = _any_of(path, moments, value)
            return among if operator == "in" else {"$not": among}
        case ">" | ">=" | "<" | "<=":
            return _ordered(path, moments, _ORDERS[operator], value)
    known = ", ".join(["==", "!=", *_ORDERS, "in", "not in"])
    raise FilterError(f"the comparison operator {shown(operator)} is unknown: use one of {known}")


def _required(given: Mapping[str, Any], key: str) -> Any:
    if key not in given:
        raise FilterError(f"{key!r} is missing in {shown(dict(given))}")
    return given[key]


def _paths(field: object) -> tuple[str, str | None]:
    """The path of a field in a row, and that of its moments."""
    if not isinstance(field, str) or not field:
        raise FilterError(f"'field' must be a name, got {shown(field)}")
    root, *steps = field.split(".")
    if root not in _PATHS and root not in ("embedding", "sparse_embedding"):
        root, steps = "meta", [root, *steps]  # a field of meta may be named without it
    if root not in _PATHS or (root == "meta" and not steps):
        raise FilterError(f"documents cannot be filtered by {field!r}: name a field of meta, or id, content or score")
    path = ".".join([_PATHS[root], *map(step, steps)])
    return path, ".".join(["moments", *map(step, steps)]) if root == "meta" else None


def _any_of(path: str, moments: str | None, values: list[Any]) -> Mapping[str, Any]:
    """A filter that matches where a field equals one of the values; None also equals a missing field."""
    if path == ID:  # a session refuses other types, which equal no id
        return {ID: {"$in": [value for value in values if isinstance(value, str)]}}
    plain: list[Any] = []
    dates: list[datetime] = []
    parts: list[Mapping[str, Any]] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            parts.append({path: value})
            continue
        if isinstance(value, (Mapping, set)):
            kind = type(value).__name__
            raise FilterError(f"a field is compared with values and lists, not with the {kind} {shown(value)}")
        moment = moment_of(value) if moments is not None else None
        if moment is not None:  # `meta` may hold the string, another string for the moment, or a datetime
            dates.append(moment)
            plain.append(moment)
        if moment is None or not isinstance(value, datetime):
            plain.append(value)
    if plain or not parts:
        parts.append({path: {"$in": plain}})
    if dates and moments is not None:
        parts.append({moments: {"$in": dates}})
    if None in plain:
        parts.append({path: {"$exists": False}})
    return parts[0] if len(parts) == 1 else {"$or": parts}


def _ordered(path: str, moments: str | None, operator: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return _NOTHING
    if isinstance(value, (str, datetime)):
        moment = moment_of(value)
        if moment is None or moments is None:
            raise FilterError(f"{shown(value)} has no order here: compare numbers, or fields of meta with ISO dates")
        return {"$or": [{moments: {operator: moment}}, {path: {operator: moment}}]}
    if path == ID or isinstance(value, (bool, UUID, list, tuple, dict, set)):
        raise FilterError(f"{shown(value)} has no order: compare numbers or dates")
    if isinstance(value, date):
        return _ordered(path, moments, operator, datetime(value.year, value.month, value.day, tzinfo=UTC))
    return {path: {operator: value}}
