"""Damaged weights of a source are found before anything is computed, and whole ones are looked at once."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ernie_calibration.generated import generated_samples
from ernie_calibration.sequences import EncodedSample, SampleEncoder
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.reader import Checkpoint, open_checkpoint
from ernie_local.config import read_config
from ernie_local.errors import ModelUnusable, Stopped
from ernie_local.packing.formats import LARGEST_WEIGHT
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.probe import measurements_in
from ernie_quant.recipe import Recipe
from ernie_quant.source_check import check_costs, weight_checks

CONFIG = read_config(NANO_DIRECTORY)
TABLES = format_tables(CONFIG, FormatChoice("w2"))


@pytest.fixture(scope="module")
def samples() -> list[EncodedSample]:
    encoder = SampleEncoder.of_model(NANO_DIRECTORY)
    return [encoder.encode(sample) for sample in generated_samples(1, families=("images",))]


def spoiled(folder: Path, value: float) -> Path:
    """nano with one such weight in its last expert."""
    source = Path(shutil.copytree(NANO_DIRECTORY, folder / "source"))
    for path in sorted(source.glob("*.safetensors")):
        tensors = load_file(path)
        for name in tensors:
            if ".layers.5." in name and ".experts.31.down_proj" in name:
                tensors[name].view(-1)[-1] = value
                save_file(tensors, path)
                return source
    raise AssertionError("no such expert")


@pytest.mark.parametrize("value", [torch.nan, -torch.inf, 2 * LARGEST_WEIGHT])
def test_a_damaged_weight_of_the_last_expert_is_found_before_any_is_quantized(
    value: float, samples: list[EncodedSample], tmp_path: Path
) -> None:
    told: list[str] = []
    job = Job(spoiled(tmp_path, value), tmp_path / "model", TABLES, Recipe(), samples)
    with pytest.raises(ModelUnusable, match=r"layers\.5\..*experts\.31\.down_proj.* holds"):
        quantize_checkpoint(dataclasses.replace(job, on_unit=lambda unit, *_: told.append(unit)))
    assert all(unit.startswith("weights of ") for unit in told if unit)
    told.clear()
    with pytest.raises(ModelUnusable, match=r"experts\.31\.down_proj.* holds"):
        measurements_in(tmp_path / "statistics.json", job.source, samples, lambda unit, *_: told.append(unit))
    assert all(unit.startswith("weights of ") for unit in told)


def test_every_weight_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint(NANO_DIRECTORY, CONFIG) as checkpoint:
        read: list[int] = []
        checkpoint.on_read = read.append
        names: list[str] = []
        real = Checkpoint.check

        def check(self: Checkpoint, name: str) -> None:
            names.append(name)
            real(self, name)

        monkeypatch.setattr(Checkpoint, "check", check)
        for read_all in weight_checks(checkpoint).values():
            read_all()
        assert sorted(names) == sorted(checkpoint.names())
        assert sum(read) == checkpoint.total_bytes
        assert list(weight_checks(checkpoint)) == list(check_costs(checkpoint))


def test_a_resumed_run_does_not_look_again(samples: list[EncodedSample], tmp_path: Path) -> None:
    first: list[str] = []
    job = Job(NANO_DIRECTORY, tmp_path / "model", TABLES, Recipe(), samples)
    with pytest.raises(Stopped):
        quantize_checkpoint(
            dataclasses.replace(
                job,
                on_unit=lambda unit, *_: first.append(unit),
                should_stop=lambda: first[-1] == "weights of layer 3",
            )
        )
    again: list[str] = []
    with pytest.raises(Stopped):
        quantize_checkpoint(
            dataclasses.replace(
                job,
                on_unit=lambda unit, *_: again.append(unit),
                should_stop=lambda: not again[-1].startswith("weights of "),
            )
        )
    with open_checkpoint(NANO_DIRECTORY, CONFIG) as checkpoint:
        units = list(check_costs(checkpoint))
    assert [unit for unit in first + again if unit.startswith("weights of ")] == units
