"""Reads tensors and routed experts of a checkpoint to where they stay, several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import BankKey, ModelConfig
from ernie_local.experts.resident import ResidentExperts
from ernie_local.kernels.memory import empty_bytes
from ernie_local.packing.page import check_page

_READERS = 4  # of tensors; one alone does not keep a fast disk busy, nor two cores that convert


def do_at_once(reads: Iterable[Callable[[], None]]) -> None:
    """Do all of them on a few threads. Raises the first error."""
    # Each thread has a mode of its own, and only within inference mode can its tensors be filled.
    mode = partial(torch.inference_mode, torch.is_inference_mode_enabled())
    threads = ThreadPoolExecutor(_READERS, thread_name_prefix="ernie-load")
    try:
        for read in [threads.submit(mode()(one)) for one in reads]:
            read.result()
    finally:
        threads.shutdown(cancel_futures=True)


def read_into(checkpoint: Checkpoint, name: str, target: torch.Tensor) -> None:
    """Fill `target`, on any device, with the plain tensor `name`."""
    if target.device.type == "cpu":
        checkpoint.read(name, target)
        return
    # The checkpoint fills CPU memory only; one tensor at a time passes through it.
    staging = torch.empty(target.shape, dtype=target.dtype)
    checkpoint.read(name, staging)
    target.copy_(staging)


def read_plain_experts(
    checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> ResidentExperts:
    """Every routed expert of a model that is not packed, in `dtype`."""
    resident = ResidentExperts(config.text, dtype, device)
    reads: list[Callable[[], None]] = []
    for (layer_id, bank), weights in resident.banks.items():
        for expert_id in range(config.text.bank(bank).num_experts):
            for projection in PROJECTIONS:
                name = f"experts.{layer_id}.{bank}.{expert_id}.{projection}"
                place = weights.projection(expert_id, projection)
                reads.append(partial(read_into, checkpoint, name, place))
    do_at_once(reads)  # on a GPU too: each takes a few megabytes of the CPU's memory
    return resident


def read_banks(
    checkpoint: Checkpoint, config: ModelConfig, device: torch.device
) -> dict[BankKey, torch.Tensor]:
    """Pages of all experts, each in a slot of its bank's largest page."""
    packed = PackedTensors(config)
    banks: dict[BankKey, torch.Tensor] = {}
    for layer_id, bank in config.quantization.experts if config.quantization else ():
        layouts = packed.page_layouts(layer_id, bank)
        slot_bytes = max(layout.page_bytes for layout in layouts.values())
        slots = empty_bytes(config.text.bank(bank).num_experts * slot_bytes).view(-1, slot_bytes)
        for expert_id, (name, row) in enumerate(packed.locate_experts(layer_id, bank)):
            page = slots[expert_id, : packed.shapes[name][1]]
            checkpoint.read_packed(name, page, row)
            check_page(page, layouts[name.rpartition(".")[2]], f"page {row} of {name}")
        banks[layer_id, bank] = slots.to(device)
    return banks
