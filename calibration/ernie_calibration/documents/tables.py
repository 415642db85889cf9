"""Draws pages that are mostly one table: account statements and report tables."""

from __future__ import annotations

from random import Random

from ernie_calibration.documents.draft import new_draft
from ernie_calibration.documents.language import Language
from ernie_calibration.documents.sheet import Column
from ernie_calibration.drawn_image import DrawnImage

STATEMENT, REPORT = "account statement", "report table"
MOST_BOOKINGS, MOST_ROWS = 30, 26
# Columns behind date and text; every fourth form is held out.
FORMS = (("debit", "credit", "balance"), ("amount", "balance"), ("debit", "credit"), ("amount",))


def draw_statement(random: Random, language: Language, held_out: bool) -> DrawnImage:
    """A page with as many bookings as fit, 4 at least; opening + bookings = closing balance."""
    draft = new_draft(random, language, held_out, random.choice(("portrait", "landscape")))
    sheet, names, asker = draft.sheet, draft.names, draft.asker
    bank = sheet.put(names.company(), bold=True, scale=1.3)
    sheet.put(draft.label("statement"), bold=True, scale=1.2)
    sheet.skip(0.4)
    opening = random.randint(-50_000, 900_000)
    head = [
        (draft.label("holder"), names.person()),
        (draft.label("account"), f"{random.randint(10**7, 10**10 - 1)}"),
        (draft.label("opening"), names.money(opening)),
    ]
    head_runs = sheet.fields(head, sheet.left, sheet.width, random.choice(("colon", "columns", "right")))
    sheet.skip(0.5)
    form = random.choice(draft.of_world(FORMS))
    titles = [draft.label("date"), draft.label("item"), *(draft.label(key) for key in form)]
    columns = [Column(titles[0], 2.2), Column(titles[1], 4)]
    columns += [Column(title, 2.2, "right") for title in titles[2:]]
    count = draft.count(4, min(MOST_BOOKINGS, sheet.lines_left() - 4))
    rows, balance = [], opening
    entries = draft.of_world(language.entries)
    for _ in range(count):
        cents = names.cents() * random.choice((1, -1, -1))
        balance += cents
        values = {
            "amount": language.amount(cents),
            "debit": language.amount(-cents) if cents < 0 else "",
            "credit": language.amount(cents) if cents >= 0 else "",
            "balance": language.amount(balance),
        }
        rows.append((names.date(), random.choice(entries), *(values[key] for key in form)))
    grid = sheet.table(columns, rows)
    sheet.skip(0.4)
    label = draft.label("closing")
    closing = sheet.fields([(label, names.money(balance))], sheet.left, sheet.width, "right")[0]

    kinds = ("document name", "document number", "document total")
    questions = [
        asker.field(key, run, kind) for (key, _), run, kind in zip(head, head_runs, kinds, strict=True)
    ]
    questions += [asker.field(label, closing, "document total"), asker.sender(bank), asker.count(count)]
    once = [row for row in grid if sum(other[0].text == row[0].text for other in grid) == 1]
    for row in random.sample(once, min(2, len(once))):
        column = random.choice([index for index in range(1, len(titles)) if row[index].text])
        questions.append(asker.cell(row[0].text, titles[column], row[column]))
    return draft.finish(STATEMENT, questions)


def draw_report(random: Random, language: Language, held_out: bool) -> DrawnImage:
    """A page with 3 to 5 columns of figures and as many rows as fit, 4 at least; sometimes their sums."""
    draft = new_draft(random, language, held_out, random.choice(("landscape", "landscape", "portrait")))
    sheet, names, asker = draft.sheet, draft.names, draft.asker
    title = names.choose(language.reports)
    author = names.company()
    sheet.put(title, bold=True, scale=1.4, align=random.choice(("left", "middle")))
    author_run = sheet.put(f"{author}, {names.date()}").part(author)
    sheet.skip(0.6)

    measures = random.sample(language.measures, random.randint(3, 5))
    count = draft.count(4, min(MOST_ROWS, sheet.lines_left() - 5))
    places: list[str] = []
    while len(places) < count:
        place = names.city()
        if place not in places:
            places.append(place)
    in_tenths = random.random() < 0.3
    show = language.tenths if in_tenths else language.whole
    top = random.choice((90, 900, 9000, 90_000))
    figures = [[random.randint(top // 20, top) for _ in measures] for _ in places]
    rows = [(place, *map(show, row)) for place, row in zip(places, figures, strict=True)]
    total = draft.label("sum")
    has_sums = random.random() < 0.5
    if has_sums:
        rows.append((total, *(show(sum(column)) for column in zip(*figures, strict=True))))
    columns = [Column(draft.label("branch"), 3), *(Column(measure, 2, "right") for measure in measures)]
    grid = sheet.table(columns, rows)
    sheet.skip(0.5)
    sheet.put(draft.label("page").format(random.randint(1, 4), random.randint(4, 9)), align="right")

    wanted = random.sample([(row, column) for row in range(count) for column in range(len(measures))], 5)
    questions = [asker.cell(places[row], measures[column], grid[row][column + 1]) for row, column in wanted]
    questions += [asker.count(count + has_sums), asker.sender(author_run)]
    if has_sums:
        column = random.randrange(len(measures))
        questions.append(asker.cell(total, measures[column], grid[-1][column + 1]))
    return draft.finish(REPORT, questions)
