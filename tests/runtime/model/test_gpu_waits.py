"""Nothing in a forward on a GPU makes the host wait, but for what experts read back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ernie_local.engine import Engine
from ernie_local.kernels.arguments import LayerStorage, NewToken
from ernie_local.kernels.graphs import Outputs, Recorded, Recorder
from ernie_local.model import attention, ernie, host_attention
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.host_parts import HostParts
from ernie_local.model.layers import PackedEmbedding, PackedLinear
from tests.runtime import paged_models
from tests.runtime.shape_gpu import DEVICE, ShapeGpu, WaitError, on_shape_gpu


@pytest.fixture(scope="module")
def directory(packed_nano: Path) -> Path:
    return packed_nano


@pytest.fixture
def model(directory: Path) -> ErnieModel:
    return paged_models.build(directory, None)


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.int8], ids=str)
def test_prompts_images_and_decode_wait_for_nothing(
    model: ErnieModel, monkeypatch: pytest.MonkeyPatch, kv_dtype: torch.dtype
) -> None:
    image = paged_models.image(model, 6, 4)
    with on_shape_gpu(model, monkeypatch) as gpu:
        engine = Engine(model, 256, kv_dtype, chunk_tokens=16)
        logits = engine.prefill([20, 21, *paged_models.image_ids(model, image), *range(30, 50)], [image])
        assert logits.device == DEVICE
        sent = gpu.num_sent
        for token in (60, 61, model.config.media.image_start, 62):
            logits = engine.decode(token)
        assert logits.shape == (model.config.text.vocab_size,)
        assert gpu.num_sent == sent, "a decoded token is filled in on the GPU"
    assert gpu.num_page_sums > 0


def test_of_an_embedding_in_ram_rows_are_sent_and_nothing_waits(
    model: ErnieModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = copy.deepcopy(model.embed_tokens)
    with on_shape_gpu(model, monkeypatch) as gpu:
        assert isinstance(model.embed_tokens, PackedEmbedding)
        model.lm_head = PackedLinear(model.embed_tokens._matrix())
        model.embed_tokens = table
        engine = Engine(model, 256, torch.bfloat16, chunk_tokens=16)
        engine.prefill([20, 21, *range(30, 50)])
        sent = gpu.num_sent
        for count, token in enumerate((60, 61, 62), 1):
            assert engine.decode(token).device == DEVICE
            assert gpu.num_sent == sent + count


@pytest.mark.parametrize("num_layers", [1, 6])
def test_layers_in_ram_take_and_give_states_alone(
    model: ErnieModel, monkeypatch: pytest.MonkeyPatch, num_layers: int
) -> None:
    """Nothing of the host's is computed with on the GPU, and nothing else is waited for."""
    below = copy.deepcopy([*model.layers][:num_layers])
    received: list[torch.Size] = []

    def receive(tensor: torch.Tensor) -> torch.Tensor:
        assert tensor.device == DEVICE
        received.append(tensor.shape)
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")

    monkeypatch.setattr(host_attention, "receive", receive)
    with on_shape_gpu(model, monkeypatch) as gpu:
        monkeypatch.setattr(host_attention, "send", gpu.send)
        for layer, on_host in zip(model.layers, below, strict=False):
            layer.input_layernorm, layer.self_attn = on_host.input_layernorm, on_host.self_attn
        model.host = HostParts(num_layers)
        engine = Engine(model, 256, torch.bfloat16, chunk_tokens=16)
        engine.prefill([20, 21, *range(30, 50)])
        received.clear()
        sent = gpu.num_sent
        assert engine.decode(60).device == DEVICE
    angles = model.config.text.head_dim // 2
    assert received == [(1, angles), (1, angles), *[(1, model.config.text.hidden_size)] * num_layers]
    assert gpu.num_sent == sent + num_layers


class ShapeRecorder:
    """A Recorder of what has no values: to run it again gives the same."""

    def record(self, run: Callable[[], Outputs]) -> Recorded[Outputs]:
        return Recorded(lambda: None, run())


def attend_shapes(new_token: NewToken, cache: LayerStorage, length: torch.Tensor) -> torch.Tensor:
    """In place of the GPU's kernel."""
    given = (*new_token, *cache, length)
    assert {one.device for one in given if one is not None} == {DEVICE}, "the length is there too"
    return torch.empty_like(new_token.queries, dtype=torch.float32)


@pytest.mark.parametrize("recorder", [None, ShapeRecorder()], ids=["kernel", "graphs"])
def test_decode_by_the_kernel_waits_for_nothing(
    model: ErnieModel, monkeypatch: pytest.MonkeyPatch, recorder: Recorder | None
) -> None:
    for module in (attention, ernie):
        monkeypatch.setattr(module, "token_kernel", lambda device, kv_dtype, kernels: attend_shapes)
    model.attach(model.experts, recorder)
    with on_shape_gpu(model, monkeypatch) as gpu:
        engine = Engine(model, 256, torch.int8)
        engine.prefill([20, 21, 22])
        sent, summed = gpu.num_sent, gpu.num_page_sums
        for token in (60, 61, model.config.media.image_start, 62):
            engine.decode(token)
        assert gpu.num_sent == sent
        assert gpu.num_page_sums == summed + 4 * sum(model.config.text.moe_layers)


def value(states: torch.Tensor) -> object:
    return int(states.sum())


def rows(states: torch.Tensor) -> object:
    return (states > 0).nonzero()


def mask(states: torch.Tensor) -> object:
    return states[states > 0]


def mask_of_the_host(states: torch.Tensor) -> object:
    return states[torch.tensor([True, False])]


def read_back(states: torch.Tensor) -> object:
    return states.cpu()


def blocking_copy(states: torch.Tensor) -> object:
    return torch.ones(2, 3).to(states.device)


def list_on_the_gpu(states: torch.Tensor) -> object:
    return torch.tensor([1, 2], device=states.device)


def tensor_of_the_host(states: torch.Tensor) -> object:
    return states + torch.ones(2, 3)


WAITS = [
    value,
    rows,
    mask,
    mask_of_the_host,
    read_back,
    blocking_copy,
    list_on_the_gpu,
    tensor_of_the_host,
]


@pytest.mark.parametrize("wait", WAITS)
@torch.inference_mode()
def test_each_kind_of_wait_is_seen(wait: Callable[[torch.Tensor], object]) -> None:
    states = torch.ones(2, 3, device=DEVICE)
    with ShapeGpu(), pytest.raises((WaitError, RuntimeError, NotImplementedError)):
        wait(states)
