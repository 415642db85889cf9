"""What nano answers about images in drawn schemas, by the script whose figures docs/performance.md has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_answers_fit_their_schema_or_there_is_none() -> None:
    command = [sys.executable, "benchmarks/structured.py", "--schemas", "5", "--max-tokens", "48"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    counts = json.loads(result.stdout.splitlines()[-1])
    assert (counts["schemas"], counts["valid"] + counts["cut"], counts["wrong"]) == (5, 20, 0)
    assert counts["valid"] > 0
    assert counts["cut"] > 0
