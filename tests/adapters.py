"""Random adapters that PEFT trains and merges, and checkpoints with an adapter in their weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ernie_local.adapters.low_rank import Adapter
from ernie_local.adapters.merged import open_merged
from ernie_local.checkpoint.names import map_name
from ernie_local.config import ModelConfig, read_config
from tests.conftest import Oracle

# All that PEFT can add to in transformers' model.
EVERYTHING: dict[str, Any] = {
    "target_modules": "all-linear",
    "target_parameters": ["experts.gate_up_proj", "experts.down_proj", "gate.weight"],
}


def save_random_adapter(model: Any, directory: Path, seed: int = 1, **options: Any) -> Any:
    """Save one of random matrices for transformers' model. Returns PEFT's model around it, not merged."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = LoraConfig(**{"r": 3, "lora_alpha": 5, "init_lora_weights": False, **EVERYTHING, **options})
    adapted = get_peft_model(model, settings)
    adapted.save_pretrained(str(directory))
    return adapted.eval()


def weights_of(model: Any, config: ModelConfig) -> dict[str, torch.Tensor]:
    """Copies of the weights of transformers' model, under our names."""
    found = {}
    for name, tensor in model.state_dict().items():
        for part in map_name(name, config.text.banks):
            value = tensor if part.row is None else tensor[part.row]
            if part.half is not None:
                value = value.chunk(2)[part.half]
            found[part.name] = (value.t() if part.transposed else value).clone()
    if config.text.tie_word_embeddings:
        del found["lm_head.weight"]
    return found


def copy_merged(source: Path, out: Path, adapter: Adapter) -> Path:
    """A copy of a float checkpoint in which an adapter is added to its weights by `open_merged`."""
    shutil.copytree(source, out)
    config = read_config(source)
    with open_merged(source, config, adapter) as merged:
        for path in out.glob("*.safetensors"):
            tensors = load_file(path)
            for name, tensor in tensors.items():
                for part in map_name(name, config.text.banks):
                    place = tensor if part.row is None else tensor[part.row]
                    if part.half is not None:
                        place = place.chunk(2)[part.half]
                    value = torch.empty(merged.shape(part.name), dtype=tensor.dtype)
                    merged.read(part.name, value)
                    place.copy_(value.t() if part.transposed else value)
            save_file(tensors, path, {"format": "pt"})
    return out


def as_oracle(adapted: Any, oracle: Oracle) -> Oracle:
    """PEFT's model as an oracle, which computes its adapter beside the weights."""
    return Oracle(adapted.base_model.model, oracle.seed)
