"""The map of tensor names: every spelling, its inverse, and that it is idempotent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_local.checkpoint.header import StoredTensor
from ernie_local.checkpoint.index import account
from ernie_local.checkpoint.names import (
    Part,
    WeightLayout,
    is_left_out,
    layout_of,
    map_name,
    name_in_file,
)
from ernie_local.checkpoint.shapes import ExpectedShapes
from ernie_local.config import ExpertBank, ModelConfig, parse_config
from ernie_local.config.model import bank_per_modality
from ernie_local.errors import ModelUnusable
from tests.published_files import PADDLE_424B, PT_28B

LAYOUTS: tuple[WeightLayout, ...] = ("hub", "native")
PUBLISHED = {"model_type": "ernie4_5_vl_moe"}  # every size left to its default is the 28B model


def banks_of(num_experts: int) -> tuple[ExpertBank, ...]:
    return bank_per_modality(num_experts, (48, 16))


def assert_idempotent(parts: tuple[Part, ...], num_experts: int) -> None:
    """What came out of the map goes through it unchanged."""
    for part in parts:
        assert map_name(part.name, banks_of(num_experts)) == (Part(part.name),)


def config(**text: Any) -> ModelConfig:
    raw = {**PUBLISHED, "text_config": text, "tie_word_embeddings": False}
    return parse_config(raw, "config.json")


EXAMPLES: list[tuple[str, tuple[Part, ...]]] = [
    ("model.embed_tokens.weight", (Part("embed_tokens.weight"),)),
    ("model.language_model.norm.weight", (Part("norm.weight"),)),
    ("lm_head.weight", (Part("lm_head.weight"),)),
    ("model.layers.0.mlp.up_proj.weight", (Part("layers.0.mlp.up_proj.weight"),)),
    ("model.layers.9.self_attn.o_proj.weight", (Part("layers.9.self_attn.o_proj.weight"),)),
    (
        "model.language_model.layers.3.mlp.shared_experts.down_proj.weight",
        (Part("layers.3.moe.shared_experts.down_proj.weight"),),
    ),
    ("model.layers.2.mlp.gate.weight", (Part("layers.2.moe.text_router.weight", transposed=True),)),
    ("model.layers.2.mlp.gate.weight_1", (Part("layers.2.moe.vision_router.weight", transposed=True),)),
    (
        "model.layers.2.mlp.moe_statics.e_score_correction_bias",
        (Part("layers.2.moe.text_router.bias", row=0), Part("layers.2.moe.vision_router.bias", row=1)),
    ),
    ("model.layers.2.mlp.experts.2.gate_proj.weight", (Part("experts.2.text.2.gate_proj"),)),
    ("model.layers.2.mlp.experts.3.down_proj.weight", (Part("experts.2.vision.0.down_proj"),)),
    ("model.layers.2.mlp.experts.7.down_proj.weight", (Part("experts.2.vision.4.down_proj"),)),
    (
        "model.language_model.layers.2.mlp.vision_moe.gate.weight",
        (Part("layers.2.moe.vision_router.weight"),),
    ),
    (
        "model.language_model.layers.2.mlp.text_moe.gate.moe_statics.e_score_correction_bias",
        (Part("layers.2.moe.text_router.bias", row=0),),
    ),
    (
        "model.language_model.layers.2.mlp.text_moe.experts.gate_up_proj",
        tuple(
            Part(f"experts.2.text.{expert}.{projection}", row=expert, half=half)
            for expert in range(3)
            for half, projection in enumerate(("gate_proj", "up_proj"))
        ),
    ),
    (
        "model.language_model.layers.2.mlp.vision_moe.experts.down_proj",
        tuple(Part(f"experts.2.vision.{expert}.down_proj", row=expert) for expert in range(3)),
    ),
    ("vision_model.patch_embed.proj.weight", (Part("vision.patch_embed.weight"),)),
    ("model.vision_model.ln.bias", (Part("vision.norm.bias"),)),
    ("model.vision_tower.blocks.31.attn.qkv.bias", (Part("vision.blocks.31.attn.qkv.bias"),)),
    ("model.resampler_model.spatial_linear.0.weight", (Part("resampler.spatial.fc1.weight"),)),
    ("model.resampler_model.temporal_linear.ln.bias", (Part("resampler.temporal.norm.bias"),)),
    ("model.resampler_model.after_norm.weight", (Part("resampler.norm.weight"),)),
    ("model.resampler_model.mlp.bias", (Part("resampler.mlp.bias"),)),
]


@pytest.mark.parametrize(("name", "parts"), EXAMPLES)
def test_names_of_both_layouts(name: str, parts: tuple[Part, ...]) -> None:
    assert map_name(name, banks_of(3)) == parts
    assert_idempotent(parts, 3)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "model.",
        "embed_tokens",
        "model.model.embed_tokens.weight",
        "model.layers.01.input_layernorm.weight",
        "model.layers.-1.input_layernorm.weight",
        "model.layers.1234567.input_layernorm.weight",
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.1.mlp.gate.weight_2",
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.audio_moe.gate.weight",
        "model.mtp.layers.0.input_layernorm.weight",
        "model.layers.٣.input_layernorm.weight",
        "model.resampler_model.spatial_linear.1.weight",
        "model.embed_tokens.weight\n",
        "language_model.vision_tower.ln.weight",
    ],
)
def test_other_names_map_to_nothing(name: str) -> None:
    assert map_name(name, banks_of(3)) == ()
    assert not is_left_out(name)


def test_an_expert_beyond_both_banks_is_no_expert_of_the_model() -> None:
    (part,) = map_name("model.layers.1.mlp.experts.128.up_proj.weight", banks_of(64))
    assert ExpectedShapes(config()).shape(part.name) is None


def test_training_counters_are_ignored_by_name() -> None:
    assert is_left_out("model.layers.1.mlp.moe_statics.expert_usage")
    assert map_name("model.layers.1.mlp.moe_statics.expert_usage", banks_of(64)) == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_of_the_model_has_a_name_in_each_layout(layout: WeightLayout) -> None:
    expected = ExpectedShapes(config(num_hidden_layers=3, moe_num_experts=5, moe_k=2))
    for ours in expected.names():
        in_file = name_in_file(ours, layout, banks_of(5))
        parts = map_name(in_file, banks_of(5))
        assert ours in {part.name for part in parts}, in_file
        assert_idempotent(parts, 5)
        assert layout_of(in_file) in (layout, None)
        if layout == "hub" and in_file.startswith("vision_model."):
            assert map_name(f"model.{in_file}", banks_of(5)) == parts


@pytest.mark.parametrize(("layout", "num_tensors"), [("hub", 11105), ("native", 872)])
def test_the_28b_model_has_as_many_tensors_as_published(layout: WeightLayout, num_tensors: int) -> None:
    expected = ExpectedShapes(parse_config(PUBLISHED, "config.json"))
    assert len({name_in_file(ours, layout, banks_of(64)) for ours in expected.names()}) == num_tensors


def test_the_28b_model_has_as_many_parameters_as_published() -> None:
    expected = ExpectedShapes(parse_config(PUBLISHED, "config.json"))
    total = 0
    for name in expected.names():
        shape = expected.shape(name)
        assert shape is not None
        total += shape[0] * (shape[1] if len(shape) == 2 else 1)
    assert total == 29_399_294_336


def test_names_are_counted_without_being_made() -> None:
    for tied in (True, False):
        raw = {**PUBLISHED, "text_config": {"num_hidden_layers": 5}, "tie_word_embeddings": tied}
        expected = ExpectedShapes(parse_config(raw, "config.json"))
        names = list(expected.names())
        assert expected.count() == len(names) == len(set(names))
        assert ("lm_head.weight" in names) is not tied


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.moe.text_router.weight",
        "layers.1.mlp.up_proj.weight",
        "layers.28.input_layernorm.weight",
        "experts.0.text.0.up_proj",
        "experts.1.text.64.up_proj",
        "vision.blocks.32.norm1.weight",
        "vision.blocks.0.norm3.weight",
        "layers.1.moe.shared_experts.bias",
        "nothing",
    ],
)
def test_what_the_model_has_not_has_no_shape(name: str) -> None:
    assert ExpectedShapes(config()).shape(name) is None


WORDS = st.sampled_from(
    "model language_model layers 0 1 07 mlp experts 63 64 gate weight weight_1 bias text_moe vision_moe "
    "gate_up_proj down_proj moe_statics e_score_correction_bias shared_experts vision_tower vision norm "
    "resampler spatial_linear spatial fc1 2 ln moe text_router text".split()
)


@given(st.lists(WORDS | st.text(max_size=3), max_size=8), st.integers(0, 5))
def test_any_name_maps_to_nothing_or_to_stable_names(words: list[str], num_experts: int) -> None:
    name = ".".join(words)
    layout_of(name)
    is_left_out(name)
    assert_idempotent(map_name(name, banks_of(num_experts)), num_experts)


def test_names_of_the_paddle_repositories_have_a_message_of_their_own(tmp_path: Path) -> None:
    names = ["ernie.embed_tokens.weight", "ernie.layers.0.mlp.up_gate_proj.weight"]
    stored = [StoredTensor(tmp_path / "model.safetensors", name, "BF16", (8, 8), 0, 128) for name in names]
    for raw, repository in ((PT_28B, "28B-A3B-PT"), (PADDLE_424B, "424B-A47B-PT")):
        with pytest.raises(ModelUnusable, match=rf"'ernie\.embed.*\n.*another format.*\n.*{repository}"):
            account(tmp_path, stored, parse_config(raw, "config.json"))
