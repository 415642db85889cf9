"""Turns flattened patches into token features: the vision tower, then the resampler.

In the tower each frame attends within itself. The resampler merges windows of patches into tokens of the
language model's width. Two frames make one row of tokens; a single image stands for both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ernie_local.config import ModelConfig, VisionConfig
from ernie_local.kernels.block_attention import frame_attention
from ernie_local.kernels.memory import send
from ernie_local.kernels.native import attends_in_blocks
from ernie_local.kernels.operators import suits_native
from ernie_local.kernels.reference import plain_frame_attention
from ernie_local.media.tokens import Grid
from ernie_local.model.layers import Linear, RMSNorm
from ernie_local.model.rope import VisionRope, patch_positions


def quick_gelu(inner: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the approximation that the tower was trained with."""
    if inner.requires_grad:
        return inner * torch.sigmoid(1.702 * inner)
    # In place: new memory for three results takes longer than computing them.
    return functional.silu(1.702 * inner, inplace=True).mul_(1 / 1.702)


class VisionAttention(nn.Module):
    """Full attention within each frame, fused query-key-value projection, with biases."""

    def __init__(self, config: VisionConfig, *, in_blocks: bool) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self._in_blocks = in_blocks
        self.qkv: nn.Module = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj: nn.Module = Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, cosines: Tensor, sines: Tensor, frame_sizes: Sequence[int]) -> Tensor:
        """hidden: (patches, hidden_size), frames one after another -> the same shape."""
        states = self.qkv(hidden)
        attend = frame_attention if self._in_blocks and suits_native(states) else plain_frame_attention
        output: Tensor = self.proj(attend(states, cosines, sines, self.num_heads, frame_sizes))
        return output


class VisionMLP(nn.Module):
    """fc2(quick_gelu(fc1(x))), with biases."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1: nn.Module = Linear(config.hidden_size, config.intermediate_size)
        self.fc2: nn.Module = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (patches, hidden_size) -> the same shape."""
        output: Tensor = self.fc2(quick_gelu(self.fc1(hidden)))
        return output


class VisionBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: VisionConfig, *, in_blocks: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attn = VisionAttention(config, in_blocks=in_blocks)
        self.mlp = VisionMLP(config)

    def forward(self, hidden: Tensor, cosines: Tensor, sines: Tensor, frame_sizes: Sequence[int]) -> Tensor:
        """hidden: (patches, hidden_size) -> the same shape."""
        hidden = hidden + self.attn(self.norm1(hidden), cosines, sines, frame_sizes)
        output: Tensor = hidden + self.mlp(self.norm2(hidden))
        return output


class VisionTower(nn.Module):
    """Patch embedding, blocks and a closing LayerNorm; positions by rope only."""

    def __init__(self, config: VisionConfig, *, is_packed: bool = False) -> None:
        """is_packed: whether weights of the model are; then patches attend by our own operator on the CPU."""
        super().__init__()
        self.config = config
        in_blocks = is_packed and attends_in_blocks(config.hidden_size // config.num_heads)
        self.patch_embed = Linear(config.patch_values, config.hidden_size, bias=False)
        self.blocks = nn.ModuleList(VisionBlock(config, in_blocks=in_blocks) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixel_values: Tensor, grids: Sequence[Grid]) -> Tensor:
        """pixel_values: (patches of all grids, channels * patch * patch) -> (patches, hidden_size).

        Patches lie in merge-window order within each frame, frames and grids one after another.
        """
        weight = self.patch_embed.weight
        merge = self.config.spatial_merge_size
        positions = torch.cat(
            [patch_positions(rows, columns, merge).repeat(1, frames) for frames, rows, columns in grids],
            dim=1,
        )  # (2, patches)
        frame_sizes = [rows * columns for frames, rows, columns in grids for _ in range(frames)]
        cosines, sines = VisionRope(self.config, weight.device).angles(send(positions, weight.device))
        hidden = self.patch_embed(send(pixel_values.to(weight.dtype), weight.device))
        for block in self.blocks:
            hidden = block(hidden, cosines, sines, frame_sizes)
        normed: Tensor = self.norm(hidden)
        return normed


class MergeLayer(nn.Module):
    """norm(fc2(gelu(fc1(x)))), with the exact (erf) gelu."""

    def __init__(self, input_size: int, output_size: int, eps: float) -> None:
        super().__init__()
        self.fc1 = Linear(input_size, output_size)
        self.fc2 = Linear(output_size, output_size)
        self.norm = nn.LayerNorm(output_size, eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (windows, input_size) -> (windows, output_size)."""
        output: Tensor = self.norm(self.fc2(functional.gelu(self.fc1(hidden))))
        return output


class Resampler(nn.Module):
    """Spatial merge, temporal merge, projection and RMSNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.window = config.vision.spatial_merge_size**2
        window_size = config.vision.hidden_size * self.window
        eps = config.vision.layer_norm_eps
        self.spatial = MergeLayer(window_size, window_size, eps)
        self.temporal = MergeLayer(window_size * config.vision.temporal_merge_size, window_size, eps)
        self.mlp = Linear(window_size, config.text.hidden_size)
        is_packed = config.quantization is not None
        self.norm = RMSNorm(config.text.hidden_size, config.text.rms_norm_eps, always_native=is_packed)

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """patches: (patches of all grids, vision hidden_size) -> (tokens of all grids, text hidden_size)."""
        windows = self.spatial(patches.reshape(-1, patches.shape[-1] * self.window))  # (windows, window_size)
        sizes = [frames * rows * columns // self.window for frames, rows, columns in grids]
        paired = [
            self._pair_frames(part, grid[0]) for part, grid in zip(windows.split(sizes), grids, strict=True)
        ]
        tokens: Tensor = self.norm(self.mlp(self.temporal(torch.cat(paired))))
        return tokens

    @staticmethod
    def _pair_frames(windows: Tensor, num_frames: int) -> Tensor:
        """windows: (frames * windows per frame, size) -> (frame pairs * windows per frame, 2 * size)."""
        if num_frames == 1:
            return torch.cat((windows, windows), dim=-1)
        assert num_frames % 2 == 0, num_frames
        frames = windows.unflatten(0, (num_frames, -1))  # (frames, windows per frame, size)
        return torch.cat((frames[0::2], frames[1::2]), dim=-1).flatten(0, 1)
