"""Says on how many GPUs an engine can split a checkpoint, and computes what each of them holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ernie_local.checkpoint.writer import TensorEntry
from ernie_local.config import ModelConfig
from ernie_local.errors import UsageError
from ernie_local.model.memory_use import KVSize
from ernie_quant.export.compressed_layout import CompressedLayout

TENSOR_PARALLEL = (1, 2, 4, 8)
CONTEXT_TOKENS = 32768
_MARLIN_COLUMNS = 128  # of a matrix, for vLLM's kernels on NVIDIA GPUs
_WHOLE = ("norm", "gate.weight", "moe_statics", "weight_shape", "patch_embed")  # each GPU has all of it


@dataclass(frozen=True, slots=True)
class EngineShare:
    """What each of `tensor_parallel` GPUs holds: weights, and keys and values of `context` tokens.

    reasons: why it cannot be split so; empty if it can.
    """

    tensor_parallel: int
    weight_bytes: int
    kv_bytes: int
    context: int
    reasons: tuple[str, ...]


def gpu_shares(
    config: ModelConfig, layout: CompressedLayout, entries: Iterable[TensorEntry]
) -> list[EngineShare]:
    """For each number of GPUs in TENSOR_PARALLEL. entries: of the weight files."""
    listed = list(entries)
    return [gpu_share(config, layout, listed, count) for count in TENSOR_PARALLEL]


def gpu_share(
    config: ModelConfig, layout: CompressedLayout, entries: Iterable[TensorEntry], count: int
) -> EngineShare:
    """For `count` GPUs: linear layers, experts and the embedding are split, the head is the embedding."""
    text = config.text
    weight_bytes = 0
    for entry in entries:
        if text.tie_word_embeddings and entry.name == "lm_head.weight":
            continue
        is_whole = any(part in entry.name for part in _WHOLE)
        weight_bytes += entry.num_bytes if is_whole else -(-entry.num_bytes // count)
    context = min(CONTEXT_TOKENS, text.max_position_embeddings)
    kv = KVSize.of(text, context, item_bytes=2).num_bytes
    kv_bytes = -(-kv // min(count, text.num_key_value_heads))
    return EngineShare(count, weight_bytes, kv_bytes, context, tuple(_reasons(config, layout, count)))


def check_parallel(config: ModelConfig, layout: CompressedLayout, count: int) -> None:
    """UsageError where `count` GPUs cannot split the model."""
    reasons = list(_reasons(config, layout, count))
    if reasons:
        raise UsageError(
            f"--tensor-parallel {count}: {reasons[0]}",
            "each GPU gets a whole share of every matrix, and of the groups that share a scale",
            _other_splits(config, layout, count),
        )


def _other_splits(config: ModelConfig, layout: CompressedLayout, count: int) -> str:
    """What to try where `count` GPUs cannot split the model."""

    def fitting(other: CompressedLayout) -> list[int]:
        return [one for one in TENSOR_PARALLEL if not list(_reasons(config, other, one))]

    plain = CompressedLayout(None, None)
    if found := fitting(layout):
        return f"use {' or '.join(map(str, found))}"
    if not list(_reasons(config, plain, count)):
        return "--format bf16"
    return f"--format bf16 with {' or '.join(map(str, fitting(plain)))}, or remove the option"


def _reasons(config: ModelConfig, layout: CompressedLayout, count: int) -> Iterator[str]:
    """Why vLLM 0.32 does not split the model over `count` GPUs."""
    text, tower = config.text, config.tower
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    if heads % count:
        yield f"{heads} attention heads do not divide by {count}"
    if kv_heads % count and count % kv_heads:
        yield f"{kv_heads} key and value heads neither divide by {count} nor into it"
    if tower is not None and tower.num_heads % count:
        yield f"{tower.num_heads} heads of the vision tower do not divide by {count}"
    most_experts = max((bank.num_experts for bank in text.banks), default=count)
    if count > most_experts:
        yield f"there are {most_experts} experts in a bank"
    groups = {
        "dense": 1 if layout.dense is None else layout.dense.group_size,
        "experts": 1 if layout.experts is None else layout.experts.group_size,
    }
    widths = [("attention", heads * text.head_dim, "dense")]
    widths += [(f"{bank.name} experts", bank.expert_size, "experts") for bank in text.banks]
    widths += [("shared experts", text.shared_expert_size, "dense")]
    if not all(text.moe_layers):
        widths.append(("dense layers", text.intermediate_size, "dense"))
    for name, width, kind in widths:
        if width % count or width // count % groups[kind]:
            told = f" in whole groups of {groups[kind]}" if groups[kind] > 1 else ""
            yield f"the inner width {width} of {name} does not divide by {count}{told}"
    if layout.experts is not None and text.hidden_size % _MARLIN_COLUMNS:
        yield f"hidden_size {text.hidden_size} is no multiple of {_MARLIN_COLUMNS}, as kernels of GPUs want"
