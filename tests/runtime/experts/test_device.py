"""What a GPU sends back in one transfer."""

from __future__ import annotations

import torch

from ernie_local.experts.device import from_bytes, to_bytes


def test_what_is_read_back_together_comes_apart_as_it_was() -> None:
    tensors = [
        torch.tensor([[7, 60, 2]]),
        torch.rand(3, 1).bfloat16()[::2],
        torch.randn(1, 5),
        torch.tensor([float("nan"), -0.0]),
    ]
    buffer = to_bytes(tensors)
    assert len(buffer) == 24 + 4 + 20 + 8
    found = from_bytes(buffer, tensors)
    buffer.fill_(0)
    for one, other in zip(found, tensors, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    (alone,) = from_bytes(to_bytes(tensors[:1]), tensors[:1])
    assert torch.equal(alone, tensors[0])
