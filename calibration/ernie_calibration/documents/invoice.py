"""Draws invoices: both parties, number and dates; line items with quantities and prices; net, tax, total."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ernie_calibration.documents.draft import Draft
from ernie_calibration.documents.sheet import Cell, Column, Sheet
from ernie_calibration.drawn_image import Question, Run

TAX_RATES = (5, 7, 10, 19, 20, 21, 23)
MOST_ITEMS = 22


@dataclass(frozen=True, slots=True)
class Heading:
    """What stands over the items: the two parties, and labels with their values."""

    vendor: tuple[str, str, str]  # name, street, town
    customer_label: str
    customer: tuple[str, str, str]
    title: str
    details: list[tuple[str, str]]  # number, date, due date


PrintedHeading = tuple[Run, Run, list[Run]]  # vendor, customer, details
InvoiceLayout = Callable[[Sheet, Heading], PrintedHeading]


def _letterhead(sheet: Sheet, heading: Heading) -> PrintedHeading:
    """Vendor at the left, details at the right, the customer below."""
    half = sheet.width / 2
    name, *address = heading.vendor
    vendor = sheet.put(name, bold=True, scale=1.4)
    sheet.block(address)
    sheet.skip(1)
    sheet.put(heading.title, bold=True, scale=1.6)
    details = sheet.fields(heading.details, sheet.left + half, half, "right")
    sheet.skip(0.5)
    sheet.put(f"{heading.customer_label}:", bold=True)
    return vendor, sheet.block(heading.customer), details


def _banner(sheet: Sheet, heading: Heading) -> PrintedHeading:
    """A coloured band with the title and the vendor, then two columns."""
    half = sheet.width / 2
    white = (255, 255, 255)
    sheet.page.rectangle((0, 0, sheet.page.width, sheet.y + 2.4 * sheet.pitch), sheet.accent)
    _, vendor = sheet.line(
        Cell(heading.title, sheet.left, half * 0.95, bold=True, ink=white),
        Cell(heading.vendor[0], sheet.left + half, half, "right", ink=white),
        scale=1.4,
    )
    sheet.skip(1.5)
    printed = []
    for index, left in enumerate((f"{heading.customer_label}:", *heading.customer)):
        cells = [Cell(left, sheet.left, half * 0.95, bold=index == 0)]
        for label, value in heading.details[index : index + 1]:
            cells.append(Cell(f"{label}:", sheet.left + half, half * 0.5))
            cells.append(Cell(value, sheet.left + 1.5 * half, half * 0.5, "right"))
        printed.append(sheet.line(*cells))
    return vendor, printed[1][0], [runs[2] for runs in printed[:3]]


def _centred(sheet: Sheet, heading: Heading) -> PrintedHeading:
    """All in the middle, details as plain lines."""
    vendor = sheet.put(heading.vendor[0], align="middle", bold=True, scale=1.5)
    sheet.put(", ".join(heading.vendor[1:]), align="middle")
    sheet.rule()
    sheet.skip(0.7)
    sheet.put(heading.title, align="middle", bold=True, scale=1.3)
    sheet.skip(0.3)
    details = sheet.fields(heading.details, sheet.left, sheet.width, "colon")
    name, *address = heading.customer
    customer = sheet.put(f"{heading.customer_label}: {name}").part(name)
    sheet.block(address)
    return vendor, customer, details


def _boxes(sheet: Sheet, heading: Heading) -> PrintedHeading:
    """The customer first, then a strip of boxes with a detail in each, the vendor at the foot of it."""
    room, pad = sheet.width / 3, sheet.size * 0.3
    customer = sheet.block(heading.customer)
    sheet.skip(0.6)
    sheet.put(heading.title, align="right", bold=True, scale=1.5)
    top = sheet.y
    starts = [sheet.left + index * room for index in range(3)]
    for texts, bold in zip(zip(*heading.details, strict=True), (True, False), strict=True):
        places = zip(texts, starts, strict=True)
        details = sheet.line(*[Cell(text, start + pad, room - 2 * pad, bold=bold) for text, start in places])
    for start in starts:
        sheet.page.rectangle((start, top, start + room, sheet.y), None, sheet.ink)
    sheet.skip(0.5)
    vendor = sheet.put(heading.vendor[0], bold=True)
    sheet.put(", ".join(heading.vendor[1:]))
    return vendor, customer, details


LAYOUTS: tuple[InvoiceLayout, ...] = (_letterhead, _banner, _centred, _boxes)


def draw_invoice_page(draft: Draft) -> list[Question]:
    """A page with as many items as fit, 3 at least; amounts are whole cents and add up."""
    random, sheet, names, language = draft.random, draft.sheet, draft.names, draft.language
    heading = _heading(draft)
    vendor, customer, details = names.choose(LAYOUTS)(sheet, heading)
    sheet.skip(0.8)

    count = draft.count(3, min(MOST_ITEMS, sheet.lines_left() - 8))
    items = names.items(count)
    quantities = [random.choice((1, 1, 2, 3, random.randint(4, 60))) for _ in items]
    prices = [names.cents() for _ in items]
    sums = [quantity * price for quantity, price in zip(quantities, prices, strict=True)]
    keys = ("item", "quantity", "price", "amount")
    shares = (5, 1.4, 2.2, 2.4)
    columns = [
        Column(draft.label(key), share, "left" if key == "item" else "right")
        for key, share in zip(keys, shares, strict=True)
    ]
    rows = [
        (item, language.whole(quantity), language.amount(price), language.amount(amount))
        for item, quantity, price, amount in zip(items, quantities, prices, sums, strict=True)
    ]
    grid = sheet.table(columns, rows)
    sheet.skip(0.4)
    total = _totals(draft, sum(sums))
    sheet.skip(0.8)
    sheet.put(draft.label("thanks"), align="middle")

    kinds = ("document number", "document date", "document date")
    questions = [draft.ask("sender", vendor), draft.ask("recipient", customer)]
    for (label, _), run, kind in zip(heading.details, details, kinds, strict=True):
        questions.append(draft.ask("field", run, kind, label=label))
    questions += [total, draft.ask_count(count)]
    for row in random.sample(grid, 2):
        column = random.choice((1, 2, 3))
        questions.append(draft.ask(keys[column], row[column], item=row[0].text))
    return questions


def _heading(draft: Draft) -> Heading:
    names = draft.names
    return Heading(
        vendor=(names.company(), names.street(), names.town()),
        customer_label=draft.label("customer"),
        customer=(names.person(), names.street(), names.town()),
        title=draft.label("invoice"),
        details=draft.labelled({"number": names.number(), "date": names.date(), "due": names.date()}),
    )


def _totals(draft: Draft, net: int) -> Question:
    """Net amount, tax and total at the right; the question for the total."""
    sheet, names = draft.sheet, draft.names
    rate = draft.random.choice(TAX_RATES)
    tax = (net * rate + 50) // 100
    x, room = sheet.left + sheet.width * 0.45, sheet.width * 0.55
    pairs = [
        (draft.label("subtotal"), draft.language.amount(net)),
        (draft.label("tax").format(rate), draft.language.amount(tax)),
    ]
    sheet.fields(pairs, x, room, "right")
    label = draft.label("total")
    amount = Cell(names.money(net + tax), x + room * 0.5, room * 0.5, "right", bold=True)
    total = sheet.line(Cell(label, x, room * 0.47, bold=True), amount, scale=1.1)[1]
    return draft.ask("field", total, "document total", label=label)
