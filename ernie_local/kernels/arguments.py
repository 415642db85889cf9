"""Names the arguments of the operators, one tuple for each thing that an operator is given, and checks them.

A tuple travels as it is and is spread only where torch's schema or the compiled module asks for its fields.
To add an argument to an operator, add a field here and the same name to the operator's schema, in the same
place; what computes then reads the field. The compiled code has a struct of its own (csrc/*.hpp), filled in
csrc/*_bindings.cpp.

Every refusal names the operator, the argument and both numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.packing import find_format

# What computes on a GPU: Triton's kernels where they run ("auto") or else an error, or plain torch.
GpuKernels = Literal["auto", "triton", "torch"]
ABSENT_SLOT = -1  # among places: the expert is computed elsewhere
SHARED_EXPERT = -1  # in refusals: the expert that every token visits


class PackedMatrix(NamedTuple):
    """A packed matrix; its columns follow from what it is multiplied with."""

    packed: Tensor  # (matrix_bytes,) uint8
    format_name: str
    rows: int
    gpu_kernels: str = "auto"  # one of GpuKernels


class LowRankParts(NamedTuple):
    """What is added to rows of a product: tokens @ inward.T @ outward, of one part after the other.

    An outward matrix lies in tiles of 16 rows, the last of which is filled up with zeros.
    """

    inward: Sequence[Tensor]  # (rank, columns) bfloat16, or as the tokens
    outward: Sequence[Tensor]  # (tiles, rank, 16), like inward
    first_rows: Sequence[int]
    num_rows: Sequence[int]


NOTHING_ADDED = LowRankParts((), (), (), ())


class LowRankExperts(NamedTuple):
    """What is added to gate, up and down of each expert of a bank, as of LowRankParts.

    Gate and up have one rank, zeros where an expert has less; a rank may be 0.
    """

    gate_up_inward: Tensor  # (experts, 2 * rank, hidden_size): for gate, then for up
    gate_up_outward: Tensor  # (experts, tiles of inner_size, 2 * rank, 16)
    down_inward: Tensor  # (experts, rank of down, inner_size)
    down_outward: Tensor  # (experts, tiles of hidden_size, rank of down, 16)

    @property
    def num_bytes(self) -> int:
        """In memory."""
        return sum(tensor.nbytes for tensor in self)

    def gate_and_up(self, expert_id: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Inward and outward for gate, and for up: (rank, hidden_size), (tiles, rank, 16)."""
        gate_in, up_in = self.gate_up_inward[expert_id].chunk(2)
        gate_out, up_out = self.gate_up_outward[expert_id].chunk(2, dim=1)
        return (gate_in, gate_out), (up_in, up_out)

    def down(self, expert_id: int) -> tuple[Tensor, Tensor]:
        """Inward, (rank, inner_size), and outward, (tiles, rank, 16)."""
        return self.down_inward[expert_id], self.down_outward[expert_id]


class ExpertsCall(NamedTuple):
    """Tokens, the experts they chose, and the memory in which the experts' pages lie."""

    hidden: Tensor  # (tokens, hidden_size) float32 or bfloat16
    slots: Tensor  # (slots, bytes) uint8; a page begins at a slot and may take several
    expert_ids: Tensor  # (tokens, top_k) int64
    weights: Tensor  # (tokens, top_k) in hidden's dtype
    shared_page: Tensor | None = None  # (1, bytes) uint8: an expert that every token visits with weight 1
    # (experts,) int64: the slot where each expert's page begins, or ABSENT_SLOT. None: expert i is in slot i.
    places: Tensor | None = None
    # Whether the CPU's kernels round as well as they can. None: as for up to 16 tokens, if there are so few.
    are_few: bool | None = None
    # LowRankExperts of all experts, and of the shared page. torch hands them on as lists.
    adapter: Sequence[Tensor] | None = None
    shared_adapter: Sequence[Tensor] | None = None


class NewToken(NamedTuple):
    """What one new token brings to attention, before rotation; float32."""

    queries: Tensor  # (heads, head_dim)
    keys: Tensor  # (kv_heads, head_dim)
    values: Tensor  # (kv_heads, head_dim)
    cosines: Tensor  # (head_dim / 2,)
    sines: Tensor  # (head_dim / 2,)


class NewTokens(NamedTuple):
    """What some new tokens, one behind the other, bring to attention, before rotation; float32."""

    queries: Tensor  # (tokens, heads, head_dim)
    keys: Tensor  # (tokens, kv_heads, head_dim)
    values: Tensor  # (tokens, kv_heads, head_dim)
    cosines: Tensor  # (tokens, head_dim / 2)
    sines: Tensor  # (tokens, head_dim / 2)


class LayerStorage(NamedTuple):
    """One layer's rows of a KV cache, read and written in place: (kv_heads, capacity, head_dim) each.

    Scales, (kv_heads, capacity, 1) float32, only with int8.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None


class PackedAttentionCall(NamedTuple):
    """One new token and the attention half of its layer, whose projections are packed."""

    hidden: Tensor  # (1, hidden_size) float32
    norm: Tensor  # (hidden_size,) float32
    eps: float
    qkv: Tensor  # packed: rows of queries before keys before values
    qkv_format: str
    o: Tensor  # packed
    o_format: str
    heads: int  # of queries
    cosines: Tensor  # (1, head_dim / 2) float32
    sines: Tensor  # (1, head_dim / 2) float32


def check_tokens(op: str, name: str, tokens: Tensor) -> None:
    """Raise UsageError unless tokens is (at least 1, columns) float32 or bfloat16."""
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.dtype not in (torch.float32, torch.bfloat16):
        raise UsageError(
            f"{op}: {name} is {tokens.dtype} {tuple(tokens.shape)}, wanted float32 or bfloat16 "
            "(tokens, columns) with at least 1 token",
            "a packed matrix is multiplied with rows of numbers",
            "reshape to two dimensions",
        )


def check_packed_matrix(op: str, matrix: PackedMatrix, columns: int, device: torch.device) -> None:
    """Raise ModelUnusable unless its bytes are those of a matrix of this format and shape, on this device."""
    packed, low_bit = matrix.packed, find_format(matrix.format_name)
    expected = low_bit.matrix_bytes(matrix.rows, columns)
    is_bytes = packed.dtype == torch.uint8 and packed.ndim == 1 and packed.numel() == expected
    if not is_bytes or packed.device != device:
        raise ModelUnusable(
            f"{op}: packed is {packed.dtype} {tuple(packed.shape)} on {packed.device}, "
            f"a {low_bit.name} matrix of {matrix.rows} x {columns} takes {expected} bytes on {device}",
            "packed bytes, format and shape do not belong together",
            "verify the checkpoint",
        )


def describe_tensor(tensor: Tensor) -> str:
    """Dtype, shape, and the device unless it is the CPU."""
    device = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    return f"{tensor.dtype} {tuple(tensor.shape)}{device}"


def check_float_rows(op: str, name: str, tensor: Tensor, shape: str) -> None:
    """Raise UsageError unless tensor is float32 with two dimensions; shape: their names, for the message."""
    if tensor.ndim != 2 or tensor.dtype != torch.float32:
        raise UsageError(
            f"{op}: {name} is {describe_tensor(tensor)}, wanted torch.float32 {shape}",
            "the operator takes rows of float32",
            "reshape to two dimensions; let torch compute other dtypes",
        )


def check_tensor(
    op: str,
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Raise UsageError unless tensor has this shape and dtype and lies on this device."""
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != device:
        raise UsageError(
            f"{op}: {name} is {describe_tensor(tensor)}, wanted {dtype} {shape}",
            "its shape follows from the other arguments",
            "pass tensors of one layer of one model, on one device",
        )


def broken_token(op: str, name: str, index: int) -> UsageError:
    """The error for a token with a NaN or an infinity."""
    return UsageError(
        f"{op}: {name} holds a NaN or an infinity in token {index}",
        "int8 has no such number, and every sum would be lost",
        "check the weights with `verify`; if this was computed in bfloat16, use float32",
    )


def broken_page(op: str, expert_id: int, hidden_size: int) -> ModelUnusable:
    """The error for a page that the kernels cannot read."""
    where = "shared_page" if expert_id == SHARED_EXPERT else f"the slot of expert {expert_id}"
    return ModelUnusable(
        f"{op}: {where} holds no page of hidden size {hidden_size} in full",
        "the page is damaged, cut, of another version or of another model",
        "verify the checkpoint",
    )
