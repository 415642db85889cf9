"""Reads a model's small files, each once: config, image settings, tokenizer, template, sampling defaults.

They cost little and show most faults, so they are read before the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_local.checkpoint.hub import resolve_model
from ernie_local.config import ModelConfig, read_config
from ernie_local.config.keys import Keys
from ernie_local.media.processor_config import ImageProcessorConfig, read_processor_config
from ernie_local.strict_json import read_json_object

if TYPE_CHECKING:
    from ernie_local.text.template import Variant
    from ernie_local.text.tokenizer import ErnieTokenizer


class ModelFiles:
    """The small files of a model directory, read when first used; ModelUnusable for a broken one."""

    def __init__(self, directory: Path, config: ModelConfig) -> None:
        self.directory = directory
        self.config = config

    def __repr__(self) -> str:
        return f"ModelFiles({str(self.directory)!r})"

    @cached_property
    def image_processor(self) -> ImageProcessorConfig:
        """How images are resized and cut; the published defaults without a file for it."""
        return read_processor_config(self.directory, self.config.vision)

    @cached_property
    def tokenizer(self) -> ErnieTokenizer:
        """The tokenizer; ModelUnusable names a missing file."""
        from ernie_local.text.tokenizer import ErnieTokenizer

        return ErnieTokenizer.from_directory(self.directory)

    @cached_property
    def template_variant(self) -> Variant:
        """Which chat template the model was trained with."""
        from ernie_local.text.template import detect_variant

        return detect_variant(self.directory)

    @cached_property
    def generation_config(self) -> Mapping[str, object]:
        """generation_config.json, its token ids checked; empty where there is none."""
        path = self.directory / "generation_config.json"
        if not path.exists():
            return {}
        settings = read_json_object(path)
        Keys(settings, str(path)).check_ids(self.config.text.vocab_size)
        return settings

    @cached_property
    def weight_file_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(path.stat().st_size for path in self.directory.glob("*.safetensors"))


def find_model_files(model: str | Path) -> ModelFiles:
    """The files of a directory, of `hf:org/name[@revision]`, or of `nano`; ModelUnusable if not found."""
    directory = resolve_model(str(model))
    return ModelFiles(directory, read_config(directory))
