"""Predicts how long a model takes until it can compute, with its files in the page cache and without.

Python and torch themselves, some seconds on a slow machine, come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from ernie_local.planner.fit import Placement
from ernie_local.planner.model_size import ModelSize
from ernie_local.planner.rates import Rates
from ernie_local.planner.weight_bytes import bytes_in_memory

# Bytes a second of what is not read from a disk: weights in memory that are converted and checked, and packed
# ones that are mapped and looked through. One thread of two that other programs used (docs/decisions.md).
_CONVERTED_PER_SECOND, _MAPPED_PER_SECOND = 0.7e9, 5e9


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds until the first computation, besides those of Python and torch. warm: with all files in the
    system's page cache; cold: with none.

    all_read: until the last weight is in memory after a cold start. Until then a computation waits only for
    what it needs.
    """

    warm: float
    cold: float
    all_read: float


def predict_start(model: ModelSize, placement: Placement, item_bytes: int, rates: Rates) -> Start:
    """Of a model on the CPU. item_bytes: of a number that is not packed."""
    is_paged = placement.paged_bytes is not None
    is_mapped = model.config.has_packed_experts and not is_paged
    first_bytes = later_bytes = 0  # to read before the first computation, and in the background
    work_seconds = 0.0
    for tensor in model.tensors:
        if tensor.name.startswith("small_experts.") or (is_paged and tensor.name.startswith("experts.")):
            continue  # read when a token wants them
        if is_mapped and tensor.is_packed and tensor.name.startswith(("experts.", "layers.")):
            later_bytes += tensor.num_bytes
            continue
        first_bytes += tensor.num_bytes
        rate = _MAPPED_PER_SECOND if is_mapped and tensor.is_packed else _CONVERTED_PER_SECOND
        work_seconds += bytes_in_memory(tensor, item_bytes) / rate
    cold = work_seconds + first_bytes / rates.disk_bytes_per_second
    # Paging leaves nothing of the files in the page cache.
    warm = cold if is_paged else work_seconds
    return Start(warm, cold, cold + later_bytes / rates.disk_bytes_per_second)
