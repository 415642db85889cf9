"""Writes questions on an image, or without one, as a training conversation in ERNIE's PT chat format.

A scored turn carries the empty (or filled) thought that the runtime prefills. A finished turn of a real chat
does not, so some turns are written as history, unscored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random

import sentencepiece

from ernie_calibration.drawn_image import DrawnImage, Glyph, Question, Run, join
from ernie_calibration.images.forms import READ_QUESTIONS
from ernie_calibration.names import MONTHS, NameSource

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
Pointer = tuple[int, Glyph]  # the position of a token, and the glyph that it writes next or names
DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True, slots=True)
class TrainingTurn:
    """A question, the thought before the answer (empty: thinking is off), and the answer.

    `is_history`: written as the chat template writes a finished turn, without the empty thought, and not
    scored.
    """

    question: str
    answer: Run
    thought: Run = NOTHING
    mentions: tuple[tuple[str, Run], ...] = ()
    kind: str = "text only"
    is_history: bool = False


def evidence(drawn: DrawnImage, question: Question) -> Run:
    """The printed line that holds the answer; of several, the one with most words of the question."""
    words = set(question.text.strip("?.").split())
    holding = [line for line in drawn.lines if question.answer in line.text]
    return max(holding, key=lambda line: len(words & set(line.text.split())), default=NOTHING)


class TrainingConversation:
    """Collects ids and labels turn by turn; labels cover what the model has to write.

    `answer_pointers`: for each token before a written glyph, that glyph. `mention_pointers`: for each token
    of a question that names something printed, the glyph it names.
    """

    def __init__(self, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.piece_to_id("<|end_of_sentence|>")
        self.stop = tokenizer.eos_id()
        self.ids: list[int] = [tokenizer.piece_to_id("<|begin_of_sentence|>")]
        self.labels: list[int] = [IGNORED]
        self.image_start = 0
        self.answer_pointers: list[Pointer] = []
        self.mention_pointers: list[Pointer] = []

    def _append(self, ids: Sequence[int], scored: bool) -> None:
        self.ids += ids
        self.labels += ids if scored else [IGNORED] * len(ids)

    def _encode(self, run: Run, position: int) -> tuple[list[int], list[Pointer]]:
        """Token ids of `run`, and pointers to their first glyphs, from `position` on.

        A piece is as long as its text.
        """
        pieces = self.tokenizer.encode(run.text, out_type=str)
        starts = [0, *accumulate(len(piece) for piece in pieces)]
        if starts.pop() != len(run.text):
            raise ValueError(f"{run.text!r} holds characters that the tokenizer writes as bytes")
        ids = [self.tokenizer.piece_to_id(piece) for piece in pieces]
        glyphs = enumerate((run.glyphs[start] for start in starts), position)
        return ids, [(place, glyph) for place, glyph in glyphs if glyph is not None]

    def _append_written(self, run: Run) -> None:
        """Tokens that the model has to write."""
        ids, pointers = self._encode(run, len(self.ids) - 1)
        self.answer_pointers += pointers
        self._append(ids, scored=True)

    def _append_question(self, opening: str, turn: TrainingTurn) -> None:
        text = f"{opening}{turn.question}\nAssistant: "
        glyphs: list[Glyph | None] = [None] * len(text)
        for words, run in turn.mentions:
            start = text.lower().rindex(words.lower())
            named = run.glyphs[: len(words)]
            glyphs[start : start + len(named)] = named
        ids, pointers = self._encode(Run(text, tuple(glyphs)), len(self.ids))
        self.mention_pointers += pointers
        self._append(ids, scored=False)

    def add_turns(self, turns: Sequence[TrainingTurn], image_tokens: int) -> None:
        """Append all turns; the image, if `image_tokens` is not 0, stands before the first question."""
        encode = self.tokenizer.encode
        for index, turn in enumerate(turns):
            opening = "User: "
            if index == 0 and image_tokens:
                self._append(encode("User: Picture 1:<|IMAGE_START|>"), scored=False)
                self.image_start = len(self.ids)
                placeholder = self.tokenizer.piece_to_id("<|IMAGE_PLACEHOLDER|>")
                self._append([placeholder] * image_tokens, scored=False)
                opening = "<|IMAGE_END|>"
            self._append_question(opening, turn)
            if turn.is_history:
                self._append([*encode(turn.answer.text), self.end], scored=False)
                continue
            if turn.thought.text:
                self._append(encode("<think>"), scored=False)
                self._append_written(join((NOTHING, turn.thought, NOTHING), "\n"))
                self._append(encode("</think>\n\n"), scored=True)
            else:
                self._append(encode("<think>\n\n</think>\n\n"), scored=False)
            self._append_written(turn.answer)
            # As ERNIE was trained: the context holds the end tag of a history turn, the label is </s>.
            self.ids.append(self.end)
            self.labels.append(self.stop)


def image_turns(random: Random, drawn: DrawnImage, most: int, thinking_share: float) -> list[TrainingTurn]:
    """Up to `most` of the image's questions in random order."""
    questions = list(drawn.questions)
    random.shuffle(questions)
    turns = []
    for question in questions[:most]:
        thought = evidence(drawn, question) if random.random() < thinking_share else NOTHING
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
