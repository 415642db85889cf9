"""`ernie-local verify`: exit codes, three lines, and one object with all findings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ernie_cli.main import run
from ernie_local.checkpoint.hub import NANO_DIRECTORY


def test_nano_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify"]) == 0
    captured = capsys.readouterr()
    assert "is whole: 586 tensors, 0 pages" in captured.out
    assert "has no hashes.json" in captured.err


def test_damage_ends_with_4_and_three_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(NANO_DIRECTORY, tmp_path / "nano"))
    (copy / "tokenizer.model").write_bytes(b"no tokenizer")
    (copy / "generation_config.json").write_text("{")
    assert run(["verify", str(copy)]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert "2 findings" in lines[-4]
    assert lines[-3].startswith("error: ")
    assert "generation_config.json" in lines[-3]
    assert lines[-1].startswith("try: ")

    assert run(["verify", str(copy), "--json"]) == 4
    value = json.loads(capsys.readouterr().out)
    assert value["ok"] is False
    assert [finding["file"] for finding in value["findings"]] == ["generation_config.json", "tokenizer.model"]
    assert value["error"]["what"] == value["findings"][0]["what"]
    assert value["tensors"] == 586


def test_the_object_names_every_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "nano", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert set(value["files"]) == {path.name for path in NANO_DIRECTORY.iterdir() if path.name != "README.md"}
    assert value["bytes"] == sum((NANO_DIRECTORY / name).stat().st_size for name in value["files"])
    assert (value["ok"], value["findings"], value["error"]) == (True, [], None)


def test_a_missing_model_ends_with_4(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["verify", str(tmp_path / "no"), "--json"]) == 4
    value = json.loads(capsys.readouterr().out)
    assert (value["directory"], value["findings"]) == (None, [])
