"""config.json of models that read only text: values as of transformers, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ernie_local.config import ModelConfig, parse_config, read_config
from ernie_local.errors import ModelUnusable
from tests.published_files import TEXT_03B, TEXT_21B, Raw
from tests.text_only import TEXT_MODELS


def described_by_transformers(path: Path) -> dict[str, Any]:
    """What transformers makes of the file that it has saved."""
    from transformers import AutoConfig

    theirs: Any = AutoConfig.from_pretrained(path)
    num_layers, is_dense = theirs.num_hidden_layers, theirs.model_type == "ernie4_5"
    moe_layers = tuple(
        not is_dense
        and (layer + 1) % theirs.moe_layer_interval == 0
        and theirs.moe_layer_start_index <= layer <= theirs.moe_layer_end_index
        for layer in range(num_layers)
    )
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    has_experts = any(moe_layers)
    return {
        "moe_layers": moe_layers,
        "head_dim": head_dim,
        "mrope_section": (0, 0, head_dim // 2),
        "num_key_value_heads": theirs.num_key_value_heads,
        "rope_theta": theirs.rope_parameters["rope_theta"],
        "tie_word_embeddings": theirs.tie_word_embeddings,
        "experts": (theirs.moe_num_experts, theirs.moe_intermediate_size) if has_experts else None,
        "per_token": theirs.moe_k if has_experts else None,
        "shared": theirs.moe_num_shared_experts * theirs.moe_intermediate_size if has_experts else 0,
    }


def described_here(config: ModelConfig) -> dict[str, Any]:
    text = config.text
    names = ("moe_layers", "head_dim", "mrope_section", "num_key_value_heads", "rope_theta")
    bank = text.text_bank
    return {
        **{name: getattr(text, name) for name in (*names, "tie_word_embeddings")},
        "experts": None if bank is None else (bank.num_experts, bank.expert_size),
        "per_token": None if bank is None else text.experts_per_token,
        "shared": text.shared_expert_size,
    }


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_what_transformers_saves_is_read(name: str, tmp_path: Path) -> None:
    from transformers import Ernie4_5_MoeConfig, Ernie4_5Config

    has_experts, changes = TEXT_MODELS[name]
    theirs: Any = (Ernie4_5_MoeConfig if has_experts else Ernie4_5Config)(**changes)
    theirs.save_pretrained(tmp_path)
    assert described_here(read_config(tmp_path)) == described_by_transformers(tmp_path)


@pytest.mark.parametrize("model_type", ["ernie4_5", "ernie4_5_moe"])
def test_a_config_that_says_nothing_is_the_class_default(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    config = read_config(tmp_path)
    assert described_here(config) == described_by_transformers(tmp_path)
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))


@pytest.mark.parametrize(
    ("raw", "change", "message"),
    [
        (TEXT_21B, {"moe_num_experts": [64, 64]}, "moe_num_experts is .*, an integer is expected"),
        (TEXT_21B, {"moe_layer_start_index": [1, 1]}, "moe_layer_start_index is .*, an integer is expected"),
        (TEXT_21B, {"moe_k": 65}, "moe_k is 65, but each bank has 64 experts"),
        (TEXT_21B, {"moe_num_shared_experts": None}, "moe_num_shared_experts is null"),
        (TEXT_21B, {"num_nextn_predict_layers": -1}, "num_nextn_predict_layers is -1"),
        (TEXT_21B, {"moe_gate": "top2"}, "moe_gate is 'top2'"),
        (TEXT_21B, {"num_experts": 32}, "moe_num_experts is 64, but num_experts is 32"),
        (TEXT_21B, {"vision_config": {}}, "unknown key 'vision_config'"),
        (TEXT_21B, {"rope_3d": True}, "rope_3d is true"),
        (TEXT_21B, {"freq_allocation": 20}, "freq_allocation is given, but tokens"),
        (TEXT_21B, {"rope_scaling": {"mrope_section": [22, 22, 20]}}, "mrope_section is given"),
        (TEXT_21B, {"rope_scaling": {"type": "yarn", "factor": 4}}, "type is 'yarn'"),
        (TEXT_21B, {"use_bias": True}, "use_bias is true"),
        (TEXT_21B, {"eos_token_id": 103424}, "eos_token_id is 103424"),
        (TEXT_03B, {"moe_num_experts": 64}, "unknown key 'moe_num_experts'"),
        (TEXT_03B, {"head_dim": 127}, "head_dim is 127, an even width"),
        (TEXT_03B, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (TEXT_03B, {"layer_types": ["sliding_attention"]}, "sliding_attention"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_by_name(raw: Raw, change: Raw, message: str) -> None:
    with pytest.raises(ModelUnusable, match=message):
        parse_config(raw | change, "config.json")


def test_ids_of_null_are_none() -> None:
    config = parse_config(TEXT_03B | {"bos_token_id": None, "eos_token_id": None}, "config.json")
    assert (config.bos_token_id, config.eos_token_ids) == (None, ())
