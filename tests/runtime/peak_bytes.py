"""Counts what a computation takes of a memory: the tensors that it makes, for as long as they are held."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """most: bytes of all tensors that calls made and somebody held, at the worst moment."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._held = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(one.untyped_storage()) for one in tree_leaves((args, kwargs)) if _is_tensor(one)}
        output = func(*args, **(kwargs or {}))
        for one in tree_leaves(output):
            if _is_tensor(one):
                self._count(one.untyped_storage(), given)
        return output

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        start = storage.data_ptr()
        if id(storage) in given or start in self._known or not storage.nbytes():
            return
        self._known.add(start)
        self._held += storage.nbytes()
        self.most = max(self.most, self._held)
        weakref.finalize(storage, self._forget, start, storage.nbytes())

    def _forget(self, start: int, num_bytes: int) -> None:
        self._known.discard(start)
        self._held -= num_bytes


def _is_tensor(one: object) -> bool:
    return isinstance(one, torch.Tensor)
