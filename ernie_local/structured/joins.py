"""Finds the schemas that hold for one value together: allOf, branches of anyOf, what `$ref` leads to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ernie_local.structured.schema import ANNOTATIONS, refused, resolve

BRANCH_KEYS = ("anyOf", "oneOf", "allOf")
_REST_KEYS = frozenset(["additionalProperties", "patternProperties"])
DEFINITION_KEYS = frozenset(["$defs", "definitions"])
_KIND_KEYS = frozenset(["type", "$id"]) | DEFINITION_KEYS
_Parts: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The schemas that hold for the same value as another one, before and behind it.

    root: where references lead. followed: the references whose schemas the one in the middle stands in.
    """

    root: Mapping[str, Any]
    before: _Parts = ()
    behind: _Parts = ()
    followed: frozenset[str] = frozenset()

    @property
    def are_there(self) -> bool:
        """Whether there is any."""
        return bool(self.before or self.behind)

    @property
    def names(self) -> list[str] | None:
        """The properties that they list; None where one of them says what others may be."""
        leaves = list(self._leaves())
        if any(_REST_KEYS & leaf.keys() for leaf in leaves):
            return None
        return list(dict.fromkeys(name for leaf in leaves for name in leaf.get("properties", ())))

    def have(self, key: str) -> bool:
        """Whether one of them has this keyword."""
        return any(key in leaf for leaf in self._leaves())

    def around(self, before: _Parts, behind: _Parts) -> Neighbours:
        """These, with others that are nearer."""
        return replace(self, before=(*self.before, *before), behind=(*behind, *self.behind))

    def of(self, *keys: str) -> Neighbours:
        """Those of the part that `keys` lead to, such as a property."""
        before, behind = (tuple(self._parts(parts, keys)) for parts in (self.before, self.behind))
        return replace(self, before=before, behind=behind)

    def alone(self) -> Neighbours:
        """No neighbours, at the same place."""
        return replace(self, before=(), behind=())

    def follow(self, reference: str) -> tuple[Any, Neighbours]:
        """What a reference leads to, to be written in its place, and these there.

        UsageError where that stands in itself: it would be written without end.
        """
        if reference in self.followed:
            raise refused(reference, "it leads back to itself, and other rules hold for the same value")
        found = resolve(reference, self.root)
        if isinstance(found, Mapping):
            found = {key: value for key, value in found.items() if key not in DEFINITION_KEYS}
        return found, replace(self, followed=self.followed | {reference})

    def _leaves(self) -> Iterator[Mapping[str, Any]]:
        for part in (*self.before, *self.behind):
            yield from _leaves(part, self.root, frozenset())

    def _parts(self, parts: _Parts, keys: tuple[str, ...]) -> Iterator[Any]:
        for part in parts:
            for leaf in _leaves(part, self.root, frozenset()):
                found: Any = leaf
                for key in keys:
                    found = found.get(key) if isinstance(found, Mapping) else None
                if found is not None:
                    yield found


def says_more_than_kind(schema: Mapping[str, Any]) -> bool:
    """Whether a schema says something of its values itself, beside its type and its branches."""
    return bool(schema.keys() - ANNOTATIONS - _KIND_KEYS - {"$ref", *BRANCH_KEYS})


def _leaves(schema: Any, root: Mapping[str, Any], followed: frozenset[str]) -> Iterator[Mapping[str, Any]]:
    """The schema and those whose values it joins or chooses from."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in followed:
        yield from _leaves(resolve(reference, root), root, followed | {reference})
    for key in BRANCH_KEYS:
        for branch in schema.get(key, ()):
            yield from _leaves(branch, root, followed)
