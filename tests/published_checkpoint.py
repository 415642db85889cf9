"""Writes a checkpoint with the files, names, types and shards of ERNIE-4.5-VL-28B-A3B-Thinking, or 424B.

Names and shapes are written out here once more, so that they check those of the package. With the published
sizes the weights are a hole in a sparse file; with small ones they are random.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.published_files import PADDLE_424B, PREPROCESSOR, PT_28B, Raw

NUM_SHARDS = 29
NUM_PIECES = 100_295
ITEM_BYTES = {"BF16": 2, "F32": 4}
# The published structure with small matrices: as many layers, experts, blocks and tokens.
SMALL_28B: Raw = PT_28B | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "moe_intermediate_size": [32, 16],
    "pixel_hidden_size": 32,
    "rope_scaling": {"type": "default", "mrope_section": [3, 3, 2]},
    "vision_config": PT_28B["vision_config"] | {"embed_dim": 32, "hidden_size": 32, "num_heads": 2},
}
# The same of 424B-A47B: layers without experts first, no shared experts, a head of its own, no ids.
SMALL_424B: Raw = PADDLE_424B | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "moe_intermediate_size": [32, 16],
    "freq_allocation": 2,
    "pixel_hidden_size": 32,
    "vision_config": SMALL_28B["vision_config"] | {"depth": 2},
}
TOKENIZER: Raw = {"tokenizer_class": "Ernie4_5_VLTokenizer", "additional_special_tokens": None}
GENERATION: Raw = {"do_sample": True, "top_p": 0.8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


class Tensor(NamedTuple):
    """One tensor of the published files."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


def published_tensors(raw: Raw) -> Iterator[Tensor]:
    """All tensors, in the order of the layers. Linear weights are (out, in), routers (hidden, experts)."""
    hidden, vocab = raw["hidden_size"], raw["vocab_size"]
    head_dim = hidden // raw["num_attention_heads"]
    key_width = head_dim * raw["num_key_value_heads"]
    num_text, num_vision = raw["moe_num_experts"]
    text_size, vision_size = raw["moe_intermediate_size"]
    start = raw["moe_layer_start_index"]
    first_with_experts = start if isinstance(start, int) else min(start)
    num_shared = raw.get("moe_num_shared_experts", 0)

    def bf16(name: str, *shape: int) -> Tensor:
        return Tensor(name, "BF16", shape)

    def mlp(prefix: str, size: int) -> Iterator[Tensor]:
        yield bf16(f"{prefix}.gate_proj.weight", size, hidden)
        yield bf16(f"{prefix}.up_proj.weight", size, hidden)
        yield bf16(f"{prefix}.down_proj.weight", hidden, size)

    yield bf16("model.embed_tokens.weight", vocab, hidden)
    for layer in range(raw["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield bf16(f"{prefix}.input_layernorm.weight", hidden)
        yield bf16(f"{prefix}.self_attn.q_proj.weight", hidden, hidden)
        yield bf16(f"{prefix}.self_attn.k_proj.weight", key_width, hidden)
        yield bf16(f"{prefix}.self_attn.v_proj.weight", key_width, hidden)
        yield bf16(f"{prefix}.self_attn.o_proj.weight", hidden, hidden)
        yield bf16(f"{prefix}.post_attention_layernorm.weight", hidden)
        if layer < first_with_experts:
            yield from mlp(f"{prefix}.mlp", raw["intermediate_size"])
            continue
        yield Tensor(f"{prefix}.mlp.gate.weight", "F32", (hidden, num_text))
        yield Tensor(f"{prefix}.mlp.gate.weight_1", "F32", (hidden, num_vision))
        yield Tensor(f"{prefix}.mlp.moe_statics.e_score_correction_bias", "F32", (2, num_text))
        for expert in range(num_text + num_vision):
            size = text_size if expert < num_text else vision_size
            yield from mlp(f"{prefix}.mlp.experts.{expert}", size)
        if num_shared:
            yield from mlp(f"{prefix}.mlp.shared_experts", num_shared * text_size)
    yield bf16("model.norm.weight", hidden)
    yield from _vision_tensors(raw["vision_config"], hidden)
    yield bf16("lm_head.weight", vocab, hidden)


def _vision_tensors(vision: Raw, hidden: int) -> Iterator[Tensor]:
    width, inner = vision["hidden_size"], vision["hidden_size"] * vision["mlp_ratio"]
    merged = width * vision["spatial_merge_size"] ** 2

    def linear(name: str, out_size: int, in_size: int) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", "BF16", (out_size, in_size))
        yield Tensor(f"{name}.bias", "BF16", (out_size,))

    def norm(name: str, size: int) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", "BF16", (size,))
        yield Tensor(f"{name}.bias", "BF16", (size,))

    yield Tensor("vision_model.patch_embed.proj.weight", "BF16", (width, 3 * vision["patch_size"] ** 2))
    for block in range(vision["depth"]):
        prefix = f"vision_model.blocks.{block}"
        yield from norm(f"{prefix}.norm1", width)
        yield from linear(f"{prefix}.attn.qkv", 3 * width, width)
        yield from linear(f"{prefix}.attn.proj", width, width)
        yield from norm(f"{prefix}.norm2", width)
        yield from linear(f"{prefix}.mlp.fc1", inner, width)
        yield from linear(f"{prefix}.mlp.fc2", width, inner)
    yield from norm("vision_model.ln", width)
    for merger, in_size in (("spatial", merged), ("temporal", 2 * merged)):
        yield from linear(f"model.resampler_model.{merger}_linear.0", merged, in_size)
        yield from linear(f"model.resampler_model.{merger}_linear.2", merged, merged)
        yield from norm(f"model.resampler_model.{merger}_linear.3", merged)
    yield from linear("model.resampler_model.mlp", hidden, merged)
    yield Tensor("model.resampler_model.after_norm.weight", "BF16", (hidden,))


def write_checkpoint(directory: Path, raw: Raw, *, is_sparse: bool) -> Path:
    """All files of a checkpoint with this config.json. is_sparse: each number is a zero that takes no disk.

    The last shard has the head alone, which may be the second copy of the embedding.
    """
    directory.mkdir(parents=True)
    *tensors, head = published_tensors(raw)
    total = sum(tensor.num_bytes for tensor in (*tensors, head))
    shards: list[list[Tensor]] = [[] for _ in range(NUM_SHARDS - 1)]
    for index, tensor in enumerate(tensors):
        shards[index * len(shards) // len(tensors)].append(tensor)
    shards.append([head])
    random = None if is_sparse else np.random.default_rng(28)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{NUM_SHARDS:05}.safetensors"
        weight_map |= {tensor.name: name for tensor in shard}
        _write_shard(directory / name, shard, random, is_tied=raw["tie_word_embeddings"])
    files: dict[str, Raw] = {
        "model.safetensors.index.json": {"metadata": {"total_size": total}, "weight_map": weight_map},
        "config.json": raw,
        "generation_config.json": GENERATION,
        "preprocessor_config.json": PREPROCESSOR,
        "tokenizer_config.json": TOKENIZER,
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    (directory / "tokenizer.model").write_bytes(tokenizer_model())
    return directory


def _write_shard(
    path: Path, shard: list[Tensor], random: np.random.Generator | None, *, is_tied: bool
) -> None:
    """random: draws the numbers; None leaves a hole instead of them."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard:
        offsets = [offset, offset + tensor.num_bytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        offset = offsets[1]
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if random is not None:
            file.writelines(_values(tensor, random, is_tied=is_tied) for tensor in shard)
    os.truncate(path, 8 + len(text) + offset)


def _values(tensor: Tensor, random: np.random.Generator, *, is_tied: bool) -> bytes:
    """Norms near 1, matrices that keep the size of what goes through; a tied head is the embedding."""
    if is_tied and tensor.name in ("lm_head.weight", "model.embed_tokens.weight"):
        random = np.random.default_rng(0)
    values = random.standard_normal(tensor.shape, dtype=np.float32)
    if len(tensor.shape) == 1:
        values = 0.1 * values + (1.0 if tensor.name.endswith("weight") else 0.0)
    else:
        values *= tensor.shape[-1] ** -0.5
    if tensor.dtype == "F32":
        return values.tobytes()
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


@cache
def tokenizer_model() -> bytes:
    """A SentencePiece model of 100,295 pieces with the special ones at their published ids."""
    special = {
        0: "<unk>",
        1: "<s>",
        2: "</s>",
        100272: "<|end_of_sentence|>",
        100273: "<|begin_of_sentence|>",
    }
    special |= {100274: "<mask:1>", **{100277 + index: f"<mask:{4 + index}>" for index in range(4)}}
    kinds = {0: 2, 1: 3, 2: 3}
    plain = iter(["\u2581", *map(chr, range(33, 127))])
    pieces: list[bytes] = []
    for token_id in range(NUM_PIECES):
        kind = kinds.get(token_id, 1)
        if token_id in special:
            text = special[token_id]
            kind = kinds.get(token_id, 4)
        elif token_id < 13:
            text, kind = str(token_id - 3), 4
        elif token_id < 13 + 256:
            text, kind = f"<0x{token_id - 13:02X}>", 6
        else:
            text = next((one for one in plain if not one.isdigit()), f"word{token_id}")
        score = b"\x15" + np.float32(-token_id).tobytes()
        # As in published files, a kind that is the default is not written.
        pieces.append(
            _message(1, _field(1, text.encode()) + score + (_number(3, kind) if kind != 1 else b""))
        )
    trainer = _number(3, 2) + _number(4, NUM_PIECES) + _number(35, 1)
    normalizer = _field(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 1)
    return b"".join(pieces) + _message(2, trainer) + _message(3, normalizer)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


_message = _field
