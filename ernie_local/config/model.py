"""Describes a model: its banks of experts, sizes, rules and token ids.

Only the readers of config.json know how many banks there can be: all other code iterates over
`TextConfig.banks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ernie_local.errors import UsageError

if TYPE_CHECKING:
    from ernie_local.config.compression import CompressionConfig
    from ernie_local.config.quantization import QuantizationConfig

# The name of a bank, in tensor names and reports: the first modality that it serves. Decoding uses the bank
# "text"; a bank "vision" is used by prompts with images alone.
Bank = str
BankKey = tuple[int, Bank]  # layer and bank
Modality = Literal["text", "vision"]  # kinds of tokens; video frames are vision too

MODALITIES: tuple[Modality, Modality] = ("text", "vision")


@dataclass(frozen=True, slots=True)
class ExpertBank:
    """Experts of one layer that serve the same tokens. Every layer with experts has the same banks."""

    name: Bank
    num_experts: int
    expert_size: int  # inner width of each expert
    serves: frozenset[Modality]


def bank_per_modality(num_experts: int, expert_sizes: tuple[int, ...]) -> tuple[ExpertBank, ...]:
    """The banks of a vision-language model. expert_sizes: inner width of each, in the order of MODALITIES."""
    return tuple(
        ExpertBank(modality, num_experts, size, frozenset({modality}))
        for modality, size in zip(MODALITIES, expert_sizes, strict=True)
    )


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The decoder."""

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
    # Frequencies for (height, width, temporal); sum = head_dim / 2. Of text alone, all are temporal.
    mrope_section: tuple[int, int, int]
    moe_layers: tuple[bool, ...]  # per layer: experts, or one dense MLP
    banks: tuple[ExpertBank, ...]  # of each layer with experts; empty if no layer has any
    experts_per_token: int
    num_shared_experts: int
    moe_norm_min: float  # lower bound of the sum that the chosen router weights are divided by
    tie_word_embeddings: bool
    hidden_act: Literal["silu"]

    @property
    def shared_expert_size(self) -> int:
        """Inner width of the one MLP that all shared experts are merged into; 0 without any."""
        return self.num_shared_experts * self.banks[0].expert_size if self.banks else 0

    @property
    def text_bank(self) -> ExpertBank | None:
        """The bank of text tokens, and so of decoding; None if no layer has experts."""
        return next((bank for bank in self.banks if "text" in bank.serves), None)

    def bank(self, name: Bank) -> ExpertBank:
        """The bank of this name; KeyError if there is none."""
        return {bank.name: bank for bank in self.banks}[name]

    def layer_banks(self) -> Iterator[tuple[int, ExpertBank]]:
        """Each bank of each layer with experts, in the order of computing."""
        for layer_id, has_experts in enumerate(self.moe_layers):
            for bank in self.banks if has_experts else ():
                yield layer_id, bank


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The vision tower and the resampler, which merges its patches into tokens."""

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
    """Token ids around and in place of images. In the published vocabulary `video` equals `image`."""

    image: int
    image_start: int
    image_end: int
    video: int
    video_start: int
    video_end: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One ERNIE 4.5 model.

    tower, media_ids: None, both, for a model that reads only text. source_layout: of the config.json that
    described it. quantization: what of it is packed in our formats. compression: what another tool quantized.
    """

    text: TextConfig
    tower: VisionConfig | None
    media_ids: MediaTokens | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    source_layout: Literal["hub", "native"]
    quantization: QuantizationConfig | None = None
    compression: CompressionConfig | None = None

    def packed_by(self, tables: QuantizationConfig | None) -> ModelConfig:
        """The same model with weights packed by these tables, and no others quantized; None: all plain."""
        return replace(self, quantization=tables, compression=None)

    @property
    def reads_images(self) -> bool:
        """Whether it has a vision tower; otherwise it reads only text."""
        return self.tower is not None

    @property
    def vision(self) -> VisionConfig:
        """The tower, for whoever has an image; UsageError for a model that reads only text."""
        if self.tower is None:
            raise image_refusal()
        return self.tower

    @property
    def media(self) -> MediaTokens:
        """The ids of image tokens; UsageError as of `vision`."""
        if self.media_ids is None:
            raise image_refusal()
        return self.media_ids

    @property
    def has_packed_experts(self) -> bool:
        """Whether routed experts are stored as pages."""
        return self.quantization is not None and bool(self.quantization.experts)


def image_refusal() -> UsageError:
    """The error for an image or a video that is given to a model that reads only text."""
    return UsageError(
        "an image or a video for a model that reads only text",
        "by its config.json it has 0 layers of a vision tower, and no tokens for images",
        "ask without it, or take a vision-language model such as hf:baidu/ERNIE-4.5-VL-28B-A3B-PT",
    )
