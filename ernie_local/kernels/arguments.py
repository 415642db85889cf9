"""Names the arguments of the operators, one tuple for each thing that an operator is given.

A tuple travels as it is and is spread only where torch's schema or the compiled module asks for its fields.
To add an argument to an operator, add a field here and the same name to the operator's schema, in the same
place; what computes then reads the field. The compiled code has a struct of its own (csrc/*.hpp), filled in
csrc/*_bindings.cpp.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Tensor = torch.Tensor
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


class ExpertsCall(NamedTuple):
    """Tokens, the experts they chose, and the memory in which the experts' pages lie."""

    hidden: Tensor  # (tokens, hidden_size) float32 or bfloat16
    slots: Tensor  # (slots, bytes) uint8; a page begins at a slot and may take several
    expert_ids: Tensor  # (tokens, top_k) int64
    weights: Tensor  # (tokens, top_k) in hidden's dtype
    shared_page: Tensor | None = None  # (1, bytes) uint8: an expert that every token visits with weight 1
    # (experts,) int64: the slot where each expert's page begins, or ABSENT_SLOT. None: expert i is in slot i.
    places: Tensor | None = None


class NewToken(NamedTuple):
    """What one new token brings to attention, before rotation; float32."""

    queries: Tensor  # (heads, head_dim)
    keys: Tensor  # (kv_heads, head_dim)
    values: Tensor  # (kv_heads, head_dim)
    cosines: Tensor  # (head_dim / 2,)
    sines: Tensor  # (head_dim / 2,)


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
