"""The command lines that README.md promises are the ones .ci/run runs, word for word."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def readme_command_lines() -> list[str]:
    """Lines inside README's fenced blocks that start with making a virtual environment."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("python3 -m venv")]


def ci_lines() -> list[str]:
    return [line.strip() for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()]


def test_readme_has_one_line_that_tests_and_one_that_answers() -> None:
    lines = readme_command_lines()
    assert sum(line.endswith("pytest") for line in lines) == 1, lines
    assert sum("ernie-local chat" in line for line in lines) == 1, lines


def test_ci_runs_each_readme_line_word_for_word() -> None:
    missing = [line for line in readme_command_lines() if line not in ci_lines()]
    assert not missing, f".ci/run does not run what README.md says: {missing}"


def test_ci_has_no_install_line_that_readme_lacks() -> None:
    installs = [line for line in ci_lines() if "pip install" in line]
    assert installs
    extra = [line for line in installs if line not in readme_command_lines()]
    assert not extra, f".ci/run installs what README.md does not: {extra}"
