"""The packed operators, `torch.ops.ernie_local.*`: schema, fake, and who computes them on the CPU.

Knows which code computes; what it must compute stands in reference.py, how fast in csrc/.
"""

from __future__ import annotations

import torch

from ernie_local.kernels import checks, reference
from ernie_local.kernels.native import native_module, warn_without_native
from ernie_local.packing import find_format
from ernie_local.packing.foreign_page import is_foreign_page

LIBRARY = torch.library.Library("ernie_local", "DEF")
LIBRARY.define("packed_linear(Tensor tokens, Tensor packed, str format_name, int rows) -> Tensor")
LIBRARY.define("packed_rows(Tensor row_ids, Tensor packed, str format_name, int rows, int columns) -> Tensor")
LIBRARY.define(
    "packed_experts(Tensor hidden, Tensor slots, Tensor expert_ids, Tensor weights, "
    "Tensor? shared_page=None) -> Tensor"
)
LIBRARY.define(
    "add_packed_experts(Tensor(a!) output, Tensor hidden, Tensor slots, Tensor expert_ids, Tensor weights, "
    "Tensor? shared_page, Tensor? places) -> ()"
)


def packed_linear(tokens: torch.Tensor, packed: torch.Tensor, format_name: str, rows: int) -> torch.Tensor:
    """tokens @ matrix.T for a packed matrix of `rows` x tokens' columns.

    tokens: (tokens, columns) float32 or bfloat16; packed: (matrix_bytes,) uint8 -> (tokens, rows) in tokens'
    dtype. The kernels round tokens to int8, group by group. Raises UsageError or ModelUnusable, with the
    argument's name.
    """
    if needs_no_dispatch(tokens):
        return _packed_linear_cpu(tokens, packed, format_name, rows)
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
    hidden: torch.Tensor,
    slots: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    shared_page: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weighted sum of each token's experts, whose pages lie in `slots`; their formats may differ.


    Pages in other libraries' formats are computed by plain torch, one expert after the other.

    hidden: (tokens, hidden_size) float32 or bfloat16; slots: (slots, bytes) uint8; expert_ids: (tokens,
    top_k) int64; weights: (tokens, top_k) in hidden's dtype; shared_page: (1, bytes) uint8, an expert that
    every token visits with weight 1 -> (tokens, hidden_size) in hidden's dtype.
    """
    if needs_no_dispatch(hidden):
        return _packed_experts_cpu(hidden, slots, expert_ids, weights, shared_page)
    output: torch.Tensor = torch.ops.ernie_local.packed_experts(
        hidden, slots, expert_ids, weights, shared_page
    )
    return output


def add_packed_experts(
    output: torch.Tensor,
    hidden: torch.Tensor,
    slots: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    shared_page: torch.Tensor | None,
    places: torch.Tensor | None,
) -> None:
    """Add to `output`, (tokens, hidden_size) float32, what `packed_experts` would give.

    places: (experts,) int64, the slot where each expert's page begins, which may take several slots; or
    `checks.ABSENT_SLOT`, and the expert is left out. Experts are added one after the other, by their ids, the
    shared one last: a sum made in several calls is the same as that of one, to the bit.
    """
    if needs_no_dispatch(hidden):
        _add_packed_experts_cpu(output, hidden, slots, expert_ids, weights, shared_page, places)
    else:
        torch.ops.ernie_local.add_packed_experts(
            output, hidden, slots, expert_ids, weights, shared_page, places
        )


# What the native operators answer, see csrc/packed_bindings.cpp. They check all that they are given, so that
# here checks are due only when they refuse: a few microseconds in each of a hundred calls a token.
_DONE, _BROKEN_TOKEN, _BROKEN_PAGE = 0, 1, 2


def _empty(rows: int, columns: int) -> torch.Tensor:
    """Room for results, whatever torch's default dtype and device have been set to."""
    return torch.empty(rows, columns, dtype=torch.float32, device="cpu")


def needs_no_dispatch(tensor: torch.Tensor) -> bool:
    """Whether torch would come to the CPU code anyway.

    Its way there costs 5 microseconds a call, a hundred times a token. What looks on while torch dispatches
    (a profiler, say) does not see these calls.
    """
    return type(tensor) is torch.Tensor and tensor.is_cpu and not torch.compiler.is_compiling()


def _packed_linear_cpu(
    tokens: torch.Tensor, packed: torch.Tensor, format_name: str, rows: int
) -> torch.Tensor:
    op = "packed_linear"
    native, low_bit = native_module(), find_format(format_name)
    if native is not None and tokens.dtype == torch.float32 and tokens.ndim == 2 and rows > 0:
        follow_torch_threads()
        output = _empty(tokens.shape[0], rows)
        if native.packed_linear(tokens, packed, low_bit.format_id, rows, output)[0] == _DONE:
            return output
    checks.check_tokens(op, "tokens", tokens)
    checks.check_packed_matrix(op, packed, low_bit, rows, tokens.shape[1], tokens.device)
    exact = tokens.float().contiguous()
    if native is None:
        warn_without_native()
        return reference.packed_linear(exact, packed, low_bit, rows).to(tokens.dtype)
    follow_torch_threads()
    output = _empty(tokens.shape[0], rows)
    outcome, index = native.packed_linear(exact, packed.contiguous(), low_bit.format_id, rows, output)
    if outcome == _BROKEN_TOKEN:
        raise checks.broken_token(op, "tokens", index)
    assert outcome == _DONE, outcome
    return output.to(tokens.dtype)


def _packed_rows_cpu(
    row_ids: torch.Tensor, packed: torch.Tensor, format_name: str, rows: int, columns: int
) -> torch.Tensor:
    op = "packed_rows"
    low_bit = find_format(format_name)
    checks.check_packed_matrix(op, packed, low_bit, rows, columns, row_ids.device)
    checks.check_row_ids(op, row_ids, rows)
    native = native_module()
    if native is None:
        warn_without_native()
        return reference.packed_rows(row_ids, packed, low_bit, columns)
    output = _empty(len(row_ids), columns)
    follow_torch_threads()
    is_done = native.packed_rows(packed.contiguous(), low_bit.format_id, rows, row_ids.contiguous(), output)
    assert is_done
    return output


def _packed_experts_cpu(
    hidden: torch.Tensor,
    slots: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    shared_page: torch.Tensor | None = None,
) -> torch.Tensor:
    op = "packed_experts"
    native = native_module()
    if native is not None and hidden.dtype == torch.float32:
        follow_torch_threads()
        output = torch.empty_like(hidden)
        arguments = (hidden, slots, expert_ids, weights, shared_page, None)
        if native.packed_experts(*arguments, output, False)[0] == _DONE:
            return output
    checks.check_experts(op, hidden, slots, expert_ids, weights, shared_page, None)
    output = torch.zeros_like(hidden, dtype=torch.float32)
    _add_packed_experts_cpu(output, hidden, slots, expert_ids, weights, shared_page, None)
    return output.to(hidden.dtype)


def _add_packed_experts_cpu(
    output: torch.Tensor,
    hidden: torch.Tensor,
    slots: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    shared_page: torch.Tensor | None,
    places: torch.Tensor | None,
) -> None:
    op = "packed_experts"
    native = native_module()
    arguments = (hidden, slots, expert_ids, weights, shared_page, places)
    if native is not None and hidden.dtype == torch.float32:
        follow_torch_threads()
        if native.packed_experts(*arguments, output, True)[0] == _DONE:
            return
    checks.check_experts(op, *arguments)
    checks.check_sum(op, output, hidden)
    exact, exact_weights = hidden.float().contiguous(), weights.float().contiguous()
    if native is None:
        warn_without_native()
        reference.add_packed_experts(output, exact, slots, expert_ids, exact_weights, shared_page, places)
        return
    follow_torch_threads()
    shared = None if shared_page is None else shared_page.contiguous()
    outcome, index = native.packed_experts(
        exact, slots.contiguous(), expert_ids.contiguous(), exact_weights, shared, places, output, True
    )
    if outcome == _BROKEN_TOKEN:
        raise checks.broken_token(op, "hidden", index)
    if outcome == _BROKEN_PAGE and _is_foreign(slots, index, places):
        # Routed experts in plain torch, the shared page as fast as ever.
        reference.add_packed_experts(output, exact, slots, expert_ids, exact_weights, None, places)
        if shared_page is not None:
            only, ones = torch.zeros_like(expert_ids[:, :1]), torch.ones_like(exact_weights[:, :1])
            _add_packed_experts_cpu(output, exact, shared_page, only, ones, None, None)
        return
    if outcome == _BROKEN_PAGE:
        raise checks.broken_page(op, index, hidden.shape[1])
    assert outcome == _DONE, outcome


def _is_foreign(slots: torch.Tensor, expert_id: int, places: torch.Tensor | None) -> bool:
    if expert_id == checks.SHARED_EXPERT:
        return False
    return is_foreign_page(slots[expert_id if places is None else int(places[expert_id])])


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


def _add_packed_experts_fake(*_: object) -> None:
    return None


LIBRARY.impl("packed_linear", _packed_linear_cpu, "CPU")
LIBRARY.impl("packed_rows", _packed_rows_cpu, "CPU")
LIBRARY.impl("packed_experts", _packed_experts_cpu, "CPU")
LIBRARY.impl("add_packed_experts", _add_packed_experts_cpu, "CPU")
torch.library.register_fake("ernie_local::packed_linear", _packed_linear_fake, lib=LIBRARY)
torch.library.register_fake("ernie_local::packed_rows", _packed_rows_fake, lib=LIBRARY)
torch.library.register_fake("ernie_local::packed_experts", _packed_experts_fake, lib=LIBRARY)
torch.library.register_fake("ernie_local::add_packed_experts", _add_packed_experts_fake, lib=LIBRARY)
