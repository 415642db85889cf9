"""Has the images of a prompt encoded: in what groups, with memory kept for each, and stops in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from ernie_local.errors import DoesNotFit
from ernie_local.media.patches import Patches
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.memory_use import tower_passes
from ernie_local.progress import Pauses


def encode_in_turn(model: ErnieModel, images: Sequence[Patches], pauses: Pauses) -> Iterator[Tensor]:
    """Features of each image, in order, as `ErnieModel.encode_images` makes them.

    Memory is kept for that, and weights stay, until the caller drops both. DoesNotFit if there is too little.
    """
    if model.streams_image_weights:
        groups = _streamed_groups(model, images)
    else:
        model.experts.make_room(model, model.encoding_bytes(images))
        # Products of torch may give a row other bits beside other rows, and a stop may come between images.
        groups = [[one] for one in images]
    num_done = 0
    for group in groups if images else ():
        pauses.reach("images", num_done, len(images))
        yield from model.encode_images(group, partial(pauses.ask, "images", num_done, len(images)))
        num_done += len(group)


def _streamed_groups(model: ErnieModel, images: Sequence[Patches]) -> list[Sequence[Patches]]:
    """As few as there is memory for: each group has all weights copied to a GPU."""
    passes = [images[together] for together in tower_passes([len(one.pixel_values) for one in images])]
    at_once = max(1, len(passes))
    while True:
        try:
            model.experts.make_room(model, model.encoding_bytes(images, at_once))
            if images:
                model.read_image_weights()
            break
        except DoesNotFit:
            if at_once == 1:
                raise
            at_once = -(-at_once // 2)
    return [
        [image for group in passes[start : start + at_once] for image in group]
        for start in range(0, len(passes), at_once)
    ]
