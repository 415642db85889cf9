"""What a checkpoint is made of: its parts with weights, formats and bytes, from headers alone.

Owns which tensor belongs to which part. Reads no values and needs no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ernie_local.checkpoint.index import Accounts
from ernie_local.checkpoint.packed import PackedTensors, expert_pages
from ernie_local.config import ModelConfig

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


def model_parts(accounts: Accounts, config: ModelConfig) -> list[ModelPart]:
    """Parts that the model has, in the order of PARTS; together they hold every tensor once."""
    parts = {name: ModelPart(name) for name in PARTS}
    for tensor in _tensors(accounts, config):
        part = parts[part_of(tensor.name)]
        part.weights += tensor.weights
        part.num_bytes += tensor.num_bytes
        part.formats[tensor.format_name] += tensor.weights
        if tensor.pages:
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


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    weights: int
    num_bytes: int
    format_name: str
    pages: int = 0


def _tensors(accounts: Accounts, config: ModelConfig) -> Iterator[_Tensor]:
    for name, source in accounts.sources.items():
        yield _Tensor(name, math.prod(source.shape), source.num_bytes, source.stored.dtype.lower())
    packed = PackedTensors(config)
    for name, stored in accounts.packed.items():
        stem, _, format_name = name.rpartition(".")
        layout = packed.layout_of(name)
        if layout is None:
            yield _Tensor(name, math.prod(packed.matrix_shape(stem)), stored.num_bytes, format_name)
            continue
        pages = stored.shape[0]
        weights = pages * 3 * layout.inner_size * layout.hidden_size
        routed_pages = 0 if expert_pages(name) is None else pages
        yield _Tensor(name, weights, stored.num_bytes, format_name, routed_pages)
