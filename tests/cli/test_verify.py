"""`ernie-local verify`: exit codes, three lines, and one object with all findings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from tests.cli.running import Command


def test_nano_passes(command: Command) -> None:
    result = command("verify")
    assert result.exit_code == 0
    assert "586 tensors, 0 pages" in result.stdout
    assert "hashes.json" in result.stderr


def test_damage_ends_with_4_and_three_lines(command: Command, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(NANO_DIRECTORY, tmp_path / "nano"))
    (copy / "tokenizer.model").write_bytes(b"no tokenizer")
    (copy / "generation_config.json").write_text("{")
    result = command("verify", str(copy))
    assert (result.exit_code, result.stdout) == (4, "")
    lines = result.stderr.splitlines()
    assert lines[-4].startswith("2 ")
    assert lines[-3].startswith("error: ")
    assert "generation_config.json" in lines[-3]
    assert lines[-1].startswith("try: ")

    value = command("verify", str(copy), "--json").json()
    assert value["ok"] is False
    assert [finding["file"] for finding in value["findings"]] == ["generation_config.json", "tokenizer.model"]
    assert value["error"]["what"] == value["findings"][0]["what"]
    assert value["tensors"] == 586


def test_the_object_names_every_file(command: Command) -> None:
    value = command("verify", "nano", "--json").json()
    assert set(value["files"]) == {path.name for path in NANO_DIRECTORY.iterdir() if path.name != "README.md"}
    assert value["bytes"] == sum((NANO_DIRECTORY / name).stat().st_size for name in value["files"])
    assert (value["ok"], value["findings"], value["error"]) == (True, [], None)


def test_a_missing_model_ends_with_4(command: Command, tmp_path: Path) -> None:
    result = command("verify", str(tmp_path / "no"), "--json")
    value = result.json()
    assert result.exit_code == 4
    assert (value["directory"], value["findings"]) == (None, [])


def test_golden_answers_are_told_one_by_one(command: Command, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(NANO_DIRECTORY, tmp_path / "nano"))
    prompt = {"name": "text", "content": ["What is the total?"], "ids": [3, 3]}
    golden = {"source": "made up", "thinking": False, "prompts": [prompt]}
    (copy / "golden.json").write_text(json.dumps(golden))
    result = command("verify", str(copy), "--golden", "--json")
    value = result.json()
    assert (result.exit_code, value["ok"]) == (4, False)
    (one,) = value["golden"]
    assert (one["name"], one["num_ids"], one["first_other"]) == ("text", 2, 0)
    assert "tokenizer.model" in value["suspicion"]
    assert "made up" in value["error"]["why"]

    result = command("verify", "nano", "--golden")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "no golden answers" in result.stderr


@pytest.mark.parametrize("option", ["--ram 8GiB", "--template pt", "--device cuda", "--threads 1"])
def test_options_that_would_do_nothing_are_refused(command: Command, option: str) -> None:
    result = command("verify", "nano", *option.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"error: {option.split(maxsplit=1)[0]} without --golden" in result.stderr
