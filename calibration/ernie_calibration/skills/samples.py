"""Makes endless samples of skills beyond reading: fields of small images, clips, close-ups of sheets."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count as count_up
from random import Random

from ernie_calibration.clips import draw_clip
from ernie_calibration.drawn_image import VARIED_LOOK, Question
from ernie_calibration.images import draw_image
from ernie_calibration.names import NameSource
from ernie_calibration.sample import Sample, SampleClip, SampleRound, SampleTurn
from ernie_calibration.sheets import ZOOM_THOUGHTS, ask_sheet, draw_sheet, zoom_call
from ernie_calibration.skills.fields import ask_absent, ask_json, ask_place
from ernie_calibration.skills.knowledge import ask_knowledge

SMALL_PRINT = "small print"
FIELD_KINDS = ("invoice", "form", "receipt", "table", "bar chart", "line chart")
LANDSCAPE, PORTRAIT = (308, 196), (224, 280)
# Cards of a sheet: columns, rows, their size.
SHEETS = ((2, 2, LANDSCAPE), (3, 2, LANDSCAPE), (2, 3, LANDSCAPE), (3, 2, PORTRAIT))
CLIP_SIZE = (224, 140)
_QUESTIONS_EACH = 3


def field_samples(seed: int, held_out: bool) -> Iterator[Sample]:
    """Places, JSON, absent fields, and what words say beyond the print, on small images of varied looks."""
    for index in count_up():
        name = _name("fields", seed, index, held_out)
        random = Random(name)
        kind = FIELD_KINDS[index % len(FIELD_KINDS)]
        width, height = LANDSCAPE if kind != "receipt" else PORTRAIT
        drawn = draw_image(
            kind, random.getrandbits(60), width=width, height=height, held_out=held_out, look=VARIED_LOOK
        )
        names = NameSource(random, held_out)
        asked = [ask_place(random, drawn), ask_json(random, drawn, names), ask_absent(random, drawn, names)]
        questions = [*filter(None, asked), *ask_knowledge(random, drawn)]
        yield Sample(name, (drawn.image,), _turns(random, questions))


def clip_samples(seed: int, held_out: bool) -> Iterator[Sample]:
    """Clips of 2 to 8 frames."""
    width, height = CLIP_SIZE
    for index in count_up():
        name = _name("clips", seed, index, held_out)
        random = Random(name)
        clip = draw_clip(
            random.getrandbits(60),
            num_frames=random.randint(2, 8),
            width=width,
            height=height,
            held_out=held_out,
            look=VARIED_LOOK,
        )
        yield Sample(name, (), _turns(random, list(clip.questions)), (SampleClip(clip.frames),))


def closeup_samples(seed: int, held_out: bool) -> Iterator[Sample]:
    """Sheets whose print is too small until a card is zoomed into."""
    for index in count_up():
        name = _name("closeups", seed, index, held_out)
        random = Random(name)
        columns, rows, card_size = random.choice(SHEETS)
        sheet = draw_sheet(
            random.getrandbits(60), columns=columns, rows=rows, card_size=card_size, held_out=held_out
        )
        asked = ask_sheet(random, sheet, 1)[0]
        box = sheet.thousandths(asked.card)
        heading = asked.card.heading.text
        thought = random.choice(ZOOM_THOUGHTS).format(heading)
        look = SampleRound(thought, zoom_call(box, heading), sheet.image.crop(asked.card.box))
        evidence = f"{asked.question.text}\n{asked.card.drawn.line_of(asked.question).text}"
        turn = SampleTurn(asked.text, asked.question.answer, SMALL_PRINT, evidence, (look,))
        yield Sample(name, (sheet.image,), (turn,))


def _turns(random: Random, questions: list[Question]) -> tuple[SampleTurn, ...]:
    chosen = random.sample(questions, min(_QUESTIONS_EACH, len(questions)))
    return tuple(SampleTurn(question.text, question.answer, question.kind) for question in chosen)


def _name(family: str, seed: int, index: int, held_out: bool) -> str:
    return f"{'held out/' * held_out}{family}/{seed}/{index}"
