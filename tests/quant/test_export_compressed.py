"""Checkpoints for vLLM: compressed-tensors reads our weights to the bit, and engines' loaders our names."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import (
    PackedQuantizationCompressor,
)
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from safetensors.torch import load_file

import ernie_local
from ernie_calibration.images import draw_image
from ernie_calibration.sequences import EncodedSample
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import parse_config, read_config
from ernie_local.errors import ModelUnusable, Stopped, UsageError
from ernie_quant.export.calibrated import gptq_compressed
from ernie_quant.export.compressed import CompressedMatrix, GroupedFormat, compress
from ernie_quant.export.compressed_layout import CompressedLayout
from ernie_quant.export.hub_layout import hub_tensors
from ernie_quant.export.job import ExportJob
from ernie_quant.export.loader_names import check_names
from ernie_quant.export.parallel import check_parallel, gpu_shares
from ernie_quant.export.pieces import export_pieces
from ernie_quant.export.run import plan_export, write_export
from ernie_quant.hessian import damped
from ernie_quant.refine import lost_share
from tests.plain_export import export_plainly
from tests.published_files import PT_28B, TEXT_03B, TEXT_21B

CONFIG = read_config(NANO_DIRECTORY)
BIG, TEXT, DENSE = (parse_config(raw, "config.json") for raw in (PT_28B, TEXT_21B, TEXT_03B))
FORMATS = {
    "int4": GroupedFormat(4, 64),
    "int4 by 128": GroupedFormat(4, 128),
    "int4 with zeros": GroupedFormat(4, 64, is_symmetric=False),
    "int8": GroupedFormat(8, 128),
}
INT4 = CompressedLayout.of("int4", 64)


def scheme_of(form: GroupedFormat) -> QuantizationScheme:
    layout = CompressedLayout(form, form)
    tables: Any = layout.quantization_config(CONFIG.text)
    return QuantizationScheme.model_validate(tables["config_groups"]["group_0"])


def by_library(stored: dict[str, torch.Tensor], form: GroupedFormat) -> torch.Tensor:
    weights: torch.Tensor = PackedQuantizationCompressor.decompress(dict(stored), scheme_of(form))["weight"]
    return weights


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("method", ["rtn", "clip"])
def test_the_library_makes_our_weights_of_our_bytes(form: GroupedFormat, method: Any) -> None:
    torch.manual_seed(1)
    weights = torch.randn(24, 384) * torch.logspace(-3, 1, 24)[:, None]
    weights[3] = 0.0
    weights[5, :64] = 7.0
    matrix = compress(weights, form, method)
    stored = matrix.tensors()
    assert torch.equal(by_library(stored, form), matrix.dequantized())
    assert torch.equal(CompressedMatrix.of_tensors(form, stored).dequantized(), matrix.dequantized())
    assert matrix.dequantized().isfinite().all()
    step = 2 if form.bits == 4 else 0.2
    assert (matrix.dequantized()[3] == 0).all()
    assert (
        float((weights - matrix.dequantized()).square().mean()) < step * float(weights.square().mean()) / 50
    )


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_words_are_those_of_a_slow_packer(form: GroupedFormat) -> None:
    torch.manual_seed(2)
    matrix = compress(torch.randn(10, 128), form)
    stored = matrix.tensors()
    for (row, word), found in [
        ((row, word), int(stored["weight_packed"][row, word])) for row, word in [(0, 0), (9, 5)]
    ]:
        per_word = 32 // form.bits
        bits = "".join(
            format(int(matrix.codes[row, word * per_word + index]) - form.lowest, f"0{form.bits}b")
            for index in reversed(range(per_word))
        )
        assert found % (1 << 32) == int(bits, 2)
    assert stored["weight_shape"].tolist() == [10, 128]
    if matrix.zeros is not None:  # packed down the rows
        zero_bits = "".join(format(int(matrix.zeros[row, 1]) + 8, "04b") for row in reversed(range(8)))
        assert int(stored["weight_zero_point"][0, 1]) % (1 << 32) == int(zero_bits, 2)
        assert stored["weight_zero_point"].shape == (2, 2)


@pytest.mark.parametrize("form", [FORMATS["int4"], FORMATS["int4 by 128"], FORMATS["int4 with zeros"]])
def test_calibration_loses_less_than_clipping_than_rounding(form: GroupedFormat) -> None:
    torch.manual_seed(3)
    weights = torch.randn(64, 256)
    inputs = torch.randn(2000, 256) @ (torch.randn(256, 256) * torch.logspace(0, -2, 256))
    moments = inputs.t() @ inputs / len(inputs)
    hessian = damped(moments)
    lost = {
        "rtn": lost_share(weights, hessian, compress(weights, form, "rtn").dequantized().float()),
        "clip": lost_share(weights, hessian, compress(weights, form, "clip").dequantized().float()),
        "gptq": lost_share(weights, hessian, gptq_compressed(weights, form, moments).dequantized().float()),
    }
    assert lost["gptq"] < 0.7 * lost["clip"]
    assert lost["clip"] < lost["rtn"]


LAYOUTS = {
    "int4": INT4,
    "int4, dense plain": CompressedLayout.of("int4", 64, compresses_dense=False),
    "int4 with zeros": CompressedLayout.of("int4", 64, is_symmetric=False),
    "int8": CompressedLayout.of("int8", 64),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_quantization_config_is_the_librarys_own_and_means_our_modules(layout: CompressedLayout) -> None:
    tables: Any = layout.quantization_config(CONFIG.text)
    written = json.loads(QuantizationConfig.model_validate(tables).model_dump_json())
    assert written == {key: tables[key] for key in written}
    groups = [tables["config_groups"][name] for name in sorted(tables["config_groups"])]

    def bits_of(module: str, kind: str = "Linear") -> int | None:
        """As vLLM matches: ignored; a pattern of the name; the class."""

        def matches(pattern: str) -> bool:
            return bool(re.match(pattern[3:], module)) if pattern.startswith("re:") else pattern == module

        if any(map(matches, tables["ignore"])):
            return None
        for group in sorted(groups, key=lambda group: group["targets"] == ["Linear"]):
            if any(matches(target) or target == kind for target in group["targets"]):
                return int(group["weights"]["num_bits"])
        return None

    inner = "language_model.model.layers.3"
    assert bits_of(f"{inner}.mlp.text_experts.routed_experts.0.gate_proj") == layout.experts.bits  # type: ignore[union-attr]
    assert bits_of(f"{inner}.mlp.vision_experts.routed_experts.0.down_proj") == layout.experts.bits  # type: ignore[union-attr]
    dense = None if layout.dense is None else 8
    for module in (
        "self_attn.qkv_proj",
        "self_attn.q_proj",
        "self_attn.o_proj",
        "mlp.shared_experts.gate_up_proj",
    ):
        assert bits_of(f"{inner}.{module}") == dense, module
    assert bits_of("language_model.model.layers.0.mlp.gate_up_proj") == dense
    for module in (
        f"{inner}.mlp.text_experts_gate",
        f"{inner}.mlp.vision_experts_gate",
        "language_model.lm_head",
        "vision_model.blocks.0.attn.qkv",
        "resampler_model.spatial_linear1",
    ):
        assert bits_of(module) is None, module
    # Of a model with one bank.
    assert bits_of("model.layers.3.mlp.experts.routed_experts.0.gate_proj") == layout.experts.bits  # type: ignore[union-attr]
    assert bits_of("model.layers.3.mlp.gate") is None


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_loaders_take_all_names_and_miss_none(layout: CompressedLayout) -> None:
    for config in (CONFIG, BIG, TEXT, DENSE):
        names = [entry.name for piece in export_pieces(config, layout) for entry in piece.entries()]
        check_names(names, config, layout)
    suffix = "weight_packed"
    one = f"model.layers.2.mlp.experts.5.gate_proj.{suffix}"
    names = [entry.name for piece in export_pieces(CONFIG, layout) for entry in piece.entries()]
    with pytest.raises(
        ModelUnusable,
        match=r"1 of \d+ parameters get no weight.*text_experts\.w13_weight_packed, part 5 gate",
    ):
        check_names([name for name in names if name != one], CONFIG, layout)
    with pytest.raises(ModelUnusable, match=r"experts\.32\.gate_proj\.weight_packed fills nowhere"):
        check_names([*names, one.replace("experts.5", "experts.32")], CONFIG, layout)
    with pytest.raises(ModelUnusable, match="fills twice"):
        check_names([*names, one], CONFIG, layout)
    with pytest.raises(ModelUnusable, match="fills nowhere"):
        check_names([name.replace("resampler_model", "resampler") for name in names], CONFIG, layout)
    with pytest.raises(ModelUnusable, match="fills nowhere"):
        check_names([name.replace(".mlp.gate.", ".mlp.router.") for name in names], CONFIG, layout)


def test_names_of_text_models_have_no_banks() -> None:
    few = parse_config(TEXT_21B | {"num_hidden_layers": 3}, "config.json")
    names = [entry.name for piece in export_pieces(few, INT4) for entry in piece.entries()]
    one = "model.layers.2.mlp.experts.63.down_proj.weight_scale"
    missing = r"1 of \d+ parameters get no weight.*layers\.2\.mlp\.experts\.w2_weight_scale, part 63 down"
    with pytest.raises(ModelUnusable, match=missing):
        check_names([name for name in names if name != one], few, INT4)
    for wrong, told in (
        (one.replace("63", "64"), "nowhere"),
        ("model.layers.2.mlp.gate.weight_1", "nowhere"),
        ("vision_model.ln.weight", "nowhere"),
        ("model.layers.2.mlp.gate.weight", "twice"),
    ):
        with pytest.raises(ModelUnusable, match=f"{wrong} fills {told}"):
            check_names([*names, wrong], few, INT4)
    bias = "model.layers.2.mlp.moe_statics.e_score_correction_bias"
    with pytest.raises(ModelUnusable, match=r"layers\.2\.mlp\.gate\.e_score_correction_bias"):
        check_names([name for name in names if name != bias], few, INT4)


def test_an_exported_model_is_what_the_library_reads(tmp_path: Path) -> None:
    out = tmp_path / "out"
    told: list[str] = []

    def show(unit: str, _done: float, _of_all: float) -> None:
        told.append(unit)

    job = ExportJob(NANO_DIRECTORY, out, "nano", "vllm", INT4, "rtn", on_unit=show)
    with pytest.raises(Stopped):
        write_export(dataclasses.replace(job, should_stop=lambda: len(told) > 3))
    assert not out.exists()
    counts = write_export(job)
    assert counts.compressed == 522
    found = load_file(out / "model.safetensors")
    plain: dict[str, torch.Tensor] = {}
    for path in NANO_DIRECTORY.glob("*.safetensors"):
        plain |= load_file(path)
    for tensor in hub_tensors(CONFIG):
        form, module = INT4.form_of(tensor), tensor.name.removesuffix(".weight")
        source = plain.get(tensor.name, plain["model.embed_tokens.weight"])
        if form is None:
            assert torch.equal(found[tensor.name], source.to(tensor.dtype)), tensor.name
        elif ".experts.7." in module or ".experts.20." in module or ".layers.2." in module:
            stored = {suffix: found[f"{module}.{suffix}"] for suffix in form.suffixes}
            assert torch.equal(by_library(stored, form), compress(source, form).dequantized()), module
    raw = json.loads((out / "config.json").read_text())
    assert raw["model_type"] == "ernie4_5_moe_vl"
    assert raw["quantization_config"]["quant_method"] == "compressed-tensors"
    assert raw["freq_allocation"] == 8
    card = (out / "README.md").read_text()
    assert "--reasoning-parser ernie45 --tool-call-parser ernie45" in card
    assert "license: apache-2.0" in card


@pytest.mark.slow
def test_calibrated_experts_are_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    nano = ernie_local.load("nano")
    image = draw_image("receipt", 7, width=224, height=280)
    patches = nano.patches([image.image])
    media = CONFIG.media
    ids = [1, media.image_start, *[media.image] * patches[0].num_tokens, media.image_end]
    sample = EncodedSample("7", (*ids, *nano.tokenizer.encode(image.transcript)), tuple(patches), answers=())
    job = ExportJob(NANO_DIRECTORY, tmp_path / "out", "nano", "vllm", INT4, "gptq", sequences=[sample])
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count == 60

    with pytest.raises(Stopped):
        write_export(dataclasses.replace(job, should_stop=stop))
    write_export(job)
    write_export(dataclasses.replace(job, out=tmp_path / "at once"))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "at once"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    write_export(dataclasses.replace(job, out=tmp_path / "clipped", method="clip", sequences=()))
    clipped = load_file(tmp_path / "clipped" / "model.safetensors")
    changed = {name for name in first if not torch.equal(first[name], clipped[name])}
    assert changed
    assert all(".mlp.experts." in name for name in changed)


def test_what_cannot_be_split_or_grouped_is_refused(tmp_path: Path) -> None:
    by_128 = CompressedLayout.of("int4", 128)
    reasons = {one.tensor_parallel: one.reasons for one in gpu_shares(BIG, by_128, ())}
    assert not reasons[1]
    assert not reasons[2]
    assert not reasons[4]
    assert "20 attention heads do not divide by 8" in reasons[8]
    assert any("inner width 512 of vision experts" in reason for reason in reasons[8])
    with pytest.raises(UsageError, match="20 attention heads"):
        check_parallel(BIG, by_128, 8)
    with pytest.raises(UsageError, match="192 columns, which groups of 128 do not divide"):
        plan_export(ExportJob(NANO_DIRECTORY, tmp_path / "out", "nano", "vllm", by_128))
    with pytest.raises(UsageError, match="asymmetric codes in int8"):
        CompressedLayout.of("int8", 64, is_symmetric=False)


def test_each_gpu_holds_its_share_of_the_weights() -> None:
    entries = [
        entry for piece in export_pieces(BIG, CompressedLayout.of("int4", 128)) for entry in piece.entries()
    ]
    one, two, four, _ = gpu_shares(BIG, CompressedLayout.of("int4", 128), entries)
    assert 16.0e9 < one.weight_bytes < 18.5e9  # 28 billion weights, most of them in 4.125 bits
    assert 0.49 < two.weight_bytes / one.weight_bytes < 0.52
    assert 0.24 < four.weight_bytes / one.weight_bytes < 0.27
    assert one.kv_bytes == 4 * four.kv_bytes == 32768 * 28 * 2 * 4 * 128 * 2


def test_a_packed_source_is_refused_but_for_plain_weights(tmp_path: Path) -> None:
    tables = format_tables(CONFIG, FormatChoice("w4", None, None, None))
    export_plainly(NANO_DIRECTORY, tmp_path / "packed", tables)
    with pytest.raises(UsageError, match="packed is quantized already"):
        plan_export(ExportJob(tmp_path / "packed", tmp_path / "out", "packed", "vllm", INT4))
    plain = CompressedLayout.of("bf16", 128)
    job = ExportJob(tmp_path / "packed", tmp_path / "out", "packed", "vllm", plain)
    notes: list[str] = []
    write_export(dataclasses.replace(job, on_note=notes.append))
    assert any("dequantized" in note for note in notes)
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    assert (tmp_path / "out/configuration_ernie4_5_vl.py").exists()
