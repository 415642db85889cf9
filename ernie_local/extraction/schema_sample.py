"""Makes an example of what a JSON schema describes, with every field that it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ernie_local.structured.schema import resolve

_MOST_DEPTH = 12  # a schema may contain itself
_EXAMPLES: Mapping[str, Any] = {"number": 1.0, "integer": 1, "boolean": True, "string": "text"}
JSONSchema = Mapping[str, Any]


def sample_of(schema: JSONSchema) -> dict[str, Any]:
    """An object with all properties of the schema, lists of one item; of alternatives all properties."""
    value = _sample(schema, schema, 0)
    return value if isinstance(value, dict) else {}


def resolved(schema: JSONSchema | bool, root: JSONSchema) -> JSONSchema:
    """What a `$ref` such as "#/$defs/Line" leads to; the schema itself where it is none, {} for a boolean."""
    for _ in range(_MOST_DEPTH):
        if isinstance(schema, bool) or "$ref" not in schema:
            break
        schema = resolve(schema["$ref"], root)
    return {} if isinstance(schema, bool) else schema


def _sample(schema: JSONSchema | bool, root: JSONSchema, depth: int) -> Any:
    if depth > _MOST_DEPTH:
        return None
    schema = resolved(schema, root)
    alternatives = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    if "const" in schema or "enum" in schema:
        return next(
            (each for each in [schema.get("const"), *schema.get("enum", ())] if each is not None), None
        )
    kinds = schema.get("type", "object" if "properties" in schema else None)
    kind = kinds if not isinstance(kinds, list) else next((each for each in kinds if each != "null"), "null")
    if kind == "array":
        return [_sample(schema.get("items", {}), root, depth + 1)]
    if kind in _EXAMPLES:
        return _EXAMPLES[kind]
    found: Any = None
    members: dict[str, Any] = {}
    for alternative in alternatives:
        value = _sample(alternative, root, depth + 1)
        if isinstance(value, dict):
            members |= value
        elif found is None:
            found = value
    members |= {name: _sample(each, root, depth + 1) for name, each in schema.get("properties", {}).items()}
    return members if members or kind == "object" else found
