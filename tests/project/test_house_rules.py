"""The checks of house_rules.py find what they are for, and accept a stated reason."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHECK = runpy.run_path(str(Path(__file__).with_name("house_rules.py")))
find_faults: Callable[[Path], tuple[dict[str, tuple[int, int]], list[str]]] = CHECK["find_faults"]


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def function_of(num_lines: int, first_line: str = "def f():") -> str:
    return first_line + "\n" + "".join(f"    x{number} = 1\n" for number in range(num_lines - 1))


def lines(count: int, name: str = "x") -> str:
    return "".join(f"{name}{number} = 1\n" for number in range(count))


def test_what_is_at_the_limits_passes(tmp_path: Path) -> None:
    write(tmp_path, "ernie_local/a.py", lines(400, "a"))
    write(tmp_path, "tests/a.py", lines(600, "b"))
    write(tmp_path, "ernie_local/b.py", function_of(60))
    write(tmp_path, "cli/ernie_cli/c.py", "class C:\n" + "".join(f"    c{n} = 1\n" for n in range(299)))
    write(tmp_path, "cli/ernie_cli/d.py", "".join(f"d{n} = 1\n" for n in range(11)))
    write(tmp_path, "cli/ernie_cli/e.py", "".join(f"d{n} = 1\n" for n in range(11)))
    write(tmp_path, "quant/a.py", SIX_PARAMETERS.format("one") + SIX_PARAMETERS.format("two"))
    sizes, faults = find_faults(tmp_path)
    assert faults == []
    assert sizes["all of the product"][0] == 6
    assert sizes["tests"] == (1, 600)


SIX_PARAMETERS = "def {}(a, b, c, d, e, f): ...\n"
SIX_NAMES = """call(1, a=1, b=2, c=3, d=4, e=5, f=6)
class C:
    a: int
    b: int
    c: int
    d: int
    e: int
    f: int
x = (o.a, o.b, o.c, o.d, o.e, o.f)
"""


def three_times(text: str) -> str:
    return "".join(text.format(name) for name in "xyz")


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("csrc/a.cpp", "\n" * 601, "csrc/a.cpp: 601 lines, the limit is 600"),
        ("ernie_local/a.py", lines(401), "ernie_local/a.py: 401 lines, the limit is 400"),
        ("ernie_local/b.py", function_of(61), "ernie_local/b.py:1: f has 61 lines, the limit is 60"),
        ("quant/q.py", "class C:\n" + lines(300, "    c"), "quant/q.py:1: C has 301 lines, the limit is 300"),
        ("quant/q.py", three_times(SIX_PARAMETERS), "a, b, c, d, e, f stand together in quant/q.py:1"),
        ("cli/c.py", SIX_NAMES, "a, b, c, d, e, f stand together in cli/c.py:2, cli/c.py:1, cli/c.py:9"),
        ("cli/c.py", lines(12) + "y = 0\n" + lines(12), "12 equal lines at cli/c.py:1 and cli/c.py:14"),
    ],
)  # fmt: skip
def test_more_is_a_fault(tmp_path: Path, name: str, text: str, fault: str) -> None:
    write(tmp_path, name, text)
    (found,) = find_faults(tmp_path)[1]
    assert found.startswith(fault)


def test_a_public_name_has_one_owner(tmp_path: Path) -> None:
    both = "def main(): ...\ndef _same(): ...\n"
    write(tmp_path, "ernie_local/a.py", both + "class Page: ...\nKind = Literal[1]\n")
    write(tmp_path, "cli/b.py", both + "def Page(): ...\nKind = Literal[2]\n")
    first, second = find_faults(tmp_path)[1]
    assert first.startswith("Kind is defined in cli/b.py and ernie_local/a.py")
    assert second.startswith("Page is defined in")


def test_the_product_has_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHECK["large_product"].__globals__, "MAX_PRODUCT_FILES", 1)
    monkeypatch.setitem(CHECK["large_product"].__globals__, "MAX_PRODUCT_LINES", 5)
    write(tmp_path, "ernie_local/a.py", lines(3))
    assert find_faults(tmp_path)[1] == []
    write(tmp_path, "ernie_local/b.py", lines(3, "y"))
    assert find_faults(tmp_path)[1] == ["2 product files, the limit is 1", "6 product lines, the limit is 5"]


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
