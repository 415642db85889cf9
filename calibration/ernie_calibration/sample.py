"""What a model is calibrated and judged on: pictures with a conversation about them, answers known.

Knows nothing of where samples come from, nor of tokens or models.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and the answer that is right; `kind` names what it is scored under."""

    question: str
    answer: str
    kind: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation. Its pictures stand before the first question; without pictures it is text only.

    `name` is the same for the same sample in every run: it is what errors and bootstraps go by.
    """

    name: str
    images: tuple[Image.Image, ...]
    turns: tuple[Turn, ...]
