"""Describes a model: the sizes, rules and token ids that the rest of the code reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ernie_local.config.banks import Bank, ExpertBank
from ernie_local.config.quantization import QuantizationConfig

ConfigLayout = Literal["hub", "native"]


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The decoder. Sizes are counts of elements; no field has a default, all come from the checkpoint."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int  # inner width of the dense layers
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]  # frequencies for (height, width, temporal); sum = head_dim / 2
    moe_layers: tuple[bool, ...]  # per layer: experts, or one dense MLP
    banks: tuple[ExpertBank, ...]  # of each layer with experts; empty if no layer has any
    experts_per_token: int
    num_shared_experts: int
    moe_norm_min: float  # lower bound of the sum that the chosen router weights are divided by
    tie_word_embeddings: bool
    hidden_act: Literal["silu"]

    @property
    def shared_expert_size(self) -> int:
        """Inner width of the one MLP that all shared experts are merged into; 0 if there is none."""
        return self.num_shared_experts * self.banks[0].expert_size if self.banks else 0

    @property
    def text_bank(self) -> ExpertBank | None:
        """The bank of text tokens, and so of decoding; None if no layer has experts."""
        return next((bank for bank in self.banks if "text" in bank.serves), None)

    def bank(self, name: Bank) -> ExpertBank:
        """The bank of this name; KeyError if there is none."""
        for bank in self.banks:
            if bank.name == name:
                return bank
        raise KeyError(name)

    def layer_banks(self) -> Iterator[tuple[int, ExpertBank]]:
        """Every layer with experts and each of its banks, in the order of computing."""
        for layer_id, has_experts in enumerate(self.moe_layers):
            for bank in self.banks if has_experts else ():
                yield layer_id, bank


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The vision tower, and the merging that the resampler does behind it."""

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    in_channels: int
    patch_size: int  # pixels along each side
    spatial_merge_size: int  # patches along each side that become one token
    temporal_merge_size: Literal[2]
    layer_norm_eps: float
    rope_theta: float
    hidden_act: Literal["quick_gelu"]

    @property
    def patch_values(self) -> int:
        """Numbers in one flattened patch."""
        return self.in_channels * self.patch_size * self.patch_size


@dataclass(frozen=True, slots=True)
class MediaTokens:
    """Token ids around and in place of images. `video` equals `image` in the hub's own vocabulary."""

    image: int
    image_start: int
    image_end: int
    video: int
    video_start: int
    video_end: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One ERNIE-4.5-VL model, whichever layout its config.json was written in."""

    text: TextConfig
    vision: VisionConfig
    media: MediaTokens
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    source_layout: ConfigLayout
    quantization: QuantizationConfig | None = None

    @property
    def eos_token_id(self) -> int | None:
        """The first end token, or None where config.json names none."""
        return self.eos_token_ids[0] if self.eos_token_ids else None

    @property
    def has_packed_experts(self) -> bool:
        """Whether routed experts are stored as pages, ready for the kernels."""
        return self.quantization is not None and bool(self.quantization.experts)
