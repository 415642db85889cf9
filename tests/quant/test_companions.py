"""The files beside the weights: a known list is copied, all others stay and are named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.errors import ModelUnusable
from ernie_quant.job import Job
from ernie_quant.pipeline import plan_checkpoint, quantize_checkpoint
from ernie_quant.recipe import Recipe

MADE = {
    "config.json", "hashes.json", "model.safetensors", "quant_report.html", "quant_report.json",
    "README.md", "SOURCE_README.md",
}  # fmt: skip
OF_NANO = {
    "generation_config.json", "preprocessor_config.json", "tokenizer.model", "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture
def source(small_nano: Path, tmp_path: Path) -> Path:
    source = Path(shutil.copytree(small_nano, tmp_path / "source"))
    shutil.copy(NANO_DIRECTORY / "README.md", source)
    return source


def job_of(source: Path, out: Path, **options: Any) -> Job:
    return Job(source, out, format_tables(read_config(source), FormatChoice("w2")), Recipe("rtn"), **options)


def quantized(source: Path) -> tuple[Path, list[str]]:
    notes: list[str] = []
    out = source.with_name("out")
    quantize_checkpoint(job_of(source, out, on_note=notes.append))
    return out, notes


def test_what_is_not_of_the_list_stays_and_is_named(source: Path) -> None:
    strangers = [
        "\x1b[2J", ".secret", "adapter.safetensors", "id_rsa", "model.gguf", "modeling_ernie.py", "notes.txt",
        "optimizer.pt", "pytorch_model.bin",
    ]  # fmt: skip
    for name in strangers:
        (source / name).write_bytes(b"0" * 1000)
    (source / "tokenizer.json").write_text("{}")
    (source / "LICENSE").write_text("Apache 2.0")
    (source / "checkpoints").mkdir()
    out, notes = quantized(source)
    assert {path.name for path in out.iterdir()} == MADE | OF_NANO | {"LICENSE", "tokenizer.json"}
    [note] = [note for note in notes if "not copied" in note]
    named = sorted([*strangers, "checkpoints"])
    assert all(ascii(name) in note for name in named[:8])
    assert "\x1b" not in note
    assert note.endswith("and 2 more")


def test_links_of_a_cache_are_followed_and_a_read_only_file_is_copied_again(source: Path) -> None:
    blob = (source / "tokenizer.model").rename(source.with_name("blob"))
    blob.chmod(0o444)
    (source / "tokenizer.model").symlink_to(blob)
    out, notes = quantized(source)
    assert {path.name for path in out.iterdir()} == MADE | OF_NANO
    assert not any("copied" in note for note in notes)
    assert not (out / "tokenizer.model").is_symlink()
    assert (out / "tokenizer.model").read_bytes() == blob.read_bytes()
    assert os.access(out / "tokenizer.model", os.W_OK)


def to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def far_too_large(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("make", [to_nowhere, far_too_large, os.mkfifo])
def test_a_file_of_the_list_that_is_none_is_refused_before_any_unit(
    make: Callable[[Path], None], source: Path
) -> None:
    make(source / "tokenizer.json")
    with pytest.raises(ModelUnusable, match=r"tokenizer\.json"):
        quantized(source)
    assert not source.with_name("out").exists()


@pytest.mark.parametrize("make", [to_nowhere, far_too_large, os.mkfifo])
def test_a_plan_refuses_it_too(make: Callable[[Path], None], source: Path) -> None:
    make(source / "tokenizer.json")
    with pytest.raises(ModelUnusable, match=r"tokenizer\.json"):
        plan_checkpoint(job_of(source, source.with_name("out")))


def test_a_plan_counts_what_is_copied(source: Path) -> None:
    (source / "LICENSE").write_text("Apache 2.0")
    (source / "tokenizer.json").symlink_to(source / "tokenizer.model")
    (source / "notes.txt").write_text("not copied")
    planned = plan_checkpoint(job_of(source, source.with_name("out"))).companion_bytes
    out, _ = quantized(source)
    copied = OF_NANO | {"LICENSE", "tokenizer.json", "SOURCE_README.md"}
    assert planned == sum((out / name).stat().st_size for name in copied)


def test_the_lack_of_image_settings_is_not_copied_in_silence(source: Path) -> None:
    (source / "preprocessor_config.json").unlink()
    out, notes = quantized(source)
    assert any("preprocessor_config.json" in note and "cannot read images" in note for note in notes)
    assert "preprocessor_config.json" not in json.loads((out / "hashes.json").read_text())["files"]
