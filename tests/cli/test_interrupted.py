"""Ctrl-C in long work: what is said to be kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from ernie_quant.measurements import Measurements, write_measurements
from tests.cli.running import Command


def press_ctrl_c(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_in_bench_says_that_the_profile_is_as_it_was(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("ernie_cli.bench.measure.measure", press_ctrl_c)
    result = command("bench")
    assert result.exit_code == 130
    assert "nothing was stored" in result.stderr
    profile = tmp_path / "ernie-local" / "machine.json"
    profile.parent.mkdir()
    profile.touch()
    assert f"{profile} is as it was" in command("bench").stderr
    assert "nothing was stored" in command("bench", "--no-save").stderr


def test_ctrl_c_in_quantize_says_where_finished_work_is(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ernie_cli.calibration_samples.draw_sequences", press_ctrl_c)
    monkeypatch.setattr("ernie_cli.calibrate.draw_sequences", press_ctrl_c)
    out = tmp_path / "out"
    result = command("quantize", "nano", str(out))
    assert result.exit_code == 130
    assert "nothing was written" in result.stderr
    (tmp_path / "out.partial").mkdir()
    assert f"kept in {out}.partial" in command("quantize", "nano", str(out)).stderr
    statistics = tmp_path / "other.statistics.json"
    write_measurements(statistics, Measurements({}, {}, 0, "w2", {}, {}, 0.0, []))
    arguments = ("quantize", "nano", str(tmp_path / "other"), "--bits", "mixed")
    assert f"kept in {statistics}" in command(*arguments).stderr
    assert "nothing is kept" in command("calibrate", "nano", str(tmp_path / "new.json")).stderr
