"""Paged experts give what experts in memory give, to the bit, however little memory there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import QuantizationConfig, read_config
from ernie_local.engine import Engine
from ernie_local.errors import DoesNotFit
from ernie_local.experts.device import PageMemory
from ernie_local.experts.plan import PagingPlan
from ernie_local.media.patches import Patches
from ernie_local.model.ernie import ErnieModel
from tests.draws import rest_slow
from tests.plain_export import export_plainly
from tests.runtime import paged_models
from tests.runtime.paged_models import (
    answer_logits,
    attended_bytes,
    build,
    ids,
    image_ids,
    paged_experts,
    plan_of,
    room,
)

CONFIG = read_config(NANO_DIRECTORY)
Turn = tuple[list[int], list[Patches], list[int]]


def mixed_tables() -> QuantizationConfig:
    packed = format_tables(CONFIG, FormatChoice())
    formats = tuple(
        ("w4", "w2-w3", "w2s", "w2")[expert % 4] for expert in range(CONFIG.text.banks[0].num_experts)
    )
    return dataclasses.replace(packed, experts=dict.fromkeys(packed.experts, formats))


@pytest.fixture(scope="module", params=["packed", "mixed", "plain"])
def directory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, packed_nano: Path
) -> Path:
    if request.param != "mixed":
        return packed_nano if request.param == "packed" else NANO_DIRECTORY
    out = tmp_path_factory.mktemp(request.param)
    export_plainly(NANO_DIRECTORY, out, mixed_tables())
    return out


@pytest.fixture(scope="module")
def resident(directory: Path) -> ErnieModel:
    return build(directory, None)


def conversation(model: ErnieModel) -> list[Turn]:
    """Text; an image that arrives late; two images at once; text again."""
    tall, wide, small = (
        paged_models.image(model, *size, seed=i) for i, size in enumerate([(9, 4), (3, 12), (2, 2)])
    )
    return [
        (ids(23, 1), [], ids(4, 2)),
        ([*ids(4, 3), *image_ids(model, tall), *ids(9, 4)], [tall], ids(3, 5)),
        (
            [*image_ids(model, wide), *ids(2, 6), *image_ids(model, small), *ids(3, 7)],
            [wide, small],
            ids(2, 8),
        ),
        (ids(1, 9), [], ids(4, 10)),
    ]


@cache
def resident_logits(directory: Path) -> dict[int, torch.Tensor]:
    """Of `conversation`, by the tokens of a chunk."""
    resident = build(directory, None)
    turns = conversation(resident)
    return {chunk_tokens: answer_logits(resident, turns, chunk_tokens) for chunk_tokens in (25, 2048)}


def check_same(model: ErnieModel, expected: torch.Tensor, actual: torch.Tensor) -> None:
    if model.config.quantization is not None:
        assert torch.equal(actual, expected)
    else:  # plain products may be rounded otherwise where tokens are grouped otherwise
        assert (actual - expected).abs().max() < 1e-5 * (expected.max() - expected.min())


# Of experts, besides what conversations take.
MEMORY: dict[str, Callable[[PagingPlan], int]] = {
    "least": lambda plan: plan.least_bytes,
    "half": lambda plan: plan.most_bytes // 2,
    "twice the least": lambda plan: 2 * plan.least_bytes,
    "most": lambda plan: plan.most_bytes,
}


@pytest.mark.parametrize("memory", rest_slow(MEMORY, 2))
def test_a_conversation_is_that_of_the_resident_model(
    directory: Path, resident: ErnieModel, memory: str
) -> None:
    """With chunks of 25 tokens, a border lies inside of each large image."""
    turns = conversation(resident)
    expected = resident_logits(directory)
    plan = plan_of(directory)
    num_bytes = MEMORY[memory](plan) + room(resident)
    model = build(directory, num_bytes)
    for chunk_tokens, logits in expected.items():
        check_same(resident, logits, answer_logits(model, turns, chunk_tokens))
    assert paged_experts(model).top.cache.slots.num_frames * plan.frame_bytes <= num_bytes


@settings(max_examples=12, deadline=None)
@given(data=st.data())
@pytest.mark.slow
def test_any_prompt_in_any_memory(data: st.DataObject, directory: Path, resident: ErnieModel) -> None:
    plan = plan_of(directory)
    share = data.draw(st.floats(0, 1), "share of the memory above the floor")
    chunk_tokens = data.draw(st.sampled_from([1, 7, 64, 2048]), "chunk")
    turns: list[Turn] = []
    for number in range(data.draw(st.integers(1, 3), "turns")):
        seed = data.draw(st.integers(0, 1000), "seed")
        prompt, images = ids(data.draw(st.integers(1, 60), "tokens"), seed), []
        if data.draw(st.booleans(), "with an image"):
            images = [paged_models.image(resident, 1 + seed % 5, 1 + seed % 7, seed)]
            prompt = prompt + image_ids(resident, images[0]) + ids(1 + number, seed + 1)
        turns.append((prompt, images, ids(seed % 6, seed + 2)))
    memory = plan.least_bytes + int(share * (plan.most_bytes - plan.least_bytes)) + room(resident)
    expected = answer_logits(resident, turns, chunk_tokens)
    check_same(resident, expected, answer_logits(build(directory, memory), turns, chunk_tokens))


def test_hits_and_misses_are_counted(directory: Path, resident: ErnieModel) -> None:
    beside = Engine(resident, 200).kv_cache_bytes + attended_bytes(resident, 40)
    model = build(directory, plan_of(directory).least_bytes + beside)
    experts = paged_experts(model)
    top_k, num_layers = CONFIG.text.experts_per_token, sum(CONFIG.text.moe_layers)
    engine = Engine(model, 200)
    engine.prefill(ids(40, 1))
    before = experts.stats.copy()
    for token in ids(10, 2):
        engine.decode(token)
    spent = experts.stats.since(before)
    text, vision = spent.banks["text"], spent.banks["vision"]
    assert text.decode_hits + text.decode_misses + vision.decode_hits + vision.decode_misses == (
        10 * top_k * num_layers
    )
    assert spent.decoded_tokens == 10
    assert spent.prompt_tokens == 0
    assert text.decode_misses > 0
    assert spent.decode_bytes_read == text.bytes_read + vision.bytes_read > 0


def test_a_conversation_takes_memory_from_experts_and_gives_it_back(directory: Path) -> None:
    plan = plan_of(directory)
    model = build(directory, plan.most_bytes)
    experts = paged_experts(model)
    everything = experts.top.cache.slots.num_frames
    engine = Engine(model, 512)
    engine.prefill(ids(30, 1))
    left = experts.top.cache.slots.num_frames
    beside = engine.kv_cache_bytes + attended_bytes(model, 30)
    assert left == min(everything, (plan.most_bytes - beside) // plan.frame_bytes)
    assert left < everything
    del engine
    Engine(model, 16).prefill(ids(5, 3))
    assert experts.top.cache.slots.num_frames > left


def test_a_image_is_encoded_in_memory_of_experts(directory: Path, resident: ErnieModel) -> None:
    plan = plan_of(directory)
    model = build(directory, plan.most_bytes + (3 << 20))
    experts = paged_experts(model)
    patches = paged_models.image(model, 8, 8)
    during: list[int] = []
    encode = model.encode_images

    def watched(images: list[Patches], *more: Any) -> list[torch.Tensor]:
        during.append(experts.top.cache.slots.num_frames)
        return encode(images, *more)

    model.encode_images = watched  # type: ignore[method-assign, assignment]
    prompt = [*image_ids(model, patches), *ids(5, 1)]
    logits = Engine(model, 200).prefill(prompt, [patches])
    assert during[0] < experts.top.cache.slots.num_frames
    check_same(resident, Engine(resident, 200).prefill(prompt, [patches]), logits)


def test_what_has_no_room_is_refused_and_nothing_is_lost(directory: Path, resident: ErnieModel) -> None:
    plan = plan_of(directory)
    beside = Engine(resident, 64).kv_cache_bytes + attended_bytes(resident, 20)
    model = build(directory, plan.least_bytes + beside)
    engine, other = Engine(model, 64), Engine(resident, 64)
    prompt = ids(20, 1)
    check_same(resident, other.prefill(prompt), engine.prefill(prompt))
    large = paged_models.image(model, 6, 6)
    with pytest.raises(DoesNotFit, match="besides experts"):
        engine.prefill(image_ids(model, large), [large])
    with pytest.raises(DoesNotFit, match="besides experts"):
        Engine(model, 512).prefill(ids(5, 2))
    assert engine.length == 20
    check_same(resident, other.decode(50), engine.decode(50))


def test_handed_back_memory_is_not_the_process_any_more(directory: Path) -> None:
    experts = paged_experts(build(directory, plan_of(directory).most_bytes))
    memory = experts.top.memory
    assert isinstance(memory, PageMemory)
    memory.bytes.fill_(7)
    memory.discard(8192, 4096)
    assert memory.bytes[8191] == 7
    assert memory.bytes[8192:12288].sum() == 0
    assert memory.bytes[12288] == 7
