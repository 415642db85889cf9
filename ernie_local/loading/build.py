"""The network built empty, then filled tensor by tensor from a checkpoint.

Knows names and dtypes; how bytes are read, checked and converted is the checkpoint's.
"""

from __future__ import annotations

import torch
from accelerate import init_empty_weights
from torch import nn

from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig
from ernie_local.experts.resident import ResidentExperts
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.moe import BANKS
from ernie_local.model.router import Router

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def count_weight_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """Bytes of all weights in memory: routers in float32, everything else in `dtype`. Exact."""
    total = 0
    for name in checkpoint.names():
        item_bytes = torch.float32.itemsize if "_router." in name else dtype.itemsize
        num_elements = 1
        for size in checkpoint.shape(name):
            num_elements *= size
        total += num_elements * item_bytes
    return total


def build_model(
    checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> ErnieModel:
    """A filled model, for inference only. Each tensor goes straight to where it stays."""
    experts = ResidentExperts(config.text, dtype, device)
    with init_empty_weights(include_buffers=True):
        model = ErnieModel(config, experts)
    for module_name, module in model.named_modules():
        for own_name, empty in list(module.named_parameters(recurse=False)):
            # The router was declared in float32 and stays so, whatever the rest is.
            kept_dtype = empty.dtype if isinstance(module, Router) else dtype
            filled = torch.empty(empty.shape, dtype=kept_dtype, device=device)
            _read_into(checkpoint, f"{module_name}.{own_name}", filled)
            setattr(module, own_name, nn.Parameter(filled, requires_grad=False))
    for (layer_id, bank), weights in experts.banks.items():
        assert bank in BANKS
        for expert_id in range(config.text.num_experts):
            for projection in _PROJECTIONS:
                name = f"experts.{layer_id}.{bank}.{expert_id}.{projection}"
                _read_into(checkpoint, name, weights.projection(expert_id, projection))
    return model.eval()


def _read_into(checkpoint: Checkpoint, name: str, target: torch.Tensor) -> None:
    if target.device.type == "cpu":
        checkpoint.read(name, target)
        return
    # The checkpoint fills CPU memory only; one tensor at a time passes through it.
    staging = torch.empty(target.shape, dtype=target.dtype)
    checkpoint.read(name, staging)
    target.copy_(staging)
