"""Rotary position embedding: interleaved pairs over three axes for text, halves over two for the tower.

Positions come from media/tokens.py. Angles are always float32: in bfloat16 a position of 257 equals 256.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ernie_local.config import TextConfig, VisionConfig
from ernie_local.kernels.memory import send


class TextRope:
    """Frequency i of a head turns the pair (2i, 2i + 1) by the position on the axis that owns i.

    The first height + width frequencies belong to height (even i) and width (odd i) in turn, the slow
    rest to time. With equal positions on all axes (text) this is plain interleaved RoPE.
    """

    def __init__(self, config: TextConfig, device: torch.device) -> None:
        height, width, time = config.mrope_section
        num_frequencies = config.head_dim // 2
        assert height == width, config.mrope_section
        assert height + width + time == num_frequencies, (config.mrope_section, config.head_dim)
        axes = [1, 2] * height + [0] * time  # rows of positions: 0 is time, 1 height, 2 width
        self.axis_of_frequency = send(torch.tensor(axes), device)
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
        self.frequencies = 1.0 / (config.rope_theta**exponents)  # (frequencies,)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions: (3, tokens) int64, rows T, H, W -> cosines and sines, (tokens, frequencies) float32."""
        per_frequency = positions.float().T[:, self.axis_of_frequency]  # (tokens, frequencies)
        turns = per_frequency * self.frequencies
        return turns.cos(), turns.sin()


def rotate_pairs(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn neighbouring pairs. states: (tokens, heads, head_dim); angles: (tokens, head_dim / 2) float32."""
    even, odd = states.float().unflatten(-1, (-1, 2)).unbind(-1)  # (tokens, heads, head_dim / 2) each
    cosines, sines = cosines[:, None], sines[:, None]  # (tokens, 1, head_dim / 2)
    turned = torch.stack((even * cosines - odd * sines, odd * cosines + even * sines), dim=-1)
    return turned.flatten(-2).to(states.dtype)  # (tokens, heads, head_dim)


def patch_positions(rows: int, columns: int, merge: int) -> Tensor:
    """Row and column of each patch of one frame, in merge-window order -> (2, rows * columns) int64."""
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    windows = grid.view(2, rows // merge, merge, columns // merge, merge)
    return windows.transpose(2, 3).reshape(2, rows * columns)


class VisionRope:
    """Half of a head's frequencies turn by the patch row, half by its column; pairs lie half a head apart."""

    def __init__(self, config: VisionConfig, device: torch.device) -> None:
        half = config.hidden_size // config.num_heads // 2
        exponents = torch.arange(0, half, 2, dtype=torch.float32, device=device) / half
        self.frequencies = 1.0 / (config.rope_theta**exponents)  # (head_dim / 4,)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions: (2, patches), row and column -> cosines and sines, (patches, head_dim / 2) float32."""
        turns = positions.float()[..., None] * self.frequencies  # (2, patches, head_dim / 4)
        turns = torch.cat((turns[0], turns[1]), dim=-1)
        return turns.cos(), turns.sin()
