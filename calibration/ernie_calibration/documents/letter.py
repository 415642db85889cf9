"""Draws business letters: addresses, date, subject, paragraphs of set sentences with drawn names, closing."""

from __future__ import annotations

from collections.abc import Callable

from ernie_calibration.documents.draft import Draft
from ernie_calibration.documents.sheet import Cell, Sheet
from ernie_calibration.drawn_image import Question, Run
from ernie_calibration.names import of_world

Parties = tuple[tuple[str, str, str], tuple[str, str, str]]
PrintedParties = tuple[Run, Run, Run]  # sender, recipient, date
LetterLayout = Callable[[Sheet, Parties, str], PrintedParties]


def _business(sheet: Sheet, parties: Parties, date: str) -> PrintedParties:
    """The sender small above the recipient, the date at the right."""
    line = sheet.put(", ".join(parties[0]), scale=0.8)
    sender = Run(parties[0][0], line.glyphs[: len(parties[0][0])])
    sheet.rule()
    sheet.skip(0.8)
    recipient = sheet.block(parties[1])
    sheet.skip(0.8)
    return sender, recipient, sheet.put(date, align="right")


def _letterhead(sheet: Sheet, parties: Parties, date: str) -> PrintedParties:
    """The sender large in the middle, date, then the recipient."""
    sender = sheet.put(parties[0][0], align="middle", bold=True, scale=1.6)
    sheet.put(" - ".join(parties[0][1:]), align="middle")
    sheet.skip(1)
    printed = sheet.put(date)
    sheet.skip(0.5)
    return sender, sheet.block(parties[1]), printed


def _right(sheet: Sheet, parties: Parties, date: str) -> PrintedParties:
    """The sender at the right edge, the recipient at the left."""
    sender = sheet.block(parties[0], "right")
    recipient = sheet.block(parties[1])
    sheet.skip(0.5)
    return sender, recipient, sheet.put(date)


def _columns(sheet: Sheet, parties: Parties, date: str) -> PrintedParties:
    """Both parties side by side under a bar."""
    half = sheet.width / 2
    sheet.page.rectangle((sheet.left, sheet.y, sheet.right, sheet.y + sheet.pitch * 0.3), sheet.accent)
    sheet.skip(0.6)
    rows = [
        sheet.line(Cell(left, sheet.left, half * 0.95), Cell(right, sheet.left + half, half))
        for left, right in zip(*parties, strict=True)
    ]
    sheet.skip(0.6)
    return rows[0][0], rows[0][1], sheet.put(date, align="right")


LAYOUTS: tuple[LetterLayout, ...] = (_business, _letterhead, _right, _columns)


def draw_letter(draft: Draft) -> list[Question]:
    """A page of 4 to 9 sentences in paragraphs, each sentence used once."""
    random, sheet, names, language = draft.random, draft.sheet, draft.names, draft.language
    person, surname = names.person(), names.surname()
    parties = ((names.company(), names.street(), names.town()), (person, names.street(), names.town()))
    sender, recipient, date = names.choose(LAYOUTS)(sheet, parties, names.date())
    sheet.skip(1)
    label, subject = draft.label("subject"), names.choose(language.subjects)
    subject_run = sheet.put(f"{label}: {subject}", bold=True).part(subject)
    sheet.skip(0.7)
    sheet.put(names.choose(language.greetings).format(person=person, surname=surname))
    sheet.skip(0.4)
    sentences = of_world(language.sentences, names.held_out)
    random.shuffle(sentences)
    for sentence in sentences[: random.randint(min(4, len(sentences)), min(9, len(sentences)))]:
        if sheet.lines_left() < 9:
            break
        sheet.paragraph(sentence.format(person=person, **names.for_sentence()), spaced=language.spaced)
        sheet.skip(random.choice((0.0, 0.5)))
    sheet.skip(0.8)
    sheet.put(names.choose(language.closings))
    sheet.skip(0.8)
    signed = sheet.put(names.person())
    return [
        draft.ask("sender", sender),
        draft.ask("recipient", recipient),
        draft.ask("field", subject_run, label=label),
        draft.ask("field", date, "document date", label=draft.label("date")),
        draft.ask("field", signed, "document name", label=draft.label("signature")),
    ]
