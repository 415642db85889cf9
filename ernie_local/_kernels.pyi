"""Types of the native module. What it means is written beside the code in csrc/."""

import torch

def cpu_features() -> list[str]: ...
def build_info() -> dict[str, str]: ...
def known_instruction_sets() -> list[tuple[str, list[str], bool]]: ...
def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def set_num_threads(count: int) -> None: ...
def num_threads() -> int: ...
def packed_linear(
    tokens: torch.Tensor, packed: torch.Tensor, format_id: int, rows: int, out: torch.Tensor
) -> tuple[int, int]: ...
def packed_rows(
    packed: torch.Tensor, format_id: int, rows: int, row_ids: torch.Tensor, out: torch.Tensor
) -> bool: ...
def packed_experts(
    hidden: torch.Tensor,
    slots: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    shared_page: torch.Tensor | None,
    places: torch.Tensor | None,
    out: torch.Tensor,
    adds: bool,
) -> tuple[int, int]: ...
def packed_attention(
    hidden: torch.Tensor,
    norm: torch.Tensor,
    eps: float,
    qkv: torch.Tensor,
    qkv_format: int,
    o: torch.Tensor,
    o_format: int,
    heads: int,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    cached_keys: torch.Tensor,
    cached_values: torch.Tensor,
    key_scales: torch.Tensor | None,
    value_scales: torch.Tensor | None,
    length: int,
    out: torch.Tensor,
) -> bool: ...
def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> bool: ...
def route(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    top_k: int,
    norm_min: float,
    expert_ids: torch.Tensor,
    expert_weights: torch.Tensor,
) -> bool: ...
def decode_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    cached_keys: torch.Tensor,
    cached_values: torch.Tensor,
    key_scales: torch.Tensor | None,
    value_scales: torch.Tensor | None,
    length: int,
    out: torch.Tensor,
) -> bool: ...
def search_ranges(
    weights: torch.Tensor,
    format_id: int,
    matters: torch.Tensor,
    least_scale: float,
    steps: torch.Tensor,
    shifts: torch.Tensor,
) -> bool: ...
def choose_whole(
    weights: torch.Tensor,
    format_id: int,
    matters: torch.Tensor,
    steps: torch.Tensor,
    shifts: torch.Tensor,
    row_steps: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
) -> bool: ...
def gptq_block(
    left: torch.Tensor,
    factor: torch.Tensor,
    group_ids: torch.Tensor,
    steps: torch.Tensor,
    shifts: torch.Tensor,
    format_id: int,
    start: int,
    stop: int,
    codes: torch.Tensor,
    errors: torch.Tensor,
) -> bool: ...
def refine_block(
    hessian: torch.Tensor,
    pull: torch.Tensor,
    row_scales: torch.Tensor,
    format_id: int,
    start: int,
    stop: int,
    with_codes: bool,
    with_scales: bool,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    change: torch.Tensor,
) -> bool: ...
