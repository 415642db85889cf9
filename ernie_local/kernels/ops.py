"""The packed operators, `torch.ops.ernie_local.*`: schema, fake, and who computes them on the CPU.

Knows which code computes; what it must compute stands in reference.py, how fast in csrc/.
"""

from __future__ import annotations

import torch

from ernie_local.kernels import checks, reference
from ernie_local.kernels.native import native_module, warn_without_native
from ernie_local.packing import find_format

LIBRARY = torch.library.Library("ernie_local", "DEF")
LIBRARY.define("packed_linear(Tensor tokens, Tensor packed, str format_name, int rows) -> Tensor")
LIBRARY.define("packed_rows(Tensor row_ids, Tensor packed, str format_name, int rows, int columns) -> Tensor")
LIBRARY.define("packed_experts(Tensor hidden, Tensor slots, Tensor slot_ids, Tensor weights) -> Tensor")


def packed_linear(tokens: torch.Tensor, packed: torch.Tensor, format_name: str, rows: int) -> torch.Tensor:
    """tokens @ matrix.T for a packed matrix of `rows` x tokens' columns.

    tokens: (tokens, columns) float32 or bfloat16; packed: (matrix_bytes,) uint8 -> (tokens, rows) in tokens'
    dtype. The kernels round tokens to int8, group by group. Raises UsageError or ModelUnusable, with the
    argument's name.
    """
    output: torch.Tensor = torch.ops.ernie_local.packed_linear(tokens, packed, format_name, rows)
    return output


def packed_rows(
    row_ids: torch.Tensor, packed: torch.Tensor, format_name: str, rows: int, columns: int
) -> torch.Tensor:
    """Rows of a packed matrix of `rows` x `columns`, dequantized exactly.

    row_ids: (count,) int64; packed: (matrix_bytes,) uint8 -> (count, columns) float32.
    """
    output: torch.Tensor = torch.ops.ernie_local.packed_rows(row_ids, packed, format_name, rows, columns)
    return output


def packed_experts(
    hidden: torch.Tensor, slots: torch.Tensor, slot_ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The weighted sum of each token's experts, whose pages lie in `slots`; their formats may differ.

    hidden: (tokens, hidden_size) float32 or bfloat16; slots: (slots, bytes) uint8; slot_ids: (tokens, top_k)
    int64; weights: (tokens, top_k) in hidden's dtype -> (tokens, hidden_size) in hidden's dtype.
    """
    output: torch.Tensor = torch.ops.ernie_local.packed_experts(hidden, slots, slot_ids, weights)
    return output


def _packed_linear_cpu(
    tokens: torch.Tensor, packed: torch.Tensor, format_name: str, rows: int
) -> torch.Tensor:
    op = "packed_linear"
    checks.check_tokens(op, "tokens", tokens)
    low_bit = find_format(format_name)
    checks.check_packed_matrix(op, packed, low_bit, rows, tokens.shape[1])
    native = native_module()
    exact = tokens.float().contiguous()
    if native is None:
        warn_without_native()
        return reference.packed_linear(exact, packed, low_bit, rows).to(tokens.dtype)
    output = torch.empty(tokens.shape[0], rows)
    follow_torch_threads()
    broken = native.packed_linear(exact, packed.contiguous(), low_bit.format_id, rows, output)
    if broken >= 0:
        raise checks.broken_token(op, "tokens", broken)
    return output.to(tokens.dtype)


def _packed_rows_cpu(
    row_ids: torch.Tensor, packed: torch.Tensor, format_name: str, rows: int, columns: int
) -> torch.Tensor:
    op = "packed_rows"
    low_bit = find_format(format_name)
    checks.check_packed_matrix(op, packed, low_bit, rows, columns)
    checks.check_row_ids(op, row_ids, rows)
    native = native_module()
    if native is None:
        warn_without_native()
        return reference.packed_rows(row_ids, packed, low_bit, columns)
    output = torch.empty(len(row_ids), columns)
    follow_torch_threads()
    native.packed_rows(packed.contiguous(), low_bit.format_id, rows, row_ids.contiguous(), output)
    return output


def _packed_experts_cpu(
    hidden: torch.Tensor, slots: torch.Tensor, slot_ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    op = "packed_experts"
    checks.check_experts(op, hidden, slots, slot_ids, weights)
    native = native_module()
    exact, exact_weights = hidden.float().contiguous(), weights.float().contiguous()
    if native is None:
        warn_without_native()
        return reference.packed_experts(exact, slots, slot_ids, exact_weights).to(hidden.dtype)
    output = torch.empty_like(exact)
    follow_torch_threads()
    kind, index = native.packed_experts(
        exact, slots.contiguous(), slot_ids.contiguous(), exact_weights, output
    )
    if kind == 1:
        raise checks.broken_token(op, "hidden", index)
    if kind == 2:
        raise checks.broken_page(op, index, hidden.shape[1])
    return output.to(hidden.dtype)


def follow_torch_threads() -> None:
    """Give the kernels as many threads as torch uses."""
    native = native_module()
    if native is not None and native.num_threads() != torch.get_num_threads():
        native.set_num_threads(torch.get_num_threads())


def _packed_linear_fake(
    tokens: torch.Tensor,
    packed: torch.Tensor,  # noqa: ARG001
    format_name: str,  # noqa: ARG001
    rows: int,
) -> torch.Tensor:
    return tokens.new_empty(tokens.shape[0], rows)


def _packed_rows_fake(
    row_ids: torch.Tensor,
    packed: torch.Tensor,
    format_name: str,  # noqa: ARG001
    rows: int,  # noqa: ARG001
    columns: int,
) -> torch.Tensor:
    return packed.new_empty(row_ids.shape[0], columns, dtype=torch.float32)


def _packed_experts_fake(hidden: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(hidden)


LIBRARY.impl("packed_linear", _packed_linear_cpu, "CPU")
LIBRARY.impl("packed_rows", _packed_rows_cpu, "CPU")
LIBRARY.impl("packed_experts", _packed_experts_cpu, "CPU")
torch.library.register_fake("ernie_local::packed_linear", _packed_linear_fake, lib=LIBRARY)
torch.library.register_fake("ernie_local::packed_rows", _packed_rows_fake, lib=LIBRARY)
torch.library.register_fake("ernie_local::packed_experts", _packed_experts_fake, lib=LIBRARY)
