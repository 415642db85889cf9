"""Account statements: a holder, bookings in and out, a balance that goes on from line to line."""

from __future__ import annotations

from random import Random

from ernie_calibration.documents.draft import new_draft
from ernie_calibration.documents.language import Language
from ernie_calibration.documents.sheet import Column
from ernie_calibration.pictures.picture import Picture

KIND = "account statement"
MOST_BOOKINGS = 30
# Columns behind date and text; every fourth form is held out.
FORMS = (("debit", "credit", "balance"), ("amount", "balance"), ("debit", "credit"), ("amount",))


def make_statement(random: Random, language: Language, held_out: bool) -> Picture:
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
    return draft.picture(KIND, questions)
