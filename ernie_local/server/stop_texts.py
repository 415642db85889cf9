"""Ends an answer at texts that a client named, and holds back what may become one of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from ernie_local.session import Answer, Piece
from ernie_local.text.boxes import find_boxes
from ernie_local.text.reasoning import TokenScore
from ernie_local.text.times import find_times


class StopTexts:
    """Takes an answer piece by piece, and gives it on up to the first of the stop texts, without it.

    The scores of a piece go with the first letter of it that is shown. text: all that was given on.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self._num_taken = 0  # characters
        self.text = ""
        self._scores: deque[tuple[int, tuple[TokenScore, ...]]] = deque()  # and where their pieces begin
        self.has_stopped = False

    def push(self, piece: Piece) -> Piece:
        """What can be shown now, perhaps nothing."""
        if self.has_stopped:
            return Piece("answer", "")
        self._scores.append((self._num_taken, piece.scores))
        self._num_taken += len(piece.text)
        shown = self._taken(piece.text)
        self.text += shown
        scores: list[TokenScore] = []
        while self._scores and self._scores[0][0] < len(self.text):
            scores += self._scores.popleft()[1]
        return Piece("answer", shown, tuple(scores))

    def _taken(self, text: str) -> str:
        self._held += text
        ends = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.has_stopped = True
            shown, self._held = self._held[: min(ends)], ""
            return shown
        kept = self._half_stop()
        shown = self._held[: len(self._held) - kept]
        self._held = self._held[len(shown) :]
        return shown

    def finish(self) -> Piece:
        """What was held back when the answer ended otherwise."""
        if self.has_stopped:
            return Piece("answer", "")
        scores = tuple(score for _, some in self._scores for score in some)
        held, self._held = self._held, ""
        self.text += held
        self._scores.clear()
        return Piece("answer", held, scores)

    def named_in(self, answer: Answer) -> Answer:
        """The same answer with those of its boxes and times that stand before the stop text."""
        if not self.has_stopped or not (answer.boxes or answer.times):
            return answer
        places = {(box.label, box.place) for box in find_boxes(self.text).boxes}
        moments = {(time.seconds, time.text) for time in find_times(self.text)}
        return replace(
            answer,
            boxes=tuple(box for box in answer.boxes if (box.label, box.thousandths) in places),
            times=tuple(time for time in answer.times if (time.seconds, time.text) in moments),
        )

    def _half_stop(self) -> int:
        """Characters at the end that may begin a stop text."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
