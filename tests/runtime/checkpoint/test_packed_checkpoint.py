"""Packed checkpoints that are damaged, or whose config.json and weights do not belong together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ernie_local
from ernie_local.checkpoint.format_tables import FormatChoice
from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.checkpoint.writer import TensorEntry, write_checkpoint
from ernie_local.config import read_config
from ernie_local.errors import ModelUnusable
from ernie_local.packing.formats import FORMATS, TILE_ROWS
from ernie_local.packing.page import seal
from ernie_local.verify import verify
from tests.conftest import PackNano

Raw = dict[str, Any]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def packed(pack_nano: PackNano) -> Path:
    return pack_nano(FormatChoice())


def quantization(change: Callable[[Raw], object]) -> Callable[[Raw, Tensors], object]:
    return lambda raw, tensors: change(raw["quantization_config"])


def weights(change: Callable[[Tensors], object]) -> Callable[[Raw, Tensors], object]:
    return lambda raw, tensors: change(tensors)


def cut_header(tensors: Tensors) -> None:
    tensors["experts.2.vision.w4"][3, :4] = 0


def swap_formats(tensors: Tensors) -> None:
    tensors["experts.2.vision.w4"][3, 6] = 4  # gate and up said to be w2: shorter than its room


def spoil_scale(tensors: Tensors) -> None:
    tensors["layers.1.self_attn.o_proj.w8"].view(-1)[:2] = torch.tensor(
        [0, 0x7C], dtype=torch.uint8
    )  # infinity


def spoil_page(tensors: Tensors) -> None:
    tensors["experts.2.vision.w4"][3, 64:66] = torch.tensor([1, 0x7E], dtype=torch.uint8)  # NaN
    seal(tensors["experts.2.vision.w4"][3])


def flip_code(tensors: Tensors) -> None:
    tensors["experts.2.vision.w4"][3, 5000] ^= 1


def flip_padding(tensors: Tensors) -> None:
    tensors["experts.2.vision.w4"][3, -1] ^= 1


def flip_gated_code(tensors: Tensors) -> None:
    tensors["layers.1.moe.shared_experts.w8"][0, 9000] ^= 1


def swap_gated_formats(tensors: Tensors) -> None:
    tensors["layers.0.mlp.w8"][0, 7] = 1  # down said to be w4, which takes less room


BROKEN: dict[str, tuple[Callable[[Raw, Tensors], object], str]] = {
    "another method": (
        quantization(lambda q: q.update(quant_method="gptq")),
        "quant_method 'gptq', read are ernie_local, compressed-tensors, awq and fp8",
    ),
    "a later version": (
        quantization(lambda q: q.update(version=2)),
        "version 2, expected version 1",
    ),
    "an unknown key": (
        quantization(lambda q: q.update(sparsity=1)),
        "unknown key 'quantization_config.sparsity'",
    ),
    "an unknown format": (
        quantization(lambda q: q["matrices"].update(embed_tokens="w6")),
        "names the format w6, known are",
    ),
    "no name of a format": (
        quantization(lambda q: q["matrices"].update(embed_tokens="../x")),
        "matrices.embed_tokens is '../x'",
    ),
    "a module that cannot be packed": (
        quantization(lambda q: q["matrices"].update({"layers.1.moe.text_router": "w8"})),
        "matrices names layers.1.moe.text_router",
    ),
    "a module that is not there": (
        quantization(lambda q: q["matrices"].update({"layers.9.self_attn.o_proj": "w8"})),
        "matrices names layers.9.self_attn.o_proj",
    ),
    "a gated MLP that is not there": (
        quantization(lambda q: q["gated_mlps"].update({"layers.1.mlp": "w8"})),
        "gated_mlps names layers.1.mlp",
    ),
    "a bank that is not there": (
        quantization(lambda q: q["experts"].update({"0.text": "w4"})),
        "experts names '0.text', which is no bank",
    ),
    "a bank too few": (
        quantization(lambda q: q["experts"].pop("1.text")),
        "experts names 9 banks of experts, the model has 10",
    ),
    "a list too short": (
        quantization(lambda q: q["experts"].update({"1.text": ["w4"] * 15})),
        "expected one format or 16 of them",
    ),
    "packed tensor missing": (
        weights(lambda t: t.pop("experts.1.text.w4")),
        "packed tensor 'experts.1.text.w4' of shape (16, ",
    ),
    "plain tensor missing": (
        weights(lambda t: t.pop("layers.1.input_layernorm.weight")),
        "tensor 'layers.1.input_layernorm.weight' of shape (192) is missing",
    ),
    "wrong shape": (
        weights(lambda t: t.update({"experts.1.text.w4": t["experts.1.text.w4"][:15].clone()})),
        "'experts.1.text.w4' is U8 of shape (15, ",
    ),
    "wrong type": (
        weights(lambda t: t.update({"embed_tokens.w8": t["embed_tokens.w8"].view(torch.int8)})),
        "'embed_tokens.w8' is I8",
    ),
    "one packed tensor too many": (
        weights(lambda t: t.update({"experts.1.text.w2": t["experts.1.text.w4"].clone()})),
        "'experts.1.text.w2' of shape",
    ),
    "plain and packed": (
        weights(lambda t: t.update({"layers.1.self_attn.o_proj.weight": torch.zeros(192, 192)})),
        "'layers.1.self_attn.o_proj.weight' is there, and quantization_config says that it is packed",
    ),
    "an embedding plain and packed, as the head": (
        weights(lambda t: t.update({"lm_head.weight": torch.zeros(503, 192)})),
        "'lm_head.weight' is there, and quantization_config says that it is packed",
    ),
    "a page without its header": (weights(cut_header), "page 3 of experts.2.vision.w4 begins with"),
    "a scale that is no number": (weights(spoil_scale), "layers.1.self_attn.o_proj: 1 of "),
    "a page with such a scale": (weights(spoil_page), "page 3 of experts.2.vision.w4: 1 of "),
    "a flipped bit in the codes": (weights(flip_code), "page 3 of experts.2.vision.w4 has the checksum "),
    "a flipped bit in the padding": (
        weights(flip_padding),
        "page 3 of experts.2.vision.w4 has the checksum ",
    ),
    "a flipped bit in a gated MLP": (
        weights(flip_gated_code),
        "the page of layers.1.moe.shared_experts has the checksum ",
    ),
    "a gated MLP of another format": (weights(swap_gated_formats), "the page of layers.0.mlp "),
    "a version that is no number": (
        quantization(lambda q: q.update(version=True)),
        "quant_method 'ernie_local' version true, expected",
    ),
    "a page of another format": (weights(swap_formats), "page 3 of experts.2.vision.w4 "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_is_refused_with_names_and_numbers(packed: Path, tmp_path: Path, name: str) -> None:
    break_it, message = BROKEN[name]
    raw = json.loads((packed / "config.json").read_text())
    tensors = load_file(packed / "model.safetensors")
    break_it(raw, tensors)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelUnusable) as caught:
        ernie_local.load(tmp_path).wait_until_resident()
    assert message in str(caught.value)


MATRICES = (
    "embed_tokens",
    "lm_head",
    "layers.2.self_attn.qkv_proj",
    "layers.2.self_attn.o_proj",
    "vision.blocks.0.attn.qkv",
    "vision.blocks.0.mlp.fc2",
)


@pytest.mark.parametrize(("dense", "other"), [("w4", "w8"), ("w8", "w4")])
def test_a_scale_that_is_not_usable_is_refused_in_every_matrix(
    dense: str, other: str, pack_nano: PackNano, tmp_path: Path
) -> None:
    """At loading, and by verify: the last scale of each matrix, in both kinds of scales."""
    packed = pack_nano(FormatChoice(dense=dense, embedding=other, vision=dense))
    shapes = PackedTensors(read_config(packed))
    tensors = load_file(packed / "model.safetensors")
    (tmp_path / "config.json").write_text((packed / "config.json").read_text())
    spoiled: dict[str, torch.Tensor] = {}
    for stem, value in zip(MATRICES, (torch.nan, torch.inf, -60000.0) * 2, strict=True):
        [name] = (name for name in shapes.shapes if name.rpartition(".")[0] == stem)
        low_bit = FORMATS[name.rpartition(".")[2]]
        columns = shapes.matrix_shape(stem)[1]
        groups = low_bit.num_groups(columns) if low_bit.has_fp16_scales else 1
        spoiled[name] = tensors[name].clone()
        last_tile = spoiled[name].view(-1, low_bit.tile_bytes(columns))[-1]
        last_tile[: 2 * TILE_ROWS * groups].view(torch.float16)[-1] = value
        save_file(tensors | {name: spoiled[name]}, tmp_path / "model.safetensors")
        with pytest.raises(ModelUnusable, match=rf"{re.escape(stem)}: 1 of \d+ scales .* {value:.6g}"):
            ernie_local.load(tmp_path).wait_until_resident()
    save_file(tensors | spoiled, tmp_path / "model.safetensors")
    found = verify(tmp_path, companions=False).findings
    assert {finding.tensor for finding in found} == spoiled.keys()


def test_a_cut_file_is_refused(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((packed / "config.json").read_text())
    content = (packed / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ModelUnusable, match=r"has \d+ bytes, but tensor"):
        ernie_local.load(tmp_path).wait_until_resident()


def test_shards_are_found_again(packed: Path, tmp_path: Path) -> None:
    config = read_config(packed)
    with open_checkpoint(packed, config) as checkpoint:
        tensors = load_file(packed / "model.safetensors")
        entries = [TensorEntry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
        write_checkpoint(
            tmp_path, entries, lambda entry: tensors[entry.name].split(1 << 16), largest_shard=1 << 20
        )
        (tmp_path / "config.json").write_text((packed / "config.json").read_text())
        assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 5
        with open_checkpoint(tmp_path, config) as again:
            assert set(again.packed) == set(PackedTensors(config).shapes)
            assert all(
                stored.offset % 4096 == 0 for name, stored in again.packed.items() if "experts." in name[:8]
            )
            assert again.total_bytes == checkpoint.total_bytes
    ids = list(range(20, 40))
    assert torch.equal(ernie_local.load(tmp_path).logits(ids), ernie_local.load(packed).logits(ids))
