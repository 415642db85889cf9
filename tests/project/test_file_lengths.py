"""The length check finds what is too long, and accepts a stated reason."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHECK = runpy.run_path(str(Path(__file__).with_name("file_lengths.py")))
find_faults: Callable[[Path], tuple[list[tuple[int, Path]], list[str]]] = CHECK["find_faults"]


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def function_of(num_lines: int, first_line: str = "def f():") -> str:
    return first_line + "\n" + "    x = 1\n" * (num_lines - 1)


def test_files_at_the_limits_pass(tmp_path: Path) -> None:
    write(tmp_path, "ernie_local/a.py", "x = 1\n" * 600)
    write(tmp_path, "ernie_local/b.py", function_of(60))
    write(tmp_path, "cli/ernie_cli/c.py", "class C:\n" + "    x = 1\n" * 299)
    lengths, faults = find_faults(tmp_path)
    assert faults == []
    assert lengths[0] == (600, Path("ernie_local/a.py"))


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("csrc/a.cpp", "\n" * 601, "csrc/a.cpp: 601 lines, the limit is 600: split it at a seam"),
        ("ernie_local/b.py", function_of(61), "ernie_local/b.py:1: f has 61 lines, the limit is 60"),
        ("quant/q.py", "class C:\n" + "    x = 1\n" * 300, "quant/q.py:1: C has 301 lines, the limit is 300"),
    ],
)
def test_one_line_more_is_a_fault(tmp_path: Path, name: str, text: str, fault: str) -> None:
    write(tmp_path, name, text)
    assert find_faults(tmp_path)[1] == [fault]


def test_a_stated_reason_is_accepted(tmp_path: Path) -> None:
    write(tmp_path, "ernie_local/b.py", function_of(61, "def f():  # long: one table"))
    assert find_faults(tmp_path)[1] == []


def test_main_fails_only_where_there_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main: Any = CHECK["main"]
    monkeypatch.setitem(main.__globals__, "ROOT", tmp_path)
    write(tmp_path, "tests/a.py", "x = 1\n")
    assert main() == 0
    write(tmp_path, "tests/a.py", function_of(61))
    assert main() == 1
    assert "tests/a.py:1: f has 61 lines" in capsys.readouterr().err
