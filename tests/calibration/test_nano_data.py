"""nano's training conversations: the ids that the runtime's templates write, labels on what is written."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy
import pytest
import sentencepiece
from PIL import Image

from ernie_calibration.drawn_image import DrawnImage, Glyph, Run
from ernie_calibration.images import draw_image
from ernie_calibration.sheets import ask_sheet, draw_sheet, zoom_call
from ernie_calibration.skills.samples import closeup_samples
from ernie_local.media.processor import image_to_patches
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.session.image_tools import zoom_tool
from ernie_local.text.template import (
    ChatTemplate,
    ImageSlot,
    Message,
    Segment,
    Variant,
    VideoSlot,
    encode_segments,
)
from ernie_local.text.tokenizer import ErnieTokenizer
from ernie_quant.evaluation.observation import ZoomedAnswer, answer_with_zoom
from nano.batches import MEDIA
from nano.conversation import (
    NOTHING,
    MediaKind,
    TrainingConversation,
    TrainingLook,
    TrainingTurn,
    image_turns,
    naming,
)
from nano.network import MOST_EDGE, SLOTS
from nano.shape import NanoShape
from nano.streams import CHARACTERS, Converser, Stream, close_up, edge_classes, shifted
from nano.tokenizer import train_tokenizer
from tests.runtime.conftest import ScriptedModel

CALL = zoom_call((12, 345, 678, 1000), "Lyon")


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def pieces(tokenizer_path: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))


@pytest.fixture(scope="module")
def runtime(tokenizer_path: Path) -> ErnieTokenizer:
    return ErnieTokenizer.from_directory(tokenizer_path.parent)


def turns_on(seed: int) -> list[TrainingTurn]:
    random = Random(seed)
    drawn = draw_image("invoice", seed, width=308, height=196)
    return [replace(turn, is_history=False) for turn in image_turns(random, drawn, drawn.questions, 3, 0.5)]


def rendered(runtime: ErnieTokenizer, segments: list[Segment]) -> list[int]:
    return list(encode_segments(runtime, segments, MEDIA).token_ids)


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("variant", ["pt", "thinking"])
def test_each_turn_is_asked_as_the_runtime_asks_it(
    pieces: sentencepiece.SentencePieceProcessor, runtime: ErnieTokenizer, variant: Variant, kind: MediaKind
) -> None:
    """In PT a finished turn is written without its empty thought, so there only the first is compared."""
    slot = ImageSlot(6) if kind == "image" else VideoSlot(6)
    for seed in range(3):
        turns = turns_on(seed)[: 1 if variant == "pt" else 3]
        conversation = TrainingConversation(pieces, variant)
        conversation.add_turns(turns, 6, kind)
        messages: list[Message] = []
        for index, turn in enumerate(turns):
            messages.append(Message("user", (*([slot] if index == 0 else []), turn.question)))
            asked = rendered(
                runtime, ChatTemplate(variant).segments(messages, thinking=bool(turn.thought.text))
            )
            assert conversation.ids[: len(asked)] == asked
            assert conversation.labels[len(asked) - 1] < 0 <= conversation.labels[len(asked)]
            messages.append(Message("assistant", turn.answer.text, turn.thought.text))
        if variant == "thinking":
            assert conversation.ids == rendered(runtime, ChatTemplate(variant).segments(messages))


def test_a_history_turn_is_written_as_a_finished_one(
    pieces: sentencepiece.SentencePieceProcessor, runtime: ErnieTokenizer
) -> None:
    first, second = turns_on(1)[:2]
    conversation = TrainingConversation(pieces)
    conversation.add_turns([replace(first, is_history=True), second], 4)
    messages = [
        Message("user", (ImageSlot(4), first.question)),
        Message("assistant", first.answer.text),
        Message("user", second.question),
    ]
    asked = rendered(runtime, ChatTemplate("pt").segments(messages, thinking=bool(second.thought.text)))
    assert conversation.ids[: len(asked)] == asked


def test_a_closeup_is_what_a_chat_with_the_tool_holds(
    pieces: sentencepiece.SentencePieceProcessor, runtime: ErnieTokenizer
) -> None:
    thought = Run.unprinted("Too small.")
    heading = Run("Lyon", tuple(Glyph(letter, 10 * x, 8, (0, 0, 1, 1)) for x, letter in enumerate("Lyon")))
    look = TrainingLook(thought, CALL, heading, 5)
    named = Glyph("M", 3, 8, (0, 0, 1, 1))
    line, restated = Run.unprinted("Total 12.50"), naming("How much is it?", [("much", Run("M", (named,)))])
    turn = TrainingTurn("Lyon: How much is it?", Run.unprinted("12.50"), line, look=look, restated=restated)
    conversation = TrainingConversation(pieces, "thinking", with_zoom=True)
    conversation.add_turns([turn], 6)
    template, tools = ChatTemplate("thinking"), [zoom_tool().described()]
    messages = [Message("user", (ImageSlot(6), turn.question))]
    first = rendered(runtime, template.segments(messages, tools=tools, thinking=True))
    messages += [Message("assistant", "", "Too small.", (CALL,)), Message("tool", (ImageSlot(5),))]
    second = rendered(runtime, template.segments(messages, tools=tools, thinking=True))
    messages.append(Message("assistant", "12.50", "How much is it?\nTotal 12.50"))
    assert conversation.ids == rendered(runtime, template.segments(messages, tools=tools))
    assert conversation.ids[: len(second)] == second
    assert conversation.labels[len(first)] >= 0
    assert all(label < 0 for label in conversation.labels[: len(first)])
    assert conversation.labels[len(second) - 1] < 0 <= conversation.labels[len(second)]
    written = [label for label in conversation.labels if label >= 0]
    assert written.count(conversation.stop) == 2
    assert MEDIA.image not in written
    called = json.dumps({"name": CALL.name, "arguments": CALL.arguments})
    assert called in runtime.decode(written)
    looked_at = [glyph.character for _, glyph, picture in conversation.answer_pointers if picture == 0]
    box = re.findall(r"\d+", str(CALL.arguments["bbox_2d"]))
    assert looked_at == ["L"] * len("".join(box))
    ((position, glyph, picture),) = conversation.mention_pointers
    assert (glyph, picture) == (named, 1)
    assert runtime.decode(conversation.ids[position : position + 10]).startswith("much is it?")


def test_a_sheet_is_evaluated_with_the_tokens_of_training(
    pieces: sentencepiece.SentencePieceProcessor, runtime: ErnieTokenizer, tokenizer_path: Path
) -> None:
    """Of a model that writes what it is trained to write, the chat with the tool is that of training."""
    shape = NanoShape()
    most = shape.max_image_tokens * shape.token_pixels**2
    processor = ImageProcessorConfig(min_pixels=4 * shape.token_pixels**2, max_pixels=most)
    sample = next(closeup_samples(1, held_out=True))
    (sheet,), (turn,) = sample.images, sample.turns
    (seen,) = turn.rounds
    whole, card = (image_to_patches(one, processor) for one in (sheet, seen.result))
    look = TrainingLook(Run.unprinted(seen.thought), seen.call, NOTHING, card.num_tokens)
    answer, thought = Run.unprinted(turn.answer), Run.unprinted(turn.thought)
    conversation = TrainingConversation(pieces, "thinking", with_zoom=True)
    conversation.add_turns([TrainingTurn(turn.question, answer, thought, look=look)], whole.num_tokens)

    written = runtime.decode([label for label in conversation.labels if label >= 0]).split("</s>")
    model: Any = ScriptedModel(runtime, tokenizer_path.parent, 1000, MEDIA, processor)
    engine = model.engine()
    engine.say(*written[:2])
    model.engine = lambda: engine
    assert answer_with_zoom(model, turn.question, sample.images) == ZoomedAnswer(turn.answer, True)
    (first, [image]), (_, [part]) = engine.prefills
    assert first == conversation.ids[: len(first)]
    assert conversation.labels[len(first) - 1] < 0 <= conversation.labels[len(first)]
    assert engine.ids == conversation.ids[:-1], "all but the end of the answer, which is not computed"
    assert (image.grid, part.grid) == (whole.grid, card.grid)


def has_ink(image: Image.Image, drawn: DrawnImage) -> bool:
    """Whether there is ink in the box of each letter, as far as it lies on the image."""
    pixels, scale = numpy.asarray(image.convert("L"), dtype=int), image.width / drawn.width
    for glyph in (one for one in drawn.glyphs if one.character.isalnum()):
        left, top, right, bottom = (max(0, round(side * scale)) for side in glyph.box)
        inside = pixels[top:bottom, left:right]
        if inside.size and inside.max() - inside.min() < 60:
            return False
    return True


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_print_of_a_shifted_page_lies_where_its_glyphs_are(scale: float) -> None:
    places, num_blank = set(), 0
    for seed in range(6):
        drawn = draw_image("invoice", seed, width=308, height=196, scale=scale)
        moved = shifted(Random(seed), drawn, 12)
        assert (moved.image.size, moved.width, moved.height) == (drawn.image.size, 308, 196)
        assert has_ink(moved.image, moved)
        num_blank += not has_ink(moved.image, drawn)
        places.add((moved.glyphs[0].x - drawn.glyphs[0].x, moved.glyphs[0].y - drawn.glyphs[0].y))
        assert {glyph for one in moved.questions for glyph in one.printed.glyphs if glyph} <= set(
            moved.glyphs
        )
    assert all(abs(shift) <= 12 for place in places for shift in place)
    assert len(places) > 3
    assert num_blank > 0


def test_print_of_a_close_up_lies_where_its_glyphs_are() -> None:
    """Of boxes that lie beside the card, too: in the box of each letter there is ink."""
    sheet = draw_sheet(3, columns=2, rows=2, card_size=(308, 196))
    for asked in ask_sheet(Random(2), sheet, 4):
        card = asked.card.box
        for aside in ((0, 0, 0, 0), (-12, 12, 12, -12), (9, -9, -3, 3)):
            box = tuple(corner + off for corner, off in zip(card, aside, strict=True))
            shown = close_up(sheet, asked, (box[0], box[1], box[2], box[3]))
            assert (shown.width, shown.height) == (box[2] - box[0], box[3] - box[1])
            assert has_ink(shown.image, shown)
            (question,) = shown.questions
            assert question.answer in shown.line_of(question).text
            runs = [question.printed, *(run for _, run in question.mentions)]
            assert {glyph for run in runs for glyph in run.glyphs if glyph} <= set(shown.glyphs)


def test_the_schema_of_the_tool_is_a_few_pieces(pieces: sentencepiece.SentencePieceProcessor) -> None:
    conversation = TrainingConversation(pieces, "thinking", with_zoom=True)
    assert len(conversation.ids) < 25


def test_characters_of_a_clip_are_those_of_its_seconds(
    pieces: sentencepiece.SentencePieceProcessor,
) -> None:
    rows, columns, frames = 5, 8, 5
    stream = Stream(("clip",), (rows, columns), batch=1, weight=1.0, num_frames=frames)
    conversed = Converser(stream, Random(7), pieces, NanoShape(), held_out=False).next()
    (classes,), (page,) = conversed.characters, conversed.drawn
    seconds = (frames + 1) // 2
    assert (len(classes), page[2]) == (seconds * rows * columns, (seconds * rows, columns))
    for second in range(seconds):
        first_row = classes.reshape(seconds, rows, columns * SLOTS)[second, 0]
        assert "".join(CHARACTERS[one - 1] for one in first_row if one) == f"time:00:00:0{second}.00"


def test_edges_say_where_print_lies_in_its_cell() -> None:
    """Cells of 20 x 10 page units: two letters in the second one of the second row, the last hanging over."""
    letters = (Glyph("a", 28, 15, (24, 12, 32, 18)), Glyph("b", 38, 15, (34, 11, 42, 18)))
    drawn = DrawnImage("form", Image.new("RGB", (60, 20)), 60, 20, (Run("ab", letters),), ())
    edges = edge_classes(drawn, (2, 3))
    assert not edges[[0, 1, 2, 3, 5]].any()
    # Of a cell that begins at (20, 10): shares from half before it to half behind it, in steps of a twelfth.
    shares = (4 / 20, 1 / 10, 22 / 20, 8 / 10)
    assert edges[4].tolist() == [1 + int((share + 0.5) / 2 * MOST_EDGE) for share in shares]
