"""The full-size checkpoint of the benchmarks, at two layers: it loads, computes, and spreads its tokens."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import ernie_local

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "synthesize.py"


@pytest.mark.parametrize(
    "options", [["--dense", "w4", "--dual", "w2"], ["--experts", "w2-w2l", "--vision", "none"]], ids=str
)
def test_synthetic_checkpoint_runs(tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "model"
    command = [sys.executable, str(SCRIPT), str(out), "--layers", "2", *options]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(told.split("peak memory")[1].split()[0]) < 1024
    model = ernie_local.load(out, dtype="bfloat16")
    ids = list(range(1000, 1200))
    _, choices = model.router_choices(ids)
    counts = Counter(choices.flatten().tolist())
    busiest = sum(count for _, count in counts.most_common(8)) / counts.total()
    assert busiest < 0.25  # 0.125 if all were equal
    assert bool(model.logits(ids[:3]).isfinite().all())
