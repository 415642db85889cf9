"""Calibrated checkpoints of nano: better than rounding, resumed to the same bytes, picky about bad work."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ernie_local
from ernie_calibration.images import draw_image
from ernie_calibration.sequences import EncodedSample
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.header import read_safetensors_header
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.errors import DoesNotFit, ModelUnusable, Stopped, UsageError
from ernie_local.loading import LoadedModel
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import Recipe

pytestmark = pytest.mark.usefixtures("short_jobs")

CONFIG = read_config(NANO_DIRECTORY)
# One dense layer and one bank's worth of experts are enough to see every kind of unit.
TABLES = format_tables(CONFIG, FormatChoice(experts="w2"))


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    return ernie_local.load("nano")


def draw(nano: LoadedModel, seed: int) -> EncodedSample:
    """An image with everything that is printed on it."""
    image = draw_image("receipt", seed, width=224, height=280)
    patches = nano.patches([image.image])
    media = CONFIG.media
    ids = [1, media.image_start, *[media.image] * patches[0].num_tokens, media.image_end]
    token_ids = (*ids, *nano.tokenizer.encode(image.transcript))
    return EncodedSample(str(seed), token_ids, tuple(patches), answers=())


@pytest.fixture(scope="module")
def sequences(nano: LoadedModel) -> list[EncodedSample]:
    return [draw(nano, seed) for seed in range(7_000_000, 7_000_024)]


@pytest.fixture(scope="module")
def few(nano: LoadedModel) -> list[EncodedSample]:
    return [draw(nano, seed) for seed in (7_000_000, 7_000_001)]


def hashes(directory: Path) -> dict[str, str]:
    """Of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def whole(sequences: list[EncodedSample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calibrated") / "model"
    quantize_checkpoint(Job(NANO_DIRECTORY, out, TABLES, Recipe(), sequences))
    return out


def divergence(nano: LoadedModel, directory: Path, held_out: list[EncodedSample]) -> float:
    """Mean KL to nano behind the image, in nats."""
    other, total = ernie_local.load(directory), []
    for tokens in held_out:
        exact, rounded = (
            model.logits(tokens.token_ids, tokens.patches)[-30:].double().log_softmax(-1)
            for model in (nano, other)
        )
        total.append((exact.exp() * (exact - rounded)).sum(-1).mean())
    return float(torch.stack(total).mean())


@pytest.mark.slow
def test_calibration_beats_clipping_beats_rounding(
    nano: LoadedModel, sequences: list[EncodedSample], whole: Path, tmp_path: Path
) -> None:
    held_out = [draw(nano, seed) for seed in range(7_100_000, 7_100_012)]
    for method in ("rtn", "clip"):
        quantize_checkpoint(Job(NANO_DIRECTORY, tmp_path / method, TABLES, Recipe(method)))
    calibrated = divergence(nano, whole, held_out)
    assert calibrated < 0.6 * divergence(nano, tmp_path / "clip", held_out)
    assert calibrated < 0.6 * divergence(nano, tmp_path / "rtn", held_out)


@pytest.mark.slow
def test_routing_drifts_more_with_fewer_bits(
    sequences: list[EncodedSample], whole: Path, tmp_path: Path
) -> None:
    """By layer, beside the source's own choices: nearly all stay in four bits."""
    tables = format_tables(CONFIG, FormatChoice("w4"))
    job = Job(NANO_DIRECTORY, tmp_path / "four", tables, Recipe(), sequences)
    quantize_checkpoint(job)
    two, four = (
        json.loads((made / "quant_report.json").read_text())["routing_agreement"] for made in (whole, job.out)
    )
    assert list(two) == list(four) == ["1", "2", "3", "4", "5"]
    # The first routers see the same states, behind attention and a dense layer in eight bits.
    assert min(two["1"], four["1"]) > 0.97
    assert all(0.6 < two[layer] < four[layer] < 1 for layer in ("3", "4", "5"))


@pytest.mark.slow
def test_stopped_everywhere_it_goes_on_to_the_same_bytes(
    sequences: list[EncodedSample], whole: Path, tmp_path: Path
) -> None:
    """One run that is stopped behind every kind of unit; no unit is made twice.

    In the end as after kill -9: the journal's last line was cut off, the page after it half written.
    """
    last = "expert 4.text.7"
    left = {
        "layers.0.mlp.w8", "sequence 9", "attention 1.3", "expert 1.text.3", "outputs 2.1", "layer 2",
        "exact 3", last,
    }  # fmt: skip
    job = Job(NANO_DIRECTORY, tmp_path / "model", TABLES, Recipe(), sequences)
    made: set[str] = set()
    while left:
        told: list[str] = []
        with pytest.raises(Stopped, match="units"):
            quantize_checkpoint(_noted(job, told, left))
        assert not job.out.exists()
        assert set(told) & made <= {""}
        made |= set(told)
        left.remove(told[-1])
    assert told[-1] == last
    journal = job.partial / "work" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    again: list[str] = []
    quantize_checkpoint(dataclasses.replace(_noted(job, again, left), resume="required"))
    assert set(again) & made == {"", last}
    assert hashes(job.out) == hashes(whole)
    assert not job.partial.exists()


def _noted(job: Job, told: list[str], stops: set[str]) -> Job:
    """The job; its units are told, and it stops behind these."""
    return dataclasses.replace(
        job, on_unit=lambda unit, _done, _all: told.append(unit), should_stop=lambda: told[-1] in stops
    )


@pytest.mark.slow
def test_every_unit_is_told_once(sequences: list[EncodedSample], tmp_path: Path) -> None:
    told: list[tuple[str, float, float]] = []
    tables = format_tables(CONFIG, FormatChoice(experts="w2s", vision=None))
    reports = quantize_checkpoint(
        Job(
            NANO_DIRECTORY,
            tmp_path / "model",
            tables,
            Recipe(sweeps=0),
            sequences,
            on_unit=lambda *unit: told.append(unit),
        )
    )
    assert told[0][0] == ""
    assert 0 <= told[0][1] < 1
    names = [name for name, _, _ in told[1:]]
    assert len(set(names)) == len(names)
    assert {f"sequence {len(sequences) - 1}", "layers.0.mlp.w8", "expert 1.text.0", "layer 3"} <= set(names)
    # After the last unit there is work that is none.
    assert [name for name, _, _ in told[-2:]] == ["checking the new checkpoint", "writing the report"]
    done = [work for _, work, _ in told[:-2]]
    assert done == sorted(done)
    assert len(set(done)) == len(done)
    assert all(seconds < of_all for _, seconds, of_all in told)
    assert told[-1][2] - told[-1][1] < told[-2][2] - told[-2][1]
    assert len(reports) == sum(map(len, tables.experts.values()))
    assert all(0 < report.down_error < 0.3 for report in reports.values())


def change_settings(job: Job) -> Job:
    return dataclasses.replace(job, recipe=Recipe(sweeps=1))


def change_calibration(job: Job) -> Job:
    return dataclasses.replace(job, sequences=job.sequences[:-1])


@pytest.mark.parametrize(
    ("change", "differing"), [(change_settings, "settings"), (change_calibration, "calibration")]
)
def test_other_work_is_not_gone_on_with(
    change: Callable[[Job], Job], differing: str, few: list[EncodedSample], tmp_path: Path
) -> None:
    job = Job(NANO_DIRECTORY, tmp_path / "model", TABLES, Recipe(), few, should_stop=lambda: True)
    with pytest.raises(Stopped):
        quantize_checkpoint(job)
    with pytest.raises(UsageError, match=f"other work: {differing} differ"):
        quantize_checkpoint(change(job))
    with pytest.raises(Stopped, match="stopped after 1 of"):
        quantize_checkpoint(dataclasses.replace(change(job), resume="never"))


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no work to resume"):
        quantize_checkpoint(Job(NANO_DIRECTORY, tmp_path / "model", TABLES, Recipe("rtn"), resume="required"))


def test_what_is_not_ours_in_the_place_of_the_work_is_kept(tmp_path: Path) -> None:
    partial = tmp_path / "model.partial"
    partial.mkdir()
    (partial / "note").write_text("mine")
    with pytest.raises(UsageError, match=r"model\.partial is there and holds 1 entries"):
        quantize_checkpoint(Job(NANO_DIRECTORY, tmp_path / "model", TABLES, Recipe("rtn")))
    assert [path.name for path in partial.iterdir()] == ["note"]


def test_calibration_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 calibration sequences"):
        quantize_checkpoint(Job(NANO_DIRECTORY, tmp_path / "model", TABLES, Recipe()))


def test_a_full_disk_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    job = Job(NANO_DIRECTORY, tmp_path / "model", TABLES, Recipe("rtn"))
    with monkeypatch.context() as context:
        context.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(DoesNotFit, match=r"[0-9]+ bytes for the weights .* [0-9]+ are free"):
            quantize_checkpoint(job)
    quantize_checkpoint(job)  # with room again it goes on
    assert job.out.is_dir()


def spoil_expert(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if ".experts." in name and "down_proj" in name)
    tensors[name].view(-1)[5] = torch.nan


def drop_expert(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(name for name in tensors if ".experts." in name and "up_proj" in name)]


@pytest.mark.parametrize(("damage", "message"), [(spoil_expert, "holds nan"), (drop_expert, "up_proj")])
def test_a_damaged_source_is_refused_and_nothing_appears(
    damage: Callable[[dict[str, torch.Tensor]], None], message: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(NANO_DIRECTORY, source)
    path = source / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(ModelUnusable, match=message):
        quantize_checkpoint(Job(source, tmp_path / "model", TABLES, Recipe("rtn")))
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_bank_that_no_token_reaches_is_quantized_all_the_same(nano: LoadedModel, tmp_path: Path) -> None:
    """Text alone: every vision expert has 0 effective tokens, and says so."""
    ids = (1, *nano.tokenizer.encode("What is 7 plus 5?"))
    text = EncodedSample("text", ids, patches=(), answers=())
    reports = quantize_checkpoint(Job(NANO_DIRECTORY, tmp_path / "model", TABLES, Recipe(), [text]))
    assert {reports[key].effective_tokens for key in reports if key[1] == "vision"} == {0.0}
    assert sum(reports[key].tokens for key in reports if key[1] == "text") > 0
    assert bool(ernie_local.load(tmp_path / "model").logits([1, 20, 30]).isfinite().all())


def test_a_page_that_changes_behind_the_quantizer_is_found_before_anything_is_computed_from_it(
    few: list[EncodedSample], tmp_path: Path
) -> None:
    job = Job(NANO_DIRECTORY, tmp_path / "model", TABLES, Recipe(), few)

    def damage(unit: str, _done: float, _all: float) -> None:
        if unit == "expert 1.text.3":
            path = job.partial / "model.safetensors"
            place = read_safetensors_header(path)["experts.1.text.w2"]
            with path.open("r+b") as file:
                file.seek(place.offset + 3 * place.shape[1] + 5000)
                [byte] = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))

    with pytest.raises(ModelUnusable, match=r"\.partial: page 3 of experts\.1\.text\.w2 has the checksum"):
        quantize_checkpoint(dataclasses.replace(job, on_unit=damage))
