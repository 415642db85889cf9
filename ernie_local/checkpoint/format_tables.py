"""Makes the tables of `quantization_config`, a format for each weight, from a few choices."""

from __future__ import annotations

from dataclasses import dataclass

from ernie_local.config import ModelConfig, QuantizationConfig
from ernie_local.errors import UsageError
from ernie_local.packing.formats import COLUMN_STEP, find_format
from ernie_local.packing.layout import find_foreign


@dataclass(frozen=True, slots=True)
class FormatChoice:
    """One format for each kind of weight; None leaves that kind as it is."""

    experts: str | None = "w4"  # `w2-w2l`: gate and up in w2, down in w2l; also `nf4g64` and the like
    dense: str | None = "w8"  # attention, shared experts, dense layers, head
    embedding: str | None = "w8"  # also the head of a tied model, unless `dense` is another format
    vision: str | None = "w8"
    small_experts: str | None = None  # of a second page of each expert, in fewer bits


def format_tables(config: ModelConfig, choice: FormatChoice) -> QuantizationConfig:
    """Tables of all weights that `choice` covers. UsageError for an unknown format or an unsuitable width."""
    _check(choice, config)
    text = config.text
    matrices: dict[str, str] = {}
    gated_mlps: dict[str, str] = {}
    for layer_id, has_experts in enumerate(text.moe_layers):
        if choice.dense is None:
            break
        matrices[f"layers.{layer_id}.self_attn.qkv_proj"] = choice.dense
        matrices[f"layers.{layer_id}.self_attn.o_proj"] = choice.dense
        if not has_experts:
            gated_mlps[f"layers.{layer_id}.mlp"] = choice.dense
        elif text.num_shared_experts:
            gated_mlps[f"layers.{layer_id}.moe.shared_experts"] = choice.dense
    if choice.embedding is not None:
        matrices["embed_tokens"] = choice.embedding
    if choice.dense is not None and not (text.tie_word_embeddings and choice.dense == choice.embedding):
        matrices["lm_head"] = choice.dense
    if choice.vision is not None and config.reads_images:
        for block in range(config.vision.depth):
            for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
                matrices[f"vision.blocks.{block}.{name}"] = choice.vision
    experts, small_experts = (
        {(layer, bank.name): (name,) * bank.num_experts for layer, bank in text.layer_banks()} if name else {}
        for name in (choice.experts, choice.small_experts)
    )
    return QuantizationConfig(experts, matrices, gated_mlps, small_experts=small_experts)


def _check(choice: FormatChoice, config: ModelConfig) -> None:
    """UsageError for an unknown format, an unsuitable width, or small pages that are not smaller."""
    if choice.small_experts is not None:
        _check_small_pages(choice.small_experts, choice.experts)
    if choice.experts is not None and find_foreign(choice.experts) is None:
        for name in choice.experts.split("-", maxsplit=1):  # gate and up, and down
            find_format(name)
    for format_name in (choice.dense, choice.embedding, choice.vision):
        if format_name is not None:
            find_format(format_name)
    text, vision, dense = config.text, config.tower, bool(choice.dense)
    banks = [
        (bool(choice.experts), f"moe_intermediate_size of {one.name}", one.expert_size) for one in text.banks
    ]
    widths_of_tower = () if vision is None else (vision.hidden_size, vision.intermediate_size)
    tower = zip(("hidden_size", "intermediate_size"), widths_of_tower, strict=False)
    for is_packed, name, width in (
        (choice.experts or dense or choice.embedding, "hidden_size", text.hidden_size),
        *banks,
        (dense and not all(text.moe_layers), "intermediate_size", text.intermediate_size),
        (dense, "inner size of the shared experts", text.shared_expert_size),
        (dense, "heads times head_dim", text.num_attention_heads * text.head_dim),
        *((choice.vision, f"{name} of the vision tower", width) for name, width in tower),
    ):
        if is_packed and width % COLUMN_STEP:
            raise UsageError(
                f"{name} is {width}, packed matrices have a multiple of {COLUMN_STEP} columns",
                "a register holds the codes of that many columns",
                "leave this kind of weight unquantized",
            )


def _check_small_pages(small: str, experts: str | None) -> None:
    """UsageError unless both are in our own formats and small pages take fewer bits."""
    most = max(find_format(name).bits for name in small.split("-", maxsplit=1))
    is_ours = experts is not None and find_foreign(experts) is None
    large = [find_format(name).bits for name in str(experts).split("-", maxsplit=1)] if is_ours else [0]
    if most >= min(large):
        raise UsageError(
            f"small pages in {small} beside experts in {experts}",
            "small pages exist to save bytes, so they need fewer bits, and both must be in our own formats",
            "use w2 beside w4 and one of the methods gptq, clip and rtn, or make no small pages",
        )
