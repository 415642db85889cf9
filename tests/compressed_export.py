"""Writes checkpoints as other tools do, by the code of compressed-tensors, and dequantizes them whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.entrypoints.convert import CompressedTensorsDequantizer
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, maybe_pad_tensor_for_block_quant
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
# Modules that are plain, as llm-compressor would name them.
IGNORE = (
    *("re:.*mlp.gate$", "re:.*embed_tokens", "re:vision_model.*", "re:.*resampler_model.*", "lm_head"),
    "re:model.norm",
)
FP8_ACTIVATIONS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
INT8_ACTIVATIONS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
# Every width is a multiple of 64 and none of 128.
_TEXT = {
    "hidden_size": 192,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "moe_intermediate_size": [192, 64],
    "moe_num_experts": 4,
    "num_hidden_layers": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 8, 8]},
}
_MADE = ("config.json", "hashes.json")
# The kinds of checkpoints: format, arguments of weights, and of activations.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "int4 group 32": ("pack-quantized", {"num_bits": 4, "group_size": 32}, None),
    "int4 group 64": ("pack-quantized", {"num_bits": 4, "group_size": 64}, None),
    "int4 group 32 zeros": ("pack-quantized", {"num_bits": 4, "group_size": 32, "symmetric": False}, None),
    "int8 group 32": ("pack-quantized", {"num_bits": 8, "group_size": 32}, None),
    "int8 group 32 zeros": ("pack-quantized", {"num_bits": 8, "group_size": 32, "symmetric": False}, None),
    "int4 channel": ("pack-quantized", {"num_bits": 4, "strategy": "channel"}, None),
    "int4 channel zeros": (
        "pack-quantized", {"num_bits": 4, "strategy": "channel", "symmetric": False}, None
    ),
    "int4 tensor": ("pack-quantized", {"num_bits": 4, "strategy": "tensor"}, None),
    "int3 group 32 zeros": ("pack-quantized", {"num_bits": 3, "group_size": 32, "symmetric": False}, None),
    "int8 plain": ("int-quantized", {"num_bits": 8, "strategy": "channel"}, INT8_ACTIVATIONS),
    "int8 plain zeros": (
        "int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}, INT8_ACTIVATIONS
    ),
    "fp8 channel": ("float-quantized", {"type": "float", "strategy": "channel"}, FP8_ACTIVATIONS),
    "fp8 tensor": ("float-quantized", {"type": "float", "strategy": "tensor"}, FP8_ACTIVATIONS),
    "fp8 block": (
        "float-quantized",
        {"type": "float", "strategy": "block", "block_structure": [32, 48]},
        FP8_ACTIVATIONS,
    ),
}  # fmt: skip


def save_plain(make_oracle: Callable[..., Any], directory: Path) -> Path:
    """A tiny bfloat16 model in the hub's layout, which every kind can quantize."""
    oracle = make_oracle(3, text=_TEXT)
    oracle.model.to(torch.bfloat16)
    saved: Path = oracle.save(directory)
    return saved


def read_tensors(directory: Path) -> Tensors:
    """All tensors of all files."""
    files = sorted(directory.glob("*.safetensors"))
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def write_compressed(
    source: Path, out: Path, kind: str, *, scale_dtype: torch.dtype | None = None, ignore: Any = IGNORE
) -> Path:
    """Quantize `source`, in the hub's layout, into `out`, in one of KINDS."""
    form, arguments, activations = KINDS[kind]
    weights = QuantizationArgs(**arguments)
    inputs = None if activations is None else QuantizationArgs(**activations)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs, format=form)
    compressor = BaseCompressor.get_value_from_registry(form)
    plain, made = read_tensors(source), Tensors()
    for name, weight in plain.items():
        if not is_quantized(name):
            made[name] = weight
            continue
        scale, zero = calculate_qparams(*_ranges(weight.float(), weights), weights)
        state = {"weight": weight, "weight_scale": scale.to(scale_dtype or weight.dtype)}
        state["weight_zero_point"] = zero.to(torch.int8)
        if form == "float-quantized":
            del state["weight_zero_point"]
        parts = compressor.compress(state, scheme)
        made |= {f"{name.removesuffix('weight')}{suffix}": part for suffix, part in parts.items()}
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=form,
        ignore=list(ignore),
        quantization_status="compressed",
    )
    return write_checkpoint_of(source, out, made, config.model_dump(mode="json"))


def write_checkpoint_of(
    source: Path, out: Path, tensors: Tensors, quantization: Mapping[str, Any] | None
) -> Path:
    """The checkpoint `source` with these tensors and this quantization_config, which may be None."""
    out.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and "safetensors" not in path.name and path.name not in _MADE:
            shutil.copy(path, out)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / "model.safetensors")
    raw = json.loads((source / "config.json").read_text())
    if quantization is not None:
        raw["quantization_config"] = dict(quantization)
    (out / "config.json").write_text(json.dumps(raw))
    return out


def write_dequantized(compressed: Path, source: Path, out: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """What compressed-tensors makes of the whole checkpoint, as a plain one; dtype: of its scales."""
    whole = CompressedTensorsDequantizer(str(compressed), dtype=dtype)
    return write_checkpoint_of(source, out, whole.process(read_tensors(compressed)), None)


def is_quantized(name: str) -> bool:
    """Whether the kinds have the hub's tensor `name` quantized."""
    in_layer = "self_attn" in name or ".mlp." in name
    return in_layer and name.startswith("model.layers.") and name.endswith("_proj.weight")


def _ranges(weight: torch.Tensor, args: QuantizationArgs) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and most of the weights that share a scale, in the shape of the scales."""
    if args.strategy == "tensor":
        return weight.amin().view(1), weight.amax().view(1)
    if args.strategy == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if args.strategy == "group":
        groups = weight.unflatten(1, (-1, args.group_size))
        return groups.amin(2), groups.amax(2)
    rows, columns = args.block_structure
    padded = maybe_pad_tensor_for_block_quant(weight, (rows, columns))
    blocks = padded.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))  # (rows of blocks, rows, columns..)
    return blocks.amin((1, 3)), blocks.amax((1, 3))


def write_awq(source: Path, out: Path, *, zeros: bool = True) -> tuple[Path, Tensors]:
    """`source` as AutoAWQ stores it in groups of 32, and all weights that it means.

    The layout is written out here by itself: a word has eight neighbours of a row of (in, out), and the even
    ones come first.
    """
    made, meant = Tensors(), Tensors()
    for name, weight in read_tensors(source).items():
        made[name] = meant[name] = weight
        if not is_quantized(name):
            continue
        del made[name]
        module = name.removesuffix("weight")
        groups = weight.float().t().unflatten(0, (-1, 32))  # (groups, 32, out)
        low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
        scales = ((high - low if zeros else 2 * torch.maximum(high, -low)) / 15).clamp(min=1e-4).half()
        middle = (-low / scales.float()).round().clamp(0, 15) if zeros else torch.full_like(low, 8)
        codes = (groups / scales.float()[:, None] + middle[:, None]).round().clamp(0, 15)
        made[f"{module}qweight"] = _awq_words(codes.flatten(0, 1).int())
        made[f"{module}scales"] = scales
        if zeros:
            made[f"{module}qzeros"] = _awq_words(middle.int())
        values = (codes - middle[:, None]).half() * scales[:, None]
        meant[name] = values.flatten(0, 1).t().contiguous()
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": zeros, "version": "gemm"}
    return write_checkpoint_of(source, out, made, {**config, "modules_to_not_convert": ["lm_head"]}), meant


def _awq_words(codes: torch.Tensor) -> torch.Tensor:
    """(rows, columns) of 0 to 15 -> (rows, columns / 8) int32."""
    words = torch.zeros(len(codes), codes.shape[1] // 8, dtype=torch.int64)
    for position, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        words |= codes[:, column::8].long() << (4 * position)
    return (words - (words >> 31 << 32)).to(torch.int32)


def write_fp8_blocks(source: Path, out: Path) -> tuple[Path, Tensors]:
    """`source` in fp8 with a float32 scale for each 128 x 128 weights, and all weights that it means."""
    made, meant = Tensors(), Tensors()
    for name, weight in read_tensors(source).items():
        made[name] = meant[name] = weight
        if not is_quantized(name):
            continue
        scales = torch.empty(-(-weight.shape[0] // 128), -(-weight.shape[1] // 128))
        codes = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
        meant[name] = weight.float()
        for row, column in torch.cartesian_prod(*map(torch.arange, scales.shape)).tolist():
            block = slice(128 * row, 128 * row + 128), slice(128 * column, 128 * column + 128)
            scales[row, column] = weight[block].float().abs().max() / 448
            codes[block] = (weight[block].float() / scales[row, column]).to(codes.dtype)
            meant[name][block] = codes[block].float() * scales[row, column]
        made[name], made[f"{name}_scale_inv"] = codes, scales
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    return write_checkpoint_of(source, out, made, config | {"fmt": "e4m3"}), meant


def reorder_groups(compressed: Path, out: Path, group_size: int) -> tuple[Path, Tensors]:
    """A pack-quantized checkpoint whose columns are in groups in another order, and what its weights are.

    compressed: with the same codes and scales in the usual order.
    """
    raw = json.loads((compressed / "config.json").read_text())["quantization_config"]
    scheme = QuantizationScheme(**raw["config_groups"]["group_0"])
    raw["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    tensors = read_tensors(compressed)
    meant, names = Tensors(), [name for name in tensors if name.endswith("weight_packed")]
    for name in names:
        module = name.removesuffix("weight_packed")
        rows, columns = tensors[f"{module}weight_shape"].tolist()
        groups = torch.randperm(columns, generator=torch.Generator().manual_seed(columns)) // group_size
        tensors[f"{module}weight_g_idx"] = groups.int()
        scales = tensors[f"{module}weight_scale"]
        codes = unpack_from_int32(tensors[name], scheme.weights.num_bits, (rows, columns)).to(scales.dtype)
        if not scheme.weights.symmetric:
            zeros = tensors[f"{module}weight_zero_point"]
            zeros = unpack_from_int32(zeros, scheme.weights.num_bits, scales.shape, packed_dim=0)
            codes -= zeros.to(scales.dtype)[:, groups]
        meant[f"{module}weight"] = codes * scales[:, groups]
    return write_checkpoint_of(compressed, out, tensors, raw), meant
