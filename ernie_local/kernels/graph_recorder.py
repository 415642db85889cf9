"""Work on a card that is recorded once and replayed: one call of the host in place of a hundred.

Owns how torch records (CUDA graphs). Knows nothing of what is recorded. Not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import torch

Outputs = TypeVar("Outputs")
_WARM_UP_RUNS = 2  # kernels are compiled and chosen in the first ones, which cannot be recorded


class Recorded(Protocol[Outputs]):
    """`outputs`: tensors that each replay fills anew, at the same addresses."""

    outputs: Outputs

    def replay(self) -> None:
        """Do the recorded work again, with what lies in its inputs now. The host does not wait."""
        ...


class Recorder(Protocol):
    """Records work on one device."""

    def record(self, run: Callable[[], Outputs]) -> Recorded[Outputs]:
        """Have `run` done some times and recorded; its outputs are valid after the first replay.

        All that it reads has to stay where it is, and numbers of Python's stay what they are now. It may be
        done again with the same effect.
        """
        ...


class _CudaGraph(Generic[Outputs]):
    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: Outputs) -> None:
        self._graph = graph
        self.outputs = outputs

    def replay(self) -> None:
        self._graph.replay()


class CudaGraphs:
    """A Recorder on a CUDA card. Its graphs share one pool of memory, so they have to be replayed in turn."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Outputs]) -> Recorded[Outputs]:
        """See Recorder.record."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):
                run()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads read pages and copy them meanwhile: only this one's calls are recorded.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            outputs = run()
        return _CudaGraph(graph, outputs)
