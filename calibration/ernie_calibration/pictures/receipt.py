"""Shop receipts: a shop, items with prices, a total, a date."""

from __future__ import annotations

from random import Random

from ernie_calibration.pictures.invoice import DATE_QUESTIONS, PRICE_QUESTIONS, TOTAL_QUESTIONS
from ernie_calibration.pictures.names import NameSource, format_cents
from ernie_calibration.pictures.picture import Picture, Question
from ernie_calibration.pictures.style import count_lines, fit_size, new_page, random_style

TOTAL_LABELS = ("TOTAL", "Total", "SUM", "To pay")
SHOP_QUESTIONS = ("Which shop is it?", "What is the name of the shop?", "Where was it bought?")


def make_receipt(random: Random, names: NameSource, width: int, height: int, scale: float) -> Picture:
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
    rows.append((random.choice(TOTAL_LABELS), total))
    room, y = width - 2 * style.left, style.pitch / 2
    size = fit_size(page, shop, style.bold, style.size, room)
    page.text(width / 2, y, shop, style.bold, size, style.ink, "middle")
    lines = [shop]
    date_on_top = random.random() < 0.5
    shown_date = random.choice(("{}", "Date {}", "Date: {}")).format(date)

    def put_date() -> None:
        fitted = fit_size(page, shown_date, style.font, style.size, room)
        page.text(width / 2, y, shown_date, style.font, fitted, style.ink, "middle")
        lines.append(shown_date)

    y += style.pitch
    if date_on_top:
        put_date()
        y += style.pitch
    for label, value in rows:
        size = fit_size(page, f"{label}  {value}", style.font, style.size, room)
        page.text(style.left, y, label, style.font, size, style.ink)
        page.text(width - style.left, y, value, style.font, size, style.ink, "right")
        lines.append(f"{label} {value}")
        y += style.pitch
    if not date_on_top:
        put_date()

    first, second = random.sample(range(num_items), 2)
    questions = (
        Question("total", random.choice(TOTAL_QUESTIONS), total),
        Question("date", random.choice(DATE_QUESTIONS), date),
        Question("line item", random.choice(PRICE_QUESTIONS).format(items[first]), prices[first]),
        Question("line item", random.choice(PRICE_QUESTIONS).format(items[second]), prices[second]),
        Question("vendor", random.choice(SHOP_QUESTIONS), shop),
    )
    return Picture("receipt", page.image, width, height, tuple(lines), page.glyphs, questions)
