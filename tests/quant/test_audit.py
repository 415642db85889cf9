"""The audit of a new checkpoint: what is damaged gets no hashes, what could not be looked at is named."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import ernie_local
from ernie_local.checkpoint.files import HASHES_FILE
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.errors import ModelUnusable
from ernie_local.loading import LoadedModel
from ernie_local.verify import verify
from ernie_quant.audit import audit
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import Recipe

TABLES = format_tables(read_config(NANO_DIRECTORY), FormatChoice())
WEIGHTS = "model.safetensors"


def job(out: Path, source: Path = NANO_DIRECTORY) -> Job:
    return Job(source, out, TABLES, Recipe("rtn"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "model"
    quantize_checkpoint(job(out))
    return out


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """As it is just before the audit."""
    copy = Path(shutil.copytree(made, tmp_path / "model"))
    (copy / HASHES_FILE).unlink()
    return copy


def weight_bytes(directory: Path) -> int:
    return (directory / WEIGHTS).stat().st_size


def spoil(directory: Path, name: str, value: float) -> None:
    tensors = load_file(directory / WEIGHTS)
    tensors[name].fill_(value)
    save_file(tensors, directory / WEIGHTS)


def test_a_whole_checkpoint_answers_and_gets_the_same_hashes_again(made: Path, copied: Path) -> None:
    notes: list[str] = []
    audited = audit(copied, NANO_DIRECTORY, weight_bytes(copied), notes.append)
    assert (copied / HASHES_FILE).read_bytes() == (made / HASHES_FILE).read_bytes()
    [note] = notes
    said, right = note.split("It answers ")[1].split(", right is ")
    assert said == right
    assert audited.question in note
    assert repr(audited.answer) == repr(audited.right_answer) == said
    whole = verify(copied)
    read = (audited.num_tensors, audited.num_pages, audited.num_bytes)
    assert read == (whole.num_tensors, whole.num_pages, whole.num_bytes)
    assert audited.num_pages > 5 * 2 * 16


def test_the_answer_is_greedy_whatever_the_model_says(copied: Path) -> None:
    settings = {"do_sample": True, "temperature": 900.0, "top_k": 0}
    (copied / "generation_config.json").write_text(json.dumps(settings))
    notes: list[str] = []
    audit(copied, NANO_DIRECTORY, weight_bytes(copied), notes.append)
    said, right = notes[0].split("It answers ")[1].split(", right is ")
    assert said == right


@pytest.mark.parametrize("value", [torch.nan, 2.0**127])
def test_weights_that_cannot_be_used_are_refused(
    value: float, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ernie_local, "load", None)  # which would find them too
    spoil(copied, "norm.weight", value)
    with pytest.raises(ModelUnusable, match=r"'norm\.weight' holds (nan|1\.70141e\+38)"):
        audit(copied, NANO_DIRECTORY, weight_bytes(copied))
    assert not (copied / HASHES_FILE).exists()


def test_scores_that_are_no_numbers_are_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoadedModel, "logits", lambda *_: torch.tensor([[0.0], [torch.inf]]))
    with pytest.raises(ModelUnusable, match="scores of 1 of 2 tokens are not finite"):
        audit(copied, NANO_DIRECTORY, weight_bytes(copied))
    assert not (copied / HASHES_FILE).exists()


@pytest.mark.parametrize("recipe", [Recipe("rtn"), Recipe("clip")])
def test_a_source_with_a_weight_that_overflows_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    source = Path(shutil.copytree(NANO_DIRECTORY, tmp_path / "source"))
    name = "model.layers.1.mlp.experts.0.gate_proj.weight"
    index = json.loads((source / "model.safetensors.index.json").read_text())
    shard = source / index["weight_map"][name]
    tensors = load_file(shard)
    tensors[name][3, 5] = 2.0**100
    save_file(tensors, shard)
    with pytest.raises(ModelUnusable, match=rf"'{re.escape(name)}' holds 1\.26765e\+30 at element "):
        quantize_checkpoint(dataclasses.replace(job(tmp_path / "out", source), recipe=recipe))
    assert not (tmp_path / "out").exists()


def test_garbage_is_no_failure(copied: Path) -> None:
    spoil(copied, "norm.weight", 0.0)
    notes: list[str] = []
    audit(copied, NANO_DIRECTORY, weight_bytes(copied), notes.append)
    assert "It answers" in notes[0]


@pytest.mark.parametrize("share", [0.98, 1.02])
def test_another_size_than_planned_is_refused(copied: Path, share: float) -> None:
    planned = int(weight_bytes(copied) / share)
    with pytest.raises(ModelUnusable, match=f" {weight_bytes(copied)} bytes of weights, {planned} were"):
        audit(copied, NANO_DIRECTORY, planned)
    audit(copied, NANO_DIRECTORY, int(weight_bytes(copied) / 1.005))


def test_without_memory_nothing_is_loaded_and_that_is_said(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10 << 20))
    monkeypatch.setattr(ernie_local, "load", None)
    notes: list[str] = []
    audited = audit(copied, NANO_DIRECTORY, weight_bytes(copied), notes.append)
    assert "not audited" in notes[0]
    assert "5.0 MiB" in notes[0]
    assert audited.answer is None
    assert "more memory than could be used" in audited.why_not_asked
    assert "5.0 MiB" not in audited.why_not_asked  # or each run would write another report


def test_no_more_memory_is_taken_than_allowed(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ernie_local, "load", None)
    notes: list[str] = []
    audit(copied, NANO_DIRECTORY, weight_bytes(copied), notes.append, most_memory=3 << 20)
    assert "3.0 MiB" in notes[0]


def test_a_file_that_only_the_source_can_read_is_refused(copied: Path) -> None:
    (copied / "tokenizer.model").unlink()
    with pytest.raises(ModelUnusable, match=r"tokenizer\.model is missing"):
        audit(copied, NANO_DIRECTORY, weight_bytes(copied))


def test_a_source_without_a_tokenizer_is_quantized_and_that_is_said(tmp_path: Path) -> None:
    source = Path(shutil.copytree(NANO_DIRECTORY, tmp_path / "source"))
    (source / "tokenizer.model").unlink()
    notes: list[str] = []
    quantize_checkpoint(dataclasses.replace(job(tmp_path / "out", source), on_note=notes.append))
    assert ["the source has it too" in note for note in notes] == [True]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "No question was asked: the source lacks a file that a chat needs" in card
    assert str(tmp_path) not in card
    assert (tmp_path / "out" / HASHES_FILE).exists()


def test_what_fails_the_audit_gets_no_name(tmp_path: Path) -> None:
    one = job(tmp_path / "out")

    def lose_the_tokenizer(_unit: str, _done: float, _all: float) -> None:
        (one.partial / "tokenizer.model").unlink(missing_ok=True)

    with pytest.raises(ModelUnusable, match=r"tokenizer\.model is missing"):
        quantize_checkpoint(dataclasses.replace(one, on_unit=lose_the_tokenizer))
    assert not one.out.exists()
    quantize_checkpoint(dataclasses.replace(one, resume="required"))
    assert (one.out / HASHES_FILE).exists()
