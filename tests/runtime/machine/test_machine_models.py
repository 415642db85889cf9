"""What is measured of models: costs of decode, work counted in weights, a model's speed and its prediction.

By clocks that tests turn, or by none: no real second is judged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ernie_local
from ernie_local.checkpoint.hub import resolve_model
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.errors import DoesNotFit
from ernie_local.loading import LoadedModel
from ernie_local.machine import model_speed
from ernie_local.machine.disk import DiskSpeed
from ernie_local.machine.random_model import text_ids
from ernie_local.machine.survey import (
    SmallModelDecoder,
    TimedToken,
    measure_fixed_costs,
    write_small_packed,
)
from ernie_local.planner.model_size import read_model
from ernie_local.planner.profile import Measurement
from ernie_local.planner.rates import DecodeWork, PagingCosts, Rates, decode_seconds

RATES = Rates(1e9, 1e10, 1e12, 0.0, 0.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Of small work two threads would do most by waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Ticks:
    """A clock that goes on by one second each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model of nano's sizes."""
    directory = tmp_path_factory.mktemp("machine") / "packed"
    write_small_packed(resolve_model("nano"), directory)
    return directory


# fixed costs


def test_what_a_formula_made_is_found_again(packed: Path) -> None:
    """Tokens as the formula says with known costs, in place of measured ones: these costs come out."""
    rates = dataclasses.replace(RATES, token_seconds=0.3, layer_seconds=0.05, paging=PagingCosts(0.02, 0.4))
    work = read_model(packed).decode_work("float32")
    resident = decode_seconds(work, rates)
    beside = resident - 0.3 - 6 * 0.05

    def token(misses: int) -> TimedToken:
        seconds = decode_seconds(work, rates, 1 - misses / 20)
        return TimedToken(seconds, 0.0, misses)

    runs: list[int | None] = []

    def decode(expert_bytes: int | None) -> list[list[TimedToken]]:
        runs.append(expert_bytes)
        if expert_bytes is None:
            layers = 6 * 0.05 + beside * 6 * 0.05 / (0.3 + 6 * 0.05)
            return [[TimedToken(resident, layers, 0)] * 3] * 2
        misses = (0, 0, 1) if len(runs) == 2 else (0, 3, 5)
        return [[token(count) for count in misses]] * 2

    found = measure_fixed_costs(packed, rates, decode)
    assert found.token.median == pytest.approx(0.3, rel=1e-6)
    assert found.layer.median == pytest.approx(0.05, rel=1e-6)
    assert found.paged_layer.median == pytest.approx(0.02, rel=1e-6)
    assert found.page.median == pytest.approx(0.4, rel=1e-6)
    assert found.added_to(RATES) == dataclasses.replace(
        RATES,
        token_seconds=found.token.median,
        layer_seconds=found.layer.median,
        paging=PagingCosts(found.paged_layer.median, found.page.median),
    )
    assert runs[0] is None
    assert runs[1] is not None
    assert runs[2] is not None
    assert runs[1] > runs[2]


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_a_token_is_told_from_its_layers(packed: Path, kind: str) -> None:
    directory = packed if kind == "packed" else resolve_model("nano")
    endless = Rates(1e30, 1e30, 1e30, 9.0, 9.0, paging=PagingCosts(9.0, 9.0))
    decode = SmallModelDecoder(directory, rounds=2, tokens=3, warm_tokens=4, clock=Ticks())
    found = measure_fixed_costs(directory, endless, decode)
    # The clock is read before and behind a token, and before and behind its layers.
    assert found.token == Measurement(2.0, 2.0, 2.0, 2)
    assert found.layer.median == pytest.approx(1 / 6)
    assert (found.paged_layer.median, found.page.median) == (0.0, 0.0)


def test_pages_are_missing_where_memory_is_scarce(packed: Path) -> None:
    seen: list[list[list[TimedToken]]] = []
    real = SmallModelDecoder(packed)

    def decode(expert_bytes: int | None) -> list[list[TimedToken]]:
        seen.append(real(expert_bytes))
        return seen[-1]

    measure_fixed_costs(packed, RATES, decode)
    resident, found, scarce = [sum(one.misses for tokens in rounds for one in tokens) for rounds in seen]
    uses = 7 * 16 * 5 * 4
    assert resident == 0
    assert found < 0.1 * uses
    assert 0.2 * uses < scarce < 0.9 * uses


# decode work


def plain_bytes(directory: Path, item_bytes: int) -> int:
    """Of everything that a text token reads but routed experts, by the checkpoint's own names."""
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        names = [
            name
            for name in checkpoint.names()
            if not name.startswith(("experts.", "vision.", "resampler.")) and "vision_router" not in name
        ]
        return sum(
            int(torch.Size(checkpoint.shape(name)).numel()) * (4 if "_router" in name else item_bytes)
            for name in names
        )


def test_work_of_a_plain_model() -> None:
    model = ernie_local.load("nano", context_size=64)
    work = read_model(model.directory).decode_work("float32")
    assert not model.config.has_packed_experts
    expert = 3 * 192 * 320 * 4
    assert work == DecodeWork(
        num_layers=6,
        moe_layers=5,
        experts_per_token=4,
        always_bytes={"float32": plain_bytes(model.directory, 4)},
        expert_bytes=expert,
        expert_format="float32",
        page_bytes=expert // 2,  # bfloat16 on the disk
    )


def test_work_of_a_packed_model(packed: Path) -> None:
    model = ernie_local.load(packed, context_size=64)
    work = read_model(model.directory).decode_work("float32")
    assert model.config.has_packed_experts
    with open_checkpoint(packed, model.config) as checkpoint:
        sizes = {name: one.num_bytes for name, one in checkpoint.packed.items()}
        page_bytes = checkpoint.packed["experts.1.text.w4"].shape[1]
    assert work.always_bytes["w8"] == sum(size for name, size in sizes.items() if name.endswith(".w8"))
    assert work.always_bytes["float32"] == plain_bytes(packed, 4)
    assert (work.expert_bytes, work.expert_format, work.page_bytes) == (page_bytes, "w4", page_bytes)


def paged_model(directory: Path, monkeypatch: pytest.MonkeyPatch, expert_bytes: int = 9 << 20) -> LoadedModel:
    from ernie_local.loading import loader
    from ernie_local.planner.fit import Placement

    monkeypatch.setattr(loader, "place", lambda *_: Placement(expert_bytes, 2048))
    return ernie_local.load(directory, context_size=300)


# models


def test_a_model_is_measured_and_predicted(packed: Path) -> None:
    model = ernie_local.load(packed, context_size=300)
    found = model_speed.measure_model(model, RATES, clock=Ticks())
    assert found.prompt_tokens == 300 - 32 - 84
    # A second by that clock for each prompt, and for each token.
    assert found.first_token_seconds == Measurement(1.0, 1.0, 1.0, 3)
    assert found.prefill.median == found.prompt_tokens
    assert found.decode == Measurement(1.0, 1.0, 1.0, 7)
    assert (found.hit_rate, found.expert_memory_bytes, found.image) == (None, None, None)
    assert found.memory_share is None, "caches hold all of nano"
    work = read_model(model.directory).decode_work("float32")
    expected = decode_seconds(work, RATES, None, (300 - 42) * 2 * 6 * 2 * 48 * 2)
    assert 1 / found.predicted_decode == pytest.approx(expected)


def test_a_paged_model_is_predicted_by_what_it_found(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = paged_model(packed, monkeypatch, 5 << 20)
    found = model_speed.measure_model(model, RATES, clock=Ticks())
    assert found.hit_rate is not None
    assert 0.1 < found.hit_rate < 0.99
    assert found.expert_memory_bytes is not None
    assert 0 < found.expert_memory_bytes <= 5 << 20
    context = (300 - 42) * 2 * 6 * 2 * 48 * 2
    work = read_model(model.directory).decode_work("float32")
    assert found.disk is None, "the file is too small to measure a disk by"
    expected = decode_seconds(work, RATES, found.hit_rate, context)
    assert 1 / found.predicted_decode == pytest.approx(expected)


def test_the_disk_of_a_paged_model_is_what_it_gives_beside_decode(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paged, asked = paged_model(packed, monkeypatch, 5 << 20), []

    def measure(path: Path, page_bytes: int, seconds: float) -> DiskSpeed:
        asked.append((path.parent, page_bytes))
        rate = 1e6 * len(asked)
        return DiskSpeed(Measurement(rate, rate, rate, 4), page_bytes, is_direct=True)

    monkeypatch.setattr(model_speed, "holds_pages", lambda *_: True)
    monkeypatch.setattr(model_speed, "measure_disk", measure)
    found = model_speed.measure_model(paged, RATES, clock=Ticks())
    work = read_model(packed).decode_work("float32")
    assert asked == [(packed, work.page_bytes)] * 7
    assert found.disk == Measurement(4e6, 1e6, 7e6, 7)
    rates = dataclasses.replace(RATES, disk_bytes_per_second=4e6)
    expected = decode_seconds(work, rates, found.hit_rate, (300 - 42) * 2 * 6 * 2 * 48 * 2)
    assert 1 / found.predicted_decode == pytest.approx(expected)


def test_memory_that_others_use_too_is_reckoned_with(packed: Path) -> None:
    model = ernie_local.load(packed, context_size=300)
    found = model_speed.measure_model(model, RATES, clock=Ticks(), cache_bytes=1)
    share = found.memory_share
    assert share is not None
    assert share.rounds == 7
    slow = RATES.slowed(share.median)
    assert slow.bytes_per_second("w4") == pytest.approx(share.median * RATES.bytes_per_second("w4"))
    work = read_model(packed).decode_work("float32")
    expected = decode_seconds(work, slow, None, (300 - 42) * 2 * 6 * 2 * 48 * 2)
    assert 1 / found.predicted_decode == pytest.approx(expected)


def test_a_image_is_told_from_its_tokens() -> None:
    from PIL import Image

    model = ernie_local.load("nano", context_size=300)
    (image,) = model.patches([Image.new("RGB", (112, 56), "white")])
    found = model_speed.measure_model(model, RATES, image, clock=Ticks()).image
    assert found is not None
    assert found.tokens == image.num_tokens == 8
    # The clock is read before and behind the prompt, and before and behind the tower.
    assert found.encode_seconds == Measurement(1.0, 1.0, 1.0, 3)
    assert found.prefill.median == (8 + 2) / 2
    assert not model.network.vision._forward_pre_hooks
    assert not model.network.resampler._forward_hooks


def test_a_context_without_room_is_refused() -> None:
    model = ernie_local.load("nano", context_size=116)
    with pytest.raises(DoesNotFit, match="117 tokens are measured, the context has 116"):
        model_speed.measure_model(model, RATES)
    assert (
        model_speed.measure_model(
            ernie_local.load("nano", context_size=117), RATES, clock=Ticks()
        ).prompt_tokens
        == 1
    )


def test_ids_are_of_text_and_always_the_same() -> None:
    config = read_config(resolve_model("nano"))
    ids = text_ids(config, 2000)
    assert ids == text_ids(config, 2000) != text_ids(config, 2000, seed=1)
    media = set(dataclasses.astuple(config.media))
    assert not media & set(ids)
    assert (min(ids), max(ids)) == (3, config.text.vocab_size - 1)
