"""config.json as transformers writes it (model_type ernie4_5_vl_moe): nested text and vision objects.

Owns that layout's keys, and the class defaults that transformers puts in for absent ones; they are part
of the file format, since its files may leave out what equals them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ernie_local.config.banks import MODALITIES, bank_per_modality
from ernie_local.config.checks import check_experts, check_vision_heads, read_heads
from ernie_local.config.keys import LARGEST_COUNT, Keys
from ernie_local.config.layers import layers_from_types
from ernie_local.config.model import MediaTokens, ModelConfig, TextConfig, VisionConfig
from ernie_local.config.quantization import read_quantization
from ernie_local.config.rope import read_rope, settle_section


def parse_native(raw: Mapping[str, object], where: str) -> ModelConfig:
    """The native layout; ModelUnusable naming the key for anything this code does not run."""
    keys = Keys(raw, where)
    keys.only("model_type", "ernie4_5_vl_moe")
    keys.only("per_layer_config")
    text_keys = keys.section("text_config", {})
    text = _text(text_keys, tied=keys.boolean("tie_word_embeddings", True))
    vision = _vision(keys.section("vision_config", {}))
    media = MediaTokens(
        image=keys.integer("image_token_id", 100295, low=0),
        image_start=keys.integer("image_start_token_id", 101304, low=0),
        image_end=keys.integer("image_end_token_id", 101305, low=0),
        video=keys.integer("video_token_id", 103367, low=0),
        video_start=keys.integer("video_start_token_id", 101306, low=0),
        video_end=keys.integer("video_end_token_id", 101307, low=0),
    )
    # Older files have these at the top, newer ones in text_config.
    bos = text_keys.optional_id("bos_token_id")
    outer_bos, outer_eos = keys.optional_id("bos_token_id"), keys.ids("eos_token_id")
    config = ModelConfig(
        text=text,
        vision=vision,
        media=media,
        bos_token_id=outer_bos if bos is None else bos,
        eos_token_ids=text_keys.ids("eos_token_id") or outer_eos,
        source_layout="native",
        quantization=read_quantization(keys, text),
    )
    text_keys.finish()
    keys.finish()
    return config


def _text(keys: Keys, tied: bool) -> TextConfig:
    keys.only("model_type", "ernie4_5_vl_moe_text")
    hidden_act: Literal["silu"] = "silu"
    keys.only("hidden_act", hidden_act)
    for key in ("use_bias", "attention_bias", "mlp_bias", "use_sliding_window"):
        keys.only(key, False)
    for key in ("sliding_window", "per_layer_config"):
        keys.only(key)
    # The head is tied or not by the outer key alone.
    keys.value("tie_word_embeddings")
    num_layers = keys.integer("num_hidden_layers", 28, high=LARGEST_COUNT)
    keys.all_are("layer_types", "full_attention")
    hidden_size = keys.integer("hidden_size", 2560)
    heads = read_heads(keys, hidden_size, query=20, key_value=4)
    rope = read_rope(keys, 500000.0, ("default",))
    moe_layers = layers_from_types(keys, num_layers)
    num_experts = keys.integer(keys.alias("moe_num_experts", "num_experts"), 64, low=0, high=LARGEST_COUNT)
    experts_per_token = keys.integer(keys.alias("moe_k", "num_experts_per_tok"), 6)
    sizes: tuple[int, ...] = (1536, 512)
    if keys.has("moe_intermediate_size"):
        sizes = keys.integers("moe_intermediate_size", length=len(MODALITIES), low=1)
    banks = bank_per_modality(num_experts, sizes) if any(moe_layers) else ()
    check_experts(keys, banks, experts_per_token)
    return TextConfig(
        vocab_size=keys.integer("vocab_size", 103424),
        hidden_size=hidden_size,
        intermediate_size=keys.integer("intermediate_size", 12288),
        num_hidden_layers=num_layers,
        num_attention_heads=heads.query,
        num_key_value_heads=heads.key_value,
        head_dim=heads.dim,
        max_position_embeddings=keys.integer("max_position_embeddings", 131072),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-5),
        rope_theta=rope.theta,
        mrope_section=settle_section(keys, rope, heads.dim, default=(22, 22, 20)),
        moe_layers=moe_layers,
        banks=banks,
        experts_per_token=experts_per_token,
        num_shared_experts=keys.integer("moe_num_shared_experts", 2, low=0),
        moe_norm_min=keys.number("moe_norm_min", 1e-12),
        tie_word_embeddings=tied,
        hidden_act=hidden_act,
    )


def _vision(keys: Keys) -> VisionConfig:
    keys.only("model_type", "ernie4_5_vl_moe_vision")
    hidden_act: Literal["quick_gelu"] = "quick_gelu"
    keys.only("hidden_act", hidden_act)
    temporal_merge_size: Literal[2] = 2
    keys.only("temporal_merge_size", temporal_merge_size)
    keys.only("per_layer_config")
    hidden_size = keys.integer("hidden_size", 1280)
    num_heads = keys.integer(keys.alias("num_heads", "num_attention_heads"), 16)
    check_vision_heads(keys, hidden_size, num_heads)
    # transformers turns "default" into "axial" when it reads a vision config.
    rope = read_rope(keys, 10000.0, ("axial", "default"))
    if rope.section is not None:
        raise keys.refuse("rope_parameters", "has an mrope_section, which the vision tower does not use")
    # A vision tower has no words; some files carry what any config may have.
    for key in ("tie_word_embeddings", "bos_token_id", "eos_token_id"):
        keys.value(key)
    vision = VisionConfig(
        depth=keys.integer(keys.alias("depth", "num_hidden_layers"), 32, high=LARGEST_COUNT),
        hidden_size=hidden_size,
        num_heads=num_heads,
        intermediate_size=keys.integer("intermediate_size", 5120),
        in_channels=keys.integer("in_channels", 3, high=64),
        patch_size=keys.integer("patch_size", 14, high=1024),
        spatial_merge_size=keys.integer("spatial_merge_size", 2, high=64),
        temporal_merge_size=temporal_merge_size,
        layer_norm_eps=keys.number("rms_norm_eps", 1e-6),
        rope_theta=rope.theta,
        hidden_act=hidden_act,
    )
    keys.finish()
    return vision
