"""Shop receipts: a shop, items with prices, a total, a date."""

from __future__ import annotations

from random import Random

from ernie_calibration.pictures.invoice import (
    DATE_QUESTIONS,
    PRICE_QUESTIONS,
    TOTAL_QUESTIONS,
    item_question,
)
from ernie_calibration.pictures.names import NameSource, format_cents
from ernie_calibration.pictures.picture import Picture, Question, Run, join
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
    return Picture("receipt", page.image, width, height, tuple(lines), questions)
