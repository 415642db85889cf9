"""What bits are worth: losses against a plain computation, copies against a model that was really rounded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest
import torch
from torch.nn import functional

import ernie_local
from ernie_calibration.generated import generated_samples
from ernie_calibration.sequences import EncodedSample, SampleEncoder
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.packed import page_layout
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.errors import DoesNotFit, InputUnreadable, UsageError
from ernie_local.packing import dequantize, find_format
from ernie_quant import mixed_tables
from ernie_quant.expert import ExpertWeights, RoutedExpert
from ernie_quant.grid import round_to_grid, search_grid
from ernie_quant.losses import expert_outputs, option_losses
from ernie_quant.measurements import Measurements
from ernie_quant.probe import EXPERT_FORMATS, measurements_in, probe_sequences
from ernie_quant.source import FloatSource

CONFIG = read_config(NANO_DIRECTORY)


@pytest.fixture(scope="module")
def samples() -> list[EncodedSample]:
    encoder = SampleEncoder.of_model(NANO_DIRECTORY)
    return [encoder.encode(sample) for sample in generated_samples(4, families=("images",))]


@pytest.fixture(scope="module")
def measured(samples: list[EncodedSample], tmp_path_factory: pytest.TempPathFactory) -> Measurements:
    return measurements_in(tmp_path_factory.mktemp("probe") / "statistics.json", NANO_DIRECTORY, samples)


def random_expert(seed: int) -> ExpertWeights:
    generator = torch.Generator().manual_seed(seed)
    return ExpertWeights(
        *(torch.randn(shape, generator=generator) * 0.1 for shape in ((32, 64), (32, 64), (64, 32)))
    )


def test_losses_are_the_change_of_weighted_outputs() -> None:
    weights = random_expert(0)
    tokens = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    token_weights = torch.rand(50, generator=torch.Generator().manual_seed(2))
    importance = tokens.square().mean(0)
    losses = option_losses(weights, importance, tokens, token_weights, ("w2", "w4"))
    exact = expert_outputs(weights, tokens)
    assert losses.power == pytest.approx(float(((exact * token_weights[:, None]) ** 2).sum()), rel=1e-5)
    low_bit = find_format("w2")
    gate, up = (
        dequantize(round_to_grid(matrix, search_grid(matrix, low_bit, importance)))
        for matrix in (weights.gate, weights.up)
    )
    changed = (functional.silu(tokens @ gate.t()) * (tokens @ up.t())) @ weights.down.t()
    change = float((((changed - exact) * token_weights[:, None]) ** 2).sum())
    assert losses.lost["gate_up"]["w2"] == pytest.approx(change / losses.power, rel=1e-4)
    assert losses.lost["down"]["w4"] < losses.lost["down"]["w2"]


@pytest.mark.slow
def test_a_copy_ends_where_the_rounded_model_does(
    samples: list[EncodedSample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer 2 with its experts really rounded, in a whole model: the same divergence at the answers."""
    # Columns alike, so that the model below needs no statistics of its own.
    monkeypatch.setattr(
        "ernie_quant.losses.search_grid",
        lambda matrix, low_bit, _importance=None: search_grid(matrix, low_bit),
    )
    measured = measurements_in(tmp_path / "statistics.json", NANO_DIRECTORY, samples)
    model = ernie_local.load("nano", dtype="float32")
    sequences = probe_sequences(samples, 4096)
    answers = [sequence.answers for sequence in sequences]
    exact = [
        model.logits(list(sample.token_ids), images=sample.patches) for sample in samples[: len(answers)]
    ]
    experts = model.network.experts
    with open_checkpoint(NANO_DIRECTORY, CONFIG) as checkpoint:
        source = FloatSource(checkpoint)
        for bank in ("text", "vision"):
            for expert_id in range(CONFIG.text.banks[0].num_experts):
                weights = source.expert(2, bank, expert_id)
                for name, matrix in zip(
                    ("gate_proj", "up_proj", "down_proj"),
                    (weights.gate, weights.up, weights.down),
                    strict=True,
                ):
                    rounded = dequantize(round_to_grid(matrix, search_grid(matrix, find_format("w2"))))
                    experts.banks[2, bank].projection(expert_id, name).copy_(rounded)  # type: ignore[attr-defined]
    total, count = 0.0, 0
    for sample, spans, before in zip(samples, answers, exact, strict=False):
        after = model.logits(list(sample.token_ids), images=sample.patches)
        for start, end in spans:
            rows = slice(start - 1, end - 1)
            found, target = after[rows].log_softmax(-1), before[rows].log_softmax(-1)
            total += float(functional.kl_div(found, target, reduction="sum", log_target=True))
            count += end - start
    assert measured.positions == count
    assert measured.expert_divergence[2] == pytest.approx(total / count, rel=0.01)


def test_everything_is_measured(measured: Measurements) -> None:
    text = CONFIG.text
    moe_layers = [layer for layer, has_experts in enumerate(text.moe_layers) if has_experts]
    assert set(measured.expert_divergence) == set(moe_layers)
    assert set(measured.dense_divergence) == set(range(text.num_hidden_layers))
    assert all(value > 0 for value in measured.expert_divergence.values())
    assert 0 < measured.head_divergence < 0.1
    for layer in moe_layers:
        for bank, tokens in measured.tokens.items():
            visits = sum(measured.visits[layer, bank, expert] for expert in range(text.banks[0].num_experts))
            assert visits == tokens * text.experts_per_token
    for losses in measured.experts.values():
        for shares in losses.lost.values():
            assert set(shares) == set(EXPERT_FORMATS)
            assert shares["w4"] < shares["w3"] < shares["w2"] < 1


def test_files_of_something_else_are_refused(
    samples: list[EncodedSample], measured: Measurements, tmp_path: Path
) -> None:
    path = tmp_path / "statistics.json"
    kept = measurements_in(path, NANO_DIRECTORY, samples)
    assert kept == measured
    assert measurements_in(path, NANO_DIRECTORY, samples) == measured
    with pytest.raises(UsageError, match="something else: calibration differ"):
        measurements_in(path, NANO_DIRECTORY, samples[1:])
    path.write_text("{}")
    with pytest.raises(InputUnreadable, match="cannot be read as statistics"):
        measurements_in(path, NANO_DIRECTORY, samples)
    unanswered = [dataclasses.replace(samples[0], answers=())]
    with pytest.raises(UsageError, match="0 of 1 samples have an answer"):
        measurements_in(tmp_path / "other.json", NANO_DIRECTORY, unanswered)


@pytest.mark.parametrize("bits", [2.2, 2.5, 3.5])
def test_experts_get_the_bits_that_were_asked_for(measured: Measurements, bits: float) -> None:
    tables = mixed_tables.tables_of_bits(CONFIG, measured, bits, "w8")
    nominal = weights = 0.0
    for (_, bank), formats in tables.experts.items():
        for name in formats:
            gate_up, _, down = name.partition("-")
            inner = CONFIG.text.bank(bank).expert_size
            for part, share in ((gate_up, 2), (down or gate_up, 1)):
                low_bit = find_format(part)
                metadata = (low_bit.scale_bits + low_bit.zero_bits) / low_bit.group_size
                nominal += share * inner * (low_bit.bits + metadata)
            weights += 3 * inner
    assert bits - 0.05 < nominal / weights <= bits
    assert len({name for formats in tables.experts.values() for name in formats}) > 4


def test_a_size_is_kept_and_used(measured: Measurements) -> None:
    for budget in (6 << 20, 7 << 20):
        tables = mixed_tables.tables_of_size(CONFIG, measured, budget + 1000, 1000, "auto")
        assert 0.98 * budget < mixed_tables.quantized_bytes(CONFIG, tables) <= budget
        assert set(tables.matrices.values()) <= {"w4", "w8"}


def test_a_gpu_holds_what_decoding_needs(measured: Measurements) -> None:
    small, large = (
        mixed_tables.tables_for_gpu(CONFIG, measured, size << 20, 1 << 20, "auto") for size in (5, 6)
    )
    for tables, size in ((small, 5 << 20), (large, 6 << 20)):
        matrices = {name: found for name, found in tables.matrices.items() if not name.startswith("vision.")}
        text = {key: formats for key, formats in tables.experts.items() if key[1] == "text"}
        resident = dataclasses.replace(tables, matrices=matrices, experts={})
        pages = sum(
            page_layout(name, CONFIG.text.hidden_size, CONFIG.text.bank("text").expert_size).page_bytes
            for formats in text.values()
            for name in formats
        )
        needed = mixed_tables.quantized_bytes(CONFIG, resident) + pages + (1 << 20)
        assert 0.95 * size < needed <= size
    with pytest.raises(DoesNotFit, match=r"MiB at least, 2\.0 MiB are wanted"):
        mixed_tables.tables_for_gpu(CONFIG, measured, 2 << 20, 1 << 20, "auto")


def test_seldom_seen_experts_keep_a_floor(measured: Measurements) -> None:
    """An expert without a token loses as one with a fifth of the mean power would."""
    key: RoutedExpert = (2, "text", 3)
    unseen = dataclasses.replace(measured.experts[key], power=0.0)
    items = mixed_tables.expert_items(
        CONFIG, msgspec.structs.replace(measured, experts={**measured.experts, key: unseen})
    )
    bank = [measured.experts[2, "text", expert].power for expert in range(CONFIG.text.banks[0].num_experts)]
    mean = (sum(bank) - measured.experts[key].power) / len(bank)
    factor = mixed_tables.layer_factors(
        msgspec.structs.replace(measured, experts={**measured.experts, key: unseen})
    )[2]
    loss = {option.name: option.loss for option in items["expert", 2, "text", 3]}["w2"]
    lost = unseen.lost["gate_up"]["w2"] + unseen.lost["down"]["w2"]
    assert loss == pytest.approx(factor * mixed_tables.FLOOR * mean * lost)


def test_images_leave_a_third_of_the_room_to_texts() -> None:
    def sequence(length: int, images: int, answers: int = 1) -> EncodedSample:
        patches = (object(),) * images
        return EncodedSample("s", (5,) * length, patches, ((1, 2),) * answers)  # type: ignore[arg-type]

    texts, images = [sequence(100, 0) for _ in range(9)], [sequence(150, 1) for _ in range(9)]
    mixed = [sequence(50, 0, answers=0), *texts, sequence(2000, 1), *images]
    chosen = probe_sequences(mixed, 900)
    assert chosen[0] is mixed[10]  # at least one, whatever its size
    assert len(chosen) == 1
    chosen = probe_sequences([*texts, *images], 900)
    assert [len(one.token_ids) for one in chosen] == [150] * 4 + [100] * 3
    assert [len(one.token_ids) for one in probe_sequences(images, 900)] == [150] * 6
