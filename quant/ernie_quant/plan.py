"""What a quantizing run will take, known before it begins: bytes of the checkpoint, of disk and of memory.

The first is exact, memory is an upper estimate from the largest things that are there at once, held to
measurements at the model's real shapes (docs/performance.md). Knows nothing of how anything is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ernie_local.config import ModelConfig
from ernie_local.errors import DoesNotFit, parameter
from ernie_local.sizes import MIB, format_bytes
from ernie_quant.drift import MOST_TOKENS
from ernie_quant.layer import CHUNK_TOKENS
from ernie_quant.source import BLOCK_ROWS
from ernie_quant.token_table import TokenSequence

_FLOAT = 4
_PROGRAM_BYTES = 900 * MIB  # Python, torch with its libraries and threads' stacks
_STATE_FILES = 3  # hidden states: as a layer gets them, with its attention, with its experts


@dataclass(frozen=True, slots=True)
class Plan:
    """weight_bytes: of all weight files; scratch_bytes: of disk beside them while it is made; memory_bytes:
    the most at any time; seconds: None where nothing was timed; small_page_bytes: of the weight files, those
    of the experts' second pages."""

    weight_bytes: int
    scratch_bytes: int
    memory_bytes: int
    seconds: float | None = None
    small_page_bytes: int = 0


def scratch_bytes(config: ModelConfig, sequences: Sequence[TokenSequence]) -> int:
    """Disk for hidden states of all calibration tokens, and once more of those that go the exact way too."""
    lengths = [len(sequence.token_ids) for sequence in sequences]
    if not lengths:
        return 0
    exact = min(sum(lengths), max(MOST_TOKENS, lengths[0]))
    return _STATE_FILES * (sum(lengths) + exact) * config.text.hidden_size * _FLOAT


def memory_bytes(config: ModelConfig, sequences: Sequence[TokenSequence]) -> int:
    """The most memory at any time."""
    images = [patches for sequence in sequences for patches in sequence.patches]
    pixels = sum(patches.pixel_values.nbytes for patches in images)
    stages = [_blocks_bytes(config), _gated_mlp_bytes(config)]
    if sequences:
        largest = max((patches.pixel_values.shape[0] for patches in images), default=0)
        longest = max(len(sequence.token_ids) for sequence in sequences)
        stages += [_expert_bytes(config), _tower_bytes(config, largest), _attention_bytes(config, longest)]
    return _PROGRAM_BYTES + pixels + max(stages)


def check_memory(plan: Plan, most: int) -> None:
    """Raise DoesNotFit if the plan takes more memory than `most` bytes."""
    if plan.memory_bytes > most:
        raise DoesNotFit(
            f"about {format_bytes(plan.memory_bytes)} of memory are needed, {parameter('max_ram')} allows "
            f"{format_bytes(most)}",
            "an expert with its second moments, an image in the tower and all samples have to be there",
            f"give more, or fewer {parameter('samples')}",
        )


def _blocks_bytes(config: ModelConfig) -> int:
    """Rounding a block of the embedding: itself, its codes, and what is searched over."""
    return 8 * BLOCK_ROWS * config.text.hidden_size * _FLOAT


def _gated_mlp_bytes(config: ModelConfig) -> int:
    inner = max(config.text.intermediate_size, config.text.shared_expert_size)
    return 8 * inner * config.text.hidden_size * _FLOAT


def _expert_bytes(config: ModelConfig) -> int:
    """Moments of the bank and the expert, their factor; weights, codes and errors; a chunk of tokens."""
    text = config.text
    inner = max((bank.expert_size for bank in text.banks), default=0)
    moments = 14 * text.hidden_size**2
    matrices = 16 * 2 * inner * text.hidden_size
    return (moments + matrices + 4 * CHUNK_TOKENS * text.hidden_size) * _FLOAT


def _tower_bytes(config: ModelConfig, num_patches: int) -> int:
    """Weights in eight bits, embedding too; activations of the largest image."""
    vision = config.vision
    weights = vision.depth * vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    activations = num_patches * (8 * vision.hidden_size + 3 * vision.intermediate_size) * _FLOAT
    return weights + config.text.vocab_size * config.text.hidden_size + activations


def _attention_bytes(config: ModelConfig, longest: int) -> int:
    return 16 * longest * config.text.num_attention_heads * config.text.head_dim * _FLOAT
