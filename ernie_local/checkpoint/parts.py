"""Sums up what a model is made of: parts with weights, formats and bytes, from headers or sizes alone.

Reads no values and needs no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ernie_local.checkpoint.header import ITEM_BYTES
from ernie_local.checkpoint.packed import PackedTensors, expert_pages
from ernie_local.checkpoint.shapes import ExpectedShapes, TensorShape
from ernie_local.config import Bank, ModelConfig

if TYPE_CHECKING:
    from ernie_local.checkpoint.index import Accounts

# In this order in every table, behind the routed experts of each bank and their small pages. A tensor belongs
# to the first part whose mark stands in its name.
_MARKS = (
    ("routers", "_router."),
    ("shared experts", "shared_experts"),
    ("vision tower", "vision."),
    ("resampler", "resampler."),
    ("attention", "self_attn"),
    ("dense layers", ".mlp."),
    ("embedding", "embed_tokens"),
    ("head", "lm_head"),
    ("norms", "norm"),
)


@dataclass(slots=True)
class ModelPart:
    """`weights` are numbers of the model, `num_bytes` what they take with scales and padding.

    formats: how many weights lie in each type or low-bit format. pages: of routed experts, how many have
    which page format. Small pages hold their experts' weights once more.
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
    """One tensor as it lies in a file. shape: ours; format_name: its type, or the low-bit format if packed.

    pages: of routed experts, or of one gated MLP; 0 for a matrix.
    """

    name: str
    shape: TensorShape
    weights: int
    num_bytes: int
    format_name: str
    is_packed: bool = False
    pages: int = 0
    part: str = field(init=False)  # that it belongs to

    def __post_init__(self) -> None:
        # Kept: it is asked for often, and the published model has 11,132 tensors.
        object.__setattr__(self, "part", part_of(self.name))

    @property
    def code(self) -> str:
        """Its type as safetensors files call it."""
        return "U8" if self.is_packed else self.format_name.upper()


def stored_tensors(accounts: Accounts, config: ModelConfig) -> Iterator[ModelTensor]:
    """Every tensor of a checkpoint's model once."""
    for name, source in accounts.sources.items():
        weights, dtype = math.prod(source.shape), source.stored.dtype.lower()
        yield ModelTensor(name, source.shape, weights, source.num_bytes, dtype)
    packed = PackedTensors(config)
    for name in accounts.packed:
        yield _packed_tensor(name, packed)


def expected_tensors(config: ModelConfig) -> Iterator[ModelTensor]:
    """Every tensor of the model that `config` describes, as it is written: routers in float32, what is not
    packed in bfloat16."""
    expected, packed = ExpectedShapes(config), PackedTensors(config)
    has_pages = config.has_packed_experts
    for name in expected.names(with_experts=not has_pages):
        if packed.replaces(name):
            continue
        shape = expected.shape(name)
        assert shape is not None, name
        dtype = "f32" if part_of(name) == "routers" else "bf16"
        weights = math.prod(shape)
        yield ModelTensor(name, shape, weights, weights * ITEM_BYTES[dtype.upper()], dtype)
    for name in packed.shapes:
        yield _packed_tensor(name, packed)


def model_parts(tensors: Iterable[ModelTensor], config: ModelConfig) -> list[ModelPart]:
    """Parts that the model has, in the order of tables; together they hold every tensor once."""
    banks = config.text.banks
    ordered = [
        *(ModelPart(experts_part(bank.name), is_routed=True) for bank in banks),
        *(ModelPart(small_pages_part(bank.name), is_small=True) for bank in banks),
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
    """All of them as one part; the weights of small pages are counted with their experts alone."""
    whole = ModelPart(name)
    for part in parts:
        whole.num_bytes += part.num_bytes
        if part.is_small:
            continue
        whole.weights += part.weights
        whole.formats += part.formats
        whole.pages += part.pages
    return whole


def routed_experts(parts: Iterable[ModelPart]) -> ModelPart | None:
    """The experts of all banks as one part, without small pages; None for a model without."""
    experts = [part for part in parts if part.is_routed]
    return sum_of_parts("routed experts", experts) if experts else None


def experts_part(bank: Bank) -> str:
    """The part of a bank's routed experts."""
    return f"{bank} experts"


def small_pages_part(bank: Bank) -> str:
    """The part of the small pages of a bank's routed experts."""
    return f"small {bank} pages"


def part_of(name: str) -> str:
    """The part that our tensor `name`, plain or packed, belongs to."""
    if name.startswith("experts."):
        return experts_part(name.split(".")[2])
    if name.startswith("small_experts."):
        return small_pages_part(name.split(".")[2])
    return next(part for part, mark in _MARKS if mark in name)


def _packed_tensor(name: str, packed: PackedTensors) -> ModelTensor:
    shape = packed.shapes[name]
    stem, _, format_name = name.rpartition(".")
    layout = packed.layout_of(name)
    if layout is None:
        weights = math.prod(packed.matrix_shape(stem))
        return ModelTensor(name, shape, weights, math.prod(shape), format_name, is_packed=True)
    weights = shape[0] * 3 * layout.inner_size * layout.hidden_size
    return ModelTensor(name, shape, weights, math.prod(shape), format_name, is_packed=True, pages=shape[0])
