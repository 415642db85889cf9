"""Writes config.json as Baidu publishes it, of a model in any of our layouts."""

from __future__ import annotations

from collections.abc import Mapping

from ernie_local.config import ModelConfig, TextConfig, VisionConfig
from ernie_local.errors import UsageError

MODEL_TYPE = "ernie4_5_moe_vl"
MTP_LAYERS = "num_nextn_predict_layers"
# Tables of packed weights, another name of torch_dtype, and code and layers (MTP) that are not copied.
_NOT_INHERITED = frozenset(("quantization_config", "dtype", "auto_map", MTP_LAYERS))
# Classes of models that read only text: the first is vLLM's, the second of a dense one SGLang's.
_TEXT_CLASSES = {
    "ernie4_5_moe": ["Ernie4_5_MoeForCausalLM"],
    "ernie4_5": ["Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"],
}
# What the published code takes where config.json has no such key.
_FREQUENCIES_IN_TIME, _TOWER_NORM, _TOWER_THETA, USUAL_NORM_MIN = 20, 1e-6, 10000.0, 1e-12


def flat_config(config: ModelConfig, raw: Mapping[str, object]) -> dict[str, object]:
    """config.json for unpacked bfloat16 weights. raw: that of the source, which `config` was read from.

    All keys of a source in the hub's layout stay, but for the tables of packed weights. UsageError for a
    decoder that the flat keys cannot describe.
    """
    own = {"torch_dtype": "bfloat16", "tie_word_embeddings": config.text.tie_word_embeddings}
    inherited = {key: value for key, value in raw.items() if key not in _NOT_INHERITED}
    if not config.reads_images:  # Baidu and transformers write the same keys
        return {**inherited, "architectures": _TEXT_CLASSES[str(raw["model_type"])], **own}
    if config.source_layout != "hub":
        inherited = {}
    else:
        for key in ("moe_layer_start_index", "moe_layer_end_index"):  # vLLM takes them by their place
            if len(config.text.banks) > 1 and not isinstance(inherited.get(key), list):
                inherited.pop(key, None)
    text = config.text
    written = _published_keys(config, raw) | inherited | own
    # Other programs do not derive it from mrope_section, and would take the default without a word.
    if text.mrope_section[2] != _FREQUENCIES_IN_TIME:
        written["freq_allocation"] = text.mrope_section[2]
    return written


def _published_keys(config: ModelConfig, raw: Mapping[str, object]) -> dict[str, object]:
    """The keys of the published files, in their order, and those that differ from its defaults."""
    text, vision, media = config.text, config.vision, config.media
    eos = config.eos_token_ids or (2,)
    return {
        "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
        "pad_token_id": _pad_token(raw),
        "bos_token_id": 1 if config.bos_token_id is None else config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else list(eos),
        "torch_dtype": "bfloat16",
        "hidden_act": text.hidden_act,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "im_patch_id": media.image,
        "image_start_token_id": media.image_start,
        "image_end_token_id": media.image_end,
        "video_start_token_id": media.video_start,
        "video_end_token_id": media.video_end,
        "max_position_embeddings": text.max_position_embeddings,
        "model_type": MODEL_TYPE,
        **_expert_keys(text),
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "pixel_hidden_size": vision.hidden_size,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_3d": True,
        "rope_theta": _whole(text.rope_theta),
        "spatial_conv_size": vision.spatial_merge_size,
        "temporal_conv_size": vision.temporal_merge_size,
        "vocab_size": text.vocab_size,
        "tie_word_embeddings": text.tie_word_embeddings,
        "use_cache": True,
        "use_rmsnorm": True,
        "use_bias": False,
        "rope_scaling": {"type": "default", "mrope_section": list(text.mrope_section)},
        "vision_config": _tower_keys(vision),
        **({} if text.moe_norm_min == USUAL_NORM_MIN else {"moe_norm_min": text.moe_norm_min}),
        **_width_keys(text),
    }


def _width_keys(text: TextConfig) -> dict[str, object]:
    """head_dim, where it does not follow from the other sizes."""
    return {} if text.head_dim * text.num_attention_heads == text.hidden_size else {"head_dim": text.head_dim}


def _expert_keys(text: TextConfig) -> dict[str, object]:
    if not text.banks:
        return {"moe_num_experts": 0, "moe_layer_start_index": [text.num_hidden_layers] * 2}
    first, last, interval = _range_of(text.moe_layers)
    ends = [text.num_hidden_layers + 1, text.num_hidden_layers]  # as published: beyond the last layer
    return {
        "moe_capacity": [2 * text.banks[0].num_experts] * 3,
        "moe_gate": "topk",
        "moe_intermediate_size": [bank.expert_size for bank in text.banks],
        "moe_k": text.experts_per_token,
        "moe_layer_end_index": ends if last == text.num_hidden_layers - 1 else [last] * 2,
        "moe_layer_interval": interval,
        "moe_layer_start_index": [first] * 2,
        "moe_multimodal_dispatch_use_allgather": "v2-alltoall-unpad-text",
        "moe_num_experts": [bank.num_experts for bank in text.banks],
        "moe_num_shared_experts": text.num_shared_experts,
        "moe_use_aux_free": True,
    }


def _range_of(moe_layers: tuple[bool, ...]) -> tuple[int, int, int]:
    """First layer, last layer and interval that mean these layers with experts."""
    having = [layer_id for layer_id, has_experts in enumerate(moe_layers) if has_experts]
    first, last = having[0], having[-1]
    for interval in range(1, len(moe_layers) + 1):
        meant = [layer_id for layer_id in range(first, last + 1) if (layer_id + 1) % interval == 0]
        if meant == having:
            return first, last, interval
    raise UsageError(
        f"layers {having[:8]} of {len(moe_layers)} have experts, which no start, end and interval describe",
        "the hub's config.json has these three numbers and no list of layers",
        "use the checkpoint with programs that read the native layout",
    )


def _tower_keys(vision: VisionConfig) -> dict[str, object]:
    keys: dict[str, object] = {
        "attn_implementation": "eager",
        "depth": vision.depth,
        "embed_dim": vision.hidden_size,
        "hidden_act": vision.hidden_act,
        "hidden_size": vision.hidden_size,
        "in_channels": vision.in_channels,
        "in_chans": vision.in_channels,
        "mlp_ratio": _whole(vision.intermediate_size / vision.hidden_size),
        "num_heads": vision.num_heads,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.spatial_merge_size,
        "spatial_patch_size": vision.patch_size,
        "vit_first_fwd_bsz": 128,
        "attn_sep": True,
    }
    if vision.layer_norm_eps != _TOWER_NORM:
        keys["rms_norm_eps"] = vision.layer_norm_eps
    if vision.rope_theta != _TOWER_THETA:
        keys["rope_theta"] = vision.rope_theta
    return keys


def _pad_token(raw: Mapping[str, object]) -> object:
    inner = raw.get("text_config")
    found = raw.get("pad_token_id", inner.get("pad_token_id") if isinstance(inner, Mapping) else None)
    return 0 if found is None else found


def _whole(number: float) -> int | float:
    """As an integer where it is one, as the published files have it."""
    return int(number) if number == int(number) else number
