"""What a model is made of: tensors and parts with weights, formats and bytes, from headers or sizes alone.

Owns which tensor belongs to which part. Reads no values and needs no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ernie_local.checkpoint.header import ITEM_BYTES
from ernie_local.checkpoint.packed import PackedTensors, expert_pages
from ernie_local.checkpoint.shapes import ExpectedShapes, Shape
from ernie_local.config import ModelConfig

if TYPE_CHECKING:
    from ernie_local.checkpoint.index import Accounts

TEXT_EXPERTS, VISION_EXPERTS = "text experts", "vision experts"
SMALL_PAGES = ("small text pages", "small vision pages")
# In this order in every table. A tensor belongs to the first part whose mark stands in its name.
_MARKS = (
    (TEXT_EXPERTS, ".text."),
    (VISION_EXPERTS, ".vision."),
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
PARTS = (TEXT_EXPERTS, VISION_EXPERTS, *SMALL_PAGES, *(part for part, _ in _MARKS[2:]))


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
    shape: Shape
    weights: int
    num_bytes: int
    format_name: str
    is_packed: bool = False
    pages: int = 0
    part: str = field(init=False)  # that it belongs to

    def __post_init__(self) -> None:
        # Asked for again and again, and the published model has 11,132 tensors.
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


def model_parts(tensors: Iterable[ModelTensor]) -> list[ModelPart]:
    """Parts that the model has, in the order of PARTS; together they hold every tensor once."""
    parts = {name: ModelPart(name) for name in PARTS}
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
        if part.name in SMALL_PAGES:
            continue
        whole.weights += part.weights
        whole.formats += part.formats
        whole.pages += part.pages
    return whole


def routed_experts(parts: Iterable[ModelPart]) -> ModelPart | None:
    """The experts of both banks as one part, without small pages; None for a model without."""
    experts = [part for part in parts if part.name in (TEXT_EXPERTS, VISION_EXPERTS)]
    return sum_of_parts("routed experts", experts) if experts else None


def part_of(name: str) -> str:
    """The part that our tensor `name`, plain or packed, belongs to."""
    for prefix, of_text, of_vision in (
        ("experts.", TEXT_EXPERTS, VISION_EXPERTS),
        ("small_experts.", *SMALL_PAGES),
    ):
        if name.startswith(prefix):
            return of_text if ".text." in name else of_vision
    return next(part for part, mark in _MARKS[2:] if mark in name)


def _packed_tensor(name: str, packed: PackedTensors) -> ModelTensor:
    shape = packed.shapes[name]
    stem, _, format_name = name.rpartition(".")
    layout = packed.layout_of(name)
    if layout is None:
        weights = math.prod(packed.matrix_shape(stem))
        return ModelTensor(name, shape, weights, math.prod(shape), format_name, is_packed=True)
    weights = shape[0] * 3 * layout.inner_size * layout.hidden_size
    return ModelTensor(name, shape, weights, math.prod(shape), format_name, is_packed=True, pages=shape[0])
