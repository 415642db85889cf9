"""A CUDA GPU's own memory, the link to it, and its arithmetic, by torch alone.

Nothing is known of experts here; what a GPU's kernels reach of these rates is another question.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ernie_local.machine.timing import Clock, measure_rate
from ernie_local.planner.profile import Measurement
from ernie_local.sizes import MIB

GPU_MEMORY = "gpu_memory_bytes_per_second"
GPU_LINK = "gpu_link_bytes_per_second"
GPU_OPERATIONS = "gpu_operations_per_second"
_PRODUCT_SIZE = 4096


def measure_gpu(
    device: torch.device,
    num_bytes: int = 256 * MIB,
    product_size: int = _PRODUCT_SIZE,
    clock: Clock = time.perf_counter,
) -> dict[str, Measurement]:
    """By name: bytes a second of its memory, and of page-locked memory copied to it; operations a second.

    device: a CUDA GPU; on the CPU the same is computed, which only a test wants.
    """
    is_gpu = device.type == "cuda"
    dtype = torch.float16 if is_gpu else torch.float32

    def finished(run: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            run()
            if is_gpu:
                torch.cuda.synchronize(device)

        return call

    host = torch.ones(num_bytes // 4, dtype=torch.float32, pin_memory=is_gpu)
    memory = torch.empty_like(host, device=device)
    square = torch.ones(product_size, product_size, dtype=dtype, device=device)
    with torch.inference_mode():
        return {
            GPU_LINK: measure_rate(
                finished(lambda: memory.copy_(host, non_blocking=True)), num_bytes, clock=clock
            ),
            GPU_MEMORY: measure_rate(finished(memory.sum), num_bytes, clock=clock),
            GPU_OPERATIONS: measure_rate(finished(lambda: square @ square), 2 * product_size**3, clock=clock),
        }
