"""Draws invoices: both parties, number and dates; line items with quantities and prices; net, tax, total."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ernie_calibration.documents.draft import Draft, new_draft
from ernie_calibration.documents.language import Language
from ernie_calibration.documents.sheet import Cell, Column
from ernie_calibration.drawn_image import DrawnImage, Question, Run

KIND = "invoice page"
TAX_RATES = (5, 7, 10, 19, 20, 21, 23)
MOST_ITEMS = 22


@dataclass(frozen=True, slots=True)
class Heading:
    """What stands over the items: the two parties, and labels with their values."""

    vendor: str
    vendor_address: tuple[str, str]
    customer_label: str
    customer: tuple[str, str, str]
    title: str
    details: tuple[tuple[str, str], ...]  # number, date, due date


@dataclass(frozen=True, slots=True)
class PrintedHeading:
    """The heading as it was printed."""

    vendor: Run
    customer: Run
    details: list[Run]


InvoiceLayout = Callable[[Draft, Heading], PrintedHeading]


def _letterhead(draft: Draft, heading: Heading) -> PrintedHeading:
    """Vendor at the left, details at the right, the customer below."""
    sheet = draft.sheet
    half = sheet.width / 2
    vendor = sheet.put(heading.vendor, bold=True, scale=1.4)
    for text in heading.vendor_address:
        sheet.put(text)
    sheet.skip(1)
    sheet.put(heading.title, bold=True, scale=1.6)
    details = sheet.fields(heading.details, sheet.left + half, half, "right")
    sheet.skip(0.5)
    sheet.put(f"{heading.customer_label}:", bold=True)
    customer = sheet.block(heading.customer)
    return PrintedHeading(vendor, customer, details)


def _banner(draft: Draft, heading: Heading) -> PrintedHeading:
    """A coloured band with the title and the vendor, then two columns."""
    sheet = draft.sheet
    half = sheet.width / 2
    white = (255, 255, 255)
    sheet.page.rectangle((0, 0, sheet.page.width, sheet.y + 2.4 * sheet.pitch), sheet.accent)
    _, vendor = sheet.line(
        Cell(heading.title, sheet.left, half * 0.95, bold=True, ink=white),
        Cell(heading.vendor, sheet.left + half, half, "right", ink=white),
        scale=1.4,
    )
    sheet.skip(1.5)
    rows = (
        (f"{heading.customer_label}:", ""),
        *((text, "") for text in heading.customer),
    )
    details, customer = [], vendor
    for index, (left, _) in enumerate(rows):
        cells = [Cell(left, sheet.left, half * 0.95, bold=index == 0)]
        if index < len(heading.details):
            label, value = heading.details[index]
            cells += [
                Cell(f"{label}:", sheet.left + half, half * 0.5),
                Cell(value, sheet.left + 1.5 * half, half * 0.5, "right"),
            ]
        runs = sheet.line(*cells)
        if index == 1:
            customer = runs[0]
        if index < len(heading.details):
            details.append(runs[2])
    return PrintedHeading(vendor, customer, details)


def _centred(draft: Draft, heading: Heading) -> PrintedHeading:
    """All in the middle, details as plain lines."""
    sheet = draft.sheet
    vendor = sheet.put(heading.vendor, align="middle", bold=True, scale=1.5)
    sheet.put(", ".join(heading.vendor_address), align="middle")
    sheet.rule()
    sheet.skip(0.7)
    sheet.put(heading.title, align="middle", bold=True, scale=1.3)
    sheet.skip(0.3)
    details = sheet.fields(heading.details, sheet.left, sheet.width, "colon")
    customer = sheet.put(f"{heading.customer_label}: {heading.customer[0]}").part(heading.customer[0])
    for text in heading.customer[1:]:
        sheet.put(text)
    return PrintedHeading(vendor, customer, details)


def _boxes(draft: Draft, heading: Heading) -> PrintedHeading:
    """The customer first, then a strip of boxes with a detail in each, the vendor at the foot of it."""
    sheet = draft.sheet
    room = sheet.width / 3
    customer = sheet.block(heading.customer)
    sheet.skip(0.6)
    sheet.put(heading.title, align="right", bold=True, scale=1.5)
    top = sheet.y
    starts = [sheet.left + index * room for index in range(3)]
    pad = sheet.size * 0.3
    labels = zip(heading.details, starts, strict=True)
    sheet.line(*[Cell(label, start + pad, room - 2 * pad, bold=True) for (label, _), start in labels])
    values = zip(heading.details, starts, strict=True)
    details = sheet.line(*[Cell(value, start + pad, room - 2 * pad) for (_, value), start in values])
    for start in starts:
        sheet.page.rectangle((start, top, start + room, sheet.y), None, sheet.ink)
    sheet.skip(0.5)
    vendor = sheet.put(heading.vendor, bold=True)
    sheet.put(", ".join(heading.vendor_address))
    return PrintedHeading(vendor, customer, details)


LAYOUTS: tuple[InvoiceLayout, ...] = (_letterhead, _banner, _centred, _boxes)


def _heading(draft: Draft) -> Heading:
    names = draft.names
    return Heading(
        names.company(),
        (names.street(), names.town()),
        draft.label("customer"),
        (names.person(), names.street(), names.town()),
        draft.label("invoice"),
        tuple((draft.label(key), value) for key, value in _details(draft)),
    )


def _details(draft: Draft) -> tuple[tuple[str, str], ...]:
    return (("number", draft.names.number()), ("date", draft.names.date()), ("due", draft.names.date()))


def draw_invoice_page(random: Random, language: Language, held_out: bool) -> DrawnImage:
    """A page with as many items as fit, 3 at least; amounts are whole cents and add up."""
    draft = new_draft(random, language, held_out, "portrait")
    sheet, names, asker = draft.sheet, draft.names, draft.asker
    heading = _heading(draft)
    layout: InvoiceLayout = draft.random.choice(draft.of_world(LAYOUTS))
    printed = layout(draft, heading)
    sheet.skip(0.8)

    count = draft.count(3, min(MOST_ITEMS, sheet.lines_left() - 8))
    items = names.items(count)
    quantities = [random.choice((1, 1, 2, 3, random.randint(4, 60))) for _ in items]
    prices = [names.cents() for _ in items]
    sums = [quantity * price for quantity, price in zip(quantities, prices, strict=True)]
    titles = {key: draft.label(key) for key in ("item", "quantity", "price", "amount")}
    columns = [
        Column(titles["item"], 5),
        Column(titles["quantity"], 1.4, "right"),
        Column(titles["price"], 2.2, "right"),
        Column(titles["amount"], 2.4, "right"),
    ]
    grid = sheet.table(
        columns,
        [
            (item, language.whole(quantity), language.amount(price), language.amount(amount))
            for item, quantity, price, amount in zip(items, quantities, prices, sums, strict=True)
        ],
    )
    sheet.skip(0.4)
    total = _totals(draft, sum(sums))
    sheet.skip(0.8)
    sheet.put(draft.label("thanks"), align="middle")

    questions = [
        asker.sender(printed.vendor),
        asker.recipient(printed.customer),
        *_field_questions(draft, heading, printed),
        total,
        asker.count(count),
    ]
    for row in random.sample(grid, 2):
        key, column = random.choice((("quantity", 1), ("price", 2), ("amount", 3)))
        questions.append(asker.item(key, row[0].text, row[column]))
    return draft.finish(KIND, questions)


def _field_questions(draft: Draft, heading: Heading, printed: PrintedHeading) -> list[Question]:
    kinds = ("document number", "document date", "document date")
    return [
        draft.asker.field(label, run, kind)
        for (label, _), run, kind in zip(heading.details, printed.details, kinds, strict=True)
    ]


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
    cells = (
        Cell(label, x, room * 0.47, bold=True),
        Cell(names.money(net + tax), x + room * 0.5, room * 0.5, "right", bold=True),
    )
    return draft.asker.field(label, sheet.line(*cells, scale=1.1)[1], "document total")
