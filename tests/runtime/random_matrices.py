"""Random quantized matrices and expert pages, for the tests of packing and of kernels."""

from __future__ import annotations

import torch

from ernie_local.packing import ExpertPage, LowBitFormat, QuantizedMatrix, find_format


def random_matrix(name: str, rows: int, columns: int, seed: int = 0) -> QuantizedMatrix:
    """Every code, scale and zero that the format can hold; weights of about unit size."""
    generator = torch.Generator().manual_seed(seed)
    low_bit = find_format(name)
    groups = (rows, low_bit.num_groups(columns))

    def whole(shape: tuple[int, ...], highest: int) -> torch.Tensor:
        return torch.randint(0, highest + 1, shape, dtype=torch.uint8, generator=generator)

    codes = whole((rows, columns), low_bit.highest_code)
    if low_bit.has_fp16_scales:
        scales = (torch.rand(groups, generator=generator) / 64).half()
        return QuantizedMatrix(low_bit, codes, scales, None, None)
    row_scales = (torch.rand(rows, generator=generator) / typical_weight(low_bit)).half()
    scales = whole(groups, low_bit.highest_scale)
    zeros = whole(groups, low_bit.highest_zero) if low_bit.has_zeros else None
    return QuantizedMatrix(low_bit, codes, scales, zeros, row_scales)


def typical_weight(low_bit: LowBitFormat) -> float:
    """The size of a weight whose row scale is 1."""
    return low_bit.widest_range / 2


def random_page(gate_up: str, down: str, hidden_size: int, inner_size: int, seed: int = 0) -> ExpertPage:
    """An expert of the given formats and sizes."""
    return ExpertPage(
        random_matrix(gate_up, inner_size, hidden_size, 3 * seed),
        random_matrix(gate_up, inner_size, hidden_size, 3 * seed + 1),
        random_matrix(down, hidden_size, inner_size, 3 * seed + 2),
    )
