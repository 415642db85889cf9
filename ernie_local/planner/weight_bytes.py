"""Counts the bytes that weights and adapters take in memory, part by part: exact, from headers or sizes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ernie_local.checkpoint.packed import expert_pages
from ernie_local.checkpoint.parts import IMAGE_PARTS, ModelTensor, experts_part, image_stage
from ernie_local.config import ExpertBank, TextConfig
from ernie_local.sizes import aligned

WEIGHT_ITEM_BYTES = {"float32": 4, "bfloat16": 2}
ADAPTERS_PART = "adapters"  # beside the parts of checkpoint/parts.py
_ROUTER_ITEM_BYTES = 4  # routers stay in float32, whatever the rest is in


class ProjectionBytes(NamedTuple):
    """Of one layer's attention: as the rest of the model is held, and in RAM beside a GPU, where plain ones
    of a packed model are float32."""

    as_is: int
    on_host: int


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes in memory by part (checkpoint/parts.py), and of adapters. Small pages of experts stay in files.

    image_window: of the largest stage that only images pass through. projections: of each layer's attention.
    """

    parts: Mapping[str, int]
    banks: tuple[ExpertBank, ...]
    image_window: int = 0
    projections: tuple[ProjectionBytes, ...] = ()

    def with_adapters(self, num_bytes: int) -> WeightBytes:
        """The same with adapters, which stay where the weights that are no experts are."""
        return (
            dataclasses.replace(self, parts={**self.parts, ADAPTERS_PART: num_bytes}) if num_bytes else self
        )

    @property
    def total(self) -> int:
        """Of everything."""
        return sum(self.parts.values())

    @property
    def experts(self) -> int:
        """Of all routed experts."""
        return sum(self.expert_parts.values())

    @property
    def text_experts(self) -> int:
        """Of the routed experts that serve text tokens, and so decoding."""
        return sum(self.parts.get(experts_part(bank.name), 0) for bank in self.banks if "text" in bank.serves)

    @property
    def for_images(self) -> int:
        """Of all that only images pass through."""
        return sum(self.parts.get(part, 0) for part in IMAGE_PARTS)

    @property
    def expert_parts(self) -> dict[str, int]:
        """The parts that are routed experts."""
        return {part: self.parts.get(part, 0) for part in (experts_part(bank.name) for bank in self.banks)}

    @property
    def dense(self) -> int:
        """Of everything else."""
        return self.total - self.experts


def adapter_bytes(num_numbers: int, item_bytes: int, *, is_packed: bool) -> int:
    """Of adapters in memory: bfloat16 beside packed weights, else in their type, of `item_bytes` a number."""
    return num_numbers * (WEIGHT_ITEM_BYTES["bfloat16"] if is_packed else item_bytes)


def weights_in_memory(
    tensors: Iterable[ModelTensor], text: TextConfig, item_bytes: int, *, in_slots: bool = False
) -> WeightBytes:
    """Bytes of all weights: packed ones as they are, routers in float32, the rest in `item_bytes` a number.

    in_slots: whether each packed expert has a slot of the size of its bank's largest page, as on a GPU.
    """
    parts: Counter[str] = Counter()
    image_stages: Counter[str] = Counter()
    projections: list[ModelTensor] = []
    slots: dict[tuple[int, str], int] = {}
    for tensor in tensors:
        pages = expert_pages(tensor.name) if tensor.is_packed else None
        if pages is None:
            num_bytes = bytes_in_memory(tensor, item_bytes)
            parts[tensor.part] += num_bytes
            if tensor.part in IMAGE_PARTS:
                image_stages[image_stage(tensor.name)] += aligned(num_bytes)
            elif tensor.part == "attention":
                projections.append(tensor)
        elif not pages.small:
            key = (pages.layer_id, pages.bank)
            if in_slots:
                slots[key] = max(slots.get(key, 0), tensor.num_bytes // tensor.pages)
            else:
                parts[tensor.part] += tensor.num_bytes
    for (_, bank), slot_bytes in slots.items():
        parts[experts_part(bank)] += text.bank(bank).num_experts * slot_bytes
    window = max(image_stages.values(), default=0)
    return WeightBytes(parts, text.banks, window, tuple(_projection_bytes(projections, text, item_bytes)))


def _projection_bytes(
    tensors: Iterable[ModelTensor], text: TextConfig, item_bytes: int
) -> Iterator[ProjectionBytes]:
    of_layer: dict[int, list[ModelTensor]] = {layer_id: [] for layer_id in range(text.num_hidden_layers)}
    is_packed = False
    for tensor in tensors:
        of_layer[int(tensor.name.split(".")[1])].append(tensor)
        is_packed |= tensor.is_packed
    for own in of_layer.values():
        on_host = WEIGHT_ITEM_BYTES["float32"] if is_packed else item_bytes
        yield ProjectionBytes(
            *(sum(bytes_in_memory(one, item) for one in own) for item in (item_bytes, on_host))
        )


def bytes_in_memory(tensor: ModelTensor, item_bytes: int) -> int:
    """Of one tensor: as it is where it is packed, a router in float32, others in `item_bytes` a number."""
    if tensor.is_packed:
        return tensor.num_bytes
    return tensor.weights * (_ROUTER_ITEM_BYTES if tensor.part == "routers" else item_bytes)
