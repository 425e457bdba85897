"""What the metadata of an index must look like: types of fields, and which of them every row has.

A schema is a dict of fields. A field's type is a name (``"String"``, ``"Number"``, ``"Boolean"``, ``"Array<T>"``, in
any case) or a dict (``{"type": "array", "items": T}``, ``{"type": "object", "fields": {…}}``, with ``"required": True``
where every row needs it). Fields that a schema does not name may hold anything; null stands for an optional field that
is not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fabstir_vectordb.errors import InvalidInputError

__all__ = ["NAME_CHARS_MAX", "SCHEMA_DEPTH_MAX", "SCHEMA_FIELDS_MAX", "Schema", "parse_schema"]

#: Types within each other.
SCHEMA_DEPTH_MAX: Final = 16
#: Fields of a schema, those of its objects included.
SCHEMA_FIELDS_MAX: Final = 1_000

#: Characters of a field's name: a schema is part of the manifest, which has a limit.
NAME_CHARS_MAX: Final = 200

_SCALARS: Final = ("string", "number", "boolean")
_ARRAY: Final = re.compile(r"array\s*<(.*)>", re.IGNORECASE | re.DOTALL)
_KEYS: Final[dict[str, frozenset[str]]] = {
    **dict.fromkeys(_SCALARS, frozenset(["type", "required"])),
    "array": frozenset(["type", "required", "items"]),
    "object": frozenset(["type", "required", "fields"]),
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
    """A schema that was understood; made by `parse_schema`."""

    fields: Mapping[str, _Field]

    def document(self) -> dict[str, Any]:
        """The schema with everything spelled out, which `parse_schema` reads again: what a version stores."""
        return {name: field.document() for name, field in self.fields.items()}

    def check(self, metadata: object) -> None:
        """Refuses metadata that breaks the schema.

        Raises:
            InvalidInputError: details has ``path``.
        """
        if metadata is None:
            metadata = {}
        if not isinstance(metadata, Mapping):
            raise InvalidInputError(
                f"metadata must be a dict, as its schema has fields, got {type(metadata).__name__}",
                details={"path": ""},
            )
        _check_fields(self.fields, metadata, "")


def _check_fields(fields: Mapping[str, _Field], value: Mapping[Any, Any], path: str) -> None:
    for name, field in fields.items():
        _check_value(field, value.get(name), f"{path}.{name}" if path else name)


def _check_value(field: _Field, value: Any, path: str) -> None:
    if value is None:
        if field.required:
            raise InvalidInputError(f"metadata needs a {field.kind} at {path}", details={"path": path})
        return
    match field.kind:
        case "string":
            good = isinstance(value, str)
        case "number":
            good = isinstance(value, (int, float)) and not isinstance(value, bool)
        case "boolean":
            good = isinstance(value, bool)
        case "array":
            good = isinstance(value, (list, tuple))
        case _:
            good = isinstance(value, Mapping)
    if not good:
        raise InvalidInputError(
            f"metadata has a {type(value).__name__} at {path}, its schema wants a {field.kind}", details={"path": path}
        )
    if field.items is not None:
        for position, item in enumerate(value):
            _check_value(field.items, item, f"{path}[{position}]")
    if field.fields is not None:
        _check_fields(field.fields, value, path)


def parse_schema(schema: object) -> Schema:
    """A schema, checked.

    Raises:
        InvalidInputError: something is not understood; details has ``path``.
    """
    return Schema(_Parser().fields(schema, "", 0))


class _Parser:
    def __init__(self) -> None:
        self._fields = 0

    def fields(self, given: object, path: str, depth: int) -> dict[str, _Field]:
        if not isinstance(given, Mapping):
            raise _refused(f"wants a dict of fields, got {type(given).__name__}", path)
        out = {}
        for name, kind in given.items():
            self._fields += 1
            if self._fields > SCHEMA_FIELDS_MAX:
                raise _refused(f"has more than {SCHEMA_FIELDS_MAX} fields", path)
            if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX or not _encodes(name):
                raise _refused(f"has a field named {str(name)[:80]!r}, names have 1 to {NAME_CHARS_MAX} letters", path)
            out[name] = self._field(kind, f"{path}.{name}" if path else name, depth)
        # Stored bytes must not depend on the order that somebody wrote fields in.
        return dict(sorted(out.items()))

    def _field(self, given: object, path: str, depth: int) -> _Field:
        if depth > SCHEMA_DEPTH_MAX:
            raise _refused(f"is nested more than {SCHEMA_DEPTH_MAX} deep", path)
        if isinstance(given, str):
            array = _ARRAY.fullmatch(given.strip())
            if array is not None:
                return _Field("array", False, self._field(array[1], f"{path}[]", depth + 1))
            given = {"type": given.strip().lower()}
        if not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
            raise _refused(f"wants a type, as 'String' or {{'type': 'string'}}, got {given!r}", path)
        kind, required = given["type"].lower(), given.get("required", False)
        if kind not in _KEYS:
            raise _refused(f"has the type {given['type']!r}, there are {', '.join(_KEYS)}", path)
        if unknown := sorted(map(str, given.keys() - _KEYS[kind])):
            raise _refused(f"of type {kind} has no {unknown[0]!r}", path)
        if not isinstance(required, bool):
            raise _refused(f"wants True or False for 'required', got {required!r}", path)
        items = self._field(given["items"], f"{path}[]", depth + 1) if "items" in given else None
        fields = self.fields(given["fields"], path, depth + 1) if "fields" in given else None
        return _Field(kind, required, items, fields)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(reason: str, path: str) -> InvalidInputError:
    shown = (path if path.isprintable() else ascii(path)[1:-1])[:200]
    return InvalidInputError(f"schema: {shown or 'its top'} {reason}", details={"path": shown})
