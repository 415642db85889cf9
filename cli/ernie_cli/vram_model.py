"""From what `ernie-local vram` is told to a model's sizes, its conversation and its images.

Joins the quantizer's choice of formats with the planner. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from ernie_cli.vram_options import BitsName, DenseName, VramOptions

if TYPE_CHECKING:
    from ernie_local.planner.conversation import ChatPlan, PricedImage
    from ernie_local.planner.model_size import ModelSize

_SIZE = re.compile(r"([1-9][0-9]{0,5})[xX]([1-9][0-9]{0,5})", re.ASCII)
# By --bits; mixed bits are 2.5 a weight on average, whatever they are given to.
_EXPERT_FORMATS: dict[BitsName, str] = {"8": "w8", "4": "w4", "3": "w3", "2": "w2", "mixed": "w2l"}


def find_model(name: str) -> ModelSize:
    """The model that `name` stands for, as it is; ModelUnusable where there is none."""
    from ernie_local.planner.model_size import PUBLISHED_NAME, published_model, read_model

    if name.lower() == PUBLISHED_NAME:
        return published_model()
    from ernie_local.checkpoint.hub import resolve_model

    # Called what the user calls it: where it lies says less, and where nano lies, nothing.
    return dataclasses.replace(read_model(resolve_model(name)), name=name)


def as_quantized(model: ModelSize, bits: BitsName | None, dense: DenseName) -> ModelSize:
    """The model with its experts in so many bits; None and 16 leave it as it is."""
    if bits is None or (bits == "16" and model.config.quantization is None):
        return model
    from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
    from ernie_local.planner.model_size import with_formats

    experts = _EXPERT_FORMATS.get(bits)
    choice = FormatChoice(experts=experts, dense=dense)
    return with_formats(model, lambda config: format_tables(config, choice), f"--bits {bits}")


def price_images(model: ModelSize, sources: tuple[str, ...]) -> tuple[PricedImage, ...]:
    """Each image, given by its size or as a file; InputUnreadable for a file that is none."""
    from ernie_local.planner.conversation import PricedImage

    priced: list[PricedImage] = []
    for source in sources:
        match = _SIZE.fullmatch(source)
        if match is not None:
            priced.append(PricedImage.of(source, int(match[1]), int(match[2]), model.processor))
            continue
        from ernie_cli.images import open_given_images

        priced += [
            PricedImage.of(opened.name, *opened.image.size, model.processor)
            for opened in open_given_images([source])
        ]
    return tuple(priced)


def converse(model: ModelSize, options: VramOptions) -> ChatPlan:
    """The conversation that the options describe, with what a chat would choose where they say nothing.

    DoesNotFit for a context beyond the model's, or that images alone fill.
    """
    from ernie_local.planner.conversation import (
        ChatPlan,
        check_context,
        check_images,
        default_dtype,
        default_kv_dtype,
    )
    from ernie_local.sizes import parse_count

    asked = None if options.context_size is None else parse_count(options.context_size, "--ctx-size")
    context_size = check_context(asked, model.config)
    is_quantized = model.config.quantization is not None
    dtype = options.dtype
    # The size of files is asked for where it decides: it takes longer than all else.
    checkpoint_bytes = 0 if is_quantized else model.file_bytes
    chosen = default_dtype(checkpoint_bytes, is_packed=is_quantized) if dtype == "auto" else dtype
    kv_dtype = options.kv_dtype
    if kv_dtype == "auto":
        cache: str = default_kv_dtype(chosen, is_packed=is_quantized)
    else:
        cache = kv_dtype
    images = price_images(model, options.images)
    check_images(images, context_size, model.config.text.max_position_embeddings)
    return ChatPlan(context_size, chosen, cache, images)
