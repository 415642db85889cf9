"""Vision tower and resampler lie in RAM beside a GPU, and pass through it while images are encoded."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.engine import Engine
from ernie_local.errors import DoesNotFit, Interrupted
from ernie_local.experts.build import PagingSetup
from ernie_local.experts.math import expert_math
from ernie_local.loading.build import build_model, checkpoint_weights
from ernie_local.loading.gpu_image_weights import GpuImageWeights
from ernie_local.media.patches import EncodedImage
from ernie_local.model import memory_use
from ernie_local.model.ernie import ErnieModel
from ernie_local.sizes import MIB
from tests.runtime import paged_models
from tests.runtime.fake_gpu import FakeGpu, watch, watched_math
from tests.runtime.paged_models import (
    gpu_share,
    ids,
    image_prompt,
    num_frames,
    paged_experts,
    plan_of,
    share,
    talk_of_images,
)

ROOM = 24 * MIB


@pytest.fixture(scope="module", params=["packed", "plain"])
def directory(request: pytest.FixtureRequest, packed_nano: Path) -> Path:
    return packed_nano if request.param == "packed" else NANO_DIRECTORY


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_use, "CACHE_STEP_TOKENS", 64)
    monkeypatch.setattr(paged_models, "GPU_ROOM", ROOM)


def on_gpu(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *, swaps: bool, upper: float = 0.3, gaps: bool = False
) -> tuple[ErnieModel, FakeGpu]:
    gpu = FakeGpu(leaves_gaps=gaps)
    watch(gpu, monkeypatch)
    config, math = read_config(directory), expert_math
    page_bytes = plan_of(directory).page_bytes

    def watched(*arguments: object, **keywords: object) -> object:
        *given, device = arguments
        return watched_math(partial(math, *given, **keywords), gpu, page_bytes)(device)  # type: ignore[arg-type]

    monkeypatch.setattr("ernie_local.loading.build.expert_math", watched)
    setup = PagingSetup(
        share(directory, 0.5),
        gpu=gpu_share(directory, gpu, share(directory, upper)),
        swaps_image_weights=swaps,
    )
    with open_checkpoint(directory, config) as checkpoint:
        return build_model(checkpoint, config, torch.float32, torch.device("cpu"), setup), gpu


def weights_of(model: ErnieModel) -> GpuImageWeights:
    assert isinstance(model.image_weights, GpuImageWeights)
    return model.image_weights


# An image, text, a late image, text, a step back, and two images at once: logits of all.
talk = partial(talk_of_images, text_tokens=70, answer_tokens=3)


@pytest.mark.parametrize("gaps", [False, True])
def test_answers_are_those_of_a_model_that_keeps_its_tower(
    directory: Path, monkeypatch: pytest.MonkeyPatch, gaps: bool
) -> None:
    kept, _ = on_gpu(directory, monkeypatch, swaps=False)
    expected = talk(kept)
    # With workspace apart, experts alone have to give the window.
    swapped, gpu = on_gpu(directory, monkeypatch, swaps=True, upper=3.0 if gaps else 0.3, gaps=gaps)
    assert torch.equal(talk(swapped), expected)
    assert gpu.num_host_waits == 0


def test_the_images_of_a_prompt_bring_each_byte_once_and_text_none(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, gpu = on_gpu(directory, monkeypatch, swaps=True)
    weights, engine = weights_of(model), Engine(model, 400)
    engine.prefill(ids(20, 1))
    engine.decode(5)
    assert gpu.num_bytes_brought == 0
    engine.prefill(*image_prompt(model, 2))
    engine.decode(5)
    assert gpu.num_bytes_brought == weights.num_bytes
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        counted = checkpoint_weights(checkpoint, config, torch.float32)
    assert (weights.num_bytes, weights.window_bytes) == (counted.for_images, counted.image_window)
    assert weights.window_bytes < weights.num_bytes
    engine.prefill(*image_prompt(model, 3, 2))  # in one pass
    assert gpu.num_bytes_brought == 2 * weights.num_bytes
    # Also where a stop may come between them, and in several passes.
    monkeypatch.setattr(memory_use, "PATCHES_PER_PASS", 50)
    Engine(model, 400).prefill(*image_prompt(model, 4, 3), should_stop=lambda: False)
    assert gpu.num_bytes_brought == 3 * weights.num_bytes
    # But in groups where there is less memory than all of them take.
    given = model.encoding_bytes
    monkeypatch.setattr(
        model, "encoding_bytes", lambda images, at_once: 2 * ROOM if at_once > 2 else given(images, at_once)
    )
    tokens, images = image_prompt(model, 4, 3)
    features: list[torch.Tensor] = []
    Engine(model, 400).prefill(tokens, images, on_encoded=lambda _, one: features.append(one))
    assert gpu.num_bytes_brought == 5 * weights.num_bytes
    known = [EncodedImage(one, patches.grid) for one, patches in zip(features, images, strict=True)]
    Engine(model, 400).prefill(tokens, known)
    assert gpu.num_bytes_brought == 5 * weights.num_bytes


def test_experts_give_frames_up_for_a_stage_and_have_them_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = on_gpu(directory, monkeypatch, swaps=True)
    during: list[int] = []
    model.vision.patch_embed.register_forward_pre_hook(lambda *_: during.append(num_frames(model)))
    engine = Engine(model, 400)
    engine.prefill(ids(5, 1))
    engine.decode(50)
    before = num_frames(model)
    engine.prefill(*image_prompt(model, 2))
    after = num_frames(model)
    engine.decode(50)
    frame = plan_of(directory).frame_bytes
    window = weights_of(model).window_bytes
    assert before - during[0] >= window // frame
    assert after - during[0] >= window // frame - 1
    assert num_frames(model) == before


def test_the_window_is_in_no_page_s_way(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the window while the tower computes is not in a slot, nor in the cache."""
    model, _ = on_gpu(directory, monkeypatch, swaps=True)
    engine, seen = Engine(model, 400), []
    experts = paged_experts(model)

    def look(*_: object) -> None:
        window = model.vision.patch_embed.weight.data_ptr() - experts.top.memory.bytes.data_ptr()
        slots = experts.top.cache
        ends = [slots.offset(key) + plan_of(directory).page_bytes[key] for key in slots.keys()]  # noqa: SIM118
        first_of_cache = experts.top.memory.num_bytes - engine.kv_cache_bytes
        assert max(ends, default=0) <= window
        assert window + weights_of(model).window_bytes <= first_of_cache
        seen.append(window)

    model.vision.patch_embed.register_forward_pre_hook(look)
    engine.prefill(ids(5, 1))
    engine.prefill(*image_prompt(model, 2))
    engine.prefill(ids(60, 1))
    engine.decode(50)
    engine.prefill(*image_prompt(model, 3))
    assert seen[1] < seen[0]


class _Stop(BaseException):
    """As KeyboardInterrupt, which pytest takes for itself."""


def test_an_interruption_anywhere_leaves_experts_as_they_should_be(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _ = on_gpu(directory, monkeypatch, swaps=False)
    model, _ = on_gpu(directory, monkeypatch, swaps=True)
    engine, other = Engine(model, 400), Engine(kept, 400)
    for one in (engine, other):
        one.prefill(*image_prompt(kept, 1))
        one.decode(50)
    before, frames, bring = engine.mark(), num_frames(model), FakeGpu.bring
    num_calls = len(weights_of(model)._host.places)
    for wanted in range(0, num_calls, max(1, num_calls // 4)):
        left = [wanted]

        def stop(self: FakeGpu, source: torch.Tensor, into: torch.Tensor, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise _Stop
            bring(self, source, into)

        monkeypatch.setattr(FakeGpu, "bring", stop)
        with pytest.raises(_Stop):
            engine.prefill(*image_prompt(kept, 2))
        assert engine.mark() == before
        engine.decode(60)  # the workspace comes back with it
        engine.rewind(before)
        assert num_frames(model) == frames
    monkeypatch.setattr(FakeGpu, "bring", bring)
    assert torch.equal(engine.prefill(*image_prompt(kept, 3)), other.prefill(*image_prompt(kept, 3)))


def test_a_stop_between_images_gives_the_window_back(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = on_gpu(directory, monkeypatch, swaps=True)
    engine, asked = Engine(model, 200), []

    def should_stop() -> bool:
        asked.append(num_frames(model))
        return len(asked) == 2

    with pytest.raises(Interrupted, match="0 of 2 images"):
        engine.prefill(*image_prompt(model, 1, 2), should_stop=should_stop)
    assert num_frames(model) > asked[1]


def test_an_image_for_which_experts_cannot_give_way_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, gpu = on_gpu(directory, monkeypatch, swaps=True, upper=0.0)
    engine = Engine(model, 400)
    engine.prefill(ids(270, 1))
    engine.decode(5)
    frames = num_frames(model)
    mark, brought = engine.mark(), gpu.num_bytes_brought
    monkeypatch.setattr(weights_of(model), "window_bytes", weights_of(model).window_bytes + ROOM)
    with pytest.raises(DoesNotFit, match="the image and its conversation need"):
        engine.prefill(*image_prompt(model, 1))
    assert (engine.mark(), gpu.num_bytes_brought) == (mark, brought)
    engine.decode(7)
    assert num_frames(model) == frames
