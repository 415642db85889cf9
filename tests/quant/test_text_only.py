"""Models that read only text: packed weights against transformers with the same ones, paged, and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ernie_local
from ernie_calibration.sequences import EncodedSample
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.config import read_config
from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.kernels import native
from ernie_local.media.patches import Patches
from ernie_local.text.template_file import detect_template
from ernie_local.text.tokenizer import ErnieTokenizer
from ernie_local.verify.templates import compare_template
from ernie_quant.export.compressed import GroupedFormat, compress
from ernie_quant.export.compressed_layout import CompressedLayout
from ernie_quant.export.job import ExportJob
from ernie_quant.export.run import plan_export, write_export
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import QuantizationMethod, Recipe
from tests.compressed_export import read_tensors
from tests.compressed_export import write_dequantized as write_by_library
from tests.dequantized import write_dequantized
from tests.runtime.paged_models import answer_logits, build, paged_experts, plan_of
from tests.text_only import TEXT_MODELS, TextOracle

pytestmark = pytest.mark.usefixtures("short_jobs")


def oracle_of(name: str) -> TextOracle:
    has_experts, changes = TEXT_MODELS[name]
    return TextOracle.of(changes, has_experts=has_experts)


def quantize(
    source: Path, out: Path, choice: FormatChoice, method: QuantizationMethod, ids: list[int]
) -> None:
    sequences = [EncodedSample("one", tuple(ids), (), answers=())] if method == "gptq" else []
    tables = format_tables(read_config(source), choice)
    quantize_checkpoint(Job(source, out, tables, Recipe(method), sequences))


@pytest.mark.filterwarnings("ignore::ernie_local.kernels.native.NativeModuleMissing")
@pytest.mark.parametrize(
    ("name", "method", "choice"),
    [
        ("21B", "gptq", FormatChoice("w4")),
        ("300B", "gptq", FormatChoice("w2", "w4")),
        ("square router", "clip", FormatChoice("w4", small_experts="w2")),
        ("wide heads", "rtn", FormatChoice("w2-w4", "w4", "w4")),
        ("0.3B", "clip", FormatChoice("w4", "w4", "w4")),
        ("no head_dim", "rtn", FormatChoice("w4", "w4")),
    ],
)
def test_packed_weights_answer_as_transformers_with_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    method: QuantizationMethod,
    choice: FormatChoice,
) -> None:
    """With the plain torch operators, which do not round activations; a tied head is as the embedding."""
    oracle = oracle_of(name)
    quantize(oracle.save(tmp_path / "plain"), tmp_path / "packed", choice, method, oracle.ids(60))
    assert write_dequantized(tmp_path / "packed", oracle.save(tmp_path / "saved")) > 15
    monkeypatch.setattr(native, "find_module", lambda: (None, "to compute with exact activations"))
    rounded: Any = type(oracle.model).from_pretrained(tmp_path / "saved", dtype=torch.float32)
    ids = oracle.ids(20, 1)
    expected, _ = TextOracle(rounded.eval()).run(ids)
    assert (expected - oracle.run(ids)[0]).abs().max() > 1e-2  # rounding does something
    found = ernie_local.load(tmp_path / "packed", dtype="float32", kv_dtype="float32").logits(ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["21B", "300B"])
def test_paged_experts_give_the_logits_of_resident_ones(tmp_path: Path, name: str) -> None:
    oracle = oracle_of(name)
    quantize(oracle.save(tmp_path / "plain"), tmp_path / "packed", FormatChoice("w4"), "rtn", [])
    turns: list[tuple[list[int], list[Patches], list[int]]] = [
        (oracle.ids(40), [], oracle.ids(8, 1)),
        (oracle.ids(9, 2), [], [11, 12]),
    ]
    for directory in (tmp_path / "plain", tmp_path / "packed"):
        resident, plan = build(directory, None), plan_of(directory)
        paged = build(directory, plan.least_bytes + (1 << 20))
        expected = answer_logits(resident, turns, chunk_tokens=8)
        assert torch.equal(answer_logits(paged, turns, chunk_tokens=8), expected)
        assert list(paged_experts(paged).stats.banks) == ["text"]


def load_strictly(oracle: TextOracle, directory: Path) -> TextOracle:
    """The model of transformers in float32, which lacks no tensor and has none over."""
    loaded: Any = type(oracle.model).from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    assert not any(report.values()), report
    model.config._experts_implementation = oracle.model.config._experts_implementation
    return TextOracle(model.eval())


def rounded_oracle(name: str) -> TextOracle:
    """Of weights that bfloat16 holds exactly, but for routers and their biases."""
    oracle = oracle_of(name)
    for parameter_name, parameter in oracle.model.named_parameters():
        if "mlp.gate." not in parameter_name:
            parameter.data = parameter.data.bfloat16().float()
    return oracle


@pytest.mark.parametrize(
    "name", ["21B", "300B", "interval", "no experts", "wide heads", "0.3B", "no head_dim"]
)
def test_a_plain_export_is_the_same_model_to_transformers(tmp_path: Path, name: str) -> None:
    oracle = rounded_oracle(name)
    counts = write_export(ExportJob(oracle.save(tmp_path / "plain"), tmp_path / "out", name))
    wanted, found = read_tensors(tmp_path / "plain"), read_tensors(tmp_path / "out")
    assert found.keys() == wanted.keys()
    assert counts.tensors == len(found) == counts.exact + counts.rounded
    for tensor_name, tensor in found.items():
        assert torch.equal(tensor.float(), wanted[tensor_name].float()), tensor_name
        assert (tensor.dtype == torch.float32) == (".mlp.gate." in tensor_name or "_bias" in tensor_name)
    ids = oracle.ids(20, 1)
    assert torch.equal(load_strictly(oracle, tmp_path / "out").run(ids)[0], oracle.run(ids)[0])
    assert read_config(tmp_path / "out") == read_config(tmp_path / "plain")


def test_an_export_of_packed_weights_is_what_they_mean(tmp_path: Path) -> None:
    oracle = oracle_of("21B")
    quantize(oracle.save(tmp_path / "plain"), tmp_path / "packed", FormatChoice("w4", "w4", "w4"), "rtn", [])
    write_export(ExportJob(tmp_path / "packed", tmp_path / "out", "21B"))
    write_dequantized(tmp_path / "packed", oracle.save(tmp_path / "saved"))
    wanted, found = read_tensors(tmp_path / "saved"), read_tensors(tmp_path / "out")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[one], wanted[one].to(found[one].dtype)) for one in found)


def test_an_export_for_engines_that_cannot_be_is_refused_before_it_begins(tmp_path: Path) -> None:
    source, plain = oracle_of("21B").save(tmp_path / "plain"), CompressedLayout.of("bf16", 64)
    with pytest.raises(ModelUnusable, match=rf"{source}/tokenizer\.model is missing"):
        plan_export(ExportJob(source, tmp_path / "out", "21B", "vllm", plain))
    changed = TextOracle.of({"moe_norm_min": 0.5}, has_experts=True).save(tmp_path / "changed")
    with pytest.raises(UsageError, match=r"moe_norm_min of 21B is 0\.5"):
        plan_export(ExportJob(changed, tmp_path / "out", "21B", "vllm", plain))
    # No group that `--group` knows divides all of its matrices, although one divides the first.
    whole = oracle_of("21B").save_with_tokenizer(tmp_path / "whole")
    with pytest.raises(UsageError, match="64 columns, which groups of 128") as refused:
        plan_export(ExportJob(whole, tmp_path / "out", "21B", "vllm", CompressedLayout.of("int8", 128)))
    assert refused.value.hint == "--format bf16"


INT4, INT8 = GroupedFormat(4, 32, is_symmetric=False), GroupedFormat(8, 32)


@pytest.mark.filterwarnings("ignore::ernie_local.model_files.CompressedWeightsWarning")
@pytest.mark.parametrize(
    ("name", "layout", "num_compressed"),
    [
        # Two layers of 8 experts, their shared ones, a dense layer, three times attention.
        ("21B", CompressedLayout(INT4, INT8), 3 * (2 * 9 + 1) + 3 * 4),
        ("300B", CompressedLayout(INT8, None), 3 * 8),
        ("0.3B", CompressedLayout(INT4, INT4), 3 * 7),
    ],
)
def test_a_compressed_export_is_the_same_model_to_the_library(
    tmp_path: Path, name: str, layout: CompressedLayout, num_compressed: int
) -> None:
    oracle = rounded_oracle(name)
    template = "{{ messages[0].content }}<think>" if name == "300B" else None
    oracle.save_with_tokenizer(tmp_path / "plain", template)
    job = ExportJob(tmp_path / "plain", tmp_path / "out", name, "vllm", layout, "clip")
    assert write_export(job).compressed == num_compressed
    by_library = write_by_library(tmp_path / "out", tmp_path / "plain", tmp_path / "by library")
    plain, found = read_tensors(tmp_path / "plain"), read_tensors(by_library)
    assert found.keys() == plain.keys()
    for tensor_name, tensor in found.items():
        form = layout.experts if ".mlp.experts." in tensor_name else layout.dense
        wanted = plain[tensor_name]
        if tensor_name.endswith("_proj.weight") and form is not None:
            wanted = compress(wanted, form, "clip").dequantized()
        assert torch.equal(tensor, wanted.to(tensor.dtype)), tensor_name
    ids = oracle.ids(20, 1)
    expected, _ = load_strictly(oracle, by_library).run(ids)
    ours = ernie_local.load(tmp_path / "out", dtype="float32", kv_dtype="float32").logits(ids)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "Ernie4_5" in raw["architectures"][0]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card
    assert "--trust-remote-code" not in card
    assert ("--reasoning-parser" in card) == (template is not None)
    assert not list((tmp_path / "out").glob("*.py"))
    written = (tmp_path / "out" / "chat_template.jinja").read_text()
    tokenizer = ErnieTokenizer.from_directory(tmp_path / "out")
    assert written == template or detect_template(tmp_path / "out", reads_images=False) == "text"
    assert compare_template(tmp_path / "out", tokenizer, reads_images=False) is None
