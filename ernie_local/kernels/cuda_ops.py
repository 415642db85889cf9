"""The operators on GPUs: importing it adds them to `torch.ops.ernie_local.*`.

By the Triton kernels, or by plain torch (reference.py) where these cannot run: slower, and the host waits.
Through the operators a call on experts reads the headers of their pages back from the GPU, once; who knows
the layouts beforehand calls `packed_gated_mlp` or ernie_local/kernels/triton/experts.py, and nothing is read.
Values of ids and places are not looked at. Triton is imported when a kernel is wanted.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

import ernie_local.kernels.decode_ops  # noqa: F401  the schema of decode_attention
from ernie_local.errors import DoesNotFit
from ernie_local.kernels import checks, reference
from ernie_local.kernels.gpu_kernels import CHOICE
from ernie_local.kernels.native import Absence
from ernie_local.kernels.ops import LIBRARY
from ernie_local.kernels.triton_path import triton_absence
from ernie_local.packing import PageLayout, find_format
from ernie_local.packing.expert_page import read_header
from ernie_local.packing.page_layout import HEADER, HEADER_BYTES

if TYPE_CHECKING:
    from ernie_local.kernels.triton.gpu import Gpu

Tensor = torch.Tensor


class TritonMissing(UserWarning):
    """The Triton kernels cannot run on this GPU; slower PyTorch code does."""


def triton_missing(device: torch.device) -> Absence | None:
    """Why plain torch computes on this device; None where the Triton kernels do."""
    return CHOICE.absence or _triton_absence(device)


def find_gpu(device: torch.device) -> Gpu | None:
    """The GPU that kernels are chosen for (ernie_local/kernels/triton/gpu.py); None without them."""
    return None if CHOICE.absence is not None else _find_gpu(device)


def check_gpu_kernels(device: torch.device) -> None:
    """Warn, once for each device, where kernels are missing that nobody turned off.

    DoesNotFit where they were asked for.
    """
    if CHOICE.is_triton_forced:
        gpu_of(device)
    elif CHOICE.absence is None:
        _warn_without_triton(device)


@functools.cache
def _warn_without_triton(device: torch.device) -> None:
    absence = _triton_absence(device)
    if absence is not None:
        what = f"{absence.what}, plain PyTorch computes on {device}"
        warnings.warn(replace(absence, what=what).notice, TritonMissing, stacklevel=2)


@functools.cache
def _triton_absence(device: torch.device) -> Absence | None:
    return triton_absence(_capability(device))


@functools.cache
def _find_gpu(device: torch.device) -> Gpu | None:
    capability = _capability(device)
    if capability is None or _triton_absence(device) is not None:
        return None
    from ernie_local.kernels.triton.gpu import Gpu

    return Gpu.of_capability(capability)


def gpu_of(device: torch.device) -> Gpu:
    """As `find_gpu`; raises DoesNotFit, with the reason, where the Triton kernels cannot run."""
    gpu = find_gpu(device)
    if gpu is None:
        absence = triton_missing(device)
        assert absence is not None
        raise DoesNotFit(f"{absence.what} on {device}", absence.why, absence.hint)
    return gpu


def _capability(device: torch.device) -> tuple[int, int] | None:
    is_nvidia = device.type == "cuda" and torch.version.cuda is not None
    return torch.cuda.get_device_capability(device) if is_nvidia else None


def _packed_linear(tokens: Tensor, packed: Tensor, format_name: str, rows: int) -> Tensor:
    low_bit, gpu = find_format(format_name), find_gpu(tokens.device)
    checks.check_tokens("packed_linear", "tokens", tokens)
    checks.check_packed_matrix("packed_linear", packed, low_bit, rows, tokens.shape[1], tokens.device)
    if gpu is None:
        return reference.packed_linear(tokens.float(), packed, low_bit, rows).to(tokens.dtype)
    from ernie_local.kernels.triton import linear

    return linear.packed_linear(tokens, packed, low_bit, rows, gpu)


def _packed_rows(row_ids: Tensor, packed: Tensor, format_name: str, rows: int, columns: int) -> Tensor:
    low_bit = find_format(format_name)
    checks.check_packed_matrix("packed_rows", packed, low_bit, rows, columns, row_ids.device)
    if find_gpu(row_ids.device) is None:
        return reference.packed_rows(row_ids, packed, low_bit, columns)
    from ernie_local.kernels.triton.rows import packed_rows

    return packed_rows(row_ids.contiguous(), packed, low_bit, columns)


def _packed_experts(
    hidden: Tensor, slots: Tensor, expert_ids: Tensor, weights: Tensor, shared_page: Tensor | None = None
) -> Tensor:
    output = torch.zeros_like(hidden, dtype=torch.float32, memory_format=torch.contiguous_format)
    _add_packed_experts(output, hidden, slots, expert_ids, weights, shared_page, None)
    return output.to(hidden.dtype)


def _add_packed_experts(
    output: Tensor,
    hidden: Tensor,
    slots: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    shared_page: Tensor | None,
    places: Tensor | None,
) -> None:
    op, gpu = "packed_experts", find_gpu(hidden.device)
    checks.check_experts(op, hidden, slots, expert_ids, weights, shared_page, places)
    checks.check_sum(op, output, hidden)
    if gpu is None:
        exact = (hidden.float(), slots, expert_ids, weights.float())
        reference.add_packed_experts(output, *exact, shared_page, places)
        return
    shared = [] if shared_page is None else _read_layouts(shared_page, torch.zeros_like(expert_ids[0, :1]))
    ids = expert_ids.flatten()
    starts = ids if places is None else places[ids]
    # Where no expert is present the shared page's layout serves: nothing of theirs is computed.
    layouts = _read_layouts(slots, starts) or shared
    if not layouts:
        return
    from ernie_local.kernels.triton.experts import add_packed_experts

    shared_layout = shared[0] if shared else None
    add_packed_experts(
        output, hidden, slots, expert_ids, weights, shared_page, places, layouts, shared_layout, gpu
    )


def packed_gated_mlp(hidden: Tensor, page: Tensor, layout: PageLayout) -> Tensor:
    """`packed_experts` of the one page (1, page_bytes) for every token with weight 1.

    layout: of the page, so that nothing is read back where the Triton kernels compute.
    """
    only = torch.zeros(len(hidden), 1, dtype=torch.int64, device=hidden.device)
    weights, gpu = hidden.new_ones(len(hidden), 1), find_gpu(hidden.device)
    if gpu is None:
        return _packed_experts(hidden, page, only, weights)
    from ernie_local.kernels.triton.experts import add_packed_experts

    output = torch.zeros_like(hidden, dtype=torch.float32, memory_format=torch.contiguous_format)
    add_packed_experts(output, hidden, page, only, weights, None, None, [layout], None, gpu)
    return output.to(hidden.dtype)


def _read_layouts(slots: Tensor, starts: Tensor) -> list[PageLayout]:
    """Of the pages that begin at these slots, each layout once; absent ones have none."""
    first_bytes = starts.clamp(min=0)[:, None] * slots.shape[1]  # (pages, 1)
    headers = slots.flatten()[first_bytes + torch.arange(HEADER_BYTES, device=slots.device)]
    present = headers[starts != checks.ABSENT_SLOT].cpu()  # (pages, HEADER_BYTES)
    different = dict.fromkeys(header.numpy().tobytes()[: HEADER.size] for header in present)
    return [read_header(header.ljust(HEADER_BYTES, b"\0"), "a page on the GPU") for header in different]


def _decode_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cosines: Tensor,
    sines: Tensor,
    cached_keys: Tensor,
    cached_values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    length: int,
) -> Tensor:
    gpu, cache = find_gpu(queries.device), (cached_keys, cached_values, key_scales, value_scales)
    new_token = (queries, keys, values, cosines, sines)
    checks.check_decode_attention(new_token, cache, length)
    if gpu is None:
        return reference.decode_attention(*new_token, *cache, length)
    # Filled on the GPU: a copy from the host would wait.
    on_gpu = torch.full((1,), length, dtype=torch.int64, device=queries.device)
    return attend_token(*new_token, *cache, on_gpu)


def gpu_attends(device: torch.device, cache_dtype: torch.dtype) -> bool:
    """Whether `attend_token` serves there: Triton runs, and multiplies what such a cache holds."""
    gpu = find_gpu(device)
    if gpu is None:
        return False
    return cache_dtype in (torch.int8, torch.float16) or (
        cache_dtype == torch.bfloat16 and gpu.uses_tensor_cores
    )


def attend_token(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cosines: Tensor,
    sines: Tensor,
    cached_keys: Tensor,
    cached_values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    length: Tensor,
) -> Tensor:
    """As the operator decode_attention, with the length on the GPU: (1,) int64, which nobody waits for."""
    from ernie_local.kernels.triton.attention import decode_attention

    new_token = (queries, keys, values, cosines, sines)
    cache = (cached_keys, cached_values, key_scales, value_scales)
    return decode_attention(*new_token, *cache, length, gpu_of(queries.device))


LIBRARY.impl("packed_linear", _packed_linear, "CUDA")
LIBRARY.impl("packed_rows", _packed_rows, "CUDA")
LIBRARY.impl("packed_experts", _packed_experts, "CUDA")
LIBRARY.impl("add_packed_experts", _add_packed_experts, "CUDA")
LIBRARY.impl("decode_attention", _decode_attention, "CUDA")
