"""What is no adapter of a model is refused by the name of a key or a tensor, in three lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ernie_local.adapters.reader import read_adapter
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import ModelConfig, read_config
from ernie_local.errors import ModelUnusable

CONFIG = read_config(NANO_DIRECTORY)
HIDDEN = CONFIG.text.hidden_size
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
Tensors = dict[str, torch.Tensor]


def _write(directory: Path, tensors: Tensors | None = None, **settings: Any) -> Path:
    """An adapter of rank 4 on one matrix of nano, with these changes."""
    width = CONFIG.text.num_attention_heads * CONFIG.text.head_dim
    whole: Tensors = {f"{Q}A.weight": torch.ones(4, HIDDEN), f"{Q}B.weight": torch.ones(width, 4)}
    save_file(whole if tensors is None else whole | tensors, directory / "adapter_model.safetensors")
    found = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **settings}
    (directory / "adapter_config.json").write_text(json.dumps(found))
    return directory


def _refused(directory: Path, match: str, config: ModelConfig = CONFIG) -> None:
    with pytest.raises(ModelUnusable, match=match) as caught:
        read_adapter(directory, config)
    assert len(str(caught.value).splitlines()) == 3


def test_the_adapter_that_the_others_are_made_of_is_read(tmp_path: Path) -> None:
    harmless: dict[str, Any] = {"lora_dropout": 0.1, "task_type": "CAUSAL_LM", "fan_in_fan_out": True}
    harmless |= {"_note": 1, "revision": None}
    adapter = read_adapter(_write(tmp_path, **harmless), CONFIG)
    assert list(adapter.weights) == ["layers.0.self_attn.q_proj.weight"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"use_dora": True}, "use_dora is true, this code implements only false"),
        ({"bias": "all"}, "bias is 'all', this code implements only 'none'"),
        ({"lora_bias": True}, "lora_bias is true"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is a list of 1 entries"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA', this code implements only 'LORA'"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes', true or false is expected"),
        ({"trainable_token_indices": [5]}, "unknown key 'trainable_token_indices'"),
        ({"alora_invocation_tokens": [1, 2]}, "unknown key 'alora_invocation_tokens'"),
        ({"r": 0}, "r is 0, outside of 1"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x', a number is expected"),
        ({"lora_alpha": 1e30}, r"times 2.5e\+29 has elements over"),
        ({"rank_pattern": {"q_proj": 2}}, r"lora_A.weight' has the shape \(4, \d+\), expected \(2, \d+\)"),
        ({"alpha_pattern": {"k_proj": 2}}, "'k_proj', which matches none of 1 modules"),
        ({"alpha_pattern": {"(.*)*x": 2}}, r"'\(\.\*\)\*x', which repeats 2 times"),
        ({"alpha_pattern": {"[": 2}}, "is no pattern"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern.q_proj is -1"),
        ({"base_model_name_or_path": "baidu/ERNIE-4.5-21B-A3B-PT"}, "the model given has .* vision blocks"),
    ],
)
def test_a_setting_that_changes_what_the_matrices_mean(
    tmp_path: Path, settings: dict[str, Any], match: str
) -> None:
    _refused(_write(tmp_path, **settings), match)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({f"{Q}magnitude_vector": torch.ones(4)}, "lora_magnitude_vector' is neither lora_A nor lora_B"),
        ({f"{Q}B.bias": torch.ones(4)}, "lora_B.bias' is neither"),
        ({"base_model.model.lm_head.weight": torch.ones(4)}, "lm_head.weight' is neither"),
        ({f"{Q}A.weight": torch.ones(4, HIDDEN + 1)}, r"has the shape \(4, 193\), expected \(4, 192\)"),
        ({f"{Q}A.weight": torch.ones(8, HIDDEN)}, r"has the shape \(8, 192\), expected \(4, 192\)"),
        ({f"{Q}A.weight": torch.full((4, HIDDEN), float("nan"))}, "holds nan at element 0"),
        (
            {f"{Q}A.weight": torch.ones(4, HIDDEN, dtype=torch.int32)},
            "has the dtype I32, expected one of F32",
        ),
        (
            {Q.replace("q_proj", "k_proj") + "A.weight": torch.ones(4, HIDDEN)},
            "has no lora_B beside it.* 2 lora_A and 1 lora_B",
        ),
    ],
)
def test_a_tensor_that_is_no_half_of_a_product(tmp_path: Path, tensors: Tensors, match: str) -> None:
    _refused(_write(tmp_path, tensors), match)


@pytest.mark.parametrize(
    ("module", "match"),
    [
        ("model.layers.99.self_attn.q_proj", "adds to layers.99.self_attn.q_proj.weight, which is no matrix"),
        ("model.layers.0.input_layernorm", "adds to layers.0.input_layernorm.weight, which is no matrix"),
        ("model.embed_tokens", "adds to embed_tokens.weight"),
        ("lm_head", "adds to lm_head.weight"),
        (
            "model.layers.1.mlp.experts.999.up_proj",
            r"adds to experts.1.vision.\d+.up_proj, which is no matrix",
        ),
        ("model.layers.0.attention.wq", "has no place in this model"),
        ("model.language_model.layers.1.mlp.text_moe.experts", "target_parameters in .* names 0 of the 2"),
        ("model.language_model.layers.0.self_attn.q_proj", "is there twice"),
    ],
)
def test_a_module_that_the_model_lacks(tmp_path: Path, module: str, match: str) -> None:
    halves = {f"base_model.model.{module}.lora_A.weight": torch.ones(4, HIDDEN)}
    width = CONFIG.text.num_attention_heads * CONFIG.text.head_dim
    halves[f"base_model.model.{module}.lora_B.weight"] = torch.ones(width, 4)
    _refused(_write(tmp_path, halves), match)


def test_the_model_that_it_was_trained_on_is_named_where_shapes_differ(tmp_path: Path) -> None:
    directory = _write(tmp_path, {f"{Q}A.weight": torch.ones(4, 7)}, base_model_name_or_path="some/other")
    _refused(directory, "trained on 'some/other'")


def test_directories_without_an_adapter(tmp_path: Path) -> None:
    _refused(tmp_path / "none", "cannot be read")
    _refused(tmp_path, "holds no adapter")
    _refused(NANO_DIRECTORY, "neither adapter_config.json nor lora_config.json is among its")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    _refused(tmp_path, "neither adapter_model.safetensors nor adapter_model.safetensors.index.json")
    save_file({}, tmp_path / "adapter_model.safetensors")
    _refused(tmp_path, "holds 0 tensors")
    (tmp_path / "lora_config.json").write_text("{}")
    _refused(tmp_path, "holds 2 adapters")


@pytest.mark.parametrize("name", ["adapter_model.bin", "lora_model_state.pdparams"])
def test_pickles_are_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    _refused(tmp_path, f"has its weights in {name}, which is not read")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"scaling": 3.0}, "scaling is 3.0, rank and alpha make 2"),
        ({"pissa": True}, "pissa is true"),
        ({"lora_alpha": -1}, "lora_alpha is -1"),
        ({"trainable_bias": "all"}, "trainable_bias is 'all'"),
        ({"new_variant": 1}, "unknown key 'new_variant'"),
    ],
)
def test_settings_of_paddle(tmp_path: Path, settings: dict[str, Any], match: str) -> None:
    found = {"r": 4, "lora_alpha": 8, **settings}
    (tmp_path / "lora_config.json").write_text(json.dumps(found))
    _refused(tmp_path, match)


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    path = _write(tmp_path) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    _refused(tmp_path, "would end at byte")
