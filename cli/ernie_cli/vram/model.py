"""Finds the sizes of the model, the conversation and the images that `ernie-local vram` is asked about.

Joins the quantizer's choice of formats with the planner. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from ernie_cli.vram.options import BitsName, DenseName, VramOptions
from ernie_local.packing.formats import find_format, formats_for

if TYPE_CHECKING:
    from ernie_local.media.image_size import ImageReport
    from ernie_local.planner.conversation import ChatPlan
    from ernie_local.planner.model_size import ModelSize

_SIZE = re.compile(r"([1-9][0-9]{0,5})[xX]([1-9][0-9]{0,5})", re.ASCII)
# By --bits; mixed bits are 2.5 per weight on average.
EXPERT_FORMATS = {str(one.bits): one for one in formats_for("estimate")} | {"mixed": find_format("w2l")}


def find_model(name: str) -> ModelSize:
    """The model that `name` stands for, as it is; ModelUnusable where there is none."""
    from ernie_local.planner.model_size import PUBLISHED_NAME, published_model, read_model

    if name.lower() == PUBLISHED_NAME:
        return published_model()
    from ernie_local.checkpoint.hub import resolve_model

    # Named as the user named it: nano's directory would mean nothing to them.
    return dataclasses.replace(read_model(resolve_model(name)), name=name)


def as_quantized(model: ModelSize, bits: BitsName | None, dense: DenseName) -> ModelSize:
    """The model with its experts in this many bits; None and 16 leave it as it is."""
    if bits is None or (bits == "16" and model.config.quantization is None):
        return model
    from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
    from ernie_local.errors import parameter
    from ernie_local.planner.model_size import with_formats

    low_bit = EXPERT_FORMATS.get(bits)
    choice = FormatChoice(experts=None if low_bit is None else low_bit.name, dense=dense)
    return with_formats(model, lambda config: format_tables(config, choice), parameter("bits", bits))


def measure_images(model: ModelSize, sources: tuple[str, ...]) -> tuple[ImageReport, ...]:
    """Each image, given by its size or as a file; InputUnreadable for a file that is none."""
    from ernie_local.media.image_size import measure_image

    measured: list[ImageReport] = []
    for source in sources:
        match = _SIZE.fullmatch(source)
        if match is not None:
            measured.append(measure_image(source, (int(match[1]), int(match[2])), model.processor))
            continue
        from ernie_cli.images import open_given_images

        measured += [
            measure_image(opened.name, opened.image.size, model.processor)
            for opened in open_given_images([source])
        ]
    return tuple(measured)


def converse(model: ModelSize, options: VramOptions) -> ChatPlan:
    """The conversation that the options describe; where they say nothing, what a chat would choose.

    DoesNotFit for a context beyond the model's, or that images alone fill.
    """
    from ernie_local import defaults
    from ernie_local.planner.conversation import ChatPlan, check_images
    from ernie_local.sizes import parse_count

    asked = None if options.context_size is None else parse_count(options.context_size, "context_size")
    model_limit = model.config.text.max_position_embeddings
    context_size = defaults.context_tokens(asked, model_limit)
    is_packed = model.config.quantization is not None
    dtype: str = options.dtype
    if dtype == defaults.AUTO:
        # Only where it decides: finding the size of files takes longer than all else.
        dtype = defaults.compute_dtype(0 if is_packed else model.file_bytes)
    kv_dtype: str = options.kv_dtype
    if kv_dtype == defaults.AUTO:
        kv_dtype = defaults.kv_dtype(dtype, is_packed=is_packed)
    images = measure_images(model, options.image)
    check_images(images, context_size, model_limit)
    return ChatPlan(context_size, dtype, kv_dtype, images)
