"""`inspect`, `vram`, `verify` and `bench` of models with one bank of experts and with none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ernie_cli.main import run
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from tests.banks import with_one_bank, without_banks


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def planned_to_fit(capsys: pytest.CaptureFixture[str], model: str) -> bool:
    """By `vram`, with an image, in RAM and on a GPU."""
    options = ("--ctx-size", "1k", "--image", "280x280")
    cpu = told(capsys, "vram", model, "--ram", "8GiB", *options)["cpu"]
    gpu = told(capsys, "vram", model, "--vram", "8GiB", "--ram", "16GiB", *options)["gpu"]
    return bool(cpu["fits"] and gpu["verdict"] == "resident")


def test_one_bank_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(with_one_bank(NANO_DIRECTORY, tmp_path / "one"))
    inspected = told(capsys, "inspect", model)
    parts = {part["name"]: part for part in inspected["parts"]}
    assert "text experts" in parts
    assert "vision experts" not in parts
    assert inspected["routed_experts"]["weights"] == parts["text experts"]["weights"]
    assert told(capsys, "verify", model)["ok"]
    assert planned_to_fit(capsys, model)


def test_a_dense_model_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(without_banks(NANO_DIRECTORY, tmp_path / "none"))
    inspected = told(capsys, "inspect", model)
    assert inspected["routed_experts"] is None
    assert told(capsys, "verify", model)["ok"]
    assert planned_to_fit(capsys, model)
