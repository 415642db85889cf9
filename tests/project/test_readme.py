"""What README.md shows besides commands is true: its terminal picture, table, figures and Python example."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(ROOT)
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    values = runpy.run_path(str(tmp_path / "example.py"))
    assert capsys.readouterr().out == "£84.84\n"
    assert values["logits"].shape[0] == 3


def test_the_terminal_picture_shows_what_the_chat_says() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "write_chat_svg.py"))
    svg = (ROOT / "docs" / "chat.svg").read_text(encoding="utf-8")
    assert script["shown_text"](svg) == script["shown_text"](script["draw"](script["chat_lines"]()))
    assert "http" not in re.sub(r'xmlns="[^"]*"|<!--.*?-->', "", svg), "the picture loads something"


def test_the_table_of_machines_is_what_vram_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    script = runpy.run_path(str(ROOT / "docs" / "write_fit_table.py"))
    assert script["table"]() in README


def test_measured_figures_stand_in_the_page_of_measurements() -> None:
    section = README[README.index("## Measured") : README.index("## Python")]
    figures = [
        figure
        for line in section.splitlines()
        if line.startswith("| ") and "---" not in line
        for cell in line.split("|")[2:-1]
        for figure in re.findall(r"\d+(?:\.\d+)?", cell)
    ]
    assert len(figures) > 10
    measured = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    unknown = [
        figure
        for figure in figures
        if re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.])", measured) is None
    ]
    assert unknown == []
