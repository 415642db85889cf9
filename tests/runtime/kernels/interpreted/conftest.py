"""These tests run Triton's kernels by its interpreter, on the CPU, in a process of their own: see
test_triton_interpreted.py, which starts it. Elsewhere nothing here is collected.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton

IS_INTERPRETED = triton.knobs.runtime.interpret
collect_ignore_glob = [] if IS_INTERPRETED else ["test_*.py"]


class ChangedKernels(MetaPathFinder):
    """Finds the kernels' modules in another folder, before any other finder does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(self, name: str, *others: object) -> ModuleSpec | None:
        package, _dot, module = name.rpartition(".")
        if package != "ernie_local.kernels.triton":
            return None
        return spec_from_file_location(name, self._folder / f"{module}.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernels-from", type=Path, help="a changed copy of ernie_local/kernels/triton")


def pytest_configure(config: pytest.Config) -> None:
    folder = config.getoption("--kernels-from", default=None)
    if folder is not None:
        sys.meta_path.insert(0, ChangedKernels(folder))
    if IS_INTERPRETED:
        _let_the_interpreter_multiply_bfloat16()


def _let_the_interpreter_multiply_bfloat16() -> None:
    """It keeps bfloat16 as its bits, and multiplies them as whole numbers."""
    from triton.runtime import interpreter

    multiply = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.name != "bf16":
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), interpreter.tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return multiply(self, widened(a), widened(b), *others)

    interpreter.InterpreterBuilder.create_dot = create_dot
