"""Reads config.json of models that read only text: model_type ernie4_5_moe and ernie4_5, without experts.

Baidu and transformers write the same keys. Files may leave out what equals the class defaults of
transformers, so those are the defaults here.
"""

from __future__ import annotations

from collections.abc import Mapping

from ernie_local.config.hub import DECODER_SWITCHES
from ernie_local.config.keys import LARGEST_COUNT, Keys
from ernie_local.config.model import ExpertBank, ModelConfig, TextConfig
from ernie_local.config.quantization import read_quantization
from ernie_local.config.sections import (
    DecoderExperts,
    layers_from_range,
    one_number_each,
    read_decoder,
    read_rope,
)

_COMMON_DEFAULTS = {"vocab_size": 103424, "max_position_embeddings": 131072}
_DEFAULTS_WITH_EXPERTS = {
    **_COMMON_DEFAULTS,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
}
_DENSE_DEFAULTS = {
    **_COMMON_DEFAULTS,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
}
_DENSE_HEAD_DIM = 128
_BOS, _EOS = 1, 2


def parse_with_experts(raw: Mapping[str, object], where: str) -> ModelConfig:
    """ernie4_5_moe: one bank of experts. ModelUnusable naming the key for anything this code does not run."""
    keys = Keys(raw, where)
    keys.only("model_type", "ernie4_5_moe")
    # Layers that predict further tokens: their tensors are left out (checkpoint/names.py).
    keys.integer("num_nextn_predict_layers", 0, low=0, high=LARGEST_COUNT)
    num_layers = keys.integer("num_hidden_layers", 28, high=LARGEST_COUNT)
    one_number_each(keys)
    moe_layers = layers_from_range(keys, num_layers, first=1)
    if keys.is_null("moe_num_shared_experts"):
        raise keys.refuse("moe_num_shared_experts", "is null, a number is expected")
    bank = ExpertBank(
        "text",
        keys.integer(keys.alias("moe_num_experts", "num_experts"), 64, high=LARGEST_COUNT),
        keys.integer("moe_intermediate_size", 1536),
        frozenset({"text"}),
    )
    experts = DecoderExperts(
        moe_layers=moe_layers,
        banks=(bank,) if any(moe_layers) else (),
        per_token=keys.integer(keys.alias("moe_k", "num_experts_per_tok"), 6),
        num_shared=keys.integer("moe_num_shared_experts", 2, low=0),
    )
    return _model(keys, experts, _DEFAULTS_WITH_EXPERTS)


def parse_dense(raw: Mapping[str, object], where: str) -> ModelConfig:
    """ernie4_5: no experts. ModelUnusable as from `parse_with_experts`."""
    keys = Keys(raw, where)
    keys.only("model_type", "ernie4_5")
    num_layers = keys.integer("num_hidden_layers", 18, high=LARGEST_COUNT)
    experts = DecoderExperts(moe_layers=(False,) * num_layers, banks=(), per_token=1, num_shared=0)
    # A width of null follows from the hidden size, as in transformers.
    head_dim = {} if keys.is_null("head_dim") else {"head_dim": _DENSE_HEAD_DIM}
    return _model(keys, experts, _DENSE_DEFAULTS | head_dim)


def _model(keys: Keys, experts: DecoderExperts, defaults: Mapping[str, int]) -> ModelConfig:
    for key, values in DECODER_SWITCHES.items():
        keys.only(key, *values)
    keys.only("rope_3d", False)
    keys.all_are("layer_types", "full_attention")
    text = _decoder(keys, experts, defaults)
    keys.check_ids(text.vocab_size)
    quantized = read_quantization(keys, text)
    bos = None if keys.is_null("bos_token_id") else keys.integer("bos_token_id", _BOS, low=0)
    eos = () if keys.is_null("eos_token_id") else keys.ids("eos_token_id") or (_EOS,)
    keys.finish()
    return ModelConfig(text, None, None, bos, eos, "hub", *quantized)


def _decoder(keys: Keys, experts: DecoderExperts, defaults: Mapping[str, int]) -> TextConfig:
    rope = read_rope(keys, 500000.0, ("default",))
    if rope.section is not None or rope.temporal is not None:
        key = "mrope_section" if rope.section is not None else "freq_allocation"
        raise keys.refuse(key, "is given, but tokens of a model that reads only text have one position each")
    tied = keys.boolean("tie_word_embeddings", True)
    return read_decoder(keys, rope, experts, defaults, rms_norm_eps=1e-5, has_images=False, tied=tied)
