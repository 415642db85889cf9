"""What bits are worth: losses against a plain computation, copies against a model that was really rounded."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch.nn import functional

import ernie_local
from ernie_calibration.generated import generated_samples
from ernie_calibration.sequences import EncodedSample, SampleEncoder
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.checkpoint.packed import page_layout
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import QuantizationConfig, read_config
from ernie_local.errors import DoesNotFit, ModelUnusable, UsageError
from ernie_local.experts.resident import ResidentExperts
from ernie_local.loading import LoadedModel
from ernie_local.media.tokens import MediaPrompt
from ernie_local.model.decoder import DecoderLayer
from ernie_local.model.moe import served_tokens
from ernie_local.packing import dequantize, find_format
from ernie_quant.expert import ExpertWeights
from ernie_quant.grid import round_to_grid, search_grid
from ernie_quant.job import Job
from ernie_quant.losses import option_losses, rounded_expert, trellis_ratios
from ernie_quant.measurements import Measurements
from ernie_quant.mixed_tables import FLOOR, MixedTables, expert_items, layer_factors, quantized_bytes
from ernie_quant.pipeline import checkpoint_bytes, quantize_checkpoint
from ernie_quant.probe import EXPERT_FORMATS, measurements_in, probe_sequences
from ernie_quant.recipe import Recipe, quantize_matrix
from ernie_quant.refine import output_error
from ernie_quant.source import FloatSource

CONFIG = read_config(NANO_DIRECTORY)


@pytest.fixture(scope="module")
def samples() -> list[EncodedSample]:
    encoder = SampleEncoder.of_model(NANO_DIRECTORY)
    return [encoder.encode(sample) for sample in generated_samples(4, families=("images",))]


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `measured` is written."""
    return tmp_path_factory.mktemp("probe") / "statistics.json"


@pytest.fixture(scope="module")
def measured(samples: list[EncodedSample], statistics: Path) -> Measurements:
    return measurements_in(statistics, NANO_DIRECTORY, samples)


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
    lost = option_losses(weights, importance, tokens, token_weights, ("w2", "w4"), {})
    exact = weights.outputs(tokens)
    power = float(((exact * token_weights[:, None]) ** 2).sum())
    low_bit = find_format("w2")
    gate, up = (
        dequantize(round_to_grid(matrix, search_grid(matrix, low_bit, importance)))
        for matrix in (weights.gate, weights.up)
    )
    changed = (functional.silu(tokens @ gate.t()) * (tokens @ up.t())) @ weights.down.t()
    change = float((((changed - exact) * token_weights[:, None]) ** 2).sum())
    assert lost["gate_up"]["w2"] == pytest.approx(change / power, rel=1e-4)
    assert lost["down"]["w4"] < lost["down"]["w2"]


def test_losses_of_w2t_are_told_from_w2() -> None:
    """Of an expert, by all of its rows calibrated in both formats, on tokens that calibration did not see."""
    generator = torch.Generator().manual_seed(3)
    weights = ExpertWeights(
        *(torch.randn(shape, generator=generator) * 0.1 for shape in ((192, 192), (192, 192), (192, 192)))
    )
    tokens = torch.randn(1200, 192, generator=generator) @ torch.randn(192, 192, generator=generator)
    ratios = trellis_ratios(weights, tokens)
    gate_up, inner = torch.cat((weights.gate, weights.up)), weights.inner(tokens)
    for part, matrix, inputs in (("gate_up", gate_up, tokens), ("down", weights.down, inner)):
        moments, held_out = (half.t() @ half / len(half) for half in (inputs[::2], inputs[1::2]))
        found, compared = (
            output_error(matrix, held_out, quantize_matrix(matrix, find_format(name), Recipe(), moments))
            for name in ("w2t", "w2")
        )
        assert ratios[part] == pytest.approx(found / compared, rel=0.05)
        assert ratios[part] < 0.95
    lost = option_losses(weights, tokens.square().mean(0), tokens, torch.ones(1200), ("w2t", "w2"), ratios)
    for part in ("gate_up", "down"):
        assert lost[part]["w2t"] == pytest.approx(ratios[part] * lost[part]["w2"])


def round_experts(model: LoadedModel, samples: list[EncodedSample], layer_id: int) -> None:
    """Round them to w2 as the probe does, by the mean squares of what reaches them of these samples."""
    parts: list[torch.Tensor] = []
    layer = model.network.layers[layer_id]
    assert isinstance(layer, DecoderLayer)
    hook = layer.post_attention_layernorm.register_forward_hook(
        lambda _module, _inputs, output: parts.append(output)
    )
    choices = torch.cat([model.router_choices(one.token_ids, one.patches)[layer_id] for one in samples])
    hook.remove()
    normed = torch.cat(parts)
    is_vision = torch.cat([MediaPrompt.of(one.token_ids, one.patches, CONFIG).is_vision for one in samples])
    resident = model.network.experts
    assert isinstance(resident, ResidentExperts)
    with open_checkpoint(NANO_DIRECTORY, CONFIG) as checkpoint:
        source = FloatSource(checkpoint)
        for bank in CONFIG.text.banks:
            is_served = served_tokens(bank, is_vision)
            importance = normed[is_served].square().mean(0).clamp(min=1e-12)
            for expert_id in choices[is_served].unique().tolist():
                tokens = normed[is_served & (choices == expert_id).any(1)]
                exact = source.expert(layer_id, bank.name, expert_id)
                coarse = rounded_expert(exact, importance, tokens, ("w2", "w2"))
                for name, matrix in zip(PROJECTIONS, (coarse.gate, coarse.up, coarse.down), strict=True):
                    resident.banks[layer_id, bank.name].projection(expert_id, name).copy_(matrix)


@pytest.mark.slow
def test_measuring_again_gives_the_same(
    samples: list[EncodedSample], measured: Measurements, tmp_path: Path
) -> None:
    assert measurements_in(tmp_path / "statistics.json", NANO_DIRECTORY, samples) == measured


@pytest.mark.slow
def test_a_copy_ends_where_the_rounded_model_does(
    samples: list[EncodedSample], measured: Measurements
) -> None:
    """Layer 2 with its experts really rounded, in a whole model: the same divergence at the answers."""
    model = ernie_local.load("nano", dtype="float32")
    chosen = probe_sequences(samples, 4096)
    exact = [model.logits(one.token_ids, one.patches) for one in chosen]
    round_experts(model, chosen, layer_id=2)
    total, count = 0.0, 0
    for one, before in zip(chosen, exact, strict=True):
        after = model.logits(one.token_ids, one.patches)
        for start, end in one.answers:
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
            visits = [one.tokens for one in measured.experts if (one.layer, one.bank) == (layer, bank)]
            assert len(visits) == text.bank(bank).num_experts
            assert sum(visits) == tokens * text.experts_per_token
    for losses in measured.experts:
        for shares in losses.lost.values():
            assert set(shares) == set(EXPERT_FORMATS)
            assert shares["w4"] < shares["w3"] < shares["w2"] < 1


def test_files_of_something_else_are_refused(
    samples: list[EncodedSample], measured: Measurements, statistics: Path, tmp_path: Path
) -> None:
    path = tmp_path / "kept.json"
    shutil.copy(statistics, path)
    assert measurements_in(path, NANO_DIRECTORY, samples) == measured
    with pytest.raises(UsageError, match="something else: calibration differ"):
        measurements_in(path, NANO_DIRECTORY, samples[1:])
    unanswered = [dataclasses.replace(samples[0], answers=())]
    with pytest.raises(UsageError, match="0 of 1 samples have an answer"):
        measurements_in(tmp_path / "other.json", NANO_DIRECTORY, unanswered)


def torn(content: bytes) -> bytes:
    return content[: len(content) // 2]


def zeroed(content: bytes) -> bytes:
    return bytes(len(content))


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def damage(content: bytes) -> bytes:
        raw = json.loads(content)
        change(raw)
        return json.dumps(raw).encode()

    return damage


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "torn": torn,
    "empty": lambda _: b"",
    "zeroed": zeroed,
    "other JSON": lambda _: b"[1]",
    "no text": lambda content: b"\xff" + content,
    "without an expert": changed(lambda raw: raw["experts"].pop()),
    "experts in another order": changed(lambda raw: raw["experts"].reverse()),
    "without a format": changed(lambda raw: raw["experts"][3]["lost"]["down"].pop("w4")),
    "without a part": changed(lambda raw: raw["experts"][3]["lost"].pop("down")),
    "without a layer": changed(lambda raw: raw["dense_divergence"].pop("2")),
    "without experts of a layer": changed(lambda raw: raw["expert_divergence"].pop("2")),
    "without a bank": changed(lambda raw: raw["tokens"].pop("vision")),
    "with an unknown format": changed(lambda raw: raw.update(probe_format="w5")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_measurements_are_told_with_what_to_do(
    name: str, samples: list[EncodedSample], measured: Measurements, statistics: Path, tmp_path: Path
) -> None:
    assert measured.positions
    path = tmp_path / "out.statistics.json"
    path.write_bytes(DAMAGES[name](statistics.read_bytes()))
    with pytest.raises(ModelUnusable, match=r"statistics\.json is damaged[\s\S]*try: delete this file"):
        measurements_in(path, NANO_DIRECTORY, samples)


def test_measurements_that_go_during_the_work_are_in_the_checkpoint(
    measured: Measurements, statistics: Path, tmp_path: Path
) -> None:
    """The report, which is written after hours, needs the copy alone."""
    path = Path(shutil.copy(statistics, tmp_path / "out.statistics.json"))

    def lose(unit: str, _done: float, _all: float) -> None:
        if unit:
            path.unlink(missing_ok=True)

    tables = format_tables(CONFIG, FormatChoice("w2"))
    job = Job(NANO_DIRECTORY, tmp_path / "out", tables, Recipe("rtn"), on_unit=lose, statistics=path)
    quantize_checkpoint(job)
    told = json.loads((job.out / "quant_report.json").read_text())["sensitivity"]
    assert {int(layer): value for layer, value in told.items()} == measured.expert_divergence


@pytest.mark.parametrize("bits", [2.2, 2.5, 3.5])
def test_experts_get_the_bits_that_were_asked_for(measured: Measurements, bits: float) -> None:
    tables = MixedTables(CONFIG, measured, "w8").of_bits(bits)
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
    for budget in (8 << 20, 9 << 20):
        choice = MixedTables(CONFIG, measured, "auto")
        tables = choice.of_size(budget + 1000, lambda chosen: quantized_bytes(CONFIG, chosen) + 1000)
        assert 0.98 * budget < quantized_bytes(CONFIG, tables) <= budget
        assert set(tables.matrices.values()) <= {"w4", "w8"}


@pytest.mark.parametrize("dense", ["auto", "w8"])
def test_files_are_as_large_as_was_asked_and_the_floor_is_the_true_one(
    measured: Measurements, dense: str
) -> None:
    choice = MixedTables(CONFIG, measured, dense)
    with open_checkpoint(NANO_DIRECTORY, CONFIG) as checkpoint:

        def num_bytes(tables: QuantizationConfig) -> int:
            return checkpoint_bytes(checkpoint, CONFIG, tables)

        with pytest.raises(DoesNotFit, match="bytes at least, 1 are wanted") as caught:
            choice.of_size(1, num_bytes)
        named = re.search(r"target_size=([0-9]+) or more", caught.value.hint)
        assert named is not None
        floor = int(named[1])
        assert num_bytes(choice.of_size(floor, num_bytes)) == floor
        with pytest.raises(DoesNotFit):
            choice.of_size(floor - 1, num_bytes)
        most = num_bytes(choice.of_size(1 << 40, num_bytes))
        for step in range(1, 25):
            size = floor + (most - floor) * step // 25
            # Pages differ by 4096 bytes; what is left is less than the next step of any expert.
            assert size - 2 * 4096 < num_bytes(choice.of_size(size, num_bytes)) <= size


def test_a_gpu_holds_what_decoding_needs(measured: Measurements) -> None:
    choice = MixedTables(CONFIG, measured, "auto")

    def needed(tables: QuantizationConfig) -> int:
        matrices = {name: found for name, found in tables.matrices.items() if not name.startswith("vision.")}
        resident = dataclasses.replace(tables, matrices=matrices, experts={})
        pages = sum(
            page_layout(name, CONFIG.text.hidden_size, CONFIG.text.bank("text").expert_size).page_bytes
            for (_, bank), formats in tables.experts.items()
            for name in formats
            if bank == "text"
        )
        return quantized_bytes(CONFIG, resident) + pages

    least, most = needed(choice.for_gpu(lambda _: False)), needed(choice.for_gpu(lambda _: True))
    assert least < most / 1.5
    for size in range(least, most, (most - least) // 10):

        def holds(tables: QuantizationConfig, size: int = size) -> bool:
            return needed(tables) <= size

        found = needed(choice.for_gpu(holds))
        # It is searched in steps of 64 KiB, and pages differ by 4096 bytes.
        assert size - (1 << 16) - 2 * 4096 < found <= size


def test_seldom_seen_experts_keep_a_floor(measured: Measurements) -> None:
    """An expert without a token loses as one with a fifth of the mean power would."""
    bank = [one for one in measured.experts if (one.layer, one.bank) == (2, "text")]
    seen = bank[3]
    unseen = msgspec.structs.replace(seen, power=0.0)
    experts = [unseen if one is seen else one for one in measured.experts]
    changed = msgspec.structs.replace(measured, experts=experts)
    mean = sum(one.power for one in bank if one is not seen) / len(bank)
    loss = {option.name: option.loss for option in expert_items(CONFIG, changed)[2, "text", 3]}["w2"]
    lost = unseen.lost["gate_up"]["w2"] + unseen.lost["down"]["w2"]
    assert loss == pytest.approx(layer_factors(changed)[2] * FLOOR * mean * lost)


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
