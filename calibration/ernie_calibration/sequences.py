"""Encodes samples as the token sequences that a model sees: its chat template with answers written out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ernie_calibration.sample import Sample
from ernie_local.config import MediaTokens, read_config
from ernie_local.errors import InputUnreadable
from ernie_local.media.patches import Patches
from ernie_local.media.processor import to_patches
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.model_files import ModelFiles
from ernie_local.text.template import (
    END,
    ChatTemplate,
    Segment,
    Tag,
    encode_segments,
    user_message,
)
from ernie_local.text.tokenizer import ErnieTokenizer


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One conversation as ids, placeholders expanded, with its images.

    answers: for each turn the ids [start, end) that the model would have to write, with the end token.
    """

    name: str
    token_ids: tuple[int, ...]
    patches: tuple[Patches, ...]
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class SampleEncoder:
    """Turns samples into ids, with what the model's own files say."""

    tokenizer: ErnieTokenizer
    processor: ImageProcessorConfig
    media: MediaTokens
    template: ChatTemplate

    @classmethod
    def of_model(cls, directory: Path) -> SampleEncoder:
        """From the files of the model in `directory`."""
        files = ModelFiles(directory, read_config(directory))
        return cls(
            files.tokenizer, files.image_processor, files.config.media, ChatTemplate(files.template_variant)
        )

    def encode(self, sample: Sample) -> EncodedSample:
        """Every turn in one sequence, each answer opened as the model's answer without thoughts is.

        A chat omits that opening in finished turns. Here it stays, so that one sequence shows the model each
        answer as it would begin to write it. InputUnreadable for a sample with neither text nor images.
        """
        patches = to_patches(sample.images, self.processor)
        image_tokens = tuple(image.num_tokens for image in patches)
        turns = sample.turns
        if not turns and not patches:
            raise InputUnreadable(
                f"sample {sample.name} has 0 images and 0 turns",
                "a model cannot be calibrated on nothing",
                "remove the sample",
            )
        ids: list[int] = []
        answers: list[tuple[int, int]] = []
        segments: list[Segment] = []
        for index, turn in enumerate(turns):
            if index == 0:
                message = user_message(turn.question, image_tokens)
                segments = self.template.segments([message], thinking=False)
            else:
                # Without the parts that only begin a sequence.
                message = user_message(turn.question)
                segments += self.template.segments([message], system="", thinking=False)[1:]
            start = len(self._ids(segments))
            segments += [turn.answer, Tag(END, required=True)]
            ids = self._ids(segments)
            answers.append((start, len(ids)))
        if not turns:
            ids = self._ids(self.template.segments([user_message("", image_tokens)]))
        return EncodedSample(sample.name, tuple(ids), tuple(patches), tuple(answers))

    def _ids(self, segments: list[Segment]) -> list[int]:
        return list(encode_segments(self.tokenizer, segments, self.media).token_ids)
