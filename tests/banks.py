"""Checkpoints in the hub layout with two banks of experts, rewritten with one bank and with none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def with_one_bank(source: Path, out: Path) -> Path:
    """All tokens go to the experts of text: scalars in config.json, and no tensors of vision experts."""

    def change(config: dict[str, Any], tensors: Tensors) -> None:
        num_experts = config["moe_num_experts"][0]
        config["moe_num_experts"] = num_experts
        config["moe_intermediate_size"] = config["moe_intermediate_size"][0]
        config["moe_layer_start_index"] = min(config["moe_layer_start_index"])
        config["moe_layer_end_index"] = max(config["moe_layer_end_index"])
        for name in list(tensors):
            expert = re.search(r"\.mlp\.experts\.(\d+)\.", name)
            if name.endswith("gate.weight_1") or (expert and int(expert[1]) >= num_experts):
                del tensors[name]
            elif name.endswith("e_score_correction_bias"):
                tensors[name] = tensors[name][:1].clone()

    return _rewrite(source, out, change)


def without_banks(source: Path, out: Path) -> Path:
    """Every layer is dense, with random weights where experts were."""

    def change(config: dict[str, Any], tensors: Tensors) -> None:
        del config["moe_num_experts"], config["moe_intermediate_size"], config["moe_k"]
        generator = torch.Generator().manual_seed(0)
        dense = {name: one for name, one in tensors.items() if re.search(r"\.0\.mlp\.[a-z]+_proj\.", name)}
        for name in [name for name in tensors if re.search(r"\.layers\.\d+\.mlp\.", name)]:
            if name not in dense:
                del tensors[name]
        for layer in range(1, config["num_hidden_layers"]):
            for name, like in dense.items():
                values = torch.randn(like.shape, generator=generator) * like.float().std()
                tensors[name.replace(".layers.0.", f".layers.{layer}.")] = values.to(like.dtype)

    return _rewrite(source, out, change)


def _rewrite(source: Path, out: Path, change: Callable[[dict[str, Any], Tensors], None]) -> Path:
    out.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text())
    tensors: Tensors = {}
    for path in sorted(source.glob("*.safetensors")):
        tensors |= load_file(path)
    change(config, tensors)
    for path in source.iterdir():
        if path.name != "hashes.json" and ".safetensors" not in path.name:
            shutil.copy(path, out / path.name)
    (out / "config.json").write_text(json.dumps(config))
    save_file(tensors, out / "model.safetensors")
    return out
