"""Has the images of a prompt encoded: in what groups, with memory kept for each, and stops in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from ernie_local.errors import DoesNotFit
from ernie_local.media.patches import MediaPatches, MediaPiece
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.memory_use import tower_passes
from ernie_local.progress import Pauses


def encode_in_turn(model: ErnieModel, images: Sequence[MediaPatches], pauses: Pauses) -> Iterator[Tensor]:
    """Features of each image and video, in order, as `ErnieModel.encode_images` makes them of their pieces.

    Memory is kept for that, and weights stay, until the caller drops both. DoesNotFit if there is too little.
    """
    encoded = _encode_pieces(model, [piece for image in images for piece in image.pieces], pauses)
    for image in images:
        parts = list(islice(encoded, len(image.pieces)))
        yield parts[0] if len(parts) == 1 else torch.cat(parts)


def _encode_pieces(model: ErnieModel, pieces: Sequence[MediaPiece], pauses: Pauses) -> Iterator[Tensor]:
    if model.streams_image_weights:
        groups = _streamed_groups(model, pieces)
    else:
        model.experts.make_room(model, model.encoding_bytes(pieces))
        # Together unless a stop may come between them.
        groups = [pieces] if pauses.should_stop is None else [[one] for one in pieces]
    num_done = 0
    for group in groups if pieces else ():
        pauses.reach("images", num_done, len(pieces))
        yield from model.encode_images(group, partial(pauses.ask, "images", num_done, len(pieces)))
        num_done += len(group)


def _streamed_groups(model: ErnieModel, pieces: Sequence[MediaPiece]) -> list[Sequence[MediaPiece]]:
    """As few as there is memory for: each group has all weights copied to a GPU."""
    passes = [pieces[together] for together in tower_passes([one.num_patches for one in pieces])]
    at_once = max(1, len(passes))
    while True:
        try:
            model.experts.make_room(model, model.encoding_bytes(pieces, at_once))
            if pieces:
                model.read_image_weights()
            break
        except DoesNotFit:
            if at_once == 1:
                raise
            at_once = -(-at_once // 2)
    return [
        [piece for group in passes[start : start + at_once] for piece in group]
        for start in range(0, len(passes), at_once)
    ]
