"""Dense matrices in w4 are made from their calibration tokens: against moments of what the finished model's
matrices meet, stopped and gone on with, and left to the clip search where they are too wide."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import ernie_local
from ernie_calibration.generated import generated_samples
from ernie_calibration.sequences import EncodedSample, SampleEncoder
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import ModelConfig, QuantizationConfig, read_config
from ernie_local.errors import Stopped
from ernie_local.model import attention
from ernie_local.packing import LowBitFormat, QuantizedMatrix, dequantize, find_format, unpack_page
from ernie_local.packing.matrix import unpack_matrix
from ernie_quant import dense
from ernie_quant.dense import DenseTensors
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import Recipe, quantize_matrix
from ernie_quant.source import FloatSource

pytestmark = pytest.mark.usefixtures("short_jobs")
W4 = find_format("w4")
MLPS = ("layers.0.mlp", "layers.1.moe.shared_experts", "layers.2.moe.shared_experts")


class Call(NamedTuple):
    """What a matrix was made of, and what was made."""

    weights: torch.Tensor
    moments: torch.Tensor
    result: QuantizedMatrix


@pytest.fixture(scope="module")
def sequences() -> list[EncodedSample]:
    encoder = SampleEncoder.of_model(NANO_DIRECTORY)
    return [encoder.encode(sample) for sample in generated_samples(6, families=("images",))]


def job_of(small_nano: Path, out: Path, sequences: Sequence[EncodedSample]) -> Job:
    tables = format_tables(read_config(small_nano), FormatChoice("w2", dense="w4"))
    return Job(small_nano, out, tables, Recipe(), sequences)


@pytest.fixture(scope="module")
def made(
    small_nano: Path, sequences: list[EncodedSample], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Call]]:
    """The checkpoint, and each call of `quantize_matrix` for a dense matrix, in their order."""
    job = job_of(small_nano, tmp_path_factory.mktemp("dense") / "model", sequences)
    calls: list[Call] = []

    def quantize(weights: torch.Tensor, low_bit: LowBitFormat, recipe: Recipe, *moments: Any) -> Any:
        calls.append(Call(weights, moments[0], quantize_matrix(weights, low_bit, recipe, *moments)))
        return calls[-1].result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "quantize_matrix", quantize)
        quantize_checkpoint(job)
    return job.out, calls


def textbook_moments(tokens: list[torch.Tensor]) -> torch.Tensor:
    """The mean of x x^T over all tokens, one after the other. tokens: (tokens, columns) in parts."""
    total = torch.zeros(tokens[0].shape[1], tokens[0].shape[1], dtype=torch.float64)
    for part in tokens:
        for token in part.double():
            total += torch.outer(token, token)
    return (total / sum(map(len, tokens))).float()


def test_each_matrix_comes_of_the_inputs_that_it_meets(
    small_nano: Path,
    made: tuple[Path, list[Call]],
    sequences: list[EncodedSample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The finished model runs, its attention by torch as in a run; hooks see what its matrices meet."""
    directory, calls = made
    monkeypatch.setattr(attention, "suits_native", lambda _: False)
    model = ernie_local.load(directory, kv_dtype="float32")
    seen: dict[str, list[torch.Tensor]] = {}
    names = [
        name
        for layer_id, mlp in enumerate(MLPS)
        for name in (f"layers.{layer_id}.self_attn.qkv_proj", f"layers.{layer_id}.self_attn.o_proj", mlp)
    ]
    for name in names:
        parts = seen.setdefault(name, [])
        module = model.network.get_submodule(name)
        module.register_forward_pre_hook(lambda _, inputs, parts=parts: parts.append(inputs[0].float()))
    for sequence in sequences:
        model.logits(sequence.token_ids, sequence.patches)
    stored = load_file(directory / "model.safetensors")
    left = iter(calls)
    with open_checkpoint(small_nano, read_config(small_nano)) as checkpoint:
        source = FloatSource(checkpoint)
        for name, tokens in seen.items():
            if name not in MLPS:
                (weights,) = source.matrix(name)
                matrix = unpack_matrix(stored[f"{name}.w4"], W4, *weights.shape)
                check(next(left), weights, tokens, dequantize(matrix))
                continue
            page = unpack_page(stored[f"{name}.w4"][0])
            mlp, gate, up = source.gated_mlp(name), dequantize(page.gate), dequantize(page.up)
            both = torch.cat((mlp.gate, mlp.up))
            check(next(left), both, tokens, torch.cat((gate, up)))
            inner = [functional.silu(part @ gate.t()) * (part @ up.t()) for part in tokens]
            check(next(left), mlp.down, inner, dequantize(page.down))
    assert next(left, None) is None


def check(call: Call, weights: torch.Tensor, tokens: list[torch.Tensor], found: torch.Tensor) -> None:
    assert torch.equal(call.weights, weights)
    assert torch.equal(dequantize(call.result), found)
    expected = textbook_moments(tokens)
    # Products of packed weights with many tokens have less than float32's precision.
    assert (call.moments - expected).norm() < 0.005 * expected.norm()


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def test_stopped_behind_each_kind_of_unit_it_goes_on_to_the_same_bytes(
    small_nano: Path, made: tuple[Path, list[Call]], sequences: list[EncodedSample], tmp_path: Path
) -> None:
    """A matrix whose line the journal lost, and of which half is written, is made again."""
    stops = {
        "dense layers.0.self_attn.qkv_proj.w4", "heads 0.3", "dense layers.1.self_attn.o_proj.w4",
        "attention 1.2", "dense layers.2.moe.shared_experts.w4",
    }  # fmt: skip
    told: list[str] = []
    job = dataclasses.replace(
        job_of(small_nano, tmp_path / "model", sequences),
        on_unit=lambda unit, _done, _all: told.append(unit),
        should_stop=lambda: told[-1] in stops,
    )
    while stops:
        with pytest.raises(Stopped, match="units"):
            quantize_checkpoint(job)
        stops.remove(told[-1])
    assert told[-1] == "dense layers.2.moe.shared_experts.w4"
    journal = job.partial / "work" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    path = job.partial / "model.safetensors"
    content = bytearray(path.read_bytes())
    page = load_file(path)["layers.2.moe.shared_experts.w4"].numpy().tobytes()
    start = content.index(page) + len(page) // 2
    content[start : start + 4096] = bytes(4096)
    path.write_bytes(content)
    quantize_checkpoint(dataclasses.replace(job, resume="required"))
    assert len({unit for unit in told if unit.startswith("dense")}) == 9
    assert hashes(job.out) == hashes(made[0])


def test_what_is_too_wide_is_searched_for_without_data(
    small_nano: Path,
    made: tuple[Path, list[Call]],
    sequences: list[EncodedSample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here the down projection of the dense layer, as in the original."""
    monkeypatch.setattr(dense, "MOST_COLUMNS", 192)
    job = job_of(small_nano, tmp_path / "model", sequences[:1])
    quantize_checkpoint(job)
    page, calibrated = (
        unpack_page(load_file(directory / "model.safetensors")["layers.0.mlp.w4"][0])
        for directory in (job.out, made[0])
    )
    with open_checkpoint(small_nano, read_config(small_nano)) as checkpoint:
        weights = FloatSource(checkpoint).gated_mlp("layers.0.mlp")
    clipped, of_gate = (quantize_matrix(one, W4, Recipe("clip")) for one in (weights.down, weights.gate))
    assert torch.equal(page.down.codes, clipped.codes)
    assert not torch.equal(calibrated.down.codes, clipped.codes)
    assert not torch.equal(page.gate.codes, of_gate.codes)


def test_only_what_gains_is_calibrated(small_nano: Path) -> None:
    config: ModelConfig = read_config(small_nano)

    def names(layer_id: int, choice: FormatChoice) -> list[str]:
        return DenseTensors.of(format_tables(config, choice), layer_id).names()

    assert names(0, FormatChoice("w2", dense="w8")) == names(1, FormatChoice("w2", dense=None)) == []
    attention = ["layers.1.self_attn.qkv_proj.w4", "layers.1.self_attn.o_proj.w4"]
    assert names(1, FormatChoice("w2", dense="w4")) == [*attention, "layers.1.moe.shared_experts.w4"]
    mixed = QuantizationConfig({}, {"layers.0.self_attn.o_proj": "w4"}, {"layers.0.mlp": "w8"})
    assert DenseTensors.of(mixed, 0).names() == ["layers.0.self_attn.o_proj.w4"]
