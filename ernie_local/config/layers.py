"""Which decoder layers hold experts: the list of layer types, or start, end and interval.

Owns those keys in both layouts. Knows nothing of what is inside a layer.
"""

from __future__ import annotations

from ernie_local.config.keys import Keys
from ernie_local.strict_json import show

_RANGE_KEYS = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")


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
