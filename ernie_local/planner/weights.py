"""What the weights of a model take in memory, by part, and the pages that its experts can be read in.

Exact: from headers, or from sizes and formats alone. Knows nothing of what else is in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.checkpoint.packed import PackedTensors, expert_pages
from ernie_local.checkpoint.parts import ModelTensor, experts_part
from ernie_local.config import ExpertBank, ModelConfig, TextConfig
from ernie_local.experts.keys import ExpertKey

_ROUTER_ITEM_BYTES = 4  # float32, whatever the rest is


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes in memory by part (checkpoint/parts.py). Small pages of experts stay in the files."""

    parts: Mapping[str, int]
    banks: tuple[ExpertBank, ...]

    @property
    def total(self) -> int:
        """Of everything."""
        return sum(self.parts.values())

    @property
    def experts(self) -> int:
        """Of all routed experts."""
        return sum(self.parts.get(part, 0) for part in self.expert_parts)

    @property
    def text_experts(self) -> int:
        """Of the routed experts that serve text tokens, and so decoding."""
        return sum(self.parts.get(experts_part(bank.name), 0) for bank in self.banks if "text" in bank.serves)

    @property
    def expert_parts(self) -> tuple[str, ...]:
        """The names of the parts that are routed experts."""
        return tuple(experts_part(bank.name) for bank in self.banks)

    @property
    def dense(self) -> int:
        """Of everything else."""
        return self.total - self.experts


def weights_in_memory(tensors: Iterable[ModelTensor], text: TextConfig, item_bytes: int) -> WeightBytes:
    """Packed weights as they are, each expert in a slot of its bank's largest page; routers in float32, the
    rest in numbers of `item_bytes`."""
    parts: Counter[str] = Counter()
    slots: dict[tuple[int, str], int] = {}
    for tensor in tensors:
        pages = expert_pages(tensor.name) if tensor.is_packed else None
        if pages is not None:
            if not pages.small:
                key = (pages.layer_id, pages.bank)
                slots[key] = max(slots.get(key, 0), tensor.num_bytes // tensor.pages)
        elif tensor.is_packed:
            parts[tensor.part] += tensor.num_bytes
        else:
            part = tensor.part
            parts[part] += tensor.weights * (_ROUTER_ITEM_BYTES if part == "routers" else item_bytes)
    for (_, bank), slot_bytes in slots.items():
        parts[experts_part(bank)] += text.bank(bank).num_experts * slot_bytes
    return WeightBytes(parts, text.banks)


def page_sizes(tensors: Iterable[ModelTensor], config: ModelConfig) -> dict[ExpertKey, int]:
    """Bytes of the page of every routed expert, in order; empty for a model without."""
    experts = {tensor.name: tensor for tensor in tensors if tensor.name.startswith("experts.")}
    is_packed = config.has_packed_experts
    packed = PackedTensors(config) if is_packed else None
    sizes: dict[ExpertKey, int] = {}
    for layer_id, bank in config.text.layer_banks():
        if packed is not None:
            for expert_id, (name, _) in enumerate(packed.locate_experts(layer_id, bank.name)):
                sizes[ExpertKey(layer_id, bank.name, expert_id)] = experts[name].shape[1]
            continue
        for expert_id in range(bank.num_experts):
            stem = f"experts.{layer_id}.{bank.name}.{expert_id}"
            sizes[ExpertKey(layer_id, bank.name, expert_id)] = sum(
                experts[f"{stem}.{projection}"].num_bytes for projection in PROJECTIONS
            )
    return sizes
