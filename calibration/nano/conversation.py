"""Questions about a picture as one training conversation: ids and labels in ERNIE's PT chat format.

A scored turn carries the empty (or filled) thought that the runtime prefills. A finished turn of a real chat
does not, so some turns are written as history, unscored. Knows tokens; knows nothing of batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import sentencepiece

from ernie_calibration.pictures import Picture, Question

IGNORED = -100
HISTORY_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, the thought before the answer (empty: thinking is off), and the answer.

    `is_history`: written as the chat template writes a finished turn, without the empty thought, and not
    scored.
    """

    question: str
    answer: str
    thought: str = ""
    kind: str = "text only"
    is_history: bool = False


def evidence(picture: Picture, question: Question) -> str:
    """The printed line that holds the answer; of several the one with most of the question's words."""
    words = set(question.text.strip("?.").split())
    holding = [line for line in picture.lines if question.answer in line]
    return max(holding, key=lambda line: len(words & set(line.split())), default="")


class Conversation:
    """Grows ids and labels turn by turn; labels cover what the model itself has to write."""

    def __init__(self, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.piece_to_id("<|end_of_sentence|>")
        self.stop = tokenizer.eos_id()
        self.ids: list[int] = [tokenizer.piece_to_id("<|begin_of_sentence|>")]
        self.labels: list[int] = [IGNORED]
        self.image_start = 0

    def _append(self, ids: Sequence[int], scored: bool) -> None:
        self.ids += ids
        self.labels += ids if scored else [IGNORED] * len(ids)

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
            self._append(encode(opening + turn.question + "\nAssistant: "), scored=False)
            if turn.is_history:
                self._append([*encode(turn.answer), self.end], scored=False)
                continue
            if turn.thought:
                self._append(encode("<think>"), scored=False)
                self._append(encode(f"\n{turn.thought}\n</think>\n\n"), scored=True)
            else:
                self._append(encode("<think>\n\n</think>\n\n"), scored=False)
            self._append(encode(turn.answer), scored=True)
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
        thought = evidence(picture, question) if random.random() < thinking_share else ""
        turns.append(Turn(question.text, question.answer, thought, question.kind))
    return some_as_history(random, turns)


def some_as_history(random: Random, turns: list[Turn]) -> list[Turn]:
    """The first turn, now and then, as one that lies behind; never the last."""
    if len(turns) > 1 and random.random() < HISTORY_SHARE:
        turns[0] = replace(turns[0], is_history=True)
    return turns
