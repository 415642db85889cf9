"""Calls the compiled inner loops of choosing codes (csrc/quantize_kernel.hpp) on torch tensors.

grid.py, gptq.py and refine.py each have a plain torch version beside the call, for tests and for machines
without a compiler. Matrices are transposed: a column is a row of memory.
"""

from __future__ import annotations

import torch

from ernie_local.kernels.native import native_module, warn_without_native
from ernie_local.kernels.operators import ready_module

BLOCK = 128  # columns that are processed before all others are updated; the limit of the kernels


def has_native_steps() -> bool:
    """Whether they can be used; warns once if not."""
    if ready_module() is None:
        warn_without_native()
        return False
    return True


def run_native_step(name: str, *arguments: object) -> None:
    """Call one of them, which checks shapes and dtypes; its results are written to the last tensors."""
    is_done = getattr(native_module(), name)(*arguments)
    assert is_done, (name, [each.shape for each in arguments if isinstance(each, torch.Tensor)])
