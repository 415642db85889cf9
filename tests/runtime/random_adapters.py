"""Draws random adapters: of chosen weights of a model, and tables of one bank of experts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from ernie_local.adapters.low_rank import Adapter, LowRank
from ernie_local.adapters.tables import StackedExperts
from ernie_local.checkpoint.names import PROJECTIONS, name_in_file
from ernie_local.checkpoint.shapes import ExpectedShapes
from ernie_local.config import ModelConfig
from ernie_local.kernels.arguments import LowRankExperts

EVERY_LINEAR = r"layers\.\d+\.(self_attn|mlp|moe\.shared_experts)\.\w+\.weight|experts\..*"


def low_rank(rows: int, columns: int, rank: int, seed: int, size: float = 0.5) -> LowRank:
    """Exact in bfloat16. size: of the product, about, where weights have 1 / sqrt(columns)."""
    generator = torch.Generator().manual_seed(seed)
    inward = torch.randn(rank, columns, generator=generator) / columns**0.5
    outward = size * torch.randn(rows, rank, generator=generator) / rank**0.5
    return LowRank(inward.bfloat16(), outward.bfloat16())


def random_adapter(
    config: ModelConfig, pattern: str = EVERY_LINEAR, rank: int = 3, seed: int = 0, size: float = 0.5
) -> Adapter:
    """Of every weight whose name matches `pattern` in full."""
    shapes = ExpectedShapes(config)
    names = [name for name in shapes.names(with_experts=True) if re.fullmatch(pattern, name)]
    assert names, pattern
    found = {}
    for number, name in enumerate(names):
        rows, columns = shapes.shape(name) or ()
        found[name] = low_rank(rows, columns, rank, 1000 * seed + number, size)
    return Adapter(found)


def random_tables(
    num_experts: int,
    hidden_size: int,
    inner_size: int,
    rank: int,
    names: Iterable[str] = PROJECTIONS,
    seed: int = 0,
) -> LowRankExperts:
    """In bfloat16, for all experts."""
    sizes = {"down_proj": (hidden_size, inner_size)}
    by_expert = {
        expert: {
            name: low_rank(
                *sizes.get(name, (inner_size, hidden_size)), rank, 100 * seed + 10 * expert + place
            )
            for place, name in enumerate(names)
        }
        for expert in range(num_experts)
    }
    stacked = StackedExperts(num_experts, hidden_size, inner_size, by_expert)
    return stacked.tables(torch.bfloat16, torch.device("cpu"))


def write_peft(directory: Path, adapter: Adapter, config: ModelConfig, rank: int) -> Path:
    """As PEFT writes an adapter for the published code; all of one rank, and of scale 1."""
    directory.mkdir(exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, one in adapter.weights.items():
        stem = name_in_file(name, "hub", config.text.banks).removesuffix(".weight")
        tensors[f"base_model.model.{stem}.lora_A.weight"] = one.rank_by_columns
        tensors[f"base_model.model.{stem}.lora_B.weight"] = one.rows_by_rank
    save_file(tensors, directory / "adapter_model.safetensors")
    modules = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory
