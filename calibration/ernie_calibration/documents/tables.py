"""Draws documents that are mostly rows: receipts, account statements and report tables."""

from __future__ import annotations

from ernie_calibration.documents.draft import Draft
from ernie_calibration.documents.sheet import Cell, Column, Sheet
from ernie_calibration.drawn_image import Question, Run
from ernie_calibration.names import different

MOST_ITEMS, MOST_BOOKINGS, MOST_ROWS = 30, 30, 26
# How a line item of a receipt is written; every fourth form is held out.
ITEM_FORMS = (
    "{item}",
    "{item} x{quantity}",
    "{quantity} {item}",
    "{item} ({quantity})",
    "{quantity} x {item}",
)
NOTES = (500, 1000, 2000, 5000, 10000, 20000)
# Columns of a statement behind date and text; every fourth form is held out.
FORMS = (("debit", "credit", "balance"), ("amount", "balance"), ("debit", "credit"), ("amount",))


def draw_receipt_strip(draft: Draft) -> list[Question]:
    """A strip with as many items as fit, 3 at least; change = paid - total."""
    random, sheet, names, language = draft.random, draft.sheet, draft.names, draft.language
    shop, number, date = names.company(), names.number(), names.date()
    shop_run = sheet.put(shop, align="middle", bold=True, scale=1.2)
    sheet.put(names.street(), align="middle")
    sheet.put(names.town(), align="middle")
    sheet.put(f"{draft.label('phone')}: {names.phone()}", align="middle")
    _divide(sheet)
    sheet.put(draft.label("receipt"), align="middle", bold=True)
    details = draft.labelled({"number": number, "date": date})
    form = random.choice(("colon", "right", "columns"))
    number_run, date_run = sheet.fields(details, sheet.left, sheet.width, form)
    _divide(sheet)

    count = draft.count(3, min(MOST_ITEMS, sheet.lines_left() - 8))
    items = names.items(count)
    item_form = names.choose(ITEM_FORMS)
    quantities = [random.randint(1, 9) if "{quantity}" in item_form else 1 for _ in items]
    sums = [names.cents() * quantity for quantity in quantities]
    bought: list[tuple[str, Run]] = []
    for item, quantity, amount in zip(items, quantities, sums, strict=True):
        text = item_form.format(item=item, quantity=quantity)
        bought.append((item, _pair(sheet, text, language.amount(amount))))
    _divide(sheet)
    total = sum(sums)
    total_label = draft.label("total")
    total_run = _pair(sheet, total_label, names.money(total), bold=True)
    paid = next((note for note in NOTES if note >= total), total)
    _pair(sheet, draft.label("cash"), language.amount(paid))
    change_label = draft.label("change")
    change_run = _pair(sheet, change_label, language.amount(paid - total))
    sheet.skip(0.7)
    sheet.put(draft.label("thanks"), align="middle")

    questions = [
        draft.ask("sender", shop_run),
        draft.ask("field", number_run, "document number", label=details[0][0]),
        draft.ask("field", date_run, "document date", label=details[1][0]),
        draft.ask("field", total_run, "document total", label=total_label),
        draft.ask("field", change_run, label=change_label),
    ]
    return questions + [draft.ask("amount", run, item=item) for item, run in random.sample(bought, 2)]


def _pair(sheet: Sheet, left: str, right: str, bold: bool = False) -> Run:
    """Words at the left, an amount at the right; the amount as printed."""
    room = sheet.width * 0.62
    amount = Cell(right, sheet.left + room, sheet.width - room, "right", bold)
    return sheet.line(Cell(left, sheet.left, room * 0.97, bold=bold), amount)[1]


def _divide(sheet: Sheet) -> None:
    sheet.skip(0.2)
    sheet.rule()
    sheet.skip(0.2)


def draw_statement(draft: Draft) -> list[Question]:
    """A page with as many bookings as fit, 4 at least; opening + bookings = closing balance."""
    random, sheet, names, language = draft.random, draft.sheet, draft.names, draft.language
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
    form = names.choose(FORMS)
    titles = [draft.label("date"), draft.label("item"), *(draft.label(key) for key in form)]
    columns = [Column(titles[0], 2.2), Column(titles[1], 4)]
    columns += [Column(title, 2.2, "right") for title in titles[2:]]
    count = draft.count(4, min(MOST_BOOKINGS, sheet.lines_left() - 4))
    rows, balance = [], opening
    for _ in range(count):
        cents = names.cents() * random.choice((1, -1, -1))
        balance += cents
        values = {
            "amount": language.amount(cents),
            "debit": language.amount(-cents) if cents < 0 else "",
            "credit": language.amount(cents) if cents >= 0 else "",
            "balance": language.amount(balance),
        }
        rows.append((names.date(), names.choose(language.entries), *(values[key] for key in form)))
    grid = sheet.table(columns, rows)
    sheet.skip(0.4)
    label = draft.label("closing")
    closing = sheet.fields([(label, names.money(balance))], sheet.left, sheet.width, "right")[0]

    kinds = ("document name", "document number", "document total")
    questions = [
        draft.ask("field", run, kind, label=label)
        for (label, _), run, kind in zip(head, head_runs, kinds, strict=True)
    ]
    questions.append(draft.ask("field", closing, "document total", label=label))
    questions += [draft.ask("sender", bank), draft.ask_count(count)]
    once = [row for row in grid if sum(other[0].text == row[0].text for other in grid) == 1]
    for row in random.sample(once, min(2, len(once))):
        column = random.choice([index for index in range(1, len(titles)) if row[index].text])
        questions.append(draft.ask("cell", row[column], row=row[0].text, column=titles[column]))
    return questions


def draw_report(draft: Draft) -> list[Question]:
    """A page with 3 to 5 columns of figures and as many rows as fit, 4 at least; sometimes their sums."""
    random, sheet, names, language = draft.random, draft.sheet, draft.names, draft.language
    title = names.choose(language.reports)
    author = names.company()
    sheet.put(title, bold=True, scale=1.4, align=random.choice(("left", "middle")))
    author_run = sheet.put(f"{author}, {names.date()}").part(author)
    sheet.skip(0.6)

    measures = random.sample(language.measures, random.randint(3, 5))
    count = draft.count(4, min(MOST_ROWS, sheet.lines_left() - 5))
    places = different(count, names.city)
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
    questions = [
        draft.ask("cell", grid[row][column + 1], row=places[row], column=measures[column])
        for row, column in wanted
    ]
    questions += [draft.ask_count(count + has_sums), draft.ask("sender", author_run)]
    if has_sums:
        column = random.randrange(len(measures))
        questions.append(draft.ask("cell", grid[-1][column + 1], row=total, column=measures[column]))
    return questions
