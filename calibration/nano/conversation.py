"""Questions about a picture as one training conversation: ids and labels in ERNIE's PT chat format.

A scored turn carries the empty (or filled) thought that the runtime prefills. A finished turn of a real chat
does not, so some turns are written as history, unscored. Knows tokens; knows nothing of batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random

import sentencepiece

from ernie_calibration.pictures import Glyph, Picture, Question, Run
from ernie_calibration.pictures.picture import join
from ernie_calibration.pictures.text_card import READ_QUESTIONS

IGNORED = -100
NOTHING = Run("", ())
HISTORY_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Turn:
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


@dataclass(frozen=True, slots=True)
class Pointer:
    """The token at `position` has to do with `glyph`: it writes it next, or names what it spells."""

    position: int
    glyph: Glyph


def evidence(picture: Picture, question: Question) -> Run:
    """The printed line that holds the answer; of several the one with most of the question's words."""
    words = set(question.text.strip("?.").split())
    holding = [line for line in picture.lines if question.answer in line.text]
    return max(holding, key=lambda line: len(words & set(line.text.split())), default=NOTHING)


class Conversation:
    """Grows ids and labels turn by turn; labels cover what the model itself has to write.

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

    def _encode(self, run: Run) -> tuple[list[int], list[Glyph | None]]:
        """Token ids of `run`, and the glyph of each one's first character; a piece is as long as its text."""
        pieces = self.tokenizer.encode(run.text, out_type=str)
        starts = [0, *accumulate(len(piece) for piece in pieces)]
        if starts.pop() != len(run.text):
            raise ValueError(f"{run.text!r} holds characters that the tokenizer writes as bytes")
        ids = [self.tokenizer.piece_to_id(piece) for piece in pieces]
        return ids, [run.glyphs[start] for start in starts]

    def _append_written(self, run: Run) -> None:
        """Tokens that the model has to write."""
        ids, glyphs = self._encode(run)
        for offset, glyph in enumerate(glyphs):
            if glyph is not None:
                self.answer_pointers.append(Pointer(len(self.ids) + offset - 1, glyph))
        self._append(ids, scored=True)

    def _append_question(self, opening: str, turn: Turn) -> None:
        text = f"{opening}{turn.question}\nAssistant: "
        glyphs: list[Glyph | None] = [None] * len(text)
        for words, run in turn.mentions:
            start = text.lower().rindex(words.lower())
            named = run.glyphs[: len(words)]
            glyphs[start : start + len(named)] = named
        ids, first_glyphs = self._encode(Run(text, tuple(glyphs)))
        for offset, glyph in enumerate(first_glyphs):
            if glyph is not None:
                self.mention_pointers.append(Pointer(len(self.ids) + offset, glyph))
        self._append(ids, scored=False)

    def add_turns(self, turns: Sequence[Turn], image_tokens: int) -> None:
        """Append all turns; the picture, if `image_tokens` is not 0, stands before the first question."""
        encode = self.tokenizer.encode
        for index, turn in enumerate(turns):
            opening = "User: "
            if index == 0 and image_tokens:
                self._append(encode("User: Picture 1:<|IMAGE_START|>"), scored=False)
                self.image_start = len(self.ids)
                self._append(
                    [self.tokenizer.piece_to_id("<|IMAGE_PLACEHOLDER|>")] * image_tokens, scored=False
                )
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
            # The context holds the end tag of a history turn, but what is learnt is </s>: as ERNIE was
            # trained.
            self.ids.append(self.end)
            self.labels.append(self.stop)


def picture_turns(random: Random, picture: Picture, most: int, thinking_share: float) -> list[Turn]:
    """Up to `most` of the picture's questions in random order."""
    questions = list(picture.questions)
    random.shuffle(questions)
    turns = []
    for question in questions[:most]:
        thought = evidence(picture, question) if random.random() < thinking_share else NOTHING
        turns.append(Turn(question.text, question.printed, thought, question.mentions, question.kind))
    return some_as_history(random, turns)


def transcript_turn(random: Random, picture: Picture) -> Turn:
    """Everything that is printed, line by line."""
    return Turn(random.choice(READ_QUESTIONS), join(picture.lines, "\n"), kind="transcript")


def some_as_history(random: Random, turns: list[Turn]) -> list[Turn]:
    """The first turn, now and then, as one that lies behind; never the last."""
    if len(turns) > 1 and random.random() < HISTORY_SHARE:
        turns[0] = replace(turns[0], is_history=True)
    return turns
