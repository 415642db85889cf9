"""Reads what documents need of a language: labels, names, sentences, questions, dates and amounts."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

CODES = ("en", "de", "fr", "es", "it", "pl", "ru", "el", "zh")
_LISTS = ("months", "first_names", "surnames", "cities", "items", "onsets", "vowels", "codas")


@dataclass(frozen=True, slots=True, eq=False)  # one object a language, compared by identity
class Language:
    """One file of languages/. Forms have places in braces; `labels` and `questions` have variants.

    onsets, vowels, codas: syllables that names are invented from; empty: those of Latin script. spaced:
    whether blanks separate words.
    """

    name: str
    decimal: str
    thousands: str
    dates: tuple[str, ...]
    currencies: tuple[str, ...]
    companies: tuple[str, ...]
    streets: tuple[str, ...]
    months: tuple[str, ...]
    first_names: tuple[str, ...]
    surnames: tuple[str, ...]
    cities: tuple[str, ...]
    items: tuple[str, ...]
    jobs: tuple[str, ...]
    entries: tuple[str, ...]
    reports: tuple[str, ...]
    measures: tuple[str, ...]
    form_titles: tuple[str, ...]
    subjects: tuple[str, ...]
    greetings: tuple[str, ...]
    closings: tuple[str, ...]
    sentences: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    questions: Mapping[str, tuple[str, ...]]
    onsets: tuple[str, ...] = ()
    vowels: tuple[str, ...] = ()
    codas: tuple[str, ...] = ()
    spaced: bool = True

    @property
    def characters(self) -> frozenset[str]:
        """All characters that a font needs to print it, without blanks."""
        texts: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str):
                texts.append(value)
            elif isinstance(value, tuple):
                texts += value
            elif isinstance(value, Mapping) and field.name == "labels":
                texts += [text for variants in value.values() for text in variants]
        return frozenset("".join(texts)) - set(" \u00a0{}")

    def amount(self, cents: int) -> str:
        """`1.234,50` in this language's form."""
        whole = f"{abs(cents) // 100:,}".replace(",", self.thousands)
        return f"{'-' * (cents < 0)}{whole}{self.decimal}{abs(cents) % 100:02d}"

    def whole(self, number: int) -> str:
        """`1.234` in this language's form."""
        return f"{number:,}".replace(",", self.thousands)

    def tenths(self, number: int) -> str:
        """`1.234,5` for 12345 in this language's form."""
        return f"{self.whole(number // 10)}{self.decimal}{number % 10}"


@lru_cache
def load_language(code: str) -> Language:
    """The language of one of CODES."""
    with (Path(__file__).parent / "languages" / f"{code}.toml").open("rb") as file:
        raw: dict[str, Any] = tomllib.load(file)
    for key in _LISTS:
        if key in raw:
            raw[key] = [word.strip("_") for word in raw[key].split()]
    for key in ("labels", "questions"):
        raw[key] = {name: tuple(variants) for name, variants in raw[key].items()}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        values[key] = tuple(value) if isinstance(value, list) else value
    return Language(**values)
