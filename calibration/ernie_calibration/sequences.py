"""Encodes samples as the token sequences that a model sees: its chat template with answers written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ernie_calibration.clips import FRAMES_JOINED
from ernie_calibration.sample import Sample, SampleClip, SampleTurn
from ernie_local.config import MediaTokens, read_config
from ernie_local.errors import InputUnreadable
from ernie_local.media.patches import Patches
from ernie_local.media.processor import image_to_patches, to_patches
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.model_files import ModelFiles
from ernie_local.session.image_tools import zoom_tool
from ernie_local.text.template import (
    END,
    ChatTemplate,
    ImageSlot,
    Message,
    Segment,
    Tag,
    VideoSlot,
    encode_segments,
)
from ernie_local.text.tokenizer import ErnieTokenizer


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One conversation as ids, placeholders expanded, with its images and clips in their order.

    answers: for each turn the ids [start, end) that the model would have to write, with the end token. What
    it thinks and calls before that is not among them.
    """

    name: str
    token_ids: tuple[int, ...]
    patches: tuple[Patches, ...]
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class SampleEncoder:
    """Turns samples into ids, with what the model's own files say. media: None where it reads only text."""

    tokenizer: ErnieTokenizer
    processor: ImageProcessorConfig
    media: MediaTokens | None  # None: of a model that reads only text
    template: ChatTemplate

    @classmethod
    def of_model(cls, directory: Path) -> SampleEncoder:
        """From the files of the model in `directory`."""
        files = ModelFiles(directory, read_config(directory))
        # Samples have no thoughts: where those are opened by a template of the files, PT's serves.
        variant = "text" if files.template_name == "file" else files.template_name
        return cls(files.tokenizer, files.image_processor, files.config.media_ids, ChatTemplate(variant))

    def encode(self, sample: Sample) -> EncodedSample:
        """Every turn in one sequence, each answer opened as the model's answer without thoughts is.

        A chat omits that opening in finished turns. Here it stays, so that one sequence shows the model each
        answer as it would begin to write it. InputUnreadable for a sample with neither text nor images.
        """
        patches = [
            *to_patches(sample.images, self.processor),
            *clips_to_patches(sample.clips, self.processor),
        ]
        turns = sample.turns
        if not turns and not patches:
            raise InputUnreadable(
                f"sample {sample.name} has 0 images and 0 turns",
                "a model cannot be calibrated on nothing",
                "remove the sample",
            )
        slots = [media_slot(one) for one in patches]
        if any(turn.rounds or turn.thought for turn in turns):
            return self._encode_rounds(sample, patches, slots)
        ids: list[int] = []
        answers: list[tuple[int, int]] = []
        segments: list[Segment] = []
        for index, turn in enumerate(turns):
            if index == 0:
                message = Message("user", (*slots, turn.question))
                segments = self.template.segments([message], thinking=False)
            else:
                # Without the parts that only begin a sequence.
                message = Message("user", turn.question)
                segments += self.template.segments([message], system="", thinking=False)[1:]
            start = len(self._ids(segments))
            segments += [turn.answer, Tag(END, required=True)]
            ids = self._ids(segments)
            answers.append((start, len(ids)))
        if not turns:
            ids = self._ids(self.template.segments([Message("user", (*slots, ""))]))
        return EncodedSample(sample.name, tuple(ids), tuple(patches), tuple(answers))

    def _encode_rounds(self, sample: Sample, patches: list[Patches], slots: list[MediaSlot]) -> EncodedSample:
        """In the Thinking template with the zoom tool, as a chat that runs calls has it at its end."""
        template, tools = replace(self.template, variant="thinking"), [zoom_tool().described()]
        messages: list[Message] = []
        answers: list[tuple[int, int]] = []
        for index, turn in enumerate(sample.turns):
            messages.append(Message("user", (*(slots if index == 0 else ()), turn.question)))
            for one in turn.rounds:
                crop = image_to_patches(one.result, self.processor)
                patches.append(crop)
                messages.append(Message("assistant", "", one.thought, (one.call,)))
                messages.append(Message("tool", (ImageSlot(crop.num_tokens),)))
            before = self._ids(template.segments(messages, tools=tools))
            messages.append(Message("assistant", turn.answer, turn.thought))
            ids = self._ids(template.segments(messages, tools=tools))
            answers.append((len(ids) - self._answer_length(turn), len(ids)))
            assert ids[: len(before)] == before, "a longer conversation begins with the shorter one"
        return EncodedSample(sample.name, tuple(ids), tuple(patches), tuple(answers))

    def _answer_length(self, turn: SampleTurn) -> int:
        """Ids of an answer with its end; nothing joins it with the line break before it."""
        return len(self._ids([turn.answer, Tag(END, required=True)]))

    def _ids(self, segments: list[Segment]) -> list[int]:
        return list(encode_segments(self.tokenizer, segments, self.media).token_ids)


MediaSlot = ImageSlot | VideoSlot


def media_slot(patches: Patches) -> MediaSlot:
    """The place of an image or a video in a message."""
    return (ImageSlot if patches.grid[0] == 1 else VideoSlot)(patches.num_tokens)


def clips_to_patches(clips: Sequence[SampleClip], processor: ImageProcessorConfig) -> list[Patches]:
    """Of each clip, the patches of all frames one after the other; of an odd number, the last one twice."""
    import torch

    patches = []
    for clip in clips:
        frames = [image_to_patches(frame, processor) for frame in clip.frames]
        frames += frames[-1:] * (len(frames) % FRAMES_JOINED)
        pixel_values = torch.cat([frame.pixel_values for frame in frames])
        num_tokens = frames[0].num_tokens * len(frames) // FRAMES_JOINED
        grid = (len(frames), *frames[0].grid[1:])
        patches.append(replace(frames[0], pixel_values=pixel_values, grid=grid, num_tokens=num_tokens))
    return patches
