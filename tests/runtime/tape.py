"""Recorded work as on a GPU, on the processor: torch's calls with the very tensors and numbers they had.

A replay runs the same calls on the same memory. So whoever reads what is new of a token from elsewhere, or
bakes a number of Python's in, gets the results of the token that was recorded, as with a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ernie_local.kernels.graphs import Outputs

_Call = tuple[Any, Any, Any, Any]  # function, arguments, named ones, results


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, output))
        return output


class Taped:
    """A Recorded. made: memory that the work itself allocated."""

    def __init__(self, calls: list[_Call], outputs: Any, made: list[torch.Tensor]) -> None:
        self._calls = calls
        self.outputs = outputs
        self._made = made

    def replay(self) -> None:
        for tensor in self._made:  # a GPU's memory between replays is anybody's
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
        for func, args, kwargs, output in self._calls:
            for old, new in zip(_tensors(output), _tensors(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():  # views, and what is changed in place, are there already
                    old.copy_(new)


class Tape:
    """A Recorder; num_recorded: pieces of work so far."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def record(self, run: Callable[[], Outputs]) -> Any:
        self.num_recorded += 1
        run()  # as to warm up
        with _Recording() as recording:
            outputs = run()
        made: dict[int, torch.Tensor] = {}
        known: set[int] = set()
        for _, args, kwargs, output in recording.calls:
            known |= {one.untyped_storage().data_ptr() for one in _tensors((args, kwargs))} - made.keys()
            for one in _tensors(output):
                start = one.untyped_storage().data_ptr()
                if start not in known:
                    made.setdefault(start, one)
        return Taped(recording.calls, outputs, list(made.values()))


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [one for one in tree_leaves(tree) if isinstance(one, torch.Tensor)]
