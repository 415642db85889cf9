"""Reads config.json as transformers writes it (model_type ernie4_5_vl_moe): nested text and vision objects.

Files may leave out what equals the class defaults of transformers, so those are the defaults here.
"""

from __future__ import annotations

from collections.abc import Mapping

from ernie_local.config.keys import LARGEST_COUNT, Keys
from ernie_local.config.model import MODALITIES, ModelConfig, TextConfig, VisionConfig, bank_per_modality
from ernie_local.config.quantization import read_quantization
from ernie_local.config.sections import (
    MEDIA_TAGS,
    DecoderExperts,
    layers_from_types,
    read_decoder,
    read_media,
    read_rope,
    read_tower,
)

_TEXT_DEFAULTS = {
    "vocab_size": 103424,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
}
_MEDIA = {"image": ("image_token_id", 100295), "video": ("video_token_id", 103367), **MEDIA_TAGS}
_VISION_DEFAULTS = {
    "depth": 32,
    "hidden_size": 1280,
    "num_heads": 16,
    "intermediate_size": 5120,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
}


def parse_native(raw: Mapping[str, object], where: str) -> ModelConfig:
    """The native layout; ModelUnusable naming the key for anything this code does not run."""
    keys = Keys(raw, where)
    keys.only("model_type", "ernie4_5_vl_moe")
    keys.only("per_layer_config")
    text_keys = keys.section("text_config", {})
    text = _text(text_keys, tied=keys.boolean("tie_word_embeddings", True))
    vision = _vision(keys.section("vision_config", {}))
    text_keys.check_ids(text.vocab_size)
    media, quantized = read_media(keys, _MEDIA, text.vocab_size), read_quantization(keys, text)
    # Older files have these at the top, newer ones in text_config.
    bos, outer_bos = text_keys.optional_id("bos_token_id"), keys.optional_id("bos_token_id")
    eos, outer_eos = text_keys.ids("eos_token_id"), keys.ids("eos_token_id")
    config = ModelConfig(
        text, vision, media, outer_bos if bos is None else bos, eos or outer_eos, "native", *quantized
    )
    text_keys.finish()
    keys.finish()
    return config


def _text(keys: Keys, tied: bool) -> TextConfig:
    keys.only("model_type", "ernie4_5_vl_moe_text")
    keys.only("hidden_act", "silu")
    for key in ("use_bias", "attention_bias", "mlp_bias", "use_sliding_window"):
        keys.only(key, False)
    for key in ("sliding_window", "per_layer_config"):
        keys.only(key)
    keys.value("tie_word_embeddings")  # only the outer key counts
    keys.all_are("layer_types", "full_attention")
    moe_layers = layers_from_types(keys, keys.integer("num_hidden_layers", 28, high=LARGEST_COUNT))
    num_experts = keys.integer(keys.alias("moe_num_experts", "num_experts"), 64, low=0, high=LARGEST_COUNT)
    sizes: tuple[int, ...] = (1536, 512)
    if keys.has("moe_intermediate_size"):
        sizes = keys.integers("moe_intermediate_size", length=len(MODALITIES), low=1)
    experts = DecoderExperts(
        moe_layers=moe_layers,
        banks=bank_per_modality(num_experts, sizes) if any(moe_layers) else (),
        per_token=keys.integer(keys.alias("moe_k", "num_experts_per_tok"), 6),
        num_shared=keys.integer("moe_num_shared_experts", 2, low=0),
    )
    rope = read_rope(keys, 500000.0, ("default",))
    return read_decoder(
        keys, rope, experts, _TEXT_DEFAULTS, rms_norm_eps=1e-5, section=(22, 22, 20), tied=tied
    )


def _vision(keys: Keys) -> VisionConfig:
    keys.only("model_type", "ernie4_5_vl_moe_vision")
    keys.only("per_layer_config")
    # transformers turns "default" into "axial" when it reads a vision config.
    rope = read_rope(keys, 10000.0, ("axial", "default"))
    if rope.section is not None:
        raise keys.refuse("rope_parameters", "has an mrope_section, which the vision tower does not use")
    names = {
        "num_heads": keys.alias("num_heads", "num_attention_heads"),
        "depth": keys.alias("depth", "num_hidden_layers"),
    }
    return read_tower(keys, names, _VISION_DEFAULTS, rope_theta=rope.theta)
