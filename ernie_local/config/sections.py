"""Reads the decoder, its position encoding and the vision tower, whose keys mean the same in both layouts.

The layouts differ in the names of some keys and in what an absent key means: each passes its own defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ernie_local.config.keys import LARGEST_COUNT, LARGEST_SIZE, Keys
from ernie_local.config.model import ExpertBank, MediaTokens, TextConfig, VisionConfig
from ernie_local.strict_json import show

_RANGE_KEYS = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")

Defaults = Mapping[str, int | None]  # by key; None is no default
# Keys and default ids of the tags around images and videos, in both layouts.
MEDIA_TAGS = {
    "image_start": ("image_start_token_id", 101304),
    "image_end": ("image_end_token_id", 101305),
    "video_start": ("video_start_token_id", 101306),
    "video_end": ("video_end_token_id", 101307),
}


@dataclass(frozen=True, slots=True)
class DecoderExperts:
    """The experts of all layers. moe_layers: whether each layer has any."""

    moe_layers: tuple[bool, ...]
    banks: tuple[ExpertBank, ...]
    per_token: int
    num_shared: int


@dataclass(frozen=True, slots=True)
class RopeSettings:
    """Settings of the 3-D position encoding; None where the file does not have them."""

    theta: float
    section: tuple[int, int, int] | None  # mrope_section: frequencies for height, width and time
    temporal: int | None  # freq_allocation: how many of the frequencies go to time


def read_decoder(
    keys: Keys,
    rope: RopeSettings,
    experts: DecoderExperts,
    defaults: Defaults,
    *,
    rms_norm_eps: float | None = None,
    section: tuple[int, int, int] | None = None,
    has_images: bool = True,
    tied: bool,
) -> TextConfig:
    """The decoder; rms_norm_eps and section (of the position encoding) are defaults too.

    has_images: False for a model that reads only text, in which every frequency is one of time.
    """

    def integer(name: str) -> int:
        return keys.integer(name, defaults.get(name))

    hidden_size = integer("hidden_size")
    num_query, num_key_value, head_dim = _read_heads(keys, hidden_size, defaults)
    for bank in experts.banks:
        if experts.per_token > bank.num_experts:
            problem = f"is {experts.per_token}, but each bank has {bank.num_experts} experts"
            raise keys.refuse("moe_k", problem)
    return TextConfig(
        vocab_size=integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=integer("intermediate_size"),
        num_hidden_layers=len(experts.moe_layers),
        num_attention_heads=num_query,
        num_key_value_heads=num_key_value,
        head_dim=head_dim,
        max_position_embeddings=integer("max_position_embeddings"),
        rms_norm_eps=keys.number("rms_norm_eps", rms_norm_eps),
        rope_theta=rope.theta,
        mrope_section=_settle_section(keys, rope, head_dim, section) if has_images else (0, 0, head_dim // 2),
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
    """The vision tower. names: a layout's own names of some keys, by ours. Finishes `keys`."""

    def integer(name: str, high: int = LARGEST_SIZE) -> int:
        return keys.integer(names.get(name, name), defaults.get(name), high=high)

    keys.only("hidden_act", "quick_gelu")
    keys.only("temporal_merge_size", 2)
    # Some files have these, as any config may; a vision tower has no words.
    for key in ("tie_word_embeddings", "bos_token_id", "eos_token_id"):
        keys.value(key)
    hidden_size, num_heads = integer("hidden_size"), integer("num_heads")
    # Each head is cut into quarters, for rows and columns.
    if hidden_size % num_heads or hidden_size // num_heads % 4:
        problem = f"is {num_heads}, which does not cut hidden_size {hidden_size} into multiples of 4"
        raise keys.refuse("num_heads", problem)
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


def read_media(keys: Keys, names: Mapping[str, tuple[str, int]], vocab_size: int) -> MediaTokens:
    """The ids of image tokens, once all ids of `keys` are checked. names: a layout's key and its default, by
    field."""
    keys.check_ids(vocab_size, *(key for key, _ in names.values()))
    for key, published in names.values():
        if not keys.has(key) and published >= vocab_size:
            problem = f"is missing, and the published id {published} is beyond vocab_size {vocab_size}"
            raise keys.refuse(key, problem)
    ids = {field: keys.integer(key, default, low=0) for field, (key, default) in names.items()}
    return MediaTokens(**ids)


def _read_heads(keys: Keys, hidden_size: int, defaults: Defaults) -> tuple[int, int, int]:
    """num_attention_heads, num_key_value_heads and head_dim.

    A num_key_value_heads of null means as many as query heads. The default of head_dim is that of
    `defaults`, or hidden_size // num_attention_heads, which need not divide evenly.
    """
    num_query = keys.integer("num_attention_heads", defaults.get("num_attention_heads"))
    key_value = defaults.get("num_key_value_heads")
    if keys.is_null("num_key_value_heads") or (key_value is None and not keys.has("num_key_value_heads")):
        key_value = num_query
    num_key_value = keys.integer("num_key_value_heads", key_value)
    if num_query % num_key_value:
        problem = f"is {num_key_value}, which does not divide num_attention_heads {num_query}"
        raise keys.refuse("num_key_value_heads", problem)
    head_dim = keys.integer("head_dim", defaults.get("head_dim", hidden_size // num_query or None))
    if head_dim % 2:
        raise keys.refuse("head_dim", f"is {head_dim}, an even width is needed for the position encoding")
    return num_query, num_key_value, head_dim


def read_rope(keys: Keys, default_theta: float | None, types: tuple[str, ...]) -> RopeSettings:
    """Theta and split of frequencies from `keys`; other rope types than `types` are refused.

    As in transformers, rope_scaling replaces rope_parameters, and a theta inside of either goes before one
    beside them.
    """
    keys.only("partial_rotary_factor", 1.0, 1)
    filled = [key for key in ("rope_scaling", "rope_parameters") if keys.value(key) not in (None, {})]
    if not filled:
        theta = keys.number("rope_theta", default_theta, above_zero=True)
        return RopeSettings(theta, None, _frequencies(keys))
    inner = keys.section(filled[0])
    inner.only("type", *types)
    inner.only("rope_type", *types)
    inner.only("partial_rotary_factor", 1.0, 1)
    keys.value("rope_theta")
    # Read where it counts, so that a message names the right one.
    theta = (inner if inner.has("rope_theta") else keys).number("rope_theta", default_theta, above_zero=True)
    inner.value("rope_theta")
    section = None
    if inner.has("mrope_section"):
        height, width, temporal = inner.integers("mrope_section", length=3)
        section = (height, width, temporal)
    inner_frequencies, outer_frequencies = _frequencies(inner), _frequencies(keys)
    if None not in (inner_frequencies, outer_frequencies) and inner_frequencies != outer_frequencies:
        problem = f"is {outer_frequencies}, but {filled[0]} has {inner_frequencies}"
        raise keys.refuse("freq_allocation", problem)
    inner.finish()
    return RopeSettings(theta, section, inner_frequencies or outer_frequencies)


def _settle_section(
    keys: Keys, rope: RopeSettings, head_dim: int, default: tuple[int, int, int] | None
) -> tuple[int, int, int]:
    """Frequencies for (height, width, time), which together are half of `head_dim`.

    default: where the file has no mrope_section; None derives it from freq_allocation. Height and width take
    turns within the first frequencies, so they must have equally many.
    """
    section, origin = rope.section, "is"
    if section is None and default is not None:
        section, origin = default, "is absent, and its default"
    elif section is None:
        temporal = rope.temporal if rope.temporal is not None else 20
        rest = (head_dim // 2 - temporal) // 2
        section, origin = (rest, rest, temporal), f"follows from freq_allocation {temporal} as"
    height, width, temporal = section
    if head_dim % 2 or sum(section) != head_dim // 2:
        due = f"half of head_dim {head_dim} is {head_dim // 2}"
        problem = f"{origin} {list(section)} with sum {sum(section)}, {due}"
        raise keys.refuse("mrope_section", problem)
    if height != width or temporal < 1 or height < 0:
        problem = f"{origin} {list(section)}, equal height and width and a temporal part are due"
        raise keys.refuse("mrope_section", problem)
    if rope.temporal not in (None, temporal):
        raise keys.refuse("freq_allocation", f"is {rope.temporal}, but mrope_section has {temporal}")
    return section


def _frequencies(keys: Keys) -> int | None:
    return keys.integer("freq_allocation", low=1) if keys.has("freq_allocation") else None


def layers_from_types(keys: Keys, num_layers: int) -> tuple[bool, ...]:
    """Whether each layer has experts, in the native layout: mlp_layer_types; by default all but the first.

    The list may be longer than the model, as when num_hidden_layers was lowered.
    """
    layers, key = tuple(index > 0 for index in range(num_layers)), "mlp_layer_types"
    if keys.has(key):
        types = keys.sequence(key)
        if len(types) < num_layers:
            raise keys.refuse(key, f"has {len(types)} entries for {num_layers} layers")
        for index, kind in enumerate(types):
            if kind not in ("dense", "sparse"):
                raise keys.refuse(key, f"has {show(kind)} at {index}, only dense and sparse exist")
        layers = tuple(kind == "sparse" for kind in types[:num_layers])
    _check_agreement(keys, layers)
    return layers


def one_number_each(keys: Keys) -> None:
    """Refuse lists with a number per modality where there is only one."""
    for key in ("moe_layer_start_index", "moe_layer_end_index"):
        keys.integer(key, 0, low=-1)


def layers_from_range(keys: Keys, num_layers: int, first: int = 0) -> tuple[bool, ...]:
    """Whether each layer has experts, in the hub layout: from start to end, if (layer + 1) % interval is 0.

    Start and end are numbers, or lists with a number per modality: the lowest start and the highest end
    count. An end of -1 is the last layer; an end beyond it is usual. first: the start where none is given.
    """
    start = min(_one_or_more(keys, "moe_layer_start_index", default=first, low=0))
    ends = _one_or_more(keys, "moe_layer_end_index", default=-1, low=-1)
    end = max(num_layers - 1 if end == -1 else end for end in ends)
    interval = keys.integer("moe_layer_interval", 1)
    return tuple((index + 1) % interval == 0 and start <= index <= end for index in range(num_layers))


def _check_agreement(keys: Keys, layers: tuple[bool, ...]) -> None:
    """Refuse keys of the hub layout, which converted files may have, unless they agree with `layers`.

    transformers does not read them there. An interval of 1 alone says nothing of the start.
    """
    given = [key for key in _RANGE_KEYS if keys.has(key)]
    if given in ([], ["moe_layer_interval"]):
        keys.only("moe_layer_interval", 1)
        return
    told = layers_from_range(keys, len(layers))
    for index, (by_range, by_type) in enumerate(zip(told, layers, strict=True)):
        if by_range != by_type:
            words = ("dense", "sparse")
            problem = f"makes layer {index} {words[by_range]}, but by mlp_layer_types it is {words[by_type]}"
            raise keys.refuse(given[0], problem)


def _one_or_more(keys: Keys, key: str, default: int, low: int) -> tuple[int, ...]:
    if isinstance(keys.value(key), list | tuple):
        numbers = keys.integers(key, low=low)
        if not numbers:
            raise keys.refuse(key, "is an empty list")
        return numbers
    return (keys.integer(key, default, low=low),)
