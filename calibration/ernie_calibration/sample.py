"""Samples: images with a conversation about them whose right answers are known."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True, slots=True)
class SampleTurn:
    """A question and its right answer; `kind` decides how answers are scored."""

    question: str
    answer: str
    kind: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation. Its images come before the first question; without images it is text only.

    `name` is the same for the same sample in every run; errors and bootstraps use it.
    """

    name: str
    images: tuple[Image.Image, ...]
    turns: tuple[SampleTurn, ...]
