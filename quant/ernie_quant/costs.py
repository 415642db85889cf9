"""What each unit of a quantizing run costs, in billions of multiply-adds as the slowest part counts them.

Only the proportions matter: time left is reckoned from them and from the pace so far. They were fitted to
measurements at the model's real shapes (docs/performance.md). Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ernie_local.checkpoint.writer import TensorEntry
from ernie_local.config import Bank, Modality, ModelConfig
from ernie_quant.recipe import Recipe
from ernie_quant.token_table import TokenSequence
from ernie_quant.units import expert_unit

_GIGA = 1e9
_FIXED_PER_BYTE = 1000.0  # read, converted, rounded, packed and written: more than one multiply-add
_PACKED_SHARE = 0.3  # products with packed weights, beside those of floats
_HQQ_SLOWNESS = 40  # of quanto's search, beside rounding
_ATTENTION_SLOWNESS = 2.5  # attention itself, beside products with packed weights


def unit_costs(
    config: ModelConfig, fixed: Sequence[TensorEntry], sequences: Sequence[TokenSequence], recipe: Recipe
) -> dict[str, float]:
    """By unit, in the order of the work; `fixed` are the tensors that need no calibration tokens."""
    costs = {entry.name: _fixed_cost(entry, recipe) for entry in fixed}
    if recipe.method != "gptq":
        return costs
    for number, sequence in enumerate(sequences):
        costs[f"sequence {number}"] = _image_cost(config, sequence)
    num_tokens = sum(len(sequence.token_ids) for sequence in sequences)
    num_vision = sum(patches.num_tokens for sequence in sequences for patches in sequence.patches)
    counts: dict[Modality, int] = {"text": num_tokens - num_vision, "vision": num_vision}
    for layer_id, has_experts in enumerate(config.text.moe_layers):
        for bank in config.text.banks if has_experts else ():
            bank_tokens = sum(counts[modality] for modality in bank.serves)
            tokens = bank_tokens * config.text.experts_per_token / bank.num_experts
            cost = expert_cost(config, bank.name, tokens, recipe)
            for expert_id in range(bank.num_experts):
                costs[expert_unit(layer_id, bank.name, expert_id)] = cost
        costs[f"layer {layer_id}"] = _layer_cost(config, sequences)
    return costs


def _fixed_cost(entry: TensorEntry, recipe: Recipe) -> float:
    searches = recipe.method == "quanto-hqq" and entry.name.startswith("experts.")
    per_byte = _FIXED_PER_BYTE * (_HQQ_SLOWNESS if searches else 1)
    # A byte of packed codes stands for several weights.
    return entry.num_bytes * per_byte * (2 if entry.dtype == torch.uint8 else 1) / _GIGA


def _image_cost(config: ModelConfig, sequence: TokenSequence) -> float:
    vision = config.vision
    weights = vision.depth * vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    total = 1e6
    for patches in sequence.patches:
        count = patches.pixel_values.shape[0]
        attention = vision.depth * 2 * count * count * vision.hidden_size
        total += count * weights + _ATTENTION_SLOWNESS * attention
    return total / _GIGA


def _layer_cost(config: ModelConfig, sequences: Sequence[TokenSequence]) -> float:
    text = config.text
    lengths = [len(sequence.token_ids) for sequence in sequences]
    heads = text.num_attention_heads * text.head_dim
    weights = 3 * text.hidden_size * heads + 3 * text.hidden_size * text.shared_expert_size
    attention = sum(length * length * heads for length in lengths)
    return (_PACKED_SHARE * sum(lengths) * weights + attention) / _GIGA


def expert_cost(config: ModelConfig, bank: Bank, tokens: float, recipe: Recipe) -> float:
    """Of one expert that so many tokens visit, with its small page if it gets one."""
    text, tables = config.text, config.quantization
    hidden, inner = text.hidden_size, text.bank(bank).expert_size
    pages = 2 if tables is not None and tables.small_experts else 1
    passes = 4 + recipe.sweeps  # GPTQ's own half, the first pull, the error's two products, what is small
    chosen = passes * (2 * inner * hidden**2 + hidden * inner**2) + hidden**3 + inner**3
    moments = tokens * (hidden**2 + pages * inner**2)
    # Gate and up of each page, to see what down gets; all three of the first for the next layer.
    products = (3 + 2 * pages) * tokens * inner * hidden
    return (pages * chosen + moments + products) / _GIGA
