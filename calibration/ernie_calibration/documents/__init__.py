"""Seeded pages of documents in several languages, with transcripts, questions and exact answers.

Own the registry of kinds and the choice of the language; each kind lives in the file of its name. Knows
nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ernie_calibration.documents import form, invoice, letter, receipt, report, statement
from ernie_calibration.documents.fonts import missing_languages, typefaces_for
from ernie_calibration.documents.language import CODES, Language, load_language
from ernie_calibration.pictures.picture import Picture

__all__ = ["CODES", "KINDS", "make_document", "missing_languages"]

Maker = Callable[[Random, Language, bool], Picture]
KINDS: dict[str, Maker] = {
    invoice.KIND: invoice.make_invoice,
    receipt.KIND: receipt.make_receipt,
    form.KIND: form.make_form,
    letter.KIND: letter.make_letter,
    statement.KIND: statement.make_statement,
    report.KIND: report.make_report,
}
# English stands for itself and for what most documents of the net are written in.
LANGUAGE_WEIGHTS = (4, 2, 2, 2, 1, 1, 1, 1, 1)


def make_document(kind: str, seed: int | str, *, held_out: bool = False, code: str | None = None) -> Picture:
    """The document of `kind` that `seed` stands for, 700 to 1600 pixels on its long side.

    code: its language; None: one by the seed. Where no font can print that one (see missing_languages), the
    page is in English, and all others are what they are elsewhere. The names, sentences, layouts and
    typefaces of held-out documents are never used for others; labels are shared. Raises KeyError for a kind
    not in KINDS.
    """
    random = Random(f"{kind}/{seed}/{held_out}")
    drawn = random.choices(CODES, LANGUAGE_WEIGHTS)[0]
    language = load_language(code or drawn)
    if not typefaces_for(language):
        language = load_language("en")
    return KINDS[kind](random, language, held_out)
