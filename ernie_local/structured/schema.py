"""Reads a JSON schema, and refuses by name and place what answers cannot be held to.

What is left, `for_grammar` writes for the engine: numbers get an end, objects say which properties they have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias
from urllib.parse import unquote

from ernie_local.errors import ModelUnusable, UsageError, parameter
from ernie_local.strict_json import parse_json_object, show

Schema: TypeAlias = dict[str, Any]

LARGEST_DEPTH = 40  # of schemas inside each other; the engine's own reader of JSON ends at some 60
# What numbers end at that the schema itself does not bound: a model may write digits without end.
LARGEST_NUMBER = 10**18
SMALLEST_STEP = 1e-9
_LARGEST_INTEGER = 2**63 - 1  # that the engine writes as it is

_DEFINITIONS = ("$defs", "definitions")
ANNOTATIONS = frozenset(
    "$schema $comment title description default examples example deprecated readOnly writeOnly "
    "contentMediaType contentEncoding discriminator".split()
)
_KEYWORDS = frozenset(
    "$ref type enum const anyOf oneOf allOf properties required additionalProperties patternProperties "
    "minProperties maxProperties items prefixItems minItems maxItems minLength maxLength pattern format "
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split()
)
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
# A control character is written as \u0001, and with that any letter could be: the name of a property, too.
_WRITTEN_CONTROLS = "\b\f\n\r\t"
_HINT = "the types, enum, const, pattern, bounds, items, properties, anyOf, $defs and $ref can be used"


def read_schema(source: Mapping[str, Any] | str) -> Schema:
    """The schema in a mapping or in JSON text, checked; UsageError says what in it cannot be used, and where.

    Nothing is fetched: `$ref` leads to places in the schema itself.
    """
    schema = _as_json(source)
    _check_is_schema(schema)
    for path, part in all_schemas(schema):
        _check_part(path, part, schema)
    _check_ends(schema)
    return schema


def refused(path: str, why: str, hint: str = _HINT) -> UsageError:
    """The error for a part of a schema. path: such as `$.properties.total.if`."""
    return UsageError(f"{parameter('schema')} cannot be used at {path}", why, hint)


def children(path: str, schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas inside one, each with its place."""
    if not isinstance(schema, dict):
        return
    for key in ("properties", "patternProperties", *_DEFINITIONS):
        for name, child in schema.get(key, {}).items():
            yield f"{path}.{key}{_step(name)}", child
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for index, child in enumerate(schema.get(key, ())):
            yield f"{path}.{key}[{index}]", child
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield f"{path}.{key}", schema[key]


def all_schemas(schema: Any, path: str = "$", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """A schema and all inside it, each with its place."""
    if depth > LARGEST_DEPTH:
        raise refused(path, f"schemas stand inside each other {depth} deep, at most {LARGEST_DEPTH} are read")
    yield path, schema
    for child_path, child in children(path, schema):
        yield from all_schemas(child, child_path, depth + 1)


def resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """What `$ref` leads to, None where nothing is there."""
    found: Any = root
    for step in unquote(reference.removeprefix("#")).split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            return None
    return found


def _step(name: str) -> str:
    return (
        f".{name}" if name.removeprefix("$").isidentifier() else f"[{json.dumps(name, ensure_ascii=False)}]"
    )


def _as_json(source: Mapping[str, Any] | str) -> Schema:
    """As parsed from JSON text: whatever a dict may hold besides is refused."""
    try:
        raw = source if isinstance(source, str) else json.dumps(source, allow_nan=False)
        return parse_json_object(raw.encode(), "the text")
    except (TypeError, ValueError, RecursionError) as error:
        why = "its values are nested too deeply" if isinstance(error, RecursionError) else str(error)
    except ModelUnusable as error:
        why = error.why
    raise UsageError(
        f"{parameter('schema')} is not a JSON object", why, 'a JSON schema such as {"type": "object", ...}'
    )


def _check_is_schema(schema: Schema) -> None:
    import jsonschema

    draft = schema.get("$schema", "")
    if not isinstance(draft, str):
        raise refused("$.$schema", f"it is no JSON schema: {show(draft)} is not the address of a draft")
    try:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except jsonschema.exceptions.SchemaError as error:
        place = "$" + "".join(f"[{step}]" if isinstance(step, int) else _step(step) for step in error.path)
        raise refused(place, f"it is no JSON schema: {_shortened(error.message)}") from error
    except RecursionError as error:
        raise refused("$", "schemas stand inside each other too deeply") from error


def _shortened(message: str, limit: int = 160) -> str:
    return message if len(message) <= limit else f"{message[:limit]}..."


def _check_part(path: str, part: Any, root: Schema) -> None:
    if isinstance(part, bool):
        return
    for key in part:
        known = key in _KEYWORDS or key in ANNOTATIONS or (key.startswith("x-") and key != "x-guidance")
        if not known and not (key in ("$id", *_DEFINITIONS) and path == "$"):
            raise refused(f"{path}{_step(key)}", f"{show(key)} is not supported there")
    if isinstance(part.get("items"), list):
        raise refused(f"{path}.items", "a list of items is of older drafts", "write it as prefixItems")
    if "$ref" in part:
        _check_reference(f"{path}.$ref", part["$ref"], root)
    constant = [part["const"]] if "const" in part else []
    for key, values in (("enum", part.get("enum", [])), ("const", constant)):
        for value in values:
            _check_value(f"{path}.{key}", value)
    for name in part.get("properties", {}):
        _check_value(f"{path}.properties{_step(name)}", name)
    _check_bounds(path, part)
    is_open = part.get("additionalProperties", "properties" not in part)
    if is_open and part.get("minProperties", 0) > len(part.get("required", ())):
        raise refused(f"{path}.minProperties", "the engine cannot tell that names without a list differ")


def _check_bounds(path: str, part: Schema) -> None:
    for key in _BOUNDS:
        if isinstance(part.get(key), bool):
            raise refused(f"{path}.{key}", f"{show(part[key])} is of draft 4", f"{key} with the bound itself")
        if abs(part.get(key, 0)) > LARGEST_NUMBER:
            why = f"{show(part[key])}: numbers of up to {LARGEST_NUMBER:.0e} are written"
            raise refused(f"{path}.{key}", why)


def _check_reference(path: str, reference: str, root: Schema) -> None:
    if not reference.startswith("#"):
        raise refused(path, f"{show(reference)} is elsewhere, and nothing is fetched")
    if reference != "#" and not reference.startswith("#/"):
        raise refused(path, f"{show(reference)} is an anchor; a place is named as in #/$defs/line")
    if not isinstance(resolve(reference, root), dict | bool):
        raise refused(path, f"{show(reference)} leads to no schema")


def _check_value(path: str, value: Any) -> None:
    """Raise for what the engine does not write as it is."""
    if isinstance(value, str):
        bad = next((one for one in value if ord(one) < 0x20 and one not in _WRITTEN_CONTROLS), None)
        bad = next((one for one in value if 0xD800 <= ord(one) < 0xE000 or ord(one) == 0x7F), bad)
        if bad is not None:
            raise refused(path, f"the character U+{ord(bad):04X} in {show(value)} cannot be written")
    elif isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        raise refused(path, f"{show(value)} has more than 64 bits")
    elif isinstance(value, dict | list):
        for one in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_value(path, one)


def _check_ends(root: Schema) -> None:
    """Raise where every value of a schema would hold another without end."""
    ending: set[str] = set()  # references that are known to end
    references = {part["$ref"] for _, part in all_schemas(root) if isinstance(part, dict) and "$ref" in part}
    while True:
        found = {one for one in references if _can_end(resolve(one, root), ending)}
        if found == ending:
            break
        ending = found
    if _can_end(root, ending):
        return
    place = next(
        (
            f"{path}.$ref"
            for path, part in all_schemas(root)
            if isinstance(part, dict) and "$ref" in part and part["$ref"] not in ending
        ),
        "$",
    )
    raise refused(place, "no value of it has an end: each holds another, or nothing is allowed")


def _can_end(part: Any, ending: set[str]) -> bool:
    if isinstance(part, bool):
        return part
    if "enum" in part or "const" in part:
        return True
    can: Callable[[Any], bool] = lambda one: _can_end(one, ending)  # noqa: E731
    if "$ref" in part and part["$ref"] not in ending:
        return False
    if not all(map(can, part.get("allOf", ()))):
        return False
    if any(not any(map(can, part[key])) for key in ("anyOf", "oneOf") if key in part):
        return False
    types = part.get("type", ["null"])
    if isinstance(types, str):
        types = [types]
    return any(_can_end_as(kind, part, can) for kind in types)


def _can_end_as(kind: str, part: Schema, can: Callable[[Any], bool]) -> bool:
    if kind == "array":
        first, num_items = part.get("prefixItems", []), part.get("minItems", 0)
        return all(map(can, first[:num_items])) and (num_items <= len(first) or can(part.get("items", True)))
    if kind == "object":
        properties = part.get("properties", {})
        return all(can(properties.get(name, True)) for name in part.get("required", ()))
    return True
