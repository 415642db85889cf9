"""How far a kernel may be from plain torch in float32, and how that is measured."""

from __future__ import annotations

import torch

# float32 throughout: only the order of sums differs.
EXACT = 1e-5
# Tokens and weights are rounded to 11 digits of binary, so that a product is off by 2 * 2^-11 of its size at
# most; a sum of products with signs by less. The interpreter cuts bfloat16 to 8 digits in place of rounding.
FLOAT16 = 2.0**-10
BFLOAT16 = 2.0**-6
# Through gate and up, their product, and down: three times, and inner activations once more.
EXPERTS_FLOAT16 = 2.0**-9
EXPERTS_BFLOAT16 = 2.0**-5


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
