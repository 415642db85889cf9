"""Sums up a model's parts: weights, formats and bytes of each, from headers or sizes alone. No torch here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ernie_local.checkpoint.compressed import CompressedSource
from ernie_local.checkpoint.header import ITEM_BYTES
from ernie_local.checkpoint.packed import PackedTensors, expert_pages
from ernie_local.checkpoint.shapes import ExpectedShapes, TensorShape
from ernie_local.config import Bank, ModelConfig

if TYPE_CHECKING:
    from ernie_local.checkpoint.index import Accounts

# Parts in the order of every table; the routed experts of each bank and their small pages come before them.
ATTENTION_PART, EMBEDDING_PART, HEAD_PART = "attention", "embedding", "head"
# A tensor belongs to the first part whose mark is in its name.
_MARKS = (
    ("routers", "_router."),
    ("shared experts", "shared_experts"),
    ("vision tower", "vision."),
    ("resampler", "resampler."),
    (ATTENTION_PART, "self_attn"),
    ("dense layers", ".mlp."),
    (EMBEDDING_PART, "embed_tokens"),
    (HEAD_PART, "lm_head"),
    ("norms", "norm"),
)
# Only images pass through them.
IMAGE_PARTS = ("vision tower", "resampler")
_IMAGE_PREFIXES = tuple(mark for part, mark in _MARKS if part in IMAGE_PARTS)


def image_stage(name: str) -> str:
    """The module in which a tensor of IMAGE_PARTS computes: a block of the tower, or the whole resampler."""
    parts = name.split(".")
    return ".".join(parts[: 1 if parts[0] == "resampler" else 3 if parts[1] == "blocks" else 2])


@dataclass(slots=True)
class ModelPart:
    """One row of a table of parts.

    weights: how many numbers of the model. num_bytes: with scales and padding. formats: how many weights are
    in each type or low-bit format. pages: how many pages of routed experts are in each page format. Small
    pages hold their experts' weights once more.
    """

    name: str
    weights: int = 0
    num_bytes: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    pages: Counter[str] = field(default_factory=Counter)
    is_routed: bool = False  # the routed experts of a bank
    is_small: bool = False  # the small pages of a bank

    @property
    def bits_per_weight(self) -> float:
        """All bytes over all weights."""
        return 8 * self.num_bytes / self.weights if self.weights else 0.0


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """One tensor of a file, with our shape.

    format_name: its type, or the low-bit format if packed or compressed: quantized by another tool, and
    dequantized as it is read. pages: how many it holds; 0 for a matrix.
    """

    name: str
    shape: TensorShape
    weights: int
    num_bytes: int
    format_name: str
    is_packed: bool = False
    pages: int = 0
    is_compressed: bool = False
    part: str = field(init=False)  # kept, as it is asked for often and the published model has 11,132 tensors

    def __post_init__(self) -> None:
        object.__setattr__(self, "part", part_of(self.name))

    @property
    def code(self) -> str:
        """Its type as safetensors files call it."""
        return "U8" if self.is_packed else self.format_name.upper()


def stored_tensors(accounts: Accounts, config: ModelConfig) -> Iterator[ModelTensor]:
    """Every tensor of a checkpoint."""
    for name, source in accounts.sources.items():
        weights, is_compressed = math.prod(source.shape), isinstance(source, CompressedSource)
        yield ModelTensor(
            name, source.shape, weights, source.num_bytes, source.format_name, is_compressed=is_compressed
        )
    packed = PackedTensors(config)
    for name in accounts.packed:
        yield _packed_tensor(name, packed)


def expected_tensors(config: ModelConfig) -> Iterator[ModelTensor]:
    """Every tensor of the model of `config`: packed as it says, routers in float32, the rest in bfloat16."""
    expected, packed = ExpectedShapes(config), PackedTensors(config)
    for name in expected.names(with_experts=not config.has_packed_experts):
        if packed.replaces(name):
            continue
        shape = expected.shape(name) or ()
        dtype = "f32" if part_of(name) == "routers" else "bf16"
        weights = math.prod(shape)
        yield ModelTensor(name, shape, weights, weights * ITEM_BYTES[dtype.upper()], dtype)
    for name in packed.shapes:
        yield _packed_tensor(name, packed)


def plain_bytes(config: ModelConfig) -> int:
    """Bytes of all weights of the model of `config` in bfloat16; 0 if any are packed."""
    return 0 if config.quantization else sum(tensor.num_bytes for tensor in expected_tensors(config))


def model_parts(tensors: Iterable[ModelTensor], config: ModelConfig) -> list[ModelPart]:
    """The parts that these tensors make up, in the order of tables."""
    banks = config.text.banks
    ordered = [
        *(ModelPart(experts_part(bank.name), is_routed=True) for bank in banks),
        *(ModelPart(_small_pages_part(bank.name), is_small=True) for bank in banks),
        *(ModelPart(name) for name, _ in _MARKS),
    ]
    parts = {part.name: part for part in ordered}
    for tensor in tensors:
        part = parts[tensor.part]
        part.weights += tensor.weights
        part.num_bytes += tensor.num_bytes
        part.formats[tensor.format_name] += tensor.weights
        if expert_pages(tensor.name) is not None:
            part.pages[tensor.format_name] += tensor.pages
    return [part for part in parts.values() if part.weights]


def sum_of_parts(name: str, parts: Iterable[ModelPart]) -> ModelPart:
    """All of them as one part. Small pages count by their bytes: their weights are those of their experts."""
    whole = ModelPart(name)
    for part in parts:
        whole.num_bytes += part.num_bytes
        if not part.is_small:
            whole.weights += part.weights
            whole.formats += part.formats
            whole.pages += part.pages
    return whole


def routed_experts(parts: Iterable[ModelPart]) -> ModelPart | None:
    """The experts of all banks as one part, without small pages; None for a model without experts."""
    experts = [part for part in parts if part.is_routed]
    return sum_of_parts("routed experts", experts) if experts else None


def experts_part(bank: Bank) -> str:
    """The name of the part with a bank's routed experts."""
    return f"{bank} experts"


def _small_pages_part(bank: Bank) -> str:
    return f"small {bank} pages"


def part_of(name: str) -> str:
    """The name of the part that our tensor `name`, plain or packed, belongs to."""
    if name.startswith("experts."):
        return experts_part(name.split(".")[2])
    if name.startswith("small_experts."):
        return _small_pages_part(name.split(".")[2])
    return next(part for part, mark in _MARKS if mark in name)


def is_for_images(name: str) -> bool:
    """Whether our tensor or module `name` is of a part that only images pass through."""
    return name.startswith(_IMAGE_PREFIXES)


def is_of_layers(name: str) -> bool:
    """Whether our tensor `name` is of decoder layers, experts excepted."""
    return name.startswith("layers.")


def _packed_tensor(name: str, packed: PackedTensors) -> ModelTensor:
    shape = packed.shapes[name]
    stem, _, format_name = name.rpartition(".")
    layout, pages = packed.layout_of(name), 0
    if layout is None:
        weights = math.prod(packed.matrix_shape(stem))
    else:
        pages = shape[0]
        weights = pages * 3 * layout.inner_size * layout.hidden_size
    return ModelTensor(name, shape, weights, math.prod(shape), format_name, is_packed=True, pages=pages)
