"""`ernie-local quantize --calib`: a folder beside generated samples or in their place, bad files at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ernie_cli.calibration_samples import SampleOptions, draw_sequences
from ernie_cli.console import Console
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.errors import DoesNotFit
from tests.cli.running import Command

Quantize = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    directory = tmp_path / "mine"
    directory.mkdir()
    for name in ("a", "b"):
        Image.open("examples/invoice.png").save(directory / f"{name}.png")
    (directory / "a.txt").write_text("Total 12.50")
    (directory / "c.txt").write_text("Only text. " * 20)
    return directory


@pytest.fixture
def quantize(command: Command) -> Quantize:
    """`quantize ... --json`: the exit code, the object, and what was said to people."""

    def invoke(*arguments: str) -> tuple[int, dict[str, Any], str]:
        result = command("quantize", "nano", *arguments, "--json")
        return result.exit_code, result.json(), result.stderr

    return invoke


@pytest.mark.slow
def test_nano_is_calibrated_on_a_folder(
    quantize: Quantize, command: Command, folder: Path, tmp_path: Path
) -> None:
    (folder / "table.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    out = tmp_path / "out"
    code, said, errors = quantize(str(out), "--samples", "0", "--calib", str(folder), "--bits", "2")
    assert (code, said["ok"]) == (0, True)
    tokens = sum(
        len(s.token_ids)
        for s in draw_sequences(NANO_DIRECTORY, SampleOptions(samples=0, calib=folder), Console())
    )
    assert said["calibration_tokens"] == tokens > 150
    assert "table.xls (is not an image)" in errors
    answer = command("chat", str(out), "-p", "What is the total?", "--image", "examples/invoice.png")
    assert answer.exit_code == 0


def test_a_folder_comes_in_addition_to_generated_samples(folder: Path) -> None:
    choices = (
        SampleOptions(samples=3, seed=5),
        SampleOptions(samples=0, seed=5, calib=folder),
        SampleOptions(samples=3, seed=5, calib=folder),
    )
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
    quantize: Quantize,
    folder: Path,
    tmp_path: Path,
) -> None:
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:900])
    words = [word.replace("{mine}", str(folder)) for word in arguments]
    found, said, errors = quantize(str(tmp_path / "out"), *words)
    assert (found, said["ok"]) == (code, False)
    assert message in errors
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_sample_beyond_the_context_is_left_out_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "long.txt").write_text("0123456789 " * 2000)
    assert len(draw_sequences(NANO_DIRECTORY, SampleOptions(samples=0, calib=folder), Console())) == 3
    assert "skipped: folder/long.txt (" in capsys.readouterr().err
    for name in ("a.png", "b.png", "a.txt", "c.txt"):
        (folder / name).unlink()
    with pytest.raises(DoesNotFit, match=r"0 samples .* 4,096 tokens"):
        draw_sequences(NANO_DIRECTORY, SampleOptions(samples=0, calib=folder), Console())
