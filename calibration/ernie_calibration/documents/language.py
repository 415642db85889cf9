"""Reads what documents need of a language: words, sentences and forms, and typefaces that can print it.

The typefaces come with matplotlib and are the same everywhere. None of them has Chinese: a font of the system
is used for it, if there is one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import matplotlib
import msgspec
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

CODES = ("en", "de", "fr", "es", "it", "pl", "ru", "el", "zh")
# Written as one text, with blanks between the words.
_WORD_LISTS = {"months", "first_names", "surnames", "cities", "items", "onsets", "vowels", "codas"}


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
        values = [getattr(self, field.name) for field in fields(self) if field.name != "questions"]
        texts = [text for value in values if isinstance(value, str | tuple) for text in value]
        texts += chain.from_iterable(self.labels.values())
        return frozenset("".join(texts)) - set(" \u00a0{}")

    def amount(self, cents: int) -> str:
        """`1.234,50` in this language's form."""
        sign = "-" * (cents < 0)
        return f"{sign}{self.whole(abs(cents) // 100)}{self.decimal}{abs(cents) % 100:02d}"

    def whole(self, number: int) -> str:
        """`1.234` in this language's form."""
        return f"{number:,}".replace(",", self.thousands)

    def tenths(self, number: int) -> str:
        """`1.234,5` for 12345 in this language's form."""
        return f"{self.whole(number // 10)}{self.decimal}{number % 10}"


@lru_cache
def load_language(code: str) -> Language:
    """The language of one of CODES."""
    path = Path(__file__).parent / "languages" / f"{code}.toml"
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    for key in _WORD_LISTS & raw.keys():
        raw[key] = [word.strip("_") for word in raw[key].split()]
    return msgspec.convert(raw, Language)


class Typeface(NamedTuple):
    """File names of one design, in matplotlib's folder or with their whole path."""

    regular: str
    bold: str


TYPEFACES = (
    Typeface("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    Typeface("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    Typeface("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
    Typeface("STIXGeneral.ttf", "STIXGeneralBol.ttf"),
)
# Figures, and what the documents put around the words of a language.
_ALWAYS = frozenset("0123456789.,:-/|%()@_xABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


@lru_cache
def _character_codes(path: str) -> frozenset[int]:
    return frozenset(FT2Font(path).get_charmap())


def has_characters(file_name: str, characters: Iterable[str]) -> bool:
    """Whether a font, named as in Typeface, can print all of `characters`."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file_name
    return {ord(character) for character in characters} <= _character_codes(str(path))


@lru_cache
def typefaces_for(language: Language) -> tuple[Typeface, ...]:
    """Typefaces that have every character of `language`; empty if this machine has none."""
    needed = language.characters | _ALWAYS
    shipped = tuple(face for face in TYPEFACES if all(has_characters(name, needed) for name in face))
    return shipped or system_typefaces(needed)


def system_typefaces(needed: frozenset[str]) -> tuple[Typeface, ...]:
    """The first font of the system, by name, that has all that is needed."""
    for path in sorted(font_manager.findSystemFonts()):
        try:
            if has_characters(path, needed):
                return (Typeface(path, path),)
        except (OSError, RuntimeError):  # FreeType cannot read the file as a font
            continue
    return ()


def missing_languages() -> list[str]:
    """A line for each language that no font on this machine can print."""
    return [
        f"left out: documents in {language.name} "
        f"(no font here has all of its {len(language.characters)} characters)"
        for language in map(load_language, CODES)
        if not typefaces_for(language)
    ]
