"""Draws receipts: a narrow strip with a shop, items and prices, what was paid and given back."""

from __future__ import annotations

from random import Random

from ernie_calibration.documents.draft import Draft, new_draft
from ernie_calibration.documents.language import Language
from ernie_calibration.documents.sheet import Cell
from ernie_calibration.drawn_image import DrawnImage, Run

KIND = "receipt strip"
MOST_ITEMS = 30
# How a line item is written; every fourth form is held out.
ITEM_FORMS = (
    "{item}",
    "{item} x{quantity}",
    "{quantity} {item}",
    "{item} ({quantity})",
    "{quantity} x {item}",
)
NOTES = (500, 1000, 2000, 5000, 10000, 20000)


def draw_receipt_strip(random: Random, language: Language, held_out: bool) -> DrawnImage:
    """A strip with as many items as fit, 3 at least; change = paid - total."""
    draft = new_draft(random, language, held_out, "strip")
    sheet, names, asker = draft.sheet, draft.names, draft.asker
    shop, number, date = names.company(), names.number(), names.date()
    shop_run = sheet.put(shop, align="middle", bold=True, scale=1.2)
    sheet.put(names.street(), align="middle")
    sheet.put(names.town(), align="middle")
    sheet.put(f"{draft.label('phone')}: {names.phone()}", align="middle")
    _divide(draft)
    sheet.put(draft.label("receipt"), align="middle", bold=True)
    labels = (draft.label("number"), draft.label("date"))
    form = random.choice(("colon", "right", "columns"))
    details = sheet.fields(list(zip(labels, (number, date), strict=True)), sheet.left, sheet.width, form)
    _divide(draft)

    count = draft.count(3, min(MOST_ITEMS, sheet.lines_left() - 8))
    items = names.items(count)
    item_form = names.choose(ITEM_FORMS)
    quantities = [random.randint(1, 9) if "{quantity}" in item_form else 1 for _ in items]
    sums = [names.cents() * quantity for quantity in quantities]
    amounts: list[Run] = []
    for item, quantity, amount in zip(items, quantities, sums, strict=True):
        text = item_form.format(item=item, quantity=quantity)
        amounts.append(_pair(draft, text, language.amount(amount)))
    _divide(draft)
    total = sum(sums)
    total_label = draft.label("total")
    total_run = _pair(draft, total_label, names.money(total), bold=True)
    paid_label = draft.label("cash")
    paid = next((note for note in NOTES if note >= total), total)
    _pair(draft, paid_label, language.amount(paid))
    change_label = draft.label("change")
    change_run = _pair(draft, change_label, language.amount(paid - total))
    sheet.skip(0.7)
    sheet.put(draft.label("thanks"), align="middle")

    questions = [
        asker.sender(shop_run),
        asker.field(labels[0], details[0], "document number"),
        asker.field(labels[1], details[1], "document date"),
        asker.field(total_label, total_run, "document total"),
        asker.field(change_label, change_run),
    ]
    chosen = random.sample(range(count), 2)
    questions += [asker.item("amount", items[index], amounts[index]) for index in chosen]
    return draft.finish(KIND, questions)


def _pair(draft: Draft, left: str, right: str, bold: bool = False) -> Run:
    """Words at the left, an amount at the right; the amount as printed."""
    sheet = draft.sheet
    room = sheet.width * 0.62
    cells = (
        Cell(left, sheet.left, room * 0.97, bold=bold),
        Cell(right, sheet.left + room, sheet.width - room, "right", bold),
    )
    return sheet.line(*cells)[1]


def _divide(draft: Draft) -> None:
    sheet = draft.sheet
    sheet.skip(0.2)
    sheet.rule()
    sheet.skip(0.2)
