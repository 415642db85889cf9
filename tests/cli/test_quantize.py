"""`ernie-local quantize` as a user runs it: a checkpoint that answers, stops that lose nothing, refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ernie_cli import calibration_samples
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.errors import Stopped
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.planner.gpus import usable_bytes
from ernie_local.planner.model_size import published_model
from ernie_local.sizes import GIB, parse_bytes
from ernie_quant.formats_for_gpu import GpuFit, fit_gpu
from tests.cli.running import Command
from tests.draws import rest_slow
from tests.special_files import SPECIAL_FILES, within_seconds

COMMAND = [sys.executable, "-m", "ernie_cli.main"]
Quantize = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def quantize(command: Command) -> Quantize:
    """`quantize ... --json`: the exit code, the object, and what was said to people."""

    def invoke(*arguments: str) -> tuple[int, dict[str, Any], str]:
        result = command("quantize", *arguments, "--json")
        return result.exit_code, result.json(), result.stderr

    return invoke


@pytest.mark.slow
def test_a_calibrated_checkpoint_answers(quantize: Quantize, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "two"
    code, said, _ = quantize("nano", str(out), "--bits", "2", "--samples", "20")
    assert (code, said["ok"], said["out"]) == (0, True, str(out))
    assert said["weight_bytes"] == sum(path.stat().st_size for path in out.glob("*.safetensors"))
    experts = said["experts"]
    assert isinstance(experts, list)
    assert len(experts) == 5 * 2 * 16
    assert all(0 < expert["gate_up_error"] < 0.2 for expert in experts)
    quantization = json.loads((out / "config.json").read_text())["quantization_config"]
    assert set(quantization["experts"].values()) == {"w2"}
    answer = command("chat", str(out), "-p", "What is the total?", "--image", "examples/invoice.png")
    assert (answer.exit_code, answer.stdout.strip()[:1]) == (0, "£")


@pytest.mark.slow
def test_mixed_bits_come_from_measurements_that_stay_with_the_checkpoint(
    quantize: Quantize, command: Command, tmp_path: Path
) -> None:
    out, kept = tmp_path / "mixed", tmp_path / "kept.json"
    measured = command("calibrate", "nano", str(kept), "--samples", "6", "--json").json()
    assert [layer["layer"] for layer in measured["layers"]] == list(range(6))
    arguments = ("nano", str(out), "--target-size", "12MiB", "--dense", "auto", "--samples", "6")
    code, plan, _ = quantize(*arguments, "--statistics", str(kept), "--dry-run")
    assert code == 0
    assert not out.exists()
    code, said, _ = quantize(*arguments)
    assert code == 0
    size = said["weight_bytes"]
    assert isinstance(size, int)
    assert isinstance(plan["plan"], dict)
    assert size == plan["plan"]["weight_bytes"]
    assert (12 << 20) - 65536 < size <= 12 << 20
    assert json.loads((out / "statistics.json").read_text()) == json.loads(kept.read_text())
    told = json.loads((out / "quant_report.json").read_text())
    assert told["sensitivity"] == json.loads(kept.read_text())["expert_divergence"]
    assert len({expert["format"] for expert in told["experts"]}) > 1
    assert {path.name for path in tmp_path.iterdir()} == {"kept.json", "mixed"}
    assert command("verify", str(out)).exit_code == 0
    code, said, _ = quantize(
        "nano",
        str(tmp_path / "other"),
        "--bits",
        "mixed",
        "--samples",
        "7",
        "--seed",
        "3",
        "--statistics",
        str(kept),
    )
    assert code == 2
    assert isinstance(said["error"], dict)
    assert "kept.json" in said["error"]["what"]


def stop_drawing(*_: object) -> None:
    raise Stopped("drawing samples", "a test", "none")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--target-size", "9GiB", "--fit", "8GiB"), 2, "--target-size 9GiB and --fit 8GiB"),
        (("--bits", "2", "--fit", "8GiB"), 2, "--fit 8GiB with --bits 2"),
        (("--bits", "4", "--fit", "8GiB"), 2, "--fit 8GiB with --bits 4"),
        (("--fit", "1MiB"), 3, "one of 1.0 MiB has 921.6 KiB"),
        (("--bits", "mixed", "--method", "rtn"), 2, "mixed bits with --method rtn"),
        (("--dense", "auto"), 2, "--dense auto with --bits 4"),
        (("--statistics", "s.json"), 2, "--statistics with --bits 4"),
        (("--target-size", "large"), 2, "not a size"),
        (("--dual", "--bits", "2"), 2, "experts in w2"),
        (("--dual", "--bits", "mixed"), 2, "--dual with mixed bits"),
        (("--dual", "--fit", "8GiB"), 2, "--dual with mixed bits"),
        (("--dual", "--method", "nf4"), 2, "experts in nf4g64"),
        (("--by-answers", "--method", "clip"), 2, "experts in w4 by the method clip"),
        (("--by-answers", "--bits", "8"), 2, "experts in w8 by the method gptq"),
        (("--bits", "w2t", "--method", "clip"), 2, "experts in w2t by the method clip"),
        (("--bits", "4", "--target-size", "9GiB"), 2, "--target-size 9GiB with --bits 4"),
        (("--max-ram", "100MiB", "--samples", "2"), 3, "100.0 MiB"),
        (("--max-ram", "much"), 2, "not a size"),
    ],
)
def test_sizes_that_cannot_be_are_refused(
    options: tuple[str, ...], code: int, message: str, quantize: Quantize, tmp_path: Path
) -> None:
    found, said, _ = quantize("nano", str(tmp_path / "out"), *options)
    assert found == code
    assert isinstance(said["error"], dict)
    assert message in said["error"]["what"]
    assert not (tmp_path / "out").exists()


def test_damaged_measurements_beside_the_checkpoint_are_told(quantize: Quantize, tmp_path: Path) -> None:
    damaged = tmp_path / "out.statistics.json"
    damaged.write_bytes(bytes(100))
    code, said, _ = quantize("nano", str(tmp_path / "out"), "--fit", "8GiB", "--samples", "2")
    assert code == 4
    assert isinstance(said["error"], dict)
    assert said["error"]["what"].startswith(f"{damaged} is damaged")
    assert said["error"]["hint"].startswith("delete this file")
    assert damaged.exists()


@pytest.mark.parametrize(
    ("make", "code"),
    [
        *((make, 4) for make in SPECIAL_FILES.values()),
        (lambda path: path.write_bytes(b'{"identity'), 4),
        (lambda path: path.symlink_to("nowhere"), 2),
        (lambda path: path.symlink_to(path), 2),
    ],
    ids=[*SPECIAL_FILES, "torn", "dangling", "loop"],
)
def test_measurements_that_cannot_be_read_or_written_are_told_before_samples_are_drawn(
    make: Callable[[Path], object],
    code: int,
    quantize: Quantize,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draw(*_: object) -> None:
        raise Stopped("drawing samples", "a test", "none")

    monkeypatch.setattr(calibration_samples, "draw_sequences", draw)
    make(tmp_path / "measured")
    arguments = ("nano", str(tmp_path / "out"), "--bits", "mixed", "--statistics")
    with within_seconds(60):
        found, said, _ = quantize(*arguments, str(tmp_path / "measured"))
    assert found == code
    assert str(tmp_path / "measured") in said["error"]["what"]
    assert quantize(*arguments, str(tmp_path / "new"))[1]["error"]["what"] == "drawing samples"


@pytest.mark.parametrize("dense", ["w8", "auto"])
def test_a_size_below_the_floor_is_refused_before_anything_is_measured(
    dense: str, quantize: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_samples, "draw_sequences", stop_drawing)
    arguments = ("nano", str(tmp_path / "out"), "--dense", dense, "--target-size")
    code, said, _ = quantize(*arguments, "1MiB")
    assert code == 3
    assert isinstance(said["error"], dict)
    (least,) = re.findall(r"take ([0-9,]+) bytes at least, 1,048,576 are wanted", said["error"]["what"])
    assert f"--target-size {least.replace(',', '')} or more" in said["error"]["hint"]
    assert ("--dense auto" in said["error"]["hint"]) == (dense == "w8")
    floor = int(least.replace(",", ""))
    assert quantize(*arguments, str(floor - 1))[0] == 3
    assert quantize(*arguments, str(floor))[1]["error"]["what"] == "drawing samples"


def test_too_much_memory_for_mixed_bits_is_told_before_measuring(
    quantize: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ernie_quant.probe.measurements_in", stop_drawing)
    arguments = ("nano", str(tmp_path / "out"), "--bits", "mixed", "--samples", "2", "--max-ram")
    assert quantize(*arguments, "100MiB")[0] == 3
    assert quantize(*arguments, "4GiB")[1]["error"]["what"] == "drawing samples"


def test_a_gpu_below_the_floor_is_refused_before_anything_is_measured(
    quantize: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_samples, "draw_sequences", stop_drawing)
    arguments = ("nano", str(tmp_path / "out"), "--fit")
    code, said, _ = quantize(*arguments, "512MiB")
    assert code == 3
    assert isinstance(said["error"], dict)
    assert "one of 512.0 MiB has 460.8 MiB" in said["error"]["what"]
    (enough,) = re.findall(r"--fit ([0-9]+GiB) or more", said["error"]["hint"])
    _, said, _ = quantize(*arguments, enough)
    assert said["error"]["what"] == "drawing samples"
    assert (said["fit"]["bits"], said["fit"]["resident_share"]) == (None, 1.0)


def test_paged_experts_are_not_measured(
    quantize: Quantize, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One format is chosen for all of them, and told by a dry run."""
    config = read_config(NANO_DIRECTORY)
    plan = fit_gpu(config, ImageProcessorConfig(), 4 * GIB, None).plan
    monkeypatch.setattr("ernie_quant.formats_for_gpu.fit_gpu", lambda *_: GpuFit("3", "w4", plan))
    arguments = ("--fit", "4GiB", "--samples", "1", "--dry-run")
    code, said, errors = quantize("nano", str(tmp_path / "out"), *arguments)
    assert code == 0, errors
    assert (said["fit"]["bits"], said["fit"]["dense"]) == ("3", "w4")
    told = command("quantize", "nano", str(tmp_path / "out"), *arguments).stderr
    assert "experts with --bits 3, the rest in w4" in told
    assert "measuring" not in told
    by_hand = quantize("nano", str(tmp_path / "out"), "--bits", "3", "--dense", "w4", *arguments[2:])[1]
    assert said["plan"]["weight_bytes"] == by_hand["plan"]["weight_bytes"]
    assert by_hand["fit"] is None


@pytest.mark.parametrize("size", ["4GiB", "6GiB", "8GiB"])
def test_bits_for_a_gpu_are_those_with_which_the_planner_says_that_it_runs(
    size: str, command: Command
) -> None:
    """Where experts have to be paged."""
    model = published_model()
    fit = fit_gpu(model.config, model.processor, parse_bytes(size, "fit"), None)
    assert fit.bits is not None
    assert fit.bits == "w2t" or fit.plan.resident_share >= 0.25
    usable = f"{usable_bytes(parse_bytes(size, 'fit'))}"
    asked = ("vram", "--dense", fit.dense, "--vram", usable, "--ctx-size", "8k", "--ram", "64GiB", "--json")
    found = command(*asked, "--bits", fit.bits).json()["gpu"]
    assert found["verdict"] == "paged"
    assert found["slots_bytes"] == fit.plan.slots_bytes
    assert found["resident_share"] == pytest.approx(fit.plan.resident_share)
    assert any(f"experts with --bits {fit.bits}," in line for line in fit.lines)
    if fit.bits == "w2t":
        better = command(*asked, "--bits", "3").json()["gpu"]
        assert not better or better["resident_share"] < 0.25


def test_a_gpu_that_holds_every_text_expert_is_filled_with_mixed_bits() -> None:
    model = published_model()
    fits = [fit_gpu(model.config, model.processor, gib * GIB, None) for gib in (16, 24)]
    assert [(fit.bits, fit.dense, fit.plan.resident_share) for fit in fits] == [(None, "w8", 1.0)] * 2


def test_without_calibration_nothing_is_drawn(quantize: Quantize, tmp_path: Path) -> None:
    code, said, _ = quantize("nano", str(tmp_path / "out"), "--method", "rtn", "--dense", "w4")
    assert code == 0
    assert any("asked about an invoice" in note for note in said["notes"])
    assert (said["calibration_tokens"], said["experts"]) == (0, [])


@pytest.mark.parametrize("bits", rest_slow(["3", "8"], 1))
def test_every_number_of_bits_makes_a_checkpoint_that_answers(
    quantize: Quantize, command: Command, tmp_path: Path, bits: str
) -> None:
    out = str(tmp_path / "out")
    code, _, errors = quantize("nano", out, "--bits", bits, "--method", "clip")
    assert code == 0, errors
    parts = {part["name"]: part for part in command("inspect", out, "--json").json()["parts"]}
    assert set(parts["text experts"]["pages"]) == {f"w{bits}"}
    question = ["-p", "What is the total?", "--image", "examples/invoice.png", "--max-tokens", "12"]
    assert command("chat", out, *question).stdout.strip()[:6] == "£84.84"


def test_small_pages_are_planned_made_and_told(quantize: Quantize, command: Command, tmp_path: Path) -> None:
    arguments = ("nano", str(tmp_path / "dual"), "--dual", "--method", "clip")
    _, said, _ = quantize(*arguments, "--dry-run")
    plan = said["plan"]
    assert isinstance(plan, dict)
    code, said, _ = quantize(*arguments)
    assert (code, said["weight_bytes"]) == (0, plan["weight_bytes"])
    told = command("inspect", str(tmp_path / "dual"), "--json").json()
    parts = {part["name"]: part for part in told["parts"]}
    small = [parts["small text pages"], parts["small vision pages"]]
    assert sum(part["bytes"] for part in small) == plan["small_page_bytes"] > 0
    assert small[0]["pages"] == {"w2": 80}
    assert 2.25 < small[0]["bits_per_weight"] < 2.7
    assert small[0]["weights"] == parts["text experts"]["weights"]
    assert told["weights"] == sum(part["weights"] for part in told["parts"] if part not in small)
    assert told["bytes"] == sum(part["bytes"] for part in told["parts"])
    assert told["routed_experts"]["bits_per_weight"] > 4.25
    plan = command("quantize", *arguments[:1], str(tmp_path / "new"), *arguments[2:], "--dry-run")
    assert "small pages" in plan.stdout


@pytest.mark.parametrize(
    ("options", "page_format", "bits"),
    rest_slow(
        [
            (("--method", "quanto", "--bits", "2", "--group-size", "64"), "qint2g64", 2.5),
            (("--method", "nf4"), "nf4g64", 4.13),
            (("--method", "quanto", "--dense", "w4"), "qint4g128", 4 + 32 / 96),  # 96 divides a row of 192
        ],
        1,
    ),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_libraries_checkpoints_answer(
    options: tuple[str, ...],
    page_format: str,
    bits: float,
    quantize: Quantize,
    command: Command,
    tmp_path: Path,
) -> None:
    out = tmp_path / "foreign"
    code, said, _ = quantize("nano", str(out), *options)
    assert (code, said["calibration_tokens"], said["experts"]) == (0, 0, [])
    parts = {part["name"]: part for part in command("inspect", str(out), "--json").json()["parts"]}
    text = parts["text experts"]
    assert text["pages"] == {page_format: 80}
    # And a header and the filling up to 4096 bytes, of which a page of nano has 9 to 14.
    assert bits < text["bits_per_weight"] < bits + 8 * 4096 / (3 * 192 * 192)
    question = ["-p", "What is the total?", "--image", "examples/invoice.png", "--max-tokens", "12"]
    answer = command("chat", str(out), *question)
    # After the right beginning, two bits without calibration make nano repeat itself.
    assert (answer.exit_code, answer.stdout.strip()[:6]) == (0, "£84.84")


def test_sigterm_leaves_no_work_folder_of_a_dry_run(tmp_path: Path) -> None:
    command = [*COMMAND, "quantize", "nano", str(tmp_path / "out"), "--bits", "mixed", "--dry-run"]
    process = subprocess.Popen([*command, "--samples", "12"], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any(path.is_dir() for path in tmp_path.iterdir()):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted: SIGTERM came before the end" in errors
    assert not any(path.is_dir() for path in tmp_path.iterdir())


@pytest.mark.slow
def test_sigterm_stops_safely_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "four"
    command = [*COMMAND, "quantize", "nano", str(out), "--samples", "20"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "four.partial" / "work" / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and "expert 1" in journal.read_text()):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "stopped after" in errors
    assert "run the same command again" in errors
    assert not out.exists()
    again = subprocess.run([*command, "--resume", "required"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert out.is_dir()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nano", "{tmp}/full"), 2, "1 entries"),
        (("nano", "{tmp}/new", "--bits", "5"), 2, "'5' is not one of"),
        (("nano", "{tmp}/dangling"), 2, "is a link to 'nowhere'"),
        (("nano", "{tmp}/loop"), 2, "is a link to 'loop'"),
        (("nano", "{tmp}/full/note/new"), 2, "no checkpoint can be written"),
        (("nano", "/proc/new"), 2, "no checkpoint can be written"),
        (("nano", "."), 2, "no checkpoint can be written"),
        (("{tmp}/missing", "{tmp}/new"), 4, "missing"),
        (("nano", "{tmp}/new", "--resume", "required"), 2, "new"),
        (("nano", "{tmp}/new", "--samples", "0"), 2, "--samples"),
        (("nano", "{tmp}/new", "--method", "nf4", "--bits", "2"), 2, "nf4 with 2 bits"),
        (("nano", "{tmp}/new", "--method", "quanto", "--bits", "8"), 2, "quanto with 8 bits"),
        (("nano", "{tmp}/new", "--method", "quanto-hqq", "--bits", "3"), 2, "quanto-hqq with 3 bits"),
        (("nano", "{tmp}/new", "--method", "nf4", "--group-size", "1024"), 2, "groups of 1024"),
        (("nano", "{tmp}/new", "--group-size", "64"), 2, "groups of 64 with the method gptq"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    arguments: tuple[str, ...], code: int, message: str, quantize: Quantize, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    words = [word.replace("{tmp}", str(tmp_path)) for word in arguments]
    found, said, errors = quantize(*words, *(() if "--samples" in words else ("--samples", "2")))
    assert (found, said["ok"]) == (code, False)
    assert message in errors
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "full" / "note").read_text() == "mine"
