"""Knows the repositories of ERNIE 4.5 that are published on the Hugging Face hub, without asking it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from ernie_local.strict_json import read_json_object

_FILE = Path(__file__).with_name("published-models.json")
_LEAST_LIKENESS = 0.7


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A repository. variant: PT answers, Thinking thinks first, Base was not trained to answer.

    refusal: why this program does not run it, None where it does. Sizes follow from config.json and whether
    a second copy of the embedding is stored.
    """

    name: str
    variant: str
    parameters: int
    num_bytes: int  # of all weight files
    license: str
    refusal: str | None


@cache
def published_models() -> tuple[PublishedModel, ...]:
    """All of them, those that this program runs first."""
    rows = cast("list[dict[str, Any]]", read_json_object(_FILE)["models"])
    return tuple(PublishedModel(**row) for row in rows)


def refusal_of(repo: str) -> str | None:
    """Why this program does not run a published repository; None for one that it runs or does not know."""
    return next((model.refusal for model in published_models() if model.name == repo), None)


def nearest_published(repo: str) -> str | None:
    """The published name that is most like the wrong `repo`; None where none is like it."""
    by_lower = {model.name.lower(): model.name for model in published_models()}
    found = difflib.get_close_matches(repo.lower(), by_lower, n=1, cutoff=_LEAST_LIKENESS)
    return by_lower[found[0]] if found and by_lower[found[0]] != repo else None
