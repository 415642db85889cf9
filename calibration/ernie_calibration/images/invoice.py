"""Draws small invoices and receipts: a vendor, a date, line items, a total."""

from __future__ import annotations

from random import Random

from ernie_calibration.canvas import count_lines, fit_size, new_page, random_style
from ernie_calibration.drawn_image import DrawnImage, Question, Run, join, spelled_out
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


def item_question(text: str, item: Run, answer: Run) -> Question:
    """A question about a line item; `text` has a place for the item's name."""
    return Question("line item", text.format(item.text), answer, spelled_out(item))


def draw_invoice(random: Random, names: NameSource, width: int, height: int, scale: float) -> DrawnImage:
    """An invoice of 2 to 4 items on a page of `width` x `height` units."""
    page = new_page(random, width, height, scale)
    num_items = random.randint(2, max(2, min(4, count_lines(height) - 5)))
    style = random_style(random, height)
    vendor, number, date = names.company(), names.document_number(), names.date()
    currency = random.choice(("$", "£", "", "EUR", "USD"))
    items = names.items(num_items)
    quantities = [random.randint(1, 20) for _ in items]
    cents = [names.cents() for _ in items]
    total = format_cents(sum(cents), currency)
    right, y = width - style.left, style.pitch / 2
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

    vendor_run = put(vendor, font=style.bold)
    details = [(random.choice(NUMBER_LABELS), number), (random.choice(DATE_LABELS), date)]
    random.shuffle(details)
    separator, spread = random.choice((":", "", ":")), random.random() < 0.5
    found: dict[str, Run] = {}
    for label, value in details:
        line = put(f"{label}{separator}", value) if spread else put(f"{label}{separator} {value}")
        found[value] = line.part(value)
    page.line([(style.left, y - style.pitch * 0.5), (right, y - style.pitch * 0.5)], style.ink, 1.0)
    amount_currency = currency if random.random() < 0.5 else ""
    prices = [format_cents(value, amount_currency) for value in cents]
    quantity_form = random.choice(("{} x {}", "{} {}"))
    rows: list[tuple[Run, Run, Run]] = []  # item, quantity, price
    for item, quantity, price in zip(items, quantities, prices, strict=True):
        line = put(quantity_form.format(quantity, item), price)
        start = len(str(quantity))
        rows.append((line.part(item), Run(str(quantity), line.glyphs[:start]), line.part(price)))
    page.line([(style.left, y - style.pitch * 0.5), (right, y - style.pitch * 0.5)], style.ink, 1.0)
    total_run = put(random.choice(TOTAL_LABELS) + separator, total, style.bold).part(total)

    chosen, other = random.randrange(num_items), random.randrange(num_items)
    questions = (
        Question("total", random.choice(TOTAL_QUESTIONS), total_run),
        Question("date", random.choice(DATE_QUESTIONS), found[date]),
        Question("number", random.choice(NUMBER_QUESTIONS), found[number]),
        item_question(random.choice(PRICE_QUESTIONS), rows[chosen][0], rows[chosen][2]),
        item_question(random.choice(QUANTITY_QUESTIONS), rows[other][0], rows[other][1]),
        Question("vendor", random.choice(VENDOR_QUESTIONS), vendor_run),
    )
    return DrawnImage("invoice", page.image, width, height, tuple(lines), questions)


RECEIPT_TOTAL_LABELS = ("TOTAL", "Total", "SUM", "To pay")
SHOP_QUESTIONS = ("Which shop is it?", "What is the name of the shop?", "Where was it bought?")


def draw_receipt(random: Random, names: NameSource, width: int, height: int, scale: float) -> DrawnImage:
    """A receipt of 2 to 6 items on a page of `width` x `height` units."""
    page = new_page(random, width, height, scale)
    num_items = random.randint(2, max(2, min(6, count_lines(height) - 3)))
    style = random_style(random, height)
    shop, date = names.company(), names.date()
    items = names.items(num_items)
    cents = [names.cents() for _ in items]
    currency = random.choice(("$", "£", "", ""))
    total = format_cents(sum(cents), currency)
    prices = [format_cents(value, "") for value in cents]
    rows = [(item, price) for item, price in zip(items, prices, strict=True)]
    rows.append((random.choice(RECEIPT_TOTAL_LABELS), total))
    room, y = width - 2 * style.left, style.pitch / 2
    size = fit_size(page, shop, style.bold, style.size, room)
    lines = [page.text(width / 2, y, shop, style.bold, size, style.ink, "middle")]
    date_on_top = random.random() < 0.5
    shown_date = random.choice(("{}", "Date {}", "Date: {}")).format(date)

    def put_date() -> Run:
        fitted = fit_size(page, shown_date, style.font, style.size, room)
        lines.append(page.text(width / 2, y, shown_date, style.font, fitted, style.ink, "middle"))
        return lines[-1].part(date)

    y += style.pitch
    if date_on_top:
        date_run = put_date()
        y += style.pitch
    drawn: list[tuple[Run, Run]] = []
    for label, value in rows:
        size = fit_size(page, f"{label}  {value}", style.font, style.size, room)
        label_run = page.text(style.left, y, label, style.font, size, style.ink)
        value_run = page.text(width - style.left, y, value, style.font, size, style.ink, "right")
        drawn.append((label_run, value_run))
        lines.append(join(drawn[-1], " "))
        y += style.pitch
    if not date_on_top:
        date_run = put_date()

    first, second = random.sample(range(num_items), 2)
    questions = (
        Question("total", random.choice(TOTAL_QUESTIONS), drawn[-1][1]),
        Question("date", random.choice(DATE_QUESTIONS), date_run),
        *(item_question(random.choice(PRICE_QUESTIONS), *drawn[index]) for index in (first, second)),
        Question("vendor", random.choice(SHOP_QUESTIONS), lines[0]),
    )
    return DrawnImage("receipt", page.image, width, height, tuple(lines), questions)
