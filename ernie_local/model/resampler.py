"""The resampler: windows of patch features to token features of the language model's width.

Knows grids, nothing of token ids. Two frames make one token row; a single image stands for both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from ernie_local.config import ModelConfig
from ernie_local.model.norms import RMSNorm
from ernie_local.model.unfilled import Linear
from ernie_local.model.vision import Grid


class MergeLayer(nn.Module):
    """norm(fc2(gelu(fc1(x)))), with the exact (erf) gelu."""

    def __init__(self, input_size: int, output_size: int, eps: float) -> None:
        super().__init__()
        self.fc1 = Linear(input_size, output_size)
        self.fc2 = Linear(output_size, output_size)
        self.norm = nn.LayerNorm(output_size, eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (windows, input_size) -> (windows, output_size)."""
        output: torch.Tensor = self.norm(self.fc2(functional.gelu(self.fc1(hidden))))
        return output


class Resampler(nn.Module):
    """Spatial merge, temporal merge, projection and RMSNorm."""

    def __init__(self, config: ModelConfig, is_packed: bool = False) -> None:
        """is_packed: as for RMSNorm."""
        super().__init__()
        self.window = config.vision.spatial_merge_size**2
        window_size = config.vision.hidden_size * self.window
        eps = config.vision.layer_norm_eps
        self.spatial = MergeLayer(window_size, window_size, eps)
        self.temporal = MergeLayer(window_size * config.vision.temporal_merge_size, window_size, eps)
        self.mlp = Linear(window_size, config.text.hidden_size)
        self.norm = RMSNorm(config.text.hidden_size, config.text.rms_norm_eps, is_packed)

    def forward(self, patches: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """patches: (patches of all grids, vision hidden_size) -> (tokens of all grids, text hidden_size)."""
        windows = self.spatial(patches.reshape(-1, patches.shape[-1] * self.window))  # (windows, window_size)
        sizes = [frames * rows * columns // self.window for frames, rows, columns in grids]
        paired = [
            self._pair_frames(part, grid[0]) for part, grid in zip(windows.split(sizes), grids, strict=True)
        ]
        tokens: torch.Tensor = self.norm(self.mlp(self.temporal(torch.cat(paired))))
        return tokens

    @staticmethod
    def _pair_frames(windows: torch.Tensor, num_frames: int) -> torch.Tensor:
        """windows: (frames * windows per frame, size) -> (frame pairs * windows per frame, 2 * size)."""
        if num_frames == 1:
            return torch.cat((windows, windows), dim=-1)
        assert num_frames % 2 == 0, num_frames
        frames = windows.unflatten(0, (num_frames, -1))  # (frames, windows per frame, size)
        return torch.cat((frames[0::2], frames[1::2]), dim=-1).flatten(0, 1)
