"""The trainable vision tower and resampler: patches in, one row for each image token out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ernie_local.model.rope import patch_positions
from nano.layers import product, unfused_attention
from nano.shape import NanoShape


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A layer with bias, in bfloat16."""
    return product(x, layer.weight, layer.bias)


class TrainedVisionBlock(nn.Module):
    """Attention over all patches of an image, and an MLP with quick GELU."""

    def __init__(self, shape: NanoShape) -> None:
        super().__init__()
        size = shape.vision_size
        self.heads = shape.vision_heads
        self.norm1 = nn.LayerNorm(size, eps=1e-6)
        self.norm2 = nn.LayerNorm(size, eps=1e-6)
        self.qkv = nn.Linear(size, 3 * size)
        self.proj = nn.Linear(size, size)
        self.fc1 = nn.Linear(size, shape.vision_mlp_ratio * size)
        self.fc2 = nn.Linear(shape.vision_mlp_ratio * size, size)

    def _attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, patches, size = x.shape
        qkv = linear(self.qkv, x).view(batch, patches, 3, self.heads, size // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (batch, heads, patches, head_dim)
        half = size // self.heads // 2

        def rotate(x: Tensor) -> Tensor:
            turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
            return (x.float() * cos + turned.float() * sin).bfloat16()

        mixed, _ = unfused_attention(rotate(query), rotate(key), value)
        return linear(self.proj, mixed.transpose(1, 2).reshape(batch, patches, size))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(batch, patches, size) float32 -> the same."""
        x = x + self._attention(self.norm1(x), cos, sin)
        inner = linear(self.fc1, self.norm2(x))
        return x + linear(self.fc2, inner * torch.sigmoid(1.702 * inner))


class MergeMlp(nn.Module):
    """Linear, GELU, linear, LayerNorm: one half of the resampler."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, outputs)
        self.fc2 = nn.Linear(outputs, outputs)
        self.norm = nn.LayerNorm(outputs, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs) float32."""
        merged: Tensor = self.norm(linear(self.fc2, functional.gelu(linear(self.fc1, x))).float())
        return merged


class TrainedVisionTower(nn.Module):
    """Patch embedding, blocks with axial rotary attention, and the resampler (spatial 2x2, temporal pair)."""

    def __init__(self, shape: NanoShape) -> None:
        super().__init__()
        self.shape = shape
        size, merged = shape.vision_size, shape.vision_size * shape.merge_size**2
        self.patch_embed = nn.Parameter(torch.empty(size, 3 * shape.patch_size**2))
        self.blocks = nn.ModuleList(TrainedVisionBlock(shape) for _ in range(shape.vision_depth))
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.spatial = MergeMlp(merged, merged)
        self.temporal = MergeMlp(2 * merged, merged)
        self.mlp = nn.Linear(merged, shape.hidden_size)
        self.after_norm = nn.Parameter(torch.ones(shape.hidden_size))

    def _angles(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        merge, quarter = self.shape.merge_size, self.shape.vision_size // self.shape.vision_heads // 4
        places = patch_positions(grid[0] * merge, grid[1] * merge, merge)
        frequencies = 10000.0 ** (-torch.arange(quarter) / quarter)
        row, column = places[..., None] * frequencies  # each (patches, head_dim / 4)
        angles = torch.cat((row, column, row, column), dim=-1)
        return angles.cos(), angles.sin()

    def forward(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """(batch, frames, patches, 588) -> (batch, image tokens, hidden) float32; two frames make a token."""
        images, frames = pixels.shape[:2]
        cos, sin = self._angles(grid)
        x = product(pixels.flatten(0, 1), self.patch_embed).float()
        for block in self.blocks:
            x = block(x, cos, sin)
        merged = self.norm(x).reshape(x.shape[0], grid[0] * grid[1], -1)  # (batch, image tokens, 4 * size)
        merged = self.spatial(merged)
        pairs = merged.view(images, frames, -1, merged.shape[-1])  # (batch, frames, tokens of one, merged)
        # An image is its own second frame.
        first, second = (pairs, pairs) if frames == 1 else (pairs[:, ::2], pairs[:, 1::2])
        merged = self.temporal(torch.cat((first, second), dim=-1)).flatten(1, 2)
        projected = linear(self.mlp, merged).float()
        return functional.rms_norm(projected, projected.shape[-1:], self.after_norm, 1e-5)
