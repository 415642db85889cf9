"""Chooses codes where it is known which outputs matter: rows make up for each other's errors, as columns do.

The error is trace(G E H E^T): H of the inputs, G of the gradients of the answers at the outputs (Tseng, Sun,
De Sa, "Model-Preserving Adaptive Rounding", 2025, arXiv 2505.22988). With all other rows as they are, a row
is quantized as by GPTQ, from weights that are moved by the others' errors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ernie_local.packing import QuantizedMatrix, dequantize
from ernie_quant.gptq import order_and_factor
from ernie_quant.grid import rows_of

Tensor = torch.Tensor
# Of some rows: their weights, and the matrix as it is; the matrix with other codes.
ChooseRows = Callable[[Tensor, QuantizedMatrix], QuantizedMatrix]
_BLOCKS = 16  # of rows that are chosen at once; their errors do not reach each other


def quantize_two_sided(
    weights: Tensor,
    start: QuantizedMatrix,
    output_side: Tensor,
    choose: ChooseRows,
    refine_rows: ChooseRows,
    sweeps: int,
) -> QuantizedMatrix:
    """Codes by `choose`, then `sweeps` of `refine_rows` over all rows, which change scales and zeros too.

    weights: (rows, columns); start: their first scales, its codes do not count; output_side: (rows, rows),
    damped.
    """
    order, factor = order_and_factor(output_side)
    blocks = _blocks(len(weights))
    matrix = rows_of(start, torch.arange(len(weights)))  # a copy, which may be changed
    _choose_in_turn(weights.float(), matrix, order, factor, blocks, choose)
    error = weights.float() - dequantize(matrix)
    for _ in range(sweeps):
        for block in blocks:
            rows = order[block]
            coupling = output_side[rows]  # (rows of the block, rows)
            # No less than the eigenvalues of the block's own coupling: the error cannot grow.
            bound = coupling[:, rows].abs().sum(1, keepdim=True)
            wanted = weights[rows].float() - error[rows] + coupling @ error / bound
            refined = refine_rows(wanted, rows_of(matrix, rows))
            _put_rows(matrix, rows, refined)
            error[rows] = weights[rows].float() - dequantize(refined)
    return matrix


def _choose_in_turn(
    weights: Tensor,
    matrix: QuantizedMatrix,
    order: Tensor,
    factor: Tensor,
    blocks: list[slice],
    choose: ChooseRows,
) -> None:
    """Blocks of rows in `order`; later rows make up for the errors of each block. factor: (rows, rows)."""
    left = weights[order]  # (rows, columns)
    for block in blocks:
        rows = order[block]
        chosen = choose(left[block], rows_of(matrix, rows))
        _put_rows(matrix, rows, chosen)
        error = left[block] - dequantize(chosen)
        error = torch.linalg.solve_triangular(factor[block, block].t(), error, upper=False)
        left[block.stop :].addmm_(factor[block, block.stop :].t(), error, alpha=-1)


def _blocks(num_rows: int) -> list[slice]:
    size = -(-num_rows // _BLOCKS)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def _put_rows(matrix: QuantizedMatrix, rows: Tensor, part: QuantizedMatrix) -> None:
    """Write all of `part` to these rows."""
    for whole, some in (
        (matrix.codes, part.codes),
        (matrix.scales, part.scales),
        (matrix.zeros, part.zeros),
        (matrix.row_scales, part.row_scales),
    ):
        if whole is not None and some is not None:
            whole[rows] = some
