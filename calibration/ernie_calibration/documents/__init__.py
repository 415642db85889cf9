"""Draws pages of documents in several languages from a seed, with transcripts, questions and answers."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ernie_calibration.documents import form, invoice, letter, receipt, tables
from ernie_calibration.documents.fonts import missing_languages, typefaces_for
from ernie_calibration.documents.language import CODES, Language, load_language
from ernie_calibration.drawn_image import DrawnImage

__all__ = ["CODES", "KINDS", "draw_document", "missing_languages"]

KINDS: dict[str, Callable[[Random, Language, bool], DrawnImage]] = {
    invoice.KIND: invoice.draw_invoice_page,
    receipt.KIND: receipt.draw_receipt_strip,
    form.KIND: form.draw_form_page,
    letter.KIND: letter.draw_letter,
    tables.STATEMENT: tables.draw_statement,
    tables.REPORT: tables.draw_report,
}
# English weighs most: most documents are written in it.
LANGUAGE_WEIGHTS = (4, 2, 2, 2, 1, 1, 1, 1, 1)


def draw_document(
    kind: str, seed: int | str, *, held_out: bool = False, code: str | None = None
) -> DrawnImage:
    """The document of `kind` that `seed` stands for, 700 to 1600 pixels on its long side.

    code: its language; None lets the seed choose. Where no font can print it (see missing_languages), the
    page is in English, and all other pages stay as they are. Held-out documents have names, sentences,
    layouts and typefaces that no other document has; labels are shared. KeyError for a kind not in KINDS.
    """
    random = Random(f"{kind}/{seed}/{held_out}")
    drawn = random.choices(CODES, LANGUAGE_WEIGHTS)[0]
    language = load_language(code or drawn)
    if not typefaces_for(language):
        language = load_language("en")
    return KINDS[kind](random, language, held_out)
