"""The trainable network: the forward pass of ERNIE-4.5-VL over a batch of equal layouts, bfloat16 products.

A batch is rectangular: text, one picture of the same grid, text. The runtime's model knows no batches and no
gradients, so training has its own; the exporter's test holds the two to the same logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from nano.layers import Layer, product
from nano.shape import NanoShape
from nano.vision_tower import VisionTower


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids (batch, tokens), 0 where padded; labels -100 where not scored; one picture each or none.

    `pixels`: (batch, patches, 588) in the published patch order; `grid`: image tokens (rows, columns).
    `characters`: (batch, image tokens, 4) character classes printed in each token's cell, 0 for none.
    `kinds`: the kind of each conversation's first question.
    """

    ids: Tensor
    labels: Tensor
    valid: Tensor
    pixels: Tensor | None
    grid: tuple[int, int]
    image_start: int
    characters: Tensor | None
    kinds: tuple[str, ...]


class NanoNetwork(nn.Module):
    """Everything, with an auxiliary head that names the characters of each image token's cell.

    The head reads the residual stream behind layer `reading_layer`; it teaches the first banks to read within
    minutes instead of hours and is not exported.
    """

    reading_layer = 3

    def __init__(self, shape: NanoShape, num_characters: int) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Parameter(torch.empty(shape.vocab_size, shape.hidden_size))
        self.layers = nn.ModuleList(Layer(shape, dense=index == 0) for index in range(shape.num_layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.vision = VisionTower(shape)
        self.character_head = nn.Parameter(torch.empty(4 * num_characters, shape.hidden_size))
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                fan_in = (
                    parameter.shape[-2] if "banks" in name and "router" not in name else parameter.shape[-1]
                )
                nn.init.normal_(parameter, std=0.06 if name == "embed" else fan_in**-0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _rope(self, batch: Batch) -> tuple[Tensor, Tensor]:
        tokens, (rows, columns), start = batch.ids.shape[1], batch.grid, batch.image_start
        positions = torch.arange(tokens).repeat(3, 1)  # (T H W, tokens)
        count = rows * columns
        if batch.pixels is not None:
            positions[:, start : start + count] = start
            positions[1, start : start + count] += torch.arange(rows).repeat_interleave(columns)
            positions[2, start : start + count] += torch.arange(columns).repeat(rows)
            positions[:, start + count :] += max(rows, columns) - count
        height, width, time = self.shape.mrope_section
        index = torch.arange(height + width + time)
        axis = torch.where(index >= height + width, 0, torch.where(index % 2 == 0, 1, 2))
        frequencies = self.shape.rope_theta ** (-2.0 * index / self.shape.head_dim)
        angles = positions[axis].T * frequencies  # (tokens, head_dim / 2)
        return angles.cos(), angles.sin()

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hidden states before the scored positions, their labels, and image-cell logits or None."""
        x = functional.embedding(batch.ids, self.embed)  # (batch, tokens, hidden)
        is_vision = torch.zeros_like(batch.valid)
        count = batch.grid[0] * batch.grid[1]
        if batch.pixels is not None:
            start = batch.image_start
            x = torch.cat((x[:, :start], self.vision(batch.pixels, batch.grid), x[:, start + count :]), dim=1)
            is_vision[:, start - 1 : start + count + 1] = True
        flat_vision = is_vision.reshape(-1)
        vision_rows = flat_vision.nonzero().squeeze(1)
        text_rows = (batch.valid.reshape(-1) & ~flat_vision).nonzero().squeeze(1)
        cos, sin = self._rope(batch)
        characters = None
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, text_rows, vision_rows)
            if index == self.reading_layer and batch.pixels is not None:
                seen = functional.rms_norm(x[:, batch.image_start : batch.image_start + count], x.shape[-1:])
                logits = product(seen, self.character_head)
                characters = logits.view(*seen.shape[:2], 4, -1)  # (batch, image tokens, 4, classes)
        x = functional.rms_norm(x, x.shape[-1:], self.norm, 1e-5)
        labels = batch.labels[:, 1:].reshape(-1)
        scored = (labels >= 0).nonzero().squeeze(1)
        return x[:, :-1].reshape(-1, x.shape[-1])[scored], labels[scored], characters

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Answer loss, reading loss, token accuracy, character accuracy (scalars)."""
        hidden, labels, characters = self(batch)
        logits = product(hidden, self.embed).float()
        answer = functional.cross_entropy(logits, labels)
        accuracy = (logits.argmax(-1) == labels).float().mean()
        if characters is None or batch.characters is None:
            return answer, torch.zeros(()), accuracy, torch.full((), math.nan)
        flat, wanted = characters.flatten(0, 2).float(), batch.characters.flatten().long()
        weight = torch.where(wanted > 0, 1.0, 0.1)
        reading = (functional.cross_entropy(flat, wanted, reduction="none") * weight).sum() / weight.sum()
        printed = wanted > 0
        return answer, reading, accuracy, (flat.argmax(-1) == wanted)[printed].float().mean()
