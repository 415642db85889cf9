"""Reads the decoder and the vision tower, whose keys mean the same in both layouts.

The layouts differ in the names of some keys and in what an absent key means. Each passes its own defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ernie_local.config.banks import ExpertBank
from ernie_local.config.keys import LARGEST_COUNT, LARGEST_SIZE, Keys
from ernie_local.config.model import MediaTokens, TextConfig, VisionConfig
from ernie_local.config.rope import RopeSettings, settle_section
from ernie_local.strict_json import show

_RANGE_KEYS = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")

# By key. A number that is absent from the file and from these is missing; None counts as absent.
Defaults = Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class DecoderExperts:
    """What a layout says about experts. moe_layers: whether each layer has any."""

    moe_layers: tuple[bool, ...]
    banks: tuple[ExpertBank, ...]
    per_token: int
    num_shared: int


def read_decoder(
    keys: Keys,
    rope: RopeSettings,
    experts: DecoderExperts,
    defaults: Defaults,
    *,
    rms_norm_eps: float | None = None,
    section: tuple[int, int, int] | None = None,
    tied: bool,
) -> TextConfig:
    """The decoder; rms_norm_eps and section (of the position encoding) are defaults too."""
    hidden_size = keys.integer("hidden_size", defaults.get("hidden_size"))
    heads = _read_heads(keys, hidden_size, defaults)
    _check_banks(keys, experts)
    return TextConfig(
        vocab_size=keys.integer("vocab_size", defaults.get("vocab_size")),
        hidden_size=hidden_size,
        intermediate_size=keys.integer("intermediate_size", defaults.get("intermediate_size")),
        num_hidden_layers=len(experts.moe_layers),
        num_attention_heads=heads.query,
        num_key_value_heads=heads.key_value,
        head_dim=heads.dim,
        max_position_embeddings=keys.integer(
            "max_position_embeddings", defaults.get("max_position_embeddings")
        ),
        rms_norm_eps=keys.number("rms_norm_eps", rms_norm_eps),
        rope_theta=rope.theta,
        mrope_section=settle_section(keys, rope, heads.dim, default=section),
        moe_layers=experts.moe_layers,
        banks=experts.banks,
        experts_per_token=experts.per_token,
        num_shared_experts=experts.num_shared,
        moe_norm_min=keys.number("moe_norm_min", 1e-12),
        tie_word_embeddings=tied,
        hidden_act="silu",
    )


def read_tower(
    keys: Keys, names: Mapping[str, str], defaults: Defaults, *, rope_theta: float
) -> VisionConfig:
    """The vision tower. names: a layout's own names of some keys, by ours.

    Finishes `keys`, of which the layout has read what it alone has.
    """

    def integer(name: str, high: int = LARGEST_SIZE) -> int:
        return keys.integer(names.get(name, name), defaults.get(name), high=high)

    keys.only("hidden_act", "quick_gelu")
    keys.only("temporal_merge_size", 2)
    # A vision tower has no words; some files carry what any config may have.
    for key in ("tie_word_embeddings", "bos_token_id", "eos_token_id"):
        keys.value(key)
    hidden_size, num_heads = integer("hidden_size"), integer("num_heads")
    # Each head is cut into quarters, for rows and columns.
    if hidden_size % num_heads or hidden_size // num_heads % 4:
        raise keys.refuse(
            "num_heads", f"is {num_heads}, which does not cut hidden_size {hidden_size} into multiples of 4"
        )
    keys.same_as("head_dim", hidden_size // num_heads, "hidden_size / num_heads")
    tower = VisionConfig(
        depth=integer("depth", LARGEST_COUNT),
        hidden_size=hidden_size,
        num_heads=num_heads,
        intermediate_size=integer("intermediate_size"),
        in_channels=integer("in_channels", 64),
        patch_size=integer("patch_size", 1024),
        spatial_merge_size=integer("spatial_merge_size", 64),
        temporal_merge_size=2,
        layer_norm_eps=keys.number("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        hidden_act="quick_gelu",
    )
    keys.finish()
    return tower


def read_media(keys: Keys, names: Mapping[str, tuple[str, int]]) -> MediaTokens:
    """names: by the name of the field, a layout's key and the id that an absent key means."""
    return MediaTokens(
        **{field: keys.integer(key, default, low=0) for field, (key, default) in names.items()}
    )


@dataclass(frozen=True, slots=True)
class _Heads:
    """Attention heads: how many of queries, how many of keys and values, and the width of each."""

    query: int
    key_value: int
    dim: int


def _read_heads(keys: Keys, hidden_size: int, defaults: Defaults) -> _Heads:
    """num_attention_heads, num_key_value_heads and head_dim.

    A key-value count of null means one for each query head; without head_dim it is
    hidden_size // num_attention_heads, and need not divide evenly.
    """
    num_query = keys.integer("num_attention_heads", defaults.get("num_attention_heads"))
    key_value = defaults.get("num_key_value_heads")
    if keys.is_null("num_key_value_heads") or (key_value is None and not keys.has("num_key_value_heads")):
        key_value = num_query
    num_key_value = keys.integer("num_key_value_heads", key_value)
    if num_query % num_key_value:
        raise keys.refuse(
            "num_key_value_heads",
            f"is {num_key_value}, which does not divide num_attention_heads {num_query}",
        )
    head_dim = keys.integer("head_dim", hidden_size // num_query or None)
    if head_dim % 2:
        raise keys.refuse("head_dim", f"is {head_dim}, an even width is needed for the position encoding")
    return _Heads(num_query, num_key_value, head_dim)


def _check_banks(keys: Keys, experts: DecoderExperts) -> None:
    """Each bank needs at least as many experts as one token asks for."""
    for bank in experts.banks:
        if experts.per_token > bank.num_experts:
            raise keys.refuse(
                "moe_k", f"is {experts.per_token}, but each bank has {bank.num_experts} experts"
            )


def layers_from_types(keys: Keys, num_layers: int) -> tuple[bool, ...]:
    """The native layout: mlp_layer_types; without it the first layer is dense and the rest has experts.

    The list may be longer than the model, as after cutting num_hidden_layers; the rest is not used.
    """
    if keys.has("mlp_layer_types"):
        types = keys.sequence("mlp_layer_types")
        if len(types) < num_layers:
            raise keys.refuse("mlp_layer_types", f"has {len(types)} entries for {num_layers} layers")
        for index, kind in enumerate(types):
            if kind not in ("dense", "sparse"):
                raise keys.refuse(
                    "mlp_layer_types", f"has {show(kind)} at {index}, only dense and sparse exist"
                )
        layers = tuple(kind == "sparse" for kind in types[:num_layers])
    else:
        keys.value("mlp_layer_types")
        layers = tuple(index > 0 for index in range(num_layers))
    _check_agreement(keys, layers)
    return layers


def layers_from_range(keys: Keys, num_layers: int) -> tuple[bool, ...]:
    """The hub layout: experts from start to end, both included, where (layer + 1) % interval is 0.

    Start and end are numbers or one number per modality; the lowest start and the highest end count, and
    an end beyond the last layer is usual. An end of -1 means the last layer.
    """
    start = min(_one_or_more(keys, "moe_layer_start_index", default=0, low=0))
    ends = _one_or_more(keys, "moe_layer_end_index", default=-1, low=-1)
    end = max(num_layers - 1 if end == -1 else end for end in ends)
    interval = keys.integer("moe_layer_interval", 1)
    return tuple((index + 1) % interval == 0 and start <= index <= end for index in range(num_layers))


def _check_agreement(keys: Keys, layers: tuple[bool, ...]) -> None:
    """Converted files may carry the hub's keys along, which transformers does not read there.

    So they may only repeat what holds anyway. An interval of 1 alone says nothing of the start.
    """
    given = [key for key in _RANGE_KEYS if keys.has(key)]
    if given in ([], ["moe_layer_interval"]):
        keys.only("moe_layer_interval", 1)
        return
    told = layers_from_range(keys, len(layers))
    for index, (by_range, by_type) in enumerate(zip(told, layers, strict=True)):
        if by_range != by_type:
            raise keys.refuse(
                given[0],
                f"makes layer {index} {_word(by_range)}, but by mlp_layer_types it is {_word(by_type)}",
            )


def _word(has_experts: bool) -> str:
    return "sparse" if has_experts else "dense"


def _one_or_more(keys: Keys, key: str, default: int, low: int) -> tuple[int, ...]:
    if isinstance(keys.value(key), list | tuple):
        numbers = keys.integers(key, low=low)
        if not numbers:
            raise keys.refuse(key, "is an empty list")
        return numbers
    return (keys.integer(key, default, low=low),)
