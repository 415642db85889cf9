"""A decoded token that attends by the GPU's kernel, in a whole model, with tensors of the CPU."""

from __future__ import annotations

import pytest
import torch

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.engine import Engine
from ernie_local.kernels import gpu
from ernie_local.kernels.attention import attend_token, gpu_attends
from ernie_local.kernels.triton.device import TritonDevice
from ernie_local.model import attention
from tests.runtime import paged_models
from tests.runtime.kernel_tolerances import FLOAT16, relative_error


@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.int8], ids=str)
def test_logits_are_those_without_it(monkeypatch: pytest.MonkeyPatch, kv_dtype: torch.dtype) -> None:
    model = paged_models.build(NANO_DIRECTORY, None)
    found = {}
    for name in ("torch", "kernel"):
        if name == "kernel":
            monkeypatch.setattr(gpu, "find_triton", lambda device, gpu_kernels="auto": TritonDevice())
            assert gpu_attends(torch.device("cuda"), kv_dtype)
            monkeypatch.setattr(attention, "token_kernel", lambda *given: attend_token)
        engine = Engine(model, 300, kv_dtype)
        engine.prefill(list(range(20, 280)))  # more than one stretch
        found[name] = torch.stack([engine.decode(token) for token in (60, 61, 62)])
    assert relative_error(found["kernel"], found["torch"]) < 2 * FLOAT16
