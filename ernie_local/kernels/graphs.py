"""Records work on a GPU once and replays it (CUDA graphs): one call of the host in place of a hundred.

Not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar
from weakref import WeakSet

import torch

Outputs = TypeVar("Outputs")
_WARM_UP_RUNS = 2  # kernels are compiled and chosen in the first ones, which cannot be recorded


@dataclass(frozen=True)
class Recorded(Generic[Outputs]):
    """Recorded work. `replay` does it again with what lies in its inputs now; the host does not wait.

    outputs: tensors that each replay fills again, at the same addresses.
    """

    replay: Callable[[], None]
    outputs: Outputs


class Recorder(Protocol):
    """Records work on one device."""

    def record(self, run: Callable[[], Outputs]) -> Recorded[Outputs]:
        """Have `run` done some times and recorded; its outputs are valid after the first replay.

        All that it reads has to stay where it is, and numbers of Python's stay what they are now. It may be
        done again with the same effect. The host waits for the device.
        """
        ...


class CudaGraphRecorder:
    """A Recorder on a CUDA GPU. Its graphs share one pool of memory, so they have to be replayed in turn."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # One for all: memory that a stream freed, in a pool or of cuBLAS, serves no other stream.
        self._stream = torch.cuda.Stream(device)
        self._alive: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def record(self, run: Callable[[], Outputs]) -> Recorded[Outputs]:
        """Run it twice and record it, on a stream that is not the current one."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP_RUNS):
                run()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        # Torch gives a pool up with its last graph: none left, as when a cache grew, is a new pool.
        pool = next((graph.pool() for graph in self._alive), None)
        graph = torch.cuda.CUDAGraph()
        # Other threads read pages and copy them meanwhile: only this one's calls are recorded.
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = run()
        self._alive.add(graph)
        return Recorded(graph.replay, outputs)
