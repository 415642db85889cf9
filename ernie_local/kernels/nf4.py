"""Unpacks nf4 matrices by bitsandbytes' own kernels on their device, and says why where these cannot run.

bitsandbytes is imported when asked for. Not run on a GPU yet: on the processor the same calls are tested
against plain torch.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import warnings

import torch
from torch import Tensor
from torch.nn import functional

from ernie_local.kernels.native import Absence
from ernie_local.packing.foreign import absmax_levels, dequantize_foreign, split_foreign
from ernie_local.packing.layout import ABSMAX_BLOCK, ForeignFormat

_WHAT = "nf4 experts are unpacked on the GPU by plain PyTorch, not by the kernels of bitsandbytes"
_BLOCK_SIZE = 64


class Nf4KernelsMissing(UserWarning):
    """bitsandbytes cannot unpack nf4 on this device; slower PyTorch code does."""


def nf4_package_absence() -> Absence | None:
    """Why there is no bitsandbytes; None where it is installed. Imports nothing of it."""
    if importlib.util.find_spec("bitsandbytes") is not None:
        return None
    return Absence(_WHAT, "the module bitsandbytes is not installed", "pip install bitsandbytes")


@functools.cache
def nf4_absence(device: torch.device) -> Absence | None:
    """Why the kernels cannot run on this device, after a try of them; None where they can."""
    absence = nf4_package_absence()
    if absence is not None:
        return absence
    hint = "`python -m bitsandbytes` tells what it lacks; install a version built for this CUDA"
    foreign, rows = ForeignFormat("nf4", _BLOCK_SIZE), 2
    packed = torch.arange(foreign.matrix_bytes(rows, _BLOCK_SIZE), device="cpu").to(torch.uint8)
    offset_and_scale = torch.tensor([0.5, 0.25], device="cpu").view(torch.uint8)
    packed[: offset_and_scale.numel()] = offset_and_scale
    try:
        found = dequantize_by_bitsandbytes(packed.to(device), foreign, rows, _BLOCK_SIZE).cpu()
    except (ImportError, OSError, RuntimeError) as error:  # its library does not load, or has no such kernel
        return Absence(_WHAT, f"they do not run here: {str(error).strip().partition(chr(10))[0]}", hint)
    wanted = dequantize_foreign(packed, foreign, rows, _BLOCK_SIZE)
    if not torch.allclose(found, wanted, rtol=1e-5, atol=1e-6):
        return Absence(_WHAT, f"they are {float((found - wanted).abs().max()):.3g} off in a test", hint)
    return None


@functools.cache
def warn_without_nf4_kernels(device: torch.device) -> None:
    """Give the absence as an Nf4KernelsMissing warning, at most once in a process for each device."""
    absence = nf4_absence(device)
    if absence is not None:
        warnings.warn(absence.notice, Nf4KernelsMissing, stacklevel=2)


def dequantize_by_bitsandbytes(packed: Tensor, foreign: ForeignFormat, rows: int, columns: int) -> Tensor:
    """As `dequantize_foreign`, (rows, columns) float32; formats other than nf4 are unpacked by that.

    packed: (matrix_bytes,) uint8, a view of a page. RuntimeError where bitsandbytes has no such kernel.
    """
    if foreign.kind != "nf4":
        return dequantize_foreign(packed, foreign, rows, columns)
    _import_bitsandbytes()
    floats, scale_codes, codes = split_foreign(packed, foreign, rows, columns)
    operators = torch.ops.bitsandbytes
    levels = absmax_levels(packed.device)
    scales = operators.dequantize_blockwise(scale_codes, floats[1:], levels, ABSMAX_BLOCK, torch.float32)
    scales += floats[0]  # (blocks,)
    # As one row of whole blocks: the one way in which it is right for every shape on every processor.
    numbers = rows * columns
    whole = -(-numbers // foreign.group_size) * foreign.group_size
    if whole > numbers:
        codes = functional.pad(codes, (0, whole // 2 - codes.numel()))
    weights: Tensor = operators.dequantize_4bit(
        codes, scales, foreign.group_size, foreign.kind, (whole,), torch.float32
    )
    return weights.flatten()[:numbers].view(rows, columns)


@functools.cache
def _import_bitsandbytes() -> None:
    # It warns of a kernel for products, of which nothing here makes use.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    importlib.import_module("bitsandbytes")
