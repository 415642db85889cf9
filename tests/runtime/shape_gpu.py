"""A GPU made of shapes: what is computed there has sizes and no values, so whoever asks for one is seen.

torch's meta device stands for the GPU. It has no value to give, and no number of rows that depends on one;
copies that would make the host wait, and tensors of the host among the GPU's, this mode refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ernie_local.experts.mapped import MappedExperts
from ernie_local.experts.math import PageMath
from ernie_local.experts.resident import PackedExperts
from ernie_local.kernels.arguments import ExpertsCall
from ernie_local.model import layers
from ernie_local.model.ernie import ErnieModel

DEVICE = torch.device("meta")


class WaitError(AssertionError):
    """A GPU's host would wait, or torch would refuse."""


class ShapeGpu(TorchDispatchMode, PageMath):
    """num_sent: tensors that came from the host, without a wait; num_page_sums: calls to routed experts."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_sent = 0
        self.num_page_sums = 0
        self._is_sending = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self._is_sending:
            return output
        given, made = _devices((args, kwargs)), _devices(output)
        # All that is seen of torch.tensor(list) in inference mode; outside of it nothing is.
        is_filled_by_host = func in (torch.ops.aten.lift_fresh.default, torch.ops.aten.detach_.default)
        if len(given | made) > 1 or (given == {DEVICE} and is_filled_by_host):
            raise WaitError(f"{func} takes {given} and gives {made}")
        return output

    def send(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """In place of kernels.memory.send."""
        assert (tensor.device.type, device) == ("cpu", DEVICE)
        self.num_sent += 1
        self._is_sending = True
        try:
            return tensor.to(device)
        finally:
            self._is_sending = False

    def add(self, output: torch.Tensor, call: ExpertsCall) -> None:
        """As of a PageMath."""
        assert _devices([output, *call[:4]]) == {DEVICE}
        self.num_page_sums += 1


def _devices(tree: object) -> set[torch.device]:
    return {one.device for one in tree_leaves(tree) if isinstance(one, torch.Tensor)}


@contextmanager
def on_shape_gpu(model: ErnieModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShapeGpu]:
    """`model`, with packed experts in memory, moves to a ShapeGpu for good."""
    gpu = ShapeGpu()
    for module in ("engine", "model.ernie", "model.moe", "model.rope", "model.vision"):
        monkeypatch.setattr(f"ernie_local.{module}.send", gpu.send)
    monkeypatch.setattr(layers, "packed_gated_mlp", lambda hidden, *others: torch.empty_like(hidden))
    experts = model.experts
    assert isinstance(experts, MappedExperts)
    model.to(DEVICE)
    banks = {
        (layer_id, bank): torch.stack(
            [page.memory for key, page in experts.pages.items() if key[:2] == (layer_id, bank)]
        ).to(DEVICE)
        for layer_id, bank in experts.banks
    }
    model.attach(PackedExperts(banks, dict.fromkeys(banks, gpu)), model.recorder)
    with gpu:
        yield gpu
