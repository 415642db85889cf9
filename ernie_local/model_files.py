"""Reads a model's small files, each once: config, image settings, tokenizer, template, sampling defaults.

They cost little and show most faults, so they are read before the weights.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from ernie_local.checkpoint.hub import resolve_model
from ernie_local.checkpoint.parts import plain_bytes
from ernie_local.config import ModelConfig, read_config
from ernie_local.config.keys import Keys
from ernie_local.errors import ModelUnusable
from ernie_local.media.detail import with_image_tokens
from ernie_local.media.processor_config import (
    PROCESSOR_FILES,
    ImageProcessorConfig,
    read_processor_config,
    with_fault,
    with_max_pixels,
)
from ernie_local.media.video_config import read_video_processor
from ernie_local.progress import OnProgress
from ernie_local.strict_json import read_json_object

if TYPE_CHECKING:
    from ernie_local.text.template import Variant
    from ernie_local.text.template_file import Template
    from ernie_local.text.tokenizer import ErnieTokenizer

_TEMPLATE_FILES = ("tokenizer_config.json", "chat_template.jinja", "chat_template.json")
# What decides how a model reads and answers, beside config.json. All but the tokenizer have defaults.
INPUT_FILES = (
    *PROCESSOR_FILES, *_TEMPLATE_FILES, "added_tokens.json", "special_tokens_map.json",
    "generation_config.json", "tokenizer.model",
)  # fmt: skip


class MissingFileWarning(UserWarning):
    """A model lacks a file that decides how it reads, and a default stands in for it."""


class CompressedWeightsWarning(UserWarning):
    """Another tool has quantized weights, or what it says is not computed as it says."""


_Value = TypeVar("_Value")


def _read_once(read: Callable[[ModelFiles], _Value]) -> cached_property[_Value]:
    """A cached_property that one thread reads while others wait for it."""

    @wraps(read)
    def read_or_wait(files: ModelFiles) -> _Value:
        known, name = vars(files), read.__name__
        with files.lock:
            value: _Value = known[name] if name in known else read(files)
            known[name] = value
        return value

    return cached_property(read_or_wait)


class ModelFiles:
    """The small files of a model directory, read when first used; ModelUnusable for a broken one.

    Several threads may ask for them.
    """

    def __init__(
        self,
        directory: Path,
        config: ModelConfig,
        max_pixels: int | None = None,
        image_tokens: int | None = None,
    ) -> None:
        """max_pixels: of an image for the model; None is as the files say. image_tokens: a bound that makes
        images smaller than that, never larger.
        """
        self.directory = directory
        self.config = config
        self._max_pixels, self._image_tokens = max_pixels, image_tokens
        self.lock = threading.RLock()  # of what is being read

    def __repr__(self) -> str:
        return f"ModelFiles({str(self.directory)!r})"

    @_read_once
    def image_processor(self) -> ImageProcessorConfig:
        """How images are resized and cut; without a file for it by the published defaults, if these fit.

        UsageError for a chosen limit that cannot be.
        """
        processor = with_fault(read_processor_config(self.directory, self.config.tower), self.config)
        return with_image_tokens(with_max_pixels(processor, self._max_pixels), self._image_tokens)

    @_read_once
    def video_processor(self) -> ImageProcessorConfig:
        """How frames of videos are resized and cut."""
        image = self.image_processor
        return read_video_processor(self.directory, image) if image.reads_images else image

    def missing_notes(self) -> list[str]:
        """A line for each file that is missing and that a default stands in for."""
        notes: list[str] = []
        processor = self.image_processor
        if processor.reads_images and not processor.has_limits:
            effect = f"images get up to {processor.max_pixels} pixels"
            if processor.fault is not None:
                effect = f"it cannot read images, as {processor.fault}"
            notes.append(f"{self.directory} has no {PROCESSOR_FILES[1]} with max_pixels: {effect}")
        has_tokenizer = (self.directory / "tokenizer.model").exists()
        if has_tokenizer and not any(os.path.lexists(self.directory / name) for name in _TEMPLATE_FILES):
            notes.append(
                f"{self.directory} has no {_TEMPLATE_FILES[0]} and no chat template: "
                f"it is asked as the PT checkpoints {'' if processor.reads_images else 'of text alone '}are"
            )
        return notes

    def check_listed(self) -> None:
        """ModelUnusable where hashes.json lists one of INPUT_FILES, and it is not there."""
        # Only here: it takes as long to import as all else together.
        from ernie_local.checkpoint.files import HASHES_FILE, read_hashes

        for name, listed in (read_hashes(self.directory) or {}).items():
            path = self.directory / name
            if name in INPUT_FILES and not path.exists():
                raise ModelUnusable(
                    f"{path} is missing",
                    f"{HASHES_FILE} lists it with {listed.num_bytes} bytes",
                    "download or copy this file again",
                )

    @_read_once
    def tokenizer(self) -> ErnieTokenizer:
        """The tokenizer; ModelUnusable names a missing file."""
        from ernie_local.text.tokenizer import ErnieTokenizer

        return ErnieTokenizer.from_directory(self.directory)

    @_read_once
    def template_name(self) -> Variant | Literal["file"]:
        """Which chat template the model was trained with."""
        from ernie_local.text.template_file import detect_template

        return detect_template(self.directory, reads_images=self.config.reads_images)

    def template(self, name: str | None = None) -> Template:
        """The template that `name` says, as of `open_template`; None: the one that it was trained with."""
        from ernie_local.text.template_file import open_template

        return open_template(name or self.template_name, self.directory, self.tokenizer)

    @_read_once
    def generation_config(self) -> Mapping[str, object]:
        """generation_config.json, its token ids checked; empty where there is none."""
        path = self.directory / "generation_config.json"
        if not os.path.lexists(path):
            return {}
        settings = read_json_object(path)
        Keys(settings, str(path)).check_ids(self.config.text.vocab_size)
        return settings

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer by generation_config.json; those of config.json may be others."""
        return Keys(self.generation_config, "generation_config.json").ids("eos_token_id")

    @_read_once
    def plain_weight_bytes(self) -> int:
        """Of all weights, as files have them, or in bfloat16 if another tool quantized them; 0 if packed."""
        if self.config.quantization is not None or self.config.compression is not None:
            return plain_bytes(self.config)
        return sum(path.stat().st_size for path in self.directory.glob("*.safetensors"))


def find_model_files(
    model: str | Path,
    on_progress: OnProgress | None = None,
    max_pixels: int | None = None,
    image_tokens: int | None = None,
) -> ModelFiles:
    """The files of a directory, of `hf:org/name[@revision]`, or of `nano`; ModelUnusable if not found.

    on_progress: of a download, as of `resolve_model`. max_pixels, image_tokens: as of ModelFiles.
    """
    directory = resolve_model(str(model), on_progress)
    return ModelFiles(directory, read_config(directory), max_pixels, image_tokens)
