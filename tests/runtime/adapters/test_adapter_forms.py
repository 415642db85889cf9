"""Adapters as other programs write them: per expert, by earlier versions of PEFT, and by PaddleFormers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ernie_local.adapters.reader import read_adapter
from ernie_local.checkpoint.names import name_in_file
from ernie_local.checkpoint.shapes import ExpectedShapes
from ernie_local.config import ModelConfig
from ernie_local.errors import ModelUnusable
from tests.adapters import save_random_adapter, weights_of
from tests.conftest import Oracle, build_oracle

RANK, ALPHA = 3, 7.0


@pytest.fixture(scope="module")
def config(tiny_oracle: Oracle) -> ModelConfig:
    return tiny_oracle.config


def _adaptable(config: ModelConfig) -> Iterator[tuple[str, tuple[int, int]]]:
    """Our names and shapes of all matrices of linear layers."""
    expected = ExpectedShapes(config)
    for name in expected.names():
        shape = expected.shape(name) or ()
        if len(shape) == 2 and "router" not in name and name != "embed_tokens.weight":
            yield name, (shape[0], shape[1])


def _write(directory: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> None:
    directory.mkdir(exist_ok=True)
    found = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, **settings}
    (directory / "adapter_config.json").write_text(json.dumps(found))
    save_file(tensors, directory / "adapter_model.safetensors")


def test_each_expert_has_its_own_names_in_the_hub_s_layout(config: ModelConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors, added = {}, {}
    for name, (rows, columns) in _adaptable(config):
        lora_a, lora_b = torch.randn(RANK, columns), torch.randn(rows, RANK)
        module = name_in_file(name, "hub", config.text.banks).removesuffix(".weight")
        tensors[f"base_model.model.{module}.lora_A.weight"] = lora_a
        tensors[f"base_model.model.{module}.lora_B.weight"] = lora_b
        added[name] = ALPHA / RANK * lora_b @ lora_a
    assert "base_model.model.model.layers.2.mlp.experts.15.down_proj.lora_A.weight" in tensors
    _write(tmp_path, tensors)
    adapter = read_adapter(tmp_path, config)
    assert set(adapter.weights) == set(added)
    for name, expected in added.items():
        torch.testing.assert_close(adapter.weights[name].weight(), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """An adapter of fused experts, and what PEFT's merge of it adds."""
    directory = tmp_path_factory.mktemp("fused") / "adapter"
    oracle = build_oracle()
    config, before = oracle.config, weights_of(oracle.model, oracle.config)
    parameters = ["experts.gate_up_proj", "experts.down_proj"]
    targets: dict[str, Any] = {"target_modules": [], "target_parameters": parameters}
    merged = save_random_adapter(oracle.model, directory, **targets).merge_and_unload()
    after = weights_of(merged, config)
    return directory, {name: after[name] - one for name, one in before.items() if name.startswith("experts.")}


def _agree(directory: Path, config: ModelConfig, added: dict[str, torch.Tensor]) -> None:
    adapter = read_adapter(directory, config)
    assert set(adapter.weights) == set(added)
    for name, expected in added.items():
        torch.testing.assert_close(adapter.weights[name].weight(), expected, rtol=0, atol=3e-6)


def test_slices_of_fused_experts_are_the_adapter_of_each_expert(
    fused: tuple[Path, dict[str, torch.Tensor]], config: ModelConfig, tmp_path: Path
) -> None:
    directory, added = fused
    stored = load_file(directory / "adapter_model.safetensors")
    tensors = {}
    for layer_id, bank in config.text.layer_banks():
        first = 0 if bank.name == "text" else config.text.banks[0].num_experts
        experts = f"base_model.model.model.language_model.layers.{layer_id}.mlp.{bank.name}_moe.experts"
        for wrapper, names in ((".base_layer", ("gate_proj", "up_proj")), ("", ("down_proj",))):
            lora_a, lora_b = (stored[f"{experts}{wrapper}.lora_{half}.weight"] for half in "AB")
            for expert in range(bank.num_experts):
                halves = lora_b[:, expert :: bank.num_experts].chunk(len(names))
                for name, rows in zip(names, halves, strict=True):
                    module = f"base_model.model.model.layers.{layer_id}.mlp.experts.{first + expert}.{name}"
                    tensors[f"{module}.lora_A.weight"] = lora_a[expert * RANK :][:RANK].clone()
                    tensors[f"{module}.lora_B.weight"] = rows.contiguous()
    _write(tmp_path / "each", tensors, lora_alpha=5)
    _agree(tmp_path / "each", config, added)


def test_experts_of_peft_until_0_19_are_transposed(
    fused: tuple[Path, dict[str, torch.Tensor]], config: ModelConfig, tmp_path: Path
) -> None:
    """There the halves of each expert have changed places: its product is what is added, transposed."""
    directory, added = fused
    tensors = {}
    stored = load_file(directory / "adapter_model.safetensors")
    for name in [name for name in stored if ".lora_A." in name]:
        num_experts = config.text.banks[0].num_experts
        lora_a, lora_b = stored[name], stored[name.replace("lora_A", "lora_B")]
        each_a = lora_a.reshape(num_experts, RANK, -1)  # (experts, rank, columns)
        each_b = lora_b.reshape(-1, RANK, num_experts)  # (rows, rank, experts)
        tensors[name] = each_b.permute(2, 1, 0).reshape(num_experts * RANK, -1)
        tensors[name.replace("lora_A", "lora_B")] = each_a.permute(2, 1, 0).reshape(lora_a.shape[1], -1)
    raw = json.loads((directory / "adapter_config.json").read_text())
    in_order = {name: one.contiguous() for name, one in tensors.items()}
    _write(tmp_path / "old", in_order, **raw | {"peft_version": "0.18.1"})
    _agree(tmp_path / "old", config, added)


def test_which_side_is_which_of_square_experts_is_known_by_the_version(tmp_path: Path) -> None:
    text = {"moe_intermediate_size": [32, 64]}
    config = build_oracle(text=text).config
    name = "base_model.model.model.language_model.layers.1.mlp.vision_moe.experts"
    lora_a, lora_b = torch.randn(8 * RANK, 64), torch.randn(64, 8 * RANK)
    tensors = {f"{name}.lora_A.weight": lora_a, f"{name}.lora_B.weight": lora_b}
    made = {}
    for version in ("0.19.0", "0.20.0", None):
        settings = {"peft_version": version, "target_parameters": ["experts.down_proj"]}
        _write(tmp_path / str(version), tensors, **settings)
        if version is not None:
            made[version] = read_adapter(tmp_path / version, config).weights["experts.1.vision.5.down_proj"]
    torch.testing.assert_close(made["0.19.0"].weight(), made["0.20.0"].weight().t())
    with pytest.raises(ModelUnusable, match="does not say peft_version"):
        read_adapter(tmp_path / "None", config)


_PADDLE_FUSED = {"q_proj": ("qkv_proj", "qkv"), "gate_proj": ("up_gate_proj", ("gate", "up"))}


def _paddle_modules(config: ModelConfig) -> Iterator[tuple[str, list[str]]]:
    """Modules as ERNIEKit names them, with our names of the weights whose rows they have in turn."""
    for name, _ in _adaptable(config):
        module = name_in_file(name, "hub", config.text.banks).removesuffix(".weight")
        parent, _, own = re.sub(r"^model\.", "ernie.", module).rpartition(".")
        if own in _PADDLE_FUSED:
            fused, parts = _PADDLE_FUSED[own]
            yield f"{parent}.{fused}", [name.replace(own, f"{part}_proj") for part in parts]
        elif own not in ("k_proj", "v_proj", "up_proj"):
            yield f"{parent}.{own}", [name]


@pytest.mark.parametrize("rslora", [False, True])
def test_paddle_s_fused_modules_are_split_by_size(config: ModelConfig, tmp_path: Path, rslora: bool) -> None:
    torch.manual_seed(0)
    expected = ExpectedShapes(config)
    scale = ALPHA / (math.sqrt(RANK) if rslora else RANK)
    shards: list[dict[str, torch.Tensor]] = [{}, {}]
    added = {}
    for number, (module, names) in enumerate(_paddle_modules(config)):
        shapes = [expected.shape(name) or () for name in names]
        lora_a = torch.randn(shapes[0][1], RANK)
        lora_b = torch.randn(RANK, sum(shape[0] for shape in shapes))
        shards[number % 2] |= {f"{module}.lora_A": lora_a, f"{module}.lora_B": lora_b}
        delta = lora_a @ lora_b * scale  # (columns, rows), as Paddle keeps weights
        for name, part in zip(names, delta.split([shape[0] for shape in shapes], dim=1), strict=True):
            added[name] = part.t()
    assert "ernie.layers.1.mlp.experts.9.up_gate_proj.lora_A" in {**shards[0], **shards[1]}
    assert set(added) == {name for name, _ in _adaptable(config)}
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"peft_model-0000{number}-of-00002.safetensors"
        save_file(shard, tmp_path / file)
        weight_map |= dict.fromkeys(shard, file)
    (tmp_path / "peft_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    settings = {"r": RANK, "lora_alpha": ALPHA, "rslora": rslora, "scaling": scale, "lora_dropout": 0.1}
    (tmp_path / "lora_config.json").write_text(json.dumps(settings))
    adapter = read_adapter(tmp_path, config)
    assert set(adapter.weights) == set(added)
    for name, wanted in added.items():
        torch.testing.assert_close(adapter.weights[name].weight(), wanted, rtol=1e-5, atol=1e-5)
