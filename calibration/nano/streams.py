"""Draws the conversations of a stream, one after the other, with their pictures and what is printed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import numpy
import sentencepiece
from numpy.typing import NDArray
from PIL import Image

from ernie_calibration.clips import FRAMES_JOINED, draw_clip
from ernie_calibration.drawn_image import PLAIN_LOOK, DrawnImage, Glyph, Look, Question, Run, join
from ernie_calibration.images import draw_image
from ernie_calibration.names import NameSource
from ernie_calibration.scan import blur, jpeg, low_contrast, shadow
from ernie_calibration.sheets import (
    READABLE_THOUGHTS,
    ZOOM_THOUGHTS,
    DrawnSheet,
    SheetQuestion,
    ask_sheet,
    draw_sheet,
    zoom_call,
)
from ernie_calibration.skills.fields import ask_absent, ask_json, ask_place, thousandths
from ernie_calibration.skills.knowledge import ask_knowledge
from ernie_calibration.skills.samples import SMALL_PRINT
from ernie_local.media.image_size import smart_resize
from nano.conversation import (
    NOTHING,
    TrainingConversation,
    TrainingLook,
    TrainingTurn,
    image_turns,
    naming,
    text_turns,
    transcript_turn,
)
from nano.network import EDGES, MOST_EDGE, SLOTS
from nano.shape import NanoShape

CHARACTERS = "".join(chr(code) for code in range(33, 127)) + "£"
NUM_CHARACTER_CLASSES = len(CHARACTERS) + 1  # 0: nothing printed

THINKING_BATCHES = 0.12
MOST_SKILLS = 2  # of an image: their answers are long
MOST_ASIDE = 12  # pixels that a side of what a call gives may lie off


@dataclass(frozen=True, slots=True)
class Stream:
    """Conversations on pictures of one `grid` of (rows, columns) image tokens; no kinds: text only.

    `kinds` are those of small images. `transcripts`, `skills`, `tools`: the shares of batches that ask for
    all that is printed instead of `questions`; for places, JSON, absent fields and knowledge; and that offer
    the zoom tool, in the Thinking format, where no zoom is needed. `sheet`: columns and rows of cards of a
    sheet that `grid` shrinks, and the grid of each card. `num_frames`: of a clip. `look`: of all pages.
    `aside`: page units that small images are moved by at most.
    """

    kinds: tuple[str, ...]
    grid: tuple[int, int]
    batch: int
    weight: float
    questions: int = 3
    transcripts: float = 0.0
    skills: float = 0.0
    tools: float = 0.0
    sheet: tuple[int, int, tuple[int, int]] | None = None
    num_frames: int = 0
    look: Look = PLAIN_LOOK
    aside: int = 0


@dataclass(frozen=True, slots=True)
class Conversed:
    """A conversation with its pictures: frames (frames, height, width, 3), characters and edges of each."""

    conversation: TrainingConversation
    kind: str
    frames: list[NDArray[numpy.uint8]]
    characters: list[NDArray[numpy.int64]]
    edges: list[NDArray[numpy.int64]]
    drawn: list[tuple[float, float, tuple[int, int]]]  # of each picture: width, height, grid


def cell_of(glyph: Glyph, page: tuple[float, float], grid: tuple[int, int]) -> int | None:
    """The image token (row * columns + column) whose cell holds the glyph's centre; None beyond the page.

    page: its (width, height) in page units.
    """
    rows, columns = grid
    row, column = int(glyph.y * rows // page[1]), int(glyph.x * columns // page[0])
    return row * columns + column if 0 <= row < rows and 0 <= column < columns else None


def character_classes(drawn: DrawnImage, grid: tuple[int, int]) -> NDArray[numpy.int64]:
    """(rows * columns, SLOTS) classes of the first characters centred in each cell, in reading order."""
    classes = numpy.zeros((grid[0] * grid[1], SLOTS), dtype=numpy.int64)
    filled = [0] * len(classes)
    for glyph in sorted(drawn.glyphs, key=lambda glyph: (glyph.y, glyph.x)):
        cell = cell_of(glyph, (drawn.width, drawn.height), grid)
        if cell is not None and filled[cell] < SLOTS:
            classes[cell, filled[cell]] = CHARACTERS.find(glyph.character) + 1
            filled[cell] += 1
    return classes


def edge_classes(drawn: DrawnImage, grid: tuple[int, int]) -> NDArray[numpy.int64]:
    """(rows * columns, EDGES): how far left, top, right and bottom of what is printed in a cell lie in it.

    Counted in steps from half a cell before it (1) to half a cell behind it (MOST_EDGE); 0: nothing printed.
    Left and right are those of the cell's glyphs, so that what runs on begins and ends with its cells.
    """
    rows, columns = grid
    cell_size = (drawn.width / columns, drawn.height / rows)
    edges = numpy.full((rows * columns, EDGES), numpy.nan)
    for glyph in drawn.glyphs:
        cell = cell_of(glyph, (drawn.width, drawn.height), grid)
        if cell is not None:
            edges[cell, :2] = numpy.fmin(edges[cell, :2], glyph.box[:2])
            edges[cell, 2:] = numpy.fmax(edges[cell, 2:], glyph.box[2:])
    row, column = numpy.divmod(numpy.arange(rows * columns), columns)
    origin = numpy.stack((column, row, column, row), axis=1) * (cell_size * 2)
    share = (edges - origin) / (cell_size * 2)
    steps = 1 + numpy.floor((share + 0.5) / 2 * MOST_EDGE).clip(0, MOST_EDGE - 1)
    return numpy.where(numpy.isnan(edges), 0, steps).astype(numpy.int64)


def with_noise(random: Random, image: Image.Image, size: tuple[int, int]) -> NDArray[numpy.uint8]:
    """The image at `size` as (height, width, 3), sometimes with sensor noise or another contrast."""
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    pixels = numpy.asarray(image, dtype=numpy.uint8)
    if random.random() < 0.3:
        generator = numpy.random.default_rng(random.getrandbits(32))
        noise = generator.normal(0.0, random.uniform(2.0, 10.0), pixels.shape[:2]).astype(numpy.float32)
        pixels = numpy.clip(pixels + noise[..., None], 0, 255).astype(numpy.uint8)
    return pixels


def with_wear(random: Random, image: Image.Image, look: Look) -> Image.Image:
    """Of varied pages, some are printed or copied badly; none is turned, as lines keep to rows of tokens."""
    if look is PLAIN_LOOK or random.random() < 0.6:
        return image
    return random.choice((low_contrast, shadow, blur, jpeg))(random, image)


def page_size(random: Random, grid: tuple[int, int], token_pixels: int) -> tuple[int, int]:
    """A page that the image processor brings to `grid`; mostly it squeezes a side a little.

    The height stays under half a line more, so that each line of text still gets one row of image tokens.
    """
    rows, columns = grid
    if random.random() < 0.4:
        return columns * token_pixels, rows * token_pixels
    width = columns * random.uniform(0.97, 1.06)
    height = rows * random.uniform(0.97, 1.0) if random.random() < 0.3 else rows + random.uniform(0.0, 0.45)
    return round(width * token_pixels), round(height * token_pixels)


def laid_at(drawn: DrawnImage, image: Image.Image, size: tuple[int, int], x: int, y: int) -> DrawnImage:
    """The page in `image`, of (width, height) `size` in page units, in which it begins at (x, y)."""
    questions = tuple(
        replace(
            question,
            printed=question.printed.moved(x, y),
            mentions=tuple((words, run.moved(x, y)) for words, run in question.mentions),
        )
        for question in drawn.questions
    )
    return DrawnImage(drawn.kind, image, *size, tuple(line.moved(x, y) for line in drawn.lines), questions)


def close_up(sheet: DrawnSheet, asked: SheetQuestion, box: tuple[int, int, int, int]) -> DrawnImage:
    """What `box` of a sheet shows of the card that is asked about, and the question about it."""
    image, card = sheet.image.crop(box), asked.card
    drawn = replace(card.drawn, questions=(asked.question,))
    return laid_at(drawn, image, image.size, card.box[0] - box[0], card.box[1] - box[1])


def shifted(random: Random, drawn: DrawnImage, most: int) -> DrawnImage:
    """The page moved by up to `most` page units each way; its edge goes on where it was."""
    x, y = (round(random.triangular(-most, most)) for _ in range(2))
    scale = drawn.image.width / drawn.width
    pixels, (down, right) = numpy.asarray(drawn.image), (round(shift * scale) for shift in (y, x))
    around = [(max(0, shift), max(0, -shift)) for shift in (down, right)]
    padded = numpy.pad(pixels, (*around, (0, 0)), mode="edge")
    height, width = pixels.shape[:2]
    moved = padded[max(0, -down) : max(0, -down) + height, max(0, -right) : max(0, -right) + width]
    return laid_at(drawn, Image.fromarray(moved), (drawn.width, drawn.height), x, y)


class Converser:
    """Draws the conversations of one batch. Long turns lie in batches of their own, or each batch would be as
    long as its one transcript."""

    def __init__(
        self,
        stream: Stream,
        random: Random,
        tokenizer: sentencepiece.SentencePieceProcessor,
        shape: NanoShape,
        held_out: bool,
    ) -> None:
        self.stream, self.random, self.tokenizer, self.shape = stream, random, tokenizer, shape
        self.names = NameSource(random, held_out)
        self.held_out = held_out
        self.transcribes = random.random() < stream.transcripts
        self.thinks = not held_out and random.random() < THINKING_BATCHES
        self.has_skills = random.random() < stream.skills
        self.has_tools = random.random() < stream.tools

    def next(self) -> Conversed:
        """The next conversation."""
        if not self.stream.kinds:
            conversation = TrainingConversation(self.tokenizer)
            turns = text_turns(self.names, self.stream.questions)
            conversation.add_turns(turns, 0)
            return Conversed(conversation, turns[0].kind, [], [], [], [])
        if self.stream.sheet is not None:
            return self._on_sheet(*self.stream.sheet)
        if self.stream.num_frames:
            return self._on_clip(self.stream.num_frames)
        return self._on_image()

    def _on_image(self) -> Conversed:
        random, stream, grid, side = self.random, self.stream, self.stream.grid, self.shape.token_pixels
        scale = random.uniform(1.2, 2.8) if random.random() < 0.2 else 1.0
        width, height = page_size(random, grid, side)
        drawn = draw_image(
            random.choice(stream.kinds),
            random.getrandbits(60),
            held_out=self.held_out,
            scale=scale,
            look=stream.look,
            width=width,
            height=height,
        )
        if stream.aside:
            drawn = shifted(random, drawn, stream.aside)
        conversation = TrainingConversation(
            self.tokenizer, "thinking" if self.has_tools else "pt", with_zoom=self.has_tools
        )
        if self.transcribes:
            turns = [transcript_turn(random, drawn)]
        elif self.has_tools:
            (turn,) = image_turns(random, drawn, drawn.questions, 1, thinking_share=1.0)
            seen = Run.unprinted(f"{random.choice(READABLE_THOUGHTS)}\n")
            turns = [replace(turn, thought=join((seen, turn.thought), ""))]
        else:
            share = 0.7 if self.thinks else 0.0
            questions, most = drawn.questions, stream.questions
            if self.has_skills:
                questions, most = tuple(self._skill_questions(drawn)), min(most, MOST_SKILLS)
            turns = image_turns(random, drawn, questions, most, thinking_share=share)
        conversation.add_turns(turns, grid[0] * grid[1])
        image = with_wear(random, drawn.image, stream.look)
        pixels = with_noise(random, image, (grid[1] * side, grid[0] * side))
        page = (drawn.width, drawn.height, grid)
        classes, edges = [character_classes(drawn, grid)], [edge_classes(drawn, grid)]
        return Conversed(conversation, turns[0].kind, [pixels[None]], classes, edges, [page])

    def _skill_questions(self, drawn: DrawnImage) -> list[Question]:
        """Places and JSON come first in number, as their answers are the longest to learn."""
        random, names = self.random, self.names
        asked = [
            ask_place(random, drawn),
            ask_place(random, drawn),
            ask_json(random, drawn, names),
            ask_json(random, drawn, names),
            ask_absent(random, drawn, names),
        ]
        return [*(one for one in asked if one is not None), *ask_knowledge(random, drawn)]

    def _on_clip(self, num_frames: int) -> Conversed:
        random, grid, side = self.random, self.stream.grid, self.shape.token_pixels
        clip = draw_clip(
            random.getrandbits(60),
            num_frames=num_frames,
            width=grid[1] * side,
            height=grid[0] * side,
            scale=random.choice((1.0, 1.0, 1.5, 2.0)),
            held_out=self.held_out,
            look=self.stream.look,
        )
        questions = random.sample(clip.questions, min(self.stream.questions, len(clip.questions)))
        turns = [TrainingTurn(one.text, one.printed, NOTHING, one.mentions, one.kind) for one in questions]
        images = [*clip.frames, *clip.frames[-1:] * (num_frames % FRAMES_JOINED)]
        frames = [with_noise(random, image, (grid[1] * side, grid[0] * side)) for image in images]
        num_pairs = len(frames) // FRAMES_JOINED
        conversation = TrainingConversation(self.tokenizer)
        conversation.add_turns(turns, num_pairs * grid[0] * grid[1], "video")
        page = (clip.width, clip.height * num_pairs, (grid[0] * num_pairs, grid[1]))
        pairs = DrawnImage("clip", clip.frames[0], *page[:2], clip.lines, ())
        classes, edges = [character_classes(pairs, page[2])], [edge_classes(pairs, page[2])]
        return Conversed(conversation, turns[0].kind, [numpy.stack(frames)], classes, edges, [page])

    def _on_sheet(self, columns: int, rows: int, card_grid: tuple[int, int]) -> Conversed:
        """A question whose answer only a close-up shows."""
        random, grid, side = self.random, self.stream.grid, self.shape.token_pixels
        card_size = card_grid[1] * side, card_grid[0] * side
        while True:  # until the runtime shrinks it to the grid of the batch
            sheet = draw_sheet(
                random.getrandbits(60),
                columns=columns,
                rows=rows,
                card_size=card_size,
                held_out=self.held_out,
                look=self.stream.look,
            )
            most = self.shape.max_image_tokens * side**2
            height, width = smart_resize(sheet.image.height, sheet.image.width, side, 4 * side**2, most)
            if (height // side, width // side) == grid:
                break
        (asked,) = ask_sheet(random, sheet, 1)
        card, heading = asked.card, asked.card.heading
        # The call is right, so that it can be learnt; what it gives is not quite, as calls of nano are not.
        box = card.box if random.random() < 0.3 else self._box_beside(card.box, sheet.image.size, card_grid)
        call = zoom_call(thousandths(card.box, *sheet.image.size), heading.text)
        before, after = random.choice(ZOOM_THOUGHTS).split("{}")
        thought = join((Run.unprinted(before), heading, Run.unprinted(after)), "")
        look = TrainingLook(thought, call, heading, card_grid[0] * card_grid[1])
        shown = close_up(sheet, asked, box)
        (question,) = shown.questions
        turn = TrainingTurn(
            asked.text,
            question.printed,
            shown.line_of(question),
            ((heading.text, heading),),
            SMALL_PRINT,
            look=look,
            restated=naming(question.text, question.mentions),
        )
        conversation = TrainingConversation(self.tokenizer, "thinking", with_zoom=True)
        conversation.add_turns([turn], grid[0] * grid[1])
        pixels = with_noise(random, sheet.image, (grid[1] * side, grid[0] * side))
        headings = tuple(one.heading for one in sheet.cards)
        seen = [
            (DrawnImage("sheet", sheet.image, *sheet.image.size, headings, ()), grid),
            (shown, card_grid),
        ]
        return Conversed(
            conversation,
            SMALL_PRINT,
            [pixels[None], with_noise(random, shown.image, card_size)[None]],
            [character_classes(*one) for one in seen],
            [edge_classes(*one) for one in seen],
            [(drawn.width, drawn.height, tokens) for drawn, tokens in seen],
        )

    def _box_beside(
        self, box: tuple[int, int, int, int], size: tuple[int, int], grid: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        """A box whose sides lie up to MOST_ASIDE pixels off, and of which the image processor makes `grid`.

        size: (width, height) of the image that it stays in.
        """
        side = self.shape.token_pixels
        while True:
            aside = [corner + round(self.random.triangular(-MOST_ASIDE, MOST_ASIDE)) for corner in box]
            left, top = max(0, aside[0]), max(0, aside[1])
            right, bottom = min(size[0], aside[2]), min(size[1], aside[3])
            if (round((bottom - top) / side), round((right - left) / side)) == grid:
                return left, top, right, bottom
