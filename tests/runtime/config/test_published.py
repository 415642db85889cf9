"""Each published config.json: read with the right values, or refused with the name of what to take."""

from __future__ import annotations

from typing import Any

import pytest

from ernie_local.config import parse_config
from ernie_local.config.model import ExpertBank, MediaTokens, bank_per_modality
from ernie_local.errors import ModelUnusable, UsageError
from tests.published_files import (
    PADDLE_28B,
    PADDLE_424B,
    PT_28B,
    TEXT_03B,
    TEXT_21B,
    TEXT_300B,
    TINY_RANDOM,
)

Raw = dict[str, Any]
PUBLISHED_TOKENS = MediaTokens(
    image=100295, image_start=101304, image_end=101305, video=100295, video_start=101306, video_end=101307
)


def refusal(raw: Raw) -> ModelUnusable:
    with pytest.raises(ModelUnusable) as caught:
        parse_config(raw, "model/config.json")
    assert str(caught.value).startswith("model/config.json: ")
    return caught.value


def test_28b_is_read_as_transformers_defines_it() -> None:
    from transformers import Ernie4_5_VLMoeConfig

    config = parse_config(PT_28B, "config.json")
    native = parse_config(Ernie4_5_VLMoeConfig().to_dict(), "config.json")
    assert (config.text, config.vision) == (native.text, native.vision)
    assert config.media == PUBLISHED_TOKENS
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))


def test_424b_is_read_where_it_says_less() -> None:
    config = parse_config(PADDLE_424B, "config.json")
    text = config.text
    assert text.moe_layers == (False,) * 3 + (True,) * 51
    assert text.banks == bank_per_modality(64, (3584, 1536))
    assert (text.experts_per_token, text.num_shared_experts, text.shared_expert_size) == (8, 0, 0)
    assert (text.head_dim, text.mrope_section) == (128, (22, 22, 20))
    assert not text.tie_word_embeddings
    assert config.vision == parse_config(PT_28B, "config.json").vision
    assert config.media == PUBLISHED_TOKENS
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))


def test_424b_with_every_key_of_its_class_is_the_same_model() -> None:
    """The keys of tiny-random, which the classes of 424B-A47B-PT wrote, with the sizes of 424B."""
    ends = {"moe_layer_start_index": [3, 3], "moe_layer_end_index": [53, 53], "moe_num_shared_experts": 0}
    config = parse_config(TINY_RANDOM | PADDLE_424B | ends, "config.json")
    assert config == parse_config(PADDLE_424B, "config.json")


def test_28b_paddle_is_another_format() -> None:
    error = refusal(PADDLE_28B)
    assert "-Paddle repository" in error.what
    assert "another format" in error.why
    assert "hf:baidu/ERNIE-4.5-VL-28B-A3B-PT" in error.hint
    assert "hf:baidu/ERNIE-4.5-VL-28B-A3B-Thinking" in error.hint
    # One key more, and it is a file that lacks the other.
    assert "max_position_embeddings is missing" in refusal(PADDLE_28B | {"eos_token_id": 2}).what


def test_21b_is_read_as_transformers_defines_it() -> None:
    from transformers import Ernie4_5_MoeConfig

    config = parse_config(TEXT_21B, "config.json")
    assert config == parse_config(Ernie4_5_MoeConfig().to_dict(), "config.json")
    (bank,) = config.text.banks
    assert bank == ExpertBank("text", 64, 1536, frozenset({"text"}))
    assert config.text.moe_layers == (False, *[True] * 27)
    assert (config.text.head_dim, config.text.mrope_section) == (128, (0, 0, 64))
    assert (config.text.experts_per_token, config.text.shared_expert_size) == (6, 3072)
    assert not config.reads_images


def test_300b_differs_from_21b_in_its_values_alone() -> None:
    text = parse_config(TEXT_300B, "config.json").text
    assert text.moe_layers == (False,) * 3 + (True,) * 51
    assert (text.num_shared_experts, text.shared_expert_size, text.experts_per_token) == (0, 0, 8)
    assert not text.tie_word_embeddings


def test_03b_is_read_as_transformers_defines_it() -> None:
    from transformers import Ernie4_5Config

    config = parse_config(TEXT_03B, "config.json")
    assert config == parse_config(Ernie4_5Config().to_dict(), "config.json")
    assert (config.text.banks, set(config.text.moe_layers)) == ((), {False})
    assert (config.text.num_attention_heads, config.text.head_dim) == (16, 128)
    assert config.text.tie_word_embeddings


@pytest.mark.parametrize("raw", [TEXT_21B, TEXT_03B])
def test_who_asks_a_text_only_model_for_its_tower_is_told(raw: Raw) -> None:
    config = parse_config(raw, "config.json")
    for part in ("vision", "media"):
        with pytest.raises(UsageError, match="reads only text"):
            getattr(config, part)


def test_tiny_random_is_refused_for_its_frequencies_alone() -> None:
    assert refusal(TINY_RANDOM).what.endswith(
        "mrope_section is [22, 22, 20] with sum 64, half of head_dim 2 is 1"
    )
    section = {"rope_scaling": {"type": "default", "mrope_section": [4, 4, 4]}, "freq_allocation": 4}
    config = parse_config(TINY_RANDOM | section | {"head_dim": 24}, "config.json")
    assert config.text.moe_layers == (False, True)
    assert config.media == PUBLISHED_TOKENS


NO_DEFAULT = """
    hidden_size intermediate_size max_position_embeddings model_type moe_intermediate_size moe_k
    moe_layer_interval moe_layer_start_index moe_num_experts num_attention_heads num_hidden_layers
    rms_norm_eps rope_theta vocab_size tie_word_embeddings vision_config
    vision_config.depth vision_config.num_heads
""".split()
# Where the published code's default is not the value of the 28B model: none shared, a head for each query.
DIFFERENT = {
    "moe_num_shared_experts": {"num_shared_experts"},
    "num_key_value_heads": {"num_key_value_heads"},
}


@pytest.mark.parametrize("key", [*PT_28B, *(f"vision_config.{key}" for key in PT_28B["vision_config"])])
def test_a_key_that_is_missing_is_named_or_has_the_published_default(key: str) -> None:
    section, _, name = key.rpartition(".")
    raw = {**PT_28B, "vision_config": dict(PT_28B["vision_config"])}
    del (raw[section] if section else raw)[name]
    if key in NO_DEFAULT:
        assert key in refusal(raw).what
        return
    whole, config = parse_config(PT_28B, "config.json"), parse_config(raw, "config.json")
    fields = whole.text.__dataclass_fields__
    different = {name for name in fields if getattr(whole.text, name) != getattr(config.text, name)}
    assert different == DIFFERENT.get(key, set())
    assert (config.vision, config.media, config.eos_token_ids) == (whole.vision, whole.media, (2,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe_layer_interval": None}, "moe_layer_interval is missing"),
        ({"moe_num_experts": None}, "moe_num_experts is missing"),
        ({"rope_theta": 0}, "rope_theta is 0, a finite number above 0 is expected"),
        ({"rope_scaling": {"rope_theta": 0.0}}, "rope_scaling.rope_theta is 0.0, a finite number above 0"),
        ({"vision_config": {**PT_28B["vision_config"], "rope_theta": 0}}, "vision_config.rope_theta is 0"),
        ({"num_experts_per_tok": 6}, "unknown key 'num_experts_per_tok'"),
        ({"image_token_id": 100295}, "unknown key 'image_token_id'"),
        ({"hidden_size": "2560"}, "hidden_size is '2560', an integer is expected"),
        ({"moe_k": 6.0}, "moe_k is 6.0, an integer is expected"),
        ({"rope_theta": "500000"}, "rope_theta is '500000', a number is expected"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, true or false is expected"),
    ],
)
def test_other_forms_of_28b_are_refused_by_name(changes: Raw, message: str) -> None:
    assert message in refusal(PT_28B | changes).what
