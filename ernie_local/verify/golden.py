"""Compares a model with golden answers: which token it finds likeliest after each token of the known answer.

The known answer is forced on the model, so that one other choice does not decide about all that follow. The
greedy answer is the known one exactly where all choices are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from ernie_local.loading import LoadedModel
from ernie_local.media.open_image import open_images
from ernie_local.media.patches import Patches
from ernie_local.media.processor import image_to_patches
from ernie_local.session.writer import ChatWriter
from ernie_local.text.template import ImageSlot, Message, VideoSlot
from ernie_local.verify.golden_file import (
    GoldenImage,
    GoldenKind,
    GoldenPart,
    GoldenPrompt,
    GoldenPrompts,
    GoldenVideo,
)

# Published weights compute in bfloat16, whose logits of 16 to 32 are rounded to multiples of an eighth.
NEAR_TIE = 0.25


@dataclass(frozen=True, slots=True)
class GoldenOutcome:
    """How a model meets one golden answer.

    agreed: of the known ids, those that it finds likeliest, each after the known ones before it.
    first_other: index of the first id where it chooses another; None for none. expected, chosen: the texts
    of both ids there. gap: how much larger the logit of the chosen one is. skipped: why it was not tried.
    """

    name: str
    kind: GoldenKind
    num_ids: int
    agreed: int = 0
    first_other: int | None = None
    expected: str = ""
    chosen: str = ""
    gap: float = 0.0
    skipped: str | None = None

    @property
    def is_match(self) -> bool:
        """Whether the greedy answer begins with all known ids."""
        return self.skipped is None and self.first_other is None

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding alone may explain the first other choice."""
        return self.first_other is not None and self.gap < NEAR_TIE


def compare_golden(
    model: LoadedModel, golden: GoldenPrompts, variant: str | None = None
) -> Iterator[GoldenOutcome]:
    """Try each prompt, and tell how the model meets its answer.

    variant: the chat template, as of `Chat`. Errors as of `ChatWriter` and of `Engine.prefill`.
    """
    writer = ChatWriter(model.files, variant=variant)
    for prompt in golden.prompts:
        yield _compare(model, writer, prompt, thinking=golden.thinking)


def suspicion(outcomes: Sequence[GoldenOutcome], *, is_quantized: bool) -> str | None:
    """What to suspect where a model does not meet its golden answers; None where it does."""
    parted = [outcome for outcome in outcomes if outcome.first_other is not None]
    kinds = {outcome.kind for outcome in parted}
    if not parted:
        return None
    if all(outcome.is_near_tie for outcome in parted):
        return "rounding: both tokens are about as likely there, and another processor may choose the other"
    if is_quantized:
        return "the lower precision of the weights; the source of this checkpoint should meet them all"
    if "text" in kinds:
        return "tokenizer.model and its flags, the chat template, or the weights"
    if "image" in kinds:
        return "the image: its size after resizing, and how the template writes it"
    return "the video: its frames, and how the template writes it"


def _compare(
    model: LoadedModel, writer: ChatWriter, prompt: GoldenPrompt, *, thinking: bool
) -> GoldenOutcome:
    outcome = GoldenOutcome(prompt.name, prompt.kind, len(prompt.token_ids))
    patches: list[Patches] = []
    parts: list[str | ImageSlot | VideoSlot] = []
    for part in prompt.content:
        if isinstance(part, GoldenImage) and not part.path.exists():
            return replace(outcome, skipped=f"{part.path} is not there; the model's repository has it")
        if not isinstance(part, str):
            patches.append(_patches(part, model))
        parts.append(_slot(part, patches))
    token_ids = writer.prompt([Message("user", tuple(parts))], thinking).token_ids
    engine = model.engine(context_size=len(token_ids) + len(prompt.token_ids))
    logits = engine.prefill(token_ids, patches)
    for index, expected in enumerate(prompt.token_ids):
        if index:
            logits = engine.decode(prompt.token_ids[index - 1])
        chosen = int(torch.argmax(logits))
        if chosen == expected:
            outcome = replace(outcome, agreed=outcome.agreed + 1)
        elif outcome.first_other is None:
            words = [writer.tokenizer.decode([token_id]) for token_id in (expected, chosen)]
            gap = float(logits[chosen] - logits[expected])
            outcome = replace(outcome, first_other=index, expected=words[0], chosen=words[1], gap=gap)
    return outcome


def _slot(part: GoldenPart, patches: Sequence[Patches]) -> str | ImageSlot | VideoSlot:
    if isinstance(part, str):
        return part
    return (VideoSlot if isinstance(part, GoldenVideo) else ImageSlot)(patches[-1].num_tokens)


def _patches(part: GoldenImage | GoldenVideo, model: LoadedModel) -> Patches:
    processor = model.image_processor
    if isinstance(part, GoldenImage):
        image = open_images(part.path)[0].image
        return image_to_patches(image.resize(part.size, Image.Resampling.BICUBIC), processor)
    limited = replace(processor, min_pixels=part.pixels, max_pixels=part.pixels)
    frames = [image_to_patches(Image.new("RGB", part.size, colour), limited) for colour in part.frames]
    _, rows, columns = frames[0].grid
    return replace(
        frames[0],
        pixel_values=torch.cat([frame.pixel_values for frame in frames]),
        grid=(len(frames), rows, columns),
        num_tokens=frames[0].num_tokens * len(frames) // model.config.vision.temporal_merge_size,
    )
