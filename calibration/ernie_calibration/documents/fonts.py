"""Finds the typefaces that can print a language.

They come with matplotlib and are the same everywhere. None of them has Chinese: a font of the system is
used for it, if there is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from ernie_calibration.documents.language import CODES, Language, load_language


@dataclass(frozen=True, slots=True)
class Typeface:
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
    shipped = tuple(
        typeface
        for typeface in TYPEFACES
        if has_characters(typeface.regular, needed) and has_characters(typeface.bold, needed)
    )
    return shipped or _system_typefaces(needed)


def _system_typefaces(needed: frozenset[str]) -> tuple[Typeface, ...]:
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
    lines = []
    for code in CODES:
        language = load_language(code)
        if not typefaces_for(language):
            number = len(language.characters)
            lines.append(
                f"left out: documents in {language.name} (no font here has all of its {number} characters)"
            )
    return lines
