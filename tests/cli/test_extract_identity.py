"""What records depend on: each option of `extract` parts the records of two runs, or does not matter."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from ernie_cli.extract import request
from ernie_cli.extract.options import ExtractOptions
from ernie_local.model_files import find_model_files

MATTERS: dict[str, Any] = {
    "max_pixels": "200k", "image_tokens": "64", "detail": "low", "trim": True, "dtype": "float32",
    "context_size": "1000", "kv_dtype": "int8", "small_below": 0.1, "max_tokens": "7", "think": "on",
    "variant": "thinking", "think_budget": "9", "fields": "other", "bare_question": True, "per_file": True,
    "ask": "each", "prompt": "Look.", "check": ("date == date",), "retry": True, "min_confidence": 0.5,
    "boxes": True, "draw": Path("drawn"), "fps": 4.0, "frames": 3,
    "lora": ("adapter",),
}  # fmt: skip
# Where it is computed and with how much memory: sums may be rounded otherwise. Which documents are read,
# where the records go, and what is told.
DOES_NOT_MATTER = {
    "as_json", "debug", "device", "gpu_kernels", "threads", "ram", "reserve", "vram", "misses", "cuda_graphs",
    "out", "glob", "limit", "csv", "xlsx", "html", "parallel", "resume", "skip_errors", "dry_run", "watch",
    "password",
}  # fmt: skip
TESTED_BESIDE = {"schema", "paths", "model"}


def identity(options: ExtractOptions, model: Path | str = "nano") -> Any:
    files, found = find_model_files(model), request.find_documents(options, {})
    return request.run_identity(options, request.reading_options(options), files, found)


@pytest.fixture
def options(tmp_path: Path) -> ExtractOptions:
    (tmp_path / "documents").mkdir()
    return ExtractOptions(paths=(tmp_path / "documents",), fields="date")


def test_every_option_is_told_of() -> None:
    assert {field.name for field in fields(ExtractOptions)} == {*MATTERS} | DOES_NOT_MATTER | TESTED_BESIDE


@pytest.mark.parametrize("name", MATTERS)
def test_what_changes_answers_parts_the_records(options: ExtractOptions, name: str) -> None:
    assert identity(replace(options, **{name: MATTERS[name]})) != identity(options)


def test_paths_and_schema_part_the_records(options: ExtractOptions, tmp_path: Path) -> None:
    assert identity(replace(options, paths=(tmp_path,))) != identity(options)
    schema = '{"type": "object", "properties": {"date": {"type": "string"}}}'
    assert identity(replace(options, fields=None, schema=schema)) != identity(options)


def test_another_model_at_the_same_path_parts_the_records(options: ExtractOptions, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(find_model_files("nano").directory, model)
    before = identity(options, model)
    assert identity(options, model) == before
    index = model / "model.safetensors.index.json"
    index.write_text(index.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert identity(options, model) != before
