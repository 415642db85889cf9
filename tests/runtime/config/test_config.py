"""config.json in both layouts: equal to what transformers derives, and strict about everything else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_local.config import ModelConfig, parse_config, read_config
from ernie_local.config.model import bank_per_modality
from ernie_local.errors import ModelUnusable

Raw = dict[str, Any]

TEXT: Raw = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "moe_intermediate_size": [48, 16],
    "moe_k": 2,
    "moe_num_experts": 8,
    "moe_num_shared_experts": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [3, 3, 2]},
}
VISION: Raw = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64}
DELETE = object()


def rope(height: int, width: int, temporal: int, type_key: str = "rope_type") -> Raw:
    return {type_key: "default", "mrope_section": [height, width, temporal]}


# What a native config.json may look like: changes to (top, text, vision).
NATIVE_VARIANTS: dict[str, tuple[Raw, Raw, Raw]] = {
    "as it is": ({}, {}, {}),
    "tokens": (
        {"image_token_id": 5, "video_end_token_id": 10},
        {"bos_token_id": 1, "eos_token_id": [2, 7]},
        {},
    ),
    "torch_dtype": ({"torch_dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}),
    "dtype": ({"dtype": "float32"}, {"dtype": "float32"}, {}),
    "untied": ({"tie_word_embeddings": False}, {}, {}),
    "only the inner says untied": ({}, {"tie_word_embeddings": False}, {}),
    "odd number of experts": ({}, {"moe_num_experts": 7, "moe_k": 7}, {}),
    "one expert": ({}, {"moe_num_experts": 1, "moe_k": 1}, {}),
    "no shared experts": ({}, {"moe_num_shared_experts": 0}, {}),
    "three shared experts": ({}, {"moe_num_shared_experts": 3}, {}),
    "number by alias": ({}, {"moe_num_experts": DELETE, "num_experts": 5}, {}),
    "top k by alias": ({}, {"moe_k": DELETE, "num_experts_per_tok": 3}, {}),
    "layer types": ({}, {"mlp_layer_types": ["sparse", "dense", "sparse"]}, {}),
    "too many layer types": ({}, {"mlp_layer_types": ["dense", "sparse", "sparse", "dense"]}, {}),
    "all dense": ({}, {"mlp_layer_types": ["dense"] * 3}, {}),
    "null layer types": ({}, {"mlp_layer_types": None}, {}),
    "hub leftovers": ({}, {"moe_layer_interval": 1}, {}),
    "old theta": (
        {},
        {"rope_parameters": DELETE, "rope_scaling": rope(2, 2, 4, "type"), "rope_theta": 1e4},
        {},
    ),
    "two thetas": ({}, {"rope_theta": 1e4}, {}),
    "theta beside": ({}, {"rope_parameters": rope(3, 3, 2), "rope_theta": 3e4}, {}),
    "no theta": ({}, {"rope_parameters": rope(3, 3, 2)}, {}),
    "scaling wins": ({}, {"rope_scaling": {**rope(1, 1, 6), "rope_theta": 7.0}}, {}),
    "no height": ({}, {"rope_parameters": rope(0, 0, 8)}, {}),
    "head_dim": ({}, {"head_dim": 24, "rope_parameters": rope(4, 4, 4)}, {}),
    "uneven heads": ({}, {"hidden_size": 66}, {}),
    "default section": ({}, {"head_dim": 128, "rope_parameters": {"rope_theta": 5e5}}, {}),
    "no rope at all": ({}, {"head_dim": 128, "rope_parameters": DELETE}, {}),
    "one key-value head": ({}, {"num_key_value_heads": 1}, {}),
    "norms": ({}, {"rms_norm_eps": 1e-3, "moe_norm_min": 1e-9}, {"rms_norm_eps": 1e-4}),
    "vision depth by alias": ({}, {}, {"depth": DELETE, "num_hidden_layers": 3}),
    "vision heads by alias": ({}, {}, {"num_heads": DELETE, "num_attention_heads": 4}),
    "vision rope": ({}, {}, {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
    "old vision rope": ({}, {}, {"rope_theta": 500.0}),
    "vision sizes": ({}, {}, {"patch_size": 4, "spatial_merge_size": 3, "in_channels": 1}),
    "generation": ({}, {"temperature": 0.7, "top_k": 50, "do_sample": True, "max_length": 20}, {}),
    "library": ({"_name_or_path": "x", "auto_map": {}}, {"_attn_implementation": "sdpa"}, {}),
    "unused parts": ({}, {"pruned_heads": {}, "tie_encoder_decoder": False}, {"tie_word_embeddings": True}),
    "harmless null": ({"moe_new": None}, {"sliding_window": None, "per_layer_config": None}, {}),
}


def edited(base: Raw, changes: Raw) -> Raw:
    merged = {**base, **changes}
    return {key: value for key, value in merged.items() if value is not DELETE}


def native(top: Raw, text: Raw, vision: Raw) -> Raw:
    names = ("image", "image_start", "image_end", "video", "video_start", "video_end")
    tags = {f"{name}_token_id": token_id for token_id, name in enumerate(names, start=5)}
    raw: Raw = {"model_type": "ernie4_5_vl_moe", "tie_word_embeddings": True, **tags}
    raw |= {"text_config": edited(TEXT, text), "vision_config": edited(VISION, vision)}
    return edited(raw, top)


def hub(top: Raw | None = None, vision: Raw | None = None) -> Raw:  # long: a line for each key
    """The published keys, with small numbers."""
    raw: Raw = {
        "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
        "auto_map": {"AutoConfig": "configuration_ernie4_5_vl.Ernie4_5_VLMoEConfig"},
        "model_type": "ernie4_5_moe_vl",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "compression_ratio": 1.0,
        "freq_allocation": 2,
        "fuse_rope": False,
        "hidden_act": "silu",
        "hidden_size": 64,
        "im_patch_id": 5,
        "image_end_token_id": 7,
        "image_start_token_id": 6,
        "video_end_token_id": 9,
        "video_start_token_id": 8,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "max_position_embeddings": 1024,
        "moe_capacity": [1.2, 2.0, 2.0],
        "moe_gate": "topk",
        "moe_gate_act": "softmax",
        "moe_intermediate_size": [48, 16],
        "moe_k": 2,
        "moe_layer_end_index": [29, 28],
        "moe_layer_interval": 1,
        "moe_layer_start_index": [1, 1],
        "moe_multimodal_dispatch_use_allgather": "v2-alltoall-unpad-text",
        "moe_norm_gate_logits": True,
        "moe_num_experts": [8, 8],
        "moe_num_shared_experts": 2,
        "moe_use_aux_free": True,
        "moe_use_hard_gate": True,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pixel_hidden_size": 32,
        "rms_norm_eps": 1e-5,
        "rope_3d": True,
        "rope_scaling": {"type": "default", "mrope_section": [3, 3, 2]},
        "rope_theta": 500000,
        "spatial_conv_size": 2,
        "temporal_conv_size": 2,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.54.0",
        "use_bias": False,
        "use_cache": False,
        "use_rmsnorm": True,
        "use_temporal_conv": True,
        "vocab_size": 96,
    }
    raw["vision_config"] = edited(
        {
            "attn_implementation": "eager",
            "attn_sep": True,
            "depth": 2,
            "embed_dim": 32,
            "hidden_act": "quick_gelu",
            "hidden_size": 32,
            "in_channels": 3,
            "in_chans": 3,
            "mlp_ratio": 2,
            "model_type": "DFNRope_vision_transformer",
            "num_heads": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "tensor_parallel_degree": 1,
            "use_recompute": True,
            "vit_num_recompute_layers": 10000,
        },
        vision or {},
    )
    return edited(raw, top or {})


def derived_by_transformers(raw: Raw) -> Raw:
    """The values that transformers' model takes out of its config object."""
    from transformers import Ernie4_5_VLMoeConfig

    config: Any = Ernie4_5_VLMoeConfig.from_dict(raw)
    text, vision = config.text_config, config.vision_config
    eos = text.eos_token_id
    rope = text.rope_parameters
    layers = tuple(kind == "sparse" for kind in text.mlp_layer_types[: text.num_hidden_layers])
    return {
        "text": (
            text.vocab_size, text.hidden_size, text.intermediate_size, text.num_hidden_layers,
            text.num_attention_heads, text.num_key_value_heads,
            getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            text.max_position_embeddings, text.rms_norm_eps, rope["rope_theta"],
            tuple(rope.get("mrope_section", [22, 22, 20])), layers,
            bank_per_modality(text.num_experts, text.moe_intermediate_size) if any(layers) else (),
            text.num_experts_per_tok,
            text.moe_num_shared_experts, text.moe_norm_min, config.tie_word_embeddings, text.hidden_act,
        ),
        "vision": (
            vision.depth, vision.hidden_size, vision.num_heads, vision.intermediate_size, vision.in_channels,
            vision.patch_size, vision.spatial_merge_size, vision.temporal_merge_size, vision.rms_norm_eps,
            vision.rope_parameters["rope_theta"], vision.hidden_act,
        ),
        "media": (
            config.image_token_id, config.image_start_token_id, config.image_end_token_id,
            config.video_token_id, config.video_start_token_id, config.video_end_token_id,
        ),
        "bos": text.bos_token_id,
        "eos": () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
    }  # fmt: skip


def derived_here(config: ModelConfig) -> Raw:
    def values(section: Any) -> tuple[Any, ...]:
        return tuple(getattr(section, name) for name in section.__dataclass_fields__)

    return {
        "text": values(config.text),
        "vision": values(config.vision),
        "media": values(config.media),
        "bos": config.bos_token_id,
        "eos": config.eos_token_ids,
    }


@pytest.mark.parametrize("variant", NATIVE_VARIANTS)
def test_native_values_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    raw = native(*NATIVE_VARIANTS[variant])
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = read_config(tmp_path)
    assert derived_here(config) == derived_by_transformers(raw)
    assert config.source_layout == "native"


@pytest.mark.parametrize(
    "variant", ["as it is", "all dense", "old theta", "untied", "vision sizes", "tokens"]
)
def test_what_transformers_saves_is_read(variant: str, tmp_path: Path) -> None:
    from transformers import Ernie4_5_VLMoeConfig

    raw = native(*NATIVE_VARIANTS[variant])
    Ernie4_5_VLMoeConfig.from_dict(raw).save_pretrained(tmp_path)
    assert derived_here(read_config(tmp_path)) == derived_by_transformers(raw)


def test_the_28b_config_that_transformers_writes_is_read(tmp_path: Path) -> None:
    from transformers import Ernie4_5_VLMoeConfig

    Ernie4_5_VLMoeConfig().save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert config.text.mrope_section == (22, 22, 20)
    assert config.text.moe_layers == (False, *[True] * 27)
    assert (config.text.shared_expert_size, config.vision.patch_values) == (3072, 588)
    assert config.eos_token_ids == ()


def test_a_config_that_says_nothing_is_the_class_default_of_transformers() -> None:
    raw = {"model_type": "ernie4_5_vl_moe"}
    assert derived_here(parse_config(raw, "config.json")) == derived_by_transformers(raw)


def test_hub_and_native_describe_the_same_model() -> None:
    text = {
        "max_position_embeddings": 1024,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "moe_num_shared_experts": 2,
    }
    ids = {"image_token_id": 5, "image_start_token_id": 6, "image_end_token_id": 7}
    ids |= {"video_token_id": 5, "video_start_token_id": 8, "video_end_token_id": 9}
    same = parse_config(native(ids, text, {}), "config.json")
    flat = parse_config(hub(), "config.json")
    assert derived_here(flat) == derived_here(same)
    assert flat.source_layout == "hub"


@pytest.mark.parametrize(
    ("changes", "moe_layers"),
    [
        ({}, (False, True, True)),
        ({"moe_layer_end_index": [1, 1]}, (False, True, False)),
        ({"moe_layer_end_index": [1, 2]}, (False, True, True)),
        ({"moe_layer_start_index": [2, 1]}, (False, True, True)),
        ({"moe_layer_start_index": 0, "moe_layer_end_index": -1}, (True, True, True)),
        ({"moe_layer_start_index": 0, "moe_layer_interval": 2}, (False, True, False)),
        ({"moe_num_experts": 0}, (False, False, False)),
        (
            {"moe_num_experts": DELETE, "moe_k": DELETE, "moe_intermediate_size": DELETE},
            (False, False, False),
        ),
    ],
)
def test_hub_layers_with_experts(changes: Raw, moe_layers: tuple[bool, ...]) -> None:
    text = parse_config(hub(changes), "config.json").text
    assert text.moe_layers == moe_layers
    assert [bank.num_experts for bank in text.banks] == ([8, 8] if any(moe_layers) else [])


@pytest.mark.parametrize(
    ("changes", "section"),
    [
        ({"rope_scaling": DELETE}, (3, 3, 2)),
        ({"rope_scaling": None, "freq_allocation": 4}, (2, 2, 4)),
        ({"rope_scaling": {"rope_type": "ernie_3d", "freq_allocation": 2}}, (3, 3, 2)),
        ({"rope_scaling": {"mrope_section": [1, 1, 6]}, "freq_allocation": DELETE}, (1, 1, 6)),
        ({"rope_scaling": DELETE, "freq_allocation": DELETE, "head_dim": 128}, (22, 22, 20)),
    ],
)
def test_hub_frequencies(changes: Raw, section: tuple[int, int, int]) -> None:
    assert parse_config(hub(changes), "config.json").text.mrope_section == section


def test_hub_small_rules() -> None:
    text = parse_config(hub({"moe_num_shared_experts": None, "num_key_value_heads": None}), "c").text
    assert (text.num_shared_experts, text.num_key_value_heads) == (0, 4)
    vision = parse_config(hub(vision={"hidden_size": DELETE, "mlp_ratio": 50 / 32}), "c").vision
    assert (vision.hidden_size, vision.intermediate_size) == (32, 50)
    published = {key: DELETE for key in hub() if key.startswith(("im_patch", "image_", "video_"))}
    media = parse_config(hub({**published, "vocab_size": 103424}), "c").media
    assert (media.image, media.video, media.image_start, media.video_end) == (100295, 100295, 101304, 101307)


HUB_REFUSED: list[tuple[Raw, str]] = [
    ({"moe_num_experts": [8, 4]}, r"moe_num_experts is \[8, 4\]"),
    ({"moe_num_experts": 8}, "moe_num_experts is 8"),
    ({"moe_num_experts": [True, True]}, "moe_num_experts is true"),
    ({"moe_num_experts": [1 << 20] * 2}, "moe_num_experts is .1048576"),
    ({"moe_gate_act": "sigmoid"}, "moe_gate_act is 'sigmoid', this code implements only 'softmax'"),
    ({"moe_use_hard_gate": False}, "moe_use_hard_gate is false, this code implements only true"),
    ({"moe_use_aux_free": False}, "moe_use_aux_free is false"),
    ({"moe_norm_gate_logits": 1}, "moe_norm_gate_logits is 1"),
    ({"moe_gate": "top2_fused"}, "moe_gate is 'top2_fused'"),
    ({"moe_k": 9}, "moe_k is 9, but each bank has 8 experts"),
    ({"moe_k": 0}, "moe_k is 0, outside of 1"),
    ({"moe_intermediate_size": [48]}, "moe_intermediate_size has 1 entries, 2 are expected"),
    ({"use_bias": True}, "use_bias is true, this code implements only false"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu', this code implements only 'silu'"),
    ({"sliding_window": 4096}, "sliding_window is 4096"),
    ({"compression_ratio": 2.0}, "compression_ratio is 2.0"),
    ({"rope_3d": False}, "rope_3d is false"),
    ({"temporal_conv_size": 4}, "temporal_conv_size is 4"),
    ({"spatial_conv_size": 3}, "spatial_conv_size is 3, but vision_config.spatial_merge_size is 2"),
    ({"pixel_hidden_size": 64}, "pixel_hidden_size is 64, but vision_config.hidden_size is 32"),
    ({"freq_allocation": 4}, "freq_allocation is 4, but mrope_section has 2"),
    ({"rope_scaling": None, "freq_allocation": 3}, "mrope_section follows from freq_allocation 3"),
    ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_scaling.type is 'yarn'"),
    ({"rope_scaling": {"type": "default", "beta_fast": 4}}, "unknown key 'rope_scaling.beta_fast'"),
    ({"rope_scaling": {"mrope_section": [4, 2, 2]}}, "equal height and width"),
    ({"num_hidden_layers": DELETE}, "num_hidden_layers is missing"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, outside of 1 to 4096"),
    ({"hidden_size": 64.0}, "hidden_size is 64.0, an integer is expected"),
    ({"hidden_size": -64}, "hidden_size is -64, outside of 1"),
    ({"num_attention_heads": 3}, "num_key_value_heads is 2, which does not divide num_attention_heads 3"),
    ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps is an integer of"),
    ({"image_start_token_id": DELETE}, "published id 101304 is beyond vocab_size 96"),
    ({"image_end_token_id": 96}, "image_end_token_id is 96, the vocabulary has the ids 0 to 95"),
    ({"im_patch_id": 10**6}, "im_patch_id is 1000000, the vocabulary has the ids 0 to 95"),
    ({"pad_token_id": -1}, "pad_token_id is -1, the vocabulary has the ids 0 to 95"),
    ({"bos_token_id": 96}, "bos_token_id is 96, the vocabulary"),
    ({"eos_token_id": [2, 96]}, "eos_token_id is 96, the vocabulary"),
    ({"decoder_start_token_id": "x"}, "decoder_start_token_id is 'x', an integer is expected"),
    ({"vision_config": DELETE}, "vision_config is missing"),
    ({"vision_config": []}, "vision_config is a list of 0 entries, an object is expected"),
    ({"moe_new_router": 1}, "unknown key 'moe_new_router' with value 1"),
    ({"expert_capacity_factor": 2}, "unknown key 'expert_capacity_factor'"),
    (
        {"quantization_config": {"bits": 4}},
        "quantization_config has quant_method null, read are ernie_local, compressed-tensors, awq and fp8",
    ),
    ({"pruned_heads": {"0": [1]}}, "unknown key 'pruned_heads' with value an object of 1 entries"),
    ({"surprise": "x"}, "unknown key 'surprise' with value 'x'"),
]


@pytest.mark.parametrize(("changes", "message"), HUB_REFUSED)
def test_hub_config_is_refused_by_key_and_value(changes: Raw, message: str) -> None:
    assert_refused(hub(changes), message)


NATIVE_REFUSED: list[tuple[tuple[Raw, Raw, Raw], str]] = [
    (({}, {"mlp_layer_types": ["dense", "moe", "sparse"]}, {}), "has 'moe' at 1, only dense and sparse"),
    (({}, {"mlp_layer_types": ["dense"]}, {}), "mlp_layer_types has 1 entries for 3 layers"),
    (({}, {"moe_layer_start_index": 2}, {}), "makes layer 1 dense, but by mlp_layer_types it is sparse"),
    (
        ({}, {"rope_parameters": {"rope_theta": 5e5}}, {}),
        r"default \[22, 22, 20\] with sum 64, half of head_dim 16",
    ),
    (({}, {"rope_parameters": {"rope_type": "yarn"}}, {}), "text_config.rope_parameters.rope_type is 'yarn'"),
    (({}, {"partial_rotary_factor": 0.5}, {}), "partial_rotary_factor is 0.5"),
    (({}, {"sliding_window": 128}, {}), "text_config.sliding_window is 128"),
    (
        ({}, {"layer_types": ["full_attention", "sliding_attention"]}, {}),
        "layer_types holds 'sliding_attention'",
    ),
    (({}, {"moe_num_experts": 0}, {}), "moe_k is 2, but each bank has 0 experts"),
    (({}, {"num_experts": 4}, {}), "moe_num_experts is 8, but num_experts is 4"),
    (({}, {"head_dim": 15}, {}), "head_dim is 15"),
    (({}, {"norm_topk_prob": False}, {}), "unknown key 'text_config.norm_topk_prob' with value false"),
    (({}, {"attn_logit_softcapping": 30.0}, {}), "unknown key 'text_config.attn_logit_softcapping'"),
    (({}, {}, {"hidden_act": "gelu"}), "vision_config.hidden_act is 'gelu'"),
    (({}, {}, {"temporal_merge_size": 1}), "vision_config.temporal_merge_size is 1"),
    (({}, {}, {"num_heads": 3}), "vision_config.num_heads is 3, which does not cut hidden_size 32"),
    (({}, {}, {"head_dim": 8}), "vision_config.head_dim is 8, but hidden_size / num_heads is 16"),
    (({}, {}, {"patch_size": [14, 14]}), "vision_config.patch_size is a list of 2 entries"),
    (({}, {}, {"window_size": 112}), "unknown key 'vision_config.window_size'"),
    (({"per_layer_config": {"0": {"hidden_size": 1}}}, {}, {}), "per_layer_config is an object of 1 entries"),
    (
        ({"model_type": "llama"}, {}, {}),
        "model_type is 'llama', expected one of ernie4_5_moe_vl, ernie4_5_vl_moe",
    ),
    (({"model_type": ["ernie4_5_vl_moe"]}, {}, {}), "model_type is a list of 1 entries"),
    (({"eos_token_id": "</s>"}, {}, {}), "eos_token_id is '</s>', an integer is expected"),
    (({}, {"pad_token_id": 96}, {}), "text_config.pad_token_id is 96, the vocabulary has the ids 0 to 95"),
    (({"image_token_id": 96}, {}, {}), "image_token_id is 96, the vocabulary has the ids 0 to 95"),
    (({"image_end_token_id": DELETE}, {}, {}), "published id 101305 is beyond vocab_size 96"),
]


@pytest.mark.parametrize(("changes", "message"), NATIVE_REFUSED)
def test_native_config_is_refused_by_key_and_value(changes: tuple[Raw, Raw, Raw], message: str) -> None:
    assert_refused(native(*changes), message)


def assert_refused(raw: Raw, message: str) -> None:
    with pytest.raises(ModelUnusable, match=message) as caught:
        parse_config(raw, "somewhere/config.json")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("somewhere/config.json: ")
    assert caught.value.exit_code == 4


def test_smelling_keys_say_what_they_smell_of() -> None:
    for key, part in [("routing_scale", "the router"), ("rope_base", "the position encoding")]:
        with pytest.raises(ModelUnusable, match=f"has to do with {part}"):
            parse_config(hub({key: 1}), "config.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[1, 2]", "it holds a list of 2 entries where an object"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b'{"a":' * 100000, "nested too deeply"),
        (b" " * ((16 << 20) + 1), "has 16777217 bytes, over the limit of 16777216"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a git-lfs pointer"),
        (b"{}", "model_type is null"),
    ],
)
def test_a_broken_config_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelUnusable, match=re.escape(str(tmp_path / "config.json"))) as caught:
        read_config(tmp_path)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "has no config.json"),
        (lambda path: (path / "config.json").mkdir(), "is not a plain file"),
        (lambda path: (path / "config.json").symlink_to("nowhere"), "has no config.json"),
        (lambda path: path.rmdir(), "is not a directory"),
    ],
)
def test_a_directory_without_config(prepare: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    prepare(directory)
    with pytest.raises(ModelUnusable, match=message):
        read_config(directory)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_value_under_any_key_is_read_or_refused(data: st.DataObject) -> None:
    raw = json.loads(json.dumps(data.draw(st.sampled_from([hub(), native({}, {}, {})]))))
    section = data.draw(st.sampled_from([raw, *(value for value in raw.values() if isinstance(value, dict))]))
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(section)) | st.text(max_size=8))
        section[key] = data.draw(JSON)
    try:
        config, error = parse_config(raw, "config.json"), ""
    except ModelUnusable as refusal:
        config, error = None, str(refusal)
    if config is None:
        assert len(error.splitlines()) == 3
        assert error.isascii()
        assert len(error) < 2000
    else:
        assert len(config.text.moe_layers) == config.text.num_hidden_layers
