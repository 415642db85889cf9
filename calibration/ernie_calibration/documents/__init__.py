"""Draws pages of documents in several languages from a seed, with transcripts, questions and answers."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ernie_calibration.documents.draft import Draft, SheetShape
from ernie_calibration.documents.form import draw_form_page
from ernie_calibration.documents.invoice import draw_invoice_page
from ernie_calibration.documents.language import CODES, load_language, missing_languages, typefaces_for
from ernie_calibration.documents.letter import draw_letter
from ernie_calibration.documents.tables import draw_receipt_strip, draw_report, draw_statement
from ernie_calibration.drawn_image import DrawnImage, Question

__all__ = ["CODES", "KINDS", "draw_document", "missing_languages"]

# The shapes that a page may have, and what writes it and returns questions.
KINDS: dict[str, tuple[tuple[SheetShape, ...], Callable[[Draft], list[Question]]]] = {
    "invoice page": (("portrait",), draw_invoice_page),
    "receipt strip": (("strip",), draw_receipt_strip),
    "form page": (("portrait",), draw_form_page),
    "letter page": (("portrait",), draw_letter),
    "account statement": (("portrait", "landscape"), draw_statement),
    "report table": (("landscape", "landscape", "portrait"), draw_report),
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
    shapes, write = KINDS[kind]
    shape = random.choice(shapes) if len(shapes) > 1 else shapes[0]
    draft = Draft(random, language, held_out, shape)
    return draft.finish(kind, write(draft))
