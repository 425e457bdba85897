"""Schemas of metadata: the types of fields, and the required fields.

A schema is a dict of fields, or ``{"fields": {…}, "required": [names]}``. A field's type is

- a name, case-insensitive: ``"String"``, ``"Number"``, ``"Boolean"``, ``"Date"``, ``"DateTime"``, ``"UUID"``,
  ``"Array"``, ``"Object"``, ``"Array<T>"``;
- the Python type of its values: str, int or float (both numbers), bool, date, datetime, UUID, list, dict;
- ``{"Array": T}`` or ``{"Object": {fields}}``;
- the full form: ``{"type": "array", "items": T}``, ``{"type": "object", "fields": {…}}``, with ``"required": True`` if
  every row must have the field.

The name of a field is one key: dots and quotes in it have no meaning. Fields that the schema does not name may hold any
value. A missing optional field may be written as null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

import numpy as np

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.metadata.values import ScalarError, plain_scalar, shown, step

__all__ = ["NAME_CHARS_MAX", "SCHEMA_DEPTH_MAX", "SCHEMA_FIELDS_MAX", "Schema", "parse_schema"]

#: Most levels of nested types.
SCHEMA_DEPTH_MAX: Final = 16
#: Most fields of a schema, including the fields of its objects.
SCHEMA_FIELDS_MAX: Final = 1_000

#: Most characters of a field's name: a schema is part of the manifest, whose size is limited.
NAME_CHARS_MAX: Final = 200

_SCALARS: Final = ("string", "number", "boolean", "date", "datetime", "uuid")
_ARRAY: Final = re.compile(r"array\s*<(.*)>", re.IGNORECASE | re.DOTALL)
_KEYS: Final[dict[str, frozenset[str]]] = {
    **dict.fromkeys(_SCALARS, frozenset(["type", "required"])),
    "array": frozenset(["type", "required", "items"]),
    "object": frozenset(["type", "required", "fields"]),
}
_OF_PYTHON: Final[dict[type, str]] = {
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    date: "date",
    datetime: "datetime",
    UUID: "uuid",
    list: "array",
    dict: "object",
}


@dataclass(frozen=True, slots=True)
class _Field:
    kind: str
    required: bool
    items: _Field | None = None
    fields: Mapping[str, _Field] | None = None

    def document(self) -> dict[str, Any]:
        out: dict[str, Any] = {"type": self.kind, "required": self.required}
        if self.items is not None:
            out["items"] = self.items.document()
        if self.fields is not None:
            out["fields"] = {name: field.document() for name, field in self.fields.items()}
        return out


@dataclass(frozen=True, slots=True)
class Schema:
    """A checked schema; made by `parse_schema`."""

    fields: Mapping[str, _Field]

    def document(self) -> dict[str, Any]:
        """The full form of the schema, which a version stores and `parse_schema` reads."""
        return {name: field.document() for name, field in self.fields.items()}

    def check(self, metadata: object) -> None:
        """Checks metadata against the schema.

        Raises:
            InvalidInputError: the metadata breaks the schema; details has ``path``.
        """
        if metadata is None:
            metadata = {}
        if not isinstance(metadata, Mapping):
            raise InvalidInputError(
                f"metadata must be a dict, as the index has a schema, got {type(metadata).__name__}",
                details={"path": ""},
            )
        _check_fields(self.fields, metadata, "")


def _check_fields(fields: Mapping[str, _Field], value: Mapping[Any, Any], path: str) -> None:
    for name, field in fields.items():
        _check_value(field, value.get(name), _below(path, name))


def _below(path: str, name: str) -> str:
    return f"{path}.{step(name)}" if path else step(name)


def _check_value(field: _Field, value: Any, path: str) -> None:
    if value is None:
        if field.required:
            raise InvalidInputError(
                f"Missing required field: metadata needs {_a(field.kind)} at {path}", details={"path": path}
            )
        return
    if isinstance(value, np.generic):
        try:
            value = plain_scalar(value)
        except ScalarError as error:
            raise InvalidInputError(f"metadata has {error.reason} at {path}", details={"path": path}) from None
    match field.kind:
        case "string":
            good = isinstance(value, str)
        case "number":
            good = isinstance(value, (int, float)) and not isinstance(value, bool)
        case "boolean":
            good = isinstance(value, bool)
        case "date":
            good = isinstance(value, date) and not isinstance(value, datetime)
        case "datetime":
            good = isinstance(value, datetime)
        case "uuid":
            good = isinstance(value, UUID)
        case "array":
            good = isinstance(value, (list, tuple))
        case _:
            good = isinstance(value, Mapping)
    if not good:
        raise InvalidInputError(
            f"metadata has {_a(type(value).__name__)} at {path}, the schema requires {_a(field.kind)}",
            details={"path": path},
        )
    if field.items is not None:
        for position, item in enumerate(value):
            _check_value(field.items, item, f"{path}[{position}]")
    if field.fields is not None:
        _check_fields(field.fields, value, path)


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeio" else f"a {name}"


def parse_schema(schema: object) -> Schema:
    """Reads and checks a schema.

    Raises:
        InvalidInputError: the schema is not understood; details has ``path``.
    """
    parser = _Parser()
    if not isinstance(schema, Mapping) or not _names_required(schema):
        return Schema(parser.fields(schema, "", 0))
    fields = parser.fields(schema["fields"], "", 0)
    required = schema.get("required", [])
    if not isinstance(required, (list, tuple, set, frozenset)) or not all(isinstance(name, str) for name in required):
        raise _refused(f"must be a list of names, got {shown(required)}", "required")
    for name in required:
        if name not in fields:
            raise _refused(f"names {shown(name)}, which is not a field of the schema", "required")
        fields[name] = replace(fields[name], required=True)
    return Schema(fields)


def _names_required(schema: Mapping[Any, Any]) -> bool:
    """Whether a schema has the form ``{"fields": {…}, "required": […]}``, rather than fields of these names."""
    fields, required = schema.get("fields"), schema.get("required")
    if not isinstance(fields, Mapping) or not schema.keys() <= {"fields", "required"}:
        return False
    # {"fields": {"type": "array"}} is a field named "fields"; with a list of required names, a field named "type".
    return isinstance(required, (list, tuple, set, frozenset)) or not isinstance(fields.get("type"), str)


class _Parser:
    def __init__(self) -> None:
        self._fields = 0

    def fields(self, given: object, path: str, depth: int) -> dict[str, _Field]:
        if not isinstance(given, Mapping):
            raise _refused(f"must be a dict of fields, got {type(given).__name__}", path)
        out = {}
        for name, kind in given.items():
            self._fields += 1
            if self._fields > SCHEMA_FIELDS_MAX:
                raise _refused(f"has more than {SCHEMA_FIELDS_MAX} fields", path)
            if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX or not _encodes(name):
                raise _refused(f"has a field named {shown(name)}: use 1 to {NAME_CHARS_MAX} letters", path)
            out[str.__str__(name)] = self._field(kind, _below(path, name), depth)
        # Stored bytes must not depend on the order in which a schema was written.
        return dict(sorted(out.items()))

    def _field(self, given: object, path: str, depth: int) -> _Field:
        if depth > SCHEMA_DEPTH_MAX:
            raise _refused(f"is nested more than {SCHEMA_DEPTH_MAX} levels deep", path)
        if isinstance(given, str):
            array = _ARRAY.fullmatch(given.strip())
            if array is not None:
                return _Field("array", False, self._field(array[1], f"{path}[]", depth + 1))
            given = {"type": given.strip()}
        elif isinstance(given, type) and given in _OF_PYTHON:
            given = {"type": _OF_PYTHON[given]}
        elif isinstance(given, Mapping) and len(given) == 1 and "type" not in given:
            given = _unwrapped(*next(iter(given.items()))) or given
        if not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
            raise _refused(f"must be a type, such as 'String' or {{'type': 'string'}}, got {shown(given)}", path)
        kind, required = given["type"].lower(), given.get("required", False)
        if kind not in _KEYS:
            raise _refused(f"has the unknown type {shown(given['type'])}: use one of {', '.join(_KEYS)}", path)
        if unknown := sorted(map(str, given.keys() - _KEYS[kind])):
            raise _refused(f"has the key {shown(unknown[0])}, which the type {kind} does not have", path)
        if not isinstance(required, bool):
            raise _refused(f"needs True or False for 'required', got {shown(required)}", path)
        items = self._field(given["items"], f"{path}[]", depth + 1) if "items" in given else None
        fields = self.fields(given["fields"], path, depth + 1) if "fields" in given else None
        return _Field(kind, required, items, fields)


def _unwrapped(name: object, inner: Any) -> dict[str, Any] | None:
    """The full form of ``{"Array": T}`` or ``{"Object": {fields}}``; None for anything else."""
    match name.lower() if isinstance(name, str) else None:
        case "array":
            return {"type": "array", "items": inner}
        case "object":
            return {"type": "object", "fields": inner}
        case _:
            return None


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(reason: str, path: str) -> InvalidInputError:
    shown = (path if path.isprintable() else ascii(path)[1:-1])[:200]
    return InvalidInputError(f"schema: {shown or 'the top level'} {reason}", details={"path": shown})
