"""Experts with a second, small page from one look at their tokens: the first page is what it was without."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from ernie_calibration.generated import generated_samples
from ernie_calibration.sequences import SampleEncoder
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.errors import Stopped, UsageError
from ernie_local.packing import find_format, pack_page
from ernie_quant.expert import ExpertInputs, ExpertReport, ExpertWeights, quantize_expert
from ernie_quant.job import Job
from ernie_quant.pipeline import plan_checkpoint, quantize_checkpoint
from ernie_quant.plan import expert_cost
from ernie_quant.recipe import QuantizationMethod, Recipe

pytestmark = pytest.mark.usefixtures("short_jobs")

CONFIG = read_config(NANO_DIRECTORY)
W4, W2 = (find_format("w4"),) * 2, (find_format("w2"),) * 2


def tables(experts: str, small: str | None = None) -> FormatChoice:
    return FormatChoice(experts, small_experts=small)


def job(
    out: Path,
    experts: str,
    small: str | None = None,
    method: QuantizationMethod = "gptq",
    source: Path = NANO_DIRECTORY,
) -> Job:
    sequences = []
    if method == "gptq":
        encoder = SampleEncoder.of_model(NANO_DIRECTORY)
        sequences = [encoder.encode(sample) for sample in generated_samples(4, families=("images",))]
    chosen = format_tables(read_config(source), tables(experts, small))
    return Job(source, out, chosen, Recipe(method), sequences)


def test_both_pages_are_those_that_each_would_be_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    gate, up, down = (
        torch.randn(shape, generator=generator) * 0.05 for shape in ((48, 64), (48, 64), (64, 48))
    )
    tokens = [torch.randn(count, 64, generator=generator) for count in (90, 40)]
    neighbours = [torch.randn(50, 64, generator=generator)]
    weights = torch.rand(130, generator=generator)
    inputs = ExpertInputs(tokens, weights, neighbours, 50, torch.eye(64))
    expert = ExpertWeights(gate, up, down)
    (page, small), both = quantize_expert(expert, inputs, Recipe(), W4, W2)
    (alone,), of_four = quantize_expert(expert, inputs, Recipe(), W4)
    (two,), of_two = quantize_expert(expert, inputs, Recipe(), W2)
    assert torch.equal(pack_page(page), pack_page(alone))
    assert torch.equal(pack_page(small), pack_page(two))
    assert both == msgspec.structs.replace(
        of_four, small_gate_up_error=of_two.gate_up_error, small_down_error=of_two.down_error
    )
    assert of_four.gate_up_error < of_two.gate_up_error
    values, of_one = msgspec.to_builtins(both), msgspec.to_builtins(of_four)
    assert set(values) - set(of_one) == {"small_gate_up_error", "small_down_error"}
    assert msgspec.convert(json.loads(json.dumps(values)), ExpertReport) == both
    assert msgspec.convert(of_one, ExpertReport) == of_four


def test_a_second_page_costs_nearly_as_much_as_the_first() -> None:
    plain, dual = (
        dataclasses.replace(CONFIG, quantization=format_tables(CONFIG, tables("w4", small)))
        for small in (None, "w2")
    )
    one, both = (expert_cost(config, "text", 500, Recipe()) for config in (plain, dual))
    assert 1.4 * one < both < 2 * one


@pytest.mark.parametrize(
    ("experts", "small"),
    [("w2", "w2"), ("w4", "w8"), ("w4-w2", "w2"), ("nf4g64", "w2"), ("w4", "w2-w4"), (None, "w2")],
)
def test_pages_that_are_not_smaller_or_beside_none_of_ours_are_refused(
    experts: str | None, small: str
) -> None:
    with pytest.raises(UsageError, match=f"small pages in {small} beside experts in {experts}"):
        format_tables(CONFIG, FormatChoice(experts, small_experts=small))


def test_the_plan_tells_what_small_pages_take(tmp_path: Path) -> None:
    without, dual = (plan_checkpoint(job(tmp_path / "out", "w4", small, "rtn")) for small in (None, "w2"))
    assert without.small_page_bytes == 0
    assert 0 < dual.small_page_bytes <= dual.weight_bytes - without.weight_bytes
    assert dual.weight_bytes - without.weight_bytes - dual.small_page_bytes < 8192  # names in the header


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.mark.slow
def test_calibrated_pages_are_those_of_a_checkpoint_without_small_ones(tmp_path: Path) -> None:
    """Stopped on the way too: what was killed and gone on with has the same bytes."""
    quantize_checkpoint(job(tmp_path / "single", "w4"))
    whole = job(tmp_path / "dual", "w4", "w2")
    reports = quantize_checkpoint(whole)
    single, dual = weights(tmp_path / "single"), weights(whole.out)
    assert all(torch.equal(single[name], dual[name]) for name in single)
    assert len(dual.keys() - single.keys()) == 2 * 5
    small_errors = [report.small_gate_up_error for report in reports.values()]
    assert all(
        small is not None and 2 * report.gate_up_error < small < 1
        for small, report in zip(small_errors, reports.values(), strict=True)
    )
    told = json.loads((whole.out / "quant_report.json").read_text())["experts"]
    assert [expert["small_gate_up_error"] for expert in told] == small_errors
    assert {expert["small_format"] for expert in told} == {"w2"}
    seen: list[str] = []
    stopped = dataclasses.replace(
        job(tmp_path / "again", "w4", "w2"),
        on_unit=lambda unit, _done, _all: seen.append(unit),
        should_stop=lambda: seen[-1] == "expert 3.text.7",
    )
    with pytest.raises(Stopped):
        quantize_checkpoint(stopped)
    with pytest.raises(UsageError, match="other work: settings differ"):
        quantize_checkpoint(job(tmp_path / "again", "w4"))
    quantize_checkpoint(job(tmp_path / "again", "w4", "w2"))
    for path in whole.out.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rtn", "clip"])
def test_rounded_small_pages_are_those_of_a_small_checkpoint(
    method: QuantizationMethod, small_nano: Path, tmp_path: Path
) -> None:
    for name, experts, small in (("dual", "w4", "w2"), ("four", "w4", None), ("two", "w2", None)):
        quantize_checkpoint(job(tmp_path / name, experts, small, method, small_nano))
    dual, four, two = (weights(tmp_path / name) for name in ("dual", "four", "two"))
    assert all(torch.equal(four[name], dual[name]) for name in four)
    pages = [name for name in two if name.startswith("experts.")]
    assert len(pages) == 2 * 2
    assert all(torch.equal(two[name], dual[f"small_{name}"]) for name in pages)
    assert dual.keys() == four.keys() | {f"small_{name}" for name in pages}
