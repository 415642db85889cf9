"""Random models of the shape of ERNIE-4.5-VL-424B-A47B: its config.json with small sizes, random weights.

What its file leaves out is left out here too: the last layer with experts, shared experts and every token id.
The same model is written out for transformers, which reads another form of config.json.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from tests.published_files import PADDLE_424B, Raw

if TYPE_CHECKING:
    from tests.conftest import Oracle

# Makes small files; the published ids of images need a vocabulary of 101,308 tokens.
FEW_TOKENS: Raw = {
    "vocab_size": 101, "im_patch_id": 5, "image_start_token_id": 6, "image_end_token_id": 7,
    "video_start_token_id": 8, "video_end_token_id": 9,
}  # fmt: skip
_FIRST_WITH_EXPERTS = (3, 0, 1)
# Other files of the family say more, or have other rules; most models here have the published form alone.
_FORMS: tuple[Raw, ...] = (
    {},
    {},
    {"moe_layer_interval": 2},
    {"moe_num_shared_experts": 1},
    {"tie_word_embeddings": True},
    {"moe_num_shared_experts": 0, "eos_token_id": 2, **FEW_TOKENS},
)


def draw_large(seed: int) -> Raw:
    """config.json of a model with few layers, and other sizes and banks for each seed."""
    draw = Random(f"large/{seed}")
    heads, head_dim = draw.choice([2, 4, 8]), draw.choice([8, 12, 16, 24])
    first = _FIRST_WITH_EXPERTS[seed % len(_FIRST_WITH_EXPERTS)]
    form = _FORMS[seed % len(_FORMS)]
    num_layers = first + draw.randint(1, 3)
    num_experts = draw.choice([10, 12, 64])
    each_side = draw.randint(1, head_dim // 4 - (head_dim % 4 == 0))
    tower_width = draw.choice([16, 32])
    return PADDLE_424B | {
        "hidden_size": heads * head_dim,
        "intermediate_size": draw.choice([64, 112, 130]),
        "num_hidden_layers": num_layers + (num_layers == first + 1 and "moe_layer_interval" in form),
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([1, 2]),
        "moe_layer_start_index": first if seed % 4 else [first, first + 1],
        "moe_k": draw.choice([2, 6, 8]),
        "moe_num_experts": [num_experts, num_experts],
        "moe_intermediate_size": [draw.choice([40, 56, 72]), draw.choice([8, 24, 80])],
        "freq_allocation": head_dim // 2 - 2 * each_side,
        "pixel_hidden_size": tower_width,
        "vision_config": PADDLE_424B["vision_config"]
        | {"depth": draw.randint(1, 2), "embed_dim": tower_width, "hidden_size": tower_width, "num_heads": 2},
        **form,
    }  # fmt: skip


def write_large(make_oracle: Callable[..., Oracle], raw: Raw, directory: Path, seed: int = 0) -> Oracle:
    """Write weights for `raw`, a config.json of `draw_large`, and give back transformers' model with them."""
    oracle = make_oracle(
        seed, _for_transformers(raw), _tower(raw), tied=raw["tie_word_embeddings"], media=_media(raw)
    )
    oracle.save(directory, config=raw)
    return oracle


def _for_transformers(raw: Raw) -> dict[str, Any]:
    start, interval = raw["moe_layer_start_index"], raw["moe_layer_interval"]
    first = min(start) if isinstance(start, list) else start
    temporal = raw["freq_allocation"]
    each_side = (raw["hidden_size"] // raw["num_attention_heads"] // 2 - temporal) // 2
    same = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "moe_intermediate_size", "moe_k",
    )  # fmt: skip
    return {key: raw[key] for key in same} | {
        "moe_num_experts": raw["moe_num_experts"][0],
        "moe_num_shared_experts": raw.get("moe_num_shared_experts", 0),
        "mlp_layer_types": [
            "sparse" if layer >= first and (layer + 1) % interval == 0 else "dense"
            for layer in range(raw["num_hidden_layers"])
        ],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": raw["rope_theta"],
            "mrope_section": [each_side, each_side, temporal],
        },
    }


def _tower(raw: Raw) -> dict[str, Any]:
    tower = raw["vision_config"]
    width = tower["hidden_size"]
    return {"intermediate_size": width * tower["mlp_ratio"]} | {
        key: tower[key] for key in ("depth", "hidden_size", "num_heads")
    }


def _media(raw: Raw) -> tuple[int, ...]:
    """Ids of an image's start, placeholder and end; the published ones where the file has none."""
    published = {"image_start_token_id": 101304, "im_patch_id": 100295, "image_end_token_id": 101305}
    return tuple(raw.get(key, token_id) for key, token_id in published.items())
