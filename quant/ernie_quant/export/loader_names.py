"""Checks the names of a checkpoint against what the loaders of vLLM and SGLang take.

The rules are those of vLLM 0.32.0 (models/ernie45_vl.py, ernie45_vl_moe.py; of models that read only text
ernie45_moe.py, and llama.py by way of ernie45.py) and of SGLang (models/ernie45_vl.py at commit 3564ef8b,
ernie4.py at 008b79d2), which agree. vLLM stops at an unknown name, or leaves a missing weight as it was
allocated; SGLang warns of an unknown one of a model with images and goes on. The parameters are written out
here as their modules have them, and know nothing of the names that we write.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator

from ernie_local.config import ModelConfig, VisionConfig
from ernie_local.errors import ModelUnusable
from ernie_quant.export.compressed import GroupedFormat
from ernie_quant.export.compressed_layout import CompressedLayout

LOADER_VERSIONS = "vLLM 0.32.0 and SGLang (commits 3564ef8b and 008b79d2)"
LoaderTarget = tuple[str, str]  # a parameter, and which part of it
_STACKED = (
    ("q_proj", "qkv_proj", "q"),
    ("k_proj", "qkv_proj", "k"),
    ("v_proj", "qkv_proj", "v"),
    ("gate_proj", "gate_up_proj", "0"),
    ("up_proj", "gate_up_proj", "1"),
)
_EXPERT = re.compile(r"(.*\.mlp)\.experts\.(\d+)\.(gate|up|down)_proj\.(\w+)")
_RESAMPLER = {"0": "linear1", "2": "linear2", "3": "norm"}
_MERGERS = ("spatial", "temporal")
_OF_BLOCK = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def check_names(names: Iterable[str], config: ModelConfig, layout: CompressedLayout) -> None:
    """ModelUnusable unless the names of a checkpoint fill every parameter of the loaders, each once."""
    wanted = set(_parameters(config, layout))
    found: dict[LoaderTarget, str] = {}
    for name in names:
        target = _target(name, config)
        if target is None:
            continue
        if target not in wanted or target in found:
            reason = "twice" if target in found else "nowhere"
            raise _refused(f"{name} fills {reason} a parameter of theirs, it would be {target[0]}")
        found[target] = name
    if missing := sorted(wanted - found.keys()):
        parameter, part = missing[0]
        where = f"{parameter}, part {part}" if part else parameter
        raise _refused(f"{len(missing)} of {len(wanted)} parameters get no weight, the first is {where}")


def _target(name: str, config: ModelConfig) -> LoaderTarget | None:
    """The parameter that a name of a checkpoint fills; None for a head that is not read."""
    text, reads_images = config.text, config.reads_images
    if text.tie_word_embeddings and name.endswith("lm_head.weight"):
        return None
    if name.startswith("vision_model."):
        return name, ""
    if name.startswith("model.resampler_model."):
        inner = name.removeprefix("model.")
        return re.sub(r"_linear\.(\d)\.", lambda match: f"_{_RESAMPLER.get(match[1], '?')}.", inner), ""
    if match := _EXPERT.fullmatch(name):
        prefix, number, projection, suffix = match.groups()
        parameter = "w2" if projection == "down" else "w13"
        first_vision = text.banks[0].num_experts if reads_images and text.banks else sys.maxsize
        is_text = int(number) < first_vision
        expert_id = int(number) - (0 if is_text else first_vision)
        bank = ("text_" if is_text else "vision_") * reads_images
        return f"{prefix}.{bank}experts.{parameter}_{suffix}", f"{expert_id} {projection}"
    for own, stacked, part in _STACKED:
        if f".{own}." in name:
            return name.replace(own, stacked), part
    if not reads_images:
        return name.replace(".moe_statics.", ".gate."), ""
    if name.endswith("mlp.gate.weight"):
        name = name.replace("gate.weight", "text_experts_gate.weight")
    elif name.endswith("mlp.gate.weight_1"):
        name = name.replace("gate.weight_1", "vision_experts_gate.weight")
    return name.replace(".moe_statics.e_score", ".e_score"), ""


def _parameters(config: ModelConfig, layout: CompressedLayout) -> Iterator[LoaderTarget]:
    """All parameters of the loaders' modules, with the parts that are filled one by one."""
    text = config.text
    yield "model.embed_tokens.weight", ""
    yield "model.norm.weight", ""
    if not text.tie_word_embeddings:
        yield "lm_head.weight", ""
    for layer_id, has_experts in enumerate(text.moe_layers):
        prefix = f"model.layers.{layer_id}"
        yield f"{prefix}.input_layernorm.weight", ""
        yield f"{prefix}.post_attention_layernorm.weight", ""
        yield from _linear(f"{prefix}.self_attn.qkv_proj", layout.dense, ("q", "k", "v"))
        yield from _linear(f"{prefix}.self_attn.o_proj", layout.dense)
        if not has_experts:
            yield from _gated(f"{prefix}.mlp", layout.dense)
            continue
        if text.shared_expert_size:
            yield from _gated(f"{prefix}.mlp.shared_experts", layout.dense)
        yield from _routed(f"{prefix}.mlp", config, layout)
    if config.tower is not None:
        yield from _tower(config.tower)


def _routed(mlp: str, config: ModelConfig, layout: CompressedLayout) -> Iterator[LoaderTarget]:
    """Routers and routed experts, which bear the names of their banks where the model reads images."""
    yield (
        f"{mlp}.e_score_correction_bias" if config.reads_images else f"{mlp}.gate.e_score_correction_bias",
        "",
    )
    for bank in config.text.banks:
        experts, router = f"{mlp}.experts", f"{mlp}.gate"
        if config.reads_images:
            experts, router = f"{mlp}.{bank.name}_experts", f"{mlp}.{bank.name}_experts_gate"
        yield f"{router}.weight", ""
        parts = [
            (f"{parameter}_{suffix}", f"{expert_id} {projection}")
            for parameter, projections in (("w13", ("gate", "up")), ("w2", ("down",)))
            for suffix in _suffixes(layout.experts)
            for expert_id in range(bank.num_experts)
            for projection in projections
        ]
        yield from ((f"{experts}.{parameter}", part) for parameter, part in parts)


def _tower(vision: VisionConfig) -> Iterator[LoaderTarget]:
    yield "vision_model.patch_embed.proj.weight", ""
    modules = ["vision_model.ln"]
    for block in range(vision.depth):
        modules += [f"vision_model.blocks.{block}.{part}" for part in _OF_BLOCK]
    modules += [f"resampler_model.{merger}_{part}" for merger in _MERGERS for part in _RESAMPLER.values()]
    for module in (*modules, "resampler_model.mlp"):
        yield f"{module}.weight", ""
        yield f"{module}.bias", ""
    yield "resampler_model.after_norm.weight", ""


def _gated(prefix: str, form: GroupedFormat | None) -> Iterator[LoaderTarget]:
    yield from _linear(f"{prefix}.gate_up_proj", form, ("0", "1"))
    yield from _linear(f"{prefix}.down_proj", form)


def _linear(
    module: str, form: GroupedFormat | None, parts: tuple[str, ...] = ("",)
) -> Iterator[LoaderTarget]:
    for suffix in _suffixes(form):
        for part in parts:
            yield f"{module}.{suffix}", part


def _suffixes(form: GroupedFormat | None) -> tuple[str, ...]:
    return ("weight",) if form is None else form.suffixes


def _refused(problem: str) -> ModelUnusable:
    return ModelUnusable(
        f"names of the checkpoint for other engines: {problem}",
        f"the loaders of {LOADER_VERSIONS} take other names, and not each of them stops at a wrong one",
        "report this as a defect, with the model's name",
    )
