"""The check that the CPU kernels compute what they should: small products against the plain torch reference.

Every instruction set that can run here, with matrices of every format and experts in w4, of one token and of
many. Knows nothing of speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ernie_local.doctor.finding import Finding
from ernie_local.errors import ErnieLocalError
from ernie_local.kernels.native import native_module

if TYPE_CHECKING:
    import torch

    from ernie_local.packing import LowBitFormat, QuantizedMatrix

NAME = "self-test"
# Relative to the output. Tokens are rounded to int8, which costs an expert up to 1.7 % (docs/decisions.md).
LARGEST_DIFFERENCE = 2e-2
_NUM_TOKENS = (1, 15, 33)  # alone, few, and more than are rounded twice
_ROWS, _COLUMNS = 48, 272  # no whole number of groups
_Product = tuple[Callable[[], "torch.Tensor"], "torch.Tensor"]  # what the kernels compute, what is right


def check(setting: str) -> Finding:
    """Fails where any instruction set differs too much; `setting` is what a user sets to force another."""
    differences = measure_differences()
    largest = max(differences.values(), default=0.0)
    facts = {
        "limit": LARGEST_DIFFERENCE,
        "largest_difference": _finite(largest) if differences else None,
        "differences": [
            {"instruction_set": name, "largest_difference": _finite(value)}
            for name, value in differences.items()
        ],
    }
    if not differences:
        return Finding(NAME, "ok", "nothing to test: without kernels PyTorch computes by itself", None, facts)
    wrong = {name: value for name, value in differences.items() if value > LARGEST_DIFFERENCE}
    if not wrong:
        text = f"relative error {largest:.3f}, limit {LARGEST_DIFFERENCE} ({', '.join(differences)})"
        return Finding(NAME, "ok", text, None, facts)
    shown = ", ".join(f"{name} {value:.3g}" for name, value in wrong.items())
    text = f"relative error over the limit {LARGEST_DIFFERENCE}: {shown}"
    right = [name for name in differences if name not in wrong]
    return Finding(
        NAME,
        "fails",
        text,
        (f"{setting}={right[0]} computes rightly" if right else "install again with another C++ compiler")
        + "; please report this",
        facts,
    )


def measure_differences() -> dict[str, float]:
    """Instruction set to its largest relative difference, infinite where a kernel gave no number.

    Empty without the native module. Leaves in use what was in use.
    """
    module = native_module()
    if module is None:
        return {}
    products = [*_linear_products(), *_expert_products()]
    before, differences = module.instruction_set(), {}
    try:
        for name in module.instruction_sets():
            module.use_instruction_set(name)
            differences[name] = max(_relative_difference(*product) for product in products)
    finally:
        module.use_instruction_set(before)
    return differences


def _relative_difference(compute: Callable[[], torch.Tensor], expected: torch.Tensor) -> float:
    try:
        actual = compute()
    except ErnieLocalError:  # the kernel found fault with numbers that are right
        return math.inf
    difference = float((actual - expected).norm() / expected.norm())
    return difference if math.isfinite(difference) else math.inf


def _linear_products() -> list[_Product]:
    import torch

    from ernie_local.kernels.arguments import PackedMatrix
    from ernie_local.kernels.linear import packed_linear
    from ernie_local.kernels.reference import plain_linear
    from ernie_local.packing import FORMATS, pack_matrix

    generator = torch.Generator().manual_seed(0)
    products: list[_Product] = []
    for name, low_bit in FORMATS.items():
        packed = pack_matrix(_random_matrix(low_bit, _ROWS, _COLUMNS, generator))
        matrix = PackedMatrix(packed, name, _ROWS)
        for num_tokens in _NUM_TOKENS:
            tokens = torch.randn(num_tokens, _COLUMNS, generator=generator)
            products.append((partial(packed_linear, tokens, matrix), plain_linear(tokens, matrix)))
    return products


def _expert_products() -> list[_Product]:
    import torch

    from ernie_local.kernels.arguments import ExpertsCall
    from ernie_local.kernels.experts import packed_experts
    from ernie_local.kernels.reference import plain_experts
    from ernie_local.packing import ExpertPage, find_format, pack_page

    generator = torch.Generator().manual_seed(0)
    w4, inner_size = find_format("w4"), 80
    shapes = ((inner_size, _COLUMNS), (inner_size, _COLUMNS), (_COLUMNS, inner_size))
    slots = torch.stack(
        [
            pack_page(ExpertPage(*(_random_matrix(w4, *shape, generator) for shape in shapes)))
            for _ in range(2)
        ]
    )
    products: list[_Product] = []
    for num_tokens in _NUM_TOKENS:
        hidden = torch.randn(num_tokens, _COLUMNS, generator=generator)
        weights = torch.full((num_tokens, 2), 0.5)
        call = ExpertsCall(hidden, slots, torch.tensor([[0, 1]]).repeat(num_tokens, 1), weights)
        products.append((partial(packed_experts, call), plain_experts(call)))
    return products


def _random_matrix(
    low_bit: LowBitFormat, rows: int, columns: int, generator: torch.Generator
) -> QuantizedMatrix:
    """Random codes, scales and zeros; weights of about unit size."""
    import torch

    from ernie_local.packing import QuantizedMatrix

    def whole(shape: tuple[int, int], highest: int) -> torch.Tensor:
        return torch.randint(0, highest + 1, shape, dtype=torch.uint8, generator=generator)

    groups = (rows, low_bit.num_groups(columns))
    codes = whole((rows, columns), low_bit.highest_code)
    if low_bit.is_symmetric:
        scales = (torch.rand(groups, generator=generator) / 64).half()
        return QuantizedMatrix(low_bit, codes, scales, None, None)
    row_scales = torch.full((rows,), 2 / (low_bit.highest_scale * low_bit.highest_code)).half()
    return QuantizedMatrix(
        low_bit, codes, whole(groups, low_bit.highest_scale), whole(groups, low_bit.highest_zero), row_scales
    )


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
