"""What the operators demand of their arguments, whichever code computes.

Every refusal names the operator, the argument and both numbers. Knows shapes and dtypes; of values only ids.
"""

from __future__ import annotations

import torch

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.packing import LowBitFormat
from ernie_local.packing.formats import COLUMN_STEP

SHARED_EXPERT = -1  # in refusals: the one that every token visits
ABSENT_SLOT = -1  # among places: of an expert that somebody else computes
FLOAT_DTYPES = (torch.float32, torch.bfloat16)
CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


def check_tokens(op: str, name: str, tokens: torch.Tensor) -> None:
    """tokens: (at least 1, columns) float32 or bfloat16."""
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.dtype not in FLOAT_DTYPES:
        raise UsageError(
            f"{op}: {name} is {tokens.dtype} {tuple(tokens.shape)}, wanted float32 or bfloat16 "
            "(tokens, columns) with at least 1 token",
            "a packed matrix is multiplied with rows of numbers",
            "reshape to two dimensions",
        )


def check_packed_matrix(
    op: str, packed: torch.Tensor, low_bit: LowBitFormat, rows: int, columns: int, device: torch.device
) -> None:
    """packed: (matrix_bytes,) uint8 on this device."""
    expected = low_bit.matrix_bytes(rows, columns)
    is_bytes = packed.dtype == torch.uint8 and packed.ndim == 1 and packed.numel() == expected
    if not is_bytes or packed.device != device:
        raise ModelUnusable(
            f"{op}: packed is {packed.dtype} {tuple(packed.shape)} on {packed.device}, "
            f"a {low_bit.name} matrix of {rows} x {columns} takes {expected} bytes on {device}",
            "packed bytes, format and shape do not belong together",
            "verify the checkpoint",
        )


def check_one_token(op: str, hidden: torch.Tensor, cached_keys: torch.Tensor) -> None:
    """hidden: (1, hidden_size); cached_keys: (kv_heads, capacity, head_dim)."""
    if hidden.ndim != 2 or hidden.shape[0] != 1 or cached_keys.ndim != 3:
        raise UsageError(
            f"{op}: hidden is {tuple(hidden.shape)} and cached_keys {tuple(cached_keys.shape)}, "
            "wanted (1, hidden_size) and (kv_heads, capacity, head_dim)",
            "it serves one new token of one layer",
            "call it for each token",
        )


def check_row_ids(op: str, row_ids: torch.Tensor, rows: int) -> None:
    """row_ids: (at least 1,) int64 within the matrix."""
    if row_ids.ndim != 1 or row_ids.dtype != torch.int64 or not len(row_ids):
        raise UsageError(
            f"{op}: row_ids is {row_ids.dtype} {tuple(row_ids.shape)}, wanted int64 (count,), at least 1",
            "rows are chosen by their numbers",
            "pass token ids as one row of int64",
        )
    lowest, highest = int(row_ids.min()), int(row_ids.max())
    if lowest < 0 or highest >= rows:
        raise UsageError(
            f"{op}: row_ids holds {lowest if lowest < 0 else highest}, rows are 0 to {rows - 1}",
            "there is no such row",
            "pass ids within the vocabulary",
        )


def check_experts(
    op: str,
    tokens: torch.Tensor,
    slots: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    shared_page: torch.Tensor | None,
    places: torch.Tensor | None,
) -> None:
    """slots: (slots, bytes) uint8; expert_ids: (tokens, top_k) int64; weights: (tokens, top_k).

    places: (experts,) int64, within the slots or ABSENT_SLOT; without it ids are within the slots. All on one
    device; ids and places are looked at on the CPU alone, for the host would have to wait for a GPU.
    """
    check_tokens(op, "hidden", tokens)
    if shared_page is not None and (
        shared_page.dtype != torch.uint8 or shared_page.ndim != 2 or len(shared_page) != 1
    ):
        raise UsageError(
            f"{op}: shared_page is {shared_page.dtype} {tuple(shared_page.shape)}, wanted uint8 (1, bytes)",
            "it is the page of one expert",
            "pass the page as a row of bytes",
        )
    if tokens.shape[1] < COLUMN_STEP or tokens.shape[1] % COLUMN_STEP:
        raise UsageError(
            f"{op}: hidden is {tokens.shape[1]} wide, wanted a multiple of {COLUMN_STEP}",
            "no page is of such a width",
            "pass the hidden states of the model that the pages are from",
        )
    if slots.dtype != torch.uint8 or slots.ndim != 2 or slots.device != tokens.device:
        raise UsageError(
            f"{op}: slots is {slots.dtype} {tuple(slots.shape)} on {slots.device}, "
            f"wanted uint8 (slots, bytes) on {tokens.device}",
            "an expert's page begins at a slot",
            "pass the memory that holds the pages as one tensor",
        )
    wanted = (tokens.shape[0], expert_ids.shape[-1] if expert_ids.ndim else 0)
    for name, tensor, dtype in (("expert_ids", expert_ids, torch.int64), ("weights", weights, tokens.dtype)):
        if tensor.dtype != dtype or tuple(tensor.shape) != wanted or not tensor.numel():
            raise UsageError(
                f"{op}: {name} is {tensor.dtype} {tuple(tensor.shape)}, wanted {dtype} {wanted}",
                "every token names its experts, and a weight for each",
                "pass the router's choices as they are",
            )
    num_experts = slots.shape[0]
    if places is not None:
        if places.dtype != torch.int64 or places.ndim != 1 or not len(places):
            raise UsageError(
                f"{op}: places is {_describe(places)}, wanted int64 (experts,), at least 1",
                "it says where each expert's page begins",
                "pass one place for each expert of the bank",
            )
        num_experts = len(places)
    if tokens.is_cpu:
        if places is not None:
            _check_ids(op, "places", places, ABSENT_SLOT, slots.shape[0])
        _check_ids(op, "expert_ids", expert_ids, 0, num_experts)


def _check_ids(op: str, name: str, ids: torch.Tensor, lowest: int, end: int) -> None:
    found = (int(ids.min()), int(ids.max()))
    if found[0] < lowest or found[1] >= end:
        raise UsageError(
            f"{op}: {name} holds {found[0] if found[0] < lowest else found[1]}, "
            f"there are {lowest} to {end - 1}",
            "there is no such expert, or no such place",
            "pass ids within the bank",
        )


def check_sum(op: str, output: torch.Tensor, tokens: torch.Tensor) -> None:
    """output: float32 of the shape of tokens, row after row."""
    if output.dtype != torch.float32 or output.shape != tokens.shape or not output.is_contiguous():
        raise UsageError(
            f"{op}: output is {_describe(output)}, wanted torch.float32 {tuple(tokens.shape)}",
            "experts are added in float32, whatever the tokens are",
            "begin with zeros, and convert the sum at the end",
        )


def check_rms_norm(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    """hidden: (tokens, size) float32; weight: (size,) float32."""
    _check_float_rows("rms_norm", "hidden", hidden, "(tokens, size)")
    _check_tensor("rms_norm", "weight", weight, (hidden.shape[1],), hidden.device)


def check_route(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, top_k: int) -> None:
    """hidden: (tokens, hidden_size); weight: (experts, hidden_size); bias: (experts,); all float32."""
    op = "route"
    _check_float_rows(op, "hidden", hidden, "(tokens, hidden_size)")
    _check_float_rows(op, "weight", weight, "(experts, hidden_size)")
    _check_tensor(op, "weight", weight, (weight.shape[0], hidden.shape[1]), hidden.device)
    _check_tensor(op, "bias", bias, (weight.shape[0],), hidden.device)
    if not 1 <= top_k <= weight.shape[0]:
        raise UsageError(
            f"{op}: top_k is {top_k}, there are {weight.shape[0]} experts",
            "each token goes to at least one expert and to none twice",
            "take top_k from the model's configuration",
        )


def check_decode_attention(
    new_token: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    cache: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    length: int,
) -> None:
    """new_token: queries, keys, values, cosines, sines; cache: keys, values and their scales, or None."""
    op = "decode_attention"
    queries, keys, values, cosines, sines = new_token
    cached_keys, cached_values, key_scales, value_scales = cache
    _check_float_rows(op, "queries", queries, "(heads, head_dim)")
    heads, head_dim = queries.shape
    device = queries.device
    if cached_keys.ndim != 3 or not cached_keys.shape[0] or cached_keys.dtype not in CACHE_DTYPES:
        raise UsageError(
            f"{op}: cached_keys is {_describe(cached_keys)}, wanted float32, bfloat16, float16 or int8 "
            "(kv_heads, capacity, head_dim)",
            "a layer's cache holds a row for each token of each head",
            "pass what KVCache.storage gives",
        )
    kv_heads, capacity = cached_keys.shape[:2]
    if not heads or heads % kv_heads or head_dim < 2 or head_dim % 2:
        raise UsageError(
            f"{op}: queries is {_describe(queries)} for {kv_heads} heads of keys",
            "each head of keys serves as many heads of queries, and a head is made of pairs",
            "take the numbers of heads and their size from the model's configuration",
        )
    for name, tensor in (("keys", keys), ("values", values)):
        _check_tensor(op, name, tensor, (kv_heads, head_dim), device)
    for name, tensor in (("cosines", cosines), ("sines", sines)):
        _check_tensor(op, name, tensor, (head_dim // 2,), device)
    for name, tensor in (("cached_keys", cached_keys), ("cached_values", cached_values)):
        _check_tensor(op, name, tensor, (kv_heads, capacity, head_dim), device, cached_keys.dtype)
        _check_rows_lie_together(op, name, tensor)
    for name, scales in (("key_scales", key_scales), ("value_scales", value_scales)):
        if (scales is not None) != (cached_keys.dtype == torch.int8):
            raise UsageError(
                f"{op}: {name} is {'missing' if scales is None else _describe(scales)} for a cache in "
                f"{cached_keys.dtype}",
                "an int8 cache has scales, the others have none",
                "pass what KVCache.storage gives",
            )
        if scales is not None:
            _check_tensor(op, name, scales, (kv_heads, capacity, 1), device)
            _check_rows_lie_together(op, name, scales)
    if not 0 <= length < capacity:
        raise UsageError(
            f"{op}: length is {length}, the capacity {capacity}",
            "the new token needs a row behind those that are cached",
            "pass a length of 0 to capacity - 1",
        )


def _describe(tensor: torch.Tensor) -> str:
    device = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    return f"{tensor.dtype} {tuple(tensor.shape)}{device}"


def _check_float_rows(op: str, name: str, tensor: torch.Tensor, shape: str) -> None:
    if tensor.ndim != 2 or tensor.dtype != torch.float32:
        raise UsageError(
            f"{op}: {name} is {_describe(tensor)}, wanted torch.float32 {shape}",
            "the operator takes rows of float32",
            "reshape to two dimensions; other dtypes are torch's own to compute",
        )


def _check_tensor(
    op: str,
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != device:
        raise UsageError(
            f"{op}: {name} is {_describe(tensor)}, wanted {dtype} {shape}",
            "its shape follows from the other arguments",
            "pass tensors of one layer of one model, on one device",
        )


def _check_rows_lie_together(op: str, name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous():
        raise UsageError(
            f"{op}: {name} {tuple(tensor.shape)} has strides {tensor.stride()}, wanted a tensor without gaps",
            "it is written in place, and a copy would be lost",
            "pass what KVCache.storage gives",
        )


def broken_token(op: str, name: str, index: int) -> UsageError:
    """The error for a token with a NaN or an infinity."""
    return UsageError(
        f"{op}: {name} holds a NaN or an infinity in token {index}",
        "int8 has no such number, and every sum would be lost",
        "run in float32, and check the weights with `verify`",
    )


def broken_page(op: str, expert_id: int, hidden_size: int) -> ModelUnusable:
    """The error for a page that the kernels cannot read."""
    where = "shared_page" if expert_id == SHARED_EXPERT else f"the slot of expert {expert_id}"
    return ModelUnusable(
        f"{op}: {where} holds no page of hidden size {hidden_size} in full",
        "the page is damaged, cut, of another version or of another model",
        "verify the checkpoint",
    )
