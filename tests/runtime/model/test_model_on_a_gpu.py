"""Whole models on an NVIDIA GPU give what they give on the processor, wherever their experts lie."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ernie_local
from ernie_local.errors import DoesNotFit
from ernie_local.loading import LoadedModel
from tests.runtime import paged_models
from tests.runtime.kernel_tolerances import relative_error

pytestmark = pytest.mark.gpu
PROMPT, ANSWER = list(range(20, 60)), (60, 61, 62, 63)
# Of 11 binary digits for states and cache, through six layers.
LARGEST_ERROR = 0.02


@pytest.fixture(scope="module")
def packed(packed_nano: Path) -> Path:
    return packed_nano


def answer(model: LoadedModel, with_image: bool = False) -> torch.Tensor:
    """(tokens, vocab_size) on the host: logits behind a prompt and in decode."""
    engine, prompt, images = model.engine(context_size=256), PROMPT, []
    if with_image:
        images = [paged_models.image(model.network, 6, 4)]
        prompt = [*PROMPT, *paged_models.image_ids(model.network, images[0]), 70]
    logits = [engine.prefill(prompt, images).cpu()]
    return torch.stack([*logits, *(engine.decode(token).cpu() for token in ANSWER)])


@pytest.mark.parametrize("with_image", [False, True], ids=["text", "image"])
@pytest.mark.parametrize(("kernels", "graphs"), [("auto", "off"), ("auto", "on"), ("torch", "off")], ids=str)
@pytest.mark.parametrize("is_paged", [False, True], ids=["resident", "paged"])
def test_logits(packed: Path, is_paged: bool, kernels: str, graphs: str, with_image: bool) -> None:
    expected = answer(ernie_local.load(packed, context_size=256, kv_dtype="float16"), with_image)
    vram: int | str = least_vram(packed) if is_paged else "auto"
    model = ernie_local.load(
        packed,
        device="cuda",
        dtype="float32",
        kv_dtype="float16",
        context_size=256,
        vram=vram,
        gpu_kernels=kernels,
        cuda_graphs=graphs,
    )
    assert (model.paging is not None) == is_paged
    assert relative_error(answer(model, with_image), expected) < LARGEST_ERROR


def least_vram(directory: Path) -> int:
    """A little more than what load takes as least."""
    for megabytes in range(64, 4096, 2):
        try:
            model = ernie_local.load(
                directory,
                device="cuda",
                dtype="float32",
                kv_dtype="float16",
                context_size=256,
                vram=megabytes << 20,
            )
        except DoesNotFit:
            continue
        assert model.paging is not None
        return megabytes << 20
    raise AssertionError("it never fits")
