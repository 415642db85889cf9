"""Makes batches of conversations in worker processes; a stage mixes streams by weight."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy
import sentencepiece
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ernie_calibration.clips import FRAMES_JOINED
from ernie_local.config import MediaTokens
from ernie_local.media.processor_config import CLIP_MEAN, CLIP_STD
from ernie_local.media.tokens import TEXT, positions_3d, token_types
from nano.conversation import (
    IGNORED,
    Pointer,
    TrainingConversation,
)
from nano.network import Batch, PictureBatch
from nano.shape import NanoShape
from nano.streams import Conversed, Converser, Stream, cell_of

MEDIA = MediaTokens(image=7, image_start=8, image_end=9, video=7, video_start=11, video_end=12)
LENGTH_STEP = 32  # tokens; few different shapes, see layers.CAPACITY_STEP


def located(pointers: list[Pointer], index: int, conversed: Conversed) -> list[tuple[int, int, int]]:
    """(`index`, position, position of the image token) of every pointer whose glyph lies on its picture."""
    places = []
    for position, glyph, picture in pointers:
        width, height, grid = conversed.drawn[picture]
        cell = cell_of(glyph, (width, height), grid)
        if cell is not None:
            places.append((index, position, conversed.conversation.starts[picture] + cell))
    return places


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


def media_positions(conversation: TrainingConversation, grids: list[tuple[int, int, int]]) -> torch.Tensor:
    """(3, tokens) positions by the runtime's rule; grids: (frames, rows, columns) in image tokens."""
    in_patches = [(frames, rows, columns) for frames, rows, columns in grids]
    return positions_3d(conversation.ids, in_patches, MEDIA, merge=1, temporal_merge=FRAMES_JOINED)[0]


def stacked(streams: list[Conversed], picture: int, shape: NanoShape) -> PictureBatch:
    """The pictures of that number of all conversations."""
    frames = torch.from_numpy(numpy.stack([one.frames[picture] for one in streams]))
    side = shape.token_pixels
    return PictureBatch(
        pixels=flatten_patches(frames.flatten(0, 1), shape).unflatten(0, frames.shape[:2]).bfloat16(),
        grid=(frames.shape[2] // side, frames.shape[3] // side),
        starts=torch.tensor([one.conversation.starts[picture] for one in streams]),
        characters=torch.from_numpy(numpy.stack([one.characters[picture] for one in streams])),
        edges=torch.from_numpy(numpy.stack([one.edges[picture] for one in streams])),
    )


def batch_of(streams: list[Conversed], shape: NanoShape) -> Batch:
    """All conversations as one batch."""
    conversations = [one.conversation for one in streams]
    ids = padded([conversation.ids for conversation in conversations], 0)
    pictures = tuple(stacked(streams, picture, shape) for picture in range(len(streams[0].frames)))
    positions = torch.zeros(len(streams), 3, ids.shape[1], dtype=torch.long)
    is_vision = torch.zeros(ids.shape, dtype=torch.bool)
    answer_pointers: list[tuple[int, int, int]] = []
    mention_pointers: list[tuple[int, int, int]] = []
    for index, (one, conversation) in enumerate(zip(streams, conversations, strict=True)):
        grids = [(len(frames), *picture.grid) for frames, picture in zip(one.frames, pictures, strict=True)]
        length = len(conversation.ids)
        positions[index, :, :length] = media_positions(conversation, grids)
        is_vision[index, :length] = token_types(conversation.ids, MEDIA) != TEXT
        answer_pointers += located(conversation.answer_pointers, index, one)
        mention_pointers += located(conversation.mention_pointers, index, one)
    return Batch(
        ids=ids,
        labels=padded([conversation.labels for conversation in conversations], IGNORED),
        valid=padded([[1] * len(conversation.ids) for conversation in conversations], 0).bool(),
        positions=positions,
        is_vision=is_vision,
        pictures=pictures,
        answer_pointers=torch.tensor(answer_pointers, dtype=torch.long).view(-1, 3),
        mention_pointers=torch.tensor(mention_pointers, dtype=torch.long).view(-1, 3),
        kinds=tuple(one.kind for one in streams),
    )


def stand_back(_worker: int) -> None:
    """Let workers render while a step leaves a core idle: else both of its threads wait for them."""
    torch.set_num_threads(1)
    os.nice(19)


@dataclass(eq=False)
class BatchMaker(IterableDataset[Batch]):
    """An endless stream of batches for each worker, decided by `seed` and the worker's number alone."""

    streams: tuple[Stream, ...]
    tokenizer_path: str
    shape: NanoShape
    seed: int
    held_out: bool = False

    def __iter__(self) -> Iterator[Batch]:
        """Batches for ever."""
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=self.tokenizer_path)
        worker = get_worker_info()
        random = Random(self.seed if worker is None else f"{self.seed}/{worker.id}")
        weights = [stream.weight for stream in self.streams]
        while True:
            yield self.make(random.choices(self.streams, weights)[0], random, tokenizer)

    def make(self, stream: Stream, random: Random, tokenizer: sentencepiece.SentencePieceProcessor) -> Batch:
        """One batch of `stream`."""
        converse = Converser(stream, random, tokenizer, self.shape, self.held_out)
        return batch_of([converse.next() for _ in range(stream.batch)], self.shape)
