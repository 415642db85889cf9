"""Draws business letters: addresses, date, subject, paragraphs of set sentences with drawn names, closing."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ernie_calibration.documents.draft import Draft, new_draft
from ernie_calibration.documents.language import Language
from ernie_calibration.documents.sheet import Cell
from ernie_calibration.drawn_image import DrawnImage, Run

KIND = "letter page"
Parties = tuple[tuple[str, str, str], tuple[str, str, str]]
PrintedParties = tuple[Run, Run, Run]  # sender, recipient, date
LetterLayout = Callable[[Draft, Parties, str], PrintedParties]


def _business(draft: Draft, parties: Parties, date: str) -> PrintedParties:
    """The sender small above the recipient, the date at the right."""
    sheet = draft.sheet
    line = ", ".join(parties[0])
    sender = sheet.line(Cell(line, sheet.left, sheet.width), scale=0.8)[0].part(line)
    sender = Run(parties[0][0], sender.glyphs[: len(parties[0][0])])
    sheet.rule()
    sheet.skip(0.8)
    recipient = sheet.block(parties[1])
    sheet.skip(0.8)
    return sender, recipient, sheet.put(date, align="right")


def _letterhead(draft: Draft, parties: Parties, date: str) -> PrintedParties:
    """The sender large in the middle, date, then the recipient."""
    sheet = draft.sheet
    sender = sheet.put(parties[0][0], align="middle", bold=True, scale=1.6)
    sheet.put(" - ".join(parties[0][1:]), align="middle")
    sheet.skip(1)
    printed = sheet.put(date)
    sheet.skip(0.5)
    return sender, sheet.block(parties[1]), printed


def _right(draft: Draft, parties: Parties, date: str) -> PrintedParties:
    """The sender at the right edge, the recipient at the left."""
    sheet = draft.sheet
    sender = sheet.block(parties[0], "right")
    recipient = sheet.block(parties[1])
    sheet.skip(0.5)
    return sender, recipient, sheet.put(date)


def _columns(draft: Draft, parties: Parties, date: str) -> PrintedParties:
    """Both parties side by side under a bar."""
    sheet = draft.sheet
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


def draw_letter(random: Random, language: Language, held_out: bool) -> DrawnImage:
    """A page of 4 to 9 sentences in paragraphs, each sentence used once."""
    draft = new_draft(random, language, held_out, "portrait")
    sheet, names, asker = draft.sheet, draft.names, draft.asker
    person, surname = names.person(), names.surname()
    parties = (
        (names.company(), names.street(), names.town()),
        (person, names.street(), names.town()),
    )
    layout: LetterLayout = random.choice(draft.of_world(LAYOUTS))
    sender, recipient, date = layout(draft, parties, names.date())
    sheet.skip(1)
    label, subject = draft.label("subject"), names.choose(language.subjects)
    subject_run = sheet.put(f"{label}: {subject}", bold=True).part(subject)
    sheet.skip(0.7)
    sheet.put(names.choose(language.greetings).format(person=person, surname=surname))
    sheet.skip(0.4)
    sentences = draft.of_world(language.sentences)
    random.shuffle(sentences)
    for sentence in sentences[: random.randint(min(4, len(sentences)), min(9, len(sentences)))]:
        if sheet.lines_left() < 9:
            break
        sheet.paragraph(_filled(draft, sentence, person), spaced=language.spaced)
        sheet.skip(random.choice((0.0, 0.5)))
    sheet.skip(0.8)
    sheet.put(names.choose(language.closings))
    sheet.skip(0.8)
    signed = sheet.put(names.person())
    questions = [
        asker.sender(sender),
        asker.recipient(recipient),
        asker.field(label, subject_run),
        asker.field(draft.label("date"), date, "document date"),
        asker.field(draft.label("signature"), signed, "document name"),
    ]
    return draft.finish(KIND, questions)


def _filled(draft: Draft, sentence: str, person: str) -> str:
    names = draft.names
    return sentence.format(
        person=person,
        item=names.item(),
        date=names.date(),
        number=names.number(),
        city=names.city(),
        phone=names.phone(),
        company=names.company(),
        money=names.money(names.cents()),
    )
