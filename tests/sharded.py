"""A model as deep as the published one, with few and small experts, cut into as many files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ernie_local.checkpoint.hub import NANO_DIRECTORY

NUM_LAYERS, NUM_FILES, NUM_EXPERTS = 28, 29, 4
Tensors = dict[str, torch.Tensor]


def write_deep_nano(
    out: Path,
    num_layers: int = NUM_LAYERS,
    num_files: int = NUM_FILES,
    order: Callable[[str], str] | None = None,
) -> Path:
    """nano's layers over and over, with the first experts of each bank and a second copy of the embedding.

    order: of the names in the files; by default that of the modules, as most writers have it.
    """
    tensors: Tensors = {}
    for path in sorted(NANO_DIRECTORY.glob("*.safetensors")):
        tensors |= load_file(path)
    config = json.loads((NANO_DIRECTORY / "config.json").read_text())
    banks = config["moe_num_experts"]
    per_layer: dict[int, Tensors] = {}
    for name in list(tensors):
        if match := re.match(r"model\.layers\.(\d+)\.(.*)", name):
            per_layer.setdefault(int(match[1]), {})[match[2]] = tensors.pop(name)
    deep: Tensors = {"model.embed_tokens.weight": tensors.pop("model.embed_tokens.weight")}
    for layer in range(num_layers):
        like = per_layer[0 if layer == 0 else 1 + (layer - 1) % (len(per_layer) - 1)]
        for name, tensor in _with_few_experts(like, banks).items():
            deep[f"model.layers.{layer}.{name}"] = tensor
    deep |= tensors
    deep["lm_head.weight"] = deep["model.embed_tokens.weight"]
    if order is not None:
        deep = {name: deep[name] for name in sorted(deep, key=order)}
    out.mkdir(parents=True)
    config |= {
        "num_hidden_layers": num_layers,
        "moe_num_experts": [NUM_EXPERTS, NUM_EXPERTS],
        "moe_k": 2,
        "moe_layer_end_index": [num_layers - 1, num_layers - 1],
    }
    (out / "config.json").write_text(json.dumps(config))
    for path in NANO_DIRECTORY.iterdir():
        # Without README.md, which is not downloaded.
        if path.suffix != ".md" and path.name != "config.json" and ".safetensors" not in path.name:
            shutil.copy(path, out / path.name)
    write_files(out, deep, num_files)
    return out


def _with_few_experts(layer: Tensors, banks: list[int]) -> Tensors:
    kept: Tensors = {}
    for name, tensor in layer.items():
        if match := re.match(r"mlp\.experts\.(\d+)\.(.*)", name):
            bank, expert = divmod(int(match[1]), banks[0])
            if expert < NUM_EXPERTS:
                kept[f"mlp.experts.{bank * NUM_EXPERTS + expert}.{match[2]}"] = tensor
        elif "mlp.gate.weight" in name or name.endswith("e_score_correction_bias"):
            kept[name] = tensor[:, :NUM_EXPERTS].contiguous()
        else:
            kept[name] = tensor
    return kept


def write_files(out: Path, tensors: Tensors, num_files: int) -> None:
    """Cut the tensors into files of about equal size, in their order, and write the index."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    files: list[Tensors] = [{} for _ in range(num_files)]
    begun = 0
    for name, tensor in tensors.items():
        files[begun * num_files // total][name] = tensor
        begun += tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, content in enumerate(files, 1):
        path = out / f"model-{number:05}-of-{num_files:05}.safetensors"
        save_file({name: tensor.clone() for name, tensor in content.items()}, path)
        weight_map |= dict.fromkeys(content, path.name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
