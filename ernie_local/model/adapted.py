"""Puts an adapter into a network whose weights stay as they are: it is added to their products."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn

from ernie_local.adapters.tables import AdapterTables, linear_tables
from ernie_local.checkpoint.parts import is_for_images
from ernie_local.model.decoder import DecoderLayer
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.layers import AdaptedLinear, PackedGatedMLP
from ernie_local.model.moe import Router


def adapt(model: ErnieModel, tables: AdapterTables) -> None:
    """Add an adapter to products of `model` from now on; before its experts are attached, and only once.

    The adapter lies where the weights lie: in bfloat16 beside packed ones, else in their dtype.
    """
    dtype = torch.bfloat16 if model.config.quantization is not None else model.dtype
    for (layer_id, bank), stacked in tables.experts.items():
        layer = model.layers[layer_id]
        assert isinstance(layer, DecoderLayer)
        assert layer.moe is not None, "an adapter names weights of the model only"
        layer.moe.adapters[bank] = stacked.tables(dtype, model.device)
    for name, stacked in tables.gated_mlps.items():
        mlp = model.get_submodule(name)
        assert isinstance(mlp, PackedGatedMLP), name
        mlp.adapter = stacked.tables(dtype, mlp.page.device)
    for name, low_rank in tables.routers.items():
        router = model.get_submodule(name)
        assert isinstance(router, Router), name
        router.weight.data.add_(low_rank.weight().to(router.weight.device))
    for name, rows in tables.linears.items():
        base = model.get_submodule(name)
        # Weights for images may lie elsewhere while no image is encoded.
        device = model.device if is_for_images(name) else _device(base)
        model.set_submodule(name, AdaptedLinear(base, linear_tables(rows, dtype, device)))


def _device(module: nn.Module) -> torch.device:
    """Where the weights of a linear layer lie."""
    return next(chain(module.parameters(), module.buffers())).device
