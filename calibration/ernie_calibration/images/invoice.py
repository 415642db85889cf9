"""Draws small invoices and receipts: a vendor, a date, line items, a total."""

from __future__ import annotations

from random import Random

from ernie_calibration.drawn_image import Canvas, Question, Run, count_lines, fit_size, join, random_style
from ernie_calibration.names import NameSource, format_cents

NUMBER_LABELS = ("Invoice No", "Invoice", "No", "Number", "Inv. No")
DATE_LABELS = ("Date", "Issued", "Dated", "Invoice date")
TOTAL_LABELS = ("Total", "TOTAL", "Amount due", "Total due", "Sum")
TOTAL_QUESTIONS = (
    "What is the total?",
    "How much is the total?",
    "What is the amount due?",
    "What is the total amount?",
    "How much has to be paid?",
)
DATE_QUESTIONS = (
    "What is the date?",
    "When was it issued?",
    "What date is printed?",
    "What is the date of the invoice?",
)
NUMBER_QUESTIONS = (
    "What is the invoice number?",
    "What is the number of the invoice?",
    "Which number has the invoice?",
)
VENDOR_QUESTIONS = ("Who is the vendor?", "Who sent the invoice?", "Which company is it from?")
PRICE_QUESTIONS = (
    "What is the price of {}?",
    "How much is {}?",
    "How much does {} cost?",
    "What does {} cost?",
)
QUANTITY_QUESTIONS = ("How many {} are listed?", "What is the quantity of {}?", "How many {}?")


RECEIPT_TOTAL_LABELS = ("TOTAL", "Total", "SUM", "To pay")
SHOP_QUESTIONS = ("Which shop is it?", "What is the name of the shop?", "Where was it bought?")


def draw_invoice(random: Random, names: NameSource, page: Canvas) -> tuple[list[Run], list[Question]]:
    """A vendor, a number, a date, 2 to 4 items with quantities and prices, and their total."""
    num_items = random.randint(2, max(2, min(4, count_lines(page.height) - 5)))
    style = random_style(random, page)
    vendor, number, date = names.company(), names.document_number(), names.date()
    currency = random.choice(("$", "£", "", "EUR", "USD"))
    items = names.items(num_items)
    quantities = [random.randint(1, 20) for _ in items]
    cents = [names.cents() for _ in items]
    total = format_cents(sum(cents), currency)
    right, y = page.width - style.left, style.pitch / 2
    lines: list[Run] = []

    def put(left: str, right_text: str = "", font: str = style.font) -> Run:
        """Print one line; the line as it stands in the transcript."""
        nonlocal y
        size = fit_size(page, f"{left}  {right_text}", font, style.size, right - style.left)
        runs = [page.text(style.left, y, left, font, size, style.ink)]
        if right_text:
            runs.append(page.text(right, y, right_text, font, size, style.ink, "right"))
        lines.append(join(runs, " "))
        y += style.pitch
        return lines[-1]

    def rule() -> None:
        above = y - style.pitch * 0.5
        page.line([(style.left, above), (right, above)], style.ink, 1.0)

    vendor_run = put(vendor, font=style.bold)
    details = [(random.choice(NUMBER_LABELS), number), (random.choice(DATE_LABELS), date)]
    random.shuffle(details)
    separator, spread = random.choice((":", "", ":")), random.random() < 0.5
    found: dict[str, Run] = {}
    for label, value in details:
        line = put(f"{label}{separator}", value) if spread else put(f"{label}{separator} {value}")
        found[value] = line.part(value)
    rule()
    amount_currency = currency if random.random() < 0.5 else ""
    prices = [format_cents(value, amount_currency) for value in cents]
    quantity_form = random.choice(("{} x {}", "{} {}"))
    rows: list[tuple[Run, Run, Run]] = []  # item, quantity, price
    for item, quantity, price in zip(items, quantities, prices, strict=True):
        line = put(quantity_form.format(quantity, item), price)
        start = len(str(quantity))
        rows.append((line.part(item), Run(str(quantity), line.glyphs[:start]), line.part(price)))
    rule()
    total_run = put(random.choice(TOTAL_LABELS) + separator, total, style.bold).part(total)

    (item_run, _, price_run), (counted, quantity_run, _) = random.choice(rows), random.choice(rows)
    return lines, [
        Question("total", random.choice(TOTAL_QUESTIONS), total_run),
        Question("date", random.choice(DATE_QUESTIONS), found[date]),
        Question("number", random.choice(NUMBER_QUESTIONS), found[number]),
        _ask_item(random.choice(PRICE_QUESTIONS), item_run, price_run),
        _ask_item(random.choice(QUANTITY_QUESTIONS), counted, quantity_run),
        Question("vendor", random.choice(VENDOR_QUESTIONS), vendor_run),
    ]


def _ask_item(form: str, item: Run, answer: Run) -> Question:
    return Question.about("line item", form.format(item.text), answer, item)


def draw_receipt(random: Random, names: NameSource, page: Canvas) -> tuple[list[Run], list[Question]]:
    """A shop, 2 to 6 items with prices, their total, and a date above or below them."""
    num_items = random.randint(2, max(2, min(6, count_lines(page.height) - 3)))
    style = random_style(random, page)
    shop, date = names.company(), names.date()
    items = names.items(num_items)
    cents = [names.cents() for _ in items]
    total = format_cents(sum(cents), random.choice(("$", "£", "", "")))
    rows = [(item, format_cents(value, "")) for item, value in zip(items, cents, strict=True)]
    rows.append((random.choice(RECEIPT_TOTAL_LABELS), total))
    room, y = page.width - 2 * style.left, style.pitch / 2
    lines: list[Run] = []

    def put_middle(text: str, font: str) -> Run:
        nonlocal y
        size = fit_size(page, text, font, style.size, room)
        lines.append(page.text(page.width / 2, y, text, font, size, style.ink, "middle"))
        y += style.pitch
        return lines[-1]

    shop_run = put_middle(shop, style.bold)
    date_on_top = random.random() < 0.5
    shown_date = random.choice(("{}", "Date {}", "Date: {}")).format(date)
    if date_on_top:
        date_run = put_middle(shown_date, style.font).part(date)
    drawn: list[tuple[Run, Run]] = []
    for label, value in rows:
        size = fit_size(page, f"{label}  {value}", style.font, style.size, room)
        label_run = page.text(style.left, y, label, style.font, size, style.ink)
        value_run = page.text(page.width - style.left, y, value, style.font, size, style.ink, "right")
        drawn.append((label_run, value_run))
        lines.append(join(drawn[-1], " "))
        y += style.pitch
    if not date_on_top:
        date_run = put_middle(shown_date, style.font).part(date)

    chosen = random.sample(drawn[:-1], 2)
    return lines, [
        Question("total", random.choice(TOTAL_QUESTIONS), drawn[-1][1]),
        Question("date", random.choice(DATE_QUESTIONS), date_run),
        *(_ask_item(random.choice(PRICE_QUESTIONS), *row) for row in chosen),
        Question("vendor", random.choice(SHOP_QUESTIONS), shop_run),
    ]
