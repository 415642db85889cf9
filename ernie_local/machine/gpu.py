"""Measures a CUDA GPU with torch: its memory, the link to it, its arithmetic, and memory to page-lock."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ernie_local.machine.timing import Clock, measure_rate
from ernie_local.planner.free_memory import free_memory
from ernie_local.planner.profile import Measurement
from ernie_local.sizes import GIB, MIB

GPU_MEMORY = "gpu_memory_bytes_per_second"
GPU_LINK = "gpu_link_bytes_per_second"
GPU_OPERATIONS = "gpu_operations_per_second"
_PRODUCT_SIZE = 4096
# A driver that locks this much in one piece will lock more; more is not tried.
_MOST_LOCKED = 4 * GIB
_FIRST_LOCKED = 64 * MIB


def measure_gpu(
    device: torch.device,
    num_bytes: int = 256 * MIB,
    product_size: int = _PRODUCT_SIZE,
    clock: Clock = time.perf_counter,
) -> dict[str, Measurement]:
    """By name: bytes a second of its memory, and of page-locked memory copied to it; operations a second.

    device: a CUDA GPU; the CPU serves a test.
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


def lock_limit() -> int | None:
    """Bytes that this process may lock; None where there is no limit, or the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft in (resource.RLIM_INFINITY, -1) else soft


def lockable_bytes(free: int | None = None) -> int:
    """Bytes that the GPU's driver page-locks in one piece, at most 4 GiB or a fourth of the free memory.

    Only with CUDA. Found by asking for more each time; everything is given back. free: None to look.
    """
    most = min(_MOST_LOCKED, (free_memory() if free is None else free) // 4)
    given, wanted = 0, min(_FIRST_LOCKED, most)
    while wanted > given:
        try:
            torch.empty(wanted, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # the driver refuses
            break
        given, wanted = wanted, min(2 * wanted, most)
    return given
