"""Reads real text from a Python installation: docstrings of the standard library and of installed packages.

No passage is in both sources.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

_LEAST_WORDS, _MOST_WORDS = 30, 160
# Large, well documented, and of other authors than the standard library.
PACKAGES = ("matplotlib", "networkx", "numpy", "hypothesis", "sympy", "transformers")


def standard_library(count: int) -> list[str]:
    """Passages of the standard library's docstrings."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "_vendor", "_bundled"}
    paths = [path for path in sorted(root.rglob("*.py")) if not skipped & set(path.relative_to(root).parts)]
    return _evenly(list(_passages(paths)), count)


def installed_packages(count: int) -> list[str]:
    """Passages of installed packages' docstrings, from each of PACKAGES alike."""
    shares: list[str] = []
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{name} is not installed, and its docstrings are part of the test text")
        root = Path(spec.origin).parent
        paths = [path for path in sorted(root.rglob("*.py")) if "tests" not in path.relative_to(root).parts]
        shares += _evenly(list(_passages(paths)), count // len(PACKAGES))
    return shares


def _passages(paths: list[Path]) -> Iterator[str]:
    """Each docstring once, cut to at most _MOST_WORDS words."""
    seen: set[str] = set()
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old escapes in strings
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError):
                continue  # templates and the like, which are no Python
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                words = (ast.get_docstring(node) or "").split()
                passage = " ".join(words[:_MOST_WORDS])
                if len(words) >= _LEAST_WORDS and passage not in seen:
                    seen.add(passage)
                    yield passage


def _evenly(passages: list[str], count: int) -> list[str]:
    if len(passages) < count:
        raise SystemExit(f"{len(passages)} passages of text were found, {count} are wanted")
    return [passages[index * len(passages) // count] for index in range(count)]
