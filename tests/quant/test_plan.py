"""What a job is said to take against what it takes; the rehearsal against a disk that cannot be written."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ernie_calibration.generated import generated_samples
from ernie_calibration.sequences import SampleEncoder
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import Bank, QuantizationConfig, read_config
from ernie_local.errors import DoesNotFit
from ernie_quant.job import Job
from ernie_quant.pipeline import plan_checkpoint, quantize_checkpoint
from ernie_quant.recipe import Recipe
from ernie_quant.rehearsal import rehearse

CONFIG = read_config(NANO_DIRECTORY)
TABLES = format_tables(CONFIG, FormatChoice("w2"))


def job(tmp_path: Path, tables: QuantizationConfig = TABLES) -> Job:
    encoder = SampleEncoder.of_model(NANO_DIRECTORY)
    samples = [encoder.encode(sample) for sample in generated_samples(6, families=("images",))]
    return Job(NANO_DIRECTORY, tmp_path / "out", tables, Recipe(sweeps=0), samples)


@pytest.mark.slow
@pytest.mark.parametrize("dense", ["w8", "w4"])
def test_size_and_disk_are_as_planned_and_planning_leaves_nothing(dense: str, tmp_path: Path) -> None:
    one = job(tmp_path, format_tables(CONFIG, FormatChoice("w2", dense=dense)))
    plan = plan_checkpoint(one)
    assert list(tmp_path.iterdir()) == []
    assert plan.seconds is not None
    assert 0 < plan.seconds < 600
    most = 0

    def look(_unit: str, _done: float, _all: float) -> None:
        nonlocal most
        work = one.partial / "work"
        states = [
            path for path in work.iterdir() if path.name.startswith(("states", "exact", "heads", "routing"))
        ]
        most = max(most, sum(path.stat().st_size for path in states))

    quantize_checkpoint(dataclasses.replace(one, on_unit=look))
    assert sum(path.stat().st_size for path in one.out.glob("*.safetensors")) == plan.weight_bytes
    assert 0.6 * plan.scratch_bytes < most <= plan.scratch_bytes


def test_nothing_is_timed_without_calibration(tmp_path: Path) -> None:
    plan = plan_checkpoint(dataclasses.replace(job(tmp_path), recipe=Recipe("rtn"), sequences=()))
    assert (plan.seconds, plan.scratch_bytes) == (None, 0)


def test_too_much_memory_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match=r"MiB of memory are needed, most_memory allows 64\.0 MiB"):
        quantize_checkpoint(dataclasses.replace(job(tmp_path), most_memory=64 << 20))
    assert list(tmp_path.iterdir()) == []


def test_a_rehearsal_that_cannot_save_fails_before_the_work(tmp_path: Path) -> None:
    new_config = dataclasses.replace(CONFIG, quantization=TABLES)
    tokens: dict[Bank, float] = {"text": 8, "vision": 8}
    with pytest.raises(DoesNotFit, match=r"a page of [0-9]+ bytes cannot be written"):
        rehearse(new_config, Recipe(), tmp_path / "not there", tokens)


def test_no_room_for_hidden_states_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1000))
    with pytest.raises(DoesNotFit, match=r"bytes are needed beside the weights in .*, 1000 are free"):
        quantize_checkpoint(one)
