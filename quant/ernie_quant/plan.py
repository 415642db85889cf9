"""Estimates what a quantizing run takes before it begins: bytes, disk, memory, time.

Bytes of the checkpoint are exact. Memory is an upper estimate from the largest objects that exist at the same
time. Costs of units were fitted at the model's real shapes (docs/performance.md); `pace` makes seconds of
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from ernie_calibration.sequences import EncodedSample
from ernie_local.checkpoint.packed import expert_pages
from ernie_local.checkpoint.writer import CheckpointFiles, TensorEntry
from ernie_local.config import Bank, Modality, ModelConfig, QuantizationConfig, TextConfig
from ernie_local.errors import DoesNotFit, parameter
from ernie_local.sizes import MIB, format_bytes
from ernie_quant.answer_gradients import POSITIONS_AT_A_TIME, gradient_sequences
from ernie_quant.calibration import MOST_DRIFT_TOKENS
from ernie_quant.dense import MOST_COLUMNS, DenseTensors
from ernie_quant.layer import CHUNK_TOKENS, NEIGHBOUR_RANKS
from ernie_quant.recipe import Recipe
from ernie_quant.shard_store import Download
from ernie_quant.source import BLOCK_ROWS
from ernie_quant.tokens import cut_into_parts
from ernie_quant.units import dense_unit, expert_unit

_FLOAT = 4
_PROGRAM_BYTES = 900 * MIB  # Python, torch with its libraries and threads' stacks
_STATE_FILES = 3  # hidden states: a layer's input, with its attention, with its experts
_HEADER_BYTES = 1024  # at most, of a file of routing


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
    config: ModelConfig,
    sequences: Sequence[EncodedSample],
    files: CheckpointFiles,
    recipe: Recipe,
    most_memory: int | None,
    adapter_bytes: int = 0,
) -> Plan:
    """What it takes but for time. DoesNotFit if that is more memory than `most_memory` bytes.

    config: with the new tables; adapter_bytes: of adapters that are added to the weights.
    """
    pages = ((entry, expert_pages(entry.name)) for entry in files.in_file_order())
    plan = Plan(
        files.total_bytes,
        _scratch_bytes(config, sequences, recipe),
        _memory_bytes(config, sequences, recipe) + adapter_bytes,
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


def _scratch_bytes(config: ModelConfig, sequences: Sequence[EncodedSample], recipe: Recipe) -> int:
    """Disk space for hidden states of all tokens, again for those on the exact path, and for routing.

    Where a matrix behind the heads of attention is calibrated, also for what they give. For gradients, too:
    theirs and the states of all layers.
    """
    lengths = [len(sequence.token_ids) for sequence in sequences]
    if not lengths:
        return 0
    text = config.text
    exact = min(sum(lengths), max(MOST_DRIFT_TOKENS, lengths[0]))
    states = _STATE_FILES * (sum(lengths) + exact) * text.hidden_size
    choices = sum(lengths) * (1 + (2 + NEIGHBOUR_RANKS) * text.experts_per_token)
    floats = states + choices + len(text.banks) * text.hidden_size**2
    if any(tensors.output for tensors in _dense_tensors(config)):
        floats += sum(lengths) * text.num_attention_heads * text.head_dim
    if recipe.by_answers:
        layers = text.num_hidden_layers + _STATE_FILES
        floats += 2 * layers * _gradient_tokens(config, sequences) * text.hidden_size
        floats += len(text.banks) * text.hidden_size**2
    return floats * _FLOAT + len(text.banks) * _HEADER_BYTES


def _gradient_tokens(config: ModelConfig, sequences: Sequence[EncodedSample]) -> int:
    return sum(len(sequence.token_ids) for sequence in gradient_sequences(sequences, config))


def _memory_bytes(config: ModelConfig, sequences: Sequence[EncodedSample], recipe: Recipe) -> int:
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
    if sequences and recipe.by_answers:
        stages[-3] += _output_side_bytes(text)
    if sequences and any(tensors.names() for tensors in _dense_tensors(config)):
        stages.append(_dense_bytes(text))
    if sequences and recipe.by_answers:
        stages.append(_gradient_bytes(config, sequences))
    return _PROGRAM_BYTES + pixels + max(stages)


def _expert_bytes(text: TextConfig) -> int:
    """Moments of the bank and the expert, their factor, weights, codes, errors and a chunk of tokens."""
    inner = max((bank.expert_size for bank in text.banks), default=0)
    moments = 14 * text.hidden_size**2
    matrices = 16 * 2 * inner * text.hidden_size
    return (moments + matrices + 4 * CHUNK_TOKENS * text.hidden_size) * _FLOAT


def _dense_tensors(config: ModelConfig) -> list[DenseTensors]:
    """Of each layer those that are made from calibration tokens."""
    tables = config.quantization or QuantizationConfig({}, {}, {})
    return [DenseTensors.of(tables, layer_id) for layer_id in range(config.text.num_hidden_layers)]


def _dense_bytes(text: TextConfig) -> int:
    """Moments of the widest dense matrix, their factor, weights, codes, errors and chunks of its inputs."""
    hidden, heads = text.hidden_size, text.num_attention_heads * text.head_dim
    sizes = hidden, heads, text.intermediate_size, text.shared_expert_size
    widest = max((size for size in sizes if size <= MOST_COLUMNS), default=0)
    moments, chunk = 8 * widest**2 + 4 * hidden**2, CHUNK_TOKENS * (hidden + 4 * widest)
    return (moments + 16 * hidden * max(sizes) + chunk) * _FLOAT


def _output_side_bytes(text: TextConfig) -> int:
    """Of gate and up together with its factor, of down and the bank, and a chunk of inner gradients."""
    inner = max((bank.expert_size for bank in text.banks), default=0)
    return (6 * (2 * inner) ** 2 + 6 * text.hidden_size**2 + 8 * CHUNK_TOKENS * 2 * inner) * _FLOAT


def _gradient_bytes(config: ModelConfig, sequences: Sequence[EncodedSample]) -> int:
    """Gradients of all of their tokens, logits of some positions, an expert and chunks of tokens."""
    text = config.text
    inner = max((bank.expert_size for bank in text.banks), default=0)
    rows = 6 * _gradient_tokens(config, sequences) + 8 * CHUNK_TOKENS + 2 * BLOCK_ROWS
    expert = 3 * inner * text.hidden_size + 6 * CHUNK_TOKENS * inner
    return (rows * text.hidden_size + 5 * POSITIONS_AT_A_TIME * text.vocab_size + expert) * _FLOAT


def _tower_bytes(config: ModelConfig, num_patches: int) -> int:
    """Weights and embedding in eight bits, and activations of the largest image."""
    embedding, vision = config.text.vocab_size * config.text.hidden_size, config.tower
    if vision is None:
        return embedding
    weights = vision.depth * vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    activations = num_patches * (8 * vision.hidden_size + 3 * vision.intermediate_size) * _FLOAT
    return weights + embedding + activations


_GIGA = 1e9
_FIXED_PER_BYTE = 1000.0  # multiply-adds to read, convert, round, pack and write a byte
_PACKED_SHARE = 0.3  # cost of a product with packed weights, relative to floats
_HQQ_SLOWNESS = 40  # of quanto's search, relative to rounding
_ATTENTION_SLOWNESS = 2.5  # of attention, relative to products with packed weights
_CLEANING_COST = 1e-3  # of the last unit of a layer, which deletes files


def unit_costs(
    config: ModelConfig, fixed: Sequence[TensorEntry], sequences: Sequence[EncodedSample], recipe: Recipe
) -> dict[str, float]:
    """Cost of each unit in billions of multiply-adds. fixed: tensors that need no calibration tokens."""
    costs = {entry.name: _fixed_cost(entry, recipe) for entry in fixed}
    if recipe.method != "gptq":
        return costs
    for number, sequence in enumerate(sequences):
        costs[f"sequence {number}"] = _image_cost(config, sequence)
    if recipe.by_answers:
        costs |= _gradient_costs(config, sequences)
    num_tokens, dense = expert_tokens(config, sequences), _dense_tensors(config)
    for layer_id, has_experts in enumerate(config.text.moe_layers):
        costs |= _part_costs(config, sequences, layer_id, dense[layer_id])
        costs |= _dense_costs(config, sequences, layer_id, dense[layer_id], recipe)
        costs[f"exact {layer_id}"] = _exact_cost(config, sequences, has_experts=has_experts)
        costs[f"layer {layer_id}"] = _CLEANING_COST
        for bank in config.text.banks if has_experts else ():
            tokens = num_tokens[bank.name]
            visits = tokens * bank.num_experts / config.text.experts_per_token
            costs[f"routing {layer_id}.{bank.name}"] = visits * config.text.hidden_size**2 / _GIGA
            cost = expert_cost(config, bank.name, tokens, recipe)
            for expert_id in range(bank.num_experts):
                costs[expert_unit(layer_id, bank.name, expert_id)] = cost
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
    total, vision = 1e6, config.tower
    if vision is None:
        return total / _GIGA
    weights = vision.depth * vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    for patches in sequence.patches:
        count = patches.pixel_values.shape[0]
        attention = vision.depth * 2 * count * count * vision.hidden_size
        total += count * weights + _ATTENTION_SLOWNESS * attention
    return total / _GIGA


def _part_costs(
    config: ModelConfig, sequences: Sequence[EncodedSample], layer_id: int, dense: DenseTensors
) -> dict[str, float]:
    """Of attention, and of what follows the experts, for each part of the tokens."""
    text = config.text
    bounds = [0, *accumulate(len(sequence.token_ids) for sequence in sequences)]
    heads = text.num_attention_heads * text.head_dim
    costs: dict[str, float] = {}
    parts = cut_into_parts((slice(*pair) for pair in pairwise(bounds)), bounds[-1])
    for number, part in enumerate(parts):
        lengths = [tokens.stop - tokens.start for tokens in part]
        squares = sum(length * length for length in lengths)
        projected = _PACKED_SHARE * sum(lengths) * text.hidden_size * heads / _GIGA
        before = 2 * projected + squares * heads / _GIGA
        if dense.output is not None:
            costs[f"heads {layer_id}.{number}"], before = before, 0.0
        costs[f"attention {layer_id}.{number}"] = before + projected
        weights = _weights_after_attention(text, has_experts=text.moe_layers[layer_id])
        costs[f"outputs {layer_id}.{number}"] = _PACKED_SHARE * sum(lengths) * weights / _GIGA
    return costs


def _dense_costs(
    config: ModelConfig,
    sequences: Sequence[EncodedSample],
    layer_id: int,
    dense: DenseTensors,
    recipe: Recipe,
) -> dict[str, float]:
    """Of the matrices that all tokens of the layer calibrate."""
    text, tokens = config.text, sum(len(sequence.token_ids) for sequence in sequences)
    hidden, heads = text.hidden_size, text.num_attention_heads * text.head_dim
    inner = text.shared_expert_size if text.moe_layers[layer_id] else text.intermediate_size

    def cost(rows: int, columns: int) -> float:
        chosen = (4 + recipe.sweeps) * rows * columns**2 + columns**3  # as of an expert
        return (chosen + tokens * columns**2) / _GIGA

    kv = text.num_key_value_heads * text.head_dim
    products = 2 * tokens * inner * hidden / _GIGA
    costs = {
        dense.qkv: cost(heads + 2 * kv, hidden),
        dense.output: cost(hidden, heads),
        dense.mlp: cost(2 * inner, hidden) + cost(hidden, min(inner, MOST_COLUMNS)) + products,
    }
    return {dense_unit(tensor): one for tensor, one in costs.items() if tensor is not None}


def _gradient_costs(config: ModelConfig, sequences: Sequence[EncodedSample]) -> dict[str, float]:
    """Of the layers forward and then back, where each is run again and takes twice as long."""
    text, chosen = config.text, gradient_sequences(sequences, config)
    tokens = sum(len(sequence.token_ids) for sequence in chosen)
    costs = {}
    for layer_id, has_experts in enumerate(text.moe_layers):
        costs[f"forward {layer_id}"] = _exact_cost(config, chosen, has_experts=has_experts, tokens=tokens)
    last, first = text.num_hidden_layers - 1, text.moe_layers.index(True)
    positions = sum(max(1, sum(end - start for start, end in one.answers)) for one in chosen)
    costs[f"answers {last}"] = 2 * positions * text.vocab_size * text.hidden_size / _GIGA
    for layer_id in range(first, last):
        costs[f"answers {layer_id}"] = 3 * costs[f"forward {layer_id + 1}"]
    return costs


def _weights_after_attention(text: TextConfig, *, has_experts: bool) -> int:
    """Weights of MLPs that a token passes in a layer."""
    if not has_experts:
        return 3 * text.hidden_size * text.intermediate_size
    inner = max(bank.expert_size for bank in text.banks)
    return 3 * text.hidden_size * (text.shared_expert_size + text.experts_per_token * inner)


def _exact_cost(
    config: ModelConfig,
    sequences: Sequence[EncodedSample],
    *,
    has_experts: bool,
    tokens: int | None = None,
) -> float:
    """Of a layer of the source: reading its weights, and its products for so many tokens, or the first."""
    text = config.text
    lengths = [len(sequence.token_ids) for sequence in sequences]
    if tokens is None:
        tokens = min(sum(lengths), max(MOST_DRIFT_TOKENS, lengths[0]))
    heads = text.num_attention_heads * text.head_dim
    weights = 3 * text.hidden_size * heads + _weights_after_attention(text, has_experts=has_experts)
    experts = sum(3 * text.hidden_size * bank.expert_size * bank.num_experts for bank in text.banks)
    return (tokens * weights + _FIXED_PER_BYTE * (experts if has_experts else 0)) / _GIGA


def expert_cost(config: ModelConfig, bank: Bank, tokens: float, recipe: Recipe) -> float:
    """The cost of one expert with this many tokens, with its small page if it gets one."""
    text, tables = config.text, config.quantization
    hidden, inner = text.hidden_size, text.bank(bank).expert_size
    pages = 2 if tables is not None and tables.small_experts else 1
    passes = 4 + recipe.sweeps  # half for GPTQ itself, the first pull, two products for the error, the rest
    chosen = passes * (2 * inner * hidden**2 + hidden * inner**2) + hidden**3 + inner**3
    if recipe.by_answers:  # rows in turn, too, and products of all rows
        chosen += passes * (4 * inner**2 * hidden + hidden**2 * inner) + 8 * inner**3 + hidden**3
    moments = tokens * (hidden**2 + pages * inner**2)
    if recipe.by_answers:
        moments += tokens * (hidden**2 + 4 * inner**2)
    products = 2 * pages * tokens * inner * hidden  # gate and up of each page give the inputs of down
    return (pages * chosen + moments + products) / _GIGA
