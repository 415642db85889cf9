"""Invoices: a vendor, a number, a date, line items, a total."""

from __future__ import annotations

from random import Random

from ernie_calibration.pictures.names import NameSource, format_cents
from ernie_calibration.pictures.picture import Picture, Question
from ernie_calibration.pictures.style import count_lines, fit_size, new_page, random_style

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


def make_invoice(random: Random, names: NameSource, width: int, height: int, scale: float) -> Picture:
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
    lines: list[str] = []

    def put(left: str, right_text: str = "", font: str = style.font) -> None:
        nonlocal y
        size = fit_size(page, f"{left}  {right_text}", font, style.size, right - style.left)
        page.text(style.left, y, left, font, size, style.ink)
        if right_text:
            page.text(right, y, right_text, font, size, style.ink, "right")
        lines.append(f"{left} {right_text}".strip())
        y += style.pitch

    put(vendor, font=style.bold)
    details = [(random.choice(NUMBER_LABELS), number), (random.choice(DATE_LABELS), date)]
    random.shuffle(details)
    separator, spread = random.choice((":", "", ":")), random.random() < 0.5
    for label, value in details:
        put(f"{label}{separator}", value) if spread else put(f"{label}{separator} {value}")
    page.line([(style.left, y - style.pitch * 0.5), (right, y - style.pitch * 0.5)], style.ink, 1.0)
    amount_currency = currency if random.random() < 0.5 else ""
    prices = [format_cents(value, amount_currency) for value in cents]
    quantity_form = random.choice(("{} x {}", "{} {}"))
    for item, quantity, price in zip(items, quantities, prices, strict=True):
        put(quantity_form.format(quantity, item), price)
    page.line([(style.left, y - style.pitch * 0.5), (right, y - style.pitch * 0.5)], style.ink, 1.0)
    put(random.choice(TOTAL_LABELS) + separator, total, style.bold)

    chosen = random.randrange(num_items)
    other = random.randrange(num_items)
    questions = (
        Question("total", random.choice(TOTAL_QUESTIONS), total),
        Question("date", random.choice(DATE_QUESTIONS), date),
        Question("number", random.choice(NUMBER_QUESTIONS), number),
        Question("line item", random.choice(PRICE_QUESTIONS).format(items[chosen]), prices[chosen]),
        Question("line item", random.choice(QUANTITY_QUESTIONS).format(items[other]), str(quantities[other])),
        Question("vendor", random.choice(VENDOR_QUESTIONS), vendor),
    )
    return Picture("invoice", page.image, width, height, tuple(lines), page.glyphs, questions)
