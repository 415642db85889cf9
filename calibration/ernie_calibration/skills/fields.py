"""Asks for the fields of a drawn image: where they are, as JSON, and for ones that the page does not have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from random import Random

from ernie_calibration.drawn_image import Box, DrawnImage, Question, Run, as_places, join
from ernie_calibration.images.forms import COLUMNS, FIELD_QUESTIONS
from ernie_calibration.names import NameSource
from ernie_local.structured.fields import parse_fields
from ernie_local.structured.instruction import schema_instruction

PLACE, JSON_FIELDS, ABSENT_FIELD = "place", "json fields", "absent field"
ABSENT_ANSWER = "Not on the page."
PLACE_QUESTIONS = (
    "Where is the {}?",
    "Where is the {} printed?",
    "Locate the {}.",
    "Mark the {}.",
    "Show where the {} is.",
    "Give the box of the {}.",
)
JSON_QUESTIONS = ("Read the fields.", "Extract the fields.", "What is on the page?")
LISTED_QUESTIONS = (
    "Give {} as JSON.",
    "Answer in JSON with the keys {}.",
    "Write {} as one JSON object.",
)
_NAME_OF_KIND = {"total": "total", "date": "date", "number": "invoice number", "vendor": "vendor"}
# What pages of a kind do not have, whatever they are called there.
_FOREIGN = {
    "invoice": ("phone", "job", "age", "street", "room", "code", "first name", "last name"),
    "receipt": ("phone", "job", "age", "street", "room", "code", "invoice number", "last name"),
    "form": ("total", "vendor", "invoice number", "phone", "job", "age", "street", "room", "code", "city"),
    "table": ("total", "vendor", "invoice number", "phone", "street"),
    "bar chart": ("total", "vendor", "invoice number", "phone", "street"),
    "line chart": ("total", "vendor", "invoice number", "phone", "street"),
}
_FEWEST_KEYS, _MOST_KEYS = 2, 4


def named_fields(drawn: DrawnImage) -> dict[str, Run]:
    """What the questions of an image ask for, by a name in words; empty for an image of text alone."""
    fields: dict[str, Run] = {}
    for question in drawn.questions:
        named = [run.text for _, run in question.mentions]
        if question.kind in _NAME_OF_KIND:
            name = _NAME_OF_KIND[question.kind]
        elif question.kind == "form field":
            name = named[0].lower()
        elif question.kind == "line item":
            name = f"{'price' if '.' in question.answer else 'quantity'} of {named[0]}"
        elif question.kind == "table cell":
            name = f"{named[0].lower()} of {named[1]}"
        elif question.kind in ("bar value", "line point"):
            name = f"value of {named[0]}"
        else:
            continue
        fields.setdefault(name, question.printed)
    return fields


def thousandths(box: Box, width: float, height: float) -> tuple[int, int, int, int]:
    """A box as a model writes it: of the width and the height of its page, never empty."""
    left, top, right, bottom = (
        min(1000, max(0, round(1000 * side / whole)))
        for side, whole in zip(box, (width, height, width, height), strict=True)
    )
    left, top = min(left, 999), min(top, 999)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def place_answer(box: tuple[int, int, int, int], label: str) -> str:
    """A box in the form that the original writes."""
    return json.dumps({"bbox_2d": list(box), "label": label}, ensure_ascii=False)


def ask_place(random: Random, drawn: DrawnImage) -> Question | None:
    """Where a field is; None for an image without one."""
    fields = named_fields(drawn)
    if not fields:
        return None
    name = random.choice(list(fields))
    box = thousandths(fields[name].box, drawn.width, drawn.height)
    answer = as_places(place_answer(box, name), fields[name])
    return Question(PLACE, random.choice(PLACE_QUESTIONS).format(name), answer, ((name, fields[name]),))


def absent_names(drawn: DrawnImage, names: NameSource) -> list[str]:
    """Fields that the page does not have."""
    printed = drawn.transcript.lower()
    absent = [name for name in _FOREIGN.get(drawn.kind, ()) if name not in printed]
    if drawn.kind == "table":
        columns = [column for column in COLUMNS if column.lower() not in printed]
        rows = [question.mentions[1][1].text for question in drawn.questions if len(question.mentions) > 1]
        absent.append(f"{names.random.choice(columns).lower()} of {names.random.choice(rows)}")
    if drawn.kind in ("invoice", "receipt", "bar chart"):
        other = names.items(1)[0]
        if other.lower() not in printed:
            absent.append(f"{'value' if drawn.kind == 'bar chart' else 'price'} of {other}")
    return absent


def ask_absent(random: Random, drawn: DrawnImage, names: NameSource) -> Question | None:
    """A plain question for a field that is not there; None for an image without fields."""
    absent = absent_names(drawn, names)
    if not absent:
        return None
    text = random.choice(FIELD_QUESTIONS).format(random.choice(absent))
    return Question(ABSENT_FIELD, text, Run.unprinted(ABSENT_ANSWER))


def json_answer(fields: Mapping[str, Run | None]) -> Run:
    """One object on one line, null for what is not there."""
    parts = [Run.unprinted("{")]
    for index, (name, value) in enumerate(fields.items()):
        key = f"{', ' * (index > 0)}{json.dumps(name, ensure_ascii=False)}: "
        if value is None:
            parts.append(Run.unprinted(f"{key}null"))
        else:
            parts += [Run.unprinted(f'{key}"'), value, Run.unprinted('"')]
    return join([*parts, Run.unprinted("}")], "")


def ask_json(random: Random, drawn: DrawnImage, names: NameSource) -> Question | None:
    """Some fields as JSON, some of them absent; None for an image without fields.

    Half of the questions end with what the runtime tells of a form, the others list the keys.
    """
    fields: dict[str, Run | None] = {**named_fields(drawn)}
    if not fields:
        return None
    present = random.sample(list(fields), min(len(fields), random.randint(_FEWEST_KEYS, _MOST_KEYS)))
    absent = absent_names(drawn, names)
    missing = random.sample(absent, min(len(absent), random.choice((0, 0, 1, 1, 2))))
    keys = [*present, *missing]
    random.shuffle(keys)
    answer = json_answer({key: fields.get(key) for key in keys})
    mentions = tuple((key, run) for key in keys if (run := fields.get(key)) is not None)
    return Question(JSON_FIELDS, _json_question(random, keys), answer, mentions)


def _json_question(random: Random, keys: Sequence[str]) -> str:
    if random.random() < 0.5:
        schema = parse_fields(", ".join(f"{json.dumps(key)}?" for key in keys))
        return f"{random.choice(JSON_QUESTIONS)}\n{schema_instruction(schema)}"
    return random.choice(LISTED_QUESTIONS).format(", ".join(keys))
