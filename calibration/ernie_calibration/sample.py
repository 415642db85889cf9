"""Samples: images and clips with a conversation about them whose right answers are known."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from ernie_local.text.reasoning import ToolCall


@dataclass(frozen=True, slots=True)
class SampleRound:
    """What is thought and called on the way to an answer, and the image that the tool gives."""

    thought: str
    call: ToolCall
    result: Image.Image


@dataclass(frozen=True, slots=True)
class SampleTurn:
    """A question and its right answer; `kind` decides how answers are scored.

    rounds: calls of the zoom tool before the answer; thought: what is thought before it. A turn with either
    is written in the Thinking template, the only one that has tools.
    """

    question: str
    answer: str
    kind: str
    thought: str = ""
    rounds: tuple[SampleRound, ...] = ()


@dataclass(frozen=True, slots=True)
class SampleClip:
    """Frames of a video as the model sees them, with their times written on them, all of one size."""

    frames: tuple[Image.Image, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation. Its images, then its clips, come before the first question; without, it is text only.

    `name` is the same for the same sample in every run; errors and bootstraps use it.
    """

    name: str
    images: tuple[Image.Image, ...]
    turns: tuple[SampleTurn, ...]
    clips: tuple[SampleClip, ...] = ()
