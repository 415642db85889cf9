"""Turns flattened patches into token features: the vision tower, then the resampler.

In the tower each frame attends within itself. The resampler merges windows of patches into tokens of the
language model's width. Two frames make one row of tokens; a single image stands for both.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

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
from ernie_local.model.memory_use import ROWS_AT_ONCE
from ernie_local.model.rope import VisionRope, patch_positions
from ernie_local.progress import Pause


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

    def forward(self, states: Tensor, cosines: Tensor, sines: Tensor, frame_sizes: Sequence[int]) -> Tensor:
        """states: (patches, 3 * hidden_size) from `qkv`, frames one after another -> (patches, hidden_size),
        which `proj` is still to take."""
        attend = frame_attention if self._in_blocks and suits_native(states) else plain_frame_attention
        return attend(states, cosines, sines, self.num_heads, frame_sizes)


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
    """x + attention(norm(x)), then x + mlp(norm(x)), by slices of patches wherever these do not mix."""

    def __init__(self, config: VisionConfig, *, in_blocks: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attn = VisionAttention(config, in_blocks=in_blocks)
        self.mlp = VisionMLP(config)

    def forward(self, hidden: Tensor, cosines: Tensor, sines: Tensor, frame_sizes: Sequence[int]) -> Tensor:
        """hidden: (patches, hidden_size), overwritten unless gradients are wanted -> the same shape."""
        states = by_slices(lambda part: self.attn.qkv(self.norm1(part)), hidden)
        attended = self.attn(states, cosines, sines, frame_sizes)
        del states
        hidden = add_by_slices(hidden, self.attn.proj, attended)
        return add_by_slices(hidden, lambda part: self.mlp(self.norm2(part)), hidden)


def by_slices(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """function(rows), which takes each row for itself."""
    if torch.is_grad_enabled() or len(rows) <= ROWS_AT_ONCE:
        return function(rows)
    result: Tensor | None = None
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = function(rows[start : start + ROWS_AT_ONCE])
        if result is None:
            result = part.new_empty(len(rows), *part.shape[1:])
        result[start : start + ROWS_AT_ONCE] = part
    assert result is not None
    return result


def add_by_slices(total: Tensor, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """total + function(rows), which takes each row for itself; in `total` unless gradients are wanted."""
    if torch.is_grad_enabled():
        return total + function(rows)
    for sums, own_rows in zip(total.split(ROWS_AT_ONCE), rows.split(ROWS_AT_ONCE), strict=True):
        sums.add_(function(own_rows))
    return total


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

    def forward(
        self, pixel_values: Tensor, grids: Sequence[Grid], before_stage: Pause | None = None
    ) -> Tensor:
        """pixel_values: (patches of all grids, channels * patch * patch) -> (patches, hidden_size).

        Patches lie in merge-window order within each frame, frames and grids one after another. before_stage:
        as of `run_in_step`.
        """
        return run_in_step([self.stages(pixel_values, grids)], before_stage)[0]

    def stages(self, pixel_values: Tensor, grids: Sequence[Grid]) -> Generator[None, None, Tensor]:
        """What `forward` does, with a pause after each stage whose weights are a module's of their own."""
        weight = self.patch_embed.weight
        merge = self.config.spatial_merge_size
        positions = torch.cat(
            [patch_positions(rows, columns, merge).repeat(1, frames) for frames, rows, columns in grids],
            dim=1,
        )  # (2, patches)
        frame_sizes = [rows * columns for frames, rows, columns in grids for _ in range(frames)]
        cosines, sines = VisionRope(self.config, weight.device).angles(send(positions, weight.device))
        hidden = self.patch_embed(send(pixel_values.to(weight.dtype), weight.device))
        del pixel_values  # which nobody else may hold, while this waits for other passes
        for block in self.blocks:
            yield
            hidden = block(hidden, cosines, sines, frame_sizes)
        yield
        normed: Tensor = self.norm(hidden)
        return normed


def run_in_step(
    passes: Sequence[Generator[None, None, Tensor]], before_stage: Pause | None = None
) -> list[Tensor]:
    """The results of passes through the tower that do each stage one after the other, before the next stage.

    So weights that are brought for a stage serve all of them. before_stage: is called before each of them,
    of every pass.
    """
    results: dict[int, Tensor] = {}
    while len(results) < len(passes):
        for index, one in enumerate(passes):
            if before_stage is not None:
                before_stage()
            try:
                next(one)
            except StopIteration as ended:
                results[index] = ended.value
    return [results[index] for index in range(len(passes))]


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
        windows = by_slices(
            self.spatial, patches.reshape(-1, patches.shape[-1] * self.window)
        )  # (windows, window_size)
        pairs = send(window_pairs(grids, self.window), windows.device)
        return by_slices(lambda some: self._merge(windows[some].flatten(1)), pairs)

    def _merge(self, paired: Tensor) -> Tensor:
        """paired: (tokens, 2 * window_size) -> (tokens, text hidden_size)."""
        tokens: Tensor = self.norm(self.mlp(self.temporal(paired)))
        return tokens


def window_pairs(grids: Sequence[Grid], window: int) -> Tensor:
    """Which two windows become each token: of two frames, or a single image's twice. (tokens, 2) int64."""
    pairs, start = [], 0
    for frames, rows, columns in grids:
        assert frames == 1 or frames % 2 == 0, frames
        size = rows * columns // window
        ids = torch.arange(start, start + frames * size).view(-1, 1 if frames == 1 else 2, size)
        pairs.append(ids.transpose(1, 2).flatten(0, 1).expand(-1, 2))
        start += frames * size
    return torch.cat(pairs)
