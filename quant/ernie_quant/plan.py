"""Estimates what a quantizing run takes before it begins: bytes, disk, memory, time.

Bytes of the checkpoint are exact. Memory is an upper estimate from the largest objects that exist at the same
time. Costs of units were fitted at the model's real shapes (docs/performance.md); `pace` makes seconds of
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ernie_calibration.sequences import EncodedSample
from ernie_local.checkpoint.packed import expert_pages
from ernie_local.checkpoint.writer import CheckpointFiles, TensorEntry
from ernie_local.config import Bank, Modality, ModelConfig, TextConfig
from ernie_local.errors import DoesNotFit, parameter
from ernie_local.sizes import MIB, format_bytes
from ernie_quant.calibration import MOST_DRIFT_TOKENS
from ernie_quant.layer import CHUNK_TOKENS
from ernie_quant.recipe import Recipe
from ernie_quant.shard_store import Download
from ernie_quant.source import BLOCK_ROWS
from ernie_quant.work import expert_unit

_FLOAT = 4
_PROGRAM_BYTES = 900 * MIB  # Python, torch with its libraries and threads' stacks
_STATE_FILES = 3  # hidden states: a layer's input, with its attention, with its experts


@dataclass(frozen=True, slots=True)
class Plan:
    """weight_bytes: of all weight files; small_page_bytes: the part of them that is small pages;
    companion_bytes: of the files that are copied beside them; scratch_bytes: temporary disk space;
    memory_bytes: the peak; seconds: None if nothing was timed. download: of a source on the hub."""

    weight_bytes: int
    scratch_bytes: int
    memory_bytes: int
    seconds: float | None = None
    small_page_bytes: int = 0
    companion_bytes: int = 0
    download: Download | None = None

    @property
    def work_bytes(self) -> int:
        """Disk space besides the weights, until the end."""
        return self.scratch_bytes + (0 if self.download is None else self.download.disk_bytes)


def plan_run(
    config: ModelConfig, sequences: Sequence[EncodedSample], files: CheckpointFiles, most_memory: int | None
) -> Plan:
    """What it takes but for time. DoesNotFit if that is more memory than `most_memory` bytes."""
    pages = ((entry, expert_pages(entry.name)) for entry in files.in_file_order())
    plan = Plan(
        files.total_bytes,
        _scratch_bytes(config, sequences),
        _memory_bytes(config, sequences),
        small_page_bytes=sum(entry.num_bytes for entry, kind in pages if kind is not None and kind.small),
    )
    if most_memory is not None and plan.memory_bytes > most_memory:
        raise DoesNotFit(
            f"about {format_bytes(plan.memory_bytes)} of memory are needed, "
            f"{parameter('most_memory')} allows {format_bytes(most_memory)}",
            "an expert with its second moments, an image in the tower and all samples have to fit",
            "allow more, or use fewer samples",
        )
    return plan


def _scratch_bytes(config: ModelConfig, sequences: Sequence[EncodedSample]) -> int:
    """Disk space for hidden states of all tokens, and again for those on the exact path."""
    lengths = [len(sequence.token_ids) for sequence in sequences]
    if not lengths:
        return 0
    exact = min(sum(lengths), max(MOST_DRIFT_TOKENS, lengths[0]))
    return _STATE_FILES * (sum(lengths) + exact) * config.text.hidden_size * _FLOAT


def _memory_bytes(config: ModelConfig, sequences: Sequence[EncodedSample]) -> int:
    """The peak of memory: that of the largest stage, with the program and all images."""
    text = config.text
    images = [patches for sequence in sequences for patches in sequence.patches]
    pixels = sum(patches.pixel_values.nbytes for patches in images)
    widest = max(text.intermediate_size, text.shared_expert_size)
    # Rows of the embedding or of a gated MLP that are rounded at once, with codes and candidates.
    stages = [8 * rows * text.hidden_size * _FLOAT for rows in (BLOCK_ROWS, widest)]
    if sequences:
        largest = max((patches.pixel_values.shape[0] for patches in images), default=0)
        longest = max(len(sequence.token_ids) for sequence in sequences)
        attention = 16 * longest * text.num_attention_heads * text.head_dim * _FLOAT
        stages += [_expert_bytes(text), _tower_bytes(config, largest), attention]
    return _PROGRAM_BYTES + pixels + max(stages)


def _expert_bytes(text: TextConfig) -> int:
    """Moments of the bank and the expert, their factor, weights, codes, errors and a chunk of tokens."""
    inner = max((bank.expert_size for bank in text.banks), default=0)
    moments = 14 * text.hidden_size**2
    matrices = 16 * 2 * inner * text.hidden_size
    return (moments + matrices + 4 * CHUNK_TOKENS * text.hidden_size) * _FLOAT


def _tower_bytes(config: ModelConfig, num_patches: int) -> int:
    """Weights and embedding in eight bits, and activations of the largest image."""
    vision = config.vision
    weights = vision.depth * vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    activations = num_patches * (8 * vision.hidden_size + 3 * vision.intermediate_size) * _FLOAT
    return weights + config.text.vocab_size * config.text.hidden_size + activations


_GIGA = 1e9
_FIXED_PER_BYTE = 1000.0  # multiply-adds to read, convert, round, pack and write a byte
_PACKED_SHARE = 0.3  # cost of a product with packed weights, relative to floats
_HQQ_SLOWNESS = 40  # of quanto's search, relative to rounding
_ATTENTION_SLOWNESS = 2.5  # of attention, relative to products with packed weights


def unit_costs(
    config: ModelConfig, fixed: Sequence[TensorEntry], sequences: Sequence[EncodedSample], recipe: Recipe
) -> dict[str, float]:
    """Cost of each unit in billions of multiply-adds. fixed: tensors that need no calibration tokens."""
    costs = {entry.name: _fixed_cost(entry, recipe) for entry in fixed}
    if recipe.method != "gptq":
        return costs
    for number, sequence in enumerate(sequences):
        costs[f"sequence {number}"] = _image_cost(config, sequence)
    num_tokens = expert_tokens(config, sequences)
    for layer_id, has_experts in enumerate(config.text.moe_layers):
        for bank in config.text.banks if has_experts else ():
            cost = expert_cost(config, bank.name, num_tokens[bank.name], recipe)
            for expert_id in range(bank.num_experts):
                costs[expert_unit(layer_id, bank.name, expert_id)] = cost
        costs[f"layer {layer_id}"] = _layer_cost(config, sequences)
    return costs


def expert_tokens(config: ModelConfig, sequences: Sequence[EncodedSample]) -> dict[Bank, float]:
    """Mean number of calibration tokens of an expert of each bank."""
    num_tokens = sum(len(sequence.token_ids) for sequence in sequences)
    num_vision = sum(patches.num_tokens for sequence in sequences for patches in sequence.patches)
    counts: dict[Modality, int] = {"text": num_tokens - num_vision, "vision": num_vision}
    return {
        bank.name: sum(counts[one] for one in bank.serves) * config.text.experts_per_token / bank.num_experts
        for bank in config.text.banks
    }


def _fixed_cost(entry: TensorEntry, recipe: Recipe) -> float:
    searches = recipe.method == "quanto-hqq" and entry.name.startswith("experts.")
    per_byte = _FIXED_PER_BYTE * (_HQQ_SLOWNESS if searches else 1)
    # A byte of packed codes stands for several weights.
    return entry.num_bytes * per_byte * (2 if entry.dtype == torch.uint8 else 1) / _GIGA


def _image_cost(config: ModelConfig, sequence: EncodedSample) -> float:
    vision = config.vision
    weights = vision.depth * vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    total = 1e6
    for patches in sequence.patches:
        count = patches.pixel_values.shape[0]
        attention = vision.depth * 2 * count * count * vision.hidden_size
        total += count * weights + _ATTENTION_SLOWNESS * attention
    return total / _GIGA


def _layer_cost(config: ModelConfig, sequences: Sequence[EncodedSample]) -> float:
    text = config.text
    lengths = [len(sequence.token_ids) for sequence in sequences]
    heads = text.num_attention_heads * text.head_dim
    weights = 3 * text.hidden_size * heads + 3 * text.hidden_size * text.shared_expert_size
    attention = sum(length * length * heads for length in lengths)
    return (_PACKED_SHARE * sum(lengths) * weights + attention) / _GIGA


def expert_cost(config: ModelConfig, bank: Bank, tokens: float, recipe: Recipe) -> float:
    """The cost of one expert with this many tokens, with its small page if it gets one."""
    text, tables = config.text, config.quantization
    hidden, inner = text.hidden_size, text.bank(bank).expert_size
    pages = 2 if tables is not None and tables.small_experts else 1
    passes = 4 + recipe.sweeps  # half for GPTQ itself, the first pull, two products for the error, the rest
    chosen = passes * (2 * inner * hidden**2 + hidden * inner**2) + hidden**3 + inner**3
    moments = tokens * (hidden**2 + pages * inner**2)
    # Gate and up of each page give the inputs of down; all three of the first page feed the next layer.
    products = (3 + 2 * pages) * tokens * inner * hidden
    return (pages * chosen + moments + products) / _GIGA
