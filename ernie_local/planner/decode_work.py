"""What a decoded text token reads, from tensors' sizes and formats alone.

Routed experts count by the mean of their bank; which of them a token takes is not known before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ernie_local.checkpoint.parts import ModelTensor, experts_part
from ernie_local.config import ModelConfig
from ernie_local.planner.conversation import WEIGHT_ITEM_BYTES
from ernie_local.planner.decode_time import DecodeWork
from ernie_local.planner.weights import WeightBytes

# Parts that every token reads; the tied embedding is the head.
_ALWAYS_READ = ("attention", "shared experts", "dense layers", "routers", "norms", "head")


def decode_work(
    tensors: Sequence[ModelTensor], config: ModelConfig, weights: WeightBytes, dtype: str
) -> DecodeWork:
    """Of a model whose plain weights are computed with in `dtype`, and take `weights` in memory."""
    text, item_bytes = config.text, WEIGHT_ITEM_BYTES[dtype]
    parts = [tensor.part for tensor in tensors]
    decoding = text.text_bank
    idle_routers = tuple(f"{bank.name}_router" for bank in text.banks if bank is not decoding)
    has_head = "head" in parts
    always: Counter[str] = Counter()
    experts: Counter[str] = Counter()
    page_bytes = 0
    for tensor, part in zip(tensors, parts, strict=True):
        format_name = tensor.format_name.partition("-")[0] if tensor.is_packed else dtype
        if decoding is not None and part == experts_part(decoding.name):
            experts[format_name] += tensor.weights
            page_bytes += tensor.num_bytes
        elif part in _ALWAYS_READ or (part == "embedding" and not has_head):
            if any(router in tensor.name for router in idle_routers):
                continue
            if tensor.is_packed:
                always[format_name] += tensor.num_bytes
            elif part == "routers":
                always["float32"] += WEIGHT_ITEM_BYTES["float32"] * tensor.weights
            else:
                always[dtype] += item_bytes * tensor.weights
    num_experts = sum(text.moe_layers) * decoding.num_experts if decoding is not None else 1
    return DecodeWork(
        num_layers=text.num_hidden_layers,
        moe_layers=sum(text.moe_layers),
        experts_per_token=text.experts_per_token,
        always_bytes=dict(always),
        expert_bytes=weights.text_experts // num_experts,
        expert_format=experts.most_common(1)[0][0] if experts else dtype,
        page_bytes=page_bytes // num_experts,
    )
