"""Maps the tensor names of files (hub layout or native layout) to ours, and back.

The map also says which part of a file's tensor each of ours is. Our own names map to themselves. Numbers in
names are not checked here: whether there is such a layer or expert is for the caller to find out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ernie_local.config import ExpertBank

Projection = Literal["gate_proj", "up_proj", "down_proj"]
WeightLayout = Literal["hub", "native"]
PROJECTIONS: tuple[Projection, Projection, Projection] = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Part:
    """One of our tensors, as a part of a tensor in a file.

    Three steps, each of which may be absent: take `row` of dimension 0 and drop that dimension; take one
    `half` (0 or 1) of what is now dimension 0; swap both dimensions if `transposed`.
    """

    name: str
    row: int | None = None
    half: int | None = None
    transposed: bool = False


# No leading zeros and few digits: each number has one spelling, so two names never mean one tensor.
NUMBER = "(?:0|[1-9][0-9]{0,5})"
_TEXT = r"(?:model\.)?(?:language_model\.)?"
_VISION = r"(?:model\.)?(?:vision_model|vision_tower|vision)\."
_RESAMPLER = r"(?:model\.)?resampler(?:_model)?\."
_MERGER = rf"{_RESAMPLER}(spatial|temporal)(?:_linear)?\."
_MLP = rf"{_TEXT}layers\.(?P<layer>{NUMBER})\.mlp\."
_LINEAR = r"(?P<projection>gate_proj|up_proj|down_proj)"
_BANK = r"(?P<bank>[a-z]+)"
_WEIGHTS = r"(?:weight|bias)"
_IN_BLOCK = r"(?:norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"

# A tensor that is taken as a whole: its names in files, and ours, which each pattern matches too.
_RENAMED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (rf"{_TEXT}((?:embed_tokens|norm|lm_head)\.weight)", r"\1"),
        (rf"{_TEXT}(layers\.{NUMBER}\.(?:input_layernorm|post_attention_layernorm)\.weight)", r"\1"),
        (rf"{_TEXT}(layers\.{NUMBER}\.self_attn\.[qkvo]_proj\.weight)", r"\1"),
        (rf"{_TEXT}(layers\.{NUMBER}\.mlp\.{_LINEAR}\.weight)", r"\1"),
        (rf"{_TEXT}(layers\.{NUMBER})\.(?:mlp|moe)\.(shared_experts\.{_LINEAR}\.weight)", r"\1.moe.\2"),
        (rf"{_MLP}{_BANK}_moe\.gate\.weight", r"layers.\g<layer>.moe.\g<bank>_router.weight"),
        (rf"(layers\.{NUMBER}\.moe\.{_BANK}_router\.{_WEIGHTS})", r"\1"),
        (rf"(experts\.{NUMBER}\.{_BANK}\.{NUMBER}\.{_LINEAR})", r"\1"),
        (rf"{_VISION}patch_embed(?:\.proj)?\.weight", r"vision.patch_embed.weight"),
        (rf"{_VISION}(?:ln|norm)\.({_WEIGHTS})", r"vision.norm.\1"),
        (rf"{_VISION}(blocks\.{NUMBER}\.{_IN_BLOCK}\.{_WEIGHTS})", r"vision.\1"),
        (rf"{_MERGER}(?:0|fc1)\.({_WEIGHTS})", r"resampler.\1.fc1.\2"),
        (rf"{_MERGER}(?:2|fc2)\.({_WEIGHTS})", r"resampler.\1.fc2.\2"),
        (rf"{_MERGER}(?:3|ln|norm)\.({_WEIGHTS})", r"resampler.\1.norm.\2"),
        (rf"{_RESAMPLER}mlp\.({_WEIGHTS})", r"resampler.mlp.\1"),
        (rf"{_RESAMPLER}(?:after_norm|norm)\.weight", r"resampler.norm.weight"),
    )
)
_HUB_GATE = re.compile(rf"{_MLP}gate\.weight(?:_(?P<index>[1-9][0-9]?))?")
_HUB_BIAS = re.compile(rf"{_MLP}moe_statics\.e_score_correction_bias")
_HUB_EXPERT = re.compile(rf"{_MLP}experts\.(?P<expert>{NUMBER})\.{_LINEAR}\.weight")
# Of a model that reads only text, also as transformers holds it in memory.
_TEXT_BIAS = re.compile(rf"{_MLP}(?:gate\.)?moe_statics\.e_score_correction_bias")
_FUSED_EXPERTS = re.compile(rf"{_MLP}experts\.(?P<projection>gate_up_proj|down_proj)")
_NATIVE_BIAS = re.compile(rf"{_MLP}{_BANK}_moe\.gate\.moe_statics\.e_score_correction_bias")
_NATIVE_EXPERTS = re.compile(rf"{_MLP}{_BANK}_moe\.experts\.(?P<projection>gate_up_proj|down_proj)")
# A counter of the training, and what predicts the tokens after the next one.
_LEFT_OUT = re.compile(
    rf"{_MLP}moe_statics\.expert_usage|model\.mtp_(?:block|emb_norm|hidden_norm|linear_proj)\.{NUMBER}\..+"
)
_NATIVE_ONLY = re.compile(r"language_model\.|vision_tower\.|_moe\.|_linear\.(?:fc1|fc2|ln)\.")
_HUB_ONLY = re.compile(r"vision_model\.|\.mlp\.(?:gate\.|moe_statics\.|experts\.)|_linear\.[0-9]\.")

# How our names begin, and how the same names begin in files of the hub and native layouts. The first row that
# matches counts. Hub names with a number that depends on the banks are not here.
_OURS = r"layers\.(\d+)\.moe\."
_HUB, _NATIVE = r"model.layers.\1.mlp.", r"model.language_model.layers.\1.mlp."
_SAMPLER, _BIAS = "model.resampler_model.", "moe_statics.e_score_correction_bias"
_IN_FILES = (
    (r"lm_head\.", "lm_head.", "lm_head."),
    (r"vision\.patch_embed\.", "vision_model.patch_embed.proj.", "model.vision_tower.patch_embed.proj."),
    (r"vision\.norm\.", "vision_model.ln.", "model.vision_tower.ln."),
    (r"vision\.", "vision_model.", "model.vision_tower."),
    (r"resampler\.mlp\.", f"{_SAMPLER}mlp.", f"{_SAMPLER}mlp."),
    (r"resampler\.norm\.", f"{_SAMPLER}after_norm.", f"{_SAMPLER}after_norm."),
    (r"resampler\.(\w+)\.fc1\.", rf"{_SAMPLER}\1_linear.0.", rf"{_SAMPLER}\1_linear.fc1."),
    (r"resampler\.(\w+)\.fc2\.", rf"{_SAMPLER}\1_linear.2.", rf"{_SAMPLER}\1_linear.fc2."),
    (r"resampler\.(\w+)\.norm\.", rf"{_SAMPLER}\1_linear.3.", rf"{_SAMPLER}\1_linear.ln."),
    (rf"{_OURS}shared_experts\.", f"{_HUB}shared_experts.", f"{_NATIVE}shared_experts."),
    (rf"{_OURS}(\w+)_router\.bias", f"{_HUB}{_BIAS}", rf"{_NATIVE}\2_moe.gate.{_BIAS}"),
    (rf"{_OURS}(\w+)_router\.weight", "", rf"{_NATIVE}\2_moe.gate.weight"),
    (r"experts\.(\d+)\.(\w+)\.\d+\.down_proj", "", rf"{_NATIVE}\2_moe.experts.down_proj"),
    (r"experts\.(\d+)\.(\w+)\.\d+\.\w+", "", rf"{_NATIVE}\2_moe.experts.gate_up_proj"),
    (r"", "model.", "model.language_model."),
)


def map_name(name: str, banks: Sequence[ExpertBank]) -> tuple[Part, ...]:
    """Our tensors that the file's tensor `name` holds; none for a name that no model with `banks` has.

    The hub numbers the experts of all banks in one sequence. A fused native tensor has one part for each
    expert and matrix.
    """
    by_name = {bank.name: bank for bank in banks}
    for pattern, ours in _RENAMED:
        if match := pattern.fullmatch(name):
            bank_name = match.groupdict().get("bank")
            return (Part(match.expand(ours)),) if bank_name is None or bank_name in by_name else ()
    if match := _HUB_GATE.fullmatch(name):
        index = int(match["index"] or 0)
        if index >= len(banks):
            return ()
        # Vision-language models of the hub keep the routers, and only them, as (hidden, experts).
        is_transposed = not _is_text_only(banks)
        ours = f"layers.{match['layer']}.moe.{banks[index].name}_router.weight"
        return (Part(ours, transposed=is_transposed),)
    if _is_text_only(banks) and (match := _FUSED_EXPERTS.fullmatch(name)):
        return _fused_parts(match["layer"], banks[0], match["projection"])
    if match := (_TEXT_BIAS if _is_text_only(banks) else _HUB_BIAS).fullmatch(name):
        return tuple(
            Part(f"layers.{match['layer']}.moe.{bank.name}_router.bias", row=row)
            for row, bank in enumerate(banks)
        )
    if match := _HUB_EXPERT.fullmatch(name):
        return _hub_expert(match["layer"], int(match["expert"]), match["projection"], banks)
    if (match := _NATIVE_BIAS.fullmatch(name)) and match["bank"] in by_name:
        return (Part(f"layers.{match['layer']}.moe.{match['bank']}_router.bias", row=0),)
    if (match := _NATIVE_EXPERTS.fullmatch(name)) and match["bank"] in by_name:
        return _fused_parts(match["layer"], by_name[match["bank"]], match["projection"])
    return ()


def is_left_out(name: str) -> bool:
    """Whether a file's tensor is one that no model here uses: a counter of the training, or of a layer that
    predicts the tokens after the next one (MTP)."""
    return _LEFT_OUT.fullmatch(name) is not None


def is_paddle_name(name: str) -> bool:
    """Whether a tensor is named as only the -Paddle repositories name them."""
    return name.startswith("ernie.")


def layout_of(name: str) -> WeightLayout | None:
    """The layout that writes `name`; None for a name that both write, and for ours."""
    if _NATIVE_ONLY.search(name):
        return "native"
    return "hub" if _HUB_ONLY.search(name) else None


def name_in_file(ours: str, layout: WeightLayout, banks: Sequence[ExpertBank]) -> str:
    """The name under which a file of `layout` holds our tensor `ours`: the inverse of `map_name`."""
    if layout == "hub":
        names = [bank.name for bank in banks]
        if match := re.fullmatch(rf"experts\.(\d+)\.{_BANK}\.(\d+)\.(\w+)", ours):
            before = sum(bank.num_experts for bank in banks[: names.index(match["bank"])])
            return f"model.layers.{match[1]}.mlp.experts.{before + int(match[3])}.{match[4]}.weight"
        if match := re.fullmatch(rf"layers\.(\d+)\.moe\.{_BANK}_router\.weight", ours):
            position = names.index(match["bank"])
            return f"model.layers.{match[1]}.mlp.gate.weight" + (f"_{position}" if position else "")
    for pattern, hub, native in _IN_FILES:
        if match := re.match(pattern, ours):
            return match.expand(hub if layout == "hub" else native) + ours[match.end() :]
    raise AssertionError(ours)  # the last row matches everything


def _is_text_only(banks: Sequence[ExpertBank]) -> bool:
    return bool(banks) and not any("vision" in bank.serves for bank in banks)


def _hub_expert(layer: str, index: int, projection: str, banks: Sequence[ExpertBank]) -> tuple[Part, ...]:
    for bank in banks:
        # An index past all banks stays with the last one, where it is one expert too many.
        if index < bank.num_experts or bank is banks[-1]:
            return (Part(f"experts.{layer}.{bank.name}.{index}.{projection}"),)
        index -= bank.num_experts
    return ()


def _fused_parts(layer: str, bank: ExpertBank, projection: str) -> tuple[Part, ...]:
    """Parts of (experts, 2 * inner, hidden), gate rows before up rows, or of (experts, hidden, inner)."""
    halves = {"down_proj": None} if projection == "down_proj" else {"gate_proj": 0, "up_proj": 1}
    return tuple(
        Part(f"experts.{layer}.{bank.name}.{expert}.{ours}", row=expert, half=half)
        for expert in range(bank.num_experts)
        for ours, half in halves.items()
    )
