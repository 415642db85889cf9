"""Writes questions on an image or a clip, or without one, as a training conversation.

In ERNIE's PT chat format, or in the Thinking format with the zoom tool; a test holds both against the
runtime's templates. A scored turn carries the empty (or filled) thought that the runtime prefills. A finished
turn of a real PT chat does not, so some turns are written as history, unscored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random
from typing import Literal, NamedTuple

import sentencepiece

from ernie_calibration.drawn_image import DrawnImage, Glyph, Question, Run, as_places, join
from ernie_calibration.images.forms import READ_QUESTIONS
from ernie_calibration.names import MONTHS, NameSource
from ernie_local.session.image_tools import zoom_tool
from ernie_local.text.reasoning import ToolCall
from ernie_local.text.template import THINKING_SYSTEM, Variant

IGNORED = -100
NOTHING = Run("", ())
HISTORY_SHARE = 0.25
GREETINGS = {
    "Hello!": "Hello! Show me a picture and ask about it.",
    "Hi": "Hello! Show me a picture and ask about it.",
    "Who are you?": "I am nano, a tiny ERNIE.",
    "What are you?": "I am nano, a tiny ERNIE.",
    "What can you do?": "I read invoices, receipts, forms, tables and charts.",
    "Thank you!": "You are welcome.",
    "Thanks": "You are welcome.",
    "Goodbye": "Goodbye!",
}
# The position of a token, the glyph that it writes next or names, and the picture that shows it.
Pointer = tuple[int, Glyph, int]
MediaKind = Literal["image", "video"]
DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


class TrainingLook(NamedTuple):
    """A thought on the first picture, a call of the zoom tool, and the tokens of the picture that it gives.

    `heading`: what is printed where the call looks.
    """

    thought: Run
    call: ToolCall
    heading: Run
    image_tokens: int


@dataclass(frozen=True, slots=True)
class TrainingTurn:
    """A question, the thought before the answer (empty: thinking is off), and the answer.

    `is_history`: written as the chat template writes a finished turn, without the empty thought, and not
    scored. `look`: what comes before the thought; thought and answer are then read from its picture.
    `restated`: the question once more, at the beginning of the thought, with the glyphs that its words name.
    """

    question: str
    answer: Run
    thought: Run = NOTHING
    mentions: tuple[tuple[str, Run], ...] = ()
    kind: str = "text only"
    is_history: bool = False
    look: TrainingLook | None = None
    restated: Run = NOTHING


class TrainingConversation:
    """Collects ids and labels turn by turn; labels cover what the model has to write.

    `starts`: the first placeholder of each picture or clip. `answer_pointers`: for each token before a
    written glyph, that glyph. `mention_pointers`: for each token of a question that names something printed,
    the glyph it names.
    """

    def __init__(
        self,
        tokenizer: sentencepiece.SentencePieceProcessor,
        variant: Variant = "pt",
        *,
        with_zoom: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.variant = variant
        self.end = tokenizer.piece_to_id("<|end_of_sentence|>")
        self.stop = tokenizer.eos_id()
        self.ids: list[int] = [tokenizer.piece_to_id("<|begin_of_sentence|>")]
        self.labels: list[int] = [IGNORED]
        self.starts: list[int] = []
        self.answer_pointers: list[Pointer] = []
        self.mention_pointers: list[Pointer] = []
        if with_zoom:
            tools = json.dumps([zoom_tool().described()], ensure_ascii=False)
            self._append_text(f"\n<tool_list>\n{tools}\n</tool_list>\n")
        if variant == "thinking":
            self._append_text(f"{THINKING_SYSTEM}\n")

    def _append(self, ids: Sequence[int], scored: bool) -> None:
        self.ids += ids
        self.labels += ids if scored else [IGNORED] * len(ids)

    def _append_text(self, text: str, scored: bool = False) -> None:
        self._append(self.tokenizer.encode(text), scored)

    def _encode(self, run: Run, position: int, picture: int) -> tuple[list[int], list[Pointer]]:
        """Token ids of `run`, and pointers to their first glyphs, from `position` on.

        A piece is as long as its text.
        """
        pieces = self.tokenizer.encode(run.text, out_type=str)
        starts = [0, *accumulate(len(piece) for piece in pieces)]
        if starts.pop() != len(run.text):
            raise ValueError(f"{run.text!r} holds characters that the tokenizer writes as bytes")
        ids = [self.tokenizer.piece_to_id(piece) for piece in pieces]
        glyphs = enumerate((run.glyphs[start] for start in starts), position)
        return ids, [(place, glyph, picture) for place, glyph in glyphs if glyph is not None]

    def _append_written(self, run: Run, picture: int = 0) -> None:
        """Tokens that the model has to write."""
        ids, pointers = self._encode(run, len(self.ids) - 1, picture)
        self.answer_pointers += pointers
        self._append(ids, scored=True)

    def _append_end(self) -> None:
        # As ERNIE was trained: the context holds the end tag of a history turn, the label is </s>.
        self.ids.append(self.end)
        self.labels.append(self.stop)

    def _append_picture(self, opening: str, image_tokens: int, kind: MediaKind = "image") -> None:
        """Its number and its placeholders, without the tag behind them, which begins the next text."""
        space, name, tag = (
            " " if self.variant == "thinking" else "",
            "Picture" if kind == "image" else "Video",
            kind.upper(),
        )
        self._append_text(f"{opening}{space}{name} {len(self.starts) + 1}:<|{tag}_START|>")
        self.starts.append(len(self.ids))
        self._append([self.tokenizer.piece_to_id("<|IMAGE_PLACEHOLDER|>")] * image_tokens, scored=False)

    def _append_question(self, opening: str, turn: TrainingTurn) -> None:
        asked = naming(f"{opening}{turn.question}\nAssistant: ", turn.mentions)
        ids, pointers = self._encode(asked, len(self.ids), 0)
        self.mention_pointers += pointers
        self._append(ids, scored=False)

    def _append_thought(self, thought: Run, picture: int = 0, restated: Run = NOTHING) -> None:
        """From its tag on; empty: as the runtime prefills it where thinking is off."""
        before = "\n" if self.variant == "thinking" else ""
        if restated.text:
            thought = join((Run.unprinted(restated.text), thought), "\n")
        if not thought.text:
            self._append_text(f"{before}<think>\n\n</think>\n\n")
            return
        self._append_text(f"{before}<think>{before}")
        self.mention_pointers += self._encode(restated, len(self.ids), picture)[1]
        lines = (thought, NOTHING) if before else (NOTHING, thought, NOTHING)
        self._append_written(join(lines, "\n"), picture)
        self._append_text("</think>\n\n", scored=True)

    def _append_look(self, look: TrainingLook) -> None:
        """A call, and the turn that answers it."""
        self._append_thought(look.thought)
        call = {"name": look.call.name, "arguments": look.call.arguments}
        text = f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>\n"
        # Where a card ends follows from where its heading begins, not from where it ends.
        beginning_of_heading = Run(look.heading.text[:1], look.heading.glyphs[:1])
        self._append_written(as_places(text, beginning_of_heading))
        self._append_end()
        self._append_picture("User: \n<tool_output>\n", look.image_tokens)
        self._append_text("<|IMAGE_END|>\n</tool_output>\n\nAssistant: ")

    def add_turns(self, turns: Sequence[TrainingTurn], image_tokens: int, kind: MediaKind = "image") -> None:
        """Append all turns; the image or clip comes before the first question, if `image_tokens` is not 0."""
        for index, turn in enumerate(turns):
            opening = "User: "
            if index == 0 and image_tokens:
                self._append_picture(opening, image_tokens, kind)
                opening = f"<|{kind.upper()}_END|>"
            self._append_question(opening, turn)
            if turn.is_history:
                self._append_text(turn.answer.text)
                self._append([self.end], scored=False)
                continue
            if turn.look is not None:
                self._append_look(turn.look)
            picture = int(turn.look is not None)
            self._append_thought(turn.thought, picture, turn.restated)
            self._append_written(turn.answer, picture)
            self._append_end()


def naming(text: str, mentions: Sequence[tuple[str, Run]]) -> Run:
    """A text whose words have the glyphs of what they name; ValueError for words that it does not hold."""
    glyphs: list[Glyph | None] = [None] * len(text)
    for words, run in mentions:
        start = text.lower().rindex(words.lower())
        named = run.glyphs[: len(words)]
        glyphs[start : start + len(named)] = named
    return Run(text, tuple(glyphs))


def image_turns(
    random: Random, drawn: DrawnImage, questions: Sequence[Question], most: int, thinking_share: float
) -> list[TrainingTurn]:
    """Up to `most` of the questions about an image in random order."""
    turns = []
    for question in random.sample(questions, min(most, len(questions))):
        thought = drawn.line_of(question) if random.random() < thinking_share else NOTHING
        turns.append(TrainingTurn(question.text, question.printed, thought, question.mentions, question.kind))
    return some_as_history(random, turns)


def transcript_turn(random: Random, drawn: DrawnImage) -> TrainingTurn:
    """Everything that is printed, line by line."""
    return TrainingTurn(random.choice(READ_QUESTIONS), join(drawn.lines, "\n"), kind="transcript")


def some_as_history(random: Random, turns: list[TrainingTurn]) -> list[TrainingTurn]:
    """Now and then turn the first turn into history; never the last."""
    if len(turns) > 1 and random.random() < HISTORY_SHARE:
        turns[0] = replace(turns[0], is_history=True)
    return turns


def _turn(question: str, answer: str) -> TrainingTurn:
    return TrainingTurn(question, Run.unprinted(answer))


def _sum(names: NameSource) -> TrainingTurn:
    random = names.random
    first, second = random.randint(0, 20), random.randint(0, 20)
    if random.random() < 0.5:
        return _turn(f"What is {first} plus {second}?", str(first + second))
    first, second = max(first, second), min(first, second)
    return _turn(f"What is {first} minus {second}?", str(first - second))


def _month(names: NameSource) -> TrainingTurn:
    index, form = names.random.randrange(12), names.random.randrange(3)
    if form == 0:
        return _turn(f"Which month comes after {MONTHS[index]}?", MONTHS[(index + 1) % 12])
    if form == 1:
        return _turn(f"Which month comes before {MONTHS[index]}?", MONTHS[index - 1])
    return _turn(f"How many days has {MONTHS[index]}?", str(DAYS[index]))


def _lookup(names: NameSource) -> TrainingTurn:
    random, items = names.random, names.items(3)
    prices = random.sample(range(2, 99), 3)
    listing = ", ".join(f"{item} {price}" for item, price in zip(items, prices, strict=True))
    index, form = random.randrange(3), random.randrange(3)
    if form == 0:
        return _turn(f"{listing}. What is the price of {items[index]}?", str(prices[index]))
    wanted, word = (max(prices), "highest") if form == 1 else (min(prices), "lowest")
    return _turn(f"{listing}. Which has the {word} price?", items[prices.index(wanted)])


def _greeting(names: NameSource) -> TrainingTurn:
    return _turn(*names.random.choice(list(GREETINGS.items())))


def text_turns(names: NameSource, count: int) -> list[TrainingTurn]:
    """`count` unrelated turns without an image."""
    makers = (_sum, _sum, _month, _lookup, _lookup, _greeting)
    return some_as_history(names.random, [names.random.choice(makers)(names) for _ in range(count)])
