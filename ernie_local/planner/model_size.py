"""Reads a model as the planner sees it: its config, and every tensor with format and bytes, but no values.

From the headers of a checkpoint, from a config.json alone, or, before anything is downloaded, from the sizes
of published models in the package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.header import files_bytes
from ernie_local.checkpoint.parts import (
    ModelPart,
    ModelTensor,
    expected_tensors,
    model_parts,
    plain_bytes,
    stored_tensors,
)
from ernie_local.config import ModelConfig, parse_config, read_config
from ernie_local.errors import UsageError, parameter
from ernie_local.experts.plan import PagingPlan
from ernie_local.media.processor_config import ImageProcessorConfig, read_processor_config, with_fault
from ernie_local.media.video_config import published_video_processor, read_video_processor
from ernie_local.packing.formats import find_format, formats_by_bits
from ernie_local.planner.need import expert_page_sizes
from ernie_local.planner.rates import DecodeWork, count_decode_work
from ernie_local.planner.weight_bytes import WEIGHT_ITEM_BYTES, WeightBytes, adapter_bytes, weights_in_memory
from ernie_local.strict_json import read_json_object

# Models whose config.json is in the package, as `vram` takes them.
PUBLISHED_NAMES = ("ernie-4.5-vl-28b-a3b", "ernie-4.5-vl-424b-a47b")
# Formats of experts by `quantize --bits`; mixed bits are 2.5 per weight on average.
_EXPERT_FORMATS = formats_by_bits() | {"mixed": find_format("w2l")}
BITS_BEST_FIRST = (
    "16",
    *sorted(_EXPERT_FORMATS, key=lambda bits: _EXPERT_FORMATS[bits].nominal_bits, reverse=True),
)


@dataclass(frozen=True)
class ModelSize:
    """processor, video_processor: of images and of frames of videos. stored: the tensors in files, and the
    bytes of the files; None where only config.json is known."""

    name: str
    config: ModelConfig
    processor: ImageProcessorConfig
    video_processor: ImageProcessorConfig
    stored: tuple[tuple[ModelTensor, ...], int] | None = None
    # Of all adapters, beside weights in the formats of a config.
    adapter_numbers: Callable[[ModelConfig], int] = lambda _: 0
    # What was asked for before: a model has thousands of tensors.
    _weights: dict[tuple[int, bool], WeightBytes] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _work: dict[str, DecodeWork] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def origin(self) -> Literal["headers", "config"]:
        """Where its sizes come from."""
        return "config" if self.stored is None else "headers"

    @cached_property
    def tensors(self) -> tuple[ModelTensor, ...]:
        """All of the model."""
        return tuple(expected_tensors(self.config)) if self.stored is None else self.stored[0]

    @cached_property
    def file_bytes(self) -> int:
        """Of all weight files."""
        return files_bytes(self.tensors) if self.stored is None else self.stored[1]

    @property
    def plain_weight_bytes(self) -> int:
        """Of a model that is not packed: as files have its weights, or in bfloat16 if compressed there."""
        return self.file_bytes if self.config.compression is None else plain_bytes(self.config)

    @cached_property
    def parts(self) -> list[ModelPart]:
        """Its parts, with weights and bytes in files."""
        return model_parts(self.tensors, self.config)

    @cached_property
    def paging_plan(self) -> PagingPlan | None:
        """How the pages of its experts share a memory; None for a model without experts to page."""
        if any(tensor.is_compressed and tensor.name.startswith("experts.") for tensor in self.tensors):
            return None  # a page is bytes that are computed with as they are in the files
        sizes = expert_page_sizes(self.tensors, self.config)
        return PagingPlan(sizes, self.config.text.experts_per_token) if sizes else None

    def weights(self, item_bytes: int, *, in_slots: bool = False) -> WeightBytes:
        """Weights in memory, with item_bytes for a number that is not packed; see `weights_in_memory`."""
        key = (item_bytes, in_slots)
        if key not in self._weights:
            text = self.config.text
            weights = weights_in_memory(self.tensors, text, item_bytes, in_slots=in_slots)
            is_packed = self.config.quantization is not None
            adapters = adapter_bytes(self.adapter_numbers(self.config), item_bytes, is_packed=is_packed)
            self._weights[key] = weights.with_adapters(adapters)
        return self._weights[key]

    def decode_work(self, dtype: str) -> DecodeWork:
        """What a decoded text token reads, with plain weights in `dtype`."""
        if dtype not in self._work:
            weights = self.weights(WEIGHT_ITEM_BYTES[dtype])
            self._work[dtype] = count_decode_work(self.tensors, self.config, weights, dtype)
        return self._work[dtype]


def published_model(name: str = PUBLISHED_NAMES[0]) -> ModelSize:
    """One of PUBLISHED_NAMES in bfloat16 as it is published, by its sizes."""
    raw = read_json_object(Path(__file__).with_name(f"{name}.json"))
    config = parse_config(raw, f"{name} (sizes that come with the package)")
    processor = ImageProcessorConfig()
    return ModelSize(name, config, processor, published_video_processor(processor))


def read_model(directory: Path) -> ModelSize:
    """The model in a directory: by its headers, or by config.json where there are no weights.

    ModelUnusable as from `read_config` and `account`.
    """
    # Only here: what reads headers takes as long to import as all else together.
    from ernie_local.checkpoint.files import INDEX_FILE, SINGLE_FILE, read_stored_tensors
    from ernie_local.checkpoint.index import account

    config = read_config(directory)
    processor = with_fault(read_processor_config(directory, config.tower), config)
    video = read_video_processor(directory, processor) if config.reads_images else processor
    if not any((directory / name).exists() for name in (SINGLE_FILE, INDEX_FILE)):
        return ModelSize(str(directory), config, processor, video)
    stored = read_stored_tensors(directory)
    tensors = tuple(stored_tensors(account(directory, stored, config), config))
    file_bytes = sum(path.stat().st_size for path in {tensor.path for tensor in stored})
    return ModelSize(str(directory), config, processor, video, (tensors, file_bytes))


def with_bits(model: ModelSize, bits: str | None, dense: str) -> ModelSize:
    """The model with its experts in this many bits and other matrices in `dense`; None and 16 change nothing.

    UsageError if it is quantized already.
    """
    if bits is None or (bits == "16" and model.config.quantization is None):
        return model
    low_bit = _EXPERT_FORMATS.get(bits)
    choice = FormatChoice(experts=None if low_bit is None else low_bit.name, dense=dense)
    return with_formats(model, choice, parameter("bits", bits))


def with_formats(model: ModelSize, choice: FormatChoice, option: str) -> ModelSize:
    """The model as `quantize` would write it. UsageError, naming `option`, if it is packed already."""
    if model.config.quantization is not None:
        raise UsageError(
            f"{option} with {model.name}, which is quantized already",
            "its formats are what its files say",
            f"remove {option}, or name the bfloat16 model",
        )
    config = model.config.packed_by(format_tables(model.config, choice))
    return dataclasses.replace(model, config=config, stored=None)
