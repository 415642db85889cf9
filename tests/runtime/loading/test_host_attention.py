"""Layers that attend on the CPU beside a GPU, and a head in RAM, give the answers of a model without them."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.engine import Engine
from ernie_local.errors import DoesNotFit
from ernie_local.experts.build import PagingSetup
from ernie_local.loading.build import build_model, build_without_experts
from ernie_local.model import memory_use
from ernie_local.model.ernie import ErnieModel, NextToken
from ernie_local.model.host_parts import ALL_ON_GPU, HostParts
from ernie_local.model.memory_use import KVSize
from ernie_local.sizes import MIB
from tests.runtime import paged_models
from tests.runtime.fake_gpu import FakeGpu
from tests.runtime.paged_models import gpu_share, ids, share, talk_of_images

CONTEXT = 400
META = torch.device("meta")  # stands for a GPU, on which nothing may be read


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_use, "CACHE_STEP_TOKENS", 64)
    monkeypatch.setattr(paged_models, "GPU_ROOM", 24 * MIB)


def host_cache_bytes(directory: Path, num_layers: int) -> int:
    text = read_config(directory).text
    return KVSize.of(text, CONTEXT, 4).split(text, num_layers)[0].num_bytes


def on_gpu(directory: Path, host: HostParts) -> ErnieModel:
    config, gpu = read_config(directory), FakeGpu(leaves_gaps=False)
    in_ram = host_cache_bytes(directory, host.num_layers)
    upper = gpu_share(directory, gpu, share(directory, 0.3))._replace(host_cache_bytes=in_ram)
    setup = PagingSetup(share(directory, 0.5), gpu=upper)
    with open_checkpoint(directory, config) as checkpoint:
        return build_model(checkpoint, config, torch.float32, torch.device("cpu"), setup, host=host)


@functools.cache
def expected_talk(directory: Path) -> torch.Tensor:
    return talk_of_images(on_gpu(directory, ALL_ON_GPU), 70, 2)


@pytest.mark.parametrize(
    ("is_packed", "host"), [(True, HostParts(2)), (True, HostParts(6, True)), (False, HostParts(3, True))]
)
def test_answers_are_those_of_a_model_that_attends_on_the_gpu(
    packed_nano: Path, is_packed: bool, host: HostParts
) -> None:
    """Text, images, a turn that was taken back, over several steps of the cache: to the bit."""
    directory = packed_nano if is_packed else NANO_DIRECTORY
    assert torch.equal(talk_of_images(on_gpu(directory, host), 70, 2), expected_talk(directory))


@pytest.mark.parametrize("num_layers", [0, 2, 6])
def test_weights_of_what_the_processor_computes_are_in_ram_and_no_others(num_layers: int) -> None:
    config = read_config(NANO_DIRECTORY)
    host = HostParts(num_layers, has_head=num_layers > 0)
    with open_checkpoint(NANO_DIRECTORY, config) as checkpoint:
        model = build_without_experts(checkpoint, config, torch.bfloat16, META, host)
        on_cpu = build_without_experts(checkpoint, config, torch.bfloat16, torch.device("cpu"))
    in_ram = {name for name, tensor in model.state_dict().items() if tensor.is_cpu}
    attending = {
        f"layers.{layer_id}.{name}"
        for layer_id in range(num_layers)
        for name in ("input_layernorm.weight", *(f"self_attn.{one}_proj.weight" for one in "qkvo"))
    }
    assert config.text.tie_word_embeddings
    assert in_ram == attending | ({"embed_tokens.weight"} if host.has_head else set())
    for name in in_ram:
        assert torch.equal(model.state_dict()[name], on_cpu.state_dict()[name])


def test_packed_layers_compute_in_float32_on_the_processor(packed_nano: Path) -> None:
    config = read_config(packed_nano)
    with open_checkpoint(packed_nano, config) as checkpoint:
        model = build_without_experts(
            checkpoint, config, torch.bfloat16, torch.device("cpu"), HostParts(1, has_head=True)
        )
    norms = [model.get_submodule(f"layers.{layer_id}.input_layernorm").weight for layer_id in (0, 1)]
    assert [norm.dtype for norm in norms] == [torch.float32, torch.bfloat16]
    assert model.embed_one(5).dtype == torch.bfloat16
    hidden = torch.randn(1, config.text.hidden_size).bfloat16()
    logits = model.logits(hidden)
    assert torch.equal(logits, model.logits(hidden.float()))
    assert not torch.equal(logits, logits.bfloat16().float()), "nothing is rounded"


def test_a_second_conversation_needs_its_own_ram(packed_nano: Path) -> None:
    model = on_gpu(packed_nano, HostParts(3))
    first, second = Engine(model, CONTEXT), Engine(model, CONTEXT)
    first.prefill(ids(300, 1))
    mark = second.mark()
    with pytest.raises(DoesNotFit, match="of RAM for layers that attend there"):
        second.prefill(ids(300, 2))
    assert second.mark() == mark
    del first
    second.prefill(ids(300, 2))


def test_tokens_of_several_sequences_attend_together(packed_nano: Path) -> None:
    """As each alone, to the bit."""
    model = paged_models.build(packed_nano, None)
    model.host = HostParts(3, has_head=True)
    engines = [Engine(model, CONTEXT) for _ in range(2)]
    for number, engine in enumerate(engines):
        engine.prefill(ids(20 + number, number))
    marks = [engine.mark() for engine in engines]
    tokens = [NextToken(50 + one, engine.next_position, engine._cache) for one, engine in enumerate(engines)]
    with torch.inference_mode():
        together = model.logits(model.decode_together(tokens))
    for number, (engine, mark) in enumerate(zip(engines, marks, strict=True)):
        engine.rewind(mark)
        assert torch.equal(together[number], engine.decode(50 + number))
