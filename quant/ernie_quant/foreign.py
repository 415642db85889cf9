"""Quantizes experts by other libraries: nf4 of bitsandbytes, and optimum-quanto with and without HQQ.

It needs no calibration. The libraries are imported only here, when a matrix is quantized; the results are
stored in their own terms (docs/format.md) and read without them.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace

import torch

from ernie_local.errors import DoesNotFit, UsageError, parameter
from ernie_local.packing.foreign import ForeignMatrix, unpack_quanto
from ernie_local.packing.formats import formats_by_bits
from ernie_local.packing.layout import (
    ABSMAX_BLOCK,
    KINDS,
    LARGEST_GROUP,
    NF4_BLOCK_SIZES,
    ForeignFormat,
    make_foreign,
)
from ernie_local.packing.rounding import to_scales

Tensor = torch.Tensor
FOREIGN_PACKAGES: Mapping[str, str] = {
    "nf4": "bitsandbytes",
    "quanto": "optimum-quanto",
    "quanto-hqq": "optimum-quanto",
}
FOREIGN_METHODS = tuple(FOREIGN_PACKAGES)
_MODULES = {"bitsandbytes": ("bitsandbytes",), "optimum-quanto": ("optimum", "optimum.quanto")}
# The libraries' own defaults: 64 and nested scales of bitsandbytes give 4.13 bits; 128 of quanto gives 2.25
# and 4.25 bits, as in w2 and w4.
_GROUP_SIZES = {"nf4": 64, "quanto": 128, "quanto-hqq": 128}


def choose_expert_format(method: str, bits: str, group_size: int | None = None) -> str:
    """The format of experts of so many bits, or of that name. UsageError if the method makes none."""
    if method not in FOREIGN_METHODS:
        if group_size is not None:
            raise UsageError(
                f"groups of {group_size} with the method {method}",
                "our formats have fixed groups: 128 in w8, 64 in w4 and w3, 32 in w2 and w2t",
                f"omit {parameter('group_size')}, or use one of {', '.join(FOREIGN_METHODS)}",
            )
        return formats_by_bits()[bits].name
    wanted = _GROUP_SIZES[method] if group_size is None else group_size
    if method == "nf4" and bits != "4":
        raise UsageError(
            f"nf4 with {bits} bits",
            "the format has 4 bits",
            f"omit {parameter('bits')}, or use {parameter('method', 'quanto')} for 2 bits",
        )
    if method != "nf4" and f"qint{bits}" not in KINDS.values():
        raise UsageError(
            f"{method} with {bits} bits",
            "of its formats, those of 2 and 4 bits are read here",
            f"{parameter('bits', 4)} or 2, or one of our own methods such as {parameter('method', 'gptq')}",
        )
    foreign = make_foreign("nf4" if method == "nf4" else f"qint{bits}", wanted)
    if foreign is None:
        allowed = ", ".join(map(str, NF4_BLOCK_SIZES)) if method == "nf4" else f"1 to {LARGEST_GROUP}"
        raise UsageError(
            f"{method} with groups of {wanted}, allowed are {allowed}",
            "bitsandbytes has fixed sizes, and dequantizes the larger ones wrongly with AVX-512"
            if method == "nf4"
            else "no row is that long",
            f"omit it: {_GROUP_SIZES[method]} is the default of the library",
        )
    return foreign.name


def check_library(method: str) -> None:
    """Raise DoesNotFit unless the library behind `method` is installed; does not import it."""
    package = FOREIGN_PACKAGES[method]
    # find_spec raises for a module of a missing parent, so each name is looked up in turn.
    if not all(importlib.util.find_spec(name) for name in _MODULES[package]):
        raise DoesNotFit(
            f"the method {method} needs {package}, which is not installed",
            "the method is that library's own code; running the result does not need it",
            f"pip install {package}",
        )


def quantize_foreign(weights: Tensor, foreign: ForeignFormat, method: str) -> ForeignMatrix:
    """weights: (rows, columns) finite float32; method: the one of the format."""
    if method == "nf4":
        return _nf4(weights, foreign)
    return _quanto(weights, foreign, use_hqq=method == "quanto-hqq")


def _nf4(weights: Tensor, foreign: ForeignFormat) -> ForeignMatrix:
    # It warns of a matmul kernel that is not used here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(
        weights.contiguous(), blocksize=foreign.group_size, quant_type="nf4", compress_statistics=True
    )
    nested = state.state2
    assert nested.blocksize == ABSMAX_BLOCK, nested.blocksize
    floats = torch.cat((state.offset.float().view(1), nested.absmax.float()))
    rows, columns = weights.shape
    return ForeignMatrix(foreign, (rows, columns), floats, state.absmax, codes.flatten())


def _quanto(weights: Tensor, foreign: ForeignFormat, use_hqq: bool) -> ForeignMatrix:
    """Scales and shifts are searched in float32 and rounded to float16; codes are chosen for the rounded
    ones.

    Quanto works in bfloat16 for such a model, which rounds away most of HQQ's gain. This is the better one at
    the same bytes.
    """
    library = _quanto_library()
    rows, columns = weights.shape
    groups = weights.float().reshape(-1, foreign.group_columns(columns))
    kind = getattr(library, foreign.kind)
    optimizer = library.HqqOptimizer() if use_hqq else library.MaxOptimizer()
    with torch.no_grad():
        scales, shifts = optimizer(groups, kind, 0)  # (groups, 1) each
        # A group of equal weights has scale 0, which cannot divide; its shift alone represents them.
        scales, shifts = to_scales(scales), shifts.half()
        matrix = library.quantize_weight(groups, kind, 0, scales, shifts, optimized=False)
    codes = matrix._data._data.flatten()
    return ForeignMatrix(
        foreign, (rows, columns), torch.stack((scales, shifts)).flatten(1), codes.new_empty(0), codes
    )


@functools.cache
def _quanto_library() -> ModuleType:
    """optimum.quanto, made to unpack codes, as HQQ does, by our code: it would compile C++ for a minute."""
    import optimum.quanto
    from optimum.quanto.library.extensions import get_extension

    get_extension("quanto_cpp")._lib = SimpleNamespace(unpack=unpack_quanto)
    library: ModuleType = optimum.quanto
    return library
