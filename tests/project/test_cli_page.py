"""docs/cli.md: the page follows from the help texts and nothing else."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docs" / "write_cli_page.py"


def test_the_page_holds_each_help_text_under_its_command_line() -> None:
    render_page = runpy.run_path(str(SCRIPT))["render_page"]
    page = render_page({"ernie-local": "Usage: ernie-local", "ernie-local chat": "Usage: ernie-local chat"})
    assert "## ernie-local\n\n```text\nUsage: ernie-local\n```\n" in page
    assert "## ernie-local chat\n\n```text\nUsage: ernie-local chat\n```\n" in page


def test_the_committed_page_is_current() -> None:
    paths = [str(ROOT), *(str(ROOT / folder) for folder in ("quant", "calibration", "cli"))]
    # A terminal of another width must not matter, and the check must not need an install.
    environment = {"PYTHONPATH": ":".join(paths), "COLUMNS": "60", "PATH": ""}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
