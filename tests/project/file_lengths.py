"""Prints the longest source files; fails on a file over 600 lines, a function over 60, a class over 300.

A function or class that has a reason to be longer carries `# long: the reason` on its first line.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("ernie_local", "quant", "calibration", "cli", "tests", "csrc", "benchmarks", "examples", "docs")
SUFFIXES = (".py", ".pyi", ".cpp", ".hpp", ".cu")
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
MAX_CLASS_LINES = 300
NUM_SHOWN = 12


def source_files(root: Path) -> list[Path]:
    """All source files below the top-level folders of `root`, sorted."""
    found = (path for folder in FOLDERS for path in (root / folder).rglob("*") if path.suffix in SUFFIXES)
    return sorted(found)


def long_definitions(path: Path, text: str) -> Iterator[str]:
    """One message for each function and class of a Python file that is over its limit and gives no reason."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text, filename=str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = MAX_FUNCTION_LINES
        elif isinstance(node, ast.ClassDef):
            limit = MAX_CLASS_LINES
        else:
            continue
        num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if num_lines > limit and "# long: " not in lines[node.lineno - 1]:
            yield f"{path}:{node.lineno}: {node.name} has {num_lines} lines, the limit is {limit}"


def find_faults(root: Path) -> tuple[list[tuple[int, Path]], list[str]]:
    """(number of lines, path) of every source file, longest first; and what is over a limit, in words."""
    lengths: list[tuple[int, Path]] = []
    faults: list[str] = []
    for path in source_files(root):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(root)
        num_lines = len(text.splitlines())
        lengths.append((num_lines, name))
        if num_lines > MAX_FILE_LINES:
            faults.append(f"{name}: {num_lines} lines, the limit is {MAX_FILE_LINES}: split it at a seam")
        if path.suffix == ".py":
            faults.extend(long_definitions(name, text))
    lengths.sort(key=lambda entry: (-entry[0], entry[1]))
    return lengths, faults


def main() -> int:
    """Print the table and the faults; 1 if there is a fault."""
    lengths, faults = find_faults(ROOT)
    total = sum(num_lines for num_lines, _ in lengths)
    print(f"{len(lengths)} source files, {total} lines; the longest:")
    for num_lines, name in lengths[:NUM_SHOWN]:
        print(f"{num_lines:6}  {name}")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
