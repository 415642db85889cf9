"""Renders batches of conversations in a worker process; all images of a batch have one grid of tokens.

A `Stream` chooses kinds of images and a grid; a stage mixes streams by weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy
import sentencepiece
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import IterableDataset

from ernie_calibration.drawn_image import DrawnImage, Glyph
from ernie_calibration.images import draw_image
from ernie_calibration.names import NameSource
from ernie_local.media.processor_config import CLIP_MEAN, CLIP_STD
from nano.conversation import IGNORED, Pointer, TrainingConversation, image_turns, text_turns, transcript_turn
from nano.network import SLOTS, Batch
from nano.shape import NanoShape

CHARACTERS = "".join(chr(code) for code in range(33, 127)) + "£"
NUM_CHARACTER_CLASSES = len(CHARACTERS) + 1  # 0: nothing printed

THINKING_BATCHES = 0.12
LENGTH_STEP = 32  # tokens; few different shapes, see layers.CAPACITY_STEP


@dataclass(frozen=True, slots=True)
class Stream:
    """Images of `kinds` on a `grid` of (rows, columns) image tokens; no kinds: text only.

    `transcripts`: the share of batches that ask for all that is printed, instead of `questions`.
    """

    kinds: tuple[str, ...]
    grid: tuple[int, int]
    batch: int
    weight: float
    questions: int = 3
    transcripts: float = 0.0


def cell_of(glyph: Glyph, drawn: DrawnImage, grid: tuple[int, int]) -> int | None:
    """The image token (row * columns + column) whose cell holds the glyph's centre; None beyond the page."""
    rows, columns = grid
    row, column = int(glyph.y * rows // drawn.height), int(glyph.x * columns // drawn.width)
    return row * columns + column if 0 <= row < rows and 0 <= column < columns else None


def character_classes(drawn: DrawnImage, grid: tuple[int, int]) -> NDArray[numpy.int64]:
    """(rows * columns, SLOTS) classes of the first characters centred in each cell, in reading order."""
    classes = numpy.zeros((grid[0] * grid[1], SLOTS), dtype=numpy.int64)
    filled = [0] * len(classes)
    for glyph in sorted(drawn.glyphs, key=lambda glyph: (glyph.y, glyph.x)):
        cell = cell_of(glyph, drawn, grid)
        if cell is not None and filled[cell] < SLOTS:
            classes[cell, filled[cell]] = CHARACTERS.find(glyph.character) + 1
            filled[cell] += 1
    return classes


def located(
    pointers: list[Pointer], index: int, drawn: DrawnImage, grid: tuple[int, int]
) -> list[tuple[int, int, int]]:
    """(`index`, position, image token) of every pointer whose glyph lies on the page."""
    cells = ((position, cell_of(glyph, drawn, grid)) for position, glyph in pointers)
    return [(index, position, cell) for position, cell in cells if cell is not None]


def with_noise(random: Random, image: Image.Image, size: tuple[int, int]) -> NDArray[numpy.uint8]:
    """The image at `size` as (height, width, 3), sometimes with sensor noise or another contrast."""
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    pixels = numpy.asarray(image, dtype=numpy.uint8)
    if random.random() < 0.3:
        generator = numpy.random.default_rng(random.getrandbits(32))
        noise = generator.normal(0.0, random.uniform(2.0, 10.0), pixels.shape[:2]).astype(numpy.float32)
        pixels = numpy.clip(pixels + noise[..., None], 0, 255).astype(numpy.uint8)
    return pixels


def page_size(random: Random, grid: tuple[int, int], token_pixels: int) -> tuple[int, int]:
    """A page that the image processor brings to `grid`; mostly it squeezes a side a little.

    The height stays under half a line more, so that each line of text still gets one row of image tokens.
    """
    rows, columns = grid
    if random.random() < 0.4:
        return columns * token_pixels, rows * token_pixels
    width = columns * random.uniform(0.97, 1.06)
    height = rows * random.uniform(0.97, 1.0) if random.random() < 0.3 else rows + random.uniform(0.0, 0.45)
    return round(width * token_pixels), round(height * token_pixels)


def flatten_patches(pixels: torch.Tensor, shape: NanoShape) -> torch.Tensor:
    """(batch, height, width, 3) uint8 -> (batch, patches, 588) normalised, in the published patch order."""
    batch, height, width, _ = pixels.shape
    merge, patch = shape.merge_size, shape.patch_size
    side = merge * patch
    # Moved as bytes, then made numbers: a quarter of the memory traffic.
    values = pixels.view(batch, height // side, merge, patch, width // side, merge, patch, 3)
    values = values.permute(0, 1, 4, 2, 5, 7, 3, 6)  # (batch, rows, columns, merge, merge, 3, patch, patch)
    flat = values.reshape(-1, 3, patch**2).float()  # (all patches, 3, patch ** 2)
    mean, deviation = torch.tensor(CLIP_MEAN).view(3, 1), torch.tensor(CLIP_STD).view(3, 1)
    return flat.div_(255.0).sub_(mean).div_(deviation).view(batch, -1, 3 * patch**2)


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    """(rows, length of the longest in whole LENGTH_STEPs) int64, filled up at the end."""
    longest = -(-max(map(len, rows)) // LENGTH_STEP) * LENGTH_STEP
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


@dataclass(eq=False)
class BatchMaker(IterableDataset[Batch]):
    """An endless stream of batches, decided by `seed` alone."""

    streams: tuple[Stream, ...]
    tokenizer_path: str
    shape: NanoShape
    seed: int
    held_out: bool = False

    def __iter__(self) -> Iterator[Batch]:
        """Batches for ever."""
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=self.tokenizer_path)
        random = Random(self.seed)
        weights = [stream.weight for stream in self.streams]
        while True:
            yield self.make(random.choices(self.streams, weights)[0], random, tokenizer)

    def make(self, stream: Stream, random: Random, tokenizer: sentencepiece.SentencePieceProcessor) -> Batch:
        """One batch of `stream`."""
        rows, columns = stream.grid
        side = self.shape.token_pixels
        image_tokens = rows * columns if stream.kinds else 0
        conversations, images, characters, kinds = [], [], [], []
        answer_pointers: list[tuple[int, int, int]] = []
        mention_pointers: list[tuple[int, int, int]] = []
        # Long turns lie in batches of their own, or each batch would be as long as its one transcript.
        transcribes = random.random() < stream.transcripts
        thinks = not self.held_out and random.random() < THINKING_BATCHES
        for index in range(stream.batch):
            conversation = TrainingConversation(tokenizer)
            if stream.kinds:
                scale = random.uniform(1.2, 2.8) if random.random() < 0.2 else 1.0
                kind = random.choice(stream.kinds)
                seed = random.getrandbits(60)
                size = page_size(random, stream.grid, side)
                drawn = draw_image(
                    kind, seed, held_out=self.held_out, scale=scale, width=size[0], height=size[1]
                )
                if transcribes:
                    turns = [transcript_turn(random, drawn)]
                else:
                    share = 0.7 if thinks else 0.0
                    turns = image_turns(random, drawn, stream.questions, thinking_share=share)
                images.append(with_noise(random, drawn.image, (columns * side, rows * side)))
                characters.append(character_classes(drawn, stream.grid))
            else:
                turns = text_turns(NameSource(random, self.held_out), stream.questions)
            conversation.add_turns(turns, image_tokens)
            if stream.kinds:
                answer_pointers += located(conversation.answer_pointers, index, drawn, stream.grid)
                mention_pointers += located(conversation.mention_pointers, index, drawn, stream.grid)
            conversations.append(conversation)
            kinds.append(turns[0].kind)
        pixels = torch.from_numpy(numpy.stack(images)) if images else None
        return Batch(
            ids=padded([conversation.ids for conversation in conversations], 0),
            labels=padded([conversation.labels for conversation in conversations], IGNORED),
            valid=padded([[1] * len(conversation.ids) for conversation in conversations], 0).bool(),
            pixels=None if pixels is None else flatten_patches(pixels, self.shape).bfloat16(),
            grid=stream.grid if images else (0, 0),
            image_start=conversations[0].image_start,
            characters=torch.from_numpy(numpy.stack(characters)) if characters else None,
            answer_pointers=torch.tensor(answer_pointers, dtype=torch.long).view(-1, 3),
            mention_pointers=torch.tensor(mention_pointers, dtype=torch.long).view(-1, 3),
            kinds=tuple(kinds),
        )
