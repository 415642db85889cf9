"""The trainable network: the forward pass of ERNIE-4.5-VL over a batch of equal pictures, bfloat16 products.

A batch is rectangular: each of its conversations has as many pictures of the same grids. The runtime's model
has neither batches nor gradients, so training has its own model; the exporter's test checks that both give
the same logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ernie_local.model.rope import patch_positions
from nano.layers import Layer, product
from nano.shape import NanoShape
from nano.vision_tower import TrainedVisionTower

SLOTS = 4  # characters told apart in one image token's cell
EDGES, MOST_EDGE = 4, 24  # left, top, right, bottom of a cell's print, each in steps of a twelfth of a cell
MOST_ROWS = 16  # rows and columns of image tokens that the place head tells apart
READING_LAYERS = (1, 3)
MENTION_LAYERS, MENTION_HEAD = (2, 3), 2
ANSWER_LAYERS, ANSWER_HEAD = (4, 5), 0
SHARED_DROP = 0.5


@dataclass(frozen=True, slots=True)
class PictureBatch:
    """The first image of each conversation, or the second, or its clip.

    `pixels`: (batch, frames, patches, 588) in the published patch order, one frame for an image; `grid`:
    image tokens (rows, columns) of a frame, or of two. `starts`: (batch,) the position of its first image
    token. `characters`: (batch, image tokens, 4) character classes printed in each token's cell, 0 for none;
    `edges`: (batch, image tokens, 4) where in the cell that lies.
    """

    pixels: Tensor
    grid: tuple[int, int]
    starts: Tensor
    characters: Tensor
    edges: Tensor

    @property
    def num_tokens(self) -> int:
        """Image tokens of each conversation."""
        return max(1, self.pixels.shape[1] // 2) * self.grid[0] * self.grid[1]

    @property
    def places(self) -> Tensor:
        """(batch, image tokens) positions of the image tokens."""
        return self.starts[:, None] + torch.arange(self.num_tokens)

    @property
    def cells(self) -> Tensor:
        """(batch, image tokens, 2 + EDGES): row and column in the grid, and the edges."""
        grid = patch_positions(*self.grid, 1).T  # (image tokens of a frame, 2)
        frames = grid.repeat(self.num_tokens // len(grid), 1)
        return torch.cat((frames.expand(len(self.starts), -1, -1), self.edges), 2)


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids (batch, tokens), 0 where padded; labels -100 where not scored; equally many pictures each.

    `positions`: (batch, 3, tokens), time, row, column. `is_vision`: which tokens the vision bank serves.
    `answer_pointers`, `mention_pointers`: (pointers, 3), each a row of the batch, the position of a text
    token, and that of the image token whose cell shows what is written next, or what a word of the question
    names. `kinds`: the kind of each conversation's first question.
    """

    ids: Tensor
    labels: Tensor
    valid: Tensor
    positions: Tensor
    is_vision: Tensor
    pictures: tuple[PictureBatch, ...]
    answer_pointers: Tensor
    mention_pointers: Tensor
    kinds: tuple[str, ...]

    @property
    def cells(self) -> Tensor:
        """(batch, tokens, 2 + EDGES): those of image tokens, 0 at the others."""
        cells = torch.zeros(*self.ids.shape, 2 + EDGES, dtype=torch.long)
        for picture in self.pictures:
            known = picture.cells
            cells.scatter_(1, picture.places[..., None].expand_as(known), known)
        return cells


class Losses(NamedTuple):
    """Scalars of one batch. `pointing`: attention that misses its cell; `characters` etc.: shares right."""

    answer: Tensor
    reading: Tensor
    pointing: Tensor
    tokens_right: Tensor
    characters_right: Tensor
    pointers_right: Tensor


def place_loss(logits: Tensor, cells: Tensor) -> Tensor:
    """Of naming row, column and edges; logits: (tokens, classes of these), cells: (tokens, 2 + EDGES)."""
    rows, columns, edges = logits.tensor_split((MOST_ROWS, 2 * MOST_ROWS), dim=1)
    loss = functional.cross_entropy(rows, cells[:, 0]) + functional.cross_entropy(columns, cells[:, 1])
    edges = edges.reshape(-1, 1 + MOST_EDGE)  # (tokens * EDGES, classes)
    return loss + 0.5 * functional.cross_entropy(edges, cells[:, 2:].flatten(), ignore_index=0)


class NanoNetwork(nn.Module):
    """The whole model, with auxiliary heads that are not exported and cost the runtime nothing.

    Heads behind the first banks name the characters of each image token's cell, where in it they lie, and its
    row and column: without them reading takes hours to start instead of minutes. One attention head of the
    middle layers is shown where the words of a question are printed, one of the last layers where the answer
    is. What that head finds must say where it has looked, as the digits of a box need.
    """

    def __init__(self, shape: NanoShape, num_characters: int) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Parameter(torch.empty(shape.vocab_size, shape.hidden_size))
        self.layers = nn.ModuleList(Layer(shape, dense=index == 0) for index in range(shape.num_layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.vision = TrainedVisionTower(shape)
        self.num_characters = num_characters
        num_classes = SLOTS * num_characters + 2 * MOST_ROWS + EDGES * (1 + MOST_EDGE)
        self.reading_heads = nn.Parameter(torch.empty(len(READING_LAYERS), num_classes, shape.hidden_size))
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                is_expert = "banks" in name and "router" not in name
                fan_in = parameter.shape[-2 if is_expert else -1]
                nn.init.normal_(parameter, std=0.06 if name == "embed" else fan_in**-0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _rotations(self, batch: Batch) -> Tensor:
        """What the pairs of a head are multiplied by, (batch * tokens, head_dim / 2) complex."""
        height, width, time = self.shape.mrope_section
        index = torch.arange(height + width + time)
        axis = torch.where(index >= height + width, 0, torch.where(index % 2 == 0, 1, 2))
        frequencies = self.shape.rope_theta ** (-2.0 * index / self.shape.head_dim)
        angles = batch.positions[:, axis].mT * frequencies  # (batch, tokens, head_dim / 2)
        return torch.polar(torch.ones_like(angles), angles).flatten(0, 1)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, dict[int, Tensor], dict[int, Tensor]]:
        """Hidden states before the scored positions, their labels, and by layer: the residual behind it (not
        of the last), its attention scores."""
        x = functional.embedding(batch.ids, self.embed)  # (batch, tokens, hidden)
        for picture in batch.pictures:
            features = self.vision(picture.pixels, picture.grid)  # (batch, image tokens, hidden)
            x = x.scatter(1, picture.places[..., None].expand_as(features), features)
        flat_vision = batch.is_vision.reshape(-1)
        is_text = batch.valid.reshape(-1) & ~flat_vision
        rows = {"text": is_text.nonzero().squeeze(1), "vision": flat_vision.nonzero().squeeze(1)}
        rotations = self._rotations(batch)
        seen: dict[int, Tensor] = {}
        scores: dict[int, Tensor] = {}
        drops = self.training and batch.pictures
        *before, last = self.layers
        for index, layer in enumerate(before):
            shared_scale = self._shared_scale(batch.is_vision) if drops else None
            flat, scores[index] = layer(x, rotations, rows, shared_scale)
            x = seen[index] = flat.view_as(x)
        # Nothing else is read behind the last layer: text tokens, as an answer never follows a picture.
        labels = functional.pad(batch.labels[:, 1:], (0, 1), value=-100).reshape(-1)
        scored = (labels >= 0).nonzero().squeeze(1)
        own = {"text": torch.arange(len(scored))}
        x, scores[len(before)] = last(x, rotations, own, only=scored)
        return functional.rms_norm(x, x.shape[-1:], self.norm, 1e-5), labels[scored], seen, scores

    def _shared_scale(self, is_vision: Tensor) -> Tensor:
        """(batch * tokens, 1): 0 at the image tokens of some images, else the shared expert takes over the
        work of the vision bank."""
        dropped = torch.rand(is_vision.shape[0], 1) < SHARED_DROP
        return (~(is_vision & dropped)).bfloat16().view(-1, 1)

    def _looking(self, batch: Batch, residual: Tensor) -> Tensor:
        """Loss of the last reading head where it is asked for the cell that the next token is read from.

        residual: (batch, tokens, hidden) behind the first layer that looks there.
        """
        row, position, place = batch.answer_pointers.unbind(1)
        hidden = functional.rms_norm(residual[row, position], residual.shape[-1:])
        logits = product(hidden, self.reading_heads[-1]).float()  # (pointers, classes)
        return 0.5 * place_loss(logits[:, SLOTS * self.num_characters :], batch.cells[row, place])

    def _reading(self, picture: PictureBatch, seen: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss of the reading heads, and the share of characters that the last one names rightly."""
        wanted = picture.characters.flatten().long()
        printed = wanted > 0
        cells = picture.cells.flatten(0, 1)
        places = picture.places[..., None].expand(-1, -1, self.shape.hidden_size)
        weight = torch.where(printed, 1.0, 0.1)
        losses = []
        for head, index in zip(self.reading_heads, READING_LAYERS, strict=True):
            residual = seen[index].gather(1, places)  # (batch, image tokens, hidden)
            hidden = functional.rms_norm(residual, residual.shape[-1:])
            logits = product(hidden, head).float().flatten(0, 1)  # (batch * image tokens, classes)
            characters, placed = logits.tensor_split((SLOTS * self.num_characters,), dim=1)
            flat = characters.reshape(-1, self.num_characters)
            named = (functional.cross_entropy(flat, wanted, reduction="none") * weight).sum() / weight.sum()
            losses.append(named + 0.3 * place_loss(placed, cells))
        right = (flat.argmax(-1) == wanted)[printed].float().mean()
        return torch.stack(losses).mean(), right

    def losses(self, batch: Batch) -> Losses:
        """All losses and shares of one batch."""
        hidden, labels, seen, scores = self(batch)
        logits = product(hidden, self.embed).float()
        answer = functional.cross_entropy(logits, labels)
        tokens_right = (logits.argmax(-1) == labels).float().mean()
        none = torch.full((), math.nan)
        read = [self._reading(picture, seen) for picture in batch.pictures]
        reading = torch.stack([loss for loss, _ in read]).mean() if read else torch.zeros(())
        characters_right = torch.stack([right for _, right in read]).mean() if read else none
        if len(batch.answer_pointers):
            reading = reading + self._looking(batch, seen[ANSWER_LAYERS[0]])
        pointing, pointers_right = torch.zeros(()), none
        for layers, head, pointers in (
            (MENTION_LAYERS, MENTION_HEAD, batch.mention_pointers),
            (ANSWER_LAYERS, ANSWER_HEAD, batch.answer_pointers),
        ):
            if not len(pointers):
                continue
            row, position, place = pointers.unbind(1)
            for index in layers:
                attention = scores[index][row, head, position].float()  # (pointers, tokens)
                pointing = pointing + functional.cross_entropy(attention, place)
            pointers_right = (attention.argmax(-1) == place).float().mean()
        return Losses(answer, reading, pointing, tokens_right, characters_right, pointers_right)
