"""Draws filled-in forms: numbered or boxed fields, options that are ticked or not, a signature line."""

from __future__ import annotations

from collections.abc import Callable

from ernie_calibration.documents.draft import Draft
from ernie_calibration.documents.sheet import Cell, Sheet
from ernie_calibration.drawn_image import Question, Run

Pairs = list[tuple[str, str]]
FormLayout = Callable[[Sheet, Pairs], list[Run]]


def _ruled(sheet: Sheet, pairs: Pairs) -> list[Run]:
    """Each value on a line of its own, at half of the page."""
    runs = []
    for pair in pairs:
        runs += sheet.fields([pair], sheet.left, sheet.width, "columns")
        start = sheet.left + sheet.width * 0.44
        sheet.page.line([(start, sheet.y), (sheet.right, sheet.y)], sheet.ink, 1.0)
        sheet.skip(0.3)
    return runs


def _boxed(sheet: Sheet, pairs: Pairs) -> list[Run]:
    """Small labels with a framed value below each, two side by side."""
    half, pad = sheet.width / 2, sheet.size * 0.4
    runs = []
    for index in range(0, len(pairs), 2):
        placed = list(zip(pairs[index : index + 2], (sheet.left, sheet.left + half), strict=False))
        sheet.line(*[Cell(label, x, half * 0.9) for (label, _), x in placed], scale=0.8)
        for _, x in placed:
            sheet.page.rectangle((x, sheet.y, x + half * 0.92, sheet.y + sheet.pitch), None, sheet.ink)
        runs += sheet.line(*[Cell(value, x + pad, half * 0.92 - 2 * pad) for (_, value), x in placed])
        sheet.skip(0.4)
    return runs


def _numbered(sheet: Sheet, pairs: Pairs) -> list[Run]:
    """`3. Label: value`, plainly."""
    numbered = [(f"{number}. {label}", value) for number, (label, value) in enumerate(pairs, 1)]
    return sheet.fields(numbered, sheet.left, sheet.width, "colon")


def _table(sheet: Sheet, pairs: Pairs) -> list[Run]:
    """A frame with a row for each field and a line between the columns."""
    top, middle, pad = sheet.y, sheet.left + sheet.width * 0.4, sheet.size * 0.4
    runs = []
    for label, value in pairs:
        sheet.rule()
        name = Cell(label, sheet.left + pad, sheet.width * 0.4 - 2 * pad, bold=True)
        runs.append(sheet.line(name, Cell(value, middle + pad, sheet.width * 0.6 - 2 * pad))[1])
    sheet.page.rectangle((sheet.left, top, sheet.right, sheet.y), None, sheet.ink)
    sheet.page.line([(middle, top), (middle, sheet.y)], sheet.ink, 1.0)
    return runs


LAYOUTS: tuple[FormLayout, ...] = (_ruled, _boxed, _numbered, _table)


def draw_form_page(draft: Draft) -> list[Question]:
    """Eight fields, four options of which some are ticked, a date and a signature."""
    random, sheet, names, language = draft.random, draft.sheet, draft.names, draft.language
    organisation = sheet.put(names.company(), align=random.choice(("left", "middle")), bold=True)
    title = names.choose(language.form_titles)
    sheet.put(title, align=random.choice(("left", "middle")), bold=True, scale=1.4)
    sheet.rule()
    sheet.skip(0.8)
    pairs = draft.labelled(
        {
            "surname": names.surname(),
            "first_name": names.first_name(),
            "birth": names.date(),
            "street": names.street(),
            "city": names.town(),
            "phone": names.phone(),
            "job": random.choice(language.jobs),
            "member": names.number(),
        }
    )
    random.shuffle(pairs)
    runs = names.choose(LAYOUTS)(sheet, pairs)
    sheet.skip(0.8)
    options = random.sample(language.measures, 4)
    ticked = [random.random() < 0.5 for _ in options]
    _options(sheet, options, ticked)
    sheet.skip(1.2)
    end = [(draft.label("date"), names.date()), (draft.label("signature"), names.person())]
    signed = sheet.fields(end, sheet.left, sheet.width, random.choice(("colon", "columns")))

    questions = [draft.ask("field", run, label=label) for (label, _), run in zip(pairs, runs, strict=True)]
    date = draft.ask("field", signed[0], "document date", label=end[0][0])
    return [*questions, date, draft.ask("sender", organisation)]


def _options(sheet: Sheet, options: list[str], ticked: list[bool]) -> None:
    """A box before each option; ticked ones are crossed, and read [x] in the transcript."""
    side = sheet.size * 0.8
    for option, is_ticked in zip(options, ticked, strict=True):
        top = sheet.y + (sheet.pitch - side) / 2
        box = (sheet.left, top, sheet.left + side, top + side)
        sheet.page.rectangle(box, None, sheet.ink)
        if is_ticked:
            sheet.page.line([box[:2], box[2:]], sheet.ink, 2.0)
            sheet.page.line([(box[0], box[3]), (box[2], box[1])], sheet.ink, 2.0)
        run = sheet.line(Cell(option, sheet.left + 2 * side, sheet.width - 2 * side))[0]
        mark = Run.unprinted("[x] " if is_ticked else "[ ] ")
        sheet.lines[-1] = Run(mark.text + run.text, mark.glyphs + run.glyphs)
