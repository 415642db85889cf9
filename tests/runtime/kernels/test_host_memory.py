"""Memory of the host for copies to and from a GPU: ordinary where CUDA page-locks none, and that is said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ernie_local.experts.device import CudaDevice
from ernie_local.kernels.memory import PinningFailed, send

EMPTY = torch.empty


def refusing(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """No page-locked memory any more."""

    def empty(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if pin_memory:
            raise RuntimeError(f"{reason}\nCUDA kernel errors might be reported later")
        return EMPTY(*shape, **options)

    monkeypatch.setattr(torch, "empty", empty)


def test_what_is_sent_goes_through_ordinary_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, "error 2 while sending")
    tensor = torch.arange(6).view(2, 3).T
    with pytest.warns(PinningFailed, match="error 2 while sending.*waits"):
        sent = send(tensor, torch.device("meta"))
    assert (sent.device.type, sent.shape, sent.dtype) == ("meta", tensor.shape, tensor.dtype)
    assert send(tensor, torch.device("cpu")) is tensor


def test_what_is_read_back_goes_through_ordinary_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, "error 2 while reading")
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: stream)
    device = CudaDevice(torch.device("cpu"))
    tensors = [torch.arange(3), torch.rand(2, 2)]
    with pytest.warns(PinningFailed, match="error 2 while reading"):
        found = device.read_back(tensors)
    assert all(map(torch.equal, found, tensors))
