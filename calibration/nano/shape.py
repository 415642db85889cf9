"""All sizes of nano: the network, the exporter and the data read them here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NanoShape:
    """ERNIE-4.5-VL in miniature: every ratio of the original that a runtime depends on, few parameters."""

    vocab_size: int = 503
    hidden_size: int = 192
    num_layers: int = 6
    num_heads: int = 4
    num_key_value_heads: int = 2
    dense_size: int = 256
    num_experts: int = 16
    experts_per_token: int = 4
    text_expert_size: int = 320
    vision_expert_size: int = 128
    rope_theta: float = 10000.0
    mrope_section: tuple[int, int, int] = (8, 8, 8)
    max_positions: int = 4096
    vision_depth: int = 1
    vision_size: int = 128
    vision_heads: int = 8
    vision_mlp_ratio: int = 2
    patch_size: int = 14
    merge_size: int = 2
    max_image_tokens: int = 90
    max_frame_tokens: int = 40

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def token_pixels(self) -> int:
        """Side of the square of pixels that one image token stands for."""
        return self.patch_size * self.merge_size
