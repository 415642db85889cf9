"""Write a trained nano as a checkpoint in the hub's layout: shards, index, configs, tokenizer, model card.

python calibration/nano/export.py --work build/nano --out ernie_local/nano
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import save_file
from torch import Tensor

from ernie_local.media.processor_config import CLIP_MEAN, CLIP_STD
from nano.shape import NanoShape

NUM_SHARDS = 2
Weights = dict[str, Tensor]


def config(shape: NanoShape) -> dict[str, object]:
    """config.json as the published checkpoint writes it: flat text keys, one entry per modality in lists."""
    last_layer = shape.num_layers - 1
    return {
        "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
        "model_type": "ernie4_5_moe_vl",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.dense_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_theta,
        "rope_3d": True,
        "freq_allocation": shape.mrope_section[2],
        "rope_scaling": {"type": "default", "mrope_section": list(shape.mrope_section)},
        "tie_word_embeddings": True,
        "use_bias": False,
        "moe_num_experts": [shape.num_experts, shape.num_experts],
        "moe_intermediate_size": [shape.text_expert_size, shape.vision_expert_size],
        "moe_k": shape.experts_per_token,
        "moe_layer_start_index": [1, 1],
        "moe_layer_end_index": [last_layer, last_layer],
        "moe_layer_interval": 1,
        "moe_num_shared_experts": 1,
        "moe_use_aux_free": True,
        "moe_gate": "topk",
        "moe_gate_act": "softmax",
        "moe_norm_gate_logits": True,
        "im_patch_id": 7,
        "image_start_token_id": 8,
        "image_end_token_id": 9,
        "video_start_token_id": 11,
        "video_end_token_id": 12,
        "spatial_conv_size": shape.merge_size,
        "temporal_conv_size": 2,
        "use_temporal_conv": True,
        "pixel_hidden_size": shape.vision_size,
        "torch_dtype": "bfloat16",
        "vision_config": {
            "model_type": "DFNRope_vision_transformer",
            "depth": shape.vision_depth,
            "embed_dim": shape.vision_size,
            "hidden_size": shape.vision_size,
            "hidden_act": "quick_gelu",
            "mlp_ratio": shape.vision_mlp_ratio,
            "num_heads": shape.vision_heads,
            "in_channels": 3,
            "patch_size": shape.patch_size,
            "spatial_merge_size": shape.merge_size,
        },
    }


def preprocessor_config(shape: NanoShape) -> dict[str, object]:
    """preprocessor_config.json with the pixel budget that nano was trained at."""
    return {
        "image_processor_type": "Ernie4_5_VLImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "min_pixels": 4 * shape.token_pixels**2,
        "max_pixels": shape.max_image_tokens * shape.token_pixels**2,
        "video_min_pixels": 4 * shape.token_pixels**2,
        "video_max_pixels": shape.max_frame_tokens * shape.token_pixels**2,
        "patch_size": shape.patch_size,
        "temporal_conv_size": 2,
        "merge_size": shape.merge_size,
    }


def _linear(source: Weights, ours: str, published: str) -> Iterator[tuple[str, Tensor]]:
    yield f"{published}.weight", source[f"{ours}.weight"]
    yield f"{published}.bias", source[f"{ours}.bias"]


def _swiglu(gate_up: Tensor, down: Tensor, published: str) -> Iterator[tuple[str, Tensor]]:
    """gate_up (2 * inner, hidden), down (hidden, inner)."""
    gate, up = gate_up.chunk(2)
    yield f"{published}.gate_proj.weight", gate
    yield f"{published}.up_proj.weight", up
    yield f"{published}.down_proj.weight", down


def _decoder_layer(source: Weights, shape: NanoShape, index: int) -> Iterator[tuple[str, Tensor]]:
    ours, published = f"layers.{index}", f"model.layers.{index}"
    key_value_width = shape.num_key_value_heads * shape.head_dim
    parts = source[f"{ours}.qkv"].split((shape.hidden_size, key_value_width, key_value_width))
    for name, part in zip("qkv", parts, strict=True):
        yield f"{published}.self_attn.{name}_proj.weight", part
    yield f"{published}.self_attn.o_proj.weight", source[f"{ours}.out"]
    yield f"{published}.input_layernorm.weight", source[f"{ours}.norm1"]
    yield f"{published}.post_attention_layernorm.weight", source[f"{ours}.norm2"]
    mlp = source[f"{ours}.mlp.gate_up"], source[f"{ours}.mlp.down"]
    if index == 0:
        yield from _swiglu(*mlp, f"{published}.mlp")
        return
    yield from _swiglu(*mlp, f"{published}.mlp.shared_experts")
    for bank_id, (bank, suffix) in enumerate((("text", ""), ("vision", "_1"))):
        prefix = f"{ours}.banks.{bank}"
        yield f"{published}.mlp.gate.weight{suffix}", source[f"{prefix}.router"].T  # (hidden, experts)
        for expert in range(shape.num_experts):
            gate_up, down = source[f"{prefix}.gate_up"][expert].T, source[f"{prefix}.down"][expert].T
            number = bank_id * shape.num_experts + expert
            yield from _swiglu(gate_up, down, f"{published}.mlp.experts.{number}")
    biases = [source[f"{ours}.banks.{bank}.bias"] for bank in ("text", "vision")]
    yield f"{published}.mlp.moe_statics.e_score_correction_bias", torch.stack(biases)


def published_weights(source: Weights, shape: NanoShape) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its published name, still in the trainer's dtype."""
    yield "model.embed_tokens.weight", source["embed"]
    yield "model.norm.weight", source["norm"]
    for index in range(shape.num_layers):
        yield from _decoder_layer(source, shape, index)
    yield "vision_model.patch_embed.proj.weight", source["vision.patch_embed"]
    for index in range(shape.vision_depth):
        ours, published = f"vision.blocks.{index}", f"vision_model.blocks.{index}"
        for name in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            yield from _linear(source, f"{ours}.{name.split('.')[-1]}", f"{published}.{name}")
    yield from _linear(source, "vision.norm", "vision_model.ln")
    for stage in ("spatial", "temporal"):
        published = f"model.resampler_model.{stage}_linear"
        for name, number in (("fc1", 0), ("fc2", 2), ("norm", 3)):
            yield from _linear(source, f"vision.{stage}.{name}", f"{published}.{number}")
    yield from _linear(source, "vision.mlp", "model.resampler_model.mlp")
    yield "model.resampler_model.after_norm.weight", source["vision.after_norm"]


def write_shards(weights: Weights, out: Path) -> None:
    """NUM_SHARDS files of about equal size and their index."""
    total = sum(tensor.nbytes for tensor in weights.values())
    shards: list[Weights] = [{} for _ in range(NUM_SHARDS)]
    written = 0
    for name, tensor in weights.items():
        shards[min(NUM_SHARDS - 1, written * NUM_SHARDS // total)][name] = tensor
        written += tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{NUM_SHARDS:05d}.safetensors"
        save_file(shard, out / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file_name))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(out / "model.safetensors.index.json", index)


def write_json(path: Path, content: dict[str, object]) -> None:
    """Indented, with a newline at the end."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(work: Path, out: Path) -> None:
    """Turn `work`/checkpoint.pt and tokenizer.model into a model directory; an existing model card stays."""
    shape = NanoShape()
    source: Weights = torch.load(work / "checkpoint.pt")["network"]
    weights = {}
    for name, tensor in published_weights(source, shape):
        is_router = ".mlp.gate." in name or "moe_statics" in name
        weights[name] = tensor.to(torch.float32 if is_router else torch.bfloat16).contiguous()
    out.mkdir(parents=True, exist_ok=True)
    write_shards(weights, out)
    write_json(out / "config.json", config(shape))
    write_json(out / "preprocessor_config.json", preprocessor_config(shape))
    generation = {"bos_token_id": 1, "eos_token_id": [2, 4], "pad_token_id": 0, "do_sample": False}
    write_json(out / "generation_config.json", generation)
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "Ernie4_5_VLTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<unk>",
            "cls_token": "<|begin_of_sentence|>",
            "sep_token": "<|end_of_sentence|>",
            "model_max_length": shape.max_positions,
        },
    )
    shutil.copyfile(work / "tokenizer.model", out / "tokenizer.model")


def export_nano() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a trained nano as a checkpoint in the hub's layout.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    export(arguments.work, arguments.out)


if __name__ == "__main__":
    export_nano()
