"""Reads config.json as Baidu publishes it (model_type ernie4_5_moe_vl): flat keys, lists per modality.

Sizes have no defaults. A few settings that its files leave out have the defaults of the published code.
"""

from __future__ import annotations

from collections.abc import Mapping

from ernie_local.config.keys import LARGEST_COUNT, Keys
from ernie_local.config.model import (
    MODALITIES,
    ExpertBank,
    ModelConfig,
    TextConfig,
    VisionConfig,
    bank_per_modality,
)
from ernie_local.config.quantization import read_quantization
from ernie_local.config.sections import (
    MEDIA_TAGS,
    DecoderExperts,
    layers_from_range,
    read_decoder,
    read_media,
    read_rope,
    read_tower,
)

# The frames of a video have the placeholder of images; only the tags around them differ. Older files leave
# these keys out and have the ids of the published tokenizer.
_MEDIA = {"image": ("im_patch_id", 100295), "video": ("im_patch_id", 100295), **MEDIA_TAGS}
_BOS, _EOS = 1, 2
# Switches of the published code, with the values that are implemented here. The router takes the softmax of
# its scores, picks by score plus bias and divides by the sum of those picked. No token changes its bank.
_ALWAYS_ON = "use_rmsnorm moe_norm_gate_logits moe_use_aux_free moe_use_hard_gate"
_ALWAYS_OFF = """
    use_bias attention_bias use_sliding_window moe_use_token_type_bias moe_group_experts moe_num_attn_experts
"""
# Of any decoder, also of one that reads only text.
DECODER_SWITCHES: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "moe_gate": ("topk",),
    "moe_gate_act": ("softmax",),
    "compression_ratio": (1.0, 1),
    "add_tail_layers": (False, 0),
    "mm_vocab_size": (0,),
    "sliding_window": (),
    **dict.fromkeys(_ALWAYS_ON.split(), (True,)),
    **dict.fromkeys(_ALWAYS_OFF.split(), (False,)),
}
_IMPLEMENTED: dict[str, tuple[object, ...]] = {
    **DECODER_SWITCHES,
    "model_type": ("ernie4_5_moe_vl",),
    "temporal_conv_size": (2,),
    "use_temporal_conv": (True,),
    "rope_3d": (True,),
    "num_nextn_predict_layers": (0,),
}


def parse_hub(raw: Mapping[str, object], where: str) -> ModelConfig:
    """The hub layout; ModelUnusable naming the key for anything this code does not run."""
    keys = Keys(raw, where)
    for key, values in _IMPLEMENTED.items():
        keys.only(key, *values)
    text = _text(keys)
    vision = _vision(keys.section("vision_config"))
    keys.same_as("pixel_hidden_size", vision.hidden_size, "vision_config.hidden_size")
    keys.same_as("spatial_conv_size", vision.spatial_merge_size, "vision_config.spatial_merge_size")
    media, quantized = read_media(keys, _MEDIA, text.vocab_size), read_quantization(keys, text)
    bos, eos = keys.integer("bos_token_id", _BOS, low=0), keys.ids("eos_token_id") or (_EOS,)
    config = ModelConfig(text, vision, media, bos, eos, "hub", *quantized)
    keys.finish()
    return config


def _text(keys: Keys) -> TextConfig:
    num_layers = keys.integer("num_hidden_layers", high=LARGEST_COUNT)
    in_range = layers_from_range(keys, num_layers)
    banks = _banks(keys) if any(in_range) else ()
    for key in ("moe_num_experts", "moe_k", "moe_intermediate_size"):
        keys.value(key)  # of no meaning in a model without experts
    for key in ("moe_layer_start_index", "moe_layer_interval") if banks else ():
        if not keys.has(key):  # the published code assumes an interval of 2, no published file has one
            raise keys.refuse(key, "is missing")
    experts = DecoderExperts(
        moe_layers=in_range if banks else (False,) * num_layers,
        banks=banks,
        per_token=keys.integer("moe_k") if banks else 1,
        num_shared=keys.integer("moe_num_shared_experts", 0, low=0),
    )
    rope = read_rope(keys, None, ("default", "ernie_3d"))
    return read_decoder(keys, rope, experts, {}, tied=keys.boolean("tie_word_embeddings"))


def _banks(keys: Keys) -> tuple[ExpertBank, ...]:
    """A number of experts is one bank for all tokens; a list has the number of each modality's bank."""
    value = keys.value("moe_num_experts")
    if value is None and keys.has("moe_intermediate_size"):
        raise keys.refuse("moe_num_experts", "is missing, but moe_intermediate_size is there")
    if value is None or (value == 0 and not isinstance(value, bool)):
        return ()
    if not isinstance(value, list | tuple):
        num_experts = keys.integer("moe_num_experts", high=LARGEST_COUNT)
        if isinstance(keys.value("moe_intermediate_size"), list | tuple):
            problem = f"is {num_experts}, but moe_intermediate_size is a list with one per bank"
            raise keys.refuse("moe_num_experts", problem)
        expert_size = keys.integer("moe_intermediate_size")
        return (ExpertBank("text", num_experts, expert_size, frozenset(MODALITIES)),)
    counts = keys.integers("moe_num_experts")
    if len(counts) != len(MODALITIES) or counts[0] > LARGEST_COUNT or len(set(counts)) > 1:
        known = f"one number, or two equal ones, up to {LARGEST_COUNT} are implemented"
        raise keys.refuse("moe_num_experts", f"is {list(counts)[:8]}; {known}")
    if counts[0] == 0:
        return ()
    sizes = keys.integers("moe_intermediate_size", length=len(MODALITIES), low=1)
    return bank_per_modality(counts[0], sizes)


def _vision(keys: Keys) -> VisionConfig:
    keys.only("model_type", "DFNRope_vision_transformer")
    names = {
        "hidden_size": keys.alias("embed_dim", "hidden_size"),
        "in_channels": keys.alias("in_channels", "in_chans"),
        "patch_size": keys.alias("patch_size", "spatial_patch_size"),
    }
    # The ratio may be a rounded quotient: 1e-6 makes up for what the product lacks to a whole number.
    ratio = keys.number("mlp_ratio", 4.0)
    inner_size = int(keys.integer(names["hidden_size"]) * ratio + 1e-6) or None
    theta = keys.number("rope_theta", 10000.0, above_zero=True)
    defaults = {"intermediate_size": inner_size, "in_channels": 3, "spatial_merge_size": 2}
    return read_tower(keys, names, defaults, rope_theta=theta)
