"""Predicts the seconds of routed experts that lie on a GPU, in RAM below it, and on a disk below both.

What the GPU lacks is copied to it or computed by the processor, as the miss rule says, while the GPU computes
what it has (experts/two_levels.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ernie_local.experts.options import MissRule
from ernie_local.planner.rates import DecodeWork, GpuRates, Rates

COPY_SECONDS = 20e-6  # of a copy besides its bytes: a launch and its way over the bus. Assumed.


@dataclass(frozen=True, slots=True)
class ExpertTimes:
    """Seconds of one expert.

    on_gpu: computed there; link: copied to it; on_cpu: computed by the processor; disk: read into RAM; page:
    of the processor's work on a page that was read.
    """

    on_gpu: float
    link: float
    on_cpu: float
    disk: float
    page: float = 0.0

    @staticmethod
    def of(work: DecodeWork, gpu: GpuRates, host: Rates) -> ExpertTimes:
        """By the rates of a GPU and of the machine around it."""
        return ExpertTimes(
            on_gpu=work.expert_bytes / gpu.memory_bytes_per_second,
            link=COPY_SECONDS + work.page_bytes / gpu.link_bytes_per_second,
            on_cpu=work.expert_bytes / host.bytes_per_second(work.expert_format),
            disk=work.page_bytes / host.disk_bytes_per_second,
            page=0.0 if host.paging is None else host.paging.page_seconds,
        )


def layer_seconds(
    times: ExpertTimes, top_k: int, hit_rate: float, memory_hit_rate: float, rule: MissRule
) -> float:
    """Of a layer's experts for one token, the mean over where each of its `top_k` experts is.

    hit_rate: share found on the GPU; memory_hit_rate: on the GPU or in RAM, no less.
    """
    in_ram = max(0.0, memory_hit_rate - hit_rate)
    on_disk = max(0.0, 1.0 - hit_rate - in_ram)
    mean = 0.0
    for num_hits in range(top_k + 1):
        for num_in_ram in range(top_k - num_hits + 1):
            num_read = top_k - num_hits - num_in_ram
            ways = math.comb(top_k, num_hits) * math.comb(top_k - num_hits, num_in_ram)
            chance = ways * hit_rate**num_hits * in_ram**num_in_ram * on_disk**num_read
            if chance:
                mean += chance * _seconds(times, num_hits, num_in_ram, num_read, rule)
    return mean


def _seconds(times: ExpertTimes, num_hits: int, num_in_ram: int, num_read: int, rule: MissRule) -> float:
    """Of a layer with so many experts on the GPU, in RAM and on disk."""
    num_copied = rule.num_to_copy(num_in_ram + num_read)
    # The hottest are copied, and those are the likeliest to be in RAM. The disk reads first what is copied.
    read_and_copied = max(0, num_copied - num_in_ram)
    from_ram = num_in_ram - (num_copied - read_and_copied)
    read_and_computed = num_read - read_and_copied
    copied = num_copied * times.link
    if read_and_copied:
        copied = max(copied, read_and_copied * times.disk + times.link)
    gpu = max(num_hits * times.on_gpu, copied) + num_copied * times.on_gpu
    cpu = from_ram * times.on_cpu
    if read_and_computed:
        cpu = max(cpu, num_read * times.disk) + read_and_computed * times.on_cpu
    if from_ram or read_and_computed:
        cpu += 2 * COPY_SECONDS  # the token's state goes down, and the result comes up
    return max(gpu, cpu + num_read * times.page)
