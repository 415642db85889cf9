"""`ernie-local quantize --calib`: a folder beside generated samples or in their place, bad files at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ernie_cli.calibration_samples import SampleChoice, draw_sequences
from ernie_cli.console import Console
from ernie_cli.main import run
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.errors import DoesNotFit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    directory = tmp_path / "mine"
    directory.mkdir()
    for name in ("a", "b"):
        Image.open("examples/invoice.png").save(directory / f"{name}.png")
    (directory / "a.txt").write_text("Total 12.50")
    (directory / "c.txt").write_text("Only text. " * 20)
    return directory


def quantize(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object], str]:
    code = run(["quantize", "nano", *arguments, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def test_nano_is_calibrated_on_a_folder(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    (folder / "table.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    out = tmp_path / "out"
    code, said, errors = quantize(capsys, str(out), "--samples", "0", "--calib", str(folder), "--bits", "2")
    assert (code, said["ok"]) == (0, True)
    tokens = sum(
        len(s.token_ids) for s in draw_sequences(NANO_DIRECTORY, SampleChoice(0, 0, folder), Console())
    )
    assert said["calibration_tokens"] == tokens > 150
    assert "left out: table.xls (is not an image)" in errors
    assert run(["chat", str(out), "-p", "What is the total?", "--image", "examples/invoice.png"]) == 0


def test_a_folder_comes_in_addition_to_generated_samples(folder: Path) -> None:
    choices = (SampleChoice(3, 5, None), SampleChoice(0, 5, folder), SampleChoice(3, 5, folder))
    generated, given, both = (
        draw_sequences(NANO_DIRECTORY, choice, Console(quiet=True)) for choice in choices
    )
    assert [s.token_ids for s in both] == [s.token_ids for s in (*given, *generated)]
    assert (len(generated), len(given)) == (3, 3)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--calib", "{mine}"), 5, "bad.png: this PNG"),
        (("--calib", "{mine}/missing"), 5, "cannot be read as a folder"),
        (("--calib", "{mine}", "--method", "rtn"), 2, "rtn looks at weights alone"),
        (("--samples", "0"), 2, "--samples 0 without --calib: 0 samples"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
) -> None:
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:900])
    words = [word.replace("{mine}", str(folder)) for word in arguments]
    found, said, errors = quantize(capsys, str(tmp_path / "out"), *words)
    assert (found, said["ok"]) == (code, False)
    assert message in errors
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_sample_beyond_the_context_is_left_out_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "long.txt").write_text("0123456789 " * 2000)
    assert len(draw_sequences(NANO_DIRECTORY, SampleChoice(0, 0, folder), Console())) == 3
    assert "left out: folder/long.txt (" in capsys.readouterr().err
    for name in ("a.png", "b.png", "a.txt", "c.txt"):
        (folder / name).unlink()
    with pytest.raises(DoesNotFit, match="0 samples fit the model's context of 4,096 tokens"):
        draw_sequences(NANO_DIRECTORY, SampleChoice(0, 0, folder), Console())
